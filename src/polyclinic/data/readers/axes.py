"""Axes at right angles, for images whose own axes are not.

The slices of a CT with a tilted gantry are shifted against each other, and a NIfTI file that was registered may hold a
shear. Such voxels are no boxes: lengths along their third axis are too long, and a network would see a leaning head.
"""

from __future__ import annotations

import contextlib
from itertools import combinations

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError

Floats = npt.NDArray[np.float64]

#: Cosine up to which two axes count as at right angles (0.1 degrees): headers round.
RIGHT = 2e-3
#: An axis this near (cosine) to the plane of the other two makes no volume.
_FLAT = 0.1


def shear_angle(affine: Floats) -> float:
    """By how many degrees an axis leans at most away from the normal of the other two; 0 at right angles.

    Args:
        affine: ``[4, 4]`` from voxel indices to millimetres.
    """
    axes = _directions(affine)
    if _right_angled(axes):
        return 0.0
    normals = np.cross(axes[:, [1, 2, 0]], axes[:, [2, 0, 1]], axis=0)
    normals /= np.linalg.norm(normals, axis=0)
    kept = _kept_pair(affine, axes)
    leaning = [axis for axis in range(3) if kept is None or axis not in kept]
    cosines = np.abs((axes * normals).sum(axis=0))[leaning]
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0.0, 1.0))))


def right_angled(affine: Floats) -> Floats:
    """The affine with axes at right angles that is nearest; voxel (0, 0, 0) stays where it is.

    Where two of the axes are at right angles, as in a slice, they stay as they are, and the third becomes their normal
    with the distance of the slices as its length. Else all three turn as little as possible.

    Args:
        affine: ``[4, 4]`` from voxel indices to millimetres. One whose axes are at right angles is given back.

    Raises:
        UnreadableError: the axes lie nearly in one plane.
    """
    axes = _directions(affine)
    if _right_angled(axes):
        return affine
    if abs(float(np.linalg.det(axes))) < _FLAT:
        raise UnreadableError("axes of the image lie nearly in one plane")
    pair = _kept_pair(affine, axes)
    if pair is None:
        left, _, right = np.linalg.svd(axes)
        turned = left @ right  # the nearest rotation (or reflection), Higham 1988
    else:
        first, second = pair
        third = 3 - first - second
        turned = axes.copy()
        normal = np.cross(axes[:, first], axes[:, second])
        # A pair within the tolerance is made exact, so that the grid is.
        turned[:, second] -= turned[:, first] * float(turned[:, first] @ turned[:, second])
        turned[:, second] /= np.linalg.norm(turned[:, second])
        turned[:, third] = normal / np.linalg.norm(normal) * np.sign(normal @ axes[:, third])
    found = affine.copy()
    # The length along each new axis is what the old one reaches along it.
    found[:3, :3] = turned * (turned * affine[:3, :3]).sum(axis=0)
    return found


def true_spacing(affine: Floats) -> tuple[float, float, float]:
    """Voxel sizes along axes at right angles, in millimetres: of tilted slices their distance along the normal.

    Axes that lie in one plane have none: then the lengths of the axes themselves.
    """
    with contextlib.suppress(UnreadableError):
        affine = right_angled(affine)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def _directions(affine: Floats) -> Floats:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    directions: Floats = affine[:3, :3] / np.where(lengths > 0, lengths, 1.0)
    return directions


def _right_angled(axes: Floats) -> bool:
    return all(abs(float(axes[:, one] @ axes[:, other])) <= RIGHT for one, other in combinations(range(3), 2))


def _kept_pair(affine: Floats, axes: Floats) -> tuple[int, int] | None:
    """Two axes at right angles: those of a slice, whose voxels are as long as they are wide in most images."""
    lengths = np.log(np.linalg.norm(affine[:3, :3], axis=0))
    pairs = [pair for pair in combinations(range(3), 2) if abs(float(axes[:, pair[0]] @ axes[:, pair[1]])) <= RIGHT]
    return min(pairs, key=lambda pair: round(abs(float(lengths[pair[0]] - lengths[pair[1]])), 3), default=None)
