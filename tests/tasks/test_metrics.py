"""Metrics against scikit-learn, MONAI, and numbers worked by hand."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sklearn_metrics

from polyclinic.errors import StudyError
from polyclinic.tasks import metrics
from polyclinic.tasks.metrics import (
    CLASSIFICATION,
    METRICS,
    RECONSTRUCTION,
    REGRESSION,
    SEGMENTATION,
    SURVIVAL,
    auc,
    choose_threshold,
    classification_metrics,
    metric_text,
    threshold_counts,
    threshold_grid,
    weighted_metrics,
)


@st.composite
def predictions(draw, classes=2, least=1):
    """Labels and probabilities on a coarse grid, so that scores are often tied and classes often missing."""
    cases = draw(st.integers(least, 30))
    labels = draw(arrays(np.int64, cases, elements=st.integers(0, classes - 1)))
    parts = draw(arrays(np.int64, (cases, classes), elements=st.integers(0, 4)))
    parts[parts.sum(axis=1) == 0] = 1
    return labels, parts / parts.sum(axis=1, keepdims=True)


def exactly(value, expected):
    """Equal to 1e-12, or both NaN."""
    return value == pytest.approx(expected, abs=1e-12, nan_ok=True)


# --- area under the curve


def test_auc_by_hand():
    # Pairs (negative, positive): 0.1<0.4, 0.1<0.35, 0.4=0.4 (half), 0.4>0.35 (none): 2.5 of 4.
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.35]) == 0.625


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([1, 1], [0.2, 0.3]), ([0], [0.1]), ([0, 1], [np.nan, 0.3])])
def test_auc_undefined(labels, scores):
    assert math.isnan(auc(labels, scores))


@given(predictions())
def test_auc_is_that_of_scikit_learn_and_of_the_weighted_formula(case):
    labels, probabilities = case
    value = auc(labels, probabilities[:, 1])
    if len(set(labels)) == 2:
        assert exactly(value, sklearn_metrics.roc_auc_score(labels, probabilities[:, 1]))
        assert value == classification_metrics(labels, probabilities, ["auc"])["auc"]  # to the last bit
    else:
        assert math.isnan(value)


@given(predictions())
def test_auc_of_turned_scores_is_the_rest(case):
    labels, probabilities = case
    assert exactly(auc(labels, probabilities[:, 1]), 1 - auc(labels, -probabilities[:, 1]))


# --- classification


def test_binary_by_hand():
    labels = [1, 1, 1, 0, 0]
    score = np.array([0.9, 0.6, 0.2, 0.7, 0.1])
    values = classification_metrics(labels, np.stack([1 - score, score], axis=1), CLASSIFICATION)
    assert list(values) == list(CLASSIFICATION)
    # TP 2, FN 1, FP 1, TN 1; ranking 1 0 1 1 0; AUC (2 + 1 + 1) / 6; AP (1 + 2/3 + 3/4) / 3.
    expected = {
        "auc": 4 / 6,
        "acc": 3 / 5,
        "bac": (2 / 3 + 1 / 2) / 2,
        "sen": 2 / 3,
        "spe": 1 / 2,
        "f1": 4 / 6,
        "ap": (1 + 2 / 3 + 3 / 4) / 3,
        "brier": (0.01 + 0.16 + 0.64 + 0.49 + 0.01) / 5,
    }
    for name, value in expected.items():
        assert exactly(values[name], value), name
    # Confidence 0.9 twice in bin (13/15, 14/15], right twice: 0.2. 0.6 in (8/15, 9/15], right: 0.4. 0.7 in (10/15,
    # 11/15], wrong: 0.7. 0.8 in (11/15, 12/15], wrong: 0.8.
    assert exactly(values["ece"], (0.2 + 0.4 + 0.7 + 0.8) / 5)


@given(predictions(), st.sampled_from([0.25, 0.5, 0.6]))
def test_binary_is_that_of_scikit_learn(case, threshold):
    labels, probabilities = case
    score = probabilities[:, 1]
    called = (score >= threshold).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = classification_metrics(labels, probabilities, CLASSIFICATION, threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert exactly(values["acc"], sklearn_metrics.accuracy_score(labels, called))
        assert exactly(values["brier"], np.mean((score - labels) ** 2))
        nan = float("nan")
        assert exactly(values["sen"], sklearn_metrics.recall_score(labels, called, zero_division=nan))
        assert exactly(values["spe"], sklearn_metrics.recall_score(labels, called, pos_label=0, zero_division=nan))
        if len(set(labels)) == 2:
            assert exactly(values["bac"], sklearn_metrics.balanced_accuracy_score(labels, called))
            assert exactly(values["f1"], sklearn_metrics.f1_score(labels, called))
            assert exactly(values["ap"], sklearn_metrics.average_precision_score(labels, score))
        else:  # scikit-learn gives an F1 of 0, an average precision of 1 and the recall of one class
            assert np.isnan([values[name] for name in ("bac", "f1", "ap")]).all()


@given(predictions(classes=3))
def test_three_classes_are_those_of_scikit_learn(case):
    labels, probabilities = case
    called = probabilities.argmax(axis=1)
    present = np.unique(labels)
    truth = labels[:, None] == np.arange(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = classification_metrics(labels, probabilities, CLASSIFICATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert exactly(values["acc"], sklearn_metrics.accuracy_score(labels, called))
        if len(present) > 1:
            assert exactly(values["bac"], sklearn_metrics.balanced_accuracy_score(labels, called))
            recall = sklearn_metrics.recall_score(labels, called, labels=present, average="macro")
            assert exactly(values["sen"], recall)
            assert exactly(values["f1"], sklearn_metrics.f1_score(labels, called, average="macro"))
            precisions = [sklearn_metrics.average_precision_score(truth[:, k], probabilities[:, k]) for k in present]
            assert exactly(values["ap"], np.mean(precisions))
        else:
            assert np.isnan([values[name] for name in ("bac", "sen", "f1", "ap")]).all()
        both = [k for k in range(3) if 0 < truth[:, k].sum() < len(labels)]
        rest = [
            sklearn_metrics.recall_score(truth[:, k], called == k, pos_label=False, zero_division=np.nan) for k in both
        ]
        areas = [sklearn_metrics.roc_auc_score(truth[:, k], probabilities[:, k]) for k in both]
    assert exactly(values["spe"], np.mean(rest) if both else float("nan"))
    assert exactly(values["auc"], np.mean(areas) if both else float("nan"))
    if len(present) == 3:
        area = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert exactly(values["auc"], area)
    assert exactly(values["brier"], np.mean(((probabilities - truth) ** 2).sum(axis=1)))


@given(predictions(classes=3))
def test_calibration_error_is_the_loop_over_bins(case):
    labels, probabilities = case
    right, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    expected = 0.0
    for low, high in zip(range(15), range(1, 16), strict=True):
        inside = (confidence * 15 > low) & (confidence * 15 <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert exactly(classification_metrics(labels, probabilities, ["ece"])["ece"], expected)


@pytest.mark.parametrize("classes", [2, 3])
@settings(max_examples=50)
@given(data=st.data())
def test_whole_weights_repeat_the_cases(classes, data):
    labels, probabilities = data.draw(predictions(classes=classes))
    weights = data.draw(arrays(np.int64, (len(labels), 4), elements=st.integers(0, 3))).astype(float)
    thresholds = data.draw(arrays(np.float64, len(labels), elements=st.sampled_from([0.3, 0.5, 0.75])))
    values = weighted_metrics(labels, probabilities, weights, CLASSIFICATION, thresholds)
    for column in range(4):
        repeated = np.repeat(np.arange(len(labels)), weights[:, column].astype(int))
        plain = classification_metrics(labels[repeated], probabilities[repeated], CLASSIFICATION, thresholds[repeated])
        for name in CLASSIFICATION:
            assert exactly(values[name][column], plain[name]), name


@pytest.mark.parametrize("classes", [2, 4])
def test_no_cases_are_undefined(classes):
    values = classification_metrics(np.zeros(0, int), np.zeros((0, classes)), CLASSIFICATION)
    assert list(values) == list(CLASSIFICATION)
    assert all(math.isnan(value) for value in values.values())


def test_one_class_alone_leaves_undefined_what_needs_both():
    values = classification_metrics([0, 0], [[0.9, 0.1], [0.4, 0.6]], CLASSIFICATION)
    assert {name for name, value in values.items() if math.isnan(value)} == {"auc", "bac", "sen", "f1", "ap"}
    assert values["spe"] == values["acc"] == 0.5
    values = classification_metrics([1, 1], [[0.9, 0.1], [0.4, 0.6]], CLASSIFICATION)
    assert {name for name, value in values.items() if math.isnan(value)} == {"auc", "bac", "spe", "f1", "ap"}
    three = classification_metrics([2, 2], [[0.1, 0.1, 0.8], [0.4, 0.4, 0.2]], CLASSIFICATION)
    assert {name for name, value in three.items() if not math.isnan(value)} == {"acc", "brier", "ece"}


def test_unknown_metric_names_the_nearest():
    with pytest.raises(StudyError, match=r"P103 There is no metric 'aucc' for this task. Did you mean 'auc'\?"):
        classification_metrics([0, 1], [[0.9, 0.1], [0.4, 0.6]], ["aucc"])


def test_every_metric_is_described():
    assert set(METRICS) == {*CLASSIFICATION, *SEGMENTATION, *REGRESSION, *SURVIVAL, *RECONSTRUCTION}
    lower = [name for name, metric in METRICS.items() if not metric.higher_is_better]
    assert lower == ["brier", "ece", "hd95", "assd", "mae", "rmse", "nmse", "ibs"]


def test_import_needs_numpy_alone():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        "print([name for name in ('torch', 'monai', 'scipy', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, metrics.__file__], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- threshold


def test_grid_is_even_on_the_logit_scale_and_holds_one_half():
    grid = threshold_grid()
    assert len(grid) == 641
    assert grid[320] == 0.5
    assert np.allclose(np.diff(np.log(grid / (1 - grid))), 1 / 40)
    with pytest.raises(ValueError, match="read-only"):
        grid[0] = 0


def test_counts_add_over_sites_and_give_the_decisions():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.random(200)
    scores[:3] = threshold_grid()[[0, 320, 640]]  # exactly on a threshold is reaching it
    counts = threshold_counts(labels, scores)
    assert counts.shape == (2, 642)
    assert counts.dtype == np.int64
    parts = threshold_counts(labels[:70], scores[:70]) + threshold_counts(labels[70:], scores[70:])
    assert (counts == parts).all()
    for place in (0, 100, 320, 640):
        called = scores >= threshold_grid()[place]
        assert counts[1, place + 1 :].sum() == (called & (labels == 1)).sum()
        assert counts[0, place + 1 :].sum() == (called & (labels == 0)).sum()


@settings(max_examples=30)
@given(predictions(least=2))
def test_chosen_threshold_is_the_best_of_the_grid(case):
    labels, probabilities = case
    score = probabilities[:, 1]
    chosen = choose_threshold(threshold_counts(labels, score))
    if len(set(labels)) < 2:
        assert chosen == 0.5
        return
    merit = [classification_metrics(labels, probabilities, ["bac"], threshold)["bac"] for threshold in threshold_grid()]
    assert chosen in threshold_grid()
    assert exactly(classification_metrics(labels, probabilities, ["bac"], chosen)["bac"], max(merit))


def test_middle_of_the_plateau_nearest_one_half():
    grid = threshold_grid()
    # One negative between thresholds 99 and 100, one positive between 299 and 300: 100 ... 299 separate them.
    counts = np.zeros((2, 642), dtype=np.int64)
    counts[0, 100] = counts[1, 300] = 1
    assert choose_threshold(counts) == grid[(100 + 299) // 2]
    # Two plateaus as good as each other: 100 ... 299 (both positives, one of two negatives) and 400 ... 499 (one
    # positive, no negative). Their middles are 199 and 449: 121 and 129 steps from 0.5.
    counts[1, 500] += 1
    counts[0, 400] += 1
    assert choose_threshold(counts) == grid[199]
    # Classes and scores turned round: the plateaus are 341 ... 540 and 141 ... 240, and the later one is nearer.
    assert choose_threshold(counts[::-1, ::-1]) == grid[440]
    assert choose_threshold(np.zeros((2, 642), dtype=np.int64)) == 0.5


@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_that_gives_no_numbers_has_decided_nothing(classes):
    """NaN is not below a threshold: to call such cases healthy would make a broken model specific."""
    probabilities = np.full((3, classes), 1 / classes)
    probabilities[1] = np.nan
    values = classification_metrics([0, 1, 0], probabilities, CLASSIFICATION)
    assert {name for name, value in values.items() if not math.isnan(value)} <= {"auc", "ap"}
    assert all(math.isnan(values[name]) for name in ("acc", "bac", "sen", "spe", "f1", "brier", "ece"))


def test_small_errors_keep_their_digits_and_shares_their_places():
    texts = [metric_text(name, value) for name, value in
             [("mae", 5.8343e-05), ("mae", -0.00012345), ("mae", 0.0), ("rmse", 0.0101), ("hd95", 12.34), ("auc", 5e-5),
              ("brier", 0.0004), ("mae", float("nan"))]]  # fmt: skip
    assert texts == ["5.83e-05", "-0.000123", "0.000", "0.010", "12.3", "0.000", "0.000", "–"]
    assert metric_text("mae", 0.051234, 2) == "0.051"
