"""ComBat: taking the sites' differences in mean and spread out of features, from summaries of the sites only.

The model of a value of feature f of case j at site i, with covariates x (age, sex, ...) whose effect is kept:

    y_ijf = alpha_f + x_ij · beta_f + gamma_if + delta_if · sigma_f · e_ijf

1. Each site sends `Moments` of its training cases: for each feature the count, mean and squared deviations, and those
   of the covariates with it and with each other.
2. The coordinator puts them together to alpha, beta and sigma² (`estimate`): the least-squares fit with an intercept
   for each site, as if all cases were in one place. Centring at each site takes the intercepts out of the normal
   equations (Frisch and Waugh), so sums over sites suffice. The residual sum of squares follows from the same moments,
   so the second exchange of distributed ComBat is not needed.
3. Each site finds its own gamma and delta from its own cases, shrunk by empirical Bayes towards its own mean over
   features (`SiteEffect.fit`). So a site that took no part in step 1 is harmonised in the same way.

Sources: W. E. Johnson, C. Li, A. Rabinovic, Adjusting batch effects in microarray expression data using empirical Bayes
methods, Biostatistics 8 (2007) 118-127. J.-P. Fortin et al., Harmonization of multi-site diffusion tensor imaging data,
NeuroImage 161 (2017) 149-170. J.-P. Fortin et al., Harmonization of cortical thickness measurements across scanners and
sites, NeuroImage 167 (2018) 104-120. A. A. Chen et al., Privacy-preserving harmonization via distributed ComBat,
NeuroImage 248 (2022) 118822.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyclinic.data.scaling import Summary
from polyclinic.data.statistics import LEAST_CASES
from polyclinic.errors import DataError

#: A variance below this share of the feature's squared size is rounding, not spread.
_ROUNDING = 1e-12
#: A covariate whose spread within sites is a smaller share of its spread within and between them is the site's.
_CONFOUNDED = 1e-10
#: The empirical Bayes equations are solved when gamma and delta change by less than this; they take some ten steps.
_TOLERANCE, _MOST_STEPS = 1e-11, 10_000

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """What a site sends of F features and K covariates, over the cases in which a feature is not missing.

    Attributes:
        features: count, mean and squared deviations of each feature.
        covariate_mean: float64 ``[F, K]``.
        covariate_m2: float64 ``[F, K, K]``, products of deviations of the covariates from their means.
        cross: float64 ``[F, K]``, products of deviations of covariates and feature.
    """

    features: Summary
    covariate_mean: Tensor
    covariate_m2: Tensor
    cross: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """The moments as named tensors, to be sent."""
        names = ("covariate_mean", "covariate_m2", "cross")
        return {**self.features.to_tensors(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """The inverse of ``to_tensors``."""
        own = ("covariate_mean", "covariate_m2", "cross")
        return cls(Summary.from_tensors(dict(tensors)), *(tensors[name] for name in own))


def summarise(
    values: Tensor, covariates: Tensor, least: int = LEAST_CASES, groups: Sequence[Sequence[int]] = ()
) -> Moments:
    """The moments of a site's training cases.

    No sum is over fewer than ``least`` cases, or differs by fewer from another one. So a feature with fewer values is
    left out (count 0); and where a covariate names groups, cases of a group with fewer values are left out of that
    feature: products with the covariate would give their sum.

    Args:
        values: float ``[N, F]`` with NaN where missing.
        covariates: float64 ``[N, K]`` without NaN; K may be 0.
        least: least number of values behind a number that is sent.
        groups: for each covariate of the study, its places among the K columns.
    """
    y, x = values.double().numpy(), covariates.double().numpy()
    there = _without_small_groups(~np.isnan(y), x, groups, least).astype(np.float64)
    count = there.sum(axis=0)
    divisor = np.maximum(count, 1.0)
    mean = np.where(there > 0, y, 0.0).sum(axis=0) / divisor
    deviation = np.where(there > 0, y - mean, 0.0)
    # About the site's own centre, the products below lose no digits to a large mean.
    centre = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
    x = x - centre
    x_mean = there.T @ x / divisor[:, None]
    x_m2 = np.einsum("nf,nk,nl->fkl", there, x, x) - count[:, None, None] * x_mean[:, :, None] * x_mean[:, None, :]
    summary = Summary(*map(torch.from_numpy, (count, mean, np.square(deviation).sum(axis=0))))
    x_mean = (x_mean + centre) * (count > 0)[:, None]
    return Moments(summary, *map(torch.from_numpy, (x_mean, x_m2, deviation.T @ x)))


def small_groups(covariates: Tensor, groups: Sequence[Sequence[int]], least: int = LEAST_CASES) -> int:
    """How many of a site's training cases are left out of all its sums because their group is small."""
    there = np.ones((len(covariates), 1), dtype=np.bool_)
    kept = _without_small_groups(there, covariates.double().numpy(), groups, least)
    return 0 if not kept.any() else int((~kept).sum())


def _without_small_groups(
    there: npt.NDArray[np.bool_], covariates: Numbers, groups: Sequence[Sequence[int]], least: int
) -> npt.NDArray[np.bool_]:
    """Bool ``[N, F]``: which values stay when those of features and groups with fewer than ``least`` are left out."""
    there = there.copy()
    cells = []
    for columns in groups:
        _, cell = np.unique(covariates[:, columns], axis=0, return_inverse=True)
        # Of a number with three or more values, the products give no sum over the cases with one of them.
        if len(columns) > 1 or (len(cell) and cell.max() == 1):
            cells += [cell.ravel() == level for level in range(cell.max() + 1)]
    before = -1
    while before != there.sum():  # what is left out here may make another group small
        before = there.sum()
        for members in cells:
            there[np.ix_(members, (there & members[:, None]).sum(axis=0) < least)] = False
        there[:, there.sum(axis=0) < least] = False
    return there


@dataclass(frozen=True, eq=False)
class Total:
    """The moments of several sites together, each centred at its own means: sums over sites, and no site's own.

    Attributes:
        count, sites: values of each feature, and sites that have any, ``[F]``.
        mean, covariate_mean: over all values, ``[F]`` and ``[F, K]``.
        m2, cross, covariate_m2: products of deviations from each site's own means, ``[F]``, ``[F, K]``, ``[F, K, K]``.
        between, covariate_between: squared deviations of the sites' means from these, by values, ``[F]``, ``[F, K]``.
    """

    count: Numbers
    sites: Numbers
    mean: Numbers
    covariate_mean: Numbers
    m2: Numbers
    cross: Numbers
    covariate_m2: Numbers
    between: Numbers
    covariate_between: Numbers

    @classmethod
    def of(cls, parts: Sequence[Moments]) -> Total:
        """From what each site sent."""
        first = _added([sums(part) for part in parts])
        centre = common_centre(first)
        return cls.of_sums(first, _added([sums_about(part, centre) for part in parts]))

    @classmethod
    def of_sums(cls, first: Mapping[str, Tensor], about: Mapping[str, Tensor]) -> Total:
        """From `sums` and `sums_about`, added over sites; what rounding left in means is taken out by the second."""
        divisor = first["count"].clamp(min=1.0)
        centre = common_centre(first)
        shift, x_shift = about["deviation"] / divisor, about["covariate_deviation"] / divisor[:, None]
        found = (
            first["count"], first["sites"], centre["mean"] + shift, centre["covariate_mean"] + x_shift,
            first["m2"], first["cross"], first["covariate_m2"],
            about["between"] - about["deviation"] * shift,
            about["covariate_between"] - about["covariate_deviation"] * x_shift,
        )  # fmt: skip
        return cls(*(one.numpy() for one in found))


def _added(sites: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in sites]).sum(0) for name in sites[0]}


def sums(own: Moments) -> dict[str, Tensor]:
    """What a site adds first to a sum over sites, see `Total`."""
    count = own.features.count
    return {
        "count": count, "sites": (count > 0).double(), "sum": count * own.features.mean,
        "covariate_sum": count[:, None] * own.covariate_mean,
        "m2": own.features.m2, "cross": own.cross, "covariate_m2": own.covariate_m2,
    }  # fmt: skip


def common_centre(total: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means of all values, from the first sums."""
    divisor = total["count"].clamp(min=1.0)
    return {"mean": total["sum"] / divisor, "covariate_mean": total["covariate_sum"] / divisor[:, None]}


def sums_about(own: Moments, centre: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What it adds then, about the common means."""
    count = own.features.count
    shift, x_shift = own.features.mean - centre["mean"], own.covariate_mean - centre["covariate_mean"]
    return {
        "deviation": count * shift, "between": count * shift.square(),
        "covariate_deviation": count[:, None] * x_shift, "covariate_between": count[:, None] * x_shift.square(),
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Estimate:
    """What all sites have in common, float64.

    Attributes:
        grand_mean: ``[F]``, alpha: mean over sites of their means at covariates 0, weighted by cases; or that of the
            reference site.
        coefficients: ``[F, K]``, beta.
        variance: ``[F]``, sigma²: squared residuals by cases; 0 for features that are left as they are.
    """

    grand_mean: Tensor
    coefficients: Tensor
    variance: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """The estimate as named tensors, to be sent."""
        return {"grand_mean": self.grand_mean, "coefficients": self.coefficients, "variance": self.variance}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Estimate:
        """The inverse of ``to_tensors``."""
        return cls(tensors["grand_mean"], tensors["coefficients"], tensors["variance"])

    def expected(self, covariates: Tensor) -> Numbers:
        """``alpha + x · beta`` of each case: float64 ``[N, F]``."""
        found: Numbers = self.grand_mean.numpy() + covariates.double().numpy() @ self.coefficients.numpy().T
        return found

    def standardise(self, values: Tensor, covariates: Tensor) -> Numbers:
        """Residuals in pooled deviations, float64 ``[N, F]``: NaN where missing, and for features with variance 0."""
        deviation = np.sqrt(np.where(self.variance > 0, self.variance, np.nan))
        found: Numbers = (values.double().numpy() - self.expected(covariates)) / deviation
        return found


def estimate(
    sites: Mapping[str, Moments], covariates: Sequence[str], reference: str | None = None
) -> tuple[Estimate, Tensor]:
    """The fit to the training cases of all sites, from their moments.

    Args:
        sites: moments by site, in site order.
        covariates: names of the K covariates, for messages.
        reference: a site whose mean and variance are the common ones, in place of those of all.

    Returns:
        the estimate, and a bool ``[F]`` that marks features that can't be harmonised: constant (perhaps up to the
        effect of the covariates), or with too few values; their variance is 0.

    Raises:
        DataError: P207, a covariate can't be told from the sites or from the other covariates, no site has enough
            cases, or the reference is not among the sites.
    """
    if reference is not None and (reference not in sites or not sites[reference].features.count.any()):
        raise DataError(
            "P207", f"The reference site {reference} sent no summary: it needs {LEAST_CASES} training cases.",
            "Choose another `reference_site`.",
        )  # fmt: skip
    total = Total.of(list(sites.values()))
    return estimate_of(total, covariates, None if reference is None else Total.of([sites[reference]]))


def estimate_of(total: Total, covariates: Sequence[str], reference: Total | None = None) -> tuple[Estimate, Tensor]:
    """The same from sums over sites; ``reference`` is what the reference site alone sent.

    Raises:
        DataError: P207, likewise.
    """
    if not total.count.any():
        raise DataError(
            "P207", f"No site has {LEAST_CASES} training cases, so there is nothing to harmonise with.",
            "Use larger sites, or no `harmonisation`.",
        )  # fmt: skip
    beta, solved = _coefficients(total, covariates)
    common = total if reference is None else reference
    residual = (
        common.m2 - 2 * np.einsum("fk,fk->f", common.cross, beta)
        + np.einsum("fkl,fk,fl->f", common.covariate_m2, beta, beta)
    )  # fmt: skip
    grand_mean = common.mean - np.einsum("fk,fk->f", common.covariate_mean, beta)
    variance = residual / np.maximum(common.count, 1.0)
    size = (total.m2 + total.between) / np.maximum(total.count, 1.0) + np.square(total.mean)
    free = total.count - total.sites - beta.shape[1]
    unusable = (variance <= _ROUNDING * size) | (free < 1) | ~solved | (common.count == 0)
    variance = np.where(unusable, 0.0, variance)
    return Estimate(*map(torch.from_numpy, (grand_mean, beta, variance))), torch.from_numpy(unusable)


def _coefficients(total: Total, covariates: Sequence[str]) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """Beta ``[F, K]`` from the sums over sites, and which features have enough values for it.

    Raises:
        DataError: P207, a covariate can't be told from the sites or from the other covariates.
    """
    within, cross, full, between = total.covariate_m2, total.cross, total.count, total.covariate_between
    features, covariate_count = cross.shape
    if not covariate_count:
        return cross, np.ones(features, dtype=np.bool_)
    spread = np.einsum("fkk->fk", within)
    best = int(full.argmax())  # the feature with the most values speaks for the covariates themselves
    for place, name in enumerate(covariates):
        if spread[best, place] <= _CONFOUNDED * (spread[best, place] + between[best, place]) or not spread[best, place]:
            what = "is the same for all cases" if between[best, place] <= 0 else "does not vary within any site"
            raise DataError(
                "P207", f"The covariate {name!r} {what}, so its effect can't be told from that of the site.",
                "Take it out of `covariates`.",
            )  # fmt: skip
    scale = np.sqrt(np.where(spread > 0, spread, 1.0))
    correlation = within / (scale[:, :, None] * scale[:, None, :])
    solvable = np.linalg.eigvalsh(correlation)[:, 0] > _CONFOUNDED
    if not solvable[best]:
        raise DataError(
            "P207", f"Within the sites, the covariates {', '.join(covariates)} determine each other, so their effects "
            "can't be told apart.", "Take one of them out of `covariates`.",
        )  # fmt: skip
    correlation[~solvable] = np.eye(covariate_count)
    beta = np.linalg.solve(correlation, (cross / scale)[:, :, None])[:, :, 0] / scale
    return np.where(solvable[:, None], beta, 0.0), solvable


@dataclass(frozen=True, eq=False)
class SiteEffect:
    """What a site adds to its values and by what it multiplies their spread, in pooled deviations.

    Attributes:
        shift: float64 ``[F]``, gamma.
        spread: float64 ``[F]``, delta squared (as in most implementations, delta is a variance).
    """

    shift: Tensor
    spread: Tensor

    @classmethod
    def none(cls, features: int) -> SiteEffect:
        """That of a reference site, and of a site without training cases."""
        return cls(torch.zeros(features, dtype=torch.float64), torch.ones(features, dtype=torch.float64))

    @classmethod
    def fit(cls, values: Tensor, covariates: Tensor, common: Estimate, *, empirical_bayes: bool = True) -> SiteEffect:
        """A site's effect, from its own training cases.

        The raw shift and spread of a feature are the mean and variance (divided by n - 1) of its standardised values.
        With ``empirical_bayes`` they are the mode of their posterior under a normal and an inverse gamma prior, whose
        parameters are the moments of the raw ones over the site's features; for a feature without values, the prior's
        mean. With fewer than two values the spread is 1.

        Args:
            values: float ``[N, F]`` with NaN where missing.
            covariates: float64 ``[N, K]``.
            common: what all sites have in common.
            empirical_bayes: whether features borrow strength from each other.
        """
        standardised = common.standardise(values, covariates)
        there = ~np.isnan(standardised)
        count = there.sum(axis=0).astype(np.float64)
        shift = np.where(there, standardised, 0.0).sum(axis=0) / np.maximum(count, 1.0)
        squares = np.square(np.where(there, standardised - shift, 0.0)).sum(axis=0)
        spread = squares / np.maximum(count - 1.0, 1.0)
        # No spread at all (one case, or the same value in all) can't be a factor.
        spread = np.where((count > 1) & (spread > _ROUNDING), spread, 1.0)
        usable = common.variance.numpy() > 0
        seen = usable & (count > 0)
        if empirical_bayes and seen.sum() > 1:
            shift, spread = _shrink(shift, spread, squares, count, seen)
        shift, spread = np.where(usable, shift, 0.0), np.where(usable, spread, 1.0)
        return cls(torch.from_numpy(shift), torch.from_numpy(spread))

    def remove(self, values: Tensor, covariates: Tensor, common: Estimate) -> Tensor:
        """Harmonised values: float64 ``[N, F]``, NaN where missing; features with variance 0 as they were."""
        residual = (common.standardise(values, covariates) - self.shift.numpy()) / np.sqrt(self.spread.numpy())
        found = residual * np.sqrt(common.variance.numpy()) + common.expected(covariates)
        unchanged = common.variance.numpy() == 0
        return torch.from_numpy(np.where(unchanged, values.double().numpy(), found))


def _shrink(
    shift: Numbers, spread: Numbers, squares: Numbers, count: Numbers, seen: npt.NDArray[np.bool_]
) -> tuple[Numbers, Numbers]:
    """Empirical Bayes estimates of shift and spread, from the raw ones.

    With the prior ``gamma ~ N(m, t²)`` and ``delta² ~ IG(a, b)``, equation 3 of Johnson et al. is iterated to its fixed
    point:

        gamma = (n t² g + delta² m) / (n t² + delta²)
        delta² = (b + ½ Σ (z - gamma)²) / (a - 1 + n / 2),    Σ (z - gamma)² = Σ (z - g)² + n (g - gamma)²
    """
    prior, variance = shift[seen].mean(), shift[seen].var(ddof=1)
    known = spread[seen & (count > 1)]
    first, second = (known.mean(), known.var(ddof=1)) if len(known) > 1 else (1.0, 0.0)
    gamma, delta, weight = shift, spread, count * variance
    for _ in range(_MOST_STEPS):
        before = gamma, delta
        gamma = (weight * shift + delta * prior) / (weight + delta)
        if second > 0:  # else the features agree on the spread, and there is nothing to shrink
            shape, rate = (2 * second + first**2) / second, (first * second + first**3) / second
            delta = (rate + (squares + count * np.square(shift - gamma)) / 2) / (shape - 1 + count / 2)
        if max(np.abs(gamma - before[0]).max(), np.abs(delta - before[1]).max()) < _TOLERANCE:
            break
    return gamma, delta
