"""Rules that weigh sites by losses, gaps and contributions, against identities and numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.errors import StudyError, TrainingError
from polyclinic.parts.measures import MEASURES, PATH, STEPS, Measuring
from polyclinic.server.weights import carry_over, inverse, project_to_simplex
from server_exchange import away_from_zero, close, play, rule, update

RULES = [
    ("loss_weights", {}),
    ("fedcostwavg", {"alpha": 0.3}),
    ("fedpidavg", {"alpha": 1.0, "beta": 2.0, "gamma": 1.0}),
    ("qfedavg", {"q": 2.0}),
    ("propfair", {"baseline": 1.5}),
    ("afl", {"lr": 0.5}),
    ("feddg_ga", {"step": 0.4}),
    ("fedce", {"mode": "plus"}),
    ("fedce", {"mode": "times"}),
]
REMEMBERING = [which for which in RULES if which[0] in {"fedcostwavg", "fedpidavg", "afl", "feddg_ga", "fedce"}]
LOSSES = ("start_loss", "end_loss", "start_validation_loss", "end_validation_loss", "leave_one_out_loss")
#: Of sites that took one plain step.
ONE_STEP = {"steps": 1.0, "path": 1.0}


def same(loss):
    """All losses with the same value."""
    return dict.fromkeys(LOSSES, loss) | ONE_STEP


def shares(*values):
    return dict(zip("ABC", values, strict=False))


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), RULES)
def test_one_site_gives_its_state(name, options):
    part = rule(name, **options)
    for number in range(3):
        state = [0.3, -7.1, 2.5 + number]
        result = play(part, [update("A", state, 12, **same(0.4))], trainable=2, number=number, learning_rate=1e12)
        assert torch.equal(result, torch.tensor(state))
        assert part.shares == {"A": 1.0}


@pytest.mark.parametrize(("name", "options"), [which for which in RULES if which[0] != "qfedavg"])
def test_equal_sites_give_what_each_of_them_sent(name, options):
    part = rule(name, **options)
    for number in range(3):
        updates = [update(site, [0.3, -7.1, 2.5], 2, **same(0.4)) for site in "ABC"]
        close(play(part, updates, [1.0, 1.0, 1.0], number=number), [0.3, -7.1, 2.5])
        close(part.shares, shares(1 / 3, 1 / 3, 1 / 3))


def unequal(losses=(0.7, 0.7, 0.7)):
    states, weights = ([1.0, -2.0, 3.0], [-1.0, 4.0, 3.5], [0.1, 0.2, 0.3]), (3, 1, 2)
    return [update(*row, **same(loss)) for *row, loss in zip("ABC", states, weights, losses, strict=True)]


@pytest.mark.parametrize(
    ("name", "options", "losses"),
    [
        ("loss_weights", {}, (0.7, 0.7, 0.7)),
        ("fedcostwavg", {"alpha": 1.0}, (0.1, 0.9, 0.0)),
        ("fedpidavg", {"beta": 0.0, "gamma": 0.0}, (0.1, 0.9, 0.0)),
        ("fedpidavg", {"gamma": 0.0}, (0.1, 0.9, 0.0)),  # costs that never fall
        ("propfair", {"baseline": 1e12}, (0.1, 0.9, 0.0)),
        ("propfair", {"baseline": 1.0}, (0.7, 0.7, 0.7)),
        ("propfair", {"baseline": 0.2}, (0.1, 0.9, 0.0)),  # none is better than ε below it
        ("afl", {"lr": 0.0}, (0.1, 0.9, 0.0)),
    ],
)
def test_settings_that_are_fedavg(name, options, losses):
    part, mean = rule(name, **options), rule("mean")
    for number in range(3):
        close(play(part, unequal(losses), number=number), play(mean, unequal()))
        close(part.shares, mean.shares)


@pytest.mark.parametrize(
    ("name", "options", "losses"),
    [
        ("qfedavg", {"q": 0.0}, (0.1, 0.9, 0.0)),
        ("feddg_ga", {"step": 0.0}, (0.1, 0.9, 0.0)),
        ("feddg_ga", {"step": 0.5}, (0.7, 0.7, 0.7)),
    ],
)
def test_settings_that_are_the_mean_with_equal_weights(name, options, losses):
    part = rule(name, **options)
    for number in range(3):
        states = torch.stack([each.numbers for each in unequal()])
        close(play(part, unequal(losses), [9.0, 9.0, 9.0], number=number), states.mean(0))
        close(part.shares, shares(1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize(("name", "options"), RULES)
def test_losses_of_zero_give_numbers(name, options):
    part = rule(name, **options)
    for number in range(3):
        result = play(part, unequal((0.0, 0.0, 0.0)), [9.0, 9.0, 9.0], number=number)
        assert result.isfinite().all()
        assert sum(part.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_a_loss_that_is_not_a_number_names_the_site(name, options):
    part = rule(name, **options)
    with pytest.raises(TrainingError, match=r"P301.*of site B as a finite number; got nan"):
        play(part, unequal((0.1, math.nan, 0.3)))


@pytest.mark.parametrize("name", ["loss_weights", "fedcostwavg", "fedpidavg", "qfedavg"])
def test_negative_losses_are_refused_where_they_make_no_sense(name):
    with pytest.raises(StudyError, match=r"P104.*at least 0; site C reported -0\.3"):
        play(rule(name), unequal((0.1, 0.2, -0.3)))


@pytest.mark.parametrize("name", ["afl", "feddg_ga"])
def test_negative_losses_are_taken_where_only_differences_count(name):
    """A constant added to all losses changes nothing."""
    first, second = rule(name), rule(name)
    for number in range(3):
        losses = torch.tensor([0.5, 0.25, 1.0]) * (number + 1)
        play(first, unequal(losses.tolist()), number=number)
        play(second, unequal((losses - 8).tolist()), number=number)
    close(first.shares, second.shares)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_a_round_without_answers_changes_nothing(name, options):
    part = rule(name, **options)
    play(part, unequal())
    memory = {key: value.clone() for key, value in part.memory().items()}
    part.begin(away_from_zero(3), torch.zeros(0), shares(3, 1, 2), number=1)
    assert part.finish() is None
    assert part.memory().keys() == memory.keys()
    assert all(torch.equal(part.memory()[key], value) for key, value in memory.items())


@pytest.mark.parametrize(("name", "options"), RULES)
def test_a_round_that_is_given_up_is_not_remembered(name, options):
    """Nothing changes before the round is done."""
    part = rule(name, **options)
    play(part, unequal())
    memory = {key: value.clone() for key, value in part.memory().items()}
    part.begin(away_from_zero(3), torch.zeros(0), shares(3, 1, 2), number=1)
    for site, numbers, weight, facts in unequal((0.1, 0.2, 0.3)):
        part.take(site, numbers, torch.zeros(0), weight, facts)
    assert part.memory().keys() == memory.keys()
    assert all(torch.equal(part.memory()[key], value) for key, value in memory.items())


@pytest.mark.parametrize(("name", "options"), RULES)
def test_what_a_rule_reveals_is_what_its_end_at_a_site_measures(name, options):
    part = rule(name, **options).parts[name]
    measuring = part.at_site()
    assert isinstance(measuring, Measuring)
    assert set(measuring.names) == set(part.reveals) - {"leave_one_out"}
    for measured in measuring.names:
        expected = {"steps": STEPS, "path": PATH}.get(measured) or MEASURES[measured].reveals
        assert part.reveals[measured] == expected
    assert part.needs_each
    assert part.needs_sgd == (name == "qfedavg")


# Losses ---------------------------------------------------------------------------------------------------------------


def test_loss_weights_by_hand():
    part = rule("loss_weights")  # (1/4) / 1 and (3/4) / 2, so 2 to 3
    updates = [update("A", [10.0, 0.0], 1, end_loss=1.0), update("B", [0.0, 5.0], 3, end_loss=2.0)]
    close(play(part, updates), [4.0, 3.0])
    close(part.shares, shares(2 / 5, 3 / 5))


def test_loss_weights_sites_without_loss_take_all_in_proportion_to_their_cases():
    part = rule("loss_weights")
    play(
        part, [update(site, [1.0], n, end_loss=loss) for site, n, loss in zip("ABC", (1, 5, 3), (0, 2, 0), strict=True)]
    )
    close(part.shares, shares(1 / 4, 0, 3 / 4))


def cost_round(part, number, costs):
    sizes = {"A": 1, "B": 3}
    updates = [update(site, [float(site == "A")], sizes[site], end_loss=cost) for site, cost in costs.items()]
    play(part, updates, number=number, everyone=sizes)
    return part.shares


def test_fedcostwavg_by_hand():
    part = rule("fedcostwavg", alpha=0.5)
    close(cost_round(part, 0, shares(4, 2)), shares(1 / 4, 3 / 4))  # no earlier cost: FedAvg
    # Ratios 4/1 and 2/2, so shares 0.8 and 0.2.
    close(cost_round(part, 1, shares(1, 2)), shares((0.25 + 0.8) / 2, (0.75 + 0.2) / 2))
    # Ratios 1/2 and 2/0.5, so shares 1/9 and 8/9.
    close(cost_round(part, 2, shares(2, 0.5)), shares((1 / 4 + 1 / 9) / 2, (3 / 4 + 8 / 9) / 2))


def test_fedcostwavg_compares_with_the_last_round_of_the_site():
    part = rule("fedcostwavg", alpha=0.0)
    cost_round(part, 0, shares(6, 2))
    assert cost_round(part, 1, {"B": 1}) == {"B": 1.0}
    close(cost_round(part, 2, shares(3, 0.5)), shares(1 / 2, 1 / 2))  # 6/3 and 1/0.5


def test_fedcostwavg_a_new_site_counts_with_the_mean_ratio_and_a_cost_of_zero_takes_all():
    part = rule("fedcostwavg", alpha=0.0)
    cost_round(part, 0, {"A": 6})
    close(cost_round(part, 1, shares(3, 0.5)), shares(1 / 2, 1 / 2))
    close(cost_round(part, 2, shares(0, 0.1)), shares(1, 0))
    close(cost_round(part, 3, shares(0, 0)), shares(0, 1))  # 0 to 0 did not fall
    close(cost_round(part, 4, shares(0, 0)), shares(1 / 2, 1 / 2))


def fair(site, numbers, loss, weight=1.0, **way):
    return update(site, numbers, weight, start_loss=loss, **(ONE_STEP | way))


def test_qfedavg_by_hand():
    """Rate 1/2, so L = 2; with q = 1 the changes are 1·2·(1, 0) and 2·2·(0, 2), with h = 1·2² + 2·1 and 1·4² + 2·2."""
    part = rule("qfedavg", q=1.0)
    updates = [fair("A", [1.0, 0.0, 3.0], 1.0, 5), fair("B", [0.0, 2.0, 6.0], 2.0)]
    close(play(part, updates, trainable=2, learning_rate=0.5), [2 / 26, 8 / 26, 3 / 3 + 6 * 2 / 3])
    close(part.shares, shares(1 / 3, 2 / 3))


def test_qfedavg_steps_start_where_the_round_started():
    part = rule("qfedavg", q=2.0)
    # L = 1: changes 4·(2) and 1·(−1); h = 2·2·2² + 2² and 2·1·1² + 1².
    updates = [fair("A", [12.0], 2.0), fair("B", [9.0], 1.0)]
    close(play(part, updates, [10.0], learning_rate=1.0), [10 + (4 * 2 - 1) / (16 + 4 + 2 + 1)])


def algorithm_2(changes, losses, q, rate):
    """Li et al.: g_k = L (w − w_k) with L = 1 / rate, h_k = q F_k^{q−1} ‖g_k‖² + L F_k^q; −Σ F_k^q g_k / Σ h_k."""
    changes, losses = torch.tensor(changes).double(), torch.tensor(losses).double() + 1e-10
    gradients = -changes / rate
    deltas = losses[:, None] ** q * gradients
    h = q * losses ** (q - 1) * gradients.square().sum(1) + losses**q / rate
    return -deltas.sum(0) / h.sum()


@pytest.mark.parametrize("rate", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1.0, 40.0])
def test_qfedavg_goes_by_the_learning_rate_of_the_round_however_many_steps_there_are(rate, steps):
    """As in the authors' program, which takes the way of all local epochs for Δ and the local rate for 1 / L."""
    changes, losses = [[0.5, -0.1], [-0.3, 0.4], [0.0, 0.7]], [0.5, 2.0, 0.1]
    updates = [fair(*row, steps=steps, path=steps) for row in zip("ABC", changes, losses, strict=True)]
    found = play(rule("qfedavg", q=2.0), updates, learning_rate=rate)
    close(found, algorithm_2(changes, losses, 2.0, rate), 1e-6 * float(found.norm()))


def test_qfedavg_goes_by_the_length_of_steps_with_momentum():
    """Paths 15 and 5 of 4 and 1 steps: steps are four times as long as the rate of 0.1, so 1/L = 0.4."""
    changes, losses = [[0.5, -0.1], [-0.3, 0.4]], [0.5, 2.0]
    updates = [fair("A", changes[0], losses[0], steps=4.0, path=15.0), fair("B", changes[1], losses[1], path=5.0)]
    found = play(rule("qfedavg", q=1.0), updates, learning_rate=0.1)
    close(found, algorithm_2(changes, losses, 1.0, 0.4))


def test_qfedavg_at_the_end_of_a_schedule():
    """A rate of 0 changes nothing, and what was not changed stays."""
    updates = [fair("A", [0.0, 0.0], 2.0), fair("B", [0.0, 0.0], 1.0)]
    assert play(rule("qfedavg"), updates, learning_rate=0.0).tolist() == [0.0, 0.0]
    updates = [fair("A", [0.0, 0.0], 2.0, steps=0.0, path=0.0), fair("B", [0.0, 0.0], 1.0, steps=0.0, path=0.0)]
    assert play(rule("qfedavg"), updates, learning_rate=0.1).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("q", "loss"), [(0.5, 0.0), (1.0, 1e-30), (60.0, 1e-7), (60.0, 1e7)])
def test_qfedavg_powers_neither_vanish_nor_overflow(q, loss):
    part = rule("qfedavg", q=q)
    result = play(part, [fair("A", [1.0, 0.0], loss), fair("B", [0.0, 1.0], loss / 2)], learning_rate=0.01)
    assert result.isfinite().all()
    assert sum(part.shares.values()) == pytest.approx(1)


# Proportional ---------------------------------------------------------------------------------------------------------


def test_propfair_by_hand():
    """Utilities 3 − 1, 3 − 2.5 and, at least, 0.2: shares ∝ 1/2, 3/0.5 and 2/0.2, so 1, 12 and 20."""
    part = rule("propfair", baseline=3.0)
    rows = zip("ABC", ([33.0, 0.0], [0.0, 33.0], [0.0, 0.0]), (1.0, 2.5, 9.0), (1, 3, 2), strict=True)
    close(play(part, [fair(*row) for row in rows]), [1.0, 12.0])
    close(part.shares, shares(1 / 33, 12 / 33, 20 / 33))


def test_propfair_takes_losses_below_zero():
    part = rule("propfair", baseline=1.0)
    play(part, [fair("A", [1.0], -1.0), fair("B", [0.0], 0.5)])
    close(part.shares, shares(1 / 5, 4 / 5))


def test_propfair_ends_where_gains_and_losses_of_the_sites_in_proportion_are_equal():
    """Losses w² of three cases and (w − 1)² of one: the mean is least at 1/4, and the product of (2 − F)^p greatest
    nearer to the middle, where 3 · 2w / (2 − w²) = 2 (1 − w) / (2 − (1 − w)²)."""

    def end(name):
        part, weight = rule(name), 0.9
        for number in range(200):
            weight = float(play(part, [fair("A", [weight - 0.2 * weight], weight**2, 3.0),
                                       fair("B", [weight - 0.2 * (weight - 1)], (weight - 1) ** 2, 1.0)],
                                [weight], number=number))  # fmt: skip
        return weight

    fairer = end("propfair")
    assert end("mean") == pytest.approx(1 / 4, abs=1e-5)
    assert 3 * fairer / (2 - fairer**2) == pytest.approx((1 - fairer) / (2 - (1 - fairer) ** 2), rel=1e-4)
    assert (1 - fairer) ** 2 < 0.9 * (1 - 1 / 4) ** 2  # the loss of the site that is worse off
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    bargain = 3 * (2 - grid**2).log() + (2 - (1 - grid) ** 2).log()
    assert float(grid[bargain.argmax()]) == pytest.approx(fairer, abs=2e-4)


# Agnostic -------------------------------------------------------------------------------------------------------------


def losses_round(part, number, losses, sizes):
    updates = [update(site, [1.0], sizes[site], start_loss=loss) for site, loss in losses.items()]
    play(part, updates, number=number, everyone=sizes)
    return part.shares


def test_afl_by_hand():
    part, sizes = rule("afl", lr=0.1), shares(1, 3)
    close(losses_round(part, 0, shares(2, 1), sizes), shares(0.25, 0.75))
    # 0.25 + 0.2 and 0.75 + 0.1 are 0.3 too much: 0.15 less for each.
    close(losses_round(part, 1, shares(11, 0), sizes), shares(0.3, 0.7))
    # 0.3 + 1.1 and 0.7: 0.55 less for each.
    close(losses_round(part, 2, shares(0, 9), sizes), shares(0.85, 0.15))
    # 0.85 and 0.15 + 0.9: 0.45 less for each.
    close(losses_round(part, 3, shares(30, 0), sizes), shares(0.4, 0.6))
    # 0.4 + 3 and 0.6: the second would be negative.
    close(losses_round(part, 4, shares(0, 0), sizes), shares(1, 0))


def test_afl_a_site_that_sits_out_keeps_its_share():
    part, sizes = rule("afl", lr=0.1), shares(2, 1, 1)
    # A and B have 3/4: 0.5 and 0.25 + 0.1 are 0.1 too much.
    close(losses_round(part, 0, {"A": 0, "B": 1}, sizes), {"A": 2 / 3, "B": 1 / 3})
    close(losses_round(part, 1, shares(0, 0, 0), sizes), shares(0.45, 0.3, 0.25))


def test_afl_sites_with_nothing_left_are_averaged_when_they_are_alone():
    part, sizes = rule("afl", lr=1.0), shares(1, 3, 4)
    losses_round(part, 0, shares(0, 0, 50), sizes)
    close(losses_round(part, 1, {"A": 1, "B": 9}, sizes), {"A": 1 / 4, "B": 3 / 4})
    close(losses_round(part, 2, shares(0, 0, 0), sizes), shares(0, 0, 1))


def test_afl_a_new_site_starts_with_its_cases_and_one_that_left_is_forgotten():
    part = rule("afl", lr=0.1)
    losses_round(part, 0, shares(2, 1), shares(1, 3))  # leaves 0.3 and 0.7
    close(losses_round(part, 1, shares(0, 0, 0), shares(1, 3, 4)), shares(0.15, 0.35, 0.5))
    close(losses_round(part, 2, {"B": 0, "C": 0}, {"B": 3, "C": 4}), {"B": 0.35 / 0.85, "C": 0.5 / 0.85})


# Generalisation gap ---------------------------------------------------------------------------------------------------


def gap_round(part, number, own, received, everyone="ABC", rounds=10**12):
    updates = [
        update(site, [1.0], end_validation_loss=own[site], start_validation_loss=loss)
        for site, loss in received.items()
    ]
    play(part, updates, number=number, everyone=dict.fromkeys(everyone, 7.0), rounds=rounds)
    return part.shares


def test_feddg_ga_by_hand():
    part = rule("feddg_ga", step=0.3)
    close(gap_round(part, 0, shares(1, 1, 1), shares(9, 5, 7), rounds=3), shares(1 / 3, 1 / 3, 1 / 3))
    # Gaps 1, 0.5 and 0, from their mean 0.5, 0 and −0.5; the step is 0.3 (1 − 1/3) = 0.2.
    second = gap_round(part, 1, shares(1, 1, 1), shares(2, 1.5, 1), rounds=3)
    close(second, shares(1 / 3 + 0.2, 1 / 3, 1 / 3 - 0.2))
    # Gaps 0, 0 and 3, from their mean −1, −1 and 2; the step is 0.3 (1 − 2/3) = 0.1.
    third = gap_round(part, 2, shares(1, 1, 1), shares(1, 1, 4), rounds=3)
    close(third, shares(1 / 3 + 0.15, 1 / 3 - 0.05, 1 / 3 - 0.1))


def test_feddg_ga_shares_below_zero_are_zero():
    part = rule("feddg_ga", step=0.5)
    gap_round(part, 0, shares(1, 1, 1), shares(1, 1, 1))
    # From their mean 2, −1, −1: steps 0.5, −0.25, −0.25; then 5/6, 1/12, 1/12.
    close(gap_round(part, 1, shares(1, 1, 1), shares(4, 1, 1)), shares(5 / 6, 1 / 12, 1 / 12))
    # Steps −0.25, 0.5, −0.25, as there is no end in sight: 7/12, 7/12, 0 of 14/12.
    close(gap_round(part, 2, shares(1, 1, 1), shares(1, 4, 1)), shares(1 / 2, 1 / 2, 0))


def test_feddg_ga_takes_gaps_of_sites_that_were_in_the_last_round_only():
    part = rule("feddg_ga", step=0.25)
    gap_round(part, 0, shares(1, 1), {"A": 1, "B": 1})
    # Only A and B have gaps, 1 and 0: steps 0.25 and −0.25; C is new.
    close(gap_round(part, 1, shares(1, 1, 1), shares(2, 1, 50)), shares(7 / 12, 1 / 12, 4 / 12))
    close(gap_round(part, 2, {"C": 1}, {"C": 1}), {"C": 1.0})
    # A and B missed round 2; C alone has no mean to differ from.
    close(gap_round(part, 3, shares(1, 1, 1), shares(9, 1, 5)), shares(7 / 12, 1 / 12, 4 / 12))


def test_feddg_ga_gaps_that_differ_by_rounding_are_equal():
    part = rule("feddg_ga", step=0.5)
    gap_round(part, 0, shares(0.1, 0.2, 0.3), shares(1, 1, 1))
    close(gap_round(part, 1, shares(1, 1, 1), shares(0.2, 0.3, 0.4)), shares(1 / 3, 1 / 3, 1 / 3))


# Contribution ---------------------------------------------------------------------------------------------------------


def contribution_round(part, number, losses, states=None):
    states = states or {"A": [1.0, 0.0], "B": [1.0, 0.0], "C": [0.0, 1.0]}
    updates = [
        update(site, state, **({"leave_one_out_loss": losses[site]} if site in losses else {}))
        for site, state in states.items()
    ]
    result = play(part, updates, number=number, everyone=dict.fromkeys("ABC", 1.0))
    return result, part.shares


@pytest.mark.parametrize("mode", ["plus", "times"])
def test_fedce_by_hand(mode):
    part = rule("fedce", mode=mode)
    # C is at right angles to A + B, A at 45° to B + C and B to A + C: contributions 1 − √½, 1 − √½ and 1.
    # There are no losses yet.
    near, far = 1 - math.sqrt(0.5), 1.0
    first = torch.tensor([near, near, far]) / (2 * near + far)
    if mode == "plus":
        first = (first + 1 / 3) / 2
    result, found = contribution_round(part, 0, {})
    close(found, shares(*first.tolist()))
    close(result, [first[0] + first[1], first[2]])

    # The model that leaves A out is of B and C with their weights; that without C is A and B, which are the same.
    a, _, c = first.tolist()
    start = away_from_zero(2)
    close(part.send("A")["leave_one_out"], start + torch.tensor([a / (a + c), c / (a + c)]))
    close(part.send("C")["leave_one_out"], start + torch.tensor([1.0, 0.0]))

    # Now with these weights, cos(A, B + C) = a / √(a² + c²), in the mean with √½; and losses 1, 1, 2.
    near = 1 - (math.sqrt(0.5) + a / math.hypot(a, c)) / 2
    gradient, data = torch.tensor([near, near, 1.0]), torch.tensor([1.0, 1.0, 2.0])
    gradient, data = gradient / gradient.sum(), data / data.sum()
    second = (gradient + data) / 2 if mode == "plus" else gradient * data / (gradient * data).sum()
    close(contribution_round(part, 1, shares(1, 1, 2))[1], shares(*second.tolist()))


def test_fedce_losses_are_means_over_the_rounds():
    part = rule("fedce")
    opposite = {"A": [1.0, 0.0], "B": [-1.0, 0.0]}  # the same contribution, 2, of both
    contribution_round(part, 0, {}, opposite)
    contribution_round(part, 1, shares(1, 3), opposite)  # data: 1/4 and 3/4
    close(part.shares, shares((1 / 2 + 1 / 4) / 2, (1 / 2 + 3 / 4) / 2))
    contribution_round(part, 2, shares(4, 2), opposite)  # means 2.5 and 2.5
    close(part.shares, shares(1 / 2, 1 / 2))
    contribution_round(part, 3, {"A": 10}, opposite)  # means 5 and 2.5
    close(part.shares, shares((1 / 2 + 2 / 3) / 2, (1 / 2 + 1 / 3) / 2))


def test_fedce_sends_only_to_sites_that_were_in_the_last_round_with_others():
    part = rule("fedce")
    assert [part.send(site) for site in "ABC"] == [{}, {}, {}]
    contribution_round(part, 0, {}, {"A": [1.0, 0.0], "B": [0.0, 1.0]})
    close(part.send("A")["leave_one_out"], away_from_zero(2) + torch.tensor([0.0, 1.0]))
    close(part.send("B")["leave_one_out"], away_from_zero(2) + torch.tensor([1.0, 0.0]))
    assert part.send("C") == {}
    contribution_round(part, 1, {}, {"C": [2.0, 2.0]})
    assert [part.send(site) for site in "ABC"] == [{}, {}, {}]


def test_fedce_a_site_that_sits_out_keeps_its_share():
    part = rule("fedce")
    contribution_round(part, 0, {})
    before = part.part.recall("share")
    contribution_round(part, 1, {}, {"A": [1.0, 0.0], "C": [1.0, 0.0]})
    after = part.part.recall("share")
    assert after["B"] == pytest.approx(before["B"])
    assert after["A"] != pytest.approx(before["A"])
    assert sum(after.values()) == pytest.approx(1)


def test_fedce_says_what_it_sends():
    part = rule("fedce").parts["fedce"]
    assert list(part.reveals) == ["leave_one_out_loss", "leave_one_out"]
    assert "other site" in part.reveals["leave_one_out"]
    assert part.returns
    assert part.at_site().model_sent == "leave_one_out"


def test_fedce_sends_whole_shared_models_with_their_statistics():
    part = rule("fedce")
    play(part, [update("A", [1.0, 9.0]), update("B", [2.0, 5.0])], trainable=1)
    close(part.send("A")["leave_one_out"], [float(away_from_zero(2)[0]) + 2, 5.0])


@pytest.mark.parametrize("mode", ["plus", "times"])
def test_fedce_leaves_no_site_out(mode):
    """A contributes nothing in either space: its shares there are 10⁻³, and B's and C's are a half of the rest.

    A goes the way of B + C, and its loss is 0. With ``plus`` it has (2 · 10⁻³) / (2 + 2 · 10⁻³) of the sum; with
    ``times`` 10⁻⁶ / (1/2 + 10⁻⁶), which is less than 10⁻³ and so becomes that, before all are brought to a sum of 1.
    """
    part = rule("fedce", mode=mode)
    states = {"A": [1.0, 0.0], "B": [1.0, 1.0], "C": [1.0, -1.0]}
    contribution_round(part, 0, {}, states)
    part.part.kept["share"] = {}  # so that all weigh the same again
    contribution_round(part, 1, shares(0, 1, 1), states)
    before = {"plus": 2e-3 / (2 + 2e-3), "times": 1e-6 / (1 / 2 + 1e-6)}[mode]
    least = max(before, 1e-3)
    found = torch.tensor([least, (1 - before) / 2, (1 - before) / 2]).double()
    close(part.shares, shares(*(found / found.sum()).tolist()), 1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_fedce_equal_changes_contribute_the_same_whatever_their_rounding(seed):
    """1 − cos of changes that are the same up to rounding is rounding, too, and no contribution."""
    common = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    rows = zip("ABC", (1.0, 1 / 3, 1 / 7), strict=True)
    part = rule("fedce", mode="times")
    play(part, [update(site, (common * factor).tolist()) for site, factor in rows])
    close(part.shares, shares(1 / 3, 1 / 3, 1 / 3), 1e-9)


def test_fedce_tells_small_angles_apart():
    """Changes (1, ±δ) and (1, 0): 1 − cos is about (3/2 δ)² / 2 for the outer ones and 0 for the one between them.

    With Δ_−A = (2, −δ) / 3 the angle is δ + δ / 2. Float32 would not know cosines so near to 1.
    """
    states = {"A": [1.0, 1e-4], "B": [1.0, 0.0], "C": [1.0, -1e-4]}
    part = rule("fedce")
    contribution_round(part, 0, {}, states)
    outer = (9 / 8 * 1e-8) / (9 / 4 * 1e-8 + 1e-12)
    gradient = torch.tensor([outer, 1e-3, outer]).double()
    close(part.shares, shares(*((gradient + 1 / 3) / (gradient + 1 / 3).sum()).tolist()), 1e-7)
    kept = [float(cosine[0]) for cosine in part.part.kept["cosine"].values()]
    assert 1 - kept[0] == pytest.approx(9 / 8 * 1e-8, rel=1e-5)


def test_fedce_sites_whose_others_cancel_count_as_new():
    """B, C and D add up to nothing but rounding, so A agrees with nobody; each of the three with what A adds to it."""
    a, b, c = (torch.randn(50, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    changes = {"A": a, "B": b, "C": c, "D": -(b + c)}
    part = rule("fedce")
    play(part, [update(site, change.tolist()) for site, change in changes.items()])
    cosines = [0.0]
    for site in "BCD":
        rest = sum(change.double() for other, change in changes.items() if other != site)
        cosines.append(float(torch.nn.functional.cosine_similarity(changes[site].double(), rest, dim=0)))
    gradient = 1 - torch.tensor(cosines).double()
    close(list(part.shares.values()), ((gradient / gradient.sum() + 1 / 4) / 2).tolist())


def test_fedce_sites_that_do_not_move_count_as_new():
    part = rule("fedce")
    contribution_round(part, 0, {}, {"A": [0.0, 0.0], "B": [1.0, 0.0]})
    close(part.shares, shares(1 / 2, 1 / 2))


def test_fedce_cosines_leave_statistics_out():
    part, plain = rule("fedce"), rule("fedce")
    rows = {"A": [1.0, 0.0], "B": [1.0, 0.0], "C": [0.0, 1.0]}
    play(part, [update(site, [*row, 100.0 * n]) for n, (site, row) in enumerate(rows.items())], trainable=2)
    contribution_round(plain, 0, {}, rows)
    close(part.shares, plain.shares)


# What is kept between rounds ------------------------------------------------------------------------------------------


def script():
    """Five rounds in which sites sit out, join and leave: who is there, who answers, and facts that differ."""
    generator = torch.Generator().manual_seed(11)
    for everyone, present in [("ABC", "ABC"), ("ABC", "AC"), ("ABC", "ABC"), ("ABCD", "BCD"), ("BCD", "BCD")]:
        values = {site: torch.rand(len(LOSSES), generator=generator) + 0.1 for site in everyone}
        states = {site: torch.randn(4, generator=generator) for site in everyone}
        updates = [
            update(
                site, states[site].tolist(), 1 + ord(site) % 3, **dict(zip(LOSSES, values[site].tolist(), strict=True))
            )
            for site in present
        ]
        yield updates, {site: 1.0 + ord(site) % 3 for site in everyone}


@pytest.mark.parametrize(("name", "options"), REMEMBERING)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_rule_restored_goes_on_as_if_it_had_not_stopped(name, options, stop):
    rules = [rule(name, **options) for _ in range(2)]
    state, restored = away_from_zero(4), False
    for number, (updates, everyone) in enumerate(script()):
        if number == stop:
            rules[1] = rule(name, **options)
            rules[1].restore({key: value.clone() for key, value in rules[0].memory().items()})
            restored = True
        sent = [{site: part.send(site) for site in everyone} for part in rules]
        results = [play(part, updates, state, trainable=3, everyone=everyone, number=number) for part in rules]
        assert torch.equal(*results)
        assert rules[0].shares == rules[1].shares
        for site in everyone:
            assert sent[0][site].keys() == sent[1][site].keys()
            assert all(torch.equal(value, sent[1][site][key]) for key, value in sent[0][site].items())
        assert sum(rules[0].shares.values()) == pytest.approx(1)
        state = results[0]
    assert restored


@pytest.mark.parametrize(("name", "options"), REMEMBERING)
def test_what_is_kept_matters(name, options):
    """Else the test above could not fail."""
    *_, (updates, everyone) = script()
    kept, fresh = rule(name, **options), rule(name, **options)
    for number, (earlier, sites) in enumerate(list(script())[:-1]):
        play(kept, earlier, number=number, everyone=sites)
    play(kept, updates, number=4, everyone=everyone)
    play(fresh, updates, number=4, everyone=everyone)
    assert kept.shares != fresh.shares
    assert all(value.dtype in (torch.float32, torch.float64) and value.ndim == 1 for value in kept.memory().values())


def test_names_of_sites_may_hold_a_slash():
    part, copy = rule("afl"), rule("afl")
    losses_round(part, 0, {"A/1": 2, "A/2": 1}, {"A/1": 1, "A/2": 3})
    copy.restore(part.memory())
    assert copy.part.recall("share") == part.part.recall("share")
    assert set(copy.part.recall("share")) == {"A/1", "A/2"}


# Arithmetic -----------------------------------------------------------------------------------------------------------


def test_inverse_by_hand():
    assert inverse(torch.tensor([2.0, 4.0, 8.0])).tolist() == [1, 0.5, 0.25]
    assert inverse(torch.tensor([0.0, 4.0, 0.0])).tolist() == [1, 0, 1]


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    total=st.floats(0.01, 3),
    point=st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_projection_is_on_the_simplex_and_nothing_there_is_nearer(values, total, point):
    given_values = torch.tensor(values, dtype=torch.float64)
    projected = project_to_simplex(given_values, total)
    assert projected.min() >= 0
    assert float(projected.sum()) == pytest.approx(total, rel=1e-6)
    other = torch.tensor(point[: len(values)], dtype=torch.float64) + 1e-3
    other = other / other.sum() * total
    # Of a convex set, the direction to the nearest point makes an obtuse angle with every way on from it.
    assert float((given_values - projected) @ (other - projected)) <= 1e-6 * (1 + given_values.abs().max())


def test_projection_by_hand():
    assert project_to_simplex(torch.tensor([0.5, 0.7, -3.0]).double(), 1.0).tolist() == pytest.approx([0.4, 0.6, 0])
    assert project_to_simplex(torch.tensor([1e20, 0.0]).double(), 0.5).tolist() == [0.5, 0]
    assert project_to_simplex(torch.tensor([3.0, 4.0]).double(), 0.0).tolist() == [0, 0]


def test_shares_carried_over():
    assert carry_over({}, {"A": 1, "B": 3}) == {"A": 0.25, "B": 0.75}
    assert carry_over({"A": 0.0, "C": 1.0}, {"A": 1, "B": 3}) == {"A": 0.25, "B": 0.75}
    assert carry_over({"A": 0.6, "B": 0.2, "C": 0.2}, {"A": 1, "B": 1}) == pytest.approx({"A": 0.75, "B": 0.25})
    assert carry_over({"A": 0.6, "B": 0.4}, {"A": 9, "B": 1, "C": 10}) == pytest.approx({"A": 0.3, "B": 0.2, "C": 0.5})


# For all inputs -------------------------------------------------------------------------------------------------------

numbers = st.floats(-100, 100, width=32)
site_round = st.lists(
    st.tuples(st.booleans(), st.lists(numbers, min_size=3, max_size=3), st.floats(0, 1e3)), min_size=4, max_size=4
)


@given(which=st.sampled_from(RULES), rounds=st.lists(site_round, min_size=1, max_size=4))
def test_shares_sum_to_1_and_the_result_is_between_the_sites(which, rounds):
    name, options = which
    part = rule(name, **options)
    everyone, state = {site: 1.0 + n for n, site in enumerate("ABCD")}, away_from_zero(3)
    for number, rows in enumerate(rounds):
        updates = [
            update(site, row, everyone[site], **same(loss))
            for site, (there, row, loss) in zip("ABCD", rows, strict=True)
            if there
        ]
        if not updates:
            continue
        result = play(part, updates, state, trainable=2, number=number, everyone=everyone)
        assert set(part.shares) == {each.site for each in updates}
        assert sum(part.shares.values()) == pytest.approx(1, abs=1e-9)
        assert min(part.shares.values()) >= 0
        states = [each.numbers for each in updates] + ([state] if name == "qfedavg" else [])
        low, high = torch.stack(states).min(0).values, torch.stack(states).max(0).values
        assert ((result >= low - 1e-3) & (result <= high + 1e-3)).all()
        state = result
