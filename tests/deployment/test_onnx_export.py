"""Models as ONNX files: other programs get from them what ``polyclinic predict`` says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deployment.round_trips import table_study, write_tables
from deployment.test_image_models import picture_study, write_pictures
from polyclinic import cli
from polyclinic.deployment.export import onnx
from polyclinic.deployment.export.about import model_page
from polyclinic.deployment.export.front import Front
from polyclinic.deployment.export.served import Served
from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.errors import ModelError, TrainingError
from polyclinic.study.final_model.description import Calibration
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import Model, read_model
from polyclinic.study.study import Study

#: Runs a file on inputs that were saved beside it, where there is no Polyclinic.
RUN = """
import sys, json, numpy, onnxruntime
page = json.load(open("model.json"))
session = onnxruntime.InferenceSession(page["file"]["name"], providers=["CPUExecutionProvider"])
found = session.run([page["outputs"]["name"]], {page["inputs"]["name"]: numpy.load("inputs.npy")})[0]
numpy.save("found.npy", found)
assert not [name for name in sys.modules if name.startswith(("polyclinic", "torch"))]
"""


def run_elsewhere(folder: Path, inputs: np.ndarray) -> np.ndarray:
    np.save(folder / "inputs.npy", inputs)
    subprocess.run([sys.executable, "-c", RUN], cwd=folder, check=True, timeout=120)
    found: np.ndarray = np.load(folder / "found.npy")
    return found


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of tables that are scaled alike at all sites, in the folder ``model``."""
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    study = table_study(data={"scaling": "federated"}, training={"rounds": 2})
    fit_model(Study.of(study, folder), folder / "model", Wanted(rounds=2))
    return folder


@pytest.fixture
def model(tables: Path) -> Model:
    return read_model(tables / "model", check=False)


def changed(model: Model, data: dict[str, Any] | None = None, **changes: Any) -> Model:
    """The model with another description."""
    described = model.description
    if data is not None:
        changes["data"] = described.data.model_copy(update=data)
    return replace(model, description=described.model_copy(update=changes))


def test_a_table_model_predicts_elsewhere_what_it_predicts_here(tables: Path, model: Model, tmp_path: Path) -> None:
    onnx.export_onnx(model, tmp_path / "out", licence="CC-BY-4.0")
    page = json.loads((tmp_path / "out" / "model.json").read_text())
    cells = pd.read_csv(tables / "B.csv", dtype=str, keep_default_na=False)
    cells.loc[3, "group"] = ""
    assert (cells["volume"] == "").any()
    columns = []
    for one in page["inputs"]["columns"]:  # as who has nothing but the page would do it
        given = cells[one["column"]]
        values = given.eq(one["name"].partition("=")[2]).astype(float) if "=" in one["name"] else pd.to_numeric(given)
        columns.append(values.mask(given == ""))
    inputs = np.stack(columns, axis=1).astype(np.float32)
    assert np.isnan(inputs).any()
    found = run_elsewhere(tmp_path / "out", inputs)
    cells.to_csv(tmp_path / "new.csv", index=False)
    done = predict_into(tmp_path / "pred", Predictor(model), open_table(model.description, tmp_path / "new.csv", "D"))
    assert found.shape == (30, 2)
    assert found[:, 1] == pytest.approx(done.predictions["score"].to_numpy(), abs=1e-6)
    assert np.isnan(run_elsewhere(tmp_path / "out", np.array([[np.inf, 1, 0, 1, 0]], dtype=np.float32))).all()
    assert page["preparation"]["in_the_file"] is True
    assert page["licence"] == "CC-BY-4.0"
    assert page["outputs"]["threshold"] == model.description.threshold
    assert page["inputs"]["columns"][0]["usual"]["median"] == model.description.seen.features["age"].median
    assert sorted(one.name for one in (tmp_path / "out").iterdir())[-1] == "model.onnx"
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    assert not [one for one in (str(Path.cwd()), str(tmp_path), ".py") if one.encode() in content]  # where it was made


def test_pixels_of_pictures_go_in_as_they_are(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    study = picture_study()
    study["data"]["scaling"] = "federated"
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(rounds=2))
    model = read_model(tmp_path / "model")
    onnx.export_onnx(model, tmp_path / "out")
    page = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (page["inputs"]["type"], page["inputs"]["shape"]) == ("uint8", ["batch", 1, 16, 16])
    pictures = [Image.open(tmp_path / "A" / f"{number}.png").resize((16, 16), Image.Resampling.BILINEAR)
                for number in range(10)]  # fmt: skip
    found = run_elsewhere(tmp_path / "out", np.stack([np.asarray(one)[None] for one in pictures]))
    done = predict_into(tmp_path / "pred", Predictor(model), open_table(model.description, tmp_path / "A.csv", "A"))
    assert found[:, 1] == pytest.approx(done.predictions["score"].to_numpy(), abs=1e-6)


def test_the_mean_of_several_networks_is_in_the_file(model: Model, tmp_path: Path) -> None:
    other = model.vectors[0] * 0.5 + 0.1
    several = changed(replace(model, vectors=[model.vectors[0], other]), models=["A", "B"])
    onnx.export_onnx(several, tmp_path / "out")
    inputs = model.samples["inputs"].numpy()
    found = run_elsewhere(tmp_path / "out", inputs)
    front = Front.of(model)
    single = [onnx.expected_predictions(replace(model, vectors=[one]), front, torch.from_numpy(inputs))
              for one in several.vectors]  # fmt: skip
    assert np.abs(single[0] - single[1]).max() > 1e-3
    assert found == pytest.approx((single[0] + single[1]) / 2, abs=1e-6)
    assert json.loads((tmp_path / "out" / "model.json").read_text())["networks"] == 2


def test_what_is_a_sites_own_is_not_in_the_file_but_told(model: Model) -> None:
    own = changed(
        replace(model, merged=[{}]), {"scaling": "per_site"},
        steps=[("own_scaling", {"standardise": True, "imputation": "mean"})],
    )  # fmt: skip
    front = Front.of(own)
    page = model_page(own, front, "inputs", "predictions", licence=None)
    assert (front.scaler, page["preparation"]["in_the_file"], page["inputs"]["scaled"]) == (None, False, True)
    words = " ".join(page["preparation"]["before"])
    assert (
        "missing values become the mean, then (value - mean) / deviation, with numbers from cases of the same" in words
    )
    merged = {"grand_mean": torch.ones(2), "variance": torch.ones(2), "coefficients": torch.zeros(2, 0),
              "has_reference": torch.tensor(False)}  # fmt: skip
    combat = {"columns": [0, 1], "features": ["age", "volume"], "covariates": {}, "empirical_bayes": True,
              "reference_site": None}  # fmt: skip
    harmonised = changed(
        replace(model, merged=[merged, *model.merged]), steps=[("combat", combat), *model.description.steps]
    )
    page = model_page(harmonised, Front.of(harmonised), "inputs", "predictions", licence=None)
    assert page["preparation"]["combat"]["grand_mean"] == [1.0, 1.0]
    assert page["preparation"]["mean"] == Front.of(model).scaler.mean.tolist()  # type: ignore[union-attr]
    assert "with `mean` and `deviation`, the same at all sites" in " ".join(page["preparation"]["before"])


PAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "numbers": (
        {"task": "regression", "loss": "squared_error", "classes": [], "outputs": 1, "scale": (50.0, 4.0)},
        {"shape": ["batch", 1], "unit": "that of sick in the study's tables"},
    ),
    "hazards": (
        {"task": "survival", "loss": "cox", "classes": [], "outputs": 1, "times": [200.0], "completion": [0.25]},
        {"shape": ["batch", 1], "times": [200.0], "cumulative_hazard": [0.25]},
    ),
    "intervals": (
        {"task": "survival", "loss": "discrete_time", "classes": [], "outputs": 2, "edges": [100.0, 200.0]},
        {"shape": ["batch", 2], "edges": [100.0, 200.0]},
    ),
    "masks": (
        {"task": "segmentation", "loss": "dice", "classes": ["background", "a", "b"], "outputs": 3},
        {"shape": ["batch", 3], "channels": ["background", "a", "b"], "decision": "the most probable class"},
    ),
    "calibration": (
        {"calibration": Calibration(intercept=0.1, slope=0.9, cases=90, source="folds")},
        {"shape": ["batch", 2], "decision": "sick yes from a probability of `threshold` on"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAGES)
def test_the_page_says_what_comes_out(model: Model, kind: str) -> None:
    changes, wanted = PAGES[kind]
    other = changed(model, **changes)
    page = model_page(other, Front.of(other), "inputs", "predictions", licence=None)
    json.dumps(page, allow_nan=False)
    assert {name: page["outputs"][name] for name in wanted} == wanted
    assert ("calibration" in page["outputs"]) == (kind == "calibration")
    assert page["outputs"]["meaning"]


@pytest.mark.parametrize("kind", ["drop", "none"])
def test_what_is_missing_is_not_made_up(model: Model, kind: str) -> None:
    """Where rows with gaps are rejected, or filled by the site, the file gives no numbers for them."""
    other = changed(model, {"imputation": "drop"})
    if kind == "none":
        own = ("own_scaling", {"standardise": False, "imputation": "mean"})
        other = changed(replace(model, merged=[{}]), {"scaling": "none"}, steps=[own])
    front = Front.of(other)
    assert not front.fills
    whole = Served([torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.ReLU())], model.description.built_task, front)
    inputs = torch.ones(3, 5)
    inputs[1, 2] = torch.nan
    assert whole(inputs).isnan().tolist() == [[False, False], [True, True], [False, False]]
    words = model_page(other, front, "inputs", "predictions", licence=None)["preparation"]["before"]
    assert words[-1] == "A row with a missing value (NaN) gives no numbers (NaN)."


REFUSED: dict[str, tuple[Callable[[Model], Model], str]] = {
    "a part at each site": (lambda model: changed(model, whole=False), "so its folder has no whole network to export"),
    "a network for each site": (lambda model: changed(model, homes={"A": 0, "B": 1}), "a network for each site (A, B)"),
    "too large": (
        lambda model: replace(model, vectors=[torch.empty(1, device="meta").expand(1)] * 2**27), "one ONNX file holds 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_function_of_a_case_is_refused(model: Model, tmp_path: Path, kind: str) -> None:
    change, sentence = REFUSED[kind]
    with pytest.raises(ModelError, match="P704") as caught:
        onnx.export_onnx(change(model), tmp_path / "out")
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_gives_something_else_is_not_left(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = onnx.expected_predictions
    monkeypatch.setattr(onnx, "expected_predictions", lambda *given: expected(*given) + 2e-5)
    with pytest.raises(ModelError, match=r"P704 .* does not compute what the model does: .* differ by 2e-05"):
        onnx.export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ModelError, match=r"P704 .* already holds something"):
        onnx.export_onnx(model, tmp_path / "out")


class _Branching(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs if inputs.sum() > 0 else -inputs


def test_a_network_that_onnx_can_not_take_is_refused_in_a_sentence(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "served", lambda *given: _Branching().eval())
    with pytest.raises(ModelError, match=r"P704 The network mlp can't be written as ONNX: .*\. Use the model with"):
        onnx.export_onnx(model, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(TrainingError, match=r"P503 .* needs onnxruntime, .* pip install 'polyclinic\[onnx\]'"):
        onnx.export_onnx(read_model(tables / "model", check=False), tmp_path / "out")


def test_one_command_tells_models_and_results_apart(tables: Path, tmp_path: Path) -> None:
    def refused(*given: str) -> str:
        found = CliRunner().invoke(cli.app, ["export", *given], env={"COLUMNS": "400"})
        assert found.exit_code == 2
        return " ".join(found.output.replace("│", " ").split())

    model, results = str(tables / "model"), str(tmp_path)
    assert "is a model: give both of --to and --out" in refused(model)
    assert "is a model: give both of --to and --out" in refused(model, "--to", "onnx")
    assert "is a model, and this is for results of a study" in refused(model, "--ro-crate", "x")
    assert "is a model, and this is for results of a study" in refused(
        model, "--to", "onnx", "--out", "x", "--without-models"
    )
    assert "is no model, and this is for models" in refused(results, "--to", "onnx", "--out", "x")
    assert "is no model: results of a study are exported with --ro-crate" in refused(results)
    assert "an ONNX file has no authors" in refused(model, "--to", "onnx", "--out", "x", "--author", "Ada")
    done = CliRunner().invoke(cli.app, ["export", model, "--to", "onnx", "--out", str(tmp_path / "out")])
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "out" / "model.onnx"))
