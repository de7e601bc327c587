import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from polyclinic.data.scaling import merge, summarise
from polyclinic.data.statistics import (
    LEAST_CASES,
    Sketch,
    agreed_edges,
    merge_sketches,
    sketch,
    withhold,
    withhold_counts,
)

NAN = float("nan")
EDGES = torch.tensor([[-torch.inf, 0.0, 1.0, 2.0, 3.0, torch.inf]], dtype=torch.float64)


def of(*values: float, least: int = 2, edges: torch.Tensor = EDGES) -> Sketch:
    return sketch(torch.tensor(values)[:, None], torch.arange(len(values)), edges, least)


# Counts and moments -------------------------------------------------------------------------------------------------


def test_a_summary_of_few_values_says_nothing():
    table = torch.tensor([[1.0, NAN], [2.0, 5.0], [6.0, NAN]])
    found = withhold(summarise(table, torch.arange(3)), least=2)
    assert [part.tolist() for part in (found.count, found.mean, found.m2)] == [[3, 0], [3, 0], [14, 0]]


def test_what_is_held_back_is_not_in_the_total():
    sites = [torch.arange(12.0)[:, None], torch.tensor([[100.0], [200.0]])]
    shared = [withhold(summarise(values, torch.arange(len(values)))) for values in sites]
    for name, tensor in merge(shared).to_tensors().items():
        assert torch.equal(tensor, shared[0].to_tensors()[name])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([40, 30], [40, 30]),
        ([40, 0], [40, 0]),
        ([40, 3, 12, 0], [40, None, None, 0]),  # 3 alone would follow from the total
        ([40, 3, 4], [40, None, None]),  # together 7
        ([40, 1, 1, 8], [40, None, None, None]),  # together 2: each would be known to be 1
        ([2, 0], [None, None]),
        ([3], [None]),
        ([], []),
    ],
)
def test_small_counts_are_held_back_so_that_the_total_gives_none_back(counts, expected):
    assert withhold_counts(counts) == expected


@given(st.lists(st.integers(0, 20), max_size=8))
def test_counts_that_are_told_are_right_and_large_enough(counts):
    told = withhold_counts(counts)
    assert all(one is None or one == count for one, count in zip(told, counts, strict=True))
    assert all(one is None or one == 0 or one >= LEAST_CASES for one in told)
    hidden = [count for one, count in zip(told, counts, strict=True) if one is None]
    if sum(counts) >= LEAST_CASES and len([count for count in counts if count]) > 1:
        assert not hidden or (len(hidden) > 1 and sum(hidden) >= LEAST_CASES)


# Sketches ------------------------------------------------------------------------------------------------------------


def test_sketch_by_hand():
    #        below 0 | 0 to 1    | 1 to 2 | 2 to 3   | above
    one = of(-5.0, -4.0, 0.5, 1.0, 1.5, 1.7, 2.5, 9.0, 9.0)
    # A single value from 0 to 1 and from 2 to 3: these cells are joined with the next.
    np.testing.assert_array_equal(one.rank, [[0, 2, NAN, 6, NAN, 9]])
    assert one.count.tolist() == [9]
    assert one.histogram().tolist() == [[2, 2, 2, 1.5, 1.5]]
    assert one.quantiles([0.5]).tolist() == [[1 + 0.5 / 2]]  # rank 4.5 lies half a case above the 4 at edge 1


def test_what_is_left_at_the_end_is_joined_too():
    np.testing.assert_array_equal(of(0.1, 0.2, 0.3, 2.5).rank, [[0, 0, NAN, NAN, 4, 4]])
    np.testing.assert_array_equal(of(0.1).rank, [[NAN] * 6])
    assert of(0.1).count.tolist() == [0]
    assert of(0.1).quantiles([0.5]).isnan().all()


def test_merged_by_hand():
    merged = merge_sketches([of(0.1, 0.2, 0.3, 2.5), of(0.5, 0.5, 2.1, 2.2), of(0.1)])
    np.testing.assert_allclose(merged.rank, [[0, 0, 4 / 3 + 2, 8 / 3 + 2, 4 + 4, 8]])
    np.testing.assert_allclose(merged.slack, [[0, 0, 4, 4, 0, 0]])
    assert merged.count.tolist() == [8]


def test_sketches_of_different_grids():
    with pytest.raises(ValueError, match="different grids"):
        merge_sketches([of(0.1, 0.2), of(0.1, 0.2, edges=EDGES + 1)])


def test_the_grid_covers_the_mean_and_the_deviations():
    values = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    edges = agreed_edges(summarise(values, torch.arange(2)), cells=4, reach=2.0)
    assert edges[0].tolist() == [-torch.inf, 0, 1, 2, 3, 4, torch.inf]
    assert (edges[1, 2:-1] > edges[1, 1:-2]).all()
    np.testing.assert_allclose(edges[1, 1:-1], 4, atol=1e-4)


FEDERATION = st.lists(
    arrays(np.float32, st.integers(0, 60), elements=st.floats(-50, 50, width=32) | st.just(np.float32("nan"))),
    min_size=1, max_size=4,
)  # fmt: skip


@given(FEDERATION)
def test_ranks_and_quantiles_are_within_the_stated_error(sites):
    tables = [torch.from_numpy(values)[:, None] for values in sites]
    edges = agreed_edges(merge([summarise(table, torch.arange(len(table))) for table in tables]))
    shared = [sketch(table, torch.arange(len(table)), edges) for table in tables]
    for one in shared:
        told = one.rank[0][~one.rank[0].isnan()].diff()
        assert ((told == 0) | (told >= LEAST_CASES)).all(), "a cell has too few values"
    merged = merge_sketches([Sketch.from_tensors(one.to_tensors(), edges) for one in shared])
    kept = [values[~np.isnan(values)] for values, one in zip(sites, shared, strict=True) if one.count[0] > 0]
    values = np.sort(np.concatenate(kept)) if kept else np.empty(0)
    assert merged.count[0] == len(values)
    if not len(values):
        return
    true = np.searchsorted(values.astype(np.float64), edges[0].numpy(), side="left")
    error = np.abs(merged.rank[0].numpy() - true)
    slack = merged.slack[0].numpy()
    assert ((error < slack) | (error < 1e-9)).all()
    exact = np.flatnonzero(np.all([~np.isnan(one.rank[0].numpy()) for one in shared if one.count[0] > 0], axis=0))
    for share, found in zip((0.25, 0.5, 0.9), merged.quantiles([0.25, 0.5, 0.9])[0].tolist(), strict=True):
        wanted = share * len(values)
        upper = next(place for place in exact if true[place] >= wanted)
        lower = max(place for place in exact if true[place] < wanted)
        low, high = edges[0, lower].item(), edges[0, upper].item()
        assert max(low, edges[0, 1].item()) - 1e-9 <= found <= min(high, edges[0, -2].item()) + 1e-9
        truth = values[int(np.ceil(wanted)) - 1]
        assert low <= truth <= high


@given(FEDERATION)
def test_merging_is_the_same_in_any_grouping(sites):
    tables = [torch.from_numpy(values)[:, None] for values in sites]
    edges = torch.cat([EDGES[:, :1], torch.linspace(-50, 50, 40, dtype=torch.float64)[None], EDGES[:, -1:]], dim=1)
    shared = [sketch(table, torch.arange(len(table)), edges) for table in tables]
    at_once = merge_sketches(shared)
    in_turn = merge_sketches(shared[:1])
    for one in shared[1:]:
        in_turn = merge_sketches([in_turn, one])
    torch.testing.assert_close(in_turn.rank, at_once.rank)
    torch.testing.assert_close(in_turn.slack, at_once.slack)


def test_quantiles_of_many_sites_are_close():
    rng = np.random.default_rng(0)
    values = [rng.gamma(2.0, 3.0, size=(size, 2)) for size in (30, 80, 400, 1000)]
    tables = [torch.from_numpy(table) for table in values]
    edges = agreed_edges(merge([summarise(table, torch.arange(len(table))) for table in tables]))
    merged = merge_sketches([sketch(table, torch.arange(len(table)), edges) for table in tables])
    expected = np.quantile(np.concatenate(values), [0.1, 0.5, 0.9], axis=0).T
    np.testing.assert_allclose(merged.quantiles([0.1, 0.5, 0.9]), expected, atol=0.35)
