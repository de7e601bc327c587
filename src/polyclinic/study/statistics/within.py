"""Two methods compared within sites: the sites' own differences, put together by a random-effects meta-analysis.

Scores of different sites are never ranked against each other, so a method gains nothing by knowing how frequent the
finding is at a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from polyclinic.statistics.evidence import Evidence
from polyclinic.statistics.intervals import Floats, holm
from polyclinic.statistics.samples import mean_of_known
from polyclinic.study.columns import COMPARED, COMPARED_SITES
from polyclinic.study.statistics.comparisons import Comparison
from polyclinic.study.statistics.meta import NOTHING, Combined, combine_sites
from polyclinic.tasks.metrics import value_range

#: How many patients' worth the other sites' evidence has on how sure a site's own difference is.
BORROWED = 5.0


@dataclass(frozen=True)
class Within:
    """One method compared with another within sites.

    Attributes:
        combined: the difference over hospitals such as these; chance in training is in its variance, where it is seen.
        differences: site -> its own difference.
        errors: site -> the standard error of that, with other patients of the site and the same models.
    """

    combined: Combined
    differences: dict[str, float]
    errors: dict[str, float]

    @property
    def comparison(self) -> Comparison:
        """Difference, interval and p."""
        return Comparison(self.combined.mean, *self.combined.interval, self.combined.p)


def within_sites(evidence: Mapping[str, Evidence], methods: tuple[str, str]) -> Within:
    """Compare two methods.

    Each site's difference is the mean over the seeds and folds in which both have a value there. With two seeds or
    more, how far the seeds' combined differences lie apart is added to the variance: a training is better or worse at
    all sites at once, which no comparison of sites can tell from the method.

    Args:
        evidence: of the sites that are scored, by one metric.
        methods: the method and the one that it is compared with.
    """
    found = {site: of for site, one in evidence.items() if (of := _of_site(one, methods)) is not None}
    if not found:
        return Within(NOTHING, {}, {})
    by_seed, variances, patients = zip(*found.values(), strict=True)
    names = sorted({seed for of in by_seed for seed in of})
    seeds = np.array([[of.get(seed, np.nan) for of in by_seed] for seed in names])  # [S, K]
    differences = mean_of_known(seeds).round(12)
    steady = steadied(np.array(variances), np.array(patients))
    combined = combine_sites(differences, steady)
    known = np.isfinite(seeds)
    total = (known * combined.weights).sum(axis=1)
    of_seeds = np.divide(
        (np.where(known, seeds, 0.0) * combined.weights).sum(axis=1),
        total,
        out=np.full(len(total), np.nan),
        where=total > 0,
    )
    return Within(
        combined.with_training(of_seeds),
        dict(zip(found, differences.tolist(), strict=True)),
        dict(zip(found, np.sqrt(steady).tolist(), strict=True)),
    )


def _of_site(evidence: Evidence, methods: tuple[str, str]) -> tuple[dict[int, float], float, float] | None:
    """Difference of each seed, the variance of their mean, and among how many patients; None where there is none."""
    if not set(methods) <= set(evidence.methods):
        return None
    a, b = (list(evidence.methods).index(method) for method in methods)
    differences = evidence.differences[:, a, b]
    if np.isnan(differences).all():
        return None
    by_seed = dict(zip(evidence.seeds, differences.tolist(), strict=True))
    return by_seed, float(evidence.variances[a, b]), float(evidence.patients[[a, b]].min())


def steadied(variances: Floats, patients: Floats) -> Floats:
    """Variances [K] of sites' differences, in which a small site's is partly that of all sites.

    A few patients of whom both methods are right say nothing of how sure that is: their variance is 0, and such a site
    would count for more than all others. What a patient contributes is therefore taken from the site's own patients and
    from `BORROWED` ones of all sites.

    Args:
        variances: of each site; NaN where it is not known.
        patients: among how many patients each is found, [K].
    """
    known = np.isfinite(variances) & (patients > 0)
    if not known.any():
        return variances
    each = np.where(known, variances * patients, 0.0)
    common = float((each * patients)[known].sum() / patients[known].sum())
    own = np.where(known, patients, 0.0)
    found: Floats = (own * each + BORROWED * common) / (own + BORROWED) / np.where(patients > 0, patients, np.nan)
    return found


def within_tables(
    evidence: Mapping[str, Mapping[str, Mapping[str, Evidence]]], baselines: Mapping[str, str], primary: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All comparisons within sites, and what each site says of them.

    By the primary metric each two methods are compared, by others each method with the baselines.

    Args:
        evidence: kind of run -> metric -> site -> what it says.
        baselines: name of each of `polyclinic.study.baselines.BASELINES` -> label of the method that is it.
        primary: name of the primary metric.

    Returns:
        ``comparisons.csv`` and ``site_comparisons.csv``, with the columns `COMPARED` and `COMPARED_SITES`.
    """
    rows, at_sites = list[tuple[object, ...]](), list[tuple[object, ...]]()
    for run, by_metric in evidence.items():
        for metric, of_sites in by_metric.items():
            most = float(np.subtract(*value_range(metric)[::-1]))  # no difference is larger
            methods = list(dict.fromkeys(method for one in of_sites.values() for method in one.methods))
            for versus in methods if metric == primary else [one for one in baselines.values() if one in methods]:
                found = {method: within_sites(of_sites, (method, versus)) for method in methods if method != versus}
                found = {method: one for method, one in found.items() if one.combined.sites}
                adjusted = [np.nan] * len(found)
                if versus in baselines.values():
                    adjusted = holm([one.combined.p for one in found.values()]).tolist()
                for (method, one), p in zip(found.items(), adjusted, strict=True):
                    key, combined = (method, run, metric, versus), one.combined
                    low, high, least, highest = np.clip([*combined.interval, *combined.expected], -most, most).tolist()
                    rows.append((
                        *key, combined.sites, combined.mean, low, high, combined.p, p, combined.between,
                        combined.unlike, least, highest,
                    ))  # fmt: skip
                    parts = zip(one.differences.items(), one.errors.values(), combined.weights, strict=True)
                    at_sites += [(*key, *difference, error, weight) for difference, error, weight in parts]
    return pd.DataFrame(rows, columns=COMPARED), pd.DataFrame(at_sites, columns=COMPARED_SITES)
