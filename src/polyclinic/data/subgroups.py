"""Groups of patients by columns of the table, so that results can be looked at in them; they need be no features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.data.tables.codes import alike, canonical
from polyclinic.data.tables.numbers import parse_numbers
from polyclinic.errors import DataError
from polyclinic.notes import Note

#: The group of those whose cell is missing, outside all intervals, or no number.
NOT_KNOWN = "not known"
#: A column with more groups than this is taken for one that names patients or measures something.
MOST_GROUPS = 20
#: So many groups may each be of one or two patients; of more there must be two patients or more a group on average.
_FEW = 5

Groups = dict[str, NDArray[np.object_]]


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


def read_groups(
    cells: pd.DataFrame, patients: pd.Series[str], subgroups: Sequence[Subgroup]
) -> tuple[Groups, list[Note]]:
    """The group of each row, for each subgroup.

    Args:
        cells: texts of the tables, NaN where missing; at least the columns of the subgroups.
        patients: the patient of each row.
        subgroups: what to group by.

    Returns:
        Column -> names of the rows' groups, object ``[N]``; and notes.

    Raises:
        DataError: P203, no row belongs to a group of a subgroup, or the column seems to name patients.
    """
    found: Groups = {}
    notes: list[Note] = []
    for one in subgroups:
        texts = cells[one.column]
        if one.edges is None:
            found[one.column], said = _by_value(one, texts, patients)
        else:
            found[one.column], said = _by_interval(one, texts)
        notes += said
    return found, notes


def _by_value(one: Subgroup, texts: pd.Series[str], patients: pd.Series[str]) -> tuple[NDArray[np.object_], list[Note]]:
    values = canonical(texts)
    count, people = values.nunique(), patients[values.notna()].nunique()
    if count == 0:
        raise DataError("P203", f"The subgroup column {one.column!r} is empty in all rows used.",
                        "Take it out of `evaluation: {subgroups: ...}`, or fill it.")  # fmt: skip
    if count > MOST_GROUPS or (count > _FEW and 2 * count > people):
        raise DataError(
            "P203", f"The subgroup column {one.column!r} has {count} values among {people} patients (at most "
            f"{MOST_GROUPS}, and two patients or more a value on average): it seems to name patients, or to measure "
            "something.",
            f"Cut numbers at edges, such as {{{one.column}: [0, 50, 65, 120]}}, or give a column of groups.",
        )  # fmt: skip
    apart = alike(values.dropna().unique().tolist())
    notes = []
    if apart:
        some = "; ".join(", ".join(map(repr, group[:4])) for group in apart[:3])
        text = f"Subgroup {one.column!r} tells apart what differs in spelling only: {some}."
        notes.append(Note("N212", f"{text} If they mean the same, write them alike."))
    return values.fillna(NOT_KNOWN).to_numpy(dtype=object), notes


def _by_interval(one: Subgroup, texts: pd.Series[str]) -> tuple[NDArray[np.object_], list[Note]]:
    numbers = parse_numbers(texts)
    edges, names = np.array(one.edges), np.array(one.intervals, dtype=object)
    inside = (numbers >= edges[0]) & (numbers <= edges[-1])
    if not inside.any():
        raise DataError(
            "P203", f"No value of the subgroup column {one.column!r} is a number between {edges[0]:g} and "
            f"{edges[-1]:g}.", "Compare the edges with the column: its numbers, and their unit.",
        )  # fmt: skip
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
