"""Bringing volumes of all orientations and voxel sizes to one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from polyclinic.data.readers.volume import UnreadableError, Volume

Floats = npt.NDArray[np.float64]

#: Voxel sizes are taken as equal up to this share: scanners write 0.9999 for 1.
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a prepared volume lie.

    Attributes:
        affine: float64 ``[4, 4]`` from voxel indices to millimetres in RAS+.
        size: voxels along the three axes.
    """

    affine: Floats
    size: tuple[int, int, int]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z


def oriented(volume: Volume, codes: str) -> Volume:
    """The same voxels with axes turned and swapped to point as near as possible to ``codes`` (such as RAS)."""
    now = nibabel.orientations.io_orientation(volume.affine)
    if np.isnan(now).any():
        raise UnreadableError("image has no orientation")
    change = nibabel.orientations.ornt_transform(now, nibabel.orientations.axcodes2ornt(tuple(codes)))
    values = nibabel.orientations.apply_orientation(volume.values, change)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(change, volume.values.shape[:3])
    return Volume(values, affine, volume.about, volume.notes)


def target_grid(
    volume: Volume, spacing: Sequence[float] | None, size: tuple[int, int, int], middle: Sequence[float]
) -> Grid:
    """The grid of ``size`` voxels along the axes of ``volume`` whose middle is the volume's voxel ``middle``.

    Where the spacing stays as it is, the grid falls onto the volume's own voxels, so that no value is interpolated.

    Args:
        volume: turned to the wanted orientation already.
        spacing: voxel sizes in mm along the three axes; None keeps those of the volume.
        size: voxels along the three axes.
        middle: voxel coordinates that come to lie in the middle.
    """
    own = np.array(volume.spacing)
    wanted = own if spacing is None else np.asarray(spacing, dtype=np.float64)
    step = np.where(np.abs(wanted - own) <= _SAME * own, 1.0, wanted / own)
    corner = np.asarray(middle, dtype=np.float64) - step * (np.array(size) - 1) / 2
    # Half a voxel up, so that ties fall alike whatever the rounding of the middle.
    corner = np.where(step == 1.0, np.floor(corner + 0.5 - 1e-6), corner)
    within = np.eye(4)
    within[:3, :3] = np.diag(step)
    within[:3, 3] = corner
    return Grid(volume.affine @ within, size)


def resample(volume: Volume, grid: Grid, *, order: Literal[0, 1]) -> npt.NDArray[Any]:
    """The values of ``volume`` at the voxels of ``grid``.

    Outside of the volume an image continues with its smallest value (air: 0 in MRI, -1024 or so in CT), a mask with 0.

    Args:
        volume: ``[X, Y, Z]``.
        grid: where values are wanted.
        order: 1 interpolates linearly, after smoothing along axes that become coarser (a Gaussian of standard deviation
            (step - 1) / 2 voxels, as scikit-image does); 0 takes the nearest voxel (masks).

    Returns:
        float32 for order 1, the type of the volume for order 0.
    """
    values: npt.NDArray[Any] = volume.values
    fill = 0.0
    to_source = np.linalg.inv(volume.affine) @ grid.affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    if order:
        values = values.astype(np.float32, copy=False)
        fill = float(values.min())
        # Along each of the volume's axes: how many of its voxels a step of the grid takes.
        steps = np.abs(matrix).max(axis=1)
        if (steps > 1 + _SAME).any():
            values = ndimage.gaussian_filter(values, np.maximum(0.0, (steps - 1) / 2), truncate=3.0)
    if np.allclose(matrix, np.eye(3), atol=1e-6) and np.allclose(offset, np.rint(offset), atol=1e-4):
        return _box(values, np.rint(offset).astype(int), grid.size, fill)
    diagonal = np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9)
    found: npt.NDArray[Any] = ndimage.affine_transform(
        values, np.diag(matrix) if diagonal else matrix, offset, grid.size, order=order, mode="grid-constant", cval=fill
    )
    return found


def _box(values: npt.NDArray[Any], corner: npt.NDArray[np.int_], size: Sequence[int], fill: float) -> npt.NDArray[Any]:
    """The box of ``size`` at ``corner``, with ``fill`` where it sticks out."""
    found = np.full(tuple(size), fill, dtype=values.dtype)
    first = np.maximum(corner, 0)
    last = np.minimum(corner + np.array(size), values.shape)
    if (last > first).all():
        there = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        here = tuple(slice(a - c, b - c) for a, b, c in zip(first, last, corner, strict=True))
        found[here] = values[there]
    return found
