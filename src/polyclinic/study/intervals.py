"""How sure a number is: DeLong's variance of the area under the ROC curve, the patient bootstrap, Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from polyclinic.seeds import derive_seed

Floats = NDArray[np.float64]

#: Two-sided 95 % point of the normal distribution.
Z95 = float(norm.ppf(0.975))


def _placements(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it [m], for each negative the share of positives above it [n].

    Computed from mid-ranks in O(n log n): Sun & Xu 2014, "Fast implementation of DeLong's algorithm for comparing the
    areas under correlated receiver operating characteristic curves", IEEE Signal Processing Letters 21(11).
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    positive, negative = scores[labels == 1], scores[labels == 0]
    ranks = rankdata(np.concatenate([positive, negative]))
    among_positives = ranks[: len(positive)] - rankdata(positive)
    among_negatives = ranks[len(positive) :] - rankdata(negative)
    return among_positives / len(negative), 1 - among_negatives / len(positive)


def _mean_and_variance(placements: tuple[Floats, Floats]) -> tuple[float, float]:
    """Mean of the placements and the variance of that mean (DeLong et al. 1988, equations 3 to 5)."""
    of_positives, of_negatives = placements
    if min(len(of_positives), len(of_negatives)) < 2:
        return float(of_positives.mean()), float("nan")
    variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    return float(of_positives.mean()), float(variance)


def delong(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Area under the ROC curve and its variance.

    DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
    characteristic curves: a nonparametric approach", Biometrics 44(3).

    Args:
        labels: [n] of 0 and 1.
        scores: [n], higher for the positive class.

    Returns:
        The area (NaN when a class is missing) and its variance (NaN unless each class has two cases).
    """
    if len(np.unique(np.asarray(labels))) < 2:
        return float("nan"), float("nan")
    return _mean_and_variance(_placements(labels, scores))


def delong_paired(labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Test whether two scores of the same cases have the same area under the ROC curve (DeLong et al. 1988).

    Args:
        labels: [n] of 0 and 1.
        a: [n] scores of the one.
        b: [n] scores of the other.

    Returns:
        Area of ``a`` minus area of ``b``, its variance, and the two-sided p of ``normal_p``; NaN as in ``delong``.
    """
    if len(np.unique(np.asarray(labels))) < 2:
        return float("nan"), float("nan"), float("nan")
    of_a, of_b = _placements(labels, a), _placements(labels, b)
    difference, variance = _mean_and_variance((of_a[0] - of_b[0], of_a[1] - of_b[1]))
    return difference, variance, normal_p(difference, variance)


def normal_p(difference: float, variance: float) -> float:
    """Two-sided p of a normal difference from nought: 1 for no difference, NaN for one that has no variance."""
    if difference == 0 and variance >= 0:
        return 1.0
    if not variance > 0:
        return float("nan")
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def logit_interval(mean: float, variance: float) -> tuple[float, float]:
    """95 % interval of a share, symmetrical on the logit scale, so that it stays within 0 and 1.

    A mean of 0 or 1 has no logit: the interval is then that point, as is usual for a perfect area under the curve.
    """
    if not 0 < mean < 1:
        return mean, mean
    half = Z95 * np.sqrt(variance) / (mean * (1 - mean))
    return float(expit(logit(mean) - half)), float(expit(logit(mean) + half))


def patient_weights(
    patients: pd.DataFrame, count: int, seed: int, *, block: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """How often each patient is drawn in each of ``count`` bootstrap resamples, in blocks of at most ``block``.

    Each site's patients are drawn with replacement from that site, as many as it has. The draws depend on ``seed``,
    the site's name and its number of patients alone, so every method is judged on the same resamples.

    Args:
        patients: one row for each patient, with the column ``site``; the rows of a site stand together.
        count: number of resamples B.
        seed: of the draws.
        block: resamples made at once; default all.

    Yields:
        [P, b] whole numbers whose sum over a site's rows is the site's number of patients.
    """
    block = block or max(count, 1)
    sizes = patients.groupby("site", sort=False).size()
    draws = {site: np.random.default_rng(derive_seed(seed, "bootstrap", str(site))) for site in sizes.index}
    for start in range(0, count, block):
        width = min(block, count - start)
        parts = [draws[site].multinomial(size, np.full(size, 1 / size), width).T for site, size in sizes.items()]
        yield np.concatenate(parts).astype(np.float64)


def bootstrap_interval(value: float, draws: Floats, upper: float = np.inf, lower: float = 0.0) -> tuple[float, float]:
    """95 % interval from the percentiles of bootstrap draws, moved by the bootstrap's own estimate of the bias.

    Metrics such as the calibration error are larger in every resample than in the sample, by the same mechanism that
    makes them larger in the sample than in truth; without the move their interval need not contain their value.

    Args:
        value: the metric of the sample.
        draws: [B] the metric of each resample; NaN where it was not defined.
        upper: largest possible value.
        lower: smallest possible value.

    Returns:
        Low and high, NaN when fewer than two draws are defined.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2 or np.isnan(value):
        return float("nan"), float("nan")
    low, high = np.percentile(draws, [2.5, 97.5]) - (draws.mean() - value)
    return float(np.clip(low, lower, upper)), float(np.clip(high, lower, upper))


def bootstrap_p(difference: float, draws: Floats) -> float:
    """Two-sided p of a paired difference: the share of resamples as far from their mean as it is from nought.

    Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 16: the draws, moved to have mean nought, stand
    for the null hypothesis. The sample counts as one more draw, so p is at least 1 / (B + 1).

    Args:
        difference: of the sample.
        draws: [B] difference of each resample, both methods on the same patients; NaN where it was not defined.

    Returns:
        p, or NaN when fewer than two draws are defined.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2 or np.isnan(difference):
        return float("nan")
    # Rounding must not decide between a difference of exactly nought and draws of exactly nought.
    as_far = np.abs(draws - draws.mean()) >= abs(difference) - 1e-12
    return float((1 + as_far.sum()) / (1 + len(draws)))


def holm(p: ArrayLike) -> Floats:
    """p values corrected for making several comparisons, by Holm's step-down method (Scandinavian J. Statistics 1979).

    Sorted from small to large, the i-th of m (i from 0) is multiplied by m - i, and none may be smaller than the one
    before it or larger than 1. NaN are no comparisons: they stay NaN and do not count.

    Args:
        p: [m] p values.

    Returns:
        [m] adjusted p values in the same order.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1.0)
    return adjusted
