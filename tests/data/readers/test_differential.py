"""The reader against pydicom, nibabel, SimpleITK and dcm2niix: voxel for voxel and place for place, or a refusal.

Volumes are compared after both are turned to RAS, since no order of axes is better than another. The generated files
run over the encodings that scanners and archives write; the truth is what was written. Real files are those that come
with pydicom and nibabel, and those of the data folder.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from polyclinic.data.readers.nifti.read import read_nifti
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import UnreadableError

sitk = pytest.importorskip("SimpleITK")
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))


def upright(values, affine):
    """Values and affine with axes turned to RAS."""
    values = values.reshape(values.shape[:3]) if values.ndim > 3 and values.shape[3:] == (1,) else values
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(values, dtype=np.float64), affine))
    return np.asanyarray(image.dataobj), image.affine


def same(volume, values, affine, tolerance=0.0):
    """Both have the same voxels at the same places (to a hundredth of a millimetre)."""
    found, place = upright(volume.values, volume.affine)
    expected, expected_place = upright(values, affine)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(place, expected_place, atol=1e-2)


def by_simpleitk(files):
    """What ITK makes of a file or of the files of a series: values ``[X, Y, Z]`` and an affine to RAS."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if len(files) == 1:
        image = sitk.ReadImage(str(files[0]))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(Path(files[0]).parent)))
        image = reader.Execute()
    values = sitk.GetArrayFromImage(image).T
    affine = np.eye(4)
    side = image.GetDimension()
    affine[:side, :side] = np.array(image.GetDirection()).reshape(side, side) @ np.diag(image.GetSpacing())
    affine[:side, 3] = image.GetOrigin()
    return values.reshape(*values.shape, *[1] * (3 - values.ndim)), LPS_TO_RAS @ affine


def by_dcm2niix(folder, out):
    """What dcm2niix makes of a folder with one series; None where it isn't installed."""
    program = shutil.which("dcm2niix")
    if program is None:
        return None
    out.mkdir()
    subprocess.run([program, "-b", "n", "-z", "n", "-f", "x", "-o", out, folder], check=True, capture_output=True)
    image = nib.load(next(out.glob("*.nii")))
    return np.asanyarray(image.dataobj), image.affine


def in_order(files):
    """Number the instances along the normal: dcm2niix takes another order for two series."""
    read = [pydicom.dcmread(path) for path in files]
    row, column = np.array(read[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    places = [np.array(data.ImagePositionPatient, dtype=float) @ np.cross(row, column) for data in read]
    for number, index in enumerate(np.argsort(places).tolist(), start=1):
        read[index].InstanceNumber = number
        read[index].save_as(files[index])


# Geometry -------------------------------------------------------------------------------------------------------------

TURN = nib.eulerangles.euler2mat(0.2, -0.15, 0.3)
DIRECTIONS = {
    "axial": np.diag((-1.0, -1.0, 1.0)),
    "axial, feet last": np.diag((-1.0, -1.0, -1.0)),
    "sagittal": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]).astype(float),
    "coronal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]).astype(float),
    "oblique": TURN @ np.diag((-1.0, -1.0, 1.0)),
}


def affine_of(directions, spacing, origin=(12.5, -30.0, 7.25)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions @ np.diag(spacing), origin
    return affine


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.3)])
def test_places_of_a_series(direction, spacing, stack, tmp_path):
    values = np.random.default_rng(3).integers(-1000, 3000, (7, 5, 6)).astype(np.int16)
    affine = affine_of(DIRECTIONS[direction], spacing)
    files = stack(tmp_path / "series", values, affine, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    in_order(files)
    volume = read_volume("series", tmp_path)
    same(volume, values, affine)
    same(volume, *by_simpleitk(files))
    converted = by_dcm2niix(tmp_path / "series", tmp_path / "nifti")
    if converted is not None:
        same(volume, *converted)


@pytest.mark.parametrize("order", list(itertools.permutations("xyz")), ids="".join)
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)), ids=str)
def test_places_of_all_orientations(order, flips, stack, tmp_path):
    """All 48 ways to lay three axes along the body's, also those that no right-handed scanner makes."""
    directions = np.zeros((3, 3))
    for column, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        directions["xyz".index(axis), column] = flip
    values = np.random.default_rng(4).integers(0, 3000, (4, 3, 5)).astype(np.int16)
    affine = affine_of(directions, (0.8, 1.1, 2.5))
    stack(tmp_path / "series", values, affine)
    same(read_volume("series", tmp_path), values, affine)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "image.nii.gz")
    same(read_nifti(tmp_path / "image.nii.gz"), values, affine)
    same(read_nifti(tmp_path / "image.nii.gz"), *by_simpleitk([tmp_path / "image.nii.gz"]))


# Encodings of DICOM ---------------------------------------------------------------------------------------------------

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian, "explicit": ExplicitVRLittleEndian, "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian, "RLE": RLELossless, "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}  # fmt: skip
#: GDCM has encoders, too, which abort beside SimpleITK's own copy of it.
ENCODERS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
KINDS = {
    "u8": (8, 8, 0),
    "u12": (16, 12, 0),
    "i12": (16, 12, 1),
    "i16": (16, 16, 1),
    "u16": (16, 16, 0),
    "i8": (8, 8, 1),
}


def save_as(data, path, syntax):
    """Write a data set made in explicit little endian in another transfer syntax."""
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        data.compress(syntax, encoding_plugin=ENCODERS[syntax], generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        swapped = pydicom.FileDataset("", {}, preamble=data.preamble, file_meta=data.file_meta, is_little_endian=False)
        swapped.update(data)
        words = np.frombuffer(data.PixelData, f"<u{data.BitsAllocated // 8}")
        swapped.PixelData, swapped["PixelData"].VR = words.byteswap().tobytes(), "OW" if words.itemsize == 2 else "OB"
        data = swapped
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1024), (0.1, 3.5), (-1, 100)])
def test_encodings_of_grey_pixels(syntax, kind, slope, intercept, dataset, tmp_path):
    allocated, stored, signed = KINDS[kind]
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    pixels = np.random.default_rng(5).integers(low, high, (40, 33)).astype(f"<{'iu'[1 - signed]}{allocated // 8}")
    pixels.flat[:2] = low, high - 1
    data = dataset(
        pixels, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2", BitsStored=stored, HighBit=stored - 1,
        RescaleSlope=str(slope), RescaleIntercept=str(intercept),
    )  # fmt: skip
    path = save_as(data, tmp_path / "a.dcm", SYNTAXES[syntax])
    truth = (pixels.astype(np.float64) * slope + intercept).T[:, :, None]
    volume = read_volume("a.dcm", tmp_path)
    np.testing.assert_allclose(volume.values, truth, rtol=1e-6, atol=1e-6)
    read = pydicom.dcmread(path)
    np.testing.assert_allclose(volume.values[:, :, 0].T, apply_modality_lut(read.pixel_array, read), atol=1e-4)
    if syntax not in ("big endian", "deflated") and kind != "i8":  # which this GDCM can't read
        same(volume, *by_simpleitk([path]), tolerance=1e-5)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("frames", [1, 3])
def test_encodings_of_colours(syntax, planar, frames, dataset, tmp_path):
    """Several frames of a film in colour become luminance (ITU-R BT.601)."""
    if planar and syntax in ("RLE", "JPEG-LS", "JPEG 2000"):
        pytest.skip("compressed colours have one order")
    pixels = np.random.default_rng(6).integers(0, 256, (frames, 40, 33, 3)).astype(np.uint8)
    data = dataset(pixels[0] if frames == 1 else pixels, Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1")
    if planar:
        data.PixelData, data.PlanarConfiguration = pixels.transpose(0, 3, 1, 2).tobytes(), 1
    save_as(data, tmp_path / "a.dcm", SYNTAXES[syntax])
    volume = read_volume("a.dcm", tmp_path)
    if frames == 1:
        assert np.array_equal(volume.values[:, :, 0], pixels[0].swapaxes(0, 1))
    else:
        luminance = (pixels @ np.array((0.299, 0.587, 0.114))).transpose(2, 1, 0)
        np.testing.assert_allclose(volume.values[:, :, 0], luminance, rtol=1e-6)


@pytest.mark.parametrize("modality", ["MR", "CT", "DX"])
@pytest.mark.parametrize("kind", KINDS)
def test_bright_and_dark_swapped(modality, kind, dataset, tmp_path):
    """MONOCHROME1: the lowest value is the brightest; values of CT have a unit and stay."""
    allocated, stored, signed = KINDS[kind]
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    pixels = np.random.default_rng(7).integers(low, high + 1, (4, 5)).astype(f"<{'iu'[1 - signed]}{allocated // 8}")
    dataset(
        pixels, Modality=modality, PhotometricInterpretation="MONOCHROME1", BitsStored=stored, HighBit=stored - 1
    ).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    truth = pixels.astype(np.int64) if modality == "CT" else low + high - pixels.astype(np.int64)
    assert np.array_equal(read_volume("a.dcm", tmp_path).values[:, :, 0].T, truth)


@pytest.mark.parametrize("stored", [8, 10, 12, 15])
@pytest.mark.parametrize("lowest", [0, 1, 4])
@pytest.mark.parametrize("signed", [0, 1])
def test_bits_that_lie_anywhere_in_a_word(stored, lowest, signed, dataset, tmp_path):
    """Values in the bits ``lowest`` to HighBit, with an overlay in bits around them."""
    if lowest + stored > 16:
        pytest.skip("does not fit the word")
    rng = np.random.default_rng(8)
    values = (
        rng.integers(-(2 ** (stored - 1)), 2 ** (stored - 1), (6, 4)) if signed else rng.integers(0, 2**stored, (6, 4))
    )
    mask = (2**stored - 1) << lowest
    word = ((values << lowest) & mask) | (rng.integers(0, 2**16, values.shape) & ~mask & 0xFFFF)
    data = dataset(
        word.astype("<u2"), BitsStored=stored, HighBit=lowest + stored - 1, PixelRepresentation=signed, Modality="CT"
    )
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    try:
        volume = read_volume("a.dcm", tmp_path)
    except UnreadableError:
        return
    assert np.array_equal(volume.values[:, :, 0].T, values)


# Encodings of NIfTI ---------------------------------------------------------------------------------------------------

TYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scale", [None, (2.0, 0.0), (0.5, -3.25), (1.0, 10.0)])
@pytest.mark.parametrize("form", ["nii", "nii.gz", "nifti2"])
def test_encodings_of_nifti(kind, order, scale, form, tmp_path):
    values = np.random.default_rng(9).integers(0, 100, (4, 5, 3)).astype(kind)
    affine = affine_of(DIRECTIONS["oblique"], (1.5, 2.0, 2.5))
    header = (nib.Nifti2Header if form == "nifti2" else nib.Nifti1Header)(endianness=order)
    image = (nib.Nifti2Image if form == "nifti2" else nib.Nifti1Image)(
        values, affine, header, dtype=np.dtype(order + kind)
    )
    path = tmp_path / ("a.nii.gz" if form == "nii.gz" else "a.nii")
    if scale:
        image.header.set_slope_inter(*scale)
    image.to_filename(path)
    if scale:  # to_filename stored scaled values: what the file says now is the truth
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = nib.load(path).get_fdata()
    else:
        truth = values.astype(np.float64)
    volume = read_nifti(path)
    same(volume, truth, affine, tolerance=1e-6)
    if form != "nifti2":
        same(volume, *by_simpleitk([path]), tolerance=1e-5)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)])
@pytest.mark.parametrize("which", ["sform", "qform"])
def test_lengths_of_nifti(unit, factor, which, tmp_path):
    values = np.random.default_rng(10).integers(0, 100, (4, 5, 3)).astype(np.int16)
    affine = affine_of(DIRECTIONS["oblique"], (1.5, 2.0, 2.5))
    scaled = affine.copy()
    scaled[:3] /= factor
    image = nib.Nifti1Image(values, scaled)
    image.set_sform(scaled, code=1 if which == "sform" else 0)
    image.set_qform(scaled, code=1 if which == "qform" else 0)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    same(volume, values, affine)
    same(volume, *by_simpleitk([tmp_path / "a.nii"]))


# Real files -----------------------------------------------------------------------------------------------------------


def planes_of(data):
    """Real values ``[Y, X]`` of each frame of a data set by pydicom, in shades of grey; None for colours."""
    if data.get("SamplesPerPixel", 1) != 1 or data.PhotometricInterpretation == "PALETTE COLOR":
        return None
    pixels = apply_modality_lut(data.pixel_array, data).astype(np.float64)
    return pixels.reshape(-1, *pixels.shape[-2:])


def placed_like(volume, data):
    """Every pixel of a classic slice lies in the volume where its header says, with its value."""
    (picture,) = planes_of(data)
    row, column = np.array(data.ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, across = map(float, data.PixelSpacing)
    ends = [(0, 0), (data.Columns - 1, 0), (0, data.Rows - 1)]
    points = [np.array(data.ImagePositionPatient, dtype=float) + i * across * row + j * down * column for i, j in ends]
    to_voxel = np.linalg.inv(LPS_TO_RAS @ volume.affine)
    corner, right, below = (to_voxel @ (*point, 1.0) for point in points)
    assert np.abs(corner - np.rint(corner)).max() < 0.02
    assert np.allclose(right - corner, (data.Columns - 1, 0, 0, 0), atol=0.02)
    assert np.allclose(below - corner, (0, data.Rows - 1, 0, 0), atol=0.02)
    found = volume.values[:, :, round(corner[2])]
    frames = found[..., None] if found.ndim == 2 else found
    assert any(np.allclose(frames[..., time].T, picture, rtol=1e-5, atol=1e-4) for time in range(frames.shape[2]))


@pytest.mark.parametrize("folder", ["ge-mr-epi", "ge-ct"])
def test_real_series_slice_by_slice(folder, data_folder):
    volume = read_volume(folder, data_folder / "dicom")
    for path in sorted((data_folder / "dicom" / folder).glob("*.dcm")):
        placed_like(volume, pydicom.dcmread(path))


def compared_with_pydicom(path):
    """What came of a file: "refused", or what was compared; fails where pydicom's values are others."""
    try:
        volume = read_volume(path.name, path.parent)
    except UnreadableError:
        return "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path, force=True)
        if data.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(data.pixel_array, data)[..., :3]
            if colours.ndim == 3:
                kept = volume.values[:, :, 0].swapaxes(0, 1).astype(np.float64)
                full = float(colours.max() or 1) / max(float(kept.max()), 1.0)
                np.testing.assert_allclose(kept * full, colours, atol=max(full, 1.0) + 1)
            return "palette"
        if data.get("SamplesPerPixel", 1) == 3:
            colours = data.pixel_array
            if colours.ndim == 3:
                assert np.array_equal(volume.values[:, :, 0].swapaxes(0, 1), colours)
            return "colour"
        frames = planes_of(data)
    found = volume.values.reshape(*volume.values.shape[:2], -1).transpose(2, 1, 0).astype(np.float64)
    if data.PhotometricInterpretation == "MONOCHROME1":
        found = -found
        frames = frames - (frames[0, 0, 0] - found[0, 0, 0])
    if data.get("Manufacturer", "").lower().startswith("philips") and data.get("Modality") == "MR":
        # The scanner's own scale: proportional to what pydicom shows.
        ratio = found.max() / frames.max()
        np.testing.assert_allclose(found, frames * ratio, rtol=1e-4, atol=abs(found).max() * 1e-3)
        return "proportional"
    assert sorted(found.shape) == sorted(frames.shape) or found.size == frames.size
    if found.shape == frames.shape and len(frames) == 1:
        np.testing.assert_allclose(found, frames, rtol=1e-5, atol=1e-4)
    else:  # frames may be sorted by place, or tiles of a mosaic
        np.testing.assert_allclose(np.sort(found, axis=None), np.sort(frames, axis=None), rtol=1e-5, atol=1e-4)
    return "grey"


def test_files_that_come_with_pydicom():
    """Each is refused with a reason, or has pydicom's values."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    outcomes = {path.name: compared_with_pydicom(path) for path in sorted(folder.glob("*.dcm"))}
    counts = {kind: sum(found == kind for found in outcomes.values()) for kind in set(outcomes.values())}
    assert counts["grey"] >= 15, counts
    assert counts["colour"] >= 30, counts


def test_real_odd_files(data_folder):
    for path in sorted((data_folder / "dicom/odd").glob("*.dcm")):
        compared_with_pydicom(path)


def test_real_nifti(data_folder):
    files = sorted(path for path in (data_folder / "nifti-spine").rglob("*.nii*"))
    assert files
    for path in files:
        volume = read_nifti(path)
        image = nib.load(path)
        same(volume, image.get_fdata(), image.affine, tolerance=1e-6)
        same(volume, *by_simpleitk([path]), tolerance=1e-5)


@pytest.mark.parametrize("name", ["anatomical.nii", "functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz"])
def test_files_that_come_with_nibabel(name):
    path = Path(nib.__file__).parent / "tests" / "data" / name
    if not path.is_file():
        pytest.skip("this nibabel comes without its test files")
    image = nib.load(path)
    same(read_nifti(path), image.get_fdata(), image.affine, tolerance=1e-6)
