"""SCAFFOLD, FedDyn and FedNova against their papers' algorithms, written down once more in NumPy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, recorded, site_of, table_site, table_sites
from polyclinic.client.drift.corrections import ControlVariates, DynamicRegularisation, Proximal
from polyclinic.client.work import Work, path_length
from polyclinic.parts import FEDERATION, Ended, Now, Step, Update
from server_exchange import Rule, play, rule, update

MLP = {"mlp": {"hidden": [6]}}
NORM_MLP = {"mlp": {"hidden": [6], "norm": "batch"}}
MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}
DYN = {"feddyn": {"alpha": 0.5}}


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# A model of two weights that is a quadratic: one output is learned as a number, so the loss is the squared error
# (w · x − y)² of the site's cases. Each site has one batch with all its cases, so a step has no randomness.


def two_inputs(start):
    def build(shape, outputs):
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([start], dtype=torch.float32)
        return layer, [layer]

    return build


class Quadratic:
    """Two sites of a squared error, in NumPy: gradient 2 Xᵀ (X w − y) / n, with y in the units that networks learn."""

    def __init__(self, sites=("A", "B")):
        rng = np.random.default_rng(3)
        sizes = {"A": 4, "B": 6, "C": 3}
        self.inputs = {site: rng.normal(size=(sizes[site], 2)) for site in sites}
        self.numbers = {site: rng.normal(size=sizes[site]) + 2 * number for number, site in enumerate(sites)}
        pooled = np.concatenate(list(self.numbers.values()))
        self.targets = {site: (y - pooled.mean()) / pooled.std() for site, y in self.numbers.items()}
        self.sizes = {site: len(y) for site, y in self.numbers.items()}

    def gradient(self, site, weights):
        inputs = self.inputs[site]
        return 2 * inputs.T @ (inputs @ weights - self.targets[site]) / len(inputs)

    def minimum(self, weights):
        """Where Σ weights_k F_k is least."""
        matrix = sum(weight * 2 * self.inputs[s].T @ self.inputs[s] / self.sizes[s] for s, weight in weights.items())
        vector = sum(weight * 2 * self.inputs[s].T @ self.targets[s] / self.sizes[s] for s, weight in weights.items())
        return np.linalg.solve(matrix, vector)

    def train(self, method, stacked=False, start=(0.0, 0.0), **training):
        data = {
            site: site_of(site, torch.from_numpy(x).float(), torch.from_numpy(self.numbers[site]).float())
            for site, x in self.inputs.items()
        }
        training = {"batch_size": 100, "optimizer": {"sgd": {"lr": 0.1}}, **training}
        with catalogued("two_inputs", two_inputs(list(start))):
            federation = Federation(
                data, [method], model="two_inputs", task="regression", classes=0, training=training, stacked=stacked
            )
            return federation.rounds()


def numpy_state(progress):
    return progress.model(FEDERATION).double().numpy()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_scaffold_is_algorithm_1_with_option_2(steps, stacked):
    """Karimireddy 2020: y ← y − η (g(y) − c_i + c); c_i⁺ = c_i − c + (x − y) / (K η); x and c by plain means."""
    problem, rate = Quadratic(), 0.1
    x, c = np.zeros(2), np.zeros(2)
    own = {site: np.zeros(2) for site in "AB"}
    for _ in range(3):
        moved, changed = [], []
        for site in "AB":
            y = x.copy()
            for _ in range(steps):
                y -= rate * (problem.gradient(site, y) - own[site] + c)
            new = own[site] - c + (x - y) / (steps * rate)
            moved.append(y - x)
            changed.append(new - own[site])
            own[site] = new
        x, c = x + np.mean(moved, axis=0), c + np.mean(changed, axis=0)
    found, _ = problem.train("scaffold", stacked, rounds=3, local_steps=steps, weights="uniform")
    np.testing.assert_allclose(numpy_state(found), x, rtol=1e-5)


def server_end(part, weights):
    """The end of control variates at the server, of sites with these weights."""
    end = part.at_server()
    end.name = "control_variates"
    end.meet({}, weights)
    return end


def now(weights, number=0):
    """A round of sites A and B, which weigh the same."""
    return Now(number, 10, 0.1, weights, torch.zeros(0), 2.0, {"A": 1.0, "B": 1.0})


def test_scaffold_by_hand():
    """One weight, losses (w − 1)² at A and (w + 3)² / 2 at B have gradients 2 (w − 1) and w + 3; η = 0.1, one step.

    Round 1, from w = 0: g_A = −2, g_B = 3, so w_A = 0.2, w_B = −0.3, w = −0.05. c_A = −2, c_B = 3, c = 0.5.
    Round 2: g_A = −2.1, w_A = −0.05 − 0.1 (−2.1 + 2 + 0.5) = −0.09; g_B = 2.95, w_B = −0.05 − 0.1 (2.95 − 3 + 0.5) =
    −0.095; w = −0.0925. c_A = −2 − 0.5 + 0.04 / 0.1 = −2.1, c_B = 3 − 0.5 + 0.045 / 0.1 = 2.95: the gradients again.
    """
    part, size = ControlVariates(), torch.zeros(1)
    mean, sites = server_end(part, {"A": 1.0, "B": 1.0}), {site: part.at_site() for site in "AB"}
    gradients = {"A": lambda w: 2 * (w - 1), "B": lambda w: w + 3}
    for end in sites.values():
        end.meet(SimpleNamespace(trainable=1))
    w, seen = torch.zeros(1), []
    for number in range(2):
        mean.begin(now(w, number))
        ends = {}
        for site, end in sites.items():
            view = SimpleNamespace(vector=w, learning_rate=0.1, trainable=1)
            given, gradient = end.begin(view, mean.send(site)), gradients[site](w)
            end.gradient(gradient, w, w, given)
            ends[site] = w - 0.1 * gradient
            ended = Ended(view, w, ends[site], ends[site], ends[site], 1, lambda: 1.0)
            sent = {"control_variates": end.end(ended, given)}
            mean.take(Update(site, ends[site] - w, torch.zeros(0), 1.0, sent))
        mean.finish(Step(size, torch.zeros(0), {}))
        w = (ends["A"] + ends["B"]) / 2
        controls = [float(end.kept["control"]) for end in sites.values()]
        seen.append([float(w), *controls, float(mean.send("A")["control"])])
    np.testing.assert_allclose(seen, [[-0.05, -2, 3, 0.5], [-0.0925, -2.1, 2.95, 0.425]], rtol=1e-5)


#: Who is there in each round, and the same in a study file.
THERE = [["A", "B"], ["B", "C"], ["A", "B"], ["A", "B", "C"]]
ABSENT = {"participation": {"availability": {"absent": {"A": [2], "C": [1, 3]}}}}


def test_scaffold_with_some_of_the_sites_moves_c_by_their_part_of_all():
    """x moves by the mean over the sites S that are there; c by |S| / N times the mean of their changes."""
    problem, rate, steps = Quadratic("ABC"), 0.1, 2
    x, c = np.zeros(2), np.zeros(2)
    own = {site: np.zeros(2) for site in "ABC"}
    for there in THERE:
        moved, changed = [], []
        for site in there:
            y = x.copy()
            for _ in range(steps):
                y -= rate * (problem.gradient(site, y) - own[site] + c)
            new = own[site] - c + (x - y) / (steps * rate)
            moved.append(y - x)
            changed.append(new - own[site])
            own[site] = new
        x, c = x + np.mean(moved, axis=0), c + len(there) / 3 * np.mean(changed, axis=0)
        np.testing.assert_allclose(c, np.mean(list(own.values()), axis=0), atol=1e-12)  # c stays the mean of all c_i
    training = {"rounds": 4, "local_steps": steps, "weights": "uniform", **ABSENT}
    found, rows = problem.train("scaffold", **training)
    assert [row["site"] for row in rows] == [site for there in THERE for site in there]
    np.testing.assert_allclose(numpy_state(found), x, rtol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("some", [False, True])
def test_feddyn_is_algorithm_1(some, stacked):
    """Acar 2021: the local loss has − ⟨∇_k, θ⟩ + α/2 ‖θ − θ_t‖²; ∇_k ← ∇_k − α (θ_k − θ_t);
    h ← h − α / m Σ_P (θ_k − θ_t) with m the number of all sites; θ ← mean over P of θ_k, minus h / α."""
    problem, rate, steps, alpha = Quadratic("ABC"), 0.1, 3, 0.5
    theta, h = np.zeros(2), np.zeros(2)
    own = {site: np.zeros(2) for site in "ABC"}
    for there in THERE if some else ["ABC"] * 4:
        ends = []
        for site in there:
            y = theta.copy()
            for _ in range(steps):
                y -= rate * (problem.gradient(site, y) - own[site] + alpha * (y - theta))
            own[site] = own[site] - alpha * (y - theta)
            ends.append(y)
        h = h - alpha / 3 * sum(end - theta for end in ends)
        theta = np.mean(ends, axis=0) - h / alpha
    extra = ABSENT if some else {}
    found, _ = problem.train(DYN, stacked, rounds=4, local_steps=steps, weights="uniform", **extra)
    np.testing.assert_allclose(numpy_state(found), theta, rtol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_fednova_is_equation_6(stacked):
    """Wang 2020: d_i = (x − y_i) / (η τ_i) for SGD; x ← x − τ_eff η Σ p_i d_i with τ_eff = Σ p_i τ_i."""
    problem, rate = Quadratic(), 0.1
    steps, share = {"A": 1, "B": 4}, {"A": 0.4, "B": 0.6}
    x = np.zeros(2)
    for _ in range(2):
        directions = {}
        for site in "AB":
            y = x.copy()
            for _ in range(steps[site]):
                y -= rate * problem.gradient(site, y)
            directions[site] = (x - y) / (rate * steps[site])
        effective = sum(share[site] * steps[site] for site in "AB")
        x = x - effective * rate * sum(share[site] * directions[site] for site in "AB")
    found, rows = problem.train("fednova", stacked, rounds=2, local_steps=steps)
    np.testing.assert_allclose(numpy_state(found), x, rtol=1e-5)
    assert [row["steps"] for row in rows] == [1, 4, 1, 4]
    other, _ = problem.train("fedavg", stacked, rounds=2, local_steps=steps)
    assert not np.allclose(numpy_state(other), x, rtol=1e-2), "or the test could not fail"


def test_fednova_takes_out_the_inconsistency_of_unequal_work():
    """At the minimum of Σ p_k F_k small steps of FedNova stay (but for what is quadratic in the rate); those of FedAvg
    leave it for the minimum of Σ p_k τ_k F_k (Wang 2020, section 3), where they stay and FedNova does not."""
    problem, share, steps = Quadratic(), {"A": 0.4, "B": 0.6}, {"A": 1, "B": 8}
    moved = {}
    for name, weights in (("true", share), ("other", {site: share[site] * steps[site] for site in "AB"})):
        start = problem.minimum(weights)
        for method in ("fednova", "fedavg"):
            training = {"local_steps": steps, "optimizer": {"sgd": {"lr": 0.001}}}
            end = numpy_state(problem.train(method, start=start, **training)[0])
            moved[method, name] = np.linalg.norm(end - start) / 0.001
    assert moved["fednova", "true"] < 0.1 < 1 < moved["fedavg", "true"]
    assert moved["fedavg", "other"] < 0.1 < 0.5 < moved["fednova", "other"]


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, MOMENTUM])
def test_the_first_round_of_scaffold_is_fedavg(optimizer):
    federation = Federation(table_sites(), ["fedavg", "scaffold"], model=NORM_MLP, training={"optimizer": optimizer})
    assert torch.equal(federation.state("fedavg"), federation.state("scaffold"))
    second = Federation(table_sites(), ["fedavg", "scaffold"], model=NORM_MLP, training={"rounds": 2})
    assert not torch.equal(second.state("fedavg"), second.state("scaffold"))


def test_scaffold_with_one_site_is_fedavg():
    """c_k is c, so the correction is zero."""
    data = {"Aachen": table_site("Aachen", 33)}
    federation = Federation(data, ["fedavg", "scaffold"], model=MLP, training={"rounds": 4, "local_epochs": 2})
    close(federation.state("fedavg"), federation.state("scaffold"))


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, MOMENTUM, {"sgd": {"lr": 0.1, "momentum": 0.9,
                                       "nesterov": True, "weight_decay": 0.01}}])  # fmt: skip
@pytest.mark.parametrize("model", ["logistic", NORM_MLP])
def test_with_equal_numbers_of_steps_fednova_is_fedavg(optimizer, model):
    federation = Federation(
        table_sites(), ["fedavg", "fednova"], model=model,
        training={"rounds": 3, "local_steps": 4, "optimizer": optimizer},
    )  # fmt: skip
    close(federation.state("fedavg"), federation.state("fednova"))


def test_feddyn_with_the_least_alpha_pulls_nowhere():
    """In the first round h_k = 0, so the sites do FedAvg as α → 0, and −h / α = Σ p_k Δ_k doubles the step."""
    federation = Federation(table_sites(), ["fedavg", {"feddyn": {"alpha": 1e-6, "label": "feddyn"}}], model=MLP)
    start = federation.initial(0)
    close(federation.state("feddyn") - start, 2 * (federation.state("fedavg") - start), 1e-4)


@pytest.mark.parametrize("method", ["scaffold", DYN, "fednova", {"fednova": {"local": [{"proximal": {"mu": 0.5}}]}}])
@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, MOMENTUM])
def test_stacked_agrees_with_one_after_another(method, optimizer):
    training = {"rounds": 4, "local_epochs": 2, "optimizer": optimizer, "clip": 5.0}
    states = [
        Federation(table_sites(), [method], model=NORM_MLP, training=training, stacked=stacked).state()
        for stacked in (False, True)
    ]
    close(states[1], states[0], 2e-4)


def test_the_controls_are_mean_gradients_with_momentum_too():
    """On a loss that is a plane the gradient is the same everywhere, so c_k must be that gradient exactly."""
    site = {"A": site_of("A", torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))}

    def plane(shape, outputs):
        class Plane(nn.Linear):
            def forward(self, inputs):
                # Cross-entropy of logits (z, 0) with a large z is −(−z) = −z + 0 for class 1 and 0 for class 0.
                return torch.cat([super().forward(inputs) - 100.0, torch.zeros(len(inputs), 1)], dim=1)

        layer = Plane(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer, [layer]

    for optimizer in ({"sgd": {"lr": 0.1}}, MOMENTUM, {"sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True}}):
        with catalogued("plane", plane):
            federation = Federation(site, ["scaffold"], model="plane",
                                    training={"rounds": 2, "local_steps": 5, "optimizer": optimizer})  # fmt: skip
            progress, _ = federation.rounds()
            control = federation.kept(progress)["A"].parts["control_variates"]["control"]
        close(control, torch.tensor([-2.0]))  # mean of the loss 100 − w x over x = 1 and 3


@pytest.mark.parametrize("method", ["scaffold", DYN])
@pytest.mark.parametrize("share", ["no_norm", "body", "head"])
def test_what_stays_at_a_site_is_neither_corrected_nor_sent(method, share):
    name, options = (method, {}) if isinstance(method, str) else next(iter(method.items()))
    federation = Federation(
        table_sites(), [{name: {**options, "share": share}}], model=NORM_MLP, training={"rounds": 3}
    )  # fmt: skip
    plan, layout = federation.plan(), federation.template.layout
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    private = torch.ones(layout.trainable, dtype=torch.bool)
    for start, stop in plan.selection.within(layout.trainable).slices:
        private[start:stop] = False
    assert private.any()
    ((part, _),) = federation.method().method.local
    found = [t for kept in federation.kept(progress).values() for t in kept.parts[part].values()]
    found += [
        tensor
        for function, _, request, reply in said if function == "train"
        for message in (request, reply) for key, tensor in message.tensors.items() if key.startswith(f"{part}/")
    ]  # fmt: skip
    assert len(found) >= 4
    for tensor in found:
        assert not tensor[private].any()
        assert tensor[~private].any()


def test_a_round_given_up_leaves_no_change_behind():
    """The changes of the sites in time must not be added to c with those of the next round."""
    mean = server_end(ControlVariates(), {"A": 1.0, "B": 1.0})

    def answer(change):
        sent = {"control_variates": {"control_change": torch.tensor([change])}}
        mean.take(Update("A", torch.zeros(1), torch.zeros(0), 1.0, sent))

    mean.begin(now(torch.zeros(1)))
    answer(8.0)
    mean.begin(now(torch.zeros(1)))
    answer(2.0)
    mean.finish(Step(torch.zeros(1), torch.zeros(0), {}))
    close(mean.send("A")["control"], torch.tensor([1.0]))


def test_scaffold_sends_nothing_before_there_is_something():
    federation = Federation(table_sites(), ["scaffold"], training={"rounds": 2})
    with recorded(federation.engine) as said:
        federation.rounds()
    down = [sorted(request.tensors) for function, _, request, _ in said if function == "train"]
    assert down == [["state"]] * 4 + [["control_variates/control", "state"]] * 4


# The length of a path -------------------------------------------------------------------------------------------------


def path(steps, rate, *, optimizer=None, kind="train", parts=()):
    ends = [part.at_site() for part in parts]
    return path_length(Work(kind, 1, None, 8, ("sgd", optimizer or {})), ends, steps, rate)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_the_path_with_momentum_is_the_papers_closed_form(steps, rho):
    """Wang 2020, section 4.1: ‖a‖₁ = [τ − ρ (1 − ρ^τ) / (1 − ρ)] / (1 − ρ)."""
    expected = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert path(steps, 0.05, optimizer={"momentum": rho}) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize(("rate", "mu"), [(0.1, 1.0), (0.01, 0.5), (0.5, 0.1)])
def test_the_path_with_a_proximal_term_is_the_papers_closed_form(steps, rate, mu):
    """a = [(1 − η μ)^(τ−1), ..., 1 − η μ, 1], so ‖a‖₁ = (1 − (1 − η μ)^τ) / (η μ)."""
    expected = (1 - (1 - rate * mu) ** steps) / (rate * mu)
    assert path(steps, rate, parts=[Proximal(mu=mu)]) == pytest.approx(expected)


def test_the_path_of_plain_steps_is_their_number():
    assert path(7, 0.3) == 7
    assert path(7, 0.3, optimizer={"weight_decay": 0.1}) == 7
    assert path(7, 0.3, parts=[ControlVariates()]) == 7
    assert path(1, 0.3, optimizer={"momentum": 0.9}, kind="gradient") == 1
    assert path(3, 0.1, parts=[DynamicRegularisation(alpha=0.5)]) == pytest.approx(1 + 0.95 + 0.95**2)


def test_with_a_learning_rate_of_0_nothing_pulls():
    """It is the limit of small rates."""
    for optimizer in ({}, {"momentum": 0.9}):
        parts = [Proximal(mu=2.0)]
        assert path(7, 0.0, parts=parts, optimizer=optimizer) == path(7, 0.3, optimizer=optimizer)
        assert path(7, 1e-9, parts=parts, optimizer=optimizer) == pytest.approx(path(7, 0.3, optimizer=optimizer))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, MOMENTUM], ids=["plain", "momentum"])
@pytest.mark.parametrize(
    "method", ["scaffold", "fednova", {"fednova": {"local": [{"proximal": {"mu": 0.5}}]}}], ids=str
)
def test_a_round_at_a_learning_rate_of_0_changes_nothing(method, optimizer, stacked):
    """A schedule may fall to 0 and rise again, as cosine annealing does: no site moves, and none learns anything."""
    without, _ = Quadratic().train(method, stacked, rounds=2, local_steps=3, optimizer=optimizer)
    schedule = {"cosine_annealing": {"T_max": 1}}  # rates of 0.1, 0 and 0.1
    found, _ = Quadratic().train(method, stacked, rounds=3, local_steps=3, optimizer=optimizer, schedule=schedule)
    np.testing.assert_allclose(numpy_state(found), numpy_state(without), rtol=1e-5)


def test_the_path_with_nesterov_and_dampening():
    """Nesterov: the step is g + ρ v with v = 1, 1.5 for ρ = 0.5: (1 + 0.5) + (1 + 0.75) = 3.25. Dampening 0.5: v = 1,
    then 0.5 · 1 + 0.5 · 1 = 1, so 2."""
    assert path(2, 0.1, optimizer={"momentum": 0.5, "nesterov": True}) == pytest.approx(3.25)
    assert path(2, 0.1, optimizer={"momentum": 0.5, "dampening": 0.5}) == pytest.approx(2.0)


def test_the_path_of_another_optimiser_is_refused():
    with pytest.raises(ValueError, match="adam is not a linear combination"):
        path_length(Work("train", 1, None, 8, ("adam", {})), [], 3, 0.1)


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, MOMENTUM])
def test_sites_send_their_path_to_fednova(optimizer):
    federation = Federation(table_sites(), ["fednova"], training={"optimizer": optimizer})
    with recorded(federation.engine) as said:
        _, rows = federation.rounds()
    found = {site: float(reply.tensors["normalised/path"]) for function, site, _, reply in said if function == "train"}
    steps = {"Aachen": 4, "Bonn": 2, "Celle": 1, "Dresden": 3}
    momentum = optimizer["sgd"].get("momentum", 0.0)
    for site, count in steps.items():
        expected = sum((1 - momentum**k) / (1 - momentum) for k in range(1, count + 1))
        assert found[site] == pytest.approx(expected)
    assert {row["site"]: row["steps"] for row in rows} == steps


# Server parts ---------------------------------------------------------------------------------------------------------


def test_normalised_by_hand():
    """w = (1, 1). A (weight 1, path 2) ends at (3, 1), B (weight 3, path 4) at (1, 5): d_A = (1, 0), d_B = (0, 1).
    Their mean is (0.25, 0.75), the mean path 0.25 · 2 + 0.75 · 4 = 3.5: w + (0.875, 2.625). Statistics: plain mean."""
    found = rule("normalised")
    sent = [update("A", [3.0, 1.0, 4.0], 1.0, path=2.0), update("B", [1.0, 5.0, 8.0], 3.0, path=4.0)]
    close(play(found, sent, [1.0, 1.0, 0.0], trainable=2), torch.tensor([1.875, 3.625, 7.0]))
    assert set(found.parts["normalised"].reveals) == {"path"}


def test_feddyn_at_the_server_by_hand():
    """α = 0.5, all four sites weigh 1. From w = 1 two of them end at 2 and 4: mean 3, h = −0.5 · (2/4) · 2 = −0.5,
    w = 3 + 0.5 / 0.5 = 4. Then one of them ends at 4 again: h stays, w = 4 + 1 = 5. Statistics are as aggregated."""
    found, everyone = dynamic(), dict.fromkeys("ABCD", 1.0)
    sent = [update("A", [2.0, 10.0]), update("B", [4.0, 20.0])]
    state = play(found, sent, [1.0, 0.0], trainable=1, everyone=everyone)
    close(state, torch.tensor([4.0, 15.0]))
    close(found.memory()["dynamic_regularisation/gradient"], torch.tensor([-0.5]))
    again = dynamic()
    again.restore(found.memory())
    close(play(again, [update("C", [4.0, 7.0])], state, trainable=1, everyone=everyone), torch.tensor([5.0, 7.0]))


def dynamic():
    """A chain of FedDyn alone."""
    return Rule(("dynamic_regularisation", {"alpha": 0.5}))


def test_a_chain_normalises_first_and_then_steps():
    """[normalised, fedavgm]: the server's step is taken with FedNova's change, not with the normalised one."""
    found = Rule(("normalised", {}), ("fedavgm", {"lr": 0.5, "momentum": 0.0}))
    sent = [update("A", [2.0], path=2.0), update("B", [12.0], path=4.0)]
    close(play(found, sent, [0.0]), torch.tensor([0.5 * 3 * (1 + 3) / 2]))


# Benefit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scaffold", {"feddyn": {"alpha": 1.0}}])
def test_against_drift_they_reach_the_common_minimum(method):
    """Many local steps on sites with different minima: FedAvg stops elsewhere, these do not."""
    problem = Quadratic("ABC")
    best = problem.minimum(dict.fromkeys("ABC", 1.0))
    training = {"rounds": 25, "local_steps": 10, "weights": "uniform", "optimizer": {"sgd": {"lr": 0.1}}}
    distance = {}
    for name in (method, "fedavg"):
        found, _ = problem.train(name, True, **training)
        distance[str(name)] = np.linalg.norm(numpy_state(found) - best)
    assert distance[str(method)] < 0.02
    assert distance["fedavg"] > 0.05
    assert math.isfinite(distance["fedavg"])
