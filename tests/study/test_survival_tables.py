"""Curves and tests of survival in the results: what is told, and that no case's time is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import write_survival_study
from polyclinic import Study
from polyclinic.data.quality.times import round_time
from polyclinic.statistics.survival import released
from polyclinic.study.statistics import survival
from polyclinic.study.statistics.source import Rows
from polyclinic.study.statistics.survival import common_times


def predicted(cases: int = 60, *, sites: str = "AB", seed: int = 0, effect: float = 2.0) -> pd.DataFrame:
    """Predictions of one method in two folds, whose score drives the hazard."""
    source = np.random.default_rng(seed)
    score = source.normal(size=cases)
    times, seen = source.exponential(300 / np.exp(effect * score)), source.uniform(50, 900, cases)
    names = [f"P{case:05d}" for case in range(cases)]
    return pd.DataFrame(
        {
            "method": "fedavg", "run": "plain", "seed": 0, "fold": np.arange(cases) % 2,
            "site": [sites[case % len(sites)] for case in range(cases)], "subject": names, "case": names,
            "time": np.minimum(times, seen), "event": (times <= seen).astype(int), "score": score,
            "trained_on": "federation",
        }
    )  # fmt: skip


def survival_tables(frame: pd.DataFrame, edges: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    steps = common_times(round_time(frame["time"].max()), edges)
    return survival.survival_tables(Rows(frame, "survival", 2), frame, steps)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), cases=st.integers(1, 60), steps=st.integers(1, 40))
def test_no_step_is_of_few_cases_and_counts_add_up(seed: int, cases: int, steps: int) -> None:
    frame = predicted(cases, seed=seed)
    found = released([frame], np.linspace(0, 900, steps + 1)[1:], 5)[0]
    if cases < 5:
        assert found.empty
        return
    left = found["events"] + found["censored"]
    assert (left.iloc[1:] >= 5).all()
    assert found["at_risk"].min() >= 5
    assert (found["at_risk"] + left.cumsum() == cases).all()
    assert not set(found["time"]) & set(frame["time"])
    assert found["survival"].is_monotonic_decreasing


def test_the_curve_is_that_of_lifelines_at_the_told_times() -> None:
    lifelines = pytest.importorskip("lifelines")
    frame = predicted(80)
    found = released([frame], np.linspace(0, 900, 31)[1:], 5)[0]
    fitted = lifelines.KaplanMeierFitter().fit(frame["time"], frame["event"])
    assert len(found) > 5
    assert found["survival"].to_numpy() == pytest.approx(fitted.predict(found["time"]).to_numpy())


def test_groups_are_made_within_sites_and_folds() -> None:
    frame = predicted()
    frame["score"] += 100 * (frame["site"] == "B") - 50 * frame["fold"]
    _, tests = survival_tables(frame, [])
    shifted = tests.iloc[0]
    _, tests = survival_tables(predicted(), [])
    pd.testing.assert_series_equal(shifted, tests.iloc[0])
    assert shifted["higher"] == 30
    assert shifted["p"] < 0.001
    assert shifted["observed"] > shifted["expected"]


def test_a_score_that_says_nothing_is_not_beyond_chance() -> None:
    found = [survival_tables(predicted(80, seed=seed, effect=0.0), [])[1]["p"].item() for seed in range(40)]
    assert sum(p < 0.05 for p in found) <= 6  # two are expected
    assert 0.2 < np.median(found) < 0.8


def test_methods_with_several_models_for_a_case_are_left_out() -> None:
    frame = predicted()
    crossed = pd.concat([frame.assign(method="cross", trained_on=site) for site in "AB"])
    curves, tests = survival_tables(pd.concat([frame, crossed]), [100, 200, 300])
    assert tests["method"].tolist() == ["fedavg"]
    assert set(curves["method"]) == {"", "fedavg"}
    assert set(curves["site"]) == {"A", "B", "all"}


def test_times_are_those_of_the_study_or_round() -> None:
    assert common_times(2000, [180.0, 365.0]).tolist() == [180.0, 365.0]
    assert common_times(2000, []).tolist() == np.linspace(0, 2000, 21)[1:].tolist()


@given(st.floats(1e-6, 1e9))
def test_a_round_time_is_not_far_beyond(time: float) -> None:
    assert time <= round_time(time) <= 2.5 * time
    assert f"{round_time(time):e}"[0] in "125"


def test_round_times_by_hand() -> None:
    assert [round_time(time) for time in (1.0, 3.0, 1022.0, 0.004, 5.0, 5.1)] == [1, 5, 2000, 0.005, 5, 10]


def test_a_study_without_times_has_curves_and_concordance_only(tmp_path: Path) -> None:
    declared = write_survival_study(tmp_path, {"Aachen": 30, "Bonn": 30})
    declared["evaluation"] |= {"times": [], "bootstrap": 0}
    declared["methods"], declared["training"]["batch_size"] = ["fedavg"], 4
    results = Study.of(declared, tmp_path).run(tmp_path / "results")
    assert set(results.results["metric"]) == {"concordance"}
    curves = pd.read_csv(tmp_path / "results" / "survival.csv", keep_default_na=False)
    assert set(curves["group"]) == {"all", "higher", "lower"}
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    for words in ("Do patients with a higher predicted risk", "Time in days", "status 2, by days in days"):
        assert words in page
    for absent in ("Decision threshold", "ROC", "Predicted against true", "Time by time"):
        assert absent not in page
    few = [str(note) for note in results.notes if note.number == "N809"]
    assert few
    assert few[0].startswith("fedavg: a batch of 4 cases has ")
