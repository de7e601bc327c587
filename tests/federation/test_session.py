"""A researcher's connection to a coordinator that comes and goes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from helpers import write_table_study
from polyclinic.errors import FederationError
from polyclinic.federation import session
from polyclinic.federation.job import LAST, OUTCOME, RESULTS
from polyclinic.federation.kit import Kit
from polyclinic.federation.session import Researcher
from polyclinic.federation.watching.status import Outcome, Status, Watch


class NoConnection(ConnectionError):  # noqa: N818 - its name counts
    """As FLARE's."""


class AuthenticationError(Exception):
    """As FLARE's, where the coordinator does not know the session any longer."""


class AuthorizationError(Exception):
    """As FLARE's."""


class Coordinator:
    """What FLARE's session does, whose coordinator is away at some calls.

    Args:
        folder: for results.
        away: numbers of the calls at which nobody answers, from 0.
        error: what FLARE raises then.
    """

    def __init__(self, folder: Path, away: set[int], error: type[Exception] = NoConnection) -> None:
        self.folder, self.away, self.calls, self.error = folder, away, 0, error
        self.jobs: dict[str, str] = {}
        self.opened = 0

    def _called(self) -> None:
        self.calls += 1
        if self.calls - 1 in self.away:
            raise self.error

    def close(self) -> None:
        pass

    def get_system_info(self) -> Any:
        self._called()
        jobs = [SimpleNamespace(job_id=job) for job in self.jobs]
        return SimpleNamespace(client_info=[SimpleNamespace(name=name) for name in ("aachen", "bonn")], job_info=jobs)

    def list_jobs(self, name_prefix: str) -> list[dict[str, str]]:
        self._called()
        return [{"job_id": job, "status": state} for job, state in self.jobs.items()]

    def submit_job(self, folder: str) -> str:
        name = f"job-{len(self.jobs)}"
        self.jobs[name] = "RUNNING"  # it arrived, even if the answer gets lost
        self._called()
        return name

    def do_app_command(self, job: str, topic: str, data: Any) -> Any:
        self.jobs[job] = "FINISHED:COMPLETED"

    def get_job_meta(self, job: str) -> dict[str, str]:
        self._called()
        return {"status": self.jobs[job]}

    def download_job_result(self, job: str, folder: str) -> str:
        self._called()
        (self.folder / RESULTS).mkdir(parents=True, exist_ok=True)
        (self.folder / RESULTS / "results.csv").write_text("method\n")
        (self.folder / LAST).write_text(Watch("trial", "ab" * 32, "accuracy", {}).status().model_dump_json())
        (self.folder / OUTCOME).write_text(Outcome(state="finished").model_dump_json())
        return str(self.folder)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(write_table_study(tmp_path, {"Aachen": 8, "Bonn": 8})))
    return path


def researcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coordinator: Coordinator) -> Researcher:
    monkeypatch.setattr(session, "PERIOD", 0.001)

    def again(kit: Kit) -> Coordinator:
        coordinator.opened += 1
        return coordinator

    monkeypatch.setattr(session, "_session", again)
    (tmp_path / "party.json").write_text(json.dumps({"sites": ["aachen", "bonn"]}))
    return Researcher(coordinator, Kit(tmp_path, "researcher", "maria@hospital.org"))


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("error", [NoConnection, AuthenticationError])
def test_a_coordinator_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    study: Path,
    first: int,
    length: int,
    error: type[Exception],
) -> None:
    """Whatever was being asked, the study is handed in once, and its results come."""
    coordinator = Coordinator(tmp_path / "there", set(range(first, first + length)), error)
    one = researcher(tmp_path, monkeypatch, coordinator)
    assert one.chosen([], 5) == ["aachen", "bonn"]
    one.run(study, tmp_path / "out", ["aachen", "bonn"], lambda status: None, patience=5)
    assert list(coordinator.jobs) == ["job-0"]
    assert (tmp_path / "out" / "results.csv").is_file()
    assert coordinator.opened == min(length, max(0, coordinator.calls - first))


def test_the_end_is_told_though_nobody_looked_when_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: Path
) -> None:
    told = list[Status]()
    one = researcher(tmp_path, monkeypatch, Coordinator(tmp_path / "there", set()))
    one.run(study, tmp_path / "out", ["aachen", "bonn"], told.append)
    assert [status.state for status in told] == ["finished"]


def test_without_patience_it_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: Path) -> None:
    one = researcher(tmp_path, monkeypatch, Coordinator(tmp_path / "there", set(range(1000))))
    with pytest.raises(FederationError, match=r"P603 The coordinator did not let us ask what runs: NoConnection\."):
        one.run(study, tmp_path / "out", ["aachen", "bonn"], lambda status: None)


def test_who_is_refused_does_not_ask_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: Path) -> None:
    coordinator = Coordinator(tmp_path / "there", set())

    def refuse(folder: str) -> str:
        coordinator.calls += 1
        raise AuthorizationError("maria may not")

    coordinator.submit_job = refuse  # type: ignore[method-assign]
    one = researcher(tmp_path, monkeypatch, coordinator)
    with pytest.raises(FederationError, match=r"P603 The coordinator did not let us hand in a study: maria may not\."):
        one.run(study, tmp_path / "out", ["aachen", "bonn"], lambda status: None, patience=3600)
    assert coordinator.opened == 0
