"""Masks that are measured in the space of the image, not on the study's grid."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from PIL import Image

from elsewhere import Elsewhere, split_table
from helpers import recorded
from polyclinic import Study
from polyclinic.data.originals import Original, originals_received, originals_sent
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import DataSpec
from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.errors import PolyclinicError
from polyclinic.notes import Note
from polyclinic.study.comparing.studies import read_studies
from polyclinic.study.final_model.fit import Wanted, fit_model, sites_folder
from polyclinic.study.final_model.folder import read_model
from polyclinic.study.notes import rough_distances
from polyclinic.study.runner import run_study

#: Each site's images: oblique, flipped with axes swapped, and with slices five times as thick as pixels are wide.
AFFINES = {
    "oblique": np.array([[1.6, -1.2, 0, 3], [1.2, 1.6, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1.0]]),
    "flipped": np.array([[0, 0, 2.0, -20], [-1.5, 0, 0, 30], [0, -1.8, 0, 10], [0, 0, 0, 1.0]]),
    "thick": np.diag([1.0, 1.0, 5.0, 1.0]),
}
SHAPES = {"oblique": (14, 15, 11), "flipped": (18, 16, 13), "thick": (28, 26, 5)}


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright balls with a core: the whole ball is 1, and its core 2."""
    folder, rows = tmp_path_factory.mktemp("balls"), []
    source = np.random.default_rng(0)
    for site, affine in AFFINES.items():
        shape = SHAPES[site]
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T
        for number in range(4):
            middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + source.uniform(-2, 2, 3)
            away = np.linalg.norm(places - middle, axis=-1)
            mask = (away < 8).astype(np.uint8) + (away < 4)
            image = source.normal(20, 3, shape) + 40 * mask
            names = [f"{site}{number}.{kind}.nii.gz" for kind in ("image", "mask")]
            for name, values in zip(names, (image.astype(np.float32), mask.astype(np.uint8)), strict=True):
                nibabel.save(nibabel.Nifti1Image(values, affine), folder / name)
            rows.append((site, f"{site}-{number}", *names))
    pd.DataFrame(rows, columns=["site", "subject", "image", "mask"]).to_csv(folder / "manifest.csv", index=False)
    return folder


def study(space: str = "original", **changes: Any) -> dict[str, Any]:
    data = {
        "table": "manifest.csv", "site": "site", "subject": "subject", "image": "image", "mask": "mask",
        "mask_classes": ["rim", "core"], "preprocessing": {"spacing": 2, "size": [12, 12, 12]},
    }  # fmt: skip
    made: dict[str, Any] = {
        "task": "segmentation", "data": data | changes.pop("data", {}),
        "model": {"unet": {"channels": [4, 8], "norm": "instance"}},
        "training": {"rounds": 3, "batch_size": 2, "optimizer": {"adam": {"lr": 0.02}}},
        "evaluation": {"folds": 2, "bootstrap": 0, "metrics": ["dice", "hd95", "nsd"], "threshold": 0.5,
                       "space": space} | changes.pop("evaluation", {}),
        "engine": {"threads": 1}, "methods": ["fedavg"],
    }  # fmt: skip
    return made | changes


# One case, worked by hand ---------------------------------------------------------------------------------------------


def case(folder: Path, mask: np.ndarray, affine: np.ndarray, **preprocessing: Any) -> Original:
    """A case whose image has the shape of its mask."""
    image = np.arange(mask.size, dtype=np.float32).reshape(mask.shape)
    for name, values in (("image", image), ("mask", mask.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"{name}.nii.gz")
    spec = DataSpec(table="t.csv", image="image", mask="mask", preprocessing={"intensity": "none", **preprocessing})
    return Original.opened("image.nii.gz", "mask.nii.gz", folder, (), spec)


def dice(one: Any) -> float:
    both = (one.predicted == 1) & (one.reference == 1)
    return 2 * both.sum() / ((one.predicted == 1).sum() + (one.reference == 1).sum())


def test_what_the_grid_cuts_off_counts(tmp_path: Path) -> None:
    """Eight columns of 3 mm, of which the grid has the middle four; the structure has the first six. A network that
    marks all of the grid finds 4 of 6: 2 x 4 / (4 + 6)."""
    mask = np.zeros((8, 2, 2))
    mask[:6] = 1
    for affine in (np.diag([3.0, 1, 1, 1]), np.diag([-3.0, 1, 1, 1])):
        original = case(tmp_path, mask, affine, size=(4, 2, 2))
        one = original.compared(np.ones((1, 4, 2, 2), dtype=np.float32), 0.5)
        assert one.predicted.any(axis=(1, 2)).tolist() == [False, False, True, True, True, True, False, False]
        assert dice(one) == 0.8
        assert one.spacing == (3.0, 1.0, 1.0)


def test_probabilities_are_interpolated_and_then_decided(tmp_path: Path) -> None:
    """Four voxels of 2 mm between eight of the grid: 1, 0.2 | 0.9, 0.3 | 0.4, 0.4 | 0, 0 have the means 0.6, 0.6, 0.4
    and 0. The structure is the first voxel alone: 2 x 1 / (2 + 1)."""
    mask = np.zeros((4, 1, 1))
    mask[0] = 1
    original = case(tmp_path, mask, np.diag([2.0, 1, 1, 1]), spacing=(1, 1, 1), size=(8, 1, 1))
    grid = np.array([1, 0.2, 0.9, 0.3, 0.4, 0.4, 0, 0], dtype=np.float32).reshape(1, 8, 1, 1)
    one = original.compared(grid, 0.5)
    assert one.predicted.ravel().tolist() == [1, 1, 0, 0]
    assert dice(one) == pytest.approx(2 / 3)
    several = np.concatenate([1 - grid, grid, np.zeros_like(grid)])
    assert original.compared(several, 0.5).predicted.ravel().tolist() == [1, 1, 0, 0]


def test_a_mask_of_other_axes_or_voxels_is_brought_to_the_image(tmp_path: Path) -> None:
    mask = np.zeros((6, 4, 2))
    mask[:2, :3] = 1
    affine = np.diag([2.0, 1, 4, 1])
    original = case(tmp_path, mask, affine, size=(6, 4, 2))
    grid = mask[None].astype(np.float32)
    assert dice(original.compared(grid, 0.5)) == 1
    saved = nibabel.Nifti1Image(mask.astype(np.uint8), affine)
    turned = saved.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
    finer = nibabel.Nifti1Image(mask.repeat(2, axis=0).astype(np.uint8), affine @ np.diag([0.5, 1, 1, 1]))
    finer.affine[0, 3] = -0.5  # two voxels of 1 mm in each of 2 mm
    for other in (turned, nibabel.Nifti1Image(np.asarray(finer.dataobj), finer.affine)):
        nibabel.save(other, tmp_path / "mask.nii.gz")
        again = Original.opened("image.nii.gz", "mask.nii.gz", tmp_path, (), original.spec)
        one = again.compared(grid, 0.5)
        assert one.reference.tolist() == mask.tolist()
        assert dice(one) == 1


def test_files_that_changed_are_not_measured(tmp_path: Path) -> None:
    original = case(tmp_path, np.ones((4, 4, 4)), np.eye(4), size=(4, 4, 4))
    probabilities = np.ones((1, 4, 4, 4), dtype=np.float32)
    assert dice(original.compared(probabilities, 0.5)) == 1
    received = originals_received(originals_sent([original]))
    assert received is not None
    assert replace(received[0], spec=original.spec) == original
    assert dice(received[0].compared(probabilities, 0.5)) == 1
    path = tmp_path / "mask.nii.gz"
    before = path.stat()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4)), path)
    with pytest.raises(UnreadableError, match="changed"):
        original.compared(probabilities, 0.5)
    path.unlink()
    with pytest.raises(UnreadableError, match="changed"):
        original.compared(probabilities, 0.5)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), dtype=np.uint8), np.eye(4)), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # put back as it was
    assert dice(original.compared(probabilities, 0.5)) == 1
    with pytest.raises(UnreadableError, match="no mask"):
        replace(original, mask=None).compared(probabilities, 0.5)


# Whole studies --------------------------------------------------------------------------------------------------------


def test_it_is_what_predict_writes_by_other_programs(balls: Path, tmp_path: Path) -> None:
    """The study's numbers are those of nibabel and MONAI on the files that the model in use writes."""
    Study.of(study(), balls).run(tmp_path / "results")
    predictions = pd.read_csv(tmp_path / "results" / "predictions.csv").query("fold == 0")
    assert set(predictions["space"]) == {"original"}
    fit_model(Study.of(study(), balls), tmp_path / "model", Wanted(fold=0))
    predictor = Predictor(read_model(tmp_path / "model"), sites_folder(tmp_path / "model"))
    done = predict_into(tmp_path / "out", predictor, open_table(predictor.description, balls / "manifest.csv", None))
    masks = dict(zip(pd.read_csv(balls / "manifest.csv")["image"], done.predictions["mask"], strict=True))
    compared = 0
    for site, mine in predictions.groupby("site"):
        keys = pd.read_csv(tmp_path / "results" / "sites" / str(site) / "subjects.csv").set_index("case")
        for _, row in mine.iterrows():
            name = next(image for image in masks if keys.loc[row["case"], "source"] in (image, f"{image}"))
            found = nibabel.load(tmp_path / "out" / masks[name])
            truth = nibabel.load(balls / name.replace("image", "mask"))
            assert np.allclose(found.affine, truth.affine, atol=1e-5)
            one, other = (torch.from_numpy(np.asarray(image.dataobj)).long() for image in (found, truth))
            several = [torch.stack([values == index for index in range(3)])[None].float() for values in (one, other)]
            scores = compute_dice(*several, include_background=False)[0]
            away = compute_hausdorff_distance(
                *several, percentile=95, spacing=[float(size) for size in truth.header.get_zooms()]
            )[0]
            for index, name in enumerate(("rim", "core")):
                if several[0][0, index + 1].any():
                    assert row[f"dice[{name}]"] == pytest.approx(float(scores[index]), abs=1e-6)
                    assert row[f"hd95[{name}]"] == pytest.approx(float(away[index]), abs=1e-4)
                    compared += 1
    assert compared > 4


def test_engines_agree_and_sites_measure_at_the_site(balls: Path, tmp_path: Path) -> None:
    found = {}
    for name, engine, where in (
        ("sequential", {"mode": "sequential"}, "coordinator"),
        ("processes", {"mode": "processes", "workers": 1}, "coordinator"),
        ("sites", {"mode": "sequential"}, "sites"),
    ):
        asked = study(
            methods=["cross", "mix"], engine={"threads": 1, **engine},
            evaluation={"predictions": where, "disclosure_floor": 1, "folds": None, "holdout": 0.5},
        )  # fmt: skip
        asked["training"]["rounds"] = 1
        Study.of(asked, balls).run(tmp_path / name)
        found[name] = pd.read_csv(tmp_path / name / "results.csv")
        assert set(found[name]["space"]) == {"original"}
    for name in ("processes", "sites"):
        pd.testing.assert_frame_equal(found[name], found["sequential"], rtol=1e-12)
    at_sites = tmp_path / "sites"
    assert not (at_sites / "predictions.csv").exists()
    kept = pd.read_csv(next((at_sites / "sites" / "thick" / "predictions").rglob("*.csv")))
    assert set(kept["space"]) == {"original"}


def test_masks_do_not_leave_hospitals(balls: Path, tmp_path: Path) -> None:
    """Each site measures with its own files; the answers are metrics, and those of one machine."""
    (tmp_path / "all").mkdir()
    shutil.copy(balls / "manifest.csv", tmp_path / "all")
    own = split_table(tmp_path / "all", "manifest.csv")
    for site, folder in own.items():
        for file in balls.glob(f"{site}*.nii.gz"):
            shutil.copy(file, folder)
    asked = study(evaluation={"predictions": "sites", "disclosure_floor": 1, "folds": None, "holdout": 0.5})
    asked["training"]["rounds"] = 1
    elsewhere = Elsewhere(own, tmp_path / "sites")
    with recorded(elsewhere) as said:
        run_study(Study.of(asked, balls), tmp_path / "out", engine=elsewhere)
    Study.of(asked, balls).run(tmp_path / "here")
    found, here = (pd.read_csv(tmp_path / name / "results.csv") for name in ("out", "here"))
    pd.testing.assert_frame_equal(found, here)
    assert {"try", "test"} <= {function for function, *_ in said}
    for function, _, _, reply in said:
        if function in ("test", "compare", "spread", "try"):
            assert all(tensor.numel() < 100 for tensor in reply.tensors.values())
            assert ".nii" not in str(reply.fields)


def test_it_is_the_grid_where_the_grid_is_the_images_own(tmp_path: Path) -> None:
    source, rows = np.random.default_rng(1), []
    for number in range(6):
        mask = np.zeros((12, 10, 8), dtype=np.uint8)
        first = source.integers(1, 4, 3)
        mask[first[0] : first[0] + 5, first[1] : first[1] + 5, first[2] : first[2] + 3] = 1
        for name, values in (
            ("image", mask * 50 + source.normal(10, 9, mask.shape).astype(np.float32)),
            ("mask", mask),
        ):
            nibabel.save(nibabel.Nifti1Image(values, AFFINES["oblique"]), tmp_path / f"{number}.{name}.nii.gz")
        rows.append(("AB"[number % 2], number, f"{number}.image.nii.gz", f"{number}.mask.nii.gz"))
    pd.DataFrame(rows, columns=["site", "subject", "image", "mask"]).to_csv(tmp_path / "manifest.csv", index=False)
    data = {"mask_classes": None, "preprocessing": {"orientation": "LPS", "size": [12, 10, 8]}}
    found = []
    for space in ("grid", "original"):
        Study.of(study(space, data=data), tmp_path).run(tmp_path / space)
        found.append(pd.read_csv(tmp_path / space / "predictions.csv"))
        assert (found[-1].pop("space") == space).all()
    assert found[0]["dice"].between(0.01, 0.99).any()
    pd.testing.assert_frame_equal(*found, rtol=1e-5)
    for space, words in (("grid", "on the study&#39;s grid"), ("original", "as the images are on disk")):
        assert words in (tmp_path / space / "report.html").read_text()
    with pytest.raises(PolyclinicError, match="space"):
        read_studies([tmp_path / "grid", tmp_path / "original"])


def test_distances_in_sheared_images_are_said_to_be_rough(tmp_path: Path) -> None:
    sheared = Note("N710", "Site A: ...")
    for space, notes, wanted in (("original", [sheared], ["N814"]), ("grid", [sheared], []), ("original", [], [])):
        declaration = Study.of(study(space), tmp_path).declaration
        assert [note.number for note in rough_distances(declaration, notes)] == wanted


def test_pictures_are_measured_in_their_own_pixels(tmp_path: Path) -> None:
    source, rows = np.random.default_rng(2), []
    for number in range(8):
        high, wide = 30 + 3 * number, 45
        y, x = np.mgrid[:high, :wide]
        disc = (y - high / 2) ** 2 + (x - source.integers(12, 30)) ** 2 < 81
        pixels = np.where(disc, 200, 60) + source.integers(0, 30, size=(high, wide))
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1  # half of them are turned, with their masks
        for name, values in (("image", pixels), ("mask", disc * 255)):
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / f"{number}.{name}.png", exif=exif)
        rows.append(("AB"[number // 4], number, f"{number}.image.png", f"{number}.mask.png"))
    pd.DataFrame(rows, columns=["site", "subject", "image", "mask"]).to_csv(tmp_path / "manifest.csv", index=False)
    made = study(data={"mask_classes": None, "preprocessing": None, "size": [16, 16], "channels": "grey"})
    Study.of(made, tmp_path).run(tmp_path / "results")
    predictions = pd.read_csv(tmp_path / "results" / "predictions.csv").query("fold == 0")
    fit_model(Study.of(made, tmp_path), tmp_path / "model", Wanted(fold=0))
    predictor = Predictor(read_model(tmp_path / "model"), sites_folder(tmp_path / "model"))
    done = predict_into(tmp_path / "out", predictor, open_table(predictor.description, tmp_path / "manifest.csv", None))
    for site, mine in predictions.groupby("site"):
        keys = pd.read_csv(tmp_path / "results" / "sites" / str(site) / "subjects.csv").set_index("case")
        for _, row in mine.iterrows():
            number = int(str(keys.loc[row["case"], "source"]).split(".")[0])
            found = np.asarray(Image.open(tmp_path / "out" / done.predictions["mask"][number])) > 0
            with Image.open(tmp_path / f"{number}.mask.png") as picture:
                truth = np.asarray(picture) > 0
            truth = np.rot90(truth, -1) if number % 2 else truth
            total = found.sum() + truth.sum()
            assert row["dice"] == pytest.approx(2 * (found & truth).sum() / total)


def test_a_mask_that_changes_while_a_study_runs_stops_it(
    balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyclinic.data import originals

    monkeypatch.setattr(originals.Original, "_stamp", lambda self: ((os.urandom(1)[0], id(self)),))
    with pytest.raises(PolyclinicError, match=r"P204 Site \w+: image or mask of a test case .* changed") as caught:
        Study.of(study(), balls).run(tmp_path / "results")
    assert ".nii" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "classification", "data": {"label": "subject", "features": ["x"]}}, "for segmentation"),
        ({"evaluation": {"space": "world"}}, "grid"),
    ],
)
def test_without_masks_or_by_another_name_it_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    made = study()
    if "task" in changes:
        made = {"task": "classification", "data": {"table": "t.csv", "site": "s", "label": "l", "features": ["x"]},
                "model": "logistic", "methods": ["fedavg"], "evaluation": {"space": "original"}}  # fmt: skip
    else:
        made["evaluation"] |= changes["evaluation"]
    with pytest.raises(PolyclinicError, match=words) as caught:
        Study.of(made, tmp_path)
    assert caught.value.code in ("P102", "P104")
