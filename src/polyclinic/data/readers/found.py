"""The images found in a folder, and the manifest made of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from polyclinic.data.readers.dicom.series import Series
from polyclinic.notes import Note

Tick = Callable[[], None]
"""Called after each file looked at."""

_SCANNER = ("vendor", "model", "field_strength")
_FIRST = ("site", "subject", "session", "image", "mask", "label")


@dataclass(frozen=True)
class FoundImage:
    """One image of a folder.

    Attributes:
        subject: pseudonym of the patient.
        session: name or pseudonym of the visit, "" where there is one visit alone.
        column: what it shows (``T1w``, ``CT``), or what it marks if it is a mask.
        where: its cell in the manifest, relative to the folder; "" where it can't be used.
        is_mask: whether its values are labels of voxels.
        reason: why it can't be used, "" where it can.
        about: scanner facts, as in ``Volume``.
        covariates: columns of a table about the patient or visit.
        files: number of files that it is made of.
        head: whether it is a head MRI in which a face may be seen.
        burned_in: whether text may be burnt into it.
        named: whether an identifier of the patient stands in its path or in a file beside it.
        notes: what was mended, or should be known of it; see `polyclinic.data.image_notes`.
        series: its slices, if it is DICOM and may be looked at for a face.
        run: which of several images of its kind in the visit: images and masks with the same run share a row.
        layout: its path with ``{subject}``, ``{session}``, ``{run}``, ``{contrast}`` and ``{mask}`` for words that were
            taken for it; "" for DICOM, of which headers tell.
        example: its path without the patient's words and the visit's digits.
    """

    site: str
    subject: str
    session: str
    column: str
    where: str
    is_mask: bool = False
    reason: str = ""
    about: dict[str, str | float] = field(default_factory=dict)
    covariates: dict[str, str] = field(default_factory=dict)
    files: int = 1
    head: bool = False
    burned_in: bool = False
    named: bool = False
    notes: tuple[Note, ...] = ()
    series: Series | None = None
    run: str = ""
    layout: str = ""
    example: str = ""


@dataclass
class Findings:
    """What one way of looking found.

    Attributes:
        kind: "BIDS data set", "DICOM" or "NIfTI files".
        images: used and rejected ones.
        others: kind of file -> number of files that belong to no image.
        notes: with counts.
        only_masks: all files have names of masks, and were read as if they were images.
    """

    kind: str
    images: list[FoundImage] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    notes: list[Note] = field(default_factory=list)
    only_masks: bool = False


@dataclass(frozen=True)
class Taken:
    """What was taken for patient, visit and contrast in files whose names are alike.

    Attributes:
        layout: path with ``{subject}``, ``{session}``, ``{contrast}`` ...; "" for DICOM.
        example: one path without the patient's words; "" for DICOM.
        images, masks: numbers of them.
        patients, visits: numbers of different ones.
        shows: contrast, or what masks mark -> number.
    """

    layout: str
    example: str
    images: int
    masks: int
    patients: int
    visits: int
    shows: Counter[str]


def what_was_taken(images: Iterable[FoundImage]) -> list[Taken]:
    """For each layout what was taken for patient, visit and contrast, the layout with most images first."""
    alike: dict[str, list[FoundImage]] = defaultdict(list)
    for image in images:
        if image.subject and image.column:
            alike[image.layout].append(image)
    found = [
        Taken(
            layout=layout,
            example=min(mine, key=lambda image: image.where).example,
            images=sum(not image.is_mask for image in mine),
            masks=sum(image.is_mask for image in mine),
            patients=len({(image.site, image.subject) for image in mine}),
            visits=len({(image.site, image.subject, image.session) for image in mine}),
            shows=Counter(image.column for image in mine),
        )
        for layout, mine in alike.items()
    ]
    return sorted(found, key=lambda taken: (-taken.images - taken.masks, taken.layout))


def relative(path: Path, folder: Path) -> str:
    """The path as a manifest's cell has it."""
    return path.relative_to(folder).as_posix()


def make_manifest(images: Sequence[FoundImage]) -> pd.DataFrame:
    """A row for each visit: site, subject, session, a column for each kind of image and mask, covariates, scanner.

    A single kind of image is called ``image``, a single kind of mask ``mask``. Where a visit has several images of one
    kind, further rows hold them, each with the masks of the same run; what has no run stands in the first row. Rows are
    sorted; cells are texts, "" where there is nothing.
    """
    usable = _free_names(_plain_names([image for image in images if not image.reason]))
    visits: dict[tuple[str, str, str], list[FoundImage]] = defaultdict(list)
    for image in usable:
        visits[image.site, image.subject, image.session].append(image)
    rows = [row for visit in sorted(visits) for row in _visit_rows(visits[visit])]
    columns = sorted({image.column for image in usable if not image.is_mask})
    columns += sorted({image.column for image in usable if image.is_mask} - set(columns))
    covariates = dict.fromkeys(name for image in usable for name in image.covariates)
    order = [*_FIRST[:3], *columns, *covariates, *_SCANNER]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(order)), dtype="str").fillna("")
    optional = [name for name in ("session", *_SCANNER) if name in frame and not frame[name].astype(bool).any()]
    return frame.drop(columns=optional)


def _visit_rows(images: Sequence[FoundImage]) -> list[dict[str, str]]:
    scanner = next((image.about for image in images if image.about), {})
    fixed = {"site": images[0].site, "subject": images[0].subject, "session": images[0].session}
    fixed |= {name: _text(scanner.get(name, "")) for name in _SCANNER}
    fixed |= {name: text for image in images for name, text in image.covariates.items() if name not in fixed}
    rows: list[dict[str, str]] = []
    for run in sorted({image.run for image in images if image.run}) or [""]:
        mine = [image for image in images if image.run == run or (not image.run and not rows)]
        cells: dict[str, list[str]] = defaultdict(list)
        for image in mine:
            cells[image.column].append(image.where)
        rows += [
            fixed | {column: places[number] for column, places in cells.items() if number < len(places)}
            for number in range(max(map(len, cells.values())))
        ]
    return rows


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _free_names(images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images with covariates renamed whose names are those of images: a cell is a path, or it is none."""
    taken = {image.column for image in images}
    return [
        replace(
            image,
            covariates={
                f"{name}_covariate" if name in taken else name: text for name, text in image.covariates.items()
            },
        )
        if taken & image.covariates.keys()
        else image
        for image in images
    ]


def _plain_names(images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images with their columns renamed to ``image`` and ``mask`` where there is one kind alone."""
    kinds = {is_mask: {image.column for image in images if image.is_mask == is_mask} for is_mask in (False, True)}
    plain = {False: "image", True: "mask"}
    return [
        replace(image, column=plain[image.is_mask]) if len(kinds[image.is_mask]) == 1 else image for image in images
    ]
