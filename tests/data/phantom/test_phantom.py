"""Phantoms: the same seed gives the same people, the truth is true, and each effect changes what it should alone."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel import orientations
from scipy import stats

from polyclinic.data.phantom import EFFECTS, SCANNERS, Phantom, PhantomSubject, Scanner
from polyclinic.data.phantom.anatomy import Anatomy, Person, axis_positions, grid_shape, make_anatomy
from polyclinic.data.phantom.centres import CENTRES
from polyclinic.data.phantom.measure import grey_matter
from polyclinic.data.phantom.phantom import atlas
from polyclinic.data.phantom.scanner import PROTON_DENSITY, T1, Scan, Sequence, acquire, store
from polyclinic.data.phantom.template import VENTRICLES, hippocampus_radius, load_template, region_names
from polyclinic.data.readers.volume import Volume
from polyclinic.errors import DataError

pytest.importorskip("nilearn")
#: Large voxels keep the tests quick.
SPACING = 4.0


def subject(site: int = 0, number: int = 1, **options: object) -> PhantomSubject:
    return Phantom(3, **({"sites": 6, "spacing": SPACING, "effects": ()} | options)).subject(site, number)  # type: ignore[arg-type]


def ras(volume: Volume) -> np.ndarray:
    """The values with axes right, anterior, superior."""
    return orientations.apply_orientation(volume.values, orientations.io_orientation(volume.affine))


def ml(volume: Volume) -> float:
    return float(np.prod(volume.spacing)) / 1000


@pytest.fixture(scope="module")
def plain() -> PhantomSubject:
    return subject()


# Determinism ----------------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_subject():
    first, second = (subject(2, 3, effects=EFFECTS) for _ in range(2))
    for name in ("image", "tissue", "hippocampus", "parcels"):
        assert getattr(first, name).values.tobytes() == getattr(second, name).values.tobytes()
        assert np.array_equal(getattr(first, name).affine, getattr(second, name).affine)
    assert (first.regions, first.truth, first.age, first.sex) == (second.regions, second.truth, second.age, second.sex)


@pytest.mark.parametrize("other", [{"site": 1}, {"number": 3}])
def test_other_people_differ(plain: PhantomSubject, other: dict[str, int]):
    assert not np.array_equal(subject(**other).tissue.values, plain.tissue.values)


def test_another_seed_gives_other_people(plain: PhantomSubject):
    assert not np.array_equal(Phantom(4, spacing=SPACING, effects=()).subject(0, 1).tissue.values, plain.tissue.values)


@pytest.mark.parametrize(("prevalence", "expected"), [(0.0, 0), (0.1, 1), (0.5, 5), (0.75, 7), (1.0, 10)])
def test_prevalence_is_kept_exactly(prevalence: float, expected: int):
    phantom = Phantom(spacing=SPACING, prevalence=prevalence)
    assert sum(phantom.person(0, number)[1] == "disease" for number in range(10)) == expected


def test_people_are_as_described():
    people = [Phantom(spacing=SPACING).person(site, number)[0] for site in range(3) for number in range(100)]
    assert 70 < np.mean([person.age for person in people]) < 74
    assert all(50 <= person.age <= 92 for person in people)
    assert 0.4 < np.mean([person.sex == "F" for person in people]) < 0.6


# Truth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [0, 2, 5])
def test_volumes_in_the_masks_are_the_true_volumes(site: int):
    found = subject(site, effects=EFFECTS)
    grey, parcels = found.tissue.values == 2, found.parcels.values
    for number, name in enumerate(region_names(), 1):
        assert found.truth[name] == pytest.approx((grey & (parcels == number)).sum() * ml(found.tissue))
    walls = (grey & (parcels == VENTRICLES)).sum()
    assert walls < 0.005 * grey.sum()
    assert sum(found.truth.values()) == pytest.approx((grey.sum() - walls) * ml(found.tissue))
    both = found.truth["left_hippocampus"] + found.truth["right_hippocampus"]
    assert both == pytest.approx(found.hippocampus.values.sum() * ml(found.hippocampus))
    fluid = (found.tissue.values == 1) & (parcels == VENTRICLES)
    assert found.ventricle_volume == pytest.approx(fluid.sum() * ml(found.tissue))


def test_masks_lie_on_the_image(plain: PhantomSubject):
    found = subject(3, effects=EFFECTS)
    for mask in (found.tissue, found.hippocampus, found.parcels):
        assert np.array_equal(mask.affine, found.image.affine)
        assert mask.values.shape == found.image.values.shape
    assert np.array_equal(found.image.values > 0, found.tissue.values > 0)
    assert np.array_equal(found.parcels.values > 0, found.tissue.values > 0)
    assert set(np.unique(found.tissue.values)) == {0, 1, 2, 3}
    assert plain.image.values.shape == (48, 56, 48)


def test_left_is_left(plain: PhantomSubject):
    """Left regions have negative first coordinates in the RAS frame of the affine."""
    for number, sign in ((45, -1), (90, 1)):
        place = np.argwhere(plain.parcels.values == number).mean(axis=0) @ plain.parcels.affine[:3, :3]
        assert sign * (place + plain.parcels.affine[:3, 3])[0] > 10


def test_volumes_are_those_of_people():
    """Adult brains: about 1,500 ml with their fluid, 3 to 4 ml for a hippocampus, ventricles of 10 to 60 ml."""
    people = [subject(site, 0, spacing=3.0) for site in range(6)]
    assert 1300 < np.mean([person.brain_volume for person in people]) < 1650
    assert 2.5 < np.mean([person.truth["left_hippocampus"] for person in people]) < 4.5
    assert 10 < np.mean([person.ventricle_volume for person in people]) < 40


@pytest.mark.parametrize("number", [1, 3])
def test_the_dose_shrinks_hippocampus_and_cortex_and_widens_ventricles(number: int):
    found = [subject(0, number, spacing=2.0, dose=dose) for dose in (0.0, 0.5, 1.0, 2.0)]
    assert found[0].diagnosis == "disease"
    hippocampi = [each.truth["left_hippocampus"] + each.truth["right_hippocampus"] for each in found]
    assert np.all(np.diff(hippocampi) < 0)
    assert np.all(np.diff([sum(each.truth.values()) for each in found]) < 0)
    assert np.all(np.diff([each.ventricle_volume for each in found]) > 0)
    assert found[2].brain_volume == pytest.approx(found[0].brain_volume, rel=0.01)


def test_the_dose_leaves_healthy_people_alone():
    healthy, dosed = (subject(0, 0, dose=dose) for dose in (0.0, 2.0))
    assert dosed.diagnosis == "control"
    assert np.array_equal(healthy.image.values, dosed.image.values)


def test_age_thins_grey_matter_and_widens_ventricles():
    brains = [make_anatomy(Person(age, "F", 0.0, np.zeros(16), 1), 2.0) for age in (25.0, 50.0, 75.0, 90.0)]
    fluid = [float(brain.tissues[0][brain.parcels == VENTRICLES].sum()) for brain in brains]
    grey = [float(brain.tissues[1].sum()) for brain in brains]
    assert np.all(np.diff(fluid) > 0)
    assert np.all(np.diff(grey) < 0)


def test_tissues_are_shares():
    brain = make_anatomy(Phantom(spacing=SPACING).person(0, 1)[0], SPACING)
    total = brain.tissues.sum(axis=0)
    assert brain.tissues.min() >= 0
    assert total.max() < 1 + 1e-5
    assert np.all(total[brain.parcels == 0] == 0)


@pytest.mark.parametrize("number", range(5))
def test_deformations_do_not_fold(number: int):
    """The determinant of the deformation's derivative is positive everywhere."""
    places = make_anatomy(Phantom(spacing=SPACING, dose=2.0).person(1, number)[0], SPACING).places
    slopes = np.stack([np.stack(np.gradient(places[..., axis], SPACING), axis=-1) for axis in range(3)], axis=-2)
    assert np.linalg.det(slopes.astype(np.float64)).min() > 0.1


# Effects --------------------------------------------------------------------------------------------------------------

#: A site whose scanner differs from the reference scanner in every effect.
SITE = 4


@pytest.mark.parametrize("effect", ["contrast", "bias", "noise", "resolution"])
def test_effects_on_brightness_leave_truth_and_place_alone(effect: str):
    plain, changed = subject(SITE), subject(SITE, effects=(effect,))
    assert not np.array_equal(plain.image.values, changed.image.values)
    assert np.array_equal(plain.image.affine, changed.image.affine)
    assert np.array_equal(plain.tissue.values, changed.tissue.values)
    assert plain.truth == changed.truth
    assert plain.regions != changed.regions


def test_contrast_changes_header_and_contrast():
    plain, changed = subject(1), subject(1, effects=("contrast",))
    assert plain.image.about == Scanner().about
    assert changed.image.about == SCANNERS[1].about

    def grey_to_white(found: PhantomSubject) -> float:
        inside = found.image.values, found.tissue.values
        return float(np.median(inside[0][inside[1] == 2]) / np.median(inside[0][inside[1] == 3]))

    assert grey_to_white(changed) > grey_to_white(plain) + 0.03


def test_bias_is_smooth_and_keeps_the_mean():
    quiet = Scanner(noise=0.0)
    anatomy = make_anatomy(Phantom(spacing=SPACING).person(0, 0)[0], SPACING)
    plain = acquire(anatomy, quiet, np.random.default_rng(1))
    shaded = acquire(anatomy, Scanner(noise=0.0, bias=0.3), np.random.default_rng(1))
    sure = plain.image > 0
    ratio = np.where(sure, shaded.image / np.where(sure, plain.image, 1), np.nan)
    assert np.nanmean(ratio) == pytest.approx(1, abs=1e-3)
    assert np.nanstd(ratio) > 0.05
    assert np.nanmax(np.abs(np.diff(ratio, axis=0))) < 0.1


@pytest.mark.parametrize("tissue", [0, 1, 2])
def test_noise_is_rician(tissue: int):
    scanner = Scanner(noise=0.1, scale=400.0)
    tissues = np.zeros((3, 40, 40, 40), dtype=np.float32)
    tissues[tissue] = 1
    anatomy = Anatomy(2.0, tissues, np.ones((40, 40, 40), np.uint8), np.zeros((40, 40, 40, 3), np.float32))
    image = acquire(anatomy, scanner, np.random.default_rng(0)).image / 400.0
    expected = stats.rice(scanner.contrast[tissue] / 0.1, scale=0.1)
    assert image.mean() == pytest.approx(expected.mean(), rel=0.005)
    assert image.std() == pytest.approx(expected.std(), rel=0.02)


def test_resolution_blurs():
    plain, blurred = (
        acquire(make_anatomy(Phantom(spacing=SPACING).person(0, 0)[0], SPACING), Scanner(noise=0.0, blur=blur),
                np.random.default_rng(0)) for blur in (0.0, 1.5)
    )  # fmt: skip
    edges = [np.abs(np.diff(scan.image, axis=0))[20:28, 20:36, 20:28].mean() for scan in (plain, blurred)]
    assert edges[1] < 0.8 * edges[0]
    inside = plain.image > 0
    assert blurred.image[inside].mean() == pytest.approx(plain.image[inside].mean(), rel=0.1)


@pytest.mark.parametrize("site", [2, 3, 4, 6])
def test_orientation_changes_the_axes_alone(site: int):
    plain, turned = subject(site, sites=7), subject(site, sites=7, effects=("orientation",))
    assert "".join(orientations.aff2axcodes(turned.image.affine)) == SCANNERS[site].orientation != "RAS"
    for name in ("image", "tissue", "hippocampus", "parcels"):
        assert np.array_equal(ras(getattr(turned, name)), getattr(plain, name).values)
    assert turned.regions == plain.regions
    assert turned.truth == pytest.approx(plain.truth)
    corner = np.array([1, 2, 3, 1])
    there = np.linalg.inv(turned.image.affine) @ plain.image.affine @ corner
    i, j, k = np.rint(there[:3]).astype(int)
    assert turned.image.values[i, j, k] == plain.image.values[1, 2, 3]


def test_field_of_view_moves_and_cuts_alone():
    plain, cut = subject(5), subject(5, effects=("field_of_view",))
    assert cut.image.values.shape != plain.image.values.shape
    assert cut.image.spacing == plain.image.spacing
    assert cut.regions == plain.regions
    shift = np.rint(np.linalg.inv(plain.image.affine) @ cut.image.affine[:, 3])[:3].astype(int)
    window = []
    for first, size, whole in zip(shift, cut.image.values.shape, plain.image.values.shape, strict=True):
        window.append((slice(max(first, 0), min(first + size, whole)), slice(max(-first, 0), min(size, whole - first))))
    there, here = (tuple(pair[side] for pair in window) for side in (0, 1))
    assert np.array_equal(cut.image.values[here], plain.image.values[there])
    assert sum(cut.truth.values()) < sum(plain.truth.values())  # the bottom of the cerebellum is cut off


@pytest.mark.parametrize("site", [1, 2, 5])
def test_spacing_keeps_volumes(site: int):
    plain, coarse = subject(site, spacing=2.0), subject(site, spacing=2.0, effects=("spacing",))
    assert coarse.image.spacing == pytest.approx([2.0 * factor for factor in SCANNERS[site].spacing])
    assert coarse.brain_volume == pytest.approx(plain.brain_volume, rel=0.01)
    assert sum(coarse.truth.values()) == pytest.approx(sum(plain.truth.values()), rel=0.03)


def test_without_effects_all_sites_have_the_same_scanner():
    assert set(Phantom(spacing=SPACING, sites=8, effects=()).scanners) == {Scanner()}
    assert set(Phantom(spacing=SPACING, sites=8).scanners) == set(SCANNERS)


# An ellipsoid of known volume -----------------------------------------------------------------------------------------


def ellipsoid(spacing: float, axes: tuple[float, float, float]) -> Anatomy:
    """White matter in an ellipsoid, with the share of each voxel at its border found by sampling."""
    shape = grid_shape(spacing)
    grids = [axis_positions(size, spacing) for size in shape]
    share = np.zeros(shape)
    offsets = (np.arange(4) - 1.5) / 4 * spacing
    for x in offsets:
        for y in offsets:
            for z in offsets:
                parts = [(grid + offset) / axis for grid, offset, axis in zip(grids, (x, y, z), axes, strict=True)]
                share += parts[0][:, None, None] ** 2 + parts[1][None, :, None] ** 2 + parts[2] ** 2 <= 1
    tissues = np.zeros((3, *shape), dtype=np.float32)
    tissues[2] = share / 64
    return Anatomy(spacing, tissues, np.ones(shape, np.uint8), np.zeros((*shape, 3), np.float32))


@pytest.mark.parametrize("axes", [(40.0, 40.0, 40.0), (60.0, 35.0, 20.0)])
@pytest.mark.parametrize("scanner", [Scanner(), *SCANNERS])
def test_an_ellipsoid_keeps_its_volume(axes: tuple[float, float, float], scanner: Scanner):
    """Scanned, resampled and reoriented, it stays within a layer of voxels of 4/3 pi a b c."""
    scan = acquire(ellipsoid(SPACING, axes), scanner, np.random.default_rng(0))
    mask = store(scan.labels, scan, scanner)
    found = (mask.values == 3).sum() * float(np.prod(mask.spacing))
    a, b, c = axes
    true = 4 / 3 * np.pi * a * b * c
    surface = 4 * np.pi * (((a * b) ** 1.6 + (a * c) ** 1.6 + (b * c) ** 1.6) / 3) ** (1 / 1.6)  # Thomsen
    assert abs(found - true) < surface * max(mask.spacing)
    assert found == pytest.approx(true, rel=0.08)
    middle = np.argwhere(mask.values == 3).mean(axis=0) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    assert np.abs(middle).max() < 0.2


def test_shares_are_conserved_exactly_by_larger_voxels():
    anatomy = ellipsoid(SPACING, (40.0, 30.0, 50.0))
    scan = acquire(anatomy, Scanner(noise=0.0, scale=1.0, spacing=(2.0, 1.0, 4.0)), np.random.default_rng(0))
    inside = scan.labels == 3
    assert (scan.image[inside].sum() * np.prod(scan.spacing)) < anatomy.tissues[2].sum() * SPACING**3
    assert scan.spacing == (8.0, 4.0, 16.0)


# Scanner and measurement ----------------------------------------------------------------------------------------------


def test_signal_without_inversion_is_ernsts():
    sequence = Sequence(flip_angle=20.0, echo_spacing=10.0)
    e = np.exp(-10 / 1000)
    assert sequence.signal(1000.0) == pytest.approx(np.sin(np.deg2rad(20)) * (1 - e) / (1 - e * np.cos(np.deg2rad(20))))


def test_signal_of_a_train_with_tiny_flips_is_inversion_recovery():
    """Excitations of almost nothing leave 1 - 2 exp(-TI / T1) / (1 + exp(-TR / T1)) of the magnetisation."""
    sequence = Sequence(1e-4, 7.0, 100, 900.0, 2300.0)
    expected = abs(1 - 2 * np.exp(-900 / 800) / (1 + np.exp(-2300 / 800)))
    assert sequence.signal(800.0) / np.sin(np.deg2rad(1e-4)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scanner", SCANNERS)
def test_every_scanner_is_t1_weighted(scanner: Scanner):
    fluid, grey, white = scanner.contrast
    assert fluid < grey - 0.1 < white - 0.2
    assert len(PROTON_DENSITY) == len(T1[scanner.field_strength]) == 3


def test_measured_grey_matter_is_right_in_a_good_image():
    anatomy = make_anatomy(Phantom(spacing=2.0).person(0, 0)[0], 2.0)
    scan = acquire(anatomy, Scanner(noise=0.02, bias=0.2), np.random.default_rng(0))
    brain = scan.labels > 0
    found = grey_matter(scan.image, brain)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found[~brain].any()
    dice = 2 * (found[scan.labels == 2] > 0.5).sum() / ((found > 0.5).sum() + (scan.labels == 2).sum())
    assert dice > 0.85


def test_scanners_change_measured_volumes():
    """The same healthy people at a 1.5 T and a 3 T site: measured volumes differ by far more than true ones."""

    def total(values: dict[str, float]) -> float:
        return sum(values.values())

    ratios = []
    for number in (0, 2):
        old, new = (
            Phantom(1, sites=1, spacing=2.0, effects=("contrast", "noise", "resolution"), scanners=(SCANNERS[site],))
            .subject(0, number) for site in (3, 0)
        )  # fmt: skip
        assert old.truth == new.truth
        ratios.append(total(new.regions) / total(old.regions))
    assert all(abs(ratio - 1) > 0.03 for ratio in ratios)


# Regions --------------------------------------------------------------------------------------------------------------


def test_there_are_ninety_regions_two_of_them_hippocampi():
    names = region_names()
    assert len(names) == len(set(names)) == 90
    assert (names[44], names[89]) == ("left_hippocampus", "right_hippocampus")
    volume = atlas()
    numbers, counts = np.unique(volume.values, return_counts=True)
    assert numbers.tolist() == list(range(91))
    assert counts.min() > 300


def test_the_halves_are_mirror_images():
    volume = atlas()
    left = volume.values[: volume.values.shape[0] // 2]
    for number in (1, 20, 45):
        ratio = (volume.values == number).sum() / (volume.values == number + 45).sum()
        assert ratio == pytest.approx(1, abs=0.05)
    assert left.max() <= 90


def test_the_middles_are_those_of_k_means():
    """Each middle is that of the grey matter nearest to it, to 1.5 mm: a fixed point of Lloyd's iteration."""
    template = load_template(2.0)
    index = np.argwhere((template.parcels > 0) & (template.parcels < 45) & (template.maps[0] > 0.3))
    points, weights = index * 2.0 + template.origin, template.maps[0][tuple(index.T)]
    numbers = template.parcels[tuple(index.T)]
    for number, centre in enumerate(CENTRES, 1):
        mine = numbers == number
        assert np.abs(np.average(points[mine], axis=0, weights=weights[mine]) - centre).max() < 1.5


def test_a_shrunken_hippocampus_lies_inside_the_whole_one():
    points = np.random.default_rng(0).uniform((15, -50, -35), (40, 5, 10), (50_000, 3))
    whole = hippocampus_radius(points, 1) <= 1
    before = whole
    for scale in (0.95, 0.8, 0.6):
        shrunken = hippocampus_radius(points, 1, scale) <= 1
        assert not (shrunken & ~before).any()
        before = shrunken
    assert before.sum() / whole.sum() == pytest.approx(0.6**3, rel=0.05)
    mirrored = points * (-1, 1, 1)
    assert np.allclose(hippocampus_radius(points, 1, 0.8), hippocampus_radius(mirrored, -1, 0.8))


def test_a_grey_map_holds_the_measured_volume():
    found = subject(1, spacing=2.0, effects=EFFECTS)
    grey = found.grey_map()
    assert grey.values.sum() * ml(grey) == pytest.approx(sum(found.regions.values()), rel=0.01)
    assert grey.values.shape == atlas().values.shape
    assert np.array_equal(grey.affine, atlas().affine)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ({"sites": 0}, "P102", "A phantom needs a site."),
        ({"seed": -1}, "P102", "The seed is -1; expected 0 or a positive whole number."),
        ({"spacing": 0.5}, "P102", "The spacing is 0.5 mm"),
        ({"spacing": 12.0}, "P102", "The spacing is 12 mm"),
        ({"dose": -1.0}, "P102", "The dose is -1; expected 0 (no disease) to 4."),
        ({"prevalence": 1.5}, "P102", "The prevalence is 1.5; expected 0 to 1."),
        ({"prevalence": (0.5, 0.2)}, "P102", "2 prevalences for 6 sites."),
        ({"effects": ("contrats",)}, "P103", "'contrats' is no effect of a scanner. Did you mean 'contrast'?"),
    ],
)
def test_bad_arguments_are_told(options: dict[str, object], code: str, sentence: str):
    with pytest.raises(DataError, match=code) as raised:
        Phantom(**options)  # type: ignore[arg-type]
    assert sentence in str(raised.value)


def test_a_missing_nilearn_is_told(monkeypatch: pytest.MonkeyPatch):
    from polyclinic.data.phantom import template

    monkeypatch.setattr(template, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="P503") as raised:
        template._maps(2)
    assert "pip install 'polyclinic[phantom]'" in str(raised.value)


def test_a_scan_is_a_grid_around_its_middle():
    scan: Scan = acquire(ellipsoid(SPACING, (30.0, 30.0, 30.0)), Scanner(), np.random.default_rng(0))
    assert scan.corner == (-94.0, -110.0, -94.0)
