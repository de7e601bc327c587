"""Models of images: the study's own predictions, and masks that lie on the images that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deployment.round_trips import as_tested
from polyclinic.deployment.inputs import open_images, open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.study.final_model.fit import Wanted, fit_model, sites_folder
from polyclinic.study.final_model.folder import read_model
from polyclinic.study.study import Study

FAST = {"engine": {"threads": 1}, "methods": ["fedavg"]}


def write_pictures(folder: Path) -> None:
    """Ten pictures a site with a bright disc, its mask, and whether it is on the left."""
    for place, site in enumerate("AB"):
        rng, rows = np.random.default_rng(place), []
        (folder / site).mkdir()
        for number in range(10):
            high, wide, left = 30 + 2 * number, 40, number % 2
            y, x = np.mgrid[:high, :wide]
            disc = (y - high / 2) ** 2 + (x - (10 if left else 30)) ** 2 < 49
            pixels = np.where(disc, 200, 60 + 20 * place) + rng.integers(0, 30, size=(high, wide))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / site / f"{number}.png")
            Image.fromarray((disc * 255).astype(np.uint8)).save(folder / site / f"{number}-mask.png")
            rows.append({"image": f"{site}/{number}.png", "mask": f"{site}/{number}-mask.png", "left": left})
        pd.DataFrame(rows).to_csv(folder / f"{site}.csv", index=False)


def picture_study(**changes: Any) -> dict[str, Any]:
    data = {"tables": {"A": "A.csv", "B": "B.csv"}, "image": "image", "size": [16, 16], "channels": "grey"}
    study: dict[str, Any] = {
        "data": {**data, "label": "left"}, "model": {"cnn": {"channels": [4, 8]}},
        "training": {"rounds": 3, "batch_size": 4}, "evaluation": {"folds": 2, "bootstrap": 0}, **FAST,
    }  # fmt: skip
    return study | changes


def test_pictures_are_predicted_as_in_the_study(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    study = picture_study()
    Study.of(study, tmp_path).run(tmp_path / "results")
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(fold=0))
    predictor = Predictor(read_model(tmp_path / "model"), sites_folder(tmp_path / "model"))
    for site in "AB":
        then = as_tested(tmp_path / "results", "fedavg", site)
        pd.DataFrame({"image": then["source"]}).to_csv(tmp_path / f"new-{site}.csv", index=False)
        done = predict_into(
            tmp_path / f"out-{site}", predictor, open_table(predictor.description, tmp_path / f"new-{site}.csv", site)
        )
        assert done.predictions["score"].tolist() == then["score"].tolist()


def test_masks_of_pictures_have_the_size_of_the_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    study = picture_study(
        task="segmentation", model={"unet": {"channels": [8, 16], "norm": "instance"}},
        training={"rounds": 25, "batch_size": 4, "optimizer": {"adam": {"lr": 0.01}}},
    )  # fmt: skip
    data = {key: value for key, value in study["data"].items() if key != "label"} | {"mask": "mask", "scaling": "none"}
    study["data"] = data
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(rounds=25))
    predictor = Predictor(read_model(tmp_path / "model"))
    (tmp_path / "new").mkdir()
    for number in range(3):
        (tmp_path / "A" / f"{number}.png").rename(tmp_path / "new" / f"{number}.png")
    done = predict_into(tmp_path / "out", predictor, open_images(predictor.description, tmp_path / "new", None))
    for number, name in enumerate(done.predictions["mask"]):
        found = np.asarray(Image.open(tmp_path / "out" / name)) > 0
        wanted = np.asarray(Image.open(tmp_path / "A" / f"{number}-mask.png")) > 0
        assert found.shape == wanted.shape
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.75
        assert done.predictions["pixels[foreground]"][number] == found.sum()


AFFINES = {
    "axial": np.diag([-1.0, -1.0, 2.0, 1.0]),
    "flipped": np.array([[0, 0, 1.5, -20], [-1.0, 0, 0, 30], [0, -1.2, 0, 10], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.9, -0.3, 0.05, 3], [0.3, 0.9, 0.2, -7], [-0.1, -0.15, 1.9, 11], [0, 0, 0, 1.0]]),
}


def ball(affine: np.ndarray, shape: tuple[int, int, int], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """An image of a ball in the middle of the volume, and its mask; in millimetres, whatever the voxels."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + np.array([3.0, -2.0, 1.0])
    inside = ((places - middle) ** 2).sum(axis=-1) < radius**2
    return np.where(inside, 100.0, 10.0) + np.random.default_rng(0).normal(size=shape), inside


@pytest.mark.parametrize("kind", AFFINES)
def test_masks_of_volumes_lie_on_their_images(tmp_path: Path, kind: str) -> None:
    """A perfect network would give the ball; here the truth is put in the place of its outputs."""
    from polyclinic.data.readers.read import read_volume
    from polyclinic.data.spec import Preprocessing
    from polyclinic.data.volumes.own_space import decided_in
    from polyclinic.data.volumes.preprocessing import grid_of, prepare_case
    from polyclinic.deployment.mask_files import write_nifti

    affine, shape = AFFINES[kind], (40, 36, 22)
    image, inside = ball(affine, shape, 9.0)
    saved = nibabel.Nifti1Image(image.astype(np.float32), affine)
    saved.set_qform(affine, 1)
    saved.header["descrip"] = b"Doe^Jane 1970"
    nibabel.save(saved, tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), affine), tmp_path / "truth.nii.gz")
    preparation = Preprocessing(spacing=1.5, size=(40, 40, 40), orientation="LPS")
    volume, truth = (read_volume(f"{name}.nii.gz", tmp_path) for name in ("image", "truth"))
    prepared = prepare_case([volume], truth, preparation, lambda values: (values > 0).astype(np.uint8))
    assert prepared.mask is not None
    grid, frame = grid_of(volume, preparation)
    mask = decided_in(prepared.mask.astype(np.float32), grid, frame, 0.5)
    write_nifti(tmp_path / "mask.nii.gz", mask, frame, tmp_path / "image.nii.gz")
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert written.shape == shape
    assert np.allclose(written.affine, affine, atol=1e-5)
    assert written.header["qform_code"] == saved.header["qform_code"]
    assert b"Doe" not in (tmp_path / "mask.nii.gz").read_bytes() + bytes(written.header.binaryblock)
    found = np.asarray(written.dataobj) > 0
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.95
    # Within a layer of voxels of the truth, on both sides.
    from scipy import ndimage

    assert not (found & ~ndimage.binary_dilation(inside, iterations=2)).any()
    assert not (ndimage.binary_erosion(inside, iterations=2) & ~found).any()


def test_several_structures_outside_the_grid_are_background() -> None:
    from polyclinic.data.readers.volume import Volume
    from polyclinic.data.volumes.grid import Grid
    from polyclinic.data.volumes.own_space import decided_in

    grid = Grid(np.diag([1.0, 1.0, 1.0, 1.0]), (4, 4, 4))
    probabilities = np.zeros((3, 4, 4, 4), dtype=np.float32)
    probabilities[0], probabilities[1, 0], probabilities[2, 3] = 0.4, 0.9, 0.8
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -2
    found = decided_in(probabilities, grid, Volume(np.zeros((8, 8, 8)), affine), 0.5)
    wanted = np.zeros((8, 8, 8), dtype=np.uint8)
    wanted[2, 2:6, 2:6], wanted[5, 2:6, 2:6] = 1, 2
    assert found.tolist() == wanted.tolist()
