"""Studies of survival: the federated likelihood, all methods on it, and studies from their files to the results."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers import Federation, site_of, survival_site, write_survival_study
from polyclinic import Results, Study
from polyclinic.composition import METHODS
from polyclinic.data.cases import SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.scaling import Scaler
from polyclinic.errors import DataError, StudyError
from polyclinic.tasks import build_task
from polyclinic.tasks.base import Batch, TimeGrid

SIZES = {"Aachen": 60, "Bonn": 45, "Celle": 40}
FEATURES = ["age", "sex", "ph.ecog"]


# --- the federated likelihood


def lung() -> tuple[dict[str, SiteData], Any]:
    """The institutions of lung as sites, and the coefficients that lifelines finds, stratified by institution."""
    lifelines = pytest.importorskip("lifelines")
    from lifelines.datasets import load_lung

    table = load_lung().dropna(subset=["inst", *FEATURES])
    table[FEATURES] = (table[FEATURES] - table[FEATURES].mean()) / table[FEATURES].std()
    sites = {}
    for number, mine in table.groupby("inst"):
        columns = (mine[FEATURES], mine[["time", "status"]])
        inputs, targets = (torch.tensor(one.to_numpy(np.float32)) for one in columns)
        sites[f"site {number:g}"] = site_of(f"site {number:g}", inputs, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = lifelines.CoxPHFitter().fit(
            table[["inst", "time", "status", *FEATURES]], "time", "status", strata=["inst"]
        )
    return sites, fitted.params_[FEATURES].to_numpy()


@pytest.mark.parametrize(
    ("method", "options"),
    [("fedsgd", {}), ("fedavg", {}), ("fedavg", {"stacked": True}), ("mix", {}), ("fedsgd", {"serialise": True})],
)
def test_federated_training_finds_the_stratified_coefficients(method: str, options: dict[str, Any]) -> None:
    sites, expected = lung()
    training = {"rounds": 40, "batch_size": 512, "optimizer": {"sgd": {"lr": 1.5}}}
    federation = Federation(sites, [method], task="survival", training=training, **options)
    if method == "mix":
        outcome = federation.outcome()
        tensors = next(iter(outcome.models.values()))
        found = next(tensor for name, tensor in tensors.items() if name.endswith("weight"))[0]
    else:
        found = federation.state()[: len(FEATURES)]
    assert found.numpy() == pytest.approx(expected, abs=2e-3)


def test_without_strata_the_coefficients_are_others() -> None:
    """The test above could tell a pool that compares cases of several institutions."""
    lifelines = pytest.importorskip("lifelines")
    from lifelines.datasets import load_lung

    _, expected = lung()
    table = load_lung().dropna(subset=["inst", *FEATURES])[["time", "status", *FEATURES]]
    table[FEATURES] = (table[FEATURES] - table[FEATURES].mean()) / table[FEATURES].std()
    pooled = lifelines.CoxPHFitter().fit(table, "time", "status").params_[FEATURES].to_numpy()
    assert np.abs(pooled - expected).max() > 0.02


@pytest.mark.parametrize("loss", ["cox", "cox_breslow", "discrete_time"])
@pytest.mark.parametrize("batch_size", [8, 512])
def test_stacked_training_is_that_of_each_site(loss: str, batch_size: int) -> None:
    sites = {name: survival_site(name, cases) for name, cases in {"Aachen": 33, "Bonn": 10, "Celle": 5}.items()}
    states = []
    for stacked in (False, True):
        federation = Federation(
            sites, ["fedavg"], task="survival", training={"rounds": 3, "loss": loss, "batch_size": batch_size},
            evaluation={"times": [30, 60]}, stacked=stacked,
        )  # fmt: skip
        states.append(federation.state())
    assert torch.allclose(*states, atol=1e-5)
    assert (states[0] - federation.initial(0)).abs().max() > 0.01


def test_a_gradient_of_all_cases_is_not_taken_in_batches() -> None:
    sites = {"Aachen": survival_site("Aachen", 40)}
    states = [
        Federation(sites, ["fedsgd"], task="survival", training={"batch_size": size}).state() for size in (7, 512)
    ]
    assert torch.equal(*states)


# --- the baseline hazard


def test_the_baseline_by_hand() -> None:
    task = build_task("survival", 2, grid=TimeGrid((1.0, 3.0), (2.0, 4.0)))
    scores = torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64).clamp_min(1).log()[:, None]  # hazards 1, 2, 3
    targets = torch.tensor([[1.0, 1.0], [3.0, 1.0], [9.0, 0.0]])
    sums = task.sums([Batch(scores, targets)])
    assert sums.tolist() == [[1, 1], [pytest.approx(1 * 1 + 2 * 2 + 3 * 2), pytest.approx(2 * 1 + 3 * 2)]]
    assert task.completion(sums) == pytest.approx([1 / 11, 2 / 11 + 1 / 8])
    twice = task.sums([Batch(scores.repeat(2, 1), targets.repeat(2, 1))])
    assert task.completion(twice) == pytest.approx(task.completion(sums))


def test_beyond_what_was_seen_the_hazard_goes_on_as_it_was() -> None:
    task = build_task("survival", 2, grid=TimeGrid((1.0, 8.0), (1.0, 8.0)))
    sums = task.sums([Batch(torch.zeros(4, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], *[[1.0, 0.0]] * 3]))])
    assert task.completion(sums) == pytest.approx([0.25, 0.25 * 8])
    assert task.completion(torch.full((2, 2), float("inf"))) == []


def test_the_baseline_is_near_that_of_breslow() -> None:
    lifelines = pytest.importorskip("lifelines")
    site = survival_site("Aachen", 400)
    table = pd.DataFrame(site.inputs.numpy(), columns=list("abcde"))
    table["time"], table["event"] = site.targets[:, 0].numpy(), site.targets[:, 1].numpy()
    fitted = lifelines.CoxPHFitter().fit(table, "time", "event")
    times = (20.0, 60.0, 120.0)
    task = build_task("survival", 2, grid=TimeGrid(times, tuple(float(edge) for edge in range(4, 121, 4))))
    scores = torch.tensor(fitted.predict_log_partial_hazard(table).to_numpy())[:, None]
    found = task.completion(task.sums([Batch(scores, site.targets)]))
    expected = fitted.baseline_cumulative_hazard_
    for time, one in zip(times, found, strict=True):
        assert one == pytest.approx(expected[expected.index <= time].iloc[-1].item(), rel=0.05)


# --- all methods


@pytest.mark.parametrize("batch_size", [8, pytest.param(64, marks=pytest.mark.long)])
def test_every_method_learns_survival_or_says_why_not(batch_size: int) -> None:
    names = ("Aachen", "Bonn", "Celle", "Dresden", "Essen", "Fulda", "Gotha", "Halle")
    sites = {name: survival_site(name, 16, part=None) for name in names}
    refused = set[tuple[str, str]]()
    given = {"fltrust": {"trusted": "Bonn"}, "fedmoco": {"pretraining_rounds": 1, "training": {"rounds": 2}}}
    for name in METHODS:
        try:
            federation = Federation(
                sites, [{name: given.get(name, {})}], task="survival",
                model={"mlp": {"hidden": [4]}}, training={"batch_size": batch_size},
                evaluation={"folds": 2, "validation": 0.2, "best_round": "loss", "times": [30, 60]},
            )  # fmt: skip
        except StudyError as error:
            refused.add((name, error.code))
            continue
        outcome = federation.outcome()
        found = pd.concat(outcome.predictions)
        assert np.isfinite(found[["score", "survival[30]", "survival[60]"]].to_numpy()).all(), name
        assert (found["survival[60]"] <= found["survival[30]"]).all(), name
    # They ask for labels, for several of them, for an accuracy, for unlabelled cases, for images, for single cases, for
    # bags, and for a public set; and what must be said is not said.
    others = {"fedsld", "multi_task", "graph_layer", "dynamic_fusion", "fixmatch", "mean_teacher", "harmofl", "elcfs"}
    others |= {
        "style_transfer",
        "style_generator",
        "tent",
        "splitavg",
        "asyndgan",
        "fed_gan",
        "attention_mil",
        "fedirm",
        "fedperl",
        "fedvss",
    }
    others |= {"fedsm", "iop_fl", "feddm", "fedmix"}
    others |= {"fedad", "feddf", "fedmd", "fedmri"}
    unsaid = ("fairfed", "public_teacher", "fl_mrcm")
    assert refused == {(name, "P104") for name in others} | {(name, "P102") for name in unsaid}


def test_pooled_images_carry_their_sites() -> None:
    pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    scaler = Scaler.identity(1)
    targets = torch.tensor([[5.0, 1.0], [6.0, 0.0], [7.0, 1.0], [8.0, 1.0]])
    datasets = [Dataset(site_of(name, pixels, targets), scaler) for name in ("A", "B")]
    pool = Dataset.pool(datasets, "pool")
    _, found = pool.batch(torch.tensor([1, 5, 0]))
    assert found.tolist() == [[6, 0, 0], [6, 0, 1], [5, 1, 0]]


# --- from files to results


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("survival")
    declared = write_survival_study(folder, SIZES)
    declared["evaluation"]["unseen_sites"] = ["fedavg"]
    return Study.of(declared, folder).run(folder / "results")


def plain(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["run"] == "plain"]


def test_what_a_study_says(study: Results) -> None:
    table = study.table("all")
    assert list(table.columns)[:3] == ["concordance", "brier", "ibs"]
    assert table.loc["fedavg", "concordance"] > 0.7
    assert table.loc["fedavg", "brier"] < 0.2  # a half for everybody would be 0.25
    rows = plain(study.summary).query("method == 'fedavg' and metric == 'concordance'")
    assert (rows["low"] < rows["mean"]).all()
    assert (rows["mean"] < rows["high"]).all()
    assert set(study.results["metric"]) >= {"brier[100]", "brier[200]", "brier[400]"}


def test_concordance_of_the_results_is_that_of_the_predictions(study: Results) -> None:
    utils = pytest.importorskip("lifelines.utils")
    mine = plain(study.predictions).query("method == 'fedavg' and site == 'Bonn' and fold == 1")
    rows = plain(study.results).query("method == 'fedavg' and tested_on == 'Bonn' and fold == 1").set_index("metric")
    expected = utils.concordance_index(mine["time"], -mine["score"], mine["event"])
    assert rows["value"]["concordance"] == pytest.approx(expected)


def test_methods_that_are_the_same_with_whole_sites_give_the_same(study: Results) -> None:
    scores = {name: rows["score"].to_numpy() for name, rows in plain(study.predictions).groupby("method")}
    assert scores["fedavg"] == pytest.approx(scores["mix"], abs=1e-4)
    assert scores["fedavg"] == pytest.approx(scores["fedsgd"], abs=1e-4)


def test_no_patient_and_no_path_is_in_the_results(study: Results) -> None:
    for file in study.folder.glob("*.*"):
        if file.suffix in (".csv", ".json", ".html", ".yaml"):
            assert "secret" not in file.read_text(encoding="utf-8"), file.name


def test_a_study_in_discrete_time(tmp_path: Path) -> None:
    declared = write_survival_study(tmp_path, SIZES)
    declared["training"] |= {"loss": "discrete_time", "rounds": 10}
    declared["data"]["intervals"] = [50, 100, 200, 300, 450]
    declared["methods"] = ["fedavg", "mix"]
    found = Study.of(declared, tmp_path).run(tmp_path / "one")
    assert found.table("all").loc["fedavg", "concordance"] > 0.65
    survival = found.predictions[["survival[100]", "survival[200]", "survival[400]"]].to_numpy()
    assert (np.diff(survival, axis=1) <= 0).all()
    assert survival.max() <= 1


def test_images_whose_brightness_is_the_hazard(tmp_path: Path) -> None:
    source, rows = np.random.default_rng(4), []
    for site, cases in {"North": 30, "South": 30}.items():
        for case in range(cases):
            bright = source.uniform()
            pixels = source.normal(60 + 120 * bright, 20, size=(12, 12)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{site}{case}.png")
            death, visit = source.exponential(40 / np.exp(4 * bright)), source.uniform(1, 30)
            rows.append([site, f"{site}{case}.png", round(min(death, visit) + 0.1, 1), int(death <= visit)])
    pd.DataFrame(rows, columns=["site", "image", "months", "died"]).to_csv(tmp_path / "cases.csv", index=False)
    found = Study.of(
        {
            "task": "survival",
            "data": {
                "table": "cases.csv", "site": "site", "image": "image", "size": [12, 12], "channels": "grey",
                "time": "months", "event": "died", "time_unit": "months", "scaling": "none",
            },
            "model": {"cnn": {"channels": [4]}},
            "training": {"rounds": 12, "batch_size": 32, "optimizer": {"adam": {"lr": 0.03}}},
            "evaluation": {"holdout": 0.4, "bootstrap": 0, "times": [5, 10]},
            "methods": ["mix", "fedavg"],
            "engine": {"threads": 1, "mode": "sequential"},
        },
        tmp_path,
    ).run(tmp_path / "results")  # fmt: skip
    assert (found.table("all")["concordance"] > 0.65).all()


@pytest.mark.long
def test_worker_processes_give_the_same(tmp_path: Path) -> None:
    declared = write_survival_study(tmp_path, SIZES)
    found = Study.of(declared, tmp_path).run(tmp_path / "one")
    declared["engine"] = {"threads": 1, "mode": "processes", "workers": 2}
    again = Study.of(declared, tmp_path).run(tmp_path / "two")
    pd.testing.assert_frame_equal(found.results, again.results)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"data": {"time_unit": None}}, "P102", "the entry 'time_unit' is missing"),
        ({"data": {"time": None}}, "P102", "the entry 'time' is missing"),
        ({"data": {"label": "status"}}, "P104", "survival has no `label`"),
        ({"data": {"classes": [1, 2]}}, "P104", "an event has no classes"),
        ({"data": {"unlabelled": "use"}}, "P104", "has no part in survival"),
        ({"data": {"event": "days"}}, "P104", "are the same column"),
        ({"data": {"intervals": [10, 5]}}, "P102", "5 comes after 10; times must rise"),
        ({"data": {"intervals": [10, 50]}}, "P102", "the last interval ends at 50, and survival is asked for at 400"),
        ({"data": {"features": ["x0", "days"]}}, "P104", "'days', which is to be predicted, is also among"),
        ({"evaluation": {"threshold": 0.5}}, "P104", "survival has no threshold"),
        ({"evaluation": {"times": [], "metrics": ["brier"]}}, "P102", "`brier` needs one time or more"),
        ({"evaluation": {"times": [9], "metrics": ["ibs"]}}, "P102", "`ibs` needs two times or more"),
        ({"evaluation": {"metrics": ["auc"]}}, "P103", "'auc' is no metric of survival"),
        ({"evaluation": {"times": []}, "training": {"loss": "discrete_time"}}, "P102", "needs intervals of time"),
        ({"training": {"batch_size": 1}}, "P104", "a batch of one case teaches nothing"),
        ({"evaluation": {"times": [2000, 9000]}}, "P104", "asked for at 9000 days, and no case was seen for longer"),
        ({"evaluation": {"times": [0.5, 1]}}, "P104", "asked for up to 1 days, and no event happened by then"),
        ({"training": {"class_weights": "balanced"}}, "P104", "survival has no class weights"),
        ({"task": "regression", "data": {"label": "days", "positive": None}}, "P104", "`time` is for survival"),
        ({"data": {"positive": 7}}, "P203", "The event never happens: the column 'status' (`event`) has 1 and 2"),
        ({"data": {"positive": None}}, "P203", "The column 'status' (`event`) has 1 and 2; expected 1 where the event"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], code: str, message: str, tmp_path: Path) -> None:
    declared = write_survival_study(tmp_path, {"Aachen": 12, "Bonn": 12})
    for key, value in changes.items():
        if isinstance(value, dict):
            declared[key] = {k: v for k, v in {**declared[key], **value}.items() if v is not None}
        else:
            declared[key] = value
    with pytest.raises((StudyError, DataError)) as error:
        Study.of(declared, tmp_path).run(tmp_path / "results")
    assert error.value.code == code
    assert message in str(error.value)


def test_the_unit_of_time_changes_nothing(tmp_path):
    """Times of death lie at the study's times and at the ends of intervals: days / 30.4375 have no last digit."""
    found = []
    for unit, days in (("days", 1.0), ("months", 30.4375)):
        folder = tmp_path / unit
        folder.mkdir()
        entries = write_survival_study(folder, {"Aachen": 40, "Bonn": 33}) | {"methods": ["fedavg"]}
        table = pd.read_csv(folder / "cases.csv")
        table["days"] = (table["days"] / 20).round().clip(lower=1) * 20 / days
        table.to_csv(folder / "cases.csv", index=False)
        entries["data"]["time_unit"] = unit
        entries["evaluation"]["times"] = [time / days for time in (100, 200, 400)]
        found.append(Study.of(entries, folder).run(folder / "out").results["value"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
