"""Pictures of 16 bits whose white each site knows for itself: predicted as in the study, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from deployment.round_trips import as_tested
from deployment.test_image_models import picture_study, write_pictures
from polyclinic.deployment.evaluation import evaluate_model
from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.engine.local import folder_name
from polyclinic.errors import ModelError, ResultsError
from polyclinic.site.model_part import PART, ModelPart
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import read_model, sites_folder
from polyclinic.study.results import Results
from polyclinic.study.study import Study

#: The brightest pixel of A needs 12 bits, that of B 10.
UP = {"A": 16, "B": 4}


def write_deep(folder: Path) -> None:
    """The pictures of `write_pictures` with 16 bits, of which each site uses others; two of A are dark."""
    write_pictures(folder)
    for site, factor in UP.items():
        for path in (folder / site).glob("?.png"):
            pixels = np.asarray(Image.open(path)).astype(np.uint16) * factor
            Image.fromarray(pixels // 8 if path.stem in "37" and site == "A" else pixels).save(path)


def study_of(scaling: str, **data: Any) -> dict[str, Any]:
    return picture_study(data=picture_study()["data"] | {"scaling": scaling} | data)


def predicted_alone(folder: Path, predictor: Predictor, site: str, paths: list[str]) -> list[float]:
    """Scores of pictures that are predicted one by one, so that none can tell of another."""
    scores = []
    for number, path in enumerate(paths):
        table = folder / f"one-{site}-{number}.csv"
        pd.DataFrame({"image": [path]}).to_csv(table, index=False)
        done = predict_into(folder / f"out-{site}-{number}", predictor, open_table(predictor.description, table, site))
        scores += done.predictions["score"].tolist()
    return scores


@pytest.mark.parametrize(("scaling", "mode"), [("per_site", "sequential"), ("federated", "processes")])
def test_pictures_of_each_site_are_predicted_as_in_the_study(tmp_path: Path, scaling: str, mode: str) -> None:
    write_deep(tmp_path)
    study = study_of(scaling) | {"engine": {"threads": 1, "mode": mode}}
    Study.of(study, tmp_path).run(tmp_path / "results")
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(fold=0))
    parts = sites_folder(tmp_path / "model")
    predictor = Predictor(read_model(tmp_path / "model"), parts)
    depths = {site: ModelPart.read(parts / folder_name(site) / PART).depth for site in UP}
    assert depths == {"A": 12, "B": 10}
    told = predictor.description.sites
    assert {site: (one.white, one.prepares) for site, one in told.items()} == dict.fromkeys(
        UP, (True, scaling == "per_site")
    )
    assert "12" not in (tmp_path / "model" / "card.md").read_text().split("What stays there")[1].split("\n\n")[0]
    for site in UP:
        then = as_tested(tmp_path / "results", "fedavg", site)
        scores = predicted_alone(tmp_path, predictor, site, then["source"].tolist())
        assert scores == pytest.approx(then["score"].tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    write_deep(folder)
    fit_model(Study.of(study_of("none"), folder), folder / "model", Wanted(rounds=1))
    return folder


def test_where_nothing_tells_what_is_white_it_is_not_guessed(made: Path, tmp_path: Path) -> None:
    for site, parts in (("C", sites_folder(made / "model")), ("A", None)):
        predictor = Predictor(read_model(made / "model"), parts)
        pd.DataFrame({"image": [f"{made}/A/0.png"]}).to_csv(made / f"new-{site}.csv", index=False)
        cases = open_table(predictor.description, made / f"new-{site}.csv", site)
        with pytest.raises(ModelError, match="16-bit pixels, and the study says with no `bits` what is white"):
            predict_into(tmp_path / site, predictor, cases)
        notes = predictor.at(site, cases, tmp_path / "cache").notes
        assert [note.number for note in notes] == ["N901"] * (site == "A")


def test_a_model_is_evaluated_with_the_white_that_it_was_trained_with(made: Path, tmp_path: Path) -> None:
    model, parts = read_model(made / "model"), sites_folder(made / "model")

    def evaluated(site: str, out: str, **data: Any) -> pd.DataFrame:
        content = {"study": "Again", "evaluation": {"bootstrap": 0}}
        content["data"] = {"tables": {site: f"{site}-again.csv"}, "image": "image", "label": "left", **data}
        (made / f"{out}.yaml").write_text(yaml.safe_dump(content))
        evaluate_model(model, made / f"{out}.yaml", tmp_path / out, parts=parts)
        return Results(tmp_path / out).predictions

    pd.read_csv(made / "B.csv").to_csv(made / "B-again.csv", index=False)
    whole = evaluated("B", "whole")
    alone = predicted_alone(made, Predictor(model, parts), "B", [f"B/{n}.png" for n in range(10)])
    assert sorted(whole["score"]) == pytest.approx(sorted(alone), abs=1e-6)
    table = pd.read_csv(made / "A.csv")
    table[table["image"].isin(["A/3.png", "A/7.png"])].assign(left=[0, 1]).to_csv(made / "A-again.csv", index=False)
    with pytest.raises(ModelError, match=r"White has \d+ bits in these pictures of site A; in training it had 12") as e:
        evaluated("A", "dark")
    assert "Say `bits: 12`" in e.value.hint
    same = evaluated("A", "said", bits=12)
    alone = predicted_alone(made, Predictor(model, parts), "A", [f"A/{n}.png" for n in (3, 7)])
    assert sorted(same["score"]) == pytest.approx(sorted(alone), abs=1e-6)
    with pytest.raises(ModelError, match="White has 14 bits"):
        evaluated("A", "other", bits=14)


def test_a_part_that_was_changed_is_refused(made: Path, tmp_path: Path) -> None:
    kept = sites_folder(made / "model") / folder_name("A") / PART
    with safe_open(kept, "pt") as file:
        assert '"depth": 12' in file.metadata()["about"]
    part = ModelPart.read(kept)
    for depth in (11, True, "12"):
        ModelPart(part.site, part.model, part.weights, part.steps, depth).write(tmp_path / PART)  # type: ignore[arg-type]
        with pytest.raises(ResultsError, match="expected one of 8, 10, 12, 14, 16"):
            ModelPart.read(tmp_path / PART)


def test_with_bits_or_with_8_bits_a_site_keeps_nothing_of_it(tmp_path: Path) -> None:
    write_deep(tmp_path)
    fit_model(Study.of(study_of("none", bits=12), tmp_path), tmp_path / "said", Wanted(rounds=1))
    (tmp_path / "flat").mkdir()
    write_pictures(tmp_path / "flat")
    fit_model(Study.of(study_of("none"), tmp_path / "flat"), tmp_path / "flat-model", Wanted(rounds=1))
    for name in ("said", "flat-model"):
        assert not list(sites_folder(tmp_path / name).rglob(PART))
        assert not any(one.white for one in read_model(tmp_path / name).description.sites.values())
