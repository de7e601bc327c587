"""The results of a study: a folder of long tables, and the same as pandas frames."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from polyclinic.errors import ResultsError
from polyclinic.notes import Note
from polyclinic.study.kinds import PLAIN, RUN, check_runs
from polyclinic.study.payloads import read_rounds
from polyclinic.study.table_files import columns_of, has_table, read_table

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The results in a folder.

    Args:
        folder: what ``polyclinic run --out`` wrote.
        keeper: keeps a temporary folder alive as long as these results.

    Raises:
        ResultsError: P501 if the folder holds no finished study, or one of a version without the column ``run``.
    """

    def __init__(self, folder: Path, keeper: TemporaryDirectory[str] | None = None) -> None:
        self.folder = Path(folder)
        self._keeper = keeper
        if not has_table(self.folder / "results.csv"):
            raise ResultsError(
                "P501",
                f"There are no results in {self.folder}: results.csv is missing.",
                "Give the folder of a finished study, or finish one with `polyclinic run STUDY --out DIR --resume`.",
            )
        check_runs(self.folder / "results.csv", columns_of(self.folder / "results.csv"))

    @cached_property
    def results(self) -> pd.DataFrame:
        """method, run, seed, fold, trained_on, tested_on, metric, value.

        ``run`` is ``plain``, ``unseen`` (tested at a site it was trained without) or ``attacked`` (trained with corrupt
        sites among the others), here and in the other tables; ``method`` is the label alone.
        """
        return read_table(self.folder / "results.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row a test case, method, kind of run and model.

        Raises:
            ResultsError: P501, the sites kept them.
        """
        if not (self.folder / "predictions.csv").is_file() and self.provenance.get("predictions") == "sites":
            raise ResultsError("P501", "There is no predictions.csv: each site kept its own predictions.",
                               "Look at `results.results`, or use `evaluation: {predictions: coordinator}` where sites "
                               "may send them.")  # fmt: skip
        return read_table(self.folder / "predictions.csv")

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """A row a round and site, for each method and kind of run.

        ``payloads`` is the number in `payloads` of what was sent besides the model; 0 is nothing.
        """
        return self._sent[0]

    @cached_property
    def payloads(self) -> pd.DataFrame:
        """What was sent besides the model: payloads, way, payload, shape, times, bytes."""
        return self._sent[1]

    @cached_property
    def _sent(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return read_rounds(self.folder / "rounds.csv")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Mean, deviation, interval and tests for each method, kind of run and metric."""
        return read_table(self.folder / "summary.csv")

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Each method with others, within sites: the primary comparison; see docs/results-files.md."""
        return read_table(self.folder / "comparisons.csv")

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """Calibration intercept and slope of each method at each site.

        Raises:
            ResultsError: P501, the study is not a binary classification.
        """
        path = self.folder / "calibration.csv"
        if not has_table(path):
            raise ResultsError("P501", "There is no calibration.csv: only binary classification has one.",
                               "Look at `results.summary` instead.")  # fmt: skip
        return read_table(path)

    @cached_property
    def unseen(self) -> pd.DataFrame:
        """What each method loses at sites left out of training: paired differences; see docs/results-files.md.

        Raises:
            ResultsError: P501, no method was run both ways.
        """
        path = self.folder / "unseen.csv"
        if not path.is_file():
            raise ResultsError("P501", "No method was tested at sites left out of training: there is no unseen.csv.",
                               "Give its study file `evaluation: {unseen_sites: true}`.")  # fmt: skip
        return read_table(path)

    @cached_property
    def search(self) -> pd.DataFrame:
        """A row a configuration that was tried.

        Raises:
            ResultsError: P501, the study has no ``search``.
        """
        path = self.folder / "search.csv"
        if not path.is_file():
            raise ResultsError("P501", "The study searched nothing: there is no search.csv.",
                               "Give its study file a `search:` part.")  # fmt: skip
        return read_table(path)

    @cached_property
    def sites(self) -> pd.DataFrame:
        """Cases found, used and rejected at each site."""
        return read_table(self.folder / "sites.csv")

    @cached_property
    def notes(self) -> list[Note]:
        """What the reader should know."""
        return [Note.from_json(one) for one in json.loads((self.folder / "notes.json").read_text(encoding="utf-8"))]

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Versions, seeds, data fingerprint, machine and times."""
        found: dict[str, Any] = json.loads((self.folder / "provenance.json").read_text(encoding="utf-8"))
        return found

    def table(self, over: str = "sites", run: str = PLAIN) -> pd.DataFrame:
        """Methods by metrics: mean over the scored sites (``sites``) or over all cases together (``all``).

        Args:
            over: ``sites`` or ``all``.
            run: the kind of run.
        """
        rows = self.summary[(self.summary["over"] == over) & (self.summary[RUN] == run)]
        order = list(dict.fromkeys(rows["method"]))
        metrics = list(dict.fromkeys(rows["metric"]))
        return rows.pivot(index="method", columns="metric", values="mean").loc[order, metrics]

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report as one HTML file; default ``report.html`` in the folder."""
        from polyclinic.study.report.page import write_report

        return write_report(self.folder, None if out is None else Path(out))
