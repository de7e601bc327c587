"""What a training may cost: alone, or together with all others that share a budget with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from polyclinic.errors import StudyError
from polyclinic.privacy import renyi
from polyclinic.privacy.accountants import downward, spent
from polyclinic.privacy.events import Event, merged
from polyclinic.privacy.solving import least_noise, noise_for

#: Noise multiplier -> all steps of a training; more noise must cost less.
Steps = Callable[[float], Iterable[Event]]

_SOLVED: dict[tuple[object, ...], float] = {}


@dataclass(frozen=True)
class Budget:
    """ε and δ for one training, or for several together.

    Each of T trainings may have a T-th of the Rényi divergence, at one order, with which ε is kept at δ. These add
    up whatever the mechanisms are, so all trainings keep ε together; also where it depends on earlier ones what later
    ones do, as in a search. To give each what T like it may spend would take some hundredths less noise, but of mixed
    mechanisms together ε could then be greater than it should be.

    Source: Feldman and Zrnic, Individual privacy accounting via a Rényi filter, NeurIPS 2021.

    Attributes:
        epsilon, delta: for all of the trainings together.
        trainings: that share the budget, 1 or more.
        before: what is known to be spent of it; a training takes no more than is left, whatever its part is.
    """

    epsilon: float
    delta: float
    trainings: int = 1
    before: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return f"ε = {self.epsilon:g} at δ = {self.delta:g}"

    def noise(self, steps: Steps) -> float:
        """The least noise with which a training keeps its part; what is spent already does not change it.

        Raises:
            StudyError: P102 for a budget that is none, P305 if no noise multiplier keeps it.
        """
        key = self.epsilon, self.delta, self.trainings, tuple(steps(1.0)), tuple(steps(2.0))
        if key not in _SOLVED:  # sites of the same size, folds and seeds ask for the same again
            _SOLVED[key] = self._solved(steps)
        return _SOLVED[key]

    def _solved(self, steps: Steps) -> float:
        if self.trainings == 1:
            return noise_for(self.epsilon, self.delta, steps)

        def refusal(most: float) -> StudyError:
            return StudyError(
                "P305", f"{self} can't be kept by {self.trainings} trainings together, even with the noise multiplier "
                f"{most:g}.", "Allow a greater ε, or plan fewer trainings or steps.",
            )  # fmt: skip

        return least_noise(lambda noise: self._keeps_part(steps(noise)), refusal)

    def rounds(self, events: Iterable[Event], most: int) -> int:
        """How many of ``most`` rounds, each of which costs these events, a training may have."""
        once = merged(events)

        def kept(count: int) -> bool:
            cost = [event.times(event.count * count) for event in once]
            return self._keeps_part(cost) and spent([*self.before, *cost], self.delta).epsilon <= self.epsilon

        if kept(most):
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if kept(middle) else (low, middle)
        return low

    def _keeps_part(self, events: Iterable[Event]) -> bool:
        if self.trainings == 1:
            return True
        place, most = _divergence(self.epsilon, self.delta)
        return float(renyi.composed(events)[place]) * self.trainings <= most


@lru_cache
def _divergence(epsilon: float, delta: float) -> tuple[int, float]:
    """Of all orders the one at which Gaussian steps may have the least noise, as its place, and the divergence there
    with which ε is kept; a little less, for rounding: ε is told in 5 digits."""
    import numpy as np

    orders = np.array(renyi.ORDERS[:-1])
    left = downward(epsilon) - renyi.conversion(delta)
    place = int(np.argmax(left / orders))  # α / 2σ² is the divergence of a Gaussian step
    return place, float(left[place]) - 1e-9 * epsilon
