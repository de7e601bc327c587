"""The images found in a folder, and the manifest made of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from polyclinic.data.readers.dicom_series import Series
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
        notes: what was mended.
        series: its slices, if it is DICOM and may be looked at for a face.
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
    notes: tuple[str, ...] = ()
    series: Series | None = None


@dataclass
class Findings:
    """What one way of looking found.

    Attributes:
        kind: "BIDS data set", "DICOM" or "NIfTI files".
        images: used and rejected ones.
        others: kind of file -> number of files that belong to no image.
        notes: with counts.
    """

    kind: str
    images: list[FoundImage] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    notes: list[Note] = field(default_factory=list)


def relative(path: Path, folder: Path) -> str:
    """The path as a manifest's cell has it."""
    return path.relative_to(folder).as_posix()


def make_manifest(images: Sequence[FoundImage]) -> pd.DataFrame:
    """A row for each visit: site, subject, session, a column for each kind of image and mask, covariates, scanner.

    A single kind of image is called ``image``, a single kind of mask ``mask``. Where a visit has several images of one
    kind, further rows hold them. Rows are sorted; cells are texts, "" where there is nothing.
    """
    usable = _plain_names([image for image in images if not image.reason])
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
    cells: dict[str, list[str]] = defaultdict(list)
    for image in images:
        cells[image.column].append(image.where)
    scanner = next((image.about for image in images if image.about), {})
    fixed = {"site": images[0].site, "subject": images[0].subject, "session": images[0].session}
    fixed |= {name: _text(scanner.get(name, "")) for name in _SCANNER}
    fixed |= {name: text for image in images for name, text in image.covariates.items() if name not in fixed}
    return [
        fixed | {column: places[number] for column, places in cells.items() if number < len(places)}
        for number in range(max(map(len, cells.values())))
    ]


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _plain_names(images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images with their columns renamed to ``image`` and ``mask`` where there is one kind alone."""
    kinds = {is_mask: {image.column for image in images if image.is_mask == is_mask} for is_mask in (False, True)}
    plain = {False: "image", True: "mask"}
    return [
        replace(image, column=plain[image.is_mask]) if len(kinds[image.is_mask]) == 1 else image for image in images
    ]
