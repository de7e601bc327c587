"""The trainings of a study, as trackers call them, and their rows as they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from polyclinic.study.job import training_name
from polyclinic.study.kinds import RUN
from polyclinic.study.table_files import has_table, read_table
from polyclinic.study.tracking.values import Row
from polyclinic.study.watching.progress import TRAININGS


@dataclass(frozen=True)
class Training:
    """A training, or a method that is tested with the models of one, as ``cross`` with those of ``single``.

    Attributes:
        method, run, seed, fold: as in ``results.csv``.
        without: the site that was left out; empty for none.
    """

    method: str
    run: str
    seed: int
    fold: int
    without: str = ""

    @property
    def name(self) -> str:
        """Of its folder in ``jobs/``: for each training another."""
        return training_name(self.method, self.run, self.seed, self.fold, self.without or None)

    @property
    def about(self) -> dict[str, str | float]:
        """Of what it is, for a table of runs."""
        told: dict[str, str | float] = {
            "method": self.method, RUN: self.run, "seed": self.seed, "fold": self.fold,
        }  # fmt: skip
        return told | ({"without": self.without} if self.without else {})

    @classmethod
    def of_row(cls, row: Row) -> Training:
        """That of a row of ``rounds.csv`` or ``privacy.csv``."""
        without = row.get("without")
        return cls(str(row["method"]), str(row[RUN]), int(row["seed"]), int(row["fold"]),
                   without if isinstance(without, str) else "")  # fmt: skip


@dataclass
class Part:
    """New rows of a training.

    Attributes:
        training: whose they are.
        rows: of whole rounds.
        first: whether they begin with its first round.
        done: whether no more will come.
    """

    training: Training
    rows: list[Row]
    first: bool
    done: bool


@dataclass
class _Read:
    """What is known of a training: ``rows`` of whole rounds, ``given`` of them handed on; ``place`` in its file."""

    rows: list[Row] = field(default_factory=list)
    given: int = 0
    place: int = 0

    def absorb(self, path: Path, *, pooled: bool) -> None:
        """Read what is new in the file of a training that goes on."""
        try:
            with path.open("rb") as file:
                file.seek(self.place)
                rows = list(_whole(file.readlines()))
        except OSError:  # not there yet, or gone
            return
        for line, row in rows:
            if row["round"] < rows[-1][1]["round"]:
                self.place += len(line)
                self.rows.append({**row, "site": "pool"} if pooled else row)


class Reader:
    """Reads the rows of all trainings while they are written, each row once.

    A round is whole when the next one has begun: a run that was killed may write its last round again.

    Args:
        folder: the results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trainings: list[Mapping[str, Any]] = []
        self._read: dict[str, _Read] = {}
        self._over = set[str]()

    def parts(self) -> Iterator[Part]:
        """What is new; a part that is not `taken` comes again."""
        for about in self._listed():
            training = Training.of_row(about)
            if training.name in self._over:
                continue
            found, done = self._read.setdefault(training.name, _Read()), self.folder / "jobs" / training.name
            over = has_table(done / "rounds.csv")
            if over:
                found.rows = list(records(read_table(done / "rounds.csv")))
            else:
                found.absorb(done.with_name(f"{done.name}.part") / "rounds.jsonl", pooled=about["pooled"])
            rows = found.rows[found.given :]
            if over or rows:
                yield Part(training, rows, found.given == 0, over)

    def taken(self, part: Part) -> None:
        """A part was tracked."""
        name = part.training.name
        self._read[name].given += len(part.rows)
        if part.done:
            self._over.add(name)
            del self._read[name]

    def over(self, training: Training) -> bool:
        """Whether all rows of a training were tracked."""
        return training.name in self._over

    def again(self) -> None:
        """Of trainings that are not over, all rows come again."""
        for found in self._read.values():
            found.given = 0

    def _listed(self) -> Sequence[Mapping[str, Any]]:
        """The trainings that are tested; the trials of a search are not among them."""
        if not self._trainings:
            try:
                listed = json.loads((self.folder / "jobs" / TRAININGS).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return []
            self._trainings = [one for one in listed if one["trial"] is None]
        return self._trainings


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _whole(lines: list[bytes]) -> Iterator[tuple[bytes, Row]]:
    """Lines and what they say, up to one that is being written."""
    for line in lines:
        try:
            yield line, json.loads(line)
        except ValueError:
            return
