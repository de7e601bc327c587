"""A picture with the outlines of its mask above it, drawn voxel for voxel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from polyclinic.study.pictures import edge_length, jpeg, png, structure_colour

#: Longest side of a picture in pixels: smaller ones are enlarged by a whole number, larger ones thinned out.
SIDE, MOST = 400, 1000
_HALO = (0, 0, 0, 130)
_IGNORED = (150, 150, 150, 190)


@dataclass(frozen=True)
class Picture:
    """An image and, lying exactly above it, the outlines of its mask: data URIs; "" where nothing is marked."""

    image: str
    outlines: str
    width: int
    height: int
    ignored: bool
    """Whether the mask has voxels that play no part."""


def draw(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None, structures: int = 1) -> Picture:
    """An image as it is, and its mask as a picture of its own.

    Args:
        image: ``[C, H, W]``, one channel (grey) or three (red, green, blue).
        mask: class indices ``[H, W]``, 0 for the background; indices above ``structures`` are voxels to be ignored.
        structures: how many there are.
    """
    height, width = image.shape[1:]
    step = -(-max(height, width) // MOST)
    image, mask = image[:, ::step, ::step], None if mask is None else mask[::step, ::step]
    factor = max(-(-SIDE // max(height, width)), 1)
    pixels = image[:3].transpose(1, 2, 0) if len(image) >= 3 else image[0]
    shown = enlarged(np.ascontiguousarray(pixels), factor)
    drawn = png(outlines(mask, structures, factor)) if mask is not None and mask.any() else ""
    ignored = mask is not None and bool((mask > structures).any())
    return Picture(jpeg(shown), drawn, shown.shape[1], shown.shape[0], ignored)


def outlines(mask: NDArray[np.uint8], structures: int, factor: int = 1) -> NDArray[np.uint8]:
    """The outlines of all structures, each in its colour, on a transparent ground.

    A line lies within its structure, along its edge and along the edge of the image; it is two pixels wide, or one in
    small pictures. A dark rim lies around it, unless the structures are as fine as vessels. Voxels to be ignored are
    hatched in grey.

    Args:
        mask: class indices ``[H, W]``.
        structures: indices from 1 up to this one are structures; above it are voxels to be ignored.
        factor: by which the picture is enlarged.

    Returns:
        Red, green, blue and opacity, uint8 ``[factor * H, factor * W, 4]``.
    """
    fine = edge_length(mask) > 6 * sum(mask.shape)
    large = enlarged(mask, factor)
    canvas = np.zeros((*large.shape, 4), dtype=np.uint8)
    if not fine:
        canvas[_grown(large > 0) & (large == 0)] = _HALO
    for index in range(1, structures + 1):
        area = large == index
        inside = area
        for _ in range(1 if max(large.shape) < SIDE else 2):
            inside = ~_grown(~inside, edge=True)
        colour = [round(255 * part) for part in to_rgb(structure_colour(index - 1))]
        canvas[area & ~inside] = (*colour, 255)
    rows, columns = np.indices(large.shape)
    canvas[(large > structures) & ((rows + columns) // 3 % 2 == 0)] = _IGNORED
    return canvas


def enlarged(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Each pixel of ``[H, W]`` or ``[H, W, 3]`` as a square of ``factor`` by ``factor`` pixels."""
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _grown(area: NDArray[np.bool_], *, edge: bool = False) -> NDArray[np.bool_]:
    """The area ``[H, W]`` and its direct neighbours; with ``edge`` what lies outside the picture belongs to it."""
    padded = np.pad(area, 1, constant_values=edge)
    sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return area | sides[0] | sides[1] | sides[2] | sides[3]
