"""Which planes make one image.

Planes of one series, patient, matrix and kind of picture are told apart by orientation, pixel size and echo time, which
are compared with tolerances: numbers that differ in their last digits belong together, on whichever side of an edge
they would be rounded. What else differs within a series is judged by where the slices lie (``dicom_passes``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from polyclinic.data.readers.dicom.header import Header, natural_key
from polyclinic.data.readers.dicom.passes import part_planes
from polyclinic.data.readers.dicom.places import arrange, normal_of
from polyclinic.data.readers.dicom.planes import Plane, find_planes
from polyclinic.data.readers.dicom.times import without_copies
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

VOLUMES = ("CT", "MR", "PT")
"""Modalities whose slices have places."""
_SAME_DIRECTION = 0.002
"""Direction cosines that differ by no more are those of one orientation (0.1°)."""
_DIRECTIONS = 0.01
"""Direction cosines of one orientation may differ by so much from end to end."""
_SAME_SIZE = 0.001
"""Share of the pixel size by which it may differ."""
_SAME_ECHO = 0.05
"""Milliseconds."""
_MOST_IMAGES = 20
"""Series with more images are not searched for parts of one stack."""
_STACK, _LARGE = 3, 8
"""Slices that make a stack, and one that single slices may come from."""

_CUT = Note("N517", "that another image of the series would complete to an even stack: it may be a part of one.")
_LONE = Note("N515", "of a single slice: the rest of its stack may be missing.")


@dataclass(frozen=True)
class Group:
    """Planes that belong together, before it is known whether they make an image.

    Attributes:
        key: identifies the image within an export (holds UIDs: never leaves the site).
        header: of one of the files.
        planes: in an order that depends on the files' contents alone.
        reason: why the group can't be used: a file of its series can't.
        notes: what should be known of how the group came about.
        instances: InstanceNumbers of all files of the series, whatever image they belong to.
    """

    key: str
    header: Header
    planes: tuple[Plane, ...]
    reason: str = ""
    notes: tuple[Note, ...] = ()
    instances: frozenset[int] = frozenset()


def group_planes(headers: Iterable[Header]) -> list[Group]:
    """Planes by image, and files of which no plane could be found with the reason.

    The files' names and order make no difference, except where headers lack the UIDs that tell files apart.
    """
    series: dict[tuple[str, str], dict[str, list[Header]]] = defaultdict(lambda: defaultdict(list))
    for header in headers:
        # Exporters that give all files one UID are known, so study and patient count, too.
        series[header.series or str(header.path), header.study][header.person.owner].append(header)
    groups = []
    for place in sorted(series, key=lambda place: (natural_key(place[0]), place)):
        owned = sorted(
            (sorted(files, key=_order) for files in series[place].values()), key=lambda files: _order(files[0])
        )
        for files in owned:
            mark = files[0].sop_instance if len(owned) > 1 else ""
            groups += _with_own_keys(_noted_cuts(_series_groups(files)), mark)
    return groups


def _order(header: Header) -> tuple[object, ...]:
    return header.sop_instance, header.facts.instance, header.position or (), str(header.path)


def _series_groups(headers: Sequence[Header]) -> list[Group]:
    buckets: dict[tuple[object, ...], list[Plane]] = defaultdict(list)
    reasons: list[tuple[Header, str]] = []
    for header in headers:
        try:
            for plane in find_planes(header):
                buckets[_certain(plane)].append(plane)
        except UnreadableError as error:
            reasons.append((header, str(error)))
    # With a slice lost, even those that are left may seem to be a whole stack.
    reason = min((reason for _, reason in reasons), default="")
    if reasons and not buckets:
        header = reasons[0][0]
        return [Group(header.series or str(header.path), header, (), reason)]
    unplaced = {kind[:-1] for kind in buckets if not kind[-1]}
    instances = frozenset(header.facts.instance for header in headers)
    groups = []
    for kind, planes in buckets.items():
        lost = reason
        if kind[-1] and kind[:-1] in unplaced and planes[0].header.modality in VOLUMES:
            lost = lost or "slice positions are missing from some of the DICOM headers"
        for found, notes, trouble in _images(planes, placed=bool(kind[-1])):
            groups.append(Group(_key(found[0]), found[0].header, tuple(found), lost or trouble, notes, instances))
    return groups


def _certain(plane: Plane) -> tuple[object, ...]:
    """What is compared as it is; the last says whether the plane has a place."""
    header = plane.header
    placed = plane.position is not None and plane.orientation is not None
    alone = () if placed or (header.modality in VOLUMES and header.series) else (header.sop_instance or header.path,)
    size = header.rows, header.columns, header.tiles, header.samples
    return *size, header.sop_class, plane.facts.meanings, alone, placed


def _images(planes: list[Plane], *, placed: bool) -> Iterable[tuple[list[Plane], tuple[Note, ...], str]]:
    """Planes, notes, and the reason against using them, of each image."""
    if not placed:
        yield planes, (), ""
        return
    for parallel in _by_direction(planes):
        reason = "" if _spread(parallel) <= _DIRECTIONS else "slices are not parallel"
        for one_size in _by_number(parallel, _pixel_width, _SAME_SIZE, relative=True):
            for sized in _by_number(one_size, _pixel_height, _SAME_SIZE, relative=True):
                for echo in _by_number(sized, lambda plane: plane.facts.echo_time, _SAME_ECHO):
                    single, dropped = without_copies(echo)
                    mended = tuple(Note("N501", f"mended: {what} dropped.") for what in dropped)
                    if reason:
                        yield single, mended, reason
                        continue
                    for found, notes, trouble in part_planes(single):
                        yield found, (*mended, *notes), trouble


def _pixel_width(plane: Plane) -> float | None:
    return plane.spacing[1] if plane.spacing else None


def _pixel_height(plane: Plane) -> float | None:
    return plane.spacing[0] if plane.spacing else None


def _by_number(
    planes: list[Plane], number: Callable[[Plane], float | None], tolerance: float, *, relative: bool = False
) -> list[list[Plane]]:
    """Planes whose numbers are linked by steps no larger than the tolerance.

    Planes without a number go with the others if those have but one, else they stay for themselves.
    """
    values = {number(plane) for plane in planes}
    if len(values) == 1:
        return [planes]
    clusters: dict[float | None, int] = {}
    last, label = None, 0
    for value in sorted(value for value in values if value is not None):
        if last is not None and value - last > (tolerance * last if relative else tolerance):
            label += 1
        clusters[value] = label
        last = value
    clusters[None] = label + 1 if label else 0
    return _by_label(planes, [clusters[number(plane)] for plane in planes])


def _by_direction(planes: list[Plane]) -> list[list[Plane]]:
    """Planes whose direction cosines are linked by steps no larger than the tolerance."""
    directions = sorted({plane.orientation or () for plane in planes})
    if len(directions) == 1:
        return [planes]
    # Noise in the last digits would make each plane's its own: one of each small cell stands for all of it.
    cells = {direction: tuple(round(value, 5) for value in direction) for direction in directions}
    distinct = sorted(set(cells.values()))
    values = np.array(distinct)
    label = dict.fromkeys(distinct, -1)
    count = 0
    for start in range(len(distinct)):
        if label[distinct[start]] >= 0:
            continue
        front = [start]
        label[distinct[start]] = count
        while front:
            near = np.abs(values - values[front.pop()]).max(axis=1) <= _SAME_DIRECTION
            for index in np.flatnonzero(near).tolist():
                if label[distinct[index]] < 0:
                    label[distinct[index]] = count
                    front.append(index)
        count += 1
    return _by_label(planes, [label[cells[plane.orientation or ()]] for plane in planes])


def _by_label(planes: Sequence[Plane], labels: Sequence[int]) -> list[list[Plane]]:
    found: dict[int, list[Plane]] = defaultdict(list)
    for plane, label in zip(planes, labels, strict=True):
        found[label].append(plane)
    return [found[label] for label in sorted(found)]


def _spread(planes: Sequence[Plane]) -> float:
    directions = {plane.orientation for plane in planes}
    return float(np.ptp(np.array(list(directions)), axis=0).max()) if len(directions) > 1 else 0.0


def _key(plane: Plane) -> str:
    header = plane.header
    parts: list[object] = [
        header.study,
        header.series or header.sop_instance or header.path,
        header.rows,
        header.columns,
        header.tiles,
        header.samples,
        plane.kind,
    ]
    if plane.position is not None and plane.orientation is not None:
        parts.append([round(value * 500 + 0.25) for value in plane.orientation])
        parts.append([round(value, 3) for value in plane.spacing or ()])
    elif header.modality not in VOLUMES or not header.series:
        parts.append(header.sop_instance or str(header.path))
    return "|".join(map(str, parts))


def _with_own_keys(groups: list[Group], mark: str) -> list[Group]:
    """Tell apart keys that several groups of a series share; ``mark`` tells apart patients with one series.

    Such groups are named by one of their own files, never by their number: a pass that is exported later must not take
    the name of another one.
    """
    shared = Counter(group.key for group in groups)
    seen: set[str] = set()
    own = []
    for group in groups:
        ends = [mark] if mark else []
        ends += [_first_frame(group)] if shared[group.key] > 1 else []
        key = "|".join((group.key, *ends))
        while key in seen:  # headers without UIDs
            key += "|"
        seen.add(key)
        own.append(replace(group, key=key))
    return own


def _first_frame(group: Group) -> str:
    """Names the group by what no other one has: its first file, and the first of its frames there."""
    header = group.header
    first = min(plane.index for plane in group.planes if plane.header.path == header.path) if group.planes else 0
    return f"{header.sop_instance or header.path.name}/{first}"


def _noted_cuts(groups: list[Group]) -> list[Group]:
    """Notes on images that another one of their series would complete, and on single slices beside a stack."""
    cut: set[int] = set()
    for one, other in combinations(range(len(groups)), 2):
        pair = groups[one], groups[other]
        if len(groups) <= _MOST_IMAGES and all(map(_may_be_cut, pair)) and _complete_each_other(*pair):
            cut |= {one, other}
    largest = max((len(group.planes) for group in groups), default=0)
    noted = []
    for number, group in enumerate(groups):
        lone = len(group.planes) == 1 and largest >= _LARGE and group.header.modality == "MR"
        more = (*((_CUT,) if number in cut else ()), *((_LONE,) if lone else ()))
        noted.append(replace(group, notes=(*group.notes, *more)) if more else group)
    return noted


def _may_be_cut(group: Group) -> bool:
    placed = bool(group.planes) and group.planes[0].position is not None and group.planes[0].orientation is not None
    told = group.header.contrast == "localizer" or any(note.number == "N511" for note in group.notes)
    return placed and not told and not group.reason


def _complete_each_other(one: Group, other: Group) -> bool:
    across = abs(float(normal_of(one.planes[0]) @ normal_of(other.planes[0])))
    if across < 1 - _DIRECTIONS**2:
        return False
    how = arrange([one.planes, other.planes])
    return how.even and not how.shared and how.most >= _STACK
