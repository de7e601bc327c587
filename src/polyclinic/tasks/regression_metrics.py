"""Measures of how far predicted numbers are from the true ones.

Every metric is written for weighted cases and many sets of weights at once, as in `polyclinic.tasks.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyclinic.tasks.metrics import REGRESSION, check_names

Floats = NDArray[np.float64]


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
