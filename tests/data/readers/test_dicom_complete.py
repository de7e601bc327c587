"""Slices that are lost without a gap: every second one, all but two, the first ones."""

import numpy as np
import pytest

from polyclinic.data.readers.scan import scan_folder

MR = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}
PET = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT"}


@pytest.fixture
def outcome(dicom, ct, tmp_path):
    """Writes slices at the places; gives the reason against the image, or the numbers of the notes on it."""

    def outcome(places, numbers=None, **elements):
        for index, z in enumerate(places):
            picture = np.arange(42, dtype=np.int16).reshape(6, 7) + index
            number = numbers[index] if numbers else index + 1
            common = {"ImagePositionPatient": [0, 0, float(z)], "SliceThickness": "5", "InstanceNumber": number}
            dicom(tmp_path / str(index), picture, **(ct | common | elements))
        (image,) = scan_folder(tmp_path, site="s", salt="salt").images
        return image.reason or [note.number for note in image.notes]

    return outcome


def every(step, count=10):
    return [step * k for k in range(count)]


ODD = [2 * k + 1 for k in range(10)]


@pytest.mark.parametrize(
    ("places", "numbers", "elements"),
    [
        (every(10), ODD, {}),
        (every(10), ODD[::-1], {}),
        (every(10), ODD, MR),
        (every(5), None, {"SliceThickness": "2.5", "SpacingBetweenSlices": "2.5"}),
        (every(5), None, {"SliceThickness": "2.5", "SpacingBetweenSlices": "2.5"} | MR),
        (every(12), None, {"SliceThickness": "5", "SpacingBetweenSlices": "6"} | MR),
        (every(12), ODD, {"SliceThickness": None, "SpacingBetweenSlices": "6"} | MR),
    ],
)
def test_every_second_slice_is_missing(outcome, places, numbers, elements):
    assert outcome(places, numbers, **elements) == "every second slice is missing"


@pytest.mark.parametrize(
    ("places", "numbers", "elements"),
    [
        ([0, 95], [1, 20], {}),
        ([0, 95], [20, 1], {"SliceThickness": None}),
        ([0, 95], [1, 2], {"ImagesInAcquisition": 20}),
        ([0], [1], {"ImagesInAcquisition": 20}),
        ([0, 5], [1, 2], {"ImagesInAcquisition": 20}),
        ([0, 95], [1, 2], {"SpacingBetweenSlices": "5"}),
        (every(15), [3 * k + 1 for k in range(10)], {}),
        (every(5), None, {"NumberOfSlices": 47} | PET),
    ],
)
def test_few_slices_are_left(outcome, places, numbers, elements):
    assert outcome(places, numbers, **elements) == "slices are missing"


@pytest.mark.parametrize(
    ("places", "numbers", "elements", "notes"),
    [
        (every(4), None, {"SliceThickness": "2"} | MR, ["N512"]),
        (every(10), None, {"SliceThickness": "1"}, ["N512"]),
        (every(5), None, {"ImagesInAcquisition": 12}, ["N513"]),
        (every(5), list(range(5, 15)), {}, ["N514"]),
        (every(5), list(range(14, 4, -1)), {}, ["N514"]),
        ([0], [57], {}, ["N515"]),
        ([0], [57], MR, ["N515"]),
        (every(5), ODD, {}, ["N516"]),
        (every(5), [1_000_000_000 * (k % 3) + k for k in range(1, 11)], {}, ["N516"]),
        (every(5), [1, 2, 3, 4, 5, 8, 9, 10, 11, 12], {}, ["N516"]),
    ],
)
def test_what_may_be_right_is_noted(outcome, places, numbers, elements, notes):
    assert outcome(places, numbers, **elements) == notes


@pytest.mark.parametrize(
    ("places", "numbers", "elements"),
    [
        (every(5), None, {}),
        (every(2.5), None, {}),  # reconstructed with an overlap
        (every(2.5), None, {"SpacingBetweenSlices": "2.5"}),
        (every(4), None, {"SliceThickness": "2", "SpacingBetweenSlices": "4"} | MR),
        (every(6), None, {"SliceThickness": "5", "SpacingBetweenSlices": "6"} | MR),
        (every(6), None, {"SliceThickness": "5", "SpacingBetweenSlices": "1"} | MR),  # the gap instead of the distance
        (every(6), None, {"SliceThickness": "4", "SpacingBetweenSlices": "2"} | MR),
        (every(6), None, {"SliceThickness": "5", "SpacingBetweenSlices": "0"} | MR),
        (every(5), [1, 6, 2, 7, 3, 8, 4, 9, 5, 10], {}),
        (every(5), None, {"ImagesInAcquisition": 10}),
        (every(5), None, {"NumberOfSlices": 10} | PET),
        ([0], [1], MR),
        ([0, 5], [1, 2], {}),
    ],
)
def test_whole_stacks_are_read_without_a_word(outcome, places, numbers, elements):
    assert outcome(places, numbers, **elements) == []


def test_numbers_of_the_other_images_of_a_series_are_not_missing(dicom, tmp_path):
    for z in range(10):
        for echo in (1, 2):
            dicom(
                tmp_path / f"{z}-{echo}", np.arange(42, dtype=np.int16).reshape(6, 7) + echo, EchoTime=f"{10 * echo}",
                ImagePositionPatient=[0, 0, 10 * z], SliceThickness="5", InstanceNumber=2 * z + echo,
                ImagesInAcquisition=20,
            )  # fmt: skip
    images = scan_folder(tmp_path, site="s", salt="salt").images
    assert [(image.reason, [note.number for note in image.notes]) for image in images] == [("", ["N512"])] * 2


def test_a_volume_lost_from_a_time_series(dicom, tmp_path):
    for time in (0, 1, 3):
        for z in range(4):
            dicom(
                tmp_path / f"{time}-{z}", np.full((6, 7), time + z, np.int16), AcquisitionNumber=time + 1,
                ImagePositionPatient=[0, 0, z], InstanceNumber=4 * time + z + 1,
            )  # fmt: skip
    (image,) = scan_folder(tmp_path, site="s", salt="salt").images
    assert [note.number for note in image.notes] == ["N516"]
