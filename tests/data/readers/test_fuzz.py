"""Damaged files are refused with a reason; nothing else may happen."""

import nibabel as nib
import numpy as np
import pytest

from polyclinic.data.readers.dicom.read import read_series
from polyclinic.data.readers.nifti.read import nifti_header, read_nifti
from polyclinic.data.readers.scan import scan_folder
from polyclinic.data.readers.volume import UnreadableError

ROUNDS = 150


def damage(content, random):
    """Cut, flipped bits, or a run of bytes replaced; mostly in the header, where it hurts."""
    broken = bytearray(content)
    kind = random.integers(3)
    place = int(random.integers(len(broken) if random.random() < 0.3 else min(len(broken), 1500)))
    if kind == 0:
        return bytes(broken[:place])
    if kind == 1:
        for position in random.integers(0, min(len(broken), 2500), size=random.integers(1, 12)).tolist():
            broken[position] ^= 1 << int(random.integers(8))
        return bytes(broken)
    broken[place : place + 8] = random.bytes(8)
    return bytes(broken)


def try_to_read(reader, path):
    try:
        assert reader(path).affine.shape == (4, 4)
    except UnreadableError as error:
        reason = str(error)
        if not 0 < len(reason) < 120:
            pytest.fail(f"no reason: {reason!r}")


@pytest.fixture
def contents(dicom, enhanced, tmp_path):
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    frames = np.arange(3 * 64, dtype=np.uint16).reshape(3, 8, 8)
    paths = [
        dicom(tmp_path / "source/a.dcm", pixels),
        enhanced(tmp_path / "source/b.dcm", frames, [([0, 0, z], 1) for z in range(3)]),
    ]
    return [path.read_bytes() for path in paths]


def test_damaged_dicom(contents, tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "x.dcm"
    for content in contents:
        for _ in range(ROUNDS):
            path.write_bytes(damage(content, random))
            try_to_read(lambda path: read_series([path]), path)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "examples_palette", "image_dfl"]
)
def test_damaged_compressed_dicom(data_folder, tmp_path, name):
    random, path = np.random.default_rng(1), tmp_path / "x.dcm"
    content = (data_folder / f"dicom/odd/{name}.dcm").read_bytes()
    for _ in range(20):
        path.write_bytes(damage(content, random))
        try_to_read(lambda path: read_series([path]), path)


def test_damaged_mosaics(data_folder, tmp_path):
    random, path = np.random.default_rng(2), tmp_path / "x.dcm"
    for name in ("siemens-mr-mosaic/epi_pe_ap-00001.dcm", "uih-mr-dti/00000001.dcm"):
        content = bytearray((data_folder / "dicom" / name).read_bytes())
        for _ in range(20):
            broken = bytearray(content)
            for position in random.integers(0, 20_000, size=200).tolist():
                broken[position] ^= 1 << int(random.integers(8))
            path.write_bytes(broken)
            try_to_read(lambda path: read_series([path]), path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_damaged_nifti(tmp_path, name):
    random, path = np.random.default_rng(3), tmp_path / name
    nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), path)
    content = path.read_bytes()
    for _ in range(ROUNDS):
        path.write_bytes(damage(content, random))
        try_to_read(read_nifti, path)
        try_to_read(nifti_header, path)


def test_threads_may_be_quiet_together():
    import logging
    import warnings
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    from polyclinic.data.readers.dicom.elements import quiet

    def work(number):
        with quiet:
            sleep(0.001 * (number % 5))
            warnings.warn("quotes a header", stacklevel=1)
            logging.getLogger("pydicom").warning("quotes a header")

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert list(warnings.filters) == before
    assert not logging.getLogger("pydicom").disabled


def test_scan_of_a_damaged_export(contents, tmp_path):
    random, folder = np.random.default_rng(4), tmp_path / "export"
    folder.mkdir()
    for number in range(60):
        content = contents[number % 2]
        (folder / f"{number}.dcm").write_bytes(content if number < 2 else damage(content, random))
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), folder / "s1_t1.nii.gz")
    packed = (folder / "s1_t1.nii.gz").read_bytes()
    for number in range(10):
        (folder / f"s{number + 2}_t1.nii.gz").write_bytes(damage(packed, random))
    scan = scan_folder(folder, salt="salt")
    assert scan.files == 71
    counts = scan.counts()["export"]
    assert counts.found == counts.used + counts.rejected.total()
    assert counts.rejected
    assert "s1_t1.nii.gz" in set(scan.manifest.to_numpy().flatten())
