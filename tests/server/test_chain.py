"""The chain of parts at the server: without one that does anything it is the mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.parts import Now, ServerEnd, Step
from polyclinic.server.chain import Chain
from polyclinic.server.mean import Mean


def played(chain, start, statistics, ended, weights):
    """The state that comes of sites that ended with these weights and statistics ``[K, Q]``."""
    size = len(start)
    chain.begin(Now(0, 5, 0.1, start, statistics, sum(weights), {}))
    for number, (state, weight) in enumerate(zip(ended, weights, strict=True)):
        chain.take(f"site {number}", {"change": state[:size] - start, "statistics": state[size:]}, weight)
    return chain.finish()


@given(
    st.lists(st.floats(0.1, 1000), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3),
    st.integers(0, 99),
)  # fmt: skip
def test_parts_that_do_nothing_leave_the_mean_of_the_states(weights, size, statistics, place, seed):
    source = torch.Generator().manual_seed(seed)
    start = 100 * torch.randn(size + statistics, generator=source)
    ended = start + torch.randn(len(weights), size + statistics, generator=source)
    ends = {f"idle {number}": ServerEnd() for number in range(3)}
    names = list(ends)
    names.insert(place, "mean")
    chain = Chain({name: Mean() if name == "mean" else ends[name] for name in names})
    result = played(chain, start[:size], start[size:], ended, weights)
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    expected = (share[:, None] * ended.double()).sum(0).float()
    torch.testing.assert_close(result.state, expected, rtol=1e-5, atol=1e-4)
    assert result.shares == pytest.approx({f"site {number}": float(own) for number, own in enumerate(share)})
    alone = played(Chain({}), start[:size], start[size:], ended, weights)
    assert torch.equal(alone.state, result.state), "the mean needs no name"


def test_a_chain_without_updates_gives_nothing():
    chain = Chain({})
    chain.begin(Now(0, 1, 0.1, torch.ones(2), torch.zeros(0), 1.0))
    assert chain.finish() is None


def test_two_aggregations_are_refused():
    with pytest.raises(ValueError, match="one aggregation"):
        Chain({"mean": Mean(), "other": Mean()})


def test_steps_pass_the_parts_in_their_order():
    """(1 + 1) · 3 = 6, and the other way round 1 · 3 + 1 = 4."""

    class Adding(ServerEnd):
        def finish(self, step):
            return Step(step.change + 1, step.statistics, step.shares)

    class Tripling(ServerEnd):
        def finish(self, step):
            return Step(step.change * 3, step.statistics, step.shares)

    for ends, expected in (({"a": Adding(), "b": Tripling()}, 6.0), ({"b": Tripling(), "a": Adding()}, 4.0)):
        found = played(Chain(ends), torch.tensor([10.0]), torch.zeros(0), torch.tensor([[11.0]]), [2.0])
        assert found.state.tolist() == [10.0 + expected]
