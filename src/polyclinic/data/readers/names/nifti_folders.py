"""Folders of NIfTI files without a standard: whatever files and folders are called.

``layout`` tells from all names together which words are the patient, the visit and the contrast, ``pattern`` takes them
from a pattern that a person gives, and ``places`` gives them their cells in the manifest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.found import Findings, FoundImage, Tick, relative
from polyclinic.data.readers.names.layout import tell
from polyclinic.data.readers.names.pattern import Fit, Pattern
from polyclinic.data.readers.names.places import Place, Placed, place
from polyclinic.data.readers.nifti.read import header_findings, names_patient, scanner_facts, stem
from polyclinic.data.readers.people.people import People
from polyclinic.notes import Note

KIND = "NIfTI files"
_HEAD_IMAGES = ("T1w", "T1ce", "T2w", "FLAIR", "PDw", "T2star")
_NO_FACE = ("deface", "brain", "bet", "strip", "spine", "prostate", "knee", "heart", "cardiac", "abdomen")
_HINT = (
    "look at the table of what was taken for patient, visit and contrast, and where it is wrong, give "
    '`--pattern`, such as "{subject}/{session}/{contrast}.nii.gz".'
)


class _About(TypedDict):
    column: str
    is_mask: bool
    reason: str
    notes: tuple[Note, ...]
    about: dict[str, str | float]
    head: bool
    named: bool
    run: str


@dataclass(frozen=True)
class ScanOptions:
    """How the names of a site's NIfTI files are read.

    Attributes:
        home: what tells patients of this site from those of others with the same names; "" where there is one site.
        site_column: whether ``participants.tsv`` may name the site.
        patterns: ways to read paths; by default they are told from all paths together.
    """

    home: str = ""
    site_column: bool = False
    patterns: Sequence[Pattern] = ()


def scan_nifti(
    files: Sequence[Path], top: Path, folder: Path, site: str, salt: str, tick: Tick, options: ScanOptions
) -> Findings:
    """The images and masks among NIfTI files.

    Args:
        files: the NIfTI files.
        top: the site's folder; a ``participants.tsv`` in it tells of patients, as in BIDS.
        folder: the folder to which cells of the manifest are relative.
        site: name of the site, where no pattern or table tells it.
        salt: for pseudonyms.
        tick: called after each file.
        options: how names are read.
    """
    findings = Findings(KIND)
    if options.patterns:
        read = _by_pattern(files, top, options.patterns, findings, folder, tick)
    else:
        told = tell([(*path.parent.relative_to(top).parts, stem(path)) for path in files])
        placed = place(told.files)
        findings.only_masks = told.only_masks
        read = [
            _Read(path, one, one.layout + _ending(path), one.example + _ending(path))
            for path, one in zip(files, placed.places, strict=True)
        ]
        findings.notes += _notes(site, placed, certain=told.certain, split=told.split)
    visits: dict[str, set[str]] = defaultdict(set)
    for one in read:
        if not one.place.is_mask:
            visits[one.place.subject].add(one.place.session)
    people = People(top, visits, site_column=options.site_column)
    findings.notes += people.notes
    for one in read:
        name, session = one.place.subject, one.place.session
        listed = None if one.site else people.site(name, session)
        owner = "/".join(part for part in (one.site or options.home, name or top.name) if part)
        findings.images.append(
            FoundImage(
                site=one.site or (site if listed is None else listed),
                subject=pseudonym(owner, salt, "sub"),
                session=session,
                covariates=people.covariates(name, session),
                where=relative(one.path, folder),
                layout=one.layout,
                example=one.example,
                **_about(one.path, one.place, top),
            )
        )
        tick()
    return findings


@dataclass(frozen=True)
class _Read:
    path: Path
    place: Place
    layout: str
    example: str = ""
    site: str = ""


def _by_pattern(
    files: Sequence[Path], top: Path, patterns: Sequence[Pattern], findings: Findings, folder: Path, tick: Tick
) -> list[_Read]:
    found = [(path, fit) for path in files for fit in [_fit(patterns, path, top)] if fit is not None]
    fitting = {path for path, _ in found}
    others = [path for path in files if path not in fitting]
    reason = "path does not fit the pattern"
    for path in others:
        findings.images.append(FoundImage("", "", "", "", relative(path, folder), reason=reason))
        tick()
    if others:
        text = (
            f"{_count(len(others), 'NIfTI file')} of {len(files)} do not fit the pattern in just one way, and were "
            "left out: give `--pattern` once more for them, or name the separators within names "
            '("P_{subject}_{contrast}.nii.gz").'
        )
        findings.notes.append(Note("N314", text, [relative(path, folder) for path in others]))
    by_site: dict[str, list[tuple[Path, Fit]]] = defaultdict(list)
    for path, fit in found:
        by_site[fit.site].append((path, fit))
    read = []
    for site, mine in by_site.items():
        placed = place([fit.named for _, fit in mine])
        findings.notes += _notes(site or top.name, placed)
        read += [_Read(path, one, fit.layout, site=site) for (path, fit), one in zip(mine, placed.places, strict=True)]
    return read


def _fit(patterns: Sequence[Pattern], path: Path, top: Path) -> Fit | None:
    fits = (pattern.fit(relative(path, top)) for pattern in patterns)
    return next((fit for fit in fits if fit is not None), None)


def _ending(path: Path) -> str:
    return path.name[len(stem(path)) :]


def _about(path: Path, place: Place, top: Path) -> _About:
    lowered = f"{top.name}/{relative(path, top)}".lower()
    head = place.column.split("_")[0] in _HEAD_IMAGES and not any(word in lowered for word in _NO_FACE)
    reason, noted = header_findings(path)
    return {
        "column": place.column,
        "is_mask": place.is_mask,
        "reason": reason or place.reason,
        "notes": noted,
        "about": {} if place.is_mask else scanner_facts(path),
        "head": head and not place.is_mask,
        "named": names_patient(path),
        "run": place.run,
    }


def _notes(site: str, placed: Placed, *, certain: bool = True, split: int = 0) -> list[Note]:
    crowded, strangers = placed.crowded, placed.strangers
    notes = []
    if not certain:
        text = (
            f"{site}: names of files and folders do not tell for certain which of their words are the patients: {_HINT}"
        )
        notes.append(Note("N310", text))
    if split:
        text = (
            f"{site}: the names of {_count(split, 'patient')} stand in two parts (such as train and test), with the "
            "same images in both: they were taken for two persons each. Where they are one, merge the parts."
        )
        notes.append(Note("N311", text))
    if crowded:
        text = (
            f"{site}: {_count(crowded, 'visit')} with several images of one kind that no word tells apart: each has a "
            f"row of its own; {_HINT}"
        )
        notes.append(Note("N312", text))
    if strangers:
        text = f"{site}: {_count(strangers, 'mask')} whose patient or visit has no image: compare the names; {_HINT}"
        notes.append(Note("N313", text))
    return notes


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
