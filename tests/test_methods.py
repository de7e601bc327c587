"""Every method against what it must equal: identities, numbers worked out by hand, and PyTorch's own optimisers."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from helpers import (
    SIZES,
    Federation,
    bag_site,
    catalogued,
    exchange,
    finding_site,
    flat,
    image_site,
    measured_site,
    plain_module,
    recorded,
    scaling_steps,
    site_of,
    table_site,
    table_sites,
    trained_state,
    training_message,
)
from polyclinic.client.work import Work, batch_sizes, clip_gradient
from polyclinic.composition import METHODS
from polyclinic.methods import PUBLISHED
from polyclinic.parts import FEDERATION, LOCAL_PARTS
from polyclinic.seeds import derive_seed, generator
from polyclinic.site.round import Round
from polyclinic.state import Role

MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}
NORM_MLP = {"mlp": {"hidden": [6], "norm": "batch"}}


def one_site(cases=33):
    return {"Aachen": table_site("Aachen", cases)}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# The frame ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["logistic", NORM_MLP, {"mlp": {"hidden": [7], "norm": "layer"}}])
@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ({"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}}, torch.optim.SGD),
        ({"adam": {"lr": 0.01}}, torch.optim.Adam),
        ({"adamw": {"lr": 0.01, "weight_decay": 0.1}}, torch.optim.AdamW),
    ],
)
def test_fedavg_with_one_site_is_plain_training(model, optimizer, kind):
    data = one_site()
    federation = Federation(data, model=model, training={"rounds": 3, "local_epochs": 2, "optimizer": optimizer})
    network = federation.network(4)
    module = plain_module(network, network.vector).train()
    site = data["Aachen"]
    for number in range(3):
        plain = kind(module.parameters(), **next(iter(optimizer.values())))
        start, source = flat(network, module), generator(4, "train", "Aachen", 0, number)
        for _ in range(2):
            order = torch.randperm(33, generator=source)
            for batch in order.split([8, 8, 8, 9]):  # the 33rd case joins the last batch
                plain.zero_grad()
                F.cross_entropy(module(site.inputs[batch]), site.targets[batch]).backward()
                plain.step()
        exchange(network, module, start)
    assert torch.equal(federation.state(seed=4), flat(network, module))


@pytest.mark.parametrize("methods", [["single", "mix"], ["single", "ensemble"], ["mix", "ensemble"]])
def test_with_one_site_single_mix_and_ensemble_are_the_same(methods):
    """But for rounding: the pool sends the change of its weights each round, and the others keep theirs."""
    data = {"Aachen": table_site("Aachen", 40, part=None)}
    federation = Federation(
        data, methods, model=NORM_MLP, training={"rounds": 4, "optimizer": MOMENTUM},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip
    first, second = (federation.outcome(method) for method in methods)
    tensors = [next(iter(outcome.models.values())) for outcome in (first, second)]
    for one, other in zip(tensors[0].values(), tensors[1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    columns = ["site", "subject", "case", "label", "score", "threshold"]
    one, other = first.predictions[0][columns], second.predictions[0][columns]
    pd.testing.assert_frame_equal(one, other, rtol=1e-5, atol=1e-7)
    assert [row["loss"] for row in first.rounds] == pytest.approx([row["loss"] for row in second.rounds], rel=1e-5)


def scores_of(federation, tensors, site):
    """Probabilities that a saved model gives for a site's test cases, computed with an ordinary module."""
    network = federation.network(0)
    module = plain_module(network, network.vector).eval()
    with torch.no_grad():
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in tensors.items():
            named[name].copy_(tensor)
        dataset, parts = federation.engine.members[site].dataset, federation.engine.members[site].parts
        return module(dataset.batch(parts.test)[0]).double().softmax(1)[:, 1]


def test_single_cross_and_ensemble_are_the_models_of_the_sites():
    data = table_sites({"Aachen": 33, "Bonn": 12, "Celle": 17}, part=None)
    methods = ["single", "cross", "ensemble"]
    federation = Federation(
        data, methods, model=NORM_MLP, training={"rounds": 2},
        evaluation={"folds": 3, "validation": 0.2, "best_round": "loss"},
    )  # fmt: skip
    outcome = federation.outcome(*methods)
    saved = next(iter(outcome.models.values()))
    models = {
        site: {n.removeprefix(f"{site}/"): t for n, t in saved.items() if n.startswith(f"{site}/")} for site in data
    }
    scores = {site: {of: scores_of(federation, models[of], site) for of in data} for site in data}
    found = {}
    for frame in outcome.predictions:
        found[frame["method"].iloc[0], frame["trained_on"].iloc[0], frame["site"].iloc[0]] = frame
    pairs = {(of, site) for of in data for site in data}
    assert {(of, site) for method, of, site in found if method == "single"} == {(site, site) for site in data}
    assert {(of, site) for method, of, site in found if method == "cross"} == {(a, b) for a, b in pairs if a != b}
    assert {(of, site) for method, of, site in found if method == "ensemble"} == {("federation", site) for site in data}
    for (method, of, site), frame in found.items():
        expected = torch.stack(list(scores[site].values())).mean(0) if method == "ensemble" else scores[site][of]
        close(torch.from_numpy(frame["score"].to_numpy(copy=True)), expected, 1e-7)
        labels = data[site].targets[federation.engine.members[site].parts.test]
        assert frame["label"].tolist() == labels.tolist()
    assert not torch.equal(scores["Aachen"]["Aachen"], scores["Aachen"]["Bonn"]), "or the test could not fail"


def test_single_trains_on_across_rounds_as_if_there_were_none():
    """Two rounds of one epoch keep the optimiser's state, so they are plain training of two epochs."""
    data = one_site()
    federation = Federation(data, ["single"], model=NORM_MLP, training={"rounds": 2, "optimizer": MOMENTUM})
    network = federation.network(0)
    module = plain_module(network, network.vector).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    site = data["Aachen"]
    for number in range(2):
        order = torch.randperm(33, generator=generator(0, "train", "Aachen", 0, number))
        for batch in order.split([8, 8, 8, 9]):
            optimizer.zero_grad()
            F.cross_entropy(module(site.inputs[batch]), site.targets[batch]).backward()
            optimizer.step()
    progress, _ = federation.rounds()
    assert torch.equal(federation.kept(progress)["Aachen"].own, flat(network, module))


def test_mix_sees_the_cases_of_all_sites_and_each_with_its_own_scaling():
    data = table_sites(SIZES)
    federation = Federation(
        data, ["mix"], preparation={"steps": scaling_steps("per_site")}, training={"batch_size": 100}
    )
    pool = federation.local.pool("all of them", list(data))
    inputs, targets = pool.members["all of them"].dataset.batch(torch.arange(sum(SIZES.values())))
    parts = [(site.inputs - site.inputs.mean(0)) / site.inputs.std(0, correction=0) for site in data.values()]
    close(inputs, torch.cat(parts), 1e-5)
    assert torch.equal(targets, torch.cat([site.targets for site in data.values()]))


# Identities of the federated methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["logistic", NORM_MLP])
def test_fedprox_without_its_term_is_fedavg(model):
    federation = Federation(
        table_sites(), ["fedavg", {"fedprox": {"mu": 0, "label": "fedprox"}}], model=model,
        training={"rounds": 3, "local_epochs": 2, "optimizer": MOMENTUM},
    )  # fmt: skip
    assert torch.equal(federation.state("fedavg"), federation.state("fedprox"))


@pytest.mark.parametrize("rounds", [1, 3])
def test_fedprox_is_training_with_half_mu_times_the_squared_distance_in_the_loss(rounds):
    data = one_site()
    training = {"rounds": rounds, "local_epochs": 2, "optimizer": MOMENTUM}
    federation = Federation(data, [{"fedprox": {"mu": 0.7}}], model={"mlp": {"hidden": [6]}}, training=training)
    network, site = federation.network(0), data["Aachen"]
    module = plain_module(network, network.vector).train()
    for number in range(rounds):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        start, source = flat(network, module), generator(0, "train", "Aachen", 0, number)
        for _ in range(2):
            for batch in torch.randperm(33, generator=source).split([8, 8, 8, 9]):
                optimizer.zero_grad()
                weights = torch.cat([dict(module.named_parameters())[e.name].flatten() for e in network.layout.entries])
                distance = 0.7 / 2 * (weights - start).square().sum()
                (F.cross_entropy(module(site.inputs[batch]), site.targets[batch]) + distance).backward()
                optimizer.step()
    close(federation.state(), flat(network, module), 1e-5)


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_the_proximal_term_serves_one_site_and_many_stacked(shape):
    gradient, weights, start = torch.randn(3, *shape)
    expected = gradient + 0.5 * (weights - start)
    LOCAL_PARTS["proximal"](mu=0.5).gradient(gradient, weights, start, {})
    close(gradient, expected)


def test_fedprox_with_its_term_is_not_fedavg():
    federation = Federation(table_sites(), ["fedavg", {"fedprox": {"mu": 1.0, "label": "fedprox"}}])
    near, far = federation.state("fedprox"), federation.state("fedavg")
    assert near.norm() < far.norm(), "the logistic model starts at zero, and the term holds it there"


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_one_full_batch_step_of_fedavg_is_fedsgd(class_weights):
    federation = Federation(
        table_sites(), ["fedavg", "fedsgd"], model={"mlp": {"hidden": [6]}},
        training={"rounds": 4, "batch_size": 100, "class_weights": class_weights},
    )  # fmt: skip
    close(federation.state("fedavg"), federation.state("fedsgd"))


@pytest.mark.parametrize("batch_size", [7, 100])
@pytest.mark.parametrize("class_weights", ["none", "balanced", [0.5, 3.0]])
def test_fedsgd_is_gradient_descent_on_the_pool(class_weights, batch_size):
    data = table_sites()
    data["Bonn"].targets[:8] = 0  # so that balanced weights are not all 1
    federation = Federation(
        data, ["fedsgd"], model={"mlp": {"hidden": [6]}},
        training={"rounds": 5, "batch_size": batch_size, "class_weights": class_weights},
    )  # fmt: skip
    inputs = torch.cat([site.inputs for site in data.values()])
    targets = torch.cat([site.targets for site in data.values()])
    counts = torch.bincount(targets)
    assert counts[0] != counts[1]
    weights = {"none": torch.ones(2), "balanced": len(targets) / (2 * counts)}
    weight = weights[class_weights] if isinstance(class_weights, str) else torch.tensor(class_weights)
    network = federation.network(0)
    module = plain_module(network, network.vector)
    for _ in range(5):
        module.zero_grad()
        (F.cross_entropy(module(inputs), targets, reduction="none") * weight[targets]).mean().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
    close(federation.state(), flat(network, module))


@pytest.mark.parametrize("method", ["fedbn", "silobn"])
def test_without_normalisation_layers_fedbn_and_silobn_are_fedavg(method):
    federation = Federation(
        table_sites(), ["fedavg", method], model={"mlp": {"hidden": [6]}}, training={"rounds": 3}
    )  # fmt: skip
    assert torch.equal(federation.state("fedavg"), federation.state(method))


def test_fedavgm_without_momentum_is_fedavg():
    federation = Federation(
        table_sites(), ["fedavg", {"fedavgm": {"lr": 1.0, "momentum": 0.0, "label": "fedavgm"}}], model=NORM_MLP,
        training={"rounds": 3},
    )  # fmt: skip
    close(federation.state("fedavg"), federation.state("fedavgm"))


def test_a_server_rule_given_to_fedavg_is_the_method_of_that_name():
    rules = [{"fedavg": {"server": {name: {"lr": 0.05}}, "label": f"with {name}"}} for name in ("fedavgm", "fedadam")]
    named = [{name: {"lr": 0.05, "label": name}} for name in ("fedavgm", "fedadam")]
    federation = Federation(table_sites(), [*rules, *named], training={"rounds": 3})
    for name in ("fedavgm", "fedadam"):
        assert torch.equal(federation.state(f"with {name}"), federation.state(name))


#: Options that a method can't do without.
REQUIRED = {
    "fltrust": {"trusted": "Aachen"}, "fairfed": {"subgroup": "sex", "group": "F"},
    "public_teacher": {"weights": "teacher.safetensors"}, "asyndgan": {"generator_rounds": 1, "steps": 2},
    "fed_gan": {"generator_rounds": 1, "steps": 2},
    "fedmoco": {"pretraining_rounds": 1}, "fl_mrcm": {"target": "Aachen"}, "style_generator": {"style_rounds": 2},
}  # fmt: skip
#: Methods whose rule means something else even where all sites are the same.
OTHERWISE = {"single", "cross", "ensemble", "mix", "cyclic", "incremental", "fedprox", "feddyn", "fedavgm", "fedadam",
             "fedyogi", "fedadagrad", "qfedavg", "norm_bound", "fedper", "lg_fedavg", "fedrep", "moon",
             "dynamic_fusion", "harmofl", "elcfs", "fed_align", "fedmd", "feddf", "fedad", "public_teacher", "fed_moe",
             "style_transfer", "splitavg", "asyndgan", "fed_gan", "fedvss", "fedmoco", "graph_layer", "lora", "bitfit",
             "fedharmony", "fl_mrcm", "fedmri"}  # fmt: skip
#: Methods for images alone.
FOR_IMAGES = {"harmofl", "elcfs", "style_transfer", "style_generator", "fedad"}
#: Methods for several labels.
FOR_FINDINGS = {"multi_task", "graph_layer"}
#: Methods for masks.
FOR_MASKS = {"feddm", "fedmix"}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_equal_sites_give_what_each_of_them_gives(method, tmp_path):
    """Methods that put updates together leave identical sites alone; the others at least run."""
    site, model = table_site("Aachen", 16), {"mlp": {"hidden": [4]}}
    kind = {}
    if method == "attention_mil":
        site, model = bag_site("Aachen", 16), {"gated_attention": {"encoder": {"mlp": {"hidden": [4]}}}}
    if method == "fedmri":
        site, kind = measured_site("Aachen", 16), {"task": "reconstruction", "classes": 0}
        model = {"unrolled": {"network": {"unet": {"channels": [4, 8]}}}}
    if method in FOR_IMAGES:
        site, model = image_site("Aachen", 16), {"cnn": {"channels": [4]}}
    if method in FOR_MASKS:
        site, kind = image_site("Aachen", 16, masks=True), {"task": "segmentation"}
        model = {"unet": {"channels": [2, 4], "residual_units": 0}}
    if method in FOR_FINDINGS:
        site, kind = finding_site("Aachen", 16), {"task": "multi_label", "classes": 4}
    # Seven sites are what Bulyan needs against one that is corrupt. Sites of another name would shuffle otherwise.
    groups = {"sex": ["FM"[row % 2] for row in range(16)]}
    sites = [site_of(name, site.inputs, site.targets) for name in ("Aachen", *"BCDEFG")]
    public = site.inputs[:6] if isinstance(site.inputs, torch.Tensor) and method != "fedmri" else None
    lines = site.undersampling
    data = {one.site: replace(one, groups=groups, public=public, undersampling=lines) for one in sites}
    training = {"rounds": 2, "batch_size": 16}
    entry = {method: REQUIRED.get(method, {})}
    made = Federation(data, [entry], model=model, training=training, evaluation={"subgroups": ["sex"]}, **kind)
    save_file(plain_module(made.template, made.initial(0)).state_dict(), tmp_path / "teacher.safetensors")
    made.runner.planner.folder = tmp_path
    state = made.state()
    alone = Federation({"Aachen": site}, ["fedavg"], model=model, training=training, **kind).state()
    if method not in OTHERWISE:
        close(state, alone)
    assert PUBLISHED[method].citation
    assert PUBLISHED[method].summary.endswith(".")


# Normalisation layers -------------------------------------------------------------------------------------------------


def norm_federation(method, **options):
    model = {"cnn": {"channels": [3, 4]}} if options.pop("images", False) else NORM_MLP
    return Federation(table_sites(), [method], model=model, training={"rounds": 2, "local_epochs": 2}, **options)


def coordinates(layout, role):
    mask = torch.zeros(layout.size, dtype=torch.bool)
    for entry in layout.entries:
        mask[entry.offset : entry.offset + entry.size] = entry.role is role
    return mask


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("fedavg", set()),
        ("fedsgd", set()),
        ("silobn", {Role.NORM_STATISTIC}),
        ("fedbn", {Role.NORM_STATISTIC, Role.NORM_WEIGHT}),
    ],
)
def test_what_is_shared_is_averaged_and_what_is_kept_stays(method, kept):
    federation = norm_federation(method)
    layout = federation.template.layout
    initial = federation.initial(0)
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    last = {site: trained_state(*exchange) for function, site, *exchange in said if function == "train"}
    shared = torch.stack(list(last.values()))
    counts = torch.tensor(list(SIZES.values()), dtype=torch.float32)
    close(progress.model(FEDERATION), (shared * (counts / counts.sum())[:, None]).sum(0))
    federation.kept(progress)
    models = {name: member.run.vector(progress.model(FEDERATION)) for name, member in federation.engine.members.items()}
    assert {Role.WEIGHT, Role.HEAD, Role.NORM_WEIGHT, Role.NORM_STATISTIC} == {e.role for e in layout.entries}
    for role in (Role.WEIGHT, Role.HEAD, Role.NORM_WEIGHT, Role.NORM_STATISTIC):
        where = coordinates(layout, role)
        vectors = [model[where] for model in models.values()]
        same = all(torch.equal(vectors[0], vector) for vector in vectors)
        assert same is (role not in kept)
        assert not torch.equal(vectors[0], initial[where]), "trained, in any case"
    assert shared.shape[1] == layout.size - sum(int(coordinates(layout, role).sum()) for role in kept)


@pytest.mark.parametrize("method", ["fedavg", "silobn", "fedbn"])
def test_the_next_round_starts_from_the_shared_part_and_the_own_part(method):
    federation = norm_federation(method)
    plan = federation.plan()
    layout = federation.template.layout
    progress, _ = federation.rounds()
    member = federation.engine.members["Bonn"]
    own = federation.kept(progress)["Bonn"].own.clone()
    state = torch.full((plan.selection.size,), 0.25)
    job = Round(member.run, *training_message(2, state)).job(0)
    expected = torch.empty(layout.size)
    member.run.shared.put(expected, state)
    member.run.private.put(expected, own)
    assert torch.equal(job.start, expected)
    assert own.numel() == {"fedavg": 0, "silobn": 12, "fedbn": 24}[method]


@pytest.mark.parametrize("method", ["fedavg", "silobn", "fedbn"])
def test_integer_buffers_never_travel_and_are_not_added_up_over_sites(method):
    federation = norm_federation(method)
    with recorded(federation.engine) as said:
        federation.rounds()
    for _, _, request, reply in said:
        assert all(t.is_floating_point() for t in [*request.tensors.values(), *reply.tensors.values()])
    model = federation.engine.members["Aachen"].run.model
    steps = model.module[1].num_batches_tracked
    assert steps.dtype == torch.int64
    assert steps == 2 * 2 * 3, "two rounds of two epochs of three batches at Dresden, who trained last, and no others"


def test_frozen_parameters_and_plain_buffers_are_shared_but_not_trained():
    def build(shape, outputs):
        head = nn.Linear(4, outputs)
        body = nn.Linear(shape[0], 4)
        body.weight.requires_grad_(False)
        body.register_buffer("scale", torch.tensor([2.0]))
        return nn.Sequential(body, nn.ReLU(), head), [head]

    with catalogued("half_frozen", build):
        federation = Federation(table_sites(), model="half_frozen", training={"rounds": 2})
        before, layout = federation.initial(0), federation.template.layout
        after = layout.split(federation.state())
    close(after["0.weight"], layout.split(before)["0.weight"])
    close(after["0.scale"], torch.tensor([2.0]))
    assert not torch.equal(after["0.bias"], layout.split(before)["0.bias"])


# Exact numbers --------------------------------------------------------------------------------------------------------
#
# A model with two weights, logits (w0 x, w1 x), started at zero. Its gradient for one case is x (p - onehot(label)).
# Site A has one case x = 2 of class 0: gradient (-1, 1). Site B has three cases x = 4 of class 1: gradient (2, -2).


def two_weights(shape, outputs):
    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    return layer, [layer]


def hand_sites():
    return {
        "A": site_of("A", torch.tensor([[2.0]]), torch.tensor([0])),
        "B": site_of("B", torch.tensor([[4.0]] * 3), torch.tensor([1] * 3)),
    }


def by_hand(method, **training):
    with catalogued("two_weights", two_weights):
        federation = Federation(hand_sites(), [method], model="two_weights", training=training)
        assert federation.template.layout.size == 2
        return federation.state()


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_fedavg_by_hand():
    """A ends at (0.1, -0.1), B at (-0.2, 0.2); weighted 1 to 3."""
    close(by_hand("fedavg"), torch.tensor([0.025 - 0.15, -0.025 + 0.15]))


def test_fedavg_with_uniform_weights_by_hand():
    close(by_hand("fedavg", weights="uniform"), torch.tensor([-0.05, 0.05]))


def test_fedsgd_by_hand():
    """Round 2 starts at w = (-0.125, 0.125): A's gradient is 2 (p0 - 1) with p0 = sigmoid(2 · -0.25), B's is 4 p0."""
    close(by_hand("fedsgd"), torch.tensor([-0.125, 0.125]))
    gradient = 0.25 * 2 * (sigmoid(-0.5) - 1) + 0.75 * 4 * sigmoid(-1.0)
    second = -0.125 - 0.1 * gradient
    close(by_hand("fedsgd", rounds=2), torch.tensor([second, -second]))


def test_fedprox_by_hand():
    """Two steps with mu = 1 from w = 0; the second has the gradient of the term, w' - w."""
    a = 0.1 - 0.1 * (2 * (sigmoid(2 * 0.2) - 1) + 0.1)
    b = -0.2 - 0.1 * (4 * sigmoid(4 * -0.4) - 0.2)
    mean = 0.25 * a + 0.75 * b
    close(by_hand({"fedprox": {"mu": 1.0}}, local_steps=2), torch.tensor([mean, -mean]))


def test_clipping_by_hand():
    """Norms are √2 and 2√2; clipped to 1 both steps are 0.1 along (∓1, ±1)/√2."""
    step = 0.1 / math.sqrt(2)
    mean = 0.25 * step - 0.75 * step
    close(by_hand("fedavg", clip=1.0), torch.tensor([mean, -mean]))
    close(by_hand("fedavg", clip=2.0), torch.tensor([0.025 - 0.75 * 2 * step, -0.025 + 0.75 * 2 * step]))


def test_clipping_treats_each_stacked_site_by_itself():
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    clip_gradient(gradient, 1.0)
    close(gradient, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_class_weights_by_hand():
    """Balanced weights are 4 / (2 · 1) = 2 for class 0 and 4 / (2 · 3) = 2/3 for class 1."""
    expected = 0.25 * 0.2 - 0.75 * 0.2 * 2 / 3
    close(by_hand("fedavg", class_weights="balanced"), torch.tensor([expected, -expected]))


def test_local_momentum_starts_anew_each_round_unless_kept():
    """A alone with two rounds of a step: v = g1, then g2 (reset) or 0.9 g1 + g2 (kept)."""
    second = 2 * (sigmoid(2 * 0.2) - 1)
    with catalogued("two_weights", two_weights):
        found = {}
        for state in ("reset", "keep"):
            training = {"rounds": 2, "optimizer": MOMENTUM, "optimizer_state": state}
            data = {"A": hand_sites()["A"]}
            found[state] = Federation(data, model="two_weights", training=training).state()
    close(found["reset"][0], torch.tensor(0.1 - 0.1 * second))
    close(found["keep"][0], torch.tensor(0.1 - 0.1 * (-0.9 + second)))


def test_the_schedule_is_stepped_once_a_round():
    """step_size 1, gamma 0.5: the rate is 0.1, then 0.05."""
    training = {"rounds": 2, "schedule": {"step": {"step_size": 1, "gamma": 0.5}}}
    gradient = 0.25 * 2 * (sigmoid(-0.5) - 1) + 0.75 * 4 * sigmoid(-1.0)
    second = -0.125 - 0.05 * gradient
    close(by_hand("fedsgd", **training), torch.tensor([second, -second]))


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "batch", "epochs", "steps", "expected"),
    [
        (10, 4, 1, None, [4, 4, 2]),
        (9, 4, 1, None, [4, 5]),  # a single case is joined, because batch normalisation needs two
        (9, 4, 2, None, [4, 5, 4, 5]),
        (8, 4, 1, None, [4, 4]),
        (3, 4, 1, None, [3]),
        (1, 4, 2, None, [1, 1]),
        (10, 4, None, 5, [4, 4, 2, 4, 4]),
        (10, 4, None, 1, [4]),
        (3, 4, None, 3, [3, 3, 3]),
        (3, 1, 1, None, [1, 1, 1]),
    ],
)
def test_batch_sizes(cases, batch, epochs, steps, expected):
    assert batch_sizes(cases, Work("train", epochs, steps, batch, ("sgd", {}))) == expected


def test_seeds_depend_on_every_name_and_on_its_type():
    seeds = {derive_seed(0, "train", "A", 1), derive_seed(0, "train", "A", 2), derive_seed(0, "train", "B", 1),
             derive_seed(1, "train", "A", 1), derive_seed("0", "train", "A", 1),
             derive_seed(0, "trainA", 1)}  # fmt: skip
    assert len(seeds) == 6
    assert derive_seed(0, "train", "A", 1) == derive_seed(0, "train", "A", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "split", "Aachen") == 8353975392481846422, "a release that changes seeds changes all results"
