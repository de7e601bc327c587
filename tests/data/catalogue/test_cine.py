"""Cine MRI: frames of ED and ES, on small trees of the layouts in which ACDC and M&Ms are published."""

import nibabel
import numpy as np
import pytest

from polyclinic.errors import DataError

SHAPE = (40, 36, 8)


def heart(tree, name, frames=None, outlined=None, mask=False):
    """A noisy volume, or a mask with three structures at the frames that are ``outlined``."""
    rng = np.random.default_rng(sum(map(ord, name)))
    shape = SHAPE if frames is None else (*SHAPE, frames)
    voxels = np.zeros(shape, dtype=np.int16) if mask else rng.integers(0, 500, shape).astype(np.int16)
    if mask:
        for at in [...] if frames is None else [(..., frame) for frame in outlined]:
            voxels[at][12:28, 12:28, 2:6] = 2
            voxels[at][16:24, 16:24, 2:6] = 3
            voxels[at][6:12, 12:28, 2:6] = 1
    image = nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 8, 1]))
    path = tree.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return voxels


@pytest.fixture
def acdc(tree):
    """Six patients; one without Info.cfg, one without the outline of ES, one for testing."""
    for number, group in enumerate(("DCM", "NOR", "DCM", "NOR", "HCM", "NOR"), 1):
        patient = f"patient{number:03}" if number < 6 else "patient101"
        folder = f"database/{'training' if number < 6 else 'testing'}/{patient}"
        end = 9 + number
        if number != 4:
            tree.text(f"{folder}/Info.cfg", f"ED: 1\nES: {end}\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\n")
        tree.touch(f"{folder}/{patient}_4d.nii.gz")
        for frame in (1, end):
            heart(tree, f"{folder}/{patient}_frame{frame:02}.nii.gz")
            if (number, frame) != (5, end):
                heart(tree, f"{folder}/{patient}_frame{frame:02}_gt.nii.gz", mask=True)
    return tree


def test_acdc(acdc, prepared):
    result = prepared("acdc")
    assert result.reasons == {"Info.cfg is missing": 2, "mask is missing": 1}
    assert result.sites == {"Dijon": 9}
    assert result.prepared.subjects == {"Dijon": 5}
    assert result.manifest["phase"].value_counts().to_dict() == {"ED": 5, "ES": 4}
    assert result.manifest.query("split == 'test'")["subject"].nunique() == 1
    assert [path.name for path in result.files("mask")][:2] == [
        "patient101_frame01_gt.nii.gz", "patient101_frame15_gt.nii.gz",
    ]  # fmt: skip
    assert result.study["data"]["mask_classes"] == {"right_ventricle": 1, "myocardium": 2, "left_ventricle": 3}
    assert result.check() == [9, 9, 0]


def test_acdc_diagnoses(acdc, prepared):
    result = prepared("acdc", label="group", positive=("DCM",), against=("NOR",))
    assert result.study["data"]["image"] == ["ed", "es"]
    assert result.prepared.classes == {"Dijon": {"DCM": 2, "NOR": 2}}
    assert result.check() == [4, 4, 0]
    with pytest.raises(DataError, match="P206 4 subjects can't be spread over 2"):
        prepared("acdc", out="two", label="group", positive=("DCM",), against=("NOR",), sites_by="quantity", sites=2)


@pytest.fixture
def mms(tree):
    """Two patients of each of three centres, one of them by two vendors; vendor C is not outlined."""
    subjects = {"A0S9V9": ("A", 1, 0, 3), "A1D0Q7": ("A", 1, 1, 2), "A2E3W4": ("B", 2, 0, 2), "A5C2D2": ("B", 2, 0, 3),
                "A4R4T0": ("C", 4, 0, 2), "A6B7Y4": ("C", 4, 0, 3), "A9X9X9": ("D", 5, 0, 9)}  # fmt: skip
    rows = []
    for number, (code, (vendor, centre, end_diastole, end_systole)) in enumerate(subjects.items()):
        rows.append(f"{number},{code},Maker,{vendor},{centre},{end_diastole},{end_systole},HCM,{40 + number},F")
        part = "Training/Unlabeled" if code == "A4R4T0" else ("Training/Labeled", "Validation", "Testing")[number % 3]
        heart(tree, f"OpenDataset/{part}/{code}/{code}_sa.nii.gz", frames=4)
        outlined = [] if vendor == "C" else [end_diastole, min(end_systole, 3)]
        heart(tree, f"OpenDataset/{part}/{code}/{code}_sa_gt.nii.gz", frames=4, outlined=outlined, mask=True)
    rows.append("7,B0B0B0,Maker,A,1,0,1,NOR,20,M")
    header = ",External code,VendorName,Vendor,Centre,ED,ES,Pathology,Age,Sex"
    tree.table("OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv", header, *rows)
    return tree


def test_mms_by_centre_and_vendor(mms, prepared):
    result = prepared("mms")
    assert result.sites == {"centre-1": 4, "centre-2": 4, "centre-5": 1}
    assert result.reasons == {
        "not outlined (Training/Unlabeled)": 2, "nothing is outlined at the frame that the table tells": 2,
        "frame is missing, or the file is damaged": 1, "mask is missing": 2,
    }  # fmt: skip
    row = result.manifest.query("phase == 'ES' and age == '40'").iloc[0]
    source = nibabel.load(mms.folder / "OpenDataset/Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz")
    written = nibabel.load(result.out / row["image"])
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj)[..., 3])
    assert np.array_equal(written.affine, source.affine)
    assert (row["vendor"], row["split"]) == ("Siemens", "train")
    assert result.check() == [9, 9, 0]
    again = prepared("mms")
    assert again.manifest.equals(result.manifest)
    assert prepared("mms", out="vendor", sites_by="vendor").sites == {"vendor-A": 4, "vendor-B": 4, "vendor-D": 1}


def test_mms_with_another_version_of_the_table(mms, prepared):
    """A frame that was wrong is taken anew; a row that stands twice counts once, and not if its frames differ."""
    first = prepared("mms").manifest.query("age == '40' and phase == 'ES'").iloc[0]
    path = next((mms.folder / "OpenDataset").glob("*.csv"))
    table = path.read_text(encoding="utf-8").replace("A0S9V9,Maker,A,1,0,3", "A0S9V9,Maker,A,1,3,0")
    path.write_text(table + "9,A0S9V9,Maker,A,1,3,0,HCM,40,F\n10,A1D0Q7,Maker,A,1,1,3,HCM,41,F\n", encoding="utf-8")
    result = prepared("mms")
    later = result.manifest.query("age == '40' and phase == 'ES'").iloc[0]
    read = [np.asarray(nibabel.load(result.out / row["image"]).dataobj) for row in (first, later)]
    source = nibabel.load(mms.folder / "OpenDataset/Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz")
    assert np.array_equal(read[1], np.asarray(source.dataobj)[..., 0])
    assert not np.array_equal(*read)
    assert result.reasons["a second row of the same phase"] == 3
    assert result.reasons["rows of one phase contradict each other"] == 2
