"""Where the voxels of a NIfTI image lie: its two matrices, their codes, and the unit of length.

Source: nifti1.h of the NIfTI Data Format Working Group (https://nifti.nimh.nih.gov/nifti-1), methods 1 to 3. As in
nibabel the sform counts where there is one, then the qform, then the sizes of the voxels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
"""Code -> name and millimetres; 2 are millimetres, and 0, which says nothing, is taken for them, as everywhere."""
_USUAL = (0.01, 50.0)
"""Voxel sizes in millimetres between which images of patients lie."""
_LONGEST = 1.01
"""Squared length of a quaternion that rounding may still explain; it should be 1."""
_ZERO = 3 * float(np.finfo(np.float32).eps)
"""Below this 1 - b² - c² - d² is rounding, and a is 0."""


def find_place(header: Mapping[str, Any], shape: Sequence[int]) -> tuple[npt.NDArray[np.float64], tuple[Note, ...]]:
    """The affine to RAS+ in millimetres, and what should be known of it.

    Args:
        header: the fields of a NIfTI header by the standard's names.
        shape: of the image, three axes or more.

    Raises:
        UnreadableError: the numbers tell no place.
    """
    unit, factor = _UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    codes = int(header["sform_code"]), int(header["qform_code"])
    notes = []
    if codes[0] > 0:
        affine = _sform(header)
        if codes[1] > 0 and _disagree(affine, header, shape, same_code=codes[0] == codes[1]):
            text = "whose sform and qform put the voxels at different places: the sform was taken, some take the other."
            notes.append(Note("N611", text))
    else:
        affine = _qform(header, shape, factor) if codes[1] > 0 else _sizes_alone(header, shape, factor)
        if codes[1] <= 0:
            text = "without a place in space (sform and qform codes are 0): axes and sides are a guess."
            notes.append(Note("N610", text))
        if min(_numbers(header["pixdim"], 4)[1:]) < 0:
            notes.append(Note("N616", "with voxel sizes below zero, whose signs were left out."))
    affine[:3] *= factor
    if not np.isfinite(affine).all():
        raise UnreadableError("affine is not finite")
    if unit:
        notes.append(Note("N612", f"whose header gives lengths in {unit}: they were turned into millimetres."))
    sizes = [s for s, length in zip(np.linalg.norm(affine[:3, :3], axis=0), shape, strict=False) if length > 1]
    if any(0 < size < _USUAL[0] or size > _USUAL[1] for size in sizes):
        notes.append(Note("N613", f"with voxels below {_USUAL[0]:g} or above {_USUAL[1]:g} mm: is the unit right?"))
    return affine, tuple(notes)


def _sform(header: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = [_numbers(header[name], 4) for name in ("srow_x", "srow_y", "srow_z")]
    return affine


def _qform(header: Mapping[str, Any], shape: Sequence[int], factor: float) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    sizes = _sizes(header, shape, factor)
    # The standard: qfac is -1 or 1, and 0 stands for 1.
    sizes[2] *= -1.0 if _numbers(header["pixdim"], 1)[0] < 0 else 1.0
    affine[:3, :3] = _rotation(header) * sizes
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _rotation(header: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """The rotation of the unit quaternion (a, b, c, d), of which the header has b, c and d."""
    b, c, d = (float(header[f"quatern_{name}"]) for name in "bcd")
    squared = b * b + c * c + d * d
    if not squared <= _LONGEST:  # written so that what is no number is refused, too
        raise UnreadableError("rotation in the NIfTI header is none (the quaternion is longer than 1)")
    a = np.sqrt(1 - squared) if 1 - squared > _ZERO else 0.0
    a, b, c, d = np.array((a, b, c, d)) / np.sqrt(a * a + squared)
    return np.array(
        (
            (a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
            (2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)),
            (2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b),
        )
    )


def _sizes_alone(header: Mapping[str, Any], shape: Sequence[int], factor: float) -> npt.NDArray[np.float64]:
    """As nibabel does: the first axis runs to the left, and the middle of the image is the origin."""
    sizes = _sizes(header, shape, factor) * (-1.0, 1.0, 1.0)
    affine = np.diag((*sizes, 1.0))
    affine[:3, 3] = -(np.array(shape[:3]) - 1) / 2 * sizes
    return affine


def _sizes(header: Mapping[str, Any], shape: Sequence[int], factor: float) -> npt.NDArray[np.float64]:
    """Sizes of the voxels as the header has them; 1 mm along axes of length one for which it has none."""
    sizes = np.abs(_numbers(header["pixdim"], 4)[1:])
    sizes[(sizes == 0) & (np.array(shape[:3]) == 1)] = 1.0 / factor
    return sizes


def _disagree(
    sform: npt.NDArray[np.float64], header: Mapping[str, Any], shape: Sequence[int], *, same_code: bool
) -> bool:
    """Whether the qform says otherwise, by more than half a voxel at a corner or from left to right.

    With another code it is meant to: a scanner's place beside that of an atlas. Then it should not be mirrored, though.
    """
    try:
        qform = _qform(header, shape, 1.0)
    except UnreadableError:
        return False
    if not (np.isfinite(qform).all() and np.isfinite(sform).all()):
        return False
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        return True
    ends = np.stack(np.meshgrid(*[(0, length - 1) for length in shape[:3]])).reshape(3, -1)
    apart = (sform - qform)[:3, :3] @ ends + (sform - qform)[:3, 3:]
    farthest = float(np.linalg.norm(apart, axis=0).max())
    return same_code and farthest > 0.5 * float(np.linalg.norm(sform[:3, :3], axis=0).min())


def _numbers(values: Any, count: int) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).reshape(-1)[:count].copy()
