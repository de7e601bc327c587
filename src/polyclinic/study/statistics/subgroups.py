"""Results by groups of patients: within sites first, so that a site's share of ill patients can't pass for skill.

A metric of a group is computed at each site among the group's own test cases there, and the mean over the sites is
taken, weighted by the group's patients. Its gap is that to the rest: at each site where both have a value the
difference between the group and all other known groups, and the mean of these, weighted by n m / (n + m) for n patients
of the group and m of the rest, as Cochran 1954 ("Some methods for strengthening the common chi-squared tests",
Biometrics 10(4)) weights strata. So no group gains or loses by being seen at easier hospitals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from polyclinic.data.opening.subgroups import NOT_KNOWN, group_order
from polyclinic.statistics.calibration import Line
from polyclinic.statistics.intervals import Floats
from polyclinic.statistics.subgroups import Compared, Side, SiteGroups
from polyclinic.study.columns import SUBGROUPS
from polyclinic.study.kinds import RUN, RUNS
from polyclinic.study.statistics.comparisons import Spread, reach
from polyclinic.study.statistics.meta import combine_sites
from polyclinic.study.statistics.over_sites import EXACT, added, weighted_interval
from polyclinic.study.statistics.source import Source, of_run
from polyclinic.study.statistics.within import steadied
from polyclinic.tasks.metrics import value_range

#: Names of the rows on calibration.
CALIBRATION = ("calibration intercept", "calibration slope")
#: Why there is no value: at each site a class is missing in the group, say.
UNDEFINED = "not defined at any site"
#: Why there is none of a group that has few patients at each site, which keep their predictions.
UNTOLD = "too few patients at each site"
Interval = tuple[float, float]
NOTHING: Interval = (math.nan, math.nan)


def subgroup_table(
    source: Source, results: pd.DataFrame, *, columns: Sequence[str], binary: bool, least: int
) -> pd.DataFrame:
    """The table ``subgroups.csv``: a row for each method, kind of run, subgroup, group and metric.

    Groups with fewer than ``least`` patients have no numbers. Patients whose group is not known are a group, which is
    compared with nobody.

    Args:
        source: gives what the sites say.
        results: method and run of all that was tested.
        columns: names of the subgroups, in their order.
        binary: whether there are two classes, so that calibration is added.
        least: patients that a group must have.

    Returns:
        Rows with the columns `SUBGROUPS`.
    """
    rows: list[tuple[object, ...]] = []
    for run in [run for run in RUNS if (results[RUN] == run).any()]:
        methods = list(dict.fromkeys(results["method"][results[RUN] == run]))
        sites = source.groups(of_run(run, methods))
        said = {place.method for site in sites.values() for place in site.found}
        for method in [method for method in methods if method in said]:
            for column in columns:
                rows += [(method, run, column, *row) for row in _subgroup(sites, method, column, least, binary=binary)]
    table = pd.DataFrame(rows, columns=SUBGROUPS)
    return table.astype(dict.fromkeys(("cases", "patients", "sites", "gap_sites"), "Int64"))


def _subgroup(
    sites: Mapping[str, SiteGroups], method: str, column: str, least: int, *, binary: bool
) -> Iterator[tuple[object, ...]]:
    """The rows of one method and subgroup, from ``group`` on: groups in their order, the unknown last."""
    found: dict[str, dict[str, Compared]] = {}
    for name, site in sites.items():
        for place, one in site.found.items():
            if place[:2] == (method, column):
                found.setdefault(place.group, {})[name] = one
    withheld = {group for site in sites.values() for own, group in site.withheld if own == column}
    names = list(dict.fromkeys(metric for site in sites.values() for metric in site.metrics))
    asked = [*names, *(CALIBRATION if binary else ())]
    for group in sorted({*found, *withheld}, key=group_order):
        own = found.get(group, {})
        patients, cases = (sum(getattr(one.own, name) for one in own.values()) for name in ("patients", "cases"))
        if patients < least or not own:
            few = UNTOLD if not own else f"fewer than {least} patients"
            yield from ((group, None, None, name, None, *[math.nan] * 3, None, *[math.nan] * 3, few) for name in asked)
            continue
        rest = sum(one.rest.patients for one in own.values() if one.rest is not None)
        compared = group != NOT_KNOWN and rest >= least
        lines = list(_calibration(own, compared=compared)) if binary else []
        rows = [_numbers(own, sites, name, compared=compared) for name in names] + lines
        for name, numbers in zip(asked, rows, strict=True):
            yield (group, cases, patients, name, *numbers, "" if numbers[0] else UNDEFINED)


def _numbers(
    own: Mapping[str, Compared], sites: Mapping[str, SiteGroups], metric: str, *, compared: bool
) -> tuple[object, ...]:
    """sites, value, low, high, gap_sites, gap, gap_low, gap_high."""
    places = {site: list(sites[site].metrics).index(metric) for site in own if metric in sites[site].metrics}
    known = [(own[site].own, k) for site, k in places.items() if np.isfinite(own[site].own.values[k])]
    value, (low, high, _) = _mean(known, [float(side.patients) for side, _ in known], metric)
    pairs = [(one.alike, one.rest, float(one.gaps[k]), k) for site, k in places.items()
             if (one := own[site]).rest is not None]  # fmt: skip
    both = [
        (mine, rest, gap, k)
        for mine, rest, gap, k in pairs
        if rest is not None and np.isfinite([mine.values[k], rest.values[k]]).all()
    ]
    if not compared or not both:
        return (len(known), value, low, high, None, *[math.nan] * 3)
    weights = [mine.patients * rest.patients / (mine.patients + rest.patients) for mine, rest, _, _ in both]
    of_group, mine = _mean([(mine, k) for mine, _, _, k in both], weights, metric)
    of_rest, others = _mean([(rest, k) for _, rest, _, k in both], weights, metric)
    gap = of_group - of_rest
    spread = np.array([gap for _, _, gap, _ in both])
    counted = np.array([min(mine.counted[k], rest.counted[k]) for mine, rest, _, k in both])
    if EXACT in (mine[2], others[2]):
        ends = _moved(gap, (of_group, *mine[:2]), (of_rest, *others[:2]))
    else:
        ends = _gap_interval(gap, np.array(weights) / sum(weights), spread, counted)
    most = float(np.subtract(*value_range(metric)[::-1]))  # no difference is larger
    return (len(known), value, low, high, len(both), gap, *(float(np.clip(end, -most, most)) for end in ends))


def _mean(
    sides: Sequence[tuple[Side, int]], weights: Sequence[float], metric: str
) -> tuple[float, tuple[float, float, str]]:
    """Weighted mean over the sites of the values in a place, and its interval."""
    if not sides:
        return math.nan, (*NOTHING, "")
    shares = np.array(weights) / sum(weights)
    values, variances, counted = (
        np.array([getattr(side, name)[k] for side, k in sides]) for name in ("values", "variances", "counted")
    )
    mean = float(shares @ values)
    if not np.isfinite(variances).any():
        return mean, (*NOTHING, "")
    return mean, weighted_interval(mean, shares, variances, counted, metric)


def _gap_interval(gap: float, shares: Floats, variances: Floats, counted: Floats) -> Interval:
    """95 % interval of a mean difference, as of a mean: see `polyclinic.study.statistics.over_sites.mean_interval`."""
    if not np.isfinite(variances).any():
        return NOTHING
    half = reach([Spread(*added(np.square(shares) * steadied(variances, counted), counted))])
    return gap - half, gap + half


def _moved(gap: float, mine: tuple[float, float, float], rest: tuple[float, float, float]) -> Interval:
    """95 % interval of the difference of two shares from those of both, where one reaches an end of its range.

    Zou & Donner 2008, "Construction of confidence limits about effect measures: a general approach", Statistics in
    Medicine 27(10).
    """
    below = math.hypot(mine[0] - mine[1], rest[2] - rest[0])
    above = math.hypot(mine[2] - mine[0], rest[0] - rest[1])
    return gap - below, gap + above


def _calibration(own: Mapping[str, Compared], *, compared: bool) -> Iterator[tuple[object, ...]]:
    """The same numbers of intercept and slope, put together over the sites by random-effects meta-analysis."""
    for place in (0, 1):
        mine = [one.own.lines[place] for one in own.values()]
        pairs = [(one.own.lines[place], one.rest.lines[place]) for one in own.values() if compared and one.rest]
        gaps = [Line(a.value - b.value, a.variance + b.variance) for a, b in pairs]
        yield (*_combined(mine, always=True), *_combined(gaps, always=False))


def _combined(lines: Sequence[Line], *, always: bool) -> tuple[object, ...]:
    """Number of sites, mean, low and high; without any site no number, or 0 sites if ``always``."""
    known = [one for one in lines if math.isfinite(one.value) and math.isfinite(one.variance)]
    if not known:
        return (0 if always else None, *[math.nan] * 3)
    combined = combine_sites([one.value for one in known], [one.variance for one in known])
    return (len(known), combined.mean, *combined.interval)
