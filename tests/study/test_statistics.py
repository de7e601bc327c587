"""The summary table: means by hand, resampling by hand, the choice of tests, and coverage on simulated studies."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from polyclinic.study.intervals import bootstrap_interval, bootstrap_p, delong, delong_paired, holm, patient_weights
from polyclinic.study.statistics import BOOTSTRAP, COLUMNS, DELONG, summarise
from polyclinic.tasks.metrics import CLASSIFICATION, classification_metrics

METHODS = ("single", "cross", "fedavg", "fedprox(mu=0.1)")


def measure(frame, metrics=CLASSIFICATION):
    return classification_metrics(
        frame["label"].to_numpy(), np.stack([1 - frame["score"], frame["score"]], axis=1), metrics,
        frame["threshold"].to_numpy(),
    )  # fmt: skip


def evaluate(predictions, metrics=CLASSIFICATION):
    """The results table of binary predictions, as a study writes it."""
    rows = []
    for (method, seed, fold), part in predictions.groupby(["method", "seed", "fold"], sort=False):
        models = list(part.groupby("trained_on")) if method == "cross" else [("own", part)]
        for model, frame in models:
            trained_on = {"single": "own", "cross": model}.get(method, "federation")
            tested = [(trained_on, "all", frame)]
            tested += [(site if method == "single" else trained_on, site, own) for site, own in frame.groupby("site")]
            for trained, tested_on, cases in tested:
                for metric, value in measure(cases, metrics).items():
                    rows.append((method, seed, fold, trained, tested_on, metric, value))
    columns = ["method", "seed", "fold", "trained_on", "tested_on", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def study(rng, *, methods=METHODS, seeds=1, folds=2, sites=3, patients=20, signal=1.5, noise=0.5, cases=1):
    """Predictions of a binary study: a latent score of mean ``signal`` above the negatives', plus noise by method."""
    site = np.repeat([f"S{k}" for k in range(sites)], patients * cases)
    subject = np.repeat(np.arange(sites * patients), cases)
    label = np.repeat(rng.integers(0, 2, sites * patients), cases)
    latent = np.repeat(label[::cases] * signal + rng.normal(size=sites * patients), cases)
    frames = []
    for seed in range(seeds):
        fold_of = np.repeat(rng.permutation(sites * patients) % folds, cases)
        for method in methods:
            for fold in range(folds):
                for model in sorted(set(site)) if method == "cross" else ["federation"]:
                    rows = np.flatnonzero((fold_of == fold) & (site != model))
                    score = latent[rows] - signal / 2 + noise * rng.normal(size=len(rows))
                    frames.append(
                        pd.DataFrame(
                            {
                                "method": method,
                                "seed": seed,
                                "fold": fold,
                                "trained_on": site[rows] if method == "single" else model,
                                "site": site[rows],
                                "subject": [f"p{k}" for k in subject[rows]],
                                "case": [f"c{k}" for k in rows],
                                "label": label[rows],
                                "score": 1 / (1 + np.exp(-score)),
                                "threshold": 0.5,
                            }
                        )
                    )
    return pd.concat(frames, ignore_index=True)


def summary(predictions, results=None, scored=None, metrics=CLASSIFICATION, **options):
    results = evaluate(predictions, metrics) if results is None else results
    scored = dict.fromkeys(predictions["site"].unique(), True) if scored is None else scored
    options = {"task": "classification", "classes": ["control", "case"], "bootstrap": 100} | options
    return summarise(results, predictions, scored=scored, **options).set_index(["method", "metric", "over"])


# --- means


def test_means_by_hand():
    def rows(method, trained_on, tested_on, *values):
        return [(method, 0, fold, trained_on, tested_on, "acc", value) for fold, value in enumerate(values)]

    results = pd.DataFrame(
        [
            *rows("single", "own", "all", 0.5, 0.7),
            *rows("single", "A", "A", 0.4, 0.6),
            *rows("single", "B", "B", 0.6, np.nan),
            *rows("single", "C", "C", 0.0, 0.0),  # not scored
            *rows("cross", "A", "all", 0.2, 0.4),
            *rows("cross", "B", "all", 0.4, 0.8),
            *rows("cross", "A", "B", 0.1, 0.3),
            *rows("cross", "B", "A", 0.3, 0.5),
            *rows("fedavg", "federation", "all", 0.8, 0.9),
        ],
        columns=["method", "seed", "fold", "trained_on", "tested_on", "metric", "value"],
    )
    scored = {"A": True, "B": True, "C": False}
    predictions = pd.DataFrame()
    table = summarise(results, predictions, task="classification", classes=["a", "b"], scored=scored)
    assert list(table.columns) == COLUMNS
    keys = [("single", "all"), ("single", "sites"), ("cross", "all"), ("cross", "sites"), ("fedavg", "all")]
    assert list(zip(table["method"], table["over"], strict=True)) == keys
    # single over sites: (0.4 + 0.6) / 2 and 0.6 alone. cross: the mean of both models in each fold.
    assert list(table["mean"]) == pytest.approx([0.6, 0.55, 0.45, 0.3, 0.85])
    half = math.sqrt(0.5)
    assert list(table["deviation"]) == pytest.approx([0.2 * half, 0.1 * half, 0.3 * half, 0.2 * half, 0.1 * half])
    assert list(table["n"]) == [2] * 5
    nan = float("nan")
    assert list(table["vs_single"]) == pytest.approx([nan, nan, -0.15, -0.25, 0.25], nan_ok=True)
    assert list(table["vs_fedavg"]) == pytest.approx([-0.25, nan, -0.4, nan, nan], nan_ok=True)
    assert table[["low", "high", "p_single", "p_fedavg", "p_single_adjusted"]].isna().all(axis=None)
    assert (table["interval"] == "").all()


# --- intervals and tests over all cases


def test_bootstrap_repeats_the_patients_drawn():
    """The interval and p of the accuracy, from frames in which the drawn patients are physically repeated."""
    predictions = study(np.random.default_rng(0), sites=2, patients=9, folds=2, seeds=2, cases=2)
    table = summary(predictions, metrics=["acc", "auc"], bootstrap=30, seed=5)
    order = sorted(predictions.groupby(["site", "subject"]).groups)
    patients = pd.DataFrame(order, columns=["site", "subject"])
    weights = np.concatenate(list(patient_weights(patients, 30, seed=5)), axis=1)
    values = {method: [] for method in METHODS}
    for draw in weights.T:
        times = dict(zip(order, draw, strict=True))
        counts = [int(times[key]) for key in zip(predictions["site"], predictions["subject"], strict=True)]
        drawn = predictions.loc[predictions.index.repeat(counts)]
        for method, frame in drawn.groupby("method"):
            models = ["trained_on"] if method == "cross" else []
            parts = frame.groupby(["seed", "fold", *models])[frame.columns].apply(lambda part: measure(part)["acc"])
            values[method].append(parts.groupby(["seed", "fold"]).mean().mean())
    for method in METHODS:
        row = table.loc[method, "acc", "all"]
        low, high = bootstrap_interval(row["mean"], np.array(values[method]), 1.0)
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
        assert row["interval"] == table.loc[method, "auc", "all"]["interval"] == BOOTSTRAP  # two cases of each patient
    for method in ("cross", "fedavg"):
        row = table.loc[method, "acc", "all"]
        difference = np.array(values[method]) - np.array(values["single"])
        assert row["p_single"] == pytest.approx(bootstrap_p(row["vs_single"], difference), abs=1e-12)


def test_area_under_the_curve_by_delong():
    predictions = study(np.random.default_rng(1), sites=2, patients=90, folds=3, seeds=2)
    table = summary(predictions, metrics=["auc"])
    row = table.loc["fedavg", "auc", "all"]
    assert (row["interval"], table.loc["cross", "auc", "all"]["interval"]) == (DELONG, BOOTSTRAP)
    own = predictions[predictions["method"] == "fedavg"].set_index("case")
    other = predictions[predictions["method"] == "single"].set_index("case")
    areas, variances, differences, of_differences = [], [], [], []
    for (seed, fold), part in own.groupby(["seed", "fold"]):
        area, variance = delong(part["label"], part["score"])
        rival = other[(other["seed"] == seed) & (other["fold"] == fold)].loc[part.index, "score"]
        difference, of_difference, _ = delong_paired(part["label"], part["score"], rival)
        areas.append(area)
        variances.append(variance)
        differences.append(difference)
        of_differences.append(of_difference)
    # Three independent folds: the sum of the variances over 9, for each of two seeds.
    error = math.sqrt(sum(variances) / 2 / 9)
    mean = np.mean(areas)
    centre, half = math.log(mean / (1 - mean)), 1.959963984540054 * error / (mean * (1 - mean))
    assert row["mean"] == pytest.approx(mean)
    assert row["low"] == pytest.approx(1 / (1 + math.exp(half - centre)))
    assert row["high"] == pytest.approx(1 / (1 + math.exp(-half - centre)))
    z = abs(np.mean(differences)) / math.sqrt(sum(of_differences) / 2 / 9)
    assert row["p_single"] == pytest.approx(2 * (1 - NormalDist().cdf(z)))


def test_tests_are_on_the_cases_that_both_scored():
    predictions = study(np.random.default_rng(2), methods=("single", "fedavg"), sites=3)
    lost = (predictions["method"] == "single") & (predictions["site"] == "S2")
    fewer = predictions[~lost]
    both = predictions[predictions["site"] != "S2"]
    metrics = ["auc", "acc"]
    table, expected = summary(fewer, metrics=metrics), summary(both, metrics=metrics)
    for metric in metrics:
        p = table.loc["fedavg", metric, "all"]["p_single"]
        assert p == pytest.approx(expected.loc["fedavg", metric, "all"]["p_single"])
        # The difference is that of the means, as shown.
        means = table["mean"].loc[:, metric, "all"]
        assert table.loc["fedavg", metric, "all"]["vs_single"] == pytest.approx(means["fedavg"] - means["single"])
    nothing = predictions[lost | ((predictions["method"] == "fedavg") & (predictions["site"] != "S2"))]
    assert math.isnan(summary(nothing, metrics=["acc"]).loc["fedavg", "acc", "all"]["p_single"])


def test_same_predictions_do_not_differ():
    predictions = study(np.random.default_rng(3), methods=("fedavg",), sites=6)
    twin = pd.concat([predictions, predictions.assign(method="fedprox(mu=0.0)")])
    table = summary(twin)
    row = table.loc["fedprox(mu=0.0)"]
    assert (row["vs_fedavg"] == 0).all()
    assert (row["p_fedavg"] == 1).all()
    assert row["p_single"].isna().all()  # was not run
    assert table.loc["fedavg"]["p_fedavg"].isna().all()
    columns = ["mean", "low", "high"]
    assert (table.loc["fedavg"][columns] == row[columns]).all(axis=None)  # the same draws


def test_adjusted_by_holm_over_methods():
    table = summary(study(np.random.default_rng(4), methods=("single", "fedavg", "a", "b", "c"))).reset_index()
    for _, group in table.groupby(["metric", "over"]):
        for baseline in ("single", "fedavg"):
            p = group[f"p_{baseline}"].to_numpy()
            assert group[f"p_{baseline}_adjusted"].to_numpy() == pytest.approx(holm(p), nan_ok=True)
            if group["over"].iloc[0] == "all":
                assert np.isnan(p).sum() == 1


def test_every_interval_holds_its_mean():
    table = summary(study(np.random.default_rng(5), sites=4, folds=3, seeds=2)).astype({"mean": float})
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    assert (table["interval"] != "").all()


def test_summary_is_the_same_every_time_and_in_any_row_order():
    predictions = study(np.random.default_rng(6))
    results = evaluate(predictions)
    first = summary(predictions, results)
    pd.testing.assert_frame_equal(first, summary(predictions, results))
    shuffled = summary(predictions.sample(frac=1, random_state=0), results)
    pd.testing.assert_frame_equal(first, shuffled, rtol=1e-12)
    assert not first["low"].equals(summary(predictions, results, seed=1)["low"])


# --- over sites


def test_over_sites_by_wilcoxon():
    predictions = study(np.random.default_rng(7), sites=7, patients=16)
    results = evaluate(predictions)
    scored = {f"S{k}": k != 3 for k in range(7)}
    table = summary(predictions, results, scored)
    sites = results[(results["tested_on"] != "all") & (results["tested_on"] != "S3")]
    means = sites.groupby(["method", "metric", "tested_on"])["value"].mean()
    for method in ("cross", "fedprox(mu=0.1)"):
        p = wilcoxon(means[method, "brier"] - means["fedavg", "brier"]).pvalue
        assert table.loc[method, "brier", "sites"]["p_fedavg"] == pytest.approx(p)
    five = summary(predictions, results, {f"S{k}": k < 5 for k in range(7)})
    assert five["p_fedavg"].loc[:, :, "sites"].isna().all()
    none = summary(predictions, results, {f"S{k}": False for k in range(7)})
    assert set(none.index.get_level_values("over")) == {"all"}


# --- other shapes


def test_more_classes():
    rng = np.random.default_rng(8)
    predictions = study(rng, methods=("single", "fedavg")).drop(columns=["score", "threshold"])
    predictions["label"] = predictions["case"].str[1:].astype(int) % 3
    scores = rng.dirichlet([1, 1, 1], len(predictions)) + 0.5 * np.eye(3)[predictions["label"]]
    scores /= scores.sum(axis=1, keepdims=True)
    predictions["score"] = scores.max(axis=1)
    predictions[["score_0", "score_1", "score_2"]] = scores
    rows = []
    for (method, fold), part in predictions.groupby(["method", "fold"]):
        values = classification_metrics(part["label"], part[["score_0", "score_1", "score_2"]], CLASSIFICATION)
        rows += [(method, 0, fold, "federation", "all", metric, value) for metric, value in values.items()]
    results = pd.DataFrame(rows, columns=["method", "seed", "fold", "trained_on", "tested_on", "metric", "value"])
    table = summary(predictions, results, classes=["a", "b", "c"])
    assert (table["interval"] == BOOTSTRAP).all()
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()
    assert table["p_single"].notna().sum() == table["p_fedavg"].notna().sum() == len(CLASSIFICATION)


def test_segmentation():
    rng = np.random.default_rng(9)
    rows = []
    for method, gain in (("single", 0.0), ("fedavg", 0.1)):
        for case in range(60):
            site, dice = f"S{case % 3}", 0.7 + gain + 0.05 * rng.normal()
            sen = np.nan if case == 0 else dice - 0.02
            rows.append(
                (method, 0, case % 2, "federation", site, f"p{case // 6}{site}", f"c{case}", dice, 9 * dice, sen)
            )
    keys = ["method", "seed", "fold", "trained_on", "site", "subject", "case"]
    predictions = pd.DataFrame(rows, columns=[*keys, "dice", "hd95", "sen"])
    long = predictions.melt(["method", "fold", "site"], ["dice", "hd95", "sen"], "metric")
    overall = long.groupby(["method", "fold", "metric"])["value"].mean().reset_index().assign(tested_on="all")
    by_site = long.groupby(["method", "fold", "metric", "site"])["value"].mean().reset_index()
    results = pd.concat([overall, by_site.rename(columns={"site": "tested_on"})]).assign(
        seed=0, trained_on="federation"
    )
    table = summary(predictions, results, task="segmentation", bootstrap=400)
    row = table.loc["fedavg", "dice", "all"]
    assert row["interval"] == BOOTSTRAP
    # 30 patients of two cases with deviation 0.05: the mean's error is about 0.05 / sqrt(60), half the width 0.0127.
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.05 / math.sqrt(60), rel=0.35)
    assert row["p_single"] == pytest.approx(1 / 401)
    assert table.loc["fedavg", "hd95", "all"]["high"] > 1
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()


def test_a_metric_that_predictions_cannot_give_has_no_interval():
    predictions = study(np.random.default_rng(10), methods=("single", "fedavg"))
    results = evaluate(predictions, ["acc"])
    results = pd.concat([results, results.assign(metric="loss")], ignore_index=True)
    table = summary(predictions, results)
    assert table.loc["fedavg", "loss", "all"]["interval"] == ""
    assert table.loc["fedavg", "loss", "all"]["mean"] == table.loc["fedavg", "acc", "all"]["mean"]
    assert table.xs("loss", level="metric")["p_single"].isna().all()


# --- does it keep its word?


def test_coverage_and_false_alarms_of_simulated_studies():
    """95 % intervals hold the truth, and p < 0.05 is rare between equal methods, about as often as they say."""
    rng = np.random.default_rng(11)
    signal, noise, runs = 1.5, 0.5, 120
    distance = signal / math.sqrt(1 + noise**2)  # between the classes, in units of the deviation within them
    truth = {"auc": NormalDist().cdf(distance / math.sqrt(2)), "acc": NormalDist().cdf(distance / 2)}
    held, alarms = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for run in range(runs):
        predictions = study(rng, methods=("single", "fedavg"), patients=40, signal=signal, noise=noise)
        table = summary(predictions, metrics=list(truth), scored={}, bootstrap=150, seed=run)
        for metric, value in truth.items():
            row = table.loc["fedavg", metric, "all"]
            held[metric] += row["low"] <= value <= row["high"]
            alarms[metric] += row["p_single"] < 0.05
    for metric in truth:
        # Binomial deviation at 0.95 of 120 runs: 0.02.
        assert 0.89 <= held[metric] / runs <= 0.99, metric
        assert 0.01 <= alarms[metric] / runs <= 0.11, metric
