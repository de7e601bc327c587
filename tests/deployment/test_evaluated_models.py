"""A model at other sites: its numbers are those of its predictions, by other ways of counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from deployment.round_trips import table_study, write_tables
from polyclinic import Model, Study
from polyclinic.deployment.evaluation import evaluate_model
from polyclinic.errors import ModelError, PolyclinicError
from polyclinic.study.final_model.fit import Wanted, fit_model, sites_folder
from polyclinic.study.final_model.folder import read_model
from polyclinic.study.results import Results
from polyclinic.tasks import TASKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three sites, and two tables elsewhere: one of a site that trained, one that calls things by other
    names and has a group that no site had."""
    made = tmp_path_factory.mktemp("made")
    tables = write_tables(made)
    Model.fit(Study.of(table_study(training={"rounds": 12}), made), made / "model", rounds=12)
    rng, cases = np.random.default_rng(8), 90
    sick = rng.random(cases) < 0.5
    pd.DataFrame({
        "volume": np.round(1300 + 60 * sick + rng.normal(scale=80, size=cases), 1),
        "group": np.where(np.arange(cases) < 5, "new", rng.choice(["x", "z"], cases)),
        "age": np.round(70 + 9 * sick + rng.normal(scale=7, size=cases), 1), "id": [f"d{n}" for n in range(cases)],
        "outcome": np.where(sick, "ill", "well"), "sex": rng.choice(["f", "m"], cases),
    }).to_csv(made / "D.csv", index=False)  # fmt: skip
    tables["B"].assign(
        id=tables["B"]["patient"], sex="f", outcome=np.where(tables["B"]["sick"] == "yes", "ill", "well")
    )[["id", "sex", "age", "volume", "group", "outcome"]].to_csv(made / "B2.csv", index=False)
    return made


def study(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "study": "Elsewhere",
        "data": {"tables": {"D": "D.csv", "B": "B2.csv"}, "subject": "id", "label": "outcome", "positive": "ill"},
        "evaluation": {"subgroups": ["sex"], "bootstrap": 0},
    }  # fmt: skip
    path = folder / f"elsewhere-{len(list(folder.glob('elsewhere-*')))}.yaml"
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


def test_the_report_is_of_the_predictions(folder: Path, tmp_path: Path) -> None:
    model, parts = read_model(folder / "model"), sites_folder(folder / "model")
    report = evaluate_model(model, study(folder), tmp_path / "out", parts=parts)
    assert "Calibration" in report.read_text(encoding="utf-8")
    results = Results(tmp_path / "out")
    table = pd.read_csv(folder / "D.csv")
    for site, name in (("D", "D.csv"), ("B", "B2.csv")):
        cells = pd.read_csv(folder / name)
        known = cells[cells["group"] != "new"].reset_index(drop=True)
        mine = results.predictions[results.predictions["site"] == site]
        alone = Model(folder / "model").predict(known.rename(columns={"id": "patient"}), site)
        assert mine["score"].tolist() == alone["score"].tolist()
        labels = (known["outcome"] == "ill").astype(int)
        assert mine["label"].tolist() == labels.tolist()
        rows = results.results
        found = rows[(rows["tested_on"] == site) & (rows["metric"] == "auc")]["value"].item()
        assert found == pytest.approx(roc_auc_score(labels, alone["score"]), abs=1e-9)
    sites = results.sites.set_index("site")
    assert sites.loc["D", "rejected"] == (table["group"] == "new").sum() == 5
    assert {"subgroups.csv", "calibration.csv", "decisions.csv"} <= {one.name for one in (tmp_path / "out").iterdir()}
    assert [note.number for note in results.notes].count("N902") == 1  # D alone: B took part


def test_recalibration_is_a_logistic_regression(folder: Path, tmp_path: Path) -> None:
    model = read_model(folder / "model")
    evaluate_model(model, study(folder), tmp_path / "out", parts=sites_folder(folder / "model"), recalibrate="all")
    rows = Results(tmp_path / "out").predictions
    plain = rows[rows["method"] == "fedavg"].reset_index(drop=True)
    other = rows[rows["method"] == "fedavg, recalibrated"].reset_index(drop=True)
    odds = np.log(plain["score"] / (1 - plain["score"])).to_numpy()[:, None]
    fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(odds, plain["label"])
    told = yaml.safe_load((tmp_path / "out" / "recalibration.yaml").read_text(encoding="utf-8"))["fits"]["all sites"]
    assert told["slope"] == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
    assert told["intercept"] == pytest.approx(fitted.intercept_[0], abs=1e-4)
    assert other["subject"].tolist() == plain["subject"].tolist()
    # The order of cases is kept within each fifth of the patients, and so are decisions.
    assert ((other["score"] >= other["threshold"]) == (plain["score"] >= plain["threshold"])).all()
    apart = (other["score"] - 1 / (1 + np.exp(-(told["intercept"] + told["slope"] * odds[:, 0])))).abs()
    assert 0 < apart.max() < 0.2  # fitted without the case itself


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "regression"}, "The study is about regression"),
        ({"data": None}, "does not say where the cases are"),
        ({"data": {"tables": {"D": "D.csv"}, "subject": "id", "label": "sex"}, "evaluation": {}}, "is true of no row"),
    ],
)
def test_another_question_is_refused(folder: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PolyclinicError, match=words):
        evaluate_model(read_model(folder / "model"), study(folder, **changes), tmp_path / "out")


def test_numbers_are_not_recalibrated(folder: Path, tmp_path: Path) -> None:
    entries = table_study(task="regression", data={"label": "score", "positive": None})
    Model.fit(Study.of(entries, folder), tmp_path / "model", rounds=2)
    with pytest.raises(ModelError, match="P702 Only probabilities of two classes"):
        evaluate_model(read_model(tmp_path / "model"), study(folder), tmp_path / "out", recalibrate="site")


def test_an_evaluation_has_the_loss_of_the_model_with_its_options(folder: Path, tmp_path: Path) -> None:
    losses = TASKS["classification"].losses

    @losses.add("tempered")
    def tempered(outputs: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
        """Cross-entropy at a temperature, which has no default."""
        return functional.cross_entropy(outputs / temperature, targets, reduction="none")

    try:
        entries = table_study(training={"loss": {"tempered": {"temperature": 2.5}}})
        fit_model(Study.of(entries, folder), tmp_path / "model", Wanted(rounds=2))
        model = read_model(tmp_path / "model")
        task = model.description.built_task
        assert (task.loss_name, task.loss_options) == ("tempered", {"temperature": 2.5})
        evaluate_model(model, study(folder), tmp_path / "out", parts=sites_folder(tmp_path / "model"))
        training = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text(encoding="utf-8"))["training"]
        assert training["loss"] == {"tempered": {"temperature": 2.5}}
    finally:
        losses.remove("tempered")
