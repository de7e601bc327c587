"""Secure sums between real processes with real certificates: the bytes of one machine, also where a site is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from elsewhere import Elsewhere, hospital_files, kill_processes
from helpers import write_table_study
from polyclinic import Study
from polyclinic.communication.message import Message
from polyclinic.engine.base import Reply
from polyclinic.errors import SiteError
from polyclinic.federation.audit_log import AUDIT_LOG, verify
from polyclinic.federation.kit import Kit
from polyclinic.federation.rehearse import all_parties
from polyclinic.federation.session import Researcher
from polyclinic.federation.watching.status import Status
from polyclinic.study.runner import run_study

pytest.importorskip("nvflare")
pytestmark = pytest.mark.long

SIZES = {"Aachen": 24, "Bonn": 30, "Celle": 26, "Dresden": 20}
#: The kit of Celle.
KILLED = "site-3"


class Hospitals:
    """All parties, and the table of which each site has its own rows."""

    def __init__(self, folder: Path, researcher: Researcher) -> None:
        self.folder, self.researcher = folder, researcher

    def study(self, name: str, channel: list[str], rounds: int) -> Path:
        entries = write_table_study(self.folder / "all", SIZES) | {"study": name, "seeds": [0]}
        entries["evaluation"] |= {"predictions": "sites", "bootstrap": 0, "holdout": 0.3, "best_round": "last"}
        entries["evaluation"].pop("folds")
        entries["training"] = {"rounds": rounds, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.02}}, "quorum": 3}
        entries["methods"] = [{"fedavg": {"channel": channel, "label": "trained"}}]
        path = self.folder / "all" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(entries))
        return path


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sums")
    files = hospital_files(folder, SIZES)
    for entries in files.values():
        entries["policy"] = {**entries["policy"], "protection": ["secure_sum"]}
    with all_parties(folder / "kits", files) as researcher:
        yield Hospitals(folder, researcher)


class Without(Elsewhere):
    """Sites on this machine, one of which is missing in some rounds."""

    def __init__(self, folders: Mapping[str, Path], rounds: set[int]) -> None:
        super().__init__(folders)
        self.rounds = rounds

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        for site, reply in super().call(function, requests):
            gone = function == "train" and site == "Celle" and requests[site].fields["round"] in self.rounds
            yield site, SiteError("P402", f"{site} is away.", site=site) if gone else reply


def model(results: Path) -> torch.Tensor:
    (path,) = (results / "models").rglob("*.safetensors")
    found = load_file(path)
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def test_results_are_those_of_one_machine_and_of_a_plain_mean(hospitals: Hospitals, tmp_path: Path) -> None:
    study = hospitals.study("summed", ["secure_sum"], 3)
    researcher = hospitals.researcher
    researcher.run(study, tmp_path / "there", researcher.sites(), lambda now: None)
    here = Study.read(study).run(tmp_path / "here").folder
    assert torch.equal(model(tmp_path / "there"), model(here))
    assert (tmp_path / "there" / "results.csv").read_bytes() == (here / "results.csv").read_bytes()
    plain = Study.read(hospitals.study("plain", [], 3)).run(tmp_path / "plain").folder
    torch.testing.assert_close(model(here), model(plain), rtol=0, atol=1e-6)
    for party in ("site-1", "site-4"):
        kit = hospitals.folder / "kits" / party
        assert verify(kit).lines
        lines = list(map(json.loads, (kit / AUDIT_LOG).read_text().splitlines()))
        assert [line["hidden_by"] for line in lines if line.get("function") == "train"] == [["secure_sum"]] * 3


def test_while_a_site_is_killed_the_sum_is_that_of_the_others(hospitals: Hospitals, tmp_path: Path) -> None:
    study, killed = hospitals.study("killed", ["secure_sum"], 80), list[int]()

    def kill(now: Status) -> None:
        if not killed and now.round >= 5:
            killed.extend(kill_processes(Kit.read(hospitals.folder / "kits" / KILLED, "site"), job_only=True))

    researcher = hospitals.researcher
    researcher.run(study, tmp_path / "there", researcher.sites(), kill, 120.0)
    assert killed
    took_part = pd.read_csv(tmp_path / "there" / "rounds.csv").groupby("round")["site"].agg(set)
    without = {number for number, sites in took_part.items() if sites == {*SIZES} - {"Celle"}}
    assert len(took_part) == 80
    assert without
    assert all(sites == {*SIZES} for number, sites in took_part.items() if number not in without)
    folders = {site: hospitals.folder / "all" / f"at {site}" for site in SIZES}
    run_study(Study.read(study), tmp_path / "here", engine=Without(folders, without))
    assert torch.equal(model(tmp_path / "there"), model(tmp_path / "here"))
