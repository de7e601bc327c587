"""Networks of MONAI bundles: their definition and weights as data, without running anything that stands in them.

A bundle is a folder with ``configs/*.json`` or ``.yaml`` and weights in ``models``. Its configuration may hold Python
expressions and the names of any classes; here only the entry ``network_def`` is read, its class must be one of
``NETWORKS``, and its arguments must be plain values or references to plain values. Weights are read from
``models/model.safetensors`` alone: the usual ``model.pt`` is a pickle, which its owner can convert.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from polyclinic.errors import StudyError, nearest

#: Networks of ``monai.networks.nets`` that give one tensor for one tensor.
Network = Literal[
    "AttentionUnet", "BasicUNet", "Classifier", "DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264",
    "DynUNet", "EfficientNetBN", "FlexibleUNet", "HighResNet", "Regressor", "ResNet", "SENet154", "SEResNet50",
    "SegResNet", "SwinUNETR", "UNETR", "UNet", "VNet",
]  # fmt: skip
NETWORKS: tuple[str, ...] = get_args(Network)
_MODULE = "monai.networks.nets"
#: Configurations in which to look for the network, in this order.
_CONFIGS = ("inference.json", "inference.yaml", "inference.yml", "train.json", "train.yaml", "train.yml")
_WEIGHTS = "model.safetensors"
_COUNT = "num_batches_tracked"
#: What turns the weights of a bundle that is trusted into a file that need not be.
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file(torch.load('model.pt', weights_only=True), 'model.safetensors')\""
)
#: Entries of a definition that say something to people or to MONAI's own loader.
_ABOUT = ("_target_", "_desc_")
_DEEPEST = 20


@dataclass(frozen=True)
class Bundle:
    """What a bundle says of its network.

    Attributes:
        network: one of ``NETWORKS``.
        arguments: plain values for its constructor.
        weights: file with its weights, or None where they are not wanted.
    """

    network: str
    arguments: dict[str, Any]
    weights: Path | None


def read_bundle(folder: Path, *, weights: bool) -> Bundle:
    """Definition of a bundle's network, and where its weights are.

    Raises:
        StudyError: P102, the folder is no bundle, its definition is more than names and plain values, or it has no
            weights though they are wanted.
    """
    config, name = _read_config(folder)
    definition = config["network_def"]
    if not isinstance(definition, dict) or "_target_" not in definition:
        raise _unfit(name, "its `network_def` has no `_target_`.")
    network = _network(str(definition["_target_"]), name)
    special = [key for key in definition if key.startswith("_") and key.endswith("_") and key not in _ABOUT]
    if special:
        raise _unfit(name, f"its `network_def` has the entry {special[0]!r}, which is not supported.")
    arguments = {key: _plain(value, config, name) for key, value in definition.items() if key not in _ABOUT}
    if arguments.get("pretrained"):
        raise _unfit(name, "its network would fetch pretrained weights.", "Set `pretrained` to false in the bundle.")
    path = folder / "models" / _WEIGHTS
    if weights and not path.is_file():
        hint = "Set `weights: false` to start afresh."
        if path.with_name("model.pt").is_file():
            hint = f"model.pt is a pickle, which can run code. If you trust it, run in that folder: {CONVERT}"
        raise _unfit(folder.name, f"its folder `models` has no {_WEIGHTS}.", hint)
    return Bundle(network, arguments, path if weights else None)


def load_weights(module: Any, path: Path) -> None:
    """Copy the weights of a bundle into its network, in place.

    Counts of batches that normalisation layers have seen may be missing, as in the files of weights that a study
    writes: nothing is computed with them here.

    Raises:
        StudyError: P102, the file is damaged, or its tensors are not those of the network.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in _read_weights(path).items()}
    own = module.state_dict()
    tensors = {name: value for name, value in own.items() if name.rpartition(".")[2] == _COUNT} | tensors
    missing, surplus = [n for n in own if n not in tensors], [n for n in tensors if n not in own]
    wrong = [n for n in own if n in tensors and getattr(tensors[n], "shape", None) != own[n].shape]
    for names, what in ((missing, "lacks"), (surplus, "has besides"), (wrong, "has in another shape")):
        if names:
            raise _unfit(
                path.name, f"it {what} {len(names)} of the tensors of the network ({names[0]}).",
                "Use the weights that belong to the bundle's definition, or `weights: false`.",
            )  # fmt: skip
    module.load_state_dict(tensors)


def _read_weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
        return tensors
    except Exception:  # damaged files raise many types
        raise _unfit(path.name, "it is damaged or holds no tensors.", f"Make it anew: {CONVERT}") from None


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The first configuration with a network, and its name."""
    if not (folder / "configs").is_dir():
        raise _unfit(folder.name, "it has no folder `configs`.", "Give the path of a MONAI bundle.")
    for name in _CONFIGS:
        path = folder / "configs" / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise _unfit(name, f"it can't be read: {str(error).splitlines()[0]}.") from None
        if isinstance(content, dict) and "network_def" in content:
            return content, name
    raise _unfit(folder.name, f"none of {', '.join(_CONFIGS)} has an entry `network_def`.")


def _network(target: str, name: str) -> str:
    module, _, network = target.rpartition(".")
    inside = not module or module == _MODULE or module.startswith(f"{_MODULE}.")
    known = {one.lower(): one for one in NETWORKS}
    if not inside or network.lower() not in known:
        hint = nearest(network, list(NETWORKS)) if inside else f"Networks must be of {_MODULE}."
        raise _unfit(name, f"its network {target!r} is none of those that can be used.", hint)
    return known[network.lower()]


def _plain(value: Any, config: dict[str, Any], name: str, depth: int = 0) -> Any:
    """``value`` with references replaced by what they stand for."""
    if depth > _DEEPEST:
        raise _unfit(name, "its references go round in a circle or are nested too deep.")
    if isinstance(value, dict):
        if "_target_" in value:
            raise _unfit(name, f"an argument of its network is an object, {value['_target_']!r}, not a plain value.")
        return {key: _plain(inner, config, name, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, config, name, depth + 1) for inner in value]
    if not isinstance(value, str):
        return value
    if value.startswith("$"):
        raise _unfit(name, f"an argument of its network is an expression, {value!r}, and no code is run.",
                     "Write its value in the bundle instead.")  # fmt: skip
    if value.startswith("%"):
        raise _unfit(name, f"an argument of its network is a macro, {value!r}.", "Write its value in the bundle.")
    if not value.startswith("@"):
        return value
    target: Any = config
    for key in value[1:].replace("#", "::").split("::"):
        if isinstance(target, dict) and key in target:
            target = target[key]
        elif isinstance(target, list) and key.isdigit() and int(key) < len(target):
            target = target[int(key)]
        else:
            raise _unfit(name, f"its reference {value!r} leads nowhere.")
    return _plain(target, config, name, depth + 1)


def _unfit(what: str, message: str, hint: str = "") -> StudyError:
    return StudyError("P102", f"{what} can't be used: {message}", hint)
