"""Prepared volumes are found again by what is in their files, and by nothing else."""

import os

import nibabel as nib
import numpy as np
import pytest
from pydantic import TypeAdapter

from polyclinic.data.spec import DataSpec
from polyclinic.data.volumes.cache import Cache
from polyclinic.data.volumes.prepare import VolumeFiles, prepare_volumes
from polyclinic.errors import ResultsError

SPEC = {"table": "t.csv", "image": "image", "mask": "mask", "preprocessing": {"size": [6, 6, 6]}}


def write(path, values, like=None):
    """A NIfTI file, with the size and the time of ``like``."""
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    if like is not None:
        assert path.stat().st_size == like.st_size
        os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))
    return path.stat()


def prepared(folder, cache="cache"):
    spec = TypeAdapter(DataSpec).validate_python(SPEC)
    files = VolumeFiles([["image.nii"]], ["mask.nii"], [folder])
    images, masks, failures = prepare_volumes(files, spec, folder / cache)
    assert not failures
    return images[0].numpy(), masks[0].numpy()


def test_a_file_corrected_with_the_same_size_and_time_is_prepared_again(tmp_path):
    image, mask = np.arange(216, dtype=np.float32).reshape(6, 6, 6), np.zeros((6, 6, 6), np.uint8)
    mask[:2] = 1
    write(tmp_path / "image.nii", image)
    before = write(tmp_path / "mask.nii", mask)
    assert prepared(tmp_path)[1].sum() == 72
    mask[1] = 0
    write(tmp_path / "mask.nii", mask, like=before)
    assert prepared(tmp_path)[1].sum() == 36


def test_a_renamed_file_is_found_again(tmp_path):
    cache = Cache(tmp_path / "cache", {})
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"two")
    keys = [cache.key([[tmp_path / name]], [""]) for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_a_folder_that_can_not_be_written_names_the_entry(tmp_path):
    write(tmp_path / "image.nii", np.arange(216, dtype=np.float32).reshape(6, 6, 6))
    write(tmp_path / "mask.nii", np.ones((6, 6, 6), np.uint8) * (np.arange(6) > 2))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError) as caught:
        prepared(tmp_path, "file/cache")
    assert caught.value.code == "P501"
    assert caught.value.hint == "Choose a folder that you may write to with `data: {cache: FOLDER}`."


def test_what_a_corrected_json_file_says_of_the_scanner_is_not_taken_from_the_cache(tmp_path):
    write(tmp_path / "image.nii", np.arange(216, dtype=np.float32).reshape(6, 6, 6))
    spec = TypeAdapter(DataSpec).validate_python(SPEC)
    for vendor, tesla in (("Siemens", 1.5), ("GE", 3.0)):
        (tmp_path / "image.json").write_text(f'{{"Manufacturer": "{vendor}", "MagneticFieldStrength": {tesla}}}')
        images, *_ = prepare_volumes(VolumeFiles([["image.nii"]], None, [tmp_path]), spec, tmp_path / "cache")
        facts = images.about[0]["facts"]
        assert (facts["vendor"], facts["field_strength"]) == (vendor, tesla)
