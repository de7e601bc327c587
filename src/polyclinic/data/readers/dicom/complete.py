"""Whether a stack has all its slices, as far as anything in the headers tells.

A stack of every second slice, or the two slices that are left of fifty, is evenly spaced: only thickness, the stated
distance, the numbers of the slices and how many there should be give it away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyclinic.data.readers.dicom.places import UNEVEN, normal_of, positions_of, whole_alone
from polyclinic.data.readers.dicom.planes import Plane
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

_STACKS = ("CT", "MR", "PT")
_MANY = 2.5
"""Steps of instance numbers from which on more than every second slice is missing."""


def missing_slices(columns: Sequence[Sequence[Plane]], instances: frozenset[int]) -> list[Note]:
    """What makes a person doubt that the stack is complete.

    Args:
        columns: the planes of each place, in order of the places.
        instances: InstanceNumbers of all files of the series.

    Raises:
        UnreadableError: slices are missing for certain.
    """
    stack, times = [column[0] for column in columns], len(columns[0])
    first = stack[0]
    if first.header.modality not in _STACKS:
        return []
    _refuse_fewer(stack, instances)
    if len(stack) == 1:
        return _single(first, times, instances)
    along = positions_of(stack) @ normal_of(first)
    step = float(np.median(np.diff(along)))
    facts = first.facts
    whole = whole_alone(step, facts)
    _refuse_stated(step, first)
    notes = []
    if _numbered(stack):
        numbers = [plane.facts.instance for plane in stack]
        jump = float(np.median(np.abs(np.diff(numbers))))
        every = [plane.facts.instance for column in columns for plane in column]
        low, high = min(every), max(every)
        absent = high - low + 1 - sum(low <= number <= high for number in instances)
        if jump >= 2 and absent >= len(stack) // 2 and not whole and (facts.thickness or len(stack) == 2):
            raise UnreadableError("every second slice is missing" if jump < _MANY else "slices are missing")
        if absent:
            notes.append(
                Note("N516", "whose instance numbers have gaps, though the distances of the slices have none.")
            )
        elif 1 < min(instances) == min(numbers):
            notes.append(Note("N514", "whose instance numbers do not begin at 1: the first slices may be missing."))
        _refuse_repeated(numbers, step, first)
    if facts.thickness and not whole and step >= 1.9 * facts.thickness and not _states(step, facts.between):
        notes.append(Note("N512", "whose slices lie twice as far apart as they are thick, or further."))
    if max(len(stack) * times, len(instances)) < facts.stated_images:
        notes.append(Note("N513", "with fewer slices than the header says."))
    return notes


def _single(plane: Plane, times: int, instances: frozenset[int]) -> list[Note]:
    if times > 1 or plane.header.frames > 1:
        return []
    # One slice is a usual thing in MR, unless it is the fifth.
    if plane.header.modality == "MR" and not (instances == {plane.facts.instance} and plane.facts.instance > 1):
        return []
    return [Note("N515", "of a single slice: the rest of its stack may be missing.")]


def _numbered(stack: Sequence[Plane]) -> bool:
    """Whether each slice is a file with a number of its own."""
    numbers = {plane.facts.instance for plane in stack}
    return len({plane.header.path for plane in stack}) == len(stack) and 0 not in numbers and len(numbers) > 1


def _refuse_fewer(stack: Sequence[Plane], instances: frozenset[int]) -> None:
    """Stop where no more than two slices are left of a stack that the header counts."""
    facts = stack[0].facts
    if facts.stated_slices > len(stack) and stack[0].header.modality == "PT":
        raise UnreadableError("slices are missing")
    if len(stack) <= 2 and facts.stated_images >= 4 and len(instances) <= 2:
        raise UnreadableError("slices are missing")


def _refuse_stated(step: float, first: Plane) -> None:
    """Stop where the distance is a multiple of the one that the header states."""
    between = first.facts.between
    if between is None or whole_alone(step, first.facts):
        return
    ratio = step / between
    if round(ratio) >= 2 and abs(ratio - round(ratio)) <= UNEVEN * ratio:
        raise UnreadableError("every second slice is missing" if round(ratio) == 2 else "slices are missing")


def _states(step: float, between: float | None) -> bool:
    return between is not None and abs(step - between) <= UNEVEN * step


def _refuse_repeated(numbers: Sequence[int], step: float, first: Plane) -> None:
    """Stop where slices of several passes take turns that nothing but repeated numbers tells of."""
    times = {numbers.count(number) for number in numbers}
    if times == {len(numbers) // len(set(numbers))} and max(times) > 1:
        thickness = first.facts.thickness
        if first.facts.between is None and (thickness is None or step < 0.6 * thickness):
            raise UnreadableError("instance numbers repeat: slices of several passes may take turns")
