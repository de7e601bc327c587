"""From the slices of many files to images: grouped, sorted by position, checked for gaps, placed in space.

In DICOM's axes (LPS) the voxel in column i, row j of slice k lies at

    position[k] + i · spacing of columns · row direction + j · spacing of rows · column direction

(PS3.3, C.7.6.2.1.1). Volumes are in RAS: x and y change sign. Slices follow each other along the normal of the image
plane, row direction × column direction.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.dicom_header import Header, natural_key
from polyclinic.data.readers.dicom_planes import Plane, find_planes
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

_SAME_PLACE = 0.01
"""Slices closer than this (mm) are at the same place."""
_UNEVEN = 0.05
"""Share of the slice distance by which single distances may differ."""
_FARTHEST = 1e6
"""Millimetres within which every patient lies."""
_VOLUMES = ("CT", "MR", "PT")
_LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Series:
    """One image: planes in order with their place in space.

    Attributes:
        key: identifies the image within an export (holds UIDs: never leaves the site).
        planes: ``planes[z][t]``, Z slices of T time points (or frames).
        affine: float64 ``[4, 4]`` from (column, row, slice) to millimetres in RAS+.
        notes: what was mended, or should be known; see `polyclinic.data.image_notes`.
    """

    key: str
    planes: tuple[tuple[Plane, ...], ...]
    affine: npt.NDArray[np.float64]
    notes: tuple[Note, ...] = ()

    @property
    def header(self) -> Header:
        """Header of the first slice."""
        return self.planes[0][0].header

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Columns, rows, slices, time points."""
        return *self.planes[0][0].size, len(self.planes), len(self.planes[0])

    @property
    def all_notes(self) -> tuple[Note, ...]:
        """The notes on the series and on its planes, each once."""
        noted = dict.fromkeys(plane.notes for column in self.planes for plane in column)
        found = [*self.notes, *(note for notes in noted for note in notes)]
        return tuple({(note.number, str(note)): note for note in found}.values())

    @property
    def files(self) -> list[Header]:
        """Headers of the files with its planes, each once."""
        return list({plane.header.path: plane.header for column in self.planes for plane in column}.values())


@dataclass(frozen=True)
class Group:
    """Planes that belong together, before it is known whether they make an image.

    Attributes:
        key: as in ``Series``.
        header: of one of the files.
        planes: in the order of the files' names.
        reason: why the group can't be used: a file of its series can't.
    """

    key: str
    header: Header
    planes: tuple[Plane, ...]
    reason: str = ""


def group_planes(headers: Iterable[Header]) -> list[Group]:
    """Planes by image: by series, and within one by orientation, matrix, spacing, image type and echo."""
    planes: dict[str, list[Plane]] = defaultdict(list)
    failures: dict[str, tuple[Header, str]] = {}
    for header in sorted(headers, key=lambda header: natural_key(str(header.path))):
        try:
            for plane in find_planes(header):
                planes[_group_key(plane)].append(plane)
        except UnreadableError as error:
            failures.setdefault(header.series or str(header.path), (header, str(error)))
    groups = []
    for key, found in planes.items():
        # With a slice lost, even those that are left may seem to be a whole stack.
        _, reason = failures.get(found[0].header.series, (None, ""))
        groups.append(Group(key, found[0].header, tuple(found), reason))
    alive = {group.header.series for group in groups}
    groups += [Group(key, header, (), reason) for key, (header, reason) in failures.items() if key not in alive]
    return groups


def build_series(group: Group) -> Series:
    """Put the planes of a group in order.

    Raises:
        UnreadableError: slices are missing or unevenly spaced, or don't lie in one stack; or ``group.reason``.
    """
    if group.reason:
        raise UnreadableError(group.reason)
    planes, notes = list(group.planes), []
    if planes[0].position is None or planes[0].orientation is None:
        return _without_places(group)
    unique = {(plane.header.sop_instance or str(plane.header.path), plane.index): plane for plane in planes}
    if len(unique) < len(planes):
        notes.append(Note("N501", "mended: doubled files dropped."))
        planes = list(unique.values())
    columns = _by_place(planes)
    if len({len(column) for column in columns}) > 1:
        smallest = min(len(column) for column in columns)
        trimmed = [_without_copies(column) if len(column) > smallest else column for column in columns]
        if sum(map(len, trimmed)) < sum(map(len, columns)):
            notes.append(Note("N501", "mended: doubled slices dropped."))
        columns = trimmed
    if len({len(column) for column in columns}) > 1:
        raise UnreadableError("slices are missing")
    ordered = tuple(tuple(sorted(column, key=lambda plane: plane.time)) for column in columns)
    return Series(group.key, ordered, _affine([column[0] for column in ordered]), tuple(notes))


def _group_key(plane: Plane) -> str:
    header = plane.header
    placed = plane.position is not None and plane.orientation is not None
    parts: list[object] = [header.series, header.rows, header.columns, header.tiles, header.samples, plane.kind]
    if placed and plane.orientation is not None:
        # Rounded half-way off the usual values, so that noise in the last digit of 0 or 1 does not part slices.
        parts.append([round(value * 500 + 0.25) for value in plane.orientation])
        parts.append([round(value, 3) for value in plane.spacing or ()])
    elif header.modality not in _VOLUMES or not header.series:
        parts.append(header.sop_instance or str(header.path))
    return "|".join(map(str, parts))


def _without_places(group: Group) -> Series:
    """A picture or film without a place in space: frames are time points, axes as seen on the screen."""
    files = {plane.header.path for plane in group.planes}
    if len(files) > 1:
        raise UnreadableError("slice positions are missing from the DICOM headers")
    first = group.planes[0]
    rows, columns = first.spacing or (1.0, 1.0)
    affine = np.diag((-columns, -rows, first.gap or 1.0, 1.0))
    return Series(group.key, (tuple(sorted(group.planes, key=lambda plane: plane.time)),), affine)


def _by_place(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes at the same place along the normal, in order of the places."""
    orientation = planes[0].orientation or ()
    normal = np.cross(orientation[:3], orientation[3:])
    places = np.array([plane.position for plane in planes]) @ normal
    order = np.argsort(places, kind="stable")
    columns: list[list[Plane]] = []
    last = -np.inf
    for number in order.tolist():
        if places[number] - last > _SAME_PLACE:
            columns.append([])
            last = places[number]
        columns[-1].append(planes[number])
    return columns


def _without_copies(column: Sequence[Plane]) -> list[Plane]:
    """The planes without those whose pixel bytes repeat an earlier one's."""
    kept: dict[tuple[bytes, int], Plane] = {}
    for plane in column:
        kept.setdefault((_pixel_digest(plane), plane.index), plane)
    return list(kept.values())


def _pixel_digest(plane: Plane) -> bytes:
    import pydicom

    from polyclinic.data.readers.dicom_elements import quiet

    with quiet:
        try:
            data = pydicom.dcmread(plane.header.path, specific_tags=["PixelData"], force=True)
            return hashlib.sha256(data.PixelData).digest()
        except Exception:
            raise UnreadableError("DICOM file is damaged") from None


def _affine(planes: Sequence[Plane]) -> npt.NDArray[np.float64]:
    """From (column, row, slice) to RAS+, for one plane of each place in order.

    Raises:
        UnreadableError: as for ``build_series``.
    """
    first = planes[0]
    orientation, spacing = first.orientation or (), first.spacing
    if spacing is None:
        raise UnreadableError("pixel spacing is missing from the DICOM headers")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    places = np.array([plane.position for plane in planes])
    if np.abs(places).max() > _FARTHEST or max(spacing) > _FARTHEST:
        raise UnreadableError("slice positions in the DICOM headers are out of all bounds")
    step = np.cross(row, column) * (first.gap or 1.0)
    if len(planes) > 1:
        # Not always along the normal: a tilted gantry shifts each slice a little.
        step = (places[-1] - places[0]) / (len(planes) - 1)
        _check_stack(places, step)
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = places[0]
    return _LPS_TO_RAS @ affine


def _check_stack(places: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> None:
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    usual = float(np.median(steps))
    if steps.max() > 1.5 * steps.min() and steps.max() > 1.5 * usual:
        raise UnreadableError("slices are missing")
    tolerance = max(_UNEVEN * usual, _SAME_PLACE)
    if np.abs(steps - usual).max() > tolerance:
        raise UnreadableError("slices are unevenly spaced")
    expected = places[0] + np.arange(len(places))[:, None] * step
    if np.linalg.norm(places - expected, axis=1).max() > max(usual / 2, tolerance):
        raise UnreadableError("slices don't lie in one straight stack")
