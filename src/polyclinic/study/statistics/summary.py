"""From the long tables of a study to its summary: means, intervals, and paired tests against the baselines.

Two questions are asked of every metric. ``over`` = ``all``: how good is the method on all cases together? ``over`` =
``sites``: how good is it at a site, on average over the sites with enough cases of each class to be scored?

Each kind of run (see `polyclinic.study.kinds`) is a family: methods are compared with the baselines in runs of the same
kind, and p values are corrected within it. What it costs to be unseen is asked in a table of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from polyclinic.statistics.evidence import Evidence, evidence_of_values
from polyclinic.statistics.intervals import Z95, Floats, holm
from polyclinic.study.baselines import BASELINES
from polyclinic.study.columns import UNSEEN_COLUMNS
from polyclinic.study.kinds import PLAIN, RUN, RUNS, UNSEEN
from polyclinic.study.statistics.calibration import SitesTrust
from polyclinic.study.statistics.comparisons import (
    NOTHING,
    Comparison,
    Spread,
    by_metric,
    reach,
    with_training,
)
from polyclinic.study.statistics.over_sites import mean_interval, site_shares
from polyclinic.study.statistics.source import Family, Source, of_run, seen_and_unseen
from polyclinic.study.statistics.together import Interval, Together
from polyclinic.study.statistics.within import within_sites
from polyclinic.tasks.metrics import value_range

COLUMNS = [
    *("method", RUN, "metric", "over", "mean", "deviation", "low", "high", "interval"),
    *(f"{name}_{baseline}{end}" for baseline in BASELINES for name, end in (("vs", ""), ("p", ""), ("p", "_adjusted"))),
    "n",
]
#: Kind of run -> metric -> site -> what it says of the methods.
AllEvidence = Mapping[str, Mapping[str, Mapping[str, Evidence]]]


def summarise(
    results: pd.DataFrame,
    source: Source,
    scored: Mapping[str, bool],
    *,
    baselines: Mapping[str, str] | None = None,
    evidence: AllEvidence | None = None,
) -> pd.DataFrame:
    """The summary table: a row for each method, kind of run, metric and ``over``.

    Columns:

    - ``mean``, ``deviation``, ``n``: over the values of each seed and fold. A value is, for ``all``, the row tested
      on all cases (mean over the models, where several models predict other sites' cases); for ``sites``, the mean over
      the scored sites (over all pairs of a model and another site). NaN are left out.
    - ``low``, ``high``: 95 % interval, by the method named in ``interval``, for other patients of the same sites and,
      with two seeds or more, other trainings; see ``widened``. ``sites``: from the sites' own variances, see
      ``mean_interval``. ``all``: `SCORE` serves the area under the curve in binary tasks where each patient has one
      case; see ``area_interval``. Else the bootstrap: every patient's cases are drawn together, within the site, and
      everything that ``mean`` averages is computed anew; see ``bootstrap_interval``. Where the draws of a share reach
      an end of its range, it is the exact interval for as many cases as have the variance of the draws (at most twice
      as many as there are patients), or, where all agree, for as many patients as there are; see ``share_interval``.
    - ``vs_single``, ``vs_fedavg``: difference to that baseline in runs of the same kind. ``all``: the mean over the
      cases that both scored, in each seed and fold. ``sites``: the sites' own differences put together by a
      random-effects meta-analysis; see ``within_sites``.
    - ``p_single``, ``p_fedavg``: two-sided paired test of that difference. ``all``: DeLong's test where both intervals
      are by `SCORE`, else the bootstrap of the difference (never below 1 / (``bootstrap`` + 1)). ``sites``: that of the
      meta-analysis. With two seeds or more chance in training counts besides; see ``with_training``. With one seed p
      speaks of the models as they were trained.
    - ``p_single_adjusted``, ``p_fedavg_adjusted``: corrected by Holm's method over the methods compared with that
      baseline, for each kind of run, metric and ``over``.

    A comparison that makes no sense (a baseline with itself, a baseline that was not run) is NaN.

    Args:
        results: method, run, seed, fold, trained_on, tested_on, metric, value.
        source: gives the evidence; where it has none of cases, there are no intervals and no tests on cases.
        scored: site -> whether it has enough cases of each class.
        evidence: what ``all_evidence`` gives; by default it is called.
        baselines: name of each of `BASELINES` -> label of the method that is it, as
            `polyclinic.study.declaration.Declaration.baselines` finds it; by default the names are the labels.

    Returns:
        Rows in the order of ``results``, one kind of run after another, ``all`` before ``sites``.
    """
    compared = dict(zip(BASELINES, BASELINES, strict=True)) if baselines is None else baselines
    sites = [str(site) for site, enough in scored.items() if enough]
    results = results.assign(tested_on=results["tested_on"].astype(str))
    parts = []
    if evidence is None:
        evidence = all_evidence(results, source, scored)
    for run in evidence:
        mine = results[results[RUN] == run]
        table, values = _means(mine, sites), by_metric(mine)
        family, metrics = of_run(run, _unique(mine, "method")), _unique(mine, "metric")
        together = source.together(family, metrics, list(compared.values()))
        keys = list(table[["method", "metric", "over"]].itertuples(index=False, name=None))
        trained = _by_seed(mine, sites)
        intervals = [
            _interval(together, mine, evidence[run], sites, key, mean)
            for key, mean in zip(keys, table["mean"], strict=True)
        ]
        ends = [
            widened(mean, (low, high), trained[key], value_range(key[1]))
            for key, mean, (low, high, _) in zip(keys, table["mean"], intervals, strict=True)
        ]
        table["low"], table["high"] = [low for low, _ in ends], [high for _, high in ends]
        table["interval"] = pd.Series([name for _, _, name in intervals], dtype=str)
        for name in BASELINES:
            found = [_compare(together, values, evidence[run], (key[0], compared.get(name)), *key[1:]) for key in keys]
            table[f"vs_{name}"] = [one.difference for one in found]
            table[f"p_{name}"] = pd.Series([one.p for one in found], dtype=float)
            groups = table.groupby(["metric", "over"])[f"p_{name}"]
            table[f"p_{name}_adjusted"] = groups.transform(lambda p: holm(p.to_numpy()))
        parts.append(table.assign(**{RUN: run})[COLUMNS])
    return pd.concat(parts, ignore_index=True)


def cost_of_unseen(results: pd.DataFrame, source: Source, scored: Mapping[str, bool]) -> pd.DataFrame:
    """What a site loses if it takes no part in training: each method with itself, on the same cases.

    Columns: ``seen`` and ``unseen``, the means of both kinds of run as in ``summarise``; ``difference``, seen minus
    unseen over the cases, or sites, that both scored; ``low`` and ``high``, its 95 % interval for other patients (or
    sites) and, with two seeds or more, other trainings; ``p`` as in ``summarise``, and ``p_adjusted`` by Holm's method
    over the methods, for each metric and ``over``.

    Args:
        results, source, scored: as in ``summarise``.

    Returns:
        A row for each method that was run both ways, metric and ``over``.
    """
    sites = [str(site) for site, enough in scored.items() if enough]
    results = results.assign(tested_on=results["tested_on"].astype(str))
    unseen = set(results["method"][results[RUN] == UNSEEN])
    both = (PLAIN, UNSEEN)
    parts = []
    for method in [label for label in results["method"].unique() if label in unseen]:
        # The kinds of run are what is compared.
        mine = results[(results["method"] == method) & results[RUN].isin(both)]
        mine = mine.assign(method=mine[RUN])
        if set(mine["method"]) != set(both):
            continue
        table = _means(mine, sites).pivot_table(index=["metric", "over"], columns="method", values="mean", sort=False)
        family, values = seen_and_unseen(method), by_metric(mine)
        together = source.together(family, _unique(mine, "metric"), [UNSEEN])
        evidence = _of_family(mine, source, family, sites)
        for metric, over in table.index.to_list():
            found = _compare(together, values, evidence, both, metric, over)
            means = table.reindex(columns=list(both)).loc[(metric, over)].to_list()
            parts.append((method, metric, over, *means, *found, np.nan))
    costs = pd.DataFrame(parts, columns=UNSEEN_COLUMNS)
    if len(costs):
        costs["p_adjusted"] = costs.groupby(["metric", "over"])["p"].transform(lambda p: holm(p.to_numpy()))
    return costs


def all_evidence(results: pd.DataFrame, source: Source, scored: Mapping[str, bool]) -> AllEvidence:
    """Kind of run -> metric -> scored site -> what the site says of the methods.

    Args:
        results, scored: as in ``summarise``.
        source: gives the evidence.
    """
    sites = [str(site) for site, enough in scored.items() if enough]
    results = results.assign(tested_on=results["tested_on"].astype(str))
    found = {}
    for run in RUNS:
        mine = results[results[RUN] == run]
        if len(mine):
            found[run] = _of_family(mine, source, of_run(run, _unique(mine, "method")), sites)
    return found


def all_trust(results: pd.DataFrame, source: Source, scored: Mapping[str, bool]) -> dict[str, SitesTrust]:
    """Kind of run -> scored site -> method -> what the site says of its probabilities; empty for other tasks.

    Args:
        results, scored: as in ``summarise``.
        source: gives the evidence.
    """
    sites = [str(site) for site, enough in scored.items() if enough]
    runs = {run: _unique(results[results[RUN] == run], "method") for run in RUNS}
    found = {run: source.trust(of_run(run, methods), sites) for run, methods in runs.items() if methods}
    return {run: one for run, one in found.items() if one is not None}


def _unique(results: pd.DataFrame, column: str) -> list[str]:
    return [str(one) for one in results[column].unique()]


def _of_family(
    results: pd.DataFrame, source: Source, family: Family, sites: Sequence[str]
) -> dict[str, dict[str, Evidence]]:
    """Metric -> site -> what the site says of the entries, whose names stand in the column ``method``."""
    found: dict[str, dict[str, Evidence]] = {metric: {} for metric in _unique(results, "metric")}
    said = source.evidence(family, sites, list(found))
    tested = results.groupby("tested_on").indices
    for site in sites:
        for metric, rows in results.iloc[tested.get(site, [])].groupby("metric", sort=False):
            known = said.get(site, {}).get(str(metric))
            if known is None and not source.complete:
                continue
            found[str(metric)][site] = known or evidence_of_values(rows)
    return found


def widened(
    mean: float, interval: tuple[float, float], seeds: Floats, limits: tuple[float, float]
) -> tuple[float, float]:
    """An interval for other patients made one for other patients and trainings, where there are two seeds or more.

    Each side has a variance of its own, to which that of the seeds is added, as Zou & Donner 2008, "Construction of
    confidence limits about effect measures", Statistics in Medicine 27(10), do with intervals that are not symmetric.
    Two seeds that are alike by chance make it too narrow, which no test rests on; see `with_training` for those.

    Args:
        mean: what it is about.
        interval: for other patients, and the models as they are.
        seeds: [S] value of each seed.
        limits: ends of what the metric can be.
    """
    sides = [reach(with_training(Spread(((end - mean) / Z95) ** 2, float("inf")), seeds)[:1]) for end in interval]
    return max(mean - sides[0], limits[0]), min(mean + sides[1], limits[1])


def _by_seed(results: pd.DataFrame, sites: Sequence[str]) -> dict[tuple[str, str, str], Floats]:
    """(method, metric, over) -> mean of each seed, [S]."""
    means = _values(results, sites).groupby(["method", "metric", "over", "seed"], sort=False).mean()
    keys = ["method", "metric", "over"]
    return {
        (str(method), str(metric), str(over)): np.asarray(of, dtype=np.float64)
        for (method, metric, over), of in means.groupby(keys, sort=False)
    }


def _values(results: pd.DataFrame, sites: Sequence[str]) -> pd.Series[float]:
    """The value of each method, metric, over, seed and fold."""
    parts = {"all": results[results["tested_on"] == "all"], "sites": results[results["tested_on"].isin(sites)]}
    rows = pd.concat([frame.assign(over=over) for over, frame in parts.items()], ignore_index=True)
    return rows.groupby(["method", "metric", "over", "seed", "fold"], sort=False)["value"].mean()


def _means(results: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    """method, metric, over, mean, deviation, n."""
    values = _values(results, sites)
    table = values.groupby(["method", "metric", "over"], sort=False).agg(mean="mean", deviation="std", n="count")
    order = {name: {key: place for place, key in enumerate(results[name].unique())} for name in ("method", "metric")}
    order["over"] = {"all": 0, "sites": 1}
    return table.reset_index().sort_values(
        ["method", "metric", "over"], key=lambda column: column.map(order[str(column.name)]), ignore_index=True
    )


def _interval(
    together: Together, results: pd.DataFrame, evidence: Mapping[str, Mapping[str, Evidence]], sites: Sequence[str],
    key: tuple[str, str, str], mean: float,
) -> Interval:  # fmt: skip
    """Low, high, and how they were found, for other patients."""
    method, metric, over = key
    if over == "all":
        return together.interval(method, metric)
    mine = results[(results["method"] == method) & (results["metric"] == metric) & results["tested_on"].isin(sites)]
    return mean_interval(mean, site_shares(mine), evidence[metric], method, metric)


def _compare(
    together: Together, values: Mapping[str, pd.DataFrame], evidence: Mapping[str, Mapping[str, Evidence]],
    methods: tuple[str, str | None], metric: str, over: str,
) -> Comparison:  # fmt: skip
    """A method with another; nothing with itself, or where the other was not run."""
    a, b = methods
    if b is None or a == b or metric not in values or b not in values[metric]:
        return NOTHING
    if over == "sites":
        found = within_sites(evidence[metric], (a, b)).comparison
    else:
        found = together.compare(values[metric], (a, b), metric)
    return found.within(value_range(metric))
