"""What is tracked of a study when it is over: results by training, tables, pictures and the report.

Nothing of a single case is in it: no predictions, no plot with a point a case, no picture of a patient; and no path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.notes import Note
from polyclinic.study.crate.contents import FILES, STUDY
from polyclinic.study.drawing import pictured
from polyclinic.study.ended import MODEL_FOLDER
from polyclinic.study.kinds import PLAIN, RUN, UNSEEN
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.page import render
from polyclinic.study.table_files import has_table, read_table, stored
from polyclinic.study.tracking.about import without_paths
from polyclinic.study.tracking.names import label, metric_name
from polyclinic.study.tracking.trainings import Training, records
from polyclinic.study.tracking.values import Row, best_rounds, is_number
from polyclinic.study.writing import study_text

#: Sections of the report that show single cases.
SINGLE_CASES = ("scatter", "overlays", "attention")
#: Files with paths, or with what says little of a study.
_LEFT_OUT = {STUDY, "provenance.json"}


@dataclass
class Outcome:
    """What there is at the end.

    Attributes:
        rounds: the rows of each training.
        results: of each training and of each method that is tested: name -> number.
        whole: numbers of the whole study.
        files: tables, and what else is kept as it is; a folder with all that is in it.
        report: the page, if there is one.
        pictures: of the report, with their titles: ``[H, W, 3]``.
        tables: title -> table to be read by people.
        notes: what the reader should know.
    """

    rounds: dict[Training, list[Row]] = field(default_factory=dict)
    results: dict[Training, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    report: str = ""
    pictures: list[tuple[str, NDArray[np.uint8]]] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def outcome_of(folder: Path) -> Outcome:
    """What the results folder of a finished study has.

    Raises:
        ResultsError: P501, a table can't be read.
    """
    found = outcome_of_rounds(_known(folder / "rounds.csv"))
    for row in _known(folder / "privacy.csv"):
        if is_number(row["epsilon"]):
            told = found.results.setdefault(Training.of_row(row), {})
            told[f"epsilon/{label(row['site'])}"] = float(row["epsilon"])
    found.files = [stored(folder / name) for name in FILES if name not in _LEFT_OUT and has_table(folder / name)]
    if (folder / MODEL_FOLDER).is_dir():
        found.files.append(folder / MODEL_FOLDER)
    if not has_table(folder / "results.csv"):  # of a study that makes a model and nothing else
        return found
    _add_results(found, read_table(folder / "results.csv"))
    summary = read_table(folder / "summary.csv")
    for row in records(summary):
        name = f"{metric_name(row['metric'])}/{row['over']}/{_told(row['method'], row[RUN])}"
        found.whole |= {f"{name}/{key}": float(row[key]) for key in ("mean", "low", "high") if is_number(row[key])}
    found.tables = {"summary": summary}
    _add_report(found, folder)
    return found


def outcome_of_rounds(rows: Iterable[Row]) -> Outcome:
    """What the rows of ``rounds.csv`` say; those of a training stand together."""
    found = Outcome()
    for training, own in groupby(rows, Training.of_row):
        found.rounds.setdefault(training, []).extend(own)
    found.results = {training: best_rounds(own) for training, own in found.rounds.items()}
    return found


def _told(method: str, run: str) -> str:
    return label(method) if run == PLAIN else f"{label(method)}/{run}"


def _known(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of which it is known whose they are: older versions did not tell the site left out."""
    rows = records(read_table(path)) if has_table(path) else []
    return [row for row in rows if row[RUN] != UNSEEN or row.get("without")]


def _add_results(found: Outcome, table: pd.DataFrame) -> None:
    """``test_auc/SITE`` is the metric at a site; ``test_auc/SITE/by SITE`` that of the model of one site, where several
    models of a method are tested there."""
    apart = (table[RUN] == UNSEEN) & (table["tested_on"] != "all")
    table = table.assign(without=table["tested_on"].where(apart, ""))
    for _, rows in table.groupby(["method", RUN, "seed", "fold", "without"], sort=False):
        of_method = records(rows)
        training = Training.of_row(of_method[0])
        several = bool(rows.duplicated(["metric", "tested_on"]).any())
        values = {
            f"test_{metric_name(row['metric'])}/{label(row['tested_on'])}"
            + (f"/by {label(row['trained_on'])}" if several else ""): float(row["value"])
            for row in of_method if is_number(row["value"])
        }  # fmt: skip
        if training.run == UNSEEN and not training.without:  # all sites that were left out, each by another training
            name = f"{_told(training.method, UNSEEN)}/seed {training.seed} fold {training.fold}"
            found.whole |= {f"{key}/{name}": value for key, value in values.items()}
        else:
            found.results.setdefault(training, {}).update(values)


def _add_report(found: Outcome, folder: Path) -> None:
    shown = Folder(folder)
    shown.study = without_paths(shown.study)
    shown.study_text = study_text(shown.study)
    with pictured() as pictures:
        found.report = render(shown, without=SINGLE_CASES)
    found.pictures, found.notes = pictures, shown.notes


def markdown(table: pd.DataFrame) -> str:
    """A table as TensorBoard shows it."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rows = table.astype(object).where(table.notna(), "")
    return "\n".join([line(rows.columns), line("---" for _ in rows.columns), *map(line, rows.to_numpy().tolist())])
