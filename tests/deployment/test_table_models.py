"""A model gives, in another process and from other files, what the study's own test gave: to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployment.round_trips import predicted_again, table_study, write_tables
from polyclinic.study.study import Study

TASKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "classification": ({}, ["score"]),
    "regression": ({"task": "regression", "data": {"label": "score", "positive": None}}, ["score"]),
    "survival": (
        {"task": "survival", "evaluation": {"times": [200.0]},
         "data": {"label": None, "positive": None, "time": "time", "event": "event", "time_unit": "days"}},
        ["score", "survival[200]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_those_of_the_study(tmp_path: Path, task: str) -> None:
    changes, columns = TASKS[task]
    write_tables(tmp_path)
    study = table_study(**changes, methods=["fedavg", "ditto", "mix", "ensemble"])
    Study.of(study, tmp_path).run(tmp_path / "results")
    for label in ("fedavg", "ditto", "mix", "ensemble"):
        for then, done in predicted_again(tmp_path, study, tmp_path / "results", label):
            assert len(then) == len(done.predictions) > 5
            for name in columns:
                assert done.predictions[name].to_numpy() == pytest.approx(then[name].to_numpy(), abs=0, rel=0), label


@pytest.mark.parametrize("scaling", ["federated", "none"])
@pytest.mark.parametrize("harmonisation", ["none", {"combat": {"covariates": ["age_at"]}}])
def test_whatever_the_preparation(tmp_path: Path, scaling: str, harmonisation: Any) -> None:
    tables = write_tables(tmp_path)
    for site, table in tables.items():
        table.assign(age_at=np.arange(len(table)) % 7 + 50).to_csv(tmp_path / f"{site}.csv", index=False)
    model = {"mlp": {"hidden": [6], "norm": "batch"}}
    study = table_study(
        data={"scaling": scaling, "harmonisation": harmonisation, "imputation": "mean"},
        model=model, methods=["fedavg", {"fedbn": {}}],
    )  # fmt: skip
    Study.of(study, tmp_path).run(tmp_path / "results")
    for label in ("fedavg", "fedbn"):
        for then, done in predicted_again(tmp_path, study, tmp_path / "results", label):
            assert done.predictions["score"].tolist() == then["score"].tolist()
