"""Finding out what a folder of images is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from polyclinic.data.cases import Counts
from polyclinic.data.image_notes import count_notes
from polyclinic.data.readers.bids import BidsName, is_bids, is_derivative, scan_bids
from polyclinic.data.readers.dicom.folders import scan_dicom
from polyclinic.data.readers.dicom.read import read_built_series
from polyclinic.data.readers.faces import shows_face
from polyclinic.data.readers.files import list_files, maybe_dicom
from polyclinic.data.readers.found import Findings, FoundImage, make_manifest
from polyclinic.data.readers.names.nifti_folders import KIND, ScanOptions, scan_nifti
from polyclinic.data.readers.names.pattern import Pattern
from polyclinic.data.readers.nifti.read import is_nifti, stem
from polyclinic.data.readers.people.tables import SITE_COLUMNS
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.errors import DataError
from polyclinic.files import write_atomic
from polyclinic.notes import Note

SiteFrom = Literal["folder", "column"]
_MOST_LOOKS = 5
"""Head MRI volumes that are looked at for faces: the rest of a scan reads headers alone."""


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Attributes:
        kinds: kinds of data found ("BIDS data set", "DICOM", "NIfTI files").
        manifest: a row for each visit, see ``make_manifest``.
        images: every image found, used or rejected.
        others: ending -> number of files that belong to no image.
        files: number of all files.
        notes: with counts; they name no patient and no file.
    """

    kinds: list[str]
    manifest: pd.DataFrame
    images: list[FoundImage]
    others: Counter[str]
    files: int
    notes: list[Note]

    def counts(self) -> dict[str, Counts]:
        """For each site the images found and used, and those rejected with reasons."""
        sites: dict[str, Counts] = {}
        for image in sorted(self.images, key=lambda image: image.site):
            here = sites.setdefault(image.site, Counts())
            here.found += 1
            here.used += not image.reason
            if image.reason:
                here.rejected[image.reason] += 1
        return sites


def scan_folder(
    folder: Path,
    *,
    site: str | None = None,
    site_from: SiteFrom | None = None,
    salt: str,
    patterns: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Find out what a folder is, from file names and headers alone.

    BIDS data sets are read as such; other NIfTI files by the words in their names; all other files that are DICOM are
    grouped into series. A few head MRI are read whole, to see whether faces were removed.

    Args:
        folder: the folder.
        site: name of the site for all images; by default the folder's name, or what ``site_from`` says.
        site_from: ``folder``: each folder within ``folder`` is a site; ``column``: participants.tsv tells the site.
        salt: for pseudonyms of patients and visits.
        patterns: how the paths of NIfTI files (relative to their site's folder) tell patient, visit and contrast, such
            as ``{subject}/{session}/{contrast}.nii.gz``, see ``Pattern``; the first that fits a path counts. By default
            the names of all files tell.
        progress: called with the number of files looked at, and of all files.

    Raises:
        DataError: P201 when the folder is missing or has no image, P202 when no column tells the site, P203 when
            ``site`` and ``site_from`` are both given, or a pattern can't be read or fits no file.
    """
    if not folder.is_dir():
        raise DataError("P201", f"The folder {folder.name!r} can't be found.", "Give a folder with images.")
    if site and site_from:
        raise DataError("P203", "`--site` and `--site-from` were both given.", "Give one of them.")
    parsed = [Pattern.parse(text) for text in patterns]
    if any(pattern.tells_site for pattern in parsed) and (site or site_from):
        raise DataError("P203", "`--pattern` has {site}, and `--site` or `--site-from` was given.", "Give one of them.")
    files = list(list_files(folder))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(files))

    found: list[Findings] = []
    for top, name, mine in _sites(folder, files, site, site_from):
        column = site is None and site_from != "folder"
        home = name if site_from == "folder" else ""
        found += _Site(top, name, folder, salt, home, parsed).scan(mine, tick, site_column=column)
    _check_fit(parsed, found)
    images = [image for findings in found for image in findings.images]
    if site_from == "column" and not any(image.site for image in images):
        message = f"No participants.tsv has a column that tells the site ({', '.join(SITE_COLUMNS)})."
        raise DataError("P202", message, "Use `--site NAME`.")
    if not images:
        raise DataError(
            "P201",
            f"The folder {folder.name!r} has no DICOM or NIfTI file.",
            "Give a folder with such images. Pictures (PNG, JPEG, TIFF) need no scan: name them in a table.",
        )
    images = [_with_site(image) for image in images]
    others = sum((findings.others for findings in found), Counter[str]())
    notes = [note for findings in found for note in findings.notes] + _notes(images, folder)
    kinds = list(dict.fromkeys(findings.kind for findings in found if findings.images))
    return Scan(kinds, make_manifest(images), images, others, len(files), list(dict.fromkeys(notes)))


def write_manifest(scan: Scan, out: Path) -> None:
    """Write the manifest as a CSV file; its folder is made."""
    write_atomic(out, scan.manifest.to_csv(index=False, lineterminator="\n"))


def _with_site(image: FoundImage) -> FoundImage:
    """An image that no table gives to a site can't be used."""
    if image.site:
        return image
    return replace(image, site="(no site)", reason=image.reason or "participants.tsv tells no site")


def _sites(
    folder: Path, files: Sequence[Path], site: str | None, site_from: SiteFrom | None
) -> list[tuple[Path, str, list[Path]]]:
    """(top folder, name, files) of each site."""
    if site_from != "folder":
        name = site or ("" if site_from == "column" else folder.resolve().name)
        return [(folder, name, list(files))]
    homes: dict[str, list[Path]] = {}
    for path in files:
        first, *below = path.relative_to(folder).parts
        if below:
            homes.setdefault(first, []).append(path)
    return [(folder / name, name, mine) for name, mine in homes.items()]


def _check_fit(patterns: Sequence[Pattern], found: Sequence[Findings]) -> None:
    images = [image for findings in found if findings.kind == KIND for image in findings.images]
    if patterns and not any(image.layout for image in images):
        message = f"`--pattern` fits none of {len(images)} NIfTI files in just one way."
        hint = (
            "It is relative to FOLDER (with `--site-from folder` to the folder of each site), with / between folders."
        )
        raise DataError("P203", message, hint)


@dataclass(frozen=True)
class _Site:
    """Where the files of one site are, and how they are named."""

    top: Path
    name: str
    folder: Path
    salt: str
    home: str
    patterns: Sequence[Pattern]

    def scan(self, files: list[Path], tick: Callable[[], None], *, site_column: bool) -> list[Findings]:
        """All kinds of data."""
        where = (self.folder, self.name, self.salt, tick)
        found = []
        roots = [] if self.patterns else _bids_roots(self.top, files)
        homes = self._homes(roots)
        for root in roots:
            mine = [path for path in files if path.is_relative_to(root)]
            found.append(scan_bids(mine, root, *where, site_column=site_column, home=homes[root]))
            files = [path for path in files if not path.is_relative_to(root)]
        if found:
            found[0].notes += _shared_names(roots, homes)
        niftis = [path for path in files if is_nifti(path)]
        if niftis:
            options = ScanOptions(home=self.home, site_column=site_column, patterns=self.patterns)
            found.append(scan_nifti(niftis, self.top, *where, options))
        rest = [path for path in files if not is_nifti(path)]
        candidates = [path for path in rest if maybe_dicom(path)]
        found.append(scan_dicom(candidates, *where, home=self.home))
        if niftis and found[-2].only_masks and any(not image.reason for image in found[-1].images):
            # Of DICOM images beside them, as drawn in another program.
            found[-2].images = [replace(image, is_mask=True) for image in found[-2].images]
        for path in rest:
            if not maybe_dicom(path):
                found[-1].others[path.suffix.lower() or "no ending"] += 1
                tick()
        return found

    def _homes(self, roots: Sequence[Path]) -> dict[Path, str]:
        """What tells patients of each data set from others of the same name.

        Data sets made from another share its patients, if there is one other; and a data set that is the site's whole
        folder needs its site alone. A data set's name does not depend on the others, so that later scans keep names.
        """
        origins = [root for root in roots if not is_derivative(root)]
        homes = {root: root.relative_to(self.top).as_posix().removeprefix(".") for root in roots}
        if len(origins) <= 1:
            shared = homes[origins[0]] if origins else ""
            homes = dict.fromkeys(roots, shared)
        return {root: "/".join(part for part in (self.home, inner) if part) for root, inner in homes.items()}


def _has_names(home: Path, files: Sequence[Path]) -> bool:
    """Whether an image has a name of BIDS: folders ``sub-01/ses-1`` with names of other kinds are no BIDS."""
    return any(is_nifti(path) and BidsName.parse(stem(path)) for path in files if path.is_relative_to(home))


def _shared_names(roots: Sequence[Path], homes: dict[Path, str]) -> list[Note]:
    """Patients whose name stands in several data sets of a site that are not known to be of the same people."""
    owners: dict[str, set[str]] = {}
    for root in roots:
        for path in root.glob("sub-*"):
            owners.setdefault(path.name, set()).add(homes[root])
    shared = sum(len(names) > 1 for names in owners.values())
    if not shared:
        return []
    who = "The name of 1 patient stands" if shared == 1 else f"The names of {shared} patients stand"
    text = (
        f"{who} in several data sets: they were taken for a person in each. Where they are the same persons, put "
        "the data sets into one, or give the same `subject` in the manifest."
    )
    return [Note("N326", text)]


def _bids_roots(top: Path, files: Sequence[Path]) -> list[Path]:
    """The outermost BIDS data sets at or below ``top``."""
    marks = ("dataset_description.json", "participants.tsv")
    homes = {top} | {path.parent for path in files if path.name in marks}
    roots: list[Path] = []
    for home in sorted(homes, key=lambda home: len(home.parts)):
        if not any(home.is_relative_to(root) for root in roots) and is_bids(home) and _has_names(home, files):
            roots.append(home)
    return roots


def _notes(images: Sequence[FoundImage], folder: Path) -> list[Note]:
    used = [image for image in images if not image.reason]
    notes = []
    named = sum(image.named for image in images)
    if named:
        text = (
            f"{_images(named)} with the patient's name or number in a file or folder name, or in a JSON file beside: "
            "rename or clean them, since paths stand in the manifest."
        )
        notes.append(Note("N303", text))
    burned = sum(image.burned_in for image in used)
    if burned:
        text = (
            f"{_images(burned)} that may have text burnt into the picture (stated by the header, or ultrasound or "
            "screen captures whose header does not deny it): look for names."
        )
        notes.append(Note("N304", text))
    notes += _face_note(used, folder)
    return notes + _image_notes(used)


def _image_notes(used: Sequence[FoundImage]) -> list[Note]:
    """What readers noted on images and masks, counted; a site each where there are several."""
    sites = sorted({image.site for image in used})
    notes = []
    for site in sites:
        for is_mask, things in ((False, ("image", "images")), (True, ("mask", "masks"))):
            mine = [(image.where, image.notes) for image in used if (image.site, image.is_mask) == (site, is_mask)]
            notes += count_notes(mine, site=site if len(sites) > 1 else "", things=things)
    return notes


def _face_note(used: Sequence[FoundImage], folder: Path) -> list[Note]:
    heads = [image for image in used if image.head]
    if not heads:
        return []
    # Spread over the whole export, so that every scanner and every year has its chance.
    step = max(len(heads) / _MOST_LOOKS, 1)
    chosen = [heads[int(number * step)] for number in range(min(len(heads), _MOST_LOOKS))]
    faces, looked = 0, 0
    for image in chosen:
        try:
            volume = read_volume(image.where, folder) if image.series is None else read_built_series(image.series)
            faces += shows_face(volume)
            looked += 1
        except UnreadableError:
            continue
    if not faces:
        return []
    text = (
        f"{faces} of {looked} head MRI looked at (of {len(heads)}) seem to show a face: a person can be recognised "
        "from it. Remove faces (for example with pydeface or mri_deface) where your rules ask for it."
    )
    return [Note("N305", text)]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
