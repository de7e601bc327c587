"""Tables about the patients and visits of a data set: ``participants.tsv``, ``sessions.tsv``, ``phenotype/*.tsv``.

Nothing is given to a visit that a table with a column for visits does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from polyclinic.data.readers.people.tables import (
    PERSON_COLUMNS,
    VISIT_COLUMNS,
    Row,
    Table,
    Visits,
    count,
    find_column,
    join_table,
)
from polyclinic.data.tables.table import read_cells
from polyclinic.errors import DataError
from polyclinic.notes import Note


class People:
    """What the tables of a data set tell of its patients and visits.

    Args:
        root: folder of the data set.
        visits: its patients and their visits.
        site_column: whether ``participants.tsv`` names the site (columns ``SITE_COLUMNS``).
    """

    def __init__(self, root: Path, visits: Visits, *, site_column: bool) -> None:
        self.notes: list[Note] = []
        self._visits = visits
        self._main = self._read(root / "participants.tsv", "participants.tsv", site_column=site_column)
        self._sessions = self._session_tables(root)
        places = sorted((root / "phenotype").glob("*.tsv")) if (root / "phenotype").is_dir() else []
        self._more = [(path.stem, self._read(path, "A table in phenotype")) for path in places]
        self._names = self._rename()
        self.tells_sites = bool(self._main and any(self._main.sites.values()))

    def site(self, person: str, visit: str) -> str | None:
        """The patient's site; "" where the table tells no site, or several; None where no table tells sites."""
        if not self.tells_sites or self._main is None:
            return None
        every = {name for (owner, _), names in self._main.sites.items() if owner == person for name in names}
        here = self._main.sites.get((person, visit), set()) if self._main.by_visit and len(every) > 1 else every
        return next(iter(here)) if len(here) == 1 else ""

    def covariates(self, person: str, visit: str) -> Row:
        """Columns of the tables: a visit's own value before the patient's, "" where there is none."""
        found = self._first(person, visit)
        for stem, table in self._more:
            row = table.row(person, visit) if table else None
            for column, text in (row or {}).items():
                name = self._names.get((stem, column), column)
                found[name] = found.get(name) or text
        return found

    def _rename(self) -> dict[tuple[str, str], str]:
        """(table, column) -> another name, where an earlier table says something else in a column of that name."""
        renamed: dict[tuple[str, str], str] = {}
        known: dict[tuple[str, str], Row] = {
            (person, visit): self._first(person, visit) for person, mine in self._visits.items() for visit in mine
        }
        for stem, table in self._more:
            for column in table.columns if table else []:
                cells = {place: (table.row(*place) or {}).get(column, "") for place in known} if table else {}
                if any(text and known[place].get(column, text) not in ("", text) for place, text in cells.items()):
                    renamed[stem, column] = f"{stem}_{column}"
                name = renamed.get((stem, column), column)
                for place, text in cells.items():
                    known[place][name] = known[place].get(name) or text
        if renamed:
            text = (
                f"{count(len(renamed), 'column')} of tables in phenotype have the name of a column elsewhere and "
                "other values: the table's name was put before theirs."
            )
            self.notes.append(Note("N325", text))
        return renamed

    def _first(self, person: str, visit: str) -> Row:
        """Of ``participants.tsv`` and the tables of sessions, whose columns hold for their visits alone."""
        found = dict(self._main.row(person, visit) or {}) if self._main else {}
        for table in self._sessions:
            if person in table.people:
                found |= table.row(person, visit) or dict.fromkeys(table.columns, "")
        return found

    def _session_tables(self, root: Path) -> list[Table]:
        """``sessions.tsv`` of the data set, then those in the patients' folders."""
        shared = self._read(root / "sessions.tsv", "sessions.tsv")
        tables: list[Table] = [] if shared is None else [shared]
        own: list[tuple[str, pd.DataFrame]] = []
        unusable = 0
        for person in sorted(self._visits):
            home = root / f"sub-{person}"
            for path in (home / f"sub-{person}_sessions.tsv", home / "sessions.tsv"):
                if path.is_file():
                    try:
                        cells = read_cells(path)
                    except DataError:
                        unusable += 1
                        continue
                    if cells.columns.duplicated().any() or find_column(cells, VISIT_COLUMNS) is None:
                        unusable += 1
                    else:
                        own.append((person, cells))
        if unusable:
            what = count(unusable, "table")
            text = f"{what} of patients' sessions can't be read, or have no column session_id: not used."
            self.notes.append(Note("N324", text))
        if own:
            tables.append(self._join_own(own))
        return tables

    def _join_own(self, own: Sequence[tuple[str, pd.DataFrame]]) -> Table:
        parts = []
        for person, cells in own:
            column = find_column(cells, PERSON_COLUMNS)
            frame = cells.drop(columns=[column]) if column else cells
            visit = find_column(frame, VISIT_COLUMNS)
            parts.append(frame.rename(columns={visit: "session_id"}).assign(participant_id=f"sub-{person}"))
        return self._join(pd.concat(parts, ignore_index=True).fillna(""), "The patients' tables of sessions")

    def _read(self, path: Path, title: str, *, site_column: bool = False) -> Table | None:
        if not path.is_file():
            return None
        main = title == "participants.tsv"
        number = "N302" if main else "N324"
        try:
            cells = read_cells(path)
        except DataError:
            lost = "its covariates and sites are missing" if main else "it was not used"
            self.notes.append(Note(number, f"{title} can't be read: {lost}."))
            return None
        if cells.columns.duplicated().any() or find_column(cells, PERSON_COLUMNS) is None:
            text = f"{title} has no column participant_id, or has a column twice: it was not used."
            self.notes.append(Note(number, text))
            return None
        return self._join(cells, title, site_column=site_column)

    def _join(self, cells: pd.DataFrame, title: str, *, site_column: bool = False) -> Table:
        table = join_table(cells, title, self._visits, site_column=site_column)
        self.notes += table.notes
        return table
