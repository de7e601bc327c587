"""MOON: features held near those of the received model."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import Federation, catalogued, recorded, site_of, table_site, table_sites, trained_state
from polyclinic.client.drift.alignment import ModelContrastive
from polyclinic.client.features import frozen_features
from polyclinic.errors import TrainingError
from polyclinic.models import build_model
from polyclinic.parts import FEDERATION, LOCAL_PARTS, Batch
from polyclinic.seeds import generator
from polyclinic.state import FlatModule

MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}
BATCH = {"mlp": {"hidden": [6], "norm": "batch"}}
DROPOUT = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def rotation():
    """Two inputs, features W x, and a head."""
    body, head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    return FlatModule(nn.Sequential(body, head), [head])


def test_the_term_by_hand():
    """x = (1, 0), so features are the first column of W: z = (3, 4), z_glob = (0, 1), z_prev = (2, 0).

    cos(z, z_glob) = 4/5, cos(z, z_prev) = 3/5; with T = 0.5 the logits are 1.6 and 1.2, and the term is
    2 · -log(e^1.6 / (e^1.6 + e^1.2)) = 2 · log(1 + e^-0.4) = 2 · 0.5130152.
    """
    model, x = rotation(), torch.tensor([[1.0, 0.0]])

    def state(first, second):
        return torch.tensor([first, 0.0, second, 0.0, 1.0, 0.0, 0.0, 1.0])

    features = torch.tensor([[3.0, 4.0]], requires_grad=True)
    rule = ModelContrastive(mu=2.0, temperature=0.5)
    batch = Batch(x, torch.tensor([0]), model, state(0.0, 1.0), 0, features, features)
    term = rule.loss(batch, {"previous": state(2.0, 0.0)})
    close(term, 2 * math.log(1 + math.exp(-0.4)))
    close(term, 1.0260304)
    term.backward()
    # d cos(z, (0, 1)) / dz = ((0, 1) - 0.8 (0.6, 0.8)) / 5 = (-0.096, 0.072), d cos(z, (1, 0)) / dz = (0.128, -0.096);
    # the slope of the term along their difference is -(2 / 0.5) · 1 / (1 + e^0.4) = -1.6052494.
    slope = -4 / (1 + math.exp(0.4))
    close(features.grad, [[slope * (-0.096 - 0.128), slope * (0.072 + 0.096)]])


def test_without_its_term_it_is_fedavg_to_the_bit():
    federation = Federation(
        table_sites(), ["fedavg", {"moon": {"mu": 0, "label": "moon"}}], model=DROPOUT,
        training={"rounds": 3, "optimizer": MOMENTUM},
    )  # fmt: skip
    assert torch.equal(federation.state("moon"), federation.state("fedavg"))


def test_in_the_first_round_the_two_models_are_the_same_so_the_term_is_constant():
    federation = Federation(table_sites(), ["fedavg", {"moon": {"mu": 0.5, "label": "moon"}}], model=BATCH)
    (plain, rows), (moon, more) = federation.rounds("fedavg"), federation.rounds("moon")
    close(moon.model(FEDERATION), plain.model(FEDERATION), 1e-5)
    for row, other in zip(rows, more, strict=True):
        assert other["loss"] == pytest.approx(row["loss"] + 0.5 * math.log(2), abs=1e-5)


def test_moon_is_training_with_the_contrast_in_the_loss():
    """One site against ordinary modules: three rounds of one epoch, the last two with three different models."""
    data = {"Aachen": table_site("Aachen", 33)}
    federation = Federation(data, [{"moon": {"mu": 2.0, "temperature": 0.3}}], model={"mlp": {"hidden": [6]}},
                            training={"rounds": 3, "optimizer": MOMENTUM})  # fmt: skip
    site, network = data["Aachen"], federation.network(0)
    sizes = [tuple(entry.shape) for entry in network.layout.entries]

    def parts(vector):
        return [p.view(s) for p, s in zip(vector.split([math.prod(s) for s in sizes]), sizes, strict=True)]

    def features(tensors, inputs):
        return F.relu(F.linear(inputs, tensors[0], tensors[1]))

    state = previous = network.vector.clone()
    for number in range(3):
        received, weights = state.clone(), nn.Parameter(state.clone())
        optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
        order = torch.randperm(33, generator=generator(0, "train", "Aachen", 0, number))
        for index in order.split([8, 8, 8, 9]):
            inputs, targets = site.inputs[index], site.targets[index]
            own = parts(weights)
            z = features(own, inputs)
            near, far = (torch.cosine_similarity(z, features(parts(v), inputs)) / 0.3 for v in (received, previous))
            contrast = (torch.log(near.exp() + far.exp()) - near).mean()
            optimizer.zero_grad()
            (F.cross_entropy(F.linear(z, own[2], own[3]), targets) + 2.0 * contrast).backward()
            optimizer.step()
        previous = state = weights.detach().clone()
    close(federation.state(), state, 1e-4)


NETWORKS = [{"mlp": {"hidden": [6]}}, BATCH, {"mlp": {"hidden": [5, 4], "norm": "layer"}}]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("model", NETWORKS, ids=str)
def test_sites_trained_together_get_the_term_of_each(model, balanced, caplog):
    """Sites of unequal size, so that last batches have other sizes; features and statistics are each site's own."""
    training = {"rounds": 2, "optimizer": {"sgd": {"lr": 0.02}}, "class_weights": "balanced" if balanced else "none"}
    sites = {name: table_site(name, cases) for name, cases in {"A": 33, "B": 16, "C": 29, "D": 27, "E": 33}.items()}
    states = []
    for stacked in (False, True):
        method = {"moon": {"mu": 3.0, "local": ["proximal"]}}
        federation = Federation(sites, [method], model=model, training=training, stacked=stacked)
        states.append(federation.state())
        trainers = federation.engine._trainers.values()
        assert [trainer.terms is not None for trainer in trainers] == [True] * stacked
    close(states[1], states[0], 1e-5)
    assert "one after another" not in caplog.text


class Whimsical(ModelContrastive):
    """Its term depends on a number drawn."""

    def loss(self, batch, given):
        return super().loss(batch, given) * torch.rand(())


class Choosy(ModelContrastive):
    """Its term depends on a comparison."""

    def loss(self, batch, given):
        term = super().loss(batch, given)
        return term if term > 0.5 else 2 * term


class Local(ModelContrastive):
    """Each end knows something else."""

    def begin(self, view, received):
        self.mu = float(len(view.name))
        return super().begin(view, received)


@pytest.mark.parametrize("kind", [Choosy, Local])
def test_a_term_that_does_not_stack_after_all_is_taken_site_by_site(kind, monkeypatch):
    monkeypatch.setitem(LOCAL_PARTS._parts, "model_contrastive", kind)
    states = [
        Federation(table_sites(), ["moon"], model=BATCH, training={"rounds": 3}, stacked=stacked).state()
        for stacked in (False, True)
    ]
    assert torch.equal(*states)


def test_a_term_that_is_drawn_is_not_drawn_for_all_sites_alike(monkeypatch, caplog):
    monkeypatch.setitem(LOCAL_PARTS._parts, "model_contrastive", Whimsical)
    with caplog.at_level("INFO"):
        Federation(table_sites(), ["moon"], model=BATCH, training={"rounds": 1}, stacked=True).state()
    assert "one after another" in caplog.text


def test_a_site_remembers_the_model_that_it_ended_with_also_when_it_sits_out():
    training = {"rounds": 4, "participation": {"uniform": {"sites": 1}}}
    federation = Federation(table_sites(), [{"moon": {"share": "no_norm"}}], model=BATCH, training=training)
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    last = {site: trained_state(*exchange) for function, site, *exchange in said if function == "train"}
    kept = federation.kept(progress)
    for name, member in federation.engine.members.items():
        previous = kept[name].parts["model_contrastive"]["previous"]
        if name in last:
            close(member.run.shared.take(previous), last[name])
            assert torch.equal(member.run.private.take(previous), kept[name].own)
        else:
            assert torch.equal(previous, federation.initial(0))


def test_frozen_networks_leave_the_one_that_trains_alone():
    model = build_model("mlp", {"hidden": [4], "norm": "batch", "dropout": 0.5}, (3,), 2)
    model.module.train()
    other, inputs = torch.rand(model.layout.size), torch.randn(8, 3)
    before, random = model.vector.clone(), torch.get_rng_state()
    counters = [buffer.clone() for buffer in model.module.buffers() if not buffer.is_floating_point()]
    first = frozen_features(model, other, inputs)
    assert torch.equal(frozen_features(model, other, inputs), first), "no dropout"
    assert torch.equal(model.vector, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(layer.training for layer in model.module.modules())
    after = [buffer for buffer in model.module.buffers() if not buffer.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in zip(counters, after, strict=True))
    assert not first.requires_grad
    model.load(other)
    model.module.eval()
    found = []
    hook = model.record_features(found)
    model.module(inputs)
    hook.remove()
    assert torch.equal(found[0], first)


def test_features_end_nearer_to_the_received_model_than_to_the_one_before():
    """What the term asks for: cos(z, z_glob) - cos(z, z_prev) after the last round is larger than without it."""
    data, training = table_sites(), {"rounds": 4, "local_epochs": 3}
    methods = ["fedavg", {"moon": {"mu": 5.0, "label": "moon"}}]
    federation = Federation(data, methods, model={"mlp": {"hidden": [6]}}, training=training)
    found = {}
    for label in ("fedavg", "moon"):
        with recorded(federation.engine) as said:
            federation.rounds(label)
        states: dict[str, list[torch.Tensor]] = {site: [] for site in data}
        for function, site, request, reply in said:
            if function == "train":
                states[site] += [request.tensors["state"], trained_state(request, reply)]
        differences = []
        for site, seen in states.items():
            previous, received, end = (frozen_features(federation.template, v, data[site].inputs) for v in seen[-3:])
            near, far = torch.cosine_similarity(end, received), torch.cosine_similarity(end, previous)
            differences.append((near - far).mean())
        found[label] = float(torch.stack(differences).mean())
    assert found["moon"] > found["fedavg"]


def test_it_goes_with_one_gradient_a_round_and_with_others_rules():
    for method in ({"fedsgd": {"local": ["model_contrastive"]}}, {"moon": {"local": ["proximal", "control_variates"]}}):
        federation = Federation(table_sites(), [method], model=BATCH, training={"rounds": 3}, stacked=True)
        assert federation.state().isfinite().all()


def test_a_model_without_a_head_is_refused():
    with catalogued("headless", lambda shape, outputs: (nn.Linear(shape[0], outputs), [])):
        federation = Federation({"Aachen": table_site("Aachen", 9)}, ["moon"], model="headless")
        with pytest.raises(TrainingError, match="P302 The model declares no head"):
            federation.rounds()


def test_features_that_are_all_zero_give_no_broken_numbers():
    def build(shape, outputs):
        body, head = nn.Linear(shape[0], 3), nn.Linear(3, outputs)
        nn.init.zeros_(body.weight)
        nn.init.constant_(body.bias, -1.0)
        return nn.Sequential(body, nn.ReLU(), head), [head]

    with catalogued("dead", build):
        site = {"A": site_of("A", torch.randn(6, 2), torch.tensor([0, 1] * 3))}
        assert Federation(site, ["moon"], model="dead", training={"rounds": 2}).state().isfinite().all()
