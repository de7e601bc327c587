"""Studies in which sites have networks of their own: what is read, run, written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import safe_open
from test_public_studies import bytes_of, table_study

from elsewhere import Elsewhere, split_table
from helpers import declare
from polyclinic import Study
from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.models import build_model
from polyclinic.study import runner
from polyclinic.study.runner import run_study

NETWORKS: dict[str, Any] = {"north": "logistic", "east": {"mlp": {"hidden": [4, 3]}}}
METHODS: list[Any] = [
    "single", "cross", "ensemble", "mix", {"fedmd": {"label": "fedmd"}}, {"feddf": {"steps": 4, "label": "feddf"}},
]  # fmt: skip


def own_study(folder: Path, **changes: Any) -> dict[str, Any]:
    entries = {"methods": METHODS, "networks": NETWORKS, "evaluation": {"holdout": 0.3, "bootstrap": 0}}
    return table_study(folder, **(entries | changes))


def parameters_in(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Site -> numbers of its network in a file of models; and what the file says of itself."""
    found: dict[str, int] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            site = name.split("/")[0]
            found[site] = found.get(site, 0) + file.get_tensor(name).numel()
        return found, json.loads(file.metadata()["about"])


def test_a_whole_study(tmp_path: Path) -> None:
    content = own_study(tmp_path)
    content["evaluation"] |= {"unseen_sites": ["fedmd"]}
    study = Study.of(content, tmp_path)
    study.run(tmp_path / "out")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["value"].notna().all()
    unseen = results[results["run"] == "unseen"]
    assert set(unseen["tested_on"]) == {"north", "south", "east", "all"}
    found, about = parameters_in(tmp_path / "out" / "models" / "fedmd-seed0-fold0.safetensors")
    outputs = 2
    sizes = {}
    for site in ("north", "south", "east"):
        name, options = study.declaration.own_networks.get(site, study.declaration.model_part)
        sizes[site] = build_model(name, options, (3,), outputs).layout.size
    assert found == sizes
    assert len(set(sizes.values())) == 3
    assert set(about["networks"]) == {"north", "east"}
    assert "networks" not in parameters_in(tmp_path / "out" / "models" / "mix-seed0-fold0.safetensors")[1]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Networks of single sites" in report
    assert "other networks at north: logistic" in report
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv")
    assert rounds[rounds["method"] == "fedmd"]["bytes_up"].nunique() == 1  # logits alone, whatever the network


def test_a_model_for_each_network_here_and_at_sites_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    methods = ["single", {"feddf": {"steps": 4, "label": "feddf"}}]
    content = own_study(tmp_path, methods=methods, networks={"north": "logistic", "south": "logistic"})
    content["evaluation"] |= {"unseen_sites": ["feddf"], "predictions": "coordinator"}
    Study.of(content, tmp_path).run(tmp_path / "out")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    mine = results[results["method"] == "feddf"]
    assert mine["value"].notna().all()
    assert set(mine["trained_on"]) == {"federation"}
    assert set(mine[mine["run"] == "unseen"]["tested_on"]) == {"north", "south", "east", "all"}
    found, about = parameters_in(tmp_path / "out" / "models" / "feddf-seed0-fold0.safetensors")
    assert about["networks"]["network 1"] == ["logistic", {"norm": "none"}]
    assert list(about["networks"]) == list(found) == ["federation", "network 1"]
    assert found["network 1"] == 3 * 2 + 2
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv")
    sent = rounds[(rounds["method"] == "feddf") & (rounds["run"] == "plain")].groupby("site")["bytes_up"].max()
    assert sent["north"] == sent["south"] < sent["east"]
    folders = split_table(tmp_path)
    for folder in folders.values():
        (folder / "public.csv").write_bytes((tmp_path / "public.csv").read_bytes())
    run_study(Study.of(content, tmp_path), tmp_path / "there", engine=Elsewhere(folders, tmp_path / "sites"))
    for name in ("predictions.csv", "models/feddf-seed0-fold0.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_training_begins_where_it_does_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server computes with the networks of sites: what is left in them is no first state of the next training."""
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    first, second = ({"feddf": {"steps": steps, "label": f"with {steps}"}} for steps in (4, 2))
    content = own_study(tmp_path, methods=[second])
    Study.of(content, tmp_path).run(tmp_path / "alone")
    Study.of(content | {"methods": [first, second]}, tmp_path).run(tmp_path / "after")
    alone, after = bytes_of(tmp_path / "alone"), bytes_of(tmp_path / "after")
    (model,) = [name for name in alone if name.startswith("models/")]
    assert alone[model] == after[model]


def test_sites_that_train_nothing_have_no_say_in_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    content = own_study(tmp_path, methods=["feddf"], networks={"north": "logistic"})
    content["evaluation"] |= {"voters": ["east"]}
    result = Study.of(content, tmp_path).run(tmp_path / "out")
    (note,) = [str(one) for one in result.notes if one.number == "N266"]
    assert "Not for feddf: there are several models." in note


def test_a_filled_study_is_the_same_study(tmp_path: Path) -> None:
    declaration = Study.of(own_study(tmp_path), tmp_path).declaration
    again = Study.of(declaration.filled(), tmp_path).declaration
    assert again.own_networks == declaration.own_networks
    assert set(again.own_networks) == {"north", "east"}
    assert "networks" not in Study.of(own_study(tmp_path, networks={}), tmp_path).declaration.filled()


def test_the_studys_network_named_for_all_sites_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    content = own_study(tmp_path, networks={}, methods=[*METHODS, "fedavg"])
    Study.of(content, tmp_path).run(tmp_path / "one")
    content["networks"] = dict.fromkeys(("north", "south", "east"), content["model"])
    Study.of(content, tmp_path).run(tmp_path / "other")
    one, other = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "other")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.long
@pytest.mark.parametrize("way", ["side by side", "processes"])
def test_other_ways_to_run_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    methods = ["cross", {"fedmd": {"label": "fedmd"}}, {"feddf": {"steps": 4, "label": "feddf"}}]
    content = own_study(tmp_path, methods=methods, engine={"mode": "sequential"})
    Study.of(content, tmp_path).run(tmp_path / "one")
    if way == "processes":
        content["engine"] = {"mode": "processes", "workers": 2}
    Study.of(content, tmp_path).run(tmp_path / way, jobs=2 if way == "side by side" else None)
    one, other = bytes_of(tmp_path / "one"), bytes_of(tmp_path / way)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_values_can_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    search = {"trials": 2, "methods": {"fedmd": {"weight": [1.0, 2.0]}}}
    content = own_study(tmp_path, methods=[{"fedmd": {"label": "fedmd"}}], search=search)
    content["evaluation"] |= {"validation": 0.3}
    Study.of(content, tmp_path).run(tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "search.csv")) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"networks": {"west": "logistic"}}, "P103.*`networks: ...` names the site 'west'"),
        ({"networks": {"north": "logitsic"}}, "P103.*logitsic"),
        ({"networks": {"north": {"mlp": {"hiden": [4]}}}}, "hiden"),
        ({"networks": {"north": "auto"}}, "P104.*`auto` is planned for all sites"),
        ({"networks": {"north": {"bundle": {"path": "bundles/a"}}}}, "P104.*`bundle` brings its weights to all sites"),
        ({"networks": {"north": "max_pooling"}}, "P104.*for bags|P102"),
        ({"networks": {"north": "unet"}}, "P302"),
        ({"networks": ["north"]}, "P102"),
        ({"methods": ["fedavg"]}, "P104.*no weights can be put together"),
        ({"final_model": "ensemble"}, "P104.*networks of all sites, which differ"),
        ({"final_model": "fedmd"}, "P104.*trains a model at each site"),
        ({"methods": ["feddf"], "final_model": "feddf"}, "P104.*a model for each network of the sites"),
        (
            {"methods": ["feddf"], "attack": {"sites": ["north"], "sign_flip": {}}},
            "P104.*updates of one network",
        ),
        (
            {"methods": [{"feddf": {"server": ["ensemble_distillation", "trimmed_mean"]}}]},
            "P104.*needs the answers of 3 sites with the same network.*there is 1",
        ),
        ({"evaluation": {"holdout": 0.3, "voters": ["north"]}}, "P104.*`networks` names north, which trains nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PolyclinicError, match=words):
        Study.of(own_study(tmp_path, **changes), tmp_path).run(tmp_path / "out")
    assert not (tmp_path / "out" / "results.csv").exists()


def test_mix_can_be_the_final_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    Study.of(own_study(tmp_path, methods=["mix", "fedmd"], final_model="mix"), tmp_path).run(tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.yaml").is_file()


def test_a_program_can_give_the_network_of_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    monkeypatch.setattr(runner, "write_report", lambda folder: None)
    content = own_study(tmp_path, methods=[{"fedmd": {"label": "fedmd"}}])
    content["networks"] = {"north": lambda shape, outputs: nn.Sequential(nn.Linear(shape[0], 5), nn.Linear(5, outputs))}
    Study.of(content, tmp_path).run(tmp_path / "out")
    found, _ = parameters_in(tmp_path / "out" / "models" / "fedmd-seed0-fold0.safetensors")
    assert found["north"] == 3 * 5 + 5 + 5 * 2 + 2


def test_methods_that_share_weights_say_which_can(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="single, cross, ensemble, fedmd, feddf, fedad"):
        declare(model="logistic", networks={"A": {"mlp": {"hidden": [3]}}}, methods=["fedprox"])


def test_a_site_whose_letters_are_encoded_in_another_way(tmp_path: Path) -> None:
    """macOS writes ü as u and two dots; a hint that shows twice the same name helps nobody."""
    content = own_study(tmp_path, networks={"no\u0308rth": "logistic"}, methods=["single"])
    table = tmp_path / content["data"]["table"]
    table.write_text(table.read_text(encoding="utf-8").replace("north", "n\u00f6rth"), encoding="utf-8")
    with pytest.raises(StudyError, match=r"P103 .* Its letters are encoded in another way than those of 'nörth'"):
        Study.of(content | {"networks": {"no\u0308rth": "logistic"}}, tmp_path).run(tmp_path / "out")
