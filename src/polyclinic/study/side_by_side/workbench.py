"""Where one process runs the jobs of a study: prepared sites, the network, and the folder of the results."""

from __future__ import annotations

from collections.abc import Callable

from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.search import Searching


class Workbench:
    """Runs one job after another and stores what each found.

    Args:
        runner: trains and tests.
        preparing: prepares the sites.
        search: runs trials and knows what they chose.
        folder: of the results.
        folds: what is known of the sites in each fold.
    """

    def __init__(
        self, runner: JobRunner, preparing: Folds, search: Searching, folder: Folder, folds: dict[int, Fold]
    ) -> None:  # fmt: skip
        self.runner, self.preparing, self.search = runner, preparing, search
        self.folder, self.folds = folder, folds

    def run(self, job: Job, report: Callable[[int, int], None]) -> None:
        """Run a job, from its checkpoint if it has one, also where a process that runs sites ends meanwhile; the trials
        that it needs are done.

        Raises:
            PolyclinicError: a site failed, or too few answered.
        """

        def reported(done: int, total: int) -> None:
            self.preparing.sites.advanced()
            report(done, total)

        self.preparing.sites.do(lambda: self._run(job, reported))

    def _run(self, job: Job, report: Callable[[int, int], None]) -> None:
        self.preparing.ready(job)
        if job.trial is not None:
            self.search.run(self.runner, job, self.folds[job.fold], report)
            return
        settled, checkpoint = self.search.settled(job), self.folder.checkpoint(job)
        outcome = self.runner.run(settled, self.folds[job.fold], checkpoint=checkpoint, report=report)
        self.folder.store(job, outcome)

    def try_out(self, jobs: list[Job]) -> None:
        """Try each composition at all sites, so that what can't work somewhere is known before the first round.

        Raises:
            PolyclinicError: at a site it can't.
        """
        first = dict[str, Job]()
        for job in jobs:
            if job.trial is None and not self.folder.is_done(job):
                first.setdefault(job.methods[0].course, job)
        for job in first.values():
            self.preparing.ready(job)
            self.runner.try_out(job, self.folds[job.fold])
