"""Several planes at one place: which frame each of them is, and copies of one slice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from polyclinic.data.readers.dicom.elements import quiet
from polyclinic.data.readers.dicom.places import by_level
from polyclinic.data.readers.dicom.planes import Plane
from polyclinic.data.readers.volume import UnreadableError

_Order = Callable[[Plane], tuple[float, ...]]
_MOST_COPIES = 8
"""With more planes at each place they are time points, and none is read to see whether it is a copy."""


def without_copies(planes: Sequence[Plane]) -> tuple[list[Plane], list[str]]:
    """The planes without those that are there twice, and what was dropped ("doubled files", "doubled slices").

    A file that was copied has the same SOPInstanceUID and says the same; one that was sent again under a new name has
    the same pixels as another one at its place.
    """
    unique: dict[object, Plane] = {}
    for plane in planes:
        header = plane.header
        unique.setdefault((header.sop_instance or header.path, plane.index, plane.position, plane.facts), plane)
    kept = list(unique.values())
    dropped = ["doubled files"] if len(kept) < len(planes) else []
    columns = by_level(kept)
    fewest, most = min(map(len, columns)), max(map(len, columns))
    if most == 1 or any(plane.header.tiles or plane.header.frames > 1 for plane in kept):
        return kept, dropped
    if fewest == most and (most > _MOST_COPIES or not _has_copies(columns[len(columns) // 2])):
        return kept, dropped
    trimmed = [_distinct(column) if len(column) > fewest or fewest == most else column for column in columns]
    if len({len(column) for column in trimmed}) > 1 and fewest == most:
        return kept, dropped  # empty slices look like copies
    left = [plane for column in trimmed for plane in column]
    return left, [*dropped, "doubled slices"] if len(left) < len(kept) else dropped


def in_time(columns: Sequence[Sequence[Plane]]) -> list[list[Plane]]:
    """The planes of each place in the order of frames: by b-value where there are several, else by time.

    Raises:
        UnreadableError: nothing tells which plane of a place belongs to which frame, or a frame lacks a slice.
    """
    if len(columns[0]) == 1:
        return [list(column) for column in columns]
    if len({tuple(sorted(_with_b_value(_none)(plane) for plane in column)) for column in columns}) > 1:
        raise UnreadableError("slices are missing")
    planes = [plane for column in columns for plane in column]
    numbers = [plane.facts.instance for plane in planes if not plane.index]
    counted = len(set(numbers)) == len(numbers)  # numbers that begin anew with each pass say nothing of time
    orders = [_temporal, *([_instance] if counted else []), _acquisition, _trigger, _acquired, _content, _index]
    for order in orders:
        key = _with_b_value(order)
        if all(len({key(plane) for plane in column}) == len(column) for column in columns):
            return [sorted(column, key=key) for column in columns]
    if not counted:
        raise UnreadableError("several slices lie at the same places, and nothing tells which belong together")

    def every(plane: Plane) -> tuple[float, ...]:
        return tuple(value for order in orders for value in order(plane))

    key = _with_b_value(every)
    if any(len({key(plane) for plane in column}) < len(column) for column in columns):
        raise UnreadableError("several slices lie at the same places, and nothing tells which belong together")
    return [sorted(column, key=key) for column in columns]


def frames_of(columns: Sequence[Sequence[Plane]]) -> str:
    """What the frames of a volume are, "" where it has one or nothing tells."""
    if len(columns[0]) == 1:
        return ""
    facts = [plane.facts for plane in columns[0]]
    if len({fact.b_value for fact in facts}) > 1:
        return "diffusion weightings"
    if len({fact.trigger for fact in facts}) > 1 and len({fact.temporal for fact in facts}) == 1:
        return "trigger times"
    return "time points"


def _with_b_value(order: _Order) -> _Order:
    return lambda plane: (-1.0 if plane.facts.b_value is None else round(plane.facts.b_value), *order(plane))


def _none(plane: Plane) -> tuple[float, ...]:
    return ()


def _temporal(plane: Plane) -> tuple[float, ...]:
    return (plane.facts.temporal,)


def _instance(plane: Plane) -> tuple[float, ...]:
    return plane.facts.instance, plane.index


def _acquisition(plane: Plane) -> tuple[float, ...]:
    return (plane.facts.acquisition,)


def _trigger(plane: Plane) -> tuple[float, ...]:
    return (-1.0 if plane.facts.trigger is None else plane.facts.trigger,)


def _acquired(plane: Plane) -> tuple[float, ...]:
    return (-1.0 if plane.facts.acquired is None else plane.facts.acquired,)


def _content(plane: Plane) -> tuple[float, ...]:
    return (-1.0 if plane.facts.content is None else plane.facts.content,)


def _index(plane: Plane) -> tuple[float, ...]:
    return (plane.index,)


def _has_copies(column: Sequence[Plane]) -> bool:
    return len(_distinct(column)) < len(column)


def _distinct(column: Sequence[Plane]) -> list[Plane]:
    """The planes without those that have the pixels, the scale and the place of an earlier one."""
    kept: dict[object, Plane] = {}
    for plane in column:
        try:
            digest = _pixel_digest(plane)
        except UnreadableError:
            return list(column)
        kept.setdefault((digest, plane.slope, plane.intercept, plane.position), plane)
    return list(kept.values())


def _pixel_digest(plane: Plane) -> bytes:
    import pydicom

    with quiet:
        try:
            data = pydicom.dcmread(plane.header.path, specific_tags=["PixelData"], force=True)
            return hashlib.sha256(data.PixelData).digest()
        except Exception:
            raise UnreadableError("DICOM file is damaged") from None
