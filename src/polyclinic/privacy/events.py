"""What a private step is, told once: every accountant reads the same events.

Neighbours are two data sets of which one has a unit (a patient, say) more than the other. Sampling is Poisson's: each
unit takes part in a step with the same probability, independently of all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from polyclinic.errors import StudyError

#: Mechanism -> what its parameter is.
MECHANISMS = {
    "gaussian": "the standard deviation of the noise divided by the sensitivity in the L2 norm",
    "laplace": "the scale of the noise divided by the sensitivity in the L1 norm",
    "concentrated": "1 / √(2 ρ) of a ρ-zero-concentrated differentially private step, as of Gaussian noise",
    "pure": "the ε of a step that has one of its own",
    "bare": "0, since a step without noise has none",
}
#: Steps that one event may stand for, and units of the sum of several: what 64 bits of a float can count one by one.
MOST_STEPS = 10**12


@dataclass(frozen=True, order=True)
class Event:
    """Equal private steps.

    Attributes:
        mechanism: one of ``MECHANISMS``: ``gaussian``, ``laplace``, ``concentrated`` (such as discrete Gaussian noise),
            ``pure`` (such as the sparse vector technique), or ``bare``, a step that looked at data without any noise.
        parameter: above 0; ``MECHANISMS`` says what it is. 0 for ``bare``.
        rate: q in (0, 1], the probability that a unit takes part in a step.
        count: number of such steps, 0 or more.

    Raises:
        StudyError: P102 for a value out of range, P103 for an unknown mechanism.
    """

    mechanism: str
    parameter: float
    rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise StudyError("P103", f"There is no mechanism {self.mechanism!r}.", f"Valid: {', '.join(MECHANISMS)}.")
        parameter, rate = number(self.parameter), number(self.rate)
        if self.mechanism == "bare":
            refuse_unless(parameter == 0, "the parameter of a step without noise", self.parameter, "0")
        else:
            name = f"the parameter of the mechanism {self.mechanism} ({MECHANISMS[self.mechanism]})"
            refuse_unless(parameter > 0, name, self.parameter, "a number above 0")
        refuse_unless(0 < rate <= 1, "a sampling rate", self.rate, "a number above 0 and at most 1")
        whole = isinstance(self.count, int) and not isinstance(self.count, bool)
        expected = f"a whole number from 0 to {MOST_STEPS}"
        refuse_unless(whole and 0 <= self.count <= MOST_STEPS, "a number of steps", self.count, expected)
        object.__setattr__(self, "parameter", parameter)  # 2 and 2.0 are the same event
        object.__setattr__(self, "rate", rate)

    @classmethod
    def gaussian(cls, noise: float, rate: float = 1.0, count: int = 1) -> Event:
        """Steps with Gaussian noise of standard deviation ``noise`` times the sensitivity in the L2 norm."""
        return cls("gaussian", noise, rate, count)

    @classmethod
    def laplace(cls, scale: float, rate: float = 1.0, count: int = 1) -> Event:
        """Steps with Laplace noise of scale ``scale`` times the sensitivity in the L1 norm."""
        return cls("laplace", scale, rate, count)

    @classmethod
    def concentrated(cls, noise: float, count: int = 1) -> Event:
        """Steps whose Rényi divergence of each order α is α / (2 ``noise``²) at most, as that of Gaussian noise is."""
        return cls("concentrated", noise, 1.0, count)

    @classmethod
    def pure(cls, epsilon: float, rate: float = 1.0, count: int = 1) -> Event:
        """Steps that are ``epsilon``-differentially private, whatever they do."""
        return cls("pure", epsilon, rate, count)

    @classmethod
    def bare(cls, count: int = 1) -> Event:
        """Steps without noise: after one of them nothing is guaranteed any longer."""
        return cls("bare", 0.0, 1.0, count)

    def times(self, count: int) -> Event:
        """The same steps, ``count`` of them."""
        return replace(self, count=count)

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON values; floats come back the same to the last bit."""
        return {"mechanism": self.mechanism, "parameter": self.parameter, "rate": self.rate, "count": self.count}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Event:
        """The event that ``to_json`` gave these fields of.

        Raises:
            StudyError: P102 or P103, they are none.
        """
        expected = {"mechanism", "parameter", "rate", "count"}
        got = sorted(fields) if isinstance(fields, Mapping) else fields
        refuse_unless(isinstance(fields, Mapping) and set(fields) == expected, "an event", got, f"{sorted(expected)}")
        return cls(**fields)


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Equal events as one, in a fixed order, so that neither order nor grouping of steps changes what is spent.

    Raises:
        StudyError: P102, there are more steps than can be counted.
    """
    counts: dict[Event, int] = {}
    for event in events:
        kind = event.times(0)
        counts[kind] = counts.get(kind, 0) + event.count
    return tuple(kind.times(count) for kind, count in sorted(counts.items()) if count)


def number(value: object) -> float:
    """``value`` as a float if it is a finite number, else NaN, which fits into no range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def refuse_unless(fits: bool, what: str, got: object, expected: str) -> None:
    """Raise the sentence for a value that does not fit.

    Raises:
        StudyError: P102, ``fits`` is not so.
    """
    if not fits:
        first = what[0].upper() if what[0].isascii() else what[0]  # ε and δ stay small
        raise StudyError("P102", f"{first}{what[1:]} is {got!r}, expected {expected}.")
