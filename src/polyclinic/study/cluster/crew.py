"""Jobs of a study as tasks of a Ray cluster.

The coordinator speaks to one process (`polyclinic.study.cluster.driver`), which speaks to Ray. Nodes are told where the
results folder is, and a job's number: they read the study there, open the data themselves, and write what they find
into the folder, as `polyclinic.study.side_by_side.job_worker` does. Nothing of ours is pickled, and no case goes
through Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from polyclinic.communication.message import Fields
from polyclinic.data.cases import SiteData
from polyclinic.engine.planner import cores
from polyclinic.errors import StudyError, TrainingError, error_from
from polyclinic.files import write_atomic
from polyclinic.notes import Note
from polyclinic.study.cluster.task import BRIEFING, about, attempt_file, digest
from polyclinic.study.display import Display
from polyclinic.study.entries import RayOptions
from polyclinic.study.folder import Folder
from polyclinic.study.job import Job
from polyclinic.study.side_by_side.agenda import Agenda
from polyclinic.study.side_by_side.crew import PATIENT
from polyclinic.study.side_by_side.overseeing import MOST_DEATHS, Overseer

#: The process that speaks to Ray.
DRIVER = [sys.executable, "-m", "polyclinic.study.cluster.driver"]
#: Seconds between two looks at how far trainings are.
_PAUSE = 1.0
#: Seconds that the process which speaks to Ray has to end a cluster that it started.
_PATIENCE = 20.0


class Cluster(Overseer):
    """A cluster, or what is wrong with it.

    Args:
        options: what the study file says of it.
        threads: arithmetic threads of each training.
        most: how many trainings there are to run at a time, if there is room.
        folder: of the results.

    Attributes:
        size: how many there is room for, up to ``most``.
        notes: what a person should know of the nodes.

    Raises:
        StudyError: P405, it can't be used, or has no node that is large enough.
    """

    def __init__(self, options: RayOptions, threads: int, most: int, folder: Folder) -> None:
        super().__init__(folder)
        self.options, self.notes = options, list[Note]()
        needs = {"cpus": options.cpus or threads, "gpus": options.gpus, "memory": options.memory_bytes}
        self._answers = defaultdict[int, SimpleQueue[dict[str, Any] | None]](SimpleQueue)
        self._threads: list[threading.Thread] = []
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._driver = subprocess.Popen(  # noqa: S603 - our own module
            DRIVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, start_new_session=True, env=_environment(),
        )  # fmt: skip
        try:
            self._say({**needs, "address": options.address, "most_cpus": max(cores(), most * needs["cpus"])})
            found = self._hear()
            self.size = min(most, sum(found["room"]))
            if not self.size:
                raise self._too_small(found["names"], needs)
        except BaseException:
            self.close()
            raise

    def run(self, told: Fields, cases: Mapping[str, SiteData], jobs: Sequence[Job], agenda: Agenda,
            display: Display) -> None:  # fmt: skip
        """See `Overseer.run`; nodes open the cases themselves."""
        self._jobs, self._agenda = jobs, agenda
        out = self.folder.path.resolve()
        write_atomic(out / "jobs" / BRIEFING, json.dumps(told))
        self._told = {"out": str(out), "digest": digest(out)}
        self._look(display)
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.size)]
        others = [threading.Thread(target=self._listen, daemon=True), threading.Thread(target=self._count, daemon=True)]
        self._threads = [*workers, *others]
        self._running = set[int]()
        for thread in self._threads:
            thread.start()
        self._watch(display, {number for number, job in enumerate(jobs) if self.folder.is_done(job)})
        self.close()
        self.folder.sweep()  # what processes that were killed had not written to the end

    def close(self) -> None:
        """See `Overseer.close`."""
        self._closed.set()
        with contextlib.suppress(OSError):
            if self._driver.stdin is not None:
                self._driver.stdin.close()
        try:
            self._driver.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        for thread in self._threads:
            thread.join(timeout=10)
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        self._errors.close()

    # The nodes ------------------------------------------------------------------------------------------------------

    def _look(self, display: Display) -> None:
        """See whether all nodes can work on the study.

        Raises:
            StudyError: P405, one can't, and is named.
        """
        self._say({"look": self._told})
        nodes, here = self._hear()["looked"], about()
        for node in nodes:
            _check_node(node, here, self._told["out"])
        display.note(f"Cluster: {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}.")
        kinds = Counter(node["machine"] for node in nodes)
        kinds[here["machine"]] += 0
        if len(kinds) > 1:
            found = "; ".join(f"{count} with {kind}" for kind, count in kinds.items() if count)
            self.notes = [
                Note("N113", f"The nodes of the cluster have processors of several kinds ({found}; the coordinator has "
                     f"{here['machine']}). Trainings round differently on each, so another run may give other last "
                     "digits.")
            ]  # fmt: skip
            display.note(self.notes[0])

    def _too_small(self, names: Sequence[str], needs: Mapping[str, Any]) -> StudyError:
        asked = [f"{needs['cpus']} CPU"]
        asked += [f"{needs['gpus']:g} GPU"] if needs["gpus"] else []
        asked += [f"{self.options.memory} of memory"] if needs["memory"] else []
        return StudyError(
            "P405", f"No node of the cluster has room for one training ({', '.join(asked)}): {', '.join(names)}.",
            "Ask for less in `engine: {ray: ...}`, or start larger nodes.",
        )  # fmt: skip

    # In the thread of a training ------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Have one job run after another."""
        stand = None
        try:
            while (number := self._agenda.take(stand)) is not None:
                self._running.add(number)
                self._events.put(("round", number, None))
                self._run(number)
                stand = self._agenda.stands[number]
                self._running.discard(number)
                self._agenda.finish(number)
                self._events.put(("done", number, None))
        except Exception as error:
            self._agenda.stop()
            self._events.put(("failed", error, None))

    def _run(self, number: int) -> None:
        """Have a job run, if need be again on another node.

        Raises:
            PolyclinicError: what the job failed by; P403, its process ended again and again; P405, the cluster is gone.
            RuntimeError: a mistake in the program, with the node's traceback.
        """
        name, died = self.folder.job_name(self._jobs[number]), ""
        for _ in range(MOST_DEATHS):
            path = attempt_file(self.folder.path, name)
            attempt = int(path.read_text(encoding="ascii")) + 1 if path.is_file() else 1
            write_atomic(path, str(attempt))
            self._say({**self._told, "number": number, "name": name, "attempt": attempt})
            said = self._answers[number].get()
            if said is None:
                raise self._gone()
            if "error" in said:
                raise error_from(said["error"])
            if "crash" in said:
                raise RuntimeError(f"in a task of the cluster:\n{said['crash']}")
            if "done" in said:
                return
            died = said["died"]
            self._events.put(("died", number, died))
        raise TrainingError(
            "P403", f"The training {self._title(number)} was lost {MOST_DEATHS} times (last: {died}).",
            "Finished rounds are saved: run the same command with --resume. If memory is short, let `engine: {ray: "
            "{memory: ...}}` say what a training needs, so that fewer share a node.",
        )  # fmt: skip

    def _listen(self) -> None:
        """Give answers to those who wait for them."""
        told = False
        for said in self._lines():
            if "waiting" in said and told:
                continue
            if "waiting" in said:
                told = True
                text = f"{said['waiting']} trainings wait: no node of the cluster that is alive has room for them."
                self._events.put(("note", text, None))
            else:
                self._answers[said["number"]].put(said)
        for number in range(len(self._jobs)):
            self._answers[number].put(None)

    def _count(self) -> None:
        """Tell how many rounds trainings have done, by their files."""
        while not self._closed.wait(_PAUSE):
            for number in sorted(self._running):
                job = self._jobs[number]
                done = _rounds_done(self.folder.jobs / f"{self.folder.job_name(job)}.part" / "rounds.jsonl")
                if done:
                    self._events.put(("round", number, (done, job.methods[0].training.rounds)))

    # The process that speaks to Ray ---------------------------------------------------------------------------------

    def _say(self, told: Mapping[str, Any]) -> None:
        try:
            if self._driver.stdin is None:
                raise OSError("no pipe")
            with self._lock:
                self._driver.stdin.write(json.dumps(told) + "\n")
                self._driver.stdin.flush()
        except (OSError, ValueError):
            raise self._gone() from None

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self._driver.stdout is not None:
            with contextlib.suppress(OSError, ValueError):  # closed at the end
                yield from map(json.loads, self._driver.stdout)

    def _hear(self) -> dict[str, Any]:
        """An answer to what is asked of the cluster as a whole.

        Raises:
            PolyclinicError: why it can't be used.
        """
        found = next(self._lines(), None)
        if found is None:
            raise self._gone()
        if "refused" in found:
            raise error_from(found["refused"])
        return found

    def _gone(self) -> TrainingError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._driver.wait(timeout=5)
        last = ""
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0)
            last = (self._errors.read().decode(errors="replace").strip().splitlines() or [""])[-1][:300]
        return TrainingError(
            "P405", f"The connection to the cluster has ended{f' ({last})' if last else ''}.",
            "Finished rounds are saved: see that the cluster runs, and run the same command with --resume.",
        )  # fmt: skip


def _check_node(node: Mapping[str, Any], here: Mapping[str, Any], out: str) -> None:
    """Whether a node can work on the study.

    Raises:
        StudyError: P405, it can't.
    """
    name = node["node"]
    if "problem" in node:
        raise StudyError("P405", f"The node {name} can't run Polyclinic: {node['problem']}.",
                         "Install the same version on all nodes, for the Python that runs Ray.")  # fmt: skip
    for package, version in here["versions"].items():
        there = node["versions"].get(package)
        if there != version:
            raise StudyError("P405", f"The node {name} has {package} {there}, and the coordinator {version}.",
                             "Install the same versions on all nodes.")  # fmt: skip
    if node["plugins"] != here["plugins"]:
        there, own = (", ".join(found["plugins"].values()) or "none" for found in (node, here))
        raise StudyError("P405", f"The node {name} has other plug-ins ({there}) than the coordinator ({own}).",
                         "Install the same plug-ins on all nodes.")  # fmt: skip
    if not node["sees"]:
        raise StudyError(
            "P405", f"The node {name} does not see the results folder {out}.",
            "Choose with --out a folder on a file system that all nodes share, under the same path.",
        )  # fmt: skip


def _rounds_done(path: Path) -> int:
    """How many rounds a training's file has, by its last whole line."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return int(json.loads(line)["round"]) + 1
    return 0


def _environment() -> dict[str, str]:
    """That of this process; workers of a cluster that is started on this machine get it, too."""
    return {**PATIENT, **os.environ}
