"""LoRA and BitFit: little of a frozen network is trained and sent."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import Federation, catalogued, image_sites, plain_module, recorded, table_sites
from polyclinic.communication.message import Message
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import PartError, TrainingError
from polyclinic.models import build_model
from polyclinic.models.adapters import Tuning, tuned
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION, build_part
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.study.notes import frozen_from_scratch
from server_exchange import Rule, close

MLP = {"mlp": {"hidden": [6, 4]}}
NORM = {"mlp": {"hidden": [6], "norm": "batch"}}
MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}


def made(*methods, data=None, **options):
    options = {"model": MLP, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(data or table_sites(), list(methods), **options)


def lora(**options):
    return {"lora": options}


def network_with(rank=1, alpha=1.0, trained=(), layers=(), model=("mlp", {"hidden": [2]}), shape=(3,), outputs=2):
    whole = build_model(*model, shape, outputs)
    return whole, tuned(whole, Tuning(rank, alpha, tuple(layers), frozenset(trained)), (0, 0))


def first_of(layer, rank, columns, seed=(0, 0)):
    """A of a layer before the first step."""
    drawn = torch.rand(rank, columns, generator=generator("adapters", *seed, layer))
    return (2 * drawn - 1) / columns**0.5


# By hand --------------------------------------------------------------------------------------------------------------


def test_products_are_averaged_and_not_factors():
    """A layer of 2 inputs and 2 outputs, rank 1, α 2, A = [p, q] at first, the same everywhere.

    Site 1 of weight 1 sends B = (1, 2) and A + (1, 0), site 2 of weight 3 B = (0, 4) and A + (0, 1). Mean of 2 B A:
    2 · 1/4 · (1, 2)ᵀ(p + 1, q) + 2 · 3/4 · (0, 4)ᵀ(p, q + 1).
    """
    whole, variant = network_with(alpha=2.0, model=("logistic", {}), shape=(2,))
    assert [e.name for e in variant.network.layout.entries] == ["lora_down", "lora_up", "weight", "bias"]
    p, q = first_of("weight", 1, 2)[0].tolist()
    rule, weights = Rule(), {"A": 1.0, "B": 3.0}
    rule.begin(
        whole.vector.clone(), torch.zeros(0), weights, variants=dict.fromkeys(weights, variant), sites=["A", "B"]
    )
    rule.take("A", torch.tensor([1.0, 0.0, 1.0, 2.0]), torch.zeros(0), 1.0, {})
    rule.take("B", torch.tensor([0.0, 1.0, 0.0, 4.0]), torch.zeros(0), 3.0, {})
    expected = [(p + 1) / 2, q / 2, p + 1 + 6 * p, q + 6 * (q + 1), 0, 0]
    close(rule.finish(), expected, 1e-6)
    apart = 2 * torch.tensor([[0.25], [3.5]]) @ torch.tensor([[p + 0.25, q + 0.75]])
    assert (apart.flatten() - torch.tensor(expected[:4])).abs().max() > 0.1


class Plain(nn.Module):
    """5 → 6 → 4 → 2 with adapters of rank r beside the first two layers, written without the package."""

    def __init__(self, tensors, rank, scale, seed):
        super().__init__()
        self.base = {name: tensor.clone() for name, tensor in tensors.items()}
        self.scale, names = scale, ("0", "2")
        self.up = nn.ParameterList([torch.zeros(len(tensors[f"{n}.weight"]), rank) for n in names])
        downs = [first_of(f"{n}.weight", rank, tensors[f"{n}.weight"].shape[1], seed) for n in names]
        self.down = nn.ParameterList(downs)
        self.head = nn.ParameterList([tensors["4.weight"].clone(), tensors["4.bias"].clone()])

    def weight(self, place):
        return self.base[f"{2 * place}.weight"] + self.scale * self.up[place] @ self.down[place]

    def forward(self, inputs):
        for place in (0, 1):
            inputs = F.relu(F.linear(inputs, self.weight(place), self.base[f"{2 * place}.bias"]))
        return F.linear(inputs, *self.head)

    def merged(self):
        return torch.cat([
            self.weight(0).flatten(), self.base["0.bias"], self.weight(1).flatten(), self.base["2.bias"],
            *(tensor.flatten() for tensor in self.head),
        ]).detach()  # fmt: skip


def test_one_site_trains_as_a_small_program_of_lora_does():
    """Full batches, three steps in each of two rounds; after the first the weights have taken the adapters in."""
    data = table_sites({"Aachen": 16})
    federation = made(lora(rank=2, alpha=6.0), data=data, training={"batch_size": 100, "local_epochs": 3})
    vector, inputs, targets = federation.initial(0), data["Aachen"].inputs, data["Aachen"].targets
    for _ in range(2):
        plain = Plain(federation.template.layout.split(vector), 2, 3.0, (0, 0))
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs), targets).backward()
            optimizer.step()
        vector = plain.merged()
    close(federation.state(), vector, 1e-5)


def test_a_round_of_several_sites_gives_the_exact_mean_of_what_each_would_have_alone():
    data = table_sites()
    together = made("lora", data=data, training={"rounds": 1})
    alone = [made("lora", data={name: site}, training={"rounds": 1}) for name, site in data.items()]
    sizes = torch.tensor([len(site.inputs) for site in data.values()], dtype=torch.float64)
    start = together.initial(0)
    changes = torch.stack([(one.state() - start).double() for one in alone])
    close(together.state(), start + (sizes / sizes.sum()) @ changes, 1e-6)
    assert (changes[:, :30].abs().sum(1) > 0).all()


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["mean", "fedadam", "median"])
def test_adapters_without_weight_leave_the_model_as_it_is_to_the_bit(server):
    federation = made(lora(alpha=0.0, also=[], server=server), model=NORM)
    assert torch.equal(federation.state(), federation.initial(0))


def test_with_all_as_it_is_and_no_adapter_it_is_fedavg():
    """Norm layers, biases and the head are all that a logistic model on normalised features has."""
    model = {"logistic": {"norm": "batch"}}
    entry = {"fedavg": {"local": [{"partial_tuning": {"trains": ["head", "norm", "bias"]}}]}}
    close(made(entry, model=model).state(), made("fedavg", model=model).state(), 1e-6)


@pytest.mark.parametrize("model", [NORM, {"cnn": {"channels": [4]}}])
def test_what_is_frozen_stays_as_it_is_to_the_bit(model):
    data = image_sites() if "cnn" in model else table_sites()
    for method, moved in (
        ("bitfit", ("head", "bias")),
        (lora(also=[]), ("adapted",)),
        ({"bitfit": {"trains": ["head"]}}, ("head",)),
        ({"bitfit": {"trains": ["norm"]}}, ("norm",)),
    ):
        federation = made(method, model=model, data=data)
        before, after = (federation.template.layout.split(v) for v in (federation.initial(0), federation.state()))
        for entry in federation.template.layout.entries:
            own = {
                "head": entry.role.value == "head",
                "bias": entry.name.endswith("bias"),
                "norm": entry.role.value.startswith("norm"),
                "adapted": entry.role.value in ("weight", "head") and entry.name.endswith("weight"),
            }
            changes = any(own[kind] for kind in moved)
            assert torch.equal(before[entry.name], after[entry.name]) is not changes, (method, entry.name)


# What is sent ---------------------------------------------------------------------------------------------------------


def test_a_site_sends_adapters_and_is_sent_what_can_have_changed():
    data = table_sites(features=40)
    model = {"mlp": {"hidden": [40, 40]}}
    numbers = {
        "lora": (2 * (40 + 40) * 2 + 82, 2 * 1600 + 82),
        "bitfit": (40 + 40 + 82, 40 + 40 + 82),
        "fedavg": (2 * 1640 + 82, 2 * 1640 + 82),
    }
    for method, (up, down) in numbers.items():
        _, rows = made(lora(rank=2) if method == "lora" else method, data=data, model=model).rounds()
        for row in rows:
            assert 4 * up < row["bytes_up"] < 4 * up + 400
            assert 4 * down < row["bytes_down"] < 4 * down + 400


def test_all_sites_are_validated_with_the_plain_network():
    federation = made("lora", evaluation={"validation": 0.3, "best_round": "loss"},
                      data=table_sites(part=None), preparation={"folds": 2})  # fmt: skip
    with recorded(federation.engine) as said:
        federation.rounds()
    lengths = {len(request.tensors["state"]) for function, _, request, _ in said if function == "evaluate"}
    assert lengths == {federation.template.layout.size}


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_what_fedavg_does_with_a_tenth_of_what_is_sent(seed):
    """One of many features tells the classes, which a change of rank 1 can bring to the front in any network."""
    source = torch.Generator().manual_seed(seed)
    data = table_sites({"Aachen": 40, "Bonn": 40}, features=30)
    for site in data.values():
        site.inputs.copy_(torch.randn(40, 30, generator=source))
        site.inputs[:, 3] = (2.0 * site.targets - 1) * 6
    model, training = {"mlp": {"hidden": [60, 60]}}, {"rounds": 15, "optimizer": {"sgd": {"lr": 0.05}}}
    found = {}
    for method in ("fedavg", lora(rank=1)):
        federation = made(method, data=data, model=model, training=training)
        progress, rows = federation.rounds(seed=seed)
        module = plain_module(federation.template, progress.model(FEDERATION)).eval()
        right = sum(int((module(site.inputs).argmax(1) == site.targets).sum()) for site in data.values())
        found[str(method)] = right, sum(row["bytes_up"] for row in rows)
    (plain, all_of_it), (small, adapters) = found.values()
    assert plain == 80
    assert small >= 76
    assert adapters < all_of_it / 8


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (("cnn", {"channels": [4, 6], "norm": "group"}), (1, 8, 8)),
        (("unet", {"channels": [4, 8]}), (1, 8, 8)),
        (("dynunet", {"filters": [4, 8, 8], "deep_supervision": True}), (1, 16, 16)),
        (("cnn", {"channels": [4]}), (1, 6, 6, 6)),
    ],
)
def test_adapters_beside_convolutions_are_their_products_in_the_weights(model, shape):
    """Each variant is compared with the study's network when it is made; here the numbers of all ranks."""
    for rank in (1, 3, 50):
        whole, variant = network_with(rank=rank, model=model, shape=shape, trained=["head"])
        for entry in variant.network.layout.entries:
            if entry.name.endswith("lora_down"):
                layer = whole.module.get_submodule(entry.name.rpartition(".")[0])
                columns = layer.weight[0].numel()
                assert entry.shape == (min(rank, len(layer.weight), columns), columns)
        assert len(variant.places) == len(variant.places.unique())


class Odd(nn.Linear):
    """A linear layer that does something else besides."""

    def forward(self, inputs):
        return super().forward(inputs) * self.weight.sum()


class Ended(nn.Sequential):
    """A network with the name ``body``, and a last layer."""

    def __init__(self, body):
        super().__init__()
        self.body, self.end = body, nn.Linear(2, 2)


class PassedBy(nn.Module):
    """Uses the weights of a layer that it never runs, by which its outputs change little."""

    def __init__(self):
        super().__init__()
        self.first, self.other, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs):
        features = self.first(inputs)
        return self.last(features + 1e-4 * F.linear(features, self.other.weight))


class Attending(nn.Module):
    """Attention and a recurrent layer of PyTorch's own over the features of a row."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.memory, self.last = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)
        self.position_bias, self.q_bias = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(4))

    def forward(self, inputs):
        features = self.first(inputs[..., None]) + self.position_bias + self.q_bias
        features = features + self.attention(features, features, features)[0]
        return self.last(self.memory(features)[0][:, -1])


def attending(rank, trained):
    with catalogued("own", lambda shape, outputs: ((net := Attending()), [net.last])):
        whole = build_model("own", {}, (3,), 2)
    return whole, tuned(whole, Tuning(rank, 1.0, (), frozenset(trained)), (0,))


def test_each_bias_is_trained_whatever_it_is_called():
    _, variant = attending(0, ["bias"])
    assert {entry.name for entry in variant.network.layout.entries if entry.trainable} == {
        "first.bias", "attention.in_proj_bias", "attention.out_proj.bias", "memory.bias_ih_l0", "memory.bias_hh_l0",
        "last.bias", "q_bias",
    }  # fmt: skip


def test_attention_that_runs_no_layer_has_no_adapter_and_all_adapters_are_learned():
    """PyTorch's attention multiplies by the weights of its last layer and does not run it."""
    _, variant = attending(1, [])
    network = variant.network
    ups = [entry for entry in network.layout.entries if entry.name.endswith("lora_up")]
    assert [entry.name for entry in ups] == ["first.lora_up", "last.lora_up"]
    network.module.train()(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for entry in ups:
        assert network.gradient[entry.offset : entry.offset + entry.size].abs().max() > 0


@pytest.mark.parametrize(
    ("build", "tuning", "words"),
    [
        (lambda: Ended(PassedBy()), Tuning(1, 1.0, (), frozenset()), "body.other.weight without running"),
        (lambda: nn.Sequential(Odd(3, 3), nn.Linear(3, 2)), Tuning(1, 1.0, (), frozenset()), "something else"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), Tuning(1, 1.0, ("nowhere",), frozenset()), "names no layer"),
        (lambda: nn.Sequential(nn.Linear(3, 2, bias=False)), Tuning(0, 0.0, (), frozenset(["bias"])), "Nothing of"),
    ],
)
def test_what_can_not_have_adapters_is_refused_in_a_sentence(build, tuning, words):
    with catalogued("own", lambda shape, outputs: ((net := build()), [net[-1]])):
        whole = build_model("own", {}, (3,), 2)
    with pytest.raises(TrainingError, match=words) as refused:
        tuned(whole, tuning, (0,))
    assert refused.value.code == "P302"


def test_making_a_variant_leaves_the_network_as_it_is():
    whole = build_model("cnn", {"channels": [4]}, (1, 8, 8), 2)
    before, training = whole.vector.clone(), whole.module.training
    tuned(whole, Tuning(2, 4.0, (), frozenset(["head"])), (3,))
    assert torch.equal(whole.vector, before)
    assert whole.module.training is training
    assert all(parameter.requires_grad for parameter in whole.module.parameters())


# Engines, failures, and a study that was stopped ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_messages_as_bytes_give_the_same(method):
    data = table_sites()
    expected = made(method, data=data, model=NORM).state()
    assert torch.equal(made(method, data=data, model=NORM, serialise=True).state(), expected)
    assert torch.equal(made(method, data=data, model=NORM, stacked=True).state(), expected), "not trained together"


def test_worker_processes_give_the_same():
    data = table_sites({"Aachen": 12, "Bonn": 9})
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    try:
        close(made("lora", data=data, engine=engine).state(), made("lora", data=data).state(), 1e-5)
    finally:
        engine.close()


def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        federation = made(lora(channel=["int8"], local=["proximal"]), model=NORM, folder=folder / "sites",
                          training={"rounds": 3, "optimizer": MOMENTUM})  # fmt: skip

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        return federation.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0].models[FEDERATION]

    whole = train(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        assert torch.equal(train(tmp_path / str(stop)), whole)


@pytest.mark.parametrize("wrong", ["whole", "nan"])
def test_an_answer_that_is_not_of_adapters_is_its_sites_failure(wrong):
    federation = made(lora(training={"quorum": 3}))
    original, whole = federation.engine.call, federation.template.layout.trainable

    def call(function, requests):
        for site, reply in original(function, requests):
            if (function, site) == ("train", "Bonn"):
                change = reply.tensors["change"]
                change = torch.zeros(whole) if wrong == "whole" else change * torch.nan
                reply = Message(reply.fields, {**reply.tensors, "change": change})
            yield site, reply

    federation.engine.call = call
    progress, rows = federation.rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Celle", "Dresden"}
    assert ("P301" if wrong == "nan" else "P401") in progress.failures[0]


# Refused, and noted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (lora(server=["heterofl"]), "both have sites train another network"),
        (lora(local=["partial_tuning"]), "both have sites train another network"),
        (lora(channel=["secure_sum"]), "put in place site by site"),
        (lora(channel=["clip", {"central_noise": {"noise": 1.0}}]), "how far one site can move a mean"),
        (lora(share="body"), "no part can stay there"),
        (lora(rank=0), "P102"),
        (lora(also=["body"]), "P102"),
        ({"bitfit": {"trains": []}}, "P102"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_sentence(entry, words):
    with pytest.raises(EntryError, match=words):
        made(entry)


def test_a_frozen_network_without_weights_of_before_is_noted():
    (note,) = frozen_from_scratch(made("fedavg", "lora", "bitfit").declaration)
    assert note.number == "N265"
    assert "lora, bitfit train little of a frozen network" in note
    assert frozen_from_scratch(made("fedavg").declaration) == []


def test_outputs_of_another_shape_are_a_mistake_of_the_part(monkeypatch):
    federation = made("heterofl", data=table_sites({"Aachen": 20}))
    end = build_part("heterofl", {}).at_site()
    monkeypatch.setattr(type(end), "outputs", lambda self, outputs, given: outputs[:1])
    with pytest.raises(PartError, match=r"P304 .*heterofl.*outputs"):
        federation.rounds()
