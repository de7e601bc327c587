"""Notes on columns that were read as they are, and may mean something else.

They look at texts, not at what became of them: a number that stands for "not measured", codes that count as numbers,
one value in two spellings, and codes that a spreadsheet program has rounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.quality.values import is_measured
from polyclinic.data.quality.words import is_shortened
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.codes import alike, plain_number
from polyclinic.data.tables.numbers import parse_numbers
from polyclinic.data.tables.table import comparison
from polyclinic.notes import Note

#: Numbers that stand for a missing value in many data sets, where they are far from all others.
_FAR = (77, 88, 99, 777, 888, 999, 7777, 8888, 9999, 99999, 999999, 99.9, 999.9, 9999.9, 99.99, 999.99)
_SENTINELS = np.array([sign * number for number in _FAR for sign in (1, -1)], dtype=np.float32)
#: The same, where they are the only numbers below 0 beside many others.
_BELOW_ZERO = np.array([-1, -2, -3, -7, -8, -9], dtype=np.float32)
_MANY = 10


def column_notes(
    cells: pd.DataFrame,
    spec: DataSpec,
    target: Target,
    features: Sequence[str],
    matrix: npt.NDArray[np.float32],
    counting: Collection[str] = (),
) -> list[Note]:
    """Notes on the columns of the used rows of all sites.

    Args:
        cells: texts, NaN where missing.
        spec: the ``data:`` part of the study file.
        target: what is to be predicted of each case.
        features: names of the columns of ``matrix``.
        matrix: the features ``[N, F]`` (empty for images).
        counting: features of which another note says that they may number the rows.
    """
    notes = []
    for place, name in enumerate(features if matrix.ndim == 2 else ()):
        if name in cells and name not in spec.categorical:
            values = matrix[:, place]
            # What is measured, and not divided by anything, is looked at in `polyclinic.data.quality.values`.
            if spec.divide_by is not None or not is_measured(values):
                notes += _sentinels(name, parse_numbers(cells[name]))
            if name not in counting:
                notes += _padded(name, cells[name], values)
    combat = spec.harmonisation.combat
    label = [spec.label] if target == "labels" and spec.label is not None else []
    compared = spec.positive is not None and not isinstance(spec.positive, list) and comparison(spec.positive)
    groups = dict.fromkeys([*spec.categorical, *(combat.groups if combat else [])])
    for name in groups:
        notes += _spellings(name, cells[name])
    for name in dict.fromkeys([*([] if compared else label), *groups]):
        notes += _merged(name, cells[name])
    named = [name for name in (spec.site, spec.subject, *label, *groups) if name is not None and name in cells]
    for name in dict.fromkeys(named):
        notes += _shortened(name, cells[name])
    return notes


def _sentinels(name: str, values: npt.NDArray[np.floating]) -> list[Note]:
    there = values[~np.isnan(values)].astype(np.float32)
    if not len(there):
        return []
    special = np.isin(there, _SENTINELS)
    found: list[float] = []
    others = there[~special]
    if special.any() and len(others):
        low, high = float(others.min()), float(others.max())
        reach = high - low
        far = {value for value in there[special].tolist() if value < low - reach or value > high + reach}
        found = [value for value in far if int((there == np.float32(value)).sum()) > 1]
    below = np.unique(there[there < 0])
    if len(below) == 1 and below[0] in _BELOW_ZERO and len(np.unique(there)) > _MANY and (there == below[0]).sum() > 1:
        found.append(float(below[0]))
    return [
        Note(
            "N236", f"Column {name!r}: {_cells(int((there == np.float32(value)).sum()))} hold {value:g}, far from all "
            "others: if that means a missing value, add it to `missing`.",
        )
        for value in sorted(found)
    ]  # fmt: skip


def _padded(name: str, cells: pd.Series[str], values: npt.NDArray[np.float32]) -> list[Note]:
    there = values[~np.isnan(values)]
    if not len(there) or (there < 0).any() or (there != np.trunc(there)).any():
        return []
    count = sum(text[:1] == "0" and text[1:2].isdigit() for text in cells.dropna().tolist())
    if not count:
        return []
    return [
        Note(
            "N211", f"Column {name!r}: {_cells(count)} begin with a 0, as codes do, and count as numbers: if they are "
            "codes, name the column under `categorical`.",
        )
    ]  # fmt: skip


def _spellings(name: str, cells: pd.Series[str]) -> list[Note]:
    apart = alike(cells.dropna().unique().tolist())
    if not apart:
        return []
    words = f"tells apart what differs in spelling only: {_groups(apart)}. If they mean the same, write them alike."
    return [Note("N212", f"Column {name!r} {words}")]


def _merged(name: str, cells: pd.Series[str]) -> list[Note]:
    """Spellings of one number that both have a point, as the codes 250.0 and 250.00 of a catalogue of diseases."""
    groups: dict[str | None, list[str]] = defaultdict(list)
    for text in sorted(cells.dropna().unique()):
        if "." in text and not text.lstrip("+-").startswith("."):  # no code begins with a point
            groups[plain_number(text)].append(text)
    one = [group for number, group in groups.items() if number is not None and len(group) > 1]
    if not one:
        return []
    words = f"takes as one number what codes may tell apart: {_groups(one)}. If they differ, add a letter to them."
    return [Note("N212", f"Column {name!r} {words}")]


def _groups(groups: Sequence[Sequence[str]]) -> str:
    listed = "; ".join(", ".join(map(repr, group[:4])) for group in groups[:3])
    return f"{listed} and {len(groups) - 3} more" if len(groups) > 3 else listed


def _shortened(name: str, cells: pd.Series[str]) -> list[Note]:
    count = sum(is_shortened(text) for text in cells.dropna().tolist())
    if not count:
        return []
    return [
        Note(
            "N213", f"Column {name!r}: {_cells(count)} look like long codes that a spreadsheet program has rounded "
            "(1.23E+17), so that different codes may have become one: export the column as text.",
        )
    ]  # fmt: skip


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
