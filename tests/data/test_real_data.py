"""The readers on real multi-site data sets; the expected numbers are those of the data sets' own descriptions."""

import importlib.metadata
from collections import Counter
from pathlib import Path

import pytest
import torch

from polyclinic.data.open import open_data
from polyclinic.data.opening.facts import facts_frame
from polyclinic.data.scaling import Scaler, summarise
from polyclinic.data.spec import DataSpec
from polyclinic.data.splits import split

HEART = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"]
HEART_LAST = ["slope", "ca", "thal", "num"]
QUALITY = {
    "site": "site",
    "subject": "subject_id",
    "label": "rater_3",
    "positive": "< 1",
    "features": "*",
    "exclude": "rater_*",
}

#: Scans rated -1 at each site, in the order of the sites' names.
EXCLUDED_SCANS = [1, 0, 5, 1, 9, 7, 0, 10, 2, 1, 17, 27, 6, 14, 50, 3, 3]


def read(folder, task="labels", split_column=None, **entries):
    spec = DataSpec.model_validate(entries)
    return open_data(spec, folder, task, split_column), spec


def used(opened):
    return {site: len(data) for site, data in opened.sites.items()}


def check_quality(opened):
    assert sum(used(opened).values()) == 1101
    assert len(opened.sites) == 17
    assert len(opened.features) == 68
    assert opened.classes == ["rater_3 >= 1", "rater_3 < 1"]
    assert not any(data.counts.rejected for data in opened.sites.values())


def test_scan_quality_table_inside_a_package(tmp_path):
    try:
        importlib.metadata.distribution("mriqc-learn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install mriqc-learn to run this test")
    opened, _ = read(tmp_path, table="package:mriqc-learn/mriqc_learn/datasets/abide.tsv", **QUALITY)
    check_quality(opened)


def test_scan_quality(data_folder: Path):
    opened, _ = read(data_folder, table="mriqc-iqm/abide.csv", **QUALITY)
    check_quality(opened)
    frame = facts_frame(opened.cohort.facts, opened.classes).set_index("site")
    assert frame.loc["UM", ["found", "used", "rejected", "patients"]].tolist() == [145, 145, 0, 145]
    rejected_scans, _ = read(data_folder, table="mriqc-iqm/abide.csv", **QUALITY | {"positive": -1})
    assert [int(data.targets.sum()) for data in rejected_scans.sites.values()] == EXCLUDED_SCANS


def test_partly_rated_scans(data_folder: Path):
    opened, _ = read(data_folder, table="mriqc-iqm/abide.csv", **QUALITY | {"label": "rater_1"})
    found = {site: data.counts for site, data in opened.sites.items()}
    left_out = [warning for warning in opened.notes if "is left out" in warning]
    assert len(found) + len(left_out) == 17
    assert all(counts.found == counts.used + counts.rejected["rater_1 is missing"] for counts in found.values())


def test_regional_volumes(data_folder: Path):
    entries = {
        "table": "abide-regional/grey_matter_volumes.csv",
        "site": "site",
        "subject": "subject_id",
        "label": "autism",
        "positive": 1,
        "features": ["lh_*", "rh_*", "Left-*", "Right-*"],
    }
    opened, _ = read(data_folder, **entries)
    assert sum(used(opened).values()) == 835
    assert len(opened.sites) == 16
    assert len(opened.features) == 84
    nyu = opened.sites["NYU"]
    assert torch.bincount(nyu.targets).tolist() == [100, 75]
    divided, _ = read(data_folder, divide_by="intracranial_volume", **entries)
    first = opened.sites["CALTECH"].inputs[0, 0].item()
    assert first == 2029.0
    assert divided.sites["CALTECH"].inputs[0, 0].item() == pytest.approx(2029.0 / 1697598.984182)


def test_heart_disease_as_flamby_uses_it(data_folder: Path):
    centres = ["cleveland", "hungarian", "switzerland", "va"]
    opened, _ = read(
        data_folder,
        tables={centre: f"heart-disease/processed.{centre}.data" for centre in centres},
        columns=HEART + HEART_LAST,
        label="num",
        positive="> 0",
        features="*",
        exclude=["slope", "ca", "thal"],
        categorical=["cp", "restecg"],
        imputation="drop",
    )
    assert used(opened) == {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
    assert {site: data.counts.found for site, data in opened.sites.items()} == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    assert opened.features == [
        *["age", "sex", "cp=1", "cp=2", "cp=3", "cp=4", "trestbps", "chol", "fbs"],
        *["restecg=0", "restecg=1", "restecg=2", "thalach", "exang", "oldpeak"],
    ]
    assert facts_frame(opened.cohort.facts, opened.classes)["missing"].tolist() == [0.0] * 4


def test_skin_lesions(data_folder: Path):
    opened, _ = read(
        data_folder,
        table="skin-lesions/labels.csv",
        site="site",
        subject="lesion_id",
        label="dx",
        image="image",
        size=[24, 32],
    )
    assert used(opened) == {"rosendahl": 761, "vidir_modern": 728, "vidir_molemax": 395, "vienna_dias": 285}
    assert opened.classes == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    frame = facts_frame(opened.cohort.facts, opened.classes)
    assert frame["patients"].tolist() == [635, 547, 395, 193]
    assert frame["class: mel"].tolist() == [120, 126, 16, 52]
    data = opened.sites["rosendahl"]
    assert data.inputs.shape == (761, 3, 24, 32)
    parts = split(data, folds=5, fold=0, validation=0.2, seed=0)
    lesions = [{data.subjects[i] for i in part.tolist()} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, lesions)) == 635
    scaler = Scaler.from_summary(summarise(data.inputs, parts.train))
    assert scaler.mean.min() > 0.3
    assert scaler.mean.max() < 0.9


def test_retina_vessels(data_folder: Path):
    entries = {
        "table": "retina-vessels/index.csv",
        "site": "site",
        "subject": "id",
        "subject_pattern": r"(Image_\d+)[LR]",
        "image": "image",
        "mask": "mask",
        "size": [128, 128],
    }
    opened, _ = read(data_folder, "masks", **entries)
    assert used(opened) == {"chasedb1": 28, "drive": 40, "stare": 20}
    frame = facts_frame(opened.cohort.facts, opened.classes).set_index("site")
    assert frame["patients"].tolist() == [14, 40, 20]
    # mean vessel shares of the description: 7.6, 9.2 and 8.3 %
    assert frame["foreground"].tolist() == pytest.approx([0.076, 0.092, 0.083], abs=0.002)
    drive, _ = read(data_folder, "masks", "orig_split", **entries | {"where": {"site": "drive"}})
    assert Counter(drive.sites["drive"].parts) == Counter(train=20, test=20)
    parts = split(drive.sites["drive"], folds=None, fold=0, validation=0.2, seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (16, 4, 20)
