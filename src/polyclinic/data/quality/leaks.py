"""Features that give the label away: that alone separate the classes, or are the label in other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma, log

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.cases import SiteData
from polyclinic.data.quality.words import some
from polyclinic.notes import Note

Matrix = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]

#: What chance alone does less often than this, over all features, is no chance.
_CHANCE = 1e-3
#: A feature with no more different values than this may be a code of the label.
_MOST_VALUES = 50
#: A site speaks for itself with so many cases of each class.
_MANY = 20
#: Almost perfect: this AUC at each site with so many cases of each class. A first look takes _LOOK cases of a site.
_ALMOST, _SOME, _LOOK = 0.99, 10, 400
#: A correlation with a number to be predicted that rounding alone keeps from 1.
_SAME = 0.9999


@dataclass(frozen=True)
class Column:
    """A column of the table: the positions of its columns in the matrix, several where it was one-hot encoded."""

    name: str
    places: list[int]


def columns_of(features: Sequence[str], chosen: Sequence[str], categorical: Sequence[str]) -> list[Column]:
    """The table's columns behind the columns of the feature matrix.

    Args:
        features: names of the matrix' columns, in order (``cp=1``, ``cp=2``, ``age``).
        chosen: names of the table's feature columns, in the same order.
        categorical: which of them are one-hot encoded.
    """
    columns, place = [], 0
    for name in chosen:
        width = 1
        if name in categorical:
            rest = range(place, len(features))
            width = next((at - place for at in rest if not features[at].startswith(f"{name}=")), len(rest))
        columns.append(Column(name, list(range(place, place + width))))
        place += width
    return columns


def leak_notes(sites: dict[str, SiteData], columns: Sequence[Column], label: str) -> list[Note]:
    """Names features that predict the label so well that they are likely to be made from it.

    Args:
        sites: the usable cases, with features and classes or numbers.
        columns: the columns of the table that are features.
        label: name of the label's column.
    """
    labelled = {site: own for site, data in sites.items() if len(own := data.with_labels())}
    tables = [data.table.numpy() for data in labelled.values()]
    labels = [data.labels for data in labelled.values()]
    if not labels or any(one is None for one in labels):
        return []
    targets = [one.numpy() for one in labels if one is not None]
    if targets[0].dtype.kind == "f":
        return _number_notes(np.concatenate(tables), np.concatenate(targets), columns, label)
    known = _codes(np.concatenate(tables), np.concatenate(targets), columns)
    notes = []
    if known:
        words = "feature alone tells" if len(known) == 1 else "features alone tell"
        text = (
            f"{len(known)} {words} the class of every case, like the label {label!r} in other words: {some(known)}. "
            "What is known only with the diagnosis must not be a feature: take it out with `exclude`."
        )
        notes.append(Note("N223", text))
    rest = [column for column in columns if column.name not in known and len(column.places) == 1]
    return notes + _separation_notes(list(labelled), tables, targets, rest)


def _codes(values: Matrix, classes: Classes, columns: Sequence[Column]) -> list[str]:
    """Columns of few values each of which has cases of one class only; a missing value is a value, too."""
    kinds, total = int(classes.max()) + 1, len(classes)
    # How rarely labels dealt at random are those found, and how often one of the maps from values to classes fits.
    rarity = lgamma(total + 1) - sum(lgamma(count + 1) for count in np.bincount(classes).tolist())
    present = len(np.unique(classes))
    if present < 2:
        return []
    different = pd.DataFrame(values).nunique().to_numpy()
    gaps: npt.NDArray[np.bool_] = np.asarray(np.isnan(values).any(axis=0))
    found = []
    for column in columns:
        if len(column.places) > 1:
            block = values[:, column.places]
            codes = np.where(np.isnan(block).any(axis=1), len(column.places), block.argmax(axis=1))
        elif different[column.places[0]] <= _MOST_VALUES:
            codes = pd.factorize(values[:, column.places[0]], use_na_sentinel=False)[0]
        elif not gaps[column.places[0]]:
            continue
        else:  # only whether it is missing may tell the class
            codes = np.isnan(values[:, column.places[0]]).astype(np.int64)
        counts = np.bincount(codes * kinds + classes, minlength=(int(codes.max()) + 1) * kinds).reshape(-1, kinds)
        filled = counts[counts.any(axis=1)]
        if len(filled) < 2 or ((filled > 0).sum(axis=1) > 1).any():
            continue
        if len(filled) * log(present) + log(len(columns)) - rarity < log(_CHANCE):
            found.append(column.name)
    return found


def _separation_notes(
    names: list[str], tables: list[Matrix], targets: list[Classes], columns: Sequence[Column]
) -> list[Note]:
    """Notes on features of which every value of one class lies above, or below, every value of another."""
    places = [column.places[0] for column in columns]
    if not places:
        return []
    everywhere, tested = np.ones(len(places), dtype=bool), 0
    chance, alone = np.zeros(len(places)), dict[str, npt.NDArray[np.bool_]]()
    for site, table, classes in zip(names, tables, targets, strict=True):
        if len(np.unique(classes)) < 2:
            continue
        apart, seen, rarity, smallest = _apart(table[:, places], classes)
        tested += 1
        everywhere &= apart | ~seen
        chance += np.where(apart, rarity, 0.0)
        alone[site] = apart & (smallest >= _MANY) & (rarity + log(len(places) * len(names)) < log(_CHANCE))
    everywhere &= chance + log(len(places)) < log(_CHANCE)
    notes = []
    if tested and everywhere.any():
        found = [column.name for column, perfect in zip(columns, everywhere, strict=True) if perfect]
        notes.append(Note("N222", _separated(found, "at every site that has its values and several classes")))
    by_name: dict[str, list[str]] = {}
    for site, perfect in alone.items():
        for position in np.flatnonzero(perfect & ~everywhere).tolist():
            by_name.setdefault(columns[position].name, []).append(site)
    for name, found in by_name.items():
        where = f"at {len(found)} of {len(names)} sites ({some(found)})"
        notes.append(Note("N222", _separated([name], where)))
    said = everywhere | np.isin([column.name for column in columns], list(by_name))
    almost = _almost([table[:, places] for table in tables], targets, ~said)
    if almost.any():
        found = [column.name for column, near in zip(columns, almost, strict=True) if near]
        feature = "1 feature alone separates" if len(found) == 1 else f"{len(found)} features alone each separate"
        text = f"{feature} the classes almost perfectly at every site (AUC {_ALMOST} or more): {some(found)}. {_ADVICE}"
        notes.append(Note("N222", text))
    return notes


_ADVICE = (
    "A date, a number in the order of the table, or what follows from the diagnosis does that: take it out with "
    "`exclude` unless it is known for a new patient before the label is."
)


def _separated(names: list[str], where: str) -> str:
    feature = "1 feature alone separates" if len(names) == 1 else f"{len(names)} features alone each separate"
    return f"{feature} the classes perfectly {where}: {some(names)}. {_ADVICE}"


def _apart(
    values: Matrix, classes: Classes
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """For each feature whether the classes of a site do not overlap, whether it has values of two classes at least, the
    logarithm of how often chance separates so many cases, and the number of cases of the rarest class."""
    kinds = np.unique(classes)
    low, high, counts = [], [], []
    for kind in kinds:
        mine = values[classes == kind]
        there = ~np.isnan(mine)
        counts.append(there.sum(axis=0))
        low.append(np.where(there, mine, np.inf).min(axis=0))
        high.append(np.where(there, mine, -np.inf).max(axis=0))
    lows, highs, number = np.stack(low), np.stack(high), np.stack(counts)
    order = np.argsort(lows, axis=0)
    lows, highs = np.take_along_axis(lows, order, 0), np.take_along_axis(highs, order, 0)
    # Classes without a value come last: nothing is below them but what ends before infinity.
    apart = (np.maximum.accumulate(highs, axis=0)[:-1] < lows[1:]).all(axis=0)
    present = (number > 0).sum(axis=0)
    rarity = _log_factorial(present) + _log_factorial(number).sum(axis=0) - _log_factorial(number.sum(axis=0))
    smallest = np.where(number > 0, number, len(values)).min(axis=0)
    return apart & (present > 1), present > 1, rarity, smallest


def _log_factorial(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    table = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(2, int(numbers.max()) + 1))))])
    return np.asarray(table[numbers])


def _almost(tables: list[Matrix], targets: list[Classes], wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which features have an AUC of ``_ALMOST`` or more (or its mirror image) at every site with enough cases."""
    found, tested = wanted.copy(), 0
    for table, classes in zip(tables, targets, strict=True):
        if len(np.unique(classes)) != 2 or np.bincount(classes)[np.unique(classes)].min() < _SOME:
            continue
        tested += int(np.bincount(classes).min() >= _MANY)
        positive = classes == classes.max()
        step = max(1, len(table) // _LOOK)
        if step > 1:  # a few cases rule out most features
            near = np.flatnonzero(found)
            auc = _auc(table[::step][:, near], positive[::step])
            found[near] = np.maximum(auc, 1 - auc) > _ALMOST - 0.05
        near = np.flatnonzero(found)
        auc = _auc(table[:, near], positive)
        found[near] = np.maximum(auc, 1 - auc) >= _ALMOST
    return found if tested else np.zeros_like(found)


def _auc(values: Matrix, positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """AUC of each column; 0.5 where one has missing values or the cases are of one class."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives or not values.shape[1]:
        return np.full(values.shape[1], 0.5)
    ranks = pd.DataFrame(values).rank().to_numpy()
    auc = (ranks[positive].sum(axis=0) - positives * (positives + 1) / 2) / (positives * negatives)
    return np.where(np.isnan(values).any(axis=0), 0.5, auc)


def _number_notes(
    values: Matrix, numbers: npt.NDArray[np.float32], columns: Sequence[Column], label: str
) -> list[Note]:
    """A note on features that are the number to be predicted, in another unit or on another scale."""
    singles = [column for column in columns if len(column.places) == 1]
    if len(numbers) < 2 * _SOME or not singles:
        return []
    matrix = values[:, [column.places[0] for column in singles]].astype(np.float64)
    there = ~np.isnan(matrix)
    found = []
    for place in np.flatnonzero(there.sum(axis=0) >= 2 * _SOME):
        known = there[:, place]
        feature, target = matrix[known, place], numbers[known].astype(np.float64)
        if len(np.unique(feature)) < _SOME or feature.std() == 0 or target.std() == 0:
            continue
        line = abs(float(np.corrcoef(feature, target)[0, 1])) >= _SAME
        if line or _monotone(feature, target):
            found.append(singles[place].name)
    if not found:
        return []
    are = "feature is" if len(found) == 1 else "features are"
    text = (
        f"{len(found)} {are} the label {label!r} in another unit or on another scale: {some(found)}. Take it out with "
        "`exclude`."
    )
    return [Note("N223", text)]


def _monotone(feature: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> bool:
    """Whether one only grows, or only falls, with the other."""
    steps = np.diff(feature[np.lexsort((feature, target))])
    if (steps >= 0).all():
        return True
    return bool((np.diff(feature[np.lexsort((-feature, target))]) <= 0).all())
