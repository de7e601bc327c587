"""One table about patients or visits, joined with those that a folder has.

A row belongs to a patient, or to a visit where the table has a column for visits. Nothing is taken from a row that
contradicts another one of the same patient and visit.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from polyclinic.data.readers.people.matching import match_names
from polyclinic.notes import Note

SITE_COLUMNS = (
    "site", "site_id", "siteid", "center", "centre", "institution", "institution_name", "hospital", "scanner",
)  # fmt: skip
PERSON_COLUMNS = (
    "participant_id", "participant", "participantid", "subject_id", "subject", "subjectid", "sub", "sub_id", "id",
)  # fmt: skip
VISIT_COLUMNS = (
    "session_id", "session", "sessionid", "ses", "ses_id", "visit", "visit_id", "visitid", "visit_name", "timepoint",
    "time_point", "tp", "wave",
)  # fmt: skip
MISSING = ("", "n/a", "N/A", "NA", "na", "nan", "NaN", "null", "NULL", "#N/A")
_IDENTIFIES = re.compile(
    r"name|birth|dob\b|address|phone|mail|mrn|patient|insurance|ssn|zip|post_?code|date|initials", re.I
)
Visits = Mapping[str, set[str]]
"""Patient -> visits, as folders and files name them, without ``sub-`` and ``ses-``; "" is a visit without a name."""
Row = dict[str, str]


@dataclass
class Table:
    """One table, joined with the images.

    Attributes:
        title: what notes call it.
        columns: names of covariates.
        by_visit: whether rows belong to visits.
        rows: (patient, visit) -> covariates; the visit is "" where rows belong to patients.
        sites: (patient, visit) -> sites.
        people: patients that it tells of.
    """

    title: str
    columns: list[str] = field(default_factory=list)
    by_visit: bool = False
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    sites: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    people: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)

    def row(self, person: str, visit: str) -> Row | None:
        """The covariates of a visit, None where there is no row."""
        return self.rows.get((person, visit if self.by_visit else ""))


def find_column(cells: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The column with the first of ``names``, whatever its capital letters."""
    lowered = {str(name).strip().lower(): str(name) for name in reversed(list(cells.columns))}
    return next((lowered[name] for name in names if name in lowered), None)


def count(number: int, what: str) -> str:
    """A number with its noun.

    >>> count(1, "row"), count(2, "row")
    ('1 row', '2 rows')
    """
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def join_table(cells: pd.DataFrame, title: str, visits: Visits, *, site_column: bool) -> Table:
    """Find the patient and visit of each row, leave out contradictions and columns that identify, and count."""
    table = Table(title)
    person = find_column(cells, PERSON_COLUMNS) or ""
    cells = cells.fillna("")
    cells = cells[~cells[person].isin(MISSING)]
    people = match_names(set(cells[person]), set(visits), "sub")
    every = {visit for mine in visits.values() for visit in mine if visit}
    visit = _visit_column(cells, person, every)
    sessions = match_names(set(cells[visit]) - {""}, every, "ses") if visit else None
    keys = cells[person].map(people.found).fillna("").tolist()
    # A data set without names of visits has one visit a patient, which a table with names may tell of.
    named = bool(every) and visit is not None
    texts = cells[visit].tolist() if visit else []
    where = [sessions.found.get(text, "\0") for text in texts] if named and sessions else [""] * len(keys)
    rest = cells.drop(columns=[name for name in (person, visit) if name])
    home = find_column(rest, SITE_COLUMNS) if site_column else None
    if home is not None:
        for key, place, text in zip(keys, where, rest[home], strict=True):
            table.sites.setdefault((key, place), set()).update({text} - set(MISSING))
        rest = rest.drop(columns=home)
    dropped = [str(name) for name in rest if _identifies(str(name), rest[name])]
    rest = rest.drop(columns=dropped).replace(list(MISSING), "")
    table.by_visit = named
    table.people = set(keys) - {""}
    records = [{str(name): str(text) for name, text in row.items()} for row in rest.to_dict("records")]
    refused = _fill(table, list(zip(keys, where, strict=True)), records)
    if not named:
        _unfold(table, visits, every)
    table.columns = list(dict.fromkeys(name for row in table.rows.values() for name in row))
    otherwise = people.otherwise + (sessions.otherwise if named and sessions else 0)
    table.notes = _notes(
        table, visits, dropped=len(dropped), otherwise=otherwise, refused=refused, rows=keys, where=where
    )
    return table


def _visit_column(cells: pd.DataFrame, person: str, every: set[str]) -> str | None:
    """The column of visits: by its name, or, where patients have several rows, the one that holds the visits' names."""
    found = find_column(cells.drop(columns=person), VISIT_COLUMNS)
    if found is not None or not cells[person].duplicated().any() or not every:
        return found
    for name in cells.columns:
        texts = set(cells[name]) - set(MISSING)
        known = name != person and texts and len(match_names(texts, every, "ses").found) == len(texts)
        if known and not cells.duplicated([person, name]).any():
            return str(name)
    return None


def _fill(table: Table, places: Sequence[tuple[str, str]], records: Sequence[Row]) -> int:
    """Rows by patient and visit, but for those that contradict each other; returns the number of patients of these."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for place, record in zip(places, records, strict=True):
        if place[0]:
            found[place].append(record)
    refused = set()
    for (person, visit), rows in found.items():
        if any(row != rows[0] for row in rows):
            refused.add(person)
        elif visit != "\0":
            table.rows[person, visit] = rows[0]
    return len(refused)


def _unfold(table: Table, visits: Visits, every: set[str]) -> None:
    """Columns of visits beside each other (``age_ses-1``, ``age_ses-2``) become one column with a value a visit."""
    suffixes = {f"{join}{mark}{visit}": visit for visit in every for join in "_-." for mark in ("ses-", "ses_", "ses")}
    suffixes |= {f"{join}{visit}": visit for visit in every if re.search("[A-Za-z]{2}", visit) for join in "_-."}
    columns = {name for row in table.rows.values() for name in row}
    wide: dict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(columns):
        ending = max((one for one in suffixes if name.lower().endswith(one.lower())), key=len, default="")
        if ending and name[: -len(ending)]:
            wide[name[: -len(ending)]][suffixes[ending]] = name
    wide = {base: names for base, names in wide.items() if base not in columns and len(names) > 1}
    if not wide:
        return
    used = {name for names in wide.values() for name in names.values()}
    table.by_visit = True
    table.rows = {
        (person, visit): {name: text for name, text in row.items() if name not in used}
        | {base: row[names[visit]] if visit in names else "" for base, names in wide.items()}
        for (person, _), row in table.rows.items()
        for visit in visits.get(person, ())
    }


def _identifies(name: str, cells: pd.Series[str]) -> bool:
    """Whether a column's name is one of an identifier, or its texts are dates or differ for all of many patients."""
    if _IDENTIFIES.search(name):
        return True
    texts = cells[~cells.isin(MISSING)]
    if texts.empty or pd.to_numeric(texts, errors="coerce").notna().all():
        return False
    return bool(texts.str.fullmatch(r"\d{4}-\d\d-\d\d.*|\d\d?[./]\d\d?[./]\d{2,4}").any()) or (
        len(texts) >= 5 and texts.nunique() == len(texts)
    )


def _notes(
    table: Table,
    visits: Visits,
    *,
    dropped: int,
    otherwise: int,
    refused: int,
    rows: Sequence[str],
    where: Sequence[str],
) -> list[Note]:
    notes = []
    title = table.title
    if dropped:
        are = "1 column is" if dropped == 1 else f"{dropped} columns are"
        of = title[0].lower() + title[1:] if title.startswith(("A ", "The ")) else title
        notes.append(Note("N301", f"{are} left out of {of}: their names or values may identify patients."))
    if otherwise:
        text = (
            f"{title}: {count(otherwise, 'name')} of patients or visits written in another way than those of folders "
            "(zeros or capital letters) matched: look at some of them."
        )
        notes.append(Note("N320", text))
    if refused:
        text = (
            f"{title} contradicts itself about {count(refused, 'patient')}, with several rows for the same patient "
            "and visit: these rows were not used. Mend the table, or add a column session_id."
        )
        notes.append(Note("N323", text))
    lacking = sum(person not in table.people for person in visits)
    bare = sum(
        person in table.people and not any(key == (person, visit) for key in table.rows)
        for person, mine in visits.items()
        for visit in mine
        if table.by_visit
    )
    if lacking or bare:
        counts = [count(lacking, "patient")] * bool(lacking) + [count(bare, "visit") + " of other patients"] * bool(
            bare
        )
        text = f"{title} has no row for {' and '.join(counts)}, whose covariates are empty."
        notes.append(Note("N321", text))
    stray = sum(not key or place == "\0" for key, place in zip(rows, where, strict=True))
    if stray:
        notes.append(Note("N322", f"{title}: {count(stray, 'row')} of patients or visits without an image."))
    return notes
