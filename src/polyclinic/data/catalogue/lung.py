"""LIDC-IDRI: nodules of the lung in CT, as up to four readers outlined them.

Source of what the outlines mean: Armato SG et al., Med Phys 2011;38:915-931. An outline runs through the first pixels
outside of the nodule; a nodule below 3 mm is a single point.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.catalogue.convert import write_volume
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, walk_files, what_is_there
from polyclinic.data.catalogue.studies import grid
from polyclinic.data.readers.dicom.header import read_header
from polyclinic.data.readers.dicom.series import Series
from polyclinic.data.readers.read import find_series
from polyclinic.data.readers.volume import UnreadableError

_SUBJECT = re.compile(r"(?:^|/)(LIDC-IDRI-\d{4})/")
_NAMESPACE = "{http://www.nih.gov}"
#: A slice may lie so far from the place that an outline names, as a share of the slices' distance.
_NEAR = 0.5


@dataclass(frozen=True)
class Outline:
    """One outline of a reader on one slice.

    Attributes:
        z: place of the slice in millimetres, as in the third number of its ImagePositionPatient.
        inside: whether what it runs around belongs to the nodule; else it is a hole.
        points: columns and rows of its pixels, counted from 0.
    """

    z: float
    inside: bool
    points: tuple[tuple[int, int], ...]


def read_outlines(path: Path) -> tuple[str, list[list[Outline]]]:
    """SeriesInstanceUID of the CT (empty for other readings), and each reader's outlines of nodules of 3 mm or more.

    Raises:
        ValueError: when the file is damaged.
    """
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # could make a small file a very large one
        raise ValueError("a document type")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - without a document type there are no entities
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    if root.tag.removeprefix(_NAMESPACE) != "LidcReadMessage":
        return "", []
    series = root.findtext(f"{_NAMESPACE}ResponseHeader/{_NAMESPACE}SeriesInstanceUid", "").strip()
    sessions = root.findall(f"{_NAMESPACE}readingSession")
    return series, [[outline for outline in map(_outline, _rois(session)) if outline] for session in sessions]


def _rois(session: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for nodule in session.findall(f"{_NAMESPACE}unblindedReadNodule"):
        yield from nodule.findall(f"{_NAMESPACE}roi")


def _outline(roi: ElementTree.Element) -> Outline | None:
    """None for a point, which marks a nodule below 3 mm."""
    points = tuple(
        (int(float(edge.findtext(f"{_NAMESPACE}xCoord", ""))), int(float(edge.findtext(f"{_NAMESPACE}yCoord", ""))))
        for edge in roi.findall(f"{_NAMESPACE}edgeMap")
    )
    if len(points) < 3:
        return None
    inside = roi.findtext(f"{_NAMESPACE}inclusion", "TRUE").strip().upper() != "FALSE"
    return Outline(float(roi.findtext(f"{_NAMESPACE}imageZposition", "")), inside, points)


def _filled(points: tuple[tuple[int, int], ...], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Pixels ``[X, Y]`` within an outline, without its own."""
    from PIL import Image, ImageDraw

    plane = Image.new("1", shape)
    ImageDraw.Draw(plane).polygon(points, fill=1, outline=0)
    return np.asarray(plane, dtype=bool).T


def consensus(
    readers: list[list[Outline]], shape: tuple[int, int, int], affine: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Voxels ``[X, Y, Z]`` that half of the readers or more count to a nodule.

    Args:
        readers: the outlines of each reader; one without any counts, too.
        shape: columns, rows and slices of the CT.
        affine: of the CT, ``[4, 4]`` to millimetres in RAS+.

    Raises:
        ValueError: when an outline lies on no slice, or the slices are not axial.
    """
    if abs(affine[2, 0]) > 1e-3 or abs(affine[2, 1]) > 1e-3 or not affine[2, 2]:
        raise ValueError("slices are not axial")
    votes = np.zeros(shape, dtype=np.uint8)
    for outlines in readers:
        marked: dict[int, npt.NDArray[np.bool_]] = {}
        for outline in sorted(outlines, key=lambda each: not each.inside):  # holes come last
            place = (outline.z - affine[2, 3]) / affine[2, 2]
            number = round(place)
            if not 0 <= number < shape[2] or abs(place - number) > _NEAR:
                raise ValueError("an outline lies on no slice")
            plane = marked.setdefault(number, np.zeros(shape[:2], dtype=bool))
            filled = _filled(outline.points, shape[:2])
            marked[number] = plane | filled if outline.inside else plane & ~filled
        for number, plane in marked.items():
            votes[:, :, number] += plane
    return (2 * votes.astype(int) >= max(len(readers), 1)).astype(np.uint8)


def _readings(source: Path) -> tuple[dict[str, list[list[Outline]]], int]:
    """SeriesInstanceUID -> the readers' outlines, and the number of XML files that can't be read.

    Of several files of a series a correction counts, else the last.
    """
    found: dict[str, list[list[Outline]]] = {}
    damaged = 0
    for path in sorted(walk_files(source, (".xml",)), key=lambda path: "correct" in path.lower()):
        try:
            series, readers = read_outlines(source / path)
        except ValueError:
            damaged += 1
            continue
        if series:  # others are readings of radiographs
            found[series] = readers
    return found, damaged


def _folders(source: Path) -> list[str]:
    return sorted({path.rsplit("/", 1)[0] for path in walk_files(source, (".dcm",)) if _SUBJECT.search(path)})


def _examine(request: Request, folder: str, readings: dict[str, list[list[Outline]]]) -> dict[str, str]:
    """One series: its site and mask, or the reason why it can't be used."""
    row = {"site": "", "mask": "", "nodule": "", "reason": ""}
    first = next((request.source / folder).glob("*.dcm"))
    try:
        if read_header(first).modality != "CT":
            return row | {"reason": "no CT (a radiograph)"}
        series: Series = find_series(request.source / folder)
    except UnreadableError as error:
        return row | {"reason": str(error)}
    row["site"] = series.header.vendor
    readers = readings.get(series.header.series)
    if readers is None:
        return row | {"reason": "the readers' XML is missing"}
    try:
        mask = consensus(readers, series.shape[:3], series.affine)
    except ValueError as error:
        return row | {"reason": str(error)}
    row["nodule"] = "yes" if mask.any() else "no"
    if request.label == "nodules":
        if not mask.any():
            return row | {"reason": "no nodule that half of the readers outlined"}
        name = f"masks/{folder.replace('/', '_')}.nii.gz"
        write_volume(request.out / name, mask, series.affine)
        row["mask"] = f"out:{name}"
    return row


def _draft(request: Request) -> Draft:
    folders = _folders(request.source)
    if not folders:
        raise LayoutError(f"No LIDC-IDRI-0001/STUDY/SERIES/*.dcm was found; {what_is_there(request.source)}.")
    readings, damaged = _readings(request.source)
    notes = [f"{damaged} XML files are damaged; the scans that they are about have no readings."] if damaged else []
    rows: list[dict[str, str]] = []
    for number, folder in enumerate(folders):
        found = _SUBJECT.search(folder + "/")
        subject = found[1] if found else ""
        rows.append({"subject": subject, "image": folder, **_examine(request, folder, readings)})
        request.progress(number + 1, len(folders))
    table = pd.DataFrame(rows)
    table["session"] = (table.groupby("subject").cumcount() + 1).astype(str)
    columns = ["site", "subject", "session", "image", "mask", "nodule", "reason"]
    data: dict[str, Any] = {"preprocessing": grid((256, 256, 160), spacing=(1.5, 1.5, 2),
                                                  intensity={"window": {"lower": -1000, "upper": 400}})}  # fmt: skip
    if request.label == "nodules":
        data["patch"] = [96, 96, 64]
    return Draft(table[columns], "volume", images=["image"], mask="mask", data=data, notes=notes)


ENTRY = Entry(
    name="lidc-idri",
    title="LIDC-IDRI (nodules of the lung)",
    about="CT of the chest, for diagnosis and screening, from seven institutions. Four radiologists read each scan and "
    "outlined every nodule of 3 mm or more; they often do not agree.",
    modality="CT of the chest",
    sites="4 makers of scanners in the DICOM headers (GE, Siemens, Philips, Toshiba, now Canon), as in FLamby's "
    "Fed-LIDC-IDRI; the seven institutions are not told.",
    subjects="1,010 patients, 1,018 CT scans.",
    access="https://www.cancerimagingarchive.net/collection/lidc-idri/",
    licence="CC BY 3.0",
    terms="CC BY 3.0; open download from The Cancer Imaging Archive.",
    citation="Armato SG et al. The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative "
    "(IDRI): a completed reference database of lung nodules on CT scans. Med Phys 2011;38:915-931. "
    "doi:10.7937/K9/TCIA.2015.LO9QL9SX.",
    layout="""\
manifest-1600709154662/
  LIDC-IDRI/LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192/1-001.dcm
  LIDC-IDRI/LIDC-IDRI-0001/.../069.xml             of older downloads; or
  tcia-lidc-xml/157/158.xml                        LIDC-XML-only.zip, unpacked
""",
    labels={
        "nodules": Label("mask", "nodules of 3 mm or more, as half of the readers see them", task="segmentation"),
        "nodule": Label("nodule", "a nodule that half of the readers outlined: yes or no",
                        positive=("yes",), against=("no",)),
    },
    sites_by={"vendor": "the maker of the scanner, in the DICOM headers"},
    draft=_draft,
    assumed=(
        "A voxel belongs to a nodule if at least half of the readers of the scan say so, those without any outline "
        "counted. The pixels of an outline itself lie outside of it; outlines that are no inclusion are holes.",
        "Masks are written as NIfTI next to the manifest. XML and CT belong together by the SeriesInstanceUID; of two "
        "XML files for a scan the one that is called a correction counts.",
        "Scans whose XML is missing, whose slices are incomplete or where an outline lies on no slice are rejected, "
        "as are radiographs. For the label nodules scans without a nodule are rejected, too.",
        "Of the eight patients with two CT scans the first is used (`--sessions all`).",
    ),
)  # fmt: skip
