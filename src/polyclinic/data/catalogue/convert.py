"""Writing converted images next to the manifest."""

from __future__ import annotations

import io
from pathlib import Path

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
    import gzip

    import nibabel

    if path.exists():
        return
    image = nibabel.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0]))
    # Without a time stamp the same voxels give the same bytes.
    write_atomic(path, gzip.compress(image.to_bytes(), mtime=0), durable=False)
