"""What private steps cost together: the least of the upper bounds of several accountants.

- ``prv`` composes the privacy losses numerically and is nearly exact (`composition`).
- ``rdp`` adds up Rényi divergences (`renyi`): less exact, for every mechanism and however much was spent.
- ``gaussian`` is exact for Gaussian steps without sampling, and takes sampled ones as if they were not (`gaussian`).

None of them falls if steps are added, and what one can't compute it can't compute with more steps either, so ε never
falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from polyclinic.privacy import composition, gaussian, renyi
from polyclinic.privacy.events import Event, merged, number, refuse_unless

#: Digits of an ε or δ that is told; it is rounded up to so many.
DIGITS = 5
#: What any step costs at least.
LEAST = 1e-6
#: An ε above this guarantees nothing, and its digits are not to be trusted: it counts as infinite.
GREATEST = 1e9


@dataclass(frozen=True)
class Spent:
    """What steps cost.

    Attributes:
        epsilon: rounded up to 5 digits; 0 only without steps, infinite if there was a step without noise or if it
            is above `GREATEST`.
        delta: what it holds for.
        accountant: which of the accountants gave it; ``none`` without steps, or with one that has no noise.
        bounds: accountant -> its own ε.
        skipped: accountant -> why it can't say anything of these steps.
    """

    epsilon: float
    delta: float
    accountant: str
    bounds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def spent(events: Iterable[Event], delta: float) -> Spent:
    """The least ε that is guaranteed with ``delta``, and which accountant says so.

    Raises:
        StudyError: P102, ``delta`` is not above 0 and below 1.
    """
    refuse_unless(0 < number(delta) < 1, "δ", delta, "a number above 0 and below 1")
    together = merged(events)
    if not together or _bare(together):
        return Spent(math.inf if together else 0.0, delta, "none")
    bounds, skipped = _each(_EPSILON, together, delta)
    best = min(bounds, key=bounds.__getitem__)
    told = max(upward(bounds[best]), LEAST) if bounds[best] <= GREATEST else math.inf
    return Spent(told, delta, best, bounds, skipped)


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The least ε that is guaranteed with ``delta``, rounded up to 5 digits.

    Raises:
        StudyError: P102, ``delta`` is not above 0 and below 1.
    """
    return spent(events, delta).epsilon


def delta(events: Iterable[Event], epsilon: float) -> float:
    """The least δ that is guaranteed with ``epsilon``, rounded up to 5 digits; 1 says nothing.

    Raises:
        StudyError: P102, ``epsilon`` is not a number from 0.
    """
    refuse_unless(number(epsilon) >= 0, "ε", epsilon, "a number from 0")
    together = merged(events)
    if not together or _bare(together):
        return 1.0 if together else 0.0
    bounds, _ = _each(_DELTA, together, epsilon)
    return min(upward(min(bounds.values())), 1.0)


def upward(value: float, digits: int = DIGITS) -> float:
    """``value`` >= 0 rounded up to so many significant digits."""
    return _rounded(value, digits, ROUND_CEILING)


def downward(value: float, digits: int = DIGITS) -> float:
    """``value`` >= 0 rounded down to so many significant digits."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    exact = Decimal(value)
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return float(exact.quantize(unit, rounding=rounding))


def _bare(events: tuple[Event, ...]) -> bool:
    return any(event.mechanism == "bare" for event in events)


def _each(accountants: dict[str, Callable[[tuple[Event, ...], float], float]], events: tuple[Event, ...],
          given: float) -> tuple[dict[str, float], dict[str, str]]:  # fmt: skip
    """Each accountant's bound, and why others have none."""
    bounds, skipped = {}, {}
    for name, bound in accountants.items():
        try:
            found = bound(events, given)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        if math.isnan(found):
            skipped[name] = "its numbers are out of range"
        else:
            bounds[name] = found
    return bounds, skipped


def _prv_epsilon(events: tuple[Event, ...], delta: float) -> float:
    return max(whole.epsilon(delta) for whole in composition.composed(events))


def _prv_delta(events: tuple[Event, ...], epsilon: float) -> float:
    return max(whole.delta(epsilon) for whole in composition.composed(events))


_EPSILON: dict[str, Callable[[tuple[Event, ...], float], float]] = {
    "prv": _prv_epsilon,
    "rdp": renyi.epsilon,
    "gaussian": gaussian.epsilon,
}
_DELTA: dict[str, Callable[[tuple[Event, ...], float], float]] = {
    "prv": _prv_delta,
    "rdp": renyi.delta,
    "gaussian": gaussian.delta,
}
