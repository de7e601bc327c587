"""FedPIDAvg against numbers worked out by hand, and where it must be faster than the mean."""

import pytest

from server_exchange import close, play, rule, update

SIZES = {"A": 1, "B": 3}


def round_of(part, number, costs, sizes=SIZES):
    """How much sites count in a round that ends with these costs."""
    updates = [update(site, [float(site == "A"), 2.0], sizes[site], end_loss=cost) for site, cost in costs.items()]
    change = play(part, updates, number=number, everyone=sizes)
    close(change, [part.shares.get("A", 0.0), 2.0])
    return part.shares


def test_by_hand():
    part = rule("fedpidavg", alpha=0.5, beta=0.25, gamma=0.25)
    close(round_of(part, 0, {"A": 4, "B": 2}), {"A": 0.25, "B": 0.75})  # no earlier cost: FedAvg
    # Drops 3 and 1; means (4 + 1) / 2 and (2 + 1) / 2, so shares 3/4 and 5/8.
    first = 0.5 * 0.25 + 0.25 * 0.75 + 0.25 * 0.625
    close(round_of(part, 1, {"A": 1, "B": 1}), {"A": first, "B": 1 - first})
    # A rises: drops 0 and 0.5; means (4 + 1 + 2.5) / 3 and (2 + 1 + 0.5) / 3, so 7.5 to 3.5.
    second = 0.5 * 0.25 + 0.25 * 7.5 / 11
    close(round_of(part, 2, {"A": 2.5, "B": 0.5}), {"A": second, "B": 1 - second})


def test_only_proportions_count():
    first, second = rule("fedpidavg"), rule("fedpidavg", alpha=9, beta=9, gamma=2)
    for number, costs in enumerate(({"A": 4, "B": 2}, {"A": 1, "B": 1.5}, {"A": 0.5, "B": 1.25})):
        close(round_of(first, number, costs), round_of(second, number, costs))


def test_looks_back_five_rounds():
    part = rule("fedpidavg", alpha=1e-9, beta=0, gamma=1)
    for number, cost in enumerate((900, 5, 4, 3, 2)):
        round_of(part, number, {"A": cost, "B": 1})
    close(round_of(part, 5, {"A": 1, "B": 1}), {"A": 3 / 4, "B": 1 / 4})  # 5 to 1 are 3 in the mean


def test_a_site_that_was_away_is_compared_with_its_own_last_round():
    part = rule("fedpidavg", alpha=1e-9, beta=1, gamma=0)
    round_of(part, 0, {"A": 6, "B": 2})
    assert round_of(part, 1, {"B": 1}) == {"B": 1.0}
    close(round_of(part, 2, {"A": 5, "B": 0.5}), {"A": 2 / 3, "B": 1 / 3})


def test_a_new_site_counts_with_the_mean_drop():
    part, sizes = rule("fedpidavg", alpha=1e-9, beta=1, gamma=0), {"A": 1, "B": 1, "C": 1}
    round_of(part, 0, {"A": 6, "B": 2}, sizes)
    close(round_of(part, 1, {"A": 3, "B": 1, "C": 7}, sizes), {"A": 3 / 6, "B": 1 / 6, "C": 2 / 6})


def test_sites_with_nothing_to_learn_slow_the_others_down_less():
    """A has 9 of 10 cases and no loss whatever the weights. Only B learns: each round it halves the way to 0, where its
    loss w² is least. FedAvg goes a tenth of B's way each round, this rule all of what A's lack of cost leaves to B."""

    def left(name, **options):
        part, weight = rule(name, **options), 1.0
        for number in range(10):
            trained = weight / 2
            updates = [
                update("A", [weight], 9, end_loss=0.0),
                update("B", [trained], 1, end_loss=trained**2),
            ]
            weight = float(play(part, updates, [weight], number=number))
        return weight

    assert left("mean") == pytest.approx(0.95**10)
    # The first round is FedAvg's; then B counts 0.45 / 10 + 0.55.
    assert left("fedpidavg") == pytest.approx(0.95 * (1 - 0.595 / 2) ** 9)
