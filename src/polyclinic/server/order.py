"""Order statistics of many long vectors, coordinate by coordinate, with sorting networks.

A network is a fixed list of comparators: one puts the smaller of two values on its first wire and the larger on its
second. Here a wire is a block of coordinates of one site, so that a comparator is one elementwise minimum and one
maximum, and for the few sites of a federation a network is many times faster than a general sort.

Source: Batcher, Sorting networks and their applications, AFIPS 1968 (odd-even merge sort).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor

#: Coordinates at a time: few enough for the blocks of all sites to stay in the cache, enough to keep threads busy.
BLOCK = 65_536


class Comparator(NamedTuple):
    """Two wires, and which of its two results anything depends on."""

    first: int
    second: int
    minimum: bool = True
    maximum: bool = True


@lru_cache
def sorting_network(wires: int) -> tuple[Comparator, ...]:
    """Batcher's comparators, after which the wires hold their values in rising order."""
    network = []
    length = 1  # of the runs that are sorted already
    while length < wires:
        step = length
        while step:
            for start in range(step % length, wires - step, 2 * step):
                for wire in range(start, min(start + step, wires - step)):
                    if wire // (2 * length) == (wire + step) // (2 * length):
                        network.append(Comparator(wire, wire + step))
            step //= 2
        length *= 2
    return tuple(network)


@lru_cache
def selection_network(wires: int, start: int, stop: int) -> tuple[Comparator, ...]:
    """The comparators needed for wires ``start`` to ``stop`` - 1 to hold the values of these ranks, in any order.

    Seen from its end, a comparator of the sorting network may go if both its wires are wanted or both are not, and
    nothing that stays comes after it: it only changes the order among wanted values, or among others.
    """
    uses: list[str] = ["wanted" if start <= wire < stop else "unwanted" for wire in range(wires)]
    network = []
    for first, second, _, _ in reversed(sorting_network(wires)):
        if uses[first] == uses[second] != "compared":
            continue
        network.append(Comparator(first, second, uses[first] != "unwanted", uses[second] != "unwanted"))
        uses[first] = uses[second] = "compared"
    return tuple(reversed(network))


def apply_network(network: Sequence[Comparator], rows: Sequence[Tensor], spare: list[Tensor]) -> list[Tensor]:
    """The rows after all comparators; rows that a comparator leaves out hold nothing of use.

    Args:
        network: comparators of ``len(rows)`` wires.
        rows: values ``[K]`` x ``[B]``; not written to.
        spare: K + 2 buffers ``[B]``, in which results are.
    """
    rows, spare, ours = list(rows), list(spare), [False] * len(rows)
    for first, second, minimum, maximum in network:
        low, high = rows[first], rows[second]
        if minimum:
            rows[first] = torch.minimum(low, high, out=spare.pop())
        if maximum:
            rows[second] = torch.maximum(low, high, out=spare.pop())
        spare += [row for row, wire in ((low, first), (high, second)) if ours[wire]]
        ours[first], ours[second] = minimum, maximum
    return rows


def sorted_rows(rows: Sequence[Tensor]) -> list[Tensor]:
    """The values of each coordinate of ``[K]`` x ``[B]`` in rising order."""
    spare = [torch.empty_like(rows[0]) for _ in range(len(rows) + 2)]
    return apply_network(sorting_network(len(rows)), rows, spare)


def in_blocks(
    states: Sequence[Tensor], network: Sequence[Comparator], reduction: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """``reduction`` of the rows that a network makes of the states ``[K]`` x ``[Q]``, block by block, as ``[Q]``."""
    result = torch.empty_like(states[0])
    size = min(BLOCK, len(result))
    spare = [result.new_empty(size) for _ in range(len(states) + 2)]
    for block in blocks(len(result), BLOCK):
        rows = [state[block] for state in states]
        result[block] = reduction(apply_network(network, rows, [row[: len(rows[0])] for row in spare]))
    return result


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover a vector."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def middle_mean(states: Sequence[Tensor], trim: int) -> Tensor:
    """Mean of each coordinate ``[Q]`` without its ``trim`` smallest and ``trim`` largest values."""
    stop = len(states) - trim
    return in_blocks(states, selection_network(len(states), trim, stop), lambda rows: mean_of_rows(rows[trim:stop]))


def nearest_mean(states: Sequence[Tensor], count: int) -> Tensor:
    """Mean of the ``count`` values of each coordinate that are closest to its median ``[Q]``."""
    network = sorting_network(len(states))
    return in_blocks(states, network, lambda rows: mean_of_rows(nearest_rows(rows, count)))


def nearest_rows(rows: Sequence[Tensor], count: int) -> list[Tensor]:
    """The ``count`` values of each coordinate closest to its median, in rising order; of two as close the lower.

    They follow each other in the sorted ``rows``. Beginning with the lowest, they move up a rank for as long as the
    value that comes in is closer to the median than the one that goes out.
    """
    nearest, median = list(rows[:count]), middle(rows)
    for lowest, next_highest in zip(rows, rows[count:], strict=False):
        moves = next_highest - median < median - lowest
        above = [*nearest[1:], next_highest]
        nearest = [torch.where(moves, new, old) for new, old in zip(above, nearest, strict=True)]
    return nearest


def middle(rows: Sequence[Tensor]) -> Tensor:
    """The median of sorted rows; of an even number the mean of the two in the middle."""
    trim = (len(rows) - 1) // 2
    return mean_of_rows(rows[trim : len(rows) - trim])


def mean_of_rows(rows: Sequence[Tensor]) -> Tensor:
    """Mean ``[B]``; a single row is itself."""
    return reduce(torch.add, rows) / len(rows) if len(rows) > 1 else rows[0]
