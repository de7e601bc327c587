"""A study, a model made of one of its folds, and the model's predictions of the cases that this fold tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import Done, predict_into
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import read_model, sites_folder
from polyclinic.study.results import Results
from polyclinic.study.study import Study

SITES = ("A", "B", "C")


def write_tables(folder: Path, *, seed: int = 3) -> dict[str, pd.DataFrame]:
    """A table of each site: shifted and scaled features with gaps, groups, an outcome of each kind."""
    rng = np.random.default_rng(seed)
    tables = {}
    for place, (site, cases) in enumerate(zip(SITES, (36, 30, 24), strict=True)):
        label = np.arange(cases) % 2
        rng.shuffle(label)
        age = 60 + 8 * place + 9 * label + rng.normal(scale=7, size=cases)
        volume = 1200 * (1 + 0.1 * place) + 60 * label + rng.normal(scale=80, size=cases)
        table = pd.DataFrame({
            "patient": [f"{site}{number:03d}" for number in range(cases)],
            "hospital": site,
            "age": age.round(1).astype(object),
            "volume": volume.round(2).astype(object),
            "group": rng.choice(["x", "y", "z"], size=cases),
            "sick": np.where(label == 1, "yes", "no"),
            "score": (50 + 10 * label + rng.normal(size=cases)).round(3),
            "time": (rng.exponential(400 / (1 + label)) + 5).round(),
            "event": (rng.random(cases) < 0.7).astype(int),
        })  # fmt: skip
        table.loc[rng.random(cases) < 0.08, "volume"] = ""
        table.to_csv(folder / f"{site}.csv", index=False)
        tables[site] = table
    return tables


def table_study(**changes: Any) -> dict[str, Any]:
    """A study of these tables; parts that are given are merged into it."""
    study: dict[str, Any] = {
        "data": {"tables": {site: f"{site}.csv" for site in SITES}, "subject": "patient", "label": "sick",
                 "positive": "yes", "features": ["age", "volume", "group"], "categorical": ["group"]},
        "model": {"mlp": {"hidden": [6]}},
        "training": {"rounds": 4, "batch_size": 8, "optimizer": {"adam": {"lr": 0.02}}},
        "evaluation": {"folds": 3, "bootstrap": 0},
        "engine": {"threads": 1},
        "methods": ["fedavg"],
    }  # fmt: skip
    for name, value in changes.items():
        study[name] = {**study[name], **value} if isinstance(value, dict) and name in study else value
    return study


def as_tested(results: Path, label: str, site: str, fold: int = 0) -> pd.DataFrame:
    """Rows of ``predictions.csv`` of a fold and a site, with the case's name as the site knows it."""
    rows = Results(results).predictions
    mine = rows[(rows["method"] == label) & (rows["site"] == site) & (rows["fold"] == fold)]
    keys = pd.read_csv(results / "sites" / site / "subjects.csv", dtype=str)
    return mine.merge(keys, on="case", suffixes=("", "_key")).reset_index(drop=True)


def predicted_again(
    folder: Path, study: dict[str, Any], results: Path, label: str, sites: Sequence[str] = SITES
) -> list[tuple[pd.DataFrame, Done]]:  # fmt: skip
    """Of each site what the study predicted in fold 0, and what a model of that fold predicts of the same rows."""
    model = folder / f"model-{label}"
    fit_model(Study.of(study, folder), model, Wanted(method=label, fold=0))
    predictor = Predictor(read_model(model), sites_folder(model))
    found = []
    for site in sites:
        then = as_tested(results, label, site)
        source = str(study["data"]["tables"][site])
        rows = [int(name.removeprefix("row ")) - 1 for name in then["source"]]
        table = folder / f"new-{label}-{site}.csv"
        cells = pd.read_csv(folder / source, dtype=str, keep_default_na=False).iloc[rows]
        cells.drop(columns=["sick", "score", "time", "event"]).to_csv(table, index=False)
        cases = open_table(predictor.description, table, site)
        found.append((then, predict_into(folder / f"out-{label}-{site}", predictor, cases)))
    return found
