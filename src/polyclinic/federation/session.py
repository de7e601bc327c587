"""A researcher's connection to the coordinator: studies are handed in, followed and fetched."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from polyclinic.errors import FederationError, PolyclinicError, SiteError
from polyclinic.federation.job import LAST, MARK, OUTCOME, PAUSE, RESULTS, STATUS, run_hash, sent_text, write_job
from polyclinic.federation.kit import Kit
from polyclinic.federation.optional import require_flare
from polyclinic.federation.remote.wire import Failure
from polyclinic.federation.watching.status import Outcome, Status, read_status
from polyclinic.study.checked import CheckedStudy

#: Seconds between two looks at where a study is.
PERIOD = 1.0
#: After so many looks at which a lost site was connected, the study is begun again at the round where it is.
LOOKS = 5
#: After so many looks at which nothing was told of a study, it is asked whether it still runs.
QUIET = 20
#: After so many runs in which no round was done a study is not begun again.
MOST_IDLE = 3
#: What FLARE's session raises where asking again would not help. Who is not authenticated any longer, since the
#: coordinator began anew, logs in again.
_REFUSALS = ("AuthorizationError", "InvalidJobDefinition", "InvalidArgumentError", "InvalidTarget", "JobNotFound")
#: Called with what the coordinator tells of a study.
Follow = Callable[[Status], None]
Found = TypeVar("Found")


class _Refused(FederationError):  # noqa: N818 - told as a FederationError
    """The coordinator answered, and said no: asking again would not help."""


class Researcher:
    """Talks to the coordinator with a researcher's kit.

    Args:
        session: of FLARE.
        kit: the kit.
    """

    def __init__(self, session: Any, kit: Kit) -> None:
        self._session, self.kit = session, kit

    @classmethod
    @contextmanager
    def connect(cls, kit: Kit, seconds: float = 30.0, alive: Callable[[], bool] = lambda: True) -> Iterator[Researcher]:
        """A connection for as long as the context lasts.

        Args:
            kit: a researcher's.
            seconds: within which the coordinator must answer.
            alive: whether it may still do so.

        Raises:
            FederationError: P603, nobody answers, or the certificate is not accepted.
        """
        require_flare()
        until, cause = time.monotonic() + seconds, ""
        session = None
        while session is None:
            try:
                session = _session(kit)
            except Exception as error:
                cause = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
                if time.monotonic() > until or not alive():
                    raise FederationError(
                        "P603", f"The coordinator does not answer {kit.name}: {cause}.",
                        "Does it run (`polyclinic coordinator start`)? Is the kit of this consortium, and not revoked?",
                    ) from None  # fmt: skip
                time.sleep(0.5)
        researcher = cls(session, kit)
        try:
            yield researcher
        finally:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                researcher._session.close()

    def sites(self) -> list[str]:
        """Names of the kits of the sites that are connected."""
        with _words("ask who is there"):
            return sorted(one.name for one in self._session.get_system_info().client_info)

    def wait_for(self, sites: Sequence[str], seconds: float) -> None:
        """Wait until sites are connected.

        Raises:
            FederationError: P603 with those that are not.
        """
        until = time.monotonic() + seconds
        while missing := sorted(set(sites) - set(self._patiently(self.sites, until))):
            if time.monotonic() > until:
                raise FederationError("P603", f"Not connected: {', '.join(missing)}.",
                                      "Start them, or name those that take part with --site.")  # fmt: skip
            time.sleep(0.3)

    def chosen(self, sites: Sequence[str], seconds: float = 10.0) -> list[str]:
        """Names of the kits of the sites that take part: those that are named, else all that are connected.

        Raises:
            FederationError: P603, one of them is not connected, or, where none is named, one that was in the consortium
                when the researcher's kit was made.
        """
        self.wait_for(sites or self.kit.about["sites"], seconds)
        return list(sites) or self._patiently(self.sites, time.monotonic() + seconds)

    def run(self, study: Path, out: Path, sites: Sequence[str], follow: Follow, patience: float = 0.0) -> None:
        """Hand in a study, follow it to its end, and fetch its results.

        A study that stops because sites or the coordinator are lost goes on where it was once all are there again. An
        interrupt stops it; if the researcher's machine is switched off, it does not.

        Args:
            study: the study file.
            out: folder for the results; it is made.
            sites: names of the kits of those who take part.
            follow: is told where the study is.
            patience: seconds for which to wait for those who are lost.

        Raises:
            PolyclinicError: what stopped the study, with the results so far in ``out``; P606, it ended without a word.
        """
        CheckedStudy.read(study, named=True)
        text, idle = sent_text(study.read_text(encoding="utf-8")), 0
        while True:
            outcome = self._attempt(text, sites, out, follow, patience)
            if outcome.state in ("finished", "incomplete"):
                return
            idle = 0 if outcome.progress or outcome.state == "paused" else idle + 1
            if outcome.state in ("failed", "stopped") or not patience or idle == MOST_IDLE:
                raise _failure(outcome)
            self._wait_again(sites, patience, outcome)

    def _attempt(
        self, text: str, sites: Sequence[str], out: Path, follow: Follow, patience: float
    ) -> Outcome:  # fmt: skip
        """Hand a study in, or find it where it runs already, and follow it until it ends or stops."""
        with tempfile.TemporaryDirectory(prefix="polyclinic-") as folder:
            mark, job = run_hash(text, sites), Path(folder) / "job"
            write_job(job, text, sites)
            # Where handing it in seems to have failed, it may run all the same.
            name = self._patiently(lambda: self._running(mark) or self._submit(job), time.monotonic() + patience)
            try:
                if not self._follow(name, follow, sites, patience):
                    return _unsaid(mark)
            except KeyboardInterrupt:
                with _words("stop a study"):
                    self._session.abort_job(name)
                raise
            found = self._patiently(lambda: self._fetched(name, folder), time.monotonic() + patience)
            outcome, last = _taken(found, out, mark)
            if last is not None:  # the end comes between two looks
                follow(last.model_copy(update={"state": outcome.state}))
            return outcome

    def _submit(self, job: Path) -> str:
        with _words("hand in a study"):
            return str(self._session.submit_job(str(job)))

    def _fetched(self, job: str, folder: str) -> Path:
        with _words("fetch results"):
            return Path(self._session.download_job_result(job, folder))

    def _running(self, mark: str) -> str | None:
        """The job of a study that runs already, as it does when a researcher's machine was away for a while."""
        with _words("ask what runs"):
            jobs = self._session.list_jobs(name_prefix=mark[:MARK])
        running = [str(job["job_id"]) for job in jobs if not _is_over(str(job.get("status", "")))]
        return next((job for job in running if not self._was_cut_off(job)), None)

    def _was_cut_off(self, job: str) -> bool:
        """Whether nothing runs a job any longer that is not over: the coordinator was ended in the middle of it."""
        for _ in range(LOOKS):  # what is about to begin runs in a moment
            try:
                with _words("ask what runs"):
                    state = str(self._session.get_job_meta(job).get("status", ""))
                    running = {str(one.job_id) for one in self._session.get_system_info().job_info}
            except FederationError:
                return False
            if state not in ("DISPATCHED", "RUNNING") or job in running:
                return False
            time.sleep(PERIOD)
        return True

    def _follow(self, job: str, follow: Follow, sites: Sequence[str], patience: float) -> bool:
        """Look at a job until it is over; False if it was cut off."""
        returned = unheard = 0
        while True:
            state = self._state(job, patience)
            if _is_over(state):
                return True
            status = read_status(self._told(job, STATUS)) if state == "RUNNING" else None
            unheard = 0 if status is not None else unheard + 1
            if unheard == QUIET:
                unheard = 0
                if self._was_cut_off(job):
                    return False
            if status is not None:
                follow(status)
                lost = [site.party for site in status.sites if site.lost]
                returned = returned + 1 if lost and patience and set(lost) <= set(self._connected()) else 0
                if returned == LOOKS:  # it is there, and its end of the study is not: all begin again at this round
                    self._told(job, PAUSE)
            time.sleep(PERIOD)

    def _told(self, job: str, topic: str) -> object:
        """What the coordinator's end of a study tells; nothing in its first and last moments."""
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            return self._session.do_app_command(job, topic, {})
        return None

    def _connected(self) -> list[str]:
        with contextlib.suppress(FederationError):
            return self.sites()
        return []

    def _state(self, job: str, patience: float) -> str:
        """What FLARE says of a job.

        Raises:
            FederationError: P603, the coordinator is not there again in time.
        """

        def asked() -> str:
            with _words("look at a study"):
                return str(self._session.get_job_meta(job).get("status", ""))

        return self._patiently(asked, time.monotonic() + patience)

    def _patiently(self, ask: Callable[[], Found], until: float) -> Found:
        """What the coordinator answers; where the connection was lost, it is made again.

        Raises:
            FederationError: P603, the coordinator is not there again in time.
        """
        while True:
            try:
                return ask()
            except FederationError as error:
                if isinstance(error, _Refused) or time.monotonic() >= until:
                    raise
            time.sleep(PERIOD)
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                self._session.close()
            with contextlib.suppress(Exception):
                self._session = _session(self.kit)

    def _wait_again(self, sites: Sequence[str], patience: float, outcome: Outcome) -> None:
        """Wait until all sites are there again.

        Raises:
            PolyclinicError: they are not in time; why the study stopped.
        """
        try:
            self.wait_for(sites, patience)
        except FederationError as absent:
            error = _failure(outcome)
            raise SiteError(error.code, f"{error.message} {absent.message}", absent.hint) from None
        time.sleep(PERIOD)  # what a site still runs of the job that is over ends


def _taken(found: Path, out: Path, mark: str) -> tuple[Outcome, Status | None]:
    """How a job ended that is over, and where it was then; its results are put into ``out``."""
    outcome = next(found.rglob(OUTCOME), None)
    results = next((path for path in found.rglob(RESULTS) if path.is_dir()), None)
    if results is not None:
        shutil.copytree(results, out, dirs_exist_ok=True)
    last: Status | None = None
    with contextlib.suppress(ValueError):  # of a coordinator with another version
        last = next((read_status(json.loads(path.read_bytes())) for path in found.rglob(LAST)), None)
        if outcome is not None:
            return Outcome.model_validate_json(outcome.read_text(encoding="utf-8")), last
    return _unsaid(mark), last


def _failure(outcome: Outcome) -> PolyclinicError:
    """Why a study did not finish."""
    if not outcome.failure:
        return FederationError("P606", "The study stopped for a moment, so that a site can take part again.",
                               "Run it again: it goes on.")  # fmt: skip
    return Failure.model_validate(outcome.failure).error(", ".join(outcome.lost))


def _unsaid(mark: str) -> Outcome:
    """How a job ended that left nothing."""
    unsaid = FederationError("P606", f"The study {mark[:12]} ended without saying why.",
                             "Look at the coordinator's log, and run it again: it goes on.")  # fmt: skip
    return Outcome(state="lost", failure=Failure.of(unsaid).model_dump())


def _is_over(state: str) -> bool:
    return state.startswith(("FINISHED", "ABORTED", "FAILED", "ABANDONED"))


def _session(kit: Kit) -> Any:
    """A session of FLARE."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    with contextlib.redirect_stdout(io.StringIO()):
        return new_secure_session(kit.name, str(kit.folder), timeout=5.0)


@contextmanager
def _words(what: str) -> Iterator[None]:
    """What goes wrong in FLARE, as an error in plain words."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except PolyclinicError:
        raise
    except Exception as error:
        cause = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        kind = _Refused if type(error).__name__ in _REFUSALS else FederationError
        raise kind("P603", f"The coordinator did not let us {what}: {cause}.", "Look at its log.") from None
