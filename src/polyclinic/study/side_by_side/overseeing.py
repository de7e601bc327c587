"""Jobs of a study side by side, whoever runs them: what goes on is told, and counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from polyclinic.communication.message import Fields
from polyclinic.data.cases import SiteData
from polyclinic.study.display import Display
from polyclinic.study.folder import Folder
from polyclinic.study.job import Job
from polyclinic.study.side_by_side.agenda import Agenda

#: After so many processes that ended while they ran the same job, the study ends.
MOST_DEATHS = 3


class Overseer(ABC):
    """Whoever has jobs run side by side.

    Args:
        folder: of the results.

    Attributes:
        size: how many at a time.
    """

    size: int

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._jobs: Sequence[Job] = ()
        self._events = SimpleQueue[tuple[str, Any, Any]]()

    @abstractmethod
    def run(self, told: Fields, cases: Mapping[str, SiteData], jobs: Sequence[Job], agenda: Agenda,
            display: Display) -> None:  # fmt: skip
        """Run all jobs of an agenda.

        Args:
            told: see `polyclinic.study.side_by_side.crew.briefing`.
            cases: of each site.
            jobs: all there are, also those that are done.
            agenda: which of them comes next.
            display: is told what goes on.

        Raises:
            PolyclinicError: the first failure of a job; or P403, a job ended several processes.
        """

    @abstractmethod
    def close(self) -> None:
        """End all that runs, at once; what is not finished goes on from its checkpoint."""

    def _watch(self, display: Display, done: set[int]) -> None:
        """Tell what goes on until all jobs are done."""
        running = dict[int, tuple[int, int] | None]()
        for number in sorted(done):
            display.job(number, self._jobs[number].title, True)
        while len(done) < len(self._jobs):
            shown = {self._title(number): rounds for number, rounds in sorted(running.items())}
            display.together(len(done), shown)
            event, about, more = self._events.get()
            if event == "failed":
                raise about
            if event == "done":
                done.add(about)
                del running[about]
            elif event == "died":
                self._count_death()
                display.note(f"The worker process of {self._title(about)} ended unexpectedly ({more}); another one "
                             "goes on from its checkpoint.")  # fmt: skip
            elif event == "note":
                display.note(about)
            elif about not in done:  # a round may be told of late
                running[about] = more

    def _title(self, number: int) -> str:
        job = self._jobs[number]
        return f"{job.title} (seed {job.seed}, fold {job.fold})"

    def _count_death(self) -> None:
        self.folder.note({"worker_deaths": self.folder.record.get("worker_deaths", 0) + 1})
