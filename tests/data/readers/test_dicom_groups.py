"""Which slices of a series make one image: numbers that differ by rounding, words, echoes, kinds of picture."""

import math

import numpy as np
import pytest
from pydicom.uid import generate_uid

from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.scan import scan_folder

SLICES = np.random.default_rng(1).integers(0, 500, (12, 8, 6)).astype(np.uint16)


def series(dicom, folder, change=lambda z: {}, slices=range(12), values=SLICES, **fixed):
    """A slice each 2 mm; ``change`` gives what differs from slice to slice."""
    start = len(list(folder.glob("*"))) if folder.exists() else 0
    for number, z in enumerate(slices, start=start + 1):
        elements = {"ImagePositionPatient": [0, 0, 2 * z], "SliceThickness": "2", "InstanceNumber": number} | fixed
        dicom(folder / f"{number:03}.dcm", values[z], **(elements | change(z)))
    return folder


def scanned(folder):
    """Images used, and the notes on them by number."""
    found = scan_folder(folder, site="s", salt="salt")
    return [image for image in found.images if not image.reason], {
        note.number for image in found.images for note in image.notes
    }


def is_whole(folder, image):
    volume = read_volume(image.where, folder)
    np.testing.assert_array_equal(volume.values, SLICES.transpose(2, 1, 0))
    return volume.spacing[2] == pytest.approx(2, rel=1e-3)


def turned(cosine):
    sine = math.sqrt(1 - cosine**2)
    return [f"{value:.7f}" for value in (cosine, sine, 0, -sine, cosine, 0)]


#: Beside an edge of 0.002, where rounding would part the two.
EDGE = 0.9805


@pytest.mark.parametrize(
    "change",
    [
        lambda z: {},
        lambda z: {"ImageOrientationPatient": turned(EDGE + (2e-6 if z % 2 else -2e-6))},
        lambda z: {"ImageOrientationPatient": turned(EDGE + (2e-6 if z < 6 else -2e-6))},
        lambda z: {"ImageOrientationPatient": turned(EDGE + 1e-4 * math.sin(z))},
        lambda z: {"EchoTime": "4.6501" if z % 2 else "4.6499"},
        lambda z: {"EchoTime": f"{4.65 + 0.004 * z:.3f}"},
        lambda z: {"EchoTime": None if z == 3 else "4.65"},
        lambda z: {"PixelSpacing": ["0.4685001"] * 2 if z % 2 else ["0.4684999"] * 2},
        lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", "M"] if z % 2 else ["ORIGINAL", "PRIMARY", "M "]},
        lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", "M"] if z % 2 else ["ORIGINAL", "PRIMARY"]},
        lambda z: {"ImagePositionPatient": [0.001 * (z % 2), 0, 2 * z + 0.004 * (z % 3)]},
        lambda z: {"FlipAngle": "9" if z % 2 else "9.0001"},
        lambda z: {"AcquisitionNumber": z + 1},
        lambda z: {"InstanceNumber": 12 - z},
        lambda z: {"InstanceNumber": 1},
        lambda z: {"InstanceNumber": None},
    ],
)
def test_numbers_that_differ_in_their_last_digits_make_one_image_without_a_word(dicom, tmp_path, change):
    (image,), notes = scanned(series(dicom, tmp_path, change))
    assert is_whole(tmp_path, image)
    assert not notes - {"N516"}


@pytest.mark.parametrize(
    "change",
    [
        lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"] + ["HELIX"] * (z % 2)},
        lambda z: {"ImageType": ["DERIVED" if z >= 6 else "ORIGINAL", "PRIMARY", "AXIAL"]},
        lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"] + ["X"] * (z == 0)},
        lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"] + ["X"] * (z == 5)},
        lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", f"SLICE{z}"]},
        lambda z: {"EchoNumbers": 1 + z % 2},
        lambda z: {"ConvolutionKernel": "B30f" if z < 4 else "B31f"},
        lambda z: {"FlipAngle": "9" if z % 2 else "12"},
    ],
)
def test_parts_that_make_one_even_stack_are_joined_with_a_note(dicom, tmp_path, change):
    (image,), notes = scanned(series(dicom, tmp_path, change))
    assert is_whole(tmp_path, image)
    assert notes == {"N510"}


def test_halves_of_one_stack_beside_another_image_of_the_same_places(dicom, tmp_path):
    series(dicom, tmp_path, lambda z: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"] + ["HELIX"] * (z % 2)})
    series(dicom, tmp_path, values=SLICES + 1000, ImageType=["DERIVED", "PRIMARY", "OTHER"])
    images, notes = scanned(tmp_path)
    assert [image.files for image in images] == [12, 12]
    assert notes == {"N510"}


def word(name):
    return {"ImageType": ["ORIGINAL", "PRIMARY", *name.split("\\")]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"EchoTime": "0.0"}, {"EchoTime": "2.46"}),
        ({"EchoTime": "4.6"}, {"EchoTime": "4.7"}),
        (word("M"), word("P")),
        (word("M\\ND"), word("ND\\PHASE")),
        (word("R"), word("I")),
        (word("W"), word("F")),
        (word("IP"), word("OP")),
        (word("IN_PHASE"), word("OPP_PHASE")),
        (word("DIFFUSION\\ADC"), word("DIFFUSION\\TRACEW")),
        (word("M"), word("MIP")),
        (word("DIFFUSION\\FA"), word("DIFFUSION")),
        ({"ComplexImageComponent": "MAGNITUDE"}, {"ComplexImageComponent": "PHASE"}),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["DERIVED", "PRIMARY"]}),
        ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
        ({"KVP": "80"}, {"KVP": "140"}),
        ({"InversionTime": "700"}, {"InversionTime": "2500"}),
        ({"FlipAngle": "2"}, {"FlipAngle": "15"}),
        ({"PixelSpacing": ["1", "1"]}, {"PixelSpacing": ["1.01", "1.01"]}),
        ({"StudyInstanceUID": "1.2.7"}, {"StudyInstanceUID": "1.2.8"}),
        ({"PatientID": "A"}, {"PatientID": "B"}),
    ],
)
def test_real_differences_at_the_same_places_part(dicom, tmp_path, one, other):
    series(dicom, tmp_path, **one)
    series(dicom, tmp_path, values=SLICES + 1000, **other)
    images, _ = scanned(tmp_path)
    found = [read_volume(image.where, tmp_path) for image in images]
    assert sorted(int(volume.values.min()) // 1000 for volume in found) == [0, 1]
    assert {volume.values.shape for volume in found} == {(6, 8, 12)}


@pytest.mark.parametrize("kinds", [("M", "P"), ("W", "F")])
def test_kinds_of_picture_part_even_where_they_would_make_one_stack(dicom, tmp_path, kinds):
    series(dicom, tmp_path, lambda z: word(kinds[z >= 6]))
    images, _ = scanned(tmp_path)
    assert [image.files for image in images] == [6, 6]


@pytest.mark.parametrize("other", [{"PixelSpacing": ["1.1", "1.1"]}, {"EchoTime": "9"}, word("P")])
@pytest.mark.parametrize("slices", [range(0, 12, 2), range(6)])
def test_images_that_may_be_parts_of_one_are_noted(dicom, tmp_path, other, slices):
    rest = [z for z in range(12) if z not in slices]
    series(dicom, tmp_path, slices=slices, EchoTime="5")
    series(dicom, tmp_path, slices=rest, **({"EchoTime": "5"} | other))
    images, notes = scanned(tmp_path)
    assert [image.files for image in images] == [6, 6]
    assert "N517" in notes


def test_parts_of_a_ge_image_without_words(dicom, tmp_path):
    import pydicom

    folder = series(dicom, tmp_path)
    series(dicom, tmp_path, values=SLICES + 1000)
    for path in sorted(folder.glob("*")):
        data = pydicom.dcmread(path)
        block = data.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x2F, "SS", 1 if data.InstanceNumber > 12 else 0)
        data.save_as(path)
    images, _ = scanned(folder)
    assert [image.files for image in images] == [12, 12]


def test_three_planes_of_a_localizer(dicom, tmp_path):
    axes = ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])
    for number, orientation in enumerate(axes):
        for k in range(3):
            place = [0.0, 0.0, 0.0]
            place[(2, 0, 1)[number]] = 10.0 * k
            dicom(
                tmp_path / f"{number}{k}", SLICES[k], ImageOrientationPatient=orientation, ImagePositionPatient=place,
                SliceThickness="10",
            )  # fmt: skip
    images, _ = scanned(tmp_path)
    assert [image.files for image in images] == [3, 3, 3]


def test_a_localizer_inside_the_series_is_no_slice(dicom, tmp_path):
    series(dicom, tmp_path)
    dicom(
        tmp_path / "scout", SLICES[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1], InstanceNumber=13,
    )  # fmt: skip
    found = scan_folder(tmp_path, site="s", salt="salt")
    assert sorted((image.files, image.reason) for image in found.images) == [(1, "image is a localizer"), (12, "")]


def test_slices_that_turn_step_by_step_are_no_stack(dicom, tmp_path):
    series(dicom, tmp_path, lambda z: {"ImageOrientationPatient": turned(math.cos(0.0015 * z))})
    found = scan_folder(tmp_path, site="s", salt="salt")
    assert {image.reason for image in found.images} == {"slices are not parallel"}


def test_some_slices_without_an_orientation(dicom, tmp_path):
    series(dicom, tmp_path, lambda z: {"ImageOrientationPatient": None} if z > 9 else {})
    found = scan_folder(tmp_path, site="s", salt="salt")
    assert {image.reason for image in found.images} == {
        "slice positions are missing from some of the DICOM headers",
        "slice positions are missing from the DICOM headers",
    }


def test_files_that_share_one_uid_are_different_slices(dicom, tmp_path):
    (image,), notes = scanned(series(dicom, tmp_path, SOPInstanceUID="1.2.3.4.5"))
    assert is_whole(tmp_path, image)
    assert not notes


@pytest.mark.parametrize("start", [1, 13, 101])
def test_a_series_sent_again_under_new_uids(dicom, tmp_path, start):
    series(dicom, tmp_path)
    for z in range(12):
        dicom(
            tmp_path / f"again{z}", SLICES[z], ImagePositionPatient=[0, 0, 2 * z], SliceThickness="2",
            InstanceNumber=start + z, SOPInstanceUID=generate_uid(),
        )  # fmt: skip
    (image,), notes = scanned(tmp_path)
    assert is_whole(tmp_path, image)
    assert "N501" in notes


def test_slices_beside_each_other_are_no_frames(dicom, tmp_path):
    for number, x in enumerate((0, 250)):
        for z in range(12):
            dicom(
                tmp_path / f"{number}{z}", SLICES[z], ImagePositionPatient=[x, 0, 2 * z], SliceThickness="2",
                InstanceNumber=1, AcquisitionNumber=number,
            )  # fmt: skip
    images, notes = scanned(tmp_path)
    assert [image.files for image in images] == [12, 12]
    assert notes == {"N511"}


def test_reconstructions_of_different_thickness(dicom, tmp_path):
    series(dicom, tmp_path, slices=range(0, 12, 2), SliceThickness="4")
    series(dicom, tmp_path, values=SLICES + 1000)
    images, notes = scanned(tmp_path)
    assert sorted(image.files for image in images) == [6, 12]
    assert not notes


def test_a_slice_with_another_matrix_is_noted(dicom, tmp_path):
    series(dicom, tmp_path)
    dicom(tmp_path / "other", np.ones((5, 5), np.uint16), ImagePositionPatient=[0, 0, 41], InstanceNumber=13)
    images, notes = scanned(tmp_path)
    assert sorted(image.files for image in images) == [1, 12]
    assert notes == {"N515"}
