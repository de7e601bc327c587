"""Sums of patients' clipped gradients: by hand, against single cases one by one, and bounded whoever comes or goes."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyclinic.client.private.gradients import Clipped, PatientGradients
from polyclinic.client.private.plan import PrivatePlan, choose_private_plan
from polyclinic.client.private.rows import length
from polyclinic.models import build_model
from polyclinic.roles import Role
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

WAYS = ["layers", "vmap", "patients"]
FREE = 1e9
#: The last has one patient with more images than are taken at a time.
PATIENTS = [7, 3, 7, 11, 5, 7, 3, 2]
NETWORKS = [
    ("logistic", {}, (5,), "classification"),
    ("mlp", {"hidden": [7, 6], "norm": "layer"}, (5,), "classification"),
    ("cnn", {"channels": [4, 6], "norm": "group"}, (3, 12, 10), "classification"),
    ("cnn", {"channels": [4, 6], "norm": "none"}, (1, 8, 8, 8), "classification"),
    ("unet", {"channels": [4, 6, 8], "norm": "instance"}, (1, 16, 16), "segmentation"),
    ("unet", {"channels": [4, 6], "norm": "instance", "residual_units": 0}, (2, 8, 8, 8), "segmentation"),
    ("segresnet", {"filters": 8}, (1, 16, 16), "segmentation"),
    ("dynunet", {"filters": [4, 6, 8], "deep_supervision": True}, (1, 16, 16), "segmentation"),
    ("dynunet", {"filters": [4, 6, 8], "residual": True}, (1, 8, 8, 16), "segmentation"),
]
#: Their position biases stand in no layer with a rule.
ODD = [
    ("swinunetr", {"features": 12}, (1, 64, 64), "segmentation"),
    (
        "monai",
        {
            "network": "UNETR",
            "arguments": {
                "in_channels": 1, "out_channels": 3, "img_size": [32, 32], "spatial_dims": 2, "feature_size": 4,
                "hidden_size": 24, "mlp_dim": 32, "num_heads": 2,
            },
        },
        (1, 32, 32),
        "segmentation",
    ),
]  # fmt: skip


def data(shape, task, cases=8, seed=0):
    source = torch.Generator().manual_seed(seed)
    size = (cases, 1, *shape[1:]) if task == "segmentation" else (cases,)
    return torch.randn(cases, *shape, generator=source), torch.randint(0, 3, size, generator=source)


def network(name, options, shape, seed=0):
    """In training, with weights that are not where they start."""
    model = build_model(name, options, shape, 3)
    source = torch.Generator().manual_seed(seed)
    model.vector[: model.layout.trainable] += 0.05 * torch.randn(model.layout.trainable, generator=source)
    for layer in list(model.module.modules()):
        for child, own in list(layer.named_children()):
            if isinstance(own, nn.ReLU | nn.LeakyReLU):  # rounding at a bend would be taken for a difference
                setattr(layer, child, nn.SiLU(inplace=own.inplace))
    model.module.train()
    return model


def clipped(model, task, inputs, targets, patients, norm=FREE, way="layers", together=3, **options):
    """What is tested."""
    shape = tuple(inputs.shape[1:])
    outer = choose_private_plan(model, shape).outer if way == "layers" else frozenset()
    gradients = PatientGradients(model, task, norm, shape, plan=PrivatePlan(way, together, outer), **options)
    return gradients.clipped_sum(lambda index: (inputs[index], targets[index]), torch.as_tensor(patients))


def single(model, task, inputs, targets, patients, norm=FREE):
    """The same by plain backward passes of single cases."""
    total = torch.zeros(model.layout.trainable, dtype=torch.float64)
    for patient in sorted(set(patients)):
        own = [position for position, other in enumerate(patients) if other == patient]
        mean = torch.zeros_like(total)
        for case in own:
            model.gradient.zero_()
            task.loss(model.module(inputs[case : case + 1]), targets[case : case + 1]).sum().backward()
            mean += model.gradient.double() / len(own)
        total += mean * min(1.0, norm / float(mean.norm()))
    return total


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_two_patients_by_hand(way):
    """At weights 0 a case with features x and number y has loss y² and gradient -2 y (x, 1)."""
    model, task = build_model("logistic", {}, (2,), 1), build_task("regression", 0, "mse")
    inputs = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0]])
    targets = torch.tensor([-1.0, -0.5, 0.5])
    # Patient 4: (2, 2, 1), of norm 3. Patient 9: the mean of (2, 0, 2) and (0, -1, -1), (1, -1/2, 1/2), of norm √1.5.
    found = clipped(model, task, inputs, targets, [9, 4, 9], norm=2.0, way=way)
    expected = torch.tensor([4 / 3 + 1, 4 / 3 - 0.5, 2 / 3 + 0.5], dtype=torch.float64)
    torch.testing.assert_close(found.total, expected, rtol=1e-5, atol=1e-6)
    assert found.loss == pytest.approx((0.25 + (1 + 0.25) / 2) / 2)
    assert (found.patients, found.unusable) == (2, 0)
    shorter = clipped(model, task, inputs, targets, [9, 4, 9], norm=0.3, way=way).total
    second = torch.tensor([1, -0.5, 0.5], dtype=torch.float64) / 1.5**0.5
    expected = 0.3 * (torch.tensor([2, 2, 1], dtype=torch.float64) / 3 + second)
    torch.testing.assert_close(shorter, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_batch_gives_nothing(way):
    model, task = build_model("logistic", {}, (2,), 1), build_task("regression", 0, "mse")
    found = clipped(model, task, torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64), way=way)
    assert found.total.tolist() == [0, 0, 0]
    assert (found.loss, found.patients, found.unusable) == (0, 0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_without_clipping_it_is_the_gradient_of_the_mean_over_patients(way):
    model, task = network("mlp", {"hidden": [6]}, (5,)), build_task("classification", 3)
    inputs, targets = data((5,), "classification")
    found = clipped(model, task, inputs, targets, PATIENTS, way=way)
    shares = torch.tensor([1 / PATIENTS.count(patient) for patient in PATIENTS]) / len(set(PATIENTS))
    model.gradient.zero_()
    loss = (task.loss(model.module(inputs), targets) * shares).sum()
    loss.backward()
    torch.testing.assert_close(found.total.float() / found.patients, model.gradient, rtol=1e-5, atol=1e-7)
    assert found.loss == pytest.approx(loss.item())


# All ways, all networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "shape", "kind"), NETWORKS)
def test_ways_give_what_single_cases_give(name, options, shape, kind):
    model, task = network(name, options, shape), build_task(kind, 3)
    assert choose_private_plan(model, shape).way == "layers"
    inputs, targets = data(shape, kind)
    for norm in (FREE, 0.5):
        expected = single(model, task, inputs, targets, PATIENTS, norm)
        for way in WAYS:
            for together in (2, 100):
                found = clipped(model, task, inputs, targets, PATIENTS, norm, way, together)
                assert distance(found.total, expected) < 2e-5, (way, together)
                assert found.patients == len(set(PATIENTS))


@pytest.mark.parametrize(("name", "options", "shape", "kind"), ODD)
def test_networks_with_weights_outside_known_layers_are_run_by_vmap(name, options, shape, kind):
    model, task = network(name, options, shape), build_task(kind, 3)
    plan = choose_private_plan(model, shape)
    assert plan.way == "vmap"
    inputs, targets = data(shape, kind, 3)
    expected = single(model, task, inputs, targets, [0, 1, 1], 0.5)
    for way in WAYS[1:]:
        assert distance(clipped(model, task, inputs, targets, [0, 1, 1], 0.5, way).total, expected) < 2e-5


class Reused(nn.Module):
    """Uses a layer twice, one in place, and another as a mere bag of weights."""

    def __init__(self, bag=False):
        super().__init__()
        self.inside, self.head, self.bag = nn.Linear(5, 5), nn.Linear(5, 3), bag

    def forward(self, inputs):
        found = self.inside(self.inside(inputs).relu_())
        return nn.functional.linear(found, self.head.weight, self.head.bias) if self.bag else self.head(found)


@pytest.mark.parametrize(("bag", "way"), [(False, "layers"), (True, "vmap")])
def test_a_layer_that_is_used_twice_or_not_called(bag, way):
    torch.manual_seed(0)
    model, task = FlatModule(Reused(bag)), build_task("classification", 3)
    plan = choose_private_plan(model, (5,))
    assert plan.way == way
    inputs, targets = data((5,), "classification")
    gradients = PatientGradients(model, task, 0.1, (5,), plan=plan)
    found = gradients.clipped_sum(lambda index: (inputs[index], targets[index]), torch.tensor(PATIENTS))
    assert distance(found.total, single(model, task, inputs, targets, PATIENTS, 0.1)) < 1e-5


class Windowed(nn.Module):
    """Cuts each case into two, which stand in the axis of cases one after another, or in turn."""

    def __init__(self, turns):
        super().__init__()
        self.inside, self.norm, self.head, self.turns = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(8, 3), turns

    def forward(self, inputs):
        cut = inputs.view(-1, 2, 3)
        found = self.norm(self.inside((cut.transpose(0, 1) if self.turns else cut).reshape(-1, 3)))
        parts = found.view(2, -1, 4).transpose(0, 1) if self.turns else found.view(-1, 2, 4)
        return self.head(parts.flatten(1))


@pytest.mark.parametrize(("turns", "way"), [(False, "layers"), (True, "vmap")])
def test_windows_of_a_case_are_added_up_and_those_in_another_order_found(turns, way):
    torch.manual_seed(0)
    model, task = FlatModule(Windowed(turns)), build_task("classification", 3)
    assert choose_private_plan(model, (6,)).way == way
    inputs, targets = data((6,), "classification")
    gradients = PatientGradients(model, task, 0.1, (6,))
    found = gradients.clipped_sum(lambda index: (inputs[index], targets[index]), torch.tensor(PATIENTS))
    assert distance(found.total, single(model, task, inputs, targets, PATIENTS, 0.1)) < 1e-5


class Sided(nn.Module):
    """Branches on what a case is, which vmap can't do, with a weight outside layers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, inputs):
        return torch.stack([(case * self.scale)[:3] if case.sum() > 0 else (case * self.scale)[2:] for case in inputs])


def test_what_no_way_can_do_at_once_is_done_one_patient_after_another():
    model, task = FlatModule(Sided()), build_task("classification", 3)
    plan = choose_private_plan(model, (5,))
    assert plan.way == "patients"
    inputs, targets = data((5,), "classification")
    found = PatientGradients(model, task, 0.5, (5,)).clipped_sum(lambda i: (inputs[i], targets[i]), torch.arange(8))
    assert distance(found.total, single(model, task, inputs, targets, list(range(8)), 0.5)) < 1e-5


def test_a_case_that_fills_the_memory_is_taken_alone():
    """It is counted; nothing is measured."""
    model = build_model("cnn", {"channels": [64], "norm": "group"}, (1, 64, 64, 64), 2)
    assert choose_private_plan(model, (1, 64, 64, 64)) == PrivatePlan("patients", 1, frozenset())


@pytest.mark.parametrize("way", WAYS)
def test_norms_are_over_trained_weights_alone(way):
    shape = (3, 12, 10)
    model, task = network("cnn", {"channels": [4, 6], "norm": "group"}, shape), build_task("classification", 3)
    inputs, targets = data(shape, "classification")
    trained = model.layout.select([Role.HEAD])
    found = clipped(model, task, inputs, targets, range(8), 0.1, way, trained=trained).total
    expected = torch.zeros_like(found)
    for case in range(8):
        one = single(model, task, inputs[case : case + 1], targets[case : case + 1], [0])
        trained.others(len(one)).fill(one, 0.0)
        expected += one * min(1.0, 0.1 / float(one.norm()))
    assert distance(found, expected) < 1e-5
    assert trained.others(len(found)).take(found).count_nonzero() == 0


@pytest.mark.parametrize("way", WAYS)
def test_classes_weigh_in_the_loss_and_not_in_the_bound(way):
    model, task = network("logistic", {}, (5,)), build_task("classification", 3)
    inputs, targets = data((5,), "classification")
    weights = torch.tensor([0.0, 1.0, 4.0])
    found = clipped(model, task, inputs, targets, range(8), FREE, way, class_weights=weights).total
    model.gradient.zero_()
    (task.loss(model.module(inputs), targets) * weights[targets]).sum().backward()
    assert distance(found, model.gradient.double()) < 1e-6
    one = clipped(model, task, inputs[:1], torch.tensor([2]), [0], 0.1, way, class_weights=1e6 * weights).total
    assert float(one.norm()) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("way", ["layers", "vmap"])
def test_each_case_draws_dropout_of_its_own_and_again_the_same(way):
    model, task = network("mlp", {"hidden": [64], "dropout": 0.5}, (5,)), build_task("classification", 3)
    assert choose_private_plan(model, (5,)).way == "layers"
    inputs, targets = torch.ones(2, 5), torch.zeros(2, dtype=torch.int64)

    def seeded(cases):
        torch.manual_seed(3)
        return clipped(model, task, inputs[:cases], targets[:cases], range(cases), FREE, way).total

    assert torch.equal(seeded(2), seeded(2))
    assert distance(seeded(2), 2 * seeded(1)) > 0.1
    assert model.module[2].p == 0.5  # the trial takes it away


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_clips_by_the_gradient_that_is_not_scaled(way):
    usual = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        model, task = network("mlp", {"hidden": [8]}, (5,)), build_task("classification", 3)
        inputs, targets = data((5,), "classification")
        for norm, factor in ((0.3, 1.0), (FREE, 1.0), (FREE, 1e4)):  # the last is too large for half precision, scaled
            weights = torch.full((3,), factor)
            half = clipped(
                model, task, inputs, targets, PATIENTS, norm, way, mixed_precision=True, class_weights=weights
            )
            full = clipped(model, task, inputs, targets, PATIENTS, norm, way, class_weights=weights)
            assert distance(half.total, full.total) < 0.01
            assert half.unusable == 0
    finally:
        torch.set_autocast_dtype("cpu", usual)


@pytest.mark.parametrize("way", WAYS)
def test_the_network_is_left_as_it_was(way):
    model, task = network("cnn", {"channels": [4], "norm": "group"}, (1, 8, 8)), build_task("classification", 3)
    inputs, targets = data((1, 8, 8), "classification")
    before = model.vector.clone()
    clipped(model, task, inputs, targets, PATIENTS, way=way)
    with pytest.raises(IndexError):
        clipped(model, task, inputs, targets - 1 + 9, PATIENTS, way=way)
    assert torch.equal(model.vector, before)
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(layer._forward_hooks for layer in model.module.modules())
    model.gradient.zero_()
    task.loss(model.module(inputs), targets).sum().backward()
    assert all(
        parameter.grad.data_ptr() >= model.gradient.data_ptr() and parameter.grad.count_nonzero()
        for parameter in model.module.parameters()
    )


# The bound ------------------------------------------------------------------------------------------------------------


def contribution(with_patient: Clipped, without: Clipped) -> float:
    return float((with_patient.total - without.total).norm())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    way=st.sampled_from(WAYS),
    kind=st.sampled_from(["mlp", "cnn", "volume"]),
    size=st.sampled_from([1e-6, 1.0, 1e6, 1e15, 1e25]),
    images=st.integers(1, 5),
    others=st.integers(0, 5),
    norm=st.sampled_from([1e-3, 1.0, 20.0]),
)
def test_no_patient_changes_the_sum_by_more_than_the_norm(seed, way, kind, size, images, others, norm):
    name, options, shape = {
        "mlp": ("mlp", {"hidden": [300]}, (5,)),
        "cnn": ("cnn", {"channels": [4, 6], "norm": "none"}, (1, 8, 8)),
        "volume": ("cnn", {"channels": [4], "norm": "group"}, (1, 4, 4, 4)),
    }[kind]
    model, task = network(name, options, shape, seed), build_task("classification", 3)
    inputs, targets = data(shape, "classification", others + images, seed)
    inputs[others:] *= size
    patients = [*range(others), *[99] * images]
    everybody = clipped(model, task, inputs, targets, patients, norm, way)
    without = clipped(model, task, inputs[:others], targets[:others], patients[:others], norm, way)
    assert everybody.total.isfinite().all()
    assert contribution(everybody, without) <= norm * (1 + 1e-6)
    alone = clipped(model, task, inputs[others:], targets[others:], patients[others:], norm, way)
    assert float(alone.total.norm()) <= norm


@pytest.mark.parametrize("way", WAYS)
def test_a_huge_gradient_is_clipped_and_not_lost(way):
    """Squares of its numbers are infinite in float32."""
    model, task = build_model("logistic", {}, (2,), 1), build_task("regression", 0, "mse")
    inputs, targets = torch.tensor([[3e25, 4e25]]), torch.tensor([-0.5])
    found = clipped(model, task, inputs, targets, [0], 2.0, way)
    torch.testing.assert_close(found.total, torch.tensor([1.2, 1.6, 0.0], dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert found.unusable == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("mlp", {"hidden": [6]}, (5,)), ("cnn", {"channels": [4, 6], "norm": "group"}, (3, 12, 10))],
)
def test_a_gradient_that_is_no_number_counts_as_nothing_and_touches_nobody(way, bad, mixed, name, options, shape):
    model, task = network(name, options, shape), build_task("classification", 3)
    inputs, targets = data(shape, "classification")
    inputs[3] = bad
    kept = [0, 1, 2, 4, 5, 6, 7]
    patients = torch.tensor(PATIENTS)
    found = clipped(model, task, inputs, targets, patients, 0.5, way, mixed_precision=mixed)
    without = clipped(model, task, inputs[kept], targets[kept], patients[kept], 0.5, way, mixed_precision=mixed)
    assert contribution(found, without) < (1e-2 if mixed else 1e-6)
    assert (found.patients, found.unusable, without.unusable) == (5, 1, 0)
    assert torch.tensor(found.loss).isfinite()


@pytest.mark.parametrize("way", WAYS)
def test_images_of_one_patient_count_once(way):
    model, task = network("mlp", {"hidden": [6]}, (5,)), build_task("classification", 3)
    inputs, targets = data((5,), "classification", 2)
    once = clipped(model, task, inputs, targets, [0, 1], 0.1, way)
    twice = clipped(model, task, inputs[[0, 1, 0, 0]], targets[[0, 1, 0, 0]], [0, 1, 0, 0], 0.1, way)
    assert distance(twice.total, once.total) < 1e-6
    assert twice.loss == pytest.approx(once.loss)


def test_lengths_are_right_to_the_margin_and_never_too_small_by_more():
    source = torch.Generator().manual_seed(1)
    for size in (1, 255, 256, 257, 100_000):
        rows = torch.randn(3, size, generator=source) * torch.logspace(-3, 30, 3)[:, None]
        torch.testing.assert_close(length(rows), rows.double().norm(dim=1), rtol=1e-6, atol=0)


# Memory ---------------------------------------------------------------------------------------------------------------

MEASURE = """
import ctypes, torch
from polyclinic.client.private.gradients import PatientGradients
from polyclinic.client.private.plan import PrivatePlan
from polyclinic.models import build_model
from polyclinic.tasks import build_task

def resident(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))

shape = (1, 48, 48, 48)
model, task = build_model("cnn", {"norm": "group"}, shape, 2), build_task("classification", 2)
def run(cases, way, together):
    gradients = PatientGradients(model, task, 1.0, shape, plan=PrivatePlan(way, together, frozenset()))
    def load(index):
        return torch.ones(len(index), *shape), torch.zeros(len(index), dtype=torch.int64)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    gradients.clipped_sum(load, torch.arange(cases))
    return resident("VmHWM") - before
torch.set_num_threads(1)
run(1, "patients", 1)
for way, together in (("patients", 1), ("layers", 2)):
    print(run(together, way, together), run(8, way, together))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read where Linux tells it")
def test_memory_does_not_grow_with_the_batch():
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
    command = [sys.executable, "-c", MEASURE]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=given).stdout
    assert len(found.splitlines()) == 2
    for line in found.splitlines():
        chunk, batch = map(int, line.split())
        assert chunk > 20_000  # kilobytes: something was measured
        assert batch < 1.3 * chunk
