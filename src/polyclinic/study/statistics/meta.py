"""Random-effects meta-analysis: what the sites' own differences say together, and what a new site may expect."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtrc, ndtr

from polyclinic.statistics.intervals import Floats
from polyclinic.study.statistics.comparisons import Spread, reach, tail, with_training

NAN = float("nan")


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal distributions."""

    means: Floats
    variances: Floats
    shares: Floats

    def interval(self, besides: float) -> tuple[float, float]:
        """Between these ends lie 95 %, if ``besides`` is added to all variances."""
        from scipy.optimize import brentq  # slow to import

        deviations = np.sqrt(self.variances + besides)
        if not deviations.any():
            return float(self.means[0]), float(self.means[0])
        reach = 40 * float(deviations.max())

        def end(share: float) -> float:
            def excess(value: float) -> float:
                return float(self.shares @ ndtr((value - self.means) / deviations)) - share

            return float(brentq(excess, self.means.min() - reach, self.means.max() + reach, xtol=1e-9 * reach))

        return end(0.025), end(0.975)


@dataclass(frozen=True)
class Combined:
    """What sites say together.

    Attributes:
        mean: over sites, of which the surer count more.
        spreads: what ``mean`` is judged by: sites and their patients drawn anew, of one site its patients; and chance
            in training, where it is seen.
        between: τ², the variance of the true values of sites; NaN for one site.
        unlike: I², the share of the sites' variance that is ``between``, from 0 to 1; NaN for one site.
        weights: of the sites, with sum 1, [K].
        new: what a new site's value may be; None for fewer than three sites.
        trained: variance by chance in training.
    """

    mean: float
    spreads: tuple[Spread, ...]
    between: float
    unlike: float
    weights: tuple[float, ...]
    new: Mixture | None = None
    trained: float = 0.0

    @property
    def sites(self) -> int:
        """How many there are."""
        return len(self.weights)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean over hospitals such as these; NaN where nothing is known of chance."""
        half = reach(self.spreads)
        return self.mean - half, self.mean + half

    @property
    def expected(self) -> tuple[float, float]:
        """95 % prediction interval: what a new hospital may expect; NaN for fewer than three sites."""
        if self.new is None:
            return NAN, NAN
        (low, high), (least, most) = self.interval, self.new.interval(self.trained)
        return min(low, least), max(high, most)  # one site is not surer than all: these are found in different ways

    @property
    def p(self) -> float:
        """Two-sided, of a mean of 0; NaN where nothing can be tested."""
        return tail(self.mean, self.spreads)

    def with_training(self, seeds: Floats) -> Combined:
        """The same with chance in training; see `polyclinic.study.statistics.comparisons.with_training`."""
        spreads = with_training(self.spreads[0], seeds)
        return replace(self, spreads=tuple(spreads), trained=sum(one.variance for one in spreads[1:]))


NOTHING = Combined(NAN, (Spread(NAN, NAN),), NAN, NAN, ())


def combine_sites(values: ArrayLike, variances: ArrayLike) -> Combined:
    """The mean of values of sites, each known with an error, where the sites truly differ.

    Weights are 1 / (τ² + v_k), with τ² by Paule & Mandel 1982, "Consensus values and weighting factors", Journal of
    Research of the National Bureau of Standards 87(5): that for which Σ w_k (y_k - μ)² has its expectation K - 1. The
    variance of the mean is that of Hartung & Knapp 2001, "A refined method for the meta-analysis of controlled clinical
    trials with binary outcome", Statistics in Medicine 20(24), with Student's t of K - 1 degrees of freedom. By it a
    few sites that happen to agree would be sure of anything, so where 1 / Σ w_k with the normal distribution, the
    classical one, gives the wider interval, that is taken (the hybrid of Jackson et al. 2017, Statistics in Medicine
    36(25)).
    I² is from τ² and the typical error of a site (Higgins & Thompson 2002, Statistics in Medicine 21(11)).

    Args:
        values: [K] of the sites; NaN are left out.
        variances: [K] of their errors, at least 0. Where one is NaN nothing is known of any: sites count the same.
    """
    y, v = np.asarray(values, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    y, v = y[np.isfinite(y)], v[np.isfinite(y)]
    if len(y) == 0:
        return NOTHING
    if len(y) == 1:
        return Combined(float(y[0]), (Spread(float(v[0]), math.inf),), NAN, NAN, (1.0,))
    freedom, alike = float(len(y) - 1), (1 / len(y),) * len(y)
    if not np.isfinite(v).all():
        return Combined(float(y.mean()), (Spread(float(y.var(ddof=1)) / len(y), freedom),), NAN, NAN, alike)
    if np.ptp(y) == 0 and not v.all():  # values without an error agree: nothing is left to chance
        return Combined(float(y[0]), (Spread(0.0, freedom),), 0.0, 0.0, alike)
    between = _between(y, v)
    weights = 1 / (between + v)
    shares = weights / weights.sum()
    mean = float(shares @ y)
    classical, unlike = 1 / float(weights.sum()), between / (between + _typical(v))
    refined = classical * float(weights @ np.square(y - mean)) / freedom
    spread = max(Spread(refined, freedom), Spread(classical, math.inf), key=lambda one: reach([one]))
    return Combined(mean, (spread,), between, unlike, tuple(shares.tolist()), _new_site(y, v))


def _new_site(y: Floats, v: Floats) -> Mixture | None:
    """What a new site's true value may be.

    How far sites lie apart is known badly from a few, and an interval that takes the estimate of τ² for the truth is
    too narrow. Σ w_k (y_k - μ)² with the true τ² has the χ² distribution of K - 1 degrees of freedom, which says how
    well the data agree with each τ². This is its confidence distribution, as in Nagashima et al. 2019, "Prediction
    intervals for random-effects meta-analysis: a confidence distribution approach", Statistical Methods in Medical
    Research 28(6).
    """
    if len(y) < 3:
        return None
    least, most = max(float(v.min()), 1e-12 * float(np.ptp(y)) ** 2), float(v.max() + np.ptp(y) ** 2)
    between = np.concatenate([[0.0], np.geomspace(1e-3 * least, 1e4 * most, 400)])
    if not v.all():
        between = between[1:]
    weights = 1 / (between[:, None] + v)  # [G, K]
    total = weights.sum(axis=1)
    means = weights @ y / total
    below = chdtrc(len(y) - 1, (weights * np.square(y - means[:, None])).sum(axis=1))  # P(τ² ≤ between)
    below[-1] = 1.0
    shares = np.diff(below, prepend=0.0)
    return Mixture(means, between + 1 / total, shares)


def _between(y: Floats, v: Floats) -> float:
    """τ² of Paule and Mandel."""
    from scipy.optimize import brentq

    def excess(between: float) -> float:
        weights = 1 / (between + v)
        return float(weights @ np.square(y - weights @ y / weights.sum())) - (len(y) - 1)

    most = float(np.square(y - y.mean()).sum())  # there Σ w (y - μ)² is at most 1
    least = 0.0 if v.all() else 1e-9 * most
    if excess(least) <= 0:
        return least
    return float(brentq(excess, least, most, xtol=1e-12 * most, rtol=1e-12))


def _typical(v: Floats) -> float:
    """The variance of a site's error that stands for all (Higgins & Thompson 2002, equation 9)."""
    if not v.all():
        return 0.0
    weights = 1 / v
    return float((len(v) - 1) * weights.sum() / (np.square(weights.sum()) - np.square(weights).sum()))
