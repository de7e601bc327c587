"""Prepared volumes hold some of their image, and say how much; what vanishes or overflows is refused."""

import json

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic import Study
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.coverage import coverage
from polyclinic.data.volumes.grid import Grid, target_grid
from polyclinic.data.volumes.notes import grid_notes
from polyclinic.data.volumes.preprocessing import prepare_case, single_frame


def nonzero(values):
    return (values != 0).astype(np.uint8)


def image(shape, spacing=(2.0, 2.0, 1.0), seed=0):
    values = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    return Volume(values, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(("slices", "step"), [(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (1, 5), (1, 0.1), (2, 3.9)])
@pytest.mark.parametrize("planes", [1, 2, 3, 8])
@pytest.mark.parametrize("centre", ["image", "foreground"])
def test_thin_images_never_vanish(slices, step, planes, centre):
    thin = image((12, 12, slices), (2, 2, step))
    spec = Preprocessing(spacing=(2, 2, 4), size=(12, 12, planes), centre=centre, intensity="none")
    prepared = prepare_case([thin], None, spec, nonzero)
    background = thin.values.min()
    planes_with_image = np.abs(prepared.image[0] - background).max(axis=(0, 1)) > 20
    assert planes_with_image.any()
    if step * slices < 4 and centre == "image":
        # One plane lies on the middle and holds the mean of the slices there, at full brightness.
        assert prepared.image[0][..., planes // 2].mean() > 80
        assert planes_with_image.sum() == 1


def test_a_flat_file_and_a_single_slice_come_out_as_they_are():
    for values in (image((12, 10, 1)).values, image((12, 10, 1)).values[:, :, 0]):
        for planes in (1, 2, 4, 5):
            spec = Preprocessing(spacing=(2, 2, 4), size=(12, 10, planes), intensity="none")
            prepared = prepare_case([Volume(values, np.diag([2.0, 2, 1, 1]))], None, spec, nonzero)
            np.testing.assert_array_equal(prepared.image[0][..., planes // 2], values.reshape(12, 10))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    own=st.tuples(*[st.floats(0.05, 20)] * 3),
    wanted=st.none() | st.tuples(*[st.floats(0.05, 20)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    place=st.tuples(*[st.floats(0, 1)] * 3),
)
def test_part_of_the_image_is_always_inside(shape, own, wanted, size, place):
    affine = np.diag([*own, 1.0])
    volume = Volume(np.zeros(shape, np.float32), affine)
    # Wherever the middle of the foreground lies in the image.
    middle = np.array(place) * (np.array(shape) - 1)
    grid = target_grid(volume, wanted, size, middle)
    voxels = np.indices(size).reshape(3, -1).T
    to_source = np.linalg.inv(affine) @ grid.affine
    places = voxels @ to_source[:3, :3].T + to_source[:3, 3]
    within = (places > -1 + 1e-6) & (places < np.array(shape) - 1e-6)  # where interpolation finds a voxel
    assert within.all(axis=1).any()


def test_shares_by_hand():
    values = np.zeros((10, 10, 10), np.float32)
    values[2:6] = 100.0
    volume = Volume(values, np.eye(4))
    whole = coverage(volume, Grid(np.eye(4), (10, 10, 10)))
    assert (whole.filled, whole.inside) == (1.0, 1.0)
    # Twice as long along the first axis, so that half is empty; a quarter of the planes with signal is cut off.
    affine = np.eye(4)
    affine[0, 3] = 3.0
    found = coverage(volume, Grid(affine, (14, 10, 10)))
    assert (found.filled, found.inside) == (0.5, 0.75)
    turned = np.array([[0, -1, 0, 9], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert coverage(volume, Grid(turned, (10, 10, 5))).inside == 0.5


def test_records_hold_the_shares_and_the_least_channel_counts():
    slab = Volume(image((8, 8, 2), (1, 1, 1)).values, np.eye(4))
    spec = Preprocessing(spacing=1, size=(8, 8, 8), intensity="none")
    about = prepare_case([image((8, 8, 8), (1, 1, 1)), slab], None, spec, nonzero).about
    assert about["filled"] == 0.25
    assert about["inside"] == 1.0
    assert about["sheared"] == 0
    json.dumps(about)


def test_what_vanishes_or_overflows_on_the_way_is_refused():
    values = np.full((20, 20, 20), 5.0, np.float32)
    values[0, 0, 0] = 6.0
    corner = Volume(values, np.eye(4))
    with pytest.raises(UnreadableError, match="image is the same everywhere inside the grid"):
        prepare_case([corner], None, Preprocessing(size=(4, 4, 4), intensity="none"), nonzero)
    ct = image((8, 8, 8), (1, 1, 1))
    above = {"window": {"lower": -1000, "upper": -500}}
    with pytest.raises(UnreadableError, match=r"image is the same everywhere after `intensity: window`"):
        prepare_case([ct], None, Preprocessing(size=(8, 8, 8), intensity=above), nonzero)
    # More than 65504 does not fit into 16 bits.
    wide = ct.values.copy()
    wide[4:] = 0.0
    wide[0, 0, 0] = 1e9
    with pytest.raises(UnreadableError, match="not finite or too large after `intensity: nyul`"):
        prepare_case([Volume(wide, np.eye(4))], None, Preprocessing(
            size=(8, 8, 8), intensity={"nyul": {"foreground": "nonzero"}}), nonzero)  # fmt: skip
    whole = prepare_case([Volume(wide, np.eye(4))], None, Preprocessing(size=(8, 8, 8), intensity="none"), nonzero)
    assert whole.image.dtype == np.float32
    assert whole.image.max() == 1e9


def test_an_image_in_another_unit_of_length_is_not_a_dot_in_the_grid():
    metres = image((40, 40, 40), (0.001, 0.001, 0.001))
    with pytest.raises(UnreadableError, match="image is smaller than 8 voxels of the grid"):
        prepare_case([metres], None, Preprocessing(size=(16, 16, 16), spacing=1), nonzero)
    # What it is in its own voxels, or on a grid as small, is fine.
    for spec in (Preprocessing(size=(16, 16, 16)), Preprocessing(size=(1, 1, 2), spacing=0.03, intensity="none")):
        assert prepare_case([metres], None, spec, nonzero).about["filled"] > 0


def test_values_beyond_single_precision_are_refused():
    huge = Volume(image((8, 8, 8)).values.astype(np.float64) * 1e200, np.eye(4))
    for centre in ("image", "foreground"):
        with pytest.raises(UnreadableError, match="values that are too large"):
            prepare_case([huge], None, Preprocessing(size=(8, 8, 8), centre=centre), nonzero)


def test_a_second_channel_beside_the_planes_of_the_grid_is_refused():
    beside = np.eye(4)
    beside[2, 3] = 3.0
    thin = Volume(image((8, 8, 1), (1, 1, 1)).values, beside)
    spec = Preprocessing(spacing=(1, 1, 4), size=(8, 8, 2), intensity="none")
    tall = image((8, 8, 8), (1, 1, 1))
    with pytest.raises(UnreadableError, match="nothing of it lies in the grid"):
        prepare_case([tall, thin], None, spec, nonzero)


def test_notes_with_counts_and_cases():
    sound = {"sheared": 0, "inside": 1.0, "filled": 0.9}
    assert grid_notes("A", [sound], ["row 1"]) == []
    about = [sound, {"sheared": 25.0, "inside": 0.2, "filled": 0.1}, {"sheared": 3.0, "inside": 0.9, "filled": 0.9}]
    notes = grid_notes("A", about, ["row 1", "row 2", "row 3"])
    assert [note.number for note in notes] == ["N710", "N711", "N712"]
    assert [note.cases for note in notes] == [("row 2", "row 3"), ("row 2",), ("row 2",)]
    assert "Site A: the axes of 2 of 3 images are not at right angles, by up to 25 degrees" in notes[0]
    assert "in 1 of 3 cases less than 50 % of what the image shows lies inside the grid (the least: 20 %)" in notes[1]
    assert "in 1 of 3 cases the image fills less than 20 % of the grid (the least: 10 %)" in notes[2]


def test_a_check_says_what_lies_beside_the_grid(tmp_path):
    rows = ["site,subject,image,label"]
    for number in range(8):
        volume = image((16, 16, 1 if number < 4 else 8), (2, 2, 1), seed=number)
        if number == 7:  # bright on one side alone, which the grid does not hold
            volume.values[:] = 0
            volume.values[:4] = 100 + np.arange(16)[:, None]
        nibabel.save(nibabel.Nifti1Image(volume.values, volume.affine), tmp_path / f"{number}.nii.gz")
        rows.append(f"{'ab'[number // 4]},P{number},{number}.nii.gz,{number % 2}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    study = {
        "data": {
            "table": "t.csv", "site": "site", "subject": "subject", "image": "image", "label": "label",
            "preprocessing": {"spacing": [2, 2, 4], "size": [10, 16, 8]},
        },
        "model": {"cnn": {"channels": [4]}}, "evaluation": {"folds": 2},
    }  # fmt: skip
    opened = Study.of(study, tmp_path).open()
    found = [(note.number, note.cases) for note in opened.notes if note.number in ("N711", "N712")]
    assert ("N711", ("7.nii.gz",)) in found
    assert ("N712", ("0.nii.gz", "1.nii.gz", "2.nii.gz", "3.nii.gz")) in found
    # Nothing vanished.
    for site in opened.sites.values():
        assert all(float(case.float().std()) > 0 for case in site.inputs)


def test_no_real_dicom_image_vanishes(data_folder):
    spec = Preprocessing(spacing=4, size=(48, 48, 24), frames="first", intensity="percentile")
    used = 0
    odd = sorted(p.relative_to(data_folder / "dicom").as_posix() for p in (data_folder / "dicom" / "odd").iterdir())
    for cell in ["ge-ct", "ge-mr-epi", "philips-mr-fmri", "siemens-mr-mosaic", "uih-mr-dti", *odd]:
        try:
            volume = read_volume(cell, data_folder / "dicom")
            single_frame(volume, "first")
        except UnreadableError:
            continue
        prepared = prepare_case([volume], None, spec, nonzero)
        used += 1
        assert np.ptp(prepared.image.astype(np.float32)) > 0.1, cell
    assert used >= 15
