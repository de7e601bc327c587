"""Steps that prepare volumes as in the study that this model was trained in, where MONAI has no transform for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import InvertibleTransform, MapTransform, SpatialResample
from scipy import ndimage

Floats = npt.NDArray[np.float64]
#: Voxel sizes are taken as equal up to this share.
SAME = 1e-3
#: Cosine up to which two axes count as at right angles.
RIGHT = 2e-3


class ToGridd(MapTransform, InvertibleTransform):  # type: ignore[misc]
    """Brings images to ``spatial_size`` voxels of ``pixdim`` mm (None: their own) around their middle.

    It is Spacingd, SpatialPadd and CenterSpatialCropd in one, so that values are interpolated once, and stay as they
    are where voxels have the right size. Before, images are smoothed along axes that become coarser. What lies outside
    of an image has its smallest value.
    """

    def __init__(self, keys: Hashable, spatial_size: Sequence[int], pixdim: Sequence[float] | None = None) -> None:
        super().__init__(keys)
        self.size, self.pixdim = np.array(spatial_size), pixdim
        self.resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True, dtype=np.float64)

    def __call__(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """Images ``[C, X, Y, Z]``, turned to the wanted orientation already."""
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            step, affine = self.grid(np.asarray(image.affine), np.array(image.shape[1:]))
            lowest = image.amin(dim=(1, 2, 3), keepdim=True)
            if (step > 1).any():
                widths = np.maximum(0.0, (step - 1) / 2)
                smooth = [ndimage.gaussian_filter(one, widths, truncate=3.0) for one in np.asarray(image)]
                image = image.clone()
                image[...] = torch.from_numpy(np.stack(smooth))
            found[key] = self.resample(image - lowest, torch.from_numpy(affine), self.size.tolist()) + lowest
        return found

    def inverse(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """Back to the image's own voxels."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.resample.inverse(found[key])
        return found

    def grid(self, affine: Floats, sides: npt.NDArray[np.int_]) -> tuple[Floats, Floats]:
        """How many voxels a step of the grid takes along each axis, and the affine ``[4, 4]`` of the grid."""
        own = np.linalg.norm(affine[:3, :3], axis=0)
        axes = affine[:3, :3] / own
        if np.abs(axes.T @ axes - np.eye(3)).max() > RIGHT:
            raise ValueError("the axes of an image are not at right angles (a tilted gantry): it can't be straightened")
        wanted = own if self.pixdim is None else np.asarray(self.pixdim, dtype=np.float64)
        step = np.where(np.abs(wanted - own) <= SAME * own, 1.0, wanted / own)
        middle = (sides - 1) / 2
        corner = middle - step * (self.size - 1) / 2
        # An image thinner than a step would lie between two planes of the grid: one is put onto the middle.
        corner = np.where(step > sides - 1, middle - step * (self.size // 2), corner)
        corner = np.where(step == 1.0, np.floor(middle - (self.size - 1) / 2 + 0.5 - 1e-6), corner)
        within = np.eye(4)
        within[:3, :3], within[:3, 3] = np.diag(step), corner
        return step, affine @ within


class EachChannel:
    """A normalisation of volumes, for images ``[C, X, Y, Z]``."""

    def __init__(self, normalise: Any, foreground_of: Callable[[Any, Literal["nonzero", "otsu", "all"]], Any]) -> None:
        self.normalise, self.foreground_of = normalise, foreground_of

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Each channel from its own voxels."""
        channels = []
        for values in np.asarray(image, dtype=np.float32):
            channels.append(self.normalise(values, self.foreground_of(values, self.normalise.foreground)))
        found = image.clone()
        found[...] = torch.from_numpy(np.stack(channels))
        return found
