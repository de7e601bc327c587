"""Which bits of a pixel count, and how they are packed."""

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.volume import UnreadableError

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 4096, (41, 47)).astype(np.uint16)
SIGNED = RNG.integers(-2048, 2048, (41, 47)).astype(np.int16)
BITS = {"BitsStored": 12, "HighBit": 11}
NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}


def read(path):
    return read_series([path]).values[:, :, 0].T


def numbers(path):
    return [note.number for note in read_series([path]).notes]


def rejected(path):
    with pytest.raises(UnreadableError) as raised:
        read_series([path])
    return str(raised.value)


def packed(path, syntax):
    """Pack the pixels as they are stored."""
    module, plugin = {
        JPEG2000Lossless: ("openjpeg", "pylibjpeg"),
        JPEGLSLossless: ("jpeg_ls", "pyjpegls"),
        RLELossless: ("pydicom", "pydicom"),
    }[syntax]
    pytest.importorskip(module)
    data = pydicom.dcmread(path)
    data.compress(syntax, encoding_plugin=plugin)
    data.save_as(path)
    return path


def with_overlay(path, position):
    data = pydicom.dcmread(path)
    data.add_new(0x60000010, "US", data.Rows)
    data.add_new(0x60000011, "US", data.Columns)
    data.add_new(0x60000040, "CS", "G")
    data.add_new(0x60000050, "SS", [1, 1])
    data.add_new(0x60000100, "US", 16)
    data.add_new(0x60000102, "US", position)
    data.save_as(path)
    return path


@pytest.mark.parametrize("syntax", ["native", "implicit", "big", "rle"])
@pytest.mark.parametrize("high", [11, 13, 15])
@pytest.mark.parametrize("expected", [VALUES, SIGNED])
def test_the_bits_below_high_bit_count(dicom, tmp_path, syntax, high, expected):
    stored = (expected.view(np.uint16) & 0xFFF) << (high - 11)
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=high, PixelRepresentation=int(expected is SIGNED))
    if syntax == "rle":
        packed(path, RLELossless)
    elif syntax != "native":
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if syntax == "big" else ImplicitVRLittleEndian
        if syntax == "big":
            data.PixelData = stored.astype(">u2").tobytes()
        pydicom.dcmwrite(path, data, implicit_vr=syntax != "big", little_endian=syntax != "big", force_encoding=True)
    np.testing.assert_array_equal(read(path), expected)
    assert numbers(path) == []


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("expected", [VALUES, SIGNED])
def test_overlays_in_high_bits_are_left_out(dicom, tmp_path, syntax, expected):
    stored = expected.view(np.uint16) & 0xFFF | RNG.integers(0, 16, expected.shape).astype(np.uint16) << 12
    # Packed as 16 bits, which the packed bytes then say of themselves, beside the header's 12.
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=16, HighBit=15)
    if syntax is not None:
        packed(path, syntax)
    data = pydicom.dcmread(path)
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, int(expected is SIGNED)
    data.save_as(path)
    np.testing.assert_array_equal(read(path), expected)
    assert numbers(path) == ["N619"]
    assert numbers(with_overlay(path, 12)) == []


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize(
    ("values", "stored"),
    [(VALUES, 12), (SIGNED, 12), (VALUES, 16), (SIGNED, 16), (VALUES.astype(np.uint8), 8), (SIGNED.astype(np.int8), 8)],
)
def test_packed_numbers_come_back(dicom, tmp_path, syntax, values, stored):
    path = dicom(tmp_path / "a.dcm", values, BitsStored=stored, HighBit=stored - 1)
    if syntax is not None:
        packed(path, syntax)
    np.testing.assert_array_equal(read(path), values)
    assert numbers(path) == []


def test_packed_pixels_that_are_moved_up_are_refused(dicom, tmp_path):
    path = packed(dicom(tmp_path / "a.dcm", VALUES << 4), JPEG2000Lossless)
    data = pydicom.dcmread(path)
    data.BitsStored, data.HighBit = 12, 15
    data.save_as(path)
    assert rejected(path) == "compressed pixels whose stored bits are not the lowest"


def test_a_high_bit_that_can_not_be_is_not_believed(dicom, tmp_path):
    for high in (None, 0, 7, 16):
        path = dicom(tmp_path / "a.dcm", VALUES, BitsStored=12, HighBit=high)
        np.testing.assert_array_equal(read(path), VALUES)


def test_several_fragments_of_one_frame(dicom, tmp_path):
    path = packed(dicom(tmp_path / "a.dcm", VALUES, **BITS), JPEG2000Lossless)
    data = pydicom.dcmread(path)
    whole = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
    data.PixelData = encapsulate([whole], fragments_per_frame=3)
    data.save_as(path)
    np.testing.assert_array_equal(read(path), VALUES)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_whole_numbers_of_all_widths_keep_their_extremes(dicom, tmp_path, kind):
    limits = np.iinfo(kind)
    values = np.array([[limits.min, limits.max, 1], [0, 2, 3], [5, 6, 7]], dtype=kind)  # an odd number of bytes
    path = dicom(tmp_path / "a.dcm", values)
    np.testing.assert_array_equal(read(path), values)
    inverted = dicom(tmp_path / "b.dcm", values, Modality="DX", PhotometricInterpretation="MONOCHROME1")
    expected = int(limits.min) + int(limits.max) - values.astype(np.int64)
    np.testing.assert_array_equal(read(inverted), expected)


def test_single_bits(dicom, tmp_path):
    bits = RNG.integers(0, 2, (8, 12)).astype(np.uint8)
    path = dicom(tmp_path / "a.dcm", bits, BitsAllocated=1, BitsStored=1, HighBit=0, Modality="OT", **NOWHERE)
    data = pydicom.dcmread(path)
    data.PixelData = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    data.save_as(path)
    np.testing.assert_array_equal(read(path), bits)


def test_slices_of_one_series_may_differ_in_sign(dicom, ct, tmp_path):
    common = {**ct, "RescaleIntercept": "0", "RescaleSlope": "1"}
    one = dicom(tmp_path / "a.dcm", np.full((2, 2), 60000, np.uint16), **common)
    other = dicom(tmp_path / "b.dcm", np.full((2, 2), -1000, np.int16), **common, ImagePositionPatient=[0, 0, 1])
    assert read_series([one, other]).values[0, 0].tolist() == [60000, -1000]


def test_a_missing_sign_is_noted(dicom, tmp_path):
    path = dicom(tmp_path / "a.dcm", VALUES, **BITS, PixelRepresentation=None)
    np.testing.assert_array_equal(read(path), VALUES)
    assert numbers(path) == ["N618"]
    big = packed(dicom(tmp_path / "b.dcm", VALUES, **BITS), RLELossless)
    data = pydicom.dcmread(big)
    del data.PixelRepresentation
    data.save_as(big)
    np.testing.assert_array_equal(read(big), VALUES)
    assert numbers(big) == ["N618"]
    assert numbers(dicom(tmp_path / "c.dcm", VALUES.astype(np.uint8), PixelRepresentation=None)) == []


def test_more_pixels_than_the_header_says_are_refused(dicom, tmp_path):
    path = dicom(tmp_path / "a.dcm", np.stack([VALUES, VALUES]), NumberOfFrames=None)
    assert rejected(path) == "pixels don't fit the size in the header"


def test_padding_is_a_value_like_others(dicom, ct, tmp_path):
    pixels = SIGNED.copy()
    pixels[0] = -2000
    path = dicom(tmp_path / "a.dcm", pixels, **ct | {"PixelPaddingValue": -2000, "RescaleIntercept": "-1024"})
    np.testing.assert_array_equal(read(path), pixels - 1024)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("form", ["RGB", "YBR_FULL"])
def test_colours_in_planes_and_as_luminance(dicom, tmp_path, planar, form):
    from pydicom.pixels import convert_color_space

    rgb = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 100, 110]]], np.uint8)
    stored = rgb if form == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")
    path = dicom(tmp_path / "a.dcm", stored, **NOWHERE, PhotometricInterpretation=form, Modality="OT")
    data = pydicom.dcmread(path)
    data.PlanarConfiguration = planar
    data.PixelData = (stored.transpose(2, 0, 1) if planar else stored).tobytes()
    data.save_as(path)
    np.testing.assert_allclose(read_series([path]).values[:, :, 0].swapaxes(0, 1), rgb, atol=2)


@pytest.mark.parametrize(("form", "syntax"), [("YBR_RCT", JPEG2000Lossless), ("RGB", JPEG2000Lossless)])
def test_colours_in_jpeg_2000(dicom, tmp_path, form, syntax):
    rgb = RNG.integers(0, 256, (40, 44, 3)).astype(np.uint8)
    path = dicom(tmp_path / "a.dcm", rgb, **NOWHERE, Modality="OT")
    data = pydicom.dcmread(path)
    data.PhotometricInterpretation = form
    data.compress(syntax, encoding_plugin="pylibjpeg")
    data.save_as(path)
    np.testing.assert_array_equal(read_series([path]).values[:, :, 0].swapaxes(0, 1), rgb)


@pytest.mark.parametrize("form", ["YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV", "ARGB", "CMYK"])
def test_old_forms_of_colours_are_refused(dicom, tmp_path, form):
    rgb = np.zeros((4, 4, 3), np.uint8)
    path = dicom(tmp_path / "a.dcm", rgb, **NOWHERE, PhotometricInterpretation=form)
    assert "PhotometricInterpretation" in rejected(path)


def palette(entries, levels, bits=16, first=0, kind="<u2"):
    found = {}
    for colour, column in zip(("Red", "Green", "Blue"), np.array(levels).T, strict=True):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [entries, first, bits]
        found[f"{colour}PaletteColorLookupTableData"] = column.astype(kind).tobytes()
    return found


def colours(dicom, path, indices, table):
    nowhere = {**NOWHERE, "PhotometricInterpretation": "PALETTE COLOR", "Modality": "US", "PixelSpacing": [1, 1]}
    return read_series([dicom(path, indices, **nowhere, **table)]).values[:, :, 0].swapaxes(0, 1)


def test_palettes_keep_all_their_levels(dicom, tmp_path):
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8)
    eight = np.stack([np.arange(64) * 4, np.arange(64)[::-1], np.arange(64)], axis=-1)
    for number, (levels, bits, kind) in enumerate(
        (
            (eight, 8, "u1"),
            (eight, 8, "<u2"),  # 8-bit levels in words of 16
            (eight, 16, "<u2"),  # the descriptor says 16, the numbers say 8
            (eight, 16, "u1"),
            (eight << 8, 16, "<u2"),
            (eight * 257, 16, "<u2"),
        )
    ):
        found = colours(dicom, tmp_path / f"{number}.dcm", indices, palette(64, levels, bits, kind=kind))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found.reshape(64, 3), eight)
    fine = np.stack([np.arange(64) + 30000] * 3, axis=-1)
    found = colours(dicom, tmp_path / "fine.dcm", indices, palette(64, fine))
    assert len(np.unique(found)) == 64
    np.testing.assert_allclose(found.reshape(64, 3), fine / 257, rtol=1e-5)
    twelve = np.stack([np.arange(64) * 65] * 3, axis=-1)
    found = colours(dicom, tmp_path / "twelve.dcm", indices, palette(64, twelve))
    np.testing.assert_allclose(found.reshape(64, 3), twelve * 255 / 4095, rtol=1e-5)


def test_palettes_of_many_entries_and_of_numbers_below_zero(dicom, tmp_path):
    levels = np.stack([np.arange(1000) % 256, np.arange(1000) // 4, np.zeros(1000, int)], axis=-1)
    indices = RNG.integers(0, 1000, (6, 5)).astype(np.uint16)
    # Numbers of 8 bits looked up by numbers of 16.
    found = colours(dicom, tmp_path / "a.dcm", indices, palette(1000, levels, 8, kind="u1"))
    np.testing.assert_array_equal(found, levels[indices])
    below = indices.astype(np.int16) - 500
    found = colours(dicom, tmp_path / "b.dcm", below, palette(1000, levels, 8, first=-500, kind="u1"))
    np.testing.assert_array_equal(found, levels[indices])
    outside = np.array([[0, 700], [100, 5000]], np.uint16)
    found = colours(dicom, tmp_path / "c.dcm", outside, palette(100, levels[:100], 8, first=100, kind="u1"))
    np.testing.assert_array_equal(found, levels[[[0, 99], [0, 99]]])


def test_palettes_with_too_few_entries_are_refused(dicom, tmp_path):
    table = palette(64, np.zeros((64, 3)), 8, kind="u1")
    table["BluePaletteColorLookupTableData"] = b"\0" * 32
    with pytest.raises(UnreadableError, match="colour table is missing or damaged"):
        colours(dicom, tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), table)


def test_palettes_in_segments(dicom, tmp_path):
    # A line of 64 steps from 0 to 65535 after the first entry (PS3.3, C.7.9.2).
    table = {}
    for colour in ("Red", "Green", "Blue"):
        table[f"{colour}PaletteColorLookupTableDescriptor"] = [65, 0, 16]
        words = np.array([0, 1, 0, 1, 64, 65535], "<u2")
        table[f"Segmented{colour}PaletteColorLookupTableData"] = words.tobytes()
    found = colours(dicom, tmp_path / "a.dcm", np.arange(65, dtype=np.uint8).reshape(5, 13), table)
    np.testing.assert_allclose(found[..., 0].reshape(-1), np.arange(65) * 255 / 64, atol=0.01)
