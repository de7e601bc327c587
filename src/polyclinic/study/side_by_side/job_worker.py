"""A process that runs jobs of a study: it answers messages on its standard input, and ends with that.

Run as ``python -m polyclinic.study.side_by_side.job_worker BLOCKS [SOCKET]`` by `polyclinic.study.side_by_side.crew`;
see `polyclinic.engine.child`. It reads the study from the results folder and is told what the coordinator knows of the
data; cases come in memory that all processes share. Results it writes into the folder itself, each in one step.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from polyclinic.communication.message import Fields, Message
from polyclinic.data.cases import SiteData
from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.opening.facts import SiteFacts
from polyclinic.engine import LocalEngine
from polyclinic.engine.cases import cases_received
from polyclinic.engine.channel import Channel
from polyclinic.engine.planner import EnginePlan
from polyclinic.errors import PolyclinicError, error_told
from polyclinic.origins import told
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.fit.attacks import attack_of
from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.reading import read_yaml
from polyclinic.study.search import Searching
from polyclinic.study.setup import Setup
from polyclinic.study.side_by_side.agenda import trainings
from polyclinic.study.side_by_side.workbench import Workbench

#: Rounds are told of no more often than this, in seconds.
_PAUSE = 0.2


class Bench:
    """The study as this process has it.

    Args:
        told: see `polyclinic.study.side_by_side.crew.briefing`.
        cases: of each site.
    """

    def __init__(self, told: Mapping[str, Any], cases: Mapping[str, SiteData]) -> None:
        out, plan = Path(told["out"]), EnginePlan(**told["plan"])
        content, _ = read_yaml(out / "study.yaml")
        study = CheckedStudy.of(content, told["folder"])
        declaration = study.declaration
        facts = {site: SiteFacts.model_validate(one) for site, one in told["facts"].items()}
        cohort = Cohort(
            facts, {}, told["features"], told["classes"], told["covariates"],
            public=next(iter(facts.values())).public, public_inputs=next(iter(cases.values())).public,
        )  # fmt: skip
        attack = attack_of(declaration, cohort)
        folder = Folder(out, study)
        search = Searching(declaration, folder, declaration.validation_metric)
        folds = {fold.number: fold for fold in map(Fold.from_json, told["folds"])}
        sites = LocalEngine(cases, corruptible=attack is not None)
        setup = Setup(study, cohort, sites, folder.site_folder(), attack)
        template = setup.template(plan.device)
        engine, local = setup.start(plan)
        preparing = Folds(declaration, cohort, engine, local)
        public = setup.public(preparing.public)
        runner = JobRunner(
            declaration, engine, local, template, setup.initial, cohort.classes, attack, public, setup.networks
        )
        self.bench = Workbench(runner, preparing, search, folder, folds)
        self.jobs = trainings(declaration, search, attack, folds)

    def run(self, number: int, name: str, report: Callable[[int, int], None]) -> None:
        """Run a job.

        Raises:
            PolyclinicError: what it fails by.
            ValueError: the job has another name here.
        """
        job: Job = self.jobs[number]
        if self.bench.folder.job_name(job) != name:
            raise ValueError(f"training {number} is {self.bench.folder.job_name(job)} and not {name}")
        self.bench.run(job, report)


def serve(files: socket.socket | None) -> None:
    """Answer until the coordinator closes the pipe, or dies: then this process ends, whatever it is doing."""
    # Who stops a job on a cluster tells all its processes. This one ends with the coordinator.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whatever prints in this process must not end up between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    channel, asked = Channel(sys.stdin.buffer, answers, files), SimpleQueue[tuple[Fields, Message]]()

    def read() -> None:
        try:
            while (found := channel.receive()) is not None:
                asked.put(found)
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    channel.send(Message({"ready": True}), lambda _: None)
    cases, bench = dict[str, SiteData](), list[Bench]()
    while True:
        about, message = asked.get()
        try:
            _answer(about, message, cases, bench, lambda answer: channel.send(Message(answer), lambda _: None))
        except PolyclinicError as error:
            channel.send(Message({"error": error_told(error)}), lambda _: None)
        except Exception as error:
            found = told(error)  # in code of a plug-in
            crash = "".join(traceback.format_exception(error))
            channel.send(Message({"crash": crash} if found is None else {"error": error_told(found)}), lambda _: None)


def _answer(
    about: Fields, message: Message, cases: dict[str, SiteData], bench: list[Bench], say: Callable[[Fields], None]
) -> None:
    if "site" in about:
        cases[about["site"]] = cases_received(about["site"], message.fields, message.tensors)
        return
    if "briefing" in about:
        bench[:] = [Bench(message.fields, cases)]
        return
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _PAUSE:
            last = time.monotonic()
            say({"round": [done, total]})

    bench[0].run(about["number"], about["name"], report)
    say({"done": True})


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[2])) if sys.argv[2:] else None)
