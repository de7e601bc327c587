"""Phantoms: people with known brains, scanned at sites with known scanners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from polyclinic.data.phantom.anatomy import Person, make_anatomy
from polyclinic.data.phantom.measure import grey_matter
from polyclinic.data.phantom.scanner import EFFECTS, SCANNERS, Scan, Scanner, acquire, store
from polyclinic.data.phantom.template import REGIONS_A_SIDE, VENTRICLES, Array, load_template, region_names
from polyclinic.data.readers.volume import Volume
from polyclinic.errors import DataError, nearest

Diagnosis = Literal["control", "disease"]
#: Voxel sizes that phantoms can be made with, in millimetres.
SPACINGS = (1.0, 6.0)
#: Age of people: mean, deviation, least, greatest, in years.
AGES = (72.0, 8.0, 50.0, 92.0)


@dataclass(frozen=True, eq=False)
class PhantomSubject:
    """One person, scanned, with the truth.

    Attributes:
        name: unique over all sites, for example ``s01p0001``.
        site: name of the site.
        image: T1-weighted brain, extracted, int16; 0 outside the brain.
        tissue: uint8 on the image's grid: 0 outside, 1 fluid, 2 grey matter, 3 white matter.
        hippocampus: uint8 on the image's grid: 1 in both hippocampi.
        parcels: uint8 on the image's grid: 0 outside, 1 to 45 regions of the left and 46 to 90 of the right half,
            91 ventricles; every voxel of the brain has a region.
        regions: grey matter of the 90 regions in ml as *measured* in the image (``measure.grey_matter``), whole scan.
        truth: grey matter of the 90 regions in ml, counted in ``tissue`` and ``parcels``. The little that lies in the
            walls of the ventricles belongs to no region.
        brain_volume: ml of the brain with its fluid, whole scan.
        ventricle_volume: ml of the lateral and third ventricles, counted in ``tissue`` and ``parcels``.
        diagnosis: ``control`` or ``disease``.
        age: years.
        sex: ``F`` or ``M``.
    """

    name: str
    site: str
    image: Volume
    tissue: Volume
    hippocampus: Volume
    parcels: Volume
    regions: dict[str, float]
    truth: dict[str, float]
    brain_volume: float
    ventricle_volume: float
    diagnosis: Diagnosis
    age: float
    sex: str
    _scan: Scan
    _grey: Array

    def grey_map(self) -> Volume:
        """Measured grey matter, brought to MNI space by the true deformation, on the template's grid.

        The map is modulated: a voxel holds the grey matter that lies there, as a share of the voxel, so that the sum
        times the voxel volume is the measured volume. Values above 1 are possible where tissue was compressed.
        """
        template = load_template(2.0)
        shape = template.parcels.shape
        chosen = self._grey > 0
        voxels = (self._scan.places[chosen] - template.origin) / template.spacing
        weight = self._grey[chosen] * float(np.prod(self._scan.spacing)) / template.spacing**3
        below = np.floor(voxels).astype(np.int64)
        values = np.zeros(int(np.prod(shape)))
        for corner in np.ndindex(2, 2, 2):
            index = np.clip(below + corner, 0, np.array(shape) - 1)
            share = np.prod(1 - np.abs(voxels - (below + corner)), axis=1) * weight
            values += np.bincount(np.ravel_multi_index(tuple(index.T), shape), share, values.size)
        # Voxels are spread over their own size; points alone would leave gaps.
        blur = 0.4 * np.array(self._scan.spacing) / template.spacing
        smooth = ndimage.gaussian_filter(values.reshape(shape), blur, mode="constant")
        return Volume(smooth.astype(np.float32), template.affine)


class Phantom:
    """A source of phantoms: the same arguments always give the same people and images.

    A person depends on seed, site number and number alone; ``dose``, ``effects`` and ``spacing`` change what becomes
    of the same person.

    Args:
        seed: of everything random.
        sites: names of the sites, or how many (``site-01`` ...).
        spacing: voxel size of the reference scanner in millimetres, 1 to 6.
        dose: strength of the disease: 0 none, 1 about as in Alzheimer's disease.
        prevalence: share of diseased people, one for all sites or one for each. It is kept exactly: of the first n
            people at a site, floor(n * prevalence) are diseased.
        effects: in what the sites' scanners differ, names of ``EFFECTS``; without effects all have the same scanner.
        scanners: one for each site; default: ``SCANNERS`` in turn.

    Raises:
        DataError: P102 for a value out of range, P103 for an unknown effect, P503 if nilearn is not installed.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        sites: int | tuple[str, ...] = 6,
        spacing: float = 2.0,
        dose: float = 1.0,
        prevalence: float | tuple[float, ...] = 0.5,
        effects: tuple[str, ...] = EFFECTS,
        scanners: tuple[Scanner, ...] = SCANNERS,
    ) -> None:
        self.seed, self.spacing, self.dose = seed, spacing, dose
        self.sites = sites if isinstance(sites, tuple) else tuple(f"site-{n + 1:02d}" for n in range(sites))
        each = prevalence if isinstance(prevalence, tuple) else (prevalence,)
        self.prevalence = each * len(self.sites) if len(each) == 1 else each
        _check(self)
        for effect in effects:
            if effect not in EFFECTS:
                raise DataError("P103", f"{effect!r} is no effect of a scanner.", nearest(effect, list(EFFECTS)))
        self.scanners = tuple(
            scanners[number % len(scanners)].with_effects(frozenset(effects)) for number in range(len(self.sites))
        )

    def person(self, site: int, number: int) -> tuple[Person, Diagnosis]:
        """Who the ``number``-th person (from 0) of the ``site``-th site (from 0) is."""
        random = np.random.default_rng([self.seed, site, number, 0])
        mean, deviation, least, greatest = AGES
        age = round(float(np.clip(mean + deviation * random.standard_normal(), least, greatest)), 1)
        sex = "F" if random.random() < 0.5 else "M"
        share = self.prevalence[site]
        # The small amount keeps 0.1 * 10 from falling below 1.
        diseased = np.floor((number + 1) * share + 1e-9) > np.floor(number * share + 1e-9)
        severity = float(np.exp(0.45 * random.standard_normal())) * self.dose * bool(diseased)
        numbers = random.standard_normal(16)
        waves = int(random.integers(2**62))
        return Person(age, sex, severity, numbers, waves), "disease" if diseased else "control"

    def subject(self, site: int, number: int) -> PhantomSubject:
        """The ``number``-th person (from 0) of the ``site``-th site (from 0), scanned there."""
        person, diagnosis = self.person(site, number)
        scanner = self.scanners[site]
        anatomy = make_anatomy(person, self.spacing)
        scan = acquire(anatomy, scanner, np.random.default_rng([self.seed, site, number, 1]))
        brain = scan.labels > 0
        grey = grey_matter(scan.image, brain)
        ml = float(np.prod(scan.spacing)) / 1000
        tissue, parcels = store(scan.labels, scan, scanner), store(scan.parcels, scan, scanner)
        hippocampi = (scan.labels == 2) & np.isin(scan.parcels, (REGIONS_A_SIDE, 2 * REGIONS_A_SIDE))
        true_grey = parcels.values[tissue.values == 2]
        ventricles = (tissue.values == 1) & (parcels.values == VENTRICLES)
        # A scanner writes whole numbers; 0 is kept for what is not brain.
        stored = np.where(brain, np.clip(np.rint(scan.image), 1, 32767), 0).astype(np.int16)
        return PhantomSubject(
            name=f"s{site + 1:02d}p{number + 1:04d}",
            site=self.sites[site],
            image=store(stored, scan, scanner),
            tissue=tissue,
            hippocampus=store(hippocampi.astype(np.uint8), scan, scanner),
            parcels=parcels,
            regions=_volumes(scan.parcels[brain], grey[brain] * ml),
            truth=_volumes(true_grey, np.full(len(true_grey), ml)),
            brain_volume=float(brain.sum()) * ml,
            ventricle_volume=float(ventricles.sum()) * ml,
            diagnosis=diagnosis,
            age=person.age,
            sex=person.sex,
            _scan=scan,
            _grey=grey,
        )


def atlas() -> Volume:
    """The 90 regions in MNI space at 2 mm, numbered as in ``region_names``; 0 elsewhere."""
    template = load_template(2.0)
    return Volume(np.where(template.parcels == VENTRICLES, 0, template.parcels), template.affine)


def scanners_of(field_strength: float) -> tuple[Scanner, ...]:
    """The scanners of a field strength in tesla."""
    return tuple(each for each in SCANNERS if each.field_strength == field_strength)


def _volumes(parcels: npt.NDArray[np.uint8], volumes: npt.NDArray[np.floating]) -> dict[str, float]:
    """Region name -> sum of the volumes of its voxels."""
    names = region_names()
    sums = np.bincount(parcels, volumes, VENTRICLES + 1)[1 : len(names) + 1]
    return dict(zip(names, sums.tolist(), strict=True))


def _check(phantom: Phantom) -> None:
    low, high = SPACINGS
    if not phantom.sites:
        raise DataError("P102", "A phantom needs a site.", "Ask for 1 site or more.")
    if phantom.seed < 0:
        raise DataError("P102", f"The seed is {phantom.seed}; expected 0 or a positive whole number.", "Give another.")
    if not low <= phantom.spacing <= high:
        hint = f"Give a voxel size between {low:g} and {high:g} mm."
        raise DataError("P102", f"The spacing is {phantom.spacing:g} mm, which phantoms can't be made with.", hint)
    if not 0 <= phantom.dose <= 4:
        raise DataError("P102", f"The dose is {phantom.dose:g}; expected 0 (no disease) to 4.", "Try 1.")
    if len(phantom.prevalence) != len(phantom.sites):
        got = f"{len(phantom.prevalence)} prevalences for {len(phantom.sites)} sites."
        raise DataError("P102", got, "Give one for all sites or one for each.")
    for share in phantom.prevalence:
        if not 0 <= share <= 1:
            raise DataError("P102", f"The prevalence is {share:g}; expected 0 to 1.", "0.5 makes half of them ill.")
