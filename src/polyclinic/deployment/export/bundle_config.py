"""``inference.json`` of a MONAI bundle: from the files of a case to a mask or a row of predictions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes import intensity
from polyclinic.deployment.export.front import Front
from polyclinic.models.monai_networks import BuiltOf
from polyclinic.study.final_model.description import Description
from polyclinic.tasks.classification import ONE_OUTPUT

Config = dict[str, Any]
_NETS = "monai.networks.nets"
#: Module in the bundle with what MONAI lacks.
_SCRIPT = "scripts.preparation"
_PILLOW = ["$from PIL.Image import Resampling", "$from PIL.ImageOps import exif_transpose"]
#: Modes of pictures that Pillow turns into 8 bits without cutting values off.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def inference(description: Description, front: Front, network: BuiltOf, weights: str) -> Config:
    """The whole configuration.

    Args:
        description: of the model.
        front: what of its preparation is the same at all sites.
        network: what it is built of.
        weights: file with them, from the bundle's folder.
    """
    masks, volumes = description.target == "masks", description.data.preprocessing is not None
    found: Config = {
        "imports": ["$import glob", "$import os", "$import torch", "$from safetensors.torch import load_file",
                    *([] if volumes else _PILLOW)],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'data')",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": f"{_NETS}.{network.network}", **network.arguments},
        "weights": f"$load_file(os.path.join(@bundle_root, {weights!r}))",
        "network": "$(@network_def.load_state_dict(@weights), @network_def.to(@device))[1]",
        **_files(description),
        **(_normalisation(description) if volumes else {}),
        "preprocessing": _compose(_volume_steps(description, front) if volumes else _picture_steps(description, front)),
        "dataset": {"_target_": "Dataset", "data": "$[{'image': one} for one in @images]",
                    "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False,
                       "num_workers": 0},
        "inferer": _inferer(description),
        "postprocessing": _compose(_mask_steps(description) if masks else _number_steps(description)),
        "handlers": [] if masks else [_SAVER],
        "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
                      "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
                      "val_handlers": "@handlers"},
        "inference": ["$@evaluator.run()"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    return found


#: One row a case: its file, and what is predicted of it.
_SAVER: Config = {
    "_target_": "ClassificationSaver", "output_dir": "@output_dir", "filename": "predictions.csv",
    "batch_transform": "$lambda batch: [one['image'].meta for one in batch]",
    "output_transform": "$lambda outputs: [one['pred'] for one in outputs]",
}  # fmt: skip


def _compose(steps: Iterator[Config]) -> Config:
    return {"_target_": "Compose", "transforms": list(steps)}


def _files(description: Description) -> Config:
    """Which files are the cases."""
    channels = description.data.image_columns
    if description.data.preprocessing is None:
        return {"images": "$sorted(one for one in glob.glob(os.path.join(@dataset_dir, '*.*')))"}
    if len(channels) == 1:
        return {"images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))"}
    return {
        "channels": channels,
        "images": "$[[os.path.join(case, one + '.nii.gz') for one in @channels] "
        "for case in sorted(glob.glob(os.path.join(@dataset_dir, '*', '')))]",
    }


def _normalisation(description: Description) -> Config:
    """A normalisation that is in the bundle's script, to which a step of the preprocessing refers."""
    name, options = _intensity(description)
    return {"intensity": {"_target_": f"{_SCRIPT}.normalisation", **options}} if _needs_script(name, options) else {}


def _volume_steps(description: Description, front: Front) -> Iterator[Config]:
    preparation = _preparation(description)
    yield {"_target_": "LoadImaged", "keys": "image"}
    yield {"_target_": "EnsureChannelFirstd", "keys": "image"}
    if preparation.frames != "reject":
        one = "image[:1]" if preparation.frames == "first" else "image.mean(dim=0, keepdim=True)"
        yield {"_target_": "Lambdad", "keys": "image", "func": f"$lambda image: {one}"}
    yield {"_target_": "Orientationd", "keys": "image", "axcodes": preparation.orientation}
    yield {
        "_target_": f"{_SCRIPT}.ToGridd", "keys": "image", "spatial_size": _sides(description),
        "pixdim": None if preparation.steps is None else list(preparation.steps),
    }  # fmt: skip
    yield from _intensity_steps(description)
    yield from _scaling_steps(front)


def _intensity_steps(description: Description) -> Iterator[Config]:
    name, options = _intensity(description)
    if _needs_script(name, options):
        yield {"_target_": "Lambdad", "keys": "image", "func": "@intensity"}
    elif name == "zscore":
        nonzero = options["foreground"] == "nonzero"
        yield {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": nonzero, "channel_wise": True}
    elif name == "percentile":
        yield {
            "_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": options["lower"],
            "upper": options["upper"], "b_min": 0.0, "b_max": 1.0, "clip": True, "channel_wise": True,
        }  # fmt: skip
    elif name == "window":
        yield {
            "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": options["lower"], "a_max": options["upper"],
            "b_min": 0.0, "b_max": 1.0, "clip": True,
        }  # fmt: skip


def _needs_script(name: str, options: dict[str, Any]) -> bool:
    """Whether MONAI has no transform for a normalisation: of voxels that a foreground leaves out."""
    own = {"zscore": ("otsu",), "percentile": ("otsu", "nonzero")}.get(name, ())
    return options.get("foreground") in own


def _intensity(description: Description) -> tuple[str, dict[str, Any]]:
    """Name of the normalisation, and all its options.

    Raises:
        EntryError: P102 or P103, it is none.
    """
    return intensity.INTENSITIES.resolve(_preparation(description).intensity, ("intensity",))


def script(description: Description) -> str:
    """A module with what MONAI lacks to prepare a volume as a study does; "" for pictures, which need none."""
    if description.data.preprocessing is None:
        return ""
    name, options = _intensity(description)
    steps = (
        Path(__file__).with_name("bundle_steps.py").read_text(encoding="utf-8").replace("  # type: ignore[misc]", "")
    )
    return steps + (_normalisation_source(name) if _needs_script(name, options) else "")


def _normalisation_source(name: str) -> str:
    """A normalisation as it stands in Polyclinic, with what it calls."""
    kind = intensity.INTENSITIES[name]
    parts = [intensity.foreground_of, intensity.otsu_threshold, kind]
    parts += [intensity._ends, intensity._stretch] if name == "percentile" else []
    sources = ["".join(line for line in inspect.getsource(part).splitlines(keepends=True) if not line.startswith("@"))
               for part in parts]  # fmt: skip
    last = f"def normalisation(**options):\n    return EachChannel({kind.__name__}(**options), foreground_of)\n"
    return "\n\n".join([f"\n\n_NOTHING = {intensity._NOTHING}\n", *sources, last])


def _picture_steps(description: Description, front: Front) -> Iterator[Config]:
    channels, high, wide = description.shape
    mode = "L" if channels == 1 else "RGB"
    # What has more than 8 bits is no key here, so that it is refused.
    eight = "{mode: image for mode in " + repr(_MODES) + "}[image.mode]"
    yield {
        "_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False,
        "converter": f"$lambda image: exif_transpose({eight}).convert('{mode}')"
        f".resize(({wide}, {high}), Resampling.BILINEAR)",
    }  # fmt: skip
    yield {"_target_": "EnsureChannelFirstd", "keys": "image"}
    yield {
        "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0.0, "b_max": 1.0,
    }  # fmt: skip
    yield from _scaling_steps(front)


def _scaling_steps(front: Front) -> Iterator[Config]:
    if front.scaler is not None and front.scaler.changes:
        yield {
            "_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": front.scaler.mean.tolist(),
            "divisor": front.scaler.deviation.tolist(), "channel_wise": True,
        }  # fmt: skip


def _inferer(description: Description) -> Config:
    box = description.data.planned_patch
    if box is None:
        return {"_target_": "SimpleInferer"}
    return {
        "_target_": "SlidingWindowInferer", "roi_size": list(box.size), "sw_batch_size": description.batch_size,
        "overlap": box.overlap, "mode": "gaussian",
    }  # fmt: skip


def _mask_steps(description: Description) -> Iterator[Config]:
    """Probabilities are brought back to the image's own voxels, and then decided; masks have the study's numbers."""
    several = description.outputs > 1
    yield {"_target_": "Activationsd", "keys": "pred", "softmax" if several else "sigmoid": True}
    yield {
        "_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing",
        "nearest_interp": False, "to_tensor": True,
    }  # fmt: skip
    decided = {"argmax": True} if several else {"threshold": description.threshold}
    yield {"_target_": "AsDiscreted", "keys": "pred", **decided}
    values, classes = description.mask_values, list(range(len(description.mask_values)))
    if values != classes:
        yield {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": classes, "target_labels": values}
    yield {
        "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "mask",
        "output_dtype": "uint8" if max(values) < 2**8 else "int32", "resample": False, "separate_folder": False,
        "data_root_dir": "@dataset_dir",
    }  # fmt: skip


def _number_steps(description: Description) -> Iterator[Config]:
    if description.target == "numbers":
        mean, deviation = description.scale or (0.0, 1.0)
        yield {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda found: found * {deviation!r} + {mean!r}"}
        return
    kind = "sigmoid" if description.loss == ONE_OUTPUT else "softmax"
    yield {"_target_": "Activationsd", "keys": "pred", kind: True}


def _preparation(description: Description) -> Preprocessing:
    if description.data.preprocessing is None:
        raise ValueError("the model is not of volumes")
    return description.data.preprocessing


def _sides(description: Description) -> list[int]:
    sides = _preparation(description).sides
    if sides is None:
        raise ValueError("the grid is not planned yet")
    return list(sides)
