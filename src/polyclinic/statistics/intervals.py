"""How sure a number is: areas under the ROC curve, shares near their ends, the patient bootstrap, Holm's correction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from polyclinic.seeds import derive_seed
from polyclinic.statistics.areas import expected_variance

Floats = NDArray[np.float64]

#: Two-sided 95 % point of the normal distribution.
Z95 = float(ndtri(0.975))
#: Areas and shares no further apart are the same but for rounding.
TINY = 1e-9


def placements(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it [m], for each negative the share of positives above it [n].

    Computed from mid-ranks in O(n log n): Sun & Xu 2014, "Fast implementation of DeLong's algorithm for comparing the
    areas under correlated receiver operating characteristic curves", IEEE Signal Processing Letters 21(11).
    """
    from scipy.stats import rankdata  # slow to import

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
    return _mean_and_variance(placements(labels, scores))


def delong_paired(labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Test whether two scores of the same cases have the same area under the ROC curve (DeLong et al. 1988).

    Args:
        labels: [n] of 0 and 1.
        a: [n] scores of the one, or [S, n] of the models of S seeds, whose areas are averaged.
        b: [n] or [S, n] scores of the other.

    Returns:
        Area of ``a`` minus area of ``b``, its variance, and the two-sided p of ``normal_p``; NaN as in ``delong``.
        Where all cases of both classes agree on the difference, nothing is left for a variance to be seen in: p is
        then that of the sign test over the smaller class.
    """
    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2:
        return float("nan"), float("nan"), float("nan")
    pairs = [
        [placements(labels, one) for one in np.atleast_2d(np.asarray(scores, dtype=np.float64))] for scores in (a, b)
    ]
    of_a, of_b = ([np.mean(parts, axis=0) for parts in zip(*pair, strict=True)] for pair in pairs)
    difference, variance = _mean_and_variance((of_a[0] - of_b[0], of_a[1] - of_b[1]))
    if difference and variance < 1e-12 * difference**2:  # nought but for rounding
        return difference, variance, float(2 * 0.5 ** min(len(of_a[0]), len(of_a[1])))
    return difference, variance, normal_p(difference, variance)


def variance_by_p(difference: float, p: float) -> float:
    """The variance with which ``normal_p`` gives a difference this ``p``."""
    return float((difference / ndtri(p / 2)) ** 2)


def normal_p(difference: float, variance: float) -> float:
    """Two-sided p of a normal difference from nought: 1 for no difference, NaN for one that has no variance."""
    if difference == 0:
        return 1.0
    if not variance > 0:
        return float("nan")
    return float(2 * ndtr(-abs(difference) / np.sqrt(variance)))


# --- areas under the curve --------------------------------------------------------------------------------------------


class Area(NamedTuple):
    """The area under the curve of one seed and fold.

    Attributes:
        seed: seeds share their patients, folds of a seed do not.
        value: the area.
        variance: DeLong's; NaN where a class has one case.
        positives, negatives: numbers of patients.
    """

    seed: int
    value: float
    variance: float
    positives: int
    negatives: int


def combine(parts: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """Mean of (seed, estimate, variance) of each fold, and its variance.

    Folds have different patients, so their variances add; seeds have the same, so theirs are averaged. Folds without
    an estimate are left out.
    """
    known = [part for part in parts if not np.isnan(part[1])]
    if not known:
        return float("nan"), float("nan")
    by_seed: dict[int, list[float]] = {}
    for seed, _, variance in known:
        by_seed.setdefault(seed, []).append(variance)
    variances = [sum(of_folds) / len(of_folds) ** 2 for of_folds in by_seed.values()]
    return float(np.mean([estimate for _, estimate, _ in known])), float(np.mean(variances))


def area_interval(areas: Sequence[Area]) -> tuple[float, float]:
    """95 % interval of the mean of areas under the curve over folds and seeds, by inverting a score test.

    It holds each true area θ from which the mean found lies no further than t √V(θ). As in method 5 of Newcombe 2006,
    "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2", Statistics in
    Medicine 25(4), V(θ) is the variance to be expected under θ, so the interval of a perfect area is no point: it
    has the numbers of cases in it. V(θ) is scaled by DeLong's variance over the expected one at the mean found, which
    is believed the more, the more patients there are (to widen), and the more of them are misplaced (to narrow). t has
    the degrees of freedom of the smaller class within folds, twice. Coverage: ``benchmarks/intervals.py``.

    Args:
        areas: of each seed and fold; folds whose area is NaN are left out.

    Returns:
        Low and high; NaN if there is no area.
    """
    from scipy.optimize import brentq  # slow to import

    areas = [area for area in areas if not np.isnan(area.value)]
    if not areas:
        return float("nan"), float("nan")
    mean, found = combine([area[:3] for area in areas])
    folds = Counter(area.seed for area in areas)
    positives, negatives = (np.array(counts, float) for counts in zip(*(area[3:] for area in areas), strict=True))
    shares = np.array([1 / folds[area.seed] ** 2 for area in areas]) / len(folds)
    mean = 1.0 if mean > 1 - TINY else 0.0 if mean < TINY else mean

    def expected(area: float) -> float:
        return float(expected_variance(area, positives, negatives) @ shares)

    patients = float(min(positives.sum(), negatives.sum())) / len(folds)
    ratio = 1.0
    if 0 < mean < 1 and not np.isnan(found):
        ratio = found / expected(mean)
        evidence = patients if ratio > 1 else patients * min(mean, 1 - mean)
        ratio = 1 + (ratio - 1) * evidence / (evidence + 5)
    freedom = 2 * max(patients - len(areas) / len(folds), 2)
    reach = ratio * float(stdtrit(freedom, 0.975)) ** 2

    def outside(area: float) -> float:
        return (mean - area) ** 2 - reach * expected(area)

    low = 0.0 if mean == 0 else brentq(outside, 0.0, max(mean - TINY, mean / 2))
    high = 1.0 if mean == 1 else brentq(outside, min(mean + TINY, (1 + mean) / 2), 1.0)
    return float(low), float(high)


# --- the bootstrap ----------------------------------------------------------------------------------------------------
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


def touches_end(draws: Floats, upper: float = 1.0, lower: float = 0.0) -> bool:
    """Whether so many bootstrap draws [B] of a share lie at an end of its range that their percentile does.

    Nothing can vary beyond the end, so percentiles are too narrow there, and a point where all draws are at the end.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return False
    low, high = np.percentile(draws, [2.5, 97.5])
    return bool(low <= lower + TINY or high >= upper - TINY)


def share_interval(value: float, count: float) -> tuple[float, float]:
    """Exact 95 % interval of a share that was found among ``count`` cases, which need not be a whole number.

    Clopper & Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26(4). It is no point where all cases agree.

    >>> [round(end, 3) for end in share_interval(1.0, 10)]
    [0.692, 1.0]
    """
    found, missed = value * count, (1 - value) * count
    low = 0.0 if value <= 0 else float(betaincinv(found, missed + 1, 0.025))
    high = 1.0 if value >= 1 else float(betaincinv(found + 1, missed, 0.975))
    return low, high


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
