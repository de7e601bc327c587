"""Studies of reconstruction, from pictures on disk to results."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers import declare, write_image_study
from polyclinic import Study
from polyclinic.errors import StudyError
from polyclinic.options import EntryError
from polyclinic.study.report.folder import Folder

LINES = {"acceleration": 3, "center": 0.125}


@pytest.fixture
def written(tmp_path):
    """Pictures of two sites, of which one is black; the entries of a study and its folder."""
    entries = write_image_study(tmp_path, {"Aachen": 8, "Bonn": 6})
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(tmp_path / "Bonn/scan-secret-0.png")
    del entries["data"]["mask"]
    entries |= {"task": "reconstruction", "model": {"unrolled": {"network": entries["model"]}}}
    entries["data"]["undersampling"] = LINES
    entries["training"]["rounds"] = 3
    entries["methods"] = ["single", "mix", "fedavg", "fedbn"]
    return entries, tmp_path


def run(entries, folder, name, **changes):
    Study.of({**entries, **changes}, folder).run(folder / name)
    return folder / name


def test_a_study_from_pictures_to_its_report(written):
    entries, folder = written
    out = run(entries, folder, "out")
    cases, results = pd.read_csv(out / "predictions.csv"), pd.read_csv(out / "results.csv")
    fedavg = cases[cases["method"] == "fedavg"]
    assert len(fedavg) == 14
    assert fedavg[["psnr", "ssim", "nmse[zero-filled]"]].isna().sum().tolist() == [1, 1, 1], "the black image"
    rows = results[(results["method"] == "fedavg") & (results["tested_on"] == "all") & (results["metric"] == "psnr")]
    for row in rows.itertuples():
        assert row.value == pytest.approx(fedavg[fedavg["fold"] == row.fold]["psnr"].mean())
    zero_filled = cases.pivot_table(index=["site", "case"], columns="method", values="psnr[zero-filled]")
    assert (zero_filled.nunique(axis=1) == 1).all(), "lines of test cases are the same for all methods"
    notes = json.loads((out / "notes.json").read_text())
    assert [note["text"][:20] for note in notes if note["number"] == "N290"] == ["Site Bonn: 1 of 6 im"]
    report = (out / "report.html").read_text()
    assert "The zero-filled images, without any network, reached" in report
    assert report.count("data:image/jpeg") == 4 * 2 * 3, "methods, sites, and three cases of each"
    shown = {one.which: one for one in Folder(out).overlays() if (one.method, one.site) == ("fedavg", "Aachen")}
    first = fedavg[(fedavg["site"] == "Aachen") & (fedavg["fold"] == fedavg["fold"].min())]["psnr"]
    assert [shown["worst"].score, shown["best"].score] == pytest.approx([first.min(), first.max()])
    assert "secret" not in report


def test_engines_agree_and_predictions_may_stay_at_the_sites(written):
    entries, folder = written
    entries |= {"methods": ["fedavg"], "training": {**entries["training"], "optimizer": {"sgd": {"lr": 0.05}}}}
    one = run(entries, folder, "sequential")
    two = run(entries, folder, "processes", engine={"mode": "processes", "workers": 2})
    assert (one / "results.csv").read_bytes() == (two / "results.csv").read_bytes()
    stacked = run(entries, folder, "stacked", engine={"mode": "stacked"})
    apart = run(
        entries, folder, "apart", evaluation={**entries["evaluation"], "predictions": "sites", "disclosure_floor": 2}
    )
    assert (one / "overlays.safetensors").is_file()
    assert not (apart / "overlays.safetensors").exists()
    assert "Reconstructions</h2>" not in (apart / "report.html").read_text()
    wanted = pd.read_csv(one / "results.csv")
    for other in (stacked, apart):
        found = pd.read_csv(other / "results.csv")
        assert found["metric"].tolist() == wanted["metric"].tolist()
        np.testing.assert_allclose(found["value"], wanted["value"], rtol=1e-3)


def test_rows_in_another_order_and_other_bits_change_nothing_that_is_tested(written):
    """Zero-filled images are of the same lines, whatever the file is called and how bright its picture is."""
    entries, folder = written
    entries |= {"methods": ["fedavg"], "training": {**entries["training"], "rounds": 1}}
    before = pd.read_csv(run(entries, folder, "before") / "predictions.csv")
    table = pd.read_csv(folder / "cases.csv")
    for place, name in enumerate(table["image"]):
        picture = np.asarray(Image.open(folder / name)).astype(np.uint16)
        table.loc[place, "image"] = moved = f"{name.split('/')[0]}/moved-{place}.png"
        Image.fromarray(picture * 257).save(folder / moved)
    table[::-1].to_csv(folder / "cases.csv", index=False)
    entries["data"]["bits"] = 16
    after = pd.read_csv(run(entries, folder, "after") / "predictions.csv")
    column = "psnr[zero-filled]"
    for site in ("Aachen", "Bonn"):
        one, two = (frame[frame["site"] == site][column].dropna().sort_values() for frame in (before, after))
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_volumes_are_measured_alike_however_they_are_packed(tmp_path):
    """The same voxels in other files, which are compressed, have other names and rows in another order."""
    rng, rows, found = np.random.default_rng(2), [], []
    voxels = {(site, case): rng.integers(0, 200, (2, 9, 12)).astype(np.float32) for site in "AB" for case in range(3)}
    for kind in ("nii", "nii.gz"):
        rows = rows[::-1] if rows else [[site, f"{site}{case}"] for site, case in voxels]
        (tmp_path / kind).mkdir()
        for place, row in enumerate(rows):
            row[2:] = [f"{place}.{kind}"]
            image = voxels[row[0], int(row[1][1:])]
            nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / kind / row[2])
        table = pd.DataFrame(rows, columns=["site", "patient", "image"])
        table.to_csv(tmp_path / kind / "cases.csv", index=False)
        data = {"table": "cases.csv", "site": "site", "subject": "patient", "image": "image",
                "preprocessing": {"size": [2, 9, 12]}, "undersampling": LINES}  # fmt: skip
        entries = {"study": "Packed", "task": "reconstruction", "data": data, "methods": ["fedavg"],
                   "model": {"unrolled": {"network": {"unet": {"channels": [2, 4], "residual_units": 0}}}},
                   "training": {"rounds": 1, "batch_size": 2}, "engine": {"mode": "sequential"},
                   "evaluation": {"holdout": 0.3, "validation": 0, "best_round": "last", "bootstrap": 0}}  # fmt: skip
        found.append(run(entries, tmp_path / kind, "out") / "predictions.csv")
    one, two = (pd.read_csv(path).sort_values("case")["psnr[zero-filled]"] for path in found)
    np.testing.assert_allclose(one, two, rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"undersampling": None}, "which lines of k-space are measured"),
        ({"label": "sick"}, "its target is the image itself"),
        ({"mask": "mask"}, "its target is the image itself"),
        ({"labels": {"share": 0.5}}, "its target is the image itself"),
        ({"unlabelled": "use"}, "its own target"),
        ({"scaling": "per_site"}, "scaled by its own zero-filled image"),
        ({"channels": "rgb"}, "one grey image a case"),
        ({"undersampling": {"acceleration": 0.5}}, "at least 1"),
        ({"undersampling": {"acceleration": 4, "center": 0.5}}, "at most 0.25"),
        ({"size": None, "preprocessing": {"size": [8, 8, 8], "intensity": "zscore"}}, "intensity: zscore"),
        ({"size": None, "preprocessing": {"size": [2, 8, 6]}}, "at least 7 voxels"),
    ],
)
def test_entries_that_do_not_fit_are_refused(changes, words):
    data = {"table": "cases.csv", "site": "site", "image": "image", "size": [16, 16], "undersampling": LINES}
    given = {key: value for key, value in {**data, **changes}.items() if value is not None}
    with pytest.raises(EntryError, match=words):
        declare(task="reconstruction", model={"unrolled": {}}, data=given)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model": "unet"}, "knows nothing of k-space"),
        ({"model": {"unrolled": {"network": "unrolled"}}}, "can't be in a network for reconstruction"),
        ({"methods": ["harmofl"]}, "what was measured"),
        ({"methods": ["fedsld"]}, "is for classification"),
        ({"attack": {"sites": 1, "blank_images": {}}}, "can be corrupted"),
    ],
)
def test_what_does_not_go_with_the_task_is_refused(entries, words):
    with pytest.raises(StudyError, match=words):
        declare(**{"task": "reconstruction", "model": {"unrolled": {}}, **entries})


def test_the_model_and_the_lines_are_for_the_task_alone():
    with pytest.raises(EntryError, match="task: reconstruction"):
        declare(model={"unrolled": {}})
    data = {"table": "cases.csv", "site": "site", "features": "x*", "label": "label", "undersampling": LINES}
    with pytest.raises(EntryError, match="is for reconstruction"):
        declare(data=data)
