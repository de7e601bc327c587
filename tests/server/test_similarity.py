"""Rules that weigh sites by their models, against identities and numbers worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.errors import TrainingError
from polyclinic.parts import SERVER_PARTS
from polyclinic.parts.measures import Measuring
from polyclinic.server import similarity
from server_exchange import away_from_zero, close, play, rule, update

RULES = [
    ("ida", {}),
    ("ida", {"times": "cases"}),
    ("ida", {"times": "accuracy"}),
    ("simagg", {}),
    ("regagg", {}),
    ("guided_gradient", {"threshold": 0.6}),
]


def shares(*values):
    return dict(zip("ABC", values, strict=False))


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), RULES)
def test_one_site_gives_its_state(name, options):
    part = rule(name, **options)
    result = play(part, [update("A", [0.3, -7.1, 2.5], 12, end_accuracy=0.4)], [1.0, 1.0, 1.0], trainable=2)
    close(result, [0.3, -7.1, 2.5])
    assert part.shares == {"A": 1.0}
    result = play(part, [update("A", [0.3, -7.1, 2.5], 12, end_accuracy=0.4)], trainable=2)
    assert torch.equal(result, torch.tensor([0.3, -7.1, 2.5]))


@pytest.mark.parametrize(("name", "options"), RULES)
def test_equal_sites_give_what_each_of_them_sent(name, options):
    part = rule(name, **options)
    updates = [update(site, [0.3, -7.1, 2.5], 2, end_accuracy=0.4) for site in "ABC"]
    close(play(part, updates, [1.0, 1.0, 1.0]), [0.3, -7.1, 2.5])
    close(part.shares, shares(1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize(("name", "options"), [("ida", {"times": "cases"}), ("regagg", {})])
def test_equal_sites_of_different_size_count_by_their_size(name, options):
    part = rule(name, **options)
    play(part, [update("A", [1.0, 2.0], 1), update("B", [1.0, 2.0], 3)])
    close(part.shares, shares(0.25, 0.75))


@pytest.mark.parametrize(("name", "options"), RULES)
def test_a_round_without_answers_changes_nothing(name, options):
    part = rule(name, **options)
    play(part, [update("A", [5.0, 5.0], end_accuracy=1.0)])
    part.begin(away_from_zero(2), torch.zeros(0), {"A": 1.0})
    assert part.finish() is None
    assert part.shares == {}
    assert part.memory() == {}


def test_guided_gradient_with_threshold_0_is_the_mean():
    updates = [update("A", [1.0, -2.0, 3.0], 3), update("B", [-1.0, 4.0, 3.5], 1), update("C", [0.1, 0.2, 0.3], 2)]
    assert torch.equal(play(rule("guided_gradient", threshold=0.0), updates), play(rule("mean"), updates))


# Inverse distance -----------------------------------------------------------------------------------------------------


def triangle(accuracies=(1.0, 0.5, 0.2)):
    """Mean (1, 2); distances 1 + 2 = 3, 2 + 2 = 4 and 1 + 4 = 5; inverses 20/60, 15/60 and 12/60."""
    states, weights = ([0.0, 0.0], [3.0, 0.0], [0.0, 6.0]), (1, 2, 5)
    rows = zip("ABC", states, weights, accuracies, strict=True)
    return [update(site, state, weight, end_accuracy=accuracy) for site, state, weight, accuracy in rows]


def test_ida_by_hand():
    part = rule("ida")
    close(play(part, triangle()), [3 * 15 / 47, 6 * 12 / 47])
    close(part.shares, shares(20 / 47, 15 / 47, 12 / 47))


def test_ida_times_cases_by_hand():
    part = rule("ida", times="cases")  # 20 x 1, 15 x 2, 12 x 5
    close(play(part, triangle()), [3 * 30 / 110, 6 * 60 / 110])
    close(part.shares, shares(20 / 110, 30 / 110, 60 / 110))


def test_ida_times_accuracy_by_hand():
    part = rule("ida", times="accuracy")  # 20 / 1, 15 / 0.5, and 12 / (1/3) since 0.2 counts as 1/3
    close(play(part, triangle()), [3 * 30 / 86, 6 * 36 / 86])
    close(part.shares, shares(20 / 86, 30 / 86, 36 / 86))


def test_ida_asks_for_the_accuracy_only_where_it_uses_it():
    for times in ("none", "cases", "accuracy"):
        (part,) = rule("ida", times=times).parts.values()
        measuring = part.at_site()
        assert list(part.reveals) == (["end_accuracy"] if times == "accuracy" else [])
        assert isinstance(measuring, Measuring) == part.needs_accuracy == (times == "accuracy")
        assert part.needs_each
    assert part.at_site().names == ("end_accuracy",)
    with pytest.raises(TrainingError, match=r"P301.*end_accuracy of site B"):
        play(rule("ida", times="accuracy"), triangle((0.5, float("nan"), 0.5)))


def test_ida_a_site_at_the_mean_takes_all():
    part = rule("ida")
    result = play(part, [update("A", [0.0, 0.0]), update("B", [1.0, 2.0]), update("C", [2.0, 4.0])])
    close(result, [1.0, 2.0])
    close(part.shares, shares(0.0, 1.0, 0.0))


def test_ida_statistics_do_not_enter_the_distance_and_get_the_same_weights():
    part = rule("ida")
    updates = [update("A", [0.0, 0.0, 470.0]), update("B", [3.0, 0.0, 0.0]), update("C", [0.0, 6.0, 0.0])]
    close(play(part, updates, trainable=2), [45 / 47, 72 / 47, 470 * 20 / 47])


# A weight for each parameter ------------------------------------------------------------------------------------------


def three_sites():
    """Shares p = 1/4, 1/4, 1/2; in thousands, so that ε = 0.00001 is lost in the rounding of float32.

    First parameter: mean 2, distances 2, 1, 3, inverses 3/6, 6/6, 2/6, so u = 3/11, 6/11, 2/11.
    Second parameter: mean 2, where B is, so u = 0, 1, 0.
    """
    return [update("A", [0.0, 0.0], 1), update("B", [1000.0, 2000.0], 1), update("C", [5000.0, 4000.0], 2)]


def test_simagg_by_hand():
    part = rule("simagg")
    first = {"A": (3 / 11 + 1 / 4) / 2, "B": (6 / 11 + 1 / 4) / 2, "C": (2 / 11 + 1 / 2) / 2}
    second = {"A": (0 + 1 / 4) / 2, "B": (1 + 1 / 4) / 2, "C": (0 + 1 / 2) / 2}
    expected = [1000 * first["B"] + 5000 * first["C"], 2000 * second["B"] + 4000 * second["C"]]
    close(play(part, three_sites()), expected)
    close(part.shares, {site: (first[site] + second[site]) / 2 for site in "ABC"})


def test_regagg_by_hand():
    part = rule("regagg")  # first parameter: 3 x 1, 6 x 1, 2 x 2 of 13; second: B alone
    close(play(part, three_sites()), [(1000 * 6 + 5000 * 4) / 13, 2000.0])
    close(part.shares, shares(3 / 26, (6 / 13 + 1) / 2, 4 / 26))


def test_values_nearer_than_epsilon_count_as_equal():
    part = rule("regagg")
    play(part, [update("A", [0.0], 1), update("B", [1e-9], 3), update("C", [3e-9], 4)])
    close(part.shares, shares(1 / 8, 3 / 8, 4 / 8), 1e-3)


@pytest.mark.parametrize("name", ["simagg", "regagg"])
def test_blocks_of_parameters_change_nothing(name, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    updates = [update(site, torch.randn(7, generator=generator).tolist(), n) for n, site in enumerate("ABC", start=1)]
    whole, parts = rule(name), rule(name)
    expected = play(whole, updates)
    monkeypatch.setattr(similarity, "BLOCK", 3)
    assert torch.equal(play(parts, updates), expected)
    close(parts.shares, whole.shares, 1e-12)


# Agreement on the direction -------------------------------------------------------------------------------------------


def changes():
    """From (10, 10, 10): votes +3, +1 and −2 of three; mean changes with shares 1/4, 1/4, 1/2 below."""
    return [update("A", [11, 11, 9], 1), update("B", [12, 9, 9], 1), update("C", [13, 12, 10], 2)]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (1.0, [10 + (1 + 2 + 2 * 3) / 4, 10, 10]),
        (0.5, [10 + (1 + 2 + 2 * 3) / 4, 10, 10 + (-1 - 1 + 0) / 4]),
        (0.0, [10 + (1 + 2 + 2 * 3) / 4, 10 + (1 - 1 + 2 * 2) / 4, 10 + (-1 - 1 + 0) / 4]),
    ],
)
def test_guided_gradient_by_hand(threshold, expected):
    part = rule("guided_gradient", threshold=threshold)
    close(play(part, changes(), [10, 10, 10]), expected)
    close(part.shares, shares(0.25, 0.25, 0.5))


def test_guided_gradient_statistics_are_averaged_whatever_their_direction():
    part = rule("guided_gradient", threshold=1.0)
    close(play(part, changes(), [10, 10, 10], trainable=1), [12.25, 11.0, 9.5])


@pytest.mark.parametrize("sites", range(1, 12))
def test_guided_gradient_an_agreement_equal_to_the_threshold_is_enough(sites):
    for ahead in range(sites + 1):
        updates = [update(f"{n:02}", [1.0 if n < ahead else -1.0]) for n in range(sites)]
        agreement = abs(2 * ahead - sites) / sites
        mean = (2 * ahead - sites) / sites
        close(play(rule("guided_gradient", threshold=agreement), updates), [mean])
        if agreement < 1:
            assert play(rule("guided_gradient", threshold=min(1.0, agreement + 0.01)), updates).item() == 0


def test_guided_gradient_counts_those_who_answered_and_forgets_the_last_round():
    part = rule("guided_gradient", threshold=1.0)
    play(part, changes(), [10, 10, 10])
    close(play(part, changes()[:1], [10, 10, 10], everyone=shares(1, 1, 2)), [11, 11, 9])


# For all inputs -------------------------------------------------------------------------------------------------------

numbers = st.floats(-100, 100, width=32)


@given(
    which=st.sampled_from(RULES),
    rows=st.lists(
        st.tuples(st.lists(numbers, min_size=3, max_size=3), st.integers(1, 50), st.floats(0, 1)),
        min_size=1,
        max_size=5,
    ),
    before=st.lists(numbers, min_size=3, max_size=3),
)
def test_shares_sum_to_1_and_the_result_is_between_the_sites(which, rows, before):
    name, options = which
    part = rule(name, **options)
    updates = [update(f"site {n}", *row[:2], end_accuracy=row[2]) for n, row in enumerate(rows)]
    result = play(part, updates, before, trainable=2)
    assert set(part.shares) == {each.site for each in updates}
    assert sum(part.shares.values()) == pytest.approx(1, abs=1e-9)
    assert min(part.shares.values()) >= 0
    states = [each.numbers for each in updates] + ([torch.tensor(before)] if name == "guided_gradient" else [])
    low, high = torch.stack(states).min(0).values, torch.stack(states).max(0).values
    assert ((result >= low - 1e-4) & (result <= high + 1e-4)).all()


def test_catalogue_has_the_rules():
    assert {"ida", "simagg", "regagg", "guided_gradient"} <= set(SERVER_PARTS)
