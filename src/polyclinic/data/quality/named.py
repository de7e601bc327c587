"""What a study file names and the tables write otherwise: values that no row has, patients whom no key names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.quality.words import counted, folded_name, some
from polyclinic.data.spec import Scalar
from polyclinic.data.tables.table import comparison, matches, scalar_text
from polyclinic.notes import Note

_PATIENT = re.compile(r"(patient|subject|participant|person|pid|mrn|sub)s?([ _.-]?(id|name|no|nr|num|number|key))?")


def unmatched_notes(
    use: str,
    cells: pd.Series[str],
    wanted: Scalar | Sequence[Scalar],
    chosen: npt.NDArray[np.bool_],
    *,
    identifies: bool = False,
) -> list[Note]:
    """Notes on values of ``where`` or ``positive`` that no row has, and on rows that have them in other writing.

    Args:
        use: the key of the study file.
        cells: texts of the column, NaN where missing.
        wanted: what the study asks for. True and false are left alone, and so are comparisons but for ``==``, ``!=``
            and lists that every row fulfils.
        chosen: bool ``[N]``, which rows have it.
        identifies: whether the column names patients: then no value is quoted.
    """
    values = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Sequence) else list(wanted)
    values = [value for value in values if not isinstance(value, bool)]
    column, known = str(cells.name), cells.notna().to_numpy()
    compared = [found for value in values if isinstance(value, str) and (found := comparison(value))]
    if len(compared) > 1 and chosen[known].all():
        text = (
            f"`{use}` lists {len(compared)} comparisons for {column!r}, of which one is enough, and every row that has "
            "a value fulfils one of them. List the values that are wanted instead."
        )
        return [Note("N239", text)]
    if len(values) == 1 and compared and compared[0][0] in ("==", "!="):
        sign, right = compared[0]
        values, chosen = [right], chosen if sign == "==" else known & ~chosen
    elif compared:
        return []
    names = {folded_name(scalar_text(value)) for value in values}
    others = cells[~chosen & known]
    counts = others.value_counts()
    alike = {str(text): int(count) for text, count in counts.items() if folded_name(str(text)) in names}
    notes = []
    if alike:
        total, writings = sum(alike.values()), some(f"{text[:30]!r} ({count})" for text, count in alike.items())
        writings = "" if identifies else f": {writings}"
        text = (
            f"`{use}` names values of {column!r} that {counted(total, 'more row has', 'more rows have')} in other "
            f"writing, and these rows do not count as such{writings}. Write them alike in the tables, or list all."
        )
        notes.append(Note("N239", text))
    absent = [scalar_text(value) for value in values if not matches(cells, value).any()]
    if absent and chosen.any():
        which = str(len(absent)) if identifies else some(map(repr, absent))
        stand = "stands" if len(absent) == 1 else "stand"
        text = f"`{use}` names values of {column!r}, of which {which} {stand} in no row."
        notes.append(Note("N239", text))
    return notes


def patient_column_notes(tables: Sequence[pd.DataFrame], taken: set[str]) -> list[Note]:
    """A note on a column that seems to name patients with several rows, in a study without ``subject``.

    Args:
        tables: cells as texts.
        taken: columns with a part in the study.
    """
    for name in dict.fromkeys(str(column) for table in tables for column in table.columns):
        if name in taken or _PATIENT.fullmatch(name.strip().lower()) is None:
            continue
        found = [table[name] for table in tables if list(table.columns).count(name) == 1]
        repeats = sum(int(cells[cells != ""].duplicated().sum()) for cells in found)
        if repeats and max((cells.nunique() for cells in found), default=0) > 2:  # two values are groups of people
            again = counted(repeats, "row repeats", "rows repeat")
            text = (
                f"No `subject` is given, so each row counts as a patient; but {again} a value of the column {name!r}. "
                f"If it names patients, say `subject: {name}`, so that none is in training and test data."
            )
            return [Note("N238", text)]
    return []
