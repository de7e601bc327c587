"""The end of a study at the coordinator: a process that runs it, with sites that are elsewhere."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nvflare.collab import collab

from polyclinic.communication.message import Message
from polyclinic.errors import FederationError, PolyclinicError, ResultsError, SiteError
from polyclinic.federation.audit_log import AuditLog
from polyclinic.federation.flare_party import FlareParty
from polyclinic.federation.job import MARK, OUTCOME, PAUSE, RESULTS, STATUS, STUDY_FILE, run_hash, study_hash
from polyclinic.federation.large_messages import prepare
from polyclinic.federation.remote_engine import Party, Patience, RemoteEngine
from polyclinic.federation.status import Outcome, Watch
from polyclinic.federation.status_page import STATUS_PAGE, write_status_page
from polyclinic.federation.wire import Failure
from polyclinic.files import write_atomic
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.study import Study

log = logging.getLogger(__name__)


class Paused(Exception):  # noqa: N818 - it is no error
    """A researcher asked the study to stop after this round."""


class CoordinatorEnd:
    """Runs the study of one job; made by FLARE in the coordinator's process for it."""

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> None:
        """Run the study, and leave results and how it ended in the job's folder, which researchers fetch."""
        import polyclinic.study.runner  # noqa: F401 - all is imported before `prepare`

        prepare()
        context, workspace = collab.fl_ctx, collab.workspace
        job, kit = str(context.get_job_id()), Path(workspace.get_root_dir())
        study = Path(workspace.get_app_config_dir(job)) / STUDY_FILE
        parties = {client.name: FlareParty(client) for client in collab.clients}
        meta = context.get_prop("__job_meta__") or {}
        conduct = Conduct(kit, study, job, parties, str(meta.get("submitter_name", "")))
        engine = context.get_engine()
        engine.register_app_command(STATUS, lambda *_: conduct.watch.status().model_dump())
        engine.register_app_command(PAUSE, lambda *_: conduct.pause())
        outcome = conduct.run()
        folder = Path(workspace.get_run_dir(job))
        if conduct.results.is_dir():
            shutil.copytree(conduct.results, folder / RESULTS, dirs_exist_ok=True)
        write_atomic(folder / OUTCOME, outcome.model_dump_json())


@dataclass
class Conduct:
    """One run of a study, in a folder that outlives it: the next one goes on where it was.

    Args:
        kit: folder of the coordinator's kit.
        study: the study file.
        session: of this run.
        parties: the sites, by the names of their kits.
        researcher: who asked for the study.
        patience: how long to wait for sites; its deadline is the study's.
    """

    kit: Path
    study: Path
    session: str
    parties: Mapping[str, Party]
    researcher: str
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        text = self.study.read_text(encoding="utf-8")
        self.mark = run_hash(text, list(self.parties))
        # With other sites it is another study.
        self.folder = self.kit / "studies" / self.mark[:MARK]
        self.results = self.folder / RESULTS
        self._about = {"study": study_hash(text), "sites": sorted(self.parties)}
        declaration = CheckedStudy.read(self.study, named=True).declaration
        patience = replace(self.patience, deadline=declaration.engine.deadline)
        self.engine = RemoteEngine(self.parties, self.session, patience, self._answered)
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
            return Outcome(state="finished", progress=self.watch.progress)
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

    def _stopped(self, failure: PolyclinicError) -> Outcome:
        lost = isinstance(failure, SiteError) and failure.code == "P402" and bool(self._lost())
        return Outcome(
            state="lost" if lost else "failed", lost=self._lost(), progress=self.watch.progress,
            failure=Failure.of(failure).model_dump(),
        )  # fmt: skip

    def _lost(self) -> list[str]:
        return [self.watch.parties[site] for site in self.engine.lost]

    def _run(self) -> None:
        from polyclinic.study.runner import run_study

        declared = Study.read(self.study, named=True)
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
            else:
                found[party] = name
        if refused:
            others = f" So did {len(refused) - 1} more." if len(refused) > 1 else ""
            raise _alike(refused[0], others)
        return found


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
