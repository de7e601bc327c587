"""NIfTI headers as they are met: units, places, scales, offsets, pairs, and what follows the voxels."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from polyclinic.data.readers.nifti.read import header_findings, is_nifti, nifti_header, read_nifti
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.volumes.cache import source_files

VALUES = np.arange(1, 25, dtype=np.int16).reshape(2, 3, 4)


def save(path, values=VALUES, affine=None, change=None, kind=nib.Nifti1Image):
    image = kind(values, None)
    image.header.set_sform(np.diag((2.0, 2, 2, 1)) if affine is None else affine, 1)
    if change:
        change(image.header)
    nib.save(image, path)
    return path


def patch(path, *changes):
    """Overwrite bytes: (place, format, numbers)."""
    raw = bytearray(path.read_bytes())
    for place, kind, *numbers in changes:
        struct.pack_into(kind, raw, place, *numbers)
    path.write_bytes(raw)
    return path


def numbers(path):
    reason, notes = header_findings(path)
    assert not reason
    assert read_nifti(path).notes == notes
    return [note.number for note in notes]


def rejected(path, reader=read_nifti):
    with pytest.raises(UnreadableError) as raised:
        reader(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("unit", "size", "expected", "noted"),
    [
        ("mm", 0.4, 0.4, []),
        (0, 0.4, 0.4, []),
        ("micron", 400, 0.4, ["N612"]),
        ("meter", 0.002, 2.0, ["N612"]),
        # A unit that can't be: not stated, though the sizes are micrometres or metres; or stated and not meant.
        (0, 400, 400.0, ["N613"]),
        ("mm", 0.002, 0.002, ["N613"]),
        ("micron", 2, 0.002, ["N612", "N613"]),
    ],
)
@pytest.mark.parametrize("form", ["sform", "qform", "sizes"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_lengths_are_millimetres(tmp_path, unit, size, expected, noted, form, kind):
    affine = np.diag((size, size, size, 1.0))
    affine[:3, 3] = 10 * size

    def change(header):
        header.set_xyzt_units(unit, "sec")
        header.set_sform(affine, 1 if form == "sform" else 0)
        header.set_qform(affine, 1 if form == "qform" else 0)

    path = save(tmp_path / "a.nii.gz", affine=affine, change=change, kind=kind)
    volume = read_nifti(path)
    np.testing.assert_allclose(volume.spacing, expected, rtol=1e-5)
    np.testing.assert_allclose(nifti_header(path).spacing, expected, rtol=1e-5)
    if form != "sizes":
        np.testing.assert_allclose(volume.affine[:3, 3], 10 * expected, rtol=1e-5)
    assert [number for number in numbers(path) if number != "N610"] == noted


def test_without_a_place_the_axes_are_nibabels_and_a_note_says_so(tmp_path):
    path = save(tmp_path / "a.nii", change=lambda header: (header.set_sform(None, 0), header.set_qform(None, 0)))
    np.testing.assert_allclose(read_nifti(path).affine, nib.load(path).affine)
    assert numbers(path) == ["N610"]
    assert nifti_header(path).orientation == "LAS"


def test_places_that_disagree(tmp_path):
    one, mirrored, moved = np.diag((2.0, 2, 2, 1)), np.diag((-2.0, 2, 2, 1)), np.diag((2.0, 2, 2, 1))
    moved[0, 3] = 5
    rounded = np.diag((2.000001, 2, 2, 1))
    for sform, sform_code, qform, qform_code, expected in (
        (one, 1, one, 1, []),
        (one, 1, rounded, 1, []),
        (mirrored, 1, one, 1, ["N611"]),
        (moved, 1, one, 1, ["N611"]),
        (moved, 4, one, 1, []),  # an atlas beside the scanner
        (mirrored, 4, one, 1, ["N611"]),  # no two places of one head are mirrored
        (one, 0, mirrored, 1, []),
    ):

        def change(header, sform=sform, sform_code=sform_code, qform=qform, qform_code=qform_code):
            header.set_sform(sform, sform_code)
            header.set_qform(qform, qform_code)

        path = save(tmp_path / "a.nii", change=change)
        assert numbers(path) == expected
        np.testing.assert_allclose(read_nifti(path).affine, sform if sform_code else qform, atol=1e-4)


@pytest.mark.parametrize("excess", [0.0, 1e-7, 1e-6, 1e-4])
def test_a_quaternion_that_rounding_made_too_long(tmp_path, excess):
    b, c, d = np.sqrt(np.array((0.5, 0.3, 0.2)) * (1 + excess))
    path = save(tmp_path / "a.nii", change=lambda header: header.set_qform(np.eye(4), 1))
    patch(path, (254, "<h", 0), (256, "<3f", b, c, d))
    expected = 2 * np.outer((b, c, d), (b, c, d)) / (b * b + c * c + d * d) - np.eye(3)  # half a turn
    np.testing.assert_allclose(read_nifti(path).affine[:3, :3], expected, atol=1e-4)
    patch(path, (256, "<3f", 1.0, 1.0, 1.0))
    assert "quaternion" in rejected(path)
    assert "quaternion" in rejected(path, nifti_header)
    patch(path, (254, "<h", 1))  # the sform counts, and nobody needs the rotation
    np.testing.assert_allclose(read_nifti(path).affine[:3, :3], 2 * np.eye(3))


def test_rotations_are_nibabels(tmp_path):
    rng = np.random.default_rng(0)
    for sign in (1, -1, 0):
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        affine = np.eye(4)
        affine[:3, :3] = axes * (1.5, 0.7, 3) * (1 if np.linalg.det(axes) * (sign or 1) > 0 else -1)
        affine[:3, 3] = 4, -5, 6
        path = save(tmp_path / "a.nii", change=lambda h, a=affine: (h.set_qform(a, 1), h.set_sform(a, 0)))
        if sign == 0:
            patch(path, (76, "<f", 0.0))  # qfac 0 stands for 1
        np.testing.assert_allclose(read_nifti(path).affine, affine, atol=1e-5)


def test_sizes_below_zero_and_of_axes_that_there_are_not(tmp_path):
    path = save(tmp_path / "a.nii", change=lambda header: header.set_qform(np.diag((2.0, 2, 2, 1)), 1))
    patch(path, (254, "<h", 0), (80, "<3f", -2.0, 2.0, 3.0))
    np.testing.assert_allclose(read_nifti(path).spacing, (2, 2, 3))
    assert numbers(path) == ["N616"]
    patch(path, (80, "<3f", 2.0, 0.0, 3.0))
    assert rejected(path) == "voxel size is zero"
    flat = save(tmp_path / "flat.nii", VALUES[:, :, 0], change=lambda header: header.set_qform(np.eye(4), 1))
    patch(flat, (254, "<h", 0), (80, "<3f", 2.0, 2.0, 0.0))
    np.testing.assert_allclose(read_nifti(flat).spacing, (2, 2, 1))


@pytest.mark.parametrize(
    ("slope", "intercept", "expected", "noted"),
    [
        (2.0, 1.0, VALUES * 2.0 + 1, []),
        (1.0, 0.0, VALUES, []),
        (0.0, 0.0, VALUES, []),
        (np.nan, np.nan, VALUES, []),
        (0.0, 7.0, VALUES, ["N614"]),
        (np.nan, 7.0, VALUES, ["N614"]),
        (np.inf, 0.0, None, []),
        (1.0, np.nan, None, []),
        (1.0, np.inf, None, []),
    ],
)
def test_scales(tmp_path, slope, intercept, expected, noted):
    path = patch(save(tmp_path / "a.nii"), (112, "<2f", slope, intercept))
    if expected is None:
        assert rejected(path) == rejected(path, nifti_header) == "scale in the NIfTI header is no number"
        return
    np.testing.assert_array_equal(read_nifti(path).values, expected)
    assert numbers(path) == noted


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_where_the_voxels_begin(tmp_path, ending):
    whole = save(tmp_path / "whole.nii").read_bytes()

    def write(raw):
        path = tmp_path / f"a{ending}"
        path.write_bytes(gzip.compress(bytes(raw)) if ending.endswith("gz") else bytes(raw))
        return path

    def stating(offset, raw=whole):
        return raw[:108] + struct.pack("<f", offset) + raw[112:]

    for raw in (
        stating(0),
        stating(0)[:348] + whole[352:],  # without the four bytes that tell of extensions
        stating(348)[:348] + whole[352:],
        stating(352),
        stating(368)[:352] + b"\0" * 16 + whole[352:],
        stating(0) + b"more",
    ):
        path = write(raw)
        np.testing.assert_array_equal(read_nifti(path).values, VALUES)
        nifti_header(path)
    for offset in (-1, 1, 200, np.nan):
        assert "voxels begin" in rejected(write(stating(offset)))
    # An extension of unknown length lies before the voxels.
    assert "voxels begin" in rejected(write(stating(0)[:348] + b"\1\0\0\0" + b"x" * 16 + whole[352:]))
    assert rejected(write(stating(0)[:-2])) == "NIfTI file is truncated"


def test_extensions_are_stepped_over(tmp_path):
    image = nib.Nifti1Image(VALUES, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello" * 30))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").values, VALUES)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_types_and_byte_orders_keep_their_values(tmp_path, order, kind):
    for code in ("u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8"):
        dtype = np.dtype(code)
        extremes = [np.finfo(dtype).max, -1.5] if dtype.kind == "f" else [np.iinfo(dtype).min, np.iinfo(dtype).max]
        values = np.array([*extremes, 1, 2, 3, 4], dtype=dtype).reshape(1, 2, 3)
        header = (nib.Nifti1Header if kind is nib.Nifti1Image else nib.Nifti2Header)(endianness=order)
        header.set_data_dtype(dtype)
        header.set_sform(np.eye(4), 1)
        image = kind(values, np.eye(4), header, dtype=dtype)
        nib.save(image, tmp_path / "a.nii")
        read = read_nifti(tmp_path / "a.nii")
        assert read.values.dtype == dtype
        np.testing.assert_array_equal(read.values, values)


@pytest.mark.parametrize(
    ("code", "bits", "reason"),
    [
        (1, 1, "voxels are single bits"),
        (1536, 128, "voxels are numbers of 128 bits"),
        (1792, 128, "voxels are complex numbers"),
        (2304, 32, "voxels are colours (RGB)"),
        (77, 8, "type of the voxels is not one of NIfTI's"),
    ],
)
def test_types_that_are_not_read(tmp_path, code, bits, reason):
    path = patch(save(tmp_path / "a.nii"), (70, "<2h", code, bits))
    assert rejected(path) == rejected(path, nifti_header) == reason


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        ((3, 2, 3, 4, 1, 1, 1, 1), (2, 3, 4)),
        ((7, 2, 3, 4, 1, 1, 1, 1), (2, 3, 4)),
        ((5, 2, 3, 1, 1, 4, 1, 1), "image has 5 axes, at most 4 can be read"),
        ((4, 2, 3, 1, 4, 1, 1, 1), (2, 3, 1, 4)),
        ((3, 2, 3, 0, 4, 1, 1, 1), "image has no voxels"),
        ((3, 2, -3, 4, 1, 1, 1, 1), "image has no voxels"),
        ((0, 2, 3, 4, 1, 1, 1, 1), "image has no voxels"),
        ((7, *(32767,) * 7), "image has 7 axes, at most 4 can be read"),
        ((4, *(32767,) * 4, 1, 1, 1), "NIfTI file is truncated"),
    ],
)
def test_axes(tmp_path, dim, expected):
    path = patch(save(tmp_path / "a.nii"), (40, "<8h", *dim))
    if isinstance(expected, str):
        assert rejected(path, nifti_header) == expected
    else:
        assert read_nifti(path).values.shape == nifti_header(path).shape == expected


def test_what_follows_the_voxels_and_changed_bytes_of_packed_files(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (20, 30, 40), dtype=np.int16)
    path = save(tmp_path / "a.nii.gz", values)
    small = path.read_bytes()
    for after in (b"\0" * 100, b"garbage", b"\x1f\x8bgarbage"):
        path.write_bytes(small + after)
        if after.startswith(b"\x1f"):  # another part, which ends too early
            assert rejected(path) == rejected(path, nifti_header) == "NIfTI file is truncated"
        else:
            np.testing.assert_array_equal(read_nifti(path).values, values)
            nifti_header(path)
    path.write_bytes(small[:-8] + b"abcd" + small[-4:])  # the checksum tells of changed bytes
    assert rejected(path) == "NIfTI file is damaged"
    raw = gzip.decompress(small)
    path.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))  # in two parts
    np.testing.assert_array_equal(read_nifti(path).values, values)
    nifti_header(path)
    path.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:-2]))
    assert rejected(path) == rejected(path, nifti_header) == "NIfTI file is truncated"


def test_pairs_of_header_and_voxels(tmp_path):
    nib.save(nib.Nifti1Pair(VALUES, np.diag((2.0, 3, 4, 1))), tmp_path / "a.img")
    assert is_nifti(tmp_path / "a.hdr")
    assert not is_nifti(tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        volume = read_volume(name, tmp_path)
        np.testing.assert_array_equal(volume.values, VALUES)
        np.testing.assert_allclose(volume.spacing, (2, 3, 4))
        assert source_files(tmp_path / name) == [tmp_path / "a.hdr", tmp_path / "a.img"]
    (tmp_path / "a.hdr").rename(tmp_path / "b.nii")
    assert "(.img)" in rejected(tmp_path / "b.nii")
    (tmp_path / "a.img").rename(tmp_path / "b.img")
    assert rejected(tmp_path / "b.hdr") == "file is missing"
    Path(save(tmp_path / "c.nii")).rename(tmp_path / "c.hdr")
    (tmp_path / "c.img").write_bytes(VALUES.tobytes())
    assert "pair" in rejected(tmp_path / "c.hdr")


def test_an_older_pair_without_a_place_is_named(tmp_path):
    nib.save(nib.AnalyzeImage(VALUES, None), tmp_path / "a.img")
    assert not is_nifti(tmp_path / "a.hdr")
    with pytest.raises(UnreadableError, match="file is no NIfTI"):
        read_volume("a.hdr", tmp_path)
