from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from polyclinic.data.readers.describe import describe_volumes, summarise, volume_facts
from polyclinic.data.readers.volume import Volume


def test_facts_of_a_volume():
    values = np.arange(101, dtype=np.int16).reshape(101, 1, 1)
    facts = volume_facts(Volume(values, np.diag((-1.0, -1, 3, 1)), {"vendor": "GE", "field_strength": 1.5}))
    assert facts.shape == (101, 1, 1)
    assert facts.orientation == "LPS"
    assert facts.quantiles == (1, 50, 99)
    assert (facts.vendor, facts.field_strength) == ("GE", 1.5)
    empty = volume_facts(Volume(np.full((2, 2, 2), np.nan), np.eye(4)))
    assert np.isnan(empty.quantiles).all()


def test_a_row_for_each_site(tmp_path):
    for number in range(3):
        values = np.full((4, 5, 6 + number // 2), 10.0 * number, np.float32)
        nib.save(nib.Nifti1Image(values, np.diag((1.0, 1, 1 + number // 2, 1))), tmp_path / f"{number}.nii")
    (tmp_path / "bad.nii").write_bytes(b"x" * 400)
    seen = []
    frame = describe_volumes(
        {"north": ["0.nii", "1.nii", "2.nii", "bad.nii", "no.nii"], "south": ["no.nii"]},
        tmp_path,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    assert frame.to_dict("records") == [
        {
            "site": "north",
            "found": 5,
            "used": 3,
            "rejected": 2,
            "reasons": "file is missing (1), file is no NIfTI (1)",
            "shapes": "4×5×6 (2), 4×5×7 (1)",
            "spacing": "1 × 1 × 1 (1–2)",
            "orientations": "RAS (3)",
            "intensity": "10 / 10 / 10",
            "vendors": "unknown (3)",
            "field strengths": "unknown (3)",
        },
        {
            "site": "south",
            "found": 1,
            "used": 0,
            "rejected": 1,
            "reasons": "file is missing (1)",
            "shapes": "",
            "spacing": "",
            "orientations": "",
            "intensity": "",
            "vendors": "",
            "field strengths": "",
        },
    ]


def test_many_kinds_are_cut():
    facts = [volume_facts(Volume(np.zeros((n, 1, 1)), np.eye(4))) for n in range(1, 8)]
    row = summarise({"a": facts}, {"a": Counter()}).iloc[0]
    assert row["shapes"] == "1×1×1 (1), 2×1×1 (1), 3×1×1 (1), 4×1×1 (1), 3 more"


def test_paths_stay_inside(tmp_path):
    frame = describe_volumes({"a": ["../x.nii", "/etc/hosts"]}, tmp_path)
    assert frame["reasons"].tolist() == ["path lies outside the image folder (2)"]


def test_real_volumes(data_folder):
    row = describe_volumes({"spine": ["t1w.nii.gz", "t2.nii.gz"]}, data_folder / "nifti-spine").iloc[0]
    assert row["orientations"] == "PSR (1), RAS (1)"
    assert row["shapes"] == "42×76×77 (1), 60×55×52 (1)"
    assert row["used"] == pytest.approx(2)
