"""Volumes of all orientations and spacings on one grid."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.volumes.grid import Grid, oriented, resample, target_grid

CODES = ["RAS", "LPS", "LAS", "ASR", "SRA", "IPL", "PIR"]


def ball(spacing, code="RAS", radius=10.0, side=48.0, centre=(24.0, 24.0, 24.0)):
    """A ball of ``radius`` mm in a cube of ``side`` mm, with the ball's volume known exactly."""
    shape = [round(side / s) for s in spacing]
    places = (np.indices(shape).reshape(3, -1).T + 0.5) * spacing
    values = (np.linalg.norm(places - centre, axis=1) < radius).reshape(shape).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(spacing) / 2
    image = nibabel.Nifti1Image(values, affine)
    now, wanted = nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(now, wanted))
    return Volume(np.asarray(turned.dataobj), turned.affine)


@pytest.mark.parametrize("code", CODES)
def test_turning_and_turning_back_changes_nothing(code):
    volume = ball((2, 3, 4))
    there = oriented(volume, code)
    back = oriented(there, "RAS")
    assert "".join(nibabel.orientations.aff2axcodes(there.affine)) == code
    np.testing.assert_array_equal(back.values, volume.values)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-12)


def test_an_affine_without_orientation_is_refused():
    with pytest.raises(UnreadableError, match="no orientation"):
        oriented(Volume(np.zeros((2, 2, 2)), np.diag([0.0, 1.0, 1.0, 1.0])), "RAS")


def test_keeping_the_spacing_keeps_the_values():
    values = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    volume = Volume(values, np.diag([1.0, 2.0, 3.0, 1.0]))
    middle = [(side - 1) / 2 for side in values.shape]
    same = resample(volume, target_grid(volume, None, (5, 6, 7), middle), order=1)
    np.testing.assert_array_equal(same, values)
    smaller = resample(volume, target_grid(volume, (1.0, 2.0, 3.0), (3, 4, 5), middle), order=1)
    np.testing.assert_array_equal(smaller, values[1:4, 1:5, 1:6])


def test_padding_continues_with_the_smallest_value():
    volume = Volume(np.full((2, 2, 2), -1000, dtype=np.int16), np.eye(4))
    volume.values[0, 0, 0] = 40
    larger = resample(volume, target_grid(volume, None, (4, 4, 4), (0.5, 0.5, 0.5)), order=1)
    assert larger[0, 0, 0] == -1000
    assert larger[1, 1, 1] == 40
    mask = resample(volume, target_grid(volume, None, (4, 4, 4), (0.5, 0.5, 0.5)), order=0)
    assert mask[0, 0, 0] == 0


def test_linear_interpolation_by_hand():
    # A ramp 0, 10, 20, 30 with 2 mm voxels at 1 mm: halfway between neighbours.
    ramp = np.broadcast_to(np.array([0.0, 10.0, 20.0, 30.0])[:, None, None], (4, 3, 3))
    volume = Volume(ramp, np.diag([2.0, 1.0, 1.0, 1.0]))
    grid = target_grid(volume, (1.0,) * 3, (4, 3, 3), (1.5, 1.0, 1.0))
    np.testing.assert_allclose(resample(volume, grid, order=1)[:, 1, 1], [7.5, 12.5, 17.5, 22.5], atol=1e-5)
    assert grid.spacing == (1.0, 1.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(
    spacing=st.tuples(*[st.sampled_from([1.0, 1.5, 2.0, 3.0])] * 3),
    wanted=st.sampled_from([1.0, 1.5, 2.0]),
    code=st.sampled_from(CODES),
    radius=st.floats(8, 14),
)
def test_a_ball_keeps_its_volume_within_a_voxel_layer(spacing, wanted, code, radius):
    volume = oriented(ball(spacing, code, radius), "RAS")
    side = round(48 / wanted)
    middle = [(n - 1) / 2 for n in volume.values.shape]
    mask = resample(volume, target_grid(volume, (wanted,) * 3, (side,) * 3, middle), order=0)
    layer = max(*spacing, wanted)
    smallest, largest = (4 / 3 * np.pi * max(radius + d, 0) ** 3 for d in (-layer, layer))
    assert smallest <= np.count_nonzero(mask) * wanted**3 <= largest


@settings(max_examples=20, deadline=None)
@given(code=st.sampled_from(CODES), wanted=st.sampled_from([1.0, 2.0, 2.5]))
def test_a_place_in_space_stays_where_it_is(code, wanted):
    # The centre of mass in millimetres is the same before and after.
    volume = ball((1.5, 2.0, 2.0), code, radius=9.0, centre=(20.0, 26.0, 23.0))
    turned = oriented(volume, "RAS")
    grid = target_grid(turned, (wanted,) * 3, (round(48 / wanted),) * 3, [(n - 1) / 2 for n in turned.values.shape])
    after = resample(turned, grid, order=1)
    before_mm = (volume.affine @ np.append(_centre(volume.values), 1))[:3]
    after_mm = (grid.affine @ np.append(_centre(after), 1))[:3]
    np.testing.assert_allclose(before_mm, after_mm, atol=0.35)


def _centre(values):
    return np.array(np.indices(values.shape).reshape(3, -1) @ values.reshape(-1)) / values.sum()


def test_spacing_of_an_oblique_grid():
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 2.0, 3.0])
    np.testing.assert_allclose(Grid(affine, (1, 1, 1)).spacing, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(Volume(np.zeros((1, 1, 1)), affine).spacing, (1.0, 2.0, 3.0))
