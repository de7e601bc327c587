"""Shamir's shares: a known example, any t of n, what fewer say, and wrong ones."""

import itertools
import secrets
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.secure.binding import UnfitError
from polyclinic.secure.shares import PRIME, SHARE_BYTES, rebuild, split, value_at


def probably_prime(number):
    """Miller and Rabin with the first 40 primes as bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    bases = [base for base in range(2, 174) if all(base % divisor for divisor in range(2, base))]
    for base in bases:
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(pow(power, 2**step, number) == number - 1 for step in range(twos)):
            return False
    return True


def test_the_field_holds_every_secret_of_32_bytes():
    assert probably_prime(PRIME)
    assert not any(probably_prime(number) for number in range(2**256 + 1, PRIME))
    assert 2**256 <= PRIME < 2 ** (8 * SHARE_BYTES)


def test_shares_by_hand():
    """1234 + 166 x + 94 x² modulo 1613."""
    shares = {point: value_at([1234, 166, 94], point, 1613) for point in range(1, 7)}
    assert shares == {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    for three in itertools.combinations(shares.items(), 3):
        assert rebuild(three, 3, 1613) == 1234


@settings(max_examples=40)
@given(st.integers(0, 2**256 - 1), st.integers(1, 12), st.data())
def test_any_t_shares_give_the_secret_back(secret, threshold, data):
    count = data.draw(st.integers(threshold, 12))
    points = data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count, unique=True))
    shares = split(secret, threshold, points)
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, count))]
    assert rebuild([(point, shares[point]) for point in chosen], threshold) == secret


@pytest.mark.parametrize(("threshold", "prime"), [(2, 7), (3, 7), (3, 11)])
def test_fewer_shares_say_nothing(threshold, prime):
    """Over all polynomials each pair of secret and t - 1 shares comes up equally often: they are independent."""
    points = range(1, prime)
    for chosen in itertools.combinations(points, threshold - 1):
        found = Counter(
            (secret, tuple(value_at([secret, *rest], point, prime) for point in chosen))
            for secret in range(prime)
            for rest in itertools.product(range(prime), repeat=threshold - 1)
        )
        assert len(found) == prime**threshold
        assert set(found.values()) == {1}


def test_all_coefficients_are_drawn_from_the_whole_field_by_the_operating_system(monkeypatch):
    drawn = []

    def draw(below):
        drawn.append(below)
        return 3

    monkeypatch.setattr(secrets, "randbelow", draw)
    assert split(5, 3, [1, 2, 4], 11) == {1: 0, 2: (5 + 6 + 12) % 11, 4: (5 + 12 + 48) % 11}
    assert drawn == [11, 11]


def test_two_splits_of_a_secret_differ():
    first, second = split(7, 3, [1, 2, 3, 4]), split(7, 3, [1, 2, 3, 4])
    assert all(first[point] != second[point] for point in first)


@pytest.mark.parametrize("place", range(5))
def test_a_wrong_share_is_noticed_where_there_are_more_than_needed(place):
    shares = list(split(2**255 + 3, 3, [1, 2, 3, 4, 5]).items())
    point, share = shares[place]
    shares[place] = point, (share + 1) % PRIME
    with pytest.raises(UnfitError, match="not all of one secret"):
        rebuild(shares, 3)
    assert rebuild([pair for pair in shares if pair[0] != point], 3) == 2**255 + 3


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [([(1, 2), (1, 2), (2, 5)], "Two shares are for the same point"), ([(1, 2), (2, 5)], "2 shares; 3 are needed"),
     ([(1, 2), (2, 5), (3, PRIME)], "not in the field"), ([(0, 2), (2, 5), (3, 1)], "not in the field"),
     ([(1, 2), (2, 5), (3, -1)], "not in the field")],
)  # fmt: skip
def test_shares_that_can_not_be_are_refused(pairs, sentence):
    with pytest.raises(UnfitError, match=sentence):
        rebuild(pairs, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(PRIME, 2, [1, 2]), (-1, 2, [1, 2]), (5, 3, [1, 2]), (5, 0, [1, 2]), (5, 2, [1, 1, 2]), (5, 2, [0, 1, 2])],
)
def test_what_can_not_be_split_is_refused(secret, threshold, points):
    with pytest.raises(ValueError, match=r"the secret is not|can't have the threshold|points of shares"):
        split(secret, threshold, points)
