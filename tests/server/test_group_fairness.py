"""FairFed: weights by how differently a model treats groups of patients."""

from dataclasses import replace

import pytest
import torch

from helpers import Federation, declare, recorded, table_sites
from polyclinic.errors import StudyError
from polyclinic.parts import FEDERATION
from server_exchange import close, play, rule, update

OPTIONS = {"subgroup": "sex", "group": "F"}


def facts(positives, found, accuracy):
    return {"positives": positives, "found": found, "accuracy": accuracy}


def three(*told):
    states, weights = ([1.0], [2.0], [4.0]), (5, 3, 2)
    return [update(*row, **facts(*one)) for *row, one in zip("ABC", states, weights, told, strict=True)]


TOLD = [([10.0, 20.0], [4.0, 16.0], 0.9), ([5.0, 10.0], [3.0, 6.0], 0.8), ([5.0, 10.0], [5.0, 2.0], 0.7)]


def test_a_round_by_hand():
    """F_k = 4/10 − 16/20 = −0.4, 3/5 − 6/10 = 0, 5/5 − 2/10 = 0.8; F = 12/20 − 24/40 = 0.

    Δ = 0.4, 0, 0.8 with mean 0.4, so with β = 0.25 the shares 0.5, 0.3, 0.2 become 0.5, 0.4, 0.1.
    """
    part = rule("equal_opportunity", **OPTIONS, beta=0.25)
    close(play(part, three(*TOLD), [0.0]), [0.5 * 1 + 0.4 * 2 + 0.1 * 4])
    close(part.shares, {"A": 0.5, "B": 0.4, "C": 0.1})
    # Another round from there: 0.5, 0.5, 0 and so on; C would have −0.0 and stays at 0, the others share the rest.
    play(part, three(*TOLD), [0.0], number=1)
    close(part.shares, {"A": 0.5, "B": 0.5, "C": 0.0})
    play(part, three(*TOLD), [0.0], number=2)
    close(part.shares, {"A": 0.5 / 1.1, "B": 0.6 / 1.1, "C": 0.0})


def test_a_site_without_ill_patients_of_a_side_goes_by_its_accuracy():
    """B has no ill patient of the group: F = 9/15 − (16 + 2)/30 = 0; A = 0.5·0.9 + 0.3·0.8 + 0.2·0.7 = 0.83."""
    part = rule("equal_opportunity", **OPTIONS, beta=0.1)
    play(part, three(TOLD[0], ([0.0, 10.0], [0.0, 6.0], 0.8), TOLD[2]), [0.0])
    gaps = torch.tensor([0.4, 0.03, 0.8], dtype=torch.float64)  # F over all: 9/15 − 24/40 = 0
    expected = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) - 0.1 * (gaps - gaps.mean())
    close(list(part.shares.values()), expected.tolist())


def test_where_no_site_has_any_all_go_by_their_accuracy():
    part = rule("equal_opportunity", **OPTIONS, beta=1.0)
    play(part, three(*[([0.0, 10.0], [0.0, 6.0], accuracy) for accuracy in (0.9, 0.8, 0.7)]), [0.0])
    gaps = torch.tensor([0.07, 0.03, 0.13], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) - (gaps - gaps.mean())
    close(list(part.shares.values()), expected.tolist())


def test_without_beta_it_is_fedavg():
    part = rule("equal_opportunity", **OPTIONS, beta=0.0)
    for number in range(3):
        play(part, three(*TOLD), [0.0], number=number)
        close(part.shares, {"A": 0.5, "B": 0.3, "C": 0.2})


def test_a_site_that_sits_out_keeps_its_share_and_a_resumed_round_is_the_same():
    part = rule("equal_opportunity", **OPTIONS, beta=0.25)
    everyone = {"A": 5.0, "B": 3.0, "C": 2.0}
    play(part, three(*TOLD)[::2], [0.0], everyone=everyone)
    # Of A and C: F = 9/15 − 18/30 = 0, gaps 0.4 and 0.8, shares 0.5 and 0.2 → 0.55 and 0.15; B keeps 0.3.
    close(part.shares, {"A": 0.55 / 0.7, "C": 0.15 / 0.7})
    again = rule("equal_opportunity", **OPTIONS, beta=0.25)
    again.restore(part.memory())
    states = [play(one, three(*TOLD), [0.0], number=1) for one in (part, again)]
    assert torch.equal(*states)
    close(part.shares, {"A": 0.55, "B": 0.4, "C": 0.05})


def test_a_site_of_no_weight_that_is_alone_in_a_round_counts():
    part = rule("equal_opportunity", **OPTIONS, beta=9.0)
    play(part, three(*TOLD), [0.0])
    assert part.shares["C"] == 0
    everyone = {"A": 5.0, "B": 3.0, "C": 2.0}
    close(play(part, three(*TOLD)[2:], [0.0], number=1, everyone=everyone), [4.0])


# At the sites ---------------------------------------------------------------------------------------------------------


def grouped(data, names="FM?"):
    """Sites whose cases are of these groups in turn."""
    known = [name if name != "?" else "not known" for name in names]
    return {site: replace(one, groups={"sex": [known[row % len(known)] for row in range(len(one))]})
            for site, one in data.items()}  # fmt: skip


def federation(data, *methods, rounds=2, loss="cross_entropy", **more):
    training = {"rounds": rounds, "loss": loss}
    return Federation(data, list(methods), model={"mlp": {"hidden": [4]}}, training=training,
                      evaluation={"subgroups": ["sex"]}, **more)  # fmt: skip


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("stacked", [False, True])
def test_sites_count_what_the_received_model_finds(stacked, loss):
    found = federation(grouped(table_sites()), {"fairfed": OPTIONS}, loss=loss, stacked=stacked)
    with recorded(found.engine) as said:
        found.rounds()
    trained = [(site, *exchange) for function, site, *exchange in said if function == "train"]
    assert len(trained) == 2 * len(found.data)
    for site, request, reply in trained:
        one, network = found.data[site], found.network(0)
        network.load(request.tensors["state"])
        outputs = network.module.eval()(one.inputs)
        chosen = outputs.argmax(1) if loss == "cross_entropy" else (outputs[:, 0] > 0).long()
        counts = torch.zeros(2, 2)
        for sex, label, mark in zip(one.groups["sex"], one.targets.tolist(), chosen.tolist(), strict=True):
            if label == 1 and sex in "FM":
                counts[:, "FM".index(sex)] += torch.tensor([1.0, float(mark == 1)])
        assert reply.tensors["equal_opportunity/positives"].tolist() == counts[0].tolist()
        assert reply.tensors["equal_opportunity/found"].tolist() == counts[1].tolist()
        assert float(reply.tensors["equal_opportunity/accuracy"]) == (chosen == one.targets).double().mean()


def test_who_is_in_no_known_group_is_on_no_side():
    data = grouped(table_sites())
    other = {site: replace(one, groups={"sex": [sex if sex != "not known" else "F" for sex in one.groups["sex"]]})
             for site, one in data.items()}  # fmt: skip
    states = [federation(one, {"fairfed": OPTIONS}).state() for one in (data, other)]
    assert not torch.equal(*states)


def test_without_beta_whole_trainings_are_those_of_fedavg():
    found = federation(grouped(table_sites()), "fedavg", {"fairfed": {**OPTIONS, "beta": 0}})
    torch.testing.assert_close(found.state("fedavg"), found.state(found.declaration.study_methods[1].label))


def test_what_is_refused():
    with pytest.raises(
        StudyError, match=r"P104 .*equal_opportunity looks at the groups of 'sex', which is no subgroup"
    ):
        declare(methods=[{"fairfed": OPTIONS}])
    with pytest.raises(StudyError, match=r"P102 .*subgroup"):
        declare(methods=["fairfed"])
    absent = federation(grouped(table_sites(), "M?"), {"fairfed": OPTIONS})
    with pytest.raises(StudyError, match="P104 No training case of any site is in the group 'F' of the subgroup 'sex'"):
        absent.rounds()
    alone = federation(grouped(table_sites(), "F?"), {"fairfed": OPTIONS})
    with pytest.raises(StudyError, match="P104 No training case of any site is in another known group than 'F'"):
        alone.rounds()


# A certain case -------------------------------------------------------------------------------------------------------


def biased(seed):
    """At A and B, who has x > 0 is ill; C, which is as large as both, overlooked women with x < 1."""
    random, made = torch.Generator().manual_seed(seed), {}
    for site, cases in {"A": 200, "B": 200, "C": 400}.items():
        x, woman = torch.randn(cases, generator=random), torch.rand(cases, generator=random) < 0.5
        ill = x > torch.where(woman, 1.0, 0.0) if site == "C" else x > 0
        template = table_sites({site: cases}, features=2)[site]
        made[site] = replace(template, inputs=torch.stack([x, woman.float()], 1), targets=ill.long(),
                             groups={"sex": ["F" if one else "M" for one in woman.tolist()]})  # fmt: skip
    return made


@pytest.mark.parametrize("seed", range(3))
def test_a_site_that_overlooked_a_group_counts_less_and_the_group_is_found_more_often(seed):
    data = biased(seed)
    found = Federation(data, ["fedavg", {"fairfed": {**OPTIONS, "beta": 0.5, "label": "fairfed"}}], model="logistic",
                       training={"rounds": 20, "batch_size": 32}, evaluation={"subgroups": ["sex"]})  # fmt: skip
    rates = {}
    for method in ("fedavg", "fairfed"):
        progress, _ = found.rounds(method)
        network = found.network(0)
        network.load(progress.model(FEDERATION))
        ill = [(data[s].inputs[data[s].targets == 1], data[s]) for s in "AB"]
        marks = torch.cat([network.module.eval()(inputs).argmax(1) for inputs, _ in ill]) == 1
        women = torch.cat([inputs[:, 1] == 1 for inputs, _ in ill])
        rates[method] = float(marks[~women].float().mean() - marks[women].float().mean())
    assert rates["fairfed"] < rates["fedavg"] - 0.1, rates
