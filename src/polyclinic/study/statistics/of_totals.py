"""How sure numbers over the cases of all sites are, where only totals of the cases are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from polyclinic.statistics.intervals import Area, Floats, area_interval, normal_p
from polyclinic.study.statistics.comparisons import Comparison, Spread, paired_difference, reach, with_seeds
from polyclinic.study.statistics.together import NO_INTERVAL, SCORE, Interval, Together, exact_interval, is_share
from polyclinic.tasks.base import Totals
from polyclinic.tasks.metrics import value_range

JACKKNIFE = "variances of the sites' patients, added"
EXACT = "exact interval of a share with the variance of the sites' patients"


@dataclass(frozen=True)
class Spreads:
    """How far patients of all sites lie apart in what they contribute to K metrics of M methods.

    Attributes:
        methods: labels, [M].
        metrics: names, [K].
        covariance: of the metrics of each two methods with other patients, [K, M, M].
        counted: among how many patients a value is found, [K, M].
    """

    methods: Sequence[str]
    metrics: Sequence[str]
    covariance: Floats
    counted: Floats


class OfTotals(Together):
    """Of totals of the cases of all sites.

    Args:
        totals: (method, seed, fold) -> those of each of its models.
        means: (method, metric) -> mean over seeds and folds.
        spreads: how far patients lie apart.
        several: methods that score several cases of a patient.
    """

    def __init__(
        self, totals: Mapping[tuple[str, int, int], Sequence[Totals]], means: Mapping[tuple[str, str], float],
        spreads: Spreads, several: Collection[str],
    ) -> None:  # fmt: skip
        self.totals, self.means, self.spreads, self.several = totals, means, spreads, several

    def interval(self, method: str, metric: str) -> Interval:
        """See `Together.interval`: the normal distribution; areas under the curve and shares as for cases."""
        mine = {(seed, fold): of for (name, seed, fold), of in self.totals.items() if name == method}
        alone = method not in self.several and all(len(of) == 1 for of in mine.values())
        if metric == "auc" and alone and all(len(of[0].get("grid", ())) == 1 for of in mine.values()):
            low, high = area_interval([area_of_grid(seed, of[0]["grid"][0]) for (seed, _), of in mine.items()])
            return low, high, "" if np.isnan(low) else SCORE
        variance, value = self._variance(metric, method), self.means.get((method, metric), np.nan)
        if not np.isfinite([variance, value]).all():
            return NO_INTERVAL
        (lower, upper), half = value_range(metric), reach([Spread(variance, np.inf)])
        if is_share(metric) and not lower < value - half < value + half < upper:
            place = list(self.spreads.metrics).index(metric), list(self.spreads.methods).index(method)
            return (*exact_interval(value, variance, float(self.spreads.counted[place])), EXACT)
        return max(value - half, lower), min(value + half, upper), JACKKNIFE

    def compare(self, values: pd.DataFrame, methods: tuple[str, str], metric: str) -> Comparison:
        """See `Together.compare`: a normal test of the mean difference, with chance in training."""
        found = paired_difference(values, methods)
        variance = self._variance(metric, *methods)
        if not np.isfinite([variance, found.difference]).all():
            return found
        pairs = values[values.index.get_level_values("tested_on") == "all"].reindex(columns=list(methods)).dropna()
        seeds = (pairs[methods[0]] - pairs[methods[1]]).groupby("seed").mean().to_numpy()
        p = normal_p(found.difference, variance)
        return with_seeds(found.difference, variance, float("inf"), p, seeds.round(12))

    def _variance(self, metric: str, *methods: str) -> float:
        """Of a method's metric, or of the difference between two; NaN where it is not known."""
        known, metrics = list(self.spreads.methods), list(self.spreads.metrics)
        if metric not in metrics or not set(methods) <= set(known):
            return float("nan")
        places = [known.index(method) for method in methods]
        covariance = self.spreads.covariance[metrics.index(metric)][np.ix_(places, places)]
        signs = np.array([1.0, -1.0][: len(places)])
        return max(float(signs @ covariance @ signs), 0.0) if np.isfinite(covariance).all() else float("nan")


def area_of_grid(seed: int, counts: np.ndarray) -> Area:
    """The area under the curve of binned scores with DeLong's variance, see `polyclinic.statistics.intervals.delong`.

    Args:
        seed: of the training.
        counts: [2, T + 1], see `polyclinic.tasks.metrics.threshold_counts`.
    """
    negatives, positives = counts.astype(np.float64)
    n, m = float(negatives.sum()), float(positives.sum())
    if not n or not m:
        return Area(seed, float("nan"), float("nan"), int(m), int(n))
    of_positives = (np.cumsum(negatives) - negatives / 2) / n
    of_negatives = 1 - (np.cumsum(positives) - positives / 2) / m
    area = float(positives @ of_positives) / m
    if min(n, m) < 2:
        return Area(seed, area, float("nan"), int(m), int(n))
    spread = float(positives @ np.square(of_positives - area)) / (m - 1) / m
    spread += float(negatives @ np.square(of_negatives - area)) / (n - 1) / n
    return Area(seed, area, spread, int(m), int(n))
