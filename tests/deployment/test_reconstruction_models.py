"""Models that reconstruct: the study's own values, and images in the space and the units of those that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polyclinic.deployment.dicom_seg import SegWriter
from polyclinic.deployment.evaluation import evaluate_model
from polyclinic.deployment.export.bundle import export_bundle
from polyclinic.deployment.export.onnx import export_onnx
from polyclinic.deployment.inputs import open_images
from polyclinic.deployment.loaded import Model
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.errors import ModelError, PolyclinicError
from polyclinic.study.final_model.card import card_text
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import CARD_TEXT, read_model
from polyclinic.study.study import Study

NETWORK = {"unrolled": {"network": {"unet": {"channels": [2, 4], "residual_units": 0}}}}
#: Axes at right angles that point to the patient's feet, front and right, turned by an angle of a 3-4-5 triangle.
OBLIQUE = np.array([[0, -0.6, 1.6, 3], [0, 0.8, 1.2, -7], [-2.0, 0, 0, 11], [0, 0, 0, 1.0]])


def study_of(folder: Path, *, lines: float = 3, **data: Any) -> dict[str, Any]:
    tables = {"A": "A.csv", "B": "B.csv"}
    given = {"tables": tables, "image": "image", "undersampling": {"acceleration": lines}, **data}
    return {
        "task": "reconstruction", "data": given, "model": NETWORK, "methods": ["fedavg"], "engine": {"threads": 1},
        "training": {"rounds": 1, "batch_size": 4}, "evaluation": {"folds": 2, "bootstrap": 0},
    }  # fmt: skip


def write_pictures(folder: Path, cases: int = 6) -> None:
    for place, site in enumerate("AB"):
        rng = np.random.default_rng(place)
        (folder / site).mkdir()
        for number in range(cases):
            pixels = rng.integers(0, 256, size=(16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / site / f"{number}.png")
        names = [f"{site}/{number}.png" for number in range(cases)]
        pd.DataFrame({"image": names}).to_csv(folder / f"{site}.csv", index=False)


def write_volumes(folder: Path, affine: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for place, site in enumerate("AB"):
        rng, names = np.random.default_rng(place), []
        for number in range(3):
            voxels = rng.uniform(50, 3000, size=(9, 12, 10)).astype(np.float32)
            image = nibabel.Nifti1Image(voxels, affine)
            image.set_qform(affine, 1)
            image.header["descrip"] = b"Doe^Jane 1970"
            names.append(f"{site}-{number}.nii.gz")
            nibabel.save(image, folder / names[-1])
            found[names[-1]] = voxels
        pd.DataFrame({"image": names}).to_csv(folder / f"{site}.csv", index=False)
    return found


def predictor_of(entries: dict[str, Any], folder: Path) -> Predictor:
    fit_model(Study.of(entries, folder), folder / "model", Wanted(rounds=1))
    return Predictor(read_model(folder / "model"))


def test_pictures_are_reconstructed_as_in_the_study(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    entries = study_of(tmp_path, size=[16, 16])
    Study.of(entries, tmp_path).run(tmp_path / "results")
    fit_model(Study.of(entries, tmp_path), tmp_path / "model", Wanted(fold=0))
    model = Model(tmp_path / "model")
    tested = pd.read_csv(tmp_path / "results" / "predictions.csv")
    now = {site: model.predict(tmp_path / f"{site}.csv", site, out=tmp_path / f"out-{site}") for site in "AB"}
    for site, found in now.items():
        own = tested[(tested["site"] == site) & (tested["fold"] == 0)]
        assert len(own) == 3
        for name in ("psnr", "ssim", "nmse", "psnr[zero-filled]"):
            values = found[name].round(9).tolist()
            assert all(value in values for value in own[name].round(9))
        first = tmp_path / f"out-{site}" / found["reconstruction"][0]
        pixels, truth = (np.asarray(Image.open(path)) for path in (first, tmp_path / site / "0.png"))
        assert (pixels.dtype, pixels.shape) == (np.uint8, (16, 16))
        error = ((pixels.astype(float) - truth) ** 2).mean()
        assert 10 * np.log10(float(truth.max()) ** 2 / error) == pytest.approx(found["psnr"][0], abs=0.3), (
            "bytes are rounded"
        )
    card = (tmp_path / "model" / CARD_TEXT).read_text()
    assert "without phase, coils" in card
    assert "one of 3 of its lines" in card
    with pytest.raises(ModelError, match=r"P704.*Fourier transforms"):
        export_bundle(read_model(tmp_path / "model"), tmp_path / "bundle")
    with pytest.raises(PolyclinicError, match=r"P704.*Fourier transforms|P503"):
        export_onnx(read_model(tmp_path / "model"), tmp_path / "onnx")


def test_a_model_is_evaluated_with_its_own_lines(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    predictor_of(study_of(tmp_path, size=[16, 16]), tmp_path)
    text = "task: reconstruction\ndata:\n  tables: {A: A.csv, B: B.csv}\n  image: image\n"
    (tmp_path / "new.yaml").write_text(text + "evaluation: {bootstrap: 0}\n")
    report = evaluate_model(read_model(tmp_path / "model"), tmp_path / "new.yaml", tmp_path / "evaluated")
    assert "zero-filled" in report.read_text()
    cases = pd.read_csv(tmp_path / "evaluated" / "predictions.csv")
    found = Model(tmp_path / "model").predict(tmp_path / "A.csv", "A")
    assert cases[cases["site"] == "A"]["psnr"].round(9).tolist() == found["psnr"].round(9).tolist()
    (tmp_path / "new.yaml").write_text(text + "  undersampling: {acceleration: 8}\n")
    with pytest.raises(ModelError, match=r"P702.*other lines of k-space"):
        evaluate_model(read_model(tmp_path / "model"), tmp_path / "new.yaml", tmp_path / "other")


@pytest.mark.parametrize(
    ("intensity", "apart"),
    [
        ("none", 0.05),
        # Prepared values are kept with 16 bits.
        ({"percentile": {"lower": 0, "upper": 100}}, 3),
        ({"window": {"lower": 0, "upper": 4000}}, 3),
    ],
)
def test_with_all_lines_an_image_comes_back_as_it_is(tmp_path: Path, intensity: Any, apart: float) -> None:
    """Measured lines are put back as they are; of all of them the image is made, whatever the network adds."""
    images = write_volumes(tmp_path, OBLIQUE)
    preparation = {"orientation": "SAR", "size": [10, 13, 11], "intensity": intensity}
    predictor = predictor_of(study_of(tmp_path, lines=1, preprocessing=preparation), tmp_path)
    card = card_text(predictor.description, [], {})
    assert ("intensities are left" in card) == (intensity == "none")
    assert "to the longest: 1 x 2 x 2 mm" in card, "all have the same voxels"
    (tmp_path / "new").mkdir()
    for name in list(images)[:2]:
        (tmp_path / name).rename(tmp_path / "new" / name)
    done = predict_into(tmp_path / "out", predictor, open_images(predictor.description, tmp_path / "new", None))
    assert [note.number for note in done.notes if note.number == "N909"] == ["N909"]
    for case, name in zip(done.predictions["case"], done.predictions["reconstruction"], strict=True):
        written = nibabel.load(tmp_path / "out" / name)
        assert np.allclose(written.affine, OBLIQUE, atol=1e-6)
        assert written.get_data_dtype() == np.float32
        assert b"Doe" not in bytes(written.header.binaryblock)
        np.testing.assert_allclose(written.get_fdata(), images[case], rtol=0, atol=apart)


def test_voxels_outside_of_the_grid_are_zero(tmp_path: Path) -> None:
    images = write_volumes(tmp_path, np.diag([2.0, 2.0, 3.0, 1.0]))
    predictor = predictor_of(study_of(tmp_path, lines=1, preprocessing={"size": [5, 8, 8]}), tmp_path)
    done = predict_into(tmp_path / "out", predictor, open_images(predictor.description, tmp_path, None))
    written = nibabel.load(tmp_path / "out" / done.predictions["reconstruction"][0]).get_fdata()
    inside = written != 0
    assert inside.sum() == 5 * 8 * 8
    np.testing.assert_allclose(written[inside], images[done.predictions["case"][0]][inside], rtol=1e-5)


def test_complex_images_are_refused_and_the_others_predicted(tmp_path: Path) -> None:
    write_volumes(tmp_path, np.eye(4))
    predictor = predictor_of(study_of(tmp_path, preprocessing={"size": [8, 8, 8]}), tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "A-0.nii.gz").rename(tmp_path / "new" / "whole.nii.gz")
    measured = np.random.default_rng(0).normal(size=(9, 12, 10)).astype(np.complex64)
    nibabel.save(nibabel.Nifti1Image(measured, np.eye(4)), tmp_path / "new" / "kspace.nii.gz")
    done = predict_into(tmp_path / "out", predictor, open_images(predictor.description, tmp_path / "new", None))
    assert done.predictions["case"].tolist() == ["whole.nii.gz"]
    assert done.failures["case"].tolist() == ["kspace.nii.gz"]


def test_a_reconstruction_is_no_dicom(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    write_volumes(tmp_path, np.eye(4))
    predictor = predictor_of(study_of(tmp_path, preprocessing={"size": [8, 8, 8]}), tmp_path)
    with pytest.raises(ModelError, match=r"P702 DICOM SEG is for masks"):
        SegWriter(predictor.description)
