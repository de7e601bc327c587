"""Labels that mean the same and are written differently, within a table or from site to site."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.quality.named import unmatched_notes
from polyclinic.data.quality.words import MOST_NAMES, alike, counted, folded, some
from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.table import comparison, number_text, parse_numbers
from polyclinic.notes import Note

#: A label with more different values than this is a measurement that `positive` cuts, not a list of classes.
_MOST_VALUES = 50
#: A class of this chance to be missing at a site, if sites were alike, is missing for another reason.
_CHANCE = 0.01
#: What is written where a label is not known, `folded`.
_UNKNOWN = re.compile(
    r"[?.]|--|n[./]?a\.?|nan|null|unk(nown)?|unclear|undetermined|indeterminate|missing|tbd|pending|unbekannt|"
    r"not (available|known|done|applicable|assessed|given)|-9+|99+"
)
#: What `positive: true` and `positive: false` understand, so that numbers and words may stand side by side.
_YES_NO = frozenset(("true", "yes", "on", "1", "false", "no", "off", "0"))


def label_notes(
    cells: pd.Series[str], classes: npt.NDArray[np.int64], sites: pd.Series[str], spec: DataSpec, names: list[str]
) -> list[Note]:
    """What is said of the labels of a classification.

    Args:
        cells: texts of the label in all used rows, none missing.
        classes: the class that each text was taken for, int64 ``[N]``.
        sites: site of each row, as the table names it.
        spec: the ``data:`` part of the study file.
        names: names of the classes.
    """
    rows = pd.DataFrame({"text": cells.to_numpy(), "site": sites.to_numpy(), "class": classes})
    table = rows.groupby(["site", "text", "class"], as_index=False, sort=True).size()
    unmatched = []
    if isinstance(spec.positive, list):
        told = len(_spellings(str(spec.label), table, names)) > 0
        unmatched = unmatched_notes("positive", cells, spec.positive, (classes == 1) | told)
    return counted_label_notes(table, spec, names, unmatched)


def counted_label_notes(
    table: pd.DataFrame, spec: DataSpec, names: list[str], unmatched: Sequence[Note] = ()
) -> list[Note]:  # fmt: skip
    """What is said of the labels of a classification, from counts that sites say.

    Args:
        table: ``site``, ``text`` of the label, ``class`` that it was taken for, and ``size``, the number of cases.
        spec: the ``data:`` part of the study file.
        names: names of the classes.
        unmatched: notes on values of ``positive`` that no row has.
    """
    label = str(spec.label)
    notes = _single_class(table, names) + _spellings(label, table, names) + list(unmatched)
    table = table.copy()
    table["text"] = _one_by_one(table["text"])
    if table["text"].nunique() > _MOST_VALUES:
        return notes
    compared = isinstance(spec.positive, str) and comparison(spec.positive) is not None
    understood = isinstance(spec.positive, bool) and set(table["text"].map(folded)) <= _YES_NO
    if not understood and not compared:  # a comparison takes numbers only
        words = _words_beside_numbers(table, spec)
        # What N228 says is not said again.
        unknown = _is_unknown(table) & (spec.classes is None)
        notes += _mixed(label, words[~unknown[words.index]], table, names)
        several = isinstance(spec.positive, list) and len(spec.positive) > 1
        if not (several and table.groupby("site")["class"].nunique().min() > 1):  # each site's own writing is listed
            notes += _different_values(label, table[~unknown].drop(words.index, errors="ignore"))
    return notes + (_unknown(label, table, names) if spec.classes is None else [])


def _one_by_one(texts: pd.Series[str]) -> pd.Series[str]:
    """Each text that is a number as this number is usually written, so that ``1.0`` is ``1``, also beside words."""
    numbers = parse_numbers(texts).tolist()
    return pd.Series(
        [text if number != number else number_text(number) for text, number in zip(texts, numbers, strict=True)],
        index=texts.index, dtype="str",
    )  # fmt: skip


def _single_class(table: pd.DataFrame, names: list[str]) -> list[Note]:
    """A note on sites that lack one of two classes, where they have too many cases for that to be chance."""
    counts = table.pivot_table(index="site", columns="class", values="size", aggfunc="sum", fill_value=0)
    if len(names) != 2 or counts.shape[1] != 2 or len(counts) < 2:
        return []
    said = []
    for only, other in ((0, 1), (1, 0)):
        lacking, there = counts[counts[other] == 0], counts[counts[other] > 0]
        share = there[other].sum() / there.to_numpy().sum()
        found = lacking.index[(1 - share) ** lacking[only] < _CHANCE].tolist()
        if found:
            have = counted(len(found), "site has", "sites have")
            said.append(f"{have} cases of {names[only]!r} only ({some(map(str, found))})")
    if not said:
        return []
    return [
        Note(
            "N225",
            f"{'; '.join(said)}. Look whether the label is written there as at the other sites. If it is, nothing can "
            "be learned there alone, and there is no AUC.",
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
    total = int(table["size"][table["site"].isin(sites)].sum())
    return [
        Note(
            "N227",
            f"The label {label!r} has words beside numbers at {counted(len(sites), 'site', 'sites')} "
            f"({some(map(str, sites))}): {words['size'].sum()} of {total} labels there are words, and count as these "
            f"classes: {_values(words, names)}. Write each class in one way, or list all its values under `positive`.",
        )
    ]


def _different_values(label: str, table: pd.DataFrame) -> list[Note]:
    """A note where a value stands at some sites only, and its absence from the others is no chance."""
    keyed = table.assign(key=table["text"].map(folded))
    counts = keyed.pivot_table(index="site", columns="key", values="size", aggfunc="sum", fill_value=0)
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
        groups[tuple(sorted(str(text)[:30] for text in mine["text"].unique()))].append(str(site))
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
    """The values of some rows of the counted table, each with the number of rows and the class."""
    groups = rows.groupby("text")
    return some(
        f"{str(text)[:30]!r} ({found['size'].sum()}: {names[found['class'].iloc[0]]})" for text, found in groups
    )


def _is_unknown(table: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of the counted table have a value that usually means that the label is not known."""
    suspicious = np.array([_UNKNOWN.fullmatch(folded(text)) is not None for text in table["text"]], dtype=bool)
    numbers = np.abs(parse_numbers(table["text"]))
    usual = numbers[~suspicious & ~np.isnan(numbers)]
    # 99 among 97 and 98 is a number like others.
    odd = np.isnan(numbers) | (numbers > 3 * usual.max(initial=0.0) + 5)
    return pd.Series(suspicious & odd, index=table.index, dtype=bool)


def _unknown(label: str, table: pd.DataFrame, names: list[str]) -> list[Note]:
    """A note on values that usually mean that the label is not known."""
    rows = table[_is_unknown(table)]
    if not len(rows):
        return []
    return [
        Note(
            "N228",
            f"The label {label!r} has values that usually mean that it is not known, and count as a class here: "
            f"{_values(rows, names)}. If they do, add them to `missing`.",
        )
    ]
