"""What the folds of a finished study tell about a training on all cases: rounds, values, threshold, calibration."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from polyclinic.data.spec import DataSpec
from polyclinic.errors import ModelError, ResultsError
from polyclinic.parts import build_part, pretraining_of
from polyclinic.study.columns import AFTER, CHOSEN, FINDING
from polyclinic.study.compatibility import too_few_rounds
from polyclinic.study.declaration import Declaration
from polyclinic.study.final_model.description import Calibration, without_places
from polyclinic.study.kinds import PLAIN, RUN
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.results import Results
from polyclinic.study.table_files import has_table, read_table
from polyclinic.tasks.metrics import class_metric


@dataclass(frozen=True)
class Chosen:
    """What was found out before.

    Attributes:
        method: with the values that a search chose.
        rounds: of the training; None takes the study's, and the best of them by a validation part.
        why: how the rounds and values were found, in a sentence.
        threshold: of decision; None where nothing tells it.
        thresholds: of each of several labels; empty where nothing tells them.
        calibration: of probabilities, where it was asked for.
        results: rows of the study's ``summary.csv`` for the method.
        record: what the card says of the study that chose the model.
    """

    method: StudyMethod
    rounds: int | None
    why: str
    threshold: float | None = None
    thresholds: list[float] = field(default_factory=list)
    calibration: Calibration | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What the folds of a study found.

    Attributes:
        rounds, summary: as ``rounds.csv`` and ``summary.csv``.
        predictions: as ``predictions.csv``; empty where they stay at the sites.
        thresholds: as ``thresholds.csv``, where predictions stay at the sites; else empty.
        searched: as ``search.csv``; empty without a search.
        where: words for a message.
        record: what the card says of the study.
    """

    rounds: pd.DataFrame
    summary: pd.DataFrame
    predictions: pd.DataFrame
    thresholds: pd.DataFrame
    searched: pd.DataFrame
    where: str
    record: dict[str, Any]

    @classmethod
    def read(cls, declaration: Declaration, method: StudyMethod, folder: Path) -> Told:
        """What results tell.

        Raises:
            ResultsError: P501, the folder has no results, or those of another study.
        """
        results = Results(folder)
        _check_same(declaration, method, folder)
        tables = {}
        for name in ("predictions", "thresholds", "search"):
            path = folder / f"{name}.csv"
            tables[name] = read_table(path) if has_table(path) else pd.DataFrame()
        record = {name: results.provenance.get(name) for name in ("data_sha256", "finished")}
        return cls(
            results.rounds, results.summary, tables["predictions"], tables["thresholds"], tables["search"],
            f"The results in {folder}", record,
        )  # fmt: skip


def choose(
    declaration: Declaration, method: StudyMethod, told: Told | None, rounds: int | None, *, calibrate: bool
) -> Chosen:
    """What is known before a method is trained once on all cases.

    Args:
        declaration: the study.
        method: which of its methods.
        told: what the study's folds found; None if nothing tells.
        rounds: how many are asked for; None takes the best rounds of the folds.
        calibrate: whether probabilities are recalibrated by the test predictions.

    Raises:
        ModelError: P703, something is asked for that only results tell.
        ResultsError: P501, the results are those of another study.
    """
    searched = len(declaration.candidates(method)) > 1
    if told is None:
        if searched:
            raise ModelError("P703", f"The study searches values for {method.label}, and nothing tells which it chose.",
                             "Give the folder of its results with --results.")  # fmt: skip
        if calibrate:
            raise ModelError("P703", "A calibration needs predictions of cases that were not trained on.",
                             "Give the folder of the study's results with --results.")  # fmt: skip
        if rounds is not None:
            _check_rounds(method, rounds)
            return Chosen(method, rounds, "as asked")
        return Chosen(method, None, "the best by the validation loss, among those of the study")
    why = []
    if searched:
        number, times, folds = _most_chosen(told, method)
        candidates = declaration.candidates(method)
        if number >= len(candidates):
            raise _other(told.where, ["search"])
        method = candidates[number].method
        method = replace(method, label=declaration.candidates(method)[0].method.label)
        why.append(f"values of trial {number}, which {times} of {folds} searches chose")
    if rounds is None:
        rounds, found = _best_rounds(told, method)
        why.append(f"the median of the best rounds of {found} trainings")
    else:
        why.append("as asked")
    _check_rounds(method, rounds)
    return Chosen(
        method, rounds, "; ".join(why), _threshold(told, method.label), _thresholds(told, method.label, declaration),
        _calibration(told, method.label) if calibrate else None,
        json.loads(_of(told.summary, method.label).to_json(orient="records")), told.record,
    )  # fmt: skip


def _of(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The rows of a method's plain runs."""
    return table if table.empty else table[(table["method"] == label) & (table[RUN] == PLAIN)]


def _check_same(declaration: Declaration, method: StudyMethod, folder: Path) -> None:
    """The results must be those of this study, as far as they tell of the method.

    Raises:
        ResultsError: P501 with the entries that differ.
    """
    try:
        content = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        theirs = dict(content)
        their_data = DataSpec.model_validate({**theirs["data"], "table": None, "tables": None})
        entries = {label: entry for one in theirs["methods"] for label, entry in [_labelled(one)]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise ResultsError("P501", f"{folder} has no study.yaml that can be read.",
                           "Give the folder of a study's results.") from None  # fmt: skip
    mine = declaration.filled()
    if method.label not in entries:
        raise ResultsError("P501", f"The results in {folder} have no method {method.label}.",
                           f"They have: {', '.join(entries)}.")  # fmt: skip
    differing = [key for key in ("task", "model", "training") if theirs.get(key) != json.loads(json.dumps(mine[key]))]
    if without_places(their_data).model_dump(mode="json") != without_places(declaration.data).model_dump(mode="json"):
        differing.append("data")
    if entries[method.label] != json.loads(json.dumps(method.entry)):
        differing.append("methods")
    if theirs.get("search") != json.loads(json.dumps(mine.get("search"))):
        differing.append("search")
    if differing:
        raise _other(f"The results in {folder}", differing)


def _other(where: str, entries: list[str]) -> ResultsError:
    listed = ", ".join(f"`{one}`" for one in entries)
    return ResultsError("P501", f"{where} are those of another study: it differs in {listed}.",
                        "Give the results of this study, or run it.")  # fmt: skip


def _labelled(entry: object) -> tuple[str, object]:
    if isinstance(entry, dict):
        name, options = next(iter(entry.items()))
        return str((options or {}).get("label", name)), entry
    return str(entry), entry


def _most_chosen(told: Told, method: StudyMethod) -> tuple[int, int, int]:
    """Trial that most searches chose (the first of equals), how many did, and of how many."""
    mine = _of(told.searched, method.label)
    chosen = mine if mine.empty else mine[mine[AFTER[1]].astype(str).str.lower() == "true"]
    if chosen.empty:
        raise ModelError("P703", f"{told.where} have no search of {method.label}.",
                         "Give the results of a study that was run to its end.")  # fmt: skip
    counts = chosen["trial"].astype(int).value_counts()
    most = sorted(counts[counts == counts.max()].index)
    return int(most[0]), int(counts.max()), len(chosen)


def _best_rounds(told: Told, method: StudyMethod) -> tuple[int, int]:
    """Median number of rounds up to the best one, and over how many trainings."""
    mine = _of(told.rounds, method.label)
    if CHOSEN not in mine or mine.empty:
        raise ModelError("P703", f"{told.where} don't tell which round was the best.",
                         "Say how many are wanted with --rounds.")  # fmt: skip
    training = ["seed", "fold"]
    best = mine[mine[CHOSEN] == 1].groupby(training)["round"].median() + 1
    part = pretraining_of(build_part(name, options) for name, options in method.method.parts)
    first = 0 if part is None else part.pretraining_rounds
    if first:  # what is counted is rounds after it: trainings of a search may differ in it
        before = mine[mine["phase"] == "pretraining"].groupby(training)["round"].max() + 1
        best -= before.reindex(best.index, fill_value=0)
    return first + max(1, int(np.floor(best.median() + 0.5))), len(best)


def _check_rounds(method: StudyMethod, rounds: int) -> None:
    short = too_few_rounds(method.method, rounds)
    if short:
        raise ModelError("P703", short, "Ask for more with --rounds.")


def _threshold(told: Told, label: str) -> float | None:
    """Median of the thresholds of the folds; None where nothing has one."""
    mine = _of(told.predictions if told.thresholds.empty else told.thresholds, label)
    if "threshold" not in mine or mine.empty:
        return None
    return float(mine.groupby(["seed", "fold"])["threshold"].first().median())


def _thresholds(told: Told, label: str, declaration: Declaration) -> list[float]:
    """The same for each of several labels; empty where nothing has one."""
    if not told.thresholds.empty:
        mine = _of(told.thresholds, label)
        if FINDING not in mine:
            return []
        found = mine.pivot_table(index=["seed", "fold"], columns=FINDING, values="threshold", aggfunc="first")
        columns = {head.name: head.name for head in declaration.heads}
    else:
        found = _of(told.predictions, label)
        columns = {head.name: class_metric("threshold", head.name) for head in declaration.heads}
    if found.empty or not set(columns.values()) <= set(found.columns):
        return []
    keys = found.groupby(["seed", "fold"])
    return [float(keys[column].first().median()) for column in columns.values()]


def _calibration(told: Told, label: str) -> Calibration:
    """A logistic regression of the label on the logit of the score, over the test cases of all folds.

    Raises:
        ModelError: P703, there are no predictions of two classes.
    """
    from polyclinic.statistics.calibration import recalibration

    if told.predictions.empty:
        raise ModelError("P703", "The sites kept their predictions, so that nothing can be calibrated by them.",
                         "Leave out --calibrate, or recalibrate with `polyclinic evaluate`.")  # fmt: skip
    mine = _of(told.predictions, label)
    if mine.empty or "score_0" in mine or "threshold" not in mine:
        raise ModelError("P703", "Only probabilities of two classes are calibrated.", "Leave out --calibrate.")
    intercept, slope = recalibration(mine["label"].to_numpy(), mine["score"].to_numpy(np.float64))
    if not np.isfinite([intercept, slope]).all():
        raise ModelError("P703", "The test predictions can't be calibrated: they part the classes, or are all alike.",
                         "Leave out --calibrate.")  # fmt: skip
    return Calibration(intercept=intercept, slope=slope, cases=len(mine), source="test cases of the study's folds")
