"""The report's section on the search for hyper-parameters: what was tried, what was chosen, and on what grounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from polyclinic.study.columns import AFTER, BEFORE
from polyclinic.study.kinds import RUN, titled
from polyclinic.study.report import tables
from polyclinic.study.report.folder import Folder
from polyclinic.tasks.metrics import METRICS


@dataclass(frozen=True)
class SearchLine:
    """One method.

    Attributes:
        method: its title.
        tried: configurations, for each search.
        failed: trials without a score, of all searches.
        chosen: for each parameter what was chosen, and how often where searches differ.
        before, after: validation score of the study file's own values and of the chosen ones, means over searches.
    """

    method: str
    tried: int
    failed: int
    chosen: list[str]
    before: str
    after: str


@dataclass(frozen=True)
class SearchReport:
    """What the section shows.

    Attributes:
        words: how it was done.
        names: of the parameters.
        score: what was chosen by.
        lines: a line a method.
        without: methods of which nothing was searched.
    """

    words: list[str]
    names: list[str]
    score: str
    lines: list[SearchLine]
    without: list[str]


def searched(folder: Folder) -> SearchReport | None:
    """The section, or None where nothing was searched."""
    table = folder.search
    if table.empty:
        return None
    names = _parameters(table)
    entries = list(dict.fromkeys(zip(table["method"], table[RUN], strict=True)))
    return SearchReport(
        words=list(_words(folder)),
        names=names,
        score=f"Validation: {_measure(folder)}",
        lines=[
            _line(folder.titles.get(entry, titled(*entry)), rows, names)
            for entry in entries
            for rows in [table[(table["method"] == entry[0]) & (table[RUN] == entry[1])]]
        ],
        without=[method for method in folder.methods if method not in set(table["method"])],
    )


def searched_values(folder: Folder) -> str | None:
    """That values were searched, and which; None where none were."""
    if folder.search.empty:
        return None
    names = ", ".join(_parameters(folder.search))
    return f"searched on validation patients: {names}. What else this section says of these is where the search began"


def _parameters(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table.columns if name not in (*BEFORE, *AFTER)]


def _line(method: str, rows: pd.DataFrame, names: Sequence[str]) -> SearchLine:
    chosen = rows[rows["chosen"] == "True"]
    first = rows[rows["trial"] == "0"]
    return SearchLine(
        method=method,
        tried=rows["trial"].nunique(),
        failed=int((rows["score"] == "").sum()),
        chosen=[_counted(chosen[name]) for name in names],
        before=_mean(first["score"]),
        after=_mean(chosen["score"]),
    )


def _counted(values: pd.Series[str]) -> str:
    """What was chosen, the most frequent first, with numbers where searches differ."""
    counts = values.value_counts(sort=True)
    if len(counts) == 1:
        return str(counts.index[0]) or "–"
    return ", ".join(f"{value or '–'} ({count} of {len(values)})" for value, count in counts.items())


def _mean(scores: pd.Series[str]) -> str:
    numbers = pd.to_numeric(scores, errors="coerce")
    return "–" if numbers.isna().any() else f"{numbers.mean():.4g}"


def _measure(folder: Folder) -> str:
    if _asked(folder).get("choose_by") != "metric":
        return "loss"
    return METRICS[folder.validation_metric][0]


def _asked(folder: Folder) -> dict[str, Any]:
    return folder.study.get("search") or {}


def _words(folder: Folder) -> list[str]:
    asked, evaluation = _asked(folder), folder.study.get("evaluation") or {}
    most = f"up to {asked['trials']} configurations were" if "trials" in asked else "several configurations were"
    rounds = f" for at most {asked['rounds']} rounds" if asked.get("rounds") else ""
    words = [
        f"For each method {most} tried, the values of the study file first; parameters that methods share took the "
        "same values in the same order for all of them.",
        f"Each configuration was trained on training patients{rounds} and scored on validation patients "
        f"({_measure(folder)}). No test patient was looked at.",
    ]
    unseen = bool(folder.unseen)
    if asked.get("nested", True):
        each = "Each fold" + (", and each fold without a site," if unseen else "")
        words.append(
            f"{each} has a search of its own, on its own training and validation patients, so that no patient who is "
            "tested had a part in the choice."
        )
        return words
    if not evaluation.get("split"):
        folds = asked.get("folds") or 1
        words.append(
            f"One search, on {tables.count_text(folds)} fold{'' if folds == 1 else 's'}, serves all folds. Its "
            "validation patients are test patients of other folds, so results may be a little too good; with nested: "
            "true each fold has a search of its own."
        )
    if unseen:
        words.append("Sites that were left out of training had a part in the search.")
    return words
