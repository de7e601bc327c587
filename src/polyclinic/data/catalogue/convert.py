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
