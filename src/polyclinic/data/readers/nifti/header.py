"""What the header of a NIfTI file says, of version 1 or 2 and in either byte order."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.nifti.place import find_place
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

HEADER_BYTES = 544
"""NIfTI-2's and the four bytes after it that tell of extensions; NIfTI-1's are 352."""
_MAGIC = {b"n+1\0": 1, b"ni1\0": 1, b"n+2\0": 2, b"ni2\0": 2}
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "voxels are single bits", 32: "voxels are complex numbers", 128: "voxels are colours (RGB)",
    1536: "voxels are numbers of 128 bits", 1792: "voxels are complex numbers", 2048: "voxels are complex numbers",
    2304: "voxels are colours (RGB)",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a NIfTI header says.

    Attributes:
        shape: one to four axes; those of length one at the end are dropped.
        affine: float64 ``[4, 4]`` to RAS+ millimetres.
        spacing: voxel sizes in millimetres.
        orientation: code such as ``RAS``: towards which side of the body each axis runs.
        dtype: type of the stored voxels.
        offset: where the voxels begin in their file; 0 where the header does not say it.
        slope, intercept: from stored to real values.
        pair: whether the voxels are in another file, ``.img``.
        version: 1 or 2.
        extended: whether the header seems to be followed by extensions.
        notes: as in ``Volume``.
    """

    shape: tuple[int, ...]
    affine: npt.NDArray[np.float64]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    pair: bool
    version: int
    extended: bool
    notes: tuple[Note, ...]

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_nifti_start(start: bytes) -> bool:
    """Whether a file that begins with ``start`` (348 bytes or more) is NIfTI or the header of a NIfTI pair."""
    return start[344:348] in _MAGIC or start[4:8] in _MAGIC


def parse_header(start: bytes) -> NiftiHeader:
    """The header in a file's first ``HEADER_BYTES`` (fewer if the file is shorter).

    Raises:
        UnreadableError: it is none, or says something that can't be or can't be used.
    """
    import nibabel as nib

    if not is_nifti_start(start):
        raise UnreadableError("file is no NIfTI" if len(start) >= 348 else "NIfTI file is truncated")
    magic, kind, length = start[344:348], nib.Nifti1Header, 348
    if start[4:8] in _MAGIC:
        magic, kind, length = start[4:8], nib.Nifti2Header, 540
    if len(start) < length:
        raise UnreadableError("NIfTI file is truncated")
    logging.getLogger("nibabel.global").disabled = True
    try:
        fields = kind(start[:length], check=False)
        shape = tuple(int(side) for side in fields.get_data_shape())
    except Exception:  # header fields without sense raise many types
        raise UnreadableError("NIfTI header is damaged") from None
    finally:
        logging.getLogger("nibabel.global").disabled = False
    shape = _shape(shape)
    dtype = _dtype(int(fields["datatype"]), fields.endianness)
    solid = (*shape, *(1,) * (3 - len(shape)))
    affine, notes = find_place(fields, solid)
    slope, intercept, more = _scale(float(fields["scl_slope"]), float(fields["scl_inter"]))
    pair = magic.startswith(b"ni")
    offset = _offset(float(fields["vox_offset"]), length, pair=pair)
    extended = start[length : length + 1] not in (b"", b"\0")
    return NiftiHeader(
        shape, affine, _spacing(affine), _orientation(affine), dtype, offset, slope, intercept,
        pair, _MAGIC[magic], extended, notes + more,
    )  # fmt: skip


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not shape or min(shape) < 1:
        raise UnreadableError("image has no voxels")
    if len(shape) > 4:
        raise UnreadableError(f"image has {len(shape)} axes, at most 4 can be read")
    return shape


def _dtype(code: int, order: str) -> np.dtype[Any]:
    if code in _OTHER_TYPES:
        raise UnreadableError(_OTHER_TYPES[code])
    if code not in _TYPES:
        raise UnreadableError("type of the voxels is not one of NIfTI's")
    return np.dtype(order + _TYPES[code])


def _scale(slope: float, intercept: float) -> tuple[float, float, tuple[Note, ...]]:
    """Slope, intercept, and a note where there is an intercept that the standard says not to use.

    A slope of 0 means that there is no scale; not a number is what nibabel writes for the same.
    """
    if math.isinf(slope) or math.isinf(intercept) or (slope == slope and slope != 0 and intercept != intercept):
        raise UnreadableError("scale in the NIfTI header is no number")
    if slope == 0 or math.isnan(slope):
        unused = intercept == intercept and intercept != 0
        text = "with an offset of the values but a slope of 0: they are as stored, though some programs add the offset."
        return 1.0, 0.0, (Note("N614", text),) if unused else ()
    return slope, intercept, ()


def _offset(stated: float, length: int, *, pair: bool) -> int:
    if not 0 <= stated < 2**62:
        raise UnreadableError("NIfTI header does not say where the voxels begin")
    if not pair and 0 < stated < length:
        raise UnreadableError("NIfTI header says that the voxels begin within it")
    return int(stated)


def _spacing(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise UnreadableError("voxel size is zero")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        raise UnreadableError("affine is singular")
    x, y, z = spacing.tolist()
    return x, y, z


def _orientation(affine: npt.NDArray[np.float64]) -> str:
    import nibabel as nib

    try:
        return "".join(code or "?" for code in nib.aff2axcodes(affine))
    except Exception:
        raise UnreadableError("affine is singular") from None
