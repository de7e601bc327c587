"""Random changes of training images: MONAI's transforms, named in the study file."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from polyclinic.errors import StudyError, nearest
from polyclinic.seeds import derive_seed

#: Transforms that move pixels: image and mask alike.
SPATIAL = (
    "RandFlip",
    "RandAxisFlip",
    "RandRotate90",
    "RandRotate",
    "RandZoom",
    "RandAffine",
    "Rand2DElastic",
    "Rand3DElastic",
    "RandGridDistortion",
)
#: Transforms that change pixel values: the image only.
INTENSITY = (
    "RandGaussianNoise",
    "RandRicianNoise",
    "RandGaussianSmooth",
    "RandGaussianSharpen",
    "RandAdjustContrast",
    "RandScaleIntensity",
    "RandShiftIntensity",
    "RandStdShiftIntensity",
    "RandHistogramShift",
    "RandBiasField",
    "RandGibbsNoise",
    "RandKSpaceSpikeNoise",
    "RandCoarseDropout",
    "RandCoarseShuffle",
)
# Set here, or about files and devices, which are no business of a study.
_NOT_OFFERED = {"keys", "allow_missing_keys", "lazy", "dtype", "device", "meta_keys", "meta_key_postfix", "factor_key"}
# A fault may show with some random numbers only: a turn by half keeps the shape, a quarter turn does not.
_TRIES = 4


class Augmentation:
    """A chain of MONAI's random transforms for images and volumes.

    Transforms that move pixels treat the mask as the image, but take its nearest pixel; the others leave it alone. The
    random numbers depend on the seed of the call only, and no global random state is read or changed.

    Args:
        spec: names of MONAI's array transforms, each alone or with its arguments:
            ``["RandRotate90", {"RandFlip": {"prob": 0.5, "spatial_axis": 0}}]``.
        size: sides of the images, two or three; each transform is tried on an image of this size at once.

    Raises:
        StudyError: P103 for an unknown transform; P102 for an argument that it does not have, or does not work with.
    """

    def __init__(self, spec: list[str | dict[str, dict[str, object]]], size: tuple[int, ...] = (32, 32)) -> None:
        self._transforms: list[Any] = []
        for entry in spec:
            for name, arguments in [(entry, {})] if isinstance(entry, str) else list(entry.items()):
                _check(name, arguments or {}, size)
                self._transforms.append(_build(name, arguments or {}))

    def __call__(self, images: Tensor, masks: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Change each image of a batch in its own way.

        Args:
            images: float32 ``[B, C, H, W]`` from 0 to 1, or volumes ``[B, C, D, H, W]`` of any range.
            masks: uint8 ``[B, 1, H, W]`` or ``[B, 1, D, H, W]`` of class indices, or None.
            seed: of this batch.

        Returns:
            images and masks of the same shapes and types; two-dimensional images stay from 0 to 1.
        """
        for number, transform in enumerate(self._transforms):
            transform.set_random_state(seed=derive_seed(seed, number) % 2**32)
        new_images = torch.empty_like(images)
        new_masks = None if masks is None else torch.empty_like(masks)
        with _without_metadata():
            for position in range(len(images)):
                # Some transforms write into what they are given.
                case = {"image": images[position].clone()}
                if masks is not None:
                    case["mask"] = masks[position].float()
                for transform in self._transforms:
                    case = transform(case)
                new_images[position] = case["image"].clamp(0.0, 1.0) if images.ndim == 4 else case["image"]
                if new_masks is not None:
                    new_masks[position] = case["mask"].round().to(torch.uint8)
        return new_images, new_masks


def _build(name: str, arguments: dict[str, object]) -> Any:
    import monai.transforms

    dictionary_transform = getattr(monai.transforms, f"{name}d")
    if name in INTENSITY:
        return dictionary_transform(keys=["image"], **arguments)
    changed = dict(arguments)
    if "mode" in inspect.signature(dictionary_transform).parameters:
        changed["mode"] = [arguments.get("mode", "bilinear"), "nearest"]
    return dictionary_transform(keys=["image", "mask"], allow_missing_keys=True, **changed)


def _check(name: str, arguments: dict[str, object], size: tuple[int, ...]) -> None:
    """Stop unless the transform exists and works, by trying it on an image."""
    import monai.transforms

    known = [*SPATIAL, *INTENSITY]
    if name not in known:
        raise StudyError("P103", f"{name!r} is no image augmentation.", nearest(name, known))
    parameters = inspect.signature(getattr(monai.transforms, f"{name}d")).parameters.values()
    valid = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in _NOT_OFFERED]
    for argument in arguments:
        if argument not in valid:
            raise StudyError("P102", f"{name} has no argument {argument!r}.", nearest(argument, valid))
    prob = arguments.get("prob", 1.0)
    if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
        raise StudyError("P102", f"{name} has `prob` {prob!r}.", "Give a probability from 0 to 1.")
    for required in (p.name for p in parameters if p.default is p.empty and p.name in valid):
        if required not in arguments:
            raise StudyError("P102", f"{name} needs the argument {required!r}.", f"Write {name}: {{{required}: ...}}.")
    problem = _problem(name, arguments, size)
    if problem:
        # The argument without which it works is the one to blame.
        culprits = [a for a in arguments if not _problem(name, {k: v for k, v in arguments.items() if k != a}, size)]
        blamed = culprits or [argument for argument in arguments if argument != "prob"]
        values = ", ".join(f"`{argument}` {arguments[argument]!r}" for argument in blamed)
        with_values = f" with {values}" if values else ""
        raise StudyError("P102", f"{name}{with_values} does not work: {problem}.", "Compare MONAI's documentation.")


def _problem(name: str, arguments: dict[str, object], size: tuple[int, ...]) -> str:
    """What goes wrong when the transform is applied for certain, or ""."""
    channels = 3 if len(size) == 2 else 1
    image = torch.linspace(0.0, 1.0, channels * math.prod(size)).view(channels, *size)
    mask = (image[:1] > 0.5).float()
    try:
        with _without_metadata():
            transform = _build(name, arguments | {"prob": 1.0})
            tries = [
                transform.set_random_state(seed=seed)({"image": image.clone(), "mask": mask.clone()})["image"]
                for seed in range(_TRIES)
            ]
    except Exception as error:  # MONAI raises many types for arguments that do not fit
        return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".?")
    for changed in tries:
        if changed.shape != image.shape:
            before, after = (" x ".join(map(str, sides)) for sides in (size, changed.shape[1:]))
            return f"it turns images of {before} pixels into {after}"
        if not changed.isfinite().all():
            return "it makes pixels that are not numbers"
    return ""


@contextmanager
def _without_metadata() -> Iterator[None]:
    """MONAI's transforms on plain tensors: without affine matrices, which PNG and JPEG files don't have."""
    from monai.data.meta_obj import get_track_meta, set_track_meta

    tracked = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(tracked)
