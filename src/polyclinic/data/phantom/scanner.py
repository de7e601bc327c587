"""What a scanner makes of a brain: contrast, bias field, noise, resolution, voxels, orientation and field of view."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from scipy import ndimage

from polyclinic.data.phantom.anatomy import Anatomy, axis_positions
from polyclinic.data.phantom.template import Array
from polyclinic.data.readers.volume import Volume

#: Effects that make a site's scanner differ from the reference scanner.
EFFECTS = ("contrast", "bias", "noise", "resolution", "spacing", "orientation", "field_of_view")
#: T1 relaxation times in milliseconds of fluid, grey and white matter by field strength in tesla. Grey and white:
#: Wright et al., Water proton T1 measurements in brain tissue at 7, 3, and 1.5 T, MAGMA 21 (2008) 121-130.
T1 = {1.5: (4300.0, 1197.0, 646.0), 3.0: (4300.0, 1607.0, 838.0)}
#: Proton density of fluid, grey and white matter relative to water.
PROTON_DENSITY = (1.0, 0.82, 0.70)


@dataclass(frozen=True)
class Sequence:
    """A T1-weighted gradient-echo sequence.

    Attributes:
        flip_angle: degrees.
        echo_spacing: milliseconds between excitations.
        excitations: number in a train after an inversion; 0 for a spoiled gradient echo without inversion.
        inversion_time: milliseconds from the inversion to the middle of the train.
        repetition_time: milliseconds from one inversion to the next.
    """

    flip_angle: float
    echo_spacing: float
    excitations: int = 0
    inversion_time: float = 0.0
    repetition_time: float = 0.0

    def signal(self, t1: float) -> float:
        """Magnitude of the steady-state signal of tissue with a T1 in milliseconds and proton density 1.

        Each interval maps the longitudinal magnetisation M to e M + (1 - e), an excitation to cos(a) M, an inversion
        to -M; a whole period is M -> s M + o, whose fixed point is the steady state. Signal is sin(a) M before the
        middle excitation (Brant-Zawadzki et al., MP RAGE, Radiology 182 (1992) 769-775; without inversion: Ernst).
        """
        angle = math.radians(self.flip_angle)
        step = math.exp(-self.echo_spacing / t1)
        if not self.excitations:
            return math.sin(angle) * (1 - step) / (1 - step * math.cos(angle))
        half = self.excitations // 2
        before = math.exp(-(self.inversion_time - half * self.echo_spacing) / t1)
        train_end = self.inversion_time + (self.excitations - half) * self.echo_spacing
        after = math.exp(-(self.repetition_time - train_end) / t1)
        slope, offset = -before, 1 - before
        middle = (slope, offset)
        for excitation in range(self.excitations):
            if excitation == half:
                middle = (slope, offset)
            slope, offset = step * math.cos(angle) * slope, step * math.cos(angle) * offset + (1 - step)
        slope, offset = after * slope, after * offset + (1 - after)
        steady = offset / (1 - slope)
        return abs(math.sin(angle) * (middle[0] * steady + middle[1]))


@dataclass(frozen=True)
class Scanner:
    """One scanner and how it is used at a site. The defaults are the reference scanner.

    Attributes:
        vendor: Siemens, GE or Philips.
        field_strength: tesla, 1.5 or 3.
        sequence: of the T1-weighted image.
        scale: brightness of white matter in the stored image.
        bias: deviation of the logarithm of the bias field at the edge of the head.
        noise: deviation of the noise in each of the two receiver channels, relative to white matter.
        blur: full width at half maximum of the point spread, in multiples of ``Phantom``'s voxel size.
        spacing: voxel size along right-left, back-front and down-up, in multiples of ``Phantom``'s voxel size.
        orientation: axis codes of the stored array, as nibabel writes them.
        shift: millimetres by which the field of view is moved to the right, front and top.
        crop: millimetres cut off (negative: added) at left, right, back, front, bottom, top.
    """

    vendor: str = "Siemens"
    field_strength: float = 3.0
    sequence: Sequence = Sequence(9.0, 7.0, 176, 900.0, 2300.0)
    scale: float = 400.0
    bias: float = 0.0
    noise: float = 0.03
    blur: float = 0.0
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    orientation: str = "RAS"
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    crop: tuple[float, float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    @property
    def manufacturer(self) -> str:
        """The vendor as its scanners write it into headers."""
        return {"Siemens": "SIEMENS", "GE": "GE MEDICAL SYSTEMS"}.get(self.vendor, self.vendor)

    @property
    def about(self) -> dict[str, str | float]:
        """What readers take from the header."""
        return {
            "modality": "MR",
            "vendor": self.vendor,
            "model": f"Phantom {self.field_strength:g}T",
            "field_strength": self.field_strength,
        }

    @property
    def contrast(self) -> tuple[float, float, float]:
        """Brightness of fluid, grey and white matter relative to white matter."""
        fluid, grey, white = (
            density * self.sequence.signal(t1)
            for density, t1 in zip(PROTON_DENSITY, T1[self.field_strength], strict=True)
        )
        return fluid / white, grey / white, 1.0

    def with_effects(self, effects: frozenset[str]) -> Scanner:
        """This scanner in the given effects, the reference scanner in all others."""
        taken: dict[str, object] = {}
        for effect in effects:
            taken |= {name: getattr(self, name) for name in _SETTINGS[effect]}
        return replace(Scanner(), **taken)  # type: ignore[arg-type]


_SETTINGS = {
    "contrast": ("vendor", "field_strength", "sequence", "scale"),
    "bias": ("bias",),
    "noise": ("noise",),
    "resolution": ("blur",),
    "spacing": ("spacing",),
    "orientation": ("orientation",),
    "field_of_view": ("shift", "crop"),
}

_PREPARED_15T = Sequence(8.0, 9.0, 166, 1000.0, 2400.0)
_SPOILED_3T = Sequence(11.0, 7.0)
_SPOILED_15T = Sequence(20.0, 11.0)
_TURBO_3T = Sequence(8.0, 6.8, 150, 900.0, 2200.0)
_MPRAGE_15T = Sequence(8.0, 9.0, 160, 1000.0, 2400.0)
_MPRAGE_3T = Sequence(9.0, 7.0, 176, 900.0, 2300.0)
#: Scanners of the sites in turn. Protocols are like those of large studies; no setting is of one particular machine.
SCANNERS = (
    Scanner("Siemens", 3.0, _MPRAGE_3T, 400.0, 0.16, 0.030, 0.4, (1.0, 1.0, 1.0), "RAS"),
    Scanner("GE", 1.5, _PREPARED_15T, 2600.0, 0.08, 0.060, 0.9, (1.0, 1.0, 1.5), "LPS", (0, 0, 6)),
    Scanner("Philips", 3.0, _TURBO_3T, 900.0, 0.24, 0.035, 0.6, (1.25, 1.0, 1.0), "PSR", (4, -6, 0),
            (0, 0, 0, 0, -8, -8)),
    Scanner("Siemens", 1.5, _MPRAGE_15T, 250.0, 0.06, 0.070, 1.2, (1.25, 1.0, 1.0), "PIR", (0, 4, -6),
            (8, 8, 8, 8, 0, 0)),
    Scanner("GE", 3.0, _SPOILED_3T, 4200.0, 0.28, 0.025, 0.5, (1.0, 1.5, 1.0), "LSA", (-4, 0, 4),
            (-8, -8, -8, -8, 0, 0)),
    Scanner("Philips", 1.5, _SPOILED_15T, 1500.0, 0.10, 0.050, 1.0, (1.0, 1.0, 2.0), "RAS", (0, 0, 0),
            (0, 0, 0, 0, 36, -8)),
    Scanner("Siemens", 3.0, _MPRAGE_3T, 520.0, 0.32, 0.045, 0.8, (1.2, 1.2, 1.2), "ARS", (6, 0, 0),
            (0, 0, -12, -12, 0, 0)),
    Scanner("GE", 1.5, _SPOILED_15T, 3100.0, 0.05, 0.080, 1.4, (1.0, 1.0, 1.75), "LAS", (0, -4, 6)),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan before its axes are turned and its field of view is cut: axes are right, anterior, superior.

    Attributes:
        image: float32 ``[X, Y, Z]`` brightness as stored; 0 outside the brain, which is extracted.
        labels: uint8 ``[X, Y, Z]``, 0 outside, 1 fluid, 2 grey, 3 white: the tissue with the largest share.
        parcels: uint8 ``[X, Y, Z]`` regions as in ``Template.parcels``; 0 outside the brain.
        places: float32 ``[X, Y, Z, 3]`` MNI millimetres.
        spacing: voxel sizes in millimetres.
        corner: millimetres of the middle of voxel (0, 0, 0) from the middle of the scan.
    """

    image: Array
    labels: npt.NDArray[np.uint8]
    parcels: npt.NDArray[np.uint8]
    places: Array
    spacing: tuple[float, float, float]
    corner: tuple[float, float, float]


def acquire(anatomy: Anatomy, scanner: Scanner, random: np.random.Generator) -> Scan:
    """Scan a brain.

    The image is the magnitude of a signal with complex Gaussian noise (Gudbjartsson and Patz, MRM 34 (1995) 910-914),
    after the bias field and the point spread. Labels know neither: they are the true tissues in the scanner's voxels.
    """
    grids = [_grid(size, anatomy.spacing, factor) for size, factor in
             zip(anatomy.parcels.shape, scanner.spacing, strict=True)]  # fmt: skip
    shares = anatomy.tissues
    for axis, (positions, width) in enumerate(grids):
        shares = _apply(_cells(shares.shape[axis + 1], anatomy.spacing, positions, width), shares, axis + 1)
    brain = shares.sum(axis=0) > 0.5
    labels = np.where(brain, shares.argmax(axis=0) + 1, 0).astype(np.uint8)
    signal = np.tensordot(np.array(scanner.contrast, dtype=np.float32), anatomy.tissues, axes=1)
    for axis, (positions, width) in enumerate(grids):
        matrix = _cells(signal.shape[axis], anatomy.spacing, positions, width)
        signal = _apply(matrix @ _spread(signal.shape[axis], scanner.blur), signal, axis)
    index = np.ix_(*(_nearest(size, anatomy.spacing, positions) for size, (positions, _) in
                     zip(anatomy.parcels.shape, grids, strict=True)))  # fmt: skip
    values = signal[brain] * _bias_field(brain, [positions for positions, _ in grids], scanner.bias, random)
    noise = random.standard_normal((2, len(values)), dtype=np.float32) * np.float32(scanner.noise)
    image = np.zeros(brain.shape, dtype=np.float32)
    image[brain] = np.hypot(values + noise[0], noise[1]) * np.float32(scanner.scale)
    x, y, z = (float(width) for _, width in grids)
    left, back, bottom = (float(positions[0]) for positions, _ in grids)
    parcels = np.where(brain, anatomy.parcels[index], 0).astype(np.uint8)
    return Scan(image, labels, parcels, anatomy.places[index], (x, y, z), (left, back, bottom))


def store(values: npt.NDArray[np.generic], scan: Scan, scanner: Scanner) -> Volume:
    """Values on a scan's grid as the scanner stores them: field of view cut, axes turned, with the right affine.

    Args:
        values: ``[X, Y, Z]`` on the grid of ``scan``.
        scan: gives the grid.
        scanner: gives field of view, orientation and header.
    """
    affine = np.diag([*scan.spacing, 1.0])
    affine[:3, 3] = scan.corner
    for axis, (width, shift) in enumerate(zip(scan.spacing, scanner.shift, strict=True)):
        moved = round(shift / width)
        first = round(scanner.crop[2 * axis] / width) + moved
        last = round(scanner.crop[2 * axis + 1] / width) - moved
        add = [(0, 0)] * 3
        add[axis] = max(-first, 0), max(-last, 0)
        cut = [slice(None)] * 3
        cut[axis] = slice(max(first, 0), values.shape[axis] - max(last, 0))
        values = np.pad(values[tuple(cut)], add)
        affine[axis, 3] += first * width
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(scanner.orientation))
    turned = np.ascontiguousarray(orientations.apply_orientation(values, turn))
    return Volume(turned, affine @ orientations.inv_ornt_aff(turn, values.shape), scanner.about)


def _grid(size: int, spacing: float, factor: float) -> tuple[npt.NDArray[np.float64], float]:
    """Positions and width of voxels ``factor`` times as large that cover the same length."""
    width = spacing * factor
    return axis_positions(math.ceil(size / factor - 1e-9), width), width


def _cells(size: int, spacing: float, positions: npt.NDArray[np.float64], width: float) -> Array:
    """``[positions, size]`` weights: the share of each new voxel that each old one fills."""
    old = axis_positions(size, spacing)
    upper = np.minimum(positions[:, None] + width / 2, old + spacing / 2)
    lower = np.maximum(positions[:, None] - width / 2, old - spacing / 2)
    return np.asarray(np.maximum(upper - lower, 0) / width, dtype=np.float32)


def _spread(size: int, blur: float) -> Array:
    """``[size, size]`` weights of a Gaussian point spread; its full width at half maximum is in voxels."""
    identity = np.eye(size, dtype=np.float32)
    if not blur:
        return identity
    return np.asarray(ndimage.gaussian_filter1d(identity, blur / 2.3548, axis=0, mode="constant"))


def _nearest(size: int, spacing: float, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    where = np.floor(positions / spacing + size / 2).astype(np.int64)
    return np.clip(where, 0, size - 1)


def _apply(matrix: Array, values: Array, axis: int) -> Array:
    """A matrix applied along one axis."""
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix), dtype=np.float32)):
        return values
    return np.ascontiguousarray(np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis))


def _bias_field(
    brain: npt.NDArray[np.bool_], positions: list[npt.NDArray[np.float64]], strength: float, random: np.random.Generator
) -> Array:
    """``[N]`` smooth multiplication of the signal in the N voxels of the brain, with mean 1.

    The exponential of a random polynomial of second degree, which is how receiver coils shade an image.
    """
    weights = random.standard_normal(9)
    x, y, z = ((at / 80.0).astype(np.float32)[index] for at, index in zip(positions, np.nonzero(brain), strict=True))
    terms = (x, y, z, x * y, y * z, z * x, x * x, y * y, z * z)
    shade = sum((float(weight) * term for weight, term in zip(weights, terms, strict=True)), np.float32(0))
    field = np.exp(np.float32(strength / math.sqrt(3)) * shade)
    return np.asarray(field / field.mean(), dtype=np.float32)
