"""How sure the mean over the sites is, from what each site says of its own value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from polyclinic.statistics.evidence import Evidence
from polyclinic.statistics.intervals import Floats
from polyclinic.study.statistics.comparisons import Spread, reach
from polyclinic.study.statistics.together import NO_INTERVAL, Interval, exact_interval, is_share
from polyclinic.study.statistics.within import steadied
from polyclinic.tasks.metrics import value_range

ADDED = "variances of the sites, added"
EXACT = "exact interval of a share with the sites' variances"


def site_shares(results: pd.DataFrame) -> dict[str, float]:
    """How much each site counts in the mean over the sites, where each seed and fold counts the same.

    Args:
        results: seed, fold, tested_on and value, of one method, metric and kind of run, at sites that are scored.
    """
    found = results[results["value"].notna()]
    counts = found.groupby(["seed", "fold", "tested_on"], sort=False).size()
    cells = counts.groupby(["seed", "fold"], sort=False)
    each = counts / cells.transform("sum") / max(cells.ngroups, 1)
    return {str(site): float(share) for site, share in each.groupby("tested_on", sort=False).sum().items()}


def mean_interval(
    mean: float, shares: Mapping[str, float], evidence: Mapping[str, Evidence], method: str, metric: str
) -> Interval:
    """95 % interval of the mean over the sites, for other patients of the same sites.

    Sites have different patients, so the variances of their values add, times the squares of their shares; those of
    small sites are steadied, see `polyclinic.study.statistics.within.steadied`. Student's t has the degrees of freedom
    of Satterthwaite 1946, with those of a site one less than it has patients. Where the interval of a share would go
    beyond an end of its range, it is the exact one for as many cases as have the variance.

    Args:
        mean: over the sites.
        shares: what ``site_shares`` gives.
        evidence: of each site, by the metric.
        method: its label.
        metric: its name.
    """
    places = {site: list(one.methods).index(method) for site, one in evidence.items() if method in one.methods}
    if not shares or not np.isfinite(mean) or not shares.keys() <= places.keys():
        return NO_INTERVAL
    variances = np.array([evidence[site].variances[places[site], places[site]] for site in shares])
    patients = np.array([evidence[site].patients[places[site]] for site in shares])
    if not np.isfinite([variances, patients]).all():
        return NO_INTERVAL
    return weighted_interval(mean, np.array(list(shares.values())), variances, patients, metric)


def weighted_interval(mean: float, shares: Floats, variances: Floats, patients: Floats, metric: str) -> Interval:
    """95 % interval of a weighted mean over K sites; see `mean_interval`.

    Args:
        mean: the mean.
        shares: how much each site counts, [K]; their sum is 1.
        variances: of the sites' values, [K]; where one is NaN, that of all sites stands for it.
        patients: among how many patients each is found, [K].
        metric: its name.
    """
    steady = steadied(variances, patients)
    if not len(shares) or not np.isfinite([*steady, mean]).all():
        return NO_INTERVAL
    squares = np.square(shares)
    variance, freedom = added(squares * steady, patients)
    half = reach([Spread(variance, freedom)])
    lower, upper = value_range(metric)
    if is_share(metric) and not lower < mean - half < mean + half < upper:
        return (*exact_interval(mean, variance, 1 / float((squares / patients).sum())), EXACT)
    return max(mean - half, lower), min(mean + half, upper), ADDED


def added(parts: Floats, patients: Floats) -> tuple[float, float]:
    """The sum of the sites' parts [K] of a variance, and its degrees of freedom."""
    variance = float(parts.sum())
    freedom = variance**2 / float((np.square(parts) / np.maximum(patients - 1, 1)).sum()) if variance else np.inf
    return variance, freedom
