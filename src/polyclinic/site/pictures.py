"""Images, with masks or reconstructed, as pictures for a person to look at: bytes, and of volumes slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.ignored import IGNORED

#: Grey values below and above these percentiles become black and white.
WINDOW = (1.0, 99.0)
#: The axis that each slice of a volume stands on, in the order in which they are shown.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}


def case_pictures(
    image: Tensor, mask: Tensor, prediction: Tensor, spacing: Sequence[float] | None = None, orientation: str = "RAS"
) -> dict[str, Tensor]:
    """The pictures of one segmented case.

    An image is shown as it is. Of a volume three slices are shown side by side, each through the place where prediction
    and mask differ most, or through the most of the mask where they agree. The slices are turned as radiologists see
    them: front or top up, the patient's right on the left. Voxels that are no cubes are stretched to scale.

    Args:
        image: ``[C, H, W]`` or ``[C, X, Y, Z]``, bytes or numbers; of a volume the first channel is shown.
        mask: class indices, uint8 ``[H, W]`` or ``[X, Y, Z]``.
        prediction: same shape.
        spacing: size of a voxel along each axis; default all equal.
        orientation: where the axes of a volume point; the default is right, front and top of the patient.

    Returns:
        ``image`` uint8 ``[C, H, W]``, ``mask`` and ``prediction`` uint8 ``[H, W]``; for a volume also ``planes``, int32
        ``[3]``: the widths of the slices, in the order of ``PLANES``.
    """
    if mask.dim() == 2:
        shown = image if image.dtype == torch.uint8 else torch.stack([window(channel) for channel in image])
        return {"image": shown, "mask": mask, "prediction": prediction}
    from nibabel.orientations import apply_orientation  # slow to import

    turn = _turn(orientation)
    layers = [apply_orientation(one.numpy(), turn) for one in (window(image[0]), mask, prediction)]
    if spacing is not None:
        spacing = [spacing[int(axis)] for axis in np.argsort(turn[:, 0])]
    places = _places(layers[1], layers[2])
    scale = np.ones(3) if spacing is None else np.asarray(spacing) / min(spacing)
    slices = {name: [_slice(layer, axis, places[axis], scale) for layer in layers] for name, axis in PLANES.items()}
    height = max(parts[0].shape[0] for parts in slices.values())
    rows = [np.concatenate([_padded(parts[i], height) for parts in slices.values()], axis=1) for i in range(3)]
    widths = torch.tensor([parts[0].shape[1] for parts in slices.values()], dtype=torch.int32)
    found = dict(zip(("image", "mask", "prediction"), map(torch.from_numpy, rows), strict=True))
    return {**found, "image": found["image"][None], "planes": widths}


def reconstruction_pictures(
    found: Tensor, truth: Tensor, zero_filled: Tensor, spacing: Sequence[float] | None = None, orientation: str = "RAS"
) -> dict[str, Tensor]:
    """The pictures of one reconstructed case, all with the same two scales.

    Of a volume one slice is shown, as k-space has it: along its last two axes, where the squared error of the
    reconstruction is largest. It is turned and stretched as `case_pictures` does.

    Args:
        found: the reconstruction, magnitudes ``[H, W]`` or ``[D, H, W]``.
        truth: the fully sampled image, same shape.
        zero_filled: what is there without a network, same shape.
        spacing: size of a voxel along each axis; default all equal.
        orientation: where the axes of a volume point.

    Returns:
        ``zero_filled``, ``reconstruction`` and ``reference``, uint8 ``[H, W]``, black at 0 and white from the 99th
        percentile of the reference on. ``zero_filled_error`` and ``error``, uint8 ``[H, W]``: absolute errors, where
        255 is the largest of both. ``span``, float64 ``[1]``: what 255 means, as a share of the case's largest value.
    """
    layers = [one.double().numpy() for one in (zero_filled, found, truth)]
    largest = float(layers[2].max())
    place = 0
    if truth.dim() == 3:
        place = int(np.square(layers[1] - layers[2]).sum(axis=(1, 2)).argmax())
        layers = [layer[place] for layer in layers]
    errors = [np.abs(layer - layers[2]) for layer in layers[:2]]
    white = float(np.percentile(layers[2], WINDOW[1])) or largest
    most = max(float(error.max()) for error in errors)
    grey = [_bytes(layer, white) for layer in layers] + [_bytes(error, most) for error in errors]
    if truth.dim() == 3:
        grey = [_one_slice(layer, spacing, orientation) for layer in grey]
    names = ("zero_filled", "reconstruction", "reference", "zero_filled_error", "error")
    pictures = dict(zip(names, map(torch.from_numpy, grey), strict=True))
    return {**pictures, "span": torch.tensor([most / largest if largest else 0.0], dtype=torch.float64)}


def _bytes(values: NDArray[np.float64], white: float) -> NDArray[np.uint8]:
    """From black at 0 to white at ``white``."""
    return np.clip(values / (white or 1.0) * 255, 0, 255).round().astype(np.uint8)


def _one_slice(layer: NDArray[np.uint8], spacing: Sequence[float] | None, orientation: str) -> NDArray[np.uint8]:
    """A slice ``[H, W]`` along the last two axes of a volume, turned for a person, its pixels to scale."""
    from nibabel.orientations import apply_orientation

    turn = _turn(orientation)
    axes = [int(axis) for axis in turn[:, 0]]
    scale = np.ones(3)
    if spacing is not None:
        scale[axes[1:]] = np.asarray(spacing[1:]) / min(spacing[1:])
    return _slice(apply_orientation(layer[None], turn), axes[0], 0, scale)


def _turn(orientation: str) -> NDArray[np.float64]:
    """How a volume is turned to right, front and top: for each axis the one that it becomes, and 1 or -1."""
    from nibabel.orientations import axcodes2ornt, ornt_transform

    turn: NDArray[np.float64] = ornt_transform(axcodes2ornt(orientation), axcodes2ornt("RAS"))
    return turn


def window(values: Tensor) -> Tensor:
    """Grey values as bytes, from black at the first to white at the 99th percentile; bytes stay as they are."""
    if values.dtype == torch.uint8:
        return values
    numbers = np.nan_to_num(values.float().numpy())
    low, high = np.percentile(numbers, WINDOW)
    if high <= low:
        # Most of the image is one value: the percentiles say nothing.
        low, high = float(numbers.min()), float(numbers.max())
    grey = np.clip((numbers - low) / max(high - low, 1e-12), 0.0, 1.0) * 255
    return torch.from_numpy(grey.round().astype(np.uint8))


def _places(mask: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> list[int]:
    """For each axis the slice with the most disagreement, else the most of the mask, else the middle one.

    Of several structures a slice has the more, the larger its share of each is: a small one counts like a large one.
    """
    there = np.setdiff1d(mask, (0, IGNORED))
    structures = [(mask == index, np.count_nonzero(mask == index)) for index in there]
    places = []
    for axis, size in enumerate(mask.shape):
        others = tuple(other for other in range(3) if other != axis)
        apart = (mask != prediction).sum(axis=others)
        there = sum((area.sum(axis=others) / total for area, total in structures), np.zeros(size))
        places.append(next((int(count.argmax()) for count in (apart, there) if count.any()), size // 2))
    return places


def _slice(layer: NDArray[np.uint8], axis: int, place: int, scale: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One slice, turned for a person: the first of its axes runs to the left, the second up."""
    left, up = (other for other in range(3) if other != axis)
    turned: NDArray[np.uint8] = np.take(layer, place, axis=axis)[::-1, ::-1].T
    rows, columns = (
        np.minimum((np.arange(round(size * factor)) / factor).astype(int), size - 1)
        for size, factor in zip(turned.shape, (scale[up], scale[left]), strict=True)
    )
    return np.ascontiguousarray(turned[rows][:, columns])


def _padded(slice_: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    before = (height - slice_.shape[0]) // 2
    return np.pad(slice_, ((before, height - slice_.shape[0] - before), (0, 0)))
