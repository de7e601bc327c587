"""Sites with networks of their own, which learn from each other by what they find in a public set."""

import re

import pytest
import torch
from torch import nn

from helpers import SIZES, Federation, plain_module, recorded, site_of, table_sites, with_public
from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine, LocalEngine
from polyclinic.errors import StudyError
from polyclinic.running.progress import Checkpoint

PUBLIC = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
WIDE = {"mlp": {"hidden": [6]}}
#: A network of another name that computes the same: nothing is ever dropped, and 1 / (1 - 1e-12) is 1.
TWIN = {"mlp": {"hidden": [6], "dropout": 1e-12}}
MIXED = {"Aachen": "logistic", "Celle": {"mlp": {"hidden": [4, 3], "norm": "batch"}}}
FEDMD = [{"fedmd": {"label": "fedmd"}}]


def sites(**options):
    return with_public(table_sites(**options), PUBLIC)


def owns(federation, label="fedmd"):
    """The model that each site has of its own after all rounds."""
    progress, _ = federation.rounds(label)
    return {site: kept.own for site, kept in federation.kept(progress).items()}


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for site in first:
        if tolerance:
            torch.testing.assert_close(first[site], second[site], **tolerance)
        else:
            assert torch.equal(first[site], second[site]), site


def networks_of(federation):
    """Site -> its network."""
    plan = federation.plan()
    return {site: plan.network_of(site) for site in plan.sites}


# Identities -----------------------------------------------------------------------------------------------------------


def test_the_studys_network_by_name_is_no_other():
    networks = {site: {"mlp": {"hidden": [6], "norm": "none"}} for site in SIZES}
    named = Federation(sites(), FEDMD, model=WIDE, networks=networks)
    assert named.declaration.own_networks == {}
    assert named.plan().started(SIZES)["Bonn"].fields == Federation(sites(), FEDMD, model=WIDE).plan().start.fields()


@pytest.mark.parametrize("named", [list(SIZES), ["Bonn"]])
@pytest.mark.parametrize("label", ["fedmd", "single"])
def test_networks_that_compute_the_same_give_the_same_bytes(named, label):
    options = {"methods": [*FEDMD, "single"], "model": WIDE, "training": {"rounds": 3}}
    plain = Federation(sites(), **options)
    other = Federation(sites(), networks=dict.fromkeys(named, TWIN), **options)
    assert set(other.declaration.own_networks) == set(named)
    same(owns(plain, label), owns(other, label))


@pytest.mark.parametrize("options", [{"serialise": True}, {"stacked": True}])
def test_other_engines_give_the_same(options):
    networks = {"Aachen": "logistic", "Bonn": "logistic", "Celle": {"mlp": {"hidden": [4]}}}
    made = [
        Federation(sites(), FEDMD, model=WIDE, networks=networks, training={"rounds": 3}, **one)
        for one in ({}, options)
    ]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if "stacked" in options else {}
    same(owns(made[0]), owns(made[1]), **tolerance)


def test_sites_of_one_network_are_trained_together(monkeypatch):
    networks = {"Aachen": "logistic", "Celle": "logistic"}
    federation = Federation(sites(), FEDMD, model=WIDE, networks=networks, stacked=True)
    together = []
    original = LocalEngine._train_stacked

    def spied(self, requests):
        together.append(sorted(requests))
        return original(self, requests)

    monkeypatch.setattr(LocalEngine, "_train_stacked", spied)
    owns(federation)
    assert together == [["Aachen", "Celle"], sorted(set(SIZES) - {"Aachen", "Celle"})]


def test_a_secure_sum_of_the_logits_is_their_mean():
    methods = ["fedmd", {"fedmd": {"channel": ["secure_sum"], "label": "hidden"}}]
    federation = Federation(sites(), methods, model=WIDE, networks=MIXED, training={"rounds": 3})
    same(owns(federation, "fedmd"), owns(federation, "hidden"), rtol=1e-5, atol=1e-6)


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path):
    options = {"model": WIDE, "networks": MIXED, "training": {"rounds": 4}}

    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 2:
            raise Killed

    whole = owns(Federation(sites(), FEDMD, folder=tmp_path / "a", **options))
    with pytest.raises(Killed):
        Federation(sites(), FEDMD, folder=tmp_path / "b", **options).rounds(
            "fedmd", checkpoint=Checkpoint(tmp_path / "job"), report=stop
        )
    again = Federation(sites(), FEDMD, folder=tmp_path / "b", **options)
    progress, _ = again.rounds("fedmd", checkpoint=Checkpoint(tmp_path / "job"))
    same(whole, {site: kept.own for site, kept in again.kept(progress).items()})


# Numbers by hand ------------------------------------------------------------------------------------------------------


def test_two_rounds_are_those_of_a_small_program_of_its_own():
    """A linear and a wider network: train, look, take the mean of logits by cases, digest, train."""
    two = {name: data for name, data in sites().items() if name in ("Aachen", "Bonn")}
    training = {"rounds": 2, "batch_size": 64, "optimizer": {"sgd": {"lr": 0.2}}}
    federation = Federation(two, FEDMD, model=WIDE, networks={"Aachen": "logistic"}, training=training)
    start = federation.plan()
    modules = {
        "Aachen": plain_module(start.networks["Aachen"].model, start.networks["Aachen"].initial.clone()),
        "Bonn": plain_module(federation.template, federation.initial(0)),
    }
    found = owns(federation)
    assert len(found["Aachen"]) == 5 * 2 + 2
    assert len(found["Bonn"]) == 5 * 6 + 6 + 6 * 2 + 2
    consensus = None
    for _ in range(2):
        for site, data in two.items():
            module = modules[site]
            for wanted, inputs in [(consensus, PUBLIC)] * (consensus is not None) + [(None, data.inputs)]:
                module.zero_grad()
                outputs = module(inputs)
                if wanted is None:
                    loss = nn.functional.cross_entropy(outputs, data.targets)
                else:
                    loss = (outputs - wanted).abs().mean()
                loss.backward()
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter -= 0.2 * parameter.grad
        with torch.no_grad():
            cases = {site: len(data) for site, data in two.items()}
            consensus = sum(cases[site] * modules[site](PUBLIC) for site in two) / sum(cases.values())
    for site, module in modules.items():
        own = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        torch.testing.assert_close(found[site], own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("label", ["cross", "ensemble"])
def test_models_of_other_networks_predict_as_these_do(label):
    federation = Federation(
        sites(part=None), ["single", "cross", "ensemble"], model=WIDE, networks=MIXED, training={"rounds": 2},
        evaluation={"folds": 3},
    )  # fmt: skip
    trained, networks = owns(federation, "single"), networks_of(federation)
    rows = [frame for frame in federation.outcome(label).predictions if (frame["site"] == "Bonn").all()]
    data, scores = federation.data["Bonn"], {}
    for site, vector in trained.items():
        module = plain_module(networks[site], vector).eval()
        inputs = data.inputs[federation.local.members["Bonn"].parts.test]
        scores[site] = module(inputs).softmax(1)[:, 1].detach()
    if label == "ensemble":
        (frame,) = rows
        mean = torch.stack(list(scores.values())).mean(0)
        torch.testing.assert_close(torch.tensor(frame["score"].to_numpy()).float(), mean)
        return
    assert len(rows) == len(SIZES) - 1
    for frame in rows:
        own = scores[frame["trained_on"].iloc[0]]
        torch.testing.assert_close(torch.tensor(frame["score"].to_numpy()).float(), own)


# What is sent ---------------------------------------------------------------------------------------------------------


def test_each_site_is_told_its_own_network_and_sends_no_weights():
    federation = Federation(sites(), FEDMD, model=WIDE, networks=MIXED, training={"rounds": 2})
    with recorded(federation.engine) as said:
        _, rows = federation.rounds("fedmd")
    started = {site: asked for function, site, asked, _ in said if function == "start"}
    assert started["Aachen"].fields["model"][0] == "logistic"
    assert len(started["Aachen"].tensors["initial"]) == 12
    assert started["Bonn"].fields["model"][0] == "mlp"
    assert [one["model"][0] for one in started["Bonn"].fields["networks"]] == ["mlp", "logistic", "mlp"]
    trained = [(asked, reply) for function, _, asked, reply in said if function == "train"]
    for asked, reply in trained:
        assert asked.tensors["state"].numel() == reply.tensors["change"].numel() == 0
        assert {name for name, tensor in reply.tensors.items() if tensor.numel()} == {"public_consensus/logits"}
    assert len({row["bytes_up"] for row in rows}) == 1  # logits of as many cases, whatever the network


def test_a_model_of_another_size_is_that_sites_failure():
    class Lying(LocalEngine):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                if function == "model" and site == "Aachen":
                    reply.tensors["model"] = torch.zeros(50)  # of the study's network
                yield site, reply

    engine = Lying(sites())
    federation = Federation(sites(), ["single"], model=WIDE, networks=MIXED, engine=engine)
    plan = federation.plan("single")
    federation.rounds("single")
    asked = dict.fromkeys(plan.sites, Message({}, {"state": torch.empty(0)}))
    replies = dict(CheckedEngine(engine, plan.known).call("model", asked))
    assert re.search(r"P401.*Aachen.*\[50\], expected .P. = .12.", str(replies["Aachen"])), replies["Aachen"]
    assert isinstance(replies["Celle"], Message)


# Certain case ---------------------------------------------------------------------------------------------------------


def corners(names, seed, cases=40):
    """Cases around the corners of a triangle, one for each class."""
    source = torch.Generator().manual_seed(seed)
    places = torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])
    labels = torch.tensor(names).repeat_interleave(cases // len(names))
    return places[labels] + 0.4 * torch.randn(len(labels), 2, generator=source), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_site_with_a_tiny_network_learns_a_class_from_the_others(seed):
    """It has cases of two of three classes, and the smallest network; two sites with larger ones have all classes."""
    known = {"Tiny": [0, 1], "Wide": [0, 1, 2], "Deep": [0, 1, 2]}
    data = {}
    for number, (name, classes) in enumerate(known.items()):
        data[name] = site_of(name, *corners(classes, 10 * seed + number, 42))
    public = corners([0, 1, 2], 100 + seed, 60)[0]
    federation = Federation(
        with_public(data, public), ["single", {"fedmd": {"epochs": 5, "label": "fedmd"}}],
        model={"mlp": {"hidden": [16]}},
        networks={"Tiny": {"mlp": {"hidden": [4]}}, "Deep": {"mlp": {"hidden": [8, 8]}}},
        training={"rounds": 30, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.3}}}, classes=3,
    )  # fmt: skip
    inputs, labels = corners([0, 1, 2], 200 + seed, 120)
    network = networks_of(federation)["Tiny"]
    right = {}
    for label in ("single", "fedmd"):
        module = plain_module(network, owns(federation, label)["Tiny"]).eval()
        right[label] = float((module(inputs).argmax(1) == labels).float().mean())
    assert right["single"] < 0.7  # two classes of three
    assert right["fedmd"] > 0.9


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "fedavg",
            r"no weights can be put together\. Methods .* are single, cross, ensemble, fedmd, feddf, fedad; `mix`",
        ),
        ({"heterofl": {"widths": {"Bonn": 0.5}}}, "no weights can be put together"),
        ({"fedmd": {"share": "body"}}, "no weights can be put together"),
        ({"fedmd": {"local": [{"teacher": {"weights": "a.safetensors"}}]}}, "teacher needs all sites to have"),
    ],
)
def test_what_needs_one_network_is_refused(method, words):
    with pytest.raises(StudyError, match=f"P104.*{words}"):
        Federation(sites(), [method], model=WIDE, networks=MIXED)
