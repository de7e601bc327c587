"""From the long tables of a study to its summary: means, intervals, and paired tests against the baselines.

Two questions are asked of every metric. ``over`` = ``all``: how good is the method on all cases together? ``over`` =
``sites``: how good is it at a site, on average over the sites with enough cases of each class to be scored?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from polyclinic.study.intervals import (
    bootstrap_interval,
    bootstrap_p,
    delong,
    delong_paired,
    holm,
    logit_interval,
    normal_p,
    patient_weights,
)
from polyclinic.tasks import build_task
from polyclinic.tasks.metrics import value_range

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

BASELINES = ("single", "fedavg")
#: The method whose every case is predicted by the models of all other sites.
CROSS = "cross"
BOOTSTRAP = "bootstrap over patients within site"
DELONG = "DeLong"
#: With fewer sites a signed-rank test can't reach p = 0.05.
LEAST_SITES = 6
#: Entries of a [cases of a group, resamples] array worked on at once: bounds memory and keeps the work in the cache.
BLOCK = 500_000

COLUMNS = [
    *("method", "metric", "over", "mean", "deviation", "low", "high", "interval"),
    *(f"{name}_{baseline}{end}" for baseline in BASELINES for name, end in (("vs", ""), ("p", ""), ("p", "_adjusted"))),
    "n",
]


def summarise(
    results: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    scored: Mapping[str, bool],
    seed: int = 0,
    bootstrap: int = 1000,
) -> pd.DataFrame:
    """The summary table: a row for each method, metric and ``over``.

    Columns:

    - ``mean``, ``deviation``, ``n``: over the values of each seed and fold. A value is, for ``all``, the row tested
      on all cases (``cross``: mean over the models); for ``sites``, the mean over the scored sites (``cross``: over
      all pairs of a model and another site). NaN are left out.
    - ``low``, ``high``: 95 % interval, by the method named in ``interval``, for other patients of the same sites. The
      models are taken as they are: chance in training shows in ``deviation``. ``DeLong`` serves the area under the
      curve of all cases in binary tasks where each patient has one case: the variance of a mean of independent folds,
      averaged over seeds, on the logit scale. Else the bootstrap: every patient's cases are drawn together, within
      the site, and everything that ``mean`` averages is computed anew; see ``bootstrap_interval``.
    - ``vs_single``, ``vs_fedavg``: mean of this method minus mean of that baseline.
    - ``p_single``, ``p_fedavg``: two-sided paired test. ``all``: on the cases that both scored, DeLong's test where
      both intervals are DeLong's, else the bootstrap of the difference (never below 1 / (``bootstrap`` + 1)).
      ``sites``: Wilcoxon's signed-rank test of the sites' means, NaN with fewer than 6 sites.
    - ``p_single_adjusted``, ``p_fedavg_adjusted``: corrected by Holm's method over the methods compared with that
      baseline, for each metric and ``over``.

    A comparison that makes no sense (a baseline with itself, a baseline that was not run) is NaN.

    Args:
        results: method, seed, fold, trained_on, tested_on, metric, value. For ``cross`` trained_on names the model.
        predictions: method, seed, fold, trained_on, site, subject, case, and the columns of the task, see
            `polyclinic.tasks.Task.columns`. May be empty: then there are no intervals and no tests on cases.
        task: name of the task.
        classes: names of the classes.
        scored: site -> whether it has enough cases of each class.
        seed: of the bootstrap.
        bootstrap: number of resamples.

    Returns:
        Rows in the order of ``results``, ``all`` before ``sites``.
    """
    results = results.assign(tested_on=results["tested_on"].astype(str))
    sites = [str(site) for site, enough in scored.items() if enough]
    table = _means(results, sites)
    cases = _Cases(predictions, task, len(classes), [str(metric) for metric in table["metric"].unique()])
    draws = _draw(cases, _samples(cases, sites), seed, bootstrap)
    keys = list(table[["method", "metric", "over"]].itertuples(index=False, name=None))

    intervals = [_interval(cases, draws, *key) for key in keys]
    table["low"], table["high"] = [low for low, _, _ in intervals], [high for _, high, _ in intervals]
    table["interval"] = pd.Series([name for _, _, name in intervals], dtype=str)
    site_means = results[results["tested_on"].isin(sites)].pivot_table(
        index=["method", "metric"], columns="tested_on", values="value"
    )
    for baseline in BASELINES:
        means = {key[1:]: mean for key, mean in zip(keys, table["mean"], strict=True) if key[0] == baseline}
        table[f"vs_{baseline}"] = [
            mean - means.get(key[1:], np.nan) if key[0] != baseline else np.nan
            for key, mean in zip(keys, table["mean"], strict=True)
        ]
        tests = [_test(cases, draws, site_means, baseline, *key) for key in keys]
        table[f"p_{baseline}"] = pd.Series(tests, dtype=float)
        groups = table.groupby(["metric", "over"])[f"p_{baseline}"]
        table[f"p_{baseline}_adjusted"] = groups.transform(lambda p: holm(p.to_numpy()))
    return table[COLUMNS]


def _means(results: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    """method, metric, over, mean, deviation, n."""
    parts = {"all": results[results["tested_on"] == "all"], "sites": results[results["tested_on"].isin(sites)]}
    rows = pd.concat([frame.assign(over=over) for over, frame in parts.items()], ignore_index=True)
    values = rows.groupby(["method", "metric", "over", "seed", "fold"], sort=False)["value"].mean()
    table = values.groupby(["method", "metric", "over"], sort=False).agg(mean="mean", deviation="std", n="count")
    order = {name: {key: place for place, key in enumerate(results[name].unique())} for name in ("method", "metric")}
    order["over"] = {"all": 0, "sites": 1}
    return table.reset_index().sort_values(
        ["method", "metric", "over"], key=lambda column: column.map(order[str(column.name)]), ignore_index=True
    )


class _Group(NamedTuple):
    """Cases that are scored together, of one seed and fold."""

    seed: int
    fold: int
    rows: Rows


class _Cases:
    """The predictions as arrays.

    Attributes:
        names: the metrics that can be computed from them.
        rows: method -> its rows.
        patients: column site, [P] patients, those of a site together.
        patient: row of ``patients`` for each prediction, [N].
        identity: a number for each seed, fold and case, [N].
        measure: see `polyclinic.tasks.Task.measure`.
        independent: methods that score one case of each patient, once, so that DeLong's variance holds.
    """

    def __init__(self, predictions: pd.DataFrame, task: str, classes: int, metrics: Sequence[str]) -> None:
        self.names: list[str] = []
        self.rows: dict[str, Rows] = {}
        self.independent: set[str] = set()
        if predictions.empty:
            return
        self.frame = predictions.reset_index(drop=True).assign(site=predictions["site"].astype(str).to_numpy())
        self.rows = {method: np.flatnonzero(self.frame["method"] == method) for method in self.frame["method"].unique()}
        self.patient = self.frame.groupby(["site", "subject"], dropna=False).ngroup().to_numpy()
        self.patients = self.frame[["site"]].groupby(self.patient).first()
        self.identity = self.frame.groupby(["seed", "fold", "site", "case"], dropna=False).ngroup().to_numpy()
        kind = build_task(task, classes)
        self.names = kind.known(metrics, self.frame)
        self.measure = kind.measure(self.frame, self.names)
        ranked = kind.ranked(self.frame)
        if ranked is not None:
            self.labels, self.scores = ranked
            repeated = self.frame.assign(patient=self.patient).duplicated(["method", "seed", "fold", "patient"])
            self.independent = set(self.rows) - {CROSS} - set(self.frame["method"][repeated])

    def groups(self, method: str, rows: Rows, sites: Sequence[str] | None = None) -> list[_Group]:
        """The cases of each seed and fold, for ``cross`` of each model; with ``sites`` of each of these sites."""
        keys = ["seed", "fold", *(["trained_on"] if method == CROSS else []), *(["site"] if sites is not None else [])]
        frame = self.frame.iloc[rows]
        if sites is not None:
            rows = rows[frame["site"].isin(sites).to_numpy()]
            frame = self.frame.iloc[rows]
        return [_Group(key[0], key[1], rows[places]) for key, places in _places(frame, keys)]

    def shared(self, a: str, b: str) -> tuple[Rows, Rows]:
        """The rows of two methods on the cases that both scored, in the order of the cases."""
        common = np.intersect1d(self.identity[self.rows[a]], self.identity[self.rows[b]])
        kept = [self.rows[method][np.isin(self.identity[self.rows[method]], common)] for method in (a, b)]
        first, second = (rows[np.argsort(self.identity[rows], kind="stable")] for rows in kept)
        return first, second


def _places(frame: pd.DataFrame, columns: list[str]) -> Iterator[tuple[tuple[Any, ...], Rows]]:
    """Each combination of values in ``columns`` (two or more), with the places of its rows."""
    for key, places in frame.groupby(columns).indices.items():
        yield cast("tuple[Any, ...]", key), np.asarray(places)


def _divide(totals: Floats, counts: Floats) -> Floats:
    """Totals over counts, NaN where nothing was counted."""
    means: Floats = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return means


def _samples(cases: _Cases, sites: Sequence[str]) -> dict[tuple[str, str], list[_Group]]:
    """What to bootstrap: (method, over) -> groups, and (method, other) where these two did not score the same cases."""
    samples = {}
    for method, rows in cases.rows.items():
        samples[method, "all"] = cases.groups(method, rows)
        samples[method, "sites"] = cases.groups(method, rows, sites)
        for baseline in BASELINES:
            if baseline in cases.rows and baseline != method:
                pair = cases.shared(method, baseline)
                if [len(part) for part in pair] != [len(rows), len(cases.rows[baseline])]:
                    samples[method, baseline] = cases.groups(method, pair[0])
                    samples[baseline, method] = cases.groups(baseline, pair[1])
    return samples


def _draw(
    cases: _Cases, samples: Mapping[tuple[str, str], list[_Group]], seed: int, bootstrap: int
) -> dict[tuple[str, str], Floats]:
    """Values of all metrics [M, 1 + B] for each of ``samples``: of the cases as they are, then of each resample."""
    if not cases.names:
        return {}
    largest = max(len(group.rows) for groups in samples.values() for group in groups)
    plain = np.ones((len(cases.patients), 1))
    resamples = patient_weights(cases.patients, bootstrap, seed, block=max(1, BLOCK // largest))
    pieces: dict[tuple[str, str], list[Floats]] = {key: [] for key in samples}
    for weights in chain([plain], resamples):
        for key, groups in samples.items():
            pieces[key].append(_statistic(cases, groups, weights))
    return {key: np.concatenate(values, axis=1) for key, values in pieces.items()}


def _statistic(cases: _Cases, groups: Sequence[_Group], weights: Floats) -> Floats:
    """Mean over the groups of a seed and fold, then over these, under patient weights [P, B]: [M, B]."""
    shape = (len(cases.names), weights.shape[1])
    if not groups:
        return np.full(shape, np.nan)
    parts = {(group.seed, group.fold): (np.zeros(shape), np.zeros(shape)) for group in groups}
    for group in groups:
        values = cases.measure(group.rows, weights[cases.patient[group.rows]])
        known = ~np.isnan(values)
        totals, counts = parts[group.seed, group.fold]
        totals += np.where(known, values, 0.0)
        counts += known
    means = np.stack([_divide(*part) for part in parts.values()])
    known = ~np.isnan(means)
    return _divide(np.where(known, means, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))


def _interval(
    cases: _Cases, draws: Mapping[tuple[str, str], Floats], method: str, metric: str, over: str
) -> tuple[float, float, str]:
    """Low, high, and how they were found."""
    if (method, over) not in draws or metric not in cases.names:
        return float("nan"), float("nan"), ""
    if metric == "auc" and over == "all" and method in cases.independent:
        groups = cases.groups(method, cases.rows[method])
        parts = [(group.seed, *delong(cases.labels[group.rows], cases.scores[group.rows])) for group in groups]
        mean, variance = _combine(parts)
        if not np.isnan(variance):
            return (*logit_interval(mean, variance), DELONG)
    values = draws[method, over][cases.names.index(metric)]
    lower, upper = value_range(metric)
    low, high = bootstrap_interval(values[0], values[1:], upper, lower)
    return low, high, "" if np.isnan(low) else BOOTSTRAP


def _combine(parts: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """Mean of (seed, estimate, variance) of each fold, and its variance.

    Folds have different patients, so their variances add; seeds have the same, so theirs are averaged. Folds without
    an estimate are left out.
    """
    frame = pd.DataFrame(parts, columns=["seed", "estimate", "variance"]).dropna(subset="estimate")
    by_seed = frame.groupby("seed")["variance"]
    variances = by_seed.agg(lambda variance: variance.sum(skipna=False)) / by_seed.size() ** 2
    return float(frame["estimate"].mean()), float(variances.mean(skipna=False))


def _test(
    cases: _Cases,
    draws: Mapping[tuple[str, str], Floats],
    site_means: pd.DataFrame,
    baseline: str,
    method: str,
    metric: str,
    over: str,
) -> float:
    """p of the difference between a method and a baseline."""
    if method == baseline:
        return float("nan")
    if over == "sites":
        return _test_sites(site_means, (method, metric), (baseline, metric))
    if not {(method, over), (baseline, over)} <= draws.keys() or metric not in cases.names:
        return float("nan")
    if metric == "auc" and {method, baseline} <= cases.independent:
        p = _test_delong(cases, method, baseline)
        if not np.isnan(p):
            return p
    row = cases.names.index(metric)
    of_method, of_baseline = (
        draws.get(pair, draws[pair[0], over])[row] for pair in ((method, baseline), (baseline, method))
    )
    differences = of_method - of_baseline
    return bootstrap_p(differences[0], differences[1:])


def _test_delong(cases: _Cases, method: str, baseline: str) -> float:
    """DeLong's paired test of each fold, combined as in ``_combine``."""
    rows, others = cases.shared(method, baseline)
    parts = []
    for (seed, _), places in _places(cases.frame.iloc[rows], ["seed", "fold"]):
        a, b = cases.scores[rows[places]], cases.scores[others[places]]
        difference, variance, _ = delong_paired(cases.labels[rows[places]], a, b)
        parts.append((seed, difference, variance))
    return normal_p(*_combine(parts))


def _test_sites(site_means: pd.DataFrame, method: tuple[str, str], baseline: tuple[str, str]) -> float:
    """Wilcoxon's signed-rank test over sites."""
    means = site_means.reindex([method, baseline]).to_numpy(np.float64)
    differences = means[0] - means[1]
    differences = differences[~np.isnan(differences)]
    if len(differences) < LEAST_SITES:
        return float("nan")
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0
