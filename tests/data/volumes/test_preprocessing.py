"""From image files to arrays on the study's grid, cached."""

import json

import nibabel
import numpy as np
import pytest
import torch

from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.spec import DataSpec, Preprocessing
from polyclinic.data.volumes.cache import Cache
from polyclinic.data.volumes.prepare import VolumeFiles, prepare_volumes
from polyclinic.data.volumes.preprocessing import prepare_case, single_frame
from polyclinic.data.volumes.store import Volumes, concatenate


def binary(values):
    return (values != 0).astype(np.uint8)


def spec(**changes):
    return Preprocessing(**{"size": (8, 8, 8), "spacing": 1.0, "intensity": "none", **changes})


def volume(shape=(8, 8, 8), spacing=1.0, seed=0):
    values = np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)
    return Volume(values, np.diag([spacing, spacing, spacing, 1.0]), {"vendor": "ACME", "field_strength": 3.0})


def test_an_image_that_fits_is_left_as_it_is():
    image = volume()
    prepared = prepare_case([image], None, spec(), binary)
    np.testing.assert_array_equal(prepared.image[0], image.values)
    assert prepared.mask is None
    facts = prepared.about["facts"]
    assert (facts["shape"], facts["orientation"], facts["vendor"]) == ((8, 8, 8), "RAS", "ACME")
    assert prepared.about["grid_spacing"] == [1.0, 1.0, 1.0]


def test_channels_and_mask_follow_their_own_place_in_space():
    # The second image and the mask have finer voxels and another orientation; they must meet the first.
    coarse = Volume(np.zeros((8, 8, 8), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    coarse.values[2:4, 4:6, 5:7] = 100.0
    fine_affine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine_affine[:3, 3] = -0.5
    fine = np.kron(coarse.values, np.ones((2, 2, 2), np.float32))
    flipped = nibabel.Nifti1Image(fine, fine_affine).as_reoriented([[0, -1], [2, 1], [1, 1]])
    other = Volume(np.asarray(flipped.dataobj), flipped.affine)
    prepared = prepare_case([coarse, other], other, spec(spacing=2.0), binary)
    assert prepared.mask is not None
    np.testing.assert_array_equal(prepared.mask[0], coarse.values > 0)
    assert prepared.about["labels"] == [512 - 8, 8]
    assert prepared.about["lost"] == 0.0
    # Twofold coarser means smoothed first: the middle of the block stays brightest.
    assert prepared.image[1][2:4, 4:6, 5:7].min() > prepared.image[1][0:2].max()


def test_how_much_of_the_mask_is_cut_off():
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[0], mask[4] = 1, 1
    image = volume()
    prepared = prepare_case([image], Volume(mask, image.affine), spec(size=(4, 8, 8)), binary)
    assert prepared.about["lost"] == 0.5


def test_centre_on_the_foreground():
    values = np.zeros((20, 20, 20), np.float32)
    values[14:18, 2:6, 10:14] = 100.0 + np.arange(4)
    prepared = prepare_case([Volume(values, np.eye(4))], None, spec(size=(4, 4, 4), centre="foreground"), binary)
    np.testing.assert_array_equal(prepared.image[0], values[14:18, 2:6, 10:14])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((4, 4, 4), 3.0), "the same everywhere"),
        (np.array([[[np.nan, 1.0]]]), "not finite"),
        (np.zeros((4, 4, 4, 3)) + np.arange(3), "several frames"),
        (np.zeros((0, 4, 4)), "empty"),
        (np.zeros((2, 2, 2), dtype=complex) + np.arange(2), "plain numbers"),
    ],
)
def test_images_that_can_not_be_used(values, reason):
    with pytest.raises(UnreadableError, match=reason):
        prepare_case([Volume(values, np.eye(4))], None, spec(), binary)


def test_frames():
    frames = Volume(np.stack([np.zeros((2, 2, 2)), np.full((2, 2, 2), 4.0)], axis=3), np.eye(4))
    assert single_frame(frames, "first").values.max() == 0
    assert single_frame(frames, "mean").values.max() == 2.0
    assert single_frame(Volume(np.ones((2, 3)), np.eye(4)), "reject").values.shape == (2, 3, 1)
    assert single_frame(Volume(np.ones((2, 3, 4, 1)), np.eye(4)), "reject").values.shape == (2, 3, 4)


def test_images_apart_in_space_and_masks_of_another_size():
    far = np.eye(4)
    far[:3, 3] = 500.0
    with pytest.raises(UnreadableError, match="mask and image lie apart"):
        prepare_case([volume()], Volume(np.ones((8, 8, 8), np.uint8), far), spec(), binary)
    with pytest.raises(UnreadableError, match="differ in size"):
        prepare_case([volume()], Volume(np.ones((8, 8, 7), np.uint8), np.eye(4)), spec(), binary)


def test_a_second_time_nothing_is_prepared(tmp_path, monkeypatch):
    data = DataSpec(table="-", image="image", mask="mask", preprocessing=spec(intensity="zscore"))
    files = _files(tmp_path)
    first, masks, failures = prepare_volumes(files, data, tmp_path / "cache")
    assert failures == {2: "image file is missing"}
    assert first is not None
    assert masks is not None
    assert first.shape == (2, 1, 8, 8, 8)
    assert first.dtype == torch.float16
    assert masks.dtype == torch.uint8

    def never(*arguments):
        raise RuntimeError("prepared again")

    monkeypatch.setattr("polyclinic.data.volumes.prepare.prepare_case", never)
    again, _, _ = prepare_volumes(files, data, tmp_path / "cache")
    assert again is not None
    assert again.files == first.files
    # A copy under another name is found, too; another way of preparing, or a changed file, is not.
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "0.nii.gz").read_bytes())
    copied = VolumeFiles([["copy.nii.gz"]], ["0m.nii.gz"], [tmp_path])
    assert prepare_volumes(copied, data, tmp_path / "cache")[0].files == first.files[:1]
    other = data.model_copy(update={"preprocessing": spec(intensity="percentile")})
    with pytest.raises(RuntimeError, match="prepared again"):
        prepare_volumes(copied, other, tmp_path / "cache")
    nibabel.save(nibabel.Nifti1Image(volume(seed=9).values, np.eye(4)), tmp_path / "copy.nii.gz")
    with pytest.raises(RuntimeError, match="prepared again"):
        prepare_volumes(copied, data, tmp_path / "cache")


def test_a_half_written_case_counts_as_none(tmp_path):
    cache = Cache(tmp_path, {"size": 8})
    prepared = prepare_case([volume()], None, spec(), binary)
    key = "ab" + 62 * "0"
    stored = cache.store(key, prepared)
    record = cache.load(key)
    assert record is not None
    assert record == json.loads(json.dumps(stored))
    assert (tmp_path / ".gitignore").read_text() == "*\n"  # patients' images stay out of repositories
    cache.image(key).unlink()
    assert cache.load(key) is None


def _files(folder):
    for number in range(2):
        image = volume(seed=number)
        nibabel.save(nibabel.Nifti1Image(image.values, image.affine), folder / f"{number}.nii.gz")
        mask = (image.values > 105).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), folder / f"{number}m.nii.gz")
    return VolumeFiles(
        [["0.nii.gz"], ["1.nii.gz"], ["gone.nii.gz"]], ["0m.nii.gz", "1m.nii.gz", "1m.nii.gz"], [folder] * 3
    )


def test_volumes_are_chosen_like_tensors(tmp_path):
    arrays = [np.random.default_rng(n).normal(size=(2, 4, 5, 6)).astype(np.float16) for n in range(3)]
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    volumes = Volumes([tmp_path / f"{n}.npy" for n in range(3)], [{"key": str(n)} for n in range(3)])
    whole = torch.from_numpy(np.stack(arrays))
    index = torch.tensor([2, 0, 2])
    assert volumes.shape == whole.shape
    assert volumes.dim() == volumes.ndim == 5
    torch.testing.assert_close(volumes.index_select(0, index), whole[index])
    box = volumes.crop(index, [(1, 2, 3), (0, 0, 0), (2, 3, 3)], (2, 2, 3))
    torch.testing.assert_close(box[0], whole[2, :, 1:3, 2:4, 3:6])
    torch.testing.assert_close(box[2], whole[2, :, 2:4, 3:5, 3:6])
    both = concatenate([volumes, volumes])
    assert len(both) == 6
    torch.testing.assert_close(both[5], whole[2])
    with pytest.raises(ValueError, match="axis 0"):
        volumes.index_select(1, index)
