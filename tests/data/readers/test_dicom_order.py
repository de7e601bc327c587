"""Names, folders and order of files make no difference to what is read."""

import random
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.scan import scan_folder

OBLIQUE = np.array([[-1.4, 0.3, 0.1, 30], [0.3, 1.9, -0.2, 40], [0.05, 0.2, 3.1, -50], [0, 0, 0, 1.0]])
CUBE = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
STRAIGHT = np.diag((-1.0, -1.0, 2.5, 1.0))


@pytest.fixture(scope="module")
def export(stack, dicom, tmp_path_factory):
    """Series of many kinds, all in one folder: a stack, a time series, two echoes, passes, halves, copies, damage."""
    folder = tmp_path_factory.mktemp("export")
    steep = np.eye(4)
    steep[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] @ np.diag((1.4, 1.9, 3.1))
    stack(folder / "1", CUBE, steep, SeriesInstanceUID="1.1", PatientID="A", StudyInstanceUID="2.1")
    frames = np.stack([CUBE, CUBE + 200, CUBE + 400], axis=-1)
    stack(folder / "2", frames, STRAIGHT, SeriesInstanceUID="1.2", PatientID="A", StudyInstanceUID="2.2")
    for echo in (1, 2):
        stack(
            folder / f"3{echo}", CUBE * echo, STRAIGHT, SeriesInstanceUID="1.3", PatientID="ANONYMOUS",
            StudyInstanceUID="2.3", EchoTime=f"{echo * 5}",
        )  # fmt: skip
    for number in (1, 2):
        stack(
            folder / f"4{number}", CUBE + 300 * number, STRAIGHT, SeriesInstanceUID="1.4", PatientID="B ",
            StudyInstanceUID="2.4", AcquisitionNumber=number, Modality="CT",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SeriesDescription="abdomen",
        )  # fmt: skip
    halves = stack(folder / "5", CUBE, STRAIGHT, SeriesInstanceUID="1.5", PatientID="b", StudyInstanceUID="2.5")
    for number, path in enumerate(stack(folder / "6", CUBE, STRAIGHT, SeriesInstanceUID="1.6", PatientID="C")):
        if number == 3:
            path.write_bytes(path.read_bytes()[:-8])
    shutil.copy(halves[0], folder / "copy")
    for z in range(4):
        dicom(
            folder / f"7{z}", np.full((4, 4), z, np.int16), SeriesInstanceUID="1.7", ImagePositionPatient=[0, 0, 3 * z],
            ImageType=["ORIGINAL", "PRIMARY"] + ["X"] * (z % 2), SliceThickness="3", InstanceNumber=4 - z,
            SeriesDescription=f"t{1 + z % 2} tra",
        )  # fmt: skip
    return folder


def moved(export, out, source):
    """The files under other names in other folders, in an order that ``source`` makes."""
    files = [path for path in sorted(export.rglob("*")) if path.is_file()]
    source.shuffle(files)
    for number, path in enumerate(files):
        place = out.joinpath(*[source.choice("abc") for _ in range(source.randrange(4))])
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            path, place / f"{source.choice(['IM', '', 'x.y', 'ä'])}{number}{source.choice(['', '.dcm', '.IMA'])}"
        )
    return out


def contents(folder):
    """Everything that a scan finds, but for the cells."""
    found = scan_folder(folder, site="s", salt="salt")
    images = []
    for image in found.images:
        volume = read_volume(image.where, folder) if not image.reason else None
        pixels = () if volume is None else (volume.values.tobytes(), volume.affine.tobytes(), str(volume.values.dtype))
        facts = image.subject, image.session, image.column, image.reason, image.files, *map(str, image.notes)
        images.append((facts, pixels))
    rows = found.manifest.drop(columns=[name for name in found.manifest if name not in ("site", "subject", "session")])
    return sorted(images), rows.to_numpy().tolist(), sorted(map(str, found.notes))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_names_and_folders_make_no_difference(export, tmp_path_factory, seed):
    out = moved(export, tmp_path_factory.mktemp("moved"), random.Random(seed))  # noqa: S311
    assert contents(out) == contents(export)
    shutil.rmtree(out)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_the_order_of_files_makes_no_difference(export, seed):
    for name in "1257":
        files = sorted(
            path for path in export.rglob("*") if path.is_file() and f"{path.relative_to(export)}"[0] == name
        )
        expected = read_series(files)
        random.Random(seed).shuffle(files)  # noqa: S311
        volume = read_series(files)
        assert np.array_equal(volume.values, expected.values)
        assert np.array_equal(volume.affine, expected.affine)
        assert volume.notes == expected.notes


def test_the_export_holds_what_it_should(export):
    images, rows, _ = contents(export)
    assert sorted(facts[4] for facts, _ in images) == [4, 5, 6, 6, 6, 6, 6, 6, 18]
    assert [facts[3] for facts, _ in images if facts[3]] == ["pixels are truncated"]
    assert len(rows) == 8
