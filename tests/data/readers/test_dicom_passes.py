"""Several passes over the patient in one series."""

import numpy as np
import pytest

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.scan import scan_folder
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.volumes.preprocessing import single_frame

TEN = np.arange(0, 50, 5)
PLACES = {
    "half a slice apart": TEN + 2.5,
    "a little apart": TEN + 0.7,
    "overlapping": TEN + 40,
    "the same": TEN,
    "one after the other": TEN + 50,
}
TIMES = {
    "acquisition numbers": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "temporal positions": ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    "trigger times": ({"TriggerTime": "0"}, {"TriggerTime": "400"}),
    "acquisition times": ({"AcquisitionTime": "095950.5"}, {"AcquisitionTime": "100110"}),
    "times over midnight": ({"AcquisitionTime": "235950.5"}, {"AcquisitionTime": "000110"}),
    "content times": ({"ContentTime": "095950.5"}, {"ContentTime": "100110"}),
    "instance numbers": ({}, {}),
}


@pytest.fixture
def write(dicom, ct):
    """Writes a pass whose pixels have about the value given; instance numbers go on from those in the folder."""

    def write(folder, places, value, **elements):
        start = len(list(folder.glob("*"))) if folder.exists() else 0
        for number, z in enumerate(places, start=start + 1):
            picture = np.full((6, 7), value, np.int16)
            picture[0] += np.arange(7, dtype=np.int16) + number % 5
            common = {"ImagePositionPatient": [0, 0, float(z)], "SliceThickness": "5", "InstanceNumber": number}
            dicom(folder / f"{number:03}", picture, **(ct | common | {"ImageType": ["ORIGINAL", "PRIMARY"]} | elements))
        return folder

    return write


MR = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}


PET = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT"}


def scanned(folder):
    found = scan_folder(folder, site="s", salt="salt")
    volumes = [read_volume(image.where, folder) for image in found.images if not image.reason]
    return volumes, [image.reason for image in found.images if image.reason], found


def values_of(volumes):
    """The value of each volume; fails where one mixes two."""
    for volume in volumes:
        assert np.ptp(volume.values[1, 1:, :]) == 0
    return sorted(int(volume.values[1, 1, 0]) for volume in volumes)


@pytest.mark.parametrize("kind", ["CT", "MR"])
@pytest.mark.parametrize("told", TIMES)
@pytest.mark.parametrize("place", PLACES)
def test_passes_are_never_mixed_in_one_stack(write, tmp_path, place, told, kind):
    one, other = TIMES[told]
    more = MR if kind == "MR" else {}
    write(tmp_path, TEN, 40, **one, **more)
    write(tmp_path, PLACES[place], 150, **other, **more)
    volumes, reasons, found = scanned(tmp_path)
    assert not reasons
    numbers = {note.number for image in found.images for note in image.notes}
    if len(volumes) == 2:
        assert values_of(volumes) == [40, 150]
        assert {volume.spacing[2] for volume in volumes} == {5.0}
        assert numbers == {"N511"}
    elif place == "one after the other":
        # One stack, or two, where that is all that is told; with numbers or times a person hears of it.
        assert volumes[0].values.shape == (7, 6, 20)
        assert numbers or told == "instance numbers" or (kind == "MR" and "times" in told)
    else:
        assert place == "the same"
        assert [np.unique(volumes[0].values[1, 1:, :, time]).tolist() for time in (0, 1)] == [[40], [150]]
        assert volumes[0].frames in ("time points", "trigger times")
        with pytest.raises(UnreadableError, match=rf"^image has several frames \({volumes[0].frames}\)$"):
            single_frame(volumes[0], "reject")


def test_two_phases_of_ct_are_two_images_at_every_place(write, tmp_path):
    for place in PLACES:
        write(tmp_path / place, TEN, 40, AcquisitionNumber=1, SeriesInstanceUID="1.5")
        write(tmp_path / place, PLACES[place], 150, AcquisitionNumber=2, SeriesInstanceUID="1.5")
        assert values_of(scanned(tmp_path / place)[0]) == [40, 150]


def test_a_folder_with_two_passes_is_refused_by_their_name(write, tmp_path):
    write(tmp_path, TEN, 40, AcquisitionNumber=1)
    write(tmp_path, TEN + 2.5, 150, AcquisitionNumber=2)
    with pytest.raises(
        UnreadableError, match="files hold 2 DICOM images \\(several passes over the patient\\), not one"
    ):
        read_series(tmp_path.glob("*"))


def test_arterial_and_venous_slices_with_numbers_in_turns(write, tmp_path):
    for number, z in enumerate(TEN):
        write(tmp_path, [z], 40, AcquisitionNumber=1, InstanceNumber=2 * number + 1)
        write(tmp_path, [z + 2.5], 150, AcquisitionNumber=2, InstanceNumber=2 * number + 2)
    assert values_of(scanned(tmp_path)[0]) == [40, 150]


def test_a_second_pass_backwards(write, tmp_path):
    write(tmp_path, TEN, 40)
    write(tmp_path, TEN[::-1] + 2.5, 150)
    assert values_of(scanned(tmp_path)[0]) == [40, 150]


def test_three_passes(write, tmp_path):
    for number in range(3):
        write(tmp_path, TEN + 5 / 3 * number, 100 * number, AcquisitionNumber=number)
    assert values_of(scanned(tmp_path)[0]) == [0, 100, 200]


def test_a_shorter_second_phase(write, tmp_path):
    write(tmp_path, TEN, 40, AcquisitionNumber=1)
    write(tmp_path, TEN[2:7], 150, AcquisitionNumber=2)
    assert values_of(scanned(tmp_path)[0]) == [40, 150]


def test_numbers_that_begin_anew_tell_nothing(write, tmp_path):
    write(tmp_path, TEN, 40)
    for path in write(tmp_path / "again", TEN + 2.5, 150).glob("*"):
        path.rename(tmp_path / f"again-{path.name}")
    _, reasons, _ = scanned(tmp_path)
    assert reasons == ["instance numbers repeat: slices of several passes may take turns"]


@pytest.mark.parametrize(
    ("elements", "change"),
    [
        # A scanner with four rows of detectors; one with two; each slice its own; old scanners pause between breaths.
        ({}, lambda k: {"AcquisitionNumber": k // 4 + 1}),
        ({}, lambda k: {"AcquisitionNumber": k // 2 + 1}),
        ({}, lambda k: {"AcquisitionNumber": k + 1}),
        ({}, lambda k: {"AcquisitionTime": f"1000{20 * (k // 8):02}"}),
        ({}, lambda k: {"AcquisitionNumber": k // 8 + 1, "AcquisitionTime": f"1000{2 * (k // 8):02}"}),
        # Interleaved MR: every second slice belongs to the second half of the time.
        (MR, lambda k: {"AcquisitionNumber": 1 + k % 2}),
        (MR, lambda k: {"AcquisitionTime": f"10{5 * (k % 2):02}00"}),
        (MR, lambda k: {"InstanceNumber": k // 2 + 1 + 8 * (k % 2)}),
        (MR | {"SpacingBetweenSlices": "5", "SliceThickness": "10"}, lambda k: {"AcquisitionNumber": 1 + k % 2}),
        # Bed positions of PET.
        (PET, lambda k: {"AcquisitionTime": f"10{k // 8}000"}),
        # A reconstruction with slices that overlap.
        ({"SliceThickness": "10"}, lambda k: {}),
        ({"SliceThickness": "10", "SpacingBetweenSlices": "5"}, lambda k: {"AcquisitionTime": f"1000{k:02}"}),
    ],
)  # fmt: skip
def test_one_scan_in_steps_is_one_image_without_a_word(write, tmp_path, elements, change):
    for k in range(16):
        write(tmp_path, [5 * k], 10 * k, **(elements | change(k)))
    (volume,), reasons, found = scanned(tmp_path)
    assert not reasons
    assert volume.values[1, 1].tolist() == list(range(0, 160, 10))
    assert [note.number for image in found.images for note in image.notes] == []


def test_a_slice_lost_between_two_rotations(write, tmp_path):
    for k in range(16):
        if k != 8:
            write(tmp_path, [5 * k], 10 * k, AcquisitionNumber=k // 4 + 1, InstanceNumber=k + 1)
    assert scanned(tmp_path)[1] == ["slices are missing"]


def test_time_series_stay_one_image(write, tmp_path):
    for time in range(6):
        write(tmp_path / "ct", TEN, 10 * time, AcquisitionNumber=time + 1)
        write(tmp_path / "mr", TEN, 10 * time, AcquisitionNumber=time + 1, SeriesInstanceUID="1.7", **MR)
    for volume in scanned(tmp_path)[0]:
        assert volume.values[1, 1].tolist() == [[0, 10, 20, 30, 40, 50]] * 10
        assert volume.frames == "time points"


def test_each_pass_numbered_from_one_and_the_second_backwards(write, tmp_path):
    # Numbers alone would put slice 1 of the one pass beside slice 10 of the other.
    write(tmp_path / "a", TEN, 40, AcquisitionNumber=2, **MR)
    write(tmp_path / "b", TEN[::-1], 150, AcquisitionNumber=1, **MR)
    (volume,), _, _ = scanned(tmp_path)
    assert volume.values[1, 1].tolist() == [[150, 40]] * 10


def test_frames_that_nothing_tells_apart(write, tmp_path):
    write(tmp_path / "a", TEN, 40, **MR)
    write(tmp_path / "b", TEN[::-1], 150, **MR)
    reason = "several slices lie at the same places, and nothing tells which belong together"
    assert scanned(tmp_path)[1] == [reason]


def test_diffusion_weightings_are_frames_in_their_order(write, tmp_path):
    for value in (1000, 0, 500):
        write(tmp_path, TEN, value, DiffusionBValue=float(value), **MR)
    (volume,), _, _ = scanned(tmp_path)
    assert volume.values[1, 1].tolist() == [[0, 500, 1000]] * 10
    assert volume.frames == "diffusion weightings"


@pytest.mark.parametrize("places", [TEN + 2.5, TEN + 50, TEN + 5])
def test_diffusion_weightings_are_never_one_stack(write, tmp_path, places):
    write(tmp_path, TEN * 2, 0, DiffusionBValue=0.0, SliceThickness="5", **MR)
    write(tmp_path, places * 2, 1000, DiffusionBValue=1000.0, SliceThickness="5", **MR)
    assert values_of(scanned(tmp_path)[0]) == [0, 1000]


def vendor_b_value(data, vendor, value):
    group, creator, element, kind, number = {
        "Siemens": (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", value),
        "GE": (0x0043, "GEMS_PARM_01", 0x39, "IS", [1_000_000_000 + value, 8, 0, 0]),
        "Philips": (0x2001, "Philips Imaging DD 001", 0x03, "FL", float(value)),
        "United Imaging": (0x0065, "Image Private Header", 0x09, "FD", float(value)),
    }[vendor]
    data.private_block(group, creator, create=True).add_new(element, kind, number)


@pytest.mark.parametrize("vendor", ["Siemens", "GE", "Philips", "United Imaging"])
def test_diffusion_weightings_of_vendors(write, tmp_path, vendor):
    import pydicom

    for value in (700, 0):
        for path in write(tmp_path / str(value), TEN, value, SeriesInstanceUID="1.8", **MR).glob("*"):
            data = pydicom.dcmread(path)
            data.InstanceNumber += 0 if value else 10
            vendor_b_value(data, vendor, value)
            data.save_as(path)
    (volume,), _, _ = scanned(tmp_path)
    assert volume.values[1, 1].tolist() == [[0, 700]] * 10
    assert volume.frames == "diffusion weightings"


def test_frames_of_an_enhanced_object_by_kind(enhanced, tmp_path):
    import pydicom

    frames = np.repeat(np.arange(6, dtype=np.uint16), 6).reshape(6, 2, 3)
    path = enhanced(tmp_path / "a.dcm", frames, [([0, 0, 3 * (k % 3)], 1) for k in range(6)])
    data = pydicom.dcmread(path)
    for k, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        kind = pydicom.Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "M" if k < 3 else "P", "NONE"]
        group.MRImageFrameTypeSequence = [kind]
    data.save_as(path)
    volumes, _, _ = scanned(tmp_path)
    assert sorted(volume.values[0, 0].tolist() for volume in volumes) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("first", [TEN, TEN + 200])
def test_a_pass_keeps_its_name_when_another_one_is_added(tmp_path, stack, ct, first):
    """And a name that meant all of them is refused."""

    def add(number, bottom):
        affine = np.diag((-1.0, -1.0, 5.0, 1.0))
        affine[2, 3] = bottom
        values = np.full((6, 5, 10), 100 * number, np.int16) + np.arange(10, dtype=np.int16)
        elements = ct | {"AcquisitionNumber": number, "AcquisitionTime": f"10{number:02d}00", "SliceThickness": "5"}
        stack(tmp_path / "all" / f"pass{number}", values, affine, **elements)

    def cells():
        where = scan_folder(tmp_path, site="s", salt="salt").manifest["image"]
        return {where: int(read_volume(where, tmp_path).values.min()) for where in where}

    add(2, float(first[0]))
    stack(tmp_path / "all" / "other", np.ones((6, 5, 4), np.int16), np.eye(4), **ct | {"SeriesInstanceUID": "1.9"})
    add(3, float(first[0]) + 2.5)
    two = cells()
    assert sorted(two.values()) == [1, 200, 300]
    add(1, 100.0 - 2.5)
    three = cells()
    for where, value in two.items():
        assert int(read_volume(where, tmp_path).values.min()) == value
    assert sorted(three.values()) == [1, 100, 200, 300]
