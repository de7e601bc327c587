"""What steps cost: an outside library, published values, exact values, and what must hold of any of them."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from privacy_reference import GRID, MIXED, MIXTURE
from scipy.stats import binom, norm

from polyclinic.errors import StudyError
from polyclinic.privacy import Event, delta, epsilon, gaussian, merged, renyi, spent
from polyclinic.privacy.accountants import LEAST, upward
from polyclinic.privacy.composition import composed


def prv(events, given_delta):
    """ε by privacy losses, not rounded."""
    return max(losses.epsilon(given_delta) for losses in composed(events))


# Against others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GRID, ids=lambda row: "-".join(map(str, row[:5])))
def test_an_outside_library_agrees(row):
    mechanism, parameter, rate, count, at, least, most, by_renyi = row
    found = spent([Event(mechanism, parameter, rate, count)], at)
    assert least <= found.epsilon <= most * 1.001
    assert set(found.bounds) == {"prv", "rdp"} | ({"gaussian"} if mechanism == "gaussian" else set())
    assert all(bound >= least for bound in found.bounds.values())
    assert least <= found.bounds["prv"] <= most * 1.001
    if by_renyi is not None:
        assert found.bounds["rdp"] <= by_renyi * 1.001


@pytest.mark.parametrize("row", [row for row in GRID if row[7] and 0.1 < row[7] < 4], ids=str)
def test_renyi_bounds_are_those_of_the_outside_library_where_its_orders_suffice(row):
    mechanism, parameter, rate, count, at, _, _, by_renyi = row
    assert renyi.epsilon([Event(mechanism, parameter, rate, count)], at) == pytest.approx(by_renyi, rel=0.02)


def test_an_outside_library_agrees_on_a_mixture():
    least, most, by_renyi = MIXED
    found = spent(MIXTURE, 1e-5)
    assert least <= found.epsilon <= most * 1.001
    assert found.bounds["rdp"] == pytest.approx(by_renyi, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Optimal order")  # Opacus says so of its own bounds
@pytest.mark.parametrize(
    ("noise", "rate", "count", "at"),
    [(4.0, 0.01, 10_000, 1e-5), (1.0, 0.01, 1000, 1e-5), (0.5, 0.1, 10, 1e-6), (10.0, 0.1, 10_000, 1e-8)],
)
def test_opacus_agrees_where_it_can_be_trusted(noise, rate, count, at):
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, count)]
    upper = accountant.get_epsilon(at, eps_error=0.01)
    assert upper - 0.021 <= spent([Event.gaussian(noise, rate, count)], at).epsilon <= upper


@pytest.mark.parametrize(("noise", "rate"), [(0.3, 0.5), (1.0, 0.01), (2.0, 0.9), (4.0, 0.2), (20.0, 0.05)])
def test_divergences_are_those_of_opacus(noise, rate):
    pairs = [(order, value) for order, value in zip(renyi.ORDERS, renyi.divergence(Event.gaussian(noise, rate)),
                                                   strict=True) if 1.01 < order < 65]  # fmt: skip
    reference = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[order for order, _ in pairs])
    assert np.allclose([value for _, value in pairs], reference, rtol=1e-6, atol=1e-11)


def classic(event, at, most):
    """ε by moments as it was converted before 2020."""
    spent_ = renyi.composed([event])
    return min(value - math.log(at) / (order - 1) for order, value in zip(renyi.ORDERS, spent_, strict=True)
               if order <= most)  # fmt: skip


def test_published_values():
    # Abadi et al., Deep learning with differential privacy, CCS 2016, section 3.2: 1.26 by the moments accountant.
    assert classic(Event.gaussian(4, 0.01, 10_000), 1e-5, 33) == pytest.approx(1.26, abs=0.005)
    # The MNIST tutorial of TensorFlow Privacy: batches of 256 of 60,000 images for 15, 60 and 45 epochs.
    for noise, epochs, said in ((1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)):
        steps = epochs * 60_000 // 256
        assert classic(Event.gaussian(noise, 256 / 60_000, steps), 1e-5, 64) == pytest.approx(said, abs=0.01)
    # All are upper bounds, and newer ones are less.
    assert epsilon([Event.gaussian(4, 0.01, 10_000)], 1e-5) < 0.95


# Exact values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "at"), [(0.05, 3.0), (1.0, 0.3), (1.0, 40.0), (100.0, 0.001), (1e6, 1e-7), (1e-3, 5e5)]
)
def test_the_exact_gaussian_has_all_its_digits(noise, at):
    with mpmath.workdps(400):
        shift, place = 1 / mpmath.mpf(noise), mpmath.mpf(at)
        exact = mpmath.ncdf(shift / 2 - place / shift) - mpmath.exp(place) * mpmath.ncdf(-shift / 2 - place / shift)
    assert gaussian.delta([Event.gaussian(noise)], at) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("at", [1e-12, 1e-5, 0.3, 0.9])
@pytest.mark.parametrize("noise", [0.1, 1.0, 50.0])
def test_the_exact_gaussian_is_its_own_inverse(noise, at):
    events = [Event.gaussian(noise * 3, 1, 5), Event.gaussian(noise, 1, 2)]
    found = gaussian.epsilon(events, at)
    assert found == 0 or gaussian.delta(events, found) == pytest.approx(at, rel=1e-6)
    assert gaussian.delta(events, found) <= at * (1 + 1e-9)
    one = [Event.gaussian(1 / math.sqrt(5 / (9 * noise**2) + 2 / noise**2))]
    assert gaussian.epsilon(one, at) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("noise", [0.7, 5.0, 300.0])
def test_losses_of_gaussian_steps_are_close_to_the_exact_value_from_above(count, noise):
    events = [Event.gaussian(noise, 1, count)]
    for at in (1e-12, 1e-6, 1e-2):
        exact = gaussian.epsilon(events, at)
        spread = math.sqrt(count) / noise  # standard deviation of the losses
        assert exact <= prv(events, at) <= exact * 1.0005 + 2e-4 * spread


@pytest.mark.parametrize("scale", [0.02, 0.5, 3.0, 100.0])
def test_losses_of_one_laplace_step_are_exact(scale):
    """δ = 1 − exp((ε − 1/b) / 2)."""
    for at in (1e-12, 1e-3, 0.2 / (1 + scale)):
        exact = 1 / scale + 2 * math.log1p(-at)
        (removed, _) = composed([Event.laplace(scale)])
        assert exact * (1 - 1e-9) <= prv([Event.laplace(scale)], at) <= exact + 2.0**removed.step
        assert 2.0**removed.step <= 0.03 / scale


@pytest.mark.parametrize(("own", "count"), [(0.1, 50), (1.0, 3), (0.01, 2000), (8.0, 2)])
def test_losses_of_pure_steps_are_those_of_randomised_response(own, count):
    ones = np.arange(count + 1)
    chances = binom.pmf(ones, count, 1 / (1 + math.exp(-own)))

    def exact(at):
        return float(chances @ np.maximum(-np.expm1(at - own * (2 * ones - count)), 0))

    for at in (0.0, own * count * 0.3, own * count * 0.8):
        found = max(one.delta(at) for one in composed([Event.pure(own, 1, count)]))
        # A loss may be as far off as three hundredths of the losses' standard deviation.
        assert exact(at) * (1 - 1e-9) <= found <= exact(at - 0.03 * own * math.sqrt(count)) + 1e-15


def test_a_pure_step_on_a_sample_is_one_with_less():
    less = math.log(1 + 0.2 * (math.e**1.5 - 1))
    assert epsilon([Event.pure(1.5, 0.2, 40)], 1e-6) == epsilon([Event.pure(less, 1, 40)], 1e-6)
    assert epsilon([Event.pure(1.5, 0.2)], 1e-6) == pytest.approx(less, rel=1e-4)


@pytest.mark.parametrize("rate", [0.02, 0.5])
@pytest.mark.parametrize("at", [0.05, 0.4, 1.0])
def test_losses_of_one_sampled_step_are_those_of_an_integral(rate, at):
    """Both directions, by the trapezoid rule over the outcomes."""
    places = np.linspace(-12, 13, 2_000_001)
    without, other = norm.pdf(places, 0, 0.8), norm.pdf(places, 1, 0.8)
    with_unit = (1 - rate) * without + rate * other
    for losses, (under_p, under_q) in zip(composed([Event.gaussian(0.8, rate)]),
                                          ((with_unit, without), (without, with_unit)), strict=True):  # fmt: skip
        exact = float(np.trapezoid(np.maximum(under_p - math.exp(at) * under_q, 0), places))
        assert losses.delta(at) == pytest.approx(exact, rel=1e-3, abs=1e-12)
        assert losses.delta(at) >= exact * (1 - 1e-6)


def test_a_divergence_by_hand():
    """α = 2, q = 1/2, σ = 1: 1 + (e − 1) / 4. Laplace, α = 2, scale 1: 2/3 e + 1/3 e^−2."""
    two = renyi.ORDERS.index(2)
    assert renyi.divergence(Event.gaussian(1, 0.5))[two] == pytest.approx(math.log(1 + (math.e - 1) / 4), rel=1e-12)
    assert renyi.divergence(Event.gaussian(3))[two] == pytest.approx(1 / 9, rel=1e-12)
    expected = math.log(2 / 3 * math.e + math.exp(-2) / 3)
    assert renyi.divergence(Event.laplace(1))[two] == pytest.approx(expected, rel=1e-12)
    odds = math.exp(0.5)  # of randomised response: (e^2ε + e^−ε) / (1 + e^ε) for α = 2
    expected = math.log((odds**2 + 1 / odds) / (1 + odds))
    assert renyi.divergence(Event.pure(0.5))[two] == pytest.approx(expected, rel=1e-12)
    assert renyi.divergence(Event.pure(0.5))[-1] == 0.5


# What must hold -------------------------------------------------------------------------------------------------------


def test_no_steps_cost_nothing_and_steps_without_noise_everything():
    assert spent([], 1e-5).epsilon == spent([Event.gaussian(1, 1, 0), Event.bare(0)], 1e-5).epsilon == 0
    assert spent([Event.gaussian(1), Event.bare()], 1e-5).epsilon == math.inf
    assert (delta([], 0), delta([Event.bare()], 1e9)) == (0, 1)
    assert epsilon([Event.gaussian(1e9, 1e-9)], 0.5) == LEAST
    assert epsilon([Event.gaussian(1e-200)], 1e-5) == epsilon([Event.pure(1.1e9)], 1e-5) == math.inf
    assert epsilon([Event.pure(0.9e9)], 1e-5) == 0.9e9


@pytest.mark.parametrize("at", [0, 1, -1e-9, 1.5, math.nan, math.inf, True, "1e-5", None])
def test_delta_is_between_0_and_1(at):
    for function in (spent, epsilon):
        with pytest.raises(StudyError, match=r"P102 δ is .*, expected a number above 0 and below 1"):
            function([Event.gaussian(1)], at)


@pytest.mark.parametrize("at", [-1, math.nan, math.inf, True, "1"])
def test_epsilon_is_a_number_from_0(at):
    with pytest.raises(StudyError, match=r"P102 ε is .*, expected a number from 0"):
        delta([Event.gaussian(1)], at)


def test_what_can_not_be_computed_is_told():
    found = spent([Event.laplace(1e-3)], 1e-5)
    assert found.accountant == "rdp"
    assert found.epsilon == 1000
    assert found.skipped == {
        "prv": "its losses reach 1000, more than 300", "gaussian": "not all steps have Gaussian noise",
    }  # fmt: skip
    assert spent([Event.gaussian(1e-3)], 1e-5).accountant == "gaussian"


def test_rounding_up():
    assert upward(1.000001) == 1.0001
    assert upward(0.00123451) == 0.0012346
    assert upward(123456.7) == 123460.0
    assert (upward(0.5), upward(0.0), upward(math.inf)) == (0.5, 0.0, math.inf)
    assert upward(99999.5) == 100000.0


UGLY = st.one_of(
    st.builds(Event.gaussian, st.sampled_from([1e-300, 1e-3, 0.06, 0.3, 1.7, 40.0, 1e7, 1e300]),
              st.sampled_from([1.0, 0.999999, 0.3, 0.01, 1e-7, 1e-300])),
    st.builds(Event.laplace, st.sampled_from([1e-300, 0.002, 0.4, 11.0, 1e7, 1e300]),
              st.sampled_from([1.0, 0.9, 0.02, 1e-12])),
    st.builds(Event.pure, st.sampled_from([1e-300, 1e-9, 0.03, 2.0, 299.0, 1e5, 1e300]),
              st.sampled_from([1.0, 0.5, 0.001, 1e-12])),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(UGLY, min_size=1, max_size=3), st.sampled_from([1, 2, 3, 50, 10**9]),
       st.sampled_from([1e-300, 1e-12, 1e-5, 0.5, 1 - 1e-12]))  # fmt: skip
def test_ugly_input_gives_a_number(several, count, at):
    found = spent([several[0].times(count), *several[1:]], at)
    assert found.epsilon >= LEAST
    assert not any(math.isnan(bound) for bound in found.bounds.values())
    if math.isfinite(found.epsilon):
        assert 0 <= delta([several[0].times(count), *several[1:]], found.epsilon) <= at * 1.001


KINDS = st.one_of(
    st.builds(Event.gaussian, st.sampled_from([0.6, 1.0, 3.0, 60.0]), st.sampled_from([1.0, 0.2, 0.01])),
    st.builds(Event.laplace, st.sampled_from([2.0, 30.0]), st.sampled_from([1.0, 0.05])),
    st.builds(Event.pure, st.sampled_from([0.001, 0.2]), st.sampled_from([1.0, 0.1])),
)
COUNTS = st.sampled_from([1, 2, 3, 31, 32, 33, 1000])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(KINDS, COUNTS), min_size=1, max_size=4), st.sampled_from([1e-9, 1e-5, 0.01]), st.randoms())
def test_order_and_grouping_do_not_matter(several, at, rng):
    whole = [event.times(count) for event, count in several]
    parts = [event.times(part) for event in whole for part in (event.count // 2, event.count - event.count // 2)]
    rng.shuffle(parts)
    assert spent(parts, at) == spent(whole, at)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(KINDS, COUNTS), min_size=2, max_size=6), st.sampled_from([1e-9, 1e-5, 0.01]))
def test_more_steps_never_cost_less(several, at):
    events, last = [], 0.0
    for event, count in several:
        events.append(event.times(count))
        found = epsilon(events, at)
        assert found >= last
        last = found


@pytest.mark.parametrize(
    ("event", "at"),
    [(Event.gaussian(1, 0.01), 1e-5), (Event.gaussian(0.6, 0.02), 1e-8), (Event.gaussian(30, 0.5), 1e-5),
     (Event.laplace(5, 0.1), 1e-6), (Event.pure(0.01, 0.3), 1e-7), (Event.gaussian(20, 1e-4), 1e-5)],
)  # fmt: skip
def test_epsilon_does_not_fall_over_long_sequences(event, at):
    """Every count where the number of binary digits changes, and many others; before rounding, too."""
    counts = [*range(1, 40), *(2**power + step for power in range(6, 18) for step in (-2, -1, 0, 1, 2))]
    before, rounded = 0.0, 0.0
    for count in counts:
        found = spent([event.times(count)], at)
        assert found.bounds["prv"] >= before
        assert found.epsilon >= rounded
        before, rounded = found.bounds["prv"], found.epsilon


def test_a_long_mixed_sequence_never_falls():
    rng = np.random.default_rng(3)
    kinds = [Event.gaussian(1.1, 0.02), Event.gaussian(30), Event.laplace(40), Event.gaussian(500, 0.001)]
    events, last = [], 0.0
    for _ in range(150):
        events.append(kinds[rng.integers(4)].times(int(rng.choice([1, 1, 5, 40]))))
        found = prv(merged(events), 1e-6)
        assert found >= last
        last = found


@pytest.mark.parametrize("at", [1e-8, 1e-4])
def test_more_noise_smaller_samples_and_a_greater_delta_cost_less(at):
    by_noise = [epsilon([Event.gaussian(noise, 0.05, 300)], at) for noise in (0.5, 0.9, 1.0, 1.01, 3, 20)]
    by_rate = [epsilon([Event.gaussian(1.1, rate, 300)], at) for rate in (1, 0.99, 0.5, 0.01, 0.0099, 1e-6)]
    by_scale = [epsilon([Event.laplace(scale, 0.3, 30)], at) for scale in (0.5, 0.9, 1.0, 1.01, 3, 20)]
    by_own = [epsilon([Event.pure(own, 0.3, 30)], at) for own in (3, 1, 0.99, 0.01)]
    for found in (by_noise, by_rate, by_scale, by_own):
        assert found == sorted(found, reverse=True)
        assert len(set(found)) == len(found)
    events = [Event.gaussian(1.1, 0.02, 1000)]
    by_delta = [epsilon(events, one) for one in (1e-14, 1e-12, 1e-9, 1e-6, 1e-5, 0.1)]
    assert by_delta == sorted(by_delta, reverse=True)


@pytest.mark.parametrize("events", [MIXTURE, [Event.gaussian(1, 0.01, 500)], [Event.laplace(4, 0.1, 90)]])
def test_delta_and_epsilon_belong_together(events):
    for at in (1e-10, 1e-6, 1e-3):
        found = epsilon(events, at)
        assert at * 0.9 < delta(events, found) <= at * 1.0001  # δ is rounded up, too
        assert delta(events, found * 0.98) > at
