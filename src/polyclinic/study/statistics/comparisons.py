"""Paired comparisons of two methods: the difference over what both scored, how sure it is, and its p value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from polyclinic.statistics.intervals import Floats, bootstrap_p, combine, normal_p
from polyclinic.statistics.samples import Cases
from polyclinic.study.statistics.draws import Draws


class Comparison(NamedTuple):
    """One method compared with another.

    Attributes:
        difference: mean over what both scored; NaN if there is nothing.
        low, high: its 95 % interval.
        p: two-sided; NaN where nothing can be tested.
    """

    difference: float
    low: float
    high: float
    p: float

    def within(self, limits: tuple[float, float]) -> Comparison:
        """The same with an interval that ends where differences do, for a metric between ``limits``."""
        most = limits[1] - limits[0]
        return self._replace(low=float(np.clip(self.low, -most, most)), high=float(np.clip(self.high, -most, most)))


NOTHING = Comparison(*[float("nan")] * 4)


def by_metric(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each metric of ``results.csv`` a row a seed, fold and place tested at, and a column a method.

    Where several models were tested at a place it is their mean.
    """
    keys = ["seed", "fold", "tested_on"]
    return {
        str(metric): rows.pivot_table(index=keys, columns="method", values="value", aggfunc="mean")
        for metric, rows in results.groupby("metric", sort=False)
    }


def over_all(cases: Cases, draws: Draws, values: pd.DataFrame, methods: tuple[str, str], metric: str) -> Comparison:
    """Compare two methods on the cases of all sites together.

    The difference is that of each seed and fold on the cases that both scored, averaged. Its variance has two parts.
    Other patients: DeLong's for the area under the curve where both methods are ``independent``, else that of the
    bootstrap. Other trainings: with two seeds or more, how far the seeds' differences lie apart; a single training does
    not tell. See `with_seeds`.

    Args:
        cases: the predictions.
        draws: what was resampled.
        values: table of ``by_metric``, for metrics that can't be computed from predictions.
        methods: the method and the one that it is compared with.
        metric: name of the metric.
    """
    if methods not in draws.differences or metric not in cases.names:
        return paired_difference(values, methods)
    row = cases.names.index(metric)
    differences, seeds = draws.differences[methods][row], draws.by_seed[methods][:, row]
    difference, resampled = float(differences[0]), differences[1:][np.isfinite(differences[1:])]
    variance = float(resampled.var(ddof=1)) if len(resampled) > 1 else float("nan")
    p = bootstrap_p(difference, differences[1:])
    if metric == "auc" and set(methods) <= cases.independent:
        of_areas, by_delong = combine(cases.paired_areas(*methods))
        if not np.isnan(exact := normal_p(of_areas, by_delong)):
            variance, p = by_delong, exact
    return with_seeds(difference, variance, float("inf"), p, seeds)


def paired_difference(values: pd.DataFrame, methods: tuple[str, str]) -> Comparison:
    """The mean difference of two methods over all cases, of which nothing is known of chance.

    Args:
        values: table of ``by_metric``.
        methods: the method and the one that it is compared with.
    """
    pairs = _paired(values[values.index.get_level_values("tested_on") == "all"], methods)
    return Comparison(float(pairs["difference"].mean()), *NOTHING[1:])


def with_seeds(difference: float, variance: float, freedom: float, p: float, seeds: Floats) -> Comparison:
    """A comparison that counts chance in training, where there is more than one seed to see it by.

    See `with_training`. p is the larger of the one given and that of Student's t test with both.

    Args:
        difference: between two methods.
        variance: of the difference with other patients or sites and the same models.
        freedom: degrees of freedom of ``variance``.
        p: for the models as they are.
        seeds: [S] difference of each seed.
    """
    spreads = with_training(Spread(variance, freedom), seeds)
    half = reach(spreads)
    if len(spreads) > 1 and not np.isnan(p):
        p = max(p, tail(difference, spreads))
    return Comparison(difference, difference - half, difference + half, p)


class Spread(NamedTuple):
    """The variance of a difference, and its degrees of freedom."""

    variance: float
    freedom: float


def with_training(spread: Spread, seeds: Floats) -> list[Spread]:
    """What a difference is to be judged by where there are two seeds or more to see chance in training by.

    First, the variance of the seeds' differences over their number is added to that of patients or sites; degrees of
    freedom by Satterthwaite 1946, "An approximate distribution of estimates of variance components", Biometrics
    Bulletin 2(6). By that, two seeds that are alike by chance would pass for certainty. So a difference must also be
    large against how far the seeds alone lie apart, with a degree of freedom less than there are.

    Args:
        spread: of the difference with other patients or sites and the same models.
        seeds: [S] difference of each seed; NaN are left out.

    Returns:
        One or two, all of which hold; see `reach` and `tail`.
    """
    seeds = seeds[np.isfinite(seeds)]
    trained = float(seeds.var(ddof=1)) / len(seeds) if len(seeds) > 1 else 0.0
    if not trained or not np.isfinite(spread.variance):
        return [spread]
    total, alone = spread.variance + trained, Spread(trained, len(seeds) - 1)
    shares = np.square(spread.variance / total) / spread.freedom + np.square(trained / total) / alone.freedom
    return [Spread(total, 1 / float(shares)), alone]


def reach(spreads: Sequence[Spread]) -> float:
    """From a difference to the ends of its 95 % interval, the widest by any of the spreads; NaN without a variance."""
    return max(
        float(stdtrit(one.freedom, 0.975)) * float(np.sqrt(one.variance)) if one.variance else 0.0 for one in spreads
    )


def tail(difference: float, spreads: Sequence[Spread]) -> float:
    """Two-sided p of a difference from nought, the largest by any of the spreads; NaN without a variance."""
    return max(
        float(2 * stdtr(one.freedom, -abs(difference) / np.sqrt(one.variance)))
        if one.variance
        else float(difference == 0)
        for one in spreads
    )


def _paired(values: pd.DataFrame, methods: tuple[str, str]) -> pd.DataFrame:
    """seed, fold, tested_on and difference, where both methods have a value."""
    pairs = values.reindex(columns=list(methods)).dropna()
    difference = pairs[methods[0]] - pairs[methods[1]]
    return difference.rename("difference").round(12).reset_index()  # rounding must not decide between ties
