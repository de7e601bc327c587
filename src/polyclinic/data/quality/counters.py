"""Columns that number the rows or the cases of a table. As features they give away what a table is sorted by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.quality.words import counted, some
from polyclinic.data.tables.table import parse_numbers
from polyclinic.notes import Note

#: What a column is: without a name; numbers at even steps in the rows' order; numbers that are all different under a
#: name for such numbers; numbers at even steps but for a few rows; whole numbers in the rows' order at uneven steps;
#: numbers like those of cases; dates.
Kind = Literal["nameless", "counter", "index", "nearly", "sorted", "identifier", "date"]
#: These are no measurements for sure, so that a glob does not take them.
LEFT_OUT: tuple[Kind, ...] = ("nameless", "counter", "index")

#: Fewer rows than this don't tell a counter from a measurement, unless the name does.
_LEAST = 10
#: Of so many steps all but one in ten are even in a counter of which a few rows were changed.
_MOSTLY = 0.9
#: A quick look at so many rows rules out most columns.
_LOOK = 64
#: Whole numbers of so many figures are no measurements but numbers of cases.
_LONG = r"\d{9,}(\.0+)?"
#: Larger whole numbers are not told apart as floating-point numbers.
_EXACT = 2.0**53
_NAMELESS = re.compile(r"|unnamed: ?\d+(_level_\d+)?(\.\d+)?|\.\.\.\d+|level_\d+", re.IGNORECASE)
_INDEX = re.compile(
    r"#|(index|idx|ids?|uid|pid|mrn|rn|nr|no|nummer|row|case|record|subject|patient|participant|accession|lfd)"
    r"([ _.-]?(id|ids|no|nr|num|number|name|names|index|idx)\.?)?|.*[ _.-](id|idx|uid|mrn)|.*[a-z](ID|Id|UID)"
)  # fmt: skip
_ID = re.compile(r"(?i:^|[ _.-])(?i:id|uid|mrn|pid)$|[a-z](ID|Id|UID)$")


def find_counters(
    tables: Sequence[pd.DataFrame], names: Sequence[str], site: str | None, missing: Sequence[str]
) -> dict[str, Kind]:
    """Which of the columns ``names`` number rows or cases.

    Whole tables are looked at, also the rows that a study does not use, since a counter counts them all. Numbers are
    all different, or in order, over a whole table or within each site. Of texts only those are found that differ from
    row to row.

    Args:
        tables: cells as texts.
        names: columns to look at; a table need not have them.
        site: column with the site, if the tables have one.
        missing: texts that mean a missing value.
    """
    owners = [frame[site] if site is not None and site in frame.columns else None for frame in tables]
    groups = np.concatenate([_groups(number, len(table), owners[number]) for number, table in enumerate(tables)])
    whole = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    blank = {"", *missing}
    places = [Counter(table.columns) for table in tables]
    found: dict[str, Kind] = {}
    for name in names:
        if _NAMELESS.fullmatch(name.strip()):
            found[name] = "nameless"
            continue
        if any(count[name] != 1 for count in places):
            continue
        columns = [table[name] for table in tables]
        if not _worth_a_look([text for text in columns[0].head(_LOOK).tolist() if text not in blank]):
            continue
        cells = pd.concat(columns, ignore_index=True)
        kind = _kind(name, cells.mask(cells.isin(blank)), (whole, groups))
        if kind is not None:
            found[name] = kind
    return found


def counter_notes(left_out: dict[str, Kind], kept: dict[str, Kind]) -> list[Note]:
    """What is said of the columns that were left out of globs, and of those that are features.

    Args:
        left_out: columns that a glob would have taken, of the kinds in ``LEFT_OUT``.
        kept: features of any kind.
    """
    notes = []
    if left_out:
        columns = counted(len(left_out), "column is", "columns are")
        text = (
            f"{columns} left out of the features, since a column that has no name or numbers the rows is no "
            f"measurement: {some(map(_shown, left_out))}. To use one, name it under `features`."
        )
        notes.append(Note("N220", text))
    sayings = {
        "nameless": "no name",
        "counter": "numbers that only count the rows",
        "index": "numbers of cases or patients, as the name says",
        "nearly": "numbers that only count the rows, but for a few of them",
        "sorted": "whole numbers that are all different and stand in the order of the rows",
        "identifier": "a value of its own for each row, like the number of a case",
        "date": "dates that are written as numbers (20190312), which are no measurements",
    }
    for kind, saying in sayings.items():
        names = [name for name, found in kept.items() if found == kind]
        if names:
            features = "The feature" if len(names) == 1 else f"{len(names)} features,"
            have = "has" if len(names) == 1 else "have"
            text = (
                f"{features} {some(map(_shown, names))} {have} {saying}. It may give away what the table is sorted by: "
                "take it out with `exclude` unless it is a measurement."
            )
            notes.append(Note("N221", text))
    return notes


def _shown(name: str) -> str:
    return repr(name) if name.strip() else "the one without a name"


def _groups(table: int, rows: int, site: pd.Series[str] | None) -> npt.NDArray[np.int64]:
    """A number for each row that is the same within a site of a table."""
    codes = np.zeros(rows, dtype=np.int64) if site is None else pd.factorize(site)[0].astype(np.int64)
    return codes + table * 1_000_000


def _kind(name: str, cells: pd.Series[str], groupings: Sequence[npt.NDArray[np.int64]]) -> Kind | None:
    known = cells.notna().to_numpy()
    if known.sum() < 2:
        return None
    numbers = parse_numbers(cells)
    texts = pd.factorize(cells[known])[0].astype(np.float64)
    if np.isnan(numbers[known]).any():
        return "identifier" if known.sum() >= 2 * _LEAST and _different(texts, groupings[0][known]) else None
    for groups in groupings:
        if known.sum() >= _LEAST and _even(numbers, groups):
            return "counter"
    if (numbers[known] % 1 != 0).any():
        return None
    values = numbers[known] if np.abs(numbers[known]).max() < _EXACT else texts
    different = [groups for groups in groupings if _different(values, groups[known])]
    if different and (_INDEX.fullmatch(name.strip()) or _INDEX.fullmatch(name.strip().lower())):
        return "index"
    # A number of a patient with a few rows each repeats.
    if _ID.search(name.strip()) and _LEAST <= known.sum() <= 4 * len(np.unique(values)):
        return "index"
    if known.sum() >= _LEAST and _dates(numbers[known]):
        return "date"
    if any(_in_order(numbers[known], groups[known]) for groups in different) and known.sum() >= _LEAST:
        return "sorted"
    if any(_nearly_even(numbers[known], groups[known]) for groups in groupings):
        return "nearly"
    if not different or known.sum() < _LEAST:
        return None
    padded = cells[known].str.fullmatch(r"0\d+").any()
    span = numbers[known].max() - numbers[known].min() + 1
    long = cells[known].str.fullmatch(_LONG).all()
    # Measurements within so narrow a span would repeat.
    return "identifier" if padded or long or (known.sum() >= 2 * _LEAST and span <= 2 * known.sum()) else None


def _worth_a_look(texts: list[str]) -> bool:
    """Whether the first cells are whole numbers, numbers in order, or texts that are all different."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return len(set(texts)) == len(texts)
    # Sites may take turns, each with a counter of its own: whether steps are even is looked at in `_even`, not here.
    rising = {first < second for first, second in pairwise(numbers)}
    return all(number.is_integer() for number in numbers) or len(rising) < 2


def _dates(numbers: npt.NDArray[np.float64]) -> bool:
    """Whether all numbers are dates without separators, on several days."""
    months, days = numbers // 100 % 100, numbers % 100
    inside = (numbers >= 19000101) & (numbers <= 20991231) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)
    return bool(inside.all()) and len(np.unique(numbers)) > 1


def _even(numbers: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> bool:
    """Whether the numbers grow or fall by the same step from row to row of each group; missing ones are skipped."""
    order = np.argsort(groups, kind="stable")
    values, owners, places = numbers[order], groups[order], np.arange(len(order))
    there = ~np.isnan(values)
    values, owners, places = values[there], owners[there], places[there]
    within = np.diff(owners) == 0
    rises, runs = np.diff(values)[within], np.diff(places)[within]
    if len(rises) < _LEAST / 2:
        return False
    steps = rises / runs
    step, largest = steps[0], np.abs(values).max()
    rounding = 0.0 if (values % 1 == 0).all() and largest < _EXACT else 1e-15 * largest
    return bool(abs(step) > 10 * rounding and np.allclose(steps, step, rtol=1e-4, atol=10 * rounding))


def _nearly_even(numbers: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> bool:
    """Whether nine of ten whole numbers are the one before plus the same step, as where a few rows were mended.

    Visits that are counted for each patient repeat, and are none.
    """
    order = np.argsort(groups, kind="stable")
    steps = np.diff(numbers[order])[np.diff(groups[order]) == 0]
    if len(steps) < 2 * _LEAST or len(np.unique(np.stack([groups, numbers]), axis=1).T) < _MOSTLY * len(numbers):
        return False
    step = np.median(steps)
    return bool(step != 0 and (steps == step).mean() >= _MOSTLY)


def _different(numbers: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> bool:
    order = np.lexsort((numbers, groups))
    return not ((np.diff(numbers[order]) == 0) & (np.diff(groups[order]) == 0)).any()


def _in_order(numbers: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> bool:
    """Whether the numbers only grow, or only fall, from row to row of each group."""
    order = np.argsort(groups, kind="stable")
    rises = np.diff(numbers[order])[np.diff(groups[order]) == 0]
    return len(rises) >= _LEAST / 2 and bool((rises > 0).all() or (rises < 0).all())
