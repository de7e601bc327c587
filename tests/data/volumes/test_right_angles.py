"""Sheared axes (a tilted gantry, a registered file) are undone in the grid."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.data.readers.axes import right_angled, shear_angle, true_spacing
from polyclinic.data.readers.describe import volume_facts
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.fingerprint import measure
from polyclinic.data.volumes.preprocessing import prepare_case

RADIUS = 20.0
MILLILITRES = 4 / 3 * np.pi * RADIUS**3 / 1000  # 33.5


def tilted(degrees, pixel=1.5, step=3.0):
    """Axes (LPS) of slices that are tilted about x, while the table moves along z; planes are ``step`` apart."""
    t = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, 0] = [pixel, 0, 0]
    affine[:3, 1] = np.array([0, np.cos(t), -np.sin(t)]) * pixel
    affine[:3, 2] = [0, 0, step / np.cos(t)]
    return affine


def ball(affine, shape=(48, 48, 20), shift=(0.0, 0.0, 0.0)):
    """A ball of 20 mm radius about the middle of the voxels: image and mask."""
    places = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3] + shift
    inside = (np.linalg.norm(places - middle, axis=1) <= RADIUS).reshape(shape)
    noise = np.random.default_rng(0).normal(0, 20, shape)
    return Volume((noise + 500 * inside).astype(np.float32), affine), Volume(inside.astype(np.uint8), affine)


def nonzero(values):
    return (values != 0).astype(np.uint8)


def check_ball(prepared):
    """Its volume, as long along each axis as wide, and the middles of its slices one above the other."""
    spacing = np.array(prepared.about["grid_spacing"])
    mask = prepared.mask[0]
    assert np.count_nonzero(mask) * spacing.prod() / 1000 == pytest.approx(MILLILITRES, rel=0.03)
    voxels = np.argwhere(mask)
    sides = (np.ptp(voxels, axis=0) + 1) * spacing
    assert np.abs(sides - 2 * RADIUS).max() <= 4.5  # slices are 3 mm apart; sheared, a side would differ by 17 mm
    middle = mask.shape[2] // 2
    below, above = (np.argwhere(mask[:, :, z]).mean(axis=0) * spacing[:2] for z in (middle - 4, middle + 4))
    # Between two slices a mask goes along with them: half a slice times the tangent of 25 degrees, up and down. A ball
    # that leans by 25 degrees would move by 7.5 mm.
    assert np.abs(below - above).max() < 1.45
    # The image lies where the mask does.
    assert prepared.image[0][mask == 1].mean() > 0.75
    assert prepared.image[0][mask == 0].mean() < 0.35


@pytest.mark.parametrize("degrees", [-25, 1, 10, 25])
@pytest.mark.parametrize("spacing", [None, 2.0])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA"])
def test_a_ball_under_a_tilted_gantry_keeps_volume_and_form(degrees, spacing, orientation):
    if orientation != "RAS" and degrees != 25:
        return
    image, mask = ball(tilted(degrees))
    size = (44, 44, 44) if spacing else tuple({"SRA": (20, 48, 60)}.get(orientation, (48, 60, 20)))
    window = {"window": {"lower": -100, "upper": 600}}
    spec = Preprocessing(spacing=spacing, size=size, intensity=window, orientation=orientation)
    prepared = prepare_case([image], mask, spec, nonzero)
    check_ball(prepared)
    assert prepared.about["sheared"] == pytest.approx(abs(degrees), abs=0.01)
    own = (3.0, 1.5, 1.5) if orientation == "SRA" else (1.5, 1.5, 3.0)
    np.testing.assert_allclose(prepared.about["grid_spacing"], own if spacing is None else (2.0,) * 3, atol=1e-9)
    assert prepared.about["lost"] == 0
    np.testing.assert_allclose(prepared.about["facts"]["spacing"], (1.5, 1.5, 3.0), atol=1e-9)


def test_in_slices_of_a_tilted_gantry_rows_and_columns_stay():
    # With its own spacing a slice is shifted, never turned: rows along x are kept exactly.
    affine = tilted(25)
    found = right_angled(affine)
    np.testing.assert_allclose(found[:3, :2], affine[:3, :2], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found[:3, 2]), 3.0)
    np.testing.assert_allclose(found[:3, :3].T @ found[:3, :3], np.diag([2.25, 2.25, 9.0]), atol=1e-12)
    assert Volume(np.zeros((1, 1, 1)), affine).spacing[2] == pytest.approx(3.31, abs=0.001)
    assert true_spacing(affine)[2] == pytest.approx(3.0)
    assert volume_facts(Volume(np.zeros((1, 1, 1)), affine)).spacing[2] == pytest.approx(3.0)


def test_an_image_stored_with_other_axes_first_is_undone_alike():
    image, mask = ball(tilted(25))
    spec = Preprocessing(spacing=2, size=(44, 44, 44), intensity="none")
    straight = prepare_case([image], mask, spec, nonzero)
    for axes in ([2, 0, 1], [1, 0, 2]):
        order = np.array([[axis, -1 if axis == 1 else 1] for axis in axes])
        turned = [nibabel.Nifti1Image(one.values, one.affine).as_reoriented(order) for one in (image, mask)]
        volumes = [Volume(np.asarray(one.dataobj), one.affine) for one in turned]
        other = prepare_case([volumes[0]], volumes[1], spec, nonzero)
        np.testing.assert_allclose(other.image, straight.image, atol=1e-2)
        np.testing.assert_array_equal(other.mask, straight.mask)


def test_a_shear_of_all_axes_keeps_volume_and_form():
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0.15, 0.1], [0.05, 1, -0.2], [0.1, 0.05, 1]]) @ np.diag([1.5, 1.5, 2.0])
    image, mask = ball(affine, (48, 48, 36))
    window = {"window": {"lower": -100, "upper": 600}}
    check_ball(prepare_case([image], mask, Preprocessing(spacing=2, size=(40, 40, 40), intensity=window), nonzero))
    # Left-handed axes stay left-handed.
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    assert np.linalg.det(right_angled(mirrored)[:3, :3]) < 0
    check_ball(
        prepare_case(
            [Volume(image.values[::-1], mirrored)], Volume(mask.values[::-1], mirrored),
            Preprocessing(spacing=2, size=(40, 40, 40), intensity=window), nonzero,
        )
    )  # fmt: skip


def test_a_mask_at_right_angles_fits_a_tilted_image_and_the_other_way_round():
    image, mask = ball(tilted(25))
    straight = tilted(0)
    straight[:3, 3] = image.affine[:3, :3] @ ((np.array((48, 48, 20)) - 1) / 2) - straight[:3, :3] @ (
        (np.array((48, 48, 20)) - 1) / 2
    )
    other, other_mask = ball(straight)
    spec = Preprocessing(spacing=2, size=(44, 44, 44), intensity={"window": {"lower": -100, "upper": 600}})
    check_ball(prepare_case([image], other_mask, spec, nonzero, "header"))
    check_ball(prepare_case([other], mask, spec, nonzero, "header"))


@pytest.mark.parametrize("centre", ["image", "foreground"])
def test_the_foreground_under_a_tilted_gantry_is_measured_and_centred(centre):
    image, mask = ball(tilted(25), shift=(6.0, -4.0, 5.0))
    spacing, extent, _ = measure(image, Preprocessing(size="auto"))
    np.testing.assert_allclose(spacing, (1.5, 1.5, 3.0), atol=1e-9)
    np.testing.assert_allclose(extent, (40, 40, 40), atol=3.1)
    spec = Preprocessing(spacing=2, size=(24, 24, 24), centre=centre, intensity="none")
    prepared = prepare_case([image], mask, spec, nonzero)
    if centre == "foreground":
        assert prepared.about["lost"] == 0
        assert prepared.about["inside"] > 0.99
        np.testing.assert_allclose(np.argwhere(prepared.mask[0]).mean(axis=0), 11.5, atol=1.0)
    else:
        assert prepared.about["lost"] > 0


@settings(max_examples=50, deadline=None)
@given(angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3), sizes=st.tuples(*[st.floats(0.3, 6)] * 3), flip=st.booleans())
def test_oblique_axes_at_right_angles_stay_as_they_are(angles, sizes, flip):
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[one, one] = step[other, other] = np.cos(angle)
        step[one, other], step[other, one] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(sizes) @ np.diag([-1 if flip else 1, 1, 1])
    assert right_angled(affine) is affine
    assert shear_angle(affine) == 0
    # As float32 in a header, and rounded as in DICOM, they count as such as well.
    assert shear_angle(affine.astype(np.float32).astype(float)) == 0
    assert shear_angle(np.round(affine, 4)) == 0


@settings(max_examples=50, deadline=None)
@given(shears=st.tuples(*[st.floats(-0.4, 0.4)] * 6), sizes=st.tuples(*[st.floats(0.5, 5)] * 3))
def test_what_comes_out_is_at_right_angles_and_near(shears, sizes):
    a, b, c, d, e, f = shears
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, a, b], [c, 1, d], [e, f, 1]]) @ np.diag(sizes)
    try:
        found = right_angled(affine)
    except UnreadableError:
        return
    product = found[:3, :3].T @ found[:3, :3]
    lengths = np.sqrt(np.diag(product))
    assert np.abs(product / np.outer(lengths, lengths) - np.eye(3)).max() <= 2.1e-3
    cosines = (found[:3, :3] / lengths * (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))).sum(axis=0)
    assert cosines.min() > 0.3
    assert np.sign(np.linalg.det(found)) == np.sign(np.linalg.det(affine))


def test_axes_in_one_plane_are_refused():
    affine = np.eye(4)
    affine[:3, 2] = [0.6, 0.8, 0.02]
    with pytest.raises(UnreadableError, match="nearly in one plane"):
        right_angled(affine)
    assert true_spacing(affine)[2] == pytest.approx(1.0, abs=1e-3)
