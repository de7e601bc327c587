"""How good methods are on the cases of all sites together: what a summary asks, and the answer from the cases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pandas as pd

from polyclinic.statistics.intervals import area_interval, bootstrap_interval, share_interval, touches_end
from polyclinic.statistics.samples import Cases
from polyclinic.study.statistics.comparisons import Comparison, over_all
from polyclinic.study.statistics.draws import draw
from polyclinic.tasks.metrics import METRICS, split_metric, value_range

BOOTSTRAP = "bootstrap over patients within site"
SCORE = "score test with DeLong's variance"
EXACT = "exact interval of a share with the bootstrap's variance"

#: Low, high, and how they were found.
Interval = tuple[float, float, str]
NO_INTERVAL: Interval = (float("nan"), float("nan"), "")


class Together(ABC):
    """What is known of chance in numbers that are about the cases of all sites together."""

    @abstractmethod
    def interval(self, method: str, metric: str) -> Interval:
        """95 % interval of the mean over seeds and folds, for other patients of the same sites."""

    @abstractmethod
    def compare(self, values: pd.DataFrame, methods: tuple[str, str], metric: str) -> Comparison:
        """A method with another.

        Args:
            values: table of `polyclinic.study.statistics.comparisons.by_metric`.
            methods: the method and the one that it is compared with.
            metric: name of the metric.
        """


class OfCases(Together):
    """Of predictions that lie in one place: patients are resampled, areas under the curve judged by DeLong's variance.

    Args:
        cases: what was predicted.
        others: the methods that all are compared with.
        seed: of the draws.
        bootstrap: number of resamples.
    """

    def __init__(self, cases: Cases, others: Sequence[str], seed: int, bootstrap: int) -> None:
        self.cases, self.draws = cases, draw(cases, others, seed, bootstrap)

    def interval(self, method: str, metric: str) -> Interval:
        """See `Together.interval`."""
        cases = self.cases
        if method not in self.draws.values or metric not in cases.names:
            return NO_INTERVAL
        if metric == "auc" and method in cases.independent:
            low, high = area_interval(cases.areas(method))
            return low, high, "" if np.isnan(low) else SCORE
        values = self.draws.values[method][cases.names.index(metric)]
        lower, upper = value_range(metric)
        low, high = bootstrap_interval(values[0], values[1:], upper, lower)
        if np.isnan(low):
            return NO_INTERVAL
        if is_share(metric) and touches_end(values[1:]):
            count = cases.counted(metric, method, cases.groups(cases.rows[method]))
            low, high = exact_interval(float(values[0]), float(np.nanvar(values[1:])), count)
            return low, high, EXACT
        return low, high, BOOTSTRAP

    def compare(self, values: pd.DataFrame, methods: tuple[str, str], metric: str) -> Comparison:
        """See `Together.compare`."""
        return over_all(self.cases, self.draws, values, methods, metric)


def is_share(metric: str) -> bool:
    """Whether a metric counts successes, so that 1 is what is hoped for and 0 and 1 are the ends."""
    name = split_metric(metric)[0]
    return value_range(metric) == (0.0, 1.0) and name in METRICS and METRICS[name].higher_is_better


def exact_interval(value: float, variance: float, count: float) -> tuple[float, float]:
    """Interval of a share near an end of its range, as that of as many cases as have its variance.

    Args:
        value: the share.
        variance: its variance, with other patients.
        count: among how many patients it is found: the interval is that of at most twice as many, since of one or two
            slips too little is seen; where all agree, of just as many.
    """
    if 0 < value < 1 and variance > 0:
        count = min(value * (1 - value) / variance, 2 * count)
    return share_interval(value, count)
