"""fastMRI: HDF5 files with headers of scanners, several volumes a patient, and a test part without images."""

import numpy as np
import pytest
from PIL import Image

from polyclinic.data.catalogue.fastmri import read_scanner

h5py = pytest.importorskip("h5py")

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>{model}</systemModel>
<systemFieldStrength_T>{field}</systemFieldStrength_T></acquisitionSystemInformation></ismrmrdHeader>"""


def scan(tree, name, seed, patient, acquisition="CORPD_FBK", model="Skyra", field="2.8936", image=True):
    path = tree.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.abs(np.random.default_rng(seed).standard_normal((8, 32, 32))).astype(np.float32) * 1e-4
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros((8, 2, 4, 4), dtype=np.complex64)
        file["ismrmrd_header"] = HEADER.format(model=model, field=field).encode()
        if image:
            file["reconstruction_rss"] = volume
        file.attrs["acquisition"] = acquisition
        if patient:
            file.attrs["patient_id"] = patient
    return volume


@pytest.fixture
def fastmri(tree):
    """Six patients at each of two scanners; the first has two volumes."""
    for number in range(12):
        model, field = (("Skyra", "2.8936"), ("Aera", "1.494"))[number // 6]
        kind = ("CORPD_FBK", "CORPDFS_FBK")[number % 2]
        scan(tree, f"multicoil_train/file{1000000 + number}.h5", number, f"p{number}", kind, model, field)
    scan(tree, "multicoil_val/file2000000.h5", 50, "p0")
    scan(tree, "multicoil_val/file2000001.h5", 51, "")
    scan(tree, "multicoil_test/file3000000.h5", 52, "p99", image=False)
    tree.text("multicoil_train/file9.h5", "no HDF5")
    return tree


def test_slices(fastmri, prepared):
    result = prepared("fastmri", label="acquisition")
    assert result.sites == {"Aera 1.5 T": 24, "Skyra 3 T": 32}
    assert result.reasons == {"no reconstructed image (test set)": 1, "file is damaged": 1}
    assert result.prepared.subjects == {"Aera 1.5 T": 6, "Skyra 3 T": 7}
    assert len(result.manifest) == 14 * 4
    assert sorted(result.manifest["subject"].value_counts()) == [4] * 12 + [8]  # p0 has two volumes
    assert set(result.manifest["split"]) == {"train", "validation"}
    volume = np.abs(np.random.default_rng(3).standard_normal((8, 32, 32))).astype(np.float32) * 1e-4
    pixels = np.asarray(Image.open(result.out / "images/multicoil_train_file1000003_002.png"))
    assert np.abs(pixels / 255 - volume[2] / volume.max()).max() <= 0.5 / 255 + 1e-6
    assert result.check() == [56, 56, 0]
    assert prepared("fastmri", label="acquisition", out="field", sites_by="field").sites == {"1.5 T": 24, "3 T": 32}


def test_names_that_come_again(tree, prepared):
    """A knee from one coil and from several is one volume; a brain with the name of a knee is another patient's."""
    for number in range(3):
        scan(tree, f"singlecoil_train/file100000{number}.h5", number, f"p{number}" if number else "")
        scan(tree, f"multicoil_train/file100000{number}.h5", 50 + number, f"p{number}" if number else "")
    brain = scan(tree, "train/file1000001.H5", 99, "q", acquisition="AXT2")
    result = prepared("fastmri")
    assert result.reasons == {"the same volume in another folder (from one coil and from several)": 12}
    assert sorted(result.manifest["subject"].value_counts()) == [4] * 4
    image = result.manifest.query("acquisition == 'AXT2'")["image"].iloc[0]
    pixels = np.asarray(Image.open(result.out / image))
    assert np.abs(pixels / 255 - brain[2] / brain.max()).max() <= 0.5 / 255 + 1e-6


def test_reconstruction(fastmri, prepared):
    result = prepared("fastmri")
    assert (result.study["task"], result.study["data"]["undersampling"]["acceleration"]) == ("reconstruction", 4)
    assert "label" not in result.study["data"]
    assert result.check() == [56, 56, 0]


def test_headers_of_scanners():
    header = HEADER.format(model="Prisma_fit", field="2.8936").encode()
    assert read_scanner(header) == ("Prisma_fit", "3 T")
    assert read_scanner(header.replace(b"2.8936", b"")) == ("Prisma_fit", "")
    assert read_scanner(b'<!DOCTYPE a [<!ENTITY b "b">]>' + header) == ("", "")
    assert read_scanner(b"broken") == ("", "")
