"""One person's brain: the average brain, deformed, aged and diseased, with its true tissues."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from polyclinic.data.phantom.template import (
    HIPPOCAMPUS_RADIUS,
    REGIONS_A_SIDE,
    Array,
    Template,
    hippocampus_radius,
    load_template,
)

#: Millimetres that a scan covers: right-left, back-front, down-up.
EXTENT = (192.0, 224.0, 192.0)
#: MNI millimetres at the middle of the scan.
MIDDLE = np.array([0.0, -18.0, 8.0])
#: The ICBM152 brain is larger than the mean living one (1,890 ml against about 1,500 ml).
HEAD_SIZE = 0.93
#: Age in years at which brains look like the template's, and years until the effects of age are those given below.
YOUNG, SPAN = 25.0, 50.0
#: Distance of the nodes on which deformations are worked out, in millimetres.
NODES = 8.0
#: Random deformation: extent of its waves and standard deviation of its displacement, both in millimetres.
WAVES = ((24.0, 2.5), (9.0, 1.0))


@dataclass(frozen=True)
class Person:
    """What a phantom's brain follows from.

    Attributes:
        age: years.
        sex: ``F`` or ``M``.
        severity: 0 healthy, 1 a typical patient with Alzheimer's disease.
        numbers: ``[16]`` independent standard normal numbers: head size, position and individual differences.
        waves: seed of the random deformation.
    """

    age: float
    sex: str
    severity: float
    numbers: npt.NDArray[np.float64]
    waves: int

    @property
    def ventricle_growth(self) -> float:
        """Millimetres by which the walls of the ventricles stand further out than in the template."""
        aged = (self.age - YOUNG) / SPAN * math.exp(0.3 * self.numbers[10])
        return float(0.4 * self.numbers[11] + 1.0 * aged + 1.1 * self.severity)

    @property
    def cortical_loss(self) -> tuple[float, float]:
        """Share of the outermost grey matter that is lost, by age everywhere and by disease where it strikes."""
        aged = max(0.0, 0.22 * (self.age - YOUNG) / SPAN + 0.06 * self.numbers[12])
        return aged, 0.36 * self.severity

    def hippocampus_scale(self, side: int) -> float:
        """Length of a hippocampus (-1 left, 1 right) relative to that of the template; its volume goes as the cube."""
        own = self.numbers[13] + 0.4 * side * self.numbers[14]
        scale = 0.97 + 0.03 * own - 0.03 * (self.age - YOUNG) / SPAN - 0.1 * self.severity
        return float(np.clip(scale, 0.4, 1.0))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """True tissues on a grid whose axes are right, anterior, superior, its middle at the middle of the scan.

    Attributes:
        spacing: voxel size in millimetres.
        tissues: ``[3, X, Y, Z]`` shares of fluid, grey and white matter in each voxel; they sum to 1 in the brain.
        parcels: ``[X, Y, Z]`` regions as in ``Template.parcels``.
        places: ``[X, Y, Z, 3]`` MNI millimetres of the template point that each voxel shows.
    """

    spacing: float
    tissues: Array
    parcels: npt.NDArray[np.uint8]
    places: Array


def grid_shape(spacing: float) -> tuple[int, int, int]:
    """Voxels along each axis of a whole scan; 96 x 112 x 96 at 2 mm."""
    x, y, z = (round(extent / spacing) for extent in EXTENT)
    return x, y, z


def axis_positions(size: int, spacing: float) -> npt.NDArray[np.float64]:
    """Millimetres from the middle of the scan of each voxel's middle along an axis."""
    return (np.arange(size, dtype=np.float64) - (size - 1) / 2) * spacing


def make_anatomy(person: Person, spacing: float) -> Anatomy:
    """The brain of a person.

    Args:
        person: age, sex, severity and the random numbers of an individual.
        spacing: voxel size in millimetres, the same along all axes.
    """
    template = load_template(spacing)
    places = _places(person, template, grid_shape(spacing))
    shape = places.shape[:3]
    index = np.rint((places - template.origin) / template.spacing).astype(np.int32)
    inside = np.all((index >= 0) & (index < template.parcels.shape), axis=-1)
    nearest = index[inside]
    parcels = np.zeros(shape, dtype=np.uint8)
    parcels[inside] = template.parcels[tuple(nearest.T)]
    chosen = parcels > 0
    at = places[chosen]
    voxels = ((at - template.origin) / template.spacing).T
    grey, white, brain, outermost = (ndimage.map_coordinates(each, voxels, order=1) for each in template.maps)
    aged, diseased = person.cortical_loss
    weight = template.vulnerability[tuple(np.rint(voxels).astype(np.int32))]
    grey *= 1 - np.clip(aged + diseased * weight, 0, 1) * outermost
    kept = _hippocampus_kept(person, at, parcels[chosen], spacing)
    grey, white = grey * kept, white * kept
    tissues = np.zeros((3, *shape), dtype=np.float32)
    tissues[:, chosen] = np.clip(brain - grey - white, 0, 1), grey, white
    return Anatomy(spacing, tissues, parcels, places)


def _hippocampus_kept(person: Person, at: Array, parcels: npt.NDArray[np.uint8], spacing: float) -> Array:
    """Share of tissue that is left, ``[N]``: what lies between a shrunken hippocampus and the whole one is fluid."""
    kept = np.ones(len(at), dtype=np.float32)
    for side, number in ((-1, REGIONS_A_SIDE), (1, 2 * REGIONS_A_SIDE)):
        mine = np.flatnonzero(parcels == number)
        radius = hippocampus_radius(at[mine], side, person.hippocampus_scale(side))
        kept[mine] = np.clip(1 + (1 - radius) * HIPPOCAMPUS_RADIUS / spacing, 0, 1)
    return kept


def _places(person: Person, template: Template, shape: tuple[int, int, int]) -> Array:
    """MNI millimetres for each voxel of a scan: head size and position, then random waves, then the ventricles."""
    spacing = EXTENT[0] / shape[0]
    nodes = [np.arange(-extent / 2 - NODES, extent / 2 + 2 * NODES, NODES) for extent in EXTENT]
    points = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1)
    points = (points - 3 * person.numbers[7:10]) @ _affine(person).T + MIDDLE
    points += _waves(person.waves, points.shape[:3])
    voxels = np.moveaxis((points - template.origin) / template.spacing, -1, 0)
    for axis, push in enumerate(template.push):
        moved = ndimage.map_coordinates(push, voxels, order=1, mode="nearest", prefilter=False)
        points[..., axis] -= person.ventricle_growth * moved
    values = np.moveaxis(points, -1, 0).astype(np.float32)
    for axis, (grid, size) in enumerate(zip(nodes, shape, strict=True)):
        values = _apply(_linear(grid, axis_positions(size, spacing)), values, axis + 1)
    return np.moveaxis(values, 0, -1)


def _affine(person: Person) -> npt.NDArray[np.float64]:
    """``[3, 3]`` from scan to template: head size, differing a little between axes and sexes, and a tilted head."""
    size = HEAD_SIZE * (1.015 if person.sex == "M" else 0.985) * (1 + 0.02 * person.numbers[0])
    sizes = size * (1 + 0.015 * person.numbers[1:4])
    a, b, c = np.deg2rad(2.5 * person.numbers[4:7])
    turn_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    turn_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    turn_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    affine: npt.NDArray[np.float64] = np.diag(1 / sizes) @ turn_x @ turn_y @ turn_z
    return affine


def _waves(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """``[X, Y, Z, 3]`` smooth random displacement in millimetres.

    White noise of unit deviation smoothed by a Gaussian of sigma voxels has the deviation (2 sqrt(pi) sigma)^(-3/2).
    With these extents the displacement's slope stays well below 1, so that nothing folds.
    """
    random = np.random.default_rng(seed)
    total = np.zeros((*shape, 3))
    for extent, deviation in WAVES:
        sigma = extent / NODES
        gain = deviation * (2 * math.sqrt(math.pi) * sigma) ** 1.5
        for axis in range(3):
            total[..., axis] += gain * ndimage.gaussian_filter(random.standard_normal(shape), sigma, mode="wrap")
    return total


def _linear(nodes: npt.NDArray[np.float64], positions: npt.NDArray[np.float64]) -> Array:
    """``[positions, nodes]`` weights of linear interpolation between evenly spaced nodes."""
    where = (positions - nodes[0]) / (nodes[1] - nodes[0])
    return np.asarray(np.maximum(0, 1 - np.abs(where[:, None] - np.arange(len(nodes)))), dtype=np.float32)


def _apply(matrix: Array, values: Array, axis: int) -> Array:
    """A matrix applied along one axis."""
    return np.ascontiguousarray(np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis))
