"""DeLong against published numbers and the definition, intervals at the ends, the bootstrap's draws, Holm by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t as student

from polyclinic.statistics.intervals import (
    Area,
    area_interval,
    bootstrap_interval,
    bootstrap_p,
    delong,
    delong_paired,
    expected_variance,
    holm,
    normal_p,
    patient_weights,
    share_interval,
    touches_end,
    variance_by_p,
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
    assert normal_p(0.0, 0.0) == normal_p(0.0, float("nan")) == 1.0
    assert math.isnan(normal_p(0.1, 0.0))
    assert math.isnan(normal_p(float("nan"), float("nan")))
    assert delong_paired([0, 1, 0, 1], [1, 2, 3, 4], [1, 2, 3, 4])[2] == 1.0


def test_where_all_cases_agree_on_a_difference_p_is_that_of_the_sign_test():
    """Three cases of a class that all put the one before the other: 2 / 2**3."""
    right, wrong = [1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]
    difference, variance, p = delong_paired([0, 0, 0, 1, 1, 1, 1], right, wrong)
    assert difference == 1
    assert p == pytest.approx(0.25)
    assert variance == 0
    assert normal_p(difference, variance_by_p(difference, p)) == pytest.approx(0.25)
    assert delong_paired([0, 0, 0, 1, 1, 1, 1], right, right) == (0.0, 0.0, 1.0)  # both perfect


def test_several_seeds_are_averaged_before_their_variance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    a, b = rng.normal(size=(2, 5, 60)) + labels
    difference, variance, _ = delong_paired(labels, a, b)
    single = [delong_paired(labels, one, other) for one, other in zip(a, b, strict=True)]
    assert difference == pytest.approx(np.mean([value for value, _, _ in single]))
    assert variance < 0.5 * np.mean([value for _, value, _ in single])
    assert delong_paired(labels, a[:1], b[:1]) == delong_paired(labels, a[0], b[0])


# --- areas


def test_variance_to_be_expected_by_hand():
    """Hanley & McNeil 1982: an area of 0.9 with 20 + 30 cases; 0.9 / 1.1 - 0.81 and 1.62 / 1.9 - 0.81."""
    one, other = 0.9 / 1.1 - 0.81, 1.62 / 1.9 - 0.81
    assert one < other  # the larger goes with the larger class
    expected = (0.09 + 19 * one + 29 * other) / 600
    assert expected_variance(0.9, 20, 30) == pytest.approx(expected)
    assert expected_variance(0.9, 30, 20) == pytest.approx(expected)
    assert expected_variance(0.1, 20, 30) == pytest.approx(expected)  # turned about, the classes change places
    assert expected_variance(0.5, 1, 1) == 0.25
    assert expected_variance(1.0, 5, 5) == expected_variance(0.0, 5, 5) == 0


def test_a_perfect_area_has_an_interval_with_the_number_of_cases_in_it():
    low, high = area_interval([Area(0, 1.0, 0.0, 10, 10)])
    # The end is where (1 - low)² = t² V(low), with t of 2 (10 - 1) degrees of freedom.
    reach = student.ppf(0.975, 18) ** 2 * expected_variance(low, 10, 10)
    assert (1 - low) ** 2 == pytest.approx(reach)
    assert high == 1
    assert low == pytest.approx(0.7749, abs=1e-4)
    assert area_interval([Area(0, 0.0, 0.0, 10, 10)]) == pytest.approx((0.0, 1 - low))
    ends = [area_interval([Area(0, 1.0, 0.0, n, n)])[0] for n in (5, 10, 50, 500)]
    assert ends == sorted(ends)
    assert ends[-1] > 0.99
    # Five folds of two cases a class are no surer than one of ten.
    assert area_interval([Area(0, 1.0, 0.0, 2, 2)] * 5)[0] < low
    # The same patients with another seed are no new patients.
    assert area_interval([Area(seed, 1.0, 0.0, 10, 10) for seed in (0, 1)]) == pytest.approx((low, 1.0))


def test_with_many_cases_the_interval_is_that_of_delong():
    low, high = area_interval([Area(0, 0.75, 0.0004, 2000, 2000)])
    # On the logit scale, as the variance is smaller nearer to 1: 1.0986 ± 1.96 x 0.02 / 0.1875.
    assert (low, high) == pytest.approx((0.70876, 0.78724), abs=1e-3)


@given(st.floats(0, 1), st.floats(0, 0.02), st.integers(1, 60), st.integers(1, 60), st.integers(1, 4))
def test_an_interval_holds_its_area_and_is_a_mirror(area, variance, positives, negatives, folds):
    low, high = area_interval([Area(0, area, variance, positives, negatives)] * folds)
    assert 0 <= low <= area + 1e-9
    assert area - 1e-9 <= high <= 1
    assert high - low > 0.001
    turned = area_interval([Area(0, 1 - area, variance, negatives, positives)] * folds)
    assert (1 - turned[1], 1 - turned[0]) == pytest.approx((low, high), abs=1e-6)


def test_areas_that_are_not_known_are_left_out():
    nan = float("nan")
    known = Area(0, 0.8, 0.005, 12, 9)
    assert area_interval([known, Area(0, nan, nan, 7, 0)]) == area_interval([known])
    assert all(math.isnan(end) for end in area_interval([Area(0, nan, nan, 7, 0)]))
    alone = area_interval([Area(0, 1.0, nan, 1, 1)])  # of two cases
    assert alone[0] < 0.3
    assert alone[1] == 1


# --- shares


def test_exact_interval_of_a_share():
    """Nine of ten as in the tables of Clopper and Pearson; all of ten have a chance of low**10 = 0.025."""
    assert share_interval(0.9, 10) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    assert share_interval(1.0, 10) == pytest.approx((0.025**0.1, 1.0))
    assert share_interval(0.0, 7.5) == pytest.approx((0.0, 1 - 0.025 ** (1 / 7.5)))
    low, high = share_interval(0.2, 37.5)
    assert (1 - high, 1 - low) == pytest.approx(share_interval(0.8, 37.5))


def test_draws_that_touch_an_end():
    draws = np.append(np.full(30, 1.0), np.full(970, 0.9))
    assert touches_end(draws)
    assert not touches_end(np.append(np.full(20, 1.0), np.full(980, 0.9)))
    assert touches_end(1 - draws)
    assert not touches_end(np.full(100, 0.5))
    assert not touches_end(np.full(100, np.nan))


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
