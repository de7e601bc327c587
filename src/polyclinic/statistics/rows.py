"""Rows of predictions: a table with a row for each test case and model, wherever it lies."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from polyclinic.statistics.columns import SUBGROUP
from polyclinic.tasks import Task

#: Columns of text, whatever it looks like.
TEXT = ("method", "run", "site", "subject", "case", "trained_on", "space")


def prediction_rows(
    task: Task, subjects: Sequence[str], cases: Sequence[str], sent: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    threshold: float, about: Mapping[str, str | int], trained_on: str,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Predictions of one model at one site; the frame is made in one step, since there are many small ones.

    Args:
        task: whose predictions they are.
        subjects, cases: pseudonyms, N of each.
        sent: what `Task.rows` gave.
        threshold: of decision.
        about: columns that come first, with the same value in each row.
        trained_on: as in ``results.csv``.
        groups: column of a subgroup -> the group of each case.
    """
    names = {"subject": pd.Series(list(subjects), dtype=str), "case": pd.Series(list(cases), dtype=str)}
    grouped = {SUBGROUP + name: list(own) for name, own in (groups or {}).items()}
    return pd.DataFrame({**about, **names, **task.columns(*sent, threshold), **grouped, "trained_on": trained_on})


def attention_rows(
    subjects: Sequence[str], cases: Sequence[str], tensors: Mapping[str, Tensor], about: Mapping[str, str | int],
    trained_on: str,
) -> pd.DataFrame:  # fmt: skip
    """How much each instance of some bags counts: a row for each instance, in the order of the table's rows.

    Args:
        subjects, cases: pseudonyms, N of each.
        tensors: ``instances [N]`` and ``attention [A]``, see `polyclinic.site.evaluation.attention`.
        about: columns that come first, with the same value in each row.
        trained_on: as in ``results.csv``.
    """
    counts = tensors["instances"].tolist()
    named = {
        name: pd.Series(list(names), dtype=str).repeat(counts).reset_index(drop=True)
        for name, names in (("subject", subjects), ("case", cases))
    }
    numbers = [number for count in counts for number in range(1, count + 1)]
    weights = tensors["attention"].double().numpy()
    return pd.DataFrame({**about, **named, "instance": numbers, "weight": weights, "trained_on": trained_on})


def opened(task: Task, tensors: Mapping[str, Tensor], threshold: float, target: int) -> tuple[int, int]:
    """Of cases with the mark of a backdoor: those of other classes than the target, and how many of them are called it.

    Args:
        task: whose predictions they are.
        tensors: what `Task.rows` gave.
        threshold: of decision.
        target: the class that the attacker wants.
    """
    others = tensors["labels"] != target
    called = task.decided(tensors, threshold)[others] == target
    return int(others.sum()), int(called.sum())


def rows_to_text(frame: pd.DataFrame) -> str:
    """As CSV; numbers so that reading gives the same bits back."""
    return frame.to_csv(index=False, lineterminator="\n")


def rows_from_text(text: str) -> pd.DataFrame:
    """Read what ``rows_to_text`` wrote."""
    names = pd.read_csv(io.StringIO(text), nrows=0, dtype=str).columns
    texts = [name for name in names if name in TEXT or name.startswith(SUBGROUP)]
    return pd.read_csv(
        io.StringIO(text), dtype=dict.fromkeys(texts, str), keep_default_na=False,
        na_values={name: ["", "nan", "NaN"] for name in names if name not in texts}, float_precision="round_trip",
    )  # fmt: skip
