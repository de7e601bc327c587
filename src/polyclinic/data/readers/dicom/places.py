"""Where slices lie: levels along the normal of their planes, and how two sets of slices lie to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.dicom.facts import Facts
from polyclinic.data.readers.dicom.planes import Plane

SAME_PLACE = 0.01
"""Slices closer than this (mm) are at the same place, whatever their distance."""
UNEVEN = 0.05
"""Share of the slice distance by which single distances may differ."""
_ROUNDING = 0.02
"""Share of the stated slice distance by which positions of one place may differ, up to 0.1 mm."""
_BESIDE = 1.0
"""Millimetres by which slices at one level may be moved against each other."""


@dataclass(frozen=True)
class Arrangement:
    """How several sets of parallel slices lie to each other.

    Attributes:
        shared: some of their slices are at the same places.
        same: all sets have all their slices at the same places.
        within: the places of one set are all places of another one, which has more.
        beside: slices at the same level lie beside each other.
        interleaved: the sets take turns, or one begins before the other ends.
        even: all slices together are evenly spaced.
        each_even: the slices of each set are.
        step: distance of slices in the sets, the largest of them; 0 where no set has two slices.
        together: distance of all slices.
        gap: largest distance of a set from the next one, where they are not interleaved.
        fewest, most: number of places in the smallest and in the largest set.
    """

    shared: bool
    same: bool
    within: bool
    beside: bool
    interleaved: bool
    even: bool
    each_even: bool
    step: float
    together: float
    gap: float
    fewest: int
    most: int


def normal_of(plane: Plane) -> npt.NDArray[np.float64]:
    """Unit vector across the plane, in which slices follow each other."""
    orientation = plane.orientation or ()
    return np.cross(orientation[:3], orientation[3:])


def positions_of(planes: Sequence[Plane]) -> npt.NDArray[np.float64]:
    """``[N, 3]`` in millimetres, LPS."""
    return np.array([plane.position for plane in planes], dtype=np.float64)


def tolerance_of(plane: Plane) -> float:
    """Millimetres by which positions of one place may differ."""
    return max(SAME_PLACE, min(_ROUNDING * (plane.gap or 0.0), 0.1))


def levels_of(planes: Sequence[Plane]) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Number of each plane's level along the normal of the first, and the levels in ascending order (mm)."""
    along = positions_of(planes) @ normal_of(planes[0])
    tolerance, last = tolerance_of(planes[0]), -np.inf
    numbers, levels = [0] * len(planes), []
    for index in np.argsort(along, kind="stable").tolist():
        if along[index] - last > tolerance:
            last = along[index]
            levels.append(last)
        numbers[index] = len(levels) - 1
    return numbers, np.array(levels)


def by_level(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes at the same level, in order of the levels."""
    numbers, levels = levels_of(planes)
    columns: list[list[Plane]] = [[] for _ in levels]
    for plane, number in zip(planes, numbers, strict=True):
        columns[number].append(plane)
    return columns


def lie_beside(planes: Sequence[Plane]) -> bool:
    """Whether planes of one level are moved against each other."""
    places = positions_of(planes)
    return bool(np.linalg.norm(places - places[0], axis=1).max() > _BESIDE)


def is_even(levels: npt.NDArray[np.float64]) -> bool:
    """Whether the distances of neighbours are the same."""
    if len(levels) < 3:
        return True
    steps = np.diff(levels)
    usual = float(np.median(steps))
    return bool(np.abs(steps - usual).max() <= max(UNEVEN * usual, SAME_PLACE))


def arrange(parts: Sequence[Sequence[Plane]]) -> Arrangement:
    """Compare two or more sets of slices whose planes are parallel."""
    planes = [plane for part in parts for plane in part]
    numbers, levels = levels_of(planes)
    sets: list[frozenset[int]] = []
    start = 0
    for part in parts:
        sets.append(frozenset(numbers[start : start + len(part)]))
        start += len(part)
    own = [levels[sorted(found)] for found in sets]
    order = sorted(own, key=lambda found: float(found[0]))
    gaps = [float(after[0] - before[-1]) for before, after in pairwise(order)]
    steps = [float(np.median(np.diff(found))) for found in own if len(found) > 1]
    shared, distinct = sum(map(len, sets)) > len(levels), set(sets)
    return Arrangement(
        shared=shared,
        same=len(distinct) == 1,
        within=any(one < other for one in distinct for other in distinct),
        beside=shared and any(lie_beside(column) for column in by_level(planes)),
        interleaved=any(gap <= 0 for gap in gaps),
        even=is_even(levels),
        each_even=all(map(is_even, own)),
        step=max(steps, default=0.0),
        together=float(np.median(np.diff(levels))) if len(levels) > 1 else 0.0,
        gap=max(gaps),
        fewest=min(map(len, sets)),
        most=max(map(len, sets)),
    )


def whole_alone(step: float, facts: Facts) -> bool:
    """Whether slices so far apart leave nothing out, by what the header says of thickness and distance."""
    stated = facts.between or facts.thickness
    if stated is None or not step:
        return False
    if facts.between and facts.thickness and facts.between < facts.thickness:
        # Some write the gap between slices in place of the distance of their centres.
        whole = facts.between + facts.thickness
        if abs(step - whole) <= UNEVEN * whole:
            return True
    return step <= 1.5 * stated
