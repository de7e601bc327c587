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
from typing import Any

from polyclinic.errors import FederationError, PolyclinicError
from polyclinic.federation.job import OUTCOME, RESULTS, STATUS, study_hash, write_job
from polyclinic.federation.kits import Kit
from polyclinic.federation.optional import require_flare
from polyclinic.federation.wire import Failure
from polyclinic.study.checked import CheckedStudy

#: Seconds between two looks at where a study is.
PERIOD = 1.0
#: Called with what the coordinator tells of a study.
Follow = Callable[[dict[str, Any]], None]


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
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        until, cause = time.monotonic() + seconds, ""
        session = None
        while session is None:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    session = new_secure_session(kit.name, str(kit.folder), timeout=5.0)
            except Exception as error:
                cause = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
                if time.monotonic() > until or not alive():
                    raise FederationError(
                        "P603", f"The coordinator does not answer {kit.name}: {cause}.",
                        "Is it running (`polyclinic coordinator start`), and is the kit one of this consortium?",
                    ) from None  # fmt: skip
                time.sleep(0.5)
        try:
            yield cls(session, kit)
        finally:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                session.close()

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
        while missing := sorted(set(sites) - set(self.sites())):
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
        return list(sites) or self.sites()

    def run(self, study: Path, out: Path, sites: Sequence[str], follow: Follow) -> None:
        """Hand in a study, follow it to its end, and fetch its results.

        Args:
            study: the study file.
            out: folder for the results; it is made.
            sites: names of the kits of those who take part.
            follow: is told where the study is.

        Raises:
            PolyclinicError: what stopped the study, with the results so far in ``out``; P606, it ended without a word.
        """
        text = study.read_text(encoding="utf-8")
        quorum = CheckedStudy.read(study, named=True).declaration.training.quorum
        with tempfile.TemporaryDirectory(prefix="polyclinic-") as folder:
            job = Path(folder) / "job"
            write_job(job, text, sites, None if quorum is None else min(quorum, len(sites)))
            with _words("hand in a study"):
                name = str(self._session.submit_job(str(job)))
            self._follow(name, follow)
            with _words("fetch results"):
                found = Path(self._session.download_job_result(name, folder))
            self._take(found, out, study_hash(text))

    def _follow(self, job: str, follow: Follow) -> None:
        """Look at a job until it is over."""
        while True:
            with _words("look at a study"):
                state = str(self._session.get_job_meta(job).get("status", ""))
            if state.startswith(("FINISHED", "ABORTED", "FAILED")):
                return
            now: dict[str, Any] = {}
            if state == "RUNNING":  # in its first and last moments nobody answers
                with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                    now = self._session.do_app_command(job, STATUS, {})
            if now:
                follow(now)
            time.sleep(PERIOD)

    def _take(self, found: Path, out: Path, mark: str) -> None:
        """Results of a job that is over.

        Raises:
            PolyclinicError: it failed.
        """
        outcome = next(found.rglob(OUTCOME), None)
        results = next((path for path in found.rglob(RESULTS) if path.is_dir()), None)
        if results is not None:
            shutil.copytree(results, out, dirs_exist_ok=True)
        if outcome is None:
            raise FederationError("P606", f"The study {mark[:12]} ended without saying why.",
                                  "Look at the coordinator's log, and run it again: it goes on.")  # fmt: skip
        said = json.loads(outcome.read_text(encoding="utf-8"))
        if said["state"] != "finished":
            raise Failure.model_validate(said["failure"]).error("the coordinator")


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
        raise FederationError("P603", f"The coordinator did not let us {what}: {cause}.",
                              "Look at its log.") from None  # fmt: skip
