"""A public set between hospitals: each party has a copy of its own, and all must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from safetensors.torch import save_file
from test_conduct import World

from elsewhere import split_table
from helpers import write_table_study
from polyclinic import Study
from polyclinic.errors import DataError
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.job import COPIES
from polyclinic.federation.kits import make_kits
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.files import write_atomic
from polyclinic.models import build_model
from polyclinic.study import runner
from polyclinic.study.opening import _own_copy

pytest.importorskip("nvflare")

SIZES = {"Aachen": 20, "Bonn": 24, "Celle": 22}
TAUGHT = {"public_teacher": {"weights": "shared/teacher.safetensors", "label": "taught"}}


@pytest.fixture
def consortium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kits of a coordinator and three sites, each with a table and a copy of the public set, and a study."""
    monkeypatch.setattr(runner, "write_report", lambda folder: write_atomic(folder / "report.html", "Short."))
    folder = tmp_path / "consortium"
    (folder / "all" / "shared").mkdir(parents=True)
    entries = write_table_study(folder / "all", SIZES | {"away": 15})
    table = pd.read_csv(folder / "all" / "cases.csv", dtype=str)
    away = table["site"] == "away"
    table[away][["x0", "x1", "x2"]].to_csv(folder / "all" / "shared" / "public.csv", index=False)
    table[~away].to_csv(folder / "all" / "cases.csv", index=False)
    own = split_table(folder / "all")
    entries["data"]["public"] = "shared/public.csv"
    entries["training"]["rounds"] = 2
    entries["evaluation"] |= {"predictions": "sites", "bootstrap": 0, "holdout": 0.3}
    entries["evaluation"].pop("folds", None)
    network = build_model("mlp", entries["model"]["mlp"], (3,), 2, seed=5)
    state = {name: value.clone() for name, value in network.module.state_dict().items()}
    save_file(state, folder / "all" / "shared" / "teacher.safetensors")
    write_study(folder, entries)
    parties = [f"site-{number}" for number in range(1, 4)]
    about = {"consortium": "a", "coordinator": {"host": "localhost"}, "sites": parties, "researchers": ["a@b.org"]}
    kits = make_kits(Consortium.model_validate(about), folder / "kits")
    for party, name in zip(parties, sorted(own), strict=True):
        copy = kits[party] / "copy"
        copy.mkdir()
        (copy / "public.csv").write_bytes((folder / "all" / "shared" / "public.csv").read_bytes())
        site = {"name": name, "device": "cpu", "data": {"cases.csv": str(own[name] / "cases.csv"), "shared": "../copy"}}
        (kits[party] / "local" / SITE_FILE).write_text(yaml.safe_dump(site | {"policy": {"patients": 1, "floor": 1}}))
    return folder


def write_study(folder: Path, entries: dict[str, Any], **changes: Any) -> None:
    methods = ["fedmd", {"feddf": {"steps": 3, "label": "feddf"}}, TAUGHT]
    (folder / "all" / "study.yaml").write_text(yaml.safe_dump(entries | {"methods": methods} | changes))


def entries_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "all" / "study.yaml").read_text())
    return found


def give_copy(world: World, consortium: Path) -> Path:
    """The coordinator's own copy."""
    folder = world.kits / "coordinator" / COPIES / "shared"
    folder.mkdir(parents=True)
    for path in (consortium / "all" / "shared").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def change_policy(world: World, number: int, **changes: Any) -> None:
    path = world.kits / f"site-{number}" / "local" / SITE_FILE
    site = yaml.safe_load(path.read_text())
    site["policy"] |= changes
    path.write_text(yaml.safe_dump(site))


def failure_of(world: World) -> tuple[str, str]:
    outcome = world.conduct(0).run()
    assert outcome.state == "failed", outcome
    return outcome.failure["code"], outcome.failure["message"]


def test_a_study_is_that_of_one_machine(consortium: Path, tmp_path: Path) -> None:
    here = Study.read(consortium / "all" / "study.yaml").run(tmp_path / "here").folder
    world = World(consortium, tmp_path / "there", 0, [])
    give_copy(world, consortium)
    there = world.run()
    for path in here.glob("*.csv"):
        if path.name != "rounds.csv":
            assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    assert "public set,found" in (there / "flow.csv").read_text()


def test_sites_can_have_networks_of_their_own(consortium: Path, tmp_path: Path) -> None:
    networks = {"Bonn": "logistic", "Celle": {"mlp": {"hidden": [4, 3]}}}
    methods = ["cross", "ensemble", {"fedmd": {"label": "fedmd"}}, {"feddf": {"steps": 3, "label": "feddf"}}]
    write_study(consortium, entries_of(consortium), methods=methods, networks=networks)
    here = Study.read(consortium / "all" / "study.yaml").run(tmp_path / "here").folder
    world = World(consortium, tmp_path / "there", 0, [])
    for number in (1, 2, 3):
        change_policy(world, number, personal_models=True)  # for `cross` and `ensemble`
    give_copy(world, consortium)
    there = world.run()
    for path in here.glob("*.csv"):
        if path.name != "rounds.csv":
            assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    assert not list((there / "models").glob("fedmd*"))  # networks stay at their sites
    (shared,) = (path.relative_to(there) for path in (there / "models").glob("feddf*"))
    assert (here / shared).read_bytes() == (there / shared).read_bytes()


def test_a_site_can_refuse_a_network_of_another(consortium: Path, tmp_path: Path) -> None:
    write_study(consortium, entries_of(consortium), methods=["fedmd"], networks={"Bonn": "logistic"})
    world = World(consortium, tmp_path / "there", 0, [])
    change_policy(world, 1, models=["mlp"])
    code, message = failure_of(world)
    assert code == "P604"
    assert "Aachen does not take part: the model logistic is not allowed" in message


def test_another_copy_is_told_with_its_site(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path / "there", 0, [])
    give_copy(world, consortium)
    path = world.kits / "site-2" / "copy" / "public.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    code, message = failure_of(world)
    assert code == "P211"
    assert "the coordinator uses 15 of 15 cases, and others are at Bonn (14 of 14 cases used)" in message


def test_a_site_without_a_copy_is_named(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path / "there", 0, [])
    give_copy(world, consortium)
    (world.kits / "site-3" / "copy" / "public.csv").unlink()
    code, message = failure_of(world)
    assert code == "P201"
    assert "Celle" in message
    assert "public set" in message
    assert str(tmp_path) not in message


def test_the_coordinator_needs_a_copy_where_something_is_computed_there_alone(consortium: Path, tmp_path: Path) -> None:
    code, message = failure_of(World(consortium, tmp_path / "there", 0, []))
    assert code == "P211"
    assert message.startswith("The coordinator has no copy of the public set that fits.")
    write_study(consortium, entries_of(consortium), methods=["fedmd"])
    assert World(consortium, tmp_path / "without", 0, []).conduct(0).run().state == "finished"


def test_policies_can_refuse_it(consortium: Path, tmp_path: Path) -> None:
    world = World(consortium, tmp_path / "there", 0, [])
    give_copy(world, consortium)
    change_policy(world, 1, public=False)
    code, message = failure_of(world)
    assert code == "P604"
    assert "Aachen does not take part: it has a public set (`data: {public: ...}`)" in message


def test_a_site_of_the_study_can_not_be_given_to_all(consortium: Path, tmp_path: Path) -> None:
    entries = entries_of(consortium)
    entries["data"]["public"] = {"sites": ["Celle"]}
    write_study(consortium, entries)
    code, message = failure_of(World(consortium, tmp_path / "there", 0, []))
    assert code == "P104"
    assert "gives all parties the cases of a site" in message


@pytest.mark.parametrize("path", ["../public.csv", "/etc/passwd"])
def test_nothing_outside_the_folders_is_read(consortium: Path, tmp_path: Path, path: str) -> None:
    entries = entries_of(consortium)
    entries["data"]["public"] = path
    write_study(consortium, entries, methods=[{"feddf": {"steps": 1}}])
    code, message = failure_of(World(consortium, tmp_path / "there", 0, []))
    assert code == "P201"
    assert "names a place outside the folder of site" in message
    study = Study.read(consortium / "all" / "study.yaml", named=True)
    engine = World(consortium, tmp_path / "again", 0, []).conduct(0).engine
    with pytest.raises(DataError, match=r"P211.*outside the coordinator's folder"):
        _own_copy(study, None, engine)  # type: ignore[arg-type]
