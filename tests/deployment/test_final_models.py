"""Studies that end with a model: in every engine the same one, which ``polyclinic fit`` would make, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from deployment.round_trips import SITES, table_study, write_tables
from polyclinic import Model
from polyclinic.cli import app
from polyclinic.errors import StudyError
from polyclinic.study.display import Display
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import CARD_TEXT, DESCRIPTION, PREPARATION, VECTORS, WEIGHTS, read_model
from polyclinic.study.results import Results
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study

SAME = (DESCRIPTION, WEIGHTS, PREPARATION, VECTORS)
#: Keeps the normalisation of each site there.
FINAL: dict[str, Any] = {"methods": ["single", "fedbn"], "final_model": "fedbn",
                         "model": {"mlp": {"hidden": [6], "norm": "batch"}}}  # fmt: skip


def run(folder: Path, name: str = "out", engine: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Run a study that ends with a model; its results."""
    study = table_study(**{**FINAL, **changes})
    study["engine"] = {"threads": 1, "mode": "sequential", "jobs": 1, **(engine or {})}
    run_study(Study.of(study, folder), folder / name)
    return folder / name


def same(one: Path, other: Path) -> bool:
    """Whether two models, and what sites kept of them, are the same to the last byte."""
    names = [f"model/{name}" for name in SAME]
    names += [f"model-sites/{site}/model-part.safetensors" for site in SITES]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables, and the results of a study of them that ended with a model."""
    folder = tmp_path_factory.mktemp("made")
    write_tables(folder)
    run(folder)
    return folder


def test_it_is_what_a_fit_by_the_results_makes(made: Path) -> None:
    study = table_study(**{**FINAL, "final_model": None})
    del study["final_model"]
    study["engine"] = {"threads": 1, "mode": "sequential"}
    fit_model(Study.of(study, made), made / "fit" / "model", Wanted("fedbn", made / "out"))
    assert same(made / "out", made / "fit")
    own, fitted = (read_model(made / name / "model").description for name in ("out", "fit"))
    assert own == fitted
    assert own.rounds == int(Results(made / "out").rounds.query("run == 'final'")["round"].max()) + 1
    assert own.threshold == pytest.approx(
        Results(made / "out").predictions.query("method == 'fedbn'").groupby("fold")["threshold"].first().median()
    )


@pytest.mark.parametrize(
    "engine", [{"jobs": 2}, {"mode": "processes", "workers": 2}], ids=["side by side", "processes"]
)
def test_it_is_the_same_in_every_engine(made: Path, engine: dict[str, Any]) -> None:
    assert same(made / "out", run(made, str(engine), engine))


def test_it_goes_on_after_an_interruption(made: Path) -> None:
    class Interrupted(Display):
        def job(self, number: int, title: str, skipped: bool) -> None:
            self.last = title == "fedbn (final model)"

        def round(self, done: int, total: int) -> None:
            if self.last and done == 1:
                raise KeyboardInterrupt

    study = table_study(**FINAL)
    study["engine"] = {"threads": 1, "mode": "sequential", "jobs": 1}
    with pytest.raises(KeyboardInterrupt):
        run_study(Study.of(study, made), made / "again", display=Interrupted())
    assert not (made / "again" / "model").exists()
    assert len(Results(made / "again").results), "what the folds found is there"
    run_study(Study.of(study, made), made / "again", resume=True)
    assert same(made / "out", made / "again")
    run_study(Study.of(study, made), made / "again", resume=True)  # finished: nothing to do
    assert same(made / "out", made / "again")


def test_it_can_be_used_at_once(made: Path) -> None:
    found = Model(made / "out" / "model").predict(made / "B.csv", "B")
    assert len(found) == 30
    card = (made / "out" / "model" / CARD_TEXT).read_text()
    assert "fedbn" in card
    assert "model/card.html" in (made / "out" / "report.html").read_text()


def test_the_folds_are_as_without_it(made: Path) -> None:
    """Its training draws nothing that they draw, and no table of results has it."""
    study = table_study(**FINAL)
    del study["final_model"]
    study["engine"] = {"threads": 1, "mode": "sequential", "jobs": 1}
    run_study(Study.of(study, made), made / "without")
    for name in ("results.csv", "summary.csv", "predictions.csv", "comparisons.csv", "sites.csv", "flow.csv"):
        assert (made / "without" / name).read_bytes() == (made / "out" / name).read_bytes(), name
    rounds = [pd.read_csv(made / name / "rounds.csv").drop(columns="seconds") for name in ("without", "out")]
    pd.testing.assert_frame_equal(rounds[0], rounds[1].query("run != 'final'").reset_index(drop=True))


def test_a_model_alone(made: Path) -> None:
    study = table_study(**{**FINAL, "final_model": {"method": "fedbn", "rounds": 3, "alone": True}})
    (made / "alone.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(StudyError, match=r"P104 .*no results to return"):
        Study.read(made / "alone.yaml").run(made / "none")
    done = CliRunner().invoke(app, ["run", str(made / "alone.yaml"), "--out", str(made / "alone")])
    assert done.exit_code == 0, done.output
    assert f"Model: {made / 'alone' / 'model'}" in done.output
    assert "Report" not in done.output
    assert not (made / "alone" / "results.csv").exists()
    description = read_model(made / "alone" / "model").description
    assert (description.rounds, description.chosen) == (3, "as asked")
    cases = pd.read_csv(made / "alone" / "sites.csv").set_index("site")["used"]
    assert {site: one.cases for site, one in description.sites.items()} == cases.to_dict()
    again = CliRunner().invoke(app, ["run", str(made / "alone.yaml"), "--out", str(made / "alone"), "--resume"])
    assert again.exit_code == 0, again.output


def test_without_rounds_a_validation_part_chooses(made: Path) -> None:
    final = {"method": "fedbn", "alone": True}
    description = read_model(run(made, "validated", final_model=final) / "model").description
    cases = pd.read_csv(made / "validated" / "sites.csv").set_index("site")["used"]
    assert all(0.7 * cases[site] < one.cases < 0.9 * cases[site] for site, one in description.sites.items())
    assert description.threshold != 0.5


def test_a_search_chooses_its_values(made: Path) -> None:
    search = {"trials": 2, "parameters": {"training.optimizer.adam.lr": [0.02, 0.3]}, "nested": True}
    out = run(made, "searched", search=search, methods=["fedavg"], final_model="fedavg")
    chosen = pd.read_csv(out / "search.csv").query("chosen")["training.optimizer.adam.lr"].mode()[0]
    description = read_model(out / "model").description
    assert "searches chose" in description.chosen
    changed = {"training": {"optimizer": {"adam": {"lr": float(chosen)}}}, "methods": ["fedavg"]}
    study = table_study(**changed, model=FINAL["model"], engine={"mode": "sequential"})
    fit_model(Study.of(study, made), made / "by hand" / "model", Wanted("fedavg", rounds=description.rounds))
    assert (made / "by hand" / "model" / WEIGHTS).read_bytes() == (out / "model" / WEIGHTS).read_bytes()


def test_where_sites_keep_predictions_they_tell_the_threshold(made: Path) -> None:
    out = run(made, "kept", evaluation={"predictions": "sites"})
    assert not (out / "predictions.csv").exists()
    told = pd.read_csv(out / "thresholds.csv")
    assert list(told.columns) == ["method", "run", "seed", "fold", "trained_on", "threshold"]
    assert len(told) == 3 * (1 + len(SITES)), "of each fold one for fedbn, and one for each site alone"
    assert same(made / "out", out)


def test_what_can_not_be_calibrated_is_made_without(made: Path) -> None:
    final = {"method": "fedbn", "calibrate": True}
    out = run(made, "calibrated", final_model=final, evaluation={"predictions": "sites"})
    notes = [note for note in yaml.safe_load((out / "notes.json").read_text()) if note["number"] == "N907"]
    assert len(notes) == 1
    assert "the sites kept their predictions" in notes[0]["text"].lower()
    assert read_model(out / "model").description.calibration is None
    plain = run(made, "calibrated here", final_model=final)
    assert read_model(plain / "model").description.calibration is not None


def test_it_is_one_of_the_trainings_that_share_a_budget(made: Path) -> None:
    noisy = {"fedavg": {"channel": ["clip", "gaussian_noise"], "label": "noisy"}}
    budget = {"epsilon": 8.0, "delta": 0.001, "over": "study"}
    out = run(made, "private", methods=[noisy], final_model="noisy", privacy=budget, model={"mlp": {"hidden": [4]}})
    rows = pd.read_csv(out / "privacy.csv")
    assert rows["run"].value_counts().to_dict() == {"plain": 9, "final": 3}
    assert (rows["lifetime_epsilon"] <= 8.0).all()
    assert (rows.groupby("site")["lifetime_epsilon"].max() == rows.query("run == 'final'").set_index("site")[
        "lifetime_epsilon"]).all()  # fmt: skip
    assert rows["epsilon"].max() < 8.0 / 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"final_model": "fedavgg"}, "P103 .*final_model.method: 'fedavgg' is not among"),
        ({"final_model": "single"}, r"P104 .*single trains a model at each site"),
        ({"final_model": {"method": "fedbn", "alone": True, "calibrate": True}}, "P104 .*calibration needs"),
        ({"final_model": {"method": "fedbn", "rounds": 0}}, "P102"),
        ({"final_model": {"method": "fedbn", "round": 3}}, "P103 .*'round'"),
        ({"final_model": {"rounds": 3}}, "P102 .*method"),
        ({"final_model": {"method": "fedbn", "alone": True},
          "search": {"parameters": {"training.optimizer.adam.lr": [0.1, 0.2]}}}, "P104 .*Values are searched"),
    ],
)  # fmt: skip
def test_what_can_not_be_made_is_told_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(table_study(**{**FINAL, **changes})))
    with pytest.raises(StudyError, match=f"(?s){words}"):
        Study.read(tmp_path / "study.yaml")
