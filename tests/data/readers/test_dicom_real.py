"""Real series of five vendors against an independent converter (dcm2niix), and odd files."""

import nibabel as nib
import numpy as np
import pytest

from polyclinic.data.readers.dicom.elements import read_elements
from polyclinic.data.readers.dicom.header import ALLOWED
from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import UnreadableError

LOSSLESS = "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit"


def upright(values, affine):
    image = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    return np.asanyarray(image.dataobj), image.affine


@pytest.mark.parametrize(
    ("folder", "tolerance"), [("siemens-mr-mosaic", 0), ("ge-mr-epi", 0), ("philips-mr-fmri", 1e-6)]
)
def test_series_equal_the_reference_conversion(data_folder, folder, tolerance):
    series = data_folder / "dicom" / folder
    reference = nib.load(next(series.glob("reference.nii*")))
    expected, expected_affine = upright(np.asanyarray(reference.dataobj), reference.affine)
    volume = read_volume(folder, data_folder / "dicom")
    values, affine = upright(volume.values, volume.affine)
    np.testing.assert_allclose(affine, expected_affine, atol=1e-3)
    # The Philips reference was computed in float32; the others are integers, and must be the very same.
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=0)


def test_scanner_facts(data_folder):
    about = {name: read_volume(name, data_folder / "dicom").about for name in ("siemens-mr-mosaic", "ge-ct")}
    assert about == {
        "siemens-mr-mosaic": {"modality": "MR", "vendor": "Siemens", "model": "Skyra", "field_strength": 3.0},
        "ge-ct": {"modality": "CT", "vendor": "GE", "model": "HiSpeed Dual"},
    }


def test_tilted_gantry_keeps_the_slices_where_they_were(data_folder):
    volume = read_volume("ge-ct", data_folder / "dicom")
    assert volume.values.shape == (512, 512, 6)
    assert volume.values.dtype == np.int16
    assert volume.values.min() == -1500
    # From the headers of the first and last file: steps of 4.22 mm along z, images tilted by 18.5 degrees.
    np.testing.assert_allclose(volume.affine @ (0, 0, 5, 1), (125, 123.5404569, 26.9360586, 1), atol=1e-4)
    np.testing.assert_allclose(volume.affine[:3, 1], (0, -0.4882812 * np.cos(np.radians(18.5)), -0.15493392), atol=1e-5)


def test_united_imaging_mosaic(data_folder):
    volume = read_volume("uih-mr-dti", data_folder / "dicom")
    assert volume.values.shape == (64, 64, 20, 2)  # 20 tiles of 64 x 64, b = 0 and b = 1000
    assert volume.about["vendor"] == "United Imaging"
    np.testing.assert_allclose(volume.spacing, (3.5, 3.5, 4.2), atol=1e-3)
    assert volume.values[..., 0].max() == 1817
    assert volume.values[..., 1].max() == 599
    # The brain is in the middle of each slice: tiles were cut at the right places.
    middle = volume.values[16:48, 16:48, 8:12, 0].mean()
    assert middle > 5 * volume.values[:6, :6, 8:12, 0].mean()


#: File -> shape, smallest and largest value (of the header's rescaled values), or the reason.
ODD = {
    "CT_small": ((128, 128, 1), -896, 1167),
    "MR_small": ((64, 64, 1), 127, 2145),
    "MR_small_RLE": ((64, 64, 1), 127, 2145),
    "MR_small_bigendian": ((64, 64, 1), 127, 2145),
    "MR_small_implicit": ((64, 64, 1), 127, 2145),
    "MR_small_jp2klossless": ((64, 64, 1), 127, 2145),
    "MR_small_jpeg_ls_lossless": ((64, 64, 1), 127, 2145),
    "SC_rgb_rle_32bit_2frame": ((100, 100, 1, 2), 0, 2**32),
    "examples_jpeg2k": ((640, 480, 1, 3), 0, 255),
    "examples_overlay": ((484, 300, 1), 0, 1123),
    "examples_palette": ((800, 350, 1, 3), 0, 255),
    "image_dfl": ((512, 512, 1), 0, 255),
    "JPEG-lossy": "12-bit lossy JPEG can't be decoded: unpack the file first (for example with DCMTK's dcmdjpeg)",
    "MR_truncated": "pixels are truncated",
    "badVR": "DICOM object is an RT dose, not an image",
    "liver_1frame": "DICOM object is a segmentation object, not an image",
    "meta_missing_tsyntax": "DICOM image is incomplete: its size or its pixels are missing",
    "nested_priv_SQ": "DICOM image is incomplete: its size or its pixels are missing",
    "no_meta": "file is no DICOM: neither the preamble nor a data set is at its start",
    "rtdose": "DICOM object is an RT dose, not an image",
    "test-SR": "DICOM object is a structured report, not an image",
    "waveform_ecg": "DICOM object is a waveform, not an image",
}


def test_every_odd_file_has_an_expected_outcome(data_folder):
    assert {path.stem for path in (data_folder / "dicom/odd").glob("*.dcm")} == set(ODD)


@pytest.mark.parametrize("name", ODD)
def test_odd_files(data_folder, name):
    if name in ("MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "examples_jpeg2k"):
        pytest.importorskip("openjpeg" if "jp" in name and "ls" not in name else "jpeg_ls")
    path, expected = data_folder / f"dicom/odd/{name}.dcm", ODD[name]
    if isinstance(expected, str):
        with pytest.raises(UnreadableError) as raised:
            read_series([path])
        assert str(raised.value) == expected
        return
    volume = read_series([path])
    assert (volume.values.shape, volume.values.min(), volume.values.max()) == expected


def test_all_encodings_of_one_image_are_read_the_same(data_folder):
    plain = read_series([data_folder / "dicom/odd/MR_small.dcm"])
    for name in LOSSLESS:
        other = read_series([data_folder / f"dicom/odd/{name}.dcm"])
        assert np.array_equal(other.values, plain.values)
        assert np.array_equal(other.affine, plain.affine)


def test_missing_decoder_is_named(data_folder, monkeypatch):
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(type(JPEGLSLosslessDecoder), "is_available", property(lambda self: False))
    with pytest.raises(UnreadableError, match=r"^compression JPEG-LS Lossless.* pip install 'polyclinic\[dicom\]'$"):
        read_series([data_folder / "dicom/odd/MR_small_jpeg_ls_lossless.dcm"])


def test_fast_header_reader_agrees_with_pydicom(data_folder):
    import pydicom
    from pydicom.dataelem import RawDataElement

    for path in sorted((data_folder / "dicom").glob("*/*.dcm")):
        try:
            found = read_elements(path, frozenset(ALLOWED.values()))
        except UnreadableError:
            continue
        data = pydicom.dcmread(path, specific_tags=list(ALLOWED.values()), force=True)
        raw = {tag: data.get_item(tag) for tag in ALLOWED.values() if tag in data}
        expected = {tag: item.value or b"" for tag, item in raw.items() if isinstance(item, RawDataElement)}
        expected |= {tag: b"sequence" for tag in (0x00283000, 0x52009229, 0x52009230) if tag in data}
        filled = [{tag: value for tag, value in values.items() if value} for values in (found.values, expected)]
        assert filled[0] == filled[1], path.name
        assert found.syntax == str(data.file_meta.get("TransferSyntaxUID", "")), path.name
