"""Calibration and net benefit of a site: against statsmodels, by hand, and by simulation."""

import math

import numpy as np
import pandas as pd
import pytest

from polyclinic.errors import ResultsError
from polyclinic.statistics.calibration import THRESHOLDS, calibration_line, net_benefit
from polyclinic.study.columns import CALIBRATION, DECISIONS
from polyclinic.study.results import Results
from polyclinic.study.statistics.calibration import calibration_tables
from polyclinic.study.statistics.meta import combine_sites
from polyclinic.study.statistics.source import Rows, of_run
from polyclinic.study.table_files import write_table


def cases(rng, count, intercept=0.0, slope=1.0, mean=-0.5):
    """Outcomes, and probabilities whose log odds were wrong by an intercept and a slope."""
    odds = rng.normal(mean, 1.5, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-(intercept + slope * odds)))).astype(int)
    return labels, 1 / (1 + np.exp(-odds))


def test_intercept_and_slope_are_those_of_statsmodels():
    import statsmodels.api as sm

    labels, probabilities = cases(np.random.default_rng(0), 200, 0.4, 0.7)
    odds = np.log(probabilities / (1 - probabilities))
    intercept, slope = calibration_line(labels, probabilities, np.arange(200))
    family = sm.families.Binomial()
    theirs = sm.GLM(labels, np.ones(200), family=family, offset=odds).fit(cov_type="HC0", tol=1e-12)
    assert intercept.value == pytest.approx(theirs.params[0])
    assert math.sqrt(intercept.variance) == pytest.approx(theirs.bse[0])
    theirs = sm.GLM(labels, sm.add_constant(odds), family=family).fit(cov_type="HC0", tol=1e-12)
    assert slope.value == pytest.approx(theirs.params[1])
    assert math.sqrt(slope.variance) == pytest.approx(theirs.bse[1])


def test_cases_of_a_patient_are_not_evidence_of_their_own():
    labels, probabilities = cases(np.random.default_rng(1), 80)
    one = calibration_line(labels, probabilities, np.arange(80))
    twice = calibration_line(np.tile(labels, 2), np.tile(probabilities, 2), np.tile(np.arange(80), 2))
    for single, double in zip(one, twice, strict=True):
        assert double.value == pytest.approx(single.value)
        assert double.variance == pytest.approx(single.variance)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([0] * 6 + [1] * 6, [0.1] * 6 + [0.9] * 6),  # parted without a fault
        ([0] * 6 + [1] * 6, [0.9] * 6 + [0.1] * 6),  # and the wrong way round
        ([0, 1] * 6, [0.3] * 12),  # all are equal
    ],
)
def test_there_is_no_slope_where_nothing_bounds_it(labels, probabilities):
    intercept, slope = calibration_line(labels, probabilities, np.arange(12))
    assert math.isfinite(intercept.value)
    assert math.isnan(slope.value)


def test_few_cases_and_broken_models_say_nothing():
    assert math.isnan(calibration_line([0] * 20 + [1] * 4, np.linspace(0.1, 0.9, 24), np.arange(24))[0].value)
    assert math.isnan(calibration_line([0, 1] * 6, [math.nan] + [0.5] * 11, np.arange(12))[0].value)
    sure = np.where(np.arange(40) % 2, 1.0, 0.0)
    sure[:4] = 1 - sure[:4]  # probabilities of 0 and 1 that are wrong
    assert math.isfinite(calibration_line(np.arange(40) % 2, sure, np.arange(40))[0].value)


def test_intervals_hold_the_truth():
    """Of 300 sites of 80 cases; the standard error of a share of 0.95 is 0.013."""
    held = np.zeros(2)
    for number in range(300):
        labels, probabilities = cases(np.random.default_rng(number), 80, 0.5, 0.8)
        odds = np.log(probabilities / (1 - probabilities))
        intercept, slope = calibration_line(labels, probabilities, np.arange(80))
        held[1] += abs(slope.value - 0.8) <= 1.96 * math.sqrt(slope.variance)
        # The true intercept with the slope at 1 depends on which cases there are.
        true = 1 / (1 + np.exp(-(0.5 + 0.8 * odds)))
        ours = [at for at in np.linspace(-1, 2, 601) if (1 / (1 + np.exp(-(at + odds)))).sum() <= true.sum()][-1]
        held[0] += abs(intercept.value - ours) <= 1.96 * math.sqrt(intercept.variance)
    assert (held / 300 >= 0.9).all()


def test_net_benefit_by_hand():
    """Of ten, at 0.2: three found, two false alarms; (3 - 2 * 0.25) / 10. At 0.5: two and one; (2 - 1) / 10."""
    labels = [1, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    probabilities = [0.9, 0.5, 0.3, 0.6, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert net_benefit(labels, probabilities, (0.2, 0.5)).tolist() == pytest.approx([0.25, 0.1])
    assert net_benefit(labels, np.ones(10), (0.2,))[0] == pytest.approx((4 - 6 * 0.25) / 10)


def study(rng, sites=("A", "B", "C"), seeds=(0, 1)):
    frames = []
    for site in sites:
        labels, probabilities = cases(rng, 60, 0.3, 0.8)
        for method in ("fedavg", "single", "cross"):
            for seed in seeds:
                for model in ("B", "C") if method == "cross" else ["federation"]:
                    moved = np.clip(probabilities + 0.01 * seed, 0.001, 0.999)
                    frames.append(pd.DataFrame({
                        "method": method, "run": "plain", "seed": seed, "fold": np.arange(60) % 2, "trained_on": model,
                        "site": site, "subject": [f"p{k}" for k in range(60)], "case": [f"c{k}" for k in range(60)],
                        "label": labels, "score": moved,
                    }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def tables(predictions, sites):
    methods = list(predictions["method"].unique())
    return calibration_tables({"plain": Rows(predictions, "classification", 2).trust(of_run("plain", methods), sites)})


def test_tables_have_each_site_and_all_together():
    predictions = study(np.random.default_rng(2))
    table, decisions = tables(predictions, ["A", "B"])
    assert list(table.columns) == CALIBRATION
    assert list(decisions.columns) == DECISIONS
    assert set(table["method"]) == {"fedavg", "single"}  # models of other sites predict a case several times
    assert table["site"].tolist() == ["A", "B", "all"] * 2
    one = predictions[(predictions["method"] == "fedavg") & (predictions["site"] == "A")]
    of_seeds = [
        calibration_line(*(of[name] for name in ("label", "score", "subject"))) for _, of in one.groupby("seed")
    ]
    row = table.iloc[0]
    assert row["slope"] == pytest.approx(np.mean([slope.value for _, slope in of_seeds]))
    assert (row["cases"], row["positive"]) == (60, one["label"].sum() / 2)
    together, of_sites = table.iloc[2], table.iloc[:2]
    errors = ((of_sites["slope_high"] - of_sites["slope_low"]) / 2 / 1.959964) ** 2
    assert together["slope"] == pytest.approx(combine_sites(of_sites["slope"], errors).mean, rel=1e-5)
    assert together["cases"] == 120
    assert len(decisions) == 2 * 2 * len(THRESHOLDS)


def test_labels_of_columns_and_rows_in_any_order():
    predictions = study(np.random.default_rng(3), seeds=(5,))
    table, _ = tables(predictions, ["A", "B", "C"])
    again, _ = tables(predictions.sample(frac=1, random_state=1), ["A", "B", "C"])
    keys = ["method", "site"]
    pd.testing.assert_frame_equal(
        table.sort_values(keys, ignore_index=True), again.sort_values(keys, ignore_index=True), rtol=1e-9
    )


def test_results_give_the_tables_and_say_where_there_is_none(tmp_path):
    (tmp_path / "results.csv").write_text("method,run,seed,fold,trained_on,tested_on,metric,value\n")
    with pytest.raises(ResultsError, match=r"P501 There is no calibration\.csv: only binary classification"):
        _ = Results(tmp_path).calibration
    table, _ = tables(study(np.random.default_rng(4)), ["A", "B"])
    write_table(tmp_path / "calibration.csv", table)
    pd.testing.assert_frame_equal(Results(tmp_path).calibration, table, check_dtype=False)
