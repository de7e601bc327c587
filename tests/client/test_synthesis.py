"""A model that learns from made cases alone; and AsynDGAN, whose discriminators stay at the sites."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import one_hot

from helpers import Federation, image_sites, recorded, site_of, table_sites
from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine
from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.models.generative import Discriminator, Generator
from polyclinic.options import EntryError
from polyclinic.randomness import own_randomness
from polyclinic.rounds import run_rounds
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.study.job import Job

PART = "synthetic_cases"
SMALL = {"generator_rounds": 1, "steps": 3, "network_steps": 4, "batch_size": 6, "lr": 0.01, "latent": 5, "width": 4,
         "checked": 20}  # fmt: skip


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


#: Methods that make cases -> their procedure.
MAKING = {"asyndgan": PART, "fed_gan": "federated_gan"}
both = pytest.mark.parametrize("method", MAKING)


def made_of(data=None, entry=(), *, method="asyndgan", **options):
    options = {"model": "logistic", **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(data or table_sites(), [{method: {**SMALL, **dict(entry), "label": method}}], **options)


def ended(made, **options):
    """The plan that was run, with its progress and rows."""
    plan = made.plan()
    return plan, *run_rounds(plan, CheckedEngine(made.engine, plan.known), **options)


def network(kind, names, **sizes):
    with own_randomness(generator(*names).initial_seed()):
        return kind((5,), 2, **sizes)


def draw(number, site, step, size, frequent):
    source = generator(0, "stage", 0, number, "made", site, step)
    labels = torch.multinomial(frequent, size, replacement=True, generator=source)
    return torch.randn(size, 5, generator=source), labels


class Plain(nn.Module):
    """The same networks written out: three layers, with the class beside what they are given."""

    def __init__(self, of):
        super().__init__()
        self.first, self.second, self.third = (layer for layer in of.body if isinstance(layer, nn.Linear))

    def forward(self, inputs, labels):
        hidden = torch.cat([inputs, one_hot(labels, 2).float()], 1)
        for layer in (self.first, self.second):
            hidden = layer(hidden)
            hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
        return self.third(hidden)


def adam(network):
    return torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.5, 0.999))


@pytest.mark.parametrize("sizes", [{"Aachen": 9}, {"Aachen": 9, "Bonn": 6}], ids=["one site", "two sites"])
def test_steps_are_those_of_a_plain_gan(sizes):
    """An independent small program: one generator, a discriminator a site, and the sites' losses by their weights."""
    data, steps = table_sites(sizes), 3
    plan, _, rows = ended(made_of(data, {"steps": steps}))
    made = Plain(network(Generator, (0, "stage", 0, 0, "generator"), latent=5, width=4))
    judges = {s: Plain(network(Discriminator, (0, "parts", s, 0, 0, "discriminator"), width=4)) for s in data}
    maker, optimizers = adam(made), {site: adam(judge) for site, judge in judges.items()}
    frequent = {site: torch.bincount(one.targets, minlength=2).double() / len(one) for site, one in data.items()}
    losses = {site: [] for site in data}
    for step in range(steps):
        together = torch.zeros(())
        for site, one in data.items():
            numbers, labels = draw(0, site, step, 6, frequent[site])
            false = made(numbers, labels)
            order = torch.randperm(len(one), generator=generator(0, "parts", site, 0, 0, "real", step))[:6]
            real, judge = judges[site](one.inputs[order], one.targets[order]), judges[site]
            loss = cross_entropy(real, torch.ones_like(real))
            no = judge(false.detach(), labels)
            loss = loss + cross_entropy(no, torch.zeros_like(no))
            optimizers[site].zero_grad()
            loss.backward()
            optimizers[site].step()
            losses[site].append(float(loss.detach()))
            yes = judge(false, labels)
            together = together + len(one) / sum(sizes.values()) * cross_entropy(yes, torch.ones_like(yes))
        maker.zero_grad()
        together.backward()
        maker.step()
    kept = plan.procedure[1].memory()
    close(kept["generator/network"], torch.cat([one.detach().flatten() for one in made.parameters()]))
    first = {row["site"]: row["loss"] for row in rows if row["round"] == 0}
    for site, found in losses.items():
        assert first[site] == pytest.approx(sum(found) / steps, rel=1e-5)


@both
def test_the_model_learns_from_made_cases_alone(method):
    """Its steps are those of plain training on what the generator makes then."""
    data = table_sites({"Aachen": 9, "Bonn": 6})
    made = made_of(data, method=method, training={"optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}})
    plan, progress, rows = ended(made)
    maker, kept = network(Generator, (0, "stage", 0, 0, "generator"), latent=5, width=4), plan.procedure[1].memory()
    learned = kept["generator" if method == "fed_gan" else "generator/network"]
    torch.nn.utils.vector_to_parameters(learned, maker.parameters())
    layer = nn.Linear(5, made.outputs)
    torch.nn.utils.vector_to_parameters(torch.zeros_like(made.initial(0)), layer.parameters())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    frequent = sum(torch.bincount(one.targets, minlength=2).double() for one in data.values())
    for step in range(4):
        source = generator(0, "stage", 0, 1, "network", step)
        labels = torch.multinomial(frequent, 6, replacement=True, generator=source)
        inputs = maker(torch.randn(6, 5, generator=source), labels).detach()
        optimizer.zero_grad()
        plan.task.loss(layer(inputs), labels).mean().backward()
        optimizer.step()
    close(progress.model("federation"), torch.cat([one.detach().flatten() for one in layer.parameters()]))
    assert [(row["round"], row["steps"]) for row in rows] == [(0, 3), (0, 3), (1, 4), (1, 4)]


@both
def test_classes_can_be_balanced_among_made_cases(method):
    """At the sites 30 of 40 cases are of class 0, and none of class 2: half of the made ones are of class 0."""
    data = {
        site: site_of(site, torch.randn(20, 3), torch.tensor([0] * zeros + [1] * (20 - zeros)))
        for site, zeros in (("A", 12), ("B", 18))
    }
    shares = {}
    for balanced in (False, True):
        made = made_of(data, {"checked": 1000, "balanced": balanced}, method=method, classes=3)
        labels = ended(made)[0].procedure[1].made().labels
        shares[balanced] = (torch.bincount(labels, minlength=3) / 1000).tolist()
    assert shares[False] == [pytest.approx(0.75, abs=0.05), pytest.approx(0.25, abs=0.05), 0]
    assert shares[True] == [pytest.approx(0.5, abs=0.05), pytest.approx(0.5, abs=0.05), 0]


def stop_at(stop):
    def report(done, total):
        if done == stop:
            raise KeyboardInterrupt

    return report


@both
def test_the_model_stays_as_it_is_while_the_generator_learns(method, tmp_path):
    """And it is not chosen from, however good it happens to be."""
    evaluation = {"validation": 0.2, "best_round": "loss", "folds": 2}

    def made():
        training = {"rounds": 4}
        return made_of(method=method, training=training, entry={"generator_rounds": 2}, evaluation=evaluation)

    with pytest.raises(KeyboardInterrupt):
        ended(made(), checkpoint=Checkpoint(tmp_path / "job"), report=stop_at(2))
    first = made().initial(0)
    progress, _ = Checkpoint(tmp_path / "job").read(first)
    assert torch.equal(progress.models["federation"], first)
    _, progress, rows = ended(made())
    losses = [row.get("validation_loss") for row in rows if row["site"] == "Aachen"]
    assert losses[:2] == [None, None]
    assert None not in losses[2:]
    assert losses[2] != losses[3]
    assert progress.best["federation"][1] in (3, 4)


def blobs(seed, cases=60):
    """Two sites, each with both classes, which are far apart; rows of two features."""
    source, data = torch.Generator().manual_seed(seed), {}
    for site in "AB":
        labels = torch.arange(cases) % 2
        inputs = 0.3 * torch.randn(cases, 2, generator=source) + torch.tensor([1.5, -1.0]) * (2.0 * labels[:, None] - 1)
        data[site] = site_of(site, inputs, labels, None)
    return data


@both
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_of_made_cases_alone_tells_real_ones(seed, method):
    entry = {"generator_rounds": 4, "steps": 60, "network_steps": 60, "batch_size": 32, "lr": 0.002, "width": 8}
    made = made_of(blobs(seed), entry, method=method, training={"rounds": 5}, evaluation={"folds": 3})
    outcome = made.runner.run(Job((made.method(),), seed, 0), made.fold)
    right = [((one["score"] > 0.5) == one["label"]).mean() for one in outcome.predictions]
    assert min(right) > 0.9, right


@both
def test_images(method):
    data = image_sites({"Aachen": 9, "Bonn": 7}, size=8)
    made = made_of(data, method=method, model={"cnn": {"channels": [4]}})
    plan, progress, _ = ended(made)
    assert progress.model("federation").isfinite().all()
    assert plan.procedure[1].made().inputs.shape == (20, 1, 8, 8)


@both
def test_a_site_with_one_case_takes_part_since_the_model_is_trained_at_the_server(method):
    """Batch normalisation needs two cases in a batch, and made ones are as many as are asked for."""
    model = {"mlp": {"hidden": [4], "norm": "batch"}}
    _, progress, rows = ended(made_of(table_sites({"Aachen": 9, "Bonn": 1}), method=method, model=model))
    assert {row["site"] for row in rows} == {"Aachen", "Bonn"}
    assert progress.model("federation").isfinite().all()


@both
@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options, method):
    assert torch.equal(made_of(method=method, **options).state(), made_of(method=method).state())


@both
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, method):
    def train(folder, stop=None):
        made = made_of(method=method, entry={"generator_rounds": 2}, model={"mlp": {"hidden": [6], "dropout": 0.3}},
                       training={"rounds": 4}, folder=folder / "sites", evaluation={"folds": 2})  # fmt: skip
        plan, progress, _ = ended(made, checkpoint=Checkpoint(folder / "job"), report=stop_at(stop))
        return {"model": progress.model("federation"), **plan.procedure[1].memory()}

    whole = train(tmp_path / "whole")
    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        found = train(tmp_path / str(stop))
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole)


def changing(engine, site, function, change):
    """An engine in which a site's answers to a question are changed."""
    original = engine.call

    def call(asked, requests):
        for name, reply in original(asked, requests):
            yield name, change(reply) if (asked, name) == (function, site) and isinstance(reply, Message) else reply

    engine.call = call


def with_tensors(**changed):
    def change(reply):
        return Message(reply.fields, {**reply.tensors, **{n: one(reply.tensors[n]) for n, one in changed.items()}})

    return change


@pytest.mark.parametrize(
    ("verb", "change", "words"),
    [
        ("begin", with_tensors(cases=lambda one: one[:1]), "cases: got"),
        ("begin", with_tensors(cases=lambda one: one * 0), "no counts"),
        ("begin", with_tensors(cases=lambda one: one - 100), "expected 0 or more"),
        ("judge", with_tensors(gradient=lambda one: one[:2]), "no gradient"),
        ("judge", with_tensors(gradient=lambda one: one[:, :2]), "gradient: got"),
        ("judge", with_tensors(gradient=lambda one: one * torch.nan), "P301"),
        ("judge", with_tensors(loss=lambda one: one.repeat(2)), "loss: got"),
        ("judge", lambda reply: Message(reply.fields, {}), "no gradient"),
        ("judge", lambda reply: SiteError("P401", "Bonn is gone.", site="Bonn"), "Bonn is gone"),
        ("end", lambda reply: SiteError("P401", "Bonn is gone.", site="Bonn"), "Bonn is gone"),
        ("check", with_tensors(counts=lambda one: one + 500), "counts that can't be"),
        ("check", with_tensors(counts=lambda one: one[:2]), "counts: got"),
        ("check", lambda reply: Message(reply.fields, {}), "counts that can't be"),
    ],
)  # fmt: skip
def test_an_answer_that_can_not_be_is_its_site_s_failure(verb, change, words):
    made = made_of(training={"quorum": 2})
    changing(made.engine, "Bonn", f"{PART}/{verb}", change)
    progress, rows = made.rounds()
    number = 1 if verb == "check" else 0
    assert {row["site"] for row in rows if row["round"] == number} == {"Aachen", "Celle", "Dresden"}
    assert any("Bonn" in note and words in note for note in progress.failures), progress.failures
    assert progress.model("federation").isfinite().all()
    made = made_of()
    changing(made.engine, "Bonn", f"{PART}/{verb}", change)
    with pytest.raises(PolyclinicError):
        made.rounds()


@both
def test_a_generator_that_breaks_down_is_said_so(method):
    with pytest.raises(PolyclinicError, match="P301"):
        made_of(method=method, entry={"lr": 1e30}).rounds()


def test_what_leaves_a_site():
    made = made_of(training={"rounds": 2}, evaluation={"folds": 2})
    with recorded(made.engine) as said:
        made.rounds()
    verbs = [
        function.partition("/")[2] for function, site, _, _ in said if function.startswith(PART) and site == "Bonn"
    ]
    assert verbs == ["begin", "judge", "judge", "judge", "end", "begin", "check"]
    sent = {name for function, _, _, reply in said if function.startswith(PART) for name in reply.tensors}
    assert sent == {"cases", "gradient", "loss", "counts", "nearness"}


@both
def test_what_can_not_be_is_refused(method):
    for entry, training, why in (
        ({"local": ["proximal"]}, {}, "proximal has nothing to change"),
        ({"channel": ["secure_sum"]}, {}, "secure_sum has nothing to change"),
        ({"share": "no_norm"}, {}, "shares all of the model"),
        ({"generator_rounds": 2}, {}, "is trained after 2 rounds, and the training has 2"),
        ({}, {"early_stopping": 3}, "would take that for the end"),
        ({}, {"class_weights": "balanced"}, "class_weights"),
    ):  # fmt: skip
        with pytest.raises(EntryError, match=f"P104 .*{why}"):
            made_of(method=method, entry=entry, training=training, evaluation={"best_round": "loss", "validation": 0.2})
    with pytest.raises(EntryError, match=r"P104 .*is for classification and segmentation, and the task is regression"):
        Federation(table_sites(), [{method: SMALL}], task="regression", training={"rounds": 2})
    volume = {"Aachen": site_of("Aachen", torch.zeros(4, 1, 8, 8, 8), torch.tensor([0, 1, 0, 1]))}
    with pytest.raises(StudyError, match=r"P104 .*flat images"):
        made_of(volume, method=method, model={"cnn": {"channels": [4]}}).rounds()
