"""``metadata.json`` and the README of a MONAI bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from polyclinic.deployment.export.folder import LICENCE_QUESTION
from polyclinic.deployment.export.front import Front, preparation_words
from polyclinic.study.final_model.card import INTENDED_USE
from polyclinic.study.final_model.description import Description

_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)  # fmt: skip
_TASKS = {"masks": "segmentation", "labels": "classification", "numbers": "regression"}
_AUTHORS = "To be filled in by who passes it on: who made this model?"
_NEEDS = ("nibabel", "safetensors", "pillow", "scipy")


def metadata(description: Description, authors: Sequence[str], licence: str | None) -> dict[str, Any]:
    """The content of ``metadata.json``, by MONAI's schema."""
    target, volumes = description.target, description.data.preprocessing is not None
    box = description.data.planned_patch
    channels = description.data.image_columns if volumes else ["grey"] if description.shape[0] == 1 else list("RGB")
    names = _output_names(description)
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported from the Polyclinic model {description.number}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            **{name: version(name) for name in _NEEDS}, "fire": "0.5.0", "pytorch-ignite": "0.4.11",
        },
        "supported_apps": {},
        "name": f"{description.study}: {description.method}",
        "task": f"{_TASKS[target]} of {'volumes' if volumes else 'pictures'}",
        "description": f"{description.task} by {description.network[0]}, trained by {description.method} at "
        f"{len(description.sites)} sites with Polyclinic; model {description.number}.",
        "authors": ", ".join(authors) or _AUTHORS,
        "copyright": licence or LICENCE_QUESTION,
        "data_source": f"{len(description.sites)} sites, {sum(one.cases for one in description.sites.values())} cases",
        "data_type": "nibabel" if volumes else "png, jpg",
        "image_classes": f"{len(channels)} channels: {', '.join(channels)}",
        "label_classes": ", ".join(description.classes) or f"{description.data.label}",
        "pred_classes": ", ".join(names),
        "eval_metrics": {},
        "intended_use": " ".join(INTENDED_USE),
        "references": [],
        "differences": differences(description),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "To be filled in by who passes it on.",
                    "num_channels": description.shape[0],
                    "spatial_shape": list(description.shape[1:]),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": box is not None,
                    "channel_def": {str(place): name for place, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if target == "masks" else "probabilities" if target == "labels" else "number",
                    "format": "segmentation" if target == "masks" else _TASKS[target],
                    "num_channels": description.outputs,
                    "spatial_shape": list(description.shape[1:]) if target == "masks" else [],
                    "dtype": "float32",
                    "value_range": [] if target == "numbers" else [0, 1],
                    "is_patch_data": box is not None,
                    "channel_def": {str(place): name for place, name in enumerate(names)},
                }
            },
        },
    }  # fmt: skip


def _output_names(description: Description) -> list[str]:
    """What each output channel of the network is of."""
    if description.target == "numbers":
        return [str(description.data.label)]
    return description.classes if description.outputs > 1 else description.classes[-1:]


def differences(description: Description) -> list[str]:
    """How the bundle's preparation differs from the study's, in sentences."""
    return list(_differences(description))


def _differences(description: Description) -> Iterator[str]:
    if description.data.preprocessing is None:
        yield "Pictures with more than 8 bits are refused; in the study the brightest one tells how they become 8 bits."
    else:
        yield "Prepared values are 32-bit numbers; in the study they are rounded to 16 bits (a relative 0.0005)."
        yield "Images whose axes are not at right angles (a tilted gantry) are refused; the study straightens them."
        if description.target == "masks":
            yield (
                "Where an image was resampled, its voxels between the middle of the box's outermost voxels and the "
                "box's border may be decided in another way, since MONAI takes what is outside for 0."
            )
        if len(description.data.image_columns) > 1:
            yield (
                "Channels of a case must have the same voxels in the same place (else it stops); in the study they are "
                "brought to the first one's."
            )
    if description.calibration is not None:
        fitted = description.calibration
        yield (
            f"Probabilities are not recalibrated (intercept {fitted.intercept:.6g}, slope {fitted.slope:.6g} of their "
            "log odds)."
        )


def readme(description: Description, front: Front, licence: str | None) -> str:
    """``docs/README.md``.

    Args:
        description: of the model.
        front: what of its preparation is the same at all sites.
        licence: of the model.
    """
    weights = "The weights are `models/model.safetensors`, which can't hold a program."
    if description.data.preprocessing is not None:
        weights += " `scripts/preparation.py` has the steps that MONAI has no transform for."
    sections = {
        "Run it": [_RUN, _cases(description), _what_comes(description), weights],
        "Preparation": [
            _listed(preparation_words(description, front)),
            "`configs/inference.json` does this. It differs from the study that trained the model in this:",
            _listed(differences(description)),
        ],
        "Start a study from it": ["In a study file of Polyclinic:", "```yaml\nmodel:\n  bundle: {path: FOLDER}\n```"],
        "Licence": [licence or LICENCE_QUESTION],
    }
    blocks = [f"# {description.study}: {description.method}", *INTENDED_USE]
    for title, content in sections.items():
        blocks += [f"## {title}", *content]
    return "\n\n".join(blocks) + "\n"


_RUN = """```sh
pip install monai pytorch-ignite fire nibabel safetensors pillow scipy
python -m monai.bundle run inference --config_file configs/inference.json --dataset_dir DATA --output_dir OUT
```

Run it in the bundle's folder, or give that with `--bundle_root`."""


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {one}" for one in sentences)


def _cases(description: Description) -> str:
    channels = description.data.image_columns
    if description.data.preprocessing is None:
        return "Every file in DATA is a picture."
    if len(channels) == 1:
        return "Cases are the NIfTI files in DATA (`*.nii`, `*.nii.gz`)."
    return f"Cases are the folders in DATA, each with {', '.join(f'`{one}.nii.gz`' for one in channels)}."


def _what_comes(description: Description) -> str:
    if description.target == "masks":
        named = zip(description.mask_values, description.classes, strict=True)
        values = ", ".join(f"{value} {name}" for value, name in named)
        decided = (
            "" if description.outputs > 1 else f" A voxel is decided at a probability of {description.threshold:g}."
        )
        return f"OUT has a mask for each case, in the voxels of its image: {values}.{decided}"
    what = ", ".join(_output_names(description))
    kind = "the number" if description.target == "numbers" else "the probability of"
    return f"`OUT/predictions.csv` has a row for each case: its file, and {kind} {what}."
