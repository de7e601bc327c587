"""Masks and reconstructions as files that lie on the image that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image

from polyclinic.data.readers.nifti.read import is_nifti
from polyclinic.data.readers.volume import Volume

#: A header of NIfTI may hold anything in these texts.
_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")


def with_values(mask: npt.NDArray[np.uint8], values: Sequence[int]) -> npt.NDArray[Any]:
    """A mask of class indices with the number of each class in its place, as small integers."""
    highest = max(values)
    return np.array(values, dtype=np.min_scalar_type(highest) if highest < 2**16 else np.int32)[mask]


def write_nifti(path: Path, values: npt.NDArray[Any], image: Volume, source: Path | None) -> None:
    """Write a mask, or a reconstruction, as NIfTI that lies on its image in every viewer.

    Of an image that is NIfTI itself, the place in space is that of its header, both forms and their codes, which
    programs weigh in different ways. Texts of its header are left out: they may name a patient.

    Args:
        path: of the file, ``.nii.gz``.
        values: whole numbers of a mask, or float32 ``[X, Y, Z]``.
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
        header.set_data_dtype(values.dtype)
        header["cal_min"], header["cal_max"] = 0.0, float(values.max(initial=1))
        header["scl_slope"], header["scl_inter"] = 1.0, 0.0
        kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        made = kind(values, None, header)
    else:
        made = nibabel.Nifti1Image(values, image.affine)
        made.set_qform(image.affine, 1)
        made.set_sform(image.affine, 1)
        made.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name.removesuffix('.nii.gz')}.tmp.nii.gz")
    nibabel.save(made, draft)
    draft.replace(path)


def write_picture(path: Path, pixels: npt.NDArray[Any]) -> None:
    """Write a mask, or a reconstruction, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.tmp.png")
    Image.fromarray(pixels).save(draft)
    draft.replace(path)
