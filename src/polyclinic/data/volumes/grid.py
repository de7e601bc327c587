"""Bringing volumes of all orientations and voxel sizes to one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from polyclinic.data.readers.axes import right_angled
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
    import nibabel  # slow to import

    now = nibabel.orientations.io_orientation(volume.affine)
    if np.isnan(now).any():
        raise UnreadableError("image has no orientation")
    change = nibabel.orientations.ornt_transform(now, nibabel.orientations.axcodes2ornt(tuple(codes)))
    values = nibabel.orientations.apply_orientation(volume.values, change)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(change, volume.values.shape[:3])
    return Volume(values, affine, volume.about, volume.notes)


def to_right_angles(volume: Volume) -> Floats:
    """From the volume's voxels to those that it would have with axes at right angles: ``[4, 4]``, mostly 1."""
    axes = right_angled(volume.affine)
    return np.eye(4) if axes is volume.affine else np.linalg.inv(axes) @ volume.affine


def box_of(volume: Volume, inside: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """First and last voxel of what is ``inside``, along axes at right angles; of the whole volume if that is nothing.

    Args:
        volume: ``[X, Y, Z]``.
        inside: of the same shape.
    """
    if not inside.any():
        inside = np.ones_like(inside)
    change = to_right_angles(volume)
    if np.array_equal(change, np.eye(4)):
        found = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        return np.array([float(one[0]) for one in found]), np.array([float(one[-1]) for one in found])
    # What is farthest along a straight direction is the first or the last of its column.
    columns = np.argwhere(inside.any(axis=2))
    voxels = inside[columns[:, 0], columns[:, 1]]
    ends = [voxels.argmax(axis=1), voxels.shape[1] - 1 - voxels[:, ::-1].argmax(axis=1)]
    places = np.concatenate([np.column_stack([columns, end]) for end in ends]) @ change[:3, :3].T + change[:3, 3]
    return places.min(axis=0), places.max(axis=0)


def target_grid(
    volume: Volume, spacing: Sequence[float] | None, size: tuple[int, int, int], middle: Sequence[float]
) -> Grid:
    """The grid of ``size`` voxels along the axes of ``volume`` whose middle is ``middle``.

    Where the spacing stays as it is, the grid falls onto the volume's own voxels, so that no value is interpolated. A
    volume whose axes are not at right angles (a tilted gantry) gets a grid whose axes are; see `right_angled`.

    Args:
        volume: turned to the wanted orientation already.
        spacing: voxel sizes in mm along the three axes; None keeps those of the volume.
        size: voxels along the three axes.
        middle: what comes to lie in the middle, in the volume's voxels along axes at right angles.

    Raises:
        UnreadableError: the axes lie nearly in one plane.
    """
    axes = right_angled(volume.affine)
    own = np.linalg.norm(axes[:3, :3], axis=0)
    wanted = own if spacing is None else np.asarray(spacing, dtype=np.float64)
    step = np.where(np.abs(wanted - own) <= _SAME * own, 1.0, wanted / own)
    place, sides = np.asarray(middle, dtype=np.float64), np.array(size)
    corner = place - step * (sides - 1) / 2
    # An image thinner than a step of the grid would lie between two planes of it: one is put onto the middle.
    span = np.abs(to_right_angles(volume)[:3, :3]) @ (np.array(volume.values.shape[:3]) - 1.0)
    corner = np.where(step > span, place - step * (sides // 2), corner)
    # Half a voxel up, so that ties fall alike whatever the rounding of the middle.
    corner = np.where(step == 1.0, np.floor(place - (sides - 1) / 2 + 0.5 - 1e-6), corner)
    within = np.eye(4)
    within[:3, :3] = np.diag(step)
    within[:3, 3] = corner
    return Grid(axes @ within, size)


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
