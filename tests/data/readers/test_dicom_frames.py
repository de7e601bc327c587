"""Frames of one file: slices where functional groups give them places, whatever kind of object it is."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.scan import scan_folder
from polyclinic.data.readers.volume import UnreadableError

FRAMES = np.arange(6 * 10 * 12, dtype=np.uint16).reshape(6, 10, 12)
PLACES = [([0, 0, 3 * z], 1) for z in range(6)]
KINDS = {
    "optical coherence tomography": ("1.2.840.10008.5.1.4.1.1.77.1.5.4", "OPT"),
    "tomosynthesis": ("1.2.840.10008.5.1.4.1.1.13.1.3", "MG"),
    "3D angiography": ("1.2.840.10008.5.1.4.1.1.13.1.1", "XA"),
    "cone beam": ("1.2.840.10008.5.1.4.1.1.13.1.2", "DX"),
    "PET": ("1.2.840.10008.5.1.4.1.1.130", "PT"),
    "a kind of later years": ("1.2.840.10008.5.1.4.1.1.999.1", "OT"),
}


def rejected(path):
    with pytest.raises(UnreadableError) as raised:
        read_series([path])
    return str(raised.value)


def change(path, edit):
    data = pydicom.dcmread(path)
    edit(data)
    data.save_as(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"])
def test_functional_groups_are_read_wherever_they_are(enhanced, tmp_path, kind, defined, syntax):
    sop, modality = KINDS[kind]

    def edit(data):
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            data[name].is_undefined_length = not defined
        data.file_meta.TransferSyntaxUID = syntax

    path = change(enhanced(tmp_path / "a.dcm", FRAMES, PLACES, SOPClassUID=sop, Modality=modality), edit)
    volume = read_series([path])
    np.testing.assert_array_equal(volume.values, FRAMES.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.spacing, (1.5, 2, 3))
    assert scan_folder(tmp_path, salt="s").counts()[tmp_path.name].used == 1


@pytest.mark.parametrize("sop", [KINDS["tomosynthesis"][0], KINDS["optical coherence tomography"][0]])
def test_volumes_without_places_are_refused(enhanced, tmp_path, sop):
    def edit(data):
        for group in data.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    path = change(enhanced(tmp_path / "a.dcm", FRAMES, PLACES, SOPClassUID=sop), edit)
    assert rejected(path) == "positions of the frames are missing from the functional groups"


def test_some_frames_without_a_place_are_refused_in_every_kind(enhanced, tmp_path):
    def edit(data):
        del data.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence

    path = enhanced(tmp_path / "a.dcm", FRAMES, PLACES, SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1.1", Modality="XA")
    assert rejected(change(path, edit)) == "positions of the frames are missing from the functional groups"


def test_films_with_functional_groups_stay_films(enhanced, tmp_path):
    def edit(data):
        for group in data.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    path = enhanced(tmp_path / "a.dcm", FRAMES, PLACES, SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1.1", Modality="XA")
    volume = read_series([change(path, edit)])
    assert volume.values.shape == (12, 10, 1, 6)
    np.testing.assert_allclose(volume.spacing[:2], (1.5, 2))


def test_a_single_frame_with_its_place_at_the_top(dicom, tmp_path):
    path = dicom(tmp_path / "a.dcm", FRAMES[0], PixelSpacing=[2, 1.5], ImagePositionPatient=[1, 2, 3])

    def edit(data):
        data.SharedFunctionalGroupsSequence = [Dataset()]

    volume = read_series([change(path, edit)])
    np.testing.assert_allclose(volume.spacing[:2], (1.5, 2))
    np.testing.assert_allclose(volume.affine[:3, 3], (-1, -2, 3))


def test_ultrasound_volumes_have_the_place_of_the_device(enhanced, tmp_path):
    def edit(data):
        shared = data.SharedFunctionalGroupsSequence[0]
        shared.PlaneOrientationVolumeSequence = [Dataset()]
        shared.PlaneOrientationVolumeSequence[0].ImageOrientationVolume = [1, 0, 0, 0, 1, 0]
        del shared.PlaneOrientationSequence
        for z, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            group.PlanePositionVolumeSequence = [Dataset()]
            group.PlanePositionVolumeSequence[0].ImagePositionVolume = [0, 0, 0.7 * z]
            del group.PlanePositionSequence

    path = enhanced(tmp_path / "a.dcm", FRAMES, PLACES, SOPClassUID="1.2.840.10008.5.1.4.1.1.6.2", Modality="US")
    volume = read_series([change(path, edit)])
    np.testing.assert_allclose(volume.spacing, (1.5, 2, 0.7))
    assert [note.number for note in volume.notes] == ["N621"]


@pytest.mark.parametrize("modality", ["CT", "MR", "NM", "PT"])
def test_frames_of_volumes_without_functional_groups_are_refused(dicom, tmp_path, modality):
    assert "positions of their own" in rejected(dicom(tmp_path / "a.dcm", FRAMES, Modality=modality))


def test_tiles_of_slides_are_no_slices(dicom, tmp_path):
    slide = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6", "Modality": "SM", "ImagePositionPatient": None}
    tiles = np.zeros((4, 8, 8, 3), np.uint8)
    assert rejected(dicom(tmp_path / "a.dcm", tiles, **slide)) == "frames are tiles of a slide"
    grouped = change(
        dicom(tmp_path / "c.dcm", tiles, **slide),
        lambda data: setattr(data, "PerFrameFunctionalGroupsSequence", [Dataset() for _ in tiles]),
    )
    assert rejected(grouped) == "frames are tiles of a slide"
    assert read_series([dicom(tmp_path / "b.dcm", tiles[0], **slide)]).values.shape == (8, 8, 1, 3)


def region(delta, units=3, form=1):
    item = Dataset()
    item.RegionSpatialFormat = form
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta
    return item


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([region((0.02, 0.03))], (0.2, 0.3)),
        ([region((0.02, -0.03))], (0.2, 0.3)),
        ([region((0.02, 0.03)), region((0.02, 0.03))], (0.2, 0.3)),
        ([region((0.02, 0.03)), region((0.5, 0.5), units=4, form=2)], (0.2, 0.3)),  # M mode below the picture
        ([region((0.02, 0.03)), region((0.01, 0.01))], None),
        ([region((0.02, 0.03), units=0)], None),
        ([region((0.0, 0.03))], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("modality", ["US", "IVUS"])
def test_the_size_of_ultrasound_pixels(dicom, tmp_path, regions, expected, modality):
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    path = dicom(tmp_path / "a.dcm", FRAMES.astype(np.uint8), Modality=modality, **nowhere)
    if regions:
        change(path, lambda data: setattr(data, "SequenceOfUltrasoundRegions", regions))
    volume = read_series([path])
    np.testing.assert_allclose(volume.spacing[:2], expected or (1, 1))
    assert [note.number for note in volume.notes] == ([] if expected else ["N620"])


def test_the_size_of_scanned_films(dicom, tmp_path):
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None, "Modality": "CR"}
    path = dicom(tmp_path / "a.dcm", FRAMES[0], **nowhere, NominalScannedPixelSpacing=[0.2, 0.1])
    np.testing.assert_allclose(read_series([path]).spacing[:2], (0.1, 0.2))
    without = dicom(tmp_path / "b.dcm", FRAMES[0], **nowhere)
    assert [note.number for note in read_series([without]).notes] == ["N620"]


@pytest.mark.parametrize("end", ["13.1.1", "13.1.2", "13.1.3", "77.1.5.4"])
def test_volumes_without_any_functional_groups_are_no_films(tmp_path, dicom, end):
    elements = {"SOPClassUID": f"1.2.840.10008.5.1.4.1.1.{end}", "Modality": "OT"}
    dicom(tmp_path / "a.dcm", np.arange(60, dtype=np.uint16).reshape(3, 4, 5), **elements)
    assert rejected(tmp_path / "a.dcm") == "frames have no positions of their own"
    dicom(
        tmp_path / "b.dcm", np.arange(20, dtype=np.uint16).reshape(4, 5), **elements
    )  # a single picture has one place
    assert read_series([tmp_path / "b.dcm"]).values.shape == (5, 4, 1)
