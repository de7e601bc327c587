"""DeLong against published numbers and the definition, the bootstrap's draws, Holm by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyclinic.study.intervals import (
    bootstrap_interval,
    bootstrap_p,
    delong,
    delong_paired,
    holm,
    logit_interval,
    normal_p,
    patient_weights,
)
from polyclinic.tasks.metrics import auc

# Albumin, total protein, K-G score and outcome of 43 patients with ovarian cancer: the example of DeLong, DeLong and
# Clarke-Pearson 1988, as printed in the SAS/STAT User's Guide ("Comparing Receiver Operating Characteristic Curves").
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
ALBUMIN, PROTEIN, KG, OUTCOME = np.array(OVARIAN.split(), dtype=float).reshape(43, 4).T
NO_BENEFIT = (OUTCOME == 0).astype(int)  # low albumin and protein, and a high score, speak for it

labels_and_scores = st.integers(4, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(0, 1)),
        arrays(np.float64, n, elements=st.integers(0, 6)),
        arrays(np.float64, n, elements=st.integers(0, 6)),
    )
)


def by_definition(labels, scores):
    """Placement values from all pairs: DeLong et al. 1988, equations 2 to 4."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    pairs = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return pairs.mean(axis=1), pairs.mean(axis=0)


def variance_by_definition(of_positives, of_negatives):
    return of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)


def close(value, expected):
    return value == pytest.approx(expected, abs=1e-12)


# --- DeLong


@pytest.mark.parametrize(
    ("score", "area", "error"), [(-ALBUMIN, 0.7366, 0.0927), (KG, 0.7258, 0.1028), (-PROTEIN, 0.6478, 0.1000)]
)
def test_delong_of_the_published_example(score, area, error):
    value, variance = delong(NO_BENEFIT, score)
    assert round(value, 4) == area
    assert round(math.sqrt(variance), 4) == error


@pytest.mark.parametrize(
    ("score", "difference", "error", "p"), [(-ALBUMIN, 0.0108, 0.0953, 0.9102), (-PROTEIN, -0.0780, 0.1046, 0.4561)]
)
def test_paired_delong_of_the_published_example(score, difference, error, p):
    value, variance, probability = delong_paired(NO_BENEFIT, score, KG)
    assert round(value, 4) == difference
    assert round(math.sqrt(variance), 4) == error
    assert round(probability, 4) == p


def test_delong_of_ct_ratings():
    # Hanley & McNeil 1982, table I: ratings 1 to 5 of 58 normal and 51 abnormal CT images; area 0.893. With DeLong's
    # standard error of 0.0307 it is the example of Stata's `roctab`.
    ratings = np.repeat([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], [33, 6, 6, 11, 2, 3, 2, 2, 11, 33])
    area, variance = delong(np.repeat([0, 1], [58, 51]), ratings)
    assert round(area, 4) == 0.8932
    assert round(math.sqrt(variance), 4) == 0.0307


@given(labels_and_scores)
def test_delong_is_the_definition(case):
    labels, a, b = case
    if min((labels == 1).sum(), (labels == 0).sum()) < 2:
        assert math.isnan(delong(labels, a)[1])
        return
    of_a, of_b = by_definition(labels, a), by_definition(labels, b)
    area, variance = delong(labels, a)
    assert close(area, auc(labels, a))
    assert close(variance, variance_by_definition(*of_a))
    difference, of_difference, _ = delong_paired(labels, a, b)
    assert close(difference, of_a[0].mean() - of_b[0].mean())
    assert close(of_difference, variance_by_definition(of_a[0] - of_b[0], of_a[1] - of_b[1]))


def test_delong_without_a_class():
    assert all(math.isnan(value) for value in delong([1, 1], [0.1, 0.2]))
    assert all(math.isnan(value) for value in delong_paired([0, 0], [0.1, 0.2], [0.2, 0.1]))
    area, variance = delong([0, 1, 1], [0.1, 0.2, 0.3])
    assert area == 1
    assert math.isnan(variance)


def test_normal_p():
    assert normal_p(1.959963984540054, 1.0) == pytest.approx(0.05)
    assert normal_p(0.0, 0.0) == 1.0
    assert math.isnan(normal_p(0.1, 0.0))
    assert math.isnan(normal_p(float("nan"), float("nan")))
    assert delong_paired([0, 1, 0, 1], [1, 2, 3, 4], [1, 2, 3, 4])[2] == 1.0


def test_logit_interval():
    # logit(0.8) = 1.386294; half width 1.959964 x 0.05 / 0.16 = 0.612489.
    low, high = logit_interval(0.8, 0.05**2)
    assert low == pytest.approx(1 / (1 + math.exp(-(1.3862943611 - 0.6124887452))), abs=1e-9)
    assert high == pytest.approx(1 / (1 + math.exp(-(1.3862943611 + 0.6124887452))), abs=1e-9)
    assert logit_interval(1.0, 0.0) == (1.0, 1.0)


# --- bootstrap


def test_patients_are_drawn_within_their_site():
    patients = pd.DataFrame({"site": ["A"] * 5 + ["B"] * 3 + ["C"]})
    weights = np.concatenate(list(patient_weights(patients, 200, seed=1)), axis=1)
    assert weights.shape == (9, 200)
    assert (weights[:5].sum(axis=0) == 5).all()
    assert (weights[5:8].sum(axis=0) == 3).all()
    assert (weights[8] == 1).all()
    assert len({tuple(column) for column in weights.T}) > 150


def test_draws_do_not_depend_on_blocks_or_on_other_sites():
    patients = pd.DataFrame({"site": ["A"] * 5 + ["B"] * 3})
    whole = np.concatenate(list(patient_weights(patients, 50, seed=1)), axis=1)
    blocks = np.concatenate(list(patient_weights(patients, 50, seed=1, block=7)), axis=1)
    alone = np.concatenate(list(patient_weights(patients[5:], 50, seed=1)), axis=1)
    other = np.concatenate(list(patient_weights(patients, 50, seed=2)), axis=1)
    assert (whole == blocks).all()
    assert (whole[5:] == alone).all()
    assert (whole != other).any()


def test_interval_is_moved_to_its_value_and_kept_in_range():
    draws = np.linspace(0.2, 0.4, 1001)  # mean 0.3, percentiles 0.205 and 0.395
    assert bootstrap_interval(0.3, draws) == pytest.approx((0.205, 0.395))
    assert bootstrap_interval(0.25, draws) == pytest.approx((0.155, 0.345))
    assert bootstrap_interval(0.05, draws) == pytest.approx((0.0, 0.145))
    assert bootstrap_interval(0.95, draws, 1.0) == pytest.approx((0.855, 1.0))
    assert bootstrap_interval(0.3, np.append(draws, np.nan)) == pytest.approx((0.205, 0.395))
    assert all(math.isnan(value) for value in bootstrap_interval(0.3, np.array([np.nan])))


def test_bootstrap_p_by_hand():
    draws = np.array([0.1, 0.2, 0.3, 0.4, 0.5])  # distances from the mean 0.3: 0.2 0.1 0 0.1 0.2
    assert bootstrap_p(0.15, draws) == pytest.approx((1 + 2) / 6)
    assert bootstrap_p(-0.05, draws) == pytest.approx((1 + 4) / 6)
    assert bootstrap_p(0.3, draws) == pytest.approx(1 / 6)
    assert bootstrap_p(0.0, np.zeros(9)) == 1.0
    assert math.isnan(bootstrap_p(float("nan"), draws))
    assert math.isnan(bootstrap_p(0.1, np.zeros(0)))


# --- Holm


def test_holm_by_hand():
    # Sorted 0.01 0.02 0.03 0.04 times 4 3 2 1: 0.04 0.06 0.06 0.04, and none below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.6]) == pytest.approx([1, 1, 1])
    assert holm([np.nan, 0.03, np.nan, 0.01]) == pytest.approx([np.nan, 0.03, np.nan, 0.02], nan_ok=True)
    assert len(holm([])) == 0


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)), st.randoms())
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p, random):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-15).all()
    order = list(range(len(p)))
    random.shuffle(order)
    assert (holm(p[order]) == adjusted[order]).all()
