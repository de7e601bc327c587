"""The rows of a study's tables: which belong to it, which of them can be used, and why the others can't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.cases import Counts
from polyclinic.data.quality.counters import LEFT_OUT, counter_notes, find_counters
from polyclinic.data.quality.named import patient_column_notes, unmatched_notes
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.bags import bag_counts, bag_notes, fill_labels, name_bags, torn_bags
from polyclinic.data.tables.codes import equals
from polyclinic.data.tables.features import choose_features
from polyclinic.data.tables.findings import absent_notes, finding_reasons, has_finding
from polyclinic.data.tables.hints import hint_kinds, hint_reasons
from polyclinic.data.tables.labels import label_reasons, number_reasons
from polyclinic.data.tables.table import (
    is_missing,
    matches,
    open_table,
    require_column,
    to_numbers,
)
from polyclinic.data.tables.times import time_reasons
from polyclinic.errors import DataError
from polyclinic.notes import Note

#: Texts in a split column -> part.
PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass
class Rows:
    """Rows of all tables, one after another.

    Attributes:
        cells: texts of the columns that the study uses, NaN where missing.
        origin: aligned with ``cells``: ``site`` (NaN where the row names none), ``folder`` of the table, ``case``,
            ``subject`` and ``part`` (None without a split column); where rows are put together to bags ``bag``.
        reasons: object ``[N]``: why a row can't be used, "" while it can. A row's first reason stays.
        labelled: bool ``[N]``: whether a row has a label or mask; all rows do, unless the study uses the others, too.
        chosen: the columns of ``cells`` that are features.
        available: all columns of the tables.
        notes: on how the rows were selected.
        counting: features that seem to number the rows, of which ``notes`` has one.
        left_out: columns of ``cells`` that `features` would take, but for their numbers, which only count rows.
    """

    cells: pd.DataFrame
    origin: pd.DataFrame
    reasons: npt.NDArray[np.object_]
    labelled: npt.NDArray[np.bool_]
    chosen: list[str]
    available: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    counting: frozenset[str] = frozenset()
    left_out: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Bool ``[N]``."""
        return np.asarray(self.reasons == "", dtype=np.bool_)

    def where(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """The rows that ``kept`` marks."""
        cells, origin = self.cells[kept].reset_index(drop=True), self.origin[kept].reset_index(drop=True)
        return replace(self, cells=cells, origin=origin, reasons=self.reasons[kept], labelled=self.labelled[kept])

    def at(self, places: npt.NDArray[np.intp]) -> Rows:
        """The rows at some places, in their order."""
        cells, origin = self.cells.iloc[places].reset_index(drop=True), self.origin.iloc[places].reset_index(drop=True)
        return replace(self, cells=cells, origin=origin, reasons=self.reasons[places], labelled=self.labelled[places])

    def reject(self, unusable: npt.NDArray[np.bool_], reason: str) -> None:
        """Mark rows that can't be used; rows that are marked already keep their reason."""
        self.reasons[unusable & self.usable] = reason

    def reject_missing(self, column: str) -> None:
        """Mark rows with a missing cell in ``column``."""
        self.reject(self.cells[column].isna().to_numpy(), f"{column} is missing")

    def counts(self, site: str, unread: Mapping[int, str] | None = None) -> Counts:
        """Found, used and rejected cases of a site; where cases are bags, also of their instances.

        Args:
            site: its name.
            unread: position of rows whose images can't be read -> the reason.
        """
        here = (self.origin["site"] == site).to_numpy()
        reasons = self.reasons.copy()
        for place, reason in (unread or {}).items():
            reasons[place] = reason
        counts = Counts(found=int(here.sum()), used=int(here.sum()))
        for case, reason in zip(self.origin["case"][here], reasons[here], strict=True):
            if reason:
                counts.reject(str(case), str(reason))
        return counts if "bag" not in self.origin else bag_counts(self.origin[here], reasons[here], counts)

    def cases(self, column: str | None = None) -> Rows:
        """A row for each case: of a bag the first row; with a ``column`` the first with each of its values."""
        if "bag" not in self.origin:
            return self
        keys = self.origin[["site", "bag"]]
        keys = keys if column is None else keys.assign(value=self.cells[column])
        return self.where(~keys.duplicated().to_numpy())


def read_rows(
    spec: DataSpec, folder: Path, split: str | None, subgroups: Sequence[str] = (), *, may_be_none: bool = False
) -> Rows:
    """The rows that ``where`` selects, of one table or of one table for each site.

    Args:
        spec: the ``data:`` part of the study file.
        folder: the study file's folder.
        split: column that fixes the part of each case.
        subgroups: columns that are read besides; that makes them no features, nor keeps them from being some.
        may_be_none: whether it is no error if no row is selected.

    Raises:
        DataError: P201 to P203 and P503 when a file, a column or a value of ``where`` is not as ``spec`` says.
    """
    entries: dict[str | None, str] = {None: str(spec.table)}
    if spec.tables is not None:
        entries = dict(spec.tables.items())
    opened = {site: open_table(name, folder, spec.columns) for site, name in entries.items()}
    tables = {site: one.cells for site, one in opened.items()}
    titles = {site: one.title for site, one in opened.items()}
    needed = _needed_columns(spec, split, subgroups)
    lackable = [spec.mask_column, *spec.hint_columns] if spec.hint_columns else []
    lacking = absent_notes({site: table.columns.tolist() for site, table in tables.items()}, spec)
    for site, table in tables.items():
        for column, use in needed.items():
            absent = (use == "findings" or column in lackable) and column not in table.columns
            if not absent or (not may_be_none and not any(column in one.columns for one in tables.values())):
                require_column(table.columns.tolist(), column, use, titles[site])
    available = list(dict.fromkeys(name for table in tables.values() for name in table.columns))
    title = next(iter(titles.values())) if len(titles) == 1 else "None of the tables"
    taken = {column for column, use in needed.items() if use not in ("where", "subgroups")}
    chosen, left_out, notes, counting = list[str](), list[str](), list[Note](), frozenset[str]()
    if not spec.image:
        chosen, left_out, notes, counting = _choose_features(spec, list(tables.values()), available, taken, title)
    if spec.subject is None:
        notes += patient_column_notes(list(tables.values()), taken)
    parts, origins = [], []
    for site, table in tables.items():
        for column in chosen:
            require_column(table.columns.tolist(), column, "features", titles[site])
        there = [column for column in left_out if table.columns.tolist().count(column) == 1]
        used = list(dict.fromkeys([*needed, *chosen, *there]))
        # A site may have no label of a finding, or no masks but boxes.
        texts = table.assign(**{name: pd.Series(np.nan, index=table.index, dtype="str")
                                for name in used if name not in table.columns})[used]  # fmt: skip
        part = texts.mask(is_missing(texts, spec.missing))
        origin = pd.DataFrame({"case": [f"row {number}" for number in range(1, len(part) + 1)]}, index=part.index)
        origin["site"] = part[spec.site] if spec.site is not None else site or opened[site].stem
        origin["folder"] = str(opened[site].folder)
        parts.append(part)
        origins.append(origin)
    cells = pd.concat(parts, ignore_index=True)
    reasons = np.full(len(cells), "", dtype=object)
    origin, labelled = pd.concat(origins, ignore_index=True), np.ones(len(cells), dtype=np.bool_)
    rows = Rows(cells, origin, reasons, labelled, chosen, available, [*notes, *lacking], counting, left_out)
    notes = rows.notes
    for column, wanted in spec.where.items():
        kept = matches(rows.cells[column], wanted)
        notes += unmatched_notes("where", rows.cells[column], wanted, kept, identifies=column == spec.subject)
        rows = rows.where(kept)
    if not len(rows) and not may_be_none:
        raise DataError("P205", "No row is selected.", "Compare `where` with the table." if spec.where else "")
    return rows


def _choose_features(
    spec: DataSpec, tables: list[pd.DataFrame], available: list[str], taken: set[str], title: str
) -> tuple[list[str], list[str], list[Note], frozenset[str]]:
    """The feature columns; those that a glob would take but for their numbers, which only count rows; notes on these;
    and features that may number the rows as well."""
    all_of_them = choose_features(spec, available, taken, title)
    kinds = find_counters(tables, all_of_them, spec.site, spec.missing)
    counters = {name for name, kind in kinds.items() if kind in LEFT_OUT}
    chosen = choose_features(spec, available, taken, title, counters) if counters else all_of_them
    left_out = {name: kind for name, kind in kinds.items() if name not in chosen}
    kept = {name: kind for name, kind in kinds.items() if name in chosen}
    return chosen, list(left_out), counter_notes(left_out, kept), frozenset(kept)


def reject_rows(rows: Rows, spec: DataSpec, target: Target, split: str | None) -> list[Note]:
    """Mark the rows that can't be used, set each row's case, subject and part, and return notes.

    Raises:
        DataError: P203 when ``divide_by`` or a compared label is not a number.
    """
    cells, origin = rows.cells, rows.origin
    notes: list[Note] = [*rows.notes]
    homeless = int(origin["site"].isna().sum())
    if homeless:
        are = "row names no site and is" if homeless == 1 else "rows name no site and are"
        notes.append(Note("N206", f"{homeless} {are} left out (column {spec.site!r})."))
    if spec.image is not None:
        origin["case"] = cells[spec.image_columns[0]]
    if spec.partition is not None and spec.tables is not None:  # row 1 of one table is not row 1 of another
        origin["case"] = origin["site"] + ", " + origin["case"]
    bags = spec.bags
    if bags is not None and bags.column is not None:
        rows.reject_missing(bags.column)
    if spec.subject is None:
        origin["subject"] = origin["case"] if bags is None else name_bags(cells, origin, spec)
    else:
        rows.reject_missing(spec.subject)
        origin["subject"], whole = _subjects(cells[spec.subject], spec.subject_pattern)
        if whole:
            of_rows = f"{whole} of {len(rows)} {spec.subject!r} cells"
            text = f"`subject_pattern` does not fit {of_rows}: there the whole cell names the patient."
            notes.append(Note("N207", text))
    if bags is not None:
        origin["bag"] = name_bags(cells, origin, spec)
        fill_labels(cells, origin, spec)
    if spec.unlabelled == "use" or spec.hint_columns:
        known = cells[target_column(spec, target)].notna() if target != "findings" else has_finding(cells, spec)
        rows.labelled = np.asarray(known, dtype=np.bool_)
    if target == "findings":
        for reason, unfit in finding_reasons(cells, spec).items():
            rows.reject(unfit, reason)
        rows.reject(rows.labelled & ~has_finding(cells, spec), missing_target(spec, target))
    elif target == "times":
        unusable = time_reasons(cells, spec)
        for reason in dict.fromkeys(unusable[unusable != ""].tolist()):
            rows.reject(unusable == reason, reason)
    elif target not in ("masks", "images") and spec.label is not None:
        reasons = (label_reasons if target == "labels" else number_reasons)(cells[spec.label], spec)
        reasons[~rows.labelled] = ""
        for reason in dict.fromkeys(reasons[reasons != ""]):
            rows.reject(reasons == reason, reason)
    origin["part"] = None
    if split is not None:
        origin["part"] = cells[split].str.lower().map(PARTS)
        rows.reject_missing(split)
        rows.reject(origin["part"].isna().to_numpy(), f"{split} is not train, validation or test")
        rows.reject(~rows.labelled & (origin["part"] != "train").to_numpy(), missing_target(spec, target))
    if spec.divide_by is not None:
        rows.reject_missing(spec.divide_by)
        rows.reject(to_numbers(cells[spec.divide_by], "divide_by") <= 0, f"{spec.divide_by} is not positive")
    for column in spec.image_columns:
        rows.reject_missing(column)
    if target == "masks" and spec.hint_columns:
        for reason in dict.fromkeys((reasons := hint_reasons(cells, spec))[reasons != ""].tolist()):
            rows.reject(reasons == reason, reason)
        if spec.unlabelled == "reject":
            columns = [target_column(spec, target), *spec.hint_columns]
            rows.reject(hint_kinds(cells, spec) == "", f"{', '.join(columns[:-1])} and {columns[-1]} are missing")
    elif target == "masks" and spec.unlabelled == "reject":
        rows.reject_missing(target_column(spec, target))
    combat = spec.harmonisation.combat
    for column in [*combat.covariates, *combat.groups] if combat else []:
        rows.reject_missing(column)
    for column, values in spec.categories.items():
        listed = np.any([equals(cells[column], value) for value in values], axis=0)  # "> 3" is a code here
        unlisted = cells[column].notna().to_numpy() & ~listed
        rows.reject(unlisted, f"{column} is not one of its categories")
    for column in rows.chosen if spec.imputation == "drop" else []:
        rows.reject_missing(column)
    for reason, torn, note in torn_bags(cells, origin, spec) if bags is not None else ():
        rows.reject(torn, reason)
        notes.append(note)
    return [*notes, *bag_notes(origin, rows.usable, spec)]


def reject_strangers(rows: Rows, spellings: Mapping[str, Mapping[str, str]]) -> None:
    """Mark rows without a label that have a group which no labelled row of any site has.

    It would become a column of its own, and change what the others train.

    Args:
        rows: the rows.
        spellings: for each column of codes, the spellings that the sites agreed on.
    """
    for column, known in spellings.items():
        cells = rows.cells[column]
        other = cells.notna() & ~cells.isin(list(known))
        rows.reject(~rows.labelled & other.to_numpy(), f"{column} has a group that no case with a label has")


def missing_target(spec: DataSpec, target: Target) -> str:
    """Why a row without a label or mask is rejected."""
    if target == "findings":
        return "all findings are missing"
    return f"{target_column(spec, target)} is missing"


def target_column(spec: DataSpec, target: Target) -> str:
    """The column with the label, or with the path of the mask."""
    return str({"masks": spec.mask_column, "times": spec.time}.get(target, spec.label))


def _subjects(cells: pd.Series[str], pattern: str | None) -> tuple[pd.Series[str], int]:
    """The patient of each row, and how many cells the pattern does not fit."""
    if pattern is None:
        return cells, 0
    found = cells.str.extract(pattern, expand=True)[0]
    # Sites name their patients in different ways, so a pattern made for one of them need not fit the others.
    unfit = found.isna() & cells.notna()
    return found.where(~unfit, cells), int(unfit.sum())


def _needed_columns(spec: DataSpec, split: str | None, subgroups: Sequence[str] = ()) -> dict[str, str]:
    """Columns with a part in the study besides features -> the key that names them."""
    named = {
        "where": None,
        "site": spec.site,
        "subject": spec.subject,
        "label": spec.label,
        "bag": spec.bags.column if spec.bags else None,
        "time": spec.time,
        "event": spec.event,
        "divide_by": spec.divide_by,
        "mask": spec.mask_column,
        "box": spec.box,
        "split": split,
    }
    combat = spec.harmonisation.combat
    covariates = dict.fromkeys([*combat.covariates, *combat.groups] if combat else [], "covariates")
    others = covariates | {name: use for use, name in named.items() if name is not None}
    others = dict.fromkeys(spec.categories, "categories") | others | dict.fromkeys(spec.findings or (), "findings")
    read = dict.fromkeys(spec.where, "where") | dict.fromkeys(subgroups, "subgroups")
    return read | others | dict.fromkeys(spec.image_columns, "image")
