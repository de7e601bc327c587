"""The average brain of which phantoms are made, with its regions and the ways in which it can shrink.

The maps are the ICBM152 2009a symmetric templates (grey matter, white matter, T1) that the nilearn wheel holds: the
average of 152 young adults in MNI space, brain extracted, 1 mm. Source: Fonov et al., Unbiased average
age-appropriate brain templates from birth to adulthood, NeuroImage 47 (2009) S102; Fonov et al., NeuroImage 54 (2011)
313-327.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from polyclinic.data.phantom.centres import CENTRES
from polyclinic.errors import DataError

Array = npt.NDArray[np.float32]

#: Regions of a hemisphere; the last is the hippocampus.
REGIONS_A_SIDE = len(CENTRES) + 1
#: Number of the lateral and third ventricles in ``Template.parcels``; 1 to 45 are left, 46 to 90 right.
VENTRICLES = 2 * REGIONS_A_SIDE + 1
#: Middle of the right hippocampus, in MNI millimetres; the left one is its mirror image.
HIPPOCAMPUS_CENTRE = (27.0, -23.0, -13.0)
#: From the tail to the head of the hippocampus: forwards and down.
HIPPOCAMPUS_AXIS = (0.0, 0.846, -0.533)
#: Half the length and the radius of the ellipsoid that stands for the hippocampus, in millimetres.
HIPPOCAMPUS_HALF_LENGTH, HIPPOCAMPUS_RADIUS = 21.0, 8.0
#: Cortex that Alzheimer's disease takes first: middle (MNI mm, right side), extent in mm, weight above the rest.
VULNERABLE = (
    ((28.0, -18.0, -26.0), 18.0, 0.7),  # medial temporal
    ((56.0, -32.0, -10.0), 22.0, 0.6),  # lateral temporal
    ((8.0, -60.0, 36.0), 18.0, 0.6),  # precuneus
    ((46.0, -56.0, 38.0), 18.0, 0.5),  # lateral parietal
)
#: Weight of all other cortex.
VULNERABLE_ELSEWHERE = 0.3


@dataclass(frozen=True, eq=False)
class Template:
    """Maps on one grid in MNI space.

    Attributes:
        spacing: voxel size in millimetres, the same along all axes.
        origin: ``[3]`` MNI millimetres of the middle of voxel (0, 0, 0); axes are right, anterior, superior.
        maps: ``[4, X, Y, Z]`` shares between 0 and 1: grey matter, white matter, brain (all tissues), and how near
            grey matter is to the outer surface (1 at the surface, 0 at white matter).
        parcels: ``[X, Y, Z]`` regions: 0 outside, 1 to 45 left, 46 to 90 right (45 and 90 the hippocampi), 91 the
            lateral and third ventricles. White matter and fluid belong to the region that is nearest.
        vulnerability: ``[X, Y, Z]`` weight of the disease's effect on the cortex.
        push: ``[3, X, Y, Z]`` displacement in millimetres of tissue for each millimetre by which ventricles widen.
    """

    spacing: float
    origin: npt.NDArray[np.float64]
    maps: Array
    parcels: npt.NDArray[np.uint8]
    vulnerability: Array
    push: Array

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """``[4, 4]`` from voxels to MNI millimetres."""
        affine = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine


def region_names() -> list[str]:
    """Names of the 90 regions in the order of their numbers: ``left_01`` ... ``left_hippocampus``, then right."""
    names = [f"{number:02d}" for number in range(1, REGIONS_A_SIDE)] + ["hippocampus"]
    return [f"{side}_{name}" for side in ("left", "right") for name in names]


@lru_cache(maxsize=2)
def load_template(spacing: float) -> Template:
    """The template for images of a voxel size: 1 mm maps below 1.75 mm, 2 mm maps above, smoothed for large voxels.

    Args:
        spacing: voxel size of the images to be made, in millimetres.

    Raises:
        DataError: P503 if nilearn is not installed.
    """
    template = _sharp_template(1 if spacing < 1.75 else 2)
    # Voxels larger than the map's hold a mixture of more than its voxels.
    blur = 0.35 * np.sqrt(max(spacing**2 - template.spacing**2, 0.0)) / template.spacing
    if blur == 0:
        return template
    return replace(template, maps=np.stack([ndimage.gaussian_filter(each, blur) for each in template.maps]))


@lru_cache(maxsize=2)
def _sharp_template(factor: int) -> Template:
    """The template at 1 or 2 millimetres."""
    grey, white, brain, origin = _maps(factor)
    near = ndimage.binary_dilation(brain > 0, iterations=2)
    parcels = _parcels(near, origin, factor)
    ventricles = _ventricles(np.clip(brain - grey - white, 0, 1), origin, factor)
    parcels[ventricles] = VENTRICLES
    outermost = np.clip(2 * ndimage.gaussian_filter(1 - grey - white, 2.0 / factor), 0, 1)
    vulnerability, push = _vulnerability(grey.shape, origin, factor), _push(ventricles, factor)
    return Template(float(factor), origin, np.stack([grey, white, brain, outermost]), parcels, vulnerability, push)


def hippocampus_radius(points: npt.NDArray[np.floating], side: int, scale: float = 1.0) -> npt.NDArray[np.floating]:
    """Distance from the middle of a hippocampus, 1 on its surface.

    Args:
        points: ``[N, 3]`` MNI millimetres.
        side: -1 left, 1 right.
        scale: length of a shrunken hippocampus relative to the whole one. It shrinks towards a point low and near the
            midline, so that the fluid that takes its place lies above and lateral, as the temporal horn does.
    """
    centre = np.array(HIPPOCAMPUS_CENTRE) * (side, 1, 1)
    anchor = np.array([-2.5 * side, 0.0, -2.5])
    from_centre = anchor + (points - centre - anchor) / scale
    along = from_centre @ np.array(HIPPOCAMPUS_AXIS)
    across = np.maximum(np.einsum("ij,ij->i", from_centre, from_centre) - along**2, 0)
    radius: npt.NDArray[np.floating] = np.sqrt((along / HIPPOCAMPUS_HALF_LENGTH) ** 2 + across / HIPPOCAMPUS_RADIUS**2)
    return radius


def _maps(factor: int) -> tuple[Array, Array, Array, npt.NDArray[np.float64]]:
    """Grey matter, white matter and brain as shares, and the origin, at ``factor`` millimetres."""
    found = find_spec("nilearn")
    if found is None or found.origin is None:
        raise DataError(
            "P503",
            "Phantoms are made of the brain maps in the package nilearn, which is not installed.",
            "Install it: pip install 'polyclinic[phantom]'",
        )
    loaded, affine = [], np.eye(4)
    for name in ("gm", "wm", "t1"):
        path = Path(found.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        try:
            image = nibabel.load(path)
        except OSError:
            raise DataError(
                "P503",
                f"The package nilearn is installed, but without its file {path.name}.",
                "Install it anew: pip install --force-reinstall 'polyclinic[phantom]'",
            ) from None
        affine = image.affine
        loaded.append(np.asanyarray(image.dataobj).astype(np.float32) / np.float32(255))
    grey, white, t1 = loaded
    brain = (t1 > 0).astype(np.float32)
    origin = affine[:3, 3] + (factor - 1) / 2
    return _shrink(grey, factor), _shrink(white, factor), _shrink(brain, factor), origin


def _shrink(values: Array, factor: int) -> Array:
    """Means over cubes of ``factor`` voxels."""
    if factor == 1:
        return values
    padded = np.pad(values, [(0, -size % factor) for size in values.shape])
    x, y, z = (size // factor for size in padded.shape)
    means: Array = padded.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5), dtype=np.float32)
    return means


def _coordinates(
    shape: tuple[int, ...], origin: npt.NDArray[np.float64], spacing: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y, z = (start + spacing * np.arange(size) for start, size in zip(origin, shape, strict=True))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _parcels(chosen: npt.NDArray[np.bool_], origin: npt.NDArray[np.float64], spacing: float) -> npt.NDArray[np.uint8]:
    """Each voxel's region: the hippocampus inside its ellipsoid, elsewhere the nearest of the hemisphere's centres."""
    points = np.argwhere(chosen) * spacing + origin
    right = points[:, 0] >= 0
    points[:, 0] = -np.abs(points[:, 0])
    found = np.asarray(spatial.cKDTree(CENTRES).query(points)[1]) + 1
    found[hippocampus_radius(points, -1) <= 1] = REGIONS_A_SIDE
    parcels = np.zeros(chosen.shape, dtype=np.uint8)
    parcels[chosen] = np.where(right, found + REGIONS_A_SIDE, found)
    return parcels


def _ventricles(fluid: Array, origin: npt.NDArray[np.float64], spacing: float) -> npt.NDArray[np.bool_]:
    """Lateral and third ventricles: the largest connected fluid in a box around them, cisterns cut off."""
    x, y, z = _coordinates(fluid.shape, origin, spacing)
    box = (abs(x) < 36) & (y > -52) & (y < 36) & (z > -6) & (z < 32)
    cistern = (abs(x) < 9) & (y < -22)
    fissure = (abs(x) < 8) & (((z < 2) & (y > -2)) | (y > 22) | (z > 26))
    labels, _ = ndimage.label((fluid > 0.4) & box & ~cistern & ~fissure)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found: npt.NDArray[np.bool_] = labels == sizes.argmax()
    return found


def _vulnerability(shape: tuple[int, ...], origin: npt.NDArray[np.float64], spacing: float) -> Array:
    x, y, z = _coordinates(shape, origin, spacing)
    weight = np.full(shape, VULNERABLE_ELSEWHERE, dtype=np.float32)
    for (right, anterior, superior), extent, more in VULNERABLE:
        distance = (abs(x) - right) ** 2 + (y - anterior) ** 2 + (z - superior) ** 2
        weight += more * np.exp(-distance / (2 * extent**2)).astype(np.float32)
    return np.minimum(weight, 1)


def _push(ventricles: npt.NDArray[np.bool_], spacing: float) -> Array:
    """Displacement away from the ventricles: 1 at their wall, fading outwards over 15 mm and inwards over 5 mm."""
    outside = ndimage.distance_transform_edt(~ventricles, sampling=spacing)
    inside = ndimage.distance_transform_edt(ventricles, sampling=spacing)
    distance = ndimage.gaussian_filter((outside - inside).astype(np.float32), 2.0 / spacing)
    strength = np.where(distance > 0, np.exp(-distance / 15), np.clip(1 + distance / 5, 0, 1))
    direction = np.stack(np.gradient(distance, spacing))
    push: Array = (strength * direction).astype(np.float32)
    return push
