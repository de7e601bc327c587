"""Models in use on inputs that are not quite as in training: right, or refused in a sentence; never silently wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from deployment.round_trips import SITES, table_study, write_tables
from deployment.test_image_models import picture_study, write_pictures
from polyclinic.deployment import prediction
from polyclinic.deployment.evaluation import evaluate_model
from polyclinic.deployment.inputs import open_images, open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import Done, predict_into
from polyclinic.errors import ModelError, ResultsError
from polyclinic.study.final_model.fit import Wanted, fit_model, sites_folder
from polyclinic.study.final_model.folder import read_model
from polyclinic.study.study import Study

ONE_TABLE = {"tables": None, "table": "all.csv", "site": "hospital"}


def made(folder: Path, study: dict[str, Any]) -> Predictor:
    fit_model(Study.of(study, folder), folder / "model", Wanted(rounds=1))
    parts = sites_folder(folder / "model")
    return Predictor(read_model(folder / "model"), parts if parts.is_dir() else None)


def all_sites(folder: Path, names: dict[str, str]) -> pd.DataFrame:
    """The rows of all sites, which have other names, in one table."""
    table = pd.concat(write_tables(folder).values(), ignore_index=True)
    table.to_csv(folder / "all.csv", index=False)
    return table.assign(hospital=table["hospital"].map(names))


def predicted(
    predictor: Predictor, folder: Path, name: str, table: pd.DataFrame, reference: pd.DataFrame | None = None,
    site: str | None = None, *, resume: bool = False,
) -> Done:  # fmt: skip
    opened = []
    for place, one in enumerate([table] if reference is None else [table, reference]):
        one.to_csv(folder / f"{name}-{place}.csv", index=False)
        opened.append(open_table(predictor.description, folder / f"{name}-{place}.csv", site))
    others = opened[1] if len(opened) > 1 else None
    return predict_into(folder / name, predictor, opened[0], reference=others, resume=resume)


# Whose cases they are ------------------------------------------------------------------------------------------------


def test_reference_cases_are_those_of_the_same_site(tmp_path: Path) -> None:
    """The sites' features differ, so scaling one by another would show."""
    table = all_sites(tmp_path, {"A": "North", "B": "South", "C": "North"})
    predictor = made(tmp_path, table_study(data=ONE_TABLE))
    alone = predicted(predictor, tmp_path, "alone", table).predictions
    together = predicted(predictor, tmp_path, "together", table, reference=table).predictions
    assert together["score"].tolist() == alone["score"].tolist()
    north, south = (table[table["hospital"] == name] for name in ("North", "South"))
    with pytest.raises(ModelError, match="no case of site North, but of South"):
        predicted(predictor, tmp_path, "other", north, reference=south)
    with pytest.raises(ModelError, match="does not say of which site"):
        predicted(predictor, tmp_path, "nameless", table, reference=south.drop(columns="hospital"))


def test_predictions_go_on_with_the_same_reference_only(tmp_path: Path) -> None:
    table = all_sites(tmp_path, dict.fromkeys(SITES, "North"))
    predictor = made(tmp_path, table_study(data=ONE_TABLE))
    predicted(predictor, tmp_path, "out", table, reference=table.iloc[:40])
    predicted(predictor, tmp_path, "out", table, reference=table.iloc[:40], resume=True)
    for other in (table.iloc[40:], None):
        with pytest.raises(ResultsError, match="reference_sha256 differ"):
            predicted(predictor, tmp_path, "out", table, reference=other, resume=True)


def test_a_table_that_names_other_sites_is_refused(tmp_path: Path) -> None:
    table = all_sites(tmp_path, {name: name for name in SITES})
    predictor = made(tmp_path, table_study(data=ONE_TABLE))
    with pytest.raises(ModelError, match=r"names the site 'B', 'C' in 54 rows \(column 'hospital'\), and not 'A'"):
        predicted(predictor, tmp_path, "all", table, site="A")
    mine = table[table["hospital"] == "A"]
    named = predicted(predictor, tmp_path, "named", mine, site="A").predictions
    bare = predicted(predictor, tmp_path, "bare", mine.drop(columns="hospital"), site="A").predictions
    assert named["score"].tolist() == bare["score"].tolist()


def test_a_row_that_cannot_be_divided_does_not_stop_the_others(tmp_path: Path) -> None:
    tables = write_tables(tmp_path)
    study = table_study(data={"features": ["volume"], "categorical": [], "divide_by": "age", "scaling": "federated"})
    predictor = made(tmp_path, study)
    whole = predicted(predictor, tmp_path, "whole", tables["A"], site="A").predictions["score"].tolist()
    spoiled = tables["A"].copy()
    spoiled.loc[0, "age"] = "0"
    done = predicted(predictor, tmp_path, "spoiled", spoiled, site="A")
    assert done.predictions["score"].tolist() == whole[1:]
    assert done.failures["reason"].tolist() == ["age is not positive"]


# Evaluated elsewhere -------------------------------------------------------------------------------------------------


def evaluated(folder: Path, name: str, **content: Any) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Predictions and notes of an evaluation of the model in ``folder``."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"study": name, **content}), encoding="utf-8")
    parts = sites_folder(folder / "model")
    evaluate_model(
        read_model(folder / "model"), folder / f"{name}.yaml", folder / name, parts=parts if parts.is_dir() else None
    )
    notes = json.loads((folder / name / "notes.json").read_text(encoding="utf-8"))
    return pd.read_csv(folder / name / "predictions.csv"), notes


HERE: dict[str, Any] = {"tables": {"New": "A.csv"}, "subject": "patient", "label": "sick"}


def test_another_positive_class_is_told(tmp_path: Path) -> None:
    write_tables(tmp_path)
    made(tmp_path, table_study())
    same, notes = evaluated(tmp_path, "same", data=HERE | {"positive": "yes"})
    unsaid, _ = evaluated(tmp_path, "unsaid", data=HERE)
    assert unsaid["label"].tolist() == same["label"].tolist()
    assert "N905" not in [note["number"] for note in notes]
    turned, notes = evaluated(tmp_path, "turned", data=HERE | {"positive": "no"})
    assert turned["label"].tolist() == (1 - same["label"]).tolist()
    told = next(note["text"] for note in notes if note["number"] == "N905")
    assert told.startswith("The study calls 'no' positive, and the model 'yes'")


def test_missing_values_are_written_as_for_the_model(tmp_path: Path) -> None:
    tables = write_tables(tmp_path)
    made(tmp_path, table_study(data={"missing": ["", "-9"], "scaling": "federated"}))
    tables["A"].assign(age=["-9", *tables["A"]["age"][1:]]).to_csv(tmp_path / "coded.csv", index=False)
    tables["A"].assign(age=["", *tables["A"]["age"][1:]]).to_csv(tmp_path / "empty.csv", index=False)
    found = [
        evaluated(tmp_path, f"of-{name}", data=HERE | {"tables": {"New": f"{name}.csv"}, "positive": "yes"})[0]["score"]
        for name in ("coded", "empty")
    ]
    assert found[0].tolist() == found[1].tolist()


def test_sites_that_trained_are_told(tmp_path: Path) -> None:
    write_tables(tmp_path)
    made(tmp_path, table_study())
    there = HERE | {"tables": {"A": "A.csv", "New": "B.csv"}, "positive": "yes"}
    _, notes = evaluated(tmp_path, "with", data=there)
    assert [note["number"] for note in notes if note["number"] > "N900"] == ["N906", "N902"]
    sites_folder(tmp_path / "model").rename(tmp_path / "elsewhere")
    _, notes = evaluated(tmp_path, "without", data=there)
    assert [note["number"] for note in notes if note["number"] > "N900"] == ["N906", "N901", "N902", "N902"]


def test_survival_in_another_unit_or_at_other_times_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path)
    times = {"label": None, "positive": None, "time": "time", "event": "event", "time_unit": "days"}
    made(tmp_path, table_study(task="survival", evaluation={"times": [200.0, 300.0]}, data=times))
    here = {"tables": {"New": "A.csv"}, "subject": "patient", "time": "time", "event": "event"}
    with pytest.raises(ModelError, match="The times of the study are in months, and those of the model in days"):
        evaluated(tmp_path, "months", task="survival", data=here | {"time_unit": "months"})
    with pytest.raises(ModelError, match="survival at 100, and the model tells it at 200, 300"):
        evaluated(
            tmp_path, "soon", task="survival", data=here | {"time_unit": "days"}, evaluation={"times": [100, 200]}
        )
    rows, _ = evaluated(
        tmp_path, "good", task="survival", data=here | {"time_unit": "days"}, evaluation={"times": [200]}
    )
    assert "survival[200]" in rows


# Images --------------------------------------------------------------------------------------------------------------


def test_16_bit_pictures_need_a_white_that_does_not_depend_on_others(tmp_path: Path) -> None:
    """Without `bits` the brightest picture would tell what is white, and pictures are read a few at a time."""
    write_pictures(tmp_path)
    (tmp_path / "new").mkdir()
    dark = np.arange(900, dtype=np.uint16).reshape(30, 30)
    Image.fromarray(dark).save(tmp_path / "new" / "dark.png")
    Image.fromarray(dark * 4).save(tmp_path / "new" / "light.png")
    for name, bits in (("without", None), ("with", 12)):
        data = picture_study()["data"] | {"scaling": "none"} | ({} if bits is None else {"bits": bits})
        fit_model(Study.of(picture_study(data=data), tmp_path), tmp_path / name, Wanted(rounds=1))
        predictor = Predictor(read_model(tmp_path / name))
        cases = open_images(predictor.description, tmp_path / "new", None)
        if bits is None:
            with pytest.raises(ModelError, match="16-bit pixels, and the study says with no `bits` what is white"):
                predict_into(tmp_path / f"out-{name}", predictor, cases)
            continue
        both = predict_into(tmp_path / f"out-{name}", predictor, cases).predictions["score"]
        (tmp_path / "new" / "light.png").unlink()
        cases = open_images(predictor.description, tmp_path / "new", None)
        assert predict_into(tmp_path / "alone", predictor, cases).predictions["score"][0] == both[0]


OBLIQUE = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
SHAPE = (12, 14, 10)


def inside(seed: int) -> np.ndarray:
    """0 outside, 1 and 4 within."""
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[3:7, 4:9, 2:6], values[3:5, 4:6, 2:4], values[0, 0, 0] = 1, 4, 1
    values[1 + seed % 9, 1, 8] = 4
    return values


def volume_study(folder: Path, **data: Any) -> dict[str, Any]:
    for site in "AB":
        (folder / site).mkdir(exist_ok=True)
        rows = []
        for number in range(4):
            values = inside(number)
            for name, one in (("image", values.astype(np.float32)), ("mask", values)):
                nibabel.save(nibabel.Nifti1Image(one, np.eye(4)), folder / site / f"{number}-{name}.nii.gz")
            rows.append({name: f"{site}/{number}-{name}.nii.gz" for name in ("image", "mask")})
        pd.DataFrame(rows).to_csv(folder / f"{site}.csv", index=False)
    preparation = {"size": [16, 16, 16], "intensity": "none"}
    return {
        "task": "segmentation",
        "data": {"tables": {"A": "A.csv", "B": "B.csv"}, "image": "image", "mask": "mask",
                 "preprocessing": preparation, "cache": str(folder / "cache")} | data,
        "model": {"unet": {"channels": [4, 8], "norm": "instance"}}, "training": {"rounds": 1, "batch_size": 2},
        "evaluation": {"folds": 2, "bootstrap": 0}, "engine": {"threads": 1}, "methods": ["fedavg"],
    }  # fmt: skip


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that says of each voxel what the image does: 0, 1, 4."""

    def told(ready: Any, vectors: Any, index: torch.Tensor) -> tuple[torch.Tensor, None]:
        images = ready.dataset.batch(index)[0]
        classes = [0.0, 1.0, 4.0]
        return torch.cat([(images - one).abs() < 0.5 for one in classes], dim=1).float(), None

    monkeypatch.setattr(prediction.evaluation, "probabilities", told)


SAVED: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "NIfTI-1": ("image.nii.gz", lambda values: nibabel.Nifti1Image(values, OBLIQUE)),
    "NIfTI-2": ("image.nii", lambda values: nibabel.Nifti2Image(values, OBLIQUE)),
    "pair": ("image.hdr", lambda values: nibabel.Nifti1Pair(values, OBLIQUE)),
}


@pytest.mark.usefixtures("perfect")
@pytest.mark.parametrize("kind", SAVED)
def test_masks_of_every_nifti_have_the_values_of_the_studys_masks(tmp_path: Path, kind: str) -> None:
    """Read as a mask of the study, a mask that was predicted is what was predicted: 4 stays 4."""
    predictor = made(tmp_path, volume_study(tmp_path, mask_classes={"oedema": 1, "tumour": 4}))
    name, image = SAVED[kind]
    (tmp_path / "new").mkdir()
    saved = image(inside(7).astype(np.float32))
    saved.set_qform(OBLIQUE, 1)
    nibabel.save(saved, tmp_path / "new" / name)
    done = predict_into(tmp_path / "out", predictor, open_images(predictor.description, tmp_path / "new", None))
    assert len(done.predictions) == 1
    assert done.failures.empty
    written = nibabel.load(tmp_path / "out" / done.predictions["mask"][0])
    assert np.array_equal(np.asarray(written.dataobj), inside(7))
    assert np.allclose(written.affine, OBLIQUE, atol=1e-6)
    assert done.predictions["millilitres[tumour]"][0] == pytest.approx((inside(7) == 4).sum() * 2.0 / 1000)
    record = json.loads((tmp_path / "out" / "prediction.json").read_text(encoding="utf-8"))
    assert record["mask_values"] == {"background": 0, "oedema": 1, "tumour": 4}


def test_structures_are_compared_by_name(tmp_path: Path) -> None:
    made(tmp_path, volume_study(tmp_path, mask_classes={"oedema": 1, "tumour": 4}))
    here = {"tables": {"New": "A.csv"}, "image": "image", "mask": "mask"}
    plain, _ = evaluated(tmp_path, "plain", task="segmentation", data=here)
    turned, _ = evaluated(
        tmp_path, "turned", task="segmentation", data=here | {"mask_classes": {"tumour": 4, "oedema": 1}}
    )
    pd.testing.assert_frame_equal(plain, turned)
    for names in ({"a": 1, "b": 4}, ["tumour", "oedema"]):
        with pytest.raises(ModelError, match="and the model has oedema, tumour"):
            evaluated(tmp_path, "other", task="segmentation", data=here | {"mask_classes": names})
