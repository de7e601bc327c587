"""Sums over classified cases from which their metrics follow: what can be added over sites instead of cases.

Counts of right and wrong decisions give accuracy, sensitivity and their like exactly, sums give the Brier score and the
calibration error. The area under the ROC curve and the average precision follow from how many cases of each class lie
between the thresholds of `polyclinic.tasks.metrics.threshold_grid`: scores between two neighbours count as equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyclinic.tasks.metrics import (
    Floats,
    Integers,
    area_and_precision,
    brier_scores,
    calibration_cases,
    calibration_gaps,
    decide,
    decision_metrics,
    mean_known,
    threshold_counts,
    threshold_grid,
)

Totals = dict[str, NDArray[Any]]


def classification_totals(labels: Integers, probabilities: Floats, thresholds: Floats) -> Totals:
    """Totals of some cases.

    Args:
        labels: [n] class indices.
        probabilities: [n, C]; cases without numbers, of a model that broke down, are only counted.
        thresholds: in binary tasks, the probability of class 1 from which each case is called positive, [n].

    Returns:
        ``confusion`` [C, C], cases by true (row) and called class; ``grid`` [K, 2, T + 1], ``threshold_counts`` of each
        class against the rest (of two only that of class 1); ``squares`` [1], sum of the Brier scores; ``gaps`` [15],
        see ``calibration_gaps``; ``undefined`` [1], cases without probabilities.
    """
    classes = probabilities.shape[1]
    known = np.isfinite(probabilities.sum(axis=1))
    labels, kept = labels[known].astype(np.int64), probabilities[known]
    called = decide(kept, thresholds[known])
    return {
        "confusion": np.bincount(labels * classes + called, minlength=classes**2).reshape(classes, classes),
        "grid": np.stack([threshold_counts(labels == one, kept[:, one]) for one in _curves(classes)]),
        "squares": np.array([brier_scores(labels, kept).sum()]),
        "gaps": calibration_gaps(labels, kept, np.ones((len(labels), 1)))[:, 0],
        "undefined": np.array([int(np.count_nonzero(~known))]),
    }


def _curves(classes: int) -> Sequence[int]:
    """Classes that have a curve against the rest."""
    return [1] if classes == 2 else range(classes)


def metrics_of_totals(totals: Totals, names: Sequence[str]) -> dict[str, float]:
    """The metrics of the cases whose totals these are; see `polyclinic.tasks.metrics.weighted_metrics`."""
    confusion = totals["confusion"].astype(np.float64)
    total = confusion.sum()
    if totals["undefined"][0] or not total:
        return dict.fromkeys(names, float("nan"))
    with np.errstate(divide="ignore", invalid="ignore"):
        table = confusion[..., None]
        hits = np.diagonal(confusion)[:, None]
        values = decision_metrics(np.array([total]), table.sum(axis=1), table.sum(axis=0), hits)
        curves = [_curve(counts) for counts in totals["grid"]]
        area, precision = (np.array(found)[:, None] for found in zip(*curves, strict=True))
        values |= {"auc": mean_known(area), "ap": mean_known(precision)}
        values |= {"brier": totals["squares"] / total, "ece": np.abs(totals["gaps"]).sum(keepdims=True) / total}
    return {name: float(values[name][0]) for name in names}


def _curve(counts: Integers) -> tuple[float, float]:
    """Area under the ROC curve and average precision from ``threshold_counts``."""
    bins = counts.shape[1]
    scores, positive = np.tile(np.arange(bins, dtype=np.float64), 2), np.repeat([False, True], bins)
    area, precision = area_and_precision(positive, scores, counts.reshape(-1, 1).astype(np.float64))
    return float(area[0]), float(precision[0])


def influence_on_metrics(
    labels: Integers, probabilities: Floats, thresholds: Floats, totals: Totals, names: Sequence[str]
) -> Floats:
    """Derivatives of metrics by the weight of a case, [M, n]; see `polyclinic.tasks.Task.influence`.

    Args:
        labels, probabilities, thresholds: of some cases, as ``classification_totals`` has them.
        totals: of all cases.
        names: the metrics.
    """
    total = float(totals["confusion"].sum())
    if totals["undefined"][0] or not total or not np.isfinite(probabilities).all():
        return np.full((len(names), len(labels)), np.nan)
    if not names:
        return np.empty((0, len(labels)))
    labels, called = labels.astype(np.int64), decide(probabilities, thresholds)
    found = {name: of[labels, called] for name, of in _by_confusion(totals, names).items()}
    value = metrics_of_totals(totals, ["brier", "ece"])
    found["brier"] = (brier_scores(labels, probabilities) - value["brier"]) / total
    bins, gaps = calibration_cases(labels, probabilities)
    found["ece"] = (gaps * np.sign(totals["gaps"])[bins] - value["ece"]) / total
    curves, parts = _curves(probabilities.shape[1]), list[Floats]()
    for counts, one in zip(totals["grid"], curves, strict=True):
        place = threshold_grid().searchsorted(probabilities[:, one], "right")
        parts.append(_by_counts(counts.astype(np.float64))[:, (labels == one).astype(np.int64), place])
    with_both = [part for part in parts if np.isfinite(part).all()]
    found["auc"], found["ap"] = np.mean(with_both, axis=0) if with_both else np.full((2, len(labels)), np.nan)
    return np.stack([found[name] for name in names])


def _by_confusion(totals: Totals, names: Sequence[str]) -> dict[str, Floats]:
    """Derivatives of metrics of decisions by the entries of the confusion table, each [C, C]."""
    wanted = [name for name in names if name in ("acc", "bac", "sen", "spe", "f1")]
    confusion, step = totals["confusion"].astype(np.float64), 1e-3
    found = {name: np.zeros(confusion.shape) for name in wanted}
    for true, called in np.ndindex(confusion.shape):
        if not confusion[true, called]:  # no case is there
            continue
        ends = []
        for sign in (1, -1):
            moved = confusion.copy()
            moved[true, called] += sign * step
            ends.append(metrics_of_totals(totals | {"confusion": moved}, wanted))
        for name in wanted:
            found[name][true, called] = (ends[0][name] - ends[1][name]) / (2 * step)
    return found


def _by_counts(counts: Floats) -> Floats:
    """Derivatives of area under the curve and average precision by ``threshold_counts`` [2, T + 1]: [2, 2, T + 1].

    NaN where a class is missing.
    """
    negatives, positives = counts
    n, m = negatives.sum(), positives.sum()
    if not n or not m:
        return np.full((2, *counts.shape), np.nan)
    below, above = np.cumsum(negatives) - negatives / 2, m - np.cumsum(positives) + positives / 2
    area = float(positives @ below) / (n * m)
    of_area = np.stack([(above / m - area) / n, (below / n - area) / m])
    hits = np.cumsum(positives[::-1])[::-1]
    passed = hits + np.cumsum(negatives[::-1])[::-1]
    precision = np.divide(hits, passed, out=np.zeros_like(hits), where=passed > 0)
    value = float(positives @ precision) / m
    # A further case in a bin is passed in this bin and in all below it.
    share = np.divide(positives, passed, out=np.zeros_like(hits), where=passed > 0)
    alarm = -np.cumsum(share * precision) / m
    hit = (precision + np.cumsum(share * (1 - precision)) - value) / m
    return np.stack([of_area, np.stack([alarm, hit])])


def margins_of_totals(totals: Totals) -> dict[str, float]:
    """How far ``auc`` and ``ap`` from the grid can be from those of the scores at most, whatever these are.

    Of a pair between two thresholds it is not known which is higher: it counts half, and could count nothing or one.
    """
    pairs = [(counts[0], counts[1]) for counts in totals["grid"].astype(np.float64)]
    known = [(negatives, positives) for negatives, positives in pairs if negatives.sum() and positives.sum()]
    if not known:
        return {}
    areas = [float(n @ p) / (2 * n.sum() * p.sum()) for n, p in known]
    precisions = [max(_precision(n, p, ahead=ahead) for ahead in (True, False)) for n, p in known]
    return {"auc": float(np.mean(areas)), "ap": float(np.mean(precisions))}


def _precision(negatives: Floats, positives: Floats, *, ahead: bool) -> float:
    """How far the average precision is off where in each bin all positives are ahead of the negatives, or behind."""
    before_hits = np.cumsum(positives[::-1])[::-1] - positives
    before_alarms = np.cumsum(negatives[::-1])[::-1] - (negatives if ahead else 0)
    bins = np.repeat(np.arange(len(positives)), positives.astype(np.int64))
    place = np.arange(len(bins)) - np.repeat(np.cumsum(positives) - positives, positives.astype(np.int64)) + 1
    hits = before_hits[bins] + place
    extreme = float((hits / (hits + before_alarms[bins])).mean())
    together = np.flatnonzero(positives)
    passed = before_hits + positives
    tied = passed[together] / (passed + np.cumsum(negatives[::-1])[::-1])[together]
    return abs(extreme - float(positives[together] @ tied / positives.sum()))


def representative_scores() -> Floats:
    """A score for each place on the grid, [T + 1]: halfway between its neighbours on the logit scale."""
    grid = threshold_grid()
    odds = np.log(grid) - np.log1p(-grid)
    step = odds[1] - odds[0]
    middles = np.append(odds - step / 2, odds[-1] + step / 2)
    scores: Floats = 1 / (1 + np.exp(-middles))
    return scores
