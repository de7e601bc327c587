"""In which order sites and server meet: cyclic and incremental training against plain training by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from helpers import Federation, exchange, flat, plain_module, recorded, table_sites, trained_state
from polyclinic.errors import SiteError
from polyclinic.parts import FEDERATION, TOPOLOGIES, Part, ServerEnd, Turn
from polyclinic.rounds import run_rounds
from polyclinic.seeds import generator
from polyclinic.server.selection import Participation
from polyclinic.site.messages import Train
from polyclinic.site.round import Round

SMALL = {"Aachen": 12, "Bonn": 9, "Celle": 8}
NORM_MLP = {"mlp": {"hidden": [5], "norm": "batch"}}


def order_of(name, number, rounds, sites):
    """The sites of each stage of a round, which share one model."""
    stages = TOPOLOGIES[name]().stages(Turn(number, rounds, sites, {}, None, 0))
    assert all(groups.keys() == {FEDERATION} for groups in stages)
    return [list(groups[FEDERATION]) for groups in stages]


def train_by_hand(federation, module, site, seed):
    """One epoch of plain SGD on a site's cases in the order that the seed names give, in batches of 8."""
    data = federation.data[site]
    cases = len(data.inputs)
    sizes = {12: [8, 4], 9: [9], 8: [8]}[cases]
    optimizer, network = torch.optim.SGD(module.parameters(), lr=0.1), federation.template
    start = flat(network, module)
    for batch in torch.randperm(cases, generator=generator(*seed)).split(sizes):
        optimizer.zero_grad()
        F.cross_entropy(module(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()
    exchange(network, module, start)


def test_cyclic_is_training_one_model_at_site_after_site():
    federation = Federation(table_sites(SMALL), ["cyclic"], model=NORM_MLP, training={"rounds": 3})
    network = federation.network(0)
    module = plain_module(network, network.vector).train()
    for number in range(3):
        for site in SMALL:
            train_by_hand(federation, module, site, (0, "train", site, 0, number))
    progress, rows = federation.rounds()
    assert torch.equal(progress.model(FEDERATION), flat(network, module))
    assert [(row["round"], row["site"]) for row in rows] == [(n, site) for n in range(3) for site in SMALL]
    assert {row["share"] for row in rows} == {1.0}


def test_incremental_is_training_at_each_site_to_its_end():
    """Two rounds of three exchanges, two with each site; seeds tell turns in a round apart."""
    federation = Federation(table_sites(SMALL), ["incremental"], model=NORM_MLP, training={"rounds": 2})
    network = federation.network(0)
    module = plain_module(network, network.vector).train()
    turns = [("Aachen", 0, []), ("Aachen", 0, ["turn 1"]), ("Bonn", 0, []),
             ("Bonn", 1, []), ("Celle", 1, []), ("Celle", 1, ["turn 1"])]  # fmt: skip
    for site, number, turn in turns:
        train_by_hand(federation, module, site, (0, "train", site, 0, number, *turn))
    progress, rows = federation.rounds()
    assert torch.equal(progress.model(FEDERATION), flat(network, module))
    assert [(row["round"], row["site"]) for row in rows] == [(number, site) for site, number, _ in turns]


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("sites", [["A"], ["A", "B"], ["A", "B", "C"], list("ABCDEFG")])
def test_incremental_gives_every_site_the_same_work_and_never_returns(rounds, sites):
    found = [order_of("incremental", number, rounds, sites) for number in range(rounds)]
    assert [site for stages in found for (site,) in stages] == [site for site in sites for _ in range(rounds)]
    assert all(len(stages) == len(sites) for stages in found)


def test_cyclic_and_star_ask_every_site_once_a_round():
    assert order_of("cyclic", 3, 5, ["A", "B", "C"]) == [["A"], ["B"], ["C"]]
    assert order_of("star", 3, 5, ["A", "B", "C"]) == [["A", "B", "C"]]


def test_turns_of_a_round_have_their_own_randomness():
    """Each exchange of incremental training sees the site's cases in another order."""
    federation = Federation(table_sites({"Aachen": 40}), ["incremental"], training={"rounds": 1})
    double = Federation(table_sites({"Aachen": 40, "Bonn": 8}), ["incremental"], training={"rounds": 2})
    orders = []
    with recorded(double.engine) as said:
        double.rounds()
    for function, site, request, _ in said:
        if (function, site) == ("train", "Aachen"):
            asked = Train(**request.fields)
            job = Round(double.engine.members[site].run, asked, request.tensors).job(0)
            orders.append(tuple(torch.randperm(40, generator=generator(*job.seed)).tolist()))
    assert len(orders) == len(set(orders)) == 2
    assert federation.state().isfinite().all()


@pytest.mark.parametrize("method", ["cyclic", "incremental"])
def test_one_site_is_plain_training(method):
    """With one site each of them is FedAvg with one site."""
    federation = Federation(table_sites({"Aachen": 33}), [method, "fedavg"], model=NORM_MLP, training={"rounds": 4})
    assert torch.equal(federation.state(method), federation.state("fedavg"))


def test_cyclic_with_a_private_part_passes_on_the_rest_alone():
    federation = Federation(
        table_sites(SMALL), [{"cyclic": {"share": "no_norm"}}], model=NORM_MLP, training={"rounds": 2}
    )  # fmt: skip
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    trained = [(request, reply) for f, _, request, reply in said if f == "train"]
    for before, (request, _) in pairwise(trained):
        assert torch.equal(trained_state(*before), request.tensors["state"]), "each site gets what the one before sent"
    first, second, _ = (kept.own for kept in federation.kept(progress).values())
    assert not torch.equal(first, second)


def test_a_cycle_goes_on_past_a_site_that_is_too_late():
    federation = Federation(table_sites(SMALL), ["cyclic"], training={
        "rounds": 1, "participation": {"deadline": {"seconds": 5}}, "step_seconds": {"Bonn": 10}})  # fmt: skip
    progress, rows = federation.rounds()
    assert [row["site"] for row in rows] == ["Aachen", "Celle"]
    assert progress.failures == [
        "Round 1 went on without Bonn. Bonn: its answer took 10 s, longer than the deadline allows.",
    ]


class LateInTheFirstRound(Participation):
    def choose(self, sites, known):
        self.round = known.number
        return sites

    def in_time(self, site, seconds):
        return self.round > 0 or site == "Aachen"


class Counting(ServerEnd):
    """Keeps how often it was finished."""

    def __init__(self):
        self.times = torch.zeros(1)

    def finish(self, step):
        self.times += 1
        return step

    def memory(self):
        return {"times": self.times}

    def restore(self, memory):
        self.times = memory.get("times", torch.zeros(1))


def test_a_round_of_several_stages_that_does_not_count_leaves_nothing_at_the_server():
    """With too few answers in time over all stages, what parts kept after the first of them is taken back, too."""
    federation = Federation(table_sites(SMALL), ["cyclic"], training={"rounds": 2, "quorum": 2})
    part, ends = Part(), []

    def at_server():
        ends.append(Counting())
        return ends[-1]

    part.at_server = at_server
    plan = replace(federation.plan(), parts=lambda: {"counting": part}, participation=[LateInTheFirstRound()])
    progress, rows = run_rounds(plan, federation.engine)
    assert progress.failures[-1] == "In round 1, 1 of 3 sites answered (2 needed). It changed nothing."
    assert [(row["round"], row["site"]) for row in rows] == [(1, site) for site in SMALL]
    assert ends[-1].times.item() == 3, "only the three stages of the second round"


@pytest.mark.parametrize("method", ["cyclic", "incremental"])
def test_stacked_sites_meet_in_the_same_order(method):
    states = [
        Federation(table_sites(SMALL), [method], model=NORM_MLP, training={"rounds": 3}, stacked=stacked).state()
        for stacked in (False, True)
    ]
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)


def asleep(federation, site, *rounds):
    """From now on ``site`` fails in these rounds (from 1)."""
    original = federation.engine.members[site]._functions["train"]

    def train(asked, tensors):
        if asked.round + 1 in rounds:
            raise SiteError("P401", f"Site {site} is asleep.", site=site)
        return original(asked, tensors)

    federation.engine.members[site]._functions["train"] = train


def test_a_cycle_passes_a_site_by_that_fails_where_the_quorum_allows_it():
    federation = Federation(table_sites(SMALL), ["cyclic"], training={"rounds": 2, "quorum": 2})
    asleep(federation, "Bonn", 1)
    progress, rows = federation.rounds()
    assert [(row["round"], row["site"]) for row in rows] == [
        (0, "Aachen"),
        (0, "Celle"),
        *((1, site) for site in SMALL),
    ]
    assert progress.failures == ["Round 1 went on without Bonn. Bonn: P401 Site Bonn is asleep."]


def test_a_site_may_answer_in_one_of_its_turns_and_fail_in_another():
    federation = Federation(
        table_sites(SMALL, part=None), ["incremental"], training={"rounds": 2, "quorum": 1},
        evaluation={"folds": 3, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip
    original = federation.engine.members["Aachen"]._functions["train"]

    def train(asked, tensors):
        if asked.turn:
            raise SiteError("P401", "Site Aachen is asleep.", site="Aachen")
        return original(asked, tensors)

    federation.engine.members["Aachen"]._functions["train"] = train
    progress, rows = federation.rounds()
    assert [(row["site"], "validation_loss" in row) for row in rows[:2]] == [("Aachen", False), ("Bonn", True)]
    assert progress.failures == ["Round 1 went on without Aachen. Aachen: P401 Site Aachen is asleep."]


def test_a_cycle_stops_below_the_quorum():
    federation = Federation(table_sites(SMALL), ["cyclic"], training={"rounds": 2, "quorum": 3})
    asleep(federation, "Bonn", 2)
    with pytest.raises(SiteError, match=r"P402 In round 2, 2 of 3 sites answered \(3 needed\)"):
        federation.rounds()
    without = Federation(table_sites(SMALL), ["cyclic"], training={"rounds": 2})
    asleep(without, "Bonn", 2)
    with pytest.raises(SiteError, match="P401 Site Bonn is asleep"):
        without.rounds()


def test_a_cycle_with_too_few_in_time_changes_nothing():
    training = {"rounds": 2, "participation": {"deadline": {"seconds": 5}}, "quorum": 2,
                "step_seconds": {"Bonn": 10, "Celle": 10}}  # fmt: skip
    federation = Federation(table_sites(SMALL), ["cyclic"], training=training)
    with pytest.raises(SiteError, match="P402 None of 2 rounds changed the model"):
        federation.rounds()
