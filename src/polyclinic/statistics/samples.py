"""Predictions as arrays, and their metrics under weights of the patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.statistics.intervals import Area, Floats, delong, delong_paired, variance_by_p
from polyclinic.tasks import build_task

Rows = NDArray[np.intp]
#: Entries of a [cases of a group, resamples] array worked on at once: bounds memory and keeps the work in the cache.
BLOCK = 500_000


class Group(NamedTuple):
    """Cases that are scored together, of one seed and fold."""

    seed: int
    fold: int
    rows: Rows


class Cases:
    """The predictions of one kind of run as arrays.

    Attributes:
        names: the metrics that can be computed from them.
        rows: method -> its rows.
        seeds, folds: of each prediction, [N].
        trained: a number for each seed, fold and model, [N].
        site, sites: row of ``sites`` for each prediction, [N], and their names.
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
        self.frame["model"] = models(self.frame)
        self.rows = {method: np.flatnonzero(self.frame["method"] == method) for method in self.frame["method"].unique()}
        self.seeds, self.folds = (self.frame[name].to_numpy() for name in ("seed", "fold"))
        self.trained = self.frame.groupby(["seed", "fold", "model"]).ngroup().to_numpy()
        self.site, self.sites = pd.factorize(self.frame["site"], sort=True)
        self.patient = self.frame.groupby(["site", "subject"], dropna=False).ngroup().to_numpy()
        self.patients = self.frame[["site"]].groupby(self.patient).first()
        self.identity = self.frame.groupby(["seed", "fold", "site", "case"], dropna=False).ngroup().to_numpy()
        kind = self.kind = build_task(task, classes)
        self.names = kind.known(metrics, self.frame)
        self.measure = kind.measure(self.frame, self.names)
        self.classified = kind.target == "labels"
        self.labels = self.frame["label"].to_numpy() if self.classified else np.empty(0)
        ranked = kind.ranked(self.frame)
        self.binary = ranked is not None
        if ranked is not None:
            self.labels, self.scores = ranked
            repeated = self.frame.assign(patient=self.patient).duplicated(["method", "seed", "fold", "patient"])
            several = self.frame.groupby(["method", "seed", "fold"])["model"].transform("nunique") > 1
            self.independent = set(self.rows) - set(self.frame["method"][repeated | several])

    def groups(self, rows: Rows) -> list[Group]:
        """The cases of each seed, fold and model."""
        keys = self.trained[rows]
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(np.diff(keys[order])) + 1
        parts = np.split(rows[order], ends) if len(rows) else []
        return [Group(int(self.seeds[one[0]]), int(self.folds[one[0]]), one) for one in parts]

    def shared(self, a: str, b: str) -> tuple[Rows, Rows]:
        """The rows of two methods on the cases that both scored, in the order of the cases."""
        common = np.intersect1d(self.identity[self.rows[a]], self.identity[self.rows[b]])
        kept = [self.rows[method][np.isin(self.identity[self.rows[method]], common)] for method in (a, b)]
        first, second = (rows[np.argsort(self.identity[rows], kind="stable")] for rows in kept)
        return first, second

    def areas(self, method: str) -> list[Area]:
        """The area under the curve of each seed and fold of a method that is ``independent``."""
        found = []
        for group in self.groups(self.rows[method]):
            labels = self.labels[group.rows]
            positives = int(np.sum(labels == 1))
            value, variance = delong(labels, self.scores[group.rows])
            found.append(Area(group.seed, value, variance, positives, len(labels) - positives))
        return found

    def paired_areas(self, a: str, b: str) -> list[tuple[int, float, float]]:
        """DeLong's difference between two methods and its variance, as ``combine`` takes them.

        Seeds that have the same cases in a fold are one part: the mean of their models' areas has a variance of its
        own, which is smaller than theirs.
        """
        rows, others = self.shared(a, b)
        frame = self.frame.iloc[rows].reset_index(drop=True)
        folds: dict[int, dict[int, Rows]] = {}
        for (fold, seed), places in _places(frame, ["fold", "seed"]):
            folds.setdefault(fold, {})[seed] = places
        cases = {name: frame[name].astype(str).to_numpy() for name in ("site", "case")}
        alike = (
            all(
                np.array_equal(names[places], names[one])
                for seeds in folds.values()
                for places, *rest in [list(seeds.values())]
                for one in rest
                for names in cases.values()
            )
            and len({tuple(seeds) for seeds in folds.values()}) == 1
        )
        parts = []
        for seeds in folds.values():
            stacks = {0: np.stack(list(seeds.values()))} if alike else {seed: one[None] for seed, one in seeds.items()}
            for seed, stack in stacks.items():
                labels = self.labels[rows[stack[0]]]
                difference, variance, p = delong_paired(labels, self.scores[rows[stack]], self.scores[others[stack]])
                agree = difference != 0 and variance < 1e-12 * difference**2
                parts.append((seed, difference, variance_by_p(difference, p) if agree else variance))
        return parts

    def counted(self, metric: str, method: str, groups: Sequence[Group]) -> float:
        """Among how many patients a share is found, where the mean over groups, then over seeds and folds is taken.

        Of sensitivity these are the patients of class 1, of specificity those of class 0; metrics that need both have
        as many as the smaller class. The same patients in several groups count once.
        """
        counts: dict[int, dict[int, list[int]]] = {}
        for group in groups:
            if count := self._patients(metric, group.rows):
                counts.setdefault(group.seed, {}).setdefault(group.fold, []).append(count)
        if not counts:
            return float("nan")
        found = []
        for folds in counts.values():
            # Variance of the mean in units of that of one patient.
            each = [float(np.mean(1 / np.asarray(sizes)) / len(sizes)) for sizes in folds.values()]
            found.append(len(each) / float(np.mean(each)))
        return min(float(np.mean(found)), float(self._patients(metric, self.rows[method])))

    def _patients(self, metric: str, rows: Rows) -> int:
        if metric in self.frame:  # the cases have values of their own
            rows = rows[self.frame[metric].iloc[rows].notna().to_numpy()]
        bearers = self.kind.bearers(self.frame, metric)
        if bearers is not None:
            rows = rows[bearers[rows]]
        needed = {"sen": [1], "f1": [1], "spe": [0], "auc": [0, 1], "ap": [0, 1], "bac": [0, 1]}.get(metric)
        if needed is None or not self.classified:
            return len(np.unique(self.patient[rows]))
        classes = needed if self.binary else np.unique(self.labels)
        return min(len(np.unique(self.patient[rows][self.labels[rows] == one])) for one in classes)


def models(frame: pd.DataFrame) -> pd.Series[str]:
    """Which predictions are scored together: those of one model; nothing where each case has its own site's model."""
    trained_on = frame["trained_on"].astype(str)
    at_home = trained_on == frame["site"].astype(str)
    alone = at_home.groupby([frame["method"], frame["seed"], frame["fold"]]).transform("all")
    return trained_on.mask(alone, "")


def _places(frame: pd.DataFrame, columns: list[str]) -> Iterator[tuple[tuple[Any, ...], Rows]]:
    """Each combination of values in ``columns``, with the places of its rows."""
    for key, places in frame.groupby(columns).indices.items():
        yield key if isinstance(key, tuple) else (key,), np.asarray(places)


def _divide(totals: Floats, counts: Floats) -> Floats:
    """Totals over counts, NaN where nothing was counted."""
    means: Floats = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return means


def mean_of_known(values: Floats) -> Floats:
    """Mean over the first axis, leaving out NaN."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))


#: (seed, fold) -> mean of all metrics over its groups, [M, B].
Parts = dict[tuple[int, int], Floats]


def cell_means(cases: Cases, groups: Sequence[Group], weights: Floats) -> Parts:
    """Mean over the groups of each seed and fold, under patient weights [P, B]."""
    shape = (len(cases.names), weights.shape[1])
    parts = {(group.seed, group.fold): (np.zeros(shape), np.zeros(shape)) for group in groups}
    for group in groups:
        values = cases.measure(group.rows, weights[cases.patient[group.rows]])
        known = ~np.isnan(values)
        totals, counts = parts[group.seed, group.fold]
        totals += np.where(known, values, 0.0)
        counts += known
    return {key: _divide(*part) for key, part in parts.items()}
