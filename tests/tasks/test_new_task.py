"""A task that is written in one file, here this one, runs from the study file to the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from polyclinic import Results, Study
from polyclinic.errors import StudyError
from polyclinic.options import Catalogue
from polyclinic.shapes import Shaped
from polyclinic.tasks import TASKS, Task, register
from polyclinic.tasks.base import Asked, Batch, Floats, LossFunction, Measure, Score, Sent, joined
from polyclinic.tasks.metrics import METRICS, Metric

SIZES = {"Aachen": 60, "Bonn": 50, "Celle": 40}


LOSSES: Catalogue[LossFunction] = Catalogue("loss of counts")


@LOSSES.add("poisson")
def poisson(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of a Poisson distribution, but for a constant."""
    return outputs[:, 0].exp() - targets * outputs[:, 0]


class Counts(Task):
    """How many lesions a case has: a Poisson regression, whose one output is the logarithm of the rate."""

    name = "counts"
    target = "numbers"
    losses: ClassVar[Catalogue[LossFunction]] = LOSSES
    metrics: ClassVar[tuple[str, ...]] = ("far", "hits")
    default_metrics: ClassVar[tuple[str, ...]] = ("far", "hits")
    sends: ClassVar[Mapping[str, Shaped]] = {"rates": Shaped("float64", "N"), "counts": Shaped("float32", "N")}
    says: ClassVar[Mapping[str, Any]] = {"unit": str}

    @property
    def outputs(self) -> int:
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return poisson(outputs, targets)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.double().exp()

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        batch = joined(batches)
        assert batch is not None
        rates = self.probabilities(batch.found)[:, 0].numpy()
        frame = pd.DataFrame({"count": batch.targets.numpy(), "rate": rates})
        return Score(float(self.loss(batch.found, batch.targets).mean()), self.values(frame, [metric])[metric])

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        batch = joined(batches)
        if batch is None:
            return {"unit": "lesions"}, {"rates": torch.zeros(0).double(), "counts": torch.zeros(0)}
        return {"unit": "lesions"}, {"rates": batch.found[:, 0].contiguous(), "counts": batch.targets}

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        return {"count": tensors["counts"].numpy(), "rate": tensors["rates"].numpy()}

    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        counts, rates = cases["count"].to_numpy(float), cases["rate"].to_numpy(float)
        of_cases = {"far": np.abs(counts - rates), "hits": (counts == rates.round()).astype(float)}
        values = np.stack([of_cases[name] for name in names])

        def measure(rows: np.ndarray[Any, Any], weights: Floats) -> Floats:
            return values[:, rows] @ weights / weights.sum(axis=0)

        return measure


@pytest.fixture(scope="module")
def counts() -> Any:
    """The task is registered for the time of these tests."""
    register(Counts)
    METRICS["far"] = Metric("Mean distance", "How far the rate is from the count.", False, "", (0, np.inf))
    METRICS["hits"] = Metric("Hits", "Share of counts that are found.", True, "")
    yield
    del TASKS["counts"], METRICS["far"], METRICS["hits"]


def study_of(folder: Path, **changes: Any) -> Study:
    rng, rows = np.random.default_rng(0), []
    for site, cases in SIZES.items():
        for case in range(cases):
            a, b = rng.normal(size=2)
            rows.append({"site": site, "id": f"{site}{case}", "a": a, "b": b, "n": rng.poisson(np.exp(0.8 + 0.9 * a))})
    pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False)
    return Study.of(
        {
            "data": {"table": "cases.csv", "site": "site", "subject": "id", "label": "n", "features": ["a", "b"]},
            "task": "counts",
            "model": "logistic",
            "training": {"rounds": 12, "local_epochs": 2, "batch_size": 16, "optimizer": {"sgd": {"lr": 0.05}}},
            "evaluation": {"folds": 2, "bootstrap": 30, "best_round": "metric", "unseen_sites": ["fedavg"]},
            "methods": ["single", "cross", "mix", "fedavg"],
            "engine": {"threads": 1},
            **changes,
        },
        folder,
    )


@pytest.fixture(scope="module")
def results(counts: None, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("counts")
    return study_of(folder).run(folder / "out")


def test_rows_and_metrics_are_the_task_s_own(results: Results) -> None:
    predictions = results.predictions
    assert list(predictions.columns)[5:] == ["subject", "case", "count", "rate", "trained_on"]
    mine = predictions[
        (predictions["method"] == "fedavg") & (predictions["run"] == "plain") & (predictions["fold"] == 0)
    ]
    found = results.results.query("method == 'fedavg' and run == 'plain' and fold == 0")
    found = found.set_index(["tested_on", "metric"])["value"]
    assert set(found.index.get_level_values("metric")) == {"far", "hits"}
    for site, cases in [("all", mine), *mine.groupby("site")]:
        assert found[site, "far"] == pytest.approx((cases["count"] - cases["rate"]).abs().mean())
        assert found[site, "hits"] == pytest.approx((cases["count"] == cases["rate"].round()).mean())


def test_the_rate_is_learned(results: Results) -> None:
    mine = results.predictions.query("method == 'fedavg' and run == 'plain'")
    assert (mine["count"] - mine["rate"]).abs().mean() < 0.8 * (mine["count"] - mine["count"].mean()).abs().mean()


def test_the_summary_has_intervals_and_tests(results: Results) -> None:
    rows = results.summary[results.summary["metric"] == "far"]
    runs = set(rows[["method", "run"]].itertuples(index=False, name=None))
    assert runs == {*((name, "plain") for name in ("single", "cross", "mix", "fedavg")), ("fedavg", "unseen")}
    together = rows[(rows["over"] == "all") & (rows["method"] == "fedavg")].iloc[0]
    assert together["low"] < together["mean"] < together["high"]
    assert together["p_single"] > 0


def test_the_best_round_is_chosen_by_the_task_s_metric(results: Results) -> None:
    rounds = pd.read_csv(results.folder / "rounds.csv")
    assert rounds["validation_far"].notna().any()


def test_the_report_tells_the_metric_and_draws_no_curves(results: Results) -> None:
    text = (results.folder / "report.html").read_text(encoding="utf-8")
    assert "Mean distance" in text
    for absent in ("ROC", "Predicted against true", "Decision threshold"):
        assert absent not in text


def test_what_the_task_has_not_is_refused(counts: None, tmp_path: Path) -> None:
    for changes, message in [
        ({"training": {"class_weights": "balanced"}}, "counts has no class weights"),
        ({"training": {"loss": "mse"}}, "'mse' is no loss of counts"),
        ({"evaluation": {"metrics": ["mae"]}}, "'mae' is no metric of counts"),
        ({"attack": {"sites": 1, "label_flip": {}}}, "numbers have no classes"),
    ]:
        with pytest.raises(StudyError, match=message):
            study_of(tmp_path, **changes)
