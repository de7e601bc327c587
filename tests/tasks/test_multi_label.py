"""Several labels at once: masked losses, metrics by label, thresholds, and what one label alone must equal."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyclinic.tasks import build_task
from polyclinic.tasks.base import Asked, Batch, Head, Task
from polyclinic.tasks.multi_label import MultiLabel

HEADS = [Head("tb", 2), Head("grade", 3, 2.0)]
NOTHING = Asked((), (), 0.0)


def build(heads: list[Head] | None = None, loss: str = "cross_entropy") -> MultiLabel:
    heads = HEADS if heads is None else heads
    task = build_task("multi_label", sum(head.classes for head in heads), loss, heads=heads)
    assert isinstance(task, MultiLabel)
    return task


def table(task: Task, probabilities: Tensor, labels: Tensor, completion: tuple[float, ...] = ()) -> pd.DataFrame:
    """Rows of predictions."""
    asked = NOTHING._replace(completion=completion)
    return pd.DataFrame(task.columns(*task.rows([Batch(probabilities, labels)], 0.5, asked), 0.5))


def test_the_loss_of_a_case_is_the_weighted_mean_over_the_labels_that_it_has() -> None:
    outputs = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 5.0],
                            [3.0, 9.0, 1.0, 1.0, 1.0]])  # fmt: skip
    targets = torch.tensor([[1, 2], [0, -1], [-1, 4], [-1, -1]])
    tb, no_tb = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    grade = math.log(2 + math.exp(5)) - 5
    expected = [(tb + 2 * math.log(3)) / 3, no_tb, grade, 0.0]
    assert build().loss(outputs, targets).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_missing_label_has_no_gradient() -> None:
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    build().loss(outputs, torch.tensor([[0, -1], [1, -1], [-1, 3], [-1, -1]])).sum().backward()
    gradient = outputs.grad
    assert gradient is not None
    assert (gradient[:2, 2:] == 0).all()
    assert (gradient[2, :2] == 0).all()
    assert (gradient[3] == 0).all()
    assert (gradient[:2, :2] != 0).all()
    assert (gradient[2, 2:] != 0).all()


def test_outputs_of_a_label_that_is_missing_may_be_anything() -> None:
    outputs = torch.tensor([[0.0, 1.0, math.inf, -math.inf, 1e38]], requires_grad=True)
    loss = build().loss(outputs, torch.tensor([[1, -1]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "binary_cross_entropy"])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_label_that_all_cases_have_is_classification(loss: str, classes: int) -> None:
    if loss == "binary_cross_entropy" and classes > 2:
        return
    several, one = build([Head("tb", classes, 3.0)], loss), build_task("classification", classes, loss)
    assert several.outputs == one.outputs
    random = torch.Generator().manual_seed(3)
    outputs, labels = torch.randn(40, one.outputs, generator=random), torch.arange(40) % classes
    targets = labels[:, None]
    assert torch.equal(several.loss(outputs, targets), one.loss(outputs, labels))
    predicted = one.probabilities(outputs)
    assert torch.equal(several.probabilities(outputs), predicted)
    for metric in one.metrics:
        assert several.score([Batch(outputs, targets)], metric) == one.score([Batch(outputs, labels)], metric)
    assert several.accuracy([Batch(outputs, targets)]) == one.accuracy([Batch(outputs, labels)])
    if one.has_threshold:
        evidence = several.evidence([Batch(predicted, targets)])
        assert torch.equal(evidence[0], one.evidence([Batch(predicted, labels)]))
        assert several.choose_thresholds(evidence) == [one.choose_threshold(evidence[0])]
    names = list(one.metrics)
    assert several.result_metrics(names, []) == names
    mine, theirs = table(several, predicted, targets), table(one, predicted, labels)
    assert several.known(names, mine) == names
    weights = torch.randint(0, 3, (40, 5), generator=random).double().numpy()
    found, wanted = (
        task.measure(cases, names)(np.arange(40), weights) for task, cases in ((several, mine), (one, theirs))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_metrics_are_of_the_cases_with_the_label_and_their_mean() -> None:
    task = build([Head("tb", 2), Head("edema", 2), Head("grade", 3)])
    #          tb           edema        grade
    predicted = [
        [0.1, 0.9, 0.8, 0.2, 0.2, 0.3, 0.5],
        [0.8, 0.2, 0.4, 0.6, 0.2, 0.3, 0.5],
        [0.6, 0.4, 0.3, 0.7, 0.2, 0.3, 0.5],
    ]
    labels = torch.tensor([[1, 2, -1], [0, -1, -1], [-1, 3, -1]])
    cases = table(task, torch.tensor(predicted, dtype=torch.float64), labels, completion=(0.95, 0.5, 0.5))
    assert cases["label[tb]"].tolist()[:2] == [1, 0]
    assert pd.isna(cases["label[tb]"][2])
    assert cases["label[grade]"].isna().all()
    assert cases["threshold[tb]"].tolist() == [0.95] * 3
    names = task.result_metrics(["auc", "acc", "brier"], [])
    assert names[3:6] == ["auc[tb]", "auc[edema]", "auc[grade]"]
    found = task.values(cases, names)
    assert found["auc[tb]"] == found["auc[edema]"] == found["auc"] == 1.0
    assert (found["acc[tb]"], found["acc[edema]"], found["acc"]) == (0.5, 1.0, 0.75)
    assert found["brier[tb]"] == pytest.approx((0.01 + 0.04) / 2)
    assert found["brier"] == pytest.approx((found["brier[tb]"] + found["brier[edema]"]) / 2)
    assert math.isnan(found["auc[grade]"])
    assert math.isnan(found["brier[grade]"])
    assert task.bearers(cases, "auc[tb]").tolist() == [True, True, False]  # type: ignore[union-attr]
    assert task.bearers(cases, "auc") is None


def test_a_draw_in_which_a_metric_of_one_label_is_undefined_has_no_mean() -> None:
    task = build([Head("tb", 2), Head("edema", 2)])
    predicted = torch.tensor([[0.2, 0.8, 0.5, 0.5], [0.7, 0.3, 0.5, 0.5], [0.5, 0.5, 0.1, 0.9], [0.5, 0.5, 0.9, 0.1]])
    cases = table(task, predicted.double(), torch.tensor([[1, -1], [0, -1], [-1, 2], [-1, 3]]))
    weights = np.array([[1, 2, 0], [1, 0, 1], [1, 1, 1], [1, 1, 1]], dtype=np.float64)
    auc, acc = task.measure(cases, ["auc", "acc"])(np.arange(4), weights)
    assert auc[0] == 0.5
    assert np.isnan(auc[1:]).all()
    assert acc.tolist() == [0.5, 0.5, 0.5]


def test_a_label_of_one_class_has_no_metric_and_no_part_in_the_mean() -> None:
    task = build([Head("tb", 2), Head("edema", 2)])
    predicted = torch.tensor([[0.2, 0.8, 0.3, 0.7], [0.7, 0.3, 0.9, 0.1], [0.9, 0.1, 0.8, 0.2]]).double()
    labels = torch.tensor([[1, 2], [0, 2], [-1, 2]])  # no case of edema; one of three is called so
    cases, names = table(task, predicted, labels), task.result_metrics(["acc", "bac", "f1", "brier"], [])
    found, totals = task.values(cases, names), task.totals(cases, names)
    for values in (found, task.from_totals(totals, names)):
        assert [values[name] for name in ("acc", "bac", "f1")] == [1.0, 1.0, 1.0]
        assert values["brier"] == pytest.approx((0.04 + 0.09) / 2)
        assert all(math.isnan(values[f"{name}[edema]"]) for name in ("acc", "bac", "f1", "brier"))
    slopes = dict(zip(names, task.influence(cases, totals, names), strict=True))
    assert np.isnan(slopes["acc[edema]"]).all()
    assert slopes["brier"].tolist() == slopes["brier[tb]"].tolist()
    assert task.score([Batch(predicted.log(), labels)], "f1").value == 1.0


def test_a_model_that_broke_down_is_not_scored_by_the_labels_that_are_left() -> None:
    task = build([Head("tb", 2), Head("edema", 2)])
    predicted = torch.tensor([[math.nan, math.nan, 0.1, 0.9], [math.nan, math.nan, 0.9, 0.1]], dtype=torch.float64)
    found = task.values(table(task, predicted, torch.tensor([[1, 3], [0, 2]])), ["auc", "auc[tb]", "auc[edema]"])
    assert math.isnan(found["auc"])
    assert math.isnan(found["auc[tb]"])
    assert found["auc[edema]"] == 1.0


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_metrics_of_each_label_are_those_of_classification_on_its_cases(data: st.DataObject) -> None:
    task, count = build(), data.draw(st.integers(2, 25))
    rows = st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 2, 3, 4]))
    labels = torch.tensor([data.draw(rows) for _ in range(count)])
    outputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    predicted = task.probabilities(outputs)
    found = task.values(table(task, predicted, labels), task.result_metrics(["auc", "acc", "brier"], []))
    for head, own, first in ((HEADS[0], slice(0, 2), 0), (HEADS[1], slice(2, 5), 2)):
        column = labels[:, HEADS.index(head)]
        known = column >= 0
        one = build_task("classification", head.classes)
        values = dict.fromkeys(("auc", "acc", "brier"), math.nan)
        if len(column[known].unique()) > 1:  # not scored for labels of one class
            cases = table(one, predicted[known][:, own], column[known] - first)
            values = one.values(cases, list(values))
        for name, value in values.items():
            assert found[f"{name}[{head.name}]"] == pytest.approx(value, nan_ok=True, abs=1e-12)
    for name in ("auc", "acc", "brier"):
        each = [found[f"{name}[{head.name}]"] for head in HEADS]
        known_values = [value for value in each if not math.isnan(value)]
        mean = sum(known_values) / len(known_values) if known_values else math.nan
        assert found[name] == pytest.approx(mean, nan_ok=True, abs=1e-12)


def test_thresholds_are_chosen_for_each_label_and_none_for_several_classes() -> None:
    task = build()
    predicted = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.5], [0.7, 0.3, 0.2, 0.3, 0.5], [0.6, 0.4, 0.2, 0.3, 0.5]])
    labels = torch.tensor([[0, 2], [1, -1], [-1, 3]])
    evidence = task.evidence([Batch(predicted.double(), labels)])
    assert evidence.shape[:2] == (2, 2)
    assert evidence[0].sum() == 2
    assert evidence[1].sum() == 0
    first, second = task.choose_thresholds(evidence)
    assert 0.1 < first <= 0.3
    assert second == 0.5
    decided = task.decided({"probabilities": predicted.double(), "thresholds": torch.tensor([first, second])}, 0.5)
    assert decided.tolist() == [[0, 4], [1, 4], [1, 4]]
    assert torch.equal(task.evidence([]), torch.zeros_like(evidence))


def test_what_a_site_sends_is_checked() -> None:
    task = build()
    sent = task.rows([Batch(torch.full((2, 5), 0.2).double(), torch.tensor([[1, -1], [-1, 4]]))], 0.5, NOTHING)
    assert task.misfit(*sent, NOTHING) == ""
    for labels in ([[2, 2]], [[0, 1]], [[0, 5]]):
        wrong = {**sent[1], "labels": torch.tensor(labels)}
        assert "none of" in task.misfit({}, wrong, NOTHING), labels
    assert "expected 2" in task.misfit({}, {**sent[1], "labels": torch.tensor([[0]])}, NOTHING)
    with pytest.raises(ValueError, match="3 thresholds for 2"):
        task.rows([], 0.5, NOTHING._replace(completion=(0.1, 0.2, 0.3)))
    empty = task.rows([], 0.5, NOTHING)[1]
    assert empty["probabilities"].shape == (0, 5)
    assert empty["labels"].shape == (0, 2)
