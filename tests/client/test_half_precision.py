"""Half precision: large and small gradients are those of float32, and no step is left out.

A processor can do it, too, where its half precision is that of GPUs.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, site_of
from polyclinic.engine import CheckedEngine
from polyclinic.errors import PolyclinicError
from polyclinic.parts import FEDERATION
from polyclinic.rounds import run_rounds


@pytest.fixture(autouse=True)
def half_precision_of_a_gpu():
    usual = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    yield
    torch.set_autocast_dtype("cpu", usual)


def sites(scale=1.0):
    source = torch.Generator().manual_seed(3)
    found = {}
    for name, cases in {"Aachen": 18, "Bonn": 10}.items():
        labels = torch.arange(cases) % 2
        inputs = scale * (torch.randn(cases, 5, generator=source) + labels[:, None] + 1)
        found[name] = site_of(name, inputs, labels)
    return found


def averaging(shape, outputs):
    """Its statistics say of each batch that it was seen once."""
    head = nn.Linear(5, outputs)
    return nn.Sequential(nn.BatchNorm1d(5, momentum=None), head), [head]


def trained(data, method="fedavg", *, mixed, model="logistic", **training):
    """The state before and after a training, and its rows."""
    training = {"rounds": 2, "batch_size": 8, "local_steps": 2, **training}
    federation = Federation(data, [method], model=model, training=training)
    plan = federation.plan()
    work = replace(plan.start.work, mixed_precision=mixed)
    plan = replace(plan, start=plan.start.model_copy(update={"work": work}))
    progress, rows = run_rounds(plan, CheckedEngine(federation.engine, plan.known))
    return federation.initial(0), progress.model(FEDERATION), rows


def close(found, expected, start):
    """To the digits that half precision has, of the change."""
    assert (expected - start).norm() > 0
    assert (found - expected).norm() < 0.005 * (expected - start).norm()


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedsgd"])
def test_large_gradients_leave_no_step_out(method):
    """Of inputs of 1000 gradients are far above 1, and 65504 is the largest number of half precision."""
    data = sites(1000.0)
    optimizer = {"sgd": {"lr": 1e-7}}
    start, expected, _ = trained(data, method, mixed=False, optimizer=optimizer)
    _, found, rows = trained(data, method, mixed=True, optimizer=optimizer)
    close(found, expected, start)
    assert {row["steps"] for row in rows} == {1 if method == "fedsgd" else 2}


@pytest.mark.parametrize("method", ["fedavg", "fedsgd"])
def test_small_gradients_do_not_become_zero(method):
    """Losses weighted by 1e-8 have gradients below 6e-8, the smallest number of half precision."""
    training = {"class_weights": [1e-8, 2e-8], "optimizer": {"sgd": {"lr": 1e7}}}
    start, expected, _ = trained(sites(), method, mixed=False, **training)
    _, found, _ = trained(sites(), method, mixed=True, **training)
    close(found, expected, start)


def test_a_batch_that_is_taken_again_moves_statistics_once():
    training = {"class_weights": [4096.0, 4096.0], "optimizer": {"sgd": {"lr": 1e-6}}}
    with catalogued("averaging", averaging):
        start, expected, _ = trained(sites(), mixed=False, model="averaging", **training)
        _, found, _ = trained(sites(), mixed=True, model="averaging", **training)
    close(found, expected, start)
    torch.testing.assert_close(found[-10:], expected[-10:], rtol=1e-3, atol=1e-3)


def test_what_is_no_number_is_told_and_not_tried_for_ever():
    data = sites()
    data["Bonn"].inputs[3, 1] = 1e38  # infinite in half precision
    with pytest.raises(PolyclinicError, match="Bonn") as found:
        trained(data, mixed=True)
    assert found.value.code == "P301"


@pytest.mark.parametrize("rule", ["weight_perturbation", "adversarial_alignment", "site_unlearning"])
def test_rules_that_look_again_are_those_of_full_precision(rule):
    """The network goes back to where it was, and what is trained beside it makes its steps once."""
    data, model = sites(), {"mlp": {"hidden": [6], "norm": "layer"}}
    entry = {"fedavg": {"local": [rule]}}
    training = {"rounds": 3, "optimizer": {"sgd": {"lr": 0.01}}}
    start, expected, _ = trained(data, entry, mixed=False, model=model, **training)
    _, found, rows = trained(data, entry, mixed=True, model=model, **training)
    assert (found - expected).norm() < 0.05 * (expected - start).norm()
    assert {row["steps"] for row in rows} == {2}
