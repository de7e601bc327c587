"""How long one site's test cases live, and whether those of higher predicted risk live shorter; of no patient.

What is told are counts and Kaplan and Meier's curve at times that all sites share, never a time of a case: each step
between two of these times has `LEAST_CASES` cases or more that leave, and as many are left after it. The log-rank test
rests on three sums, which are added over the sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.data.statistics import LEAST_CASES
from polyclinic.tasks.survival_curves import LogRank, kaplan_meier, log_rank

Floats = NDArray[np.float64]
#: The curve of cases of higher predicted risk, and that of the others.
RiskCurves = tuple[pd.DataFrame, pd.DataFrame]
#: Columns of a curve.
CURVE = ["time", "at_risk", "events", "censored", "survival", "low", "high"]


@dataclass(frozen=True)
class RiskGroups:
    """Two groups of a site's cases: those whose predicted risk is above the median, and the others.

    Attributes:
        cases, higher: how many cases, and how many of them are in the group of higher risk.
        sums: of the log-rank test of that group.
        curves: of both.
    """

    cases: int
    higher: int
    sums: LogRank
    curves: RiskCurves


@dataclass(frozen=True)
class SiteSurvival:
    """What a site says: the curve of all its cases, and for each method its groups."""

    curve: pd.DataFrame
    methods: Mapping[str, RiskGroups] = field(default_factory=dict)


def site_survival(predictions: pd.DataFrame, steps: Floats, *, floor: int = LEAST_CASES) -> SiteSurvival:
    """The survival of one site's test cases, by predictions of one kind of run.

    Groups are made among the cases that the same model predicts, since scores of several have no common scale. Both are
    told at the same times, which are among those of all cases, so that nothing follows from differences. Methods that
    predict a case with several models (``cross``) are left out, and all seeds but the first, which predict the same
    cases.

    Args:
        predictions: method, seed, fold, trained_on, site, case, time, event, score.
        steps: times that all sites share.
        floor: least number of cases of a step.
    """
    whole = predictions.drop_duplicates(["site", "case"])
    curve = released([whole], steps, floor)[0]
    methods = {}
    for method, rows, higher in _grouped(predictions):
        curves = _both(rows, higher, curve["time"].to_numpy(np.float64), floor)
        sums = log_rank(rows["time"], rows["event"], higher)
        methods[method] = RiskGroups(len(rows), int(higher.sum()), sums, curves)
    return SiteSurvival(curve, methods)


def survival_to_tensors(said: SiteSurvival) -> dict[str, Tensor]:
    """The numbers of a message: ``curve`` [T, 7], and of M methods ``counts``, ``sums`` and the rows of ``curves``.

    A row of ``curves`` has the method's number before the columns of both groups, which are told at the same times.
    """
    groups = list(said.methods.values())
    rows = [
        np.concatenate([np.full((len(one.curves[0]), 2, 1), number), np.stack([_numbers(c) for c in one.curves], 1)], 2)
        for number, one in enumerate(groups)
    ]
    return {
        "curve": torch.from_numpy(_numbers(said.curve).copy()),
        "counts": torch.tensor([(one.cases, one.higher) for one in groups], dtype=torch.int64).reshape(-1, 2),
        "sums": torch.tensor([one.sums for one in groups], dtype=torch.float64).reshape(-1, 3),
        "curves": torch.from_numpy(np.concatenate([np.empty((0, 2, len(CURVE) + 1)), *rows])),
    }


def survival_from_tensors(methods: Sequence[str], tensors: Mapping[str, Tensor]) -> SiteSurvival:
    """What ``survival_to_tensors`` gave."""
    counts, sums, rows = (tensors[name].numpy() for name in ("counts", "sums", "curves"))
    found = {}
    for number, method in enumerate(methods):
        mine = rows[rows[:, 0, 0] == number]
        cases, of_higher = counts[number].tolist()
        higher, lower = (_frame(mine[:, which, 1:]) for which in (0, 1))
        found[method] = RiskGroups(cases, of_higher, LogRank(*sums[number].tolist()), (higher, lower))
    return SiteSurvival(_frame(tensors["curve"].numpy()), found)


def _numbers(curve: pd.DataFrame) -> Floats:
    found: Floats = curve[CURVE].to_numpy(np.float64)
    return found


def _frame(numbers: Floats) -> pd.DataFrame:
    counts = ["at_risk", "events", "censored"]
    return pd.DataFrame(numbers, columns=CURVE).astype(dict.fromkeys(counts, np.int64))


def risk_curves(predictions: pd.DataFrame, steps: Floats) -> dict[str, RiskCurves]:
    """Method -> the curves of its two groups over all sites; the groups are those of ``site_survival``."""
    return {method: _both(rows, higher, steps, LEAST_CASES) for method, rows, higher in _grouped(predictions)}


def _grouped(predictions: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.Series[bool]]]:
    """Each method with its rows, and whether the risk is above the median that the same model has at the site."""
    first = predictions[predictions["seed"] == predictions["seed"].min()]
    for method, rows in first.groupby("method", sort=False):
        if rows.duplicated(["fold", "site", "case"]).any():  # which of the predictions would count?
            continue
        middle = rows.groupby(["fold", "trained_on", "site"])["score"].transform("median")
        yield str(method), rows, rows["score"] > middle


def _both(rows: pd.DataFrame, higher: pd.Series[bool], steps: Floats, floor: int) -> RiskCurves:
    one, other = released([rows[higher], rows[~higher]], steps, floor)
    return one, other


def released(groups: Sequence[pd.DataFrame], steps: Floats, floor: int) -> list[pd.DataFrame]:
    """What may be told of groups of cases: at 0 and after each step, how many are at risk then and what came before.

    Columns are `CURVE`: ``at_risk`` are those with a later time, ``events`` and ``censored`` came since the row before.
    There are no rows where a group has fewer than ``floor`` cases.

    Args:
        groups: time and event of the cases of each.
        steps: times that may be told.
        floor: how many cases of each group must leave in a step, and be left after it.
    """
    times = [group["time"].to_numpy(np.float64) for group in groups]
    kept = list(_kept(times, steps, floor))
    if not kept or min(map(len, times)) < floor:
        return [pd.DataFrame(columns=CURVE) for _ in groups]
    return [_curve(own, group["event"].to_numpy(np.float64), kept) for own, group in zip(times, groups, strict=True)]


def _curve(times: Floats, events: Floats, kept: list[float]) -> pd.DataFrame:
    curve = kaplan_meier(times, events, kept)
    before = np.array([[(times <= time).sum(), ((times <= time) & (events > 0)).sum()] for time in kept])
    left, happened = np.diff(before, axis=0, prepend=0).T
    counts = {"time": kept, "at_risk": len(times) - before[:, 0], "events": happened, "censored": left - happened}
    return pd.DataFrame(counts | curve._asdict())


def _kept(times: list[Floats], steps: Floats, floor: int) -> Iterator[float]:
    """0, and the ends of steps in which enough cases of each group leave and after which enough are left."""
    told = np.zeros(len(times), dtype=np.int64)
    sizes = np.array([len(own) for own in times])
    yield 0.0
    for step in steps[steps > 0].tolist():
        left = np.array([int((own <= step).sum()) for own in times])
        if (left - told >= floor).all() and (sizes - left >= floor).all():
            told = left
            yield step
