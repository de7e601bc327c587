"""The summary table: means by hand, resampling by hand, the choice of tests, and coverage on simulated studies."""

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, ttest_1samp
from scipy.stats import t as student

from polyclinic.statistics.evidence import site_evidence
from polyclinic.statistics.intervals import (
    Area,
    area_interval,
    bootstrap_interval,
    bootstrap_p,
    delong,
    delong_paired,
    holm,
    patient_weights,
    share_interval,
)
from polyclinic.statistics.samples import Cases
from polyclinic.study.statistics.comparisons import NOTHING, Comparison
from polyclinic.study.statistics.draws import draw
from polyclinic.study.statistics.over_sites import ADDED
from polyclinic.study.statistics.over_sites import EXACT as EXACT_SITES
from polyclinic.study.statistics.source import Rows
from polyclinic.study.statistics.summary import COLUMNS, cost_of_unseen, summarise, widened
from polyclinic.study.statistics.together import BOOTSTRAP, EXACT, SCORE
from polyclinic.study.statistics.within import within_sites
from polyclinic.study.study import Study
from polyclinic.tasks.metrics import CLASSIFICATION, classification_metrics, value_range

METHODS = ("single", "cross", "fedavg", "fedprox(mu=0.1)")


def measure(frame, metrics=CLASSIFICATION):
    return classification_metrics(
        frame["label"].to_numpy(), np.stack([1 - frame["score"], frame["score"]], axis=1), metrics,
        frame["threshold"].to_numpy(),
    )  # fmt: skip


def evaluate(predictions, metrics=CLASSIFICATION):
    """The results table of binary predictions, as a study writes it."""
    rows = []
    for (method, run, seed, fold), part in predictions.groupby(["method", "run", "seed", "fold"], sort=False):
        models = list(part.groupby("trained_on")) if method == "cross" else [("own", part)]
        for model, frame in models:
            trained_on = {"single": "own", "cross": model}.get(method, "federation")
            tested = [(trained_on, "all", frame)]
            tested += [(site if method == "single" else trained_on, site, own) for site, own in frame.groupby("site")]
            for trained, tested_on, cases in tested:
                for metric, value in measure(cases, metrics).items():
                    rows.append((method, run, seed, fold, trained, tested_on, metric, value))
    columns = ["method", "run", "seed", "fold", "trained_on", "tested_on", "metric", "value"]
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
                                "run": "plain",
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
    return summarised(results, predictions, scored=scored, **options).set_index(["method", "metric", "over"])


def summarised(
    results, predictions, *, task="classification", classes=("a", "b"), scored, seed=0, bootstrap=100, **options
):
    return summarise(results, Rows(predictions, task, len(classes), seed=seed, bootstrap=bootstrap), scored, **options)


# --- means


def test_means_by_hand():
    def rows(method, trained_on, tested_on, *values):
        return [(method, "plain", 0, fold, trained_on, tested_on, "acc", value) for fold, value in enumerate(values)]

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
        columns=["method", "run", "seed", "fold", "trained_on", "tested_on", "metric", "value"],
    )
    scored = {"A": True, "B": True, "C": False}
    predictions = pd.DataFrame()
    table = summarised(results, predictions, scored=scored)
    assert list(table.columns) == COLUMNS
    keys = [("single", "all"), ("single", "sites"), ("cross", "all"), ("cross", "sites"), ("fedavg", "all")]
    assert list(zip(table["method"], table["over"], strict=True)) == keys
    # single over sites: (0.4 + 0.6) / 2 and 0.6 alone. cross: the mean of both models in each fold.
    assert list(table["mean"]) == pytest.approx([0.6, 0.55, 0.45, 0.3, 0.85])
    half = math.sqrt(0.5)
    assert list(table["deviation"]) == pytest.approx([0.2 * half, 0.1 * half, 0.3 * half, 0.2 * half, 0.1 * half])
    assert list(table["n"]) == [2] * 5
    nan = float("nan")
    # cross at sites: A -0.1 in both folds, B -0.5 in the first, as single has no value in the second.
    assert list(table["vs_single"]) == pytest.approx([nan, nan, -0.15, -0.3, 0.25], nan_ok=True)
    assert list(table["vs_fedavg"]) == pytest.approx([-0.25, nan, -0.4, nan, nan], nan_ok=True)
    assert table[["low", "high", "p_fedavg"]].isna().all(axis=None)
    # Two sites' differences, -0.1 and -0.5, of which nothing else is known: Student's t of one degree of freedom.
    p = ttest_1samp([-0.1, -0.5], 0).pvalue
    assert list(table["p_single"]) == pytest.approx([nan, nan, nan, p, nan], nan_ok=True)
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
    for drawn_times in weights.T:
        times = dict(zip(order, drawn_times, strict=True))
        counts = [int(times[key]) for key in zip(predictions["site"], predictions["subject"], strict=True)]
        drawn = predictions.loc[predictions.index.repeat(counts)]
        for method, frame in drawn.groupby("method"):
            models = ["trained_on"] if method == "cross" else []
            parts = frame.groupby(["seed", "fold", *models])[frame.columns].apply(lambda part: measure(part)["acc"])
            values[method].append(parts.groupby(["seed", "fold"]).mean().mean())
    seeds = table_of_seeds(predictions, "acc")
    for method in METHODS:
        row = table.loc[method, "acc", "all"]
        interval = bootstrap_interval(row["mean"], np.array(values[method]), 1.0)
        low, high = widened(row["mean"], interval, seeds[method].to_numpy(), (0.0, 1.0))
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)
        assert row["interval"] == BOOTSTRAP
        assert table.loc[method, "auc", "all"]["interval"] != SCORE  # two cases of each patient
    for method in ("cross", "fedavg"):
        row = table.loc[method, "acc", "all"]
        draws = np.array(values[method]) - np.array(values["single"])
        trained = (seeds[method] - seeds["single"]).var(ddof=1) / 2
        total = draws.var(ddof=1) + trained
        freedom = (total / trained) ** 2  # that of the patients is without end, that of two seeds one
        by_seeds = 2 * student.sf(abs(row["vs_single"]) / math.sqrt(total), freedom)
        alone = 2 * student.sf(abs(row["vs_single"]) / math.sqrt(trained), 1)
        p = max(bootstrap_p(row["vs_single"], draws), by_seeds, alone)
        assert row["p_single"] == pytest.approx(p, abs=1e-12)


def test_an_interval_takes_in_chance_in_training():
    """Patients: 0.8 - 0.1 and + 0.05. Seeds 0.78 and 0.82: a variance of 0.0004, of one degree of freedom."""
    assert widened(0.8, (0.7, 0.85), np.array([0.8]), (0, 1)) == pytest.approx((0.7, 0.85))
    assert widened(0.8, (0.7, 0.85), np.array([0.8, 0.8]), (0, 1)) == pytest.approx((0.7, 0.85))
    low, high = widened(0.8, (0.7, 0.85), np.array([0.78, 0.82]), (0, 1))
    for end, side in ((low, 0.1), (high, 0.05)):
        total = (side / 1.959964) ** 2 + 0.0004
        assert abs(end - 0.8) == pytest.approx(student.ppf(0.975, (total / 0.0004) ** 2) * math.sqrt(total), rel=1e-5)
    assert widened(0.99, (0.95, 1.0), np.array([0.98, 1.0]), (0, 1))[1] == 1.0
    assert np.isnan(widened(0.8, (math.nan, math.nan), np.array([0.7, 0.9]), (0, 1))).all()


def table_of_seeds(predictions, metric):
    """Mean over folds (and models) of each seed: a row a seed, a column a method."""
    rows = evaluate(predictions, [metric])
    rows = rows[rows["tested_on"] == "all"]
    folds = rows.groupby(["method", "seed", "fold"])["value"].mean()
    return folds.groupby(["method", "seed"]).mean().unstack("method")


def test_area_under_the_curve_by_delong():
    predictions = study(np.random.default_rng(1), sites=2, patients=90, folds=3, seeds=2)
    table = summary(predictions, metrics=["auc"])
    row = table.loc["fedavg", "auc", "all"]
    assert (row["interval"], table.loc["cross", "auc", "all"]["interval"]) == (SCORE, BOOTSTRAP)
    own = predictions[predictions["method"] == "fedavg"].set_index("case")
    other = predictions[predictions["method"] == "single"].set_index("case")
    areas, variances, differences, of_differences, expected = [], [], [], [], []
    for (seed, fold), part in own.groupby(["seed", "fold"]):
        area, variance = delong(part["label"], part["score"])
        rival = other[(other["seed"] == seed) & (other["fold"] == fold)].loc[part.index, "score"]
        difference, of_difference, _ = delong_paired(part["label"], part["score"], rival)
        areas.append(area)
        variances.append(variance)
        expected.append(Area(seed, area, variance, int(part["label"].sum()), int((1 - part["label"]).sum())))
        differences.append(difference)
        of_differences.append(of_difference)
    assert row["mean"] == pytest.approx(np.mean(areas))
    seeds = np.array([np.mean(areas[:3]), np.mean(areas[3:])])
    assert (row["low"], row["high"]) == pytest.approx(widened(row["mean"], area_interval(expected), seeds, (0, 1)))
    # Three independent folds: the sum of the variances over 9, for each of two seeds.
    patients = sum(of_differences) / 2 / 9
    trained = np.var([np.mean(differences[:3]), np.mean(differences[3:])], ddof=1) / 2
    z = abs(np.mean(differences)) / math.sqrt(patients + trained)
    by_seeds = 2 * student.sf(z, ((patients + trained) / trained) ** 2)
    alone = 2 * student.sf(abs(np.mean(differences)) / math.sqrt(trained), 1)
    p = 2 * (1 - NormalDist().cdf(abs(np.mean(differences)) / math.sqrt(patients)))
    assert row["vs_single"] == pytest.approx(np.mean(differences))
    assert row["p_single"] == pytest.approx(max(p, by_seeds, alone))


def test_seeds_with_the_same_folds_are_one_mean_in_the_paired_test():
    """Three models of equal skill whose slips are their own: the mean of their areas varies less than one of them."""
    one = study(np.random.default_rng(21), methods=("single", "fedavg"), sites=1, patients=120, folds=1)
    rng = np.random.default_rng(22)
    score = np.log(one["score"] / (1 - one["score"]))
    seeds = [one.assign(seed=k, score=1 / (1 + np.exp(-score - rng.normal(size=len(one))))) for k in range(3)]
    cases = Cases(pd.concat(seeds), "classification", 2, ["auc"])
    ((_, difference, variance),) = cases.paired_areas("fedavg", "single")
    labels = one["label"][one["method"] == "single"]
    scores = {m: [part["score"][part["method"] == m] for part in seeds] for m in ("single", "fedavg")}
    each = [delong_paired(labels, a, b) for a, b in zip(scores["fedavg"], scores["single"], strict=True)]
    assert difference == pytest.approx(np.mean([value for value, _, _ in each]))
    # The same as the variance of the mean over seeds of placements, by hand.
    positive, negative = labels.to_numpy() == 1, labels.to_numpy() == 0

    def placed(values):
        above = values.to_numpy()[positive][:, None] > values.to_numpy()[negative]
        return above.mean(1), above.mean(0)

    of_positives, of_negatives = (
        np.mean([placed(a)[k] - placed(b)[k] for a, b in zip(scores["fedavg"], scores["single"], strict=True)], axis=0)
        for k in (0, 1)
    )
    by_hand = of_positives.var(ddof=1) / positive.sum() + of_negatives.var(ddof=1) / negative.sum()
    assert variance == pytest.approx(by_hand)
    assert variance < 0.7 * np.mean([value for _, value, _ in each])


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
        # The difference is that of what is tested, not of means over other cases.
        shown = table.loc["fedavg", metric, "all"]["vs_single"]
        assert shown == pytest.approx(expected.loc["fedavg", metric, "all"]["vs_single"])
        means = table["mean"].loc[:, metric, "all"]
        assert shown != pytest.approx(means["fedavg"] - means["single"], abs=1e-4)
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


def test_over_sites_by_a_random_effects_meta_analysis():
    predictions = study(np.random.default_rng(7), sites=7, patients=16)
    results = evaluate(predictions)
    scored = {f"S{k}": k != 3 for k in range(7)}
    table = summary(predictions, results, scored)
    for method in ("cross", "fedprox(mu=0.1)"):
        evidence = {
            site: site_evidence(part, "classification", 2, ["brier"], bootstrap=100)["brier"]
            for site, part in predictions.groupby("site")
            if scored[site]
        }
        found = within_sites(evidence, (method, "fedavg"))
        row = table.loc[method, "brier", "sites"]
        assert row["vs_fedavg"] == found.combined.mean
        assert row["p_fedavg"] == found.combined.p
        assert len(found.differences) == 6
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
        rows += [(method, "plain", 0, fold, "federation", "all", metric, value) for metric, value in values.items()]
    results = pd.DataFrame(
        rows, columns=["method", "run", "seed", "fold", "trained_on", "tested_on", "metric", "value"]
    )
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
                (
                    method,
                    "plain",
                    0,
                    case % 2,
                    "federation",
                    site,
                    f"p{case // 6}{site}",
                    f"c{case}",
                    dice,
                    9 * dice,
                    sen,
                )
            )
    keys = ["method", "run", "seed", "fold", "trained_on", "site", "subject", "case"]
    predictions = pd.DataFrame(rows, columns=[*keys, "dice", "hd95", "sen"])
    long = predictions.melt(["method", "fold", "site"], ["dice", "hd95", "sen"], "metric")
    overall = long.groupby(["method", "fold", "metric"])["value"].mean().reset_index().assign(tested_on="all")
    by_site = long.groupby(["method", "fold", "metric", "site"])["value"].mean().reset_index()
    results = pd.concat([overall, by_site.rename(columns={"site": "tested_on"})]).assign(
        run="plain", seed=0, trained_on="federation"
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
    tested = table.xs("loss", level="metric")["p_single"].drop(("fedavg", "sites"))
    assert tested.isna().all()
    # The sites' values are enough to compare them: three differences, each counting the same.
    values = results[(results["metric"] == "loss") & (results["tested_on"] != "all")]
    pairs = values.pivot_table(index=["fold", "tested_on"], columns="method", values="value")
    apart = (pairs["fedavg"] - pairs["single"]).groupby("tested_on").mean()
    assert table.loc["fedavg", "loss", "sites"]["p_single"] == pytest.approx(ttest_1samp(apart, 0).pvalue)


# --- labels mean nothing, kinds of run are families


def relabelled(frame, **labels):
    return frame.assign(method=frame["method"].replace(labels))


def test_a_label_tells_nothing():
    """cross, single and fedavg under other labels are what they were; others under their labels are not."""
    predictions = study(np.random.default_rng(31), seeds=2)
    results = evaluate(predictions)
    labels = {"cross": "others (attacked)", "single": "cross", "fedavg": "single", "fedprox(mu=0.1)": "fedavg"}
    before = summary(predictions, results)
    after = summary(
        relabelled(predictions, **labels),
        relabelled(results, **labels),
        baselines={"single": "cross", "fedavg": "single"},
    )
    pd.testing.assert_frame_equal(before.rename(index=labels, level="method"), after)
    alone = summary(predictions, results, baselines={"fedavg": "fedavg"})
    assert alone[["vs_single", "p_single", "p_single_adjusted"]].isna().all(axis=None)
    pd.testing.assert_series_equal(alone["p_fedavg"], before["p_fedavg"])


def two_kinds(rng, methods=("single", "fedavg", "fedprox"), worse=0.6, **options):
    """A study whose federated methods were run at unseen sites, too, where they are worse."""
    seen = study(rng, methods=methods, **options)
    unseen = seen[seen["method"] != "single"].copy()
    slips = worse * rng.normal(size=len(unseen))
    unseen["score"] = 1 / (1 + np.exp(-np.log(unseen["score"] / (1 - unseen["score"])) - slips))
    return seen, unseen.assign(run="unseen")


def test_each_kind_of_run_is_a_family_of_its_own():
    seen, unseen = two_kinds(np.random.default_rng(32), sites=7, seeds=2)
    alone, both = summary(seen).reset_index(), summary(pd.concat([seen, unseen])).reset_index()
    assert list(both.columns) == [
        "method",
        "metric",
        "over",
        *[c for c in COLUMNS if c not in ("method", "metric", "over")],
    ]
    plain = both[both["run"] == "plain"].reset_index(drop=True)
    pd.testing.assert_frame_equal(plain, alone)
    rest = both[both["run"] == "unseen"]
    assert list(rest["method"].unique()) == ["fedavg", "fedprox"]
    assert rest[["vs_single", "p_single", "p_single_adjusted"]].isna().all(axis=None)  # it was not run without a site
    assert rest.loc[rest["method"] == "fedavg", "p_fedavg"].isna().all()
    mine = rest[rest["method"] == "fedprox"].set_index(["metric", "over"])
    # One comparison: nothing to correct for. The difference is to fedavg at unseen sites.
    assert mine["p_fedavg_adjusted"].notna().all()
    assert (mine["p_fedavg_adjusted"] == mine["p_fedavg"]).all()
    means = rest.set_index(["method", "metric", "over"])["mean"]
    assert mine["vs_fedavg"]["acc", "all"] == pytest.approx(
        means["fedprox", "acc", "all"] - means["fedavg", "acc", "all"]
    )


def test_what_it_costs_to_be_unseen_is_paired_with_the_method_itself():
    seen, unseen = two_kinds(np.random.default_rng(33), sites=7, patients=30, seeds=1, worse=2.0)
    lost = (unseen["site"] == "S6") & (unseen["fold"] == 1)
    unseen = unseen[~lost]  # as where a site could not be left out
    predictions = pd.concat([seen, unseen])
    results, metrics = evaluate(predictions, ["auc", "acc"]), ["auc", "acc"]
    source, scored = Rows(predictions, "classification", 2, bootstrap=200), {f"S{k}": True for k in range(7)}
    costs = cost_of_unseen(results, source, scored).set_index(["method", "metric", "over"])
    assert list(costs.index.get_level_values("method").unique()) == ["fedavg", "fedprox"]
    table = summarise(results, source, scored).set_index(["method", "run", "metric", "over"])
    keys = ["seed", "fold", "site", "case"]
    for method in ("fedavg", "fedprox"):
        a, b = (part[part["method"] == method].set_index(keys) for part in (seen, unseen))
        shared = a.index.intersection(b.index)
        assert len(shared) < len(a)
        for metric in metrics:
            row = costs.loc[method, metric, "all"]
            assert row["seen"] == table.loc[method, "plain", metric, "all"]["mean"]
            assert row["unseen"] == table.loc[method, "unseen", metric, "all"]["mean"]
            folds = [
                [measure(part[part.index.get_level_values("fold") == fold])[metric] for fold in (0, 1)]
                for part in (a.loc[shared], b.loc[shared])
            ]
            assert row["difference"] == pytest.approx(np.mean(np.subtract(*folds)))
            assert row["low"] < row["difference"] < row["high"]
            assert row["p"] <= row["p_adjusted"] <= 2 * row["p"]
            assert (row["p"] < 0.05) == (row["low"] > 0)
        values = results[(results["method"] == method) & (results["metric"] == "acc") & (results["tested_on"] != "all")]
        pairs = values.pivot_table(index=["fold", "tested_on"], columns="run", values="value").dropna()
        sites = (pairs["plain"] - pairs["unseen"]).groupby("tested_on").mean()
        row = costs.loc[method, "acc", "sites"]
        both = pd.concat([seen, unseen])
        both = both[both["method"] == method].assign(method=lambda frame: frame["run"])
        found = within_sites(
            {site: site_evidence(part, "classification", 2, ["acc"], bootstrap=200)["acc"]
             for site, part in both.groupby("site")}, ("plain", "unseen"),
        )  # fmt: skip
        assert found.differences == pytest.approx(sites.to_dict())
        assert tuple(row[["difference", "low", "high", "p"]]) == found.comparison
    none = cost_of_unseen(evaluate(seen), Rows(seen, "classification", 2), scored)
    assert none.empty
    assert list(none.columns) == ["method", *costs.reset_index().columns[1:]]


# --- at the ends


def separated(patients):
    """Predictions of two methods, both perfect: as many cases as controls, in two folds."""
    label = np.tile([0, 1], patients)
    frame = pd.DataFrame(
        {
            "method": "single", "run": "plain", "seed": 0, "fold": np.arange(2 * patients) // 2 % 2, "trained_on": "S0",
            "site": "S0", "subject": [f"p{k}" for k in range(2 * patients)],
            "case": [f"p{k}" for k in range(2 * patients)], "label": label, "score": 0.1 + 0.8 * label,
            "threshold": 0.5,
        }
    )  # fmt: skip
    return pd.concat([frame, frame.assign(method="fedavg", trained_on="federation")], ignore_index=True)


def test_where_all_cases_are_right_the_interval_has_their_number_in_it():
    table = summary(separated(10))
    for over in ("all", "sites"):
        row = table.loc["fedavg", "sen", over]
        assert (row["mean"], row["interval"]) == (1.0, {"all": EXACT, "sites": EXACT_SITES}[over])
        # Ten positives, five in each fold: all of them are found with a chance of low**10 = 0.025.
        assert (row["low"], row["high"]) == pytest.approx((0.025 ** (1 / 10), 1.0))
        assert table.loc["fedavg", "spe", over]["low"] == pytest.approx(row["low"])
        assert table.loc["fedavg", "acc", over]["low"] == pytest.approx(0.025 ** (1 / 20))
    area = table.loc["fedavg", "auc", "all"]
    assert area["interval"] == SCORE
    assert 0.7 < area["low"] < 0.85
    assert area["high"] == 1
    assert (table.loc["fedavg"]["p_single"].loc[:, "all"] == 1).all()  # both perfect: no difference
    more = summary(separated(100))
    assert more.loc["fedavg", "auc", "all"]["low"] > 0.96
    assert more.loc["fedavg", "sen", "all"]["low"] > 0.95


def test_a_share_near_its_end_is_that_of_as_many_cases():
    """Nine of ten positives found: the exact interval of 9 of 10, with the bootstrap's variance, which is 0.009."""
    predictions = separated(10)
    wrong = predictions.index[(predictions["method"] == "fedavg") & (predictions["label"] == 1)][0]
    predictions.loc[wrong, "score"] = 0.3
    predictions = predictions.assign(fold=0)
    row = summary(predictions, bootstrap=4000).loc["fedavg", "sen", "all"]
    assert row["interval"] == EXACT
    assert (row["low"], row["high"]) == pytest.approx(share_interval(0.9, 10), abs=0.02)


# --- does it keep its word?


def test_coverage_and_false_alarms_of_simulated_studies():
    """95 % intervals hold the truth, and p < 0.05 is rare between equal methods, about as often as they say."""
    rng = np.random.default_rng(11)
    signal, noise, runs = 1.5, 0.5, 120
    distance = signal / math.sqrt(1 + noise**2)  # between the classes, in units of the deviation within them
    truth = {"auc": NormalDist().cdf(distance / math.sqrt(2)), "acc": NormalDist().cdf(distance / 2)}
    held, alarms = dict.fromkeys(product(truth, ("all", "sites")), 0), dict.fromkeys(truth, 0)
    for run in range(runs):
        predictions = study(rng, methods=("single", "fedavg"), patients=40, signal=signal, noise=noise)
        table = summary(predictions, metrics=list(truth), bootstrap=150, seed=run)
        for metric, over in held:
            row = table.loc["fedavg", metric, over]
            held[metric, over] += row["low"] <= truth[metric] <= row["high"]
            if over == "all":
                alarms[metric] += row["p_single"] < 0.05
            else:
                assert row["interval"] in (ADDED, EXACT_SITES)
    # Binomial deviation at 0.95 of 120 runs: 0.02.
    for key, count in held.items():
        assert 0.89 <= count / runs <= 0.995, key
    for metric, count in alarms.items():
        assert 0.01 <= count / runs <= 0.11, metric


def trained_twice(rng, seeds, *, spread=0.9, patients=25, sites=8):
    """Two equal methods whose models differ from seed to seed in what they see in a patient, at all sites and folds."""
    count = sites * patients
    label = rng.integers(0, 2, count)
    latent, details = label + rng.normal(size=count), rng.normal(size=(count, 4))
    frames = []
    for method in ("fedavg", "twin"):
        for seed in range(seeds):
            taste, shift = spread * rng.normal(size=4) / 2, 0.3 * rng.normal()
            score = latent - 0.5 + details @ taste + shift
            frames.append(
                pd.DataFrame(
                    {
                        "method": method, "run": "plain", "seed": seed, "fold": np.arange(count) % 5,
                        "trained_on": "federation", "site": [f"S{k % sites}" for k in range(count)],
                        "subject": [f"p{k}" for k in range(count)], "case": [f"p{k}" for k in range(count)],
                        "label": label, "score": 1 / (1 + np.exp(-score)), "threshold": 0.5,
                    }
                )
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_methods_are_seldom_called_different_where_trainings_differ(seeds):
    """p below 0.05 in about 5 % over all cases and over sites; without the seeds it is far more."""
    rng, runs = np.random.default_rng(41), 100 if seeds == 3 else 60
    metrics = ["auc", "acc", "brier"]
    found, patients_alone = [], []
    for run in range(runs):
        predictions = trained_twice(rng, seeds)
        table = summary(predictions, metrics=metrics, bootstrap=150, seed=run)
        found.append(table.loc["twin"]["p_fedavg"])
        if run >= 30:
            continue
        cases = Cases(predictions, "classification", 2, metrics)
        draws = draw(cases, ["fedavg"], run, 150).differences["twin", "fedavg"]
        patients_alone.append([bootstrap_p(one[0], one[1:]) for one in draws])
    share = (pd.DataFrame(found) < 0.05).mean()
    # Binomial deviation at 0.05 of 60 runs: 0.028, of 100 runs: 0.022.
    assert (share <= 0.11).all(), share
    # What a seed's model makes of these very patients is in both variances, so with more seeds p is on the safe side;
    # and so it is with two, which leave one degree of freedom to see chance in training by.
    assert (0.01 if seeds == 3 else 0.0) <= share.mean() <= 0.07, share
    assert (np.array(patients_alone) < 0.05).mean() > 0.12


@pytest.mark.long
def test_intervals_hold_what_other_trainings_on_other_patients_would_give():
    """Three seeds; of patients alone the intervals would be too narrow."""
    rng, runs, held = np.random.default_rng(42), 60, {}
    taste, shift = 0.45**2 * rng.chisquare(4, 100_000), 0.3 * rng.normal(size=100_000)
    spread = np.sqrt(1 + taste)  # of the scores within a class, given the training
    truth = {
        "auc": norm.cdf(1 / (math.sqrt(2) * spread)).mean(),
        "acc": (norm.cdf((0.5 + shift) / spread) + norm.cdf((0.5 - shift) / spread)).mean() / 2,
    }
    for run in range(runs):
        table = summary(trained_twice(rng, 3, sites=4), metrics=list(truth), bootstrap=150, seed=run)
        for metric, over in product(truth, ("all", "sites")):
            row = table.loc["fedavg", metric, over]
            held[metric, over] = held.get((metric, over), 0) + (row["low"] <= truth[metric] <= row["high"])
    # Binomial deviation at 0.95 of 60 runs: 0.028.
    assert all(count / runs >= 0.89 for count in held.values()), held


def test_no_interval_of_a_difference_leaves_what_differences_can_be():
    """Two seeds leave one degree of freedom: Student's t goes far, a difference of two shares not beyond 1."""
    wide = Comparison(-0.03, -1.38, 1.32, 0.84)
    assert wide.within(value_range("sen")) == (-0.03, -1.0, 1.0, 0.84)
    assert wide.within(value_range("mae")) == wide.within(value_range("r2")) == wide
    assert np.isnan(Comparison(0.1, *NOTHING[1:]).within(value_range("sen")).low)


def test_folds_without_ill_patients_have_no_part_in_metrics_of_both_classes(tmp_path):
    """Of four folds two have an ill patient each. A model that calls all ill is as good as chance, not worse."""
    frames = {}
    for number, site in enumerate(("A", "B")):
        features = np.random.default_rng(number).normal(size=(16, 2))
        frames[site] = pd.DataFrame({"x1": features[:, 0], "x2": features[:, 1], "ill": [1, 1] + [0] * 14})
    content = {
        "data": {"label": "ill", "features": "x*"}, "model": "logistic", "methods": ["fedavg"],
        "training": {"rounds": 1}, "engine": {"threads": 1, "jobs": 1, "mode": "sequential"},
        "evaluation": {"folds": 4, "threshold": 1e-6, "bootstrap": 0, "min_cases_per_class": 1,
                       "metrics": ["bac", "f1", "ap", "acc"]},
    }  # fmt: skip
    done = Study.of(content, tmp_path, data=frames).run(tmp_path / "out")
    ill = done.predictions.groupby(["site", "fold"])["label"].sum()
    for site in frames:
        own = done.results[done.results["tested_on"] == site].set_index(["metric", "fold"])["value"]
        assert sorted(ill[site]) == [0, 0, 1, 1]
        for metric in ("bac", "f1", "ap"):
            assert own[metric].isna().tolist() == (ill[site] == 0).tolist()
        assert own["acc"].notna().all()
    means = done.summary[done.summary["over"] == "sites"].set_index("metric")["mean"]
    assert means["bac"] == 0.5
    assert means["f1"] == pytest.approx(2 / 5)  # 2 of 2 + 3 false ones, in folds of 4
