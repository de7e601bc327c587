"""Noise for a budget, and steps within one."""

import math

import pytest

from polyclinic.errors import StudyError
from polyclinic.privacy import Event, check_budget, epsilon, noise_for, steps_within
from polyclinic.privacy.solving import _EACH, _multiplier


def test_the_noise_multipliers_are_all_numbers_with_4_digits():
    assert [_multiplier(index) for index in (0, 1, 8999, 9000, 2 * _EACH, 6 * _EACH - 1)] == [
        0.01, 0.01001, 0.09999, 0.1, 1.0, 9999.0,
    ]  # fmt: skip
    found = [_multiplier(index) for index in range(6 * _EACH)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("budget", "at", "plan"),
    [(1.0, 1e-5, lambda noise: [Event.gaussian(noise, 0.01, 10_000)]),
     (8.0, 1e-6, lambda noise: [Event.gaussian(noise, 0.1, 100), Event.gaussian(30)]),
     (0.3, 1e-5, lambda noise: [Event.laplace(noise, 1, 20), Event.pure(0.05)])],
)  # fmt: skip
def test_noise_is_the_least_that_keeps_the_budget(budget, at, plan):
    noise = noise_for(budget, at, plan)
    less = float(f"{noise:.3e}") - 10.0 ** (math.floor(math.log10(noise)) - 3)
    assert epsilon(plan(noise), at) <= budget < epsilon(plan(less), at)


def test_noise_of_one_gaussian_step_is_the_published_one():
    """Balle and Wang 2018: σ = 3.7306... for ε = 1 and δ = 1e-5."""
    assert noise_for(1.0, 1e-5, lambda noise: [Event.gaussian(noise)]) == 3.731


def test_a_plan_that_costs_little_needs_the_least_noise():
    assert noise_for(1e9, 1e-5, lambda noise: [Event.gaussian(noise)]) == 0.01


def test_what_can_not_be_reached_is_refused_with_numbers():
    says = r"P305 ε = 0.5 at δ = 1e-05 can't be kept: even with the noise multiplier 9999 the steps cost ε = 1"
    with pytest.raises(StudyError, match=says):
        noise_for(0.5, 1e-5, lambda noise: [Event.gaussian(noise), Event.pure(1.0)])
    with pytest.raises(StudyError, match=r"P305 .* cost ε = inf"):
        noise_for(0.5, 1e-5, lambda noise: [Event.gaussian(noise), Event.bare()])


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf, True, "1", None])
def test_epsilon_of_a_budget_is_a_number_above_0(budget):
    for call in (lambda: check_budget(budget, 1e-5), lambda: steps_within(budget, 1e-5, Event.gaussian(1)),
                 lambda: noise_for(budget, 1e-5, lambda noise: [Event.gaussian(noise)])):  # fmt: skip
        with pytest.raises(StudyError, match=r"P102 ε is .*, expected a number above 0"):
            call()


@pytest.mark.parametrize("at", [0, 1, -1e-9, 2, math.nan, True, None])
def test_delta_of_a_budget_is_between_0_and_1(at):
    with pytest.raises(StudyError, match=r"P102 δ is .*, expected a number above 0 and below 1"):
        check_budget(1.0, at)


def test_delta_is_below_one_by_the_number_of_units():
    check_budget(1.0, 0.00999, 100)
    for at in (0.01, 0.5):
        with pytest.raises(StudyError, match=r"P102 δ is .*, expected less than 1/100, one by the number of units"):
            noise_for(1.0, at, lambda noise: [Event.gaussian(noise)], units=100)
    for units in (0, -3, 1.5, True):
        with pytest.raises(StudyError, match=r"P102 The number of units is .*, expected a whole number above 0"):
            check_budget(1.0, 1e-5, units)


@pytest.mark.parametrize("before", [[], [Event.gaussian(10)], [Event.laplace(30, 1, 20), Event.gaussian(4, 0.02, 17)]])
def test_steps_are_the_most_that_keep_the_budget(before):
    step = Event.gaussian(4, 0.01, 999)
    count = steps_within(1.0, 1e-5, step, before)
    assert count > 100
    assert epsilon([*before, step.times(count)], 1e-5) <= 1.0 < epsilon([*before, step.times(count + 1)], 1e-5)


def test_steps_after_the_budget_is_spent_are_none():
    assert steps_within(1.0, 1e-5, Event.gaussian(4, 0.01), [Event.gaussian(1)]) == 0
    assert steps_within(1.0, 1e-5, Event.bare()) == 0
    assert steps_within(1.0, 1e-5, Event.gaussian(1e-9)) == 0


def test_a_pure_budget_by_hand():
    """Three steps of 0.3 are 0.9; at so small a δ nothing is gained."""
    assert steps_within(1.0, 1e-14, Event.pure(0.3)) == 3
    assert steps_within(1.0, 1e-14, Event.pure(0.3), [Event.pure(0.3, 1, 2)]) == 1


def test_steps_end_somewhere():
    assert steps_within(100.0, 1e-5, Event.gaussian(1e9, 1e-9)) == 10**12
