"""Optimisers and schedules are PyTorch's: rounds are the same as the loop that one would write."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import Federation, flat, plain_module, recorded, table_sites
from polyclinic.client.optimizers import learning_rates, resolve_optimizer, resolve_schedule, scheduled
from polyclinic.client.work import Work, gradient_step, path_length
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.site.messages import Train
from polyclinic.site.round import Round
from polyclinic.state import Role

MLP = {"mlp": {"hidden": [6]}}
SITES = {"Aachen": 33, "Bonn": 10}
ROUNDS, STEPS = 8, 3
SGD = {"sgd": {"lr": 0.1, "momentum": 0.9}}
ADAM = {"adam": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 0.1}}
ONE_CYCLE = {"one_cycle": {"max_lr": 0.2, "total_steps": ROUNDS}}
CYCLIC = {"cyclic": {"base_lr": 0.02, "max_lr": 0.2, "step_size_up": 4}}
STEADY = {"one_cycle": {"max_lr": 0.2, "total_steps": ROUNDS, "cycle_momentum": False}}
CLASSES = {"one_cycle": torch.optim.lr_scheduler.OneCycleLR, "cyclic": torch.optim.lr_scheduler.CyclicLR}
BUILD = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def stepped(optimizer, schedule, rounds=ROUNDS):
    """The options of PyTorch's optimiser in each round, when its schedule is stepped once a round."""
    ((name, options),) = optimizer.items()
    built = BUILD[name]([nn.Parameter(torch.zeros(1))], **options)
    ((kind, given),) = schedule.items()
    stepper = CLASSES[kind](built, **given)
    found = []
    for _ in range(rounds):
        found.append({key: built.param_groups[0][key] for key in options})
        built.step()
        stepper.step()
    return found


def simulated(federation, data, optimizer, schedule, *, keep):
    """Federated averaging of full-batch steps in plain PyTorch, with an optimiser anew each round or kept."""
    network = federation.network(0)
    ((name, _),) = optimizer.items()
    state, kept = network.vector.clone(), {}
    for options in stepped(optimizer, schedule):
        new = []
        for site, own in data.items():
            module = plain_module(network, state)
            local = BUILD[name](module.parameters(), **options)
            if site in kept:
                local.load_state_dict({**local.state_dict(), "state": kept[site]})
            for _ in range(STEPS):
                local.zero_grad()
                F.cross_entropy(module(own.inputs), own.targets).backward()
                local.step()
            if keep:
                kept[site] = local.state_dict()["state"]
            new.append(flat(network, module).detach())
        sizes = [len(own.targets) for own in data.values()]
        state = sum(vector * size for vector, size in zip(new, sizes, strict=True)) / sum(sizes)
    return state


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("schedule", [ONE_CYCLE, CYCLIC, STEADY], ids=["one_cycle", "cyclic", "steady"])
@pytest.mark.parametrize("optimizer", [SGD, ADAM, {"rmsprop": {"lr": 0.01, "momentum": 0.5, "eps": 1.0}}], ids=str)
def test_a_schedule_cycles_momentum_as_in_pytorch(optimizer, schedule, keep, stacked):
    data = table_sites(SITES)
    training = {"rounds": ROUNDS, "local_steps": STEPS, "batch_size": 100, "optimizer": optimizer,
                "schedule": schedule, "optimizer_state": "keep" if keep else "reset"}  # fmt: skip
    federation = Federation(data, model=MLP, training=training, stacked=stacked)
    close(federation.state(), simulated(federation, data, optimizer, schedule, keep=keep))


def test_cycling_momentum_makes_a_difference():
    data = table_sites(SITES)
    training = {"rounds": ROUNDS, "local_steps": STEPS, "batch_size": 100, "optimizer": SGD}
    one, other = (
        Federation(data, model=MLP, training={**training, "schedule": schedule}).state()
        for schedule in (ONE_CYCLE, STEADY)
    )
    assert (one - other).abs().max() > 1e-3


def test_training_alone_under_a_schedule_is_one_loop_of_pytorch():
    """``mix`` with one optimiser and one scheduler that live through all rounds."""
    data = table_sites({"Aachen": 33})
    training = {"rounds": ROUNDS, "local_epochs": STEPS, "batch_size": 100, "optimizer": SGD, "schedule": CYCLIC}
    federation = Federation(data, ["mix"], model=MLP, training=training)
    module = plain_module(federation.network(0), federation.initial(0))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.02, max_lr=0.2, step_size_up=4)
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(module(data["Aachen"].inputs), data["Aachen"].targets).backward()
            optimizer.step()
        schedule.step()
    outcome = federation.outcome()
    expected = federation.template.layout.split(flat(federation.network(0), module).detach())
    (trained,) = outcome.models.values()
    assert trained.keys() >= expected.keys()
    for name, tensor in expected.items():
        close(trained[name], tensor)


def test_only_what_is_cycled_is_sent():
    for schedule, wanted in ((ONE_CYCLE, {"momentum"}), (STEADY, None), (None, None)):
        training = {"rounds": ROUNDS, "batch_size": 100, "optimizer": SGD, "schedule": schedule}
        federation = Federation(table_sites(SITES), training=training)
        with recorded(federation.engine) as said:
            federation.rounds()
        sent = [request.fields for function, _, request, _ in said if function == "train"]
        assert len(sent) == ROUNDS * len(SITES)
        for fields in sent:
            assert (set(fields["optimizer"]) if "optimizer" in fields else None) == wanted


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_momentum_may_fall_to_0(keep, stacked):
    """There is nothing then for Nesterov's to look ahead along; a kept buffer rests meanwhile."""
    schedule = {"cyclic": {**CYCLIC["cyclic"], "step_size_up": 3, "base_momentum": 0.0}}
    optimizer = {"sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True}}
    data, network = table_sites({"Aachen": 33}), build_model("mlp", {"hidden": [6]}, (5,), 2, seed=0)
    training = {"rounds": ROUNDS, "local_steps": STEPS, "batch_size": 100, "optimizer": optimizer,
                "schedule": schedule, "optimizer_state": "keep" if keep else "reset"}  # fmt: skip
    federation = Federation(data, model=MLP, training=training, stacked=stacked)
    module, own = plain_module(network, federation.initial(0)), data["Aachen"]
    local = torch.optim.SGD(module.parameters(), **optimizer["sgd"])
    stepper = torch.optim.lr_scheduler.CyclicLR(local, **schedule["cyclic"])
    momenta = []
    for _ in range(ROUNDS):
        momenta.append(local.param_groups[0]["momentum"])
        if not keep:
            local.state.clear()
        for _ in range(STEPS):
            local.zero_grad()
            F.cross_entropy(module(own.inputs), own.targets).backward()
            local.step()
        stepper.step()
    assert momenta[3] == 0 < momenta[4]
    close(federation.state(), flat(network, module).detach())


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=str)
def test_a_rate_that_falls_to_0_ends_there(optimizer):
    """PyTorch multiplies its way down: 0.3 x 0.01 in three steps ends at -2e-19."""
    ((name, options),) = optimizer.items()
    schedule = {"linear": {"start_factor": 0.3, "end_factor": 0.0, "total_iters": 3}}
    found = learning_rates((name, {**options, "lr": 0.01}), ("linear", schedule["linear"]), 5)
    assert found == pytest.approx([0.003, 0.002, 0.001, 0, 0], abs=1e-12)
    assert min(found) == 0
    training = {"local_steps": STEPS, "optimizer": {name: {**options, "lr": 0.01}}, "schedule": schedule}
    three, five = (Federation(table_sites(SITES), training={**training, "rounds": n}).state() for n in (3, 5))
    assert torch.equal(three, five)


@pytest.mark.parametrize(
    ("optimizer", "options", "said"),
    [
        (SGD, {"base_lr": 0.1, "max_lr": 0.01, "mode": "exp_range", "gamma": 1.5}, "Invalid learning rate: -0.1"),
        (SGD, {"base_lr": 0.01, "max_lr": 0.1, "mode": "exp_range", "gamma": 4.0}, "Invalid momentum value: -0."),
        (ADAM, {"base_lr": 0.01, "max_lr": 0.1, "base_momentum": 1.0}, "Invalid beta parameter at index 0: 1.0"),
    ],
)
def test_a_schedule_that_leaves_what_the_optimiser_takes_is_refused(optimizer, options, said):
    """It is so from the third round on only."""
    ((name, given),) = optimizer.items()
    schedule = {"cyclic": {**options, "step_size_up": 2}}
    resolve_schedule(schedule, (name, given), ("schedule",), 2)
    with pytest.raises(EntryError, match=f"P102 cyclic can't be used with .*{said}") as caught:
        resolve_schedule(schedule, (name, given), ("schedule",), 3)
    assert caught.value.place == ("schedule", "cyclic")


def test_options_of_each_round():
    """max_momentum 0.9 and base_momentum 0.8 in four steps up: 0.9, 0.875, 0.85, 0.825, 0.8, 0.825 ..."""
    found = scheduled(("sgd", {"lr": 0.1, "momentum": 0.5}), ("cyclic", CYCLIC["cyclic"]), 6)
    assert [options["momentum"] for options in found] == pytest.approx([0.9, 0.875, 0.85, 0.825, 0.8, 0.825])
    assert [options["lr"] for options in found] == pytest.approx([0.02, 0.065, 0.11, 0.155, 0.2, 0.155])
    betas = scheduled(("adam", {"lr": 0.1, "betas": [0.9, 0.99]}), ("cyclic", CYCLIC["cyclic"]), 2)
    assert betas[1]["betas"] == pytest.approx([0.875, 0.99])
    assert scheduled(("sgd", {"lr": 0.1, "momentum": 0.5}), ("step", {"step_size": 1}), 2) == [
        {"lr": 0.1}, {"lr": pytest.approx(0.01)}
    ]  # fmt: skip
    assert scheduled(("adadelta", {}), None, 2) == [{"lr": 1.0}] * 2
    assert learning_rates(("sgd", {"lr": 0.5}), ("exponential", {"gamma": 0.5}), 3) == [0.5, 0.25, 0.125]


def test_the_way_of_steps_follows_the_rounds_momentum():
    """‖a‖₁ of k steps with momentum ρ is Σ (1 − ρ^i) / (1 − ρ) for i from 1 to k."""
    work = Work("train", 1, None, 8, ("sgd", {"lr": 0.1, "momentum": 0.9}))
    assert path_length(work, [], 2, 0.1, {"momentum": 0.5}) == pytest.approx(2.5)
    assert path_length(work, [], 2, 0.1) == pytest.approx(2.9)
    training = {"rounds": 5, "local_steps": 2, "batch_size": 100, "optimizer": SGD, "schedule": CYCLIC}
    for method in ("fednova", "scaffold"):
        federation = Federation(table_sites(SITES), [method], training=training)
        with recorded(federation.engine) as said:
            federation.rounds()
        momenta = [request.fields["optimizer"]["momentum"] for function, _, request, _ in said if function == "train"]
        assert momenta == pytest.approx([m for m in (0.9, 0.875, 0.85, 0.825, 0.8) for _ in SITES])
        if method == "fednova":
            paths = [float(reply.tensors["normalised/path"]) for function, _, _, reply in said if function == "train"]
            assert paths == pytest.approx([2 + m for m in momenta])


def test_control_variates_are_the_mean_gradient_under_a_cycled_momentum():
    """Steps are so short that the gradient stays what it was: c_k is that, if the path is the rounds' own."""
    data = table_sites({"Aachen": 12})
    schedule = {"cyclic": {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4}}
    training = {"rounds": 2, "local_steps": 3, "batch_size": 100, "optimizer": SGD, "schedule": schedule}
    federation = Federation(data, ["scaffold"], model=MLP, training=training)
    progress, _ = federation.rounds()
    module = plain_module(federation.network(0), federation.initial(0))
    F.cross_entropy(module(data["Aachen"].inputs), data["Aachen"].targets).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    control = federation.kept(progress)["Aachen"].parts["control_variates"]["control"]
    torch.testing.assert_close(control, gradient, rtol=5e-3, atol=3e-4)


def test_the_mixtures_optimiser_follows_the_rounds_momentum():
    training = {"rounds": 3, "optimizer": SGD, "schedule": CYCLIC}
    federation = Federation(table_sites(SITES), ["apfl"], training=training)
    with recorded(federation.engine) as said:
        federation.rounds()
    request = next(r for function, _, r, _ in reversed(said) if function == "train")
    work = Round(federation.engine.members["Bonn"].run, Train(**request.fields), request.tensors)
    assert dict(work.companion.named[1])["momentum"] == pytest.approx(0.85)


@pytest.mark.parametrize("option", ["maximize", "foreach", "fused", "capturable", "differentiable"])
@pytest.mark.parametrize("value", [True, False])
def test_options_that_are_no_choice_of_a_study_are_refused(option, value):
    with pytest.raises(EntryError, match=f"P104 `{option}` is no choice of a study") as caught:
        resolve_optimizer({"adam": {"lr": 0.1, option: value}}, ("training", "optimizer"))
    assert caught.value.place == ("training", "optimizer", "adam", option)


def test_an_option_that_no_optimiser_has_is_told_as_such():
    with pytest.raises(EntryError, match="P103 adadelta has no option 'fused'"):
        resolve_optimizer({"adadelta": {"fused": True}}, ("optimizer",))


def test_a_schedule_that_the_optimiser_can_not_follow_is_refused():
    """RMSprop makes its buffer of momentum in the first step, or never; Adagrad has no momentum to be cycled."""
    schedule = {"cyclic": {"base_lr": 0.01, "max_lr": 0.1, "base_momentum": 0.9, "max_momentum": 0.0}}
    with pytest.raises(EntryError, match="P102 cyclic can't be used with"):
        resolve_schedule(schedule, ("rmsprop", {"lr": 0.1}), ("schedule",), 3)
    with pytest.raises(EntryError, match=r"P102 cyclic can't be used with .*momentum"):
        resolve_schedule(CYCLIC, ("adagrad", {"lr": 0.1}), ("schedule",), 3)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("name", ["adafactor", "asgd", "rprop"])
def test_an_optimiser_is_given_whole_tensors_where_it_looks_at_them(name, norm):
    """Adafactor's step depends on the norm of each tensor, and on its rows and columns."""
    data = table_sites({"Aachen": 33})
    training = {"rounds": 3, "local_epochs": 2, "batch_size": 100, "optimizer": {name: {"lr": 0.05}}}
    federation = Federation(data, ["mix"], model={"mlp": {"hidden": [6], "norm": norm}}, training=training)
    network = federation.network(0)
    module = plain_module(network, network.vector)
    cls = {"adafactor": torch.optim.Adafactor, "asgd": torch.optim.ASGD, "rprop": torch.optim.Rprop}[name]
    optimizer = cls(module.parameters(), lr=0.05)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(module(data["Aachen"].inputs), data["Aachen"].targets).backward()
        optimizer.step()
    (trained,) = federation.outcome().models.values()
    for entry, tensor in network.layout.split(flat(network, module).detach()).items():
        close(trained[entry], tensor)


def test_whole_tensors_of_a_part():
    """The head's are the last layer's, the body's those of the first one; each with its own gradient."""
    model = build_model("mlp", {"hidden": [6]}, (5,), 2)
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    head, body = model.layout.select({Role.HEAD}), model.layout.select(set(Role) - {Role.HEAD})
    for chosen, wanted in (
        (head, ["2.weight", "2.bias"]),
        (body, ["0.weight", "0.bias"]),
        (None, list(names.values())),
    ):
        parameters = model.parameters_of(chosen, whole=True)
        assert [names[id(parameter)] for parameter in parameters] == wanted
        model.gradient.fill_(2.0)
        assert all(bool((parameter.grad == 2.0).all()) for parameter in parameters)


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1}}, {"adafactor": {"lr": 0.1}}], ids=str)
def test_a_mixture_of_the_own_model_alone_is_training_alone(optimizer):
    """APFL with α = 1 and a rate so that α stays 1: v is trained as by a site alone, whole tensors included."""
    data = table_sites({"Aachen": 33})
    training = {"rounds": 1, "local_steps": 3, "batch_size": 100, "optimizer": optimizer}
    apfl = {"apfl": {"mixture": 1.0, "learn_mixture": False}}
    federation = Federation(data, [apfl, "fedavg"], model=MLP, training=training)
    alone = federation.state("fedavg")
    progress, _ = federation.rounds(federation.declaration.study_methods[0].label)
    close(federation.kept(progress)["Aachen"].personal["weights"], alone)


# One full-batch step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_fedsgd_is_gradient_descent_with_weight_decay(clip, stacked):
    """w ← w − η (clip(∇F) + λ w); clipped before decay, as `torch.optim.SGD` adds it."""
    data, rate, decay = table_sites(SITES), 0.1, 0.5
    sgd = {"lr": rate, "weight_decay": decay, "momentum": 0.9, "nesterov": True}
    training = {"rounds": 4, "batch_size": 7, "clip": clip, "optimizer": {"sgd": sgd}}
    federation = Federation(data, ["fedsgd"], model=MLP, training=training, stacked=stacked)
    network = federation.network(0)
    state = network.vector.clone()
    for _ in range(4):
        steps = []
        for own in data.values():
            module = plain_module(network, state)
            F.cross_entropy(module(own.inputs), own.targets).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
            steps.append((gradient + decay * state) * len(own.targets))
        state = state - rate * sum(steps) / sum(len(own.targets) for own in data.values())
    close(federation.state(), state)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_full_batch_step_of_fedavg_with_weight_decay_is_fedsgd(stacked):
    training = {"rounds": 3, "batch_size": 100, "clip": 0.2, "optimizer": {"sgd": {"lr": 0.1, "weight_decay": 0.5}}}
    federation = Federation(table_sites(), ["fedavg", "fedsgd"], model=MLP, training=training, stacked=stacked)
    close(federation.state("fedavg"), federation.state("fedsgd"))


@pytest.mark.parametrize("optimizer", [ADAM, "rmsprop", {"adamw": {"lr": 0.1}}], ids=str)
def test_fedsgd_takes_no_other_optimiser(optimizer):
    with pytest.raises(EntryError, match=r"P104 fedsgd takes one full-batch gradient step.*sgd: \{lr"):
        Federation(table_sites(SITES), ["fedsgd"], training={"optimizer": optimizer})
    own = {"fedsgd": {"training": {"optimizer": {"sgd": {"lr": 0.1}}}}}
    Federation(table_sites(SITES), ["fedavg", own], training={"optimizer": optimizer})
    with pytest.raises(EntryError) as caught:
        Federation(table_sites(SITES), ["fedavg", {"fedsgd": {"training": {"optimizer": optimizer}}}])
    assert caught.value.place == ("methods", 1, "fedsgd", "training")


def test_a_gradient_step_is_of_sgd():
    assert gradient_step(("sgd", {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.5}), 0.25) == (
        "sgd", {"lr": 0.25, "weight_decay": 0.5}
    )  # fmt: skip
    with pytest.raises(ValueError, match="not of adam"):
        gradient_step(("adam", {}), 0.1)
