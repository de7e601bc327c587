"""Personal models: private heads and bodies, FedRep, Ditto and APFL."""

import math

import pytest
import torch
import yaml
from torch import nn

import polyclinic
from helpers import (
    SIZES,
    Federation,
    catalogued,
    declare,
    recorded,
    site_of,
    table_site,
    table_sites,
    training_message,
    write_table_study,
)
from polyclinic.client.personal.models import _lent
from polyclinic.client.stacked.training import StackedTrainer
from polyclinic.client.train import train
from polyclinic.communication.message import Message
from polyclinic.errors import StudyError, TrainingError
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION
from polyclinic.site.round import Round
from polyclinic.state import Role
from polyclinic.study.job import Job

MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}}
BATCH = {"mlp": {"hidden": [6], "norm": "batch"}}
DROPOUT = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def models_of(federation, progress):
    """Each site's model for its own cases after all rounds."""
    federation.kept(progress)
    shared = progress.model(FEDERATION)
    return {name: member.run.vector(shared) for name, member in federation.engine.members.items()}


def trained(method, *, data=None, label=None, **options):
    """A federation after its training, and its progress."""
    federation = Federation(data or table_sites(), [method], **options)
    return federation, federation.rounds(label)[0]


def own_models(found):
    """What each site has of its own after a training."""
    federation, progress = found
    return {name: kept.own for name, kept in federation.kept(progress).items()}


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


# Numbers worked out by hand -------------------------------------------------------------------------------------------
#
# A model with one weight in its body and one in its head, both 1 at the start: logits (h b x, -h b x), so class 0 has
# the probability s(2 h b x). Site A has one case x = 1 of class 0: its loss -log s(2 h b) has the gradient
# -2 (1 - s(2 h b)) (h, b) for (b, h). Site B has three cases x = 2 of class 1: loss -log s(-4 h b), gradient
# 4 s(4 h b) (h, b). The learning rate is 0.1, so A moves b by 0.2 (1 - s(2 h b)) h and B by -0.4 s(4 h b) h.


class Opposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, features):
        return torch.cat([features * self.weight, -features * self.weight], dim=1)


def body_and_head(shape, outputs):
    body, head = nn.Linear(1, 1, bias=False), Opposed()
    nn.init.ones_(body.weight)
    return nn.Sequential(body, head), [head]


def hand_sites():
    return {
        "A": site_of("A", torch.tensor([[1.0]]), torch.tensor([0])),
        "B": site_of("B", torch.tensor([[2.0]] * 3), torch.tensor([1] * 3)),
    }


def by_hand(method, build=body_and_head, **training):
    """The models of A and B, and the shared state."""
    with catalogued("by_hand", build):
        federation, progress = trained(method, data=hand_sites(), model="by_hand", training=training)
        return *models_of(federation, progress).values(), progress.model(FEDERATION)


A, B = 0.2 * (1 - sigmoid(2)), -0.4 * sigmoid(4)


def test_fedper_by_hand():
    a, b, state = by_hand("fedper")
    body = 1 + 0.25 * A + 0.75 * B
    close(state, [body])
    close(a, [body, 1 + A])
    close(b, [body, 1 + B])


def test_lg_fedavg_by_hand():
    a, b, state = by_hand("lg_fedavg")
    head = 1 + 0.25 * A + 0.75 * B
    close(state, [head])
    close(a, [1 + A, head])
    close(b, [1 + B, head])


def test_fedrep_by_hand():
    """The heads are moved first, as above; the bodies move under the new heads."""
    a, b, state = by_hand({"fedrep": {"head_epochs": 1}})
    head_a, head_b = 1 + A, 1 + B
    body_a = 1 + 0.2 * (1 - sigmoid(2 * head_a)) * head_a
    body_b = 1 - 0.4 * sigmoid(4 * head_b) * head_b
    body = 0.25 * body_a + 0.75 * body_b
    close(state, [body])
    close(a, [body, head_a])
    close(b, [body, head_b])


# For Ditto and APFL: logits (u x, v x) with weights (u, v) = (0, 0) at the start. A's gradient is (-p, p) with
# p = s(v - u), B's (2 q, -2 q) with q = s(2 (u - v)). Both stay on the line (t, -t): with t alone A's gradient is
# -s(-2 t) and B's 2 s(4 t).


def two_weights(shape, outputs):
    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    return layer, [layer]


def gradient_a(t):
    return -sigmoid(-2 * t)


def test_ditto_by_hand():
    """Round 1: v = w = 0, so v_A = 0.05 and w = 0.25 · 0.05 - 0.75 · 0.1 = -0.0625. Round 2 pulls v_A towards w."""
    first, w = 0.05, 0.25 * 0.05 - 0.75 * 0.1
    a, _, state = by_hand({"ditto": {"weight": 0.5}}, two_weights, rounds=1)
    close(a, [first, -first])
    close(state, [w, -w])
    second = first - 0.1 * (gradient_a(first) + 0.5 * (first - w))
    a, *_ = by_hand({"ditto": {"weight": 0.5}}, two_weights, rounds=2)
    close(a, [second, -second])


@pytest.mark.parametrize("learn", [False, True])
def test_apfl_by_hand(learn):
    """α = 0.4. Round 1: v̄ = 0, so v_A = 0.4 · 0.05 = 0.02; α stays because v - w = 0; w = -0.0625.

    Round 2: v̄ = 0.4 · 0.02 - 0.6 · 0.0625 = -0.0295, g = gradient of A there, v_A = 0.02 - 0.04 g, and
    α = 0.4 - 0.1 ⟨v - w, ∇⟩ with ⟨v - w, ∇⟩ = 2 · (0.02 + 0.0625) g (two weights, opposed).
    """
    gradient = gradient_a(-0.0295)
    v = 0.02 - 0.04 * gradient
    alpha = 0.4 - 0.1 * 2 * 0.0825 * gradient if learn else 0.4
    with catalogued("by_hand", two_weights):
        method = {"apfl": {"mixture": 0.4, "learn_mixture": learn}}
        federation, progress = trained(method, data=hand_sites(), model="by_hand", training={"rounds": 2})
    memory = federation.kept(progress)["A"].personal
    close(memory["weights"], [v, -v])
    close(memory["mixture"], torch.tensor(alpha, dtype=torch.float64))
    expected = alpha * v + (1 - alpha) * progress.model(FEDERATION)
    close(models_of(federation, progress)["A"][0], expected[0])


@pytest.mark.parametrize(("start", "rate"), [(0.5, 1000.0), (0.0, 1000.0)])
def test_the_mixture_stays_between_0_and_1(start, rate):
    method = {"apfl": {"mixture": start}}
    training = {"rounds": 4, "optimizer": {"sgd": {"lr": rate}}, "clip": 0.01}
    federation, progress = trained(method, training=training)
    found = [float(kept.personal["mixture"]) for kept in federation.kept(progress).values()]
    assert all(0 <= mixture <= 1 for mixture in found)
    assert {0.0, 1.0} & set(found), "or nothing was clipped"


# Sharing --------------------------------------------------------------------------------------------------------------


def roles(layout):
    return {entry.name: (entry.role, slice(entry.offset, entry.offset + entry.size)) for entry in layout.entries}


@pytest.mark.parametrize(
    ("method", "shares_head"), [("fedper", False), ("lg_fedavg", True), ({"fedrep": {"head_epochs": 2}}, False)]
)
@pytest.mark.parametrize("stacked", [False, True])
def test_only_the_head_or_only_the_body_is_common_and_normalisation_belongs_to_the_body(method, shares_head, stacked):
    federation, progress = trained(method, model=BATCH, training={"rounds": 2}, stacked=stacked)
    models = list(models_of(federation, progress).values())
    for name, (role, where) in roles(federation.template.layout).items():
        if name == "0.bias":  # a bias before batch normalisation has no gradient
            continue
        same = all(torch.equal(models[0][where], model[where]) for model in models)
        assert same is ((role is Role.HEAD) is shares_head)


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_a_model_that_is_only_a_head_is_refused(method, tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20}) | {"model": "logistic", "methods": [method]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(
        StudyError, match=f"P104 {method} shares the body of the model, and there are no weights of it in logistic"
    ):
        polyclinic.Study.read(tmp_path / "study.yaml").run(tmp_path / "results")


def test_a_model_without_a_head_can_not_be_trained_in_turn():
    with catalogued("headless", lambda shape, outputs: (nn.Linear(shape[0], outputs), [])):
        federation = Federation({"Aachen": table_site("Aachen", 9)}, ["fedrep"], model="headless")
        with pytest.raises(
            TrainingError, match="P302 The model has nothing but a body, and head_then_body trains both"
        ):
            federation.rounds()


# FedRep ---------------------------------------------------------------------------------------------------------------

FEDREP = {"fedrep": {"head_epochs": 2, "local": [{"proximal": {"mu": 0.5}}]}}


@pytest.mark.parametrize("local", [[], [{"proximal": {"mu": 0.5}}], ["control_variates"]], ids=str)
@pytest.mark.parametrize("stacked", [False, True])
def test_each_phase_moves_its_own_weights_only(stacked, local):
    optimizer = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}
    training = {"rounds": 2, "optimizer": optimizer, "clip": 0.5}
    federation, progress = trained({"fedrep": {"head_epochs": 2, "local": local}}, model=BATCH, training=training)
    layout = federation.template.layout
    request = training_message(2, progress.model(FEDERATION))
    rounds = [Round(member.run, *request) for member in federation.engine.members.values()]
    task, model = federation.engine.members["Aachen"].run.task, federation.template
    for phase, moved in enumerate((Role.HEAD, Role.WEIGHT)):
        jobs = [one.job(phase) for one in rounds]
        work = rounds[0].work(phase)
        if stacked:
            results = StackedTrainer(model, task, work, jobs).train(jobs)
        else:
            results = [train(model, task, work, job) for job in jobs]
        for one, job, result in zip(rounds, jobs, results, strict=True):
            one.took(result)
            for name, (role, where) in roles(layout).items():
                if role in (Role.HEAD, Role.WEIGHT, Role.NORM_WEIGHT):
                    still = torch.equal(job.start[where], result.vector[where])
                    # A bias before batch normalisation has no gradient, but weight decay moves it.
                    assert still is ((role is Role.HEAD) is not (moved is Role.HEAD)), (name, phase)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_in_stacked_training_what_rules_add_to_frozen_weights_does_not_count_for_clipping(clip):
    found = []
    for stacked in (False, True):
        training = {"rounds": 3, "clip": clip, "optimizer": MOMENTUM}
        federation, progress = trained(FEDREP, model=BATCH, training=training, stacked=stacked)
        found.append(torch.stack(list(models_of(federation, progress).values())))
    close(found[1], found[0], 1e-5)


def test_scaffold_learns_from_the_phase_that_trains_what_is_shared():
    """After the first round c_k is the mean gradient of the body's phase, and zero for the head, of which nothing is
    sent; with one epoch of two steps of plain SGD that is (w - w_k) / (2 · 0.1)."""
    method = {"fedrep": {"head_epochs": 3, "local": ["control_variates"]}}
    federation = Federation(table_sites({"Aachen": 16, "Bonn": 16}), [method], model=BATCH)
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    layout, kept = federation.template.layout, federation.kept(progress)
    for member in federation.engine.members.values():
        sent = next(reply for function, site, _, reply in said if function == "train" and site == member.name)
        assert sent.fields["steps"] == 3 * 2 + 2
        for name, (role, where) in roles(layout).items():
            if where.stop <= layout.trainable and name != "0.bias":  # which has no gradient
                control = kept[member.name].parts["control_variates"]["control"][where]
                assert bool(control.any()) is (role is not Role.HEAD)
                assert torch.equal(sent.tensors["control_variates/control_change"][where], control)
    body = roles(layout)["0.weight"][1]
    change = next(reply for function, *_, reply in said if function == "train").tensors["change"][body]
    # The body comes first, in both.
    close(kept["Aachen"].parts["control_variates"]["control"][body], -change / 0.2, 1e-5)


def test_a_time_budget_by_the_clock_leaves_every_phase_one_step():
    training = {"time_budget": 1e-9, "local_epochs": 3}
    _, rows = Federation(table_sites(), [{"fedrep": {"head_epochs": 2}}], model=BATCH, training=training).rounds()
    assert [row["steps"] for row in rows] == [2] * len(SIZES)


def test_feddyn_learns_nothing_of_what_stays_at_the_site():
    federation, progress = trained({"feddyn": {"share": "body"}}, model=BATCH, training={"rounds": 2})
    kept = federation.kept(progress)
    for member in federation.engine.members.values():
        gradient = torch.zeros(federation.template.layout.size)
        own = kept[member.name].parts["dynamic_regularisation"]["gradient"]
        gradient[: federation.template.layout.trainable] = own
        assert gradient.any()
        assert not member.run.private.take(gradient).any()


@pytest.mark.parametrize("share", ["no_norm", "body", "head"])
def test_control_variates_tell_nothing_of_what_stays_at_the_site(share):
    method = {"scaffold": {"share": share}}
    federation = Federation(table_sites(), [method], model=BATCH, training={"rounds": 2})
    with recorded(federation.engine) as said:
        federation.rounds()
    layout, run = federation.template.layout, federation.engine.members["Bonn"].run
    for function, _, _, reply in said:
        if function == "train":
            change = torch.zeros(layout.size)
            change[: layout.trainable] = reply.tensors["control_variates/control_change"]
            assert change.any()
            assert not run.private.take(change).any()


def test_a_site_with_its_own_number_of_steps_still_trains_its_head_for_the_epochs_of_the_method():
    """20 cases in batches of 8 are 3 steps: 2 epochs of the head are 6, the body has the 5 declared for Dresden."""
    training = {"local_steps": {"Dresden": 5}}
    federation = Federation(table_sites(), [{"fedrep": {"head_epochs": 2}}], model=BATCH, training=training)
    _, rows = federation.rounds()
    assert {row["site"]: row["steps"] for row in rows}["Dresden"] == 6 + 5


def test_a_time_budget_is_for_all_phases_together():
    """Budget for 8 steps: 6 of the head, and the 2 that are left of the body's 3; one step at least."""
    for seconds, expected in ((8.0, 8), (6.0, 7), (100.0, 9)):
        training = {"time_budget": seconds, "step_seconds": 1.0}
        federation = Federation(table_sites(), [{"fedrep": {"head_epochs": 2}}], model=BATCH, training=training)
        _, rows = federation.rounds()
        assert {row["site"]: row["steps"] for row in rows}["Dresden"] == expected


def test_fednova_counts_the_steps_of_the_body():
    """Equal numbers of body steps: normalised updates are plain ones, whatever the heads did."""
    data = table_sites({"Aachen": 33, "Bonn": 10})
    methods = [{"fedrep": {"head_epochs": 2, "label": "plain"}},
               {"fedrep": {"head_epochs": 2, "server": "normalised", "label": "nova"}}]  # fmt: skip
    federation = Federation(data, methods, model={"mlp": {"hidden": [6]}}, training={"local_steps": 4, "rounds": 2})
    close(federation.state("nova"), federation.state("plain"), 1e-5)


# Ditto ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ditto", "apfl"])
@pytest.mark.parametrize("optimizer", [MOMENTUM, {"adam": {"lr": 0.01}}], ids=["momentum", "adam"])
def test_the_shared_model_is_that_of_fedavg_to_the_bit(name, optimizer):
    federation = Federation(
        table_sites(), ["fedavg", name], model=DROPOUT, training={"rounds": 3, "optimizer": optimizer, "clip": 1.0}
    )  # fmt: skip
    assert torch.equal(federation.state(name), federation.state("fedavg"))


@pytest.mark.parametrize(
    ("optimizer", "state"), [({"sgd": {"lr": 0.1}}, "reset"), (MOMENTUM, "keep"), ({"adam": {"lr": 0.01}}, "keep")]
)
def test_ditto_without_its_pull_is_training_alone_to_the_bit(optimizer, state):
    """`single` keeps its optimiser's state, so Ditto must; plain SGD has none."""
    options = {"model": DROPOUT, "training": {"rounds": 3, "optimizer": optimizer, "optimizer_state": state}}
    alone = own_models(trained("single", **options))
    for name, model in models_of(*trained({"ditto": {"weight": 0}}, **options)).items():
        assert torch.equal(model, alone[name])


def test_ditto_with_a_strong_pull_is_the_received_model():
    """η λ = 1: v ← w - η ∇F(v), within η ‖∇F‖ of the received model w, while training alone goes far away."""
    training = {"rounds": 30, "local_steps": 1, "optimizer": {"sgd": {"lr": 1e-2}}}
    distances = {}
    for weight in (0.0, 100.0):
        federation = Federation(table_sites(), [{"ditto": {"weight": weight}}], training=training)
        with recorded(federation.engine) as said:
            progress, _ = federation.rounds()
        received = [request for function, _, request, _ in said if function == "train"][-1].tensors["state"]
        models = models_of(federation, progress).values()
        distances[weight] = max(float((model - received).norm()) for model in models)
    assert distances[100.0] < 1e-2 * 3, "the gradient of the logistic model is bounded by the size of the cases"
    assert distances[100.0] < 0.2 * distances[0.0]


def test_ditto_trains_its_personal_model_for_the_epochs_asked_for():
    """33 cases in batches of 8 (the last has 9) are 4 steps."""
    for epochs, steps in ((None, 8), (1, 8), (3, 16)):
        _, rows = Federation(table_sites({"Aachen": 33}), [{"ditto": {"epochs": epochs}}]).rounds()
        assert rows[0]["steps"] == steps


def test_ditto_over_fedbn():
    """The personal model has everything of its own; the shared one has its own normalisation, as fedbn has."""
    federation = Federation(
        table_sites(), ["fedbn", {"ditto": {"share": "no_norm", "label": "ditto"}}], model=BATCH,
        training={"rounds": 3},
    )  # fmt: skip
    progress, _ = federation.rounds("fedbn")
    fedbn, own = progress.model(FEDERATION), own_models((federation, progress))
    progress, _ = federation.rounds("ditto")
    assert torch.equal(progress.model(FEDERATION), fedbn)
    kept = federation.kept(progress)
    for name, member in federation.engine.members.items():
        assert torch.equal(kept[name].own, own[name])
        assert not torch.equal(member.run.vector(fedbn), member.run.shared_model(fedbn))


# APFL -----------------------------------------------------------------------------------------------------------------


def test_apfl_with_mixture_0_is_fedavg_and_with_1_is_training_alone():
    options = {"model": DROPOUT, "training": {"rounds": 3, "clip": 0.5}}
    federation, progress = trained({"apfl": {"mixture": 0, "learn_mixture": False}}, **options)
    weights = federation.template.layout.trainable
    for model in models_of(federation, progress).values():
        assert torch.equal(model[:weights], progress.model(FEDERATION)[:weights])
        assert not torch.equal(model[weights:], progress.model(FEDERATION)[weights:]), (
            "statistics are the mixture's own"
        )
    alone = own_models(trained("single", **options))
    federation, progress = trained({"apfl": {"mixture": 1, "learn_mixture": False}}, **options)
    for name, model in models_of(federation, progress).items():
        assert torch.equal(model, alone[name])


def test_the_mixture_is_learned_only_where_it_shall_be():
    for learn in (False, True):
        federation, progress = trained({"apfl": {"learn_mixture": learn}}, model=BATCH, training={"rounds": 3})
        found = {float(kept.personal["mixture"]) for kept in federation.kept(progress).values()}
        assert (found == {0.5}) is not learn


def test_a_personal_model_that_is_not_finite_names_its_site():
    federation = Federation(table_sites(), ["apfl"])
    plan = federation.plan()
    federation.engine.ask("start", dict.fromkeys(SIZES, Message(plan.start.fields(), {"initial": plan.initial})))
    federation.engine.members["Bonn"].run.kept.personal["weights"][0] = float("nan")
    request = Message({"round": 0, "exchange": 1, "learning_rate": 0.1}, {"state": plan.initial})
    replies = dict(federation.engine.call("train", dict.fromkeys(SIZES, request)))
    assert isinstance(replies["Bonn"], TrainingError)
    assert "P301 Training at site Bonn" in str(replies["Bonn"])
    assert isinstance(replies["Celle"], Message)


# Testing --------------------------------------------------------------------------------------------------------------


def predicted(federation, vectors, site):
    """Mean probability of class 1 that models give for a site's test cases."""
    member, network = federation.engine.members[site], federation.network(0)
    inputs, _ = member.dataset.batch(member.parts.test)
    found = []
    for vector in vectors:
        network.load(vector)
        network.module.eval()
        with torch.no_grad():
            found.append(network.module(inputs).double().softmax(1)[:, 1])
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    "method", ["fedper", "lg_fedavg", {"fedrep": {"head_epochs": 1}}, "ditto", "apfl", {"ditto": {"share": "no_norm"}}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("without", [None, "Celle"])
def test_who_is_tested_with_what(method, without):
    """A site that trained gets its personal model, an unseen one the mean over the sites of what each has of the shared
    model: where all is shared, that is the shared model."""
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    federation = Federation(
        data, [method], model=BATCH, training={"rounds": 2, "optimizer": {"sgd": {"lr": 0.5}}},
        evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"},
    )  # fmt: skip
    outcome = federation.runner.run(Job((federation.method(),), 0, 0, without), federation.fold)
    state = outcome.models[next(iter(outcome.models))]
    members = {name: member for name, member in federation.engine.members.items() if name != without}
    everything = federation.plan().selection.everything
    layout = federation.template.layout

    def saved(prefix):
        return torch.cat([state[f"{prefix}{entry.name}"].reshape(-1) for entry in layout.entries])

    shared = [saved("")] if everything else [saved(f"{name}/") for name in members]
    frames = {
        frame["site"].iloc[0]: torch.from_numpy(frame["score"].to_numpy(copy=True)) for frame in outcome.predictions
    }
    if without is not None:
        assert set(frames) == {without}
        close(frames[without], predicted(federation, shared, without), 1e-7)
        return
    assert set(frames) == set(data)
    for number, (name, member) in enumerate(members.items()):
        model = member.run.personal.model(shared[0 if everything else number], member.run.best.personal)
        close(frames[name], predicted(federation, [model], name), 1e-7)
        if federation.method().method.personal and federation.method().method.personal[0] in ("ditto", "apfl"):
            own = predicted(federation, [shared[0 if everything else number]], name)
            assert not torch.equal(frames[name], own), "or the test could not fail"


# Combinations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"methods": [{"fedrep": {"share": "all"}}]},
            "head_then_body works with a private part, and the method shares all",
        ),
        ({"methods": [{"fedavg": {"personal": "head_then_body"}}]}, "head_then_body works with a private part"),
        ({"methods": [{"fedrep": {"training": {"optimizer_state": "keep"}}}]}, "head_then_body start anew each round"),
        (
            {"methods": ["apfl"], "training": {"optimizer_state": "keep"}},
            "The optimisers of apfl start anew each round",
        ),
        ({"methods": ["apfl"], "engine": {"precision": "mixed"}}, "apfl has no mixed precision"),
        ({"methods": [{"fedsgd": {"personal": "ditto"}}]}, "fedsgd does not train locally, so ditto has nothing"),
        ({"methods": [{"apfl": {"mixture": 1.5}}]}, "1.5"),
        ({"methods": [{"ditto": {"weight": -1}}]}, "-1"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(entries, message):
    with pytest.raises(EntryError) as caught:
        declare(**entries)
    assert message in str(caught.value)


@pytest.mark.parametrize("personal", ["ditto", "apfl", {"head_then_body": {"head_epochs": 1}}], ids=str)
@pytest.mark.parametrize(
    ("local", "topology"),
    [
        *((rule, "star") for rule in ("proximal", "control_variates", "model_contrastive", "label_shares")),
        *((rule, "cyclic") for rule in ("proximal", "model_contrastive")),  # the others need a server
    ],
)
def test_personal_models_go_with_every_local_rule(personal, local, topology):
    share = "body" if isinstance(personal, dict) else "all"
    parts = {"personal": personal, "local": [local], "share": share, "topology": topology}
    method = {"fedavg": {**parts, "label": "all of it"}}
    federation, progress = trained(method, model=BATCH, training={"rounds": 2})
    assert progress.done == 2
    assert all(model.isfinite().all() for model in models_of(federation, progress).values())


def test_a_network_that_was_lent_is_given_back_even_where_something_fails():
    model = Federation(table_sites(), model=BATCH).network(0)
    before = {name: buffer.clone() for name, buffer in model.module.state_dict().items()}

    def fail():
        with _lent(model):
            model.vector.fill_(7.0)
            model.module.get_buffer("1.num_batches_tracked").fill_(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.module.state_dict().items())
