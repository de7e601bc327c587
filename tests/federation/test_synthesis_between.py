"""Generators between hospitals: the study is that of one machine, also where parties are killed within a round."""

import json
from pathlib import Path

import pytest
import yaml
from test_conduct import KINDS, World, check, consortium  # noqa: F401 - the fixture

from polyclinic import Study
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.files import write_atomic
from polyclinic.study import runner

pytest.importorskip("nvflare")

OPTIONS = {"generator_rounds": 2, "steps": 3, "network_steps": 3, "batch_size": 6, "lr": 0.01, "latent": 4,
           "width": 4, "checked": 30, "label": "made"}  # fmt: skip
PARTS = {"asyndgan": "synthetic_cases", "fed_gan": "federated_gan"}


@pytest.fixture(params=PARTS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def study(consortium: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.setattr(runner, "write_report", lambda folder: write_atomic(folder / "report.html", "Short."))
    path = consortium / "all" / "study.yaml"
    entries = yaml.safe_load(path.read_text()) | {"methods": [{method: OPTIONS}]}
    entries["data"].pop("harmonisation", None)
    entries["training"]["rounds"] = 3
    entries["evaluation"]["validation"] = 0.3
    path.write_text(yaml.safe_dump(entries))
    return path


def test_a_study_is_that_of_one_machine_under_faults(consortium: Path, study: Path, tmp_path: Path) -> None:  # noqa: F811
    here = Study.read(study).run(tmp_path / "here").folder
    assert len((here / "memorisation.csv").read_text().splitlines()) == 4
    assert check(consortium, here, tmp_path / "disturbed", 1, KINDS).faults.happened


@pytest.mark.long
def test_it_is_so_under_many(consortium: Path, study: Path, tmp_path: Path) -> None:  # noqa: F811
    here = Study.read(study).run(tmp_path / "here").folder
    for seed in range(10, 20):
        check(consortium, here, tmp_path / str(seed), seed, KINDS)


def test_policies_can_refuse_it(consortium: Path, study: Path, method: str, tmp_path: Path) -> None:  # noqa: F811
    world = World(consortium, tmp_path / "there", 0, [])
    path = world.kits / "site-1" / "local" / SITE_FILE
    site = yaml.safe_load(path.read_text())
    site["policy"]["parts"] = ["proximal"]
    path.write_text(yaml.safe_dump(site))
    outcome = world.conduct(0).run()
    assert outcome.state == "failed"
    assert f"the part {PARTS[method]} is not allowed" in json.dumps(outcome.failure)
