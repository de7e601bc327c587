"""Folders of NIfTI files without a standard: whatever files and folders are called.

``layout`` tells from all names together which words are the patient, the visit and the contrast, ``pattern`` takes them
from a pattern that a person gives, and ``places`` gives them their cells in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.found import Findings, FoundImage, Tick, relative
from polyclinic.data.readers.layout import tell
from polyclinic.data.readers.nifti import names_patient, nifti_header, scanner_facts, stem
from polyclinic.data.readers.pattern import Fit, Pattern
from polyclinic.data.readers.places import Place, place
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

KIND = "NIfTI files"
_HEAD_IMAGES = ("T1w", "T1ce", "T2w", "FLAIR", "PDw", "T2star")
_NO_FACE = ("deface", "brain", "bet", "strip", "spine", "prostate", "knee", "heart", "cardiac", "abdomen")
_HINT = (
    "look at the table of what was taken for patient, visit and contrast, and where it is wrong, give "
    '`--pattern`, such as "{subject}/{session}/{contrast}.nii.gz".'
)


def scan_nifti(
    files: Sequence[Path],
    top: Path,
    folder: Path,
    site: str,
    salt: str,
    tick: Tick,
    *,
    home: str = "",
    patterns: Sequence[Pattern] = (),
) -> Findings:
    """The images and masks among NIfTI files.

    Args:
        files: the NIfTI files.
        top: the site's folder.
        folder: the folder to which cells of the manifest are relative.
        site: name of the site, where no pattern tells it.
        salt: for pseudonyms.
        tick: called after each file.
        home: what tells patients of this site from those of others with the same names; "" where there is one site.
        patterns: ways to read the paths; by default they are told from all paths together.
    """
    findings = Findings(KIND)
    sites: dict[Path, str] = {}
    if patterns:
        found = [(path, fit) for path in files for fit in [_fit(patterns, path, top)] if fit is not None]
        files = [path for path, _ in found]
        placed = place([fit.named for _, fit in found])
        sites = {path: fit.site for path, fit in found}
        layouts = [fit.layout for _, fit in found]
        certain, split = True, 0
    else:
        told = tell([(*path.parent.relative_to(top).parts, stem(path)) for path in files])
        placed = place(told.files)
        layouts = [one.layout + _ending(path) for path, one in zip(files, placed.places, strict=True)]
        certain, split = told.certain, told.split
    for path, one, layout in zip(files, placed.places, layouts, strict=True):
        here = sites.get(path) or site
        owner = sites.get(path) or home
        findings.images.append(_image(path, top, folder, here, owner, salt, one, layout))
        tick()
    findings.notes += _notes(site, certain=certain, split=split, crowded=placed.crowded, strangers=placed.strangers)
    return findings


def _fit(patterns: Sequence[Pattern], path: Path, top: Path) -> Fit | None:
    fits = (pattern.fit(relative(path, top)) for pattern in patterns)
    return next((fit for fit in fits if fit is not None), None)


def _ending(path: Path) -> str:
    return path.name[len(stem(path)) :]


def _image(
    path: Path, top: Path, folder: Path, site: str, home: str, salt: str, place: Place, layout: str
) -> FoundImage:
    name = place.subject or top.name
    lowered = f"{top.name}/{relative(path, top)}".lower()
    return FoundImage(
        site=site,
        subject=pseudonym(f"{home}/{name}" if home else name, salt, "sub"),
        session=place.session,
        column=place.column,
        where=relative(path, folder),
        is_mask=place.is_mask,
        reason=_reason(path) or place.reason,
        about={} if place.is_mask else scanner_facts(path),
        head=not place.is_mask and place.column.split("_")[0] in _HEAD_IMAGES and not any(word in lowered for word in _NO_FACE),
        named=names_patient(path),
        run=place.run,
        layout=layout,
        example=place.example + _ending(path),
    )


def _notes(site: str, *, certain: bool, split: int, crowded: int, strangers: int) -> list[Note]:
    notes = []
    if not certain:
        text = f"{site}: names of files and folders do not tell for certain which of their words are the patients: {_HINT}"
        notes.append(Note("N310", text))
    if split:
        text = (
            f"{site}: the names of {_count(split, 'patient')} stand in two parts (such as train and test), with the same "
            "images in both: they were taken for two persons each. Where they are one, merge the parts."
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


def _reason(path: Path) -> str:
    try:
        nifti_header(path)
    except UnreadableError as error:
        return str(error)
    return ""
