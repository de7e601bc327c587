"""Lower bounds of ε from guesses about canaries."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from polyclinic.errors import StudyError
from polyclinic.privacy import Event, epsilon, lower_bound
from polyclinic.privacy.audit import probability


def test_bounds_by_hand():
    """All right: p^r = 0.05, so ε = ln p / (1 − p) with p = 0.05^(1/r)."""
    for guesses in (10, 100, 5000):
        right = 0.05 ** (1 / guesses)
        expected = math.log(right / (1 - right))
        assert lower_bound(guesses, guesses, 0, canaries=guesses) == pytest.approx(expected, abs=2e-6)
    assert lower_bound(4, 4, 0, canaries=4) == 0  # 1/16 is more than 0.05
    assert lower_bound(5, 5, 0, canaries=5) == pytest.approx(math.log(0.05**0.2 / (1 - 0.05**0.2)), abs=2e-6)
    # Nine of ten: 10 p^9 (1 − p) + p^10 = 0.05.
    right = 1 / (1 + math.exp(-lower_bound(9, 10, 0, canaries=10)))
    assert 10 * right**9 * (1 - right) + right**10 == pytest.approx(0.05, abs=1e-5)


def test_the_part_of_delta_by_hand():
    """Two of three, p = 1/2: P(B >= 2) = 1/2; P(B = 1) / 1 = 3/8 is more than P(B in 0, 1) / 2 = 1/4."""
    assert probability(2, 3, 0.0, 0.0, 7) == pytest.approx(0.5)
    assert probability(2, 3, 0.0, 0.01, 7) == pytest.approx(0.5 + 2 * 7 * 0.01 * 3 / 8)
    assert probability(2, 3, 0.0, 0.9, 7) == 1


def test_bounds_grow_with_what_is_known():
    found = [lower_bound(correct, 200, 1e-6, canaries=500) for correct in range(0, 201, 10)]
    assert found == sorted(found)
    assert found[:11] == [0] * 11
    assert found[-1] > 3.5
    assert lower_bound(190, 200, 1e-5, 0.99, canaries=500) < lower_bound(190, 200, 1e-5, 0.95, canaries=500)
    assert lower_bound(190, 200, 1e-3, canaries=500) < lower_bound(190, 200, 1e-5, canaries=500)
    assert lower_bound(190, 200, 1e-3, canaries=900) < lower_bound(190, 200, 1e-3, canaries=500)


@pytest.mark.parametrize(
    "values",
    [(3, 2, 0, 0.95, 5), (2, 6, 0, 0.95, 5), (-1, 2, 0, 0.95, 5), (1.0, 2, 0, 0.95, 5), (1, True, 0, 0.95, 5),
     (1, 2, -0.1, 0.95, 5), (1, 2, 1, 0.95, 5), (1, 2, math.nan, 0.95, 5), (1, 2, 0, 0, 5), (1, 2, 0, 1, 5),
     (1, 2, 0, math.nan, 5)],
)  # fmt: skip
def test_what_does_not_fit_is_refused(values):
    *others, canaries = values
    with pytest.raises(StudyError, match=r"P102 .*, expected"):
        lower_bound(*others, canaries=canaries)


def guessed(rng, noise, canaries, sides):
    """How many guesses are right of those about the ``sides`` highest and the ``sides`` lowest noisy canaries."""
    inside = rng.random(canaries) < 0.5
    order = np.argsort(inside + noise * rng.normal(size=canaries), kind="stable")
    return int(inside[order[-sides:]].sum() + (~inside[order[:sides]]).sum())


@pytest.mark.parametrize("noise", [0.4, 0.8, 2.0])
def test_the_bound_is_below_the_truth_in_95_of_100_runs(noise):
    """Each canary is a coordinate of its own of a sum with Gaussian noise, whose ε is known exactly."""
    rng, canaries, at = np.random.default_rng(11), 400, 1e-5
    truth = epsilon([Event.gaussian(noise)], at)
    found = np.array([lower_bound(guessed(rng, noise, canaries, 60), 120, at, canaries=canaries) for _ in range(200)])
    assert np.mean(found <= truth) >= 0.95
    assert found.mean() > 0.05 * truth  # it says something


def test_without_privacy_the_bound_is_as_great_as_the_guesses_allow():
    rng = np.random.default_rng(5)
    found = [lower_bound(guessed(rng, 1e-6, canaries, canaries // 4), 2 * (canaries // 4), 1e-6, canaries=canaries)
             for canaries in (40, 400, 4000)]  # fmt: skip
    assert found[0] > 1.5
    assert found[1] > 3.9
    assert found[2] > 6


@pytest.mark.parametrize("truth", [0.0, 0.7, 3.0])
def test_guesses_of_randomised_response_are_bounded_with_the_confidence_that_is_told(truth):
    """Its guesses are right with probability e^ε / (1 + e^ε), so how often the bound is wrong is known exactly."""
    right = 1 / (1 + math.exp(-truth))
    wrong = sum(binom.pmf(correct, 60, right) for correct in range(61)
                if lower_bound(correct, 60, 0, 0.9, canaries=60) > truth)  # fmt: skip
    assert 0.02 < wrong <= 0.1
