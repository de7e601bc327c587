"""Volumes in the space of the image that was read: resampling, cropping, padding and turning are undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from polyclinic.data.readers.volume import Volume
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.grid import Grid, resample
from polyclinic.data.volumes.mask_place import place_mask
from polyclinic.data.volumes.preprocessing import grid_of, single_frame

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint8]

#: A voxel belongs to the grid up to so much of a voxel beyond the middle of the outermost ones.
_HALF = 0.5 + 1e-6


@dataclass(frozen=True, eq=False)
class VolumeSpace:
    """An image's own voxels, and those of the grid to which it is brought.

    Attributes:
        image: as it was read, with three axes.
        grid: where the prepared voxels lie.
    """

    image: Volume
    grid: Grid

    @classmethod
    def of(cls, image: Volume, preparation: Preprocessing) -> VolumeSpace:
        """The space of a case's first image.

        Raises:
            UnreadableError: the image can't be used, and why.
        """
        grid, frame = grid_of(image, preparation)
        return cls(frame, grid)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Sizes of the image's voxels along its own axes, in millimetres."""
        return self.image.spacing

    def decided(self, probabilities: Floats, threshold: float) -> Indices:
        """Classes of the image's voxels ``[X, Y, Z]``, from probabilities on the grid; see `decided_in`."""
        return decided_in(probabilities, self.grid, self.image, threshold)

    def interpolated(self, values: Floats) -> Floats:
        """Values at the image's voxels ``[X, Y, Z]``, from those on the grid ``[D, H, W]``; 0 outside of it."""
        matrix, offset = _to_grid(self.grid, self.image)
        shape = self.image.values.shape
        found = _between(values, matrix, offset, shape)
        found[~_inside(matrix, offset, shape, self.grid.size)] = 0.0
        return found

    def reference(
        self,
        mask: Volume,
        classes: Callable[[npt.NDArray[np.generic]], Indices],
        counts: Literal["voxels", "header"] | None,
    ) -> Indices:
        """Class indices of a mask at the image's voxels ``[X, Y, Z]``.

        A mask with the image's voxels is taken as it is; where its axes run another way, they are turned. One of other
        voxels gives each voxel of the image that of its own which is nearest.

        Args:
            mask: as it was read.
            classes: turns its values into class indices.
            counts: what tells where it lies, see `place_mask`.

        Raises:
            UnreadableError: mask and image do not go together.
        """
        import nibabel  # slow to import

        own = "".join(nibabel.aff2axcodes(self.image.affine))
        turned, _, other = place_mask(single_frame(mask, "reject", kind="mask"), self.image, own, counts)
        indices = classes(turned.values)
        if not other:
            return indices
        shape = self.image.values.shape
        there = Grid(self.image.affine, (shape[0], shape[1], shape[2]))
        found: Indices = resample(Volume(indices, turned.affine), there, order=0).astype(np.uint8, copy=False)
        return found


def decided_in(probabilities: Floats, grid: Grid, image: Volume, threshold: float) -> Indices:
    """Classes of the voxels of an image, from probabilities on a grid.

    Probabilities are interpolated linearly, and then decided: a mask that is decided first and resampled then has steps
    of the grid. What lies outside of the grid is background. One class is brought back at a time, to bound memory.

    Args:
        probabilities: of the foreground ``[1, D, H, W]``, or of each class ``[C, D, H, W]``, background first.
        grid: where these voxels lie.
        image: with three axes, as it was read.
        threshold: of the foreground, where there is one structure.

    Returns:
        uint8 ``[X, Y, Z]``, in the order of the image's voxels.
    """
    matrix, offset = _to_grid(grid, image)
    shape = image.values.shape
    highest: Floats | None = None
    found = np.zeros(shape, dtype=np.uint8)
    for place, one in enumerate(probabilities):
        values = _between(one, matrix, offset, shape)
        if len(probabilities) == 1:
            found[values >= threshold] = 1
        elif highest is None:
            highest = values
        else:
            more = values > highest
            found[more], highest = place, np.maximum(values, highest)
    found[~_inside(matrix, offset, shape, grid.size)] = 0
    return found


def _between(
    values: Floats, matrix: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> Floats:  # fmt: skip
    """Values of a grid between its voxels, interpolated linearly; outside of it those of the nearest."""
    found: Floats = ndimage.affine_transform(
        np.asarray(values, dtype=np.float32), matrix, offset, shape, order=1, mode="nearest", output=np.float32
    )
    return found


def _to_grid(grid: Grid, image: Volume) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """From the image's voxels to those of the grid: matrix ``[3, 3]`` and offset ``[3]``.

    Where the two have the same voxels, rounding must not come between them: the grid's values are then taken as they
    are, as `polyclinic.data.volumes.grid.resample` does on the way there.
    """
    change = np.linalg.inv(grid.affine) @ image.affine
    matrix, offset = change[:3, :3], change[:3, 3]
    if np.allclose(matrix, np.rint(matrix), atol=1e-6) and np.allclose(offset, np.rint(offset), atol=1e-4):
        return np.rint(matrix), np.rint(offset)
    return matrix, offset


def _inside(
    matrix: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], shape: tuple[int, ...], size: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Which voxels lie within the voxels of the grid."""
    inside = np.ones(shape, dtype=np.bool_)
    axes = [np.arange(side, dtype=np.float64) for side in shape]
    for row, start, side in zip(matrix, offset, size, strict=True):
        x, y, z = (factor * axis for factor, axis in zip(row, axes, strict=True))
        where = start + x[:, None, None] + y[None, :, None] + z[None, None, :]
        inside &= (where >= -_HALF) & (where <= side - 1 + _HALF)
    return inside
