"""Robust server rules: identities, numbers worked by hand, and what corrupt sites can do to the result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.options import check_options
from polyclinic.parts import SERVER_PARTS
from polyclinic.server import order
from polyclinic.server.distances import (
    cosine_distances,
    distances_to_mean,
    gram,
    lengths_and_products,
    norm,
    squared_distances,
)
from polyclinic.server.order import (
    Comparator,
    apply_network,
    middle_mean,
    nearest_mean,
    selection_network,
    sorted_rows,
    sorting_network,
)
from polyclinic.server.robust import copod
from polyclinic.server.rules import weighted_sum
from server_exchange import Rule, Sent, away_from_zero, play

NAMES = [f"site{number:02}" for number in range(40)]
#: A rule of each kind, with the numbers of sites that it can do with.
RULES = {
    "median": {}, "trimmed_mean": {"trim": 2}, "krum": {"corrupt": 2}, "multi_krum": {"corrupt": 2, "keep": 3},
    "bulyan": {"corrupt": 2}, "geometric_median": {}, "dos": {}, "fltrust": {"trusted": "site00"},
}  # fmt: skip


def run(rule, values, *, start=None, trainable=None, weights=None, names=NAMES):
    """The result and the shares of one round; without ``start`` values are changes, see `server_exchange.play`."""
    values = [torch.as_tensor(value, dtype=torch.float32) for value in values]
    weights = [1.0] * len(values) if weights is None else weights
    rows = zip(names, values, weights, strict=False)
    result = play(rule, [Sent(name, value, weight, {}) for name, value, weight in rows], start, trainable=trainable)
    return result, rule.shares


def part(name, **options):
    return Rule((name, check_options(SERVER_PARTS[name], options, (), name)))


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


def shares_are(shares, expected, tolerance=1e-9):
    assert list(shares.values()) == pytest.approx(expected, abs=tolerance)


def vectors(sites, size, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=scale, size=(sites, size))).float()


# Order statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wires", range(1, 12))
def test_a_network_sorts_everything(wires):
    """A network that sorts all sequences of zeros and ones sorts all sequences (Knuth's 0-1 principle)."""
    every = (torch.arange(2**wires)[None] >> torch.arange(wires)[:, None] & 1).float()
    rows = torch.stack(sorted_rows(list(every)))
    assert torch.equal(rows, every.sort(dim=0).values)


def test_batchers_network_of_four_has_his_five_comparators():
    assert sorting_network(4) == tuple(Comparator(*pair) for pair in [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)])
    assert len(sorting_network(16)) == 63


@pytest.mark.parametrize("wires", range(1, 10))
def test_a_selection_network_finds_what_it_is_asked_for_with_no_more_comparators(wires):
    every = (torch.arange(2**wires)[None] >> torch.arange(wires)[:, None] & 1).float()
    spare = [torch.empty(2**wires) for _ in range(wires + 2)]
    for start in range(wires):
        for stop in range(start + 1, wires + 1):
            network = selection_network(wires, start, stop)
            found = torch.stack(apply_network(network, list(every), list(spare))[start:stop])
            assert torch.equal(found.sort(dim=0).values, every.sort(dim=0).values[start:stop])
            assert len(network) <= len(sorting_network(wires))


def test_a_selection_network_leaves_out_what_it_does_not_need():
    assert selection_network(16, 0, 16) == ()
    work = {trim: sum(c.minimum + c.maximum for c in selection_network(16, trim, 16 - trim)) for trim in range(8)}
    assert work[1] < work[7] < work[3] < 2 * len(sorting_network(16))
    # The least and the greatest of four, found and left out: only what goes on to the two in the middle is computed.
    assert selection_network(4, 1, 3) == (
        Comparator(0, 1), Comparator(2, 3), Comparator(0, 2, minimum=False), Comparator(1, 3, maximum=False),
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 33), st.integers(0, 10**6))
def test_the_median_is_numpys(sites, seed):
    values = torch.from_numpy(np.random.default_rng(seed).integers(-4, 5, size=(sites, 50)) / 4).float()
    result, _ = run(part("median"), values)
    assert np.array_equal(result.numpy(), np.median(values.numpy(), axis=0))
    if sites % 2:
        assert torch.equal(result, values.median(dim=0).values)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 33), st.integers(0, 16), st.integers(0, 10**6))
def test_the_trimmed_mean_is_that_of_sorted_values(sites, trim, seed):
    trim = min(trim, (sites - 1) // 2)
    values = vectors(sites, 40, seed)
    result, _ = run(part("trimmed_mean", trim=trim), values)
    close(result, scipy.stats.trim_mean(values.double().numpy(), (trim + 1e-6) / sites, axis=0))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(0, 3), st.integers(0, 10**6))
def test_the_nearest_mean_is_that_of_the_values_sorted_by_distance_from_the_median(count, corrupt, seed):
    values = vectors(count + 2 * corrupt, 40, seed)
    distance = (values - values.quantile(0.5, dim=0)).abs()
    expected = values.gather(0, distance.argsort(dim=0)[:count]).mean(dim=0)
    close(nearest_mean(list(values), count), expected)


def test_blocks_cover_all_coordinates(monkeypatch):
    values = vectors(5, 103)
    whole = middle_mean(list(values), 1), nearest_mean(list(values), 3)
    matrix, weights = gram(list(values)), torch.arange(5).double()
    total = weighted_sum(list(values), weights)
    monkeypatch.setattr(order, "BLOCK", 10)
    for name in ("distances.BLOCK", "distances.WIDE_BLOCK", "rules.BLOCK"):
        monkeypatch.setattr(f"polyclinic.server.{name}", 10)
    assert torch.equal(middle_mean(list(values), 1), whole[0])
    assert torch.equal(nearest_mean(list(values), 3), whole[1])
    assert torch.equal(weighted_sum(list(values), weights), total)
    lengths = [norm(value) for value in values]
    assert lengths == pytest.approx(matrix.diagonal().sqrt().tolist(), rel=1e-7)
    for index in range(5):
        found = lengths_and_products(list(values), index)
        assert found[0].tolist() == pytest.approx(lengths, rel=1e-7)
        assert found[1].tolist() == pytest.approx(matrix[index].tolist(), rel=1e-6, abs=1e-5)
    np.testing.assert_allclose(gram(list(values)), matrix, rtol=1e-13, atol=1e-13)


# Distances ------------------------------------------------------------------------------------------------------------


def test_distances_are_scipys():
    changes = vectors(7, 3001, scale=0.1)
    exact, matrix = changes.double().numpy(), gram(list(changes))
    np.testing.assert_allclose(matrix, exact @ exact.T, rtol=1e-12, atol=1e-12)
    from scipy.spatial.distance import cdist

    np.testing.assert_allclose(squared_distances(matrix), cdist(exact, exact, "sqeuclidean"), rtol=1e-10)
    np.testing.assert_allclose(cosine_distances(matrix), cdist(exact, exact, "cosine"), atol=2e-12)
    lengths = [norm(change) for change in changes]
    np.testing.assert_allclose(lengths, np.linalg.norm(exact, axis=1), rtol=1e-7)
    both = lengths_and_products(list(changes), 2)
    np.testing.assert_allclose(both[0], lengths, rtol=1e-7)
    np.testing.assert_allclose(both[1], exact @ exact[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 1000])
@pytest.mark.parametrize("size", [1e30, 3e38, 1e-16, 1e-30, 1e-42])
def test_lengths_whose_squares_float32_cannot_hold(size, count):
    """(3, 4) and (5, 12) times ``size``: lengths 5 and 13, product 15 + 48 = 63; and the same many times over."""
    size = float(torch.tensor(size / 12))  # the nearest number that float32 knows
    changes = [torch.tensor(pair * (count // 2)) * size for pair in ([3.0, 4.0], [5.0, 12.0])]
    exact = [change.double() for change in changes]
    lengths = [norm(change) for change in changes]
    assert lengths == pytest.approx([float(change.norm()) for change in exact], rel=1e-12)
    times = math.sqrt(count / 2) * size
    assert lengths == pytest.approx([5 * times, 13 * times], rel=0.05)  # 1e-42 is a few steps of float32
    again, found = (values.tolist() for values in lengths_and_products(changes, 1))
    assert again == lengths
    assert found == pytest.approx([float(change @ exact[1]) for change in exact], rel=1e-12)
    assert found == pytest.approx([63 * times**2, 169 * times**2], rel=0.1)


@pytest.mark.parametrize("value", [0.1, 1e-4, 3.0])
def test_lengths_of_long_changes_keep_seven_digits(value):
    """Equal numbers are the worst case of summing in float32."""
    change = torch.full((1_000_003,), value)
    exact = float(change[0].double()) * math.sqrt(len(change))
    assert norm(change) == pytest.approx(exact, rel=2e-7)
    # Products weigh sites, and equal ones alike; five digits in the worst case are enough for that.
    lengths, products = lengths_and_products([change], 0)
    assert float(lengths[0]) == pytest.approx(exact, rel=2e-7)
    assert float(products[0]) == pytest.approx(exact**2, rel=5e-5)


def test_the_length_of_no_change_is_0():
    assert norm(torch.zeros(1000)) == 0
    assert norm(torch.zeros(0)) == 0


@pytest.mark.parametrize("weight", [1e-42, 1e-30, 1.0, 1e30, 1e42])
def test_weights_beyond_float32_are_applied_where_the_product_can_be_held(weight):
    vector = torch.tensor([1.0, -2.0, 0.5]) * float(torch.tensor(1 / weight if weight > 1 else min(1 / weight, 1e38)))
    found = weighted_sum([vector, torch.full((3,), torch.inf)], torch.tensor([weight, 0.0], dtype=torch.float64))
    close(found.double(), vector.double() * weight, 1e-6)


def test_distances_of_similar_changes_are_not_lost_in_their_size():
    """Changes of norm about 1e5 that differ by 1 in one weight."""
    changes = [torch.full((10_000,), 1000.0) for _ in range(3)]
    changes[1][0] += 1
    changes[2][0] -= 1
    expected = torch.tensor([[0.0, 1, 1], [1, 0, 4], [1, 4, 0]], dtype=torch.float64)
    assert torch.equal(squared_distances(gram(changes)), expected)


def test_a_huge_update_does_not_change_the_distances_of_others():
    changes = vectors(4, 100)
    alone = squared_distances(gram(list(changes[:3])))
    changes[3] = 1e30
    together = squared_distances(gram(list(changes)))
    np.testing.assert_allclose(together[:3, :3], alone, rtol=1e-13)
    assert (together[3, :3] > 1e61).all()
    assert together.isfinite().all()


def test_equal_updates_have_distance_zero_and_a_change_of_zero_has_no_direction():
    changes = torch.cat([vectors(1, 5000).expand(3, -1), torch.zeros(1, 5000)])
    matrix = gram(list(changes))
    assert torch.equal(squared_distances(matrix)[:3, :3], torch.zeros(3, 3, dtype=torch.float64))
    expected = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 0]], dtype=torch.float64)
    assert torch.equal(cosine_distances(matrix), expected)


def test_distances_that_are_rounding_alone_are_zero():
    matrix = torch.tensor([[1.0, 1 - 1e-15, 1 - 1e-12], [1 - 1e-15, 1, 0], [1 - 1e-12, 0, 1]], dtype=torch.float64)
    distances = squared_distances(matrix)
    assert distances[0, 1] == 0
    assert distances[0, 2] == pytest.approx(2e-12, rel=1e-3)


def test_dos_takes_distances_that_differ_by_rounding_alone_as_equal():
    """The same numbers, moved on by a third: all distances are equal, but their squares are summed in other orders."""
    numbers = vectors(1, 15_000)[0]
    _, shares = run(part("dos"), torch.stack([numbers.roll(5000 * site) for site in range(3)]))
    shares_are(shares, [1 / 3] * 3)


# Numbers worked by hand -----------------------------------------------------------------------------------------------

HAND = [(1.0, 10.0), (2.0, 40.0), (3.0, 20.0), (7.0, 30.0)]


def test_median_by_hand():
    """Odd: 2 of (1, 2, 3) and 20 of (10, 40, 20). Even: (2 + 3) / 2 of (1, 2, 3, 7) and (20 + 30) / 2."""
    result, shares = run(part("median"), HAND[:3])
    assert result.tolist() == [2.0, 20.0]
    shares_are(shares, [0, 1 / 2, 1 / 2])
    result, shares = run(part("median"), HAND)
    assert result.tolist() == [2.5, 25.0]
    shares_are(shares, [0, 1 / 4, 1 / 2, 1 / 4])


def test_trimmed_mean_by_hand():
    """Without 1 and 9, 10 and 90: (2 + 3 + 7) / 3 = 4 and (40 + 20 + 30) / 3 = 30; the second site's 40 and 2 count."""
    result, shares = run(part("trimmed_mean", trim=1), [*HAND, (9.0, 90.0)])
    assert result.tolist() == [4.0, 30.0]
    shares_are(shares, [0, 1 / 3, 1 / 3, 1 / 3, 0])


def test_equal_values_share_what_they_count():
    """The median 5 of (5, 5, 9) is of the first two sites, the median 1 of (0, 1, 2) of the second."""
    _, shares = run(part("median"), [(5.0, 0.0), (5.0, 1.0), (9.0, 2.0)])
    shares_are(shares, [1 / 4, 3 / 4, 0])


def test_krum_by_hand():
    """f = 1 of 5 sites: 2 nearest others. On a line at 0, 1, 3, 7, 100 scores are 1 + 9, 1 + 4, 4 + 9, ..."""
    states = [(0.0, 5.0), (1.0, 5.0), (3.0, 5.0), (7.0, 5.0), (100.0, 5.0)]
    result, shares = run(part("krum", corrupt=1), states)
    assert result.tolist() == [1.0, 5.0]
    shares_are(shares, [0, 1, 0, 0, 0])
    result, shares = run(part("multi_krum", corrupt=1, keep=2), states)
    assert result.tolist() == [0.5, 5.0]
    shares_are(shares, [1 / 2, 1 / 2, 0, 0, 0])
    result, shares = run(part("multi_krum", corrupt=1), states)  # without keep 5 - 1 sites
    close(result, [2.75, 5.0])
    shares_are(shares, [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0])


def test_bulyan_by_hand():
    """f = 1 of 7 sites on a line: Krum chooses 5 one by one, of which the 3 closest to the median count.

    of 0, 1, 3, 7, 15, 31, 100 with 4 nearest others: 7 (16 + 36 + 49 + 64 = 165; 3: 4 + 9 + 16 + 144 = 173)
    of 0, 1, 3, 15, 31, 100 with 3: 3 (4 + 9 + 144 = 157; 1: 1 + 4 + 196 = 201; 0: 1 + 9 + 225 = 235)
    of 0, 1, 15, 31, 100 with 2: 1 (1 + 196 = 197; 0: 1 + 225 = 226)
    of 0, 15, 31, 100 with 1: 15 (225, as 0; with one more 225 + 256 and 225 + 961)
    of 0, 31, 100 with 1, as there is always one: 31 (961, as 0; with one more 961 + 4761 and 961 + 10000)

    The median of 7, 3, 1, 15, 31 is 7, and closest to it are 7, 3 and 1, for 15 is 8 away.
    """
    states = [(value, 0.0) for value in (0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 100.0)]
    result, shares = run(part("bulyan", corrupt=1), states)
    close(result, [11 / 3, 0.0])
    fifth, third = 1 / 5, 1 / 3  # of the second weight, where five are equal, and of the first
    shares_are(shares, [0, *[(third + fifth) / 2] * 3, fifth / 2, fifth / 2, 0])


def test_geometric_median_by_hand():
    """The four corners of a quadrilateral: the point is where its diagonals meet, whatever their lengths."""
    states = [(-1.0, 0.0), (5.0, 0.0), (0.0, -2.0), (0.0, 40.0)]
    result, shares = run(part("geometric_median", tolerance=1e-12), states)
    close(result, [0.0, 0.0], 1e-5)
    pulls = [1, 1 / 5, 1 / 2, 1 / 40]  # p_k / distance, all p_k equal
    shares_are(shares, [pull / sum(pulls) for pull in pulls], 1e-5)


def test_a_site_with_most_of_the_weight_is_the_geometric_median():
    result, _ = run(part("geometric_median"), HAND, weights=[1.0, 1.0, 7.0, 1.0])
    close(result, HAND[2], 1e-4)


def test_copod_by_hand():
    """One column 1, 2, 6: skewed to the right, so the score is max(r, (l + r) / 2) with tails of 1/3, 2/3 and 1."""
    l, r = [math.log(3), math.log(3 / 2), 0], [0, math.log(3 / 2), math.log(3)]  # noqa: E741
    expected = [max(b, (a + b) / 2) for a, b in zip(l, r, strict=True)]
    found = copod(torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    # Without skewness both tails count: log 3 at the ends, 2 log 1.5 in the middle.
    found = copod(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))
    assert found.tolist() == pytest.approx([math.log(3), 2 * math.log(1.5), math.log(3)], rel=1e-12)


def test_dos_by_hand():
    """Changes (3, 0), (4, 0), (8, 0): cosine distances are 0, which is no outlier; Euclidean 0 1 5; 1 0 4; 5 4 0."""
    a, b = math.log(3), math.log(1.5)
    # With tails as in the test above, the score is b in the middle of a column, a at the end it leans to, else a / 2:
    # column 0, 1, 5 leans to its greatest: a / 2, b, a
    # column 1, 0, 4 leans to its greatest: b, a / 2, a
    # column 5, 4, 0 leans to its least:    a / 2, b, a
    scores = [a / 2 + b + a / 2, b + a / 2 + b, 3 * a]
    weights = [math.exp(-score / 2) for score in scores]
    expected = [weight / sum(weights) for weight in weights]
    result, shares = run(part("dos"), [(3.0, 0.0), (4.0, 0.0), (8.0, 0.0)])
    shares_are(shares, expected, 1e-9)
    close(result, [3 * expected[0] + 4 * expected[1] + 8 * expected[2], 0.0])


def test_fltrust_by_hand():
    """From (1, 1): the trusted change is (3, 4); (8, 6) has cosine 0.96 and twice its length; (-3, -4) counts nothing.

    Σ t Δ / Σ t = ((3, 4) + 0.96 (4, 3)) / 1.96. The statistic, the last number, is the median of 20, 10 and 1e30.
    """
    states = [(9.0, 7.0, 20.0), (4.0, 5.0, 10.0), (-2.0, -3.0, 1e30)]
    result, shares = run(part("fltrust", trusted="site01"), states, start=(1.0, 1.0, 0.0), trainable=2)
    close(result, [1 + (3 + 0.96 * 4) / 1.96, 1 + (4 + 0.96 * 3) / 1.96, 20.0])
    shares_are(shares, [0.96 / 1.96, 1 / 1.96, 0])


def test_norm_bound_by_hand():
    """From (1, 1): (3, 4) has length 5 and is halved to a bound of 2.5; (0, 2) is short enough.

    The statistic is the median of 9 and 1, whatever the sites weigh.
    """
    states = [(4.0, 5.0, 9.0), (1.0, 3.0, 1.0)]
    rule = part("norm_bound", bound=2.5)
    result, shares = run(rule, states, start=(1.0, 1.0, 0.0), trainable=2)
    close(result, [1 + 1.5 / 2, 1 + (2 + 2) / 2, 5.0])
    shares_are(shares, [1 / 2, 1 / 2])


def test_the_median_bound_is_that_of_the_round_before():
    """Lengths 1, 4, 5: none is bound in the first round; then all by 4, then by the median of 8, 8, 2."""
    rule = part("norm_bound", bound="median")
    assert run(rule, [[1.0], [4.0], [5.0]])[0].tolist() == [pytest.approx(10 / 3)]
    again = part("norm_bound", bound="median")
    again.restore({name: tensor.clone() for name, tensor in rule.memory().items()})
    for each in (rule, again):
        assert run(each, [[8.0], [-8.0], [2.0]])[0].tolist() == [pytest.approx((4 - 4 + 2) / 3)]
        assert run(each, [[9.0], [0.0], [0.0]])[0].tolist() == [pytest.approx(8 / 3)]
        # Most changed nothing in the last round: nothing can be said of this one.
        assert run(each, [[9.0], [0.0], [0.0]])[0].tolist() == [pytest.approx(3.0)]


def test_a_round_that_was_given_up_leaves_no_bound():
    """Lengths 1, 4, 5; then 100, 100, 100 in a round that is never finished: the next bound is still 4."""
    rule = part("norm_bound", bound="median")
    run(rule, [[1.0], [4.0], [5.0]])
    rule.begin(away_from_zero(1), torch.zeros(0), dict.fromkeys(NAMES[:3], 1.0), number=1)
    for name in NAMES[:3]:
        rule.take(name, torch.tensor([100.0]), torch.zeros(0), 1.0, {})
    assert rule.memory()["norm_bound/norms"].tolist() == [1.0, 4.0, 5.0]
    assert run(rule, [[8.0], [-8.0], [2.0]])[0].tolist() == [pytest.approx((4 - 4 + 2) / 3)]


# Identities -----------------------------------------------------------------------------------------------------------


def test_rules_that_are_the_uniform_mean():
    values = vectors(6, 50)
    for rule in (part("trimmed_mean", trim=0), part("multi_krum", corrupt=0, keep=6), part("multi_krum", corrupt=0)):
        result, shares = run(rule, values, weights=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        close(result, values.mean(dim=0))
        shares_are(shares, [1 / 6] * 6)


def test_krum_is_multi_krum_that_keeps_one():
    values = vectors(9, 50)
    assert torch.equal(run(part("krum", corrupt=2), values)[0], run(part("multi_krum", corrupt=2, keep=1), values)[0])


def test_bulyan_against_nobody_is_the_uniform_mean():
    values = vectors(5, 50)
    result, shares = run(part("bulyan", corrupt=0), values)
    close(result, values.mean(dim=0))
    shares_are(shares, [1 / 5] * 5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median", "dos", "fltrust"])
def test_one_site_is_the_result(name):
    options = {"trim": 0} if name == "trimmed_mean" else RULES[name]
    value = vectors(1, 50)
    result, shares = run(part(name, **options), value, start=vectors(1, 50, seed=1)[0])
    close(result, value[0])
    assert shares == {"site00": 1.0}


@pytest.mark.parametrize("name", list(RULES))
def test_equal_sites_are_the_result(name):
    value = vectors(1, 5000)
    result, shares = run(part(name, **RULES[name]), value.expand(11, -1), start=vectors(1, 5000, seed=1)[0])
    close(result, value[0])
    if name == "krum":
        shares_are(shares, [1] + [0] * 10)
    elif name not in ("multi_krum", "bulyan"):
        shares_are(shares, [1 / 11] * 11, 1e-12)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), length=st.floats(1e-3, 1e6))
def test_rounding_gives_no_site_more_pull(seed, length):
    """Inner products of equal changes as another processor may round them: each a little off."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-8, 9, size=(11, 11)) * 2.0**-53
    matrix = torch.from_numpy(length**2 * (1 + noise + noise.T))
    weights = torch.from_numpy(rng.dirichlet(np.ones(11)))
    assert not distances_to_mean(matrix, weights).any()
    assert not squared_distances(matrix).any()


def test_distances_to_the_mean_by_hand():
    """Changes (0, 3) and (4, 0) with weights 3/4 and 1/4: the mean is (1, 9/4)."""
    changes = torch.tensor([[0.0, 3.0], [4.0, 0.0]], dtype=torch.float64)
    found = distances_to_mean(changes @ changes.T, torch.tensor([0.75, 0.25], dtype=torch.float64))
    close(found, [1 + 9 / 16, 9 + 81 / 16], 1e-15)


def test_without_a_bound_nothing_changes():
    values, start = vectors(4, 50), vectors(1, 50, seed=1)[0]
    plain = run(part("mean"), values, start=start)[0]
    assert torch.equal(run(part("norm_bound", bound=1e300), values, start=start)[0], plain)


def test_a_bound_comes_before_the_aggregation_of_its_chain():
    """Changes 1, 2, 30, 3 and 40 bound to 2.5 have the median 2.5; unbound it is 3."""
    chain = Rule(("norm_bound", {"bound": 2.5}), ("median", {}))
    assert run(chain, [[1.0], [2.0], [30.0], [3.0], [40.0]])[0].tolist() == [2.5]
    assert run(part("median"), [[1.0], [2.0], [30.0], [3.0], [40.0]])[0].tolist() == [3.0]


@pytest.mark.parametrize("name", list(RULES))
def test_a_round_without_updates_gives_nothing(name):
    rule = part(name, **RULES[name])
    rule.begin(torch.tensor([1.0, 2.0]), torch.zeros(0), {"site00": 1.0})
    assert rule.finish() is None
    assert rule.memory() == {}


# Properties -----------------------------------------------------------------------------------------------------------

SMALL = settings(deadline=None, max_examples=25)


@pytest.mark.parametrize("name", list(RULES))
@SMALL
@given(seed=st.integers(0, 10**6))
def test_the_order_of_sites_only_permutes_shares(name, seed):
    rng = np.random.default_rng(seed)
    values, start, weights = vectors(12, 30, seed), vectors(1, 30, seed + 1)[0], rng.integers(1, 9, 12).astype(float)
    turned = rng.permutation(12)
    result, shares = run(part(name, **RULES[name]), values, start=start, trainable=25, weights=weights.tolist())
    names = [NAMES[index] for index in turned]
    other, other_shares = run(
        part(name, **RULES[name]), values[turned], start=start, trainable=25, weights=weights[turned].tolist(),
        names=names,
    )  # fmt: skip
    close(other, result, 1e-4 if name == "geometric_median" else 1e-5)
    assert sum(shares.values()) == pytest.approx(1)
    shares_are(shares, [other_shares[site] for site in shares], 1e-5)


@pytest.mark.parametrize("name", list(RULES))
@SMALL
@given(seed=st.integers(0, 10**6))
def test_a_shift_of_everything_shifts_the_result(name, seed):
    values, start, shift = vectors(12, 30, seed), vectors(1, 30, seed + 1)[0], vectors(1, 30, seed + 2)[0]
    result, shares = run(part(name, **RULES[name]), values, start=start, trainable=25)
    moved, moved_shares = run(part(name, **RULES[name]), values + shift, start=start + shift, trainable=25)
    close(moved, result + shift, 1e-4)
    shares_are(moved_shares, list(shares.values()), 0.01 if name in ("median", "trimmed_mean", "bulyan") else 1e-4)


@pytest.mark.parametrize("size", [1e3, 1e15, 1e30])
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"])
@SMALL
@given(seed=st.integers(0, 10**6))
def test_two_of_twelve_sites_can_not_carry_the_result_away(name, size, seed):
    """Honest values lie in the ball of radius 7 or so; so does the result, whatever the other two send."""
    rng = np.random.default_rng(seed)
    values = vectors(12, 30, seed)
    corrupt = rng.choice(12, 2, replace=False)
    direction = torch.from_numpy(rng.normal(size=(2, 30))).float()
    values[corrupt] = size * direction / direction.norm(dim=1, keepdim=True)
    if seed % 2:
        values[corrupt[1]] = values[corrupt[0]]  # of one mind
    result, shares = run(part(name, **RULES[name]), values)
    honest = np.delete(np.arange(12), corrupt)
    assert result.norm() <= values[honest].norm(dim=1).max() + 1e-4
    if name in ("krum", "multi_krum", "geometric_median"):
        assert max(shares[NAMES[index]] for index in corrupt) < 0.01
    if name == "bulyan":  # may choose two of one mind among its last, so that a value near 0 of theirs can count
        assert max(shares[NAMES[index]] for index in corrupt) < 1 / 12


@SMALL
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([-100.0, -1.0, 1e10, 1e30]))
def test_fltrust_bounds_what_corrupt_sites_do(seed, factor):
    """The result is no longer than the trusted change, and sites that turn round theirs count nothing."""
    common = vectors(1, 200, seed)
    values = common + vectors(6, 200, seed + 1, scale=0.3)
    values[3:] *= factor
    result, shares = run(part("fltrust", trusted="site00"), values)
    assert result.norm() <= values[0].norm() * (1 + 1e-5)
    close(torch.nn.functional.cosine_similarity(result, common[0], dim=0), 1.0, 0.1)
    if factor < 0:
        shares_are({site: shares[site] for site in NAMES[3:6]}, [0, 0, 0])


@pytest.mark.parametrize("size", [1e-10, 1e-15, 1e-20, 1e-30, 1e-38, 1e-42, 1e15, 1e30])
def test_fltrust_brings_changes_of_any_size_to_the_trusted_length(size):
    """From weights of hundreds: the trusted change is (3, 4), and the other (4, 3) times ``size`` has cosine 0.96."""
    other = torch.tensor([4.0, 3.0]) * size
    found, shares = run(part("fltrust", trusted="site01"), [other, (3.0, 4.0)])
    tolerance = 1e-6 if size > 1e-38 else 5e-3  # where float32 has few digits left
    close(found, [(3 + 0.96 * 4) / 1.96, (4 + 0.96 * 3) / 1.96], tolerance)
    shares_are(shares, [0.96 / 1.96, 1 / 1.96], tolerance)


sizes = st.sampled_from([0.0, 1e-45, 1e-42, 1e-38, 1e-30, 1e-15, 1e-10, 1.0, 1e10, 1e30, 1e37])


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6), factors=st.lists(sizes, min_size=2, max_size=6), count=st.sampled_from([1, 30, 3000])
)
@example(seed=142969, factors=[1e-38, 1e-45, 1e-45, 1e-42, 1e-42], count=1)
def test_fltrust_never_steps_farther_than_the_trusted_site(seed, factors, count):
    """Whatever the others send, and however little the trusted site did."""
    values = vectors(len(factors), count, seed) * torch.tensor(factors)[:, None]
    if seed % 2:
        values = values.abs()  # of one mind
    found, _ = run(part("fltrust", trusted="site00"), values)
    # Near 0 float32 has steps of 2^-149, and each change is rounded twice (scaled and added), the mean once more.
    smallest = (2 * len(factors) + 1) * 2.0**-150 * math.sqrt(count)
    assert float(found.double().norm()) <= float(values[0].double().norm()) * (1 + 1e-6) + smallest


@settings(deadline=None, max_examples=20)
@given(value=st.floats(1e-3, 10), size=st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e20]))
def test_fltrust_is_bounded_where_summing_is_hardest(value, size):
    """Long changes of equal numbers, and one that is the same in another order of magnitude."""
    trusted = torch.full((100_001,), value)
    found, _ = run(part("fltrust", trusted="site00"), [trusted, trusted * size, vectors(1, 100_001)[0].abs()])
    assert float(found.double().norm()) <= float(trusted.double().norm()) * (1 + 1e-6)


@SMALL
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["noise", "scaled", "turned"]))
def test_dos_suppresses_outliers(seed, kind):
    values = vectors(1, 500, seed) + vectors(10, 500, seed + 1, scale=0.5)
    rng = np.random.default_rng(seed)
    corrupt = int(rng.integers(10))
    changed = {"noise": 5 * vectors(1, 500, seed + 2)[0], "scaled": 100 * values[corrupt], "turned": -values[corrupt]}
    values[corrupt] = changed[kind]
    _, shares = run(part("dos"), values)
    assert min(shares, key=shares.get) == NAMES[corrupt]
    assert shares[NAMES[corrupt]] < 1e-2


#: All robust rules, also those around another aggregation.
ALL = [((name, options),) for name, options in RULES.items()] + [
    (("norm_bound", {}),), (("norm_bound", {"bound": 0.5}), ("loss_weights", {})),
]  # fmt: skip


@pytest.mark.parametrize("rule", ALL, ids=lambda named: named[0][0] + ("" if len(named) == 1 else " around another"))
@pytest.mark.parametrize("false", [1e6, 1e30, -1e6, -3e38])
@SMALL
@given(seed=st.integers(0, 10**6))
def test_false_statistics_of_a_site_with_honest_weights_do_nothing(rule, false, seed):
    """One of twelve says that its running variances are something else; the others' are between 0.5 and 2."""
    rng = np.random.default_rng(seed)
    weights, statistics = vectors(12, 20, seed, 0.1), torch.from_numpy(rng.uniform(0.5, 2.0, (12, 6))).float()
    corrupt = int(rng.integers(12))
    honest = statistics[[site for site in range(12) if site != corrupt]]
    statistics[corrupt] = false
    weights[corrupt] = weights[0]  # not even the farthest
    values = torch.cat([weights, statistics], dim=1)
    sent = [Sent(name, value, 1.0, {"end_loss": 0.01 if name == NAMES[corrupt] else 1.0})
            for name, value in zip(NAMES, values, strict=False)]  # fmt: skip
    found = play(Rule(*rule), sent, trainable=20)[20:]
    assert (found >= honest.min(dim=0).values).all()
    assert (found <= honest.max(dim=0).values).all()


def test_statistics_are_the_median_over_all_sites_where_weights_are_chosen():
    """Of 50, 60, 0, 20, 0 that is 20, whichever site Krum takes. The last number is a statistic and no distance."""
    states = [(0.0, 50.0), (1.0, 60.0), (3.0, 0.0), (7.0, 20.0), (100.0, 0.0)]
    assert run(part("krum", corrupt=1), states, trainable=1)[0].tolist() == [1.0, 20.0]
    states[3] = (7.0, 0.0)  # as weights, these would make the third site the closest of all
    assert run(part("krum", corrupt=1), states)[0].tolist() == [3.0, 0.0]


def test_statistics_are_trimmed_where_weights_are():
    """Of 50, 60, 0, 20, 9 without 60 and 0: 79 / 3; of four sites the median is a mean of two."""
    states = [(0.0, 50.0), (1.0, 60.0), (3.0, 0.0), (7.0, 20.0), (100.0, 9.0)]
    close(run(part("trimmed_mean", trim=1), states, trainable=1)[0], [11 / 3, 79 / 3])
    assert run(part("median"), states[:4], trainable=1)[0].tolist() == [2.0, 35.0]


# Against others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_is_the_least_sum_of_distances(seed):
    rng = np.random.default_rng(seed)
    values, weights = vectors(9, 6, seed), rng.uniform(0.5, 2, 9)
    shares = weights / weights.sum()
    values[0] *= 30
    result, _ = run(
        part("geometric_median", tolerance=1e-10, smoothing=1e-9), values, start=rng.normal(size=6),
        weights=weights.tolist(),
    )  # fmt: skip

    def objective(point):
        return float(shares @ np.linalg.norm(values.double().numpy() - point, axis=1))

    def gradient(point):
        away = point - values.double().numpy()
        return shares @ (away / np.linalg.norm(away, axis=1, keepdims=True))

    best = scipy.optimize.minimize(objective, values[1:].mean(dim=0).numpy(), jac=gradient, options={"gtol": 1e-8})
    assert objective(result.double().numpy()) <= best.fun * (1 + 1e-10)
    close(result, best.x, 1e-4)


def reference_copod(observations):
    """COPOD with one comparison of a value with all others at a time."""
    count = len(observations)
    scores = np.zeros(count)
    for column in observations.T:
        skewness = np.sign(scipy.stats.skew(column)) if np.ptp(column) else 0
        for row, value in enumerate(column):
            left, right = (-math.log(sum(tail) / count) for tail in (column <= value, column >= value))
            skewed = {-1: left, 0: left + right, 1: right}[int(skewness)]
            scores[row] += max(skewed, (left + right) / 2)
    return scores


@SMALL
@given(st.integers(2, 15), st.integers(1, 8), st.integers(0, 10**6))
def test_copod_is_what_it_says(rows, columns, seed):
    rng = np.random.default_rng(seed)
    observations = np.hstack([rng.normal(size=(rows, columns)), rng.integers(0, 3, (rows, columns)) ** 2])
    np.testing.assert_allclose(copod(torch.from_numpy(observations)), reference_copod(observations), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_copod_is_pyods(seed):
    models = pytest.importorskip("pyod.models.copod")
    rng = np.random.default_rng(seed)
    observations = np.hstack([rng.normal(size=(16, 5)), rng.integers(0, 3, (16, 5)) ** 2.0, np.full((16, 1), 0.1)])
    theirs = models.COPOD().fit(observations).decision_scores_
    np.testing.assert_allclose(copod(torch.from_numpy(observations)), theirs, rtol=1e-12)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "sites", "needed"),
    [
        ("trimmed_mean", {"trim": 2}, 4, 5),
        ("krum", {"corrupt": 1}, 4, 5),
        ("multi_krum", {"corrupt": 1, "keep": 7}, 6, 7),
        ("bulyan", {"corrupt": 1}, 6, 7),
    ],
)
def test_too_few_sites_are_an_error_that_says_how_many_there_are(name, options, sites, needed):
    with pytest.raises(SiteError, match=rf"P402 .*at least {needed} sites; {sites} answered.* smaller"):
        run(part(name, **options), vectors(sites, 5))
    run(part(name, **options), vectors(needed, 5))


def test_fltrust_needs_its_trusted_site():
    with pytest.raises(StudyError, match=r"P103 fltrust is to trust 'site7', which is no site.* Did you mean 'site07'"):
        run(part("fltrust", trusted="site7"), vectors(9, 5))
    rule = part("fltrust", trusted="site01")
    rule.begin(torch.zeros(2), torch.zeros(0), {"site00": 1.0, "site01": 1.0}, number=4)
    rule.take("site00", torch.ones(2), torch.zeros(0), 1.0, {})
    with pytest.raises(SiteError, match=r"P402 fltrust goes by .* site01, which did not answer in round 5"):
        rule.finish()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trimmed_mean", {"trim": -1}),
        ("trimmed_mean", {"trim": 0.5}),
        ("krum", {"corrupt": -1}),
        ("multi_krum", {"keep": 0}),
        ("geometric_median", {"smoothing": 0}),
        ("fltrust", {}),
        ("norm_bound", {"bound": 0}),
        ("norm_bound", {"bound": "mean"}),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options):
    with pytest.raises(PolyclinicError, match="P102"):
        part(name, **options)


def test_a_trusted_site_that_changed_nothing_lets_nothing_change():
    states: list[Tensor] = [torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0])]
    result, shares = run(part("fltrust", trusted="site01"), states, start=(1.0, 1.0))
    assert result.tolist() == [1.0, 1.0]
    assert shares == {"site00": 0.0, "site01": 1.0}
