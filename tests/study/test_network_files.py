"""Networks that methods read from files: what is known of those that ``polyclinic fit`` wrote is compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helpers import write_number_study, write_table_study
from polyclinic import Study
from polyclinic.errors import ModelError, StudyError
from polyclinic.study import runner
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import DESCRIPTION, WEIGHTS

SIZES = {"north": 24, "south": 20}


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda folder, out=None: folder / "report.html")


def study(folder: Path, weights: str = "model", **data: Any) -> dict[str, Any]:
    content = write_table_study(folder, SIZES, classes=3)
    content["data"] |= {"features": ["x0", "x1", "x2"]} | data
    content["training"] |= {"rounds": 1}
    content["evaluation"] = {"holdout": 0.3, "bootstrap": 0}
    return content | {"methods": [{"public_teacher": {"weights": weights, "label": "taught"}}]}


def fitted(folder: Path, content: dict[str, Any]) -> None:
    fit_model(Study.of(content | {"methods": ["fedavg"]}, folder), folder / "model", Wanted(rounds=1))


def notes(folder: Path) -> list[str]:
    return [note["text"] for note in json.loads((folder / "notes.json").read_text()) if note["number"] == "N274"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    fitted(folder, study(folder))
    return folder


def test_what_is_known_of_a_model_is_compared_and_its_weights_are_the_teachers(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher / "model", tmp_path / "model")
    shutil.copy(teacher / "model" / WEIGHTS, tmp_path / "alone.safetensors")
    for weights, known in (("model", True), (f"model/{WEIGHTS}", True), ("alone.safetensors", False)):
        out = tmp_path / f"out {known} {len(weights)}"
        Study.of(study(tmp_path, weights), tmp_path).run(out)
        found = notes(out)
        assert [("was not checked" in text) for text in found] == [True] * (not known)
    one, other, alone = (pd.read_csv(path).drop(columns="seconds") for path in sorted(tmp_path.glob("out*/rounds.csv")))
    assert one.equals(other)
    assert one.equals(alone)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"classes": ["kind 1", "kind 0", "kind 2"]},
         "its classes have another order, kind 0, kind 1, kind 2, than here, kind 1, kind 0, kind 2"),
        ({"features": ["x0", "x2", "x1"]}, "its features have another order, x0, x1, x2, than here, x0, x2, x1"),
        ({"scaling": "federated"}, "it had `scaling: per_site`, and here it is federated"),
        ({"imputation": "median"}, "it had `imputation: mean`, and here it is median"),
        ({"harmonisation": "combat"}, "it had `harmonisation: "),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)  # fmt: skip
@pytest.mark.parametrize("weights", ["model", f"model/{WEIGHTS}"])
def test_a_network_for_something_else_is_refused(
    teacher: Path, tmp_path: Path, weights: str, data: dict[str, Any], words: str
) -> None:  # fmt: skip
    shutil.copytree(teacher / "model", tmp_path / "model")
    with pytest.raises(StudyError, match="P212 taught learns from the network in") as refused:
        Study.of(study(tmp_path, weights, **data), tmp_path).run(tmp_path / "out")
    assert words in str(refused.value)
    assert not (tmp_path / "out" / "rounds.csv").exists()


def test_other_names_of_classes_are_told(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher / "model", tmp_path / "model")
    content = study(tmp_path)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    table["diagnosis"] = table["diagnosis"].str.replace("kind", "stage")
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(StudyError, match=r"P212.*its classes are kind 0, kind 1, kind 2, and here they are stage 0, "):
        Study.of(content, tmp_path).run(tmp_path / "out")


def test_numbers_of_other_sites_are_noted(tmp_path: Path) -> None:
    """With one scale for all, and with numbers to be predicted, a teacher's units are those of its own cases."""
    content = write_number_study(tmp_path, SIZES)
    content["data"] |= {"scaling": "federated"}
    content |= {"methods": [{"public_teacher": {"weights": "model"}}]}
    content["training"] |= {"rounds": 1}
    content["evaluation"] = {"holdout": 0.3, "bootstrap": 0}
    fitted(tmp_path, content)
    Study.of(content, tmp_path).run(tmp_path / "out")
    (text,) = notes(tmp_path / "out")
    assert "Its inputs were brought to the numbers of the sites that trained it" in text
    assert "It tells numbers by how many deviations of " in text


def test_a_damaged_folder_is_refused(teacher: Path, tmp_path: Path) -> None:
    for name, words in ((WEIGHTS, "damaged or was changed"), (DESCRIPTION, "has no entries")):
        shutil.copytree(teacher / "model", tmp_path / "model", dirs_exist_ok=True)
        path = tmp_path / "model" / name
        path.write_bytes(path.read_bytes() if name == WEIGHTS else b"nothing")
        if name == WEIGHTS:  # the same tensors, other numbers
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        with pytest.raises(ModelError, match=f"P701.*{words}"):
            Study.of(study(tmp_path), tmp_path).run(tmp_path / f"out {name}")
