"""RSNA's haemorrhages: a row an image and finding, patients in the headers."""

import numpy as np
import pytest
from pydicom.uid import CTImageStorage

from dicom_files import write_dicom

KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


@pytest.fixture
def haemorrhage(tree):
    """24 slices of 12 patients, every third of which bleeds; as the download has it, with its faults."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        name, bleeds = f"ID_{number:09x}", int(number % 3 == 0)
        rows += [f"{name}_{kind},{bleeds if kind in ('subdural', 'any') else int(number % 5 == 0)}" for kind in KINDS]
        write_dicom(
            tree.folder / f"stage_2_train/{name}.dcm", rng.integers(-1000, 1000, (48, 48)).astype(np.int16),
            SOPClassUID=CTImageStorage, Modality="CT", PatientID=f"ID_p{number // 2}", RescaleIntercept=0,
            RescaleSlope=1, ImagePositionPatient=[0, 0, 5.0 * number], SeriesInstanceUID=f"1.2.{number}",
            # a tilted gantry, as heads are often scanned
            ImageOrientationPatient=[1, 0, 0, 0, 0.968, -0.25] if number % 2 else [1, 0, 0, 0, 1, 0],
        )  # fmt: skip
    rows += rows[:6]  # an image that stands twice
    rows += ["ID_000000001_epidural,1", "ID_fffffffff_any,0"]  # one that contradicts itself, one without a file
    tree.table("stage_2_train.csv", "ID,Label", *rows)
    whole = tree.folder / "stage_2_train/ID_000000002.dcm"
    whole.write_bytes(whole.read_bytes()[:-2000])
    tree.text("stage_2_train/ID_000000004.dcm", "no DICOM")
    return tree


def test_all_findings(haemorrhage, prepared):
    result = prepared("rsna-haemorrhage", sites=2, alpha=20.0)
    assert result.reasons == {
        "rows of the image contradict each other": 1, "pixels are truncated": 1, "image file is missing": 1,
        "file is no DICOM: neither the preamble nor a data set is at its start": 1,
    }  # fmt: skip
    assert (result.prepared.used, sum(result.prepared.subjects.values())) == (21, 12)
    first = result.manifest.set_index("image").loc["stage_2_train/ID_000000000.dcm"]
    assert [first[kind] for kind in KINDS] == ["1"] * 6
    third = result.manifest.set_index("image").loc["stage_2_train/ID_000000003.dcm"]
    assert [third[kind] for kind in KINDS] == ["0", "0", "0", "0", "1", "1"]
    assert result.manifest.groupby("subject")["site"].nunique().max() == 1
    assert (result.study["task"], result.study["data"]["findings"]) == ("multi_label", list(KINDS))
    assert result.check() == [21, 21, 0]


def test_one_finding(haemorrhage, prepared):
    result = prepared("rsna-haemorrhage", label="any", sites=2, alpha=20.0)
    assert result.study["data"]["positive"] == "1"
    assert sum(counts["1"] for counts in result.prepared.classes.values()) == 8
