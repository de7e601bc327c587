import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyclinic.data.readers.nifti.read import nifti_header, read_nifti, stem
from polyclinic.data.readers.volume import UnreadableError

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
AFFINE = np.array([[-2, 0, 0, 10], [0, 0, 3, 20], [0, 1.5, 0, -30], [0, 0, 0, 1.0]])


def save(path, values=VALUES, affine=AFFINE, change=None):
    image = nib.Nifti1Image(values, affine)
    if change:
        change(image.header)
    nib.save(image, path)
    return path


def rejected(path, reader=read_nifti):
    with pytest.raises(UnreadableError) as raised:
        reader(path)
    return str(raised.value)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "my.nifti.image.nii", "my.nifti.image.nii.gz", "A.NII"])
def test_names(tmp_path, name):
    path = save(tmp_path / name.lower()).rename(tmp_path / name)
    volume = read_nifti(path)
    assert np.array_equal(volume.values, VALUES)
    assert volume.values.dtype == np.int16
    np.testing.assert_allclose(volume.affine, AFFINE)
    header = nifti_header(path)
    assert (header.shape, header.orientation, header.spacing) == ((2, 3, 4), "LSA", (2.0, 1.5, 3.0))
    assert stem(path) == name.removesuffix(".gz").removesuffix(".nii").removesuffix(".NII")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cosines=st.lists(st.floats(-1, 1), min_size=9, max_size=9).filter(
        lambda c: abs(np.linalg.det(np.reshape(c, (3, 3)))) > 0.01
    ),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_affines_come_back(tmp_path_factory, cosines, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.reshape(cosines, (3, 3)))[0] * spacing
    affine[:3, 3] = origin
    path = save(tmp_path_factory.getbasetemp() / "affine.nii", affine=affine)
    np.testing.assert_allclose(read_nifti(path).affine, affine, atol=1e-4)
    np.testing.assert_allclose(nifti_header(path).spacing, spacing, rtol=1e-5)


def test_qform_where_no_sform(tmp_path):
    def only_qform(header):
        header.set_qform(AFFINE @ np.diag((1, 1, -1, 1)), code=1)
        header.set_sform(None, code=0)

    image = nib.Nifti1Image(VALUES, None)
    only_qform(image.header)
    nib.save(image, tmp_path / "q.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "q.nii").affine, nib.load(tmp_path / "q.nii").affine, atol=1e-5)


def test_scale_is_applied(tmp_path):
    path = save(tmp_path / "a.nii.gz", change=lambda header: header.set_slope_inter(0.5, -3))
    # nibabel rescales on writing: overwrite the stored numbers' meaning instead.
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    stored = np.frombuffer(raw[352:], "<i2").reshape((2, 3, 4), order="F")
    volume = read_nifti(path)
    assert volume.values.dtype == np.float32
    np.testing.assert_allclose(volume.values, stored * 0.5 - 3)


@pytest.mark.parametrize(("shape", "expected"), [((5, 6), (5, 6, 1)), ((5, 6, 7, 1), (5, 6, 7)), ((2, 3, 4, 5),) * 2])
def test_two_three_and_four_axes(tmp_path, shape, expected):
    values = np.random.default_rng(0).integers(0, 200, shape, dtype=np.uint8)
    volume = read_nifti(save(tmp_path / "a.nii", values))
    assert volume.values.shape == expected
    assert np.array_equal(volume.values.reshape(shape), values)


def test_what_is_refused(tmp_path):
    five = save(tmp_path / "five.nii", np.zeros((2, 2, 2, 2, 2), np.uint8))
    assert rejected(five) == "image has 5 axes, at most 4 can be read"
    assert rejected(save(tmp_path / "complex.nii", np.zeros((2, 2, 2), np.complex64))) == "voxels are complex numbers"
    rgb = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert rejected(save(tmp_path / "rgb.nii", rgb)) == "voxels are colours (RGB)"
    singular = np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for affine, reason in (
        (np.diag((1.0, 0, 1, 1)), "voxel size is zero"),
        (singular, "affine is singular"),
        (np.diag((np.inf, 1, 1, 1)), "affine is not finite"),
    ):
        path = save(tmp_path / "a.nii")
        raw = bytearray(path.read_bytes())
        raw[280:328] = affine[:3].astype("<f4").tobytes()  # the sform
        path.write_bytes(raw)
        assert rejected(path) == reason
        assert rejected(path, nifti_header) == reason
    assert rejected(save(tmp_path / "nan.nii", np.full((2, 2, 2), np.nan, np.float32))) == "image has no finite value"


@pytest.mark.parametrize("reader", [read_nifti, nifti_header])
def test_damage(tmp_path, reader):
    plain, packed = save(tmp_path / "a.nii"), save(tmp_path / "a.nii.gz")
    whole, small = plain.read_bytes(), packed.read_bytes()
    plain.write_bytes(whole[:-4])
    assert rejected(plain, reader) == "NIfTI file is truncated"
    plain.write_bytes(whole[:200])
    assert rejected(plain, reader) == "NIfTI file is truncated"
    plain.write_bytes(b"")
    assert rejected(plain, reader) == "file is empty"
    plain.write_bytes(b"x" * 1000)
    assert rejected(plain, reader) == "file is no NIfTI"
    plain.write_bytes(small)
    assert rejected(plain, reader) == "file is compressed by gzip but its name does not end in .gz"
    packed.write_bytes(small[:-12])
    assert rejected(packed, reader) == "NIfTI file is truncated"
    packed.write_bytes(whole)
    assert rejected(packed, reader) == "file ends in .gz but is not compressed by gzip"
    packed.unlink()
    assert rejected(packed, reader) == "file is missing"


def test_scanner_facts_of_a_sidecar(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    facts = {"Manufacturer": "GE MEDICAL SYSTEMS", "MagneticFieldStrength": 1.5, "PatientName": "Quixote"}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    assert read_nifti(path).about == {"vendor": "GE", "field_strength": 1.5}
    (tmp_path / "a.json").write_text("[")
    assert read_nifti(path).about == {}


def test_real_volumes_and_masks_share_their_grid(data_folder):
    folder = data_folder / "nifti-spine"
    expected = {
        "t1w": ("t1w_seg-manual", (42, 76, 77), "RAS", (1, 1, 1)),
        "t2": ("t2_seg-manual", (60, 55, 52), "PSR", (1, 1, 1)),
        "t2s_uncropped": ("t2s_uncropped_gmseg_manual", (320, 320, 11), "LAS", (0.5, 0.5, 7.5)),
    }
    for name, (mask, shape, orientation, spacing) in expected.items():
        image, labels = (read_nifti(folder / f"{stem}.nii.gz") for stem in (name, mask))
        header = nifti_header(folder / f"{name}.nii.gz")
        assert (image.values.shape, labels.values.shape, header.orientation) == (shape, shape, orientation)
        np.testing.assert_allclose(image.spacing, spacing, atol=1e-5)
        np.testing.assert_allclose(image.affine, labels.affine, atol=1e-2)
        assert set(np.unique(labels.values)) == {0, 1}
        # Our values are nibabel's, computed another way.
        assert np.array_equal(image.values, np.asanyarray(nib.load(folder / f"{name}.nii.gz").dataobj))
