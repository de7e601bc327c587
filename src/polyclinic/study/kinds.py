"""The kinds of run of a method, which have a column of their own in all tables: no label tells them."""

from __future__ import annotations

from pathlib import Path

from polyclinic.errors import ResultsError

#: Trained at all sites, none of them corrupt, and tested there.
PLAIN = "plain"
#: Tested at a site that took no part in training.
UNSEEN = "unseen"
#: Trained with corrupt sites among the others.
ATTACKED = "attacked"
#: Trained on all cases, for the model that is used; nothing of it is tested.
FINAL = "final"
#: Kind of run -> what stands after a label where people read; the order is that of the tables.
RUNS = {PLAIN: "", UNSEEN: " (unseen site)", ATTACKED: " (attacked)", FINAL: " (final model)"}
#: The column, right after ``method``.
RUN = "run"
#: A method's label and the kind of its run.
Entry = tuple[str, str]


def titled(label: str, run: str) -> str:
    """A method and the kind of its run in words."""
    return label + RUNS.get(run, f" ({run})")


def check_runs(file: Path, columns: list[str]) -> None:
    """Whether a table tells the kinds of run.

    Raises:
        ResultsError: P501, it was written when labels told them, so runs of one method could not be told apart.
    """
    if RUN not in columns:
        raise ResultsError(
            "P501",
            f"{file} has no column `{RUN}`: an older version of Polyclinic wrote it.",
            "Run the study again, into another folder.",
        )
