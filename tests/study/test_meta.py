"""Random-effects meta-analysis: published examples, another implementation, identities, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from polyclinic.study.statistics.meta import NOTHING, combine_sites

#: Trials of the BCG vaccine against tuberculosis: log risk ratio and its variance (Colditz et al., JAMA 1994).
BCG = [
    (-0.8893, 0.3256), (-1.5854, 0.1946), (-1.3481, 0.4154), (-1.4416, 0.0200), (-0.2175, 0.0512), (-0.7861, 0.0069),
    (-1.6209, 0.2230), (0.0120, 0.0040), (-0.4694, 0.0564), (-1.3713, 0.0730), (-0.3394, 0.0124), (0.4459, 0.5325),
    (-0.0173, 0.0714),
]  # fmt: skip


def test_the_trials_of_a_vaccine():
    """τ² = 0.3181 by Paule and Mandel, as the R package metafor gives it (Viechtbauer, J. Stat. Softw. 2010, and its
    documentation); the interval is that of statsmodels 0.15, `combine_effects(method_re="iterated", use_t=True)`."""
    found = combine_sites(*zip(*BCG, strict=True))
    assert found.between == pytest.approx(0.3181, abs=5e-5)
    assert found.mean == pytest.approx(-0.7149703)
    assert math.sqrt(found.spreads[0].variance) == pytest.approx(0.18089453)
    assert found.interval == pytest.approx((-1.10910564, -0.32083498))
    assert (found.spreads[0].freedom, found.sites) == (12, 13)
    assert found.p == pytest.approx(2 * t.sf(0.7149703 / 0.18089453, 12))
    # That of Nagashima et al. with the restricted likelihood's τ² is (-1.87, 0.44) + what is unknown of τ².
    assert found.expected == pytest.approx((-2.1, 0.67), abs=0.12)
    assert 0.90 < found.unlike < 0.94


def test_statsmodels_says_the_same():
    from statsmodels.stats import meta_analysis as meta  # slow to import

    y, v = map(np.array, zip(*BCG, strict=True))
    compared = 0
    for number in range(1, 9):  # without the first trials
        theirs = meta.combine_effects(y[number:], v[number:], method_re="iterated", use_t=True, atol=1e-12)
        ours = combine_sites(y[number:], v[number:])
        if not theirs.tau2:  # its iteration can fall below 0, and ends there
            continue
        compared += 1
        assert ours.between == pytest.approx(theirs.tau2, rel=1e-6)
        assert ours.mean == pytest.approx(theirs.mean_effect_re)
        assert math.sqrt(ours.spreads[0].variance) == pytest.approx(theirs.sd_eff_w_re_hksj, rel=1e-6)
    assert compared >= 4
    assert compared >= 4


def test_alike_sites_are_the_fixed_effect():
    """Where sites are more alike than their errors allow, nothing is between them: the classical interval."""
    found = combine_sites([0.1, 0.12, 0.09], [0.01, 0.02, 0.04])
    weights = np.array([100.0, 50.0, 25.0])
    assert found.between == found.unlike == 0
    assert found.mean == pytest.approx(weights @ [0.1, 0.12, 0.09] / 175)
    assert found.interval == pytest.approx(tuple(found.mean + s * norm.ppf(0.975) / math.sqrt(175) for s in (-1, 1)))
    assert found.weights == pytest.approx(weights / 175)


def test_two_sites_that_agree_by_chance_are_not_sure():
    """Hartung and Knapp alone would say p = 0.0006: two accuracies that both rose by a case of twenty."""
    found = combine_sites([0.05, 0.0501], [0.0049, 0.0049])
    assert found.p == pytest.approx(2 * norm.sf(0.05005 / math.sqrt(0.0049 / 2)))


def test_few_sites():
    assert combine_sites([], []) == NOTHING
    assert combine_sites([math.nan], [0.1]) == NOTHING
    one = combine_sites([math.nan, 0.2], [0.1, 0.01])
    assert one.interval == pytest.approx((0.2 - 1.959964 * 0.1, 0.2 + 1.959964 * 0.1))
    assert (one.sites, one.weights) == (1, (1.0,))
    assert np.isnan([one.between, one.unlike, *one.expected]).all()
    assert np.isnan(combine_sites([0.2, 0.3], [0.1, 0.1]).expected).all()
    assert np.isfinite(combine_sites([0.2, 0.3, 0.1], [0.1, 0.1, 0.2]).expected).all()


def test_values_without_errors():
    """All the same: nothing is left to chance. Else sites that are sure are the mean, with what lies between them."""
    same = combine_sites([0.0, 0.0, 0.0], [0.0, 0.01, 0.0])
    assert (same.mean, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)
    sure = combine_sites([0.1, 0.3, 0.2], [0.0, 0.0, 0.0])
    assert sure.mean == pytest.approx(0.2)
    assert sure.spreads[0].variance == pytest.approx(0.01 / 3, rel=1e-6)
    unknown = combine_sites([0.1, 0.3, 0.2], [0.5, math.nan, 0.1])
    assert (unknown.mean, unknown.spreads[0].variance) == pytest.approx((0.2, 0.01 / 3))


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(1e-4, 10)), min_size=2, max_size=12),
    st.floats(-100, 100),
    st.floats(1e-3, 1e3),
)
def test_moved_scaled_and_shuffled_sites_give_the_same(sites, shift, scale):
    y, v = map(np.array, zip(*sites, strict=True))
    found = combine_sites(y, v)
    weights = 1 / (found.between + v)
    excess = weights @ np.square(y - found.mean) - (len(y) - 1)
    assert excess == pytest.approx(0, abs=1e-6) if found.between else excess <= 1e-6
    order = np.random.default_rng(0).permutation(len(y))
    moved = combine_sites(shift + scale * y[order], scale**2 * v[order])
    near = {"rel": 1e-5, "abs": 1e-9 * scale}
    assert moved.mean == pytest.approx(shift + scale * found.mean, rel=1e-6, abs=1e-6 * scale)
    assert math.sqrt(moved.spreads[0].variance) == pytest.approx(scale * math.sqrt(found.spreads[0].variance), **near)
    assert math.sqrt(moved.between) == pytest.approx(scale * math.sqrt(found.between), rel=1e-3, abs=1e-4 * scale)


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_intervals_hold_the_truth_and_a_new_site(between):
    """Of 1000 studies of eight sites of unlike sizes; the standard error of a share of 0.95 is 0.007."""
    rng = np.random.default_rng(0)
    errors = np.array([0.2, 0.3, 0.5, 0.5, 0.8, 1.0, 1.5, 3.0])
    held = new = 0
    for _ in range(1000):
        found = combine_sites(rng.normal(0, np.sqrt(between + errors)), errors)
        held += found.interval[0] <= 0 <= found.interval[1]
        new += found.expected[0] <= rng.normal(0, math.sqrt(between)) <= found.expected[1]
    assert 0.93 <= held / 1000 <= 0.985
    assert new / 1000 >= 0.93  # where nothing lies between sites, that is what eight of them can not say
