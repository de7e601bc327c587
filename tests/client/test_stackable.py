"""Whether a network can be trained for many sites at once is tried; what mixes cases, branches or draws is found."""

import copy

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, image_sites, table_sites
from polyclinic.client.stacked import stackable
from polyclinic.client.stacked.stackable import network_obstacle
from polyclinic.client.work import Work
from polyclinic.engine.planner import choose_plan
from polyclinic.errors import StudyError
from polyclinic.models import build_model
from polyclinic.state import FlatModule

WORK = Work("train", 1, None, 8, ("sgd", {"lr": 0.1}))


class Centred(nn.Module):
    """Takes the mean over the batch away, by its own arithmetic."""

    def forward(self, inputs):
        return inputs - inputs.mean(0)


class Branching(nn.Module):
    """Goes one of two ways, by what the cases are."""

    def forward(self, inputs):
        return inputs if float(inputs.detach().sum()) > 0 else -inputs


class Noisy(nn.Module):
    """Draws from a global generator, without being a dropout layer."""

    def forward(self, inputs):
        return inputs + torch.randn(inputs.shape) if self.training else inputs


class Sized(nn.Module):
    """Depends on how many cases there are."""

    def forward(self, inputs):
        return inputs * len(inputs)


class Moving(nn.Module):
    """Remembers a mean of its cases as a statistic of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, inputs):
        self.seen.mul_(0.5).add_(0.5 * inputs.detach().mean(0))
        return inputs


def between(layer):
    """The layer between two linear ones, for five features."""
    head = nn.Linear(6, 2)
    return FlatModule(nn.Sequential(nn.Linear(5, 6), layer, head), [head])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Centred(), "the network has other outputs when it is run for several sites at once, where one has fewer"),
        (Sized(), "the network has other outputs when it is run for several sites at once, where one has fewer cases"),
        (Moving(), "the network has other running statistics when it is run for several sites at once, where one has"),
        (Noisy(), "the network draws random numbers in training, which would differ"),
        (Branching(), "the network can't be run for several at once: vmap: "),
        (nn.Dropout(0.5), "the network has dropout, whose random numbers would differ"),
        (nn.AlphaDropout(0.5), "the network has dropout, whose random numbers would differ"),
        (nn.RReLU(), "the network draws random numbers in training, which would differ"),
        (nn.BatchNorm1d(6, momentum=None), "batch normalisation keeps cumulative averages or has no scale"),
        (nn.BatchNorm1d(6, affine=False), "batch normalisation keeps cumulative averages or has no scale"),
        (nn.BatchNorm1d(6, track_running_stats=False), "the network can't be run for several at once: "),
        (nn.Sequential(nn.Unflatten(1, (3, 2)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()),
         "instance normalisation keeps running statistics"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_what_can_not_be_stacked_is_found_and_told(layer, reason):
    assert network_obstacle(between(layer), (5,)).startswith(reason)


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.BatchNorm1d(6), nn.BatchNorm1d(6, momentum=0.9), nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.Softmax(1)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_treats_each_case_by_itself_or_masks_padding_can_be_stacked(layer):
    assert network_obstacle(between(layer), (5,)) == ""


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("logistic", {}, (5,)),
        ("logistic", {"norm": "batch"}, (5,)),
        ("mlp", {"hidden": [6], "norm": "layer"}, (5,)),
        ("cnn", {"channels": [3, 4]}, (1, 8, 8)),
        ("unet", {"channels": [2, 4]}, (1, 8, 8)),
        ("unet", {"channels": [2, 4], "norm": "instance"}, (1, 8, 8)),
    ],
)
def test_networks_of_the_catalogue_can_be_stacked(name, options, shape):
    assert network_obstacle(build_model(name, options, shape, 2), shape) == ""


def test_stochastic_depth_of_monai_is_found():
    from monai.networks.layers import DropPath

    assert network_obstacle(between(DropPath(0.5)), (5,)) == (
        "the network draws random numbers in training, which would differ"
    )


class Single(nn.Module):
    """Works in float32 only."""

    def forward(self, inputs):
        return inputs @ torch.eye(6)


def test_a_network_that_works_in_float32_only_is_tried_in_that():
    assert network_obstacle(between(Single()), (5,)) == ""
    assert "outputs" in network_obstacle(between(nn.Sequential(Single(), Centred())), (5,))


def test_the_trial_changes_nothing():
    model = build_model("mlp", {"hidden": [6], "norm": "batch"}, (5,), 2)
    model.module.eval()
    before, state, buffers = model.vector.clone(), torch.get_rng_state(), copy.deepcopy(list(model.module.buffers()))
    assert network_obstacle(model, (5,)) == ""
    assert torch.equal(model.vector, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.module.buffers(), buffers))
    assert not model.module.training
    assert not model.gradient.any()


def test_a_network_is_tried_once_for_each_shape(monkeypatch):
    asked = []
    monkeypatch.setattr(stackable, "_try", lambda model, shape: asked.append(shape) or "")
    first, second = (build_model("cnn", {"channels": [3]}, (1, 8, 8), 2) for _ in range(2))
    for model in (first, first, second, first):
        network_obstacle(model, (1, 8, 8))
    network_obstacle(first, (1, 16, 16))
    assert asked == [(1, 8, 8), (1, 8, 8), (1, 16, 16)]


def test_the_reason_is_told_where_stacking_was_asked_for():
    options = {"device": "cpu", "threads": 1, "workers": 1, "shape": (5,), "cases": [10, 10], "passes": 1}
    plan = choose_plan(mode="auto", model=between(Centred()), works=[WORK], **options)
    assert plan.mode == "sequential"
    assert "other outputs" in plan.reason
    with pytest.raises(StudyError, match=r"P104 `engine: \{mode: stacked\}` is impossible: the network has other outp"):
        choose_plan(mode="stacked", model=between(Centred()), works=[WORK], **options)


def test_a_large_network_is_not_tried_where_it_would_not_be_stacked(monkeypatch):
    monkeypatch.setattr(stackable, "_try", lambda model, shape: pytest.fail("tried"))
    model = build_model("mlp", {"hidden": [3000, 3000]}, (5,), 2)
    options = {"device": "cpu", "threads": 1, "workers": 1, "shape": (5,), "cases": [10, 10], "passes": 1}
    plan = choose_plan(mode="auto", model=model, works=[WORK], **options)
    assert plan.mode == "sequential"


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(6, momentum=None), Centred(), Noisy(), Moving()], ids=lambda layer: type(layer).__name__
)
def test_sites_with_such_a_network_are_trained_one_after_another(layer):
    def build(shape, outputs):
        head = nn.Linear(6, outputs)
        return nn.Sequential(nn.Linear(shape[0], 6), copy.deepcopy(layer), head), [head]

    with catalogued("odd", build):
        one, many = (
            Federation(table_sites(), model="odd", training={"rounds": 2}, stacked=stacked).state()
            for stacked in (False, True)
        )
    assert torch.equal(one, many)


def test_boxes_of_images_are_what_is_tried():
    federation = Federation(image_sites({"Aachen": 4, "Bonn": 5}), model={"cnn": {"channels": [3]}}, stacked=True)
    federation.rounds()
    run = federation.engine.members["Aachen"].run
    assert run.not_stackable == ""
    assert list(stackable._found[run.model]) == [(1, 8, 8)]
