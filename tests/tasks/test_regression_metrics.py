"""Measures of predicted numbers against scikit-learn, scipy, and numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from polyclinic.errors import StudyError
from polyclinic.tasks.metrics import REGRESSION
from polyclinic.tasks.regression_metrics import regression_metrics, weighted_regression_metrics


def test_by_hand():
    values = regression_metrics([1, 2, 3, 4], [2, 2, 3, 7], REGRESSION)
    # Errors 1, 0, 0, 3; squares 1 + 9 = 10; targets vary by 5 around 2.5.
    assert values["mae"] == 1.0
    assert values["rmse"] == pytest.approx(math.sqrt(2.5))
    assert values["r2"] == pytest.approx(1 - 10 / 5)
    # Deviations -1.5 -0.5 0.5 1.5 and -1.5 -1.5 -0.5 3.5: products 8, spreads 5 and 17.
    assert values["r"] == pytest.approx(8 / math.sqrt(5 * 17))


numbers = st.floats(-1000, 1000, width=32)


@given(arrays(np.float64, (2, 12), elements=numbers))
def test_they_are_those_of_scikit_learn_and_scipy(pair):
    targets, predictions = np.round(pair, 2)
    values = regression_metrics(targets, predictions, REGRESSION)
    assert values["mae"] == pytest.approx(mean_absolute_error(targets, predictions))
    assert values["rmse"] == pytest.approx(root_mean_squared_error(targets, predictions))
    if np.ptp(targets):
        assert values["r2"] == pytest.approx(r2_score(targets, predictions), rel=1e-6, abs=1e-6)
    if np.ptp(targets) and np.ptp(predictions):
        assert values["r"] == pytest.approx(pearsonr(targets, predictions).statistic, abs=1e-6)


@given(arrays(np.float64, (2, 8), elements=numbers), arrays(np.int64, (8, 3), elements=st.integers(0, 3)))
def test_whole_weights_are_repeated_cases(pair, weights):
    targets, predictions = np.round(pair, 1)
    weights[0] += weights.sum(axis=0) == 0
    values = weighted_regression_metrics(targets, predictions, weights.astype(float), REGRESSION)
    for column, times in enumerate(weights.T):
        repeated = regression_metrics(np.repeat(targets, times), np.repeat(predictions, times), REGRESSION)
        for name in REGRESSION:
            assert values[name][column] == pytest.approx(repeated[name], rel=1e-6, abs=1e-6, nan_ok=True)


def test_large_values_keep_their_digits():
    targets = 1e6 + np.array([0.0, 1.0, 2.0, 3.0])
    values = regression_metrics(targets, targets + np.array([0.5, -0.5, 0.5, -0.5]), REGRESSION)
    assert values["r2"] == pytest.approx(1 - 1 / 5)


@pytest.mark.parametrize(
    ("targets", "predictions", "undefined"),
    [
        ([], [], {"mae", "rmse", "r2", "r"}),
        ([5.0], [4.0], {"r2", "r"}),
        ([0.1, 0.1, 0.1], [0.1, 0.2, 0.3], {"r2", "r"}),
        ([0.1, 0.2, 0.3], [0.1, 0.1, 0.1], {"r"}),
    ],
)
def test_undefined(targets, predictions, undefined):
    values = regression_metrics(targets, predictions, REGRESSION)
    assert {name for name, value in values.items() if math.isnan(value)} == undefined


def test_a_wrong_name():
    with pytest.raises(StudyError, match=r"P103 There is no metric 'rmsd' for this task. Did you mean 'rmse'\?"):
        regression_metrics([1, 2], [1, 2], ["rmsd"])
