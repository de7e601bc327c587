"""Where a mask lies to its image, in millimetres."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.volumes.grid import oriented

Floats = npt.NDArray[np.float64]

#: Image and mask may differ by so much of a voxel in where they lie: headers are rounded.
APART = 0.5
#: A mask of other voxels is left out where less than this share of its foreground lies in the image.
_LEAST_INSIDE = 0.5


def place_mask(
    mask: Volume, image: Volume, orientation: str, grid: Literal["voxels", "header"] | None
) -> tuple[Volume, str, bool]:
    """The mask turned to ``orientation``, at the place that counts.

    Image and mask with the same voxels and headers that agree, but for rounding, go together voxel by voxel. The same
    voxels with headers that do not agree are the mark of a header that was lost or written wrongly, and nothing in the
    files tells which of both is right: such a mask is used only if the study says what counts. Where just the axes run
    another way, in the same place, headers count. Masks of other voxels go by their header.

    Args:
        mask: as it was read, three axes.
        image: likewise.
        orientation: axis codes.
        grid: what counts: ``voxels`` or ``header``; None where the study does not say.

    Returns:
        the mask; ``axes`` where its axes run another way than the image's, else ""; and whether its voxels are others,
        or lie elsewhere.

    Raises:
        UnreadableError: the two do not go together.
    """
    same = mask.values.shape == image.values.shape
    if grid == "voxels":
        if not same:
            raise UnreadableError("mask and image differ in size")
        return oriented(Volume(mask.values, image.affine), orientation), "", False
    if same and _distance(mask, image) <= APART:
        # By the image's header: near 45 degrees another rounding of the mask's own would turn it another way.
        return oriented(Volume(mask.values, image.affine), orientation), "", False
    turned, wanted = oriented(mask, orientation), oriented(image, orientation)
    if not same and np.array_equal(mask.affine, np.eye(4)) and not np.array_equal(image.affine, np.eye(4)):
        raise UnreadableError("mask has no place in space (its header has none) and other voxels than the image")
    if turned.values.shape == wanted.values.shape and _distance(turned, wanted) <= APART:
        # The same box of space: for example a mask in RAS beside an image in LPS.
        return Volume(turned.values, wanted.affine), "axes" if same and grid is None else "", False
    if same and grid is None:
        raise UnreadableError(
            "mask and image lie apart by their headers, but have the same voxels: say `mask: {grid: voxels}` if the "
            "voxels go together, or `mask: {grid: header}` if the headers are right"
        )
    return turned, "", True


def check_channel(image: Volume, first: Volume, orientation: str) -> None:
    """Stop where a further image of a case has a header that seems lost.

    Images of several contrasts may lie apart: a patient moves, and headers tell. But the same voxels beside a header
    without a place, without an origin, or with left and right swapped are an image that was saved without its header,
    which lies where the first one does, or anywhere.

    Args:
        image: as it was read, three axes.
        first: the case's first image, likewise.
        orientation: axis codes.

    Raises:
        UnreadableError: it seems lost, or the first one's does.
    """
    if image.values.shape != first.values.shape or _distance(image, first) <= APART:
        return
    turned, wanted = oriented(image, orientation), oriented(first, orientation)
    if turned.values.shape == wanted.values.shape and _distance(turned, wanted) <= APART:
        return
    one, other = image.affine, first.affine
    swapped = np.allclose(np.diag((-1.0, -1.0, 1.0, 1.0)) @ one, other, atol=1e-3)
    moved = np.allclose(one[:3, :3], other[:3, :3], atol=1e-3)
    origins = [bool(np.allclose(affine[:3, 3], 0.0)) for affine in (one, other)]
    if swapped or _placeless(image) != _placeless(first) or (moved and any(origins)):
        raise UnreadableError(
            "images of the case have the same voxels, but lie apart by their headers, and one of these seems lost (no "
            "place, no origin, or left and right swapped): write the right one into the file"
        )


def _placeless(volume: Volume) -> bool:
    """Whether the header has no place in space: none at all, or voxel sizes alone with the corner as origin."""
    sizes = np.diag(volume.affine)
    plain = np.allclose(volume.affine, np.diag(sizes), atol=1e-3) and (sizes > 0).all()
    return bool(plain) or any(note.number == "N610" for note in volume.notes)


def share_inside(mask: npt.NDArray[np.bool_], affine: Floats, image: Volume) -> float:
    """Share of the foreground of ``mask`` that lies within the voxels of ``image``; 1 without any.

    Raises:
        UnreadableError: it is less than a half.
    """
    places = np.argwhere(mask)
    if not len(places):
        return 1.0
    to_image = np.linalg.inv(image.affine) @ affine
    where = places @ to_image[:3, :3].T + to_image[:3, 3]
    sides = np.array(image.values.shape) - APART
    share = float(((where >= -APART - 1e-6) & (where <= sides + 1e-6)).all(axis=1).mean())
    if share < _LEAST_INSIDE:
        raise UnreadableError("most of the mask lies outside of the image")
    return share


def _distance(one: Volume, other: Volume) -> float:
    """The largest distance between voxels of the same number in two volumes of one shape, in voxels of ``other``."""
    ends = np.array(np.meshgrid(*[(0.0, side - 1.0) for side in other.values.shape])).reshape(3, -1)
    apart = (one.affine - other.affine)[:3, :3] @ ends + (one.affine - other.affine)[:3, 3:]
    return float(np.abs(np.linalg.inv(other.affine[:3, :3]) @ apart).max())
