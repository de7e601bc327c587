"""From stored to real values, by headers, functional groups and Philips' own elements."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.scan import scan_folder
from polyclinic.data.readers.volume import UnreadableError

STORED = np.arange(1, 19, dtype=np.uint16).reshape(3, 2, 3)
PLACES = [([0, 0, 3 * z], 1) for z in range(3)]
PHILIPS = {"Manufacturer": "Philips Medical Systems"}


def rejected(*files):
    with pytest.raises(UnreadableError) as raised:
        read_series(files)
    return str(raised.value)


def change(path, edit):
    data = pydicom.dcmread(path)
    edit(data)
    data.save_as(path)
    return path


def give_scale(data, factor, at_least=0x10):
    for block in range(0x10, at_least):  # other programs' blocks come first
        data.add_new(0x20050000 | block, "LO", f"Other {block}")
    block = data.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", factor)
    block.add_new(0x0D, "FL", 0.0)


def give_frame_scales(data, factors, kind="own"):
    for group, factor in zip(data.PerFrameFunctionalGroupsSequence, factors, strict=True):
        item = Dataset()
        give_scale(item, factor)
        if kind == "own":
            group.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
            group.add_new(0x2005140F, "SQ", Sequence([item]))
        elif kind == "block":
            group.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [item])
        else:
            group.UnassignedPerFrameConvertedAttributesSequence = [item]


def give_slopes(data, slope, intercept):
    for group in data.PerFrameFunctionalGroupsSequence:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "normalized"
        group.PixelValueTransformationSequence = [item]


def place_of(z):
    return {"ImagePositionPatient": [0, 0, 3 * z], "SliceThickness": "3", "InstanceNumber": z}


def of_classic(dicom, folder, edit):
    files = []
    for z, stored in enumerate(STORED):
        path = dicom(folder / f"{z}.dcm", stored, **PHILIPS, **place_of(z))
        files.append(change(path, edit))
    return read_series(files)


@pytest.mark.parametrize("kind", ["own", "block", "unassigned"])
@pytest.mark.parametrize(("slope", "intercept"), [("2.5", "0"), ("2.5", "-10"), ("0.5", "3")])
def test_philips_images_are_the_same_as_classic_and_as_enhanced_objects(
    dicom, enhanced, tmp_path, kind, slope, intercept
):
    def classic(data):
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        give_scale(data, 0.02)

    def grouped(data):
        give_slopes(data, slope, intercept)
        give_frame_scales(data, [0.02] * 3, kind)

    one = of_classic(dicom, tmp_path, classic)
    other = read_series([change(enhanced(tmp_path / "e.dcm", STORED, PLACES, **PHILIPS), grouped)])
    expected = (STORED * float(slope) + float(intercept)) / (float(slope) * 0.02)
    np.testing.assert_allclose(one.values, expected.transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(other.values, one.values, rtol=1e-6)
    assert one.notes == other.notes == ()


def test_philips_phases_keep_their_units(enhanced, tmp_path):
    # Magnitude and phase of one object: the phase's two slopes cancel out, so that it stays in milliradians.
    def edit(data):
        give_slopes(data, "1.5345", "-3142")
        give_frame_scales(data, [0.01, 1 / 1.5345, 1 / 1.5345])

    volume = read_series([change(enhanced(tmp_path / "e.dcm", STORED, PLACES, **PHILIPS), edit)])
    np.testing.assert_allclose(volume.values[..., 1:], (STORED * 1.5345 - 3142).transpose(2, 1, 0)[..., 1:], rtol=1e-5)


@pytest.mark.parametrize("at_least", [0x11, 0x14])
def test_philips_elements_are_found_by_their_creator(dicom, tmp_path, at_least):
    volume = of_classic(dicom, tmp_path, lambda data: give_scale(data, 0.5, at_least))
    np.testing.assert_allclose(volume.values, 2 * STORED.transpose(2, 1, 0))


@pytest.mark.parametrize("factor", [None, 0.0, -1.0, np.nan])
def test_philips_images_without_the_scanners_scale_are_noted(dicom, enhanced, tmp_path, factor):
    def classic(data):
        data.RescaleSlope, data.RescaleIntercept = "2", "1"
        if factor is not None:
            give_scale(data, factor)

    def grouped(data):
        give_slopes(data, "2", "1")
        if factor is not None:
            give_frame_scales(data, [factor] * 3)

    (tmp_path / "c").mkdir()
    one = of_classic(dicom, tmp_path / "c", classic)
    other = read_series([change(enhanced(tmp_path / "e" / "e.dcm", STORED, PLACES, **PHILIPS), grouped)])
    for volume in (one, other):
        np.testing.assert_array_equal(volume.values, (2 * STORED + 1).transpose(2, 1, 0))
        assert [note.number for note in volume.notes] == ["N615"]
    # A scan counts them with the same words.
    warnings = scan_folder(tmp_path / "c", salt="s").notes
    assert f"1 image {one.notes[0]}" in warnings


def test_other_vendors_keep_the_scale_of_each_frame(enhanced, tmp_path):
    volume = read_series([enhanced(tmp_path / "s.dcm", STORED, PLACES, slopes="123")])
    np.testing.assert_array_equal(volume.values[0, 0], [1, 14, 39])
    assert volume.notes == ()


def test_parametric_maps_are_in_their_real_unit(enhanced, tmp_path):
    def edit(data):
        mapping = Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.001, 0.5
        data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]

    path = enhanced(tmp_path / "p.dcm", STORED, PLACES, SOPClassUID="1.2.840.10008.5.1.4.1.1.30")
    np.testing.assert_allclose(
        read_series([change(path, edit)]).values, (STORED * 0.001 + 0.5).transpose(2, 1, 0), rtol=1e-6
    )

    def table(data):
        mapping = Dataset()
        mapping.RealWorldValueLUTData = [1.0, 2.0]
        data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]

    assert rejected(change(path, table)) == "real world values are in a table"


def test_maps_of_numbers_with_fractions(enhanced, tmp_path):
    values = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 2, 3)

    def edit(data):
        del data.PixelData
        data.FloatPixelData = values.tobytes()

    path = enhanced(tmp_path / "p.dcm", np.zeros((3, 2, 3), np.uint32), PLACES, BitsStored=32, HighBit=31)
    np.testing.assert_array_equal(read_series([change(path, edit)]).values, values.transpose(2, 1, 0))


@pytest.mark.parametrize("vendor", ["SIEMENS", "GE MEDICAL SYSTEMS", "UIH"])
def test_a_slope_of_zero_and_slopes_that_are_no_numbers(dicom, tmp_path, vendor):
    path = dicom(tmp_path / "a.dcm", STORED[0], Manufacturer=vendor, RescaleSlope="0", RescaleIntercept="5")
    volume = read_series([path])
    np.testing.assert_array_equal(volume.values[..., 0].T, STORED[0] + 5)
    assert [note.number for note in volume.notes] == ["N614"]
    for slope in (b"1,5 ", b"nan ", b"one "):
        raw = dicom(tmp_path / "b.dcm", STORED[0], RescaleSlope="7777", RescaleIntercept="5").read_bytes()
        (tmp_path / "b.dcm").write_bytes(raw.replace(b"7777", slope))
        assert rejected(tmp_path / "b.dcm") == "slope or intercept in the DICOM header is no number"


def test_pet_has_a_slope_for_each_slice(dicom, tmp_path):
    pet = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT", "RescaleIntercept": "0"}
    files = [
        dicom(tmp_path / f"{z}.dcm", STORED[z], **pet, RescaleSlope=f"{0.1 * (z + 1)}", ImagePositionPatient=[0, 0, z])
        for z in range(3)
    ]
    expected = STORED * np.array((0.1, 0.2, 0.3))[:, None, None]
    np.testing.assert_allclose(read_series(files).values, expected.transpose(2, 1, 0), rtol=1e-6)


def test_ct_without_an_intercept_is_noted(dicom, ct, tmp_path):
    assert [
        note.number
        for note in read_series([dicom(tmp_path / "a.dcm", STORED[0], **ct | {"RescaleIntercept": None})]).notes
        if note.number != "N515"
    ] == ["N617"]
    with_unit = dicom(tmp_path / "b.dcm", STORED[0], **ct | {"RescaleIntercept": "-1024"})
    assert [note.number for note in read_series([with_unit]).notes] == ["N515"]  # a single slice


def test_a_table_stands_instead_of_a_slope(dicom, tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 300, 12], "US"
    table.add_new("LUTData", "US", [100, 200, 300, 4000])
    pixels = np.array([[0, 300], [301, 60000]], np.uint16)  # below and beyond the table: its ends
    common = {"Modality": "CR", "ModalityLUTSequence": [table], "RescaleSlope": "7", "RescaleIntercept": "1"}
    values = read_series([dicom(tmp_path / "a.dcm", pixels, **common)]).values
    assert values[..., 0].T.tolist() == [[100, 100], [200, 4000]]
    # Inverted within the table's 12 bits, not the pixels' 16.
    inverted = dicom(tmp_path / "b.dcm", pixels, **common, PhotometricInterpretation="MONOCHROME1")
    assert read_series([inverted]).values[..., 0].T.tolist() == [[3995, 3995], [3895, 95]]


@pytest.mark.parametrize(
    "empty", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence"]
)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_sequence_without_items_takes_no_scale_away(tmp_path, dicom, ct, empty, undefined):
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    path = dicom(tmp_path / "a.dcm", pixels, **ct | {"RescaleSlope": "2", "RescaleIntercept": "-1024", empty: []})
    if undefined:
        data = pydicom.dcmread(path)
        data[empty].is_undefined_length = True
        data.save_as(path)
    assert read_volume("a.dcm", tmp_path).values[..., 0].T.tolist() == (pixels.astype(int) * 2 - 1024).tolist()


def test_an_empty_sequence_in_deflated_files(tmp_path, dicom, ct):
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    path = dicom(tmp_path / "a.dcm", pixels, **ct | {"RescaleIntercept": "-1024", "SharedFunctionalGroupsSequence": []})
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert read_volume("a.dcm", tmp_path).values[..., 0].T.tolist() == (pixels.astype(int) - 1024).tolist()


def test_a_scale_outside_of_the_functional_groups_counts_where_they_have_none(tmp_path, enhanced):
    frames = np.random.default_rng(5).integers(0, 900, (4, 6, 5)).astype(np.uint16)
    places = [([0, 0, 3 * z], 1) for z in range(4)]
    outer = {"RescaleSlope": "2", "RescaleIntercept": "-7"}
    enhanced(tmp_path / "outer.dcm", frames, places, **outer)
    enhanced(tmp_path / "inner.dcm", frames, places, slopes=["3", "4", "5", "6"], **outer)
    expected = frames.transpose(2, 1, 0).astype(int)
    assert np.array_equal(read_volume("outer.dcm", tmp_path).values, expected * 2 - 7)
    assert np.array_equal(read_volume("inner.dcm", tmp_path).values, expected * np.array([3, 4, 5, 6]))
