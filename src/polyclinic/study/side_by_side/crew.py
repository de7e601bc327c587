"""Jobs of a study side by side, each in a worker process of this machine.

Workers are started as commands and spoken to in messages. The cases are opened once, by the coordinator, and are in
memory that all workers share; each prepares them for a fold and keeps them so as long as there are jobs of that fold.
A worker writes what it found into the results folder, as one process would that ran all jobs, so it may be killed at
any moment: another one goes on from the job's checkpoint.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from polyclinic.communication.message import Fields, Message
from polyclinic.data.cases import SiteData
from polyclinic.data.opening.cohort import Cohort
from polyclinic.engine.blocks import Lender, OncePerCall, most_blocks
from polyclinic.engine.cases import cases_sent
from polyclinic.engine.child import Child
from polyclinic.engine.planner import EnginePlan
from polyclinic.errors import TrainingError, error_from
from polyclinic.study.display import Display
from polyclinic.study.folder import Folder
from polyclinic.study.job import Fold, Job
from polyclinic.study.side_by_side.agenda import Agenda
from polyclinic.study.side_by_side.overseeing import MOST_DEATHS, Overseer

#: Threads that wait for others of their process let other processes work meanwhile; else two processes on the same
#: cores take ten times as long as one.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class _Gone(Exception):  # noqa: N818 - a word says it
    """A worker process has ended; the argument says how."""


def briefing(folder: Folder, plan: EnginePlan, cohort: Cohort, folds: Mapping[int, Fold]) -> Fields:
    """What a worker is told besides the cases and what stands in the results folder."""
    return {
        "out": str(folder.path.resolve()), "folder": str(folder.study.folder.resolve()), "plan": asdict(plan),
        "facts": {site: facts.fields() for site, facts in cohort.facts.items()}, "features": cohort.features,
        "classes": cohort.classes, "covariates": cohort.covariates,
        "folds": [fold.to_json() for fold in folds.values()], "fingerprint": cohort.fingerprint,
    }  # fmt: skip


class Crew(Overseer):
    """Worker processes, which start when this is made, so that they are ready when there is something to do.

    Args:
        size: how many.
        folder: of the results.
    """

    def __init__(self, size: int, folder: Folder) -> None:
        super().__init__(folder)
        self.size = size
        self._lender = Lender(most_blocks(1))
        self._lock, self._closed = threading.Lock(), False
        self._children: list[Child] = []
        self._threads: list[threading.Thread] = []
        for _ in range(size):
            self._start()

    def run(self, told: Fields, cases: Mapping[str, SiteData], jobs: Sequence[Job], agenda: Agenda,
            display: Display) -> None:  # fmt: skip
        """See `Overseer.run`."""
        self._told, self._jobs, self._agenda = Message(told), jobs, agenda
        self._cases = {site: Message(*cases_sent(data)) for site, data in cases.items()}
        tensors = [tensor for message in self._cases.values() for tensor in message.tensors.values()]
        self._shared = OncePerCall(self._lender, tensors * 2)
        self._threads = [threading.Thread(target=self._work, args=[child], daemon=True) for child in self._children]
        for thread in self._threads:
            thread.start()
        self._watch(display, {number for number, job in enumerate(jobs) if self.folder.is_done(job)})

    # In the thread of a worker ------------------------------------------------------------------------------------

    def _work(self, child: Child) -> None:
        """Let a worker, and who takes its place, run one job after another."""
        briefed, stand = set[Child](), None
        try:
            while (number := self._agenda.take(stand)) is not None:
                self._events.put(("round", number, None))
                child = self._run(child, number, briefed)
                stand = self._agenda.stands[number]
                self._agenda.finish(number)
                self._events.put(("done", number, None))
        except Exception as error:
            self._agenda.stop()
            self._events.put(("failed", error, None))

    def _run(self, child: Child, number: int, briefed: set[Child]) -> Child:
        """Have a job run, if need be by another worker than ``child``; who did it."""
        for _ in range(MOST_DEATHS):
            try:
                if child not in briefed:
                    self._brief(child)
                    briefed.add(child)
                self._ask(child, number)
                return child
            except (_Gone, OSError, ValueError):
                epitaph = child.epitaph()
                self._events.put(("died", number, epitaph))
                self.folder.sweep(child.number)
                child = self._start(instead=child)
        raise TrainingError(
            "P403", f"The training {self._title(number)} ended its worker process {MOST_DEATHS} times ({epitaph}).",
            "If memory is short, run the same command with --resume and fewer `--jobs`: finished rounds are saved.",
        )  # fmt: skip

    def _brief(self, child: Child) -> None:
        """Give a worker what all jobs need, once it is there to take it: descriptors must not pile up on their way.

        Raises:
            _Gone: it ended meanwhile.
        """
        if child.channel.receive() is None:
            raise _Gone
        for site, cases in self._cases.items():
            child.channel.send(cases, self._shared.lend, {"site": site})
        child.channel.send(self._told, lambda _: None, {"briefing": True})

    def _ask(self, child: Child, number: int) -> None:
        """Have a worker run a job.

        Raises:
            _Gone: it ended meanwhile.
            PolyclinicError: what the job failed by.
            RuntimeError: a mistake in the program, with the worker's traceback.
        """
        name = self.folder.job_name(self._jobs[number])
        child.channel.send(Message(), lambda _: None, {"number": number, "name": name})
        while (found := child.channel.receive()) is not None:
            said = found[1].fields
            if "error" in said:
                raise error_from(said["error"])
            if "crash" in said:
                raise RuntimeError(f"in a worker process:\n{said['crash']}")
            if "done" in said:
                return
            self._events.put(("round", number, tuple(said["round"])))
        raise _Gone

    def _start(self, instead: Child | None = None) -> Child:
        """A new worker, perhaps in the place of one that has died."""
        with self._lock:
            if self._closed:
                raise _Gone("the study ends")
            wanted = {name: value for name, value in PATIENT.items() if name not in os.environ}
            child = Child("polyclinic.study.side_by_side.job_worker", [], most_blocks(1), wanted)
            if instead is not None:
                self._children.remove(instead)
                instead.close()
            self._children.append(child)
            return child

    # At the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all workers at once, whatever they do; what they have not finished goes on from its checkpoint."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()
        for thread in self._threads:
            thread.join(timeout=10)
        for child in self._children:
            child.close()
