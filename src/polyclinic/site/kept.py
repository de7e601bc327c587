"""Predictions that stay at a site: a file for each model that was tested there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from polyclinic.errors import SiteError
from polyclinic.files import write_atomic
from polyclinic.seeds import derive_seed
from polyclinic.statistics.rows import rows_from_text, rows_to_text


class Trial(NamedTuple):
    """What tells a tested model from others.

    Attributes:
        run: name of the training, see `polyclinic.site.messages.Start`.
        method: label of the method; several may share a training.
        trained_on: as in ``results.csv``.
    """

    run: str
    method: str
    trained_on: str


class KeptRows:
    """The rows of each trial; those of one that is repeated take the place of the old ones.

    Args:
        site: the site's name.
        folder: where files are written; None keeps the rows in memory.
    """

    def __init__(self, site: str, folder: Path | None) -> None:
        self.site, self.folder = site, folder
        self._rows = dict[Trial, pd.DataFrame]()

    def put(self, trial: Trial, rows: pd.DataFrame) -> None:
        """Keep the rows of a trial, written in one step."""
        if self.folder is None:
            self._rows[trial] = rows
        else:
            write_atomic(self._path(trial), rows_to_text(rows))

    def put_attention(self, trial: Trial, rows: pd.DataFrame) -> None:
        """Write beside them how much each instance of the tested bags counted, for people at the site."""
        if self.folder is not None:
            path = self._path(trial)
            write_atomic(path.with_name(f"{path.stem}.attention.csv"), rows_to_text(rows))

    def get(self, trial: Trial) -> pd.DataFrame:
        """The rows of a trial.

        Raises:
            SiteError: P401, there are none.
        """
        if self.folder is not None and (path := self._path(trial)).is_file():
            return rows_from_text(path.read_text(encoding="utf-8"))
        if trial in self._rows:
            return self._rows[trial]
        raise SiteError(
            "P401", f"Site {self.site} has not kept the predictions of {trial.method} in {trial.run}.",
            "Run the study again, in a new folder.", site=self.site,
        )  # fmt: skip

    def _path(self, trial: Trial) -> Path:
        mark = derive_seed(trial.method, trial.trained_on) % 16**8  # names may hold what file names can't
        return (self.folder or Path()) / f"{trial.run}-{mark:08x}.csv"
