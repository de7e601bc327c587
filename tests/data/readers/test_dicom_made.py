"""Series made with pydicom, whose voxels and places are known."""

from pathlib import Path

import numpy as np
import pydicom
import pydicom.filebase
import pydicom.filewriter
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import BasicTextSRStorage, UltrasoundImageStorage, generate_uid

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.volume import UnreadableError

CUBE = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, -2, 0, 40], [0, 0, 3, -50], [0, 0, 0, 1.0]])


def rejected(files, **options):
    with pytest.raises(UnreadableError) as raised:
        read_series(files, **options)
    return str(raised.value)


def rotation(angles):
    a, b, c = angles
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def voxels_by_place(values, affine):
    """Value -> its place in millimetres."""
    places = np.stack(np.indices(values.shape), axis=-1).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    return places[np.argsort(values.reshape(-1))]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    mirrored=st.booleans(),
)
def test_every_voxel_comes_back_to_its_place(stack, tmp_path_factory, angles, spacing, origin, mirrored):
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.diag(spacing) @ np.diag((1, 1, -1 if mirrored else 1))
    affine[:3, 3] = origin
    volume = read_series(stack(tmp_path_factory.mktemp("series"), CUBE, affine))
    assert np.array_equal(np.sort(volume.values, axis=None), np.arange(CUBE.size))
    np.testing.assert_allclose(voxels_by_place(volume.values, volume.affine), voxels_by_place(CUBE, affine), atol=1e-3)
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-4)


def test_rows_and_columns_are_not_mixed_up(dicom, tmp_path):
    # 2 rows, 3 columns; rows are 5 mm apart, columns 7 mm; rows run to the patient's left, columns to the feet.
    pixels = np.array([[1, 2, 3], [4, 5, 6]], np.int16)
    path = dicom(
        tmp_path / "a.dcm", pixels, PixelSpacing=[5, 7], ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ImagePositionPatient=[10, 20, 30],
    )  # fmt: skip
    volume = read_series([path])
    assert volume.values.shape == (3, 2, 1)
    assert volume.values[2, 1, 0] == 6
    # Left is -x and posterior is -y in RAS.
    np.testing.assert_allclose(volume.affine @ (0, 0, 0, 1), (-10, -20, 30, 1))
    np.testing.assert_allclose(volume.affine @ (2, 1, 0, 1), (-24, -20, 25, 1))


def test_time_points_in_interleaved_files(stack, tmp_path):
    values = np.stack([CUBE, CUBE + 1000, CUBE + 2000], axis=-1)
    volume = read_series(reversed(stack(tmp_path, values, AFFINE)))
    assert np.array_equal(volume.values, values)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_missing_slice(stack, tmp_path):
    files = stack(tmp_path, CUBE, AFFINE)
    positions = {path: read_series([path]).affine[2, 3] for path in files}
    inner = sorted(files, key=positions.__getitem__)[2]
    assert rejected([path for path in files if path != inner]) == "slices are missing"
    values = np.stack([CUBE, CUBE + 1000], axis=-1)
    assert rejected(stack(tmp_path / "4d", values, AFFINE)[:-1]) == "slices are missing"


def test_uneven_and_crooked_stacks(dicom, tmp_path):
    def series(name, places):
        return [
            dicom(tmp_path / name / f"{n}.dcm", CUBE[:, :, 0].copy(), ImagePositionPatient=[*place], InstanceNumber=n)
            for n, place in enumerate(places)
        ]

    within = read_series(series("tolerated", [(0, 0, z) for z in (0, 3, 6.1, 9)]))
    assert within.spacing[2] == pytest.approx(3)
    assert rejected(series("uneven", [(0, 0, z) for z in (0, 3, 7, 10)])) == "slices are unevenly spaced"
    head = [(0, 0, z) for z in (0, 2.5, 5, 7.5, 10, 17.5, 25, 32.5, 40)]  # narrow at the base, wide above
    assert rejected(series("head", head)) == "slices are unevenly spaced"
    assert (
        rejected(series("two lost", [(0, 0, z) for z in (0, 2.5, 5, 7.5, 12.5, 15, 17.5, 25)])) == "slices are missing"
    )
    assert rejected(series("crooked", [(0, 0, 0), (1.5, 0, 3), (2.9, 0, 5.8), (9, 0, 6)])).startswith("slices")


def test_doubled_slices_are_dropped(stack, dicom, tmp_path):
    files = stack(tmp_path, CUBE, AFFINE)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(files[2].read_bytes())
    assert np.array_equal(read_series([*files, copy]).values, CUBE)
    # The same slice sent again under a new name (another SOP instance) has the same pixels.
    again = stack(tmp_path / "again", CUBE, AFFINE)[2]
    assert np.array_equal(read_series([*files, again]).values, CUBE)
    other = stack(tmp_path / "other", CUBE + 7, AFFINE)[2]
    assert rejected([*files, other]) == "slices are missing"


def test_ct_is_rescaled_slice_by_slice(dicom, ct, tmp_path):
    pixels = np.full((3, 4), 100, np.uint16)
    common = ct | {"RescaleType": "HU"}
    files = [
        dicom(tmp_path / f"{z}.dcm", pixels, ImagePositionPatient=[0, 0, z], InstanceNumber=z, **common | scale)
        for z, scale in enumerate(
            [
                {"RescaleSlope": "1", "RescaleIntercept": "-1024"},
                {"RescaleSlope": "2", "RescaleIntercept": "-1000"},
            ]
        )
    ]
    volume = read_series(files)
    assert volume.values.dtype == np.int16
    assert volume.values[0, 0].tolist() == [-924, -800]
    half = [
        dicom(
            tmp_path / f"h{z}.dcm", pixels, ImagePositionPatient=[0, 0, z],
            **ct | {"RescaleSlope": f"{0.5 + z}", "RescaleIntercept": "1"},
        )
        for z in range(2)
    ]  # fmt: skip
    assert read_series(half).values[0, 0].tolist() == [51.0, 151.0]
    assert read_series(half).values.dtype == np.float32


def test_philips_scale(dicom, tmp_path):
    def philips(data_path, scale):
        path = dicom(data_path, np.full((3, 4), 8, np.uint16), RescaleSlope="4", RescaleIntercept="2")
        data = pydicom.dcmread(path)
        block = data.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", scale)
        data.save_as(path)
        return path

    # (8 x 4 + 2) / (4 x 0.5)
    assert read_series([philips(tmp_path / "a.dcm", 0.5)]).values[0, 0, 0] == 17
    assert read_series([philips(tmp_path / "b.dcm", 0.0)]).values[0, 0, 0] == 34


def test_monochrome1_is_inverted_but_not_in_ct(dicom, ct, tmp_path):
    pixels = np.array([[0, 10], [4095, 100]], np.uint16)
    xray = {"Modality": "DX", "BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"}
    volume = read_series([dicom(tmp_path / "a.dcm", pixels, **xray)])
    assert volume.values[..., 0].T.tolist() == [[4095, 4085], [0, 3995]]
    signed = np.array([[-128, 127], [0, 5]], np.int8)
    volume = read_series([dicom(tmp_path / "b.dcm", signed, Modality="DX", PhotometricInterpretation="MONOCHROME1")])
    assert volume.values[..., 0].T.tolist() == [[127, -128], [-1, -6]]
    volume = read_series([dicom(tmp_path / "c.dcm", pixels, **ct, PhotometricInterpretation="MONOCHROME1")])
    assert volume.values[..., 0].T.tolist() == [[0, 10], [4095, 100]]


@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", "<i2", "<u4", "<i4"])
def test_plain_numbers_are_those_of_pydicom(dicom, tmp_path, kind):
    pixels = np.frombuffer(np.random.default_rng(0).bytes(240), kind).reshape(2, -1)
    bits = min(12, 8 * pixels.dtype.itemsize)  # with bits beyond those that are stored
    path = dicom(tmp_path / "a.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    assert np.array_equal(read_series([path]).values[:, :, 0].T, pydicom.dcmread(path).pixel_array)


def test_modality_table(dicom, tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.add_new("LUTData", "US", [100, 200, 300, 400])
    path = dicom(tmp_path / "a.dcm", np.array([[0, 1], [2, 3]], np.uint8), Modality="CR", ModalityLUTSequence=[table])
    assert read_series([path]).values[:, :, 0].T.tolist() == [[100, 200], [300, 400]]


def test_baseline_jpeg_in_colour(dicom, tmp_path):
    from io import BytesIO

    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    colours = np.zeros((16, 24, 3), np.uint8)
    colours[:, :12], colours[:, 12:] = (200, 30, 30), (20, 40, 220)
    packed = BytesIO()
    Image.fromarray(colours).save(packed, "JPEG", quality=95)
    path = dicom(tmp_path / "a.dcm", colours, Modality="US", ImagePositionPatient=None)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PhotometricInterpretation, data.PixelData = "YBR_FULL_422", encapsulate([packed.getvalue()])
    data.save_as(path)
    values = read_series([path]).values
    assert values.shape == (24, 16, 1, 3)
    np.testing.assert_allclose(values[[2, 20], 5, 0], [(200, 30, 30), (20, 40, 220)], atol=8)


@pytest.mark.parametrize("implicit", [True, False])
def test_bare_data_sets(dicom, tmp_path, implicit):
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm", CUBE[:, :, 0].copy()))
    bare = pydicom.Dataset({element.tag: element for element in data if element.tag.group != 2})
    with pydicom.filebase.DicomBytesIO() as file:
        file.is_little_endian, file.is_implicit_VR = True, implicit
        pydicom.filewriter.write_dataset(file, bare)
        (tmp_path / "bare").write_bytes(file.getvalue())
    assert np.array_equal(read_series([tmp_path / "bare"]).values[:, :, 0].T, CUBE[:, :, 0])
    big = tmp_path / "big.dcm"
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(big)
    assert np.array_equal(read_series([big]).values[:, :, 0].T, CUBE[:, :, 0])


def test_palette_becomes_rgb(dicom, tmp_path):
    table = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, levels in (("Red", (0, 255, 0, 7)), ("Green", (0, 0, 255, 8)), ("Blue", (0, 0, 0, 9)))
        for part, value in (("Descriptor", [4, 0, 16]), ("Data", (np.array(levels, "<u2") << 8).tobytes()))
    }
    us = {"SOPClassUID": UltrasoundImageStorage, "Modality": "US", "PhotometricInterpretation": "PALETTE COLOR"}
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    pixels = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
    volume = read_series([dicom(tmp_path / "a.dcm", pixels, **us, **nowhere, **table)])
    assert volume.values.shape == (3, 2, 1, 3)
    assert volume.values.dtype == np.uint8
    assert volume.values[:, 0, 0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    assert volume.values[0, 1, 0].tolist() == [7, 8, 9]
    without = {name: value for name, value in table.items() if "Blue" not in name}
    broken = dicom(tmp_path / "b.dcm", pixels, **us, **nowhere, **without)
    assert rejected([broken]) == "colour table is missing or damaged"


def test_colours_and_films(dicom, tmp_path):
    us = {"SOPClassUID": UltrasoundImageStorage, "Modality": "US"}
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    rgb = np.zeros((2, 3, 3), np.uint8)
    rgb[0, 1] = (1, 2, 3)
    volume = read_series([dicom(tmp_path / "rgb.dcm", rgb, **us, **nowhere, PixelSpacing=[0.2, 0.1])])
    assert volume.values.shape == (3, 2, 1, 3)
    assert volume.values[1, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(volume.affine, np.diag((-0.1, -0.2, 1, 1)))
    grey = np.arange(40, dtype=np.uint8).reshape(4, 2, 5)
    film = read_series([dicom(tmp_path / "film.dcm", grey, **us, **nowhere)])
    assert film.values.shape == (5, 2, 1, 4)
    assert film.values[:, 0, 0, 3].tolist() == [30, 31, 32, 33, 34]
    colours = np.zeros((2, 2, 3, 3), np.uint8)
    colours[1, 0, 0] = (100, 200, 50)
    film = read_series([dicom(tmp_path / "colours.dcm", colours, **us, **nowhere)])
    assert film.values.shape == (3, 2, 1, 2)
    assert film.values[0, 0, 0].tolist() == [0, pytest.approx(29.9 + 117.4 + 5.7)]


def test_enhanced_multi_frame(enhanced, tmp_path):
    frames = np.arange(6 * 2 * 3, dtype=np.uint16).reshape(6, 2, 3)
    # Three slices at two times, stored in no order.
    places = [([1, 2, z], time) for z, time in ((20, 1), (14, 2), (17, 1), (14, 1), (20, 2), (17, 2))]
    volume = read_series([enhanced(tmp_path / "a.dcm", frames, places)])
    expected = frames[[[3, 1], [2, 5], [0, 4]]].transpose(3, 2, 0, 1)
    assert np.array_equal(volume.values, expected)
    np.testing.assert_allclose(volume.affine, [[-1.5, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 14], [0, 0, 0, 1]])
    scaled = enhanced(tmp_path / "b.dcm", frames[:3], [*places[:1], ([1, 2, 17], 1), ([1, 2, 14], 1)], slopes="123")
    assert read_series([scaled]).values[0, 0].tolist() == [frames[2, 0, 0] * 3, frames[1, 0, 0] * 2, 0]
    assert rejected([enhanced(tmp_path / "c.dcm", frames, places[:5])]) == (
        "functional groups don't fit the number of frames"
    )


def test_one_series_with_several_images(stack, tmp_path):
    echoes = [
        path
        for echo in (1, 2)
        for path in stack(tmp_path / f"{echo}", CUBE * echo, AFFINE, EchoNumbers=echo, EchoTime=f"{echo * 10}")
    ]
    assert rejected(echoes) == "files hold 2 DICOM images, not one"
    assert np.array_equal(read_series(echoes[6:]).values, CUBE * 2)


def test_no_place_for_a_slice(dicom, tmp_path):
    files = [dicom(tmp_path / f"{n}.dcm", CUBE[:, :, n].copy(), ImagePositionPatient=None) for n in range(3)]
    assert rejected(files) == "slice positions are missing from the DICOM headers"
    assert read_series(files[:1]).values.shape == (5, 4, 1)
    assert rejected([dicom(tmp_path / "x.dcm", CUBE[:, :, 0].copy(), PixelSpacing=None)]) == (
        "pixel spacing is missing from the DICOM headers"
    )


def test_other_objects_beside_an_image_are_passed_over(stack, dicom, tmp_path):
    report = dicom(tmp_path / "sr.dcm", CUBE[:, :, 0].copy(), SOPClassUID=BasicTextSRStorage, Modality="SR")
    assert rejected([report]) == "DICOM object is a structured report, not an image"
    assert np.array_equal(read_series([report, *stack(tmp_path, CUBE, AFFINE)]).values, CUBE)


def test_a_damaged_slice_is_not_left_out_in_silence(stack, tmp_path):
    files = stack(tmp_path, CUBE, AFFINE)
    files[0].write_bytes(files[0].read_bytes()[:-8])
    assert rejected(files) == "pixels are truncated"
    files[0].write_bytes(files[0].read_bytes()[:300])
    assert rejected(files) == "DICOM header is truncated"
    data = pydicom.dcmread(files[1])
    del data.PixelData
    data.save_as(files[0])
    assert rejected(files) == "DICOM image is incomplete: its size or its pixels are missing"


def test_no_message_quotes_the_header(dicom, patient, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    bad = dicom(tmp_path / "a.dcm", CUBE[:, :, 0].copy(), Rows=400, SOPInstanceUID=generate_uid())
    reason = rejected([bad])
    seen = reason + "".join(capfd.readouterr()) + caplog.text
    assert not [text for text in patient if text in seen]


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 200, b"\0" * 128 + b"DICM"])
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    assert rejected([path])
    assert rejected([Path(tmp_path / "missing.dcm")]) == "file is missing"
