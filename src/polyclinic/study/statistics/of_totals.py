"""How sure numbers over the cases of all sites are, where only totals of the cases are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from polyclinic.statistics.intervals import Area, area_interval
from polyclinic.study.statistics.comparisons import Comparison, paired_difference
from polyclinic.study.statistics.together import NO_INTERVAL, SCORE, Interval, Together
from polyclinic.tasks import Task
from polyclinic.tasks.base import Totals


class OfTotals(Together):
    """Of totals of the cases of all sites.

    Args:
        task: whose they are.
        totals: (method, seed, fold) -> those of each of its models.
        several: methods that score several cases of a patient.
    """

    def __init__(
        self, task: Task, totals: Mapping[tuple[str, int, int], Sequence[Totals]], several: Collection[str]
    ) -> None:
        self.task, self.totals, self.several = task, totals, several

    def interval(self, method: str, metric: str) -> Interval:
        """See `Together.interval`."""
        mine = {(seed, fold): of for (name, seed, fold), of in self.totals.items() if name == method}
        alone = method not in self.several and all(len(of) == 1 for of in mine.values())
        if metric == "auc" and alone and all(len(of[0].get("grid", ())) == 1 for of in mine.values()):
            low, high = area_interval([area_of_grid(seed, of[0]["grid"][0]) for (seed, _), of in mine.items()])
            return low, high, "" if np.isnan(low) else SCORE
        return NO_INTERVAL

    def compare(self, values: pd.DataFrame, methods: tuple[str, str], metric: str) -> Comparison:
        """See `Together.compare`: the difference alone."""
        return paired_difference(values, methods)


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
