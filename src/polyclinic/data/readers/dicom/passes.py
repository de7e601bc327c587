"""Several images in one series: kinds of picture, phases of contrast, overlapping passes.

Slices that differ in something other than orientation, size and echo time may be one image (a word more in the image
type of every second slice) or several (an arterial and a venous pass). Where they lie tells: two sets with a slice at
the same place are two images, or two frames of one; two sets that fill each other's gaps are one stack; two sets that
take turns although each of them is complete by itself are two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from polyclinic.data.readers.dicom.places import (
    SAME_PLACE,
    Arrangement,
    arrange,
    normal_of,
    positions_of,
    whole_alone,
)
from polyclinic.data.readers.dicom.planes import Plane
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

Labels = Callable[[Sequence[Plane]], Sequence[Hashable]]

_DAY = 86_400.0
_PAUSE = 15.0
"""Seconds without a slice that end a pass."""
_LONG_PAUSE = 60.0
_MOST_PHASES = 4
"""CT with more passes over the same places is a dynamic scan (perfusion) and stays one image with a fourth axis."""
_ROTATIONS = 4
"""So many passes of few slices each are the rotations of a scan that goes step by step."""
_FEW_SLICES = 4
_OTHER_STEP = 0.25
"""Share by which the table's step changes where one run through the body ends and the next begins."""
_FAR = 5
"""Slice distances between two passes beyond which no lost slices are thought of."""

_JOINED = Note("N510", "joined of slices whose headers differ in {what}: their places make one even stack.")
_APART = Note("N511", "taken out of a series with several passes over the patient ({what}): choose the one you mean.")
_UNCLEAR = "slices of several passes take turns, and no slice thickness tells whether they are one stack"


def part_planes(planes: list[Plane]) -> Iterable[tuple[list[Plane], tuple[Note, ...], str]]:
    """Planes of one orientation, size and echo as images: planes, notes, and the reason against using them.

    Args:
        planes: all have a place.
    """
    yield from _part(planes, (), list(_KINDS.items()), list(_PASSES.items()))


def _part(
    planes: list[Plane], notes: tuple[Note, ...], kinds: list[tuple[str, Labels]], passes: list[tuple[str, Labels]]
) -> Iterable[tuple[list[Plane], tuple[Note, ...], str]]:
    while kinds or passes:
        is_kind = bool(kinds)
        what, labels = (kinds or passes).pop(0)
        parts = _parts(planes, labels(planes))
        if len(parts) == 1:
            continue
        how = arrange(parts)
        try:
            apart = _kinds_differ(parts, how) if is_kind else _passes_differ(parts, how, what)
        except UnreadableError as error:
            yield planes, notes, str(error)
            return
        if apart:
            # Another kind of picture of the same slices is nothing that a person should look at.
            usual = is_kind and (how.same or how.within)
            notes = notes if usual else (*notes, _filled(_APART, what))
            for part, joined in _halves_joined(parts) if is_kind else [(part, False) for part in parts]:
                more = (_filled(_JOINED, what),) if joined else ()
                yield from _part(part, (*notes, *more), list(kinds), list(passes))
            return
        if is_kind or (how.even and not how.interleaved and _follow_oddly(parts, what)):
            notes = (*notes, _filled(_JOINED, what))
    yield planes, notes, ""


def _filled(note: Note, what: str) -> Note:
    return Note(note.number, note.format(what=what))


def _parts(planes: list[Plane], labels: Sequence[Hashable]) -> list[list[Plane]]:
    found: dict[Hashable, list[Plane]] = defaultdict(list)
    for plane, label in zip(planes, labels, strict=True):
        found[label].append(plane)
    # In the order of place, so that neither names nor numbers of files matter.
    normal = normal_of(planes[0])
    return sorted(found.values(), key=lambda part: (float((positions_of(part) @ normal).min()), _first(part)))


def _first(part: Sequence[Plane]) -> tuple[int, int, str]:
    return min((plane.facts.acquisition, plane.facts.instance, plane.header.sop_instance) for plane in part)


def _kinds_differ(parts: Sequence[Sequence[Plane]], how: Arrangement) -> bool:
    """Whether sets that differ in the kind of picture are several images."""
    if how.shared:
        return True
    if how.even:
        return how.interleaved and how.fewest > 1 and all(whole_alone(how.step, part[0].facts) for part in parts)
    if how.interleaved:
        return how.each_even and how.most > 2
    return how.each_even and how.gap > _FAR * how.step > 0


def _halves_joined(parts: Sequence[list[Plane]]) -> list[tuple[list[Plane], bool]]:
    """Those of several sets that fill each other's gaps or go on where another ends as one, and whether they are."""
    found: list[tuple[list[Plane], bool]] = []
    for part in parts:
        for number, (other, _) in enumerate(found):
            how = arrange([other, part])
            if how.even and not _kinds_differ([other, part], how):
                found[number] = [*other, *part], True
                break
        else:
            found.append((part, False))
    return found


def _passes_differ(parts: Sequence[Sequence[Plane]], how: Arrangement, what: str) -> bool:
    """Whether sets of different numbers or times are several images.

    Raises:
        UnreadableError: nobody can tell.
    """
    facts, modality = parts[0][0].facts, parts[0][0].header.modality
    if what == "b-values" and not how.shared:
        return True
    if how.most <= 2 or float(np.median([len(part) for part in parts])) <= 2:
        return False  # a number or time for each slice
    if how.beside:
        return True
    if what == "temporal positions" and not how.shared:
        return True
    if how.shared:
        if how.same or how.within:
            return modality == "CT" and len(parts) <= _MOST_PHASES and not _is_dynamic(parts)
        return how.each_even
    if not how.interleaved:
        return modality == "CT" and what in _STATIONS and _are_stations(parts, how, _STATIONS[what])
    if not how.even:
        return how.each_even
    if not how.each_even:
        return False
    if not (facts.thickness or facts.between):
        if modality == "CT":
            return True
        raise UnreadableError(_UNCLEAR)
    return whole_alone(how.step, facts) or (modality == "CT" and not whole_alone(how.together, facts))


def _follow_oddly(parts: Sequence[Sequence[Plane]], what: str) -> bool:
    """Whether a person should know that sets which follow each other were taken for one stack."""
    modality = parts[0][0].header.modality
    if what == "acquisition numbers":
        return modality == "MR" and len(parts) < _ROTATIONS
    if what == "content times":
        return modality == "CT" and _longest_pause(parts, lambda plane: plane.facts.content) > _LONG_PAUSE
    return what == "trigger times" and len(parts) < _ROTATIONS


def _is_dynamic(parts: Sequence[Sequence[Plane]]) -> bool:
    """Whether the headers count time points: heart phases, or a dynamic scan."""
    facts = [plane.facts for part in parts for plane in part]
    return len({fact.temporal for fact in facts}) > 1 or len({fact.trigger for fact in facts}) > 1


def _are_stations(parts: Sequence[Sequence[Plane]], how: Arrangement, pause: float) -> bool:
    """Whether sets of CT slices that follow each other were scanned one by one, and not in steps of one scan."""
    if how.most <= _FEW_SLICES and len(parts) >= _ROTATIONS:
        return False
    if not how.even and how.gap <= _FAR * how.step:
        return False  # slices are lost between them
    return _longest_pause(parts, lambda plane: plane.facts.acquired) > pause


def _over_midnight(times: Sequence[float | None]) -> Sequence[float | None]:
    """Seconds since midnight so that a scan over midnight goes on: its early hours belong to the next day."""
    known = [time for time in times if time is not None]
    if not known or max(known) - min(known) < _DAY / 2:
        return times
    return [time + _DAY if time is not None and time < _DAY / 2 else time for time in times]


def _longest_pause(parts: Sequence[Sequence[Plane]], time: Callable[[Plane], float | None]) -> float:
    """Seconds between the end of one set and the start of the next; infinite where times are missing."""
    times = _over_midnight([time(plane) for part in parts for plane in part])
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return np.inf
    spans, start = [], 0
    for part in parts:
        mine = known[start : start + len(part)]
        spans.append((min(mine), max(mine)))
        start += len(part)
    return max(after[0] - before[1] for before, after in pairwise(sorted(spans)))


def _each(value: Callable[[Plane], Hashable]) -> Labels:
    return lambda planes: [value(plane) for plane in planes]


def _near(value: Callable[[Plane], float | None], tolerance: float) -> Labels:
    """The same label for numbers linked by steps no larger than the tolerance; one label if a number is missing."""
    return lambda planes: _linked([value(plane) for plane in planes], tolerance)


def _times(value: Callable[[Plane], float | None]) -> Labels:
    """The same label for times without a pause between them."""
    return lambda planes: _linked(_over_midnight([value(plane) for plane in planes]), _PAUSE)


def _linked(values: Sequence[float | None], tolerance: float) -> Sequence[Hashable]:
    known = sorted({value for value in values if value is not None})
    if None in values or len(known) == 1:
        return [0] * len(values)
    breaks = np.cumsum([0, *(np.diff(known) > tolerance)]).tolist()
    label = dict(zip(known, breaks, strict=True))
    return [label[value] for value in values if value is not None]


def _runs(planes: Sequence[Plane]) -> Sequence[Hashable]:
    """A label for each run through the body in the order of instance numbers: to where the step changes or turns."""
    numbers = [plane.facts.instance for plane in planes]
    if 0 in numbers or len(set(numbers)) < len(numbers):
        return [0] * len(planes)
    order = np.argsort(numbers)
    steps = np.diff((positions_of(planes) @ normal_of(planes[0]))[order]).tolist()
    if len(steps) < 2 or min(map(abs, steps)) <= SAME_PLACE:
        return [0] * len(planes)
    labels, run = [0] * len(planes), 0
    usual: float | None = steps[0]
    for place, step in zip(order[1:].tolist(), steps, strict=True):
        if usual is None:  # the first step of a run tells its direction and its distance
            usual = step
        elif abs(step - usual) > _OTHER_STEP * abs(usual):
            run, usual = run + 1, None
        labels[place] = run
    return labels


_KINDS: dict[str, Labels] = {
    "words of the image type": _each(lambda plane: plane.facts.words),
    "the number of the echo": _each(lambda plane: plane.facts.echo_number),
    "inversion time": _near(lambda plane: plane.facts.inversion_time, 0.5),
    "flip angle": _near(lambda plane: plane.facts.flip_angle, 0.1),
    "reconstruction kernel": _each(lambda plane: plane.facts.kernel),
    "slice thickness": _near(lambda plane: plane.facts.thickness, 0.05),
    "tube voltage": _near(lambda plane: plane.facts.kilovolts, 1.0),
}
_PASSES: dict[str, Labels] = {
    "acquisition numbers": _each(lambda plane: plane.facts.acquisition),
    "temporal positions": _each(lambda plane: plane.facts.temporal),
    "b-values": _each(lambda plane: None if plane.facts.b_value is None else round(plane.facts.b_value)),
    "trigger times": _each(lambda plane: plane.facts.trigger),
    "acquisition times": _times(lambda plane: plane.facts.acquired),
    "content times": _times(lambda plane: plane.facts.content),
    "order of instance numbers": _runs,
}
_STATIONS = {"acquisition numbers": _PAUSE, "acquisition times": _LONG_PAUSE}
"""Seconds of a pause from which on CT slices that follow each other are two scans and not steps of one."""
