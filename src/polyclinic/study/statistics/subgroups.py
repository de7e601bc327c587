"""Results by groups of patients: within sites first, so that a site's share of ill patients can't pass for skill.

A metric of a group is computed at each site among the group's own test cases there, and the mean over the sites is
taken, weighted by the group's patients. Its gap is that to the rest: at each site where both have a value the
difference between the group and all other known groups, and the mean of these, weighted by n m / (n + m) for n patients
of the group and m of the rest, as Cochran 1954 ("Some methods for strengthening the common chi-squared tests",
Biometrics 10(4)) weights strata. So no group gains or loses by being seen at easier hospitals.

All folds of a seed are taken together, since each patient is tested in one of them; numbers are means over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.data.opening.subgroups import NOT_KNOWN, group_order
from polyclinic.statistics.calibration import Line, calibration_line
from polyclinic.statistics.columns import SUBGROUP
from polyclinic.statistics.intervals import (
    Floats,
    bootstrap_interval,
    patient_weights,
    share_interval,
    touches_end,
)
from polyclinic.statistics.samples import BLOCK, Cases, Group, Rows, mean_of_known
from polyclinic.study.columns import SUBGROUPS
from polyclinic.study.kinds import RUN, RUNS
from polyclinic.study.statistics.meta import combine_sites
from polyclinic.tasks.metrics import METRICS, split_metric, value_range

#: Names of the rows on calibration.
CALIBRATION = ("calibration intercept", "calibration slope")
#: Why there is no value: at each site a class is missing in the group, say.
UNDEFINED = "not defined at any site"
Interval = tuple[float, float]
#: Site -> which metrics are known there, [M, 1] or [M, b].
Marks = Mapping[str, NDArray[np.bool_]]
NOTHING: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Member:
    """A group of a subgroup, as one method predicted it.

    Attributes:
        group: its name.
        own, rest: site -> rows of each seed, of the group and of all other known groups.
        patients, cases: numbers of the group, each once.
    """

    group: str
    own: Mapping[str, list[Rows]]
    rest: Mapping[str, list[Rows]]
    patients: int
    cases: int


@dataclass
class Sums:
    """Weighted sums over the sites, [M, b] each, of one block of resamples after another."""

    value: list[Floats] = field(default_factory=list)
    gap: list[Floats] = field(default_factory=list)
    compared: list[Floats] = field(default_factory=list)
    """Of the group, over the sites where it is compared."""
    others: list[Floats] = field(default_factory=list)
    sites: Floats = field(default_factory=lambda: np.empty(0))
    gap_sites: Floats = field(default_factory=lambda: np.empty(0))


def subgroup_table(
    predictions: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    metrics: Sequence[str],
    least: int,
    seed: int = 0,
    bootstrap: int = 1000,
) -> pd.DataFrame:
    """The table ``subgroups.csv``: a row for each method, kind of run, subgroup, group and metric.

    Methods that predict a case with the models of several other sites (``cross``) are left out. Groups with fewer than
    ``least`` patients have no numbers. Patients whose group is not known are a group, which is compared with nobody.

    Args:
        predictions: as in ``predictions.csv``, with a column ``subgroup: NAME`` for each subgroup.
        task: name of the task.
        classes: names of the classes.
        metrics: those of the study; for binary classification calibration is added.
        least: patients that a group must have.
        seed: of the resamples, which are the same for all groups and methods.
        bootstrap: number of resamples of patients; 0 gives no intervals of the metrics.

    Returns:
        Rows with the columns `SUBGROUPS`; none where there is no subgroup.
    """
    names = [str(column) for column in predictions.columns if str(column).startswith(SUBGROUP)]
    rows: list[tuple[object, ...]] = []
    for run in [run for run in RUNS if names and (predictions[RUN] == run).any()]:
        cases = Cases(predictions[predictions[RUN] == run], task, len(classes), metrics)
        for method, own in cases.rows.items():
            if cases.frame.iloc[own].duplicated(["seed", "fold", "site", "case"]).any():
                continue
            for column in names:
                found = _subgroup(cases, method, own, column, least, seed, bootstrap)
                rows += [(method, run, column.removeprefix(SUBGROUP), *row) for row in found]
    table = pd.DataFrame(rows, columns=SUBGROUPS)
    return table.astype(dict.fromkeys(("cases", "patients", "sites", "gap_sites"), "Int64"))


def _subgroup(
    cases: Cases, method: str, own: Rows, column: str, least: int, seed: int, bootstrap: int
) -> Iterator[tuple[object, ...]]:
    """The rows of one method and subgroup, from ``group`` on."""
    members = list(_members(cases, own, column))
    shown = [one for one in members if one.patients >= least]
    sums = _sums(cases, shown, seed, bootstrap)
    asked = [*cases.names, *(CALIBRATION if cases.binary else ())]
    for one in members:
        if one.patients < least:
            few = f"fewer than {least} patients"
            yield from (
                (one.group, None, None, name, None, *[math.nan] * 3, None, *[math.nan] * 3, few) for name in asked
            )
            continue
        compared = one.group != NOT_KNOWN and _patients(cases, one.rest) >= least
        counts = (one.group, one.cases, one.patients)
        for place, name in enumerate(cases.names):
            numbers = _numbers(cases, method, one, sums[one.group], place, compared=compared)
            yield (*counts, name, *numbers, "" if numbers[0] else UNDEFINED)
        if cases.binary:
            lines = _calibration(cases, one, compared=compared)
            for name, numbers in zip(CALIBRATION, lines, strict=True):
                yield (*counts, name, *numbers, "" if numbers[0] else UNDEFINED)


def _members(cases: Cases, own: Rows, column: str) -> Iterator[Member]:
    """The groups in the order of their names, those of intervals in the order of the numbers, the unknown last."""
    groups = cases.frame[column].to_numpy()[own]
    names = sorted({str(name) for name in groups}, key=group_order)
    for name in names:
        mine = own[groups == name]
        others = own[(groups != name) & (groups != NOT_KNOWN)] if name != NOT_KNOWN else own[:0]
        frame = cases.frame.iloc[mine]
        yield Member(
            name, _by_site(cases, mine), _by_site(cases, others), len(np.unique(cases.patient[mine])),
            len(frame.drop_duplicates(["site", "case"])),
        )  # fmt: skip


def _by_site(cases: Cases, rows: Rows) -> dict[str, list[Rows]]:
    found: dict[str, list[Rows]] = {}
    frame = cases.frame.iloc[rows].reset_index(drop=True)
    for (site, _), own in frame.groupby(["site", "seed"]):
        found.setdefault(str(site), []).append(rows[own.index.to_numpy()])
    return found


def _patients(cases: Cases, rows: Mapping[str, list[Rows]]) -> int:
    every = [own for seeds in rows.values() for own in seeds]
    return len(np.unique(cases.patient[np.concatenate(every)])) if every else 0


def _count(cases: Cases, seeds: Sequence[Rows]) -> int:
    return len(np.unique(cases.patient[np.concatenate(seeds)]))


# --- metrics ----------------------------------------------------------------------------------------------------------


def _sums(cases: Cases, members: Sequence[Member], seed: int, bootstrap: int) -> dict[str, Sums]:
    """Group -> its values as they are, then of each resample of the patients."""
    found = {one.group: Sums() for one in members}
    if not cases.names or not members:
        return found
    plain = np.ones((len(cases.patients), 1))
    draws = patient_weights(cases.patients, bootstrap, seed, block=max(1, 20 * BLOCK // len(cases.patients)))
    known: dict[str, tuple[Marks, Marks]] = {}
    for weights in chain([plain], draws):
        for one in members:
            own, rest = _values(cases, one.own, weights), _values(cases, one.rest, weights)
            if weights is plain:
                own_known = {site: np.isfinite(values) for site, values in own.items()}
                both = {site: own_known[site] & np.isfinite(rest[site]) for site in own if site in rest}
                known[one.group] = own_known, both
            _add(cases, one, own, rest, known[one.group], found[one.group])
    return found


def _values(cases: Cases, rows: Mapping[str, list[Rows]], weights: Floats) -> dict[str, Floats]:
    """Site -> metrics [M, b], means over the seeds."""
    return {
        site: mean_of_known(np.stack([cases.measure(own, weights[cases.patient[own]]) for own in seeds]))
        for site, seeds in rows.items()
    }


def _add(
    cases: Cases,
    one: Member,
    own: Mapping[str, Floats],
    rest: Mapping[str, Floats],
    known: tuple[Marks, Marks],
    sums: Sums,
) -> None:
    """One block more: a site counts where it has a value of the patients as they are."""
    own_known, both = known
    sizes = {site: _count(cases, seeds) for site, seeds in one.own.items()}
    shares = {site: sizes[site] * m / (sizes[site] + m) for site in both for m in [_count(cases, one.rest[site])]}
    shape = next(iter(own.values())).shape
    sums.value.append(_weighted(own, own_known, sizes, shape))
    there = {site: both[site] & np.isfinite(own[site]) & np.isfinite(rest[site]) for site in both}
    sums.compared.append(_weighted(own, there, shares, shape))
    sums.others.append(_weighted(rest, there, shares, shape))
    sums.gap.append(sums.compared[-1] - sums.others[-1])
    if not sums.sites.size:
        sums.sites = np.sum([ok[:, 0] for ok in own_known.values()], axis=0)
        sums.gap_sites = np.sum([ok[:, 0] for ok in both.values()], axis=0) if both else np.zeros(shape[0])


def _weighted(
    values: Mapping[str, Floats], known: Marks, weights: Mapping[str, float], shape: tuple[int, ...]
) -> Floats:
    """Mean over the sites [M, b], of what is known; NaN where nothing is."""
    total, counted = np.zeros(shape), np.zeros(shape)
    for site, ok in known.items():
        there = ok & np.isfinite(values[site])
        total += np.where(there, weights[site] * values[site], 0.0)
        counted += weights[site] * there
    mean: Floats = np.divide(total, counted, out=np.full(shape, np.nan), where=counted > 0)
    return mean


def _numbers(cases: Cases, method: str, one: Member, sums: Sums, place: int, *, compared: bool) -> tuple[object, ...]:
    """sites, value, low, high, gap_sites, gap, gap_low, gap_high."""
    name = cases.names[place]
    value = np.concatenate(sums.value, axis=1)[place]
    own = (int(sums.sites[place]), float(value[0]), *_interval(cases, method, name, value, one.own))
    if not compared or not sums.gap_sites[place]:
        return (*own, None, *[math.nan] * 3)
    gap, mine, others = (np.concatenate(of, axis=1)[place] for of in (sums.gap, sums.compared, sums.others))
    ends = _gap_interval(cases, method, name, (gap, mine, others), one)
    return (*own, int(sums.gap_sites[place]), float(gap[0]), *ends)


def _interval(
    cases: Cases, method: str, name: str, values: Floats, rows: Mapping[str, list[Rows]]
) -> Interval:  # fmt: skip
    """95 % interval of a value, from the draws behind it; the exact one of a share whose draws reach an end."""
    lower, upper = value_range(name)
    if math.isnan(values[0]):
        return NOTHING
    if _ends(name, values):
        groups = [Group(seed, 0, own) for seeds in rows.values() for seed, own in enumerate(seeds)]
        count = cases.counted(name, method, groups)
        return share_interval(float(values[0]), count) if count > 0 else NOTHING
    return bootstrap_interval(float(values[0]), values[1:], upper, lower)


def _ends(name: str, values: Floats) -> bool:
    """Whether the draws of a share reach an end of its range, where they see too little of chance."""
    base = split_metric(name)[0]
    share = value_range(name) == (0.0, 1.0) and base in METRICS and METRICS[base].higher_is_better
    return share and touches_end(values[1:])


def _gap_interval(
    cases: Cases, method: str, name: str, values: tuple[Floats, Floats, Floats], one: Member
) -> Interval:  # fmt: skip
    """95 % interval of a gap from common draws; where a share reaches an end, from the intervals of both sides.

    The latter by Zou & Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine
    27(10).
    """
    gap, mine, others = values
    lower, upper = value_range(name)
    reach = upper - lower
    if _ends(name, mine) or _ends(name, others):
        (low, high), (rest_low, rest_high) = (
            _interval(cases, method, name, part, rows) for part, rows in ((mine, one.own), (others, one.rest))
        )
        below = math.hypot(mine[0] - low, rest_high - others[0])
        above = math.hypot(high - mine[0], others[0] - rest_low)
        return max(float(gap[0]) - below, -reach), min(float(gap[0]) + above, reach)
    return bootstrap_interval(float(gap[0]), gap[1:], reach, -reach)


# --- calibration ------------------------------------------------------------------------------------------------------


def _calibration(cases: Cases, one: Member, *, compared: bool) -> Iterator[tuple[object, ...]]:
    """The same numbers of intercept and slope, put together over the sites by random-effects meta-analysis."""
    own = {site: _lines(cases, seeds) for site, seeds in one.own.items()}
    rest = {site: _lines(cases, seeds) for site, seeds in one.rest.items()} if compared else {}
    for place in (0, 1):
        mine = [lines[place] for lines in own.values()]
        gaps = [
            Line(own[site][place].value - lines[place].value, own[site][place].variance + lines[place].variance)
            for site, lines in rest.items()
            if site in own
        ]
        yield (*_combined(mine, always=True), *_combined(gaps, always=False))


def _lines(cases: Cases, seeds: Sequence[Rows]) -> tuple[Line, Line]:
    """Intercept and slope at a site, means over the seeds."""
    each = [calibration_line(cases.labels[own], cases.scores[own], cases.patient[own]) for own in seeds]
    return (_mean([one for one, _ in each]), _mean([one for _, one in each]))


def _mean(lines: Sequence[Line]) -> Line:
    values = np.array([(one.value, one.variance) for one in lines])
    return Line(*map(float, values.mean(axis=0)))


def _combined(lines: Sequence[Line], *, always: bool) -> tuple[object, ...]:
    """Number of sites, mean, low and high; without any site no number, or 0 sites if ``always``."""
    known = [one for one in lines if math.isfinite(one.value) and math.isfinite(one.variance)]
    if not known:
        return (0 if always else None, *[math.nan] * 3)
    combined = combine_sites([one.value for one in known], [one.variance for one in known])
    return (len(known), combined.mean, *combined.interval)
