"""Discrete Gaussian noise: its distribution, also of sums, and what these cost, each found in another way, too."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import chi2

from polyclinic.privacy import Event, delta, epsilon, renyi, spent
from polyclinic.privacy.discrete import MOST_DEVIATION, _levels, _table, discrete_gaussian, excess, whole
from polyclinic.privacy.draws import RepeatableDraws, SystemDraws
from polyclinic.seeds import generator


def seeded(*names):
    return RepeatableDraws(generator("discrete", *names))


def probabilities(deviation, reach=14):
    """Of −r .. r, by the definition."""
    places = np.arange(-reach * deviation, reach * deviation + 1)
    masses = np.exp(-(places.astype(float) ** 2) / 2 / deviation**2)
    return masses / masses.sum()


def of_sum(deviation, summands, reach=14):
    found = probabilities(deviation, reach)
    for _ in range(summands - 1):
        found = np.convolve(found, probabilities(deviation, reach))
    return found


def fits(numbers, masses):
    """The probability of a worse fit, by a chi-square test over cells of which each is to have 20 numbers or more."""
    middle = len(masses) // 2
    expected = masses * len(numbers)
    observed = np.bincount(numbers + middle, minlength=len(masses))
    assert len(observed) == len(masses)
    usual = expected >= 20
    seen = np.append(observed[usual], observed[~usual].sum())
    hoped = np.append(expected[usual], expected[~usual].sum())
    return chi2.sf(((seen - hoped) ** 2 / hoped).sum(), len(seen) - 1)


# How it is distributed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("source", ["seed", "system"])
def test_numbers_have_their_probabilities(deviation, source):
    draws = seeded(deviation) if source == "seed" else SystemDraws()
    numbers = discrete_gaussian(150_000, deviation, draws)
    assert numbers.dtype == np.int64
    assert fits(numbers, probabilities(deviation)) > 1e-6


@pytest.mark.parametrize("deviation", [1000, 2**27 + 1, MOST_DEVIATION])
def test_great_deviations_have_the_moments_of_the_normal_distribution(deviation):
    numbers = discrete_gaussian(200_000, deviation, seeded("great")) / deviation
    for power, moment, error in ((1, 0, 1), (2, 1, math.sqrt(2)), (3, 0, math.sqrt(15)), (4, 3, math.sqrt(96))):
        assert np.mean(numbers**power) == pytest.approx(moment, abs=5 * error / math.sqrt(len(numbers)))
    low = discrete_gaussian(200_000, deviation, seeded("low")) % 8  # all last digits are as likely
    assert chi2.sf(((np.bincount(low, minlength=8) - 25_000) ** 2 / 25_000).sum(), 7) > 1e-6


@pytest.mark.parametrize("summands", [2, 5])
def test_a_sum_is_distributed_as_one_with_its_variance(summands):
    """n shares of deviation 3: variance 9 n, and the distribution that a convolution gives."""
    numbers = sum(discrete_gaussian(120_000, 3, seeded("sum", summands, number)) for number in range(summands))
    assert np.var(numbers) == pytest.approx(9 * summands, rel=0.03)
    assert fits(numbers, of_sum(3, summands)) > 1e-6


@pytest.mark.parametrize("count", [0, 1, 5, 2**18 + 3])
def test_there_are_as_many_as_are_asked_for_the_same_from_a_seed(count):
    one, two = (discrete_gaussian(count, 50, seeded("same")) for _ in range(2))
    assert len(one) == count
    assert np.array_equal(one, two)
    assert count < 5 or not np.array_equal(one, discrete_gaussian(count, 50, seeded("other")))


@pytest.mark.parametrize("deviation", [0, -1, MOST_DEVIATION + 1])
def test_other_deviations_are_refused(deviation):
    with pytest.raises(ValueError, match="expected a whole number"):
        discrete_gaussian(1, deviation, SystemDraws())


@pytest.mark.parametrize("below", [1, 2, 3, 10, 2**53 - 1, 2**53])
def test_whole_numbers_are_below(below):
    found = whole(2000, below, seeded(below))
    assert found.min() >= 0
    assert found.max() < below
    assert below > 10 or set(found.tolist()) == set(range(below))


class Given(RepeatableDraws):
    """Numbers that are given, one after another."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def uniform(self, count):
        found, self.numbers = self.numbers[:count], self.numbers[count:]
        return torch.tensor(found, dtype=torch.float64) * 2.0**-53


def test_where_the_first_digits_of_an_edge_are_drawn_further_ones_tell():
    """P(k = 0) = 1 / Σ exp(−½ k²) = 0.5703 or so; the 159 digits of it, one less, and one more in each word."""
    edge = _table()[0]
    share = 1 / sum(math.exp(-k * k / 2) for k in range(30))
    assert edge / 2**159 == pytest.approx(share, rel=1e-15)
    words = [edge >> 106, edge >> 53 & 2**53 - 1, edge & 2**53 - 1]
    for number, level in ((edge - 1, 0), (edge, 1), (edge + 1, 1), (edge - 2**53, 0), (edge + 2**53, 1)):
        drawn = [number >> 106, number >> 53 & 2**53 - 1, number & 2**53 - 1]
        assert drawn[0] == words[0]
        assert _levels(1, Given(drawn)).tolist() == [level]
    assert _levels(3, Given([0, words[0] - 1, words[0] + 1])).tolist() == [0, 0, 1]


def test_the_table_has_the_digits_of_exact_fractions():
    """Σ exp(−½ k²) from the series of exp(−½) in fractions, to 2^-150."""
    half = sum((Fraction(-1, 2) ** n / math.factorial(n) for n in range(45)), Fraction(0))
    masses = [half ** (k * k) for k in range(18)]
    total = sum(masses)
    for k, edge in enumerate(_table()):
        assert abs(sum(masses[: k + 1]) / total - Fraction(edge, 2**159)) < Fraction(1, 2**150)


# What it costs --------------------------------------------------------------------------------------------------------


def moment(first, second, order):
    """The Rényi divergence of two distributions on the same places."""
    there = (first > 1e-300) & (second > 1e-300)
    return logsumexp(order * np.log(first[there]) + (1 - order) * np.log(second[there])) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2, 4, 16])
@pytest.mark.parametrize(("deviation", "summands", "shift"), [(3, 1, 1), (3, 1, 5), (2, 3, 1), (2, 3, 4), (5, 4, 7)])
def test_the_divergence_of_sums_is_that_of_concentrated_steps_at_most(deviation, summands, shift, order):
    """By numbers, of one coordinate: σ √n / Δ is the noise of the event, and nearly all of it is used."""
    masses = of_sum(deviation, summands, 36)
    found = moment(masses[shift:], masses[:-shift], order)
    noise = deviation * math.sqrt(summands) / shift
    allowed = order / 2 * (1 / noise + excess(deviation, summands, 1)) ** 2
    assert found <= allowed * (1 + 1e-9)
    assert found == pytest.approx(allowed, rel=0.02)


def test_the_divergence_of_few_small_summands_is_within_the_excess():
    """Deviation 1, two summands: τ = 10 exp(−π²) = 0.0005, and the sum is no discrete Gaussian, by less than that."""
    assert excess(1, 2, 1) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert excess(1, 2, 100) == pytest.approx(100 * math.exp(-(math.pi**2)))
    assert excess(30, 1, 10**9) == 0.0 == excess(30, 1000, 10**9)
    single, twice = probabilities(1), of_sum(1, 2)
    places = np.arange(-10, 11)
    gaussian = np.exp(-(places**2) / 4) / np.exp(-(np.arange(-90, 91) ** 2) / 4).sum()
    middle = len(twice) // 2
    ratio = twice[middle - 10 : middle + 11] / gaussian
    assert len(single) * 2 - 1 == len(twice)
    assert np.abs(np.log(ratio)).max() <= excess(1, 2, 1)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
def test_concentrated_steps_cost_what_rényi_divergences_of_gaussian_ones_say(noise):
    """Both have α / 2σ²; and more than the Gaussian curve, since nothing else is known of them."""
    for count in (1, 10, 300):
        event, gaussian = Event.concentrated(noise, count), Event.gaussian(noise, count=count)
        assert renyi.epsilon([event], 1e-5) == renyi.epsilon([gaussian], 1e-5)
        found = spent([event], 1e-5)
        assert found.accountant == "rdp"
        assert found.skipped.keys() == {"prv", "gaussian"}
        assert epsilon([gaussian], 1e-5) <= found.epsilon <= 1.25 * epsilon([gaussian], 1e-5)
        assert epsilon([event.times(1)] * count, 1e-5) == found.epsilon


def test_epsilon_is_enough_for_the_exact_curve_of_one_coordinate():
    """δ(ε) = Σ max(P − exp(ε) Q, 0) of a sum of four with deviation 3 that moves by 6, noise 1: and of ten such steps
    less than the bound, found by convolving what the losses are worth."""
    masses = of_sum(3, 4)
    event = Event.concentrated(1.0)
    for level in (0.5, 1.0, 2.0, 4.0):
        exact = np.maximum(masses[6:] - math.exp(level) * masses[:-6], 0).sum() + masses[:6].sum()
        assert exact <= delta([event], level) <= 12 * exact


def test_zero_concentrated_privacy_gives_no_more_than_its_textbook_bound():
    """ε = ρ + 2 √(ρ ln 1/δ) (Bun and Steinke 2016, proposition 1.3), which is less tight: ρ = 10 / 2 · 3² = 0.5556."""
    rho = 10 / (2 * 9)
    textbook = rho + 2 * math.sqrt(rho * math.log(1e5))
    found = epsilon([Event.concentrated(3.0, 10)], 1e-5)
    assert found <= textbook
    assert found == pytest.approx(textbook, rel=0.15)


def test_sampling_counts_for_nothing_in_concentrated_steps():
    assert epsilon([Event("concentrated", 2.0, 0.1, 5)], 1e-5) == epsilon([Event.concentrated(2.0, 5)], 1e-5)
