"""How much of an image lies inside the grid, and how much of the grid the image fills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import Volume
from polyclinic.data.volumes.grid import Floats, Grid
from polyclinic.data.volumes.intensity import foreground_of

#: Places looked at along each axis: enough for a share to a few hundredths.
_PLACES = 48


@dataclass(frozen=True)
class Coverage:
    """How an image and the grid lie to each other.

    Attributes:
        filled: share of the grid in which there is image.
        inside: share of the image's foreground that lies inside the grid, estimated from voxels spread evenly.
        voxels: size of the whole image in voxels of the grid, at least one along each axis.
    """

    filled: float
    inside: float
    voxels: float


def coverage(volume: Volume, grid: Grid) -> Coverage:
    """Measure both shares.

    Args:
        volume: ``[X, Y, Z]``.
        grid: where it is brought.
    """
    to_grid: Floats = np.linalg.inv(grid.affine) @ volume.affine
    filled = _share_within(np.asarray(np.linalg.inv(to_grid), dtype=np.float64), grid.size, volume.values.shape)
    sides = volume.values.shape
    step = [max(1, side // _PLACES) for side in sides]
    sample = np.ascontiguousarray(volume.values[:: step[0], :: step[1], :: step[2]].astype(np.float32))
    places = np.argwhere(foreground_of(sample, "otsu")) * step
    if not len(places):
        places = np.argwhere(np.ones(sample.shape, dtype=np.bool_)) * step
    inside = float(_within(places @ to_grid[:3, :3].T + to_grid[:3, 3], grid.size).mean())
    spans = np.abs(to_grid[:3, :3]) @ np.array(sides)
    return Coverage(filled, inside, float(np.maximum(spans, 1.0).prod()))


def _share_within(change: Floats, sides: tuple[int, ...], others: tuple[int, ...]) -> float:
    """Share of the places of one box that, by ``change``, lie in another."""
    if np.allclose(change[:3, :3], np.diag(np.diag(change[:3, :3])), atol=1e-6):
        share = 1.0
        for axis, (side, other) in enumerate(zip(sides, others, strict=True)):
            found = np.arange(side) * change[axis, axis] + change[axis, 3]
            share *= float(np.mean((found >= -0.5) & (found < other - 0.5)))
        return share
    lines = [np.unique(np.linspace(0, side - 1, min(side, _PLACES)).round()) for side in sides]
    places = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    return float(_within(places @ change[:3, :3].T + change[:3, 3], others).mean())


def _within(places: Floats, sides: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    inside = (places >= -0.5) & (places < np.array(sides) - 0.5)
    return np.asarray(np.all(inside, axis=1))
