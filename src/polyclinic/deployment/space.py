"""Masks in the space of the image that was read: resampling, cropping, padding and turning are undone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from polyclinic.data.readers.nifti.read import is_nifti
from polyclinic.data.readers.volume import Volume
from polyclinic.data.volumes.grid import Grid

Floats = npt.NDArray[np.float32]

#: A voxel belongs to the grid up to so much of a voxel beyond the middle of the outermost ones.
_HALF = 0.5 + 1e-6
#: A header of NIfTI may hold anything in these texts.
_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")


def decided_in(probabilities: Floats, grid: Grid, image: Volume, threshold: float) -> npt.NDArray[np.uint8]:
    """Classes of the voxels of an image, from probabilities on a grid.

    Probabilities are interpolated linearly, and then decided: a mask that is decided first and resampled then has steps
    of the grid. What lies outside of the grid is background.

    Args:
        probabilities: of the foreground ``[1, D, H, W]``, or of each class ``[C, D, H, W]``, background first.
        grid: where these voxels lie.
        image: with three axes, as it was read.
        threshold: of the foreground, where there is one structure.

    Returns:
        uint8 ``[X, Y, Z]``, in the order of the image's voxels.
    """
    to_grid = np.linalg.inv(grid.affine) @ image.affine
    matrix, offset = to_grid[:3, :3], to_grid[:3, 3]
    shape = image.values.shape
    highest: Floats | None = None
    found = np.zeros(shape, dtype=np.uint8)
    for place, one in enumerate(probabilities):
        values: Floats = ndimage.affine_transform(
            np.asarray(one, dtype=np.float32), matrix, offset, shape, order=1, mode="nearest", output=np.float32
        )
        if len(probabilities) == 1:
            found[values >= threshold] = 1
        elif highest is None:
            highest = values
        else:
            more = values > highest
            found[more], highest = place, np.maximum(values, highest)
    found[~_inside(matrix, offset, shape, grid.size)] = 0
    return found


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


def with_values(mask: npt.NDArray[np.uint8], values: Sequence[int]) -> npt.NDArray[Any]:
    """A mask of class indices with the number of each class in its place, as small integers."""
    highest = max(values)
    return np.array(values, dtype=np.min_scalar_type(highest) if highest < 2**16 else np.int32)[mask]


def write_nifti(path: Path, mask: npt.NDArray[Any], image: Volume, source: Path | None) -> None:
    """Write a mask as NIfTI that lies on its image in every viewer.

    Of an image that is NIfTI itself, the place in space is that of its header, both forms and their codes, which
    programs weigh in different ways. Texts of its header are left out: they may name a patient.

    Args:
        path: of the mask, ``.nii.gz``.
        mask: whole numbers ``[X, Y, Z]``.
        image: as it was read.
        source: its file, if it is NIfTI.
    """
    header: Any = None
    if source is not None and source.is_file() and is_nifti(source):
        header = nibabel.load(source).header.copy()
    if isinstance(header, nibabel.Nifti1Header):
        for name in set(_TEXTS).intersection(header.keys()):  # NIfTI-2 has fewer
            header[name] = b""
        header.extensions.clear()
        header.set_data_dtype(mask.dtype)
        header["cal_min"], header["cal_max"] = 0.0, float(mask.max(initial=1))
        header["scl_slope"], header["scl_inter"] = 1.0, 0.0
        kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        made = kind(mask, None, header)
    else:
        made = nibabel.Nifti1Image(mask, image.affine)
        made.set_qform(image.affine, 1)
        made.set_sform(image.affine, 1)
        made.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name.removesuffix('.nii.gz')}.tmp.nii.gz")
    nibabel.save(made, draft)
    draft.replace(path)


def decided_picture(probabilities: Floats, size: tuple[int, int], threshold: float) -> npt.NDArray[np.uint8]:
    """Classes of the pixels of a picture of ``size`` (height, width), from probabilities ``[C, H, W]`` of a smaller or
    larger one; as `decided_in`."""
    bilinear, wide = Image.Resampling.BILINEAR, (size[1], size[0])
    pictures = [Image.fromarray(np.asarray(one, dtype=np.float32)) for one in probabilities]
    layers = [np.asarray(picture.resize(wide, bilinear)) for picture in pictures]
    if len(layers) == 1:
        return (layers[0] >= threshold).astype(np.uint8)
    decided: npt.NDArray[np.uint8] = np.argmax(np.stack(layers), axis=0).astype(np.uint8)
    return decided


def write_picture(path: Path, mask: npt.NDArray[Any]) -> None:
    """Write a mask as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.tmp.png")
    Image.fromarray(mask).save(draft)
    draft.replace(path)
