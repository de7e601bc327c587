"""The end of a study at the coordinator: a process that runs it, with sites that are elsewhere."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.collab import collab

from polyclinic.communication.message import Message
from polyclinic.errors import FederationError, PolyclinicError
from polyclinic.federation.audit_log import AuditLog
from polyclinic.federation.flare_engine import FlareEngine
from polyclinic.federation.job import OUTCOME, RESULTS, STATUS, STUDY_FILE, study_hash
from polyclinic.federation.wire import Failure, answer_from_bytes
from polyclinic.files import write_atomic
from polyclinic.notes import Note
from polyclinic.study.display import Display, counts_text
from polyclinic.study.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from polyclinic.engine.planner import EnginePlan

log = logging.getLogger(__name__)

#: Seconds within which a site must say hello.
HELLO = 120.0


class CoordinatorEnd:
    """Runs the study of one job; made by FLARE in the coordinator's process for it."""

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> None:
        """Run the study, and leave results and how it ended in the job's folder, which researchers fetch."""
        context, workspace = collab.fl_ctx, collab.workspace
        job = str(context.get_job_id())
        told = Told()
        context.get_engine().register_app_command(STATUS, told.answer)
        folder = Path(workspace.get_run_dir(job))
        study = Path(workspace.get_app_config_dir(job)) / STUDY_FILE
        clients = {client.name: client for client in collab.clients}
        # With other sites it is another study.
        mark = study_hash("\n".join([study.read_text(encoding="utf-8"), *sorted(clients)]))
        kept = Path(workspace.get_root_dir()) / "studies" / mark[:16]
        audit = AuditLog(Path(workspace.get_root_dir()))
        about = {"study": study_hash(study.read_text(encoding="utf-8")), "sites": sorted(clients)}
        meta = context.get_prop("__job_meta__") or {}
        audit.add("study begun", **about, researcher=str(meta.get("submitter_name", "")))
        try:
            _run(study, kept, clients, told)
            outcome: dict[str, Any] = {"state": "finished"}
        except PolyclinicError as error:
            log.warning("%s", error)
            outcome = {"state": "failed", "failure": Failure.of(error).model_dump()}
        except Exception:
            log.exception("running a study")
            unknown = FederationError("P606", "The coordinator failed; its log says why.", "Ask who runs it to look.")
            outcome = {"state": "failed", "failure": Failure.of(unknown).model_dump()}
        if (kept / RESULTS).is_dir():
            shutil.copytree(kept / RESULTS, folder / RESULTS, dirs_exist_ok=True)
        audit.add("study ended", **about, **outcome)
        write_atomic(folder / OUTCOME, json.dumps(outcome))
        told.ended(outcome)


def _run(study: Path, kept: Path, clients: dict[str, Any], told: Told) -> None:
    """Run a study in a folder that outlives the job, so that it goes on where it was interrupted.

    Raises:
        PolyclinicError: as `Study.run`; P604, a site does not take part.
    """
    from polyclinic.study.runner import run_study

    declared = Study.read(study, named=True)
    engine = FlareEngine(_named(clients))
    out = kept / RESULTS
    out.parent.mkdir(parents=True, exist_ok=True)
    run_study(declared, out, resume=out.exists(), display=told, engine=engine)


def _named(clients: dict[str, Any]) -> dict[str, Any]:
    """The parties by the names that they have in studies.

    Raises:
        PolyclinicError: one does not take part, or two have one name.
    """
    engine = FlareEngine(clients, HELLO)
    found: dict[str, Any] = {}
    refused = list[PolyclinicError]()
    for party, reply in engine.call("hello", dict.fromkeys(clients, Message())):
        if isinstance(reply, PolyclinicError):
            refused.append(reply)
            continue
        name = reply.fields.get("site")
        if not isinstance(name, str) or not 0 < len(name) <= 100:
            refused.append(_no_name(party))
        elif name in found:
            refused.append(FederationError("P605", f"Two sites are called {name}.", "Give each a name of its own."))
        else:
            found[name] = clients[party]
    engine.close()
    if refused:
        others = f" So did {len(refused) - 1} more." if len(refused) > 1 else ""
        raise type(refused[0])(refused[0].code, refused[0].message + others, refused[0].hint)
    return found


def _no_name(party: str) -> PolyclinicError:
    answer = answer_from_bytes(party, b"")
    return answer if isinstance(answer, PolyclinicError) else FederationError("P605", f"{party} has no name.")


class Told(Display):
    """Where a study is, for who asks."""

    def __init__(self) -> None:
        self._now: dict[str, Any] = {"state": "running", "since": time.time(), "lines": []}

    def answer(self, topic: str, data: object, context: object, *_: object) -> dict[str, Any]:
        """What is told."""
        return self._now | {"lines": list(self._now["lines"])}

    def ended(self, outcome: dict[str, Any]) -> None:
        """The study is over."""
        self._now |= outcome

    def opened(self, sites: pd.DataFrame, notes: list[Note]) -> None:
        """Counts of the data."""
        self.note(f"Data: {len(sites)} sites, {counts_text(sites)}.")

    def planned(self, plan: EnginePlan, jobs: int) -> None:
        """How many trainings there are."""
        self._now |= {"jobs": jobs, "job": 0}

    def job(self, number: int, title: str, skipped: bool) -> None:
        """A job starts, or was done before."""
        self._now |= {"job": number + skipped, "title": title, "round": 0, "rounds": None}

    def round(self, done: int, total: int) -> None:
        """A round of the job is done."""
        self._now |= {"round": done, "rounds": total}

    def step(self, title: str) -> None:
        """Something else that takes a moment."""
        self.note(f"Writing {title} ...")

    def note(self, text: str) -> None:
        """Something to know."""
        self._now["lines"].append(text)
