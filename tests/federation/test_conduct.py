"""Whole studies between ends that are objects here, with kits, policies and audit logs, under faults."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from elsewhere import split_table
from faults import PATIENCE, Faults, FaultyParty, Killed, SiteProcess, drawing, failing_writes
from helpers import write_table_study
from polyclinic import Model, Study
from polyclinic.federation.audit_log import verify
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.kits import make_kits
from polyclinic.federation.remote.calls import Pieces
from polyclinic.federation.remote.wire import Failure
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.federation.watching.status import Outcome
from polyclinic.files import write_atomic
from polyclinic.site.model_part import PART, ModelPart
from polyclinic.study import runner
from polyclinic.study.final_model.folder import DESCRIPTION, PREPARATION, VECTORS, WEIGHTS

pytest.importorskip("nvflare")

SIZES = {"Aachen": 20, "St. Bonn": 24, "Celle": 22}
KINDS = [
    "lose the call", "lose the answer", "duplicate", "replay a call", "replay an answer", "corrupt the call",
    "corrupt the answer", "corrupt the envelope", "jump", "kill before", "kill after", "fill the disk",
    "tear a write", "kill at a write", "kill a site at a write",
]  # fmt: skip


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of a coordinator and three sites with a table each, and a study."""
    folder = tmp_path_factory.mktemp("consortium")
    (folder / "all").mkdir()
    entries = write_table_study(folder / "all", SIZES)
    own = split_table(folder / "all")
    entries |= {"methods": ["fedavg", "scaffold"], "seeds": [0]}
    entries["evaluation"] |= {"predictions": "sites", "bootstrap": 0, "holdout": 0.3}
    entries["data"]["harmonisation"] = "combat"
    entries["evaluation"].pop("folds", None)
    (folder / "all" / "study.yaml").write_text(yaml.safe_dump(entries))
    parties = [f"site-{number}" for number in range(1, 4)]
    about = {"consortium": "a", "coordinator": {"host": "localhost"}, "sites": parties, "researchers": ["a@b.org"]}
    kits = make_kits(Consortium.model_validate(about), folder / "kits")
    for party, name in zip(parties, sorted(own), strict=True):
        site = {"name": name, "device": "cpu", "data": {"cases.csv": str(own[name] / "cases.csv")}}
        (kits[party] / "local" / SITE_FILE).write_text(yaml.safe_dump(site | {"policy": {"patients": 1, "floor": 1}}))
    return folder


class World:
    """A study in a consortium: runs of it, each with processes of its own, until it is over."""

    def __init__(self, consortium: Path, folder: Path, seed: int, kinds: list[str], study: Path | None = None) -> None:
        self.study = study or consortium / "all" / "study.yaml"
        self.kits = folder / "kits"
        shutil.copytree(consortium / "kits", self.kits)
        draw = drawing(seed)
        self.faults = Faults(draw, kinds, draw.randint(1, 6) if kinds else 0)
        self.old: list[tuple[Any, Any]] = []
        self.outcomes: list[Outcome] = []

    def conduct(self, number: int) -> Any:
        from polyclinic.federation.ends.coordinator import Conduct

        parties = {}
        for party in sorted(path.name for path in self.kits.glob("site-*")):
            process = SiteProcess(party, f"run {number}", lambda party=party: self.start(party))
            parties[party] = FaultyParty(process, self.faults, self.old)
        return Conduct(
            self.kits / "coordinator", self.study, f"run {number}", sorted(parties), parties, "a@b.org", PATIENCE
        )

    def start(self, party: str) -> Any:
        from polyclinic.federation.ends.site import Member, answered

        members: list[Member] = []

        def answer(function: str, message: Pieces) -> Pieces:
            def now() -> Pieces:
                if not members:
                    members.append(Member(self.kits / party, party, self.study, "a@b.org"))
                return members[0].answer(function, message)

            return answered(party, function, now)

        return answer

    def run(self) -> Path:
        """Run it until it is over; its results."""
        for number in range(12):
            conduct = self.conduct(number)
            try:
                with failing_writes(self.faults, self.kits):
                    self.outcomes.append(conduct.run())
            except Killed:
                continue
            if self.outcomes[-1].state == "finished":
                return Path(conduct.results)
        raise AssertionError(f"it does not end: {self.faults.happened} {self.outcomes}")


@pytest.fixture(scope="module")
def here(consortium: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study on one machine."""
    return Study.read(consortium / "all" / "study.yaml").run(tmp_path_factory.mktemp("here") / "out").folder


def check(consortium: Path, here: Path, folder: Path, seed: int, kinds: list[str]) -> World:
    world = World(consortium, folder, seed, kinds)
    there = world.run()
    why = f"seed {seed}: {world.faults.happened}"
    for path in here.glob("*.csv"):
        if path.name != "rounds.csv":
            assert path.read_bytes() == (there / path.name).read_bytes(), f"{why}, {path.name}"
    for kit in world.kits.glob("[cs]*"):
        if (kit / "startup").is_dir():
            assert verify(kit).lines
    for outcome in world.outcomes[:-1]:
        error = Failure.model_validate(outcome.failure).error("")
        assert error.code in {"P401", "P402", "P502"}, f"{why}: {error}"
    return world


def test_a_study_is_that_of_one_machine(consortium: Path, here: Path, tmp_path: Path) -> None:
    world = check(consortium, here, tmp_path, 0, [])
    assert [outcome.state for outcome in world.outcomes] == ["finished"]


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is written, and has nothing in it: drawing it takes longer than the study."""
    monkeypatch.setattr(runner, "write_report", lambda folder: write_atomic(folder / "report.html", "Short."))


@pytest.mark.usefixtures("short_report")
@pytest.mark.parametrize("seed", range(1, 4))
def test_it_is_so_under_faults(consortium: Path, here: Path, tmp_path: Path, seed: int) -> None:
    check(consortium, here, tmp_path, seed, KINDS)


@pytest.mark.long
@pytest.mark.usefixtures("short_report")
def test_it_is_so_under_many(consortium: Path, here: Path, tmp_path: Path) -> None:
    for seed in range(10, 20):
        check(consortium, here, tmp_path / str(seed), seed, KINDS)


def test_sites_of_one_name_are_not_taken_for_each_other(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path, 0, [])
    path = world.kits / "site-2" / "local" / SITE_FILE
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"name": "Aachen"}))
    outcome = world.conduct(0).run()
    assert outcome.state == "failed"
    assert (outcome.failure["code"], outcome.failure["message"]) == ("P605", "Two sites are called Aachen.")


def test_a_site_of_another_version_is_named(
    consortium: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from polyclinic.federation.ends import site as site_end

    world = World(consortium, tmp_path, 0, [])
    monkeypatch.setattr(site_end, "version", lambda name: "0.0.1")
    outcome = world.conduct(0).run()
    assert outcome.state == "failed"
    assert "runs Polyclinic 0.0.1, and the coordinator" in outcome.failure["message"]


def test_a_study_does_not_begin_without_one_of_its_sites(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path, 0, [])
    conduct = world.conduct(0)
    conduct.parties.pop("site-3")
    outcome = conduct.run()
    assert (outcome.state, outcome.lost, outcome.failure["code"]) == ("lost", ["site-3"], "P402")
    assert not (conduct.results / "results.csv").exists()
    again = world.conduct(1)
    assert again.run().state == "finished"
    assert again.results == conduct.results


def test_calls_of_one_study_mean_nothing_to_another(consortium: Path, here: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    entries = yaml.safe_load((consortium / "all" / "study.yaml").read_text())
    other.write_text(yaml.safe_dump(entries | {"study": "Another", "methods": ["fedavg"], "seeds": [7]}))
    first = World(consortium, tmp_path / "first", 0, [], other)
    first.run()
    world = World(consortium, tmp_path / "second", 5, ["replay a call"])
    world.old, world.faults.left = first.old, 40
    there = world.run()
    assert len(world.faults.happened) > 5
    assert (here / "results.csv").read_bytes() == (there / "results.csv").read_bytes()
    folders = {path.name for path in (world.kits / "site-1" / "studies").iterdir()}
    assert len(folders) == 1
    assert not folders & {path.name for path in (first.kits / "site-1" / "studies").iterdir()}


def test_a_study_ends_with_the_model_of_one_machine(consortium: Path, tmp_path: Path) -> None:
    """What stays at the sites stays there: the model that comes to the researcher has none of it."""
    entries = yaml.safe_load((consortium / "all" / "study.yaml").read_text())
    entries |= {"methods": ["fedbn"], "final_model": "fedbn", "model": {"mlp": {"hidden": [5], "norm": "batch"}}}
    study = consortium / "all" / "model.yaml"
    study.write_text(yaml.safe_dump(entries))
    here = Study.read(study).run(tmp_path / "here").folder
    world = World(consortium, tmp_path, 0, [], study)
    there = world.run()
    for name in (DESCRIPTION, WEIGHTS, PREPARATION, VECTORS):
        assert (here / "model" / name).read_bytes() == (there / "model" / name).read_bytes(), name
    parts = list((world.kits).rglob(PART))
    assert {path.relative_to(world.kits).parts[0] for path in parts} == {"site-1", "site-2", "site-3"}
    mine = {path.read_bytes() for path in (here.parent / "here" / "model-sites").rglob(PART)}
    assert {path.read_bytes() for path in parts} == mine
    assert len(mine) == 3
    assert not list(there.rglob(PART))
    cases = pd.read_csv(consortium / "all" / "cases.csv")
    own = next(site for site in cases["site"].unique())
    rows = cases[cases["site"] == own]
    kept = next(path for path in parts if ModelPart.read(path).site == own)
    found = [Model(*where).predict(rows, own)["score"] for where in ((here / "model",), (there / "model", kept))]
    assert found[0].tolist() == found[1].tolist()
