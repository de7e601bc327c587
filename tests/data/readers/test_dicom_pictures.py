"""Radiographs and pictures in colour, in DICOM, as inputs of two-dimensional networks."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from polyclinic import Study
from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.pictures.decode import ImageFiles, decode_images
from polyclinic.data.pictures.dicom import is_scan, level_notes, open_scan
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import Preprocessing
from polyclinic.data.volumes.preprocessing import prepare_case, single_frame

PLAIN = {
    "ImageOrientationPatient": None, "ImagePositionPatient": None, "PixelSpacing": None, "SliceThickness": None,
}  # fmt: skip
DX = PLAIN | {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "BitsStored": 12, "HighBit": 11,
    "ImagerPixelSpacing": [0.2, 0.2],
}  # fmt: skip
SKIN = PLAIN | {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4", "Modality": "XC"}
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
#: The same as numbers to reckon with.
LEVELS = RAMP.astype(np.float64)


def colours(seed=0, shape=(12, 10, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def decode(folder, *names, size=(16, 16), channels="grey", masks=None, classes=None):
    files = ImageFiles(names, masks, [folder] * len(names))
    return decode_images(files, size, channels, classes=classes or MaskClasses())


def shown(folder, name="x.dcm"):
    images, _, failures = decode(folder, name)
    assert failures == {}
    return images[0, 0].numpy()


def reason(folder, name, **options):
    return decode(folder, name, **options)[2].get(0)


def test_colours_come_out_as_they_are(dicom, tmp_path):
    pixels = colours()
    dicom(tmp_path / "a.dcm", pixels, **SKIN)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for channels in ("rgb", "grey"):
        images, _, failures = decode(tmp_path, "a.dcm", "a.png", size=(12, 10), channels=channels)
        assert failures == {}
        np.testing.assert_array_equal(images[0], images[1])
    images, _, _ = decode(tmp_path, "a.dcm", size=(12, 10), channels="rgb")
    np.testing.assert_array_equal(images[0].numpy().transpose(1, 2, 0), pixels)


def test_radiographs_use_the_whole_range_of_their_bits_or_their_window(dicom, tmp_path):
    dicom(tmp_path / "x.dcm", RAMP, **DX)
    np.testing.assert_array_equal(shown(tmp_path), np.rint(LEVELS * 255 / 4095))
    rgb, _, _ = decode(tmp_path, "x.dcm", channels="rgb")
    assert all(np.array_equal(rgb[0, channel].numpy(), shown(tmp_path)) for channel in range(3))
    # PS3.3, C.11.2.1.2: (x - (c - 0.5)) / (w - 1) + 0.5.
    dicom(tmp_path / "x.dcm", RAMP, **DX, WindowCenter=["2048", "100"], WindowWidth=["1025", "1"])
    expected = np.clip((LEVELS - 2047.5) / 1024 + 0.5, 0, 1)
    np.testing.assert_array_equal(shown(tmp_path), np.rint(255 * expected))
    dicom(tmp_path / "x.dcm", RAMP, **DX, WindowCenter="2048", WindowWidth="1024", VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(shown(tmp_path), np.rint(255 * np.clip((LEVELS - 2048) / 1024 + 0.5, 0, 1)))
    dicom(tmp_path / "x.dcm", RAMP, **DX, WindowCenter="2048", WindowWidth="1024", VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(shown(tmp_path), 255 / (1 + np.exp(-4 * (LEVELS - 2048) / 1024)), atol=0.51)
    # Slope and intercept come before the window; a width of nothing is none.
    dicom(tmp_path / "x.dcm", RAMP, **DX, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="3996",
          WindowWidth="2049")  # fmt: skip
    np.testing.assert_array_equal(shown(tmp_path), np.rint(255 * np.clip((2 * LEVELS - 4095.5) / 2048 + 0.5, 0, 1)))
    dicom(tmp_path / "x.dcm", RAMP, **DX, WindowCenter="2048", WindowWidth="0")
    np.testing.assert_array_equal(shown(tmp_path), np.rint(LEVELS * 255 / 4095))


def test_signed_and_14_bit_pixels_use_their_own_range(dicom, tmp_path):
    signed = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    dicom(tmp_path / "x.dcm", signed, **DX)
    np.testing.assert_array_equal(shown(tmp_path), np.rint(LEVELS * 255 / 4095))
    dicom(tmp_path / "x.dcm", RAMP * 4, **DX | {"BitsStored": 14, "HighBit": 13})
    np.testing.assert_array_equal(shown(tmp_path), np.rint(LEVELS * 4 * 255 / 16383))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "2500", "WindowWidth": "1200"}])
@pytest.mark.parametrize("scale", [{}, {"RescaleSlope": "2", "RescaleIntercept": "-50"}])
def test_monochrome_1_is_the_same_picture_in_reverse(dicom, tmp_path, window, scale):
    # White is 0: the window is for the values as they are stored, and what it shows is turned round.
    dicom(tmp_path / "two.dcm", RAMP, **DX, **window, **scale)
    dicom(tmp_path / "one.dcm", RAMP, **DX | {"PhotometricInterpretation": "MONOCHROME1"}, **window, **scale)
    bright, dark = shown(tmp_path, "two.dcm").astype(int), shown(tmp_path, "one.dcm").astype(int)
    assert np.abs(bright + dark - 255).max() <= 1


def test_a_table_of_grey_values(dicom, tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 10]
    table.LUTData = (np.sqrt(np.arange(4096) / 4095) * 1023).astype(np.uint16).tobytes()
    dicom(tmp_path / "x.dcm", RAMP, **DX, VOILUTSequence=[table])
    np.testing.assert_allclose(shown(tmp_path), 255 * np.sqrt(LEVELS / 4095), atol=1)


def test_what_is_no_single_picture_is_refused_with_its_reason(dicom, stack, ct, tmp_path):
    film = np.random.default_rng(0).integers(0, 255, (5, 12, 10)).astype(np.uint8)
    us = PLAIN | {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "Modality": "US"}
    dicom(tmp_path / "film.dcm", film, **us)
    assert reason(tmp_path, "film.dcm") == "image has several frames, and `size` is for single pictures"
    dicom(tmp_path / "colour.dcm", colours(shape=(5, 12, 10, 3)), **us)
    assert "several frames" in reason(tmp_path, "colour.dcm")
    stack(tmp_path / "ct", np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7), np.diag([1.0, 1, 2, 1]), **ct)
    assert reason(tmp_path, "ct") == "image has several slices: use `preprocessing` instead of `size`"
    dicom(tmp_path / "slice.dcm", RAMP.astype(np.int16), **ct)
    assert reason(tmp_path, "slice.dcm").startswith("CT and PET have units")
    nibabel.save(nibabel.Nifti1Image(np.arange(12.0).reshape(3, 4, 1), np.eye(4)), tmp_path / "flat.nii.gz")
    assert reason(tmp_path, "flat.nii.gz").startswith("image is a NIfTI file: use `preprocessing`")
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"nonsense" * 9)
    assert reason(tmp_path, "broken.dcm")
    assert reason(tmp_path, "nowhere.dcm") == "image file is missing"
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path, "empty") == "folder has no DICOM file"
    assert reason(tmp_path, "../outside.dcm") == "image path lies outside the image folder"


def test_grey_values_that_8_bits_would_lose_are_refused(dicom, tmp_path):
    mr = PLAIN | {"BitsStored": 16}
    dicom(tmp_path / "dark.dcm", RAMP // 8, **mr)
    assert reason(tmp_path, "dark.dcm").startswith("image loses its grey values at 8 bits")
    assert "intensity: percentile" in reason(tmp_path, "dark.dcm")
    dicom(tmp_path / "beside.dcm", RAMP, **DX, WindowCenter="9000", WindowWidth="10")
    assert reason(tmp_path, "beside.dcm").startswith("image loses its grey values at 8 bits")
    dicom(tmp_path / "flat.dcm", RAMP * 0 + 7, **DX)
    assert reason(tmp_path, "flat.dcm") == "image is the same everywhere"
    dicom(tmp_path / "few.dcm", (RAMP > 2000).astype(np.uint16) * 5, **DX | {"BitsStored": 3, "HighBit": 2})
    assert set(np.unique(shown(tmp_path, "few.dcm"))) == {0, 182}


def test_folders_series_and_names_without_an_ending(dicom, tmp_path):
    from polyclinic.data.readers.read import series_name

    expected = np.rint(LEVELS * 255 / 4095)
    dicom(tmp_path / "one" / "IM0001", RAMP, **DX)
    for cell in ("one", "one/IM0001"):
        np.testing.assert_array_equal(shown(tmp_path, cell), expected)
    dicom(tmp_path / "two" / "a", RAMP, **DX, SOPInstanceUID="1.2.3.1")
    dicom(tmp_path / "two" / "b", RAMP[::-1], **DX, SOPInstanceUID="1.2.3.2")
    assert reason(tmp_path, "two") == "files hold 2 DICOM images, not one"
    from polyclinic.data.readers.dicom.groups import group_planes
    from polyclinic.data.readers.dicom.header import read_header

    keys = [group.key for group in group_planes([read_header(tmp_path / "two" / "b")])]
    np.testing.assert_array_equal(shown(tmp_path, f"two#{series_name(keys[0], 'salt')}"), expected[::-1])
    # Other files are left to the reader of pictures.
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "plain", format="PNG")
    np.testing.assert_array_equal(shown(tmp_path, "plain"), np.eye(16) * 255)
    (tmp_path / "notes").write_text("hello")
    assert not is_scan(tmp_path / "notes")
    assert not is_scan(tmp_path / "nothing#here")


def test_masks_in_dicom_keep_their_numbers(dicom, tmp_path):
    dicom(tmp_path / "x.dcm", RAMP, **DX)
    marks = np.zeros((16, 16), np.uint8)
    marks[4:8, 4:8], marks[9:12, 9:12] = 1, 2
    dicom(tmp_path / "m.dcm", marks, **SKIN)
    _, masks, failures = decode(tmp_path, "x.dcm", masks=["m.dcm"])
    assert failures == {}
    np.testing.assert_array_equal(masks[0, 0].numpy(), marks > 0)
    two = MaskClasses(("background", "a", "b"), ((1,), (2,)), complete=True)
    _, masks, _ = decode(tmp_path, "x.dcm", masks=["m.dcm"], classes=two)
    assert masks.unique().tolist() == [0, 1, 2]
    dicom(tmp_path / "r.dcm", marks, **SKIN | {"PhotometricInterpretation": "MONOCHROME1"})
    assert reason(tmp_path, "x.dcm", masks=["r.dcm"]) == "mask is stored in reverse (MONOCHROME1)"
    dicom(tmp_path / "wide.dcm", RAMP[:, :8], **DX)
    assert reason(tmp_path, "x.dcm", masks=["wide.dcm"]) == "mask and image differ in size"


def test_a_site_with_windows_in_some_headers_is_told(dicom, tmp_path):
    dicom(tmp_path / "a.dcm", RAMP, **DX)
    dicom(tmp_path / "b.dcm", RAMP, **DX, WindowCenter="2000", WindowWidth="3000")
    dicom(tmp_path / "c.dcm", colours(), **SKIN)
    (note,) = level_notes("A", [tmp_path / name for name in ("a.dcm", "b.dcm", "c.dcm", "missing.dcm")])
    assert note.number == "N713"
    assert note.startswith("Site A: 1 of 2 grey DICOM images have no window in their header")
    assert level_notes("A", [tmp_path / "a.dcm", tmp_path / "c.dcm", None]) == []


@pytest.mark.parametrize("frames", ["reject", "first", "mean"])
def test_a_colour_photograph_is_no_volume(dicom, tmp_path, frames):
    dicom(tmp_path / "a.dcm", colours(), **SKIN)
    Image.fromarray(colours()).save(tmp_path / "a.png")
    for name in ("a.dcm", "a.png"):
        volume = read_volume(name, tmp_path)
        assert volume.colour
        spec = Preprocessing(size=(10, 12, 1), frames=frames)
        with pytest.raises(UnreadableError, match="image is in colour: pictures in colour need `size`"):
            prepare_case([volume], None, spec, lambda values: values)


def test_grey_values_stored_as_colours_are_grey(dicom, tmp_path):
    grey = np.repeat(colours()[..., :1], 3, axis=2)
    dicom(tmp_path / "a.dcm", grey, **SKIN)
    volume = single_frame(read_volume("a.dcm", tmp_path), "reject")
    np.testing.assert_array_equal(volume.values[..., 0].T, grey[..., 0])


def test_three_frames_are_no_colours(dicom, tmp_path):
    film = np.random.default_rng(0).integers(0, 255, (3, 12, 10)).astype(np.uint8)
    dicom(tmp_path / "film.dcm", film, **PLAIN, Modality="US")
    volume = read_volume("film.dcm", tmp_path)
    assert volume.values.shape == (10, 12, 1, 3)
    assert not volume.colour
    np.testing.assert_array_equal(single_frame(volume, "first").values[..., 0].T, film[0])


@pytest.mark.parametrize("part", [{"size": [12, 10]}, {"size": [12, 10], "channels": "grey"}])
def test_a_study_of_colour_dicom_sees_the_colours(dicom, tmp_path, part):
    rows = ["site,subject,image,label"]
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 60, (12, 10, 3)).astype(np.uint8)
        pixels[3:9, 2:8, 2 if number % 2 else 1] += 150
        dicom(tmp_path / f"{number}.dcm", pixels, **SKIN, SeriesInstanceUID=f"1.2.{number}")
        rows.append(f"{'north' if number < 8 else 'south'},P{number},{number}.dcm,{number % 2}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    data = {"table": "t.csv", "site": "site", "subject": "subject", "image": "image", "label": "label", "positive": 1}
    study = {
        "data": data | part, "model": {"cnn": {"channels": [8]}}, "methods": ["mix"], "engine": {"threads": 1},
        "training": {"rounds": 15, "batch_size": 4, "optimizer": {"adamw": {"lr": 0.01}}},
        "evaluation": {"folds": 2, "metrics": ["auc"], "bootstrap": 0},
    }  # fmt: skip
    results = Study.of(study, tmp_path).run(tmp_path / "out").results
    assert results[results["tested_on"] == "all"]["value"].mean() > 0.95


def test_radiographs_train_with_a_plan_and_a_small_network(dicom, tmp_path):
    rows = ["site,subject,image,label"]
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 900, (40, 36)).astype(np.uint16)
        pixels[10:30, 8:28] += 2000 * (number % 2)
        dicom(tmp_path / f"{number}.dcm", pixels, **DX, SeriesInstanceUID=f"1.2.{number}")
        rows.append(f"{'north' if number < 8 else 'south'},P{number},{number}.dcm,{number % 2}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    data = {"table": "t.csv", "site": "site", "subject": "subject", "image": "image", "label": "label", "positive": 1}
    rest = {
        "training": {"rounds": 1, "batch_size": 4}, "methods": ["mix"], "engine": {"threads": 1},
        "evaluation": {"folds": 2, "metrics": ["auc"], "bootstrap": 0},
    }  # fmt: skip
    automatic = {"spacing": "auto", "size": "auto", "intensity": "percentile"}
    for name, part, model in (
        ("auto", {"preprocessing": automatic}, "auto"),
        ("cnn", {"preprocessing": {"size": [36, 40, 1], "intensity": "percentile"}}, {"cnn": {"channels": [4, 8]}}),
        ("flat", {"size": [40, 36], "channels": "grey"}, {"cnn": {"channels": [4, 8]}}),
    ):
        study = Study.of({"data": data | part, "model": model} | rest, tmp_path)
        study.check()
        study.run(tmp_path / name)
        assert json.loads((tmp_path / name / "provenance.json").read_text())


def test_real_pictures_in_colour(data_folder):
    odd = data_folder / "dicom" / "odd"
    for name in ("examples_palette.dcm", "examples_jpeg2k.dcm"):
        if name.endswith("2k.dcm"):
            pytest.importorskip("pylibjpeg")
        picture = open_scan(odd / name, "image")
        assert picture.mode == "RGB"
        assert np.ptp(np.asarray(picture).astype(int), axis=2).max() > 20
    overlay = np.asarray(open_scan(odd / "examples_overlay.dcm", "image"))
    assert overlay.dtype == np.uint8
    assert np.ptp(overlay) > 200
