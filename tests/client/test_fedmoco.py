"""FedMoCo: a pretraining by momentum contrast in the first rounds."""

import math
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from elsewhere import Elsewhere, split_table
from faults import Killed
from helpers import (
    Federation,
    catalogued,
    declare,
    image_sites,
    recorded,
    site_of,
    straight,
    table_sites,
    write_table_study,
)
from polyclinic import Study
from polyclinic.client.few_labels.contrast import MomentumContrast, _Contrasting
from polyclinic.client.few_labels.views import strong_view, weak_view
from polyclinic.client.train import train
from polyclinic.communication.message import Message
from polyclinic.errors import ModelError, StudyError
from polyclinic.parts import Now, Step, Update
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import derive_seed
from polyclinic.state import Role
from polyclinic.study.final_model.choosing import _best_rounds, _check_rounds
from polyclinic.study.kinds import PLAIN
from polyclinic.study.runner import run_study

BATCH_NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
MLP = {"mlp": {"hidden": [6]}}
DECAYING = {"optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}}


def moco(rounds=2, **options):
    return {"fedmoco": {"pretraining_rounds": rounds, "label": "moco", **options}}


# Exact numbers --------------------------------------------------------------------------------------------------------


def normal(row):
    return row / max(float(row.norm()), 1e-12)


def contrast(body, query, keys, cases, queue, drawn, temperature):
    """The mean over cases of −log of the share of the right key, one case and one key after another."""
    total = torch.zeros(())
    for place, view in enumerate(query):
        feature = body @ view
        feature = feature / feature.norm().clamp_min(1e-12)
        right = feature @ keys[place] / temperature
        wrong = [feature @ key / temperature for other, key in enumerate(keys) if other != place]
        wrong += [feature @ key / temperature for case, key in queue if case != cases[place]]
        wrong += [feature @ key / temperature for key in drawn]
        total = total - (right - torch.logsumexp(torch.stack([right, *wrong]), 0))
    return total / len(query)


def test_two_rounds_by_an_independent_program(monkeypatch):
    """A site of 10 cases, 4 of them with a label, in batches of 4; the queue of 5 keys has some of the same cases."""
    options = {"temperature": 0.5, "momentum": 0.6, "queue": 5, "drawn": 3, "strength": 0.3}
    sites = {"A": site_of("A", torch.randn(10, 2, generator=torch.Generator().manual_seed(4)), torch.arange(10) % 2)}
    seen = []
    original = _Contrasting._look

    def look(self, batch):
        seen.append((batch.seed, batch.inputs.clone(), batch.cases.tolist()))
        return original(self, batch)

    monkeypatch.setattr(_Contrasting, "_look", look)
    with catalogued("straight", straight):
        federation = Federation(
            sites, [moco(2, **options)], model="straight", training={"rounds": 3, "batch_size": 4},
            preparation={"labels": {"share": 0.4}},
        )  # fmt: skip
        with recorded(federation.engine) as said:
            progress, rows = federation.rounds()
    assert [row["examples"] for row in rows] == [10, 10, 4]
    assert len(seen) == 6, "three steps in each of two rounds"

    body, follower = torch.eye(2), torch.eye(2)
    queue, drawn, losses = [], (), []
    for number in range(2):
        start, sums, count = body.clone(), torch.zeros(2, 2, dtype=torch.float64), 0
        for seed, inputs, cases in seen[3 * number : 3 * number + 3]:
            source = torch.Generator().manual_seed(seed)
            query, other = (strong_view(weak_view(inputs, (), source), source, 0.3, cut=True) for _ in range(2))
            follower = 0.6 * follower + 0.4 * body
            keys = [normal(follower @ view) for view in other]
            if drawn:
                common, deviation = drawn
                source = torch.Generator().manual_seed(derive_seed(seed, "drawn"))
                others = [normal(common + deviation * row) for row in torch.randn(3, 2, generator=source)]
            weights = body.clone().requires_grad_()
            loss = contrast(weights, query, keys, cases, queue, others if drawn else [], 0.5)
            loss.backward()
            losses.append(float(loss.detach()))
            body = body - 0.1 * weights.grad
            queue = (list(zip(cases, keys, strict=True)) + queue)[:5]
            for key in keys:
                sums += torch.stack([key.double(), key.double() ** 2])
                count += 1
        mean, square = sums / count
        drawn = (mean.float(), (square - mean**2).clamp_min(0).sqrt().float())
        assert rows[number]["loss"] == pytest.approx(sum(losses[-3:]) / 3, rel=1e-5)
        answer = [reply for function, _, _, reply in said if function == "train"][number].tensors
        torch.testing.assert_close(answer["change"][:4].view(2, 2), body - start, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(answer["momentum_contrast/mean"], mean.float(), rtol=1e-4, atol=1e-6)
        assert not answer["change"][4:].any(), "the head stays as it is"
    asked = [request for function, _, request, _ in said if function == "train"]
    torch.testing.assert_close(asked[1].tensors["momentum_contrast/deviation"] > 0, torch.ones(2, dtype=torch.bool))
    assert "momentum_contrast/common" not in asked[0].tensors
    assert "momentum_contrast/common" not in asked[2].tensors
    assert federation.kept(progress)["A"].parts["momentum_contrast"] == {}, "nothing is left of it"


def test_what_sites_are_told_is_the_mean_of_all_by_weight():
    """Weights 8 and 4: (8 · 0.5 + 4 · 0.2) / 12 = 0.4, and squares 0.28 give a deviation of √(0.28 − 0.16)."""
    end = MomentumContrast().at_server()
    end.name = "momentum_contrast"
    nothing = torch.zeros(1)
    end.begin(Now(0, 20, 0.1, nothing, nothing, 12.0))
    assert end.send("A") == {}
    for site, weight, mean, square in (("A", 8.0, 0.5, 0.3), ("B", 4.0, 0.2, 0.24)):
        sent = {"momentum_contrast": {"mean": torch.tensor([mean]), "square": torch.tensor([square])}}
        end.take(Update(site, nothing, nothing, weight, sent))
    end.finish(Step(nothing, nothing, {}))
    for number, told in ((1, True), (9, True), (10, False)):
        end.begin(Now(number, 20, 0.1, nothing, nothing, 12.0))
        assert bool(end.send("A")) == told
    assert float(end.memory()["common"]) == pytest.approx(0.4)
    assert float(end.memory()["deviation"]) == pytest.approx(math.sqrt(0.12), rel=1e-5)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [True, False])
def test_without_rounds_it_is_fedavg_to_the_bit(hidden):
    federation = Federation(
        table_sites(), ["fedavg", moco(0)], model=BATCH_NORM, training={"rounds": 2},
        preparation={"labels": {"share": 0.5}} if hidden else {},
    )  # fmt: skip
    assert torch.equal(federation.state("moco"), federation.state("fedavg"))
    assert "phase" not in federation.rounds("moco")[1][0]


def test_after_them_it_is_fedavg_from_there():
    """Whose learning rates, batches and dropout are those of its rounds; the head is as it was drawn."""
    federation = Federation(
        table_sites(), [moco(2), "fedavg"], model=BATCH_NORM, training={"rounds": 3, **DECAYING},
        preparation={"labels": {"share": 0.5}},
    )  # fmt: skip
    with recorded(federation.engine) as said:
        federation.rounds("moco")
    asked = {r.fields["round"]: r.tensors["state"] for f, _, r, _ in said if f == "train"}
    layout = federation.template.layout
    head, body = layout.select({Role.HEAD}), layout.select({Role.WEIGHT})
    first = federation.initial(0)
    assert torch.equal(head.take(asked[2]), head.take(first))
    assert not torch.equal(body.take(asked[2]), body.take(first))
    plan = federation.plan("fedavg")
    last = [(site, reply) for f, site, r, reply in said if f == "train" and r.fields["round"] == 2]
    member = federation.engine.members
    federation.engine.ask("start", dict.fromkeys(plan.sites, Message(plan.start.fields(), {"initial": plan.initial})))
    for site, reply in last:
        (request,) = [r for f, s, r, _ in said if f == "train" and s == site and r.fields["round"] == 2]
        plain = type(request)(request.fields, {"state": request.tensors["state"]})
        own = member[site].handle("train", plain)
        assert torch.equal(own.tensors["change"], reply.tensors["change"]), site


def test_nothing_is_shared_if_nothing_is_drawn():
    federation = Federation(table_sites(), [moco(1, drawn=0)], model=MLP, training={"rounds": 2})
    rows = federation.rounds()[1]
    assert all(not row["extra_up"] and not row["extra_down"] for row in rows)


def test_a_secure_sum_gives_the_same():
    states = [
        Federation(table_sites(), [{"fedmoco": {"pretraining_rounds": 2, **more}}], model=MLP,
                   training={"rounds": 3}).state()
        for more in ({}, {"channel": ["secure_sum"]})
    ]  # fmt: skip
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)


def test_a_step_that_is_looked_at_twice_counts_once(monkeypatch):
    """As where its gradient is taken again elsewhere: keys are made once."""
    looks, original = [], _Contrasting._look
    monkeypatch.setattr(_Contrasting, "_look", lambda self, batch: looks.append(batch.seed) or original(self, batch))
    local = [{"momentum_contrast": {"pretraining_rounds": 1}}, "weight_perturbation"]
    federation = Federation(
        table_sites({"Aachen": 9}), [{"fedavg": {"local": local}}], model=MLP, training={"rounds": 2, "batch_size": 9}
    )
    progress, _ = federation.rounds()
    assert len(looks) == 1
    assert progress.model("federation").isfinite().all()


# Rounds ---------------------------------------------------------------------------------------------------------------


def with_validation(methods, **training):
    data = table_sites({"Aachen": 30, "Bonn": 24}, part=None)
    return Federation(
        data, methods, model=MLP, training={"rounds": 6, **training},
        evaluation={"folds": 3, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip


def test_no_round_of_it_is_the_best_one():
    federation = with_validation([moco(3)])
    progress, rows = federation.rounds()
    assert progress.best["federation"][1] >= 3
    phases = {row["round"]: row["phase"] for row in rows}
    assert phases == {number: "pretraining" if number < 3 else "training" for number in range(6)}
    assert all(("validation_loss" in row) == (row["round"] >= 3) for row in rows)


def test_patience_begins_after_it():
    """With a learning rate of 0 nothing gets better: the first round after it is the best, and the next the last."""
    progress, _ = with_validation([moco(3)], early_stopping=1, optimizer={"sgd": {"lr": 0.0}}).rounds()
    assert progress.done == 5
    assert progress.best["federation"][1] == 3


def test_a_site_without_labels_learns_in_it_and_then_receives():
    sites = table_sites({"Aachen": 8, "Bonn": 7, "Celle": 6})
    sites["Bonn"].labelled, sites["Bonn"].targets = torch.zeros(7, dtype=torch.bool), torch.full((7,), -1)
    federation = Federation(sites, [moco(2)], model=MLP, training={"rounds": 4})
    plan = federation.plan("moco")
    assert (plan.sites, plan.pretrain_only) == (["Aachen", "Bonn", "Celle"], ["Bonn"])
    rows = federation.rounds("moco")[1]
    who = {number: [row["site"] for row in own] for number, own in groupby(rows, key=lambda row: row["round"])}
    assert who == {0: plan.sites, 1: plan.sites, 2: ["Aachen", "Celle"], 3: ["Aachen", "Celle"]}


def test_it_goes_on_there_with_a_part_that_learns_without_labels():
    sites = table_sites({"Aachen": 8, "Bonn": 7})
    sites["Bonn"].labelled, sites["Bonn"].targets = torch.zeros(7, dtype=torch.bool), torch.full((7,), -1)
    local = [{"momentum_contrast": {"pretraining_rounds": 1}}, {"mean_teacher": {"ramp": 0}}]
    federation = Federation(sites, [{"fedavg": {"local": local}}], model=MLP, training={"rounds": 2})
    assert federation.plan().pretrain_only == []
    assert [row["site"] for row in federation.rounds()[1]] == ["Aachen", "Bonn"] * 2


@pytest.mark.parametrize(("stop", "state"), [(1, "reset"), (2, "reset"), (3, "reset"), (2, "keep"), (3, "keep")])
def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path, stop, state):
    """In the pretraining, at its border, and after it; sites keep what the checkpoint has of them."""

    def trained(**options):
        federation = Federation(
            table_sites(), [moco(2, queue=20)], model=BATCH_NORM,
            training={"rounds": 4, "optimizer_state": state, **DECAYING},
            preparation={"labels": {"share": 0.5}}, folder=options.pop("folder"),
        )  # fmt: skip
        return federation.rounds(**options)

    def report(done, rounds):
        if done == stop:
            raise Killed

    whole, rows = trained(folder=tmp_path / "whole", checkpoint=Checkpoint(tmp_path / "one"))
    with pytest.raises(Killed):
        trained(folder=tmp_path / "sites", checkpoint=Checkpoint(tmp_path / "two"), report=report)
    again, others = trained(folder=tmp_path / "sites", checkpoint=Checkpoint(tmp_path / "two"))
    assert torch.equal(whole.model("federation"), again.model("federation"))
    drop = ("seconds",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows] == [
        {k: v for k, v in row.items() if k not in drop} for row in others
    ]


def test_images_volumes_outlines_and_times():
    for sites, task, model in (
        (image_sites({"Aachen": 6, "Bonn": 5}), "classification", {"cnn": {"channels": [4]}}),
        (image_sites({"Aachen": 6, "Bonn": 5}, masks=True), "segmentation",
         {"unet": {"channels": [2, 4], "residual_units": 0}}),
    ):  # fmt: skip
        federation = Federation(sites, [moco(1)], model=model, task=task, training={"rounds": 2})
        assert federation.state().isfinite().all()


def test_averages_over_all_batches_know_how_many_there_were(monkeypatch):
    """Three steps of 20 cases in the first round, two of ten with a label in each of the others."""
    found = []

    def noted(model, task, work, job):
        found.append(job.batches)
        return train(model, task, work, job)

    monkeypatch.setattr("polyclinic.site.site.train", noted)
    federation = Federation(
        table_sites({"Aachen": 20}), [moco(1)], model=BATCH_NORM, training={"rounds": 4},
        preparation={"labels": {"share": 0.5}},
    )  # fmt: skip
    federation.rounds()
    assert found == [0, 3, 5, 7]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({"pretraining_rounds": 5}, {}, "takes the first 5 rounds for a pretraining, and of 5 in all none is left"),
        ({"personal": "ditto"}, {}, "ditto trains a model of the site's own"),
        ({"topology": "incremental", "drawn": 0}, {}, "each site has one turn"),
        ({"server": "qfedavg"}, {}, "qfedavg goes by labels in each round"),
        ({"channel": ["clip", {"gaussian_noise": {"noise": 1.0}}], "share": "no_norm_statistics"}, {}, "tells more"),
        (
            {},
            {"search": {"trials": 2, "parameters": {"training.optimizer.sgd.lr": [0.1, 0.2]}, "rounds": 2}},
            "In a trial",
        ),
        ({}, {"final_model": {"method": "fedmoco", "rounds": 2}}, "of 2 in all none is left"),
    ],
)
def test_what_does_not_go_together(options, more, said):
    entry = {"fedmoco": {"pretraining_rounds": 2, "label": "fedmoco"} | options}
    training = {"rounds": 5, "optimizer": {"sgd": {"lr": 0.1}}}
    with pytest.raises(StudyError, match=said):
        declare(methods=[entry], model=MLP, training=training, **more)


def test_noise_goes_with_it_where_nothing_else_is_told():
    declare(
        methods=[{"fedmoco": {"pretraining_rounds": 2, "drawn": 0, "share": "no_norm_statistics",
                              "channel": ["clip", {"gaussian_noise": {"noise": 1.0}}]}}],
        model=MLP, training={"rounds": 5},
    )  # fmt: skip


def test_a_network_needs_a_body(tmp_path):
    content = write_table_study(tmp_path, {"north": 12, "south": 12})
    content |= {"model": "logistic", "methods": [moco(1)]}
    content["training"] |= {"rounds": 2}
    with pytest.raises(StudyError, match="has nothing there"):
        Study.of(content, tmp_path).run(tmp_path / "out")


# Studies --------------------------------------------------------------------------------------------------------------


def test_a_study(tmp_path, monkeypatch):
    """Rounds say their phase, beside a method without one; a model that is made of it counts rounds after it."""
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")
    content = write_table_study(tmp_path, {"north": 30, "south": 24, "west": 20})
    table = pd.read_csv(tmp_path / content["data"]["table"])
    table[content["data"]["label"]] = table[content["data"]["label"]].where(table["site"] != "west")
    table.to_csv(tmp_path / content["data"]["table"], index=False)
    content["data"] |= {"unlabelled": "use"}
    content["training"] |= {"rounds": 4}
    content |= {"model": MLP, "methods": ["fedavg", moco(2)]}
    result = Study.of(content, tmp_path).run(tmp_path / "out")
    rounds = result.rounds
    assert rounds[rounds["method"] == "fedavg"]["phase"].fillna("").eq("").all()
    mine = rounds[rounds["method"] == "moco"]
    assert (mine["phase"] == np.where(mine["round"] < 2, "pretraining", "training")).all()
    assert mine[mine["phase"] == "pretraining"]["validation_loss"].isna().all()
    assert set(mine[mine["site"] == "west"]["round"]) == {0, 1}
    assert mine[mine["chosen"] == 1]["round"].min() >= 2
    (note,) = [str(one) for one in result.notes if one.number == "N275"]
    assert "In moco they do so in the pretraining, and then receive the model." in note

    elsewhere = Elsewhere(split_table(tmp_path), tmp_path / "sites")
    content["evaluation"] |= {"predictions": "coordinator"}
    run_study(Study.of(content, tmp_path), tmp_path / "there", engine=elsewhere)
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == (tmp_path / "there" / "predictions.csv").read_bytes()


def test_rounds_of_a_model_are_counted_after_it():
    """Best in round 4 after 2 and in round 8 after 5: 2 and 3 after it are 2.5, so 3; with 5 before it 8."""
    method = declare(methods=[moco(5)], model=MLP, training={"rounds": 20}).study_methods[0]
    rows = [
        {"method": "moco", "run": "plain", "seed": 0, "fold": fold, "round": number, "chosen": int(number + 1 == best),
         "phase": "pretraining" if number < first else "training"}
        for fold, first, best in ((0, 2, 4), (1, 5, 8)) for number in range(10)
    ]  # fmt: skip
    rounds = pd.DataFrame(rows).assign(run=PLAIN)
    assert _best_rounds(SimpleNamespace(rounds=rounds, where=""), method) == (8, 2)
    with pytest.raises(ModelError, match="none is left"):
        _check_rounds(method, 5)


# Benefit --------------------------------------------------------------------------------------------------------------


def stripes(name, cases, seed):
    """Images of stripes that lie or stand, shifted at random, under noise that is almost as strong."""
    rng, labels = np.random.default_rng([seed, len(name)]), np.arange(cases) % 2
    rows, columns = np.mgrid[:8, :8]
    along = np.where(labels[:, None, None] == 1, rows, columns) * np.pi / 2
    waves = 40 * np.sin(along + rng.uniform(0, 2 * np.pi, (cases, 1, 1)))
    pixels = (128 + waves + rng.normal(scale=30, size=(cases, 8, 8))).clip(0, 255).astype(np.uint8)
    site = site_of(name, torch.from_numpy(pixels)[:, None], torch.from_numpy(labels))
    site.parts = ["train"] * 80 + ["test"] * (cases - 80)
    return site


def test_few_labels_suffice_where_others_show_what_there_is():
    """A certain case: a shift of a pixel changes all noise and no stripes, so what a case is found again by is how its
    stripes lie. Four labels at each of two sites don't tell that."""
    options = {"momentum": 0.9, "strength": 0.1, "queue": 40, "drawn": 16}
    training = {"rounds": 36, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}
    found = {"fedavg": [], "moco": []}
    for seed in range(3):
        sites = {name: stripes(name, 160, seed) for name in ("Aachen", "Bonn")}
        federation = Federation(
            sites, ["fedavg", moco(20, **options)], model={"cnn": {"channels": [8, 16]}}, training=training,
            preparation={"labels": {"share": 0.05}},
        )  # fmt: skip
        for label, right in found.items():
            cases = pd.concat(federation.outcome(label).predictions)
            right.append(((cases["score"] > 0.5) == (cases["label"] == 1)).mean())
    assert min(found["moco"]) > 0.9, found
    assert np.mean(found["moco"]) > np.mean(found["fedavg"]) + 0.15, found
