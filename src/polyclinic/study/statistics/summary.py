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

from polyclinic.study.baselines import BASELINES
from polyclinic.study.columns import UNSEEN_COLUMNS
from polyclinic.study.kinds import PLAIN, RUN, RUNS, UNSEEN
from polyclinic.study.statistics.comparisons import (
    NOTHING,
    Comparison,
    Spread,
    by_metric,
    over_all,
    reach,
    with_training,
)
from polyclinic.study.statistics.evidence import Evidence, evidence_of_values, site_evidence
from polyclinic.study.statistics.intervals import (
    Z95,
    Floats,
    area_interval,
    bootstrap_interval,
    holm,
    share_interval,
    touches_end,
)
from polyclinic.study.statistics.samples import Cases, Draws, draw
from polyclinic.study.statistics.within import within_sites
from polyclinic.tasks.metrics import METRICS, split_metric, value_range

BOOTSTRAP = "bootstrap over patients within site"
SCORE = "score test with DeLong's variance"
EXACT = "exact interval of a share with the bootstrap's variance"

COLUMNS = [
    *("method", RUN, "metric", "over", "mean", "deviation", "low", "high", "interval"),
    *(f"{name}_{baseline}{end}" for baseline in BASELINES for name, end in (("vs", ""), ("p", ""), ("p", "_adjusted"))),
    "n",
]
#: Kind of run -> metric -> site -> what it says of the methods.
AllEvidence = Mapping[str, Mapping[str, Mapping[str, Evidence]]]


def summarise(
    results: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    scored: Mapping[str, bool],
    baselines: Mapping[str, str] | None = None,
    evidence: AllEvidence | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
) -> pd.DataFrame:
    """The summary table: a row for each method, kind of run, metric and ``over``.

    Columns:

    - ``mean``, ``deviation``, ``n``: over the values of each seed and fold. A value is, for ``all``, the row tested
      on all cases (mean over the models, where several models predict other sites' cases); for ``sites``, the mean over
      the scored sites (over all pairs of a model and another site). NaN are left out.
    - ``low``, ``high``: 95 % interval, by the method named in ``interval``, for other patients of the same sites and,
      with two seeds or more, other trainings; see ``widened``. `SCORE` serves the area under the curve
      of all cases in binary tasks where each patient has one case; see ``area_interval``. Else the bootstrap: every
      patient's cases are drawn together, within the site, and everything that ``mean`` averages is computed anew; see
      ``bootstrap_interval``. Where the draws of a share reach an end of its range, it is the exact interval for as many
      cases as have the variance of the draws (at most twice as many as there are patients), or, where all agree, for as
      many patients as there are; see ``share_interval``.
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
        predictions: method, run, seed, fold, trained_on, site, subject, case, and the columns of the task, see
            `polyclinic.tasks.Task.columns`. May be empty: then there are no intervals and no tests on cases.
        task: name of the task.
        classes: names of the classes.
        scored: site -> whether it has enough cases of each class.
        evidence: what ``all_evidence`` gives; by default it is called.
        baselines: name of each of `BASELINES` -> label of the method that is it, as
            `polyclinic.study.declaration.Declaration.baselines` finds it; by default the names are the labels.
        seed: of the bootstrap.
        bootstrap: number of resamples.

    Returns:
        Rows in the order of ``results``, one kind of run after another, ``all`` before ``sites``.
    """
    compared = dict(zip(BASELINES, BASELINES, strict=True)) if baselines is None else baselines
    sites = [str(site) for site, enough in scored.items() if enough]
    results = results.assign(tested_on=results["tested_on"].astype(str))
    parts = []
    if evidence is None:
        evidence = all_evidence(
            results, predictions, task=task, classes=classes, scored=scored, seed=seed, bootstrap=bootstrap
        )
    for run in [run for run in RUNS if (results[RUN] == run).any()]:
        mine = results[results[RUN] == run]
        table = _means(mine, sites)
        cases = Cases(_of(predictions, run), task, len(classes), [str(metric) for metric in table["metric"].unique()])
        draws = draw(cases, sites, list(compared.values()), seed, bootstrap)
        keys = list(table[["method", "metric", "over"]].itertuples(index=False, name=None))
        values = by_metric(mine)
        intervals = [_interval(cases, draws, sites, *key) for key in keys]
        trained = _by_seed(mine, sites)
        ends = [
            widened(mean, (low, high), trained[key], value_range(key[1]))
            for key, mean, (low, high, _) in zip(keys, table["mean"], intervals, strict=True)
        ]
        table["low"], table["high"] = [low for low, _ in ends], [high for _, high in ends]
        table["interval"] = pd.Series([name for _, _, name in intervals], dtype=str)
        for name in BASELINES:
            found = [
                _compare(cases, draws, values, evidence[run], (key[0], compared.get(name)), *key[1:]) for key in keys
            ]
            table[f"vs_{name}"] = [one.difference for one in found]
            table[f"p_{name}"] = pd.Series([one.p for one in found], dtype=float)
            groups = table.groupby(["metric", "over"])[f"p_{name}"]
            table[f"p_{name}_adjusted"] = groups.transform(lambda p: holm(p.to_numpy()))
        parts.append(table.assign(**{RUN: run})[COLUMNS])
    return pd.concat(parts, ignore_index=True)


def cost_of_unseen(
    results: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    scored: Mapping[str, bool],
    seed: int = 0,
    bootstrap: int = 1000,
) -> pd.DataFrame:
    """What a site loses if it takes no part in training: each method with itself, on the same cases.

    Columns: ``seen`` and ``unseen``, the means of both kinds of run as in ``summarise``; ``difference``, seen minus
    unseen over the cases, or sites, that both scored; ``low`` and ``high``, its 95 % interval for other patients (or
    sites) and, with two seeds or more, other trainings; ``p`` as in ``summarise``, and ``p_adjusted`` by Holm's method
    over the methods, for each metric and ``over``.

    Args:
        results, predictions, task, classes, scored, seed, bootstrap: as in ``summarise``.

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
        metrics = [str(metric) for metric in mine["metric"].unique()]
        known = predictions if predictions.empty else predictions[predictions["method"] == method]
        known = known if known.empty else known[known[RUN].isin(both)]
        cases = Cases(known if known.empty else known.assign(method=known[RUN]), task, len(classes), metrics)
        draws = draw(cases, sites, [UNSEEN], seed, bootstrap)
        values = by_metric(mine)
        frame = cases.frame if cases.rows else predictions
        evidence = _evidence_of_sites(mine, frame, sites, task, len(classes), seed, bootstrap)
        for metric, over in table.index.to_list():
            found = _compare(cases, draws, values, evidence, both, metric, over)
            means = table.reindex(columns=list(both)).loc[(metric, over)].to_list()
            parts.append((method, metric, over, *means, *found, np.nan))
    costs = pd.DataFrame(parts, columns=UNSEEN_COLUMNS)
    if len(costs):
        costs["p_adjusted"] = costs.groupby(["metric", "over"])["p"].transform(lambda p: holm(p.to_numpy()))
    return costs


def all_evidence(
    results: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    scored: Mapping[str, bool],
    seed: int = 0,
    bootstrap: int = 1000,
) -> AllEvidence:
    """Kind of run -> metric -> scored site -> what the site says of the methods.

    Args:
        results, predictions, task, classes, scored, seed, bootstrap: as in ``summarise``.
    """
    sites = [str(site) for site, enough in scored.items() if enough]
    results = results.assign(tested_on=results["tested_on"].astype(str))
    return {
        run: _evidence_of_sites(
            results[results[RUN] == run], _of(predictions, run), sites, task, len(classes), seed, bootstrap
        )
        for run in RUNS
        if (results[RUN] == run).any()
    }


def _evidence_of_sites(
    results: pd.DataFrame, predictions: pd.DataFrame, sites: Sequence[str], task: str, classes: int, seed: int,
    bootstrap: int,
) -> dict[str, dict[str, Evidence]]:  # fmt: skip
    """Metric -> site -> what the site says of the methods, in one kind of run."""
    found: dict[str, dict[str, Evidence]] = {str(metric): {} for metric in results["metric"].unique()}
    places = {} if predictions.empty else predictions.groupby(predictions["site"].astype(str)).indices
    tested = results.groupby("tested_on").indices
    for site in sites:
        known: dict[str, Evidence] = {}
        if site in places:
            mine = predictions.iloc[places[site]]
            known = site_evidence(mine, task, classes, list(found), seed=seed, bootstrap=bootstrap)
        for metric, rows in results.iloc[tested.get(site, [])].groupby("metric", sort=False):
            found[str(metric)][site] = known.get(str(metric)) or evidence_of_values(rows)
    return found


def _of(predictions: pd.DataFrame, run: str) -> pd.DataFrame:
    return predictions if predictions.empty else predictions[predictions[RUN] == run]


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
    cases: Cases, draws: Draws, sites: Sequence[str], method: str, metric: str, over: str
) -> tuple[float, float, str]:
    """Low, high, and how they were found."""
    if (method, over) not in draws.values or metric not in cases.names:
        return float("nan"), float("nan"), ""
    if metric == "auc" and over == "all" and method in cases.independent:
        low, high = area_interval(cases.areas(method))
        return low, high, "" if np.isnan(low) else SCORE
    values = draws.values[method, over][cases.names.index(metric)]
    lower, upper = value_range(metric)
    low, high = bootstrap_interval(values[0], values[1:], upper, lower)
    if np.isnan(low):
        return low, high, ""
    if _is_share(metric) and touches_end(values[1:]):
        groups = cases.groups(cases.rows[method], None if over == "all" else sites)
        count, spread = cases.counted(metric, method, groups), float(np.nanvar(values[1:]))
        if 0 < values[0] < 1 and spread > 0:  # of one or two slips the bootstrap sees too little
            count = min(float(values[0] * (1 - values[0])) / spread, 2 * count)
        return (*share_interval(float(values[0]), count), EXACT)
    return low, high, BOOTSTRAP


def _is_share(metric: str) -> bool:
    """Whether a metric counts successes, so that 1 is what is hoped for and 0 and 1 are the ends."""
    name = split_metric(metric)[0]
    return value_range(metric) == (0.0, 1.0) and name in METRICS and METRICS[name].higher_is_better


def _compare(
    cases: Cases,
    draws: Draws,
    values: Mapping[str, pd.DataFrame],
    evidence: Mapping[str, Mapping[str, Evidence]],
    methods: tuple[str, str | None],
    metric: str,
    over: str,
) -> Comparison:
    """A method with another; nothing with itself, or where the other was not run."""
    a, b = methods
    if b is None or a == b or metric not in values or b not in values[metric]:
        return NOTHING
    if over == "sites":
        found = within_sites(evidence[metric], (a, b)).comparison
    else:
        found = over_all(cases, draws, values[metric], (a, b), metric)
    return found.within(value_range(metric))
