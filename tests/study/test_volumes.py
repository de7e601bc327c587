"""Studies of volumes from files to report: grid, boxes, windows, cache, engines."""

import csv
import json

import nibabel
import numpy as np
import pandas as pd
import pytest

from helpers import named
from polyclinic import Study
from polyclinic.errors import PolyclinicError, StudyError

SITES = {"east": ("RAS", (2, 2, 2), 60), "north": ("LPS", (1, 2, 3), 100), "west": ("ASR", (2, 1, 2), 160)}


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Two kinds of balls in noise; each site has its own orientation, voxels and brightness."""
    folder = tmp_path_factory.mktemp("balls")
    source, rows = np.random.default_rng(0), []
    for site, (code, spacing, level) in SITES.items():
        for number in range(6):
            shape = [round(32 / size) for size in spacing]
            places = (np.indices(shape).reshape(3, -1).T + 0.5) * spacing
            radius = source.uniform(4, 9)
            distance = np.linalg.norm(places - source.uniform(12, 20, 3), axis=1).reshape(shape)
            mask = (distance < radius).astype(np.uint8) + (distance < radius / 2)
            image = (source.normal(level, 5, shape) + mask * level / 2).astype(np.int16)
            for name, values in (("image", image), ("mask", mask)):
                nifti = nibabel.Nifti1Image(values, np.diag([*spacing, 1.0]))
                now, wanted = (nibabel.orientations.axcodes2ornt(codes) for codes in ("RAS", code))
                turned = nifti.as_reoriented(nibabel.orientations.ornt_transform(now, wanted))
                nibabel.save(turned, folder / f"{site}{number}.{name}.nii.gz")
            files = (f"{site}{number}.image.nii.gz", f"{site}{number}.mask.nii.gz")
            rows.append((site, f"{site}-{number}", *files, int(radius > 6.5), round(radius, 2)))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("site", "subject", "image", "mask", "large", "radius"), *rows])
    return folder


def content(task="segmentation", **data):
    base = {
        "table": "manifest.csv", "site": "site", "subject": "subject", "image": "image",
        "preprocessing": {"spacing": 2, "size": [16, 16, 16]},
    }  # fmt: skip
    label = {"segmentation": {"mask": "mask"}, "classification": {"label": "large"}, "regression": {"label": "radius"}}
    model = {"unet": {"channels": [4, 8]}} if task == "segmentation" else {"cnn": {"channels": [4, 8]}}
    return {
        "data": {**base, **label[task], **data}, "task": task, "model": model, "methods": ["fedavg"],
        "training": {"rounds": 2, "batch_size": 4, "optimizer": {"adamw": {"lr": 0.01}}},
        "evaluation": {"folds": 2, "bootstrap": 20}, "engine": {"threads": 1},
    }  # fmt: skip


def run(folder, out, study):
    return Study.of(study, folder).run(out)


def test_boxes_windows_and_all_engines_agree(balls, tmp_path):
    study = content(patch=[8, 8, 8], augmentation=[{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}])
    study["methods"] = ["single", "mix", "fedavg", "fedbn"]
    study["evaluation"]["unseen_sites"] = ["fedavg"]
    found = {}
    for mode in ("sequential", "processes"):
        study["engine"] = {"mode": mode, "workers": 2, "threads": 1}
        run(balls, tmp_path / mode, study)
        found[mode] = (tmp_path / mode / "results.csv").read_bytes()
    assert found["sequential"] == found["processes"]
    rows = pd.read_csv(tmp_path / "sequential" / "results.csv")
    assert set(named(rows)["method"]) == {"single", "mix", "fedavg", "fedbn", "fedavg (unseen site)"}
    sites = pd.read_csv(tmp_path / "sequential" / "sites.csv")
    assert sites["used"].tolist() == [6, 6, 6]
    assert (tmp_path / "sequential" / "report.html").is_file()


def test_distances_are_in_millimetres(balls, tmp_path):
    # At so high a threshold nothing is marked; the distance is then the diagonal of the volume, 32 mm a side.
    for spacing, sides in ((2, 16), (1, 32)):
        study = content(preprocessing={"spacing": spacing, "size": [sides] * 3})
        study["evaluation"] |= {"metrics": ["dice", "hd95"], "threshold": 0.9999999}
        study["training"] |= {"rounds": 1, "optimizer": {"sgd": {"lr": 1e-6}}}
        run(balls, tmp_path / str(spacing), study)
        cases = pd.read_csv(tmp_path / str(spacing) / "predictions.csv")
        assert (cases["dice"] == 0).all()
        np.testing.assert_allclose(cases["hd95"], np.sqrt(3) * 32)


@pytest.mark.parametrize(("mode", "backwards"), [("sequential", False), ("sequential", True), ("processes", False)])
def test_each_case_is_measured_with_its_own_voxel_size(balls, tmp_path, mode, backwards):
    # Without `spacing` every image keeps its own; here each site has images of three kinds. Nothing is marked: the
    # distance is the diagonal of the case's own grid.
    table = pd.read_csv(balls / "manifest.csv")
    table["site"] = ["A" if number % 2 else "B" for number in range(len(table))]
    table[:: -1 if backwards else 1].to_csv(balls / "mixed.csv", index=False)
    study = content(table="mixed.csv", preprocessing={"size": [16, 12, 8], "intensity": "percentile"})
    study["evaluation"] |= {"metrics": ["dice", "hd95"], "threshold": 0.9999999}
    study["training"] |= {"rounds": 1, "optimizer": {"sgd": {"lr": 1e-6}}}
    study["engine"] = {"mode": mode, "workers": 2, "threads": 1}
    results = run(balls, tmp_path / "out", study)
    for site, rows in results.predictions.groupby("site"):
        names = pd.read_csv(tmp_path / "out" / "sites" / site / "subjects.csv").set_index("pseudonym")["subject"]
        kinds = [SITES[names[subject].split("-")[0]][1] for subject in rows["subject"]]
        assert len(set(kinds)) == 3
        np.testing.assert_allclose(rows["hd95"], np.linalg.norm(np.array(kinds) * [16, 12, 8], axis=1))


def test_several_structures_and_two_channels(balls, tmp_path):
    study = content(mask_classes=["rim", "core"], image=["image", "image"], patch=[8, 8, 8])
    results = run(balls, tmp_path / "out", study)
    assert {"dice[rim]", "dice[core]"} <= set(results.results["metric"])


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_labels_of_whole_volumes(balls, tmp_path, task):
    found = run(balls, tmp_path / "out", content(task)).results
    asked = {"classification": {"auc", "acc"}, "regression": {"mae", "rmse"}}[task]
    assert asked <= set(found["metric"])
    assert found[(found["tested_on"] == "all") & found["metric"].isin(asked)]["value"].notna().all()
    # Every case of the three sites was a test case once.
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 18


def test_a_plan_is_made_once_from_all_sites(balls, tmp_path):
    study = content(preprocessing={"spacing": "auto", "size": "auto"}, patch="auto")
    study["model"] = "auto"
    planned = Study.of(study, balls).planned()
    assert planned.plan is not None
    filled = planned.declaration.filled()
    assert filled["data"]["preprocessing"]["spacing"] == [2.0, 2.0, 2.0]
    assert next(iter(filled["model"])) == "unet"
    assert not planned.declaration.wants_plan
    assert planned.planned() is planned
    study["training"]["rounds"] = 1
    run(balls, tmp_path / "out", study)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["volumes"]["spacing"] == [2.0, 2.0, 2.0]
    # The results folder says everything: its study file needs no plan.
    assert Study.read(tmp_path / "out" / "study.yaml").declaration.wants_plan is False


def test_histogram_landmarks_come_from_all_sites(balls, tmp_path):
    study = content(preprocessing={"spacing": 2, "size": [16, 16, 16], "intensity": "nyul"})
    study["methods"] = ["fedavg", "mix"]
    for mode in ("sequential", "processes"):
        study["engine"] = {"mode": mode, "workers": 2, "threads": 1}
        run(balls, tmp_path / mode, study)
    one, other = ((tmp_path / mode / "results.csv").read_bytes() for mode in ("sequential", "processes"))
    assert one == other


def test_a_damaged_file_is_counted_or_stops_the_study(balls, tmp_path):
    for file in balls.glob("*.nii.gz"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.csv").write_bytes((balls / "manifest.csv").read_bytes())
    victim = tmp_path / "north3.image.nii.gz"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(PolyclinicError, match="P204 Site north: 1 of 6 cases can't be read"):
        Study.of(content(), tmp_path).open()
    opened = Study.of(content(max_unreadable=0.2), tmp_path).open()
    assert opened.sites["north"].counts.rejected.total() == 1
    assert len(opened.sites["north"]) == 5


def test_a_grid_too_small_is_told(balls):
    _, warnings = Study.of(content(preprocessing={"spacing": 2, "size": [8, 16, 16]}), balls).check()
    assert any("a part of the mask lies outside `size`" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"preprocessing": {"size": [16, 16, 16], "orientation": "RAR"}}, "does not name three different axes"),
        ({"preprocessing": {"size": [16, 16]}}, "preprocessing"),
        ({"preprocessing": {"size": [16, 16, 16], "intensity": "zscor"}}, "Did you mean 'zscore'"),
        ({"patch": [32, 8, 8]}, "larger than the volumes"),
        ({"size": [16, 16]}, "`size` is for PNG and JPG images"),
        ({"preprocessing": None, "size": [16, 16], "patch": [8, 8, 8]}, "`patch` is for volumes"),
        ({"preprocessing": {"spacing": "auto", "size": [16, 16, 16]}}, "Write `size: auto`"),
        ({"preprocessing": None, "size": [16, 16], "image": ["image", "image"]}, "channels of volumes"),
    ],
)
def test_entries_that_do_not_fit_get_their_sentence(balls, change, sentence):
    study = content(**change)
    study["data"] = {key: value for key, value in study["data"].items() if value is not None}
    with pytest.raises(StudyError) as caught:
        Study.of(study, balls)
    assert sentence in str(caught.value)


def test_boxes_are_for_segmentation(balls):
    with pytest.raises(StudyError, match="`patch` is for segmentation"):
        Study.of(content("classification", patch=[8, 8, 8]), balls)
