"""Networks on thin and small inputs: they adapt, or P302 says so before anything is trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import write_image_study
from polyclinic import Study
from polyclinic.errors import TrainingError
from polyclinic.models import MODELS, build_model
from polyclinic.models.trial import try_network

SMALL = {
    "cnn": {"channels": [2, 2, 2]},
    "unet": {"channels": [2, 2, 2]},
    "attention_unet": {"channels": [2, 2, 2]},
    "dynunet": {"filters": [2, 2, 2], "deep_supervision": True},
    "segresnet": {"filters": 8},
    "sfcn": {"channels": [2, 2, 2]},
}
MASKS = ("unet", "attention_unet", "dynunet", "segresnet")


def options(name):
    return MODELS.resolve({name: SMALL.get(name, {})}, ())[1]


def attempt(name, shape, *, given=None, masks=None):
    try_network(name, given or options(name), shape, 2, masks=name in MASKS if masks is None else masks)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["cnn", "unet", "attention_unet", "dynunet"])
def test_thin_slabs_are_worked_on_and_learned_from(name, depth):
    shape = (1, 16, 12, depth)
    attempt(name, shape)
    model = build_model(name, options(name), shape, 2)
    model.module.train()
    outputs = model.module(torch.randn(2, *shape))
    outputs.square().sum().backward()
    assert torch.isfinite(outputs).all()
    model.module.eval()
    assert tuple(model.module(torch.randn(2, *shape)).shape[2:]) == (shape[1:] if name in MASKS else ())


def test_where_the_image_is_large_enough_nothing_changed():
    pools = [layer.kernel_size for layer in build_model("cnn", options("cnn"), (1, 16, 8, 8), 2).module.modules()
             if isinstance(layer, torch.nn.MaxPool3d)]  # fmt: skip
    assert pools == [(2, 2, 2)] * 3
    for name in ("unet", "attention_unet", "dynunet"):
        found = build_model(name, options(name), (1, 16, 8, 8), 2).module
        strides = {
            tuple(m.stride) for m in found.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)
        }
        assert strides == {(1, 1, 1), (2, 2, 2)}


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from([*SMALL]),
    sides=st.lists(st.integers(1, 20), min_size=2, max_size=3),
)
def test_a_network_that_passes_the_trial_computes(name, sides):
    shape = (1, *sides)
    try:
        attempt(name, shape)
    except TrainingError:  # its sentence is tested elsewhere
        return
    module = build_model(name, options(name), shape, 2).module
    with torch.no_grad():
        module.train()(torch.randn(2, *shape))
        found = module.eval()(torch.randn(1, *shape))
    assert tuple(found.shape) == (1, 2, *(sides if name in MASKS else ()))


@pytest.mark.parametrize(
    ("network", "arguments", "shape", "least"),
    [
        ("BasicUNet", {"spatial_dims": 3, "features": [2, 2, 2, 2, 2, 2]}, (1, 36, 40, 2), 16),
        ("BasicUNet", {"spatial_dims": 2, "features": [2, 2, 2, 2, 2, 2]}, (1, 9, 9), 32),
        ("DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [1, 1, 1, 1]},
         (1, 12, 12), 32),
    ],
)  # fmt: skip
def test_a_foreign_network_on_inputs_too_small_is_refused_with_the_least_sides(network, arguments, shape, least):
    given = {"network": network, "arguments": arguments, "head": "last"}
    with pytest.raises(TrainingError) as caught:
        attempt("monai", shape, given=given, masks=network == "BasicUNet")
    text = str(caught.value)
    assert text.startswith(f"P302 The model monai can't work on inputs of shape {shape}: ")
    assert f"Sides of {least} or more work." in text


@pytest.mark.parametrize(
    ("name", "masks", "message"),
    [
        ("unet", False, r"gives outputs of shape \(2, 16, 16\) for inputs of shape \(1, 16, 16\), and the task needs"),
        ("cnn", True, r"gives outputs of shape \(2,\) for inputs of shape \(1, 16, 16\)"),
    ],
)
def test_a_network_for_another_task_is_refused(name, masks, message):
    with pytest.raises(TrainingError, match=f"P302 The model {name} {message}"):
        attempt(name, (1, 16, 16), masks=masks)


def test_a_trial_computes_nothing_and_draws_no_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    attempt("cnn", (1, 4096, 4096, 64))  # a batch of it would take gigabytes
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [("sfcn", "sfcn needs sides of 32 or more, got 16"), ({"cnn": {"channels": [4, 8]}}, "gives outputs of shape")],
)
def test_a_check_says_what_a_run_would(tmp_path, model, message):
    study = write_image_study(tmp_path, {"A": 6, "B": 6})
    study["model"] = model
    for what in (lambda: Study.of(study, tmp_path).check(), lambda: Study.of(study, tmp_path).run(tmp_path / "out")):
        with pytest.raises(TrainingError, match=f"P302 .*{message}"):
            what()
    assert not (tmp_path / "out").exists()
