"""FedGAN: generators and discriminators that sites train by themselves and the server averages."""

import pytest
import torch
from test_synthesis import Plain, adam, changing, close, cross_entropy, ended, made_of, network, with_tensors
from torch import nn

from helpers import Federation, catalogued, recorded, site_of, table_sites
from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.models.generative import Discriminator, Generator
from polyclinic.seeds import generator

PART = "federated_gan"
NETWORKS = ("generator", "discriminator")


def flat(network):
    return torch.cat([one.detach().flatten() for one in network.parameters()])


def steps(pair, optimizers, site, data, number, count):
    """Steps of a plain conditional GAN on a site's cases; the mean loss of its discriminator."""
    made, judge = pair
    frequent, losses = torch.bincount(data.targets, minlength=2).double() / len(data), []
    for step in range(count):
        source = generator(0, "parts", site, 0, number, "made", step)
        labels = torch.multinomial(frequent, 6, replacement=True, generator=source)
        false = made(torch.randn(6, 5, generator=source), labels)
        order = torch.randperm(len(data), generator=generator(0, "parts", site, 0, number, "real", step))[:6]
        real, no = judge(data.inputs[order], data.targets[order]), judge(false.detach(), labels)
        loss = cross_entropy(real, torch.ones_like(real)) + cross_entropy(no, torch.zeros_like(no))
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        losses.append(float(loss.detach()))
        yes = judge(false, labels)
        optimizers[0].zero_grad()
        cross_entropy(yes, torch.ones_like(yes)).backward()
        optimizers[0].step()
    return sum(losses) / count


@pytest.mark.parametrize("sizes", [{"Aachen": 9}, {"Aachen": 12, "Bonn": 4}], ids=["one site", "two sites"])
def test_rounds_are_plain_gans_and_their_means(sizes):
    """An independent small program. With one site that is a plain GAN: nothing starts anew between its rounds. Bonn has
    fewer cases than a batch of made ones."""
    data = table_sites(sizes)
    plan, _, rows = ended(made_of(data, {"generator_rounds": 3}, method="fed_gan", training={"rounds": 4}))
    pairs = {
        site: (
            Plain(network(Generator, (0, "stage", 0, 0, "generator"), latent=5, width=4)),
            Plain(network(Discriminator, (0, "stage", 0, 0, "discriminator"), width=4)),
        )
        for site in sizes
    }
    optimizers = {site: [adam(one) for one in pair] for site, pair in pairs.items()}
    for number in range(3):
        for site, pair in pairs.items():
            loss = steps(pair, optimizers[site], site, data[site], number, 3)
            told = next(row["loss"] for row in rows if (row["round"], row["site"]) == (number, site))
            assert told == pytest.approx(loss, rel=1e-5)
        if len(sizes) == 1:
            continue
        for place in range(2):
            mean = 0.75 * flat(pairs["Aachen"][place]) + 0.25 * flat(pairs["Bonn"][place])
            for pair in pairs.values():
                nn.utils.vector_to_parameters(mean.clone(), pair[place].parameters())
    kept = plan.procedure[1].memory()
    for place, name in enumerate(NETWORKS):
        close(kept[name], flat(pairs["Aachen"][place]))


def test_the_mean_is_by_cases():
    """(9 · 1 + 6 · 4) / 15 = 2.2 and (9 · 2 − 6 · 3) / 15 = 0, whatever the networks are."""
    made = made_of(table_sites({"Aachen": 9, "Bonn": 6}), method="fed_gan", training={"quorum": 1})
    for site, of in (("Aachen", (1.0, 2.0)), ("Bonn", (4.0, -3.0))):
        filled = {name: lambda one, to=to: torch.full_like(one, to) for name, to in zip(NETWORKS, of, strict=True)}
        changing(made.engine, site, f"{PART}/learn", with_tensors(**filled))
    kept = ended(made)[0].procedure[1].memory()
    close(kept["generator"], torch.full_like(kept["generator"], 2.2), 1e-7)
    close(kept["discriminator"], torch.zeros_like(kept["discriminator"]), 1e-7)


def test_a_site_that_fails_is_left_out_of_the_mean():
    """The others' means are as if it were not there."""
    made = made_of(table_sites({"Aachen": 9, "Bonn": 6}), method="fed_gan", training={"quorum": 1})
    changing(made.engine, "Bonn", f"{PART}/learn", lambda reply: SiteError("P401", "Bonn is gone.", site="Bonn"))
    alone = made_of(table_sites({"Aachen": 9}), method="fed_gan")
    found, expected = (ended(one)[0].procedure[1].memory() for one in (made, alone))
    for name in NETWORKS:
        assert torch.equal(found[name], expected[name])


def centred(shape, outputs):
    """Batch normalisation and a head, which starts at zero."""
    head = nn.Linear(2, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.BatchNorm1d(2), head), [head]


def one_class_each(seed, cases=40):
    """Cases of the two sites differ by a shift alone, and so do the classes: each site has one."""
    noise = 0.3 * torch.randn(cases, 2, generator=torch.Generator().manual_seed(seed))
    shift = torch.tensor([1.5, -1.0])
    return {
        site: site_of(site, noise + side * shift, torch.full((cases,), label))
        for site, side, label in (("A", -1, 0), ("B", 1, 1))
    }


@pytest.mark.parametrize("seed", range(4))
def test_sites_with_one_class_each(seed):
    """Within a site batch normalisation takes away all that tells the classes apart: both sites see the same inputs
    with opposite labels, so their steps of the head cancel in the mean, and `fedavg` says 0.5 of every case. Made cases
    of both classes are in one batch. (Other normalisation, or `asyndgan`, would help, too.)"""
    data = one_class_each(seed)
    options = {"generator_rounds": 6, "steps": 15, "network_steps": 40, "batch_size": 32, "lr": 0.005, "latent": 4,
               "width": 8, "checked": 20, "label": "fed_gan"}  # fmt: skip
    with catalogued("centred", centred):
        made = Federation(data, ["fedavg", {"fed_gan": options}], model="centred",
                          training={"rounds": 7, "batch_size": 40})  # fmt: skip
        inputs, labels = (torch.cat([getattr(one, name) for one in data.values()]) for name in ("inputs", "targets"))
        scores = {}
        for method in ("fedavg", "fed_gan"):
            trained = made.network(seed)
            trained.load(made.state(method, seed))
            scores[method] = trained.module.eval()(inputs).detach().softmax(1)[:, 1]
    close(scores["fedavg"], torch.full((80,), 0.5))
    assert ((scores["fed_gan"] > 0.5) == labels).double().mean() > 0.95


def test_a_site_of_one_class_learns_to_make_that_one():
    data = one_class_each(0, cases=6) | {"C": site_of("C", torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 1]))}
    plan, progress, _ = ended(made_of(data, method="fed_gan"))
    assert progress.model("federation").isfinite().all()
    assert {site: plan.procedure[1].memory()[f"cases/{site}"].tolist() for site in data} == {
        "A": [6, 0], "B": [0, 6], "C": [2, 3],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "change", "words"),
    [
        ("begin", with_tensors(cases=lambda one: one * 0), "no counts"),
        ("learn", with_tensors(generator=lambda one: one[:-1]), "generator] = [485]"),
        ("learn", with_tensors(generator=lambda one: one[:1]), "generator] = [485]"),
        ("learn", with_tensors(generator=lambda one: one[None]), "generator: got"),
        ("learn", with_tensors(generator=lambda one: one.double()), "generator: got"),
        ("learn", with_tensors(discriminator=lambda one: one * torch.nan), "P301"),
        ("learn", with_tensors(discriminator=lambda one: torch.cat([one, one])), "discriminator] = [417]"),
        ("learn", with_tensors(loss=lambda one: one.repeat(2)), "loss: got"),
        ("learn", lambda reply: Message(reply.fields, {}), "no generator of"),
        ("learn", lambda reply: Message(reply.fields, {n: reply.tensors[n] for n in NETWORKS}), "no loss"),
        ("learn", lambda reply: SiteError("P401", "Bonn is gone.", site="Bonn"), "Bonn is gone"),
        ("check", with_tensors(counts=lambda one: one + 500), "counts that can't be"),
    ],
)  # fmt: skip
def test_an_answer_that_can_not_be_is_its_site_s_failure(verb, change, words):
    made = made_of(method="fed_gan", training={"quorum": 2})
    changing(made.engine, "Bonn", f"{PART}/{verb}", change)
    progress, rows = made.rounds()
    number = 1 if verb == "check" else 0
    assert {row["site"] for row in rows if row["round"] == number} == {"Aachen", "Celle", "Dresden"}
    assert any("Bonn" in note and words in note for note in progress.failures), progress.failures
    assert progress.model("federation").isfinite().all()
    made = made_of(method="fed_gan")
    changing(made.engine, "Bonn", f"{PART}/{verb}", change)
    with pytest.raises(PolyclinicError):
        made.rounds()


@pytest.mark.parametrize("change", [lambda one: one[:1], lambda one: one.repeat(2)], ids=["one number", "twice"])
def test_a_site_does_not_take_a_network_that_is_not_its_own(change):
    """A single number would else be taken for all of them."""
    made = made_of(method="fed_gan")
    original = made.engine.call

    def call(function, requests):
        if function == f"{PART}/learn":
            requests = {site: with_tensors(generator=change)(one) for site, one in requests.items()}
        return original(function, requests)

    made.engine.call = call
    with pytest.raises(PolyclinicError, match=r"P401 .*was sent no generator of"):
        made.rounds()


def test_networks_so_large_that_nothing_finite_comes_out_are_said_so():
    made = made_of(method="fed_gan")
    for site in made.data:
        changing(made.engine, site, f"{PART}/learn", with_tensors(generator=lambda one: torch.full_like(one, 1e30)))
    with pytest.raises(PolyclinicError, match="P301"):
        made.rounds()


def test_what_leaves_a_site():
    made = made_of(method="fed_gan", entry={"generator_rounds": 2}, training={"rounds": 3}, evaluation={"folds": 2})
    with recorded(made.engine) as said:
        made.rounds()
    asked = [(function.partition("/")[2], reply) for function, site, _, reply in said
             if function.startswith(PART) and site == "Bonn"]  # fmt: skip
    assert [verb for verb, _ in asked] == ["begin", "learn", "begin", "learn", "begin", "check"]
    sent = {verb: set(reply.tensors) for verb, reply in asked}
    expected = {"begin": {"cases"}, "learn": {*NETWORKS, "loss"}, "check": {"counts", "nearness"}}
    assert sent == expected


def test_a_small_site_s_class_is_made_like_its_own():
    """Means of generators favour what large sites have (Mugunthan et al., arXiv 2103.09876). Here classes are asked
    for: of each there are as many as at all sites together; after enough rounds they lie where the site has them."""
    data = one_class_each(0, cases=36)
    data["B"] = site_of("B", data["B"].inputs[:9], data["B"].targets[:9])
    entry = {"generator_rounds": 25, "steps": 8, "network_steps": 1, "batch_size": 16, "lr": 0.01, "latent": 4,
             "width": 8, "checked": 400}  # fmt: skip
    made = ended(made_of(data, entry, method="fed_gan", training={"rounds": 26}))[0].procedure[1].made()
    assert float(made.labels.double().mean()) == pytest.approx(9 / 45, abs=0.06)  # three deviations of 400 draws
    for site, label in (("A", 0), ("B", 1)):
        found, own = (one.mean(0) for one in (made.inputs[made.labels == label], data[site].inputs))
        assert float((found - own).norm()) < 0.9  # the classes are 3.6 apart


def test_images_whose_sides_can_not_be_halved():
    """The discriminator says one number of each, and what is made has their size."""
    pixels = torch.randint(0, 256, (7, 1, 9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = {"A": site_of("A", pixels, torch.arange(7) % 2), "B": site_of("B", pixels[:3], torch.tensor([0, 1, 1]))}
    plan, progress, _ = ended(made_of(data, method="fed_gan", model={"cnn": {"channels": [4]}}))
    assert plan.procedure[1].made().inputs.shape == (20, 1, 9, 13)
    assert progress.model("federation").isfinite().all()
