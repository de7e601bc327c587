"""Progress of a study on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from polyclinic.notes import Note

if TYPE_CHECKING:
    import pandas as pd

    from polyclinic.engine.planner import EnginePlan


def counts_text(sites: pd.DataFrame) -> str:
    """``"920 cases found, 740 used (12 of them without a label), 180 rejected"``, of a table like ``sites.csv``."""
    total = sites.select_dtypes("number").sum()
    without = f" ({total['unlabelled']:.0f} of them without a label)" if total.get("unlabelled") else ""
    found, used, rejected = (f"{total[column]:.0f}" for column in ("found", "used", "rejected"))
    return f"{found} cases found, {used} used{without}, {rejected} rejected"


def duration(seconds: float) -> str:
    """``"40 s"``, ``"12 min"``, ``"3.5 h"``: as exact as an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Display:
    """Shows a person what is going on; this one shows nothing."""

    def images(self, done: int, total: int) -> None:
        """Image files decoded so far."""

    def opened(self, sites: pd.DataFrame, notes: list[Note]) -> None:
        """The data is read."""

    def planned(self, plan: EnginePlan, jobs: int) -> None:
        """How the study will be run."""

    def job(self, number: int, title: str, skipped: bool) -> None:
        """A job starts, or was done before."""

    def round(self, done: int, total: int) -> None:
        """A round of the job is done."""

    def together(self, done: int, running: Mapping[str, tuple[int, int] | None]) -> None:
        """How many jobs are done where several run side by side, and those that do, with rounds done and of all."""

    def step(self, title: str) -> None:
        """Something else that takes a moment."""

    def note(self, text: str) -> None:
        """Something to know."""


class RichDisplay(Display):
    """Bars on a terminal; a line now and then where the output goes to a file.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._jobs: TaskID | None = None
        self._rounds: TaskID | None = None
        self._images: TaskID | None = None
        self._count = 0
        self._printed = 0.0
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> RichDisplay:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def images(self, done: int, total: int) -> None:
        """Image files decoded so far."""
        if self._images is None:
            self._images = self.progress.add_task("reading images", total=total)
        self.progress.update(self._images, completed=done, visible=done < total)

    def opened(self, sites: pd.DataFrame, notes: list[Note]) -> None:
        """Counts of the data."""
        self.console.print(
            f"Data: {len(sites)} sites, {counts_text(sites)}"
            + (f"; {len(notes)} note{'' if len(notes) == 1 else 's'}" if notes else "") + "."
        )  # fmt: skip

    def planned(self, plan: EnginePlan, jobs: int) -> None:
        """How it will be run."""
        threads = plan.worker_threads if plan.mode == "processes" else plan.threads
        noun = "thread" if threads == 1 else "threads"
        beside = f", {plan.jobs} trainings side by side" if plan.jobs > 1 else ""
        self.console.print(f"Engine: {plan.mode} on {plan.device}, {threads} {noun}{beside}: {plan.reason}.")
        self._count = jobs
        self._jobs = self.progress.add_task("trainings", total=jobs)
        self._rounds = self.progress.add_task("rounds", total=None)

    def job(self, number: int, title: str, skipped: bool) -> None:
        """A job starts, or was done before."""
        if self._jobs is None or self._rounds is None:
            return
        self.progress.update(self._jobs, completed=number + skipped)
        self.progress.reset(self._rounds, total=None, description=f"  {title}")
        if not self.console.is_terminal and not skipped and time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            self.console.print(f"Training {number + 1} of {self._count}: {title}")

    def round(self, done: int, total: int) -> None:
        """A round of the job is done."""
        if self._rounds is not None:
            self.progress.update(self._rounds, completed=done, total=total)

    def together(self, done: int, running: Mapping[str, tuple[int, int] | None]) -> None:
        """Jobs that are done, those that run, and on a terminal when all will be done, about."""
        if self._jobs is None or self._rounds is None:
            return
        now = [title if rounds is None else f"{title} {rounds[0]}/{rounds[1]}" for title, rounds in running.items()]
        self.progress.update(self._jobs, completed=done)
        self.progress.update(self._rounds, description="  " + "\n  ".join(map(escape, now)))
        if self.console.is_terminal:
            return
        since, before = self._first = self._first or (time.monotonic(), done)
        if time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            left = (self._printed - since) / (done - before) * (self._count - done) if done > before else None
            about = "" if left is None else f", about {duration(left)} left"
            self.console.print(f"{done} of {self._count} trainings done{about}; now {'; '.join(now)}", markup=False)

    def step(self, title: str) -> None:
        """Something else that takes a moment."""
        for task in (self._jobs, self._rounds):
            if task is not None:
                self.progress.update(task, visible=False)
        self.progress.add_task(title, total=None)
        self.console.print(f"Writing {title} ...")

    def note(self, text: str) -> None:
        """Something to know."""
        self.console.print(text, markup=False)
