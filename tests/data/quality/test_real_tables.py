"""What real tables are noted for: few things, all of them true."""

from pathlib import Path

import pytest

from note_helpers import note, numbers
from polyclinic.data.open import open_data
from polyclinic.data.spec import DataSpec

HEART = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal"]
VOLUMES = {"site": "site", "subject": "subject_id", "features": ["lh_*", "rh_*", "Left-*", "Right-*"]}


def read(folder: Path, **entries: object):
    return open_data(DataSpec.model_validate(entries), folder, "labels")


@pytest.mark.parametrize("categorical", [["cp", "restecg"], HEART])
def test_heart_disease(data_folder, categorical):
    """Few measures with few values of 740 patients: equal rows are no copies. A cholesterol of 0 was not measured."""
    towns = ("cleveland", "hungarian", "switzerland", "va")
    found = read(
        data_folder, tables={town: f"heart-disease/processed.{town}.data" for town in towns}, columns=[*HEART, "num"],
        label="num", positive="> 0", features="*", exclude=["slope", "ca", "thal"], imputation="drop",
        categorical=[name for name in categorical if name not in ("slope", "ca", "thal")],
    )  # fmt: skip
    assert set(numbers(found)) <= {"N202", "N204", "N236"}
    if len(categorical) == 2:
        assert "chol 0 (79)" in note(found, "N236")


@pytest.mark.parametrize("table", ["grey_matter_volumes", "cortical_thickness"])
def test_regional_measures(data_folder, table):
    """A few measures of regions failed: extreme volumes, a thickness of 0."""
    entries = VOLUMES if table == "grey_matter_volumes" else VOLUMES | {"features": ["lh_*", "rh_*"]}
    found = read(data_folder, table=f"abide-regional/{table}.csv", label="autism", positive=1, **entries)
    assert set(numbers(found)) <= {"N234", "N236"}


def test_scan_quality(data_folder):
    found = read(
        data_folder, table="mriqc-iqm/abide.csv", site="site", subject="subject_id", label="rater_3", positive="< 1",
        features="*", exclude="rater_*",
    )  # fmt: skip
    assert set(numbers(found)) == {"N202", "N204", "N225", "N234"}
    assert "(CMU, OHSU); 1 site has cases of 'rater_3 < 1' only (STANFORD)" in note(found, "N225")


def test_repeated_scans_of_a_person(data_folder):
    """Twenty people of OASIS-1 were scanned twice; the table names scans, not people."""
    found = read(
        data_folder, table="oasis-tables/oasis1_cross_sectional.csv", subject="ID", label="Sex", positive="F",
        features=["Age", "eTIV", "nWBV", "ASF"],
    )  # fmt: skip
    assert numbers(found) == ["N232"]
    assert "look like 20 patients" in note(found, "N232")
