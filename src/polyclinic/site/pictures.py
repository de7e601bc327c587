"""Images and masks as pictures for a person to look at: bytes, and of volumes three slices."""

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
    from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform  # slow to import

    turn = ornt_transform(axcodes2ornt(orientation), axcodes2ornt("RAS"))
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
