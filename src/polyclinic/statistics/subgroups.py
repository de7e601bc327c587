"""What one site says of groups of its patients: metrics of each group and of the rest; of no patient.

All folds of a seed are taken together, since each patient is tested in one of them; numbers are means over the seeds.
A metric that is a mean over classes, or over several labels, is of those that there are in a group, and the rest may
have others. So the two are compared by those that both have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.opening.subgroups import NOT_KNOWN
from polyclinic.statistics.calibration import NOTHING, Line, calibration_line
from polyclinic.statistics.columns import SUBGROUP
from polyclinic.statistics.intervals import Floats, patient_weights, placements
from polyclinic.statistics.samples import BLOCK, Cases, Group, Rows, mean_of_known


class Place(NamedTuple):
    """A group of a subgroup, as one method predicted it."""

    method: str
    subgroup: str
    group: str


@dataclass(frozen=True)
class Side:
    """A group, or the rest that it is compared with, by K metrics.

    Attributes:
        patients, cases: how many, each once.
        values: means over the seeds, [K].
        variances: of these, with other patients and the same models, [K].
        counted: among how many patients a value is found, [K]; see `Cases.counted`.
        lines: calibration intercept and slope, means over the seeds.
    """

    patients: int
    cases: int
    values: Floats
    variances: Floats
    counted: Floats
    lines: tuple[Line, Line]


@dataclass(frozen=True)
class Compared:
    """A group, and how it differs from the rest.

    Attributes:
        own: the group.
        rest: all other known groups, by the classes and labels that the group has, too; None if there is none.
        gaps: variances of the difference, [K].
        alike: the group by the classes and labels that the rest has, too.
    """

    own: Side
    rest: Side | None
    gaps: Floats
    alike: Side


@dataclass(frozen=True)
class SiteGroups:
    """What a site says.

    Attributes:
        metrics: names, [K].
        found: what is said of each group.
        withheld: groups of which nothing is said, as (subgroup, group).
        mixed: subgroups in which patients whose group is not known are so few that they count with the rest.
    """

    metrics: Sequence[str]
    found: Mapping[Place, Compared]
    withheld: Sequence[tuple[str, str]] = ()
    mixed: Sequence[str] = ()


@dataclass
class _Told:
    """What may be told of one subgroup."""

    withheld: list[str] = field(default_factory=list)
    mixed: bool = False


def site_groups(
    predictions: pd.DataFrame, task: str, classes: int, metrics: Sequence[str], *, seed: int = 0,
    bootstrap: int = 1000, floor: int = 1,
) -> SiteGroups:  # fmt: skip
    """The groups of one site in one kind of run.

    Variances of areas under the curve are DeLong's, where each patient has one case; of all other metrics they are
    those of a bootstrap over patients, with the same draws for all. Methods that predict a case with several models
    (``cross``) are left out.

    With a floor a group is told only if it has that many patients, and so many or none are in all groups together that
    are not told: else these could be found by subtraction. Where fewer patients are of no known group, they count with
    the rest, for the same reason; where the rest has fewer, there is none.

    Args:
        predictions: method, seed, fold, trained_on, site, subject, case, the columns of the task, and a column
            ``subgroup: NAME`` for each subgroup.
        task: its name.
        classes: how many.
        metrics: names of those that are asked for.
        seed: of the draws.
        bootstrap: number of draws B.
        floor: least number of patients of whom something is said.
    """
    several = predictions.duplicated(["method", "seed", "fold", "site", "case"])
    frame = predictions[~predictions["method"].isin(predictions["method"][several])].assign(fold=0)
    columns = [str(name) for name in frame.columns if str(name).startswith(SUBGROUP)]
    if frame.empty or not columns:
        return SiteGroups(list(metrics), {})
    cases = Cases(frame, task, classes, metrics)
    told = {column: _told(cases, column, floor) for column in columns}
    sides = list(_sides(cases, told, floor))
    found = dict[Place, Compared]()
    pairs = [_Pair(cases, own, rest, floor) for _, own, rest in sides]
    for (place, own, rest), pair, (values, variances, gaps) in zip(
        sides, pairs, _measured(cases, sides, pairs, seed, bootstrap), strict=True
    ):
        mine, others, alike = (
            _side(cases, place.method, rows, values[n], variances[n], pair, compared) if len(rows) else None
            for n, (rows, compared) in enumerate(((own, None), (rest, 1), (own, 0)))
        )
        found[place] = Compared(cast(Side, mine), others, gaps, cast(Side, alike))
    return SiteGroups(
        list(cases.names), found,
        [(column.removeprefix(SUBGROUP), group) for column, one in told.items() for group in one.withheld],
        [column.removeprefix(SUBGROUP) for column, one in told.items() if one.mixed],
    )  # fmt: skip


def groups_to_tensors(said: SiteGroups) -> dict[str, Tensor]:
    """The numbers of a message: of E groups ``counts``, ``values``, ``variances``, ``counted``, ``gaps``, ``lines``.

    Where there is no rest its numbers are 0 or NaN.
    """
    nothing = np.full(len(said.metrics), np.nan)
    none = Side(0, 0, nothing, nothing, nothing, (NOTHING, NOTHING))
    pairs = [(one.own, one.rest or none, one.alike) for one in said.found.values()]

    def each(name: str) -> Floats:
        return np.array([[getattr(side, name) for side in pair] for pair in pairs], dtype=np.float64)

    if not pairs:
        return {}
    counts = [[(side.patients, side.cases) for side in pair] for pair in pairs]
    lines = [[[n for line in side.lines for n in (line.value, line.variance)] for side in pair] for pair in pairs]
    return {
        "counts": torch.tensor(counts), "lines": torch.tensor(lines, dtype=torch.float64),
        "gaps": torch.from_numpy(np.stack([one.gaps for one in said.found.values()])),
        **{name: torch.from_numpy(each(name)) for name in ("values", "variances", "counted")},
    }  # fmt: skip


def groups_from_tensors(places: Sequence[Place], tensors: Mapping[str, Tensor]) -> dict[Place, Compared]:
    """What ``groups_to_tensors`` gave."""
    numbers = {name: tensor.numpy() for name, tensor in tensors.items()}

    def side(entry: int, which: int) -> Side:
        line = numbers["lines"][entry, which].tolist()
        patients, cases = numbers["counts"][entry, which].tolist()
        values, variances, counted = (numbers[name][entry, which] for name in ("values", "variances", "counted"))
        return Side(patients, cases, values, variances, counted, (Line(*line[:2]), Line(*line[2:])))

    return {
        place: Compared(side(n, 0), side(n, 1) if numbers["counts"][n, 1, 0] else None, numbers["gaps"][n], side(n, 2))
        for n, place in enumerate(places)
    }


def _told(cases: Cases, column: str, floor: int) -> _Told:
    """Which groups are not told, the smallest first; at last all are not told where that leaves nobody out."""
    groups = cases.frame[column].astype(str).to_numpy()
    patients = {str(name): set(cases.patient[groups == name].tolist()) for name in np.unique(groups)}
    # Known groups first: what is left of all others without those that are told is without the unknown.
    sizes = sorted(patients, key=lambda name: (name == NOT_KNOWN, len(patients[name]), name))
    found = _Told([name for name in sizes if len(patients[name]) < floor])
    found.mixed = 0 < len(patients.get(NOT_KNOWN, ())) < floor
    for name in sizes:
        hidden = [patients[one] for one in found.withheld if one != NOT_KNOWN or found.mixed]
        if not 0 < len(set().union(*hidden)) < floor:
            break
        if name not in found.withheld:
            found.withheld.append(name)
    return found


def _sides(cases: Cases, told: Mapping[str, _Told], floor: int) -> Iterator[tuple[Place, Rows, Rows]]:
    """Each group that is told with its rows, and those of the rest, which may be none."""
    for method, own in cases.rows.items():
        for column, one in told.items():
            groups = cases.frame[column].astype(str).to_numpy()[own]
            for name in np.unique(groups):
                if name in one.withheld:
                    continue
                others = (groups != name) & ((groups != NOT_KNOWN) | one.mixed)
                rest = own[others] if name != NOT_KNOWN else own[:0]
                if len(np.unique(cases.patient[rest])) < floor:
                    rest = own[:0]
                yield Place(method, column.removeprefix(SUBGROUP), str(name)), own[groups == name], rest


class _Pair:
    """A group and the rest, as far as means over classes, or over several labels, are of the same in both.

    Where they are already, or there is no rest, nothing is left out.

    Args:
        cases: all predictions.
        own: rows of the group.
        rest: of the rest.
        floor: of fewer patients nothing is compared.
    """

    def __init__(self, cases: Cases, own: Rows, rest: Rows, floor: int) -> None:
        self._cases, self._sides = cases, (own, rest)
        self._places = np.array([k for k, name in enumerate(cases.names) if name in cases.kind.over_classes], dtype=int)
        whole = cases.frame.iloc[own], cases.frame.iloc[rest]
        parts = cases.kind.alike(*whole) if len(rest) and len(self._places) else None
        self.differs = parts is not None
        if parts is None:
            return
        if any(not self._may_be_told(*pair, floor) for pair in zip(whole, parts, strict=True)):
            parts = parts[0].iloc[:0], parts[1].iloc[:0]
        frame = pd.concat(parts)
        self._rows, self._starts = frame.index.to_numpy(), (0, len(parts[0]), len(frame))
        self._measure = cases.kind.measure(frame, [cases.names[k] for k in self._places])

    def _may_be_told(self, whole: pd.DataFrame, part: pd.DataFrame, floor: int) -> bool:
        """Whether what is left is of enough patients, and what is left out, which could be found by subtraction."""
        columns = [name for name in whole.columns if str(name).partition("[")[0] == "label"]
        told = part[columns].notna().reindex(whole.index, fill_value=False)
        left_out = whole.index[(whole[columns].notna() & ~told).any(axis=1)]
        kept, gone = (len(np.unique(self._cases.patient[index])) for index in (told.index[told.any(axis=1)], left_out))
        return kept >= floor and (gone == 0 or gone >= floor)

    def values(self, side: int, weights: Floats) -> Floats:
        """Metrics [K, b] of the group (0) or the rest (1), means over the seeds."""
        found = _values(self._cases, self._sides[side], weights)
        if not self.differs:
            return found
        found = found.copy()
        found[self._places] = np.nan
        positions = np.arange(*self._starts[side : side + 2])
        seeds = self._cases.seeds[self._rows[positions]]
        each = [self._of_seed(positions[seeds == seed], weights) for seed in np.unique(seeds)]
        if each:
            found[self._places] = mean_of_known(np.stack(each))
        return found

    def _of_seed(self, positions: Rows, weights: Floats) -> Floats:
        return self._measure(positions, weights[self._cases.patient[self._rows[positions]]])

    def counted(self, side: int, counted: Floats) -> Floats:
        """``counted`` [K] by what is compared: of classes the patients of the one that fewest have."""
        if not self.differs or not self._cases.classified:
            return counted
        rows, found = self._rows[slice(*self._starts[side : side + 2])], counted.copy()
        labels, patients = self._cases.labels[rows], self._cases.patient[rows]
        sizes = [len(np.unique(patients[labels == one])) for one in np.unique(labels)]
        found[self._places] = min(sizes) if sizes else np.nan
        return found


def _measured(
    cases: Cases, sides: Sequence[tuple[Place, Rows, Rows]], pairs: Sequence[_Pair], seed: int, bootstrap: int
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Values [3, K] and variances [3, K] of the group, of the rest, and of the group as it is compared with the rest;
    and variances [K] of the difference of these two."""
    largest = max((max(len(own), len(rest)) for _, own, rest in sides), default=1)
    plain = np.ones((len(cases.patients), 1))
    draws = patient_weights(cases.patients, bootstrap, seed, block=max(1, BLOCK // largest))
    found: list[list[Floats]] = [[] for _ in sides]
    for weights in chain([plain], draws):
        for parts, (_, own, _), pair in zip(found, sides, pairs, strict=True):
            mine = _values(cases, own, weights)
            alike = pair.values(0, weights) if pair.differs else mine
            parts.append(np.stack([mine, pair.values(1, weights), alike]))
    for parts, (place, own, rest) in zip(found, sides, strict=True):
        drawn = np.concatenate(parts, axis=-1)  # [3, K, 1 + B]
        variances, gaps = _variance(drawn), _variance(drawn[2] - drawn[1])
        if "auc" in cases.names and place.method in cases.independent:
            k = cases.names.index("auc")
            exact = np.array([_area_variance(cases, rows) for rows in (own, rest)])[[0, 1, 0]]
            variances[:, k] = np.where(np.isfinite(exact), exact, variances[:, k])
            gaps[k] = exact[:2].sum() if np.isfinite(exact).all() else gaps[k]  # each patient has one case and group
        yield drawn[..., 0], variances, gaps


def _values(cases: Cases, rows: Rows, weights: Floats) -> Floats:
    """Metrics [K, b], means over the seeds."""
    if not len(rows):
        return np.full((len(cases.names), weights.shape[1]), np.nan)
    found = [cases.measure(own.rows, weights[cases.patient[own.rows]]) for own in _seeds(cases, rows)]
    return mean_of_known(np.stack(found))


def _seeds(cases: Cases, rows: Rows) -> list[Group]:
    """The rows of each seed."""
    return [Group(int(one), 0, rows[cases.seeds[rows] == one]) for one in np.unique(cases.seeds[rows])]


def _variance(drawn: Floats) -> Floats:
    """Of the last axis but its first entry, over the draws that are known; NaN of fewer than two."""
    known = np.isfinite(drawn[..., 1:])
    count, values = known.sum(axis=-1), np.where(known, drawn[..., 1:], 0.0)
    mean = values.sum(axis=-1) / np.maximum(count, 1)
    squares = np.where(known, np.square(drawn[..., 1:] - mean[..., None]), 0.0).sum(axis=-1)
    found: Floats = np.divide(squares, count - 1, out=np.full(mean.shape, np.nan), where=count > 1)
    return found


def _area_variance(cases: Cases, rows: Rows) -> float:
    """DeLong's variance of the mean area over the seeds, which must have the same cases; NaN where it is not known."""
    seeds = [one.rows[np.argsort(cases.frame["case"].to_numpy()[one.rows])] for one in _seeds(cases, rows)]
    names = [cases.frame["case"].to_numpy()[own].tolist() for own in seeds]
    if not seeds or any(own != names[0] for own in names):
        return math.nan
    labels = cases.labels[seeds[0]]
    if min((labels == 1).sum(), (labels == 0).sum()) < 2:
        return math.nan
    parts = zip(*(placements(labels, cases.scores[own]) for own in seeds), strict=True)
    return float(sum(part.var(ddof=1) / len(part) for part in (np.mean(of_class, axis=0) for of_class in parts)))


def _side(
    cases: Cases, method: str, rows: Rows, values: Floats, variances: Floats, pair: _Pair, compared: int | None
) -> Side:  # fmt: skip
    groups = _seeds(cases, rows)
    counted = np.array([cases.counted(metric, method, groups) for metric in cases.names], dtype=np.float64)
    return Side(
        len(np.unique(cases.patient[rows])), cases.frame["case"].iloc[rows].nunique(), values, variances,
        counted if compared is None else pair.counted(compared, counted), _lines(cases, groups),
    )  # fmt: skip


def _lines(cases: Cases, groups: Sequence[Group]) -> tuple[Line, Line]:
    """Intercept and slope, means over the seeds."""
    if not cases.binary:
        return NOTHING, NOTHING
    each = [calibration_line(cases.labels[g.rows], cases.scores[g.rows], cases.patient[g.rows]) for g in groups]
    values = np.array([[(line.value, line.variance) for line in lines] for lines in each]).mean(axis=0)
    return Line(*values[0].tolist()), Line(*values[1].tolist())
