"""Numbers that sites add to their updates: each against the same number computed from the models themselves."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helpers import Federation, has_numbers, plain_module, recorded, table_sites, trained_state, training_message
from polyclinic.client.train import train
from polyclinic.parts import LOCAL_PARTS, Part, ServerEnd, SiteEnd
from polyclinic.parts.measures import MEASURES, PATH, STEPS, Measuring, revealed
from polyclinic.rounds import run_rounds
from polyclinic.server.mean import Mean
from polyclinic.site.round import Round

NORM_MLP = {"mlp": {"hidden": [5], "norm": "batch"}}
#: Everything that a site can measure.
NAMES = [*MEASURES, "steps", "path"]


class AskingMean(Mean):
    """A mean that keeps what it is told, and sends each site a model of its own."""

    def __init__(self, other):
        self.other, self.told = other, {}

    def send(self, site):
        return {"other": self.other}

    def add(self, update):
        super().add(update)
        self.told[update.site] = {name: float(number) for name, number in self.sent(update).items()}


class Asking(Part):
    """Asks for every number."""

    reveals = {"other": "a test", **revealed(*NAMES)}  # noqa: RUF012

    def __init__(self, server=None):
        self.server = server

    def at_site(self):
        return Measuring(*NAMES, sent="other")

    def at_server(self):
        return self.server or ServerEnd()


@pytest.fixture(autouse=True)
def asking(monkeypatch):
    monkeypatch.setitem(LOCAL_PARTS._parts, "asking", Asking)


def told_and_said(validation, task_sizes, stacked=False, **training):
    part = None if validation else "train"
    evaluation = {"folds": 2, "validation": 0.3, "best_round": "last"} if validation else {}
    federation = Federation(
        table_sites(task_sizes, part=part), model=NORM_MLP, training=training, evaluation=evaluation, stacked=stacked
    )  # fmt: skip
    server, plan = AskingMean(federation.initial(7)), federation.plan()
    start = plan.start.model_copy(update={"parts": [("asking", {})]})
    plan = replace(plan, start=start, parts=lambda: {"asking": Asking(server)})
    with recorded(federation.engine) as said:
        _, rows = run_rounds(plan, federation.engine)
    return federation, server, [entry for entry in said if entry[0] == "train"], rows


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_each_number_is_what_the_models_give(validation, stacked):
    sizes = {"Aachen": 40, "Bonn": 22}
    federation, server, said, rows = told_and_said(validation, sizes, stacked, local_epochs=2, optimizer=
                                                   {"sgd": {"lr": 0.1, "momentum": 0.5}})  # fmt: skip

    def measured(vector, site, part):
        member = federation.engine.members[site]
        index = getattr(member.parts, part)
        index = index if len(index) else member.parts.train
        module = plain_module(federation.template, vector).eval()
        with torch.no_grad():
            outputs = module(member.dataset.batch(index)[0])
        targets = member.dataset.batch(index)[1]
        return float(F.cross_entropy(outputs, targets)), float((outputs.argmax(1) == targets).double().mean())

    for _, site, request, reply in said:
        start, end = request.tensors["state"], trained_state(request, reply)
        found = server.told[site]
        assert set(found) == set(NAMES)
        assert found["start_loss"] == pytest.approx(measured(start, site, "train")[0], rel=1e-5)
        assert found["end_loss"] == pytest.approx(measured(end, site, "train")[0], rel=1e-5)
        assert found["end_accuracy"] == measured(end, site, "train")[1]
        assert found["start_validation_loss"] == pytest.approx(measured(start, site, "validation")[0], rel=1e-5)
        assert found["end_validation_loss"] == pytest.approx(measured(end, site, "validation")[0], rel=1e-5)
        assert found["leave_one_out_loss"] == pytest.approx(measured(server.other, site, "validation")[0], rel=1e-5)
        count = next(row["steps"] for row in rows if row["site"] == site)
        assert found["steps"] == count
        assert found["path"] == pytest.approx(sum(2 * (1 - 0.5**k) for k in range(1, count + 1)))
        assert (found["end_loss"] == found["end_validation_loss"]) is not validation
        assert found["start_loss"] != found["end_loss"]


def test_what_is_exchanged_stands_in_the_rows():
    """A number is 8 bytes, an element of a model 4; the state itself needs no words."""
    federation, _, _, rows = told_and_said(False, {"Aachen": 12, "Bonn": 9})
    size = federation.template.layout.size
    for row in rows:
        assert has_numbers(row["bytes_up"], 4 * size + 8 * len(NAMES), 3)
        assert has_numbers(row["bytes_down"], 4 * size + 4 * size)
        assert row["extra_down"] == f"asking/other [{size}] {4 * size} bytes"
        assert row["extra_up"].split("; ") == [f"asking/{name} [] 8 bytes" for name in sorted(revealed(*NAMES))]


def test_what_scaffold_exchanges_stands_in_the_rows():
    federation = Federation(table_sites({"Aachen": 12, "Bonn": 9}), ["scaffold"], training={"rounds": 2})
    _, rows = federation.rounds()
    size, weights = 4 * federation.template.layout.size, federation.template.layout.trainable
    up = f"control_variates/control_change [{weights}] {4 * weights} bytes"
    down = f"control_variates/control [{weights}] {4 * weights} bytes"
    assert [(row["extra_up"], row["extra_down"]) for row in rows] == [(up, "")] * 2 + [(up, down)] * 2
    assert all(has_numbers(row["bytes_up"], size + 4 * weights) for row in rows)
    assert all(has_numbers(row["bytes_down"], size + 4 * weights * row["round"]) for row in rows)


def test_fednova_sends_one_number_and_fedavg_nothing():
    federation = Federation(table_sites({"Aachen": 12}), ["fedavg", "fednova"])
    assert {(row["extra_up"], row["extra_down"]) for row in federation.rounds("fedavg")[1]} == {("", "")}
    (row,) = federation.rounds("fednova")[1]
    assert row["extra_up"] == "normalised/path [] 8 bytes"
    assert has_numbers(row["bytes_up"], 4 * federation.template.layout.size + 8)


def test_every_number_says_what_it_could_reveal_without_the_separator_of_the_column():
    said = revealed(*NAMES)
    assert list(said) == NAMES
    assert (said["steps"], said["path"]) == (STEPS, PATH)
    for sentence in said.values():
        assert len(sentence.split()) > 5
        assert ";" not in sentence


class Counting(SiteEnd):
    def meet(self, view):
        return {"counts": torch.ones(3)}


class Announcing(Part):
    """Says something at the start."""

    reveals = {"counts": "how many cases of each class there are; at the site"}  # noqa: RUF012

    def at_site(self):
        return Counting()


def test_what_sites_announce_stands_in_their_first_row(monkeypatch):
    """Bonn first takes part in the second round; what it said at the start stands there."""

    monkeypatch.setitem(LOCAL_PARTS._parts, "announcing", Announcing)
    federation = Federation(
        table_sites({"Aachen": 12, "Bonn": 9}), [{"fedavg": {"local": ["announcing"]}}],
        training={"rounds": 3, "participation": {"availability": {"absent": {"Bonn": [1]}}}},
    )  # fmt: skip
    _, rows = federation.rounds()
    said = "announcing/counts [3] 12 bytes"
    assert [(row["site"], row["extra_up"]) for row in rows] == [
        ("Aachen", said), ("Aachen", ""), ("Bonn", said), ("Aachen", ""), ("Bonn", ""),
    ]  # fmt: skip
    assert has_numbers(rows[0]["bytes_up"] - rows[1]["bytes_up"], 12)


@pytest.mark.parametrize("topology", ["star", "cyclic"])
def test_what_sites_announce_is_told_in_the_first_round_that_counts(topology, monkeypatch):
    """In the first round Bonn is away and Celle too late, so that Aachen's answer alone changes nothing."""

    monkeypatch.setitem(LOCAL_PARTS._parts, "announcing", Announcing)
    federation = Federation(
        table_sites({"Aachen": 12, "Bonn": 9, "Celle": 8}),
        [{"fedavg": {"local": ["announcing"], "topology": topology}}],
        training={"rounds": 2, "quorum": 2, "step_seconds": {"Celle": 10}, "participation": [
            {"availability": {"absent": {"Bonn": [1]}}}, {"deadline": {"seconds": 5}}]},
    )  # fmt: skip
    progress, rows = federation.rounds()
    assert [(row["round"], row["site"]) for row in rows] == [(1, "Aachen"), (1, "Bonn")]
    assert all("announcing/counts [3] 12 bytes" in row["extra_up"] for row in rows)
    assert progress.losses == {row["site"]: row["loss"] for row in rows}


def test_a_site_keeps_nothing_of_a_round_whose_numbers_it_cannot_measure():
    method = {"fedbn": {"server": ["loss_weights"], "local": ["control_variates"]}}
    federation = Federation(table_sites({"Aachen": 12, "Bonn": 9}), [method], model=NORM_MLP)
    federation.kept(federation.rounds()[0])
    run = federation.engine.members["Aachen"].run
    before = {name: tensor.clone() for name, tensor in run.memory().items()}
    work = Round(run, *training_message(1, run.shared.take(federation.initial(0)), exchange=9))
    work.took(train(run.model, run.task, work.work(0), work.job(0)))

    def fail(vector, index):
        raise ValueError("out of order")

    work.view._measure = fail
    with pytest.raises(ValueError, match="out of order"):
        work.finish(0.0)
    run.settle(9)
    assert before.keys() == run.memory().keys()
    for name, tensor in run.memory().items():
        assert torch.equal(tensor, before[name]), name


def test_the_model_without_a_site_is_measured_with_what_the_site_had_before_the_round():
    federation = Federation(table_sites({"Aachen": 12, "Bonn": 9}), [{"fedbn": {"server": ["fedce"]}}], model=NORM_MLP)
    federation.kept(federation.rounds()[0])
    run = federation.engine.members["Aachen"].run
    sent = run.shared.take(federation.initial(1))
    expected = run.shared_model(sent)
    name = next(name for name in run.ends["fedce"].names if MEASURES[name].model == "sent")
    work = Round(run, *training_message(1, sent, exchange=9, **{f"fedce/{run.ends['fedce'].model_sent}": sent}))
    work.took(train(run.model, run.task, work.work(0), work.job(0)))
    seen = []

    def measure(vector, index):
        seen.append(vector)
        return {"loss": 1.0, "accuracy": 1.0}

    work.view._measure = measure
    assert f"fedce/{name}" in work.finish(0.0).tensors
    assert torch.equal(seen[0], expected)
    run.settle(9)
    assert not torch.equal(run.kept.own, run.private.take(expected))
