"""How long test cases live at each site, and whether those of higher predicted risk live shorter.

What is told of a site are counts and Kaplan and Meier's curve at times that all sites share, never a time of a case:
each step between two of these times has `LEAST_CASES` cases or more that leave, and as many are left after it. The
log-rank test rests on three sums of each site, which are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.data.statistics import LEAST_CASES
from polyclinic.study.columns import ALL, HIGHER, LOG_RANK, LOWER, SURVIVAL
from polyclinic.study.kinds import PLAIN, RUN
from polyclinic.tasks.survival_curves import added, kaplan_meier, log_rank

Floats = NDArray[np.float64]
#: Steps of the common times where the study has none.
STEPS = 20


def survival_tables(predictions: pd.DataFrame, edges: Sequence[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``survival.csv`` and ``log_rank.csv``.

    The curves are of all test cases of a site, and for each method of the cases of all sites in two groups: those whose
    predicted risk is above the median of the test cases that the same model has at the same site, and the others. The
    test compares these two, stratified by site. Both are of the first seed: another predicts the same cases.

    Args:
        predictions: method, run, seed, fold, trained_on, site, subject, case, time, event, score.
        edges: times that all sites agree on; without any, `STEPS` up to a round number.
    """
    first = predictions[predictions["seed"] == predictions["seed"].min()]
    steps = common_times(first["time"].to_numpy(np.float64), edges)
    curves = []
    plain = first[first[RUN] == PLAIN].drop_duplicates(["site", "case"])
    for site, cases in plain.groupby("site", sort=False):
        curves.append(released(cases, steps).assign(method="", site=site, group=ALL, **{RUN: PLAIN}))
    tests = []
    for (method, run), rows in first.groupby(["method", RUN], sort=False):
        if rows.duplicated(["fold", "site", "case"]).any():  # several models predict a case: which would count?
            continue
        cases = rows.assign(higher=_higher(rows))
        for name, group in ((HIGHER, cases[cases["higher"]]), (LOWER, cases[~cases["higher"]])):
            curves.append(released(group, steps).assign(method=method, site=ALL, group=name, **{RUN: run}))
        sums = added(log_rank(one["time"], one["event"], one["higher"]) for _, one in cases.groupby("site"))
        counts = (cases["site"].nunique(), len(cases), int(cases["higher"].sum()))
        tests.append((method, run, *counts, *sums, sums.statistic, sums.p))
    told = [curve for curve in curves if len(curve)]
    found = pd.concat(told, ignore_index=True) if told else pd.DataFrame(columns=SURVIVAL)
    return found[SURVIVAL], pd.DataFrame(tests, columns=LOG_RANK)


def common_times(times: Floats, edges: Sequence[float]) -> Floats:
    """The times of the study, or steps up to a round number: that of the last case stays untold."""
    if len(edges):
        return np.asarray(edges, dtype=np.float64)
    size = 10.0 ** np.floor(np.log10(times.max()))
    top = next(part * size for part in (1, 2, 5, 10) if part * size >= times.max())
    return np.linspace(0, top, STEPS + 1)[1:]


def released(cases: pd.DataFrame, steps: Floats) -> pd.DataFrame:
    """What may be told of some cases: at 0 and after each step, how many are at risk then and what came before.

    Columns: ``time``, ``at_risk`` (those with a later time), ``events`` and ``censored`` since the row before,
    ``survival`` with ``low`` and ``high``. No rows for fewer than `LEAST_CASES` cases.
    """
    times, events = cases["time"].to_numpy(np.float64), cases["event"].to_numpy(np.float64)
    kept = list(_kept(times, steps)) if len(times) >= LEAST_CASES else []
    if not kept:
        return pd.DataFrame(columns=["time", "at_risk", "events", "censored", "survival", "low", "high"])
    curve = kaplan_meier(times, events, kept)
    before = np.array([[(times <= time).sum(), ((times <= time) & (events > 0)).sum()] for time in kept])
    left, happened = np.diff(before, axis=0, prepend=0).T
    return pd.DataFrame(
        {
            "time": kept, "at_risk": len(times) - before[:, 0], "events": happened, "censored": left - happened,
            **curve._asdict(),
        }
    )  # fmt: skip


def _kept(times: Floats, steps: Floats) -> Iterator[float]:
    """0, and the ends of steps in which enough cases leave and after which enough are left."""
    told = 0
    yield 0.0
    for step in steps.tolist():
        left = int((times <= step).sum())
        if left - told >= LEAST_CASES and len(times) - left >= LEAST_CASES:
            told = left
            yield step


def _higher(rows: pd.DataFrame) -> pd.Series[bool]:
    """Whether the risk is above the median of the cases that the same model has at the site."""
    middle = rows.groupby(["fold", "trained_on", "site"])["score"].transform("median")
    return rows["score"] > middle
