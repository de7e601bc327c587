"""FedDM's rule for changes that contradict each other."""

from dataclasses import replace

import hypothesis.strategies as st
import torch
from hypothesis import given

from helpers import Federation, table_sites
from polyclinic.parts import Now, Update
from polyclinic.server.conflicts import Deconflicted, layer_sizes, put_together

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4)


def close(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual).float(), torch.as_tensor(expected).float(), rtol=0, atol=1e-5)


def updates(changes, weights):
    return [
        Update(str(place), torch.tensor(change), torch.tensor([float(place)]), weight)
        for place, (change, weight) in enumerate(zip(changes, weights, strict=True))
    ]


def rule_of(length, **options):
    rule = Deconflicted(**options)
    rule.begin(Now(0, 9, 0.1, torch.zeros(length), torch.zeros(1), 1.0, shapes=[(length,)]))
    return rule


def test_a_pair_by_hand():
    """a = (2, 0) and b = (−1, 1): ⟨a, b⟩ = −2. a + b / 2 · 2 = (1, 1), b + a / 4 · 2 = (0, 1)."""
    close(put_together([torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])], torch.zeros(2)), [1.0, 2.0])
    close(put_together([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])], torch.zeros(2)), [3.0, 1.0])


def test_however_short_one_of_a_pair_is():
    """A length whose square is 0 in float32 made an infinite factor of another program's projection."""
    for short in (1e-20, 1e-30, 1e-40, 1e-45):
        found = put_together([torch.tensor([short, 0.0]), torch.tensor([-1.0, 2.0])], torch.zeros(2))
        close(found, [0.0, 2.0])


def test_sites_are_paired_by_the_steps_before():
    """Along (1, 0): 3, 1, −1, −2. So the first and the last, of which (3, 0) and (−2, 0) undo each other wholly, and
    (1, 2) and (−1, 1) with ⟨a, b⟩ = 1. Then (0, 0) and (0, 3). Without the order, others would be left."""
    changes = [torch.tensor(one) for one in ([1.0, 2.0], [3.0, 0.0], [-2.0, 0.0], [-1.0, 1.0])]
    close(put_together(changes, torch.tensor([1.0, 0.0])), [0.0, 3.0])


def test_the_one_in_the_middle_goes_on():
    """Along (1, 0): 2, 0, −1. (2, 0) and (−1, 0) undo each other, and (0, 5) is left."""
    changes = [torch.tensor(one) for one in ([0.0, 5.0], [2.0, 0.0], [-1.0, 0.0])]
    close(put_together(changes, torch.tensor([1.0, 0.0])), [0.0, 5.0])


def test_rounds_by_hand():
    """The first is the mean of weights 1 and 3. In the second the changes are 2 p Δ: (2, 0) and (−3, 3), ⟨a, b⟩ = −6:
    a + b / 3 + b + a · 3/2 = (5, 0) + (−4, 4), of which the half is the step."""
    rule = rule_of(2, decay=0.5)
    first = rule.combine(updates([[4.0, 0.0], [0.0, 4.0]], [1.0, 3.0]))
    close(first.change, [1.0, 3.0])
    close(first.statistics, [0.75])
    second = rule.combine(updates([[4.0, 0.0], [-2.0, 2.0]], [1.0, 3.0]))
    close(second.change, [0.5, 2.0])
    assert second.shares == {"0": 0.25, "1": 0.75}
    close(rule.memory()["history"], [0.75, 2.5])


def test_what_belongs_to_a_layer_goes_with_it():
    """Two weights and their bias: (4, 0 | 10) and (4, 0 | −1) do not contradict each other, so it is their mean. A bias
    by itself, 10 and −1, would lose both, whatever their sizes."""
    rule = rule_of(3)
    rule.begin(replace(rule.now, shapes=[(1, 2), (1,)]))
    changes = updates([[4.0, 0.0, 10.0], [4.0, 0.0, -1.0]], [1.0, 1.0])
    rule.combine(changes)
    close(rule.combine(changes).change, [4.0, 0.0, 4.5])
    close(put_together([torch.tensor([10.0]), torch.tensor([-1.0])], torch.ones(1)), [0.0])
    assert layer_sizes([(8, 1, 3, 3), (8,), (8,), (1,), (4, 8), (4,)]) == [89, 36]
    assert layer_sizes([(3,), (2,), (2, 2)]) == [5, 4]


def test_a_site_that_learned_nothing_plays_no_part():
    """In the first round, where its zeros would halve the mean, and later, where they would take a partner away."""
    taught = [[3.0, 1.0], [-2.0, 1.0]]
    rules = [rule_of(2), rule_of(2)]
    for changes in ([[4.0, 0.0]], taught):
        alone = rules[0].combine(updates(changes, [1.0] * len(changes)))
        beside = rules[1].combine(updates([*changes, [0.0, 0.0]], [*[1.0] * len(changes), 5.0]))
        close(beside.change, alone.change)
        close(beside.statistics, alone.statistics)
        assert beside.shares == alone.shares | {str(len(changes)): 0.0}
    close(rules[0].memory()["history"], rules[1].memory()["history"])
    nobody = rule_of(2).combine(updates([[0.0, 0.0], [0.0, 0.0]], [1.0, 3.0]))
    close(nobody.change, [0.0, 0.0])
    close(nobody.statistics, [0.75])


@given(st.lists(NUMBERS, min_size=1, max_size=7), NUMBERS)
def test_without_conflicts_it_is_the_sum_and_with_them_no_pair_is_worse(changes, past):
    tensors = [torch.tensor(change) for change in changes]
    positive = [one.abs() for one in tensors]
    torch.testing.assert_close(put_together(positive, torch.tensor(past)), torch.stack(positive).sum(0))
    assert put_together(tensors, torch.tensor(past)).isfinite().all()
    if len(tensors) == 2:
        found = put_together(tensors, torch.tensor(past)).double()
        for one in tensors:
            assert float(found @ one.double()) >= -1e-3 * max(1.0, float(one.norm()) * float(found.norm()))


def test_one_site_or_the_first_round_is_fedavg():
    for sites, rounds in ((table_sites({"Aachen": 12}), 3), (table_sites(), 1)):
        federation = Federation(
            sites, ["fedavg", {"fedavg": {"server": ["deconflicted"], "label": "new"}}], training={"rounds": rounds}
        )
        torch.testing.assert_close(federation.state("new"), federation.state("fedavg"))


def test_it_goes_with_others_and_remembers():
    method = {"scaffold": {"server": [{"norm_bound": {}}, "deconflicted", {"fedadam": {}}], "label": "new"}}
    federation = Federation(table_sites(), [method], training={"rounds": 3})
    assert federation.state("new").isfinite().all()
    one, other = rule_of(2), rule_of(2)
    changes = updates([[4.0, 0.0], [-3.0, 1.0]], [1.0, 1.0])
    one.combine(changes)
    other.restore(one.memory())
    assert torch.equal(one.combine(changes).change, other.combine(changes).change)
    assert rule_of(2).memory() == {}


def test_what_all_agree_on_is_not_lost_to_those_who_contradict():
    """A certain case: along the first coordinate two sites pull apart with 10 and −9, along the second both go by 1.
    The mean moves by 0.5 and 1; without what they undo it is less and more, in any order of the sites."""
    for order in (1, -1):
        rule = rule_of(2)
        rule.combine(updates([[0.0, 1.0], [0.0, 1.0]], [1.0, 1.0]))
        step = rule.combine(updates([[10.0, 1.0], [-9.0, 1.0]][::order], [1.0, 1.0]))
        assert step.change[1] > 1.5
        assert step.change[0].abs() < 0.1
