"""Numbers as whole ones of 512 bits: sums are those of exact arithmetic, under masks that carry."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_round import TRAINING, Play, names

from polyclinic.errors import StudyError
from polyclinic.secure import SiteRound, Terms, fit_shape
from polyclinic.secure.exact import BITS, LARGEST, decode, encode
from polyclinic.secure.masks import add_, add_masks_

NUMBERS = st.floats(-LARGEST, LARGEST, allow_subnormal=False) | st.integers(-(2**53), 2**53).map(float)
#: Multiples of the step, as all float64 are that are not tiny.
EXACT = NUMBERS.filter(lambda value: value == 0 or abs(value) > 2.0**-139)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(EXACT, min_size=1, max_size=20))
def test_sums_are_exact_and_rounded_once(values):
    total = torch.zeros(8, dtype=torch.int64)
    for value in values:
        add_(total, encode(tensor([value])), 8)
    assert decode(total).tolist() == [float(sum(map(Fraction, values)))]
    assert decode(total).item() == math.fsum(values)


@given(NUMBERS)
def test_a_number_is_within_half_a_step(value):
    assert abs(Fraction(decode(encode(tensor([value]))).item()) - Fraction(value)) <= Fraction(1, 2**193)


def test_words_worked_by_hand():
    """1.5 is 3 · 2^191: in the third word from below, bits 63 and, in the fourth, bit 0."""
    assert encode(tensor([1.5])).tolist() == [0, 0, -(2**63), 1, 0, 0, 0, 0]
    assert encode(tensor([-1.0])).tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    assert encode(tensor([2.0**-192, 2.0**-194])).tolist() == [1] + [0] * 15
    assert encode(tensor([])).tolist() == []
    assert decode(torch.empty(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**301])
def test_what_cannot_be_summed_is_refused(value):
    with pytest.raises(ValueError, match="not finite numbers up to"):
        encode(tensor([1.0, value]))


def wide(count, length=3, bits=BITS):
    return Terms(TRAINING, 1, 0, names(count), fit_shape(count), bits, length)


def integers(vector, words=8):
    return [int.from_bytes(row.numpy().tobytes(), "little", signed=True) for row in vector.reshape(-1, words)]


@settings(max_examples=30)
@given(st.lists(st.integers(-(2**511), 2**511 - 1), min_size=4, max_size=4), st.integers(1, 2**64))
def test_masks_of_many_words_carry_and_come_off(values, seed):
    key = seed.to_bytes(32, "little")
    vector = torch.frombuffer(
        bytearray(b"".join(one.to_bytes(64, "little", signed=True) for one in values)), dtype=torch.int64
    ).clone()  # fmt: skip
    masked = add_masks_(vector.clone(), [(key, 1)], 8)
    alone = integers(add_masks_(torch.zeros_like(vector), [(key, 1)], 8))
    for found, value, mask in zip(integers(masked), values, alone, strict=True):
        assert (found - value - mask) % 2**512 == 0
    assert torch.equal(add_masks_(masked, [(key, -1)], 8), vector)


def test_a_number_is_not_cut_where_chunks_end():
    """A chunk has 2^15 words: with three words a number they don't come out even."""
    vector, key = torch.full((3 * 20_000,), -1, dtype=torch.int64), bytes(31) + b"x"
    masked = add_masks_(vector.clone(), [(key, 1)], 3)
    mask = add_masks_(torch.zeros_like(vector), [(key, 1)], 3)
    pairs = zip(integers(masked, 3), integers(mask, 3), strict=True)
    assert all((found - one + 1) % 2**192 == 0 for found, one in pairs)
    with pytest.raises(ValueError, match="3 for each element"):
        add_masks_(torch.zeros(4, dtype=torch.int64), [(key, 1)], 3)


@pytest.mark.parametrize("gone", [{}, {"Clinic 1": "mask"}, {"Clinic 2": "unmask", "Clinic 0": "share"}])
def test_a_round_of_wide_numbers_gives_the_sum_of_those_that_are_left(gone):
    terms, generator = wide(7), torch.Generator().manual_seed(3)
    values = {site: torch.randn(3, dtype=torch.float64, generator=generator) * 1e6 for site in terms.sites}
    play = Play(terms, vectors={site: encode(value) for site, value in values.items()}, gone=gone)
    there = [site for site in terms.sites if gone.get(site, "never") in ("never", "agree", "unmask")]
    expected = [math.fsum(values[site][place].item() for site in there) for place in range(3)]
    assert decode(play.run()).tolist() == expected


def test_carries_of_parts_are_not_seen():
    """Of sums of words that are added one by one, the lowest would say how often a part carried."""
    sums = []
    for parts in ([2.0**-130, 2.0**-130, 0.0], [2.0**-129, 0.0, 0.0]):
        total = torch.zeros(8, dtype=torch.int64)
        for part in parts:
            add_(total, encode(tensor([part])), 8)
        sums.append(total.tolist())
    assert sums[0] == sums[1]


def test_a_vector_of_another_length_is_refused():
    terms = wide(3)
    one = SiteRound(terms, "Clinic 0")
    with pytest.raises(ValueError, match=r"expected torch.int64 \[24\]"):
        one.mask(torch.zeros(3, dtype=torch.int64), {})


@pytest.mark.parametrize("bits", [65, 100, 1088])
def test_other_widths_are_refused(bits):
    with pytest.raises(StudyError, match="whole words of 64"):
        wide(3, bits=bits)
