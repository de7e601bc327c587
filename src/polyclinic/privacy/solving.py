"""How much noise a plan needs, and how many steps a budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polyclinic.errors import StudyError
from polyclinic.privacy.accountants import spent
from polyclinic.privacy.events import MOST_STEPS, Event, number, refuse_unless

#: Noise multipliers have 4 digits, from 0.01 to 10,000: 9,000 for each power of ten.
_FIRST_POWER, _POWERS, _EACH = -2, 6, 9000


def check_budget(epsilon: float, delta: float, units: int | None = None) -> None:
    """Whether a budget is one.

    Args:
        epsilon: ε.
        delta: δ; it must be below 1 / ``units``, else some unit's data may be told in full.
        units: number of units (patients, say) whose data they are about.

    Raises:
        StudyError: P102, it is not.
    """
    refuse_unless(number(epsilon) > 0, "ε", epsilon, "a number above 0")
    refuse_unless(0 < number(delta) < 1, "δ", delta, "a number above 0 and below 1")
    if units is not None:
        whole = isinstance(units, int) and not isinstance(units, bool)
        refuse_unless(whole and units > 0, "the number of units", units, "a whole number above 0")
        refuse_unless(delta * units < 1, "δ", delta, f"less than 1/{units}, one by the number of units")


def noise_for(epsilon: float, delta: float, plan: Callable[[float], Iterable[Event]], *,
              units: int | None = None) -> float:  # fmt: skip
    """The least noise multiplier with 4 significant digits with which a plan keeps a budget.

    Args:
        epsilon: ε of the budget.
        delta: δ of the budget.
        plan: noise multiplier -> all steps; more noise must cost less.
        units: number of units whose data they are about, if it is known; δ must be below one by it.

    Raises:
        StudyError: P102 for a budget that is none, P305 if no noise multiplier up to 9,999 keeps it.
    """
    check_budget(epsilon, delta, units)

    def refusal(most: float) -> StudyError:
        return StudyError(
            "P305",
            f"ε = {epsilon:g} at δ = {delta:g} can't be kept: even with the noise multiplier {most:g} the steps cost "
            f"ε = {spent(plan(most), delta).epsilon:g}.",
            "Allow a greater ε, or plan fewer steps.",
        )

    return least_noise(lambda noise: spent(plan(noise), delta).epsilon <= epsilon, refusal)


def least_noise(kept: Callable[[float], bool], refusal: Callable[[float], StudyError]) -> float:
    """The least noise multiplier with 4 significant digits with which a budget is ``kept``.

    Raises:
        StudyError: the ``refusal``, given the greatest multiplier, if that does not keep it.
    """
    least, most = -1, _POWERS * _EACH - 1  # with the first the budget counts as not kept, with the last as kept
    if not kept(_multiplier(most)):
        raise refusal(_multiplier(most))
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if kept(_multiplier(middle)) else (middle, most)
    return _multiplier(most)


def steps_within(epsilon: float, delta: float, event: Event, before: Iterable[Event] = ()) -> int:
    """How many steps like ``event`` a budget allows, after all those ``before``.

    Args:
        epsilon: ε of the budget.
        delta: δ of the budget.
        event: the step; its count says nothing.
        before: what was spent already.

    Returns:
        0 if the budget is spent; 10^12 at most.

    Raises:
        StudyError: P102 for a budget that is none.
    """
    check_budget(epsilon, delta)
    done = tuple(before)

    def allowed(count: int) -> bool:
        return spent((*done, event.times(count)), delta).epsilon <= epsilon

    if not allowed(1):
        return 0
    enough = 1
    while enough < MOST_STEPS and allowed(min(2 * enough, MOST_STEPS)):
        enough = min(2 * enough, MOST_STEPS)
    low, high = enough, min(2 * enough, MOST_STEPS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


def _multiplier(index: int) -> float:
    """The noise multipliers in their order: 0.01, 0.01001, ..., 9999."""
    power, digits = divmod(index, _EACH)
    return float(f"{1000 + digits}e{power + _FIRST_POWER - 3}")
