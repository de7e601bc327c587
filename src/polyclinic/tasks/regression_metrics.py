"""Measures of how far predicted numbers are from the true ones.

Every metric is written for weighted cases and many sets of weights at once, as in `polyclinic.tasks.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyclinic.tasks.metrics import REGRESSION, check_names

Floats = NDArray[np.float64]
Totals = dict[str, NDArray[Any]]


def regression_metrics(targets: ArrayLike, predictions: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """The metrics ``names`` of predicted numbers; ``weighted_regression_metrics`` with every case counted once.

    Args:
        targets: [n].
        predictions: [n], in the same unit.
        names: out of ``REGRESSION``.

    Returns:
        Name -> value, NaN where it is not defined.

    Raises:
        StudyError: P103, a name is not a regression metric.
    """
    targets = np.asarray(targets, dtype=np.float64)
    values = weighted_regression_metrics(targets, predictions, np.ones((len(targets), 1)), names)
    return {name: float(value[0]) for name, value in values.items()}


def weighted_regression_metrics(
    targets: ArrayLike, predictions: ArrayLike, weights: Floats, names: Sequence[str]
) -> dict[str, Floats]:
    """Regression metrics under B sets of case weights; an integer weight is a case that occurs that often.

    ``mae`` is the mean of |p - y|, ``rmse`` the root of the mean of (p - y)², ``r2`` 1 - sum (p - y)² / sum (y - mean
    y)², and ``r`` Pearson's correlation of p and y. ``r2`` is not defined where all targets are equal, ``r`` where all
    targets or all predictions are.

    Args:
        targets: [n].
        predictions: [n].
        weights: [n, B], not negative.
        names: out of ``REGRESSION``.

    Returns:
        Name -> [B] values, NaN where it is not defined.

    Raises:
        StudyError: P103, a name is not a regression metric.
    """
    check_names(names, REGRESSION)
    true, predicted = np.asarray(targets, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if not len(true):
        return {name: np.full(weights.shape[1], np.nan) for name in names}
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights.sum(axis=0)
        squares = (predicted - true) ** 2 @ weights
        values = {"mae": np.abs(predicted - true) @ weights / total, "rmse": np.sqrt(squares / total)}
        if not {"r2", "r"}.isdisjoint(names):
            spread = _spread(true, weights)
            values["r2"] = 1 - squares / spread
            together = _products(true - true.mean(), predicted - predicted.mean(), weights)
            values["r"] = np.clip(together / np.sqrt(spread * _spread(predicted, weights)), -1, 1)
    return {name: values[name] for name in names}


def _products(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Weighted sum of the products of deviations from the weighted means, [B]."""
    sums: Floats = (a * b) @ weights - (a @ weights) * (b @ weights) / weights.sum(axis=0)
    return sums


def _spread(values: Floats, weights: Floats) -> Floats:
    """Weighted sum of squared deviations from the weighted mean, [B]; NaN where it is nought but for rounding."""
    # With deviations from the overall mean, large values keep their digits in the difference.
    deviations = values - values.mean()
    sums = _products(deviations, deviations, weights)
    rounding = 1e-12 * (deviations**2 @ weights) + 1e-24 * (values**2 @ weights)
    spread: Floats = np.where(sums > rounding, sums, np.nan)
    return spread


def regression_totals(targets: Floats, predictions: Floats) -> Totals:
    """Sums over cases from which their metrics follow, and which ``join_totals`` puts together.

    Args:
        targets: [n].
        predictions: [n]; cases without a number, of a model that broke down, are only counted.

    Returns:
        ``count`` and ``undefined`` [1], cases with and without a prediction; ``errors`` [2], sums of |p - y| and
        (p - y)²; ``mean`` [2] of y and p; ``products`` [2, 2], sums of the products of deviations from these means.
    """
    known = np.isfinite(predictions)
    pairs = np.stack([targets[known], predictions[known]])
    errors = pairs[1] - pairs[0]
    mean = pairs.mean(axis=1) if pairs.size else np.zeros(2)
    deviations = pairs - mean[:, None]
    return {
        "count": np.array([pairs.shape[1]]),
        "undefined": np.array([len(known) - pairs.shape[1]]),
        "errors": np.array([np.abs(errors).sum(), np.square(errors).sum()]),
        "mean": mean,
        "products": deviations @ deviations.T,
    }


def join_totals(totals: Sequence[Totals]) -> Totals:
    """The totals of all cases together.

    Products of deviations are moved to the common mean (Chan, Golub & LeVeque 1983, "Algorithms for computing the
    sample variance", The American Statistician 37(3)), so that large numbers keep their digits.
    """
    if len(totals) == 1:
        return totals[0]
    added = {name: np.sum([one[name] for one in totals], axis=0) for name in ("count", "undefined", "errors")}
    mean = np.sum([one["mean"] * one["count"] for one in totals], axis=0) / np.maximum(added["count"], 1)
    moved = [one["products"] + one["count"] * np.outer(one["mean"] - mean, one["mean"] - mean) for one in totals]
    return {**added, "mean": mean, "products": np.sum(moved, axis=0)}


def metrics_of_totals(totals: Totals, names: Sequence[str]) -> dict[str, float]:
    """The metrics of the cases whose totals these are; NaN where one is not defined."""
    check_names(names, REGRESSION)
    count, (absolute, squared), products = float(totals["count"][0]), totals["errors"], totals["products"]
    if totals["undefined"][0] or not count:
        return dict.fromkeys(names, float("nan"))
    rounding = 1e-24 * count * np.square(totals["mean"])
    spread = np.where(products.diagonal() > rounding, products.diagonal(), np.nan)
    values = {
        "mae": absolute / count,
        "rmse": np.sqrt(squared / count),
        "r2": 1 - squared / spread[0],
        "r": np.clip(products[0, 1] / np.sqrt(spread[0] * spread[1]), -1, 1),
    }
    return {name: float(values[name]) for name in names}


def influence_on_metrics(targets: Floats, predictions: Floats, totals: Totals, names: Sequence[str]) -> Floats:
    """Derivatives of metrics by the weight of a case, [M, n]; see `polyclinic.tasks.Task.influence`.

    Args:
        targets: of some cases, [n].
        predictions: [n].
        totals: of all cases.
        names: the metrics.
    """
    values = metrics_of_totals(totals, REGRESSION)
    count, products = float(totals["count"][0]), totals["products"]
    errors, (true, predicted) = predictions - targets, np.stack([targets, predictions]) - totals["mean"][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(products[0, 0] * products[1, 1])
        found = {
            "mae": (np.abs(errors) - values["mae"]) / count,
            "rmse": (np.square(errors) - values["rmse"] ** 2) / (2 * values["rmse"] * count),
            "r2": (totals["errors"][1] / products[0, 0] * np.square(true) - np.square(errors)) / products[0, 0],
            "r": true * predicted / root
            - values["r"] / 2 * (np.square(true) / products[0, 0] + np.square(predicted) / products[1, 1]),
        }
    return np.stack([np.where(np.isfinite(values[name]), found[name], np.nan) for name in names])
