"""Binary classification with one output: the same model as softmax over two, but a learning rate means half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers import Federation, table_sites, write_table_study
from polyclinic import Study
from polyclinic.errors import StudyError
from polyclinic.tasks import build_task

ONE, TWO = "binary_cross_entropy", "cross_entropy"
SIZES = {"Aachen": 24, "Bonn": 20, "Celle": 18}


def test_loss_by_hand() -> None:
    task = build_task("classification", 2, ONE)
    assert task.outputs == 1
    outputs, targets = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([1, 1, 0])
    wanted = [np.log(2), np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))]
    assert task.loss(outputs, targets).tolist() == pytest.approx(wanted, rel=1e-6)


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8), st.integers(0, 255))
def test_one_logit_is_the_difference_of_two(logits: list[float], bits: int) -> None:
    one = torch.tensor(logits)[:, None]
    two = torch.cat([torch.zeros_like(one), one], dim=1)
    targets = torch.tensor([bits >> case & 1 for case in range(len(logits))])
    binary, softmax = build_task("classification", 2, ONE), build_task("classification", 2, TWO)
    torch.testing.assert_close(binary.loss(one, targets), softmax.loss(two, targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(binary.probabilities(one), softmax.probabilities(two), rtol=1e-12, atol=1e-15)


def test_probabilities_keep_the_order_of_close_and_large_scores() -> None:
    outputs = torch.tensor([[-800.0], [-20.0], [19.999998], [20.0], [800.0]])
    found = build_task("classification", 2, ONE).probabilities(outputs)
    assert found.dtype == torch.float64
    assert found[:, 1].diff().gt(0)[:3].all()
    assert found[0].tolist() == [1.0, 0.0]
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))


def federation(loss: str, rate: float, **options: Any) -> Federation:
    training = {"rounds": 3, "loss": loss, "optimizer": {"sgd": {"lr": rate}}, **options.pop("training", {})}
    return Federation(table_sites(), training=training, **options)


def difference(state: torch.Tensor, loss: str) -> torch.Tensor:
    """Weights and bias of the logit, or of the difference of the two logits, from the state of ``logistic``."""
    if loss == ONE:
        return state
    features = len(state) // 2 - 1
    weight, bias = state[: 2 * features].view(2, features), state[2 * features :]
    return torch.cat([weight[1] - weight[0], bias[1:] - bias[:1]])


@pytest.mark.parametrize("weights", ["none", "balanced", [1.0, 3.0]])
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_a_learning_rate_means_half_as_much_with_one_output(method: str, weights: Any) -> None:
    one, two = (
        difference(federation(loss, rate, training={"class_weights": weights}, methods=[method]).state(), loss)
        for loss, rate in ((ONE, 0.2), (TWO, 0.1))
    )
    assert one.abs().max() > 0.05
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_class_weights_multiply_the_loss_of_each_case_and_divide_by_nothing() -> None:
    """One step of all cases from zero: - rate times the mean of w x gradient, worked out by hand."""
    sites = table_sites({"Aachen": 12})
    run = Federation(
        sites, methods=["fedsgd"], training={"rounds": 1, "loss": ONE, "class_weights": [0.5, 4.0],
                                             "optimizer": {"sgd": {"lr": 0.1}}},
        preparation={"steps": [["own_scaling", {"standardise": False, "imputation": "mean"}]]},
    )  # fmt: skip
    found, site = run.state(), sites["Aachen"]
    labels = site.targets.double()
    pull = torch.where(labels == 1, 4.0, 0.5) * (0.5 - labels)  # w (p - y) at p = 1/2
    wanted = -0.1 * torch.cat([(pull[:, None] * site.inputs.double()).mean(0), pull.mean()[None]])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", ["none", [1.0, 3.0]])
def test_stacked_sites_learn_as_single_ones_do(weights: Any) -> None:
    options = {"training": {"class_weights": weights}, "model": {"mlp": {"hidden": [4]}}}
    plain = federation(ONE, 0.1, **options).state()
    torch.testing.assert_close(federation(ONE, 0.1, **options, stacked=True).state(), plain, rtol=0, atol=1e-5)


def study_of(folder: Path, *, classes: int = 2, **training: Any) -> dict[str, Any]:
    study = write_table_study(folder, SIZES, classes=classes)
    study["training"]["rounds"] = 15
    study["training"] |= training
    study["methods"] = ["single", "ensemble", "fedavg", {"fedavg": {"label": "body", "share": "body"}}]
    study["evaluation"] |= {"bootstrap": 20}
    return study


def test_a_study_with_one_output_runs_to_its_report(tmp_path: Path) -> None:
    results = Study.of(study_of(tmp_path, loss=ONE), tmp_path).run(tmp_path / "out")
    rows = results.predictions
    assert list(rows.columns)[7:] == ["label", "score", "threshold", "trained_on"]
    assert rows["score"].between(0, 1).all()
    assert rows["threshold"].nunique() > 1
    mine = rows[(rows["method"] == "fedavg") & (rows["fold"] == 0)]
    found = results.results.query("method == 'fedavg' and fold == 0 and tested_on == 'all'").set_index("metric")[
        "value"
    ]
    assert found["acc"] == pytest.approx(((mine["score"] >= mine["threshold"]) == (mine["label"] == 1)).mean())
    assert found["acc"] > 0.7
    model = load_file(tmp_path / "out" / "models" / "fedavg-seed0-fold0.safetensors")
    assert list(model.values())[-2].shape[0] == 1
    assert (tmp_path / "out" / "report.html").is_file()


def test_losses_for_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"P104 single: `binary_cross_entropy` is for two classes, and there are 3\."):
        Study.of(study_of(tmp_path, classes=3, loss=ONE), tmp_path).check()
    study = study_of(tmp_path)
    study["methods"] = ["single", {"fedavg": {"training": {"loss": ONE}}}]
    message = (
        r"P104 All methods of a study train the same network, and `cross_entropy` \(single\) wants one with 2 outputs, "
        r"`binary_cross_entropy` \(fedavg\) one with 1\."
    )
    with pytest.raises(StudyError, match=message):
        Study.of(study, tmp_path).check()
    study["methods"] = ["single", {"fedavg": {"training": {"loss": "focal"}}}]
    Study.of(study, tmp_path).check()


def test_a_search_over_losses_is_refused_too(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    study["search"] = {"trials": 2, "parameters": {"training.loss": [TWO, ONE]}}
    with pytest.raises(StudyError, match="train the same network"):
        Study.of(study, tmp_path).check()


def test_predictions_are_those_of_the_model(tmp_path: Path) -> None:
    """The score is the sigmoid of the one logit of the saved model, on the site's scaled cases."""
    study = study_of(tmp_path, loss=ONE)
    study["model"], study["methods"] = "logistic", ["fedavg"]
    study["data"]["scaling"] = "none"
    results = Study.of(study, tmp_path).run(tmp_path / "out")
    model = load_file(tmp_path / "out" / "models" / "fedavg-seed0-fold0.safetensors")
    table = pd.read_csv(tmp_path / "cases.csv").set_index("patient")
    rows = results.predictions.query("fold == 0 and site == 'Bonn'")
    names = pd.read_csv(tmp_path / "out" / "sites" / "Bonn" / "subjects.csv").set_index("pseudonym")["subject"]
    cases = torch.tensor(table.loc[names[rows["subject"]], ["x0", "x1", "x2"]].to_numpy(), dtype=torch.float32)
    wanted = F.linear(cases, model["weight"], model["bias"])[:, 0].double().sigmoid()
    np.testing.assert_allclose(rows["score"], wanted, rtol=1e-6)
