"""Rings: sums that never wrap, rounding by hand, and what does not fit."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.errors import StudyError, TrainingError
from polyclinic.secure import Ring
from polyclinic.secure.masks import signed_
from polyclinic.secure.ring import CHUNK


def test_numbers_by_hand():
    ring = Ring.fit(4.0, 3, most_weight=8, step=0.25)
    # Σ |v w| is at most 96, in steps of 0.25 that is 384, and rounding 3; a weight has 2^9 steps: 3 · 512 + 3 < 2^11.
    assert (ring.bits, ring.step, ring.dtype) == (12, 0.25, torch.int32)
    assert ring.weight_step == 2.0**-6  # 24 / (2^11 - 1 - 3), and then the next power of two
    # 0.375 and 0.625 are 1.5 and 2.5 steps: half goes to even.
    found = ring.encode(torch.tensor([4.0, -4.0, 0.1875, 0.3125, -0.0625]), 2.0)
    assert found.tolist() == [32, -32, 2, 2, 0, 128]
    total = ring.decode(found + found)
    assert total.weight == 4
    assert total.values.tolist() == [16.0, -16.0, 1.0, 1.0, 0.0]
    assert total.mean.tolist() == [4.0, -4.0, 0.25, 0.25, 0.0]


@settings(max_examples=200)
@given(
    bound=st.floats(1e-6, 1e6), sites=st.integers(1, 40), most=st.floats(1e-3, 1e5), share=st.floats(0.01, 1),
    bits=st.one_of(st.none(), st.integers(16, 64)), seed=st.integers(0, 1000), chance=st.booleans(),
)  # fmt: skip
def test_the_largest_sum_does_not_wrap(bound, sites, most, share, bits, seed, chance):
    """All sites at the bound, with weights whose sum is the largest that was agreed."""
    total = max(most, sites * most * share)
    ring = Ring.fit(bound, sites, most_weight=most, total_weight=total, bits=bits)
    weights, left = [], total
    while len(weights) < sites and left >= 2 * ring.weight_step:
        weights.append(min(most, left))
        left -= weights[-1]
    sign = [1.0, -1.0]
    whole = [0, 0, 0]
    for weight in weights:
        generator = torch.Generator().manual_seed(seed) if chance else None
        values = torch.tensor([ring.bound * one for one in sign], dtype=torch.float32)
        row = ring.encode(values, weight, generator)
        assert row.dtype == ring.dtype
        whole = [one + two for one, two in zip(whole, row.tolist(), strict=True)]
    assert max(map(abs, whole)) < 2 ** (ring.bits - 1)
    wrapped = torch.tensor(whole, dtype=ring.dtype)
    assert signed_(wrapped.clone(), ring.bits).tolist() == whole


@settings(max_examples=60)
@given(st.floats(1e-3, 1e3), st.integers(2, 12), st.floats(1, 1e4), st.integers(0, 10**6))
def test_the_mean_is_that_of_the_values_to_the_step(bound, sites, most, seed):
    draw = np.random.default_rng(seed)
    ring = Ring.fit(bound, sites, most_weight=most)
    weights = draw.uniform(most / 2, most, sites)
    values = draw.uniform(-bound, bound, (sites, 30)).astype(np.float32)
    rows = [ring.encode(torch.from_numpy(one), float(weight)) for one, weight in zip(values, weights, strict=True)]
    total = ring.decode(torch.stack(rows).sum(0, dtype=torch.int64).to(ring.dtype))
    kept = [Fraction(ring.weight_step) * int(Fraction(weight) / Fraction(ring.weight_step)) for weight in weights]
    assert total.weight == sum(kept)
    exact = [sum(w * Fraction(float(v)) for w, v in zip(kept, column, strict=True)) for column in values.T]
    error = max(abs(Fraction(float(found)) - one) for found, one in zip(total.values, exact, strict=True))
    assert error <= Fraction(ring.step) * sites * Fraction(1, 2) * (1 + Fraction(1, 10**6))
    mean = [float(one / sum(kept)) for one in exact]
    np.testing.assert_allclose(total.mean, mean, rtol=0, atol=ring.step * sites / total.weight)


@pytest.mark.parametrize("bits", [16, 24, 32, 48, 64])
def test_whole_numbered_weights_are_exact_where_a_step_is_one_or_less(bits):
    ring = Ring.fit(1.0, 10, most_weight=500, bits=bits)
    assert ring.weight_step <= 1
    total = ring.decode(sum(ring.encode(torch.ones(1), weight) for weight in (3, 17, 499)))
    assert total.weight == 519


def test_more_bits_make_finer_steps_and_the_finest_that_fit():
    steps = {bits: Ring.fit(1.0, 10, most_weight=100, bits=bits).step for bits in (16, 24, 32, 48, 64)}
    assert list(steps.values()) == sorted(steps.values(), reverse=True)
    for bits, step in steps.items():
        assert step == 2.0 ** round(np.log2(step))
        with pytest.raises(StudyError, match=f"{bits} are there"):
            Ring.fit(1.0, 10, most_weight=100, bits=bits, step=step / 2)


def test_the_fewest_bits_are_taken_for_a_step():
    ring = Ring.fit(1.0, 4, most_weight=1.0, step=1e-6)
    assert ring.bits == 23  # 4 000 004 < 2^22
    assert Ring.fit(1.0, 4, step=1e-9).dtype == torch.int64
    with pytest.raises(StudyError, match="need 23 bits in steps of 1e-06; 22 are there"):
        Ring.fit(1.0, 4, step=1e-6, bits=22)


def test_there_is_room_for_the_rounding_of_every_site():
    """A thousand sites whose weights have a sum of 1: 512 steps of that weight, and up to 1000 for rounding."""
    assert Ring.fit(1.0, 1000, total_weight=1.0, step=1.0).bits == 12
    assert Ring.fit(1.5, 1000, total_weight=1.0, bits=12).step == 2.0**-9  # 768 and 1000 are below 2^11


def test_there_is_room_for_the_rounding_of_64_bit_floats():
    weight = 2.0**52 - 2  # the sum is what 53 bits hold, if nothing is rounded but the site's number
    assert Ring.fit(1.0, 1, most_weight=weight, step=1.0).bits == 54
    assert Ring.fit(1.0, 1, most_weight=weight - 8, step=1.0).bits == 53


def test_what_no_ring_holds_is_refused_with_numbers():
    sentence = "Values up to 1e\\+06, weights up to 100000 .* 4 sites need 70 bits in steps of 1e-09; 64 are there"
    with pytest.raises(StudyError, match=sentence) as caught:
        Ring.fit(1e6, 4, most_weight=1e5, step=1e-9)
    assert caught.value.code == "P102"


@pytest.mark.parametrize(
    "given_",
    [{"bound": 0.0}, {"bound": float("inf")}, {"bound": float("nan")}, {"bound": 1e39}, {"sites": 0},
     {"most_weight": 0.0}, {"most_weight": -1.0}, {"total_weight": 0.5}, {"step": 0.0}, {"step": float("nan")},
     {"bits": 1}, {"bits": 65}, {"bits": 2}, {"bits": 5}],
)  # fmt: skip
def test_other_numbers_are_refused(given_):
    bound, sites = given_.pop("bound", 1.0), given_.pop("sites", 5)
    with pytest.raises(StudyError):
        Ring.fit(bound, sites, **given_)


def test_values_that_were_clipped_to_the_bound_are_inside():
    for bound in (0.1, 0.7, 1e-7, 12345.678):
        ring = Ring.fit(bound, 4)
        values = torch.tensor([1e9, -1e9], dtype=torch.float32).clamp(-bound, bound)
        ring.encode(values, 1.0)
        ring.encode(torch.tensor([bound, -bound], dtype=torch.float64), 1.0)
        with pytest.raises(TrainingError, match="Of 2 values for a secure sum 0 are not finite and 1 are beyond"):
            ring.encode(torch.nextafter(torch.tensor([ring.bound, 0.0]), torch.tensor(torch.inf)), 1.0)


def test_values_beyond_the_bound_or_not_finite_are_counted_across_chunks():
    values = torch.zeros(2 * CHUNK + 5)
    values[[0, CHUNK, 2 * CHUNK + 4]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    values[[1, CHUNK + 1]] = torch.tensor([1.5, -7e30])
    with pytest.raises(TrainingError, match=f"Of {len(values)} values .* 3 are not finite and 2 are beyond") as caught:
        Ring.fit(1.0, 4).encode(values, 1.0)
    assert caught.value.code == "P301"


@pytest.mark.parametrize("weight", [0.0, -1.0, 5.1, float("nan"), float("inf"), 1e-12])
def test_other_weights_are_refused_without_being_told(weight):
    with pytest.raises(TrainingError, match="not above 0, or above what was agreed") as caught:
        Ring.fit(1.0, 4, most_weight=5.0).encode(torch.ones(2), weight)
    assert str(weight) not in str(caught.value).replace("above 0,", "")


@pytest.mark.parametrize("values", [torch.ones(2, dtype=torch.float16), torch.ones(2, 2), torch.ones(2).long()])
def test_other_values_are_refused(values):
    with pytest.raises(ValueError, match="expected 32-bit or 64-bit floats"):
        Ring.fit(1.0, 4).encode(values, 1.0)


def test_rounding_by_chance_is_unbiased_and_stays_between_its_neighbours():
    ring = Ring.fit(1.0, 1, step=0.25)
    values = torch.tensor([0.3, -0.3, 0.25, -0.01]).repeat_interleave(40_000)
    found = ring.encode(values, 1.0, torch.Generator().manual_seed(5))[:-1].view(4, -1)
    assert [sorted(set(row.tolist())) for row in found] == [[1, 2], [-2, -1], [1], [-1, 0]]
    means = found.double().mean(1) * 0.25
    torch.testing.assert_close(means, torch.tensor([0.3, -0.3, 0.25, -0.01]).double(), rtol=0, atol=0.003)
    again = ring.encode(values, 1.0, torch.Generator().manual_seed(5))[:-1].view(4, -1)
    assert torch.equal(found, again)


def test_chunks_change_nothing():
    values = torch.linspace(-1, 1, 2 * CHUNK + 3)
    ring = Ring.fit(1.0, 7, most_weight=3.0)
    expected = np.rint(values.double().numpy() * 2.5 / ring.step).astype(np.int64)
    assert ring.encode(values, 2.5)[:-1].tolist() == expected.tolist()
