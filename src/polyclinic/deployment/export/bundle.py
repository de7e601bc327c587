"""A model as a MONAI bundle: a folder that ``python -m monai.bundle run`` runs without Polyclinic.

What a model's folder says is data, and what a bundle says may be code: so nothing of it is copied that MONAI would take
for an expression, a reference or an object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from polyclinic.deployment.export.bundle_config import inference, script
from polyclinic.deployment.export.bundle_pages import differences, metadata, readme
from polyclinic.deployment.export.folder import LICENCE_QUESTION, check_whole, whole_folder
from polyclinic.deployment.export.front import Front
from polyclinic.errors import ModelError
from polyclinic.files import write_atomic
from polyclinic.models import build_model
from polyclinic.models.bundle import NETWORKS, load_weights, read_bundle
from polyclinic.models.monai_networks import BuiltOf, built_of
from polyclinic.options import split_entry
from polyclinic.study.final_model.folder import Model, sample_outputs

CONFIG, METADATA, WEIGHTS = "configs/inference.json", "configs/metadata.json", "models/model.safetensors"
_ONNX = "Export it to ONNX: --to onnx."
#: What begins with these is an expression, a reference or a macro in a bundle.
_SPECIAL = ("$", "@", "%")


def export_bundle(
    model: Model, out: Path, *, authors: Sequence[str] = (), licence: str | None = None
) -> list[str]:  # fmt: skip
    """Write a model as a MONAI bundle.

    Args:
        model: on the processor.
        out: folder; it is made.
        authors: names of people.
        licence: of the model, as a text or URL.

    Returns:
        How its preparation differs from that of the study, in sentences.

    Raises:
        ModelError: P704, the model can't be a bundle.
    """
    description = model.description
    check_whole(description)
    definition = check_network(model)
    front = check_preparation(model)
    config = inference(description, front, definition, WEIGHTS)
    about = metadata(description, authors, licence)
    check_plain(definition.arguments, "network")
    check_plain([about, config.get("channels", [])], "description")
    steps = script(description)
    files = {
        CONFIG: _json(config),
        METADATA: _json(about),
        "docs/README.md": readme(description, front, licence),
        **({"scripts/__init__.py": "", "scripts/preparation.py": steps} if steps else {}),
        "LICENSE": f"{licence or LICENCE_QUESTION}\n",
    }
    with whole_folder(out) as draft:
        for name, text in files.items():
            write_atomic(draft / name, text)
        write_atomic(draft / WEIGHTS, save(_state(model)))
        check_way_back(model, draft)
    return differences(description)


def check_network(model: Model) -> BuiltOf:
    """What the network is built of, if MONAI can build it.

    Raises:
        ModelError: P704, there are several networks, or it is none of MONAI's.
    """
    name, definition = model.description.network[0], built_of(model.network.module)
    if definition is None or definition.network not in NETWORKS:
        raise ModelError("P704", f"The network {name} is not one of MONAI's, so MONAI can't build it.", _ONNX)
    if len(model.vectors) > 1:
        text = f"A MONAI bundle has one network, and this model is the mean of {len(model.vectors)}."
        raise ModelError("P704", text, _ONNX)
    return BuiltOf(definition.network, json.loads(json.dumps(definition.arguments)))


def check_preparation(model: Model) -> Front:
    """What of the preparation is the same at all sites, if MONAI's transforms can do all of it.

    Raises:
        ModelError: P704, they can't.
    """
    description, front = model.description, Front.of(model)
    preparation = description.data.preprocessing
    if front.scaler is None:
        raise _unfit("Each site scales its cases in a way of its own (`scaling: per_site`), and a bundle has one way.")
    if description.target == "times":
        raise _unfit("MONAI has no way to tell times of events.")
    if description.target == "findings":
        raise _unfit("MONAI has no way to tell several labels that are not of one row of classes.")
    if preparation is None:
        if description.target == "masks":
            raise _unfit("MONAI can't bring the mask of a picture that Pillow resized back to the picture's size.")
        return front
    if preparation.centre == "foreground":
        raise _unfit("MONAI has no transform that puts the foreground into the middle and keeps what is around it "
                     "(`centre: foreground`).")  # fmt: skip
    if split_entry(preparation.intensity, (), "")[0] == "nyul":
        raise _unfit("MONAI has no transform that brings histograms to a standard (`intensity: nyul`).")
    return front


def _unfit(reason: str) -> ModelError:
    return ModelError("P704", reason, f"{_ONNX} Its inputs are prepared cases, and model.json says how.")


def check_plain(value: Any, what: str) -> None:
    """Stop where something would be more to MONAI than a plain value.

    Raises:
        ModelError: P704.
    """
    special: list[str] = []
    if isinstance(value, dict):
        special = [key for key in value if str(key).startswith("_")]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, what)
    elif isinstance(value, str) and value.lstrip()[:1] in _SPECIAL:
        special = [value]
    if special:
        raise ModelError("P704", f"The model's {what} has {special[0][:60]!r}, which MONAI takes for more than a plain "
                         "value.", _ONNX)  # fmt: skip


def _state(model: Model) -> dict[str, Tensor]:
    """All tensors of the network by MONAI's names; those that have several names are written under each."""
    model.network.load(model.vectors[0])
    state: dict[str, Tensor] = model.network.module.state_dict()
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def check_way_back(model: Model, folder: Path) -> None:
    """See that a study that starts from the bundle gets the same network with the same weights.

    Raises:
        ModelError: P704, it does not.
    """
    description, samples = model.description, model.samples["inputs"]
    found = read_bundle(folder, weights=True)
    options = {"network": found.network, "arguments": found.arguments}
    again = build_model("monai", options, description.shape, description.outputs)
    if found.weights is None:
        raise ValueError("a bundle was read with weights and has none")
    load_weights(again.module, found.weights)
    outputs = sample_outputs(again, again.vector.clone(), samples)
    if not torch.equal(outputs, sample_outputs(model.network, model.vectors[0], samples)):
        raise ModelError("P704", f"MONAI's {found.network} of this bundle does not compute what the model does.",
                         "Nothing was written. " + _ONNX)  # fmt: skip


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
