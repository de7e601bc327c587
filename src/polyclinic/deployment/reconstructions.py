"""Reconstructed images in the space and the units of the images that they are of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polyclinic.data.pictures.own_space import PictureSpace
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.grid import oriented, resample
from polyclinic.data.volumes.intensity import INTENSITIES, foreground_of
from polyclinic.data.volumes.own_space import VolumeSpace
from polyclinic.options import split_entry

Floats = npt.NDArray[np.float32]


def own_voxels(found: Floats, space: VolumeSpace, preparation: Preprocessing) -> Floats:
    """A reconstruction ``[D, H, W]`` of a prepared volume at the voxels of the image that was read ``[X, Y, Z]``.

    What the preparation did to intensities is undone; voxels outside of the grid are 0.
    """
    name, options = split_entry(preparation.intensity, (), "intensity normalisation")
    normalise = INTENSITIES[name](**options)
    before = resample(oriented(space.image, preparation.orientation), space.grid, order=1).astype(np.float32)
    found = normalise.undone(found, before, foreground_of(before, normalise.foreground)) if name != "none" else found
    return space.interpolated(found)


def own_pixels(found: Floats, space: PictureSpace) -> npt.NDArray[np.uint8]:
    """A reconstruction ``[H, W]`` of a picture whose values are from 0 to 1, in the picture's size and with 8 bits."""
    return (space.interpolated(found) * 255).round().clip(0, 255).astype(np.uint8)
