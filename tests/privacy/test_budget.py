"""A budget that several trainings share: together they keep ε, whatever noise they have."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyclinic.errors import StudyError
from polyclinic.privacy import Budget, Event, epsilon, noise_for

DELTA = 1e-5


def gaussian_for(most, count):
    return noise_for(most, DELTA, lambda noise: [Event.gaussian(noise, count=count)])


def times(events, count):
    return [event.times(event.count * count) for event in events]


def test_to_give_each_mechanism_its_share_of_repetitions_would_not_keep_epsilon():
    """Why the budget is solved jointly: two trainings of which each could be done twice within ε = 8 cost 9.3."""
    pure, steps = noise_for(8, DELTA, lambda noise: [Event.pure(2 / noise, count=2)]), gaussian_for(8, 10)
    assert epsilon([Event.pure(2 / pure), Event.gaussian(steps, count=5)], DELTA) > 9.2


@pytest.mark.parametrize("most", [1.0, 10.0])
def test_equal_trainings_keep_epsilon_and_use_most_of_it(most):
    for steps in (lambda noise: [Event.gaussian(noise, count=3)], lambda noise: [Event.pure(2 / noise, count=3)]):
        noise = Budget(most, DELTA, 20).noise(steps)
        assert 0.9 * most < epsilon(times(steps(noise), 20), DELTA) <= most
        assert noise < 1.1 * noise_for(most, DELTA, lambda one, steps=steps: times(steps(one), 20))


def test_a_gaussian_share_by_hand():
    """Without sampling 1/σ² adds up: of a hundred trainings each has ten times the deviation of one of one."""
    ten, thousand = (Budget(3.0, DELTA, count).noise(lambda noise: [Event.gaussian(noise)]) for count in (10, 1000))
    assert thousand == pytest.approx(10 * ten, rel=1e-3)
    assert Budget(3.0, DELTA, 10).rounds([Event.gaussian(2.01 * ten)], 20) == 4
    assert Budget(3.0, DELTA, 10).rounds([Event.gaussian(0.99 * ten)], 20) == 0


def test_one_training_has_all_that_is_left():
    alone = gaussian_for(4.0, 5)
    assert Budget(4.0, DELTA).noise(lambda noise: [Event.gaussian(noise, count=5)]) == alone
    assert Budget(4.0, DELTA).rounds([Event.gaussian(alone)], 9) == 5
    for trainings in (1, 3):
        assert Budget(4.0, DELTA, trainings, (Event.gaussian(alone, count=5),)).rounds([Event.gaussian(alone)], 9) == 0


KINDS = {
    "dp_sgd": lambda noise: [Event.gaussian(noise, 0.1, 40)],
    "gaussian_noise": lambda noise: [Event.gaussian(noise / 2, count=5)],
    "laplace_noise": lambda noise: [Event.pure(2 / noise, count=5)],
}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from([None, 0.5, 3.0, 30.0])), min_size=2,
                max_size=4), st.sampled_from([0.3, 2.0, 8.0, 4.00001]), st.sampled_from([1e-5, 1e-3]))  # fmt: skip
@example([("laplace_noise", None), ("dp_sgd", None)], 8.0, 1e-5)
@example([("gaussian_noise", 3.0), ("laplace_noise", None)], 2.0, 1e-5)
@example([("dp_sgd", 0.02), ("laplace_noise", 0.001)], 200.0, 1e-5)
def test_trainings_of_any_kind_keep_epsilon_together(plan, most, delta):
    """Noise that was not given is found for each, of nothing but its number; one that was given has the rounds that
    fit. Nothing is known here of what is spent, so it is the parts alone that keep it."""
    together, budget = [], Budget(most, delta, len(plan))
    for kind, given_noise in plan:
        if given_noise is None:
            together += KINDS[kind](budget.noise(KINDS[kind]))
        else:
            together += times(KINDS[kind](given_noise), budget.rounds(KINDS[kind](given_noise), 3))
    assert epsilon(together, delta) <= most


def test_what_can_not_be_kept_is_refused_with_numbers():
    with pytest.raises(StudyError, match=r"P305 ε = 0\.001 at δ = 1e-05 can't be kept by 1000000000 trainings"):
        Budget(0.001, DELTA, 10**9).noise(lambda noise: [Event.gaussian(noise, count=100)])
