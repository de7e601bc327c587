"""What one site says of the methods that it tested: their metrics, and how sure the differences are; of no patient.

All that is compared between methods within sites rests on this and on nothing else, whether a study's predictions lie
in one place or each site keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.statistics.intervals import Floats, patient_weights, placements
from polyclinic.statistics.samples import BLOCK, Cases, Group, cell_means, mean_of_known

Booleans = NDArray[np.bool_]
#: Seed and fold of a training.
Cell = tuple[int, int]


@dataclass(frozen=True)
class Evidence:
    """What a site says of M methods by one metric, after trainings with S seeds.

    Attributes:
        methods: labels, [M].
        seeds: [S].
        values: of each method, the mean over seeds and folds, [M].
        differences: of each seed, a method minus another on the folds in which both have a value, [S, M, M].
        variances: with other patients and the same models: of the mean of ``differences`` over the seeds, and on the
            diagonal of ``values``, [M, M].
        patients: among how many patients a value is found, [M]; see `Cases.counted`.
    """

    methods: Sequence[str]
    seeds: Sequence[int]
    values: Floats
    differences: Floats
    variances: Floats
    patients: Floats


def site_evidence(
    predictions: pd.DataFrame, task: str, classes: int, metrics: Sequence[str], *, seed: int = 0, bootstrap: int = 1000
) -> dict[str, Evidence]:
    """The evidence of one site by each metric that can be computed from its predictions.

    The variances of areas under the curve are DeLong's, where each patient has one case and a method one model; of all
    other metrics they are those of a bootstrap over patients, with the same draws for all methods.

    Args:
        predictions: of one site and one kind of run: method, seed, fold, trained_on, site, subject, case, and the
            columns of the task.
        task: its name.
        classes: how many.
        metrics: names of those that are asked for.
        seed: of the draws.
        bootstrap: number of draws B.
    """
    cases = Cases(predictions, task, classes, metrics)
    methods = list(cases.rows)
    cells = [(int(s), int(f)) for s, f in sorted(set(zip(predictions["seed"], predictions["fold"], strict=True)))]
    groups = {method: cases.groups(rows) for method, rows in cases.rows.items()}
    draws = _drawn(cases, groups, cells, seed, bootstrap)
    areas = _Areas(cases, groups, cells)
    seeds = sorted({seed for seed, _ in cells})
    return {
        metric: Evidence(
            methods, seeds, *_of_metric(draws[:, place], cells, areas if metric == "auc" else None),
            np.array([cases.counted(metric, method, groups[method]) for method in methods], dtype=np.float64),
        )
        for place, metric in enumerate(cases.names)
    }  # fmt: skip


def _of_metric(draws: Floats, cells: Sequence[Cell], areas: _Areas | None) -> tuple[Floats, Floats, Floats]:
    """Values [M], differences [S, M, M] and variances [M, M] from a value as it is and in each draw, [M, C, 1 + B]."""
    seeds, count = np.array([seed for seed, _ in cells]), len(draws)
    each = np.unique(seeds)
    values, variances = np.full(count, np.nan), np.full((count, count), np.nan)
    differences = np.full((len(each), count, count), np.nan)
    found = np.isfinite(draws[:, :, 0])
    common = found[:, None] & found[None]
    # Nearly always all methods have values in the same cells, so that this is one turn.
    for used in np.unique(common.reshape(-1, len(cells)), axis=0):
        if not used.any():
            continue
        pairs, mine = (common == used).all(axis=-1), draws[:, used]
        exact = None if areas is None else areas.covariance(used)
        found_by = _variances(_covariance(mean_of_known(np.moveaxis(mine, 1, 0))))
        if exact is not None:
            found_by = np.where(np.isfinite(by_delong := _variances(exact)), by_delong, found_by)
        variances[pairs], alone = found_by[pairs], pairs.diagonal()
        values[alone] = mine[alone, :, 0].mean(axis=1)
        for number, seed in enumerate(each):
            if (seeds[used] == seed).any():
                means = mine[:, seeds[used] == seed, 0].mean(axis=1)
                differences[number, pairs] = (means[:, None] - means)[pairs]
    return values, differences.round(12), variances.clip(min=0.0)  # rounding must not decide between ties


def evidence_of_values(results: pd.DataFrame) -> Evidence:
    """What the values at one site say by themselves, where there are no predictions: of chance they say nothing.

    Args:
        results: method, seed, fold and value, of one site, metric and kind of run.
    """
    methods = list(dict.fromkeys(results["method"]))
    table = results.groupby(["method", "seed", "fold"], sort=False)["value"].mean().unstack(["seed", "fold"])
    seed_of, fold_of = (table.columns.get_level_values(name).astype(int).tolist() for name in ("seed", "fold"))
    cells = list(zip(seed_of, fold_of, strict=True))
    draws = table.loc[methods].to_numpy(np.float64)[..., None]
    seeds = sorted({seed for seed, _ in cells})
    return Evidence(methods, seeds, *_of_metric(draws, cells, None), np.full(len(methods), np.nan))


def _drawn(
    cases: Cases, groups: Mapping[str, Sequence[Group]], cells: Sequence[Cell], seed: int, bootstrap: int
) -> Floats:
    """All metrics of each method in each cell, as they are and in each draw, [M, N, C, 1 + B]."""
    largest = max((len(group.rows) for of_method in groups.values() for group in of_method), default=1)
    plain = np.ones((len(cases.patients), 1))
    found = []
    for weights in chain([plain], patient_weights(cases.patients, bootstrap, seed, block=max(1, BLOCK // largest))):
        nothing = np.full((len(cases.names), weights.shape[1]), np.nan)
        parts = [cell_means(cases, of_method, weights) for of_method in groups.values()]
        found.append(np.array([[of_method.get(cell, nothing) for cell in cells] for of_method in parts]))
    return np.moveaxis(np.concatenate(found, axis=-1), 2, 1)


def _variances(covariance: Floats) -> Floats:
    """Of differences between each two methods, and on the diagonal of each method, [M, M]."""
    own = covariance.diagonal()
    found: Floats = own[:, None] + own - 2 * covariance
    np.fill_diagonal(found, own)
    return found


def _covariance(draws: Floats) -> Floats:
    """Of each two methods [M, M], from a value as it is and in each draw [M, 1 + B]; NaN with fewer than two draws.

    A method without a value in a draw is compared with the others in the draws that it has.
    """
    known = np.isfinite(draws[:, 1:])
    deviations = np.where(known, draws[:, 1:] - mean_of_known(draws[:, 1:].T)[:, None], 0.0)
    counts = known.astype(np.float64) @ known.T
    covariance: Floats = np.divide(
        deviations @ deviations.T, counts - 1, out=np.full(counts.shape, np.nan), where=counts > 1
    )
    return covariance


class _Areas:
    """Areas under the curve of methods for which DeLong's variance holds, as the placements of each patient.

    Seeds of a fold have the same patients, so the mean of their areas has the means of their placements. Folds have
    different ones, whose variances add; how far placements lie apart is seen in all folds together, since a fold of a
    small site may have one patient of a class.
    """

    def __init__(self, cases: Cases, groups: Mapping[str, Sequence[Group]], cells: Sequence[Cell]) -> None:
        self.cells = cells
        self.found = dict[Cell, list[tuple[Floats, Floats]]]()
        self.names = dict[Cell, list[str]]()
        self.members = np.array([method in cases.independent for method in groups])
        known = [method for method in groups if method in cases.independent]
        if "auc" not in cases.names or not known:
            return
        order = {method: {(g.seed, g.fold): g.rows for g in groups[method]} for method in known}
        for cell in cells:
            rows = [order[method].get(cell) for method in known]
            kept = [of[np.argsort(cases.identity[of])] for of in rows if of is not None]
            if len(kept) < len(known) or len({cases.identity[of].tobytes() for of in kept}) > 1:
                continue
            labels = cases.labels[kept[0]]
            if len(np.unique(labels)) == 2:
                self.found[cell] = [placements(labels, cases.scores[of]) for of in kept]
                self.names[cell] = cases.frame["case"].iloc[kept[0]].astype(str).tolist()

    def covariance(self, used: Booleans) -> Floats | None:
        """Of the means over some cells, [M, M], NaN for methods for which it does not hold; None if for all."""
        cells = [cell for cell, one in zip(self.cells, used, strict=True) if one]
        folds = {fold: [seed for seed, other in cells if other == fold] for _, fold in cells}
        if not self.found.keys() >= set(cells) or len({tuple(seeds) for seeds in folds.values()}) > 1:
            return None
        if any(self.names[seed, fold] != self.names[seeds[0], fold] for fold, seeds in folds.items() for seed in seeds):
            return None
        total = np.zeros(())
        for kind in (0, 1):  # the placements of positives, then those of negatives
            parts = [
                np.mean([[of_method[kind] for of_method in self.found[seed, fold]] for seed in seeds], axis=0)
                for fold, seeds in folds.items()
            ]  # [M, n] of each fold
            apart = np.concatenate([part - part.mean(axis=1, keepdims=True) for part in parts], axis=1)
            freedom = apart.shape[1] - len(parts)
            if freedom < 1:
                return None
            total = total + apart @ apart.T / freedom * sum(1 / part.shape[1] for part in parts) / len(parts) ** 2
        covariance = np.full((len(self.members),) * 2, np.nan)
        covariance[np.ix_(self.members, self.members)] = total
        return covariance
