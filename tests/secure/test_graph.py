"""Who has masks in common: numbers of the graph against independent tails, and what an adversary can cut off."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from scipy.stats import hypergeom

from polyclinic.errors import StudyError
from polyclinic.secure import Shape, fit_shape
from polyclinic.secure.graph import COMPLETE_UP_TO, Graph, tail


@pytest.mark.parametrize(("sites", "threshold"), [(2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (12, 9), (30, 21)])
def test_few_sites_are_all_neighbours_and_more_than_two_thirds_must_be_left(sites, threshold):
    assert fit_shape(sites) == Shape(sites, sites - 1, threshold, threshold)
    assert 3 * threshold > 2 * sites


@pytest.mark.parametrize(("sites", "threshold"), [(4, 2), (5, 2), (6, 3), (7, 3), (7, 8), (7, 0)])
def test_thresholds_of_half_of_the_sites_or_fewer_are_refused(sites, threshold):
    with pytest.raises(
        StudyError, match=f"threshold of a secure sum is {threshold}; expected more than half of"
    ) as caught:
        fit_shape(sites, threshold=threshold)
    assert "would get both of its secrets" in str(caught.value)
    assert fit_shape(sites, threshold=sites // 2 + 1).agreement == sites // 2 + 1


@pytest.mark.parametrize(
    "numbers", [(1, 0, 1, 1), (40, 39, 30, 20), (40, 7, 5, 30), (40, 40, 30, 30), (40, 0, 1, 30), (40, 8, 4, 30)]
)
def test_shapes_that_can_not_be_are_refused(numbers):
    with pytest.raises(StudyError):
        Shape(*numbers)


@pytest.mark.parametrize("case", itertools.product((5, 12), (0, 3, 5), (0, 2, 4, 5), (-1, 0, 2, 4, 6)))
def test_tails_are_those_of_the_hypergeometric_distribution(case):
    population, marked, drawn, least = case
    share = tail(population, marked, drawn, least) / tail(population, marked, drawn, 0)
    assert share == pytest.approx(hypergeom.sf(least - 1, population, marked, drawn), abs=1e-12)


def log_tail(population, marked, drawn, least):
    return hypergeom.logsf(least - 1, population, marked, drawn) / np.log(2)


def holds(sites, missing, bad, degree, threshold, security):
    """The three conditions, by scipy's logarithms."""
    honest, left = sites - bad, sites - missing
    apart = np.log2(sites * (sites - 1) / 2) + log_tail(sites, bad, degree, degree - missing)
    known = np.log2(honest) + log_tail(sites - 1, bad, degree, threshold)
    kept = np.log2(left) + hypergeom.logcdf(threshold - 2, sites - 1, left - 1, degree) / np.log(2)
    gone = np.log2(missing) + hypergeom.logcdf(threshold - 1, sites - 1, left, degree) / np.log(2)
    return max(apart, known) <= -security - 1 and np.logaddexp2(kept, gone) <= -30 and 2 * threshold > degree + 1


SPARSE = [(40, 0.1, 0.1), (60, 0.2, 0.1), (100, 0.1, 0.3), (200, 0.2, 0.1), (300, 0.3, 0.2)]


@pytest.mark.parametrize(
    ("sites", "dropout", "corrupt", "security"),
    [*((*one, security) for one in SPARSE for security in (40, 100)), (60, 0.05, 0.4, 27)],
)
def test_the_graph_is_the_sparsest_that_holds(sites, dropout, corrupt, security):
    shape = fit_shape(sites, dropout=dropout, corrupt=corrupt, security=security)
    missing, bad = round(dropout * sites), round(corrupt * sites)
    assert shape.agreement == sites - missing
    assert 2 * shape.agreement > sites + bad
    assert not shape.complete
    assert holds(sites, missing, bad, shape.degree, shape.threshold, security)
    assert not holds(sites, missing, bad, shape.degree, shape.threshold - 1, security)
    sparser = shape.degree - 2
    assert not any(holds(sites, missing, bad, sparser, t, security) for t in range(1, sparser + 2))


def test_the_defaults_for_many_sites():
    assert fit_shape(COMPLETE_UP_TO).complete
    assert fit_shape(COMPLETE_UP_TO + 1).degree < COMPLETE_UP_TO
    assert [fit_shape(sites).degree for sites in (31, 60, 200, 1000)] == [12, 24, 62, 286]


def test_what_no_graph_holds_against_is_refused_with_numbers():
    sentence = r"Of 100 sites 40 may drop out \(0.4\) and 20 may be corrupt \(0.2\): 60 are left, and 61 are needed"
    with pytest.raises(StudyError, match=sentence) as caught:
        fit_shape(100, dropout=0.4, corrupt=0.2)
    assert caught.value.code == "P102"
    assert fit_shape(100, dropout=0.39, corrupt=0.2).agreement == 61


def test_where_no_sparse_graph_holds_it_is_complete():
    assert fit_shape(101, dropout=0.5, corrupt=0) == Shape(101, 100, 51, 51)


@pytest.mark.parametrize(
    "given_", [{"threshold": 30}, {"dropout": -0.1}, {"dropout": 1.0}, {"corrupt": 1.5}, {"security": 0}]
)
def test_other_numbers_are_refused(given_):
    with pytest.raises(StudyError):
        fit_shape(50, **given_)


def links(graph, sites):
    found = np.zeros((sites, sites), dtype=bool)
    for site in range(sites):
        found[site, graph.neighbours(site)] = True
    return found


@settings(max_examples=40)
@given(st.integers(5, 40), st.integers(1, 8), st.binary(min_size=32, max_size=32), st.data())
def test_the_graph_is_regular_mutual_and_says_what_is_connected(sites, half, seed, data):
    degree = min(2 * half, (sites - 2) // 2 * 2)
    graph = Graph(Shape(sites, degree, degree, sites), seed)
    found = links(graph, sites)
    assert (found == found.T).all()
    assert (found.sum(0) == degree).all()
    assert not found.diagonal().any()
    assert (links(Graph(graph.shape, seed), sites) == found).all()
    left = sorted(data.draw(st.sets(st.integers(0, sites - 1), min_size=1)))
    count, _ = connected_components(found[np.ix_(left, left)])
    assert graph.connected(left) == (count == 1)


def test_the_order_is_uniform_and_depends_on_the_seed():
    shape = Shape(7, 2, 2, 7)
    seen = np.zeros((7, 7))
    for number in range(4000):
        seen += links(Graph(shape, number.to_bytes(32, "little")), 7)
    others = seen[~np.eye(7, dtype=bool)]
    assert np.abs(others / 4000 - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 4000)


def test_a_complete_graph_does_not_depend_on_the_seed():
    graph = Graph(Shape(5, 4, 4, 4), b"seed")
    assert graph.neighbours(2) == [0, 1, 3, 4]
    assert graph.connected([1])


@pytest.mark.parametrize(("sites", "missing", "bad", "degree"), [(40, 4, 12, 14), (60, 6, 18, 20)])
def test_an_adversary_that_chooses_who_drops_out_succeeds_as_seldom_as_said(sites, missing, bad, degree):
    """Random orders; the server drops out whom it likes, knows who is corrupt, and wants honest sites apart."""
    bound = sites * (sites - 1) / 2 * hypergeom.sf(degree - missing - 1, sites, bad, degree)
    assert bound < 0.2
    draw, successes, tries, half = np.random.default_rng(1), 0, 4000, degree // 2
    for _ in range(tries):
        honest = np.ones(sites, dtype=int)
        honest[draw.choice(sites, bad, replace=False)] = 0
        needed = np.convolve(np.r_[honest, honest[: half - 1]], np.ones(half, dtype=int), "valid")
        pairs = (
            needed[first] + needed[second]
            for first in range(sites)
            for second in range(first + half, min(sites, first + sites - half + 1))
        )
        successes += min(pairs) <= missing
    assert 0 < successes / tries <= bound
