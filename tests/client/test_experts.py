"""Fed-MoE: for each case a gate says how much the shared model and the site's own count."""

import math

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, recorded, site_of, table_sites
from polyclinic.client.personal.mixture import Mixture, mixed
from polyclinic.errors import TrainingError
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.study.final_model.entry import unusable
from polyclinic.study.job import Job

NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}}
SHARED = {"fed_moe": {"mixture": 1, "learn_gate": False, "label": "shared"}}
OWN = {"fed_moe": {"mixture": 0, "learn_gate": False, "label": "own"}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def tables(*methods, **options):
    options = {"model": NORM, **options}
    options["training"] = {"rounds": 3, **options.get("training", {})}
    return Federation(options.pop("data", None) or table_sites(), list(methods), **options)


def scores(made, label):
    """What the sites' test cases are predicted as."""
    frames = made.runner.run(Job((made.method(label),), 0, 0), made.fold).predictions
    return {frame["site"].iloc[0]: torch.tensor(frame["score"].tolist()) for frame in frames}


def two_weights(shape, outputs):
    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    return layer, [layer]


def test_a_round_by_hand():
    """Logits are (t x, −t x), with t = 0 at first; A has a case x = 1 of class 0, B three cases x = 2 of class 1.

    v_A goes up the slope σ(0) to 0.05. With a = 0.4 the mixture is m = 0.6 · 0.05 = 0.03, its slope −p = −σ(−2 m):
    w_A = 0.1 · 0.4 p. The outputs of w and v differ by −0.05 and 0.05, so a has the slope 2 · 0.05 p, the gate's sum
    0.4 · 0.6 times that; its feature is x = 1. Likewise B: v_B = −0.1, m = −0.06, q = σ(4 m), w_B = −0.1 · 0.4 · 2 q;
    a has the slope 2 q · 2 · 0.1, since outputs differ by 2 · 0.1 and q is their slope; the feature is 2.
    """
    data = {
        "A": site_of("A", torch.tensor([[1.0]]), torch.tensor([0])),
        "B": site_of("B", torch.tensor([[2.0]] * 3), torch.tensor([1] * 3)),
    }
    with catalogued("by_hand", two_weights):
        made = Federation(data, [{"fed_moe": {"mixture": 0.4}}], model="by_hand")
        progress, _ = made.rounds()
    kept = {site: one.personal for site, one in made.kept(progress).items()}
    p, q = sigmoid(-2 * 0.03), sigmoid(4 * -0.06)
    close(kept["A"]["weights"], [0.05, -0.05])
    close(kept["B"]["weights"], [-0.1, 0.1])
    w = 0.25 * 0.1 * 0.4 * p - 0.75 * 0.1 * 0.4 * 2 * q
    close(progress.model(FEDERATION), [w, -w])
    start = math.log(0.4 / 0.6)
    slope = 0.24 * 2 * 0.05 * p
    close(kept["A"]["gate"], [-0.1 * slope, start - 0.1 * slope])
    slope = 0.24 * 2 * q * 0.2
    close(kept["B"]["gate"], [-0.1 * 2 * slope, start - 0.1 * slope])


def test_a_mixture_by_hand():
    """Features (1, 2) and 3 · 1 − 2 + 0 = 1: a = σ(1); places in an output are mixed alike."""
    gate, a = torch.tensor([3.0, -1.0, 0.0]), sigmoid(1)
    found = mixed(gate, torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, 2), torch.zeros(1, 2, 2))
    close(found, torch.full((1, 2, 2), a))


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, MOMENTUM, {"adam": {"lr": 0.01}}], ids=str)
def test_with_the_gate_at_the_shared_model_it_is_fedavg_to_the_bit(optimizer):
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    made = tables("fedavg", SHARED, data=data, training={"optimizer": optimizer, "clip": 0.5},
                  evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"})  # fmt: skip
    assert torch.equal(made.state("shared"), made.state("fedavg"))
    plain = scores(made, "fedavg")
    assert all(torch.equal(found, plain[site]) for site, found in scores(made, "shared").items())


def test_with_the_gate_at_its_own_model_a_site_trains_alone():
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    made = tables("single", OWN, data=data, evaluation={"folds": 2},
                  training={"optimizer_state": "reset"})  # fmt: skip
    alone = scores(made, "single")
    assert all(torch.equal(found, alone[site]) for site, found in scores(made, "own").items())


def test_each_case_is_predicted_by_both_networks_as_its_gate_says():
    data = table_sites({"Aachen": 33, "Bonn": 14}, part=None)
    made = tables("fed_moe", data=data, evaluation={"folds": 2}, training={"optimizer": {"sgd": {"lr": 0.5}}})
    found, shares = scores(made, "fed_moe"), []
    for site, member in made.engine.members.items():
        network, memory = made.network(0), member.run.best.personal
        inputs, _ = member.dataset.batch(member.parts.test)
        outputs = []
        for vector in (member.run.view.shared(made.state()), torch.cat([memory["weights"], memory["statistics"]])):
            network.load(vector)
            network.module.eval()
            with torch.no_grad():
                features = network.module[:-1](inputs)
                outputs.append((network.module[-1](features), features))
        (shared, features), (own, _) = outputs
        a = torch.sigmoid(features @ memory["gate"][:-1] + memory["gate"][-1])[:, None]
        close(found[site], (a * shared + (1 - a) * own).softmax(1)[:, 1], 1e-5)
        shares += a.flatten().tolist()
    assert max(shares) - min(shares) > 1e-3, "or the gate would not depend on the case"


def test_where_sites_disagree_each_has_its_own():
    """What is one class at a site is the other elsewhere: no shared model can be right in more than half of all."""
    signal = torch.tensor([[1.0], [-1.0]] * 12)
    data = {
        "A": site_of("A", signal, (signal[:, 0] > 0).long(), None),
        "B": site_of("B", signal, (signal[:, 0] < 0).long(), None),
    }
    for seed in range(3):
        made = Federation(data, ["fedavg", "fed_moe"], model="logistic", evaluation={"folds": 2},
                          training={"rounds": 30, "optimizer": {"sgd": {"lr": 0.5}}})  # fmt: skip
        right = {}
        for label in ("fedavg", "fed_moe"):
            frames = made.runner.run(Job((made.method(label),), seed, 0), made.fold).predictions
            found = [(frame["score"] > 0.5) == (frame["label"] == 1) for frame in frames]
            right[label] = sum(one.sum() for one in found) / sum(map(len, found))
        assert right["fedavg"] <= 0.5
        assert right["fed_moe"] == 1.0


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    assert torch.equal(tables("fed_moe", **options).state(), tables("fed_moe").state())


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        made = tables("fed_moe", folder=folder / "sites", training={"optimizer": MOMENTUM})

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        progress = made.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0]
        return progress.model(FEDERATION), {site: one.personal for site, one in made.kept(progress).items()}

    state, kept = train(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        again, found = train(tmp_path / str(stop))
        assert torch.equal(again, state)
        assert all(torch.equal(found[site][name], one) for site, own in kept.items() for name, one in own.items())


def test_nothing_of_a_site_s_own_network_or_gate_leaves_it():
    made = tables("fed_moe", "fedavg")
    names = {}
    for label in ("fed_moe", "fedavg"):
        with recorded(made.engine) as said:
            made.rounds(label)
        names[label] = {(function, name) for function, _, _, reply in said for name in reply.tensors}
    assert names["fed_moe"] == names["fedavg"]


@pytest.mark.parametrize(
    "method",
    [
        {"fed_moe": {"local": ["weight_perturbation", "model_contrastive", "site_unlearning"]}},
        {"fed_moe": {"share": "no_norm"}}, {"fed_moe": {"local": ["label_shares"], "server": ["fedadam"]}},
    ],
    ids=str,
)  # fmt: skip
def test_it_goes_with_other_parts(method):
    made = tables(method)
    progress, _ = made.rounds()
    assert progress.model(FEDERATION).isfinite().all()
    gates = [one.personal["gate"] for one in made.kept(progress).values()]
    assert all(gate.isfinite().all() and gate.abs().max() > 0 for gate in gates)


def test_what_can_not_be_is_refused():
    with catalogued("headless", lambda shape, outputs: (nn.Linear(shape[0], outputs), [])):
        made = tables("fed_moe", model="headless")
        with pytest.raises(TrainingError, match="P302 The model declares no head, and the gate"):
            made.rounds()
    with pytest.raises(EntryError, match="P104 mixture_of_experts trains two models on the same batches"):
        tables({"fed_moe": {"local": [{"dp_sgd": {"noise": 1.0}}]}}, model={"mlp": {"hidden": [4]}})
    assert "a mixture of two networks" in unusable(tables("fed_moe").method().method)


def test_a_mixture_leaves_the_networks_that_it_is_made_of():
    model = build_model("mlp", {"hidden": [3]}, (2,), 2)
    shared, own = model.vector.clone(), model.vector.clone() + 1
    ((places, outputs),) = Mixture(shared, own, torch.zeros(4)).in_use(model, torch.tensor([7, 3, 9, 1, 0]))
    assert torch.equal(places, torch.arange(5))
    inputs = torch.rand(5, 2)
    with torch.no_grad():
        close(outputs(inputs), outputs(inputs))
    assert torch.equal(model.vector, shared)
