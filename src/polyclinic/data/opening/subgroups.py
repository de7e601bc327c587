"""Groups of patients by columns of the table, so that results can be looked at in them; they need be no features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.data.tables.codes import likeness, one_text_each
from polyclinic.data.tables.numbers import parse_numbers
from polyclinic.errors import DataError
from polyclinic.limits import Body, Count, Name
from polyclinic.notes import Note

#: The group of those whose cell is missing, outside all intervals, or no number.
NOT_KNOWN = "not known"
#: A column with more groups than this is taken for one that names patients or measures something.
MOST_GROUPS = 20
#: So many groups may each be of one or two patients; of more there must be two patients or more a group on average.
_FEW = 5
#: Of a column with more spellings than this none is named: they are no groups.
MOST_SPELLINGS = 100


@dataclass(frozen=True)
class Subgroup:
    """A column by whose values patients are grouped.

    Attributes:
        column: of the table.
        edges: rising numbers at which a column of numbers is cut, two or more; None takes each value as a group.
    """

    column: str
    edges: tuple[float, ...] | None = None

    @classmethod
    def of(cls, entry: str | Mapping[str, Sequence[float]]) -> Subgroup:
        """From an entry of a study file that was checked: ``sex`` or ``{age: [0, 50, 65, 120]}``."""
        if isinstance(entry, str):
            return cls(entry)
        ((column, edges),) = entry.items()
        return cls(column, tuple(map(float, edges)))

    @property
    def intervals(self) -> list[str]:
        """Names of the intervals in their order: each holds its lower edge, the last one its upper edge, too."""
        edges = [f"{edge:g}" for edge in self.edges or ()]
        names = [f"{low} to below {high}" for low, high in pairwise(edges)]
        return [*names[:-1], f"{edges[-2]} to {edges[-1]}"] if names else []


def group_order(name: str) -> tuple[bool, bool, float, str]:
    """Key to sort names of groups by: numbers and intervals by their size, then texts, those not known last."""
    try:
        return name == NOT_KNOWN, False, float(name.split(" to ")[0]), name
    except ValueError:
        return name == NOT_KNOWN, True, 0.0, name


class Grouping(Body):
    """What a site says of a subgroup's column, so that all sites can agree on its groups.

    Attributes:
        values: spelling -> cases; of a column that is cut at edges, none.
        different: how many values there are, where they are too many to be groups; else 0.
        patients: with a value in the column.
        inside: cases between the edges, of a column that is cut.
    """

    values: dict[Name, Count] = {}
    different: Count = 0
    patients: Count = 0
    inside: Count = 0


def take_grouping(one: Subgroup, texts: pd.Series[str], patients: pd.Series[str], floor: int = 1) -> Grouping:
    """What is said of a subgroup's column.

    Args:
        one: the subgroup.
        texts: cells of the column, NaN where missing.
        patients: the patient of each row.
        floor: values of fewer cases are not named.
    """
    people = int(patients[texts.notna().to_numpy()].nunique())
    if one.edges is not None:
        return Grouping(patients=people, inside=int(_inside(one, parse_numbers(texts)).sum()))
    counts = {str(text): int(count) for text, count in texts.value_counts(sort=False).items()}
    if len(counts) > MOST_SPELLINGS:
        return Grouping(different=len(counts), patients=people)
    return Grouping(values={text: count for text, count in counts.items() if count >= floor}, patients=people)


def agree_groups(one: Subgroup, groupings: Iterable[Grouping]) -> dict[str, str]:
    """The group that each spelling means at all sites; nothing for a column that is cut at edges.

    Raises:
        DataError: P203, no row belongs to a group, or the column seems to name patients.
    """
    found = list(groupings)
    if one.edges is not None:
        if not any(grouping.inside for grouping in found):
            raise DataError(
                "P203", f"No value of the subgroup column {one.column!r} is a number between {one.edges[0]:g} and "
                f"{one.edges[-1]:g}.", "Compare the edges with the column: its numbers, and their unit.",
            )  # fmt: skip
        return {}
    texts = one_text_each({text for grouping in found for text in grouping.values})
    people = sum(grouping.patients for grouping in found)
    count = max([len(set(texts.values())), *(grouping.different for grouping in found)])
    if count == 0:
        empty = not people
        raise DataError(
            "P203", f"The subgroup column {one.column!r} "
            + ("is empty in all rows used." if empty else "has no value with enough cases to be named."),
            f"Take it out of `evaluation: {{subgroups: ...}}`{', or fill it' if empty else ''}.",
        )  # fmt: skip
    if count > MOST_GROUPS or (count > _FEW and 2 * count > people):
        raise DataError(
            "P203", f"The subgroup column {one.column!r} has {count} values among {people} patients (at most "
            f"{MOST_GROUPS}, and two patients or more a value on average): it seems to name patients, or to measure "
            "something.",
            f"Cut numbers at edges, such as {{{one.column}: [0, 50, 65, 120]}}, or give a column of groups.",
        )  # fmt: skip
    return texts


def assign_groups(
    one: Subgroup, texts: pd.Series[str], spellings: Mapping[str, str]
) -> tuple[NDArray[np.object_], list[Note]]:
    """The group of each row.

    Args:
        one: the subgroup.
        texts: cells of its column, NaN where missing.
        spellings: what ``agree_groups`` gave.

    Returns:
        Names of the rows' groups, object ``[N]``; and notes.
    """
    return _by_value(one, texts, spellings) if one.edges is None else _by_interval(one, texts)


def spelling_notes(groups: Mapping[str, Sequence[str]]) -> list[Note]:
    """Notes on groups that may be one, at all sites together: they differ in their spelling only (``F`` and ``f``), or
    one is the first letter of another (``female``).

    Args:
        groups: column of a subgroup -> names of its groups.
    """
    notes = []
    for column, names in groups.items():
        if apart := _apart(names):
            some = "; ".join(", ".join(map(repr, group[:4])) for group in apart[:3])
            text = f"Subgroup {column!r} tells apart what may be the same in another spelling: {some}."
            notes.append(Note("N212", f"{text} If they mean the same, write them alike, at all sites."))
    return notes


def _apart(names: Iterable[str]) -> list[list[str]]:
    """Groups that may be one, each sorted."""
    kinds = defaultdict[str, list[str]](list)
    for name in sorted(names):
        kinds[likeness(name)].append(name)
    for letter in [kind for kind in kinds if len(kind) == 1 and kind.isalpha()]:
        longer = [kind for kind in kinds if kind.isalpha() and len(kind) > 2 and kind.startswith(letter)]
        kinds[letter] = sorted([*kinds[letter], *(name for kind in longer for name in kinds.pop(kind))])
    return sorted(group for group in kinds.values() if len(group) > 1)


def common_groups(
    column: str, groups: NDArray[np.object_], bags: NDArray[np.intp]
) -> tuple[NDArray[np.object_], list[Note]]:
    """The group of each row as that of its bag, and a note that counts bags whose rows have several.

    Args:
        column: of the subgroup.
        groups: of the rows, object ``[N]``.
        bags: number of the bag of each row ``[N]``.
    """
    kinds = pd.Series(groups).groupby(bags).transform("nunique").to_numpy()
    torn = len(np.unique(bags[kinds > 1]))
    if not torn:
        return groups, []
    text = f"Subgroup {column!r}: {torn} of {len(np.unique(bags))} bags have rows of several groups. They count as "
    return np.where(kinds > 1, NOT_KNOWN, groups), [Note("N240", f"{text}{NOT_KNOWN!r}.")]


def _by_value(
    one: Subgroup, texts: pd.Series[str], spellings: Mapping[str, str]
) -> tuple[NDArray[np.object_], list[Note]]:
    values = texts.map(dict(spellings)).astype(object)
    notes = []
    rare = int((values.isna() & texts.notna()).sum())
    if rare:
        text = f"Subgroup {one.column!r}: {rare} of {len(texts)} cases have values that too few cases have to be named"
        notes.append(Note("N240", f"{text} outside the site. They count as {NOT_KNOWN!r}."))
    return values.where(values.notna(), NOT_KNOWN).to_numpy(dtype=object), notes


def _inside(one: Subgroup, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which numbers are between the edges."""
    edges = one.edges or ()
    return np.asarray((numbers >= edges[0]) & (numbers <= edges[-1]), dtype=np.bool_)


def _by_interval(one: Subgroup, texts: pd.Series[str]) -> tuple[NDArray[np.object_], list[Note]]:
    numbers = parse_numbers(texts)
    edges, names = np.array(one.edges), np.array(one.intervals, dtype=object)
    inside = _inside(one, numbers)
    place = np.clip(np.searchsorted(edges, numbers[inside], side="right") - 1, 0, len(names) - 1)
    groups = np.full(len(texts), NOT_KNOWN, dtype=object)
    groups[inside] = names[place]
    missing = texts.isna().to_numpy()
    wordy = int((np.isnan(numbers) & ~missing).sum())
    outside = int((~inside & ~np.isnan(numbers)).sum())
    if not wordy and not outside:
        return groups, []
    counts = [f"{count} {words}" for count, words in ((wordy, "no number"), (outside, "outside the edges")) if count]
    text = (
        f"Subgroup {one.column!r}: {wordy + outside} of {len(texts)} cases are in none of its intervals though they "
        f"have a value ({', '.join(counts)}). They count as {NOT_KNOWN!r}."
    )
    return groups, [Note("N240", text)]
