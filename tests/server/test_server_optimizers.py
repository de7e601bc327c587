"""The mean, server optimisers and FedNova's normalisation: numbers worked by hand, and PyTorch's own optimisers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyclinic.errors import PolyclinicError
from polyclinic.options import check_options
from polyclinic.parts import SERVER_PARTS
from polyclinic.parts.measures import PATH, Measuring
from server_exchange import Rule, Sent, away_from_zero, close, play, rule, update

OPTIMIZERS = ["fedavgm", "fedadam", "fedyogi", "fedadagrad"]
CHANGES = [(1.0, -2.0), (0.5, 0.5)]


def steps(part, changes):
    """Steps of the two weights in rounds in which one site changes them by ``changes`` and sets the statistic to 7."""
    found = []
    for change in changes:
        step = play(part, [update("Aachen", [*change, 7.0], 3.0)], trainable=2)
        assert step[2] == 7.0, "statistics are as aggregated"
        found.append(step[:2])
    return found


# Server optimisers ----------------------------------------------------------------------------------------------------


def test_fedavgm_by_hand():
    """v = (1, -2), then 0.9 v + (0.5, 0.5) = (1.4, -1.3); steps of 0.5 v."""
    first, second = steps(rule("fedavgm", lr=0.5, momentum=0.9), CHANGES)
    close(first, [0.5, -1.0])
    close(second, [0.7, -0.65])


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("fedadam", lambda v, square: 0.99 * v + 0.01 * square),
        ("fedyogi", lambda v, square: v - 0.01 * square * math.copysign(1, v - square)),
        ("fedadagrad", lambda v, square: v + square),
    ],
)
def test_adaptive_rules_by_hand(name, moment):
    """m = 0.9 m + 0.1 Δ, v by its rule of Δ² (not m²) from τ² = 0.01, step 0.1 m / (√v + 0.1)."""
    options = {} if name == "fedadagrad" else {"beta2": 0.99}
    found = steps(rule(name, lr=0.1, beta1=0.9, tau=0.1, **options), CHANGES)
    for coordinate in (0, 1):
        m, v = 0.0, 0.01
        for change, step in zip(CHANGES, found, strict=True):
            m = 0.9 * m + 0.1 * change[coordinate]
            v = moment(v, change[coordinate] ** 2)
            close(step[coordinate], 0.1 * m / (math.sqrt(v) + 0.1))


def test_the_first_step_of_fedadam_in_figures():
    """Δ = (1, -2): m = (0.1, -0.2), v = (0.0199, 0.0499), so 0.1 m / (√v + 0.1) = (0.041482, -0.061846)."""
    (first,) = steps(rule("fedadam", lr=0.1, beta1=0.9, beta2=0.99, tau=0.1), CHANGES[:1])
    close(first, [0.0414822, -0.0618462])


def test_the_second_moment_is_of_the_mean_and_not_the_mean_of_squares():
    """Changes 3 and -1 of sites with weights 1 and 3 have the mean 0: the step is 0, and v decays from τ² alone."""
    part = rule("fedadam", tau=0.1, beta2=0.5)
    assert play(part, [update("A", [3.0], 1.0), update("B", [-1.0], 3.0)]).tolist() == [0.0]
    close(part.memory()["fedadam/root"], [math.sqrt(0.005)])


def moments(name, changes, lr, beta1, beta2, tau):
    """Steps of one weight by the formulas, in numbers that hold the squares of any float32."""
    m, v, found = 0.0, tau**2, []
    for change in changes:
        m = beta1 * m + (1 - beta1) * change
        square = change**2
        if name == "fedyogi":
            v -= (1 - beta2) * square * ((v > square) - (v < square))
        else:
            v = beta2 * v + (1 - beta2) * square if name == "fedadam" else v + square
        found.append(lr * m / (math.sqrt(v) + tau))
    return found


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
@pytest.mark.parametrize("size", [2e-30, 1e-12, 1.0, 1e15, 1e20, 1e30])
@pytest.mark.parametrize("tau", [1e-30, 1e-3])
def test_adaptive_rules_hold_changes_of_any_size(name, size, tau):
    """The square of 1e20 is more than float32 can say, that of 2e-30 less: neither freezes a weight or makes it NaN."""
    if size / tau > 1e38:  # the formulas' own step
        return
    options = {} if name == "fedadagrad" else {"beta2": 0.99}
    changes = [float(torch.tensor(size * factor)) for factor in (1.0, -3.0, 0.001, 2.0)]
    found = steps(rule(name, lr=0.01, beta1=0.9, tau=tau, **options), [(change, 0.0) for change in changes])
    expected = moments(name, changes, 0.01, 0.9, 0.99, tau)
    assert [float(step[0]) for step in found] == pytest.approx(expected, rel=1e-5)
    assert [float(step[1]) for step in found] == [0.0] * 4


def test_yogis_moment_falls_after_a_large_change_and_stays_where_it_equals_the_square():
    part = rule("fedyogi", beta2=0.75, tau=0.5)
    for change, expected in ((0.5, 0.5), (4.0, math.sqrt(0.25 + 4)), (1.0, math.sqrt(4.25 - 0.25))):
        steps(part, [(change, change)])
        close(part.memory()["fedyogi/root"], [expected] * 2)


def test_a_tau_that_float32_has_not_is_refused():
    with pytest.raises(PolyclinicError, match="got 1e-40; expected a number of at least 1e-30"):
        check_options(SERVER_PARTS["fedadam"], {"tau": 1e-40}, (), "fedadam")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rule_goes_on_from_its_memory(name):
    unbroken = steps(rule(name), [*CHANGES, (0.1, 0.2)])
    part, again = rule(name), rule(name)
    steps(part, CHANGES)
    again.restore({key: value.clone() for key, value in part.memory().items()})
    assert part.memory()
    (last,) = steps(again, [(0.1, 0.2)])
    assert torch.equal(last, unbroken[-1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_round_that_is_given_up_leaves_the_memory(name):
    part = rule(name)
    steps(part, CHANGES)
    before = {key: value.clone() for key, value in part.memory().items()}
    part.begin(away_from_zero(2), torch.zeros(1), {"Aachen": 1.0})
    part.take("Aachen", torch.tensor([9.0, 9.0]), torch.zeros(1), 1.0, {})
    assert all(torch.equal(part.memory()[key], value) for key, value in before.items())


def against_torch(part, optimizer, parameter):
    """Both see the same ten pseudo-gradients."""
    generator = torch.Generator().manual_seed(1)
    moved = torch.zeros(4, dtype=torch.float64)
    for _ in range(10):
        change = torch.randn(4, generator=generator)
        moved += play(part, [Sent("Aachen", change, 1.0, {})])
        parameter.grad = -change
        optimizer.step()
    close(moved, parameter.detach(), 1e-5)


def test_fedavgm_is_pytorchs_sgd_with_momentum():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=0.3, momentum=0.8, dampening=0)
    against_torch(rule("fedavgm", lr=0.3, momentum=0.8), optimizer, parameter)


def test_fedadagrad_is_pytorchs_adagrad_started_at_tau_squared():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adagrad([parameter], lr=0.3, eps=0.05, initial_accumulator_value=0.05**2)
    against_torch(rule("fedadagrad", lr=0.3, tau=0.05), optimizer, parameter)


def test_fedadam_without_its_first_moment_is_pytorchs_rmsprop_started_at_tau_squared():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.RMSprop([parameter], lr=0.1, alpha=0.95, eps=0.05)
    optimizer.state[parameter] = {"step": torch.tensor(0.0), "square_avg": torch.full((4,), 0.05**2)}
    against_torch(rule("fedadam", lr=0.1, beta1=0.0, beta2=0.95, tau=0.05), optimizer, parameter)


# The mean -------------------------------------------------------------------------------------------------------------


def test_the_mean_of_one_site_is_its_change_to_the_bit():
    change = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(play(rule("mean"), [Sent("Aachen", change, 17.0, {})], trainable=90), change)


def test_the_mean_is_over_the_sites_that_answered():
    """Sites with a weight of 10 together were asked; two of 3 and 1 answered."""
    part = rule("mean")
    part.begin(torch.tensor([10.0]), torch.tensor([0.0]), {"Aachen": 3.0, "Bonn": 1.0, "Celle": 6.0})
    part.take("Aachen", torch.tensor([1.0]), torch.tensor([2.0]), 3.0, {})
    part.take("Bonn", torch.tensor([5.0]), torch.tensor([6.0]), 1.0, {})
    close(part.finish(), [12.0, 3.0])
    assert part.shares == {"Aachen": 0.75, "Bonn": 0.25}


@pytest.mark.parametrize("name", ["mean", *OPTIMIZERS])
def test_what_a_chain_is_given_is_left_alone(name):
    """`play` looks after each round; here for rounds that follow each other."""
    part, generator = rule(name), torch.Generator().manual_seed(2)
    for _ in range(3):
        rows = [Sent(site, torch.randn(5, generator=generator), 1.0, {}) for site in ("Aachen", "Bonn")]
        play(part, rows, trainable=3)


# Normalisation by the path --------------------------------------------------------------------------------------------


def test_normalised_by_hand():
    """A (weight 1, path 2) moves by (2, 0), B (weight 3, path 4) by (0, 4): d_A = (1, 0), d_B = (0, 1). Their mean is
    (0.25, 0.75), the mean path 0.25 · 2 + 0.75 · 4 = 3.5: (0.875, 2.625). Statistics: plain mean."""
    updates = [update("A", [2.0, 0.0, 4.0], 1.0, path=2.0), update("B", [0.0, 4.0, 8.0], 3.0, path=4.0)]
    close(play(rule("normalised"), updates, trainable=2), [0.875, 2.625, 7.0])


def test_normalised_asks_for_the_path():
    part = rule("normalised").parts["normalised"]
    measuring = part.at_site()
    assert isinstance(measuring, Measuring)
    assert measuring.names == ("path",)
    assert part.reveals == {"path": PATH}
    assert part.needs_sgd
    assert part.needs_each
    assert part.undoes


@given(path=st.floats(1e-3, 1e7), seed=st.integers(0, 10**6))
def test_normalised_with_equal_paths_is_fedavg(path, seed):
    """Also where a site takes very many steps: nothing is taken from the weights themselves, which are large."""
    changes = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 1e-3
    rows = [Sent(site, change, weight, {"path": path})
            for site, change, weight in zip("ABC", changes, (1.0, 2.0, 5.0), strict=True)]  # fmt: skip
    found, mean = play(rule("normalised"), rows, trainable=30), play(rule("mean"), rows, trainable=30)
    close(found[:30], mean[:30], 1e-6 * float(mean[:30].abs().max()))
    assert torch.equal(found[30:], mean[30:])


@pytest.mark.parametrize("path", [1.0, 16_000.0, 1e5, 1e7])
def test_normalised_keeps_its_digits_on_long_paths(path):
    """Paths p and 3 p of changes (1, 0) and (0, 6): directions (1, 0) / p and (0, 2) / p, and a mean path of 2 p."""
    updates = [update("A", [1.0, 0.0], path=path), update("B", [0.0, 6.0], path=3 * path)]
    close(play(rule("normalised"), updates), [1.0, 2.0], 3e-7)


def test_a_site_that_took_no_step_has_no_direction():
    updates = [update("A", [0.0, 0.0], path=0.0), update("B", [4.0, 2.0], path=4.0)]
    close(play(rule("normalised"), updates), [1.0, 0.5])  # half of (1, 1/2), times the mean path of 2


def test_a_chain_normalises_first_and_then_steps():
    """[normalised, fedavgm]: the server's step is taken with FedNova's change, not with the normalised one."""
    part = Rule(("normalised", {}), ("fedavgm", {"lr": 0.5, "momentum": 0.0}))
    updates = [update("A", [2.0], path=2.0), update("B", [12.0], path=4.0)]
    close(play(part, updates), [0.5 * 3 * (1 + 3) / 2])
