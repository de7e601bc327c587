"""From the slices of an image to a stack: sorted by position, checked for gaps, placed in space.

In DICOM's axes (LPS) the voxel in column i, row j of slice k lies at

    position[k] + i · spacing of columns · row direction + j · spacing of rows · column direction

(PS3.3, C.7.6.2.1.1). Volumes are in RAS: x and y change sign. Slices follow each other along the normal of the image
plane, row direction × column direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.dicom.complete import missing_slices
from polyclinic.data.readers.dicom.groups import Group
from polyclinic.data.readers.dicom.header import Header
from polyclinic.data.readers.dicom.places import SAME_PLACE, UNEVEN, by_level, lie_beside
from polyclinic.data.readers.dicom.planes import Plane
from polyclinic.data.readers.dicom.times import frames_of, in_time
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

_FARTHEST = 1e6
"""Millimetres within which every patient lies."""
_PART = 3
"""Distances that make a part of a stack."""
_LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Series:
    """One image: planes in order with their place in space.

    Attributes:
        key: identifies the image within an export (holds UIDs: never leaves the site).
        planes: ``planes[z][t]``, Z slices of T time points (or frames).
        affine: float64 ``[4, 4]`` from (column, row, slice) to millimetres in RAS+.
        notes: what was mended, or should be known; see `polyclinic.data.image_notes`.
        frames: what the fourth axis holds, as in ``Volume``.
    """

    key: str
    planes: tuple[tuple[Plane, ...], ...]
    affine: npt.NDArray[np.float64]
    notes: tuple[Note, ...] = ()
    frames: str = ""

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


def build_series(group: Group) -> Series:
    """Put the planes of a group in order.

    Raises:
        UnreadableError: slices are missing or unevenly spaced, or don't lie in one stack; or ``group.reason``.
    """
    if group.reason:
        raise UnreadableError(group.reason)
    if group.planes[0].position is None or group.planes[0].orientation is None:
        return _without_places(group)
    columns = by_level(group.planes)
    if len({len(column) for column in columns}) > 1:
        raise UnreadableError("slices are missing")
    if any(lie_beside(column) for column in columns):
        raise UnreadableError("slices at one level lie beside each other")
    ordered = tuple(map(tuple, in_time(columns)))
    affine = _affine([column[0] for column in ordered])
    notes = missing_slices(ordered, group.instances)
    return Series(group.key, ordered, affine, (*group.notes, *notes), frames_of(ordered))


def _without_places(group: Group) -> Series:
    """A picture or film without a place in space: frames are time points, axes as seen on the screen."""
    files = {plane.header.path for plane in group.planes}
    if len(files) > 1:
        raise UnreadableError("slice positions are missing from the DICOM headers")
    first = group.planes[0]
    rows, columns = first.spacing or (1.0, 1.0)
    affine = np.diag((-columns, -rows, first.gap or 1.0, 1.0))
    return Series(group.key, (tuple(sorted(group.planes, key=lambda plane: plane.index)),), affine)


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


def _two_parts(wide: npt.NDArray[np.bool_]) -> bool:
    """Whether slices lie close in one part and far apart in the rest, as in CT of the head: none is missing there."""
    runs = np.split(wide, np.flatnonzero(np.diff(wide)) + 1)
    return len(runs) == 2 and min(map(len, runs)) >= _PART


def _check_stack(places: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> None:
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    usual = float(np.median(steps))
    wide = steps > 1.5 * steps.min()
    if wide.any() and steps.max() > 1.5 * usual and not _two_parts(wide):
        raise UnreadableError("slices are missing")
    tolerance = max(UNEVEN * usual, SAME_PLACE)
    if np.abs(steps - usual).max() > tolerance:
        raise UnreadableError("slices are unevenly spaced")
    expected = places[0] + np.arange(len(places))[:, None] * step
    if np.linalg.norm(places - expected, axis=1).max() > max(usual / 2, tolerance):
        raise UnreadableError("slices don't lie in one straight stack")
