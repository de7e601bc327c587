"""Writing converted images next to the manifest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.files import write_atomic


def write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write uint8 ``[H, W]`` or ``[H, W, 3]`` as PNG, unless the file is there already."""
    from PIL import Image

    if path.exists():
        return
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue(), durable=False)


def write_nifti(path: Path, voxels: npt.NDArray[np.generic], spacing: float) -> None:
    """Write ``[X, Y, Z]`` as ``.nii.gz`` with equal voxel sizes (mm), unless the file is there already."""
    import nibabel

    if not path.exists():
        _write_volume(path, nibabel.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0])))


def write_volume(path: Path, voxels: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> None:
    """Write ``[X, Y, Z]`` with an affine ``[4, 4]`` (mm, RAS+) as ``.nii.gz``, unless the file is there already."""
    import nibabel

    if not path.exists():
        _write_volume(path, nibabel.Nifti1Image(voxels, affine))


def pair_to_nifti(source: Path, path: Path) -> None:
    """Write a pair of ``.img`` and ``.hdr`` (Analyze 7.5 or NIfTI) as ``.nii.gz``, unless the file is there already.

    An Analyze header does not tell orientation; the format's convention holds (x from right to left, as nibabel reads).

    Raises:
        OSError, ValueError: when one of the two files is missing or damaged.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    if path.exists():
        return
    try:
        image = nibabel.load(source)
    except ImageFileError as error:
        raise ValueError(str(error)) from None
    voxels = np.asanyarray(image.dataobj)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    _write_volume(path, nibabel.Nifti1Image(voxels.astype(voxels.dtype.newbyteorder("=")), image.affine))


def _write_volume(path: Path, image: Any) -> None:
    import gzip

    # Without a time stamp the same voxels give the same bytes.
    write_atomic(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0), durable=False)


def frame_to_nifti(source: Path, frame: int, path: Path, *, mask: bool = False) -> bool:
    """Write one frame (0, 1, ...) of a time series as ``.nii.gz``, unless the file is there already.

    Args:
        source: NIfTI file ``[X, Y, Z, T]``; without T its only frame is 0.
        frame: which one.
        path: file to write.
        mask: write whole numbers of 8 bits.

    Returns:
        whether any voxel is not zero.

    Raises:
        OSError, ValueError: when the file is damaged, or has no such frame.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path if path.exists() else source)
    except ImageFileError as error:
        raise ValueError(str(error)) from None
    if path.exists():
        return bool(np.asanyarray(image.dataobj).any())
    frames = image.shape[3] if len(image.shape) == 4 else 1
    if len(image.shape) not in (3, 4) or not 0 <= frame < frames:
        raise ValueError(f"frame {frame} of {frames}")
    voxels = np.asanyarray(image.dataobj[..., frame] if len(image.shape) == 4 else image.dataobj)
    voxels = np.rint(voxels).astype(np.uint8) if mask else voxels.astype(voxels.dtype.newbyteorder("="))
    header = image.header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    _write_volume(path, nibabel.Nifti1Image(voxels, image.affine, header))
    return bool(voxels.any())
