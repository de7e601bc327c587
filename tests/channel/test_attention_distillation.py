"""FedAD: sites send logits and attention maps of a public set, and no weights."""

import math

import pytest
import torch
from torch import nn

from helpers import Federation, image_site, image_sites, plain_module, recorded, table_sites, with_public
from polyclinic.channel.attention import attention_of, ensemble, looks, seen
from polyclinic.channel.attention import recorded as convolutions
from polyclinic.engine import LocalEngine
from polyclinic.errors import StudyError, TrainingError
from polyclinic.running.progress import Checkpoint

PUBLIC = image_site("Celle", 12).inputs
SIZES = {"Aachen": 10, "Bonn": 8, "Dresden": 6}
CNN = {"cnn": {"channels": [4]}}
FEW = {"steps": 5, "batch_size": 6}


def federation(*methods, **options):
    training = {"batch_size": 4, "optimizer": {"sgd": {"lr": 0.1}}} | options.pop("training", {})
    return Federation(
        with_public(image_sites(SIZES), PUBLIC), methods or [fedad()], model=CNN, training=training, **options
    )


def fedad(**options):
    return {"fedad": {"label": "fedad", **FEW, **options}}


# Numbers by hand ------------------------------------------------------------------------------------------------------


def test_sites_say_little_of_classes_that_they_hardly_know():
    """Of class 0 sites have 9 and 1 cases, of class 1 none and 4: 0.9 · 2 + 0.1 · (−8) = 1, and 0 · 5 + 1 · 3 = 3."""
    shares = torch.tensor([[0.9, 0.0], [0.1, 1.0]], dtype=torch.float64)
    found = ensemble([torch.tensor([[2.0, 5.0]]), torch.tensor([[-8.0, 3.0]])], shares)
    assert found.tolist() == [pytest.approx([1.0, 3.0])]


def test_an_attention_map_by_hand():
    """Two channels (3, 0, 1) and (4, 1, 2): sums of squares 25, 1 and 5, from the least to the largest 1, 0, 1/6."""
    features = torch.tensor([[[[3.0, 0.0, 1.0]], [[4.0, 1.0, 2.0]]]])
    assert attention_of([torch.ones(1, 2, 2, 2), features]).tolist() == [[pytest.approx([1.0, 0.0, 1 / 6])]]
    assert attention_of([features, torch.ones(1, 5, 1, 1)]).tolist() == [[pytest.approx([1.0, 0.0, 1 / 6])]]
    assert attention_of([torch.ones(1, 2, 2, 2)]).tolist() == [[[0.0] * 2] * 2]
    with pytest.raises(TrainingError, match=r"P302.*several places"):
        attention_of([torch.ones(1, 5, 1, 1)])


def test_the_attention_terms_by_hand():
    """A = (1, 0), I = (0.5, 0.2), U = (0.9, 0.3). τ(A) = σ(4), σ(−6): the first term is −(σ(4) 0.5 + σ(−6) 0.2) / (σ(4)
    + σ(−6)); τ'(U) = σ(6), σ(0): the second −σ(6) · 1 / 1."""

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    found = looks(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.2]]), torch.tensor([[0.9, 0.3]]))
    first = (sigmoid(4) * 0.5 + sigmoid(-6) * 0.2) / (sigmoid(4) + sigmoid(-6))
    assert found.item() == pytest.approx(-(first + sigmoid(6)), abs=1e-6)


def test_a_round_of_logits_is_that_of_a_small_program_of_its_own():
    """One step of all public cases, without maps: the first model learns the ensemble of what sites came to."""
    options = {"steps": 1, "lr": 0.01, "batch_size": 12, "attention": 0.0}
    made = federation("fedavg", fedad(**options))
    with recorded(made.engine) as said:
        state = made.state("fedad")
    logits = {site: reply.tensors["attention_distillation/logits"] for f, site, _, reply in said if f == "train"}
    counts = torch.stack([torch.bincount(data.targets, minlength=2).double() for data in made.data.values()])
    wanted = sum(logits[site] * share for site, share in zip(SIZES, counts / counts.sum(0), strict=True)).float()
    module = plain_module(made.template, made.initial(0)).train()
    public = made.public().batch(torch.arange(12))[0]
    adam = torch.optim.Adam(module.parameters(), lr=0.01)
    loss = nn.functional.kl_div(module(public).log_softmax(1), wanted.softmax(1), reduction="batchmean")
    loss.backward()
    adam.step()
    own = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    torch.testing.assert_close(state[: len(own)], own, rtol=1e-4, atol=1e-5)


# What is sent ---------------------------------------------------------------------------------------------------------


def test_no_weights_leave_a_site():
    made = federation(training={"rounds": 2})
    with recorded(made.engine) as said:
        _, rows = made.rounds()
    trained = [reply.tensors for function, _, _, reply in said if function == "train"]
    assert len(trained) == 6
    for tensors in trained:
        assert set(tensors) == {"attention_distillation/logits", "attention_distillation/attention"}
        assert tensors["attention_distillation/logits"].shape == (12, 2)
        assert tensors["attention_distillation/attention"].min() >= 0
        assert tensors["attention_distillation/attention"].max() <= 1
    numbers = 4 * sum(tensor.numel() for tensor in trained[-1].values())
    assert all(numbers < row["bytes_up"] < numbers + 800 for row in rows[-3:])
    plain = federation(fedad(attention=0.0))
    with recorded(plain.engine) as said:
        plain.rounds()
    assert {name for f, _, _, reply in said if f == "train" for name in reply.tensors} == {
        "attention_distillation/logits"
    }


@pytest.mark.parametrize(("name", "tensor"), [("logits", torch.zeros(12, 3)), ("attention", torch.zeros(12, 5, 5))])
def test_a_malformed_answer_is_that_sites_failure(name, tensor):
    class Lying(LocalEngine):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                if function == "train" and site == "Bonn":
                    reply.tensors[f"attention_distillation/{name}"] = tensor
                yield site, reply

    engine = Lying(with_public(image_sites(SIZES), PUBLIC))
    progress, rows = federation(engine=engine, training={"quorum": 2}).rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Dresden"}
    assert any("Bonn" in failure for failure in progress.failures)


@pytest.mark.parametrize("options", [{"serialise": True}, {"stacked": True}])
def test_other_engines_give_the_same(options):
    states = [federation(training={"rounds": 2}, **one).state() for one in ({}, options)]
    torch.testing.assert_close(*states, rtol=0, atol=0 if "serialise" in options else 2e-3)


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path):
    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 1:
            raise Killed

    whole = federation(training={"rounds": 3}).state()
    with pytest.raises(Killed):
        federation(training={"rounds": 3}, folder=tmp_path).rounds(checkpoint=Checkpoint(tmp_path / "job"), report=stop)
    progress, _ = federation(training={"rounds": 3}, folder=tmp_path).rounds(checkpoint=Checkpoint(tmp_path / "job"))
    assert torch.equal(progress.model("federation"), whole)


# Certain case ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_site_with_all_classes_teaches_the_server_without_its_weights(seed):
    """One site, much local training and one round: the server's model comes to find what the site's model finds."""
    site = {"Aachen": image_site("Aachen", 40)}
    training = {"rounds": 1, "local_epochs": 40, "batch_size": 10, "optimizer": {"adam": {"lr": 0.01}}}
    options = fedad(steps=300, lr=0.02, batch_size=12, attention=0.1)
    made = Federation(with_public(site, image_site("Celle", 36).inputs), [options], model=CNN, training=training)
    new = image_site("Bonn", 60)
    inputs = new.inputs.float() / 255
    right = {}
    for label, state in (("first", made.initial(seed)), ("fedad", made.state("fedad", seed))):
        module = plain_module(made.template, state).eval()
        right[label] = (module(inputs).argmax(1) == new.targets).float().mean().item()
    assert right["first"] < 0.75
    assert right["fedad"] > 0.9


def test_maps_are_of_the_last_convolution_with_several_places():
    made = federation()
    logits, maps = seen(made.template, made.initial(0), made.public(), attention=True)
    module, found = plain_module(made.template, made.initial(0)).eval(), []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: found.append(output))
    wanted = module(made.public().batch(torch.arange(12))[0])
    torch.testing.assert_close(logits, wanted.detach())
    torch.testing.assert_close(maps, attention_of(found).detach())
    with convolutions(made.template) as nothing:
        pass
    made.template.module(made.public().batch(torch.arange(2))[0])
    assert nothing == []  # no hook is left


def test_outlines_are_distilled_too():
    pictures = image_sites({"Aachen": 8, "Bonn": 6}, masks=True)
    made = Federation(
        with_public(pictures, PUBLIC), [fedad()], model={"unet": {"channels": [2, 4], "residual_units": 0}},
        task="segmentation", training={"batch_size": 4},
    )  # fmt: skip
    assert made.state().isfinite().all()


# Networks of the sites' own -------------------------------------------------------------------------------------------

#: Another number of places in its maps, and a network of another name that computes the same as `CNN`.
OTHER, TWIN = {"cnn": {"channels": [3, 5]}}, {"cnn": {"channels": [4], "dropout": 1e-12}}


@pytest.mark.parametrize("named", [["Bonn"], list(SIZES)])
def test_networks_that_compute_the_same_give_the_same_bytes_in_one_round(named):
    networks = dict.fromkeys(named, TWIN)
    assert torch.equal(federation().state(), federation(networks=networks).state())


def test_the_servers_model_learns_from_other_networks_and_none_of_their_weights_is_sent():
    made = federation(networks={"Bonn": OTHER}, training={"rounds": 2})
    with recorded(made.engine) as said:
        progress, rows = made.rounds()
    assert len(progress.model("federation")) == made.template.layout.size
    maps = {}
    for function, site, asked, reply in said:
        if function == "train":
            maps[site] = tuple(reply.tensors["attention_distillation/attention"].shape)
            assert len(asked.tensors["state"]) == (0 if site == "Bonn" else made.template.layout.size)
    assert maps == {"Aachen": (12, 8, 8), "Bonn": (12, 4, 4), "Dresden": (12, 8, 8)}
    started = {site: asked for function, site, asked, _ in said if function == "start"}
    assert started["Bonn"].fields["model"] == started["Aachen"].fields["model"]
    assert started["Bonn"].fields["own"][1]["channels"] == [3, 5]
    assert "own" not in started["Aachen"].tensors
    assert {row["site"] for row in rows if row["round"] == 1} == set(SIZES)


def test_a_network_of_its_own_goes_on_from_where_it_was():
    made = federation(networks={"Bonn": OTHER}, training={"rounds": 1})
    own = made.kept(made.rounds()[0])["Bonn"].own
    longer = federation(networks={"Bonn": OTHER}, training={"rounds": 2})
    with recorded(longer.engine) as said:
        longer.rounds()
    first = [
        reply.tensors["attention_distillation/logits"] for f, site, _, reply in said if (f, site) == ("train", "Bonn")
    ]
    module = plain_module(longer.plan().apart["Bonn"].model, own).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(longer.public().batch(torch.arange(12))[0]), first[0])
    assert not torch.equal(first[0], first[1])


def test_all_sites_can_have_one_other_network():
    made = federation(networks=dict.fromkeys(SIZES, OTHER), training={"rounds": 2})
    state = made.state()
    assert not torch.equal(state, made.initial(0))
    stacked = federation(networks=dict.fromkeys(SIZES, OTHER), training={"rounds": 2}, stacked=True).state()
    torch.testing.assert_close(state, stacked, rtol=0, atol=2e-3)


def test_a_killed_training_with_other_networks_goes_on_to_the_same_bytes(tmp_path):
    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 1:
            raise Killed

    options = {"networks": {"Bonn": OTHER}, "training": {"rounds": 3}}
    whole = federation(**options).state()
    with pytest.raises(Killed):
        federation(folder=tmp_path, **options).rounds(checkpoint=Checkpoint(tmp_path / "job"), report=stop)
    progress, _ = federation(folder=tmp_path, **options).rounds(checkpoint=Checkpoint(tmp_path / "job"))
    assert torch.equal(progress.model("federation"), whole)


@pytest.mark.parametrize("maps", [torch.zeros(12, 0, 4), torch.full((12, 4, 4), 2.0), torch.zeros(3, 4, 4)])
def test_malformed_maps_of_another_network_are_that_sites_failure(maps):
    class Lying(LocalEngine):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                if function == "train" and site == "Bonn":
                    reply.tensors["attention_distillation/attention"] = maps
                yield site, reply

    engine = Lying(with_public(image_sites(SIZES), PUBLIC))
    progress, rows = federation(networks={"Bonn": OTHER}, engine=engine, training={"quorum": 2}).rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Dresden"}
    assert any("Bonn" in failure for failure in progress.failures)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_site_with_another_network_teaches_the_server(seed):
    """Of all sites that train, one has another network and all cases of the second class."""
    sites = {"Aachen": image_site("Aachen", 40)}
    training = {"rounds": 1, "local_epochs": 40, "batch_size": 10, "optimizer": {"adam": {"lr": 0.01}}}
    made = Federation(
        with_public(sites, image_site("Celle", 36).inputs),
        [fedad(steps=300, lr=0.02, batch_size=12, attention=0.1)],
        model=CNN, networks={"Aachen": {"cnn": {"channels": [6, 6]}}}, training=training,
    )  # fmt: skip
    new = image_site("Bonn", 60)
    inputs = new.inputs.float() / 255
    right = {}
    for label, state in (("first", made.initial(seed)), ("fedad", made.state("fedad", seed))):
        module = plain_module(made.template, state).eval()
        right[label] = (module(inputs).argmax(1) == new.targets).float().mean().item()
    assert right["first"] < 0.75
    assert right["fedad"] > 0.9


def test_personal_models_beside_networks_of_their_own_are_refused():
    with pytest.raises(StudyError, match=r"P104.*ditto gives each site a model of the study's network"):
        federation(fedad(personal="ditto"), networks={"Bonn": OTHER})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": "body"}, "needs whole models at the server"),
        ({"channel": ["top_k"]}, "comes after attention_distillation"),
        ({"server": ["median"]}, "no weights leave a site"),
        ({"local": ["control_variates"]}, "no weights leave a site"),
        ({"channel": ["secure_sum"]}, "by itself|each site's|single"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(StudyError, match=f"P104.*({words})"):
        federation({"fedad": options})


def test_tables_have_no_attention():
    with pytest.raises(StudyError, match=r"P104.*is for images"):
        Federation(with_public(table_sites(), torch.randn(8, 5)), ["fedad"])
