"""The privacy losses of many steps together.

The grid of 2^j equal steps is a matter of the step alone and not of how many steps there are. Therefore more steps
never have a smaller δ: those of the lower binary digits, which are put onto the next grid together, are dominated by
twice as many of one digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from polyclinic.privacy.events import Event, merged
from polyclinic.privacy.losses import MOST, Losses, coarser, convolved, grid, trimmed
from polyclinic.privacy.steps import plain, single


def composed(events: Iterable[Event]) -> list[Losses]:
    """The losses of all steps together: if the unit is taken out of the data, and if it is added.

    Raises:
        ValueError: a step has losses above `GREATEST_LOSS`, or none of the events has noise.
    """
    return [_composed(merged(events), removed) for removed in (True, False)]


def _composed(events: tuple[Event, ...], removed: bool) -> Losses:
    """All events on the coarsest of their grids, or one on which they fit."""
    parts = [repeated(event, removed) for event in events]
    step = max(part.step for part in parts)
    width = sum(math.ldexp(len(part.masses), part.step) for part in parts)
    step = max(step, math.ceil(math.log2(width / (2 * MOST))))
    whole = coarser(parts[0], step)
    for part in parts[1:]:
        whole = trimmed(convolved(whole, coarser(part, step)))
    return whole


def repeated(event: Event, removed: bool) -> Losses:
    """The losses of ``event.count`` >= 1 equal steps, from those of 1, 2, 4, ... steps."""
    count, lower = event.count, None
    event = plain(event)
    for digit in range(count.bit_length()):
        power = doubled(event, removed, digit)
        lower = lower and coarser(lower, power.step)
        if count >> digit & 1:
            lower = power if lower is None else trimmed(convolved(lower, power))
    if lower is None:
        raise ValueError("an event without steps has no losses")
    return lower


@lru_cache(maxsize=96)
def doubled(event: Event, removed: bool, digit: int) -> Losses:
    """The losses of 2^digit steps, on the grid that is theirs."""
    if digit == 0:
        return single(event, removed)
    half = doubled(event, removed, digit - 1)
    whole = trimmed(convolved(half, half))
    return coarser(whole, max(whole.step, grid(whole)))
