"""What of a model's preparation can go into the exported file, and what has to be done before, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from polyclinic.data.combat import Estimate
from polyclinic.data.scaling import Scaler, Summary
from polyclinic.data.volumes.intensity import INTENSITIES
from polyclinic.study.final_model.description import Description
from polyclinic.study.final_model.folder import Model

_FROM_SITE = (
    "from cases of the same site, 20 or more, without their labels: a site that trained uses those that it trained on"
)


@dataclass(frozen=True)
class Front:
    """The part of the preparation that is the same at all sites, and so is part of the file.

    Attributes:
        scaler: how inputs are scaled; None where each site has its own way, so that inputs come scaled.
        fills: whether missing features are filled in, too.
        pixels: whether inputs are the pixels of pictures, uint8.
    """

    scaler: Scaler | None
    fills: bool = False
    pixels: bool = False

    @classmethod
    def of(cls, model: Model) -> Front:
        """Of a model."""
        description, names = model.description, [name for name, _ in model.description.steps]
        step, options = description.steps[-1]
        if "combat" in names or (step == "own_scaling" and options["standardise"]):
            return cls(None)
        pixels = not description.is_table and description.data.preprocessing is None
        if step == "common_scaling":
            scaler = Scaler.from_summary(Summary.from_tensors(model.merged[-1]))
            return cls(scaler, description.is_table and description.data.imputation != "drop", pixels)
        return cls(Scaler.identity(description.shape[0]), pixels=pixels)


def preparation_words(description: Description, front: Front) -> Iterator[str]:
    """What is done to a case before the file takes it, in sentences, in this order."""
    data = description.data
    if description.is_table:
        if data.divide_by:
            yield f"Numbers are divided by the column {data.divide_by} of the same row."
        if data.categorical:
            yield (
                "A column of codes becomes an input of 0 and 1 for each value; where it is missing, all of them are. "
                "Rows with a value that has no input are not for this model."
            )
    elif data.preprocessing is None:
        yield from _picture_words(description)
    else:
        yield from _volume_words(description)
    yield from _scaling_words(description, front)


def _picture_words(description: Description) -> Iterator[str]:
    channels, high, wide = description.shape
    kind = "grey (one channel)" if channels == 1 else "red, green and blue"
    yield (
        f"Pictures are turned upright (EXIF), made {kind} with 8 bits, and resized to {high} x {wide} pixels (height x "
        "width) as Pillow does with BILINEAR."
    )


def _volume_words(description: Description) -> Iterator[str]:
    preparation = description.data.preprocessing
    if preparation is None:
        return
    spacing = "their own voxels" if preparation.steps is None else f"voxels of {list(preparation.steps)} mm"
    middle = "their middle" if preparation.centre == "image" else "the middle of the box around their foreground (Otsu)"
    yield (
        f"Volumes are turned so that their axes point to {preparation.orientation}, brought to {spacing} by linear "
        f"interpolation after smoothing along axes that become coarser, and cropped or padded with their smallest "
        f"value to {list(preparation.sides or ())} voxels around {middle}."
    )
    name, options = INTENSITIES.resolve(preparation.intensity, ())
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    yield f"Intensities of that box are normalised: {name}{f' ({given})' if given else ''}."
    if name == "nyul":
        yield "Their landmarks are brought to the standard ones (`standard_landmarks`), piecewise linearly."
    box = description.data.planned_patch
    if box is not None and box.size != preparation.sides:
        yield (
            f"The volume is covered by windows of {list(box.size)} voxels that overlap by {box.overlap:g}; their "
            "outputs are averaged with Gaussian weights (MONAI: SlidingWindowInferer, mode gaussian)."
        )


def _scaling_words(description: Description, front: Front) -> Iterator[str]:
    data = description.data
    if front.scaler is None and any(name == "combat" for name, _ in description.steps):
        yield (
            "ComBat takes out what is the site's: for each feature v with covariates c, z = (v - (grand_mean + c · "
            f"coefficients)) / sqrt(variance); a shift and a spread of the site are estimated {_FROM_SITE}; then v = "
            "sqrt(variance) (z - shift) / sqrt(spread) + grand_mean + c · coefficients. Features of variance 0 stay as "
            "they are. `combat` has the numbers that are common to all sites. `polyclinic predict` does all of it."
        )
    filled = f"missing values become the {data.imputation}, then " if data.imputation != "drop" else ""
    filled = filled if description.is_table else ""
    if front.scaler is None and data.scaling == "per_site":
        what = "each feature" if description.is_table else "each channel (pixels from 0 to 1)"
        yield f"Scaling of {what}: {filled}(value - mean) / deviation, with numbers {_FROM_SITE}."
    elif front.scaler is None and data.scaling == "federated":
        filled = filled.replace("the median", "the mean")
        yield f"Scaling: {filled}(value - mean) / deviation with `mean` and `deviation`, the same at all sites."
    elif front.fills:
        yield "Missing values (NaN) are filled in and features are scaled within the file."
    elif front.scaler is not None and front.scaler.changes:
        yield "Inputs are scaled within the file."
    if description.is_table and data.imputation != "drop" and data.scaling == "none":
        yield f"Missing values become the {data.imputation} of the feature {_FROM_SITE}."
    if description.is_table and not front.fills:
        yield "A row with a missing value (NaN) gives no numbers (NaN)."


def preparation_numbers(model: Model, front: Front) -> dict[str, Any]:
    """Numbers with which a case is prepared that are the same at all sites, and not part of the file."""
    found: dict[str, Any] = {}
    for (name, options), merged in zip(model.description.steps, model.merged, strict=True):
        if name == "landmarks":
            found["standard_landmarks"] = merged["standard"].tolist()
        elif name == "combat":
            common = Estimate.from_tensors(merged)
            numbers = {key: value.tolist() for key, value in common.to_tensors().items()}
            found["combat"] = {"features": options["features"], "covariates": options["covariates"], **numbers}
        elif name == "common_scaling" and front.scaler is None:
            scaler = Scaler.from_summary(Summary.from_tensors(merged))
            found |= {"mean": scaler.mean.tolist(), "deviation": scaler.deviation.tolist()}
    return found


def raw_samples(front: Front, prepared: torch.Tensor) -> torch.Tensor:
    """Inputs of the file that come near to these inputs of the network ``[N, ...]`` once they are scaled; where
    missing values are filled in, some are."""
    if front.scaler is None:
        return prepared
    shape = (1, -1) + (1,) * (prepared.ndim - 2)
    raw = prepared * front.scaler.deviation.view(shape) + front.scaler.mean.view(shape)
    if front.pixels:
        return (raw * 255).round().clamp(0, 255).to(torch.uint8)
    if prepared.ndim == 2:
        gaps = raw.clone()
        gaps[:, ::2] = torch.nan
        return torch.cat([raw, gaps])
    return raw
