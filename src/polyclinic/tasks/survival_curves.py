"""Survival of a group of cases: Kaplan and Meier's curve, being seen, and the log-rank test from sums.

Events come before the ends of observation at the same time: who was last seen on the day of another's event was at risk
of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
#: Half the width of a 95 % interval in standard errors.
_Z95 = 1.959963984540054


class LifeTable:
    """Who is at risk, and what happens, at each of the U different times, under B sets of weights.

    Args:
        times: [n], above 0.
        events: [n], 1 where the event happened, 0 where the case was not seen any longer.
        weights: [n, B], not negative.

    Attributes:
        times: the different times, rising, [U].
        place: of each case's time among them, [n].
        at_risk, events, ended: weights of those whose time is not less, who have the event, who are seen no longer,
            [U, B].
    """

    def __init__(self, times: ArrayLike, events: ArrayLike, weights: Floats) -> None:
        known, happened = np.asarray(times, dtype=np.float64), np.asarray(events, dtype=np.float64)
        self.times, self.place = np.unique(known, return_inverse=True)
        order = np.argsort(self.place, kind="stable")
        first = np.searchsorted(self.place[order], np.arange(len(self.times)))
        ordered, event = weights[order], happened[order, None]
        self.events = np.add.reduceat(ordered * event, first, axis=0)
        self.ended = np.add.reduceat(ordered * (1 - event), first, axis=0)
        self.at_risk = (self.events + self.ended)[::-1].cumsum(axis=0)[::-1]

    def before(self, times: ArrayLike) -> NDArray[np.intp]:
        """How many of the different times are not later, for each of some times."""
        return np.searchsorted(self.times, np.asarray(times, dtype=np.float64), "right")

    def survival(self) -> Floats:
        """Kaplan and Meier's probability that the event comes later, at time 0 and at each of the times, [U + 1, B]."""
        return _product(self.events, self.at_risk)

    def seen(self) -> Floats:
        """Kaplan and Meier's probability of being seen for longer, at time 0 and at each of the times, [U + 1, B]."""
        return _product(self.ended, self.at_risk - self.events)


def _product(leaving: Floats, at_risk: Floats) -> Floats:
    share = np.divide(leaving, at_risk, out=np.zeros_like(leaving), where=at_risk > 0)
    return np.concatenate([np.ones((1, leaving.shape[1])), np.cumprod(1 - share, axis=0)])


class Curve(NamedTuple):
    """Kaplan and Meier's curve at some times, with the interval by the logarithm of -log (Kalbfleisch & Prentice)."""

    survival: Floats
    low: Floats
    high: Floats


def kaplan_meier(times: ArrayLike, events: ArrayLike, at: ArrayLike) -> Curve:
    """The curve of cases, with 95 % intervals by Greenwood's variance; NaN ends where it is 0 or 1.

    Source: Kaplan & Meier 1958, J Am Stat Assoc 53; Greenwood 1926; Kalbfleisch & Prentice 1980, section 1.3.

    Args:
        times, events: of the cases, [n].
        at: times at which it is wanted, [K].
    """
    table = LifeTable(times, events, np.ones((len(np.asarray(times)), 1)))
    place = table.before(at)
    survival = table.survival()[place, 0]
    at_risk, happened = table.at_risk[:, 0], table.events[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(happened > 0, happened / (at_risk * (at_risk - happened)), 0.0)
        variance = np.concatenate([[0.0], terms.cumsum()])[place]
        logarithm = np.log(survival)
        reach = _Z95 * np.sqrt(variance) / np.abs(logarithm)
        known = (survival > 0) & (survival < 1)
        low, high = (
            np.where(known, np.exp(logarithm * np.exp(sign * np.where(known, reach, 0.0))), np.nan) for sign in (1, -1)
        )
    return Curve(survival, low, high)


class LogRank(NamedTuple):
    """What a log-rank test rests on: sums that can be added over sites, which makes the test stratified by site.

    Attributes:
        observed: events in the group.
        expected: events that it would have if it did not differ from the others.
        variance: of the difference.
    """

    observed: float
    expected: float
    variance: float

    @property
    def statistic(self) -> float:
        """(O - E)² / V, chi-squared with one degree of freedom; NaN where nothing can be compared."""
        return (self.observed - self.expected) ** 2 / self.variance if self.variance > 0 else float("nan")

    @property
    def p(self) -> float:
        """Two-sided."""
        from scipy.stats import chi2

        return float(chi2.sf(self.statistic, 1))


def log_rank(times: ArrayLike, events: ArrayLike, group: ArrayLike) -> LogRank:
    """The sums of one site.

    Source: Mantel 1966, Cancer Chemother Rep 50; Peto & Peto 1972, J R Stat Soc A 135.

    Args:
        times, events: of the cases, [n].
        group: which of them are in the group, bool [n].
    """
    inside = np.asarray(group, dtype=np.float64)
    table = LifeTable(times, events, np.stack([np.ones(len(inside)), inside], axis=1))
    (every, mine), (happened, observed) = table.at_risk.T, table.events.T
    share = mine / every
    spread = np.divide(every - happened, every - 1, out=np.zeros_like(every), where=every > 1)
    variance = (happened * share * (1 - share) * spread).sum()
    return LogRank(float(observed.sum()), float((happened * share).sum()), float(variance))


def added(sums: Iterable[LogRank]) -> LogRank:
    """The sums of several sites: the test stratified by site."""
    found = np.array([tuple(one) for one in sums], dtype=np.float64).reshape(-1, 3).sum(axis=0)
    return LogRank(*found.tolist())
