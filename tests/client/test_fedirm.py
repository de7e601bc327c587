"""FedIRM and FedPerl: sites that tell each other something of how to guess labels."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from going_on import study_goes_on
from helpers import Federation, declare, image_sites, table_sites, write_table_study
from polyclinic.client.few_labels import consistency
from polyclinic.client.few_labels.peers import _Peer, _Peers, looks_of, similarities
from polyclinic.client.few_labels.relations import RelationMatching as Matching
from polyclinic.client.few_labels.relations import (
    _Matching,
    _Mean,
    dropped_probabilities,
    logits,
    relation_distance,
    relations,
)
from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.parts import Batch, build_part
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

BATCH_NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
NO_RAMP = {"ramp": 0, "uncertainty": 1.0}


def bare(sites, *names):
    """The sites, some of them without any label."""
    for name in names:
        count = len(sites[name])
        sites[name].labelled = torch.zeros(count, dtype=torch.bool)
        sites[name].targets = torch.full_like(sites[name].targets, -1)
    return sites


def linear(*weights):
    """One input, as many outputs as weights: w x."""
    layer = nn.Linear(1, len(weights), bias=False)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.tensor(weights))
    return model


def batch_of(model):
    nothing = torch.empty(0)
    return Batch(torch.zeros(1, 1), torch.tensor([-1]), model, nothing, 0, nothing, nothing)


# FedIRM by hand -------------------------------------------------------------------------------------------------------


def test_relations_by_hand():
    """Two cases of class 0 with outputs (4, 0) and (0, 0): mean (2, 0), over 2 (1, 0), softmax (σ(1), σ(−1))."""
    found = relations(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]), 2.0)
    s = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(found, torch.tensor([[s, 1 - s], [0.0, 0.0]]))
    other = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    expected = 0.5 * (s * math.log(2 * s) + (1 - s) * math.log(2 * (1 - s)) + math.log(0.5 / s) / 2
                      + math.log(0.5 / (1 - s)) / 2)  # fmt: skip
    assert float(relation_distance(found, other)) == pytest.approx(expected, rel=1e-6), "class 1 is known in one only"
    assert relation_distance(found, torch.tensor([[0.0, 0.0], [0.5, 0.5]])) is None
    assert float(relation_distance(other, other)) == 0
    assert logits(torch.tensor([[3.0]])).tolist() == [[0.0, 3.0]]


def test_the_mean_is_over_sites_that_have_the_class():
    end = _Mean()
    end.begin(SimpleNamespace(everyone={"A": 1.0, "B": 1.0, "C": 9.0}))
    end._new = {"B": torch.tensor([[0.5, 0.5], [0.0, 0.0]]), "A": torch.tensor([[0.9, 0.1], [0.2, 0.8]])}
    end.finish("step")
    torch.testing.assert_close(end.send("C")["mean"], torch.tensor([[0.7, 0.3], [0.2, 0.8]]))
    other = _Mean()
    other.restore(end.memory())
    assert torch.equal(other.send("A")["mean"], end.send("A")["mean"])


def test_the_term_counts_what_is_sure():
    """Outputs (0, x): x = 5 is sure of class 1 (entropy 0.04 of log 2 = 0.69), x = 0.1 is not. λ = 4, round 0 of 2."""
    end = _Matching(Matching(relation=4.0, temperature=1.0, uncertainty=0.4, ramp=2))
    view = SimpleNamespace(number=0, task=build_task("classification", 2), count=lambda part="train": 3)
    wanted = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    end.begin(view, {"mean": wanted})
    model = linear(0.0, 1.0)
    term = end.loss(batch_of(model), {"mean": wanted, "weak": torch.tensor([[5.0], [0.1]])})
    q = 1 / (1 + math.exp(-5))
    distance = ((0.7 - q) * math.log(0.7 / q) + (0.3 - (1 - q)) * math.log(0.3 / (1 - q))) / 2
    assert float(term.detach()) == pytest.approx(4 * math.exp(-5) * distance, rel=1e-5)
    term.backward()
    assert model.gradient[1] > 0, "what is too sure goes down"
    unsure = torch.tensor([[0.1], [-0.1]])
    assert end.loss(batch_of(model), {"mean": wanted, "weak": unsure}) is None
    assert end.loss(batch_of(model), {"mean": wanted}) is None
    assert end.loss(batch_of(model), {}) is None


def test_passes_drop_what_they_drop_in_training_and_nothing_else_changes():
    module = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 40, bias=False), nn.Dropout(0.5), nn.Linear(40, 2))
    model = FlatModule(module, [module[3]])
    model.module.train()
    before, task, inputs = model.vector.detach().clone(), build_task("classification", 2), torch.ones(4, 1)
    several = dropped_probabilities(model, task, inputs, 9)
    assert torch.equal(model.vector.detach(), before), "statistics stay"
    assert all(layer.training for layer in module)
    torch.testing.assert_close(several.sum(1).float(), torch.ones(4))
    assert not torch.equal(several[0], several[1]), "each case loses others"
    module[2].p = 0.0
    one = dropped_probabilities(model, task, inputs, 9)
    assert torch.equal(one[0], one[1])


# FedPerl by hand ------------------------------------------------------------------------------------------------------


def test_who_is_alike_by_hand():
    """Tensors (0, 2) and (1): means 1 and 1, deviations 1 and 0."""
    assert looks_of(torch.tensor([0.0, 2.0, 1.0]), [2, 1]).tolist() == [1.0, 1.0, 1.0, 0.0]
    # The second number is the same for all: 1. The first is 0, 1/4 and 1.
    found = similarities(torch.tensor([[0.0, 7.0], [1.0, 7.0], [4.0, 7.0]], dtype=torch.float64))
    assert float(found[0, 1]) == pytest.approx(1 / math.sqrt(1 + 1 / 16))
    assert float(found[0, 2]) == pytest.approx(1 / math.sqrt(2))
    assert float(found[1, 2]) == pytest.approx(1.25 / math.sqrt(2 * (1 + 1 / 16)))


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e6])
def test_what_differs_by_rounding_alone_does_not_count(unit):
    """The mean of a softmax layer's biases never changes: whose is largest is up to the processor."""
    looks = torch.tensor([[0.0, 1.0, 0.3, 0.7], [0.0, 2.0, 0.5, 0.9], [0.0, 5.0, 0.4, 0.6]], dtype=torch.float64)
    looks *= torch.tensor([unit, 1.0, unit, 1.0])
    plain = similarities(looks)
    for rounding in ([1.0, -2.0, 3.0], [-1.0, 2.0, 0.5]):
        moved = looks.clone()
        moved[:, 0] += 1e-7 * unit * torch.tensor(rounding, dtype=torch.float64)
        torch.testing.assert_close(similarities(moved), plain, rtol=0, atol=1e-9)
    moved[:, 0] += unit * torch.tensor([0.01, 0.0, 0.0], dtype=torch.float64)
    assert (similarities(moved) - plain).abs().max() > 0.1


def test_the_peer_is_the_mean_of_those_most_alike():
    end = _Peers(2)
    numbers = {"A": [0.0, 0.0, 5.0], "B": [1.0, 1.0, 6.0], "C": [0.9, 1.3, 7.0], "D": [9.0, -9.0, 0.0]}
    states = {name: torch.tensor(values) for name, values in numbers.items()}
    end.latest = {name: {"model": state} for name, state in states.items()}
    now = SimpleNamespace(shapes=[(2,)], everyone=dict.fromkeys(states, 1.0), weights=torch.zeros(2))
    end.begin(now)
    torch.testing.assert_close(end.send("B")["peer"], (states["A"] + states["C"]) / 2)
    assert end.send("E") == {}
    one = _Peers(1)
    one.restore(end.memory())
    one.begin(now)
    assert torch.equal(one.send("B")["peer"], states["C"])
    alone = _Peers(2)
    alone.latest = {"A": end.latest["A"]}
    alone.begin(now)
    assert alone.send("A") == {}


def test_labels_are_of_the_site_and_its_peer():
    """The site is sure of class 1, σ(3) = 0.953; its peer says σ(−1) = 0.269: the mean 0.611 is below 0.7."""
    for threshold, counts in ((0.7, False), (0.6, True)):
        end = _Peer(weight=2.0, threshold=threshold, cases=4, strength=0.5)
        end._task = build_task("classification", 2)
        given = {"weak": torch.tensor([[3.0]]), "strong": torch.tensor([[2.0]])}
        model, peer = linear(0.0, 1.0), torch.tensor([0.0, -1.0 / 3])
        term = end.loss(batch_of(model), given | {"peer": peer})
        assert float(term.detach()) == pytest.approx(2 * math.log(1 + math.exp(-2)) * counts, abs=1e-6)
        assert float(end.loss(batch_of(model), given).detach()) == pytest.approx(
            2 * math.log(1 + math.exp(-2)), abs=1e-6
        )


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [{"fedirm": {"weight": 0, "relation": 0}}, {"fedperl": {"weight": 0}}])
def test_without_weight_it_is_fedavg_to_the_bit(method):
    entry = {name: {**options, "label": "new"} for name, options in method.items()}
    for data, hidden in ((table_sites(), {"labels": {"share": 0.5}}), (bare(table_sites(), "Bonn"), {})):
        federation = Federation(data, ["fedavg", entry], model=BATCH_NORM, training={"rounds": 2}, preparation=hidden)
        assert torch.equal(federation.state("new"), federation.state("fedavg"))


def test_without_relations_it_is_mean_teacher_and_without_peers_fixmatch_to_the_bit():
    given = {
        "mean_teacher": {},
        "fedirm": {"relation": 0},
        "fixmatch": {"threshold": 0.5},
        "fedperl": {"threshold": 0.5},
    }
    methods = [{name: {**options, "label": name}} for name, options in given.items()]
    federation = Federation(table_sites(), methods, model=BATCH_NORM, preparation={"labels": {"share": 0.5}})
    assert torch.equal(federation.state("fedirm"), federation.state("mean_teacher"))
    assert torch.equal(federation.state("fedperl"), federation.state("fixmatch")), (
        "in the first round nobody has a peer"
    )


@pytest.mark.parametrize("method", [{"fedirm": NO_RAMP}, {"fedperl": {"threshold": 0.6}}])
def test_from_the_second_round_on_it_is_another(method):
    name, options = next(iter(method.items()))
    plain = {"fedirm": {"mean_teacher": {"ramp": 0}}, "fedperl": {"fixmatch": {"threshold": 0.6}}}[name]
    found = [
        Federation(table_sites(), [one], model=BATCH_NORM, training={"rounds": 2},
                   preparation={"labels": {"share": 0.5}}).state()
        for one in (plain, {name: options})
    ]  # fmt: skip
    assert found[0].isfinite().all()
    assert found[1].isfinite().all()
    assert not torch.equal(*found)


def test_outlines_have_peers_and_no_relations():
    sites = image_sites({"Aachen": 6, "Bonn": 4}, masks=True)
    unet = {"unet": {"channels": [2, 4], "residual_units": 0}}
    training, half = {"rounds": 2, "batch_size": 4}, {"labels": {"share": 0.5}}
    method = {"fedperl": {"threshold": 0.5}}
    federation = Federation(sites, [method], model=unet, task="segmentation", training=training,
                            preparation=half)  # fmt: skip
    assert federation.state().isfinite().all()
    for method, task in (("fedirm", "segmentation"), ("fedirm", "regression"), ("fedperl", "survival")):
        with pytest.raises(StudyError, match="P104"):
            declare(task=task, methods=[method])


# A site without labels, and a whole round ----------------------------------------------------------------------------


def test_a_site_without_labels_waits_for_relations():
    """In the first round nothing is known that it could match, so its update stays; in the second it moves."""
    method = {"fedavg": {"local": [{"relation_matching": {"ramp": 0, "uncertainty": 1.0}}], "label": "new"}}
    federation = Federation(bare(table_sites(), "Bonn"), ["fedavg", method], training={"rounds": 2})
    assert federation.plan("new").sites == list(federation.data)
    _, rows = federation.rounds("new")
    assert [row["sent"] for row in rows if row["site"] == "Bonn"] == [0, 1]
    one = Federation(bare(table_sites(), "Bonn"), ["fedavg", method])
    torch.testing.assert_close(one.state("new"), one.state("fedavg"), rtol=0, atol=1e-7)


def test_a_second_round_by_another_way():
    """One full-batch step with plain PyTorch: the gradient of the term at Bonn, whose five cases have no label."""
    sites = bare(table_sites({"Aachen": 8, "Bonn": 5}), "Bonn")
    part = {"relation_matching": {"ramp": 0, "uncertainty": 1.0, "temperature": 1.5, "relation": 3.0, "cases": 5}}
    federation = Federation(sites, [{"fedavg": {"local": [part]}}], training={"rounds": 2})
    one = Federation(sites, [{"fedavg": {"local": [part]}}])
    after = one.state()
    progress, _ = federation.rounds()
    layer = nn.Linear(5, 2)

    def load(vector):
        with torch.no_grad():
            layer.weight.copy_(vector[:10].view(2, 5))
            layer.bias.copy_(vector[10:])

    load(after)
    a = sites["Aachen"]
    with torch.no_grad():
        wanted = torch.stack([
            (layer(a.inputs[a.targets == one]).mean(0) / 1.5).softmax(0) for one in (0, 1)
        ])  # fmt: skip
    names = [entry.name for entry in one.template.layout.entries]
    assert [name.rsplit(".", 1)[-1] for name in names] == ["weight", "bias"]
    # The weak view's noise is drawn from the step's seed: take it from the part itself, and all else from here.
    seen = []
    plain = consistency.weak_view
    consistency.weak_view = lambda *given: seen.append(plain(*given)) or seen[-1]
    try:
        found = (
            Federation(sites, [{"fedavg": {"local": [part]}}], training={"rounds": 2}).rounds()[0].model("federation")
        )
    finally:
        consistency.weak_view = plain
    assert torch.equal(found, progress.model("federation"))
    views = seen[-1]  # the only one that counts: the site waits in the first round
    load(after)
    outputs = layer(views)
    labels = outputs.argmax(1)
    distance, known = 0.0, 0
    for c in (0, 1):
        if (labels == c).any():
            q = (outputs[labels == c].mean(0) / 1.5).softmax(0)
            p = wanted[c]
            distance = distance + ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
            known += 1
    gradients = torch.autograd.grad(3 * distance / known, [layer.weight, layer.bias])
    moved = -0.1 * torch.cat([gradients[0].flatten(), gradients[1]])
    load(after)
    loss = nn.functional.cross_entropy(layer(a.inputs), a.targets)
    gradients = torch.autograd.grad(loss, [layer.weight, layer.bias])
    taught = -0.1 * torch.cat([gradients[0].flatten(), gradients[1]])
    torch.testing.assert_close(found, after + (8 * taught + 5 * moved) / 13, rtol=0, atol=1e-6)


def test_a_malformed_answer_is_its_site_s_failure():
    sites = bare(table_sites(), "Bonn")
    federation = Federation(sites, [{"fedirm": NO_RAMP}], training={"rounds": 1})
    plan = federation.plan()
    end = _Matching.end
    _Matching.end = lambda self, ended, given: {"relations": torch.full((2, 2), 3.0)} if ended.view.count() else {}
    try:
        with pytest.raises(PolyclinicError, match="P401"):
            federation.rounds()
    finally:
        _Matching.end = end
    assert plan.sites


# Benefit --------------------------------------------------------------------------------------------------------------


def shifted(seed):
    """Two clouds, 2 apart along a feature; at a site without labels all is 0.9 higher, and another feature tells so."""
    rng, sites = np.random.default_rng(seed), table_sites({"Aachen": 20, "Bonn": 20, "Celle": 100})
    for name, data in sites.items():
        label = np.arange(len(data)) % 2
        inputs = 0.5 * rng.normal(size=(len(data), 5))
        inputs[:, 0] += np.where(label == 1, 1.0, -1.0) + 0.9 * (name == "Celle")
        inputs[:, 4] = name == "Celle"
        data.inputs, data.targets = torch.from_numpy(inputs).float(), torch.from_numpy(label)
    truth = sites["Celle"].targets
    return bare(sites, "Celle"), truth


def right(sites, truth, method, training):
    """Share of right classes at the site without labels."""
    federation = Federation(sites, [method], training=training)
    model = federation.network(0)
    model.load(federation.state())
    with torch.no_grad():
        return float((model.module(sites["Celle"].inputs).argmax(1) == truth).float().mean())


def test_where_all_values_are_higher_relations_say_so():
    """A certain case: of fedavg's model too many cases there are of class 1, so that neither class looks as it does
    elsewhere; the feature that tells the site makes up for it."""
    training = {"rounds": 15, "batch_size": 16, "local_steps": 8, "weights": "uniform"}
    matching = {"fedirm": {"uncertainty": 0.9, "ramp": 0, "weight": 1.0}}
    gains = []
    for seed in range(4):
        sites, truth = shifted(seed)
        gains.append(right(sites, truth, matching, training) - right(sites, truth, "fedavg", training))
    assert min(gains) > 0.1, gains


def clouds(seed):
    """Two sites with four labels each, and one with 200 cases of the same two clouds and no label."""
    rng, sites = np.random.default_rng(seed), table_sites({"Aachen": 4, "Bonn": 4, "Celle": 200}, features=10)
    for data in sites.values():
        label = np.arange(len(data)) % 2
        inputs = rng.normal(size=(len(data), 10))
        inputs[:, 0] += np.where(label == 1, 1.5, -1.5)
        data.inputs, data.targets = torch.from_numpy(inputs).float(), torch.from_numpy(label)
    truth = sites["Celle"].targets
    return bare(sites, "Celle"), truth


def test_where_classes_are_clouds_peers_label_them():
    """A certain case: eight labels tell roughly how the clouds lie, and the third site's cases tell it well."""
    training = {"rounds": 20, "batch_size": 8, "local_steps": 10, "weights": "uniform"}
    peers = {"fedperl": {"threshold": 0.8, "weight": 3.0}}
    gains = []
    for seed in range(5):
        sites, truth = clouds(seed)
        gains.append(right(sites, truth, peers, training) - right(sites, truth, "fedavg", training))
    assert np.mean(gains) > 0.02, gains
    assert min(gains) > 0, gains


# In a study -----------------------------------------------------------------------------------------------------------


def test_both_go_on_after_an_interruption(tmp_path):
    content = write_table_study(tmp_path, {"north": 30, "south": 24, "west": 18})
    content |= {"methods": [{"fedirm": NO_RAMP}, {"fedperl": {"threshold": 0.5}}]}
    content["data"] |= {"labels": {"share": 0, "sites": ["west"]}}
    content["evaluation"] = {"holdout": 0.3, "bootstrap": 0}
    whole = study_goes_on(content, tmp_path, after=2)
    assert "west" in set(whole.rounds["site"])


def test_a_sum_of_groups_has_no_models_of_sites():
    with pytest.raises(StudyError, match="sends models of single sites on"):
        declare(methods=[{"fedperl": {"channel": [{"secure_sum": {"group_size": 3}}]}}])


def test_what_is_told_is_said():
    for name in ("relation_matching", "peer_labels"):
        part = build_part(name, {})
        assert set(part.shapes) == set(part.reveals)
