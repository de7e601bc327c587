"""MONAI bundles as models: what is read, and what is refused."""

import hashlib
import json
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from monai.networks.nets import UNet
from safetensors.torch import save_file

from helpers import write_image_study
from polyclinic import Study
from polyclinic.errors import StudyError, TrainingError
from polyclinic.models import build_model
from polyclinic.models.bundle import CONVERT, load_weights, read_bundle
from polyclinic.state import Role

DEFINITION = {
    "_target_": "UNet", "_desc_": "for people", "spatial_dims": 2, "in_channels": "@channels#image", "out_channels": 1,
    "channels": "@widths", "strides": [2], "num_res_units": 0, "norm": ["BATCH", {"momentum": 0.2}],
}  # fmt: skip
CONFIG = {
    "imports": ["$import os"],
    "channels": {"image": 1},
    "widths": [4, "@top"],
    "top": 8,
    "network_def": DEFINITION,
}


def network():
    torch.manual_seed(3)
    return UNet(2, 1, 1, [4, 8], [2], num_res_units=0, norm=("BATCH", {"momentum": 0.2}))


def write_bundle(folder, config=CONFIG, name="inference.json", weights="model.safetensors", state=None):
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    text = json.dumps(config) if name.endswith("json") else yaml.safe_dump(config)
    (folder / "configs" / name).write_text(text)
    state = network().state_dict() if state is None else state
    if weights:
        save_file(state, folder / "models" / weights)
    return folder


def changed(**entries):
    return {**CONFIG, "network_def": {**DEFINITION, **entries}}


@pytest.mark.parametrize("name", ["inference.json", "inference.yaml", "train.yml"])
@pytest.mark.parametrize("target", ["UNet", "monai.networks.nets.UNet", "monai.networks.nets.unet.Unet"])
def test_a_definition_is_names_and_plain_values(tmp_path, name, target):
    found = read_bundle(write_bundle(tmp_path / "spleen", changed(_target_=target), name), weights=False)
    assert found.network == "UNet"
    assert found.weights is None
    assert found.arguments == {
        "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2], "num_res_units": 0,
        "norm": ["BATCH", {"momentum": 0.2}],
    }  # fmt: skip


def test_its_weights_are_those_of_the_file(tmp_path):
    found = read_bundle(write_bundle(tmp_path / "spleen"), weights=True)
    model = build_model("monai", {"network": found.network, "arguments": found.arguments}, (1, 16, 16), 1)
    load_weights(model.module, found.weights)
    for name, tensor in network().state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor)
    stored = model.layout.split(model.vector)
    assert torch.equal(stored["model.0.conv.weight"], network().state_dict()["model.0.conv.weight"])
    assert {e.name.rsplit(".", 2)[0] for e in model.layout.entries if e.role is Role.HEAD} == {"model.2"}


def test_the_prefix_of_parallel_training_is_undone(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in network().state_dict().items()}
    found = read_bundle(write_bundle(tmp_path / "b", state=state), weights=True)
    module = network()
    torch.nn.init.zeros_(module.model[0].conv.weight)
    load_weights(module, found.weights)
    assert torch.equal(module.state_dict()["model.0.conv.weight"], network().state_dict()["model.0.conv.weight"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(in_channels="$1 + 1"), "inference.json can't be used: an argument of its network is an expression, "
         "'$1 + 1', and no code is run."),
        (changed(norm={"_target_": "os.system", "command": "x"}), "inference.json can't be used: an argument of its "
         "network is an object, 'os.system', not a plain value."),
        (changed(_target_="subprocess.Popen"), "inference.json can't be used: its network 'subprocess.Popen' is none "
         "of those that can be used."),
        (changed(_target_="scripts.nets.UNet"), "inference.json can't be used: its network 'scripts.nets.UNet' is"),
        (changed(_target_="SegResNett"), "inference.json can't be used: its network 'SegResNett' is none of those that "
         "can be used. Did you mean 'SegResNet'?"),
        (changed(_requires_="$import os"), "inference.json can't be used: its `network_def` has the entry '_requires_"),
        (changed(in_channels="%train#x"), "inference.json can't be used: an argument of its network is a macro"),
        (changed(in_channels="@nowhere"), "inference.json can't be used: its reference '@nowhere' leads nowhere."),
        ({**changed(in_channels="@a"), "a": "@b", "b": "@a"}, "inference.json can't be used: its references go round"),
        ({**CONFIG, "widths": "$range(2)"}, "inference.json can't be used: an argument of its network is an express"),
        ({"network_def": {"spatial_dims": 2}}, "inference.json can't be used: its `network_def` has no `_target_`."),
        ({"network_def": "$x"}, "inference.json can't be used: its `network_def` has no `_target_`."),
        ({"trainer": {}}, "b can't be used: none of inference.json, inference.yaml"),
        (changed(pretrained=True), "inference.json can't be used: its network would fetch pretrained weights."),
    ],
)  # fmt: skip
def test_code_and_other_classes_are_refused(tmp_path, config, message):
    with pytest.raises(StudyError) as caught:
        read_bundle(write_bundle(tmp_path / "b", config), weights=False)
    assert str(caught.value).startswith(f"P102 {message}")


def test_folders_that_are_no_bundle(tmp_path):
    with pytest.raises(StudyError, match=r"P102 .* can't be used: it has no folder `configs`"):
        read_bundle(tmp_path, weights=False)
    folder = write_bundle(tmp_path / "b", weights=None)
    with pytest.raises(StudyError, match=r"P102 b can't be used: its folder `models` has no model.safetensors.*afresh"):
        read_bundle(folder, weights=True)
    (folder / "configs" / "inference.json").write_text("{")
    with pytest.raises(StudyError, match=r"P102 inference.json can't be used: it can't be read"):
        read_bundle(folder, weights=False)


class _Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_a_pickle_is_never_opened_and_the_way_out_is_told(tmp_path):
    folder = write_bundle(tmp_path / "b", weights=None)
    torch.save({"a": _Trap()}, folder / "models" / "model.pt")
    with pytest.raises(StudyError, match=r"model\.pt is a pickle, which can run code. If you trust it, run"):
        read_bundle(folder, weights=True)
    (folder / "models" / "model.pt").rename(folder / "models" / "model.safetensors")
    with pytest.raises(StudyError, match=r"model\.safetensors can't be used: it is damaged or holds no tensors"):
        load_weights(network(), read_bundle(folder, weights=True).weights)


def test_the_command_that_is_told_converts_weights(tmp_path):
    folder = write_bundle(tmp_path / "b", weights=None)
    torch.save(network().state_dict(), folder / "models" / "model.pt")
    program = shlex.split(CONVERT)[2]
    subprocess.run([sys.executable, "-c", program], cwd=folder / "models", check=True)
    module = network()
    torch.nn.init.zeros_(module.model[0].conv.weight)
    load_weights(module, read_bundle(folder, weights=True).weights)
    assert torch.equal(module.state_dict()["model.0.conv.weight"], network().state_dict()["model.0.conv.weight"])


def test_weights_of_another_network_are_refused(tmp_path):
    module = network()
    other = tmp_path / "model.safetensors"
    state = module.state_dict()
    for change, message in (
        ({"surplus": torch.zeros(1)}, r"it has besides 1 of the tensors of the network \(surplus\)"),
        (
            {"model.0.conv.weight": torch.zeros(1)},
            r"it has in another shape 1 of the tensors .* \(model.0.conv.weight\)",
        ),
    ):
        save_file({**state, **change}, other)
        with pytest.raises(StudyError, match=message):
            load_weights(module, other)
    save_file({name: state[name] for name in list(state)[1:]}, other)
    with pytest.raises(StudyError, match="it lacks 1 of the tensors of the network"):
        load_weights(module, other)


@pytest.mark.parametrize(
    ("arguments", "shape", "outputs", "message"),
    [
        ({"in_channels": 3}, (1, 16, 16), 1, "UNet is defined with 3 input channels, but the study needs 1"),
        ({"out_channels": 2}, (1, 16, 16), 1, "UNet is defined with 2 outputs, but the study needs 1"),
        ({}, (1, 16, 16, 16), 1, "UNet is defined with 2 dimensions, but the study needs 3"),
        ({"chanels": [4]}, (1, 16, 16), 1, "UNet has no argument 'chanels'. Did you mean 'channels'?"),
    ],
)
def test_channels_are_checked_against_the_study(arguments, shape, outputs, message):
    own = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]}
    with pytest.raises(TrainingError) as caught:
        build_model("monai", {"network": "UNet", "arguments": {**own, **arguments}}, shape, outputs)
    assert message in str(caught.value)


def test_a_study_starts_from_the_weights_of_a_bundle_beside_it(tmp_path):
    study = write_image_study(tmp_path, {"Aachen": 6, "Bonn": 5})
    write_bundle(tmp_path / "bundles" / "spleen")
    study |= {"model": {"bundle": {"path": "bundles/spleen"}}, "methods": ["fedavg"]}
    study["training"] = {"rounds": 1, "batch_size": 4, "optimizer": {"sgd": {"lr": 1e-9}}}
    study["evaluation"] = {"folds": 2, "bootstrap": 0, "metrics": ["dice"]}
    results = Study.of(study, tmp_path).run(tmp_path / "results")
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "results" / "models" / "fedavg-seed0-fold0.safetensors")
    assert torch.allclose(stored["model.0.conv.weight"], network().state_dict()["model.0.conv.weight"], atol=1e-6)
    filled = yaml.safe_load((tmp_path / "results" / "study.yaml").read_text())
    assert filled["model"] == {"bundle": {"path": "bundles/spleen", "weights": True, "head": "last"}}
    assert str(tmp_path) not in (
        tmp_path / "results" / "models" / "fedavg-seed0-fold0.safetensors"
    ).read_bytes().decode("latin-1")
    weights = (tmp_path / "bundles" / "spleen" / "models" / "model.safetensors").read_bytes()
    assert results.provenance["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    study["model"] = {"bundle": {"path": "bundles/liver"}}
    with pytest.raises(StudyError, match=r"P102 study, model.bundle.path: liver can't be used: it has no folder"):
        Study.of(study, tmp_path)
    with pytest.raises(StudyError, match=r"P103 study, model.bundle.wights: bundle has no option 'wights'"):
        Study.of({**study, "model": {"bundle": {"path": "x", "wights": False}}}, tmp_path)


def test_a_head_may_be_named():
    own = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]}
    options = {"network": "UNet", "arguments": own}
    named = build_model("monai", {**options, "head": "model.2"}, (1, 16, 16), 1)
    assert all(e.name.startswith("model.2.") for e in named.layout.entries if e.role is Role.HEAD)
    with pytest.raises(TrainingError, match=r"UNet has no part 'model.9' that could be its head"):
        build_model("monai", {**options, "head": "model.9"}, (1, 16, 16), 1)
