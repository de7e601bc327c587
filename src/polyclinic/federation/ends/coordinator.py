"""The end of a study at the coordinator: a process that runs it, with sites that are elsewhere."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.collab import collab
from nvflare.collab.api.exceptions import RunAborted

from polyclinic.communication.message import Message
from polyclinic.errors import FederationError, PolyclinicError, ResultsError, SiteError
from polyclinic.federation.audit_log import AuditLog
from polyclinic.federation.job import (
    COPIES,
    LAST,
    MARK,
    OUTCOME,
    PAUSE,
    RESULTS,
    SITES_FILE,
    STATUS,
    STUDY_FILE,
    run_hash,
    study_hash,
)
from polyclinic.federation.remote.engine import Party, Patience, RemoteEngine
from polyclinic.federation.remote.flare_party import FlareParty
from polyclinic.federation.remote.large_messages import prepare
from polyclinic.federation.remote.wire import Failure
from polyclinic.federation.trust.identity import CertifiedSites
from polyclinic.federation.watching.page import STATUS_PAGE, write_status_page
from polyclinic.federation.watching.status import Outcome, Watch
from polyclinic.files import write_atomic
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.ended import is_incomplete
from polyclinic.study.given.plugins import used_plugins
from polyclinic.study.study import Study

log = logging.getLogger(__name__)


class Paused(Exception):  # noqa: N818 - it is no error
    """A researcher asked the study to stop after this round."""


class CoordinatorEnd(FLComponent):  # type: ignore[misc]
    """Runs the study of one job; made by FLARE in the coordinator's process for it."""

    def __init__(self) -> None:
        super().__init__()
        self._gone = set[str]()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE tells when the process of a site has ended, or is there again."""
        if event_type == EventType.CLIENT_DISCONNECTED:
            self._gone.add(str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)))
        elif event_type == EventType.CLIENT_RECONNECTED:
            self._gone.discard(str(fl_ctx.get_prop(FLContextKey.RECONNECTED_CLIENT_NAME)))

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> None:
        """Run the study, and leave results and how it ended in the job's folder, which researchers fetch."""
        prepare()
        context, workspace = collab.fl_ctx, collab.workspace
        job, kit = str(context.get_job_id()), Path(workspace.get_root_dir())
        study = Path(workspace.get_app_config_dir(job)) / STUDY_FILE
        names = {client.name: client for client in collab.clients}
        parties = {name: FlareParty(client, partial(self._gone.__contains__, name)) for name, client in names.items()}
        asked = json.loads((study.parent / SITES_FILE).read_text(encoding="utf-8"))
        meta = context.get_prop("__job_meta__") or {}
        conduct = Conduct(kit, study, job, asked, parties, str(meta.get("submitter_name", "")))
        engine = context.get_engine()
        engine.register_app_command(STATUS, lambda *_: conduct.watch.status().model_dump())
        engine.register_app_command(PAUSE, lambda *_: conduct.pause())
        outcome = conduct.run()
        if outcome.state == "stopped" and self._gone:  # FLARE ends a study whose sites are all gone
            outcome = outcome.model_copy(update={"state": "lost", "lost": sorted(self._gone)})
        folder = Path(workspace.get_run_dir(job))
        if conduct.results.is_dir():
            shutil.copytree(conduct.results, folder / RESULTS, dirs_exist_ok=True)
        write_atomic(folder / LAST, conduct.watch.status().model_dump_json())
        write_atomic(folder / OUTCOME, outcome.model_dump_json())
        if conduct.engine.is_held_up:  # FLARE waits for them, else
            collab.context.abort_signal.trigger(True)


@dataclass
class Conduct:
    """One run of a study, in a folder that outlives it: the next one goes on where it was.

    Args:
        kit: folder of the coordinator's kit.
        study: the study file.
        session: of this run.
        sites: names of the kits of those that the study is for.
        parties: those that are there, by the names of their kits.
        researcher: who asked for the study.
        patience: how long to wait for sites; its deadline is the study's.
    """

    kit: Path
    study: Path
    session: str
    sites: Sequence[str]
    parties: Mapping[str, Party]
    researcher: str
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        text = self.study.read_text(encoding="utf-8")
        self.mark = run_hash(text, self.sites)
        # With other sites it is another study.
        self.folder = self.kit / "studies" / self.mark[:MARK]
        self.results = self.folder / RESULTS
        self._about = {"study": study_hash(text), "sites": sorted(self.sites)}
        declaration = CheckedStudy.read(self.study, named=True).declaration
        patience = replace(self.patience, deadline=declaration.engine.deadline)
        self.engine = RemoteEngine(self.parties, self.session, patience, self._answered)
        self.engine.folder_here = self.kit / COPIES
        self.watch = _Page(declaration.study, self.mark, declaration.validation_metric, self.engine.lines)
        self.watch.path = self.folder / STATUS_PAGE

    def _answered(self, site: str, function: str, answer: Message) -> None:
        self.watch.answered(site, function, answer)

    def pause(self) -> dict[str, Any]:
        """Let the study stop after this round."""
        self.watch.pausing = True
        return {}

    def run(self) -> Outcome:
        """Run the study to its end, or to what stops it."""
        try:
            audit = AuditLog(self.kit)
            audit.add("study begun", **self._about, researcher=self.researcher)
            outcome = self._outcome()
            audit.add("study ended", **self._about, **outcome.model_dump())
        except PolyclinicError as error:  # what can't be written down is not said to have happened
            outcome = self._stopped(error)
        self.watch.ended(outcome)
        return outcome

    def _outcome(self) -> Outcome:
        failure: PolyclinicError
        try:
            self._run()
            state: Literal["finished", "incomplete"] = "incomplete" if is_incomplete(self.results) else "finished"
            return Outcome(state=state, progress=self.watch.progress)
        except RunAborted:
            stopped = FederationError("P606", "The study was stopped at the coordinator.", "Run it again: it goes on.")
            return self._stopped(stopped, "stopped")
        except Paused:
            return Outcome(state="paused", lost=self._lost(), progress=self.watch.progress)
        except PolyclinicError as error:
            log.warning("%s", error)
            failure = error
        except Exception:
            log.exception("running a study")
            failure = FederationError("P606", "The coordinator failed; its log says why.", "Ask who runs it to look.")
        finally:
            self.engine.close()
        return self._stopped(failure)

    def _stopped(self, failure: PolyclinicError, state: Literal["failed", "stopped"] = "failed") -> Outcome:
        lost = isinstance(failure, SiteError) and failure.code == "P402" and bool(self._lost())
        return Outcome(
            state="lost" if lost else state, lost=self._lost(), progress=self.watch.progress,
            failure=Failure.of(failure).model_dump(),
        )  # fmt: skip

    def _lost(self) -> list[str]:
        lost = [self.watch.parties[site] for site in self.engine.lost]
        return sorted({*lost} | ({*self.sites} - self.parties.keys()))

    def _run(self) -> None:
        from polyclinic.study.runner import run_study

        declared = Study.read(self.study, named=True)
        absent = sorted({*self.sites} - self.parties.keys())
        if absent:
            raise SiteError("P402", f"Not connected: {', '.join(absent)}.", "Start them, and run the study again.")
        self.engine.verifier = CertifiedSites(self.kit)
        names = self._names()
        self.engine.rename(names)
        self.watch.renamed(names, self.engine.lines)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        run_study(declared, self.results, resume=self.results.exists(), display=self.watch, engine=self.engine)

    def _names(self) -> dict[str, str]:
        """The name that each party has in studies.

        Raises:
            PolyclinicError: one does not take part, two have one name, or one runs another version.
        """
        found: dict[str, str] = {}
        here = used_plugins(CheckedStudy.read(self.study, named=True).declaration)
        refused = list[PolyclinicError]()
        for party, reply in self.engine.call("hello", dict.fromkeys(self.parties, Message())):
            if isinstance(reply, PolyclinicError):
                refused.append(reply)
                continue
            name, runs = reply.fields.get("site"), str(reply.fields.get("version"))[:40]
            if not isinstance(name, str) or not 0 < len(name) <= 100:
                refused.append(FederationError("P605", f"{party} has no name.", "Let its site.yaml give one."))
            elif name in found.values():
                refused.append(FederationError("P605", f"Two sites are called {name}.", "Give each a name of its own."))
            elif runs != version("polyclinic"):
                text = f"Site {name} runs Polyclinic {runs}, and the coordinator {version('polyclinic')}."
                refused.append(FederationError("P604", text, "Let all install the same version."))
            elif (other := _other_plugins(reply.fields.get("plugins"), here)) is not None:
                text = f"Site {name} has {other[0]}, and the coordinator {other[1]}."
                refused.append(FederationError("P604", text, "Let all install the same version of the plug-in."))
            else:
                found[party] = name
        if refused:
            others = f" So did {len(refused) - 1} more." if len(refused) > 1 else ""
            raise _alike(refused[0], others)
        return found


def _other_plugins(there: object, here: Mapping[str, str]) -> tuple[str, str] | None:
    """The first plug-in that a site has in another version than the coordinator, or from another package: what either
    has, in words; None if the study needs the same at both."""
    theirs = there if isinstance(there, dict) else {}
    for package in sorted({*theirs, *here}, key=str):
        if theirs.get(package) != here.get(package):
            both = [f"the plug-in {str(package)[:80]} {str(one[package])[:40]}" if package in one
                    else f"no plug-in {str(package)[:80]}" for one in (theirs, here)]  # fmt: skip
            return both[0], both[1]
    return None


def _alike(error: PolyclinicError, others: str) -> PolyclinicError:
    if isinstance(error, SiteError):
        return SiteError(error.code, error.message + others, error.hint, site=error.site)
    return type(error)(error.code, error.message + others, error.hint)


class _Page(Watch):
    """Keeps account of a study, and writes a page of it after each round."""

    path: Path
    pausing = False

    def round(self, done: int, total: int) -> None:
        """See `Display`."""
        super().round(done, total)
        self._write()
        if self.pausing:
            raise Paused

    def job(self, number: int, title: str, skipped: bool) -> None:
        """See `Display`."""
        super().job(number, title, skipped)
        self._write()

    def ended(self, outcome: Outcome) -> None:
        """The run is over."""
        self.state = outcome.state
        self._write()

    def _write(self) -> None:
        try:
            write_status_page(self.path, self.status())
        except ResultsError as error:  # the study does not need it
            log.warning("%s", error)
