"""Rows that are put together to bags: which bag a row is of, and what the rows of a bag must agree in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.cases import Counts
from polyclinic.data.quality.words import alike, counted
from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.codes import canonical
from polyclinic.notes import Note

#: A whole number, and how a spreadsheet program may write it where cells of its column are empty.
_WHOLE = r"^([1-9][0-9]*|0)\.0+$"


def name_bags(cells: pd.DataFrame, origin: pd.DataFrame, spec: DataSpec) -> pd.Series[str]:
    """The bag of each row, NaN where it is of none; equal names at two sites are two bags.

    A whole number that a spreadsheet program has written as ``2.0`` is ``2``; ``2.10`` and ``2.1`` are two bags. A bag
    that is named by its patient is called as the patient is, of whose spellings there is a note.
    """
    column = spec.bags.column if spec.bags else None
    if column is None:
        return origin["subject"]
    names = cells[column]
    if column != spec.subject:
        names = names.str.replace(_WHOLE, r"\1", regex=True)
    if spec.partition is not None:  # rows go to other sites, where names of two sites must not meet
        return origin["site"] + ", " + names
    return names


def fill_labels(cells: pd.DataFrame, origin: pd.DataFrame, spec: DataSpec) -> None:
    """A row without a label, a finding, or time and event, gets those of the other rows of its bag, in place."""
    columns = [column for column in _told(spec) if column in cells]
    if columns:
        filled = cells[columns].groupby(bag_numbers(origin)).transform("first")
        known = cells[columns].notna() | origin["bag"].isna().to_numpy()[:, None]
        cells[columns] = cells[columns].where(known, filled)


def torn_bags(
    cells: pd.DataFrame, origin: pd.DataFrame, spec: DataSpec
) -> Iterator[tuple[str, npt.NDArray[np.bool_], Note]]:
    """Bags whose rows differ in what a case has only one of, also in rows that can't be used.

    Yields:
        Why the bags can't be used, which rows are theirs ``[N]``, and a note that counts the bags.
    """
    numbers = bag_numbers(origin)
    for what, values in _common(cells, origin, spec):
        kinds = values[numbers >= 0].groupby(numbers[numbers >= 0]).nunique()
        torn = kinds.index[kinds > 1]
        if len(torn):
            inside = np.isin(numbers, torn)
            text = (
                f"{counted(len(torn), 'bag is', 'bags are')} left out, of {len(kinds)}: the rows of a bag differ in "
                f"{what}, and a case has one only."
            )
            yield f"{what} differs within a bag", inside, Note("N260", text, origin["bag"][inside].drop_duplicates())


def _told(spec: DataSpec) -> list[str]:
    """Columns that say what is to be predicted of a case."""
    named = (spec.label, spec.time, spec.event, *(spec.findings or ()))
    return [column for column in named if column is not None]


def _common(cells: pd.DataFrame, origin: pd.DataFrame, spec: DataSpec) -> Iterator[tuple[str, pd.Series[str]]]:
    """What the rows of a bag must have in common, and its texts ``[N]``."""
    yield "patient", origin["subject"]
    combat = spec.harmonisation.combat
    covariates = [*combat.covariates, *combat.groups] if combat else []
    for column in dict.fromkeys((*_told(spec), *covariates)):
        if column in cells:
            yield column, canonical(cells[column])
    yield "part of the split", origin["part"]


def bag_notes(origin: pd.DataFrame, usable: npt.NDArray[np.bool_], spec: DataSpec) -> list[Note]:
    """Notes on names of bags that stand at more than one site, and on those that a site writes in several ways; of
    patients' names there are such notes already."""
    if spec.bags is None or spec.bags.column in (None, spec.subject):
        return []
    named = origin[usable]
    sites = named.groupby("bag")["site"].nunique()
    several, notes = sites.index[sites > 1], list[Note]()
    if len(several):
        text = (
            f"{counted(len(several), 'name of a bag stands', 'names of bags stand')} at more than one site: the rows "
            "of each site are a bag of their own. If they are one bag, it may be in training and test data: write its "
            "rows to one site."
        )
        notes.append(Note("N261", text, several))
    for site, names in named.groupby("site", sort=False)["bag"]:
        if groups := alike(names.dropna().unique()):
            text = (
                f"Site {site}: {counted(len(groups), 'name of a bag is', 'names of bags are')} written in several "
                "ways, which differ only in capitals, blanks, Unicode form, leading zeros or `.0`. Each is a bag of "
                "its own: write a name alike in all rows."
            )
            notes.append(Note("N212", text, [name for group in groups.values() for name in group]))
    return notes


def bag_numbers(origin: pd.DataFrame) -> npt.NDArray[np.intp]:
    """A number for each bag, ``[N]``; -1 for rows of none."""
    names = origin["site"].astype("object").astype(str) + "\0" + origin["bag"].astype("object").astype(str)
    numbers = pd.factorize(names)[0]
    return np.where(origin["site"].isna() | origin["bag"].isna(), -1, numbers)


def bag_counts(origin: pd.DataFrame, reasons: npt.NDArray[np.object_], rows: Counts) -> Counts:
    """What became of the bags of a site, and of their instances.

    A bag is used if one of its rows is. Else the reason is the one that most of its rows have.

    Args:
        origin: of the site's rows ``[n]``.
        reasons: why a row can't be used ``[n]``, "" where it can.
        rows: what became of the rows.
    """
    named = pd.DataFrame({"bag": origin["bag"].to_numpy(), "reason": reasons}).dropna(subset=["bag"])
    counts = Counts(instances=rows)
    for bag, own in named.groupby("bag", sort=False)["reason"]:
        counts.found += 1
        counts.used += 1
        if not (own == "").any():
            counts.reject(str(bag), str(own.value_counts(sort=False).idxmax()))
    return counts
