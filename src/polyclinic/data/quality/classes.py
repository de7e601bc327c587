"""Labels that mean the same and are written differently, within a table or from site to site."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.quality.words import MOST_NAMES, alike, counted, folded, some
from polyclinic.data.spec import DataSpec
from polyclinic.data.table import comparison, number_text, parse_numbers
from polyclinic.notes import Note

#: A label with more different values than this is a measurement that `positive` cuts, not a list of classes.
_MOST_VALUES = 50
#: A class of this chance to be missing at a site, if sites were alike, is missing for another reason.
_CHANCE = 0.01
_UNKNOWN = frozenset(
    "?,.,--,n/a,n.a.,na,nan,null,unknown,unk,unclear,undetermined,indeterminate,missing,tbd,pending,not available,"
    "not known,not done,not applicable,not assessed,not given,unbekannt,-9,-99,-999,-9999,99,999,9999,99999".split(",")
)
#: What `positive: true` and `positive: false` understand, so that numbers and words may stand side by side.
_YES_NO = frozenset(("true", "yes", "on", "1", "false", "no", "off", "0"))


def label_notes(cells: pd.Series[str], classes: npt.NDArray[np.int64], sites: pd.Series[str], spec: DataSpec,
                names: list[str]) -> list[Note]:  # fmt: skip
    """What is said of the labels of a classification.

    Args:
        cells: texts of the label in all used rows, none missing.
        classes: the class that each text was taken for, int64 ``[N]``.
        sites: site of each row, as the table names it.
        spec: the ``data:`` part of the study file.
        names: names of the classes.
    """
    label, compared = str(spec.label), isinstance(spec.positive, str) and comparison(spec.positive) is not None
    notes = _single_class(classes, sites, names)
    texts = _one_by_one(cells)
    table = pd.DataFrame({"text": texts.to_numpy(), "site": sites.to_numpy(), "class": classes})
    notes += _spellings(label, table.assign(text=cells.to_numpy()), names)
    if table["text"].nunique() > _MOST_VALUES:
        return notes
    understood = isinstance(spec.positive, bool) and set(table["text"].map(folded)) <= _YES_NO
    if not understood and not compared:  # a comparison takes numbers only
        words = _words_beside_numbers(table, spec)
        notes += _mixed(label, words, table, names)
        listed = isinstance(spec.positive, list) and len(spec.positive) > 1 and not _single_class(classes, sites, names)
        if not listed:
            notes += _different_values(label, table.drop(words.index))
    return notes + (_unknown(label, table, names) if spec.classes is None else [])


def _one_by_one(cells: pd.Series[str]) -> pd.Series[str]:
    """Each cell that is a number as this number is usually written, so that ``1.0`` is ``1``, also beside texts."""
    numbers = parse_numbers(cells)
    return cells.where(np.isnan(numbers), [number_text(number) if number == number else "" for number in numbers])


def _single_class(classes: npt.NDArray[np.int64], sites: pd.Series[str], names: list[str]) -> list[Note]:
    if len(names) != 2 or sites.nunique() < 2:
        return []
    shares = pd.Series(classes).groupby(sites.to_numpy()).agg(["min", "max"])
    only = {names[index]: shares.index[(shares["min"] == index) & (shares["max"] == index)] for index in (0, 1)}
    said = [
        f"{counted(len(found), 'site has', 'sites have')} cases of {name!r} only ({some(map(str, found))})"
        for name, found in only.items()
        if len(found)
    ]
    if not said:
        return []
    return [
        Note(
            "N225",
            f"{'; '.join(said)}. Look whether the label is written there as at the other sites. If it is, nothing can be "
            "learned there alone, and there is no AUC.",
        )
    ]


def _spellings(label: str, table: pd.DataFrame, names: list[str]) -> list[Note]:
    """A note on values that differ only in their writing and were taken for different classes."""
    said = []
    for group in alike(table["text"]).values():
        mine = table[table["text"].isin(group)]
        if mine["class"].nunique() > 1:
            said.append(_values(mine, names))
    if not said:
        return []
    return [
        Note(
            "N226",
            f"The label {label!r} has values that differ only in their writing and count as different classes: "
            f"{'; '.join(said)}. Write them alike in the tables, or list them all under `positive`.",
        )
    ]


def _words_beside_numbers(table: pd.DataFrame, spec: DataSpec) -> pd.DataFrame:
    """The rows with a word, of sites that have numbers as well; words that a list under `positive` has are meant so."""
    is_word = pd.Series(np.isnan(parse_numbers(table["text"])), index=table.index)
    mixed = [site for site, words in is_word.groupby(table["site"]) if 0 < words.sum() < len(words)]
    found = table[is_word & table["site"].isin(mixed)]
    return found[found["class"] != 1] if isinstance(spec.positive, list) else found


def _mixed(label: str, words: pd.DataFrame, table: pd.DataFrame, names: list[str]) -> list[Note]:
    if not len(words):
        return []
    sites = words["site"].unique().tolist()
    total = int(table["site"].isin(sites).sum())
    return [
        Note(
            "N227",
            f"The label {label!r} has words beside numbers at {counted(len(sites), 'site', 'sites')} "
            f"({some(map(str, sites))}): {len(words)} of {total} labels there are words, and count as these classes: "
            f"{_values(words, names)}. Write each class in one way, or list all its values under `positive`.",
        )
    ]


def _different_values(label: str, table: pd.DataFrame) -> list[Note]:
    """A note where a value stands at some sites only, and its absence from the others is no chance."""
    keys = table["text"].map(folded)
    counts = pd.crosstab(table["site"], keys)
    if len(counts) < 2 or counts.shape[1] < 3:  # two values are two classes: that a site lacks one is told already
        return []
    totals, there = counts.sum(axis=1), counts > 0
    lacking = set[str]()
    for key in counts.columns:
        share = counts[key].sum() / totals[there[key]].sum()
        absent = totals[~there[key]]
        if len(absent) == len(counts) - 1 or (((1 - share) ** absent) < _CHANCE).any():
            lacking.add(key)
    if not lacking:
        return []
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for site, mine in table.groupby("site"):
        groups[tuple(sorted(mine["text"].unique()))].append(str(site))
    listed = [f"{', '.join(values[:MOST_NAMES])}{', ...' if len(values) > MOST_NAMES else ''} at {some(found)}"
              for values, found in groups.items()]  # fmt: skip
    return [
        Note(
            "N224",
            f"The sites do not have the same values of the label {label!r}: {some(listed)}. If they mean the same in "
            "other words or numbers, write them alike in the tables; each value counts as it stands.",
        )
    ]


def _values(rows: pd.DataFrame, names: list[str]) -> str:
    """The values of some rows, each with the number of rows and the class."""
    groups = rows.groupby("text")["class"]
    return some(f"{text!r} ({len(found)}: {names[found.iloc[0]]})" for text, found in groups)


def _unknown(label: str, table: pd.DataFrame, names: list[str]) -> list[Note]:
    """A note on values that usually mean that the label is not known."""
    suspicious = table["text"].map(folded).isin(_UNKNOWN).to_numpy()
    numbers = np.abs(parse_numbers(table["text"]))
    usual = numbers[~suspicious & ~np.isnan(numbers)]
    # 99 among 97 and 98 is a number like others.
    odd = np.isnan(numbers) | (numbers > 3 * usual.max(initial=0.0) + 5)
    rows = table[suspicious & odd]
    if not len(rows):
        return []
    return [
        Note(
            "N228",
            f"The label {label!r} has values that usually mean that it is not known, and count as a class here: "
            f"{_values(rows, names)}. If they do, add them to `missing`.",
        )
    ]
