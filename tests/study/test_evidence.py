"""What a site says of the methods, against DeLong's test and resampling by hand; and the comparison within sites."""

import math

import numpy as np
import pandas as pd
import pytest

from polyclinic.statistics.evidence import evidence_of_values, site_evidence
from polyclinic.statistics.intervals import delong, delong_paired, patient_weights
from polyclinic.study.statistics.comparisons import Spread, reach, tail, with_training
from polyclinic.study.statistics.within import BORROWED, steadied, within_sites, within_tables
from polyclinic.tasks.metrics import classification_metrics

METHODS = ("fedavg", "fedbn", "single")
#: Methods that are compared two by two in simulations: they share patients, and nothing else.
PAIRS = tuple((f"a{number}", f"b{number}") for number in range(5))


def predictions(rng, site="A", patients=30, methods=METHODS, seeds=1, folds=1, skill=None, shift=0.0):
    """Predictions of one site: the same patients for all, in the same folds."""
    label = np.arange(patients) % 2
    fold = np.arange(patients) // 2 % folds
    latent = label + rng.normal(size=patients)
    frames = []
    for method in methods:
        for seed in range(seeds):
            score = latent + 0.5 * rng.normal(size=patients) + (skill or {}).get(method, 0.0) * label + shift
            frames.append(pd.DataFrame({
                "method": method, "run": "plain", "seed": seed, "fold": fold, "trained_on": "federation", "site": site,
                "subject": [f"p{k:03}" for k in range(patients)], "case": [f"c{k:03}" for k in range(patients)],
                "label": label, "score": 1 / (1 + np.exp(-score)), "threshold": 0.5,
            }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def evidence(frame, metrics=("auc", "acc", "brier"), **options):
    return site_evidence(frame, "classification", 2, list(metrics), **{"bootstrap": 100, **options})


def scores(frame, method, **keys):
    rows = frame["method"] == method
    for name, value in keys.items():
        rows &= frame[name] == value
    return frame[rows].sort_values("case")["score"].to_numpy()


def test_one_training_and_one_split_are_delongs_test():
    frame = predictions(np.random.default_rng(0))
    found = evidence(frame)["auc"]
    label = np.arange(30) % 2
    for a, one in enumerate(METHODS):
        assert (found.values[a], found.variances[a, a]) == pytest.approx(delong(label, scores(frame, one)))
        for b, other in enumerate(METHODS):
            if a != b:
                difference, variance, _ = delong_paired(label, scores(frame, one), scores(frame, other))
                assert found.differences[0, a, b] == pytest.approx(difference)
                assert found.variances[a, b] == pytest.approx(variance)
    assert found.patients.tolist() == [15] * 3


def test_folds_add_and_seeds_share_their_patients():
    """Areas: placements are averaged over seeds; those of folds of one size are spread as in all folds together."""
    frame = predictions(np.random.default_rng(1), patients=36, seeds=2, folds=3)
    found = evidence(frame)["auc"]
    variances, differences = [], []
    for fold in range(3):
        label = np.arange(12) % 2
        a, b = (np.stack([scores(frame, one, fold=fold, seed=seed) for seed in (0, 1)]) for one in ("fedbn", "single"))
        difference, variance, _ = delong_paired(label, a, b)
        differences.append(difference)
        variances.append(variance)
    assert found.differences[:, 1, 2].mean() == pytest.approx(np.mean(differences))
    assert found.variances[1, 2] == pytest.approx(np.sum(variances) / 9)
    assert found.seeds == [0, 1]
    assert np.allclose(found.differences, -np.moveaxis(found.differences, 1, 2))


def test_other_metrics_are_resampled_with_the_same_draws_for_all():
    frame = predictions(np.random.default_rng(2), patients=20, folds=2)
    found = evidence(frame, ["brier"], bootstrap=50)["brier"]
    patients = pd.DataFrame({"site": ["A"] * 20})
    weights = np.concatenate(list(patient_weights(patients, 50, 0)), axis=1)
    label, fold = np.arange(20) % 2, np.arange(20) // 2 % 2

    def value(method, weight):
        squares = (label - scores(frame, method)) ** 2
        return np.mean([np.average(squares[fold == k], weights=weight[fold == k]) for k in (0, 1)])

    apart = [value("fedbn", weight) - value("single", weight) for weight in weights.T]
    assert found.differences[0, 1, 2] == pytest.approx(value("fedbn", np.ones(20)) - value("single", np.ones(20)))
    assert found.variances[1, 2] == pytest.approx(np.var(apart, ddof=1))


def test_labels_and_the_order_of_rows_mean_nothing():
    frame = predictions(np.random.default_rng(3), seeds=2, folds=3)
    names = dict(zip(METHODS, ["z", "single", "a (attacked)"], strict=True))
    other = frame.assign(method=frame["method"].replace(names)).sample(frac=1, random_state=0)
    for metric, one in evidence(frame).items():
        moved = evidence(other)[metric]
        order = [list(moved.methods).index(names[method]) for method in one.methods]
        np.testing.assert_allclose(one.variances, moved.variances[np.ix_(order, order)], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(one.differences, moved.differences[:, order][:, :, order], atol=1e-12)


def test_a_method_that_broke_down_in_a_fold_is_compared_on_the_others():
    frame = predictions(np.random.default_rng(4), patients=40, folds=4)
    broken = frame.copy()
    broken.loc[(broken["method"] == "single") & (broken["fold"] == 2), "score"] = np.nan
    rest = evidence(frame[frame["fold"] != 2])
    for metric, one in evidence(broken).items():
        whole = evidence(frame)[metric]
        np.testing.assert_allclose(one.variances[:2, :2], whole.variances[:2, :2])
        np.testing.assert_allclose(one.differences[0, :, 2], rest[metric].differences[0, :, 2], atol=1e-12)
        if metric == "auc":
            np.testing.assert_allclose(one.variances[:, 2], rest[metric].variances[:, 2])
        else:  # which patients are drawn together depends on how many there are
            np.testing.assert_allclose(one.variances[:, 2], rest[metric].variances[:, 2], rtol=0.6, atol=1e-12)


def test_a_method_without_any_number_is_compared_with_nobody():
    frame = predictions(np.random.default_rng(5))
    frame.loc[frame["method"] == "single", "score"] = np.nan
    for one in evidence(frame).values():
        assert np.isnan(one.values[2])
        assert np.isnan(one.differences[0, 2, :2]).all()
        assert np.isfinite(one.variances[:2, :2]).all()
        assert within_sites({"A": one}, ("single", "fedavg")).combined.sites == 0


def test_cross_has_several_models_and_others_keep_delongs_variance():
    rng = np.random.default_rng(6)
    frame = predictions(rng)
    cross = pd.concat([predictions(rng, methods=["cross"]).assign(trained_on=site) for site in ("B", "C")])
    together = evidence(pd.concat([frame, cross]))["auc"]
    alone = evidence(frame)["auc"]
    np.testing.assert_allclose(together.variances[:3, :3], alone.variances)
    areas = [delong(np.arange(30) % 2, scores(cross, "cross", trained_on=site))[0] for site in ("B", "C")]
    assert together.values[3] == pytest.approx(np.mean(areas))
    assert together.variances[3, 0] > 0


def test_values_alone_say_nothing_of_chance():
    rows = [("fedavg", 0, 0, 0.7), ("fedavg", 0, 1, 0.9), ("single", 0, 0, 0.6), ("single", 0, 1, math.nan)]
    found = evidence_of_values(pd.DataFrame(rows, columns=["method", "seed", "fold", "value"]))
    assert found.values.tolist() == pytest.approx([0.8, 0.6])
    assert found.differences[0, 0, 1] == pytest.approx(0.1)
    assert np.isnan(found.variances).all()


# --- within sites


def test_small_sites_borrow_from_all():
    """Site 1: 0.04 of 20 patients, 0.8 each. Site 2: nothing seen in 5 patients. Common: (0.8 * 20 + 0) / 25 = 0.64."""
    found = steadied(np.array([0.04, 0.0]), np.array([20.0, 5.0]))
    first = (20 * 0.8 + BORROWED * 0.64) / (20 + BORROWED) / 20
    assert found == pytest.approx([first, BORROWED * 0.64 / (5 + BORROWED) / 5])
    assert steadied(np.array([0.0, 0.0]), np.array([20.0, 5.0])).tolist() == [0, 0]
    assert steadied(np.array([0.04, np.nan]), np.array([20.0, 5.0]))[1] == pytest.approx(0.8 / 5)


def test_knowing_how_frequent_the_finding_is_gains_nothing():
    """Scores are moved by what is frequent at a site: put together they rank better, within sites they are equal."""
    rng = np.random.default_rng(7)
    found, frames = {}, []
    for site, shift in (("A", -4.0), ("B", 0.0), ("C", 4.0)):
        frame = predictions(rng, site, methods=["fedavg"])
        frame["label"] = (np.arange(30) % 6 < {"A": 1, "B": 3, "C": 5}[site]).astype(int)
        moved = frame.assign(
            method="single", score=1 / (1 + np.exp(-(np.log(frame["score"] / (1 - frame["score"])) + shift)))
        )
        frames += [frame, moved]
        found[site] = evidence(pd.concat([frame, moved]))["auc"]
    whole = pd.concat(frames)
    fedavg, single = (whole[whole["method"] == method] for method in ("fedavg", "single"))
    assert delong(single["label"], single["score"])[0] > delong(fedavg["label"], fedavg["score"])[0] + 0.1
    compared = within_sites(found, ("single", "fedavg"))
    assert (compared.combined.mean, compared.combined.p) == (0.0, 1.0)


def test_a_better_method_is_found_and_what_a_new_site_may_expect_holds_it():
    rng = np.random.default_rng(8)
    frames = {f"S{k}": predictions(rng, f"S{k}", 60, skill={"fedbn": 1.0}) for k in range(8)}
    of_sites = {site: evidence(frame) for site, frame in frames.items()}
    by_metric = {metric: {site: one[metric] for site, one in of_sites.items()} for metric in ("auc", "acc", "brier")}
    table, sites = within_tables({"plain": by_metric}, {"single": "single", "fedavg": "fedavg"}, "auc")
    keyed = table.set_index(["method", "metric", "versus"])
    row = keyed.loc["fedbn", "auc", "fedavg"]
    assert row["p"] < row["p_adjusted"] < 0.001
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["expected_low"] < row["low"]
    assert keyed.loc["fedavg", "auc", "fedbn"]["difference"] == pytest.approx(-row["difference"])
    assert np.isnan(keyed.loc["fedavg", "auc", "fedbn"]["p_adjusted"])
    assert set(table[table["metric"] == "acc"]["versus"]) == {"single", "fedavg"}
    mine = sites[(sites["method"] == "fedbn") & (sites["metric"] == "auc") & (sites["versus"] == "fedavg")]
    assert mine["weight"].sum() == pytest.approx(1)
    assert mine["weight"] @ mine["difference"] == pytest.approx(row["difference"])


def test_no_interval_reaches_beyond_the_largest_difference():
    rows = {"A": (0.9, 0.1), "B": (0.2, 0.1)}
    found = {
        site: evidence_of_values(pd.DataFrame({"method": ["fedavg", "single"], "seed": 0, "fold": 0, "value": values}))
        for site, values in rows.items()
    }
    assert within_sites(found, ("fedavg", "single")).combined.interval[1] > 4  # Student's t of one degree of freedom
    table, _ = within_tables({"plain": {"acc": found}}, {"single": "single", "fedavg": "fedavg"}, "acc")
    assert table[["low", "high"]].to_numpy().tolist() == [[-1.0, 1.0]] * 2


def test_chance_in_training_counts_where_it_is_seen():
    """The differences of two seeds are 0.1 and -0.1 at all sites: the patients alone would be sure of 0."""
    frames = {}
    for site in "ABCD":
        frame = predictions(np.random.default_rng(9), site, 200, methods=["a", "b"], seeds=2)
        frame["score"] = np.where(frame["label"] == 1, 0.6, 0.4)
        worse = ((frame["method"] == "a") & (frame["seed"] == 0)) | ((frame["method"] == "b") & (frame["seed"] == 1))
        wrong = frame.groupby(["method", "seed"]).cumcount() < 20
        frame.loc[worse & wrong, "score"] = 1 - frame["score"]
        frames[site] = evidence(frame, ["acc"])["acc"]
    found = within_sites(frames, ("a", "b")).combined
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert found.trained == pytest.approx(np.var([0.1, -0.1], ddof=1) / 2)
    assert found.interval[1] > 0.5  # two seeds show little: one degree of freedom


def test_of_one_site_its_patients_are_all_that_is_chance():
    frame = predictions(np.random.default_rng(10), patients=60)
    one = evidence(frame)["auc"]
    found = within_sites({"A": one}, ("fedbn", "fedavg")).combined
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.959964 * math.sqrt(one.variances[1, 0]))
    assert np.isnan(found.expected).all()


def called(evidence):
    """How many of the pairs are called different."""
    return sum(within_sites(evidence, pair).combined.p < 0.05 for pair in PAIRS)


def value_of(frame, metrics):
    table = np.stack([1 - frame["score"], frame["score"]], axis=1)
    return classification_metrics(frame["label"].to_numpy(), table, metrics, frame["threshold"].to_numpy())


@pytest.mark.long
@pytest.mark.parametrize(("sites", "patients"), [(4, 60), (8, 40), (15, 20)])
def test_of_equal_methods_one_in_twenty_is_called_different(sites, patients):
    """400 pairs of methods of equal skill in 80 studies; the standard error of a share of 0.05 is 0.011."""
    below = dict.fromkeys(("auc", "acc", "brier"), 0)
    for number in range(80):
        rng = np.random.default_rng(number)
        of_sites = {}
        for site in range(sites):
            count = int(patients * rng.uniform(0.5, 1.5)) // 2 * 2
            of_sites[f"S{site}"] = evidence(predictions(rng, f"S{site}", count, methods=[*sum(PAIRS, ())]))
        for metric in below:
            below[metric] += called({site: one[metric] for site, one in of_sites.items()})
    assert all(0.015 <= count / 400 <= 0.08 for count in below.values()), below


@pytest.mark.long
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_a_method_run_twice_is_seldom_called_different(seeds):
    """300 pairs, in 60 studies, of trainings that each make a model that is better or worse at all sites at once.

    With one seed nothing can tell that from the method, and the report says so; with more it counts.
    """
    below = dict.fromkeys(("auc", "brier"), 0)
    methods = [*sum(PAIRS, ())]
    for number in range(60):
        rng = np.random.default_rng(number)
        trained = rng.normal(size=(len(methods), seeds))
        of_sites = {}
        for site in range(6):
            frame = predictions(rng, f"S{site}", 40, methods=methods, seeds=seeds)
            luck = trained[frame["method"].map(methods.index), frame["seed"]]
            logit = np.log(frame["score"] / (1 - frame["score"])) + luck * frame["label"]
            of_sites[site] = evidence(frame.assign(score=1 / (1 + np.exp(-logit))), below)
        for metric in below:
            below[metric] += called({site: one[metric] for site, one in of_sites.items()})
    if seeds == 1:
        assert all(count / 300 > 0.2 for count in below.values()), below
    else:
        assert all(count / 300 <= 0.08 for count in below.values()), below


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("trained", [0.1, 1.0, 100.0])
def test_chance_in_training_is_called_a_difference_once_in_twenty(seeds, trained):
    """Patients add a variance of 1 to a difference of 0, training ``trained``. The share's standard error is 0.005."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(2000):
        found = rng.normal() + math.sqrt(trained * seeds) * rng.normal(size=seeds)
        spreads = with_training(Spread(1.0, math.inf), found)
        below += tail(found.mean(), spreads) < 0.05
        assert (tail(found.mean(), spreads) < 0.05) == (abs(found.mean()) > reach(spreads))
    assert 0.01 < below / 2000 < 0.065
