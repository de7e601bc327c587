"""Every network of the catalogue, in two and three dimensions."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from polyclinic.client.optimizers import resolve_optimizer
from polyclinic.client.train import train
from polyclinic.client.work import LocalJob, Work
from polyclinic.errors import StudyError, TrainingError
from polyclinic.models import MODELS, POOLING, build_model
from polyclinic.state import NORMALISATION, Role
from polyclinic.tasks import build_task

SMALL = {
    "sfcn": {"channels": [4, 8, 8]},
    "cnn": {"channels": [4, 8]},
    "unet": {"channels": [4, 8, 8]},
    "attention_unet": {"channels": [4, 8, 8]},
    "dynunet": {"filters": [4, 8, 8, 8]},
    "segresnet": {"filters": 8},
    "swinunetr": {"features": 12},
}
MASKS = ["unet", "segresnet", "attention_unet", "dynunet", "swinunetr"]
IMAGES = ["sfcn", "cnn", "resnet", "resnet18", "densenet121", "efficientnet"]
#: Smallest shapes that a test need not wait for.
SHAPES = {
    "swinunetr": [(1, 64, 32), (1, 64, 32, 32)],
    "densenet121": [(1, 32, 32), (1, 32, 32, 32)],
    "efficientnet": [(1, 32, 32), (1, 32, 32, 32)],
}


def shapes(name):
    return SHAPES.get(name, [(2, 16, 16), (2, 16, 16, 8)])


#: In three dimensions these take seconds.
HEAVY = {"resnet", "resnet18", "densenet121", "efficientnet", "swinunetr"}
CASES = [
    pytest.param(
        name, shape, id=f"{name}-{len(shape) - 1}d", marks=[pytest.mark.long] * (name in HEAVY and len(shape) == 4)
    )
    for name in (*IMAGES, *MASKS)
    for shape in shapes(name)
]


class _Cases:
    """Three cases at random; what a training step needs of a dataset."""

    augments = False

    def __init__(self, shape, targets):
        self.inputs, self.targets, self.shape = torch.randn(3, *shape), targets, shape

    def batch(self, index, *, augment=None):
        return self.inputs[index], self.targets[index]


def targets_for(name, shape, classes):
    if name in MASKS:
        return torch.randint(0, classes, (3, 1, *shape[1:]), dtype=torch.uint8)
    return torch.arange(3) % classes


def step(model, name, shape, classes=3, loss=None):
    task = build_task("segmentation" if name in MASKS else "classification", classes, loss or "cross_entropy")
    work = Work("train", 1, None, 3, resolve_optimizer({"sgd": {"lr": 0.1}}, ()))
    job = LocalJob(
        "A", _Cases(shape, targets_for(name, shape, classes)), torch.arange(3), model.vector.clone(), ("s",), 0.1
    )
    return job, train(model, task, work, job)


def test_all_networks_are_tried():
    assert {*IMAGES, *MASKS, "logistic", "mlp"} == {*MODELS} - {"bundle", "monai", "unrolled", *POOLING}


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_network_has_the_right_outputs_a_head_known_norms_and_trains(name, shape):
    torch.manual_seed(0)
    model = build_model(name, SMALL.get(name, {}), shape, 3)
    model.module.eval()
    with torch.no_grad():
        outputs = model.module(torch.randn(2, *shape))
    assert tuple(outputs.shape) == (2, 3, *(shape[1:] if name in MASKS else ()))
    roles = {entry.role for entry in model.layout.entries}
    assert Role.HEAD in roles
    for layer in model.module.modules():
        own = list(layer.parameters(recurse=False))
        if own and "norm" in type(layer).__name__.lower():
            assert isinstance(layer, NORMALISATION), type(layer)
    norms = [layer for layer in model.module.modules() if isinstance(layer, NORMALISATION)]
    learned = sum(p.numel() for layer in norms for p in layer.parameters(recurse=False))
    assert learned == sum(entry.size for entry in model.layout.entries if entry.role is Role.NORM_WEIGHT)
    job, result = step(model, name, shape)
    change = result.vector - job.start
    head = model.layout.select({Role.HEAD})
    assert head.take(change).abs().max() > 0
    assert model.layout.select({Role.WEIGHT}).take(change).abs().max() > 0
    copy.deepcopy(model.module)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 16, 16, 8)])
@pytest.mark.parametrize("classes", [2, 3])
def test_heads_of_deep_supervision_learn_and_vanish_in_tests(shape, classes):
    options = {"filters": [4, 8, 8, 8], "deep_supervision": True}
    outputs = classes if classes > 2 else 1
    model = build_model("dynunet", options, shape, outputs)
    model.module.train()
    assert tuple(model.module(torch.randn(2, *shape)).shape) == (2, 3, outputs, *shape[1:])
    model.module.eval()
    assert tuple(model.module(torch.randn(2, *shape)).shape) == (2, outputs, *shape[1:])
    job, result = step(model, "dynunet", shape, classes, "dice_cross_entropy")
    change = model.layout.split(result.vector - job.start)
    heads = [name for name in change if "deep_supervision_heads" in name or "super_head" in name]
    assert heads
    assert all(change[name].abs().max() > 0 for name in heads)
    assert all(head.grad_fn is None for head in model.module.heads)
    copy.deepcopy(model.module)


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("unet", {}, (1, 20, 24), "unet halves the image 3 times, so sides must be multiples of 8, got 20"),
        ("dynunet", {}, (1, 16, 16, 12), "dynunet halves the image 3 times, so sides must be multiples of 8, got 12"),
        ("dynunet", {}, (1, 8, 8), "dynunet halves the image 3 times, which leaves one pixel, but its instance "
         "normalisation needs two: one side at least must be 16 or more"),
        ("swinunetr", {}, (1, 48, 64), "swinunetr halves the image 5 times, so sides must be multiples of 32, got 48"),
        ("densenet121", {}, (1, 64, 24), "densenet121 needs sides of 32 or more, got 24"),
        ("efficientnet", {}, (1, 16, 64), "efficientnet needs sides of 32 or more, got 16"),
        ("sfcn", {}, (1, 64, 64, 30), "sfcn needs sides of 32 or more, got 30"),
        ("sfcn", {}, (5,), "sfcn takes images (channels, height, width) or volumes, got inputs of shape (5,)"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(name, options, shape, message):
    _, complete = MODELS.resolve({name: options}, ())
    with pytest.raises(TrainingError) as caught:
        build_model(name, complete, shape, 2)
    assert str(caught.value).startswith(f"P302 The model {name} can't be built for inputs of shape {shape}: {message}.")


def test_the_package_of_swin_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError) as caught:
        build_model("swinunetr", {}, (1, 64, 64), 2)
    assert str(caught.value) == (
        "P503 The model swinunetr needs the package einops, which is not installed. "
        "Install it: pip install 'polyclinic[swin]'"
    )


def test_resnet18_is_resnet_of_18_layers():
    one, other = (build_model(name, options, (1, 16, 16), 2) for name, options in (("resnet18", {}), ("resnet", {})))
    assert torch.equal(one.vector, other.vector)
    sizes = [build_model("resnet", {"depth": depth}, (1, 16, 16), 2).layout.size for depth in (10, 18, 34, 50)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"resnet": {"depth": 20}}, "got 20; expected 10, 18, 34 or 50"),
        ({"swinunetr": {"features": 20}}, "multiple of 12"),
        ({"dynunet": {"filters": [8, 8]}}, "at least 3 items"),
    ],
)
def test_options_that_do_not_fit(entry, message):
    with pytest.raises(StudyError, match=message):
        MODELS.resolve(entry, ())


def test_sfcn_is_the_published_network():
    net = build_model("sfcn", {}, (1, 32, 32, 32), 1).module
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv3d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256, 256, 64]
    assert [layer.kernel_size[0] for layer in convolutions] == [3, 3, 3, 3, 3, 1]
    assert sum(isinstance(layer, nn.MaxPool3d) for layer in net) == 5
    # Peng 2021 reports 3 million parameters.
    assert 2.8e6 < sum(p.numel() for p in net.parameters()) < 3.2e6
