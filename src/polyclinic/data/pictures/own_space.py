"""Pictures in their own pixels: resizing is undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.masks.pictures import is_lossy, read_mask
from polyclinic.data.pictures.decode import upright, upright_size
from polyclinic.data.readers.volume import UnreadableError

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PictureSpace:
    """A picture's own pixels.

    Attributes:
        size: height and width, as the picture is to be looked at.
    """

    size: tuple[int, int]

    @classmethod
    def of(cls, name: str, root: Path, allowed: Sequence[Path] = ()) -> PictureSpace:
        """The space of a picture.

        Raises:
            UnreadableError: it can't be read, and why.
        """
        return cls(upright_size(name, root, allowed))

    @property
    def spacing(self) -> None:
        """Pictures tell no size in millimetres."""
        return

    def decided(self, probabilities: Floats, threshold: float) -> Indices:
        """Classes of the picture's pixels ``[H, W]``; see `decided_picture`."""
        return decided_picture(probabilities, self.size, threshold)

    def interpolated(self, values: Floats) -> Floats:
        """Values at the picture's pixels ``[H, W]``, from those of a smaller or larger one; see `resized`."""
        return resized(values, self.size)

    def reference(self, name: str, root: Path, allowed: Sequence[Path], classes: MaskClasses) -> Indices:
        """Class indices ``[H, W]`` of a mask as it lies on disk, turned upright as the picture is.

        Raises:
            UnreadableError: it can't be read, is no mask, or has another size than the picture.
        """
        mask, _ = upright(name, root, allowed, "mask")
        with mask:
            if (mask.height, mask.width) != self.size:
                raise UnreadableError("mask and image differ in size")
            return read_mask(mask, classes, lossy=is_lossy(mask))[0]


def decided_picture(probabilities: Floats, size: tuple[int, int], threshold: float) -> Indices:
    """Classes of the pixels of a picture of ``size`` (height, width), from probabilities ``[C, H, W]`` of a smaller or
    larger one: interpolated first, and then decided."""
    layers = [resized(one, size) for one in probabilities]
    if len(layers) == 1:
        return (layers[0] >= threshold).astype(np.uint8)
    decided: Indices = np.argmax(np.stack(layers), axis=0).astype(np.uint8)
    return decided


def resized(values: Floats, size: tuple[int, int]) -> Floats:
    """Values ``[H, W]`` interpolated to ``size`` (height, width), as Pillow does with BILINEAR."""
    picture = Image.fromarray(np.asarray(values, dtype=np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
