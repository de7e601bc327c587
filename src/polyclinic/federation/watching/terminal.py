"""A study across hospitals on a terminal: how far it is, and what each site does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from polyclinic.errors import ResultsError
from polyclinic.federation.watching.page import STATUS_PAGE, site_rows, write_status_page
from polyclinic.federation.watching.status import Status
from polyclinic.files import write_atomic
from polyclinic.study.watching.progress import STATUS_FILE
from polyclinic.study.watching.terminal import sites_table


class Shown:
    """Shows what a coordinator tells of a study; on no terminal, a line for what is new.

    Args:
        console: where.
        out: folder for the results, in which a page for a browser is kept up to date.
        live: what is drawn anew; None on no terminal.
    """

    def __init__(self, console: Console, out: Path, live: Live | None) -> None:
        self.console, self.out, self._live = console, out, live
        self._begun: float | None = None
        self._lines, self._job = 0, ""
        self._lost: set[str] = set()

    def __call__(self, status: Status) -> None:
        """Show where the study is."""
        with contextlib.suppress(ResultsError):  # the study does not need it
            write_status_page(self.out / STATUS_PAGE, status)
            write_atomic(self.out / STATUS_FILE, status.model_dump_json(), durable=False)
        if self._begun != status.since:  # begun again after a site was lost
            self._begun, self._lines = status.since, 0
        for line in status.lines[self._lines :]:
            self.console.print(line, markup=False)
        self._lines = len(status.lines)
        lost = {site.name for site in status.sites if site.lost}
        for site in sorted(lost - self._lost):
            self.console.print(f"{site} does not answer.", markup=False)
        for site in sorted(self._lost - lost):
            self.console.print(f"{site} is there again.", markup=False)
        self._lost = lost
        if self._live is not None:
            self._live.update(_drawn(status))
        elif status.title and status.title != self._job and status.state == "running":
            self._job = status.title
            self.console.print(f"Training {status.job + 1} of {status.jobs}: {status.title}", markup=False)


@contextmanager
def shown(console: Console, out: Path) -> Iterator[Shown]:
    """Shows a study for as long as the context lasts."""
    try:
        if not console.is_terminal:
            yield Shown(console, out, None)
            return
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            yield Shown(console, out, live)
    finally:
        with contextlib.suppress(OSError):
            (out / STATUS_FILE).unlink(missing_ok=True)  # as long as it is there, somebody follows


def _drawn(status: Status) -> RenderableType:
    bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    if status.jobs is not None:
        bars.add_task("trainings", total=status.jobs, completed=status.job)
    if status.rounds:
        bars.add_task(f"  {status.title}, rounds", total=status.rounds, completed=status.round)
    last = status.validations[-1] if status.validations else None
    loss = "" if last is None or last.loss is None else f"Validation loss after round {last.round}: {last.loss:.4g}"
    return Group(bars, sites_table(site_rows(status)), loss)
