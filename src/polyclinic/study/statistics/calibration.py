"""Calibration and decision curves of the sites as tables, with all sites put together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from polyclinic.statistics.calibration import THRESHOLDS, Line, Trust
from polyclinic.statistics.intervals import Z95
from polyclinic.study.columns import CALIBRATION, DECISIONS
from polyclinic.study.statistics.meta import combine_sites

#: Name of the rows in which all sites stand together.
TOGETHER = "all"
#: Site -> method -> what the site says of its probabilities; None where a case has several predictions.
SitesTrust = Mapping[str, Mapping[str, Trust | None]]


def calibration_tables(found: Mapping[str, SitesTrust]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Calibration of each method at each site and over the sites, and decision curves of each site.

    Over the sites they are put together by `polyclinic.study.statistics.meta.combine_sites`. A method that predicted a
    case several times somewhere is left out.

    Args:
        found: kind of run -> what the sites that are scored by themselves say.

    Returns:
        ``calibration.csv`` and ``decisions.csv``, with the columns `CALIBRATION` and `DECISIONS`.
    """
    rows, decisions = list[tuple[object, ...]](), list[tuple[object, ...]]()
    for run, of_sites in found.items():
        for method in dict.fromkeys(method for of_site in of_sites.values() for method in of_site):
            said = {site: of_site[method] for site, of_site in of_sites.items() if method in of_site}
            known = {site: one for site, one in said.items() if one is not None}
            if len(known) < len(said):
                continue
            for site, one in known.items():
                lines = (*_row(one.intercept), *_row(one.slope))
                rows.append((method, run, site, one.cases, one.positive, *lines, *[math.nan] * 4))
                curve = zip(THRESHOLDS, one.benefit, one.everybody, strict=True)
                decisions += [(method, run, site, *point) for point in curve]
            counts = (sum(one.cases for one in known.values()), sum(one.positive for one in known.values()))
            rows.append((method, run, TOGETHER, *counts, *_together(list(known.values()))))
    return pd.DataFrame(rows, columns=CALIBRATION), pd.DataFrame(decisions, columns=DECISIONS)


def _row(line: Line) -> tuple[float, float, float]:
    half = Z95 * math.sqrt(line.variance)
    return line.value, line.value - half, line.value + half


def _together(found: Sequence[Trust]) -> Iterator[float]:
    expected = list[float]()
    for lines in ([one.intercept for one in found], [one.slope for one in found]):
        known = [line for line in lines if math.isfinite(line.value)]
        combined = combine_sites([line.value for line in known], [line.variance for line in known])
        yield from (combined.mean, *combined.interval)
        expected += combined.expected
    yield from expected
