"""Folders of NIfTI files without a standard: one file a subject, or one folder a subject with images and masks.

What a file shows is told by words of its name (``t1``, ``flair``, ``seg``) or of its folder's (``labelsTr``, ``T1``);
what is left of the name is the subject, or the folder is. Names as in the Medical Segmentation Decathlon and nnU-Net
(imagesTr/labelsTr, ``_0000`` for channels) and BraTS (a folder a subject, ``NAME_t1ce``) are understood.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.found import Findings, FoundImage, Tick, relative
from polyclinic.data.readers.nifti import header_findings, names_patient, scanner_facts, stem

_SHOWS = {
    "t1": "T1w", "t1w": "T1w", "t1n": "T1w", "mprage": "T1w", "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce",
    "t2": "T2w", "t2w": "T2w", "flair": "FLAIR", "t2f": "FLAIR", "t2flair": "FLAIR", "pd": "PDw", "pdw": "PDw",
    "t2s": "T2star", "t2star": "T2star", "t2starw": "T2star", "dwi": "DWI", "dti": "DWI", "adc": "ADC", "swi": "SWI",
    "bold": "bold", "fmri": "bold", "mra": "angio", "tof": "angio", "ct": "CT", "cta": "CT", "pet": "PET",
}  # fmt: skip
_MARKS = frozenset((
    "annotation", "contour", "dseg", "gt", "groundtruth", "label", "labels", "lesion", "lesions", "manual", "mask",
    "masks", "roi", "seg", "segmentation", "segmentations", "truth",
))  # fmt: skip
_MASK_FOLDERS = frozenset(("labelstr", "labelsts", "groundtruths", "seg", "segs", *_MARKS))
_GENERIC = frozenset((
    "anat", "data", "dwi", "func", "image", "images", "imagestr", "imagests", "mri", "nifti", "nii", "scans", "train",
    "test", "val",
))  # fmt: skip
_VISIT = re.compile(r"(ses|session|visit|tp|timepoint|baseline|bl|followup|fu|month|year)[-_]?\w{0,6}", re.I)
_HEAD_IMAGES = frozenset(("T1w", "T1ce", "T2w", "FLAIR", "PDw", "T2star"))
_NO_FACE = ("deface", "brain", "bet", "strip", "spine", "prostate", "knee", "heart", "cardiac", "abdomen")


@dataclass(frozen=True)
class _Named:
    """A file, and what its name says: subject and visit as written, what it shows, and the words that are left."""

    path: Path
    subject: str
    session: str
    shows: str
    is_mask: bool
    rest: str
    by_folder: bool


def scan_nifti(files: Sequence[Path], top: Path, folder: Path, site: str, salt: str, tick: Tick) -> Findings:
    """The images and masks among NIfTI files.

    Args:
        files: the NIfTI files.
        top: the site's folder.
        folder: the folder to which cells of the manifest are relative.
        site: name of the site.
        salt: for pseudonyms.
        tick: called after each file.
    """
    findings = Findings("NIfTI files")
    names = _name_masks(_join_masks(_tell_apart(_by_folder([_parse(path, top) for path in files]))))
    for named in names:
        lowered = f"{top.name}/{relative(named.path, top)}".lower()
        reason, notes = header_findings(named.path)
        findings.images.append(
            FoundImage(
                site=site,
                subject=pseudonym(named.subject, salt, "sub"),
                session=named.session,
                column=named.shows or ("mask" if named.is_mask else "image"),
                where=relative(named.path, folder),
                is_mask=named.is_mask,
                reason=reason,
                about={} if named.is_mask else scanner_facts(named.path),
                head=not named.is_mask and named.shows in _HEAD_IMAGES and not any(w in lowered for w in _NO_FACE),
                named=names_patient(named.path),
                notes=notes,
            )
        )
        tick()
    return findings


def _parse(path: Path, top: Path) -> _Named:
    words = [word for word in re.split(r"[_.\s]+|(?<=[a-zA-Z0-9])-(?=[a-zA-Z]+$)", stem(path)) if word]
    folders = list(path.parent.relative_to(top).parts)
    lowered = [name.lower() for name in folders]
    shows, is_mask, rest = "", bool(_MASK_FOLDERS.intersection(lowered)), []
    for number, word in enumerate(words):
        key = word.lower()
        if key in _SHOWS and not shows:
            shows = _SHOWS[key]
        elif any(part in _MARKS or (len(part) <= 8 and part.endswith(("seg", "mask"))) for part in key.split("-")):
            is_mask = True
        elif re.fullmatch(r"\d{4}", word) and number == len(words) - 1 and number and "imagests" in _nnunet(lowered):
            shows = f"channel_{int(word)}"
        else:
            rest.append(word)
    begins_with_content = bool(words) and (words[0].lower() in _SHOWS or words[0].lower() in _MARKS)
    if not shows and lowered and lowered[-1] in _SHOWS:
        shows = _SHOWS[folders.pop().lower()]
    session = next((name for name in reversed(folders) if _VISIT.fullmatch(name)), "")
    by_folder = begins_with_content or not rest
    subject = _subject_folder(folders, top) if by_folder else "_".join(rest)
    return _Named(path, subject, session, shows, is_mask, "_".join(rest), by_folder)


def _nnunet(folders: Sequence[str]) -> set[str]:
    return {"imagests" if name in ("imagestr", "imagests") else name for name in folders}


def _subject_folder(folders: Sequence[str], top: Path) -> str:
    """The nearest folder that is neither a visit nor named for what all subjects have."""
    for name in reversed(folders):
        lowered = name.lower()
        if lowered not in _GENERIC | _MASK_FOLDERS and lowered not in _SHOWS and not _VISIT.fullmatch(name):
            return name
    return top.name


def _by_folder(names: Sequence[_Named]) -> list[_Named]:
    """Where one name stands in several subjects' folders (``P1/scan.nii``, ``P2/scan.nii``), folders are subjects."""
    homes: dict[tuple[str, str, bool, str], set[Path]] = defaultdict(set)
    for named in names:
        homes[named.subject, named.shows, named.is_mask, named.session].add(named.path.parent)
    mended = []
    for named in names:
        places = homes[named.subject, named.shows, named.is_mask, named.session]
        owners = {_subject_folder(place.parts[1:], place) for place in places}
        if not named.by_folder and len(owners) > 1:
            owner = _subject_folder(named.path.parent.parts[1:], named.path.parent)
            shows = named.shows or ("" if named.is_mask else named.rest)
            named = replace(named, subject=owner, shows=shows, by_folder=True)
        mended.append(named)
    return mended


def _tell_apart(names: Sequence[_Named]) -> list[_Named]:
    """Where a subject would have many ``T1w`` (``T1_001``, ``T1_002``), what is left of the name is the subject."""
    counts = Counter((named.subject, named.session, named.shows, named.is_mask) for named in names if named.by_folder)
    crowded = {subject for (subject, *_), count in counts.items() if count > 1}
    return [
        replace(named, subject=named.rest) if named.by_folder and named.rest and named.subject in crowded else named
        for named in names
    ]


def _join_masks(names: Sequence[_Named]) -> list[_Named]:
    """A mask ``P1_hippocampus`` belongs to the subject ``P1`` of an image, if no image has the mask's whole name."""
    subjects = {named.subject for named in names if not named.is_mask}
    joined = []
    for named in names:
        words = named.subject.split("_")
        parts = (("_".join(words[:end]), "_".join(words[end:])) for end in range(len(words) - 1, 0, -1))
        owner, what = next(((owner, what) for owner, what in parts if owner in subjects), ("", ""))
        if named.is_mask and named.subject not in subjects and owner:
            named = replace(named, subject=owner, shows=what)
        joined.append(named)
    return joined


def _name_masks(names: Sequence[_Named]) -> list[_Named]:
    """Masks are ``mask`` where each visit has one, else they are named for the image that they belong to."""
    counts = Counter((named.subject, named.session) for named in names if named.is_mask)
    several = bool(counts) and max(counts.values()) > 1
    return [
        replace(named, shows=f"{named.shows or named.rest}_mask".lstrip("_") if several else "mask")
        if named.is_mask
        else named
        for named in names
    ]
