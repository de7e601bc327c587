"""Studies between real processes with real certificates: the same bytes as on one machine, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from elsewhere import hospital_files, kill_processes
from helpers import write_table_study
from polyclinic import Study
from polyclinic.errors import FederationError, SiteError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.rehearse import RESEARCHER, all_parties
from polyclinic.federation.session import Researcher
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.federation.watching.status import Status

pytest.importorskip("nvflare")
pytestmark = pytest.mark.long

SIZES = {"Aachen": 24, "St. Bonn": 30, "Celle": 26}
#: What has one number in each run and another in each way of running: times.
TIMES = ["seconds"]


class Hospitals:
    """All parties, and the table of which each site has its own rows."""

    def __init__(self, folder: Path, researcher: Researcher) -> None:
        self.folder, self.researcher = folder, researcher
        self.parties = [f"site-{number}" for number in range(1, 4)]
        self._count = 0

    def study(self, **changes: Any) -> Path:
        entries = write_table_study(self.folder / "all", SIZES)
        entries["evaluation"] |= {"predictions": "sites", "bootstrap": 100}
        entries |= {"methods": ["fedavg"]} | changes
        self._count += 1
        entries["study"] = f"Study {self._count}"
        path = self.folder / "all" / f"study{self._count}.yaml"
        path.write_text(yaml.safe_dump(entries))
        return path

    def run(self, study: Path, out: Path) -> list[Status]:
        told = list[Status]()
        self.researcher.run(study, out, self.parties, told.append)
        return told

    def kit(self, party: str) -> Path:
        return self.folder / "kits" / party

    def rule(self, party: str, **policy: Any) -> None:
        path = self.kit(party) / "local" / SITE_FILE
        entries = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(entries | {"policy": {"patients": 1, "floor": 1} | policy}))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hospitals")
    with all_parties(folder / "kits", hospital_files(folder, SIZES)) as researcher:
        yield Hospitals(folder, researcher)


def test_results_are_those_of_one_machine_byte_for_byte(hospitals: Hospitals, tmp_path: Path) -> None:
    # No site lets its own part of a model leave.
    methods = ["single", "fedavg", {"fedprox": {"mu": 0.1}}, "fedbn", "scaffold",
               {"fedavg": {"label": "trimmed", "server": {"trimmed_mean": {"trim": 1}}}}]  # fmt: skip
    study = hospitals.study(methods=methods)
    told = hospitals.run(study, tmp_path / "there")
    here = Study.read(study).run(tmp_path / "here").folder
    there = tmp_path / "there"
    alike = {path.name for path in here.glob("*.csv")} - {"rounds.csv"}
    assert {"results.csv", "summary.csv", "comparisons.csv", "score_counts.csv"} <= alike
    for name in sorted(alike):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    tables = [pd.read_csv(folder / "rounds.csv").drop(columns=TIMES) for folder in (here, there)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert (there / "report.html").is_file()
    assert not (there / "sites").exists()  # pseudonyms, checkpoints and predictions stay there
    assert (hospitals.kit("site-1") / "studies").is_dir()
    assert told
    assert told[-1].jobs == 12
    hospitals.run(study, tmp_path / "again")  # it is over: nothing is trained again, and the times are the same
    assert (tmp_path / "again" / "rounds.csv").read_bytes() == (there / "rounds.csv").read_bytes()
    for text in (there / "report.html", there / "notes.json", there / "provenance.json"):
        assert str(hospitals.folder) not in text.read_text(encoding="utf-8")


def test_a_site_refuses_what_its_policy_does_not_allow(hospitals: Hospitals, tmp_path: Path) -> None:
    study = hospitals.study(methods=["fedavg", "scaffold"])
    hospitals.rule("site-2", methods=["fedavg"], rounds=2)
    try:
        with pytest.raises(FederationError, match=r"P604 Site Celle does not take part: the method scaffold is not "
                           r"allowed; 3 rounds are more than 2\. Change the study"):  # fmt: skip
            hospitals.run(study, tmp_path / "out")
    finally:
        hospitals.rule("site-2")
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_researcher_of_another_consortium_is_nobody(hospitals: Hospitals, tmp_path: Path) -> None:
    about = yaml.safe_load((hospitals.folder / "kits" / "consortium.yaml").read_text())
    kits = make_kits(Consortium.model_validate(about), tmp_path / "kits")  # the same names, other keys
    with (
        pytest.raises(FederationError, match="P603 The coordinator does not answer"),
        Researcher.connect(Kit.read(kits[RESEARCHER], "researcher"), seconds=1.0),
    ):
        pass


def test_a_job_with_code_is_refused(hospitals: Hospitals, tmp_path: Path) -> None:
    from polyclinic.federation.job import write_job

    study, session = hospitals.study(), hospitals.researcher._session
    jobs = {name: tmp_path / name for name in ("class", "code")}
    for job in jobs.values():
        write_job(job, study.read_text(), hospitals.parties)
    path = jobs["class"] / "site" / "config" / "config_fed_client.json"
    content = json.loads(path.read_text())
    content["components"][0]["path"] = "polyclinic.study.study.Study"
    path.write_text(json.dumps(content))
    (jobs["code"] / "site" / "custom").mkdir()
    (jobs["code"] / "site" / "custom" / "own.py").write_text("raise SystemExit")
    for job in jobs.values():
        name = session.submit_job(str(job))
        state = session.wait_for_job(name, timeout=90, poll_interval=0.5)
        assert state["status"].startswith("FINISHED:"), job
        assert "COMPLETED" not in state["status"], job
        assert not list(hospitals.folder.rglob("own.py"))


def test_a_site_that_is_killed_is_named(hospitals: Hospitals, tmp_path: Path) -> None:
    """Last in this file: a site is missing afterwards."""
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    study = hospitals.study(training={"rounds": 400, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.1}}})
    killed = list[int]()

    def kill(now: Status) -> None:
        if not killed and now.round > 3:
            killed.extend(kill_processes(Kit.read(hospitals.kit("site-3"), "site"), job_only=True))

    with pytest.raises(SiteError, match=r"P402 Site St\. Bonn"):
        hospitals.researcher.run(study, tmp_path / "out", hospitals.parties, kill)
    assert killed
