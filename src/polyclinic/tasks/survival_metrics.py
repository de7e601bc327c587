"""Measures of predicted survival, for weighted cases and many sets of weights at once, as in `metrics`.

Cases are compared with cases of their own site only, and how long cases are seen is a site's own as well. What is
measured over several sites is the sum over their pairs, or the mean over their cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyclinic.tasks.metrics import SURVIVAL, check_names, split_metric
from polyclinic.tasks.survival_curves import LifeTable

Floats = NDArray[np.float64]
#: Pairs of cases that are compared at once, to bound memory.
_PAIRS = 4_000_000


class Predicted(NamedTuple):
    """What is known and predicted of n cases.

    Attributes:
        times: of the event, or until when it was not seen, [n].
        events: 1 where it happened, else 0, [n].
        risks: higher where the event is expected earlier, [n].
        sites: a number for each site, [n].
        survival: time -> predicted probability that the event comes later, [n].
    """

    times: Floats
    events: Floats
    risks: Floats
    sites: NDArray[np.integer]
    survival: Mapping[float, Floats]

    def of(self, rows: NDArray[np.integer]) -> Predicted:
        """Some of the cases."""
        survival = {time: found[rows] for time, found in self.survival.items()}
        return Predicted(self.times[rows], self.events[rows], self.risks[rows], self.sites[rows], survival)


def survival_metrics(cases: Predicted, names: Sequence[str]) -> dict[str, float]:
    """The metrics ``names``; ``weighted_survival_metrics`` with every case counted once."""
    values = weighted_survival_metrics(cases, np.ones((len(cases.times), 1)), names)
    return {name: float(value[0]) for name, value in values.items()}


def weighted_survival_metrics(cases: Predicted, weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Survival metrics under B sets of case weights; an integer weight is a case that occurs that often.

    - ``concordance``, Harrell's C: among the pairs of cases of a site of which one has the event while the other is
      still without it, the share in which the first one has the higher risk; equal risks count half. Two events at the
      same time are no pair; an event and an end of observation at the same time are one.
    - ``uno``: the same with pairs weighted by 1 / G(t)², G(t) being the probability of being seen up to just before
      the event, and events up to the last of the times only, so that it does not depend on how long cases are seen.
    - ``brier[t]``, Brier score at time t: the mean of the squared difference between the predicted probability that the
      event comes after t and what was true. Those not seen up to t have no part; the others stand for them, with weight
      1 / G. ``brier`` is its mean over the times, ``ibs`` the integral over the times (trapezoids) divided by their
      reach. It is not defined at a site where everybody was seen for less than t.

    Source: Harrell 1982, JAMA 247; Uno 2011, Stat Med 30; Graf 1999, Stat Med 18.

    Args:
        cases: what was predicted.
        weights: [n, B], not negative.
        names: out of ``SURVIVAL``, and ``brier[t]``.

    Returns:
        Name -> [B] values, NaN where it is not defined.

    Raises:
        StudyError: P103, a name is not a survival metric.
    """
    check_names([split_metric(name)[0] for name in names], SURVIVAL)
    values = dict.fromkeys(names, np.full(weights.shape[1], np.nan))
    if not len(cases.times):
        return values
    if not {"concordance", "uno"}.isdisjoint(names):
        values |= _ranking(cases, weights, uno="uno" in names)
    if any(split_metric(name)[0] in ("brier", "ibs") for name in names):
        values |= _errors(cases, weights)
    return {name: values[name] for name in names}


def time_text(time: float) -> str:
    """A time as names have it: 365, or 0.5."""
    return str(int(time)) if float(time).is_integer() else repr(float(time))


def _sites(cases: Predicted, weights: Floats) -> Iterator[tuple[Predicted, Floats]]:
    for site in np.unique(cases.sites):
        rows = np.flatnonzero(cases.sites == site)
        yield cases.of(rows), weights[rows]


def _ranking(cases: Predicted, weights: Floats, *, uno: bool) -> dict[str, Floats]:
    """Harrell's C and, if asked for, Uno's."""
    totals = np.zeros((2, 2, weights.shape[1]))
    last = max(cases.survival, default=np.inf)
    for mine, own in _sites(cases, weights):
        totals += _pairs(mine, own, last, uno=uno)
    if np.isnan(cases.risks).any():  # of a model that broke down
        totals[:] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = totals[:, 0] / totals[:, 1]
    return {"concordance": shares[0], **({"uno": shares[1]} if uno else {})}


def _pairs(cases: Predicted, weights: Floats, last: float, *, uno: bool) -> Floats:
    """Of Harrell's and of Uno's pairs of a site: weight of those in the right order and of all, [2, 2, B]."""
    table = LifeTable(cases.times, cases.events, weights)
    happened = np.flatnonzero(cases.events > 0)
    later = (table.at_risk - table.events)[table.place]
    totals = np.zeros((2, 2, weights.shape[1]))
    seen = table.seen()[:-1][table.place] if uno else np.ones_like(weights)
    step = max(1, _PAIRS // len(cases.times))
    for start in range(0, len(happened), step):
        rows = happened[start : start + step]
        risk, place = cases.risks[rows, None], table.place[rows, None]
        comparable = (table.place > place) | ((table.place == place) & (cases.events == 0))
        right = np.where(comparable, (risk > cases.risks) + 0.5 * (risk == cases.risks), 0.0) @ weights
        both = np.stack([right, later[rows]])
        totals[0] += (both * weights[rows]).sum(axis=1)
        if uno:
            counted = np.where(cases.times[rows, None] <= last, weights[rows], 0.0)
            inverse = np.divide(counted, seen[rows] ** 2, out=np.zeros_like(counted), where=seen[rows] > 0)
            totals[1] += (both * inverse).sum(axis=1)
    return totals


def _errors(cases: Predicted, weights: Floats) -> dict[str, Floats]:
    """The Brier score at each of the times, their mean and their integral."""
    times = sorted(cases.survival)
    sums, counts = np.zeros((2, len(times), weights.shape[1]))
    for mine, own in _sites(cases, weights):
        errors, known = _site_errors(mine, own, times)
        sums += errors
        counts += np.where(known, own.sum(axis=0), 0.0)
    scores = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    found = {f"brier[{time_text(time)}]": score for time, score in zip(times, scores, strict=True)}
    missing = np.full(weights.shape[1], np.nan)
    found["brier"] = scores.mean(axis=0) if times else missing
    steps = np.diff(times)
    found["ibs"] = steps @ (scores[1:] + scores[:-1]) / 2 / steps.sum() if len(times) > 1 else missing
    return found


def _site_errors(cases: Predicted, weights: Floats, times: Sequence[float]) -> tuple[Floats, NDArray[np.bool_]]:
    """Weighted sums of squared errors at each of K times, and where they are known, both [K, B]."""
    table = LifeTable(cases.times, cases.events, weights)
    seen = table.seen()
    until = seen[table.before(times)]  # [K, B]
    inverse = np.divide(weights, seen[:-1][table.place], out=np.zeros_like(weights), where=weights > 0)
    errors = np.zeros_like(until)
    for place, time in enumerate(times):
        predicted, later = cases.survival[time], cases.times > time
        dead = np.where(~later & (cases.events > 0), predicted**2, 0.0) @ inverse
        alive = np.where(later, (1 - predicted) ** 2, 0.0) @ weights
        errors[place] = dead + np.divide(alive, until[place], out=np.zeros_like(alive), where=until[place] > 0)
    known = until > 1e-12
    return np.where(known, errors, 0.0), known
