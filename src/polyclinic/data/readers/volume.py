"""What every reader gives: voxels with their place in space."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from polyclinic.notes import Note


class UnreadableError(Exception):
    """An image that can't be used. The message is the reason and names no file, patient or value of a header."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image as a scanner or a research tool wrote it.

    Attributes:
        values: ``[X, Y, Z]`` or ``[X, Y, Z, T]`` (several frames or channels), in the order in which they are stored;
            a two-dimensional image has Z = 1. Rescaling that the headers ask for is done.
        affine: float64 ``[4, 4]`` from voxel indices (i, j, k, 1) to millimetres in RAS+ (right, anterior, superior),
            as in nibabel.
        about: what the headers say of the scanner: ``modality``, ``vendor``, ``model``, ``field_strength`` (tesla);
            never anything of the patient.
        notes: what a person should know of the image, though it can be used; see `polyclinic.data.image_notes`.
        frames: what the fourth axis holds (time points, diffusion weightings), "" where there is none or nobody knows.
        colour: whether the fourth axis is red, green and blue, 8 bits each; else it is frames or channels.
    """

    values: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]
    about: dict[str, str | float] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    frames: str = ""
    colour: bool = False

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes along the three axes in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z
