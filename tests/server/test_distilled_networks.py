"""FedDF where sites have different networks: a model for each, which learns what the models of all find together."""

import math
import re

import pytest
import torch
from torch import nn

from helpers import (
    SIZES,
    Federation,
    declare,
    image_sites,
    number_site,
    plain_module,
    recorded,
    site_of,
    table_sites,
    trained_state,
    with_public,
)
from polyclinic.engine import LocalEngine
from polyclinic.errors import SiteError, StudyError
from polyclinic.federation.ends.policy import refusals
from polyclinic.federation.site_file import Policy
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.server.distillation import EnsembleDistillation
from polyclinic.study.job import Job

PUBLIC = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
WIDE = {"mlp": {"hidden": [6]}}
#: A network of another name that computes the same: nothing is ever dropped, and 1 / (1 - 1e-12) is 1.
TWIN = {"mlp": {"hidden": [6], "dropout": 1e-12}}
MIXED = {"Aachen": "logistic", "Bonn": "logistic", "Celle": {"mlp": {"hidden": [4, 3], "norm": "batch"}}}
SMALL = {"mlp": {"hidden": [4]}}
DISTILLING = {"ensemble_distillation": {"steps": 5, "lr": 0.01}}
ONE, OTHER = "network 1", "network 2"


def feddf(**options):
    return {"feddf": {"steps": 5, "lr": 0.01, "label": "feddf", **options}}


def sites(**options):
    return with_public(table_sites(**options), PUBLIC)


def models(federation, label=None):
    return federation.rounds(label)[0].models


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        if tolerance:
            torch.testing.assert_close(first[name], second[name], **tolerance)
        else:
            assert torch.equal(first[name], second[name]), name


# Identities -----------------------------------------------------------------------------------------------------------


def test_the_studys_network_by_name_is_no_other():
    named = dict.fromkeys(SIZES, WIDE)
    options = {"model": WIDE, "training": {"rounds": 2}}
    plain = models(Federation(sites(), [feddf()], **options))
    same(plain, models(Federation(sites(), [feddf()], networks=named, **options)))


def test_one_network_under_another_name_gives_the_same_bytes():
    options = {"model": WIDE, "training": {"rounds": 3}}
    plain = models(Federation(sites(), [feddf()], **options))
    named = models(Federation(sites(), [feddf()], networks=dict.fromkeys(SIZES, TWIN), **options))
    assert list(plain) == [FEDERATION]
    assert list(named) == [ONE]
    assert torch.equal(plain[FEDERATION], named[ONE])


def test_two_names_of_one_network_at_sites_with_the_same_cases_are_feddf_at_half_of_them():
    """Full batches: what differs between the sites with the same cases is the order in which these are added. Sites
    train long, so that they differ: Adam makes a step even of a gradient that is mere rounding."""
    half = {name: data for name, data in sites().items() if name in ("Aachen", "Bonn")}
    copies = {f"{name} again": site_of(f"{name} again", one.inputs, one.targets) for name, one in half.items()}
    copies = with_public(copies, PUBLIC)
    training = {"rounds": 2, "local_epochs": 10, "batch_size": 64, "optimizer": {"sgd": {"lr": 0.5}}}
    options = {"model": WIDE, "training": training}
    plain = models(Federation(half, [feddf()], **options))[FEDERATION]
    both = models(Federation({**half, **copies}, [feddf()], networks=dict.fromkeys(copies, TWIN), **options))
    torch.testing.assert_close(both[FEDERATION], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[ONE], plain, rtol=1e-4, atol=1e-5)


def test_without_steps_each_network_is_averaged_by_itself():
    federation = Federation(sites(), [feddf(steps=0)], model=WIDE, networks=MIXED, training={"rounds": 2})
    found, plan = models(federation), federation.plan()
    assert sorted(found) == [FEDERATION, ONE, OTHER]
    for model, members in ((FEDERATION, ["Dresden"]), (ONE, ["Aachen", "Bonn"]), (OTHER, ["Celle"])):
        alone = {name: data for name, data in sites().items() if name in members}
        network = MIXED.get(members[0], WIDE)
        plain = Federation(alone, ["fedavg"], model=network, training={"rounds": 2})
        assert plain.template.layout == plan.network_of(model).layout
        assert torch.equal(found[model], plain.state())


@pytest.mark.parametrize("options", [{"serialise": True}, {"stacked": True}])
def test_other_engines_give_the_same(options):
    made = [
        models(Federation(sites(), [feddf()], model=WIDE, networks=MIXED, training={"rounds": 2}, **one))
        for one in ({}, options)
    ]
    same(*made, **({"rtol": 1e-3, "atol": 1e-4} if "stacked" in options else {}))


@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, after):
    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == after:
            raise Killed

    options = {
        "model": WIDE, "networks": MIXED, "training": {"rounds": 4, "participation": {"uniform": {"sites": 2}}},
        "evaluation": {"folds": 3, "validation": 0.3, "best_round": "loss"},
    }  # fmt: skip
    methods = [{"feddf": {"server": [DISTILLING, "fedadam"], "label": "feddf"}}]
    whole = Federation(sites(part=None), methods, folder=tmp_path / "a", **options).rounds()[0]
    with pytest.raises(Killed):
        Federation(sites(part=None), methods, folder=tmp_path / "b", **options).rounds(
            checkpoint=Checkpoint(tmp_path / "job"), report=stop
        )
    again = Federation(sites(part=None), methods, folder=tmp_path / "b", **options)
    progress, _ = again.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    same(whole.models, progress.models)
    same(whole.best_models, progress.best_models)
    assert (whole.homes, whole.best_homes) == (progress.homes, progress.best_homes)
    for site in SIZES:
        assert torch.equal(whole.state(site), progress.state(site))


def test_a_site_may_be_called_as_a_model_is():
    data = {ONE if name == "Dresden" else name: one for name, one in sites(part=None).items()}
    methods = ["single", "cross", feddf()]
    federation = Federation(data, methods, model=WIDE, networks=MIXED, evaluation={"folds": 3})
    assert federation.plan("single").network_of(ONE) is federation.template
    plan = federation.plan("feddf")
    assert plan.network_of(ONE) is plan.networks["Aachen"].model
    for labels in (["single", "cross"], ["feddf"]):
        assert all(frame["score"].notna().all() for frame in federation.outcome(*labels).predictions)


# Numbers by hand ------------------------------------------------------------------------------------------------------


def test_two_rounds_are_those_of_a_small_program_of_its_own():
    """Sites train, those of a network are averaged by their cases, and each mean learns by Adam what the mean of all
    four sites' logits says of the public set, as one batch."""
    steps, lr, rounds = 4, 0.05, 2
    networks = {"Aachen": "logistic", "Bonn": "logistic"}
    training = {"rounds": rounds, "batch_size": 64, "optimizer": {"sgd": {"lr": 0.2}}}
    federation = Federation(sites(), [feddf(steps=steps, lr=lr)], model=WIDE, networks=networks, training=training)
    found, plan = models(federation), federation.plan()
    own = plan.networks["Aachen"]
    kinds = {ONE: (own.model, own.initial), FEDERATION: (federation.template, federation.initial(0))}
    shared = {name: plain_module(model, vector.clone()) for name, (model, vector) in kinds.items()}
    homes = {site: ONE if site in networks else FEDERATION for site in SIZES}
    data = sites()
    for _ in range(rounds):
        trained = {}
        for site, home in homes.items():
            module = plain_module(kinds[home][0], flat_of(shared[home]))
            loss = nn.functional.cross_entropy(module(data[site].inputs), data[site].targets)
            loss.backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.2 * parameter.grad
            trained[site] = module
        with torch.no_grad():
            wanted = (sum(module(PUBLIC) for module in trained.values()) / len(trained)).softmax(1)
        for home, module in shared.items():
            members = [site for site in SIZES if homes[site] == home]
            cases = sum(SIZES[site] for site in members)
            with torch.no_grad():
                for parts in zip(module.parameters(), *(trained[site].parameters() for site in members), strict=True):
                    mean = sum(SIZES[site] / cases * part for site, part in zip(members, parts[1:], strict=True))
                    parts[0].copy_(mean)
            first = [torch.zeros_like(parameter) for parameter in module.parameters()]
            second = [torch.zeros_like(parameter) for parameter in module.parameters()]
            for step in range(1, steps + 1):
                module.zero_grad()
                chances = module(PUBLIC).log_softmax(1)
                (wanted * (wanted.log() - chances)).sum(1).mean().backward()
                rate = lr * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
                with torch.no_grad():
                    for place, parameter in enumerate(module.parameters()):
                        first[place] = 0.9 * first[place] + 0.1 * parameter.grad
                        second[place] = 0.999 * second[place] + 0.001 * parameter.grad**2
                        mean, spread = first[place] / (1 - 0.9**step), second[place] / (1 - 0.999**step)
                        parameter -= rate * mean / (spread.sqrt() + 1e-8)
    for home, module in shared.items():
        torch.testing.assert_close(found[home], flat_of(module), rtol=1e-4, atol=1e-5)


def flat_of(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_where_the_only_site_of_a_network_fails_the_others_go_on():
    class Absent(LocalEngine):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                lost = function == "train" and site == "Celle"
                yield site, SiteError("P401", "no answer", site=site) if lost else reply

    options = {"model": WIDE, "networks": MIXED, "training": {"rounds": 2, "quorum": 3}}
    federation = Federation(sites(), [feddf()], engine=Absent(sites()), **options)
    progress, _ = federation.rounds()
    assert sorted(progress.models) == [FEDERATION, ONE]
    assert torch.equal(progress.state("Celle"), federation.plan().first(OTHER))
    without = {name: data for name, data in sites().items() if name != "Celle"}
    others = {site: network for site, network in MIXED.items() if site != "Celle"}
    same(progress.models, models(Federation(without, [feddf()], **options | {"networks": others})))


def test_a_network_of_which_nobody_is_there_stays_as_it_is():
    training = {"rounds": 1, "participation": {"uniform": {"sites": 1}}}
    federation = Federation(sites(), [feddf()], model=WIDE, networks=MIXED, training=training)
    progress, rows = federation.rounds()
    (there,) = {row["site"] for row in rows}
    plan = federation.plan()
    for site in SIZES:
        first = plan.first(plan.homes.get(site, FEDERATION))
        alike = plan.network_of(plan.homes.get(site, "")) is plan.network_of(plan.homes.get(there, ""))
        assert torch.equal(progress.state(site), first) is not alike


# What is sent, validated, tested and refused --------------------------------------------------------------------------


def test_a_site_is_validated_and_tested_with_the_model_of_its_network():
    federation = Federation(
        sites(part=None), [feddf()], model=WIDE, networks=MIXED, training={"rounds": 2},
        evaluation={"folds": 3, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip
    plan = federation.plan()
    outcome = federation.outcome()
    (tensors,) = outcome.models.values()
    for frame in outcome.predictions:
        (site,) = frame["site"].unique()
        assert set(frame["trained_on"]) == {"federation"}
        home = plan.homes.get(site, FEDERATION)
        layout = plan.network_of(home).layout
        vector = torch.cat([tensors[f"{home}/{entry.name}"].flatten() for entry in layout.entries])
        module = plain_module(plan.network_of(home), vector).eval()
        member = federation.local.members[site]
        inputs = federation.data[site].inputs[member.parts.test]
        expected = module(inputs).softmax(1)[:, 1].detach()
        torch.testing.assert_close(torch.tensor(frame["score"].to_numpy()).float(), expected)
    assert all(math.isfinite(row["validation_loss"]) for row in outcome.rounds)


@pytest.mark.parametrize(("site", "trained"), [("Bonn", (FEDERATION, ONE, OTHER)), ("Celle", (FEDERATION, ONE))])
def test_a_site_that_was_left_out_gets_the_mean_of_the_predictions_of_all_models(site, trained):
    federation = Federation(
        sites(part=None), [feddf()], model=WIDE, networks=MIXED, training={"rounds": 2}, evaluation={"folds": 3}
    )
    job = Job((federation.method(),), 0, 0, without=site)
    outcome = federation.runner.run(job, federation.fold)
    (tensors,) = outcome.models.values()
    plan, scores = federation.plan(), []
    inputs = federation.data[site].inputs[federation.local.members[site].parts.test]
    assert {name.split("/")[0] for name in tensors} == set(trained)
    for home in trained:
        layout = plan.network_of(home).layout
        vector = torch.cat([tensors[f"{home}/{entry.name}"].flatten() for entry in layout.entries])
        scores.append(plain_module(plan.network_of(home), vector).eval()(inputs).softmax(1)[:, 1].detach())
    (frame,) = outcome.predictions
    torch.testing.assert_close(torch.tensor(frame["score"].to_numpy()).float(), torch.stack(scores).mean(0))


def test_each_site_is_sent_the_model_of_its_network_and_what_it_finds_is_found_as_in_evaluation():
    """Sites of a network begin with the same weights; nothing is dropped out, and batches are not normalised by
    themselves, when the server looks what their models find."""
    noisy = {"mlp": {"hidden": [4], "norm": "batch", "dropout": 0.5}}
    networks = {"Aachen": noisy, "Bonn": noisy, "Celle": "logistic"}
    federation = Federation(sites(), [feddf()], model=WIDE, networks=networks, training={"rounds": 2})
    plan, found = federation.plan(), {}
    original = EnsembleDistillation.finish

    def spied(end, step):
        found.setdefault(end.now.number, [one.clone() for other in end.counterparts for one in other.found])
        return original(end, step)

    with recorded(federation.engine) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnsembleDistillation, "finish", spied)
        federation.rounds()
    trained = [(site, asked, reply) for function, site, asked, reply in said if function == "train"]
    for site, asked, _ in trained[: len(SIZES)]:
        assert torch.equal(asked.tensors["state"], plan.first(plan.homes.get(site, FEDERATION)))
    assert torch.equal(*(asked.tensors["state"] for site, asked, _ in trained[len(SIZES) :] if site in "Aachen Bonn"))
    rest = list(found[0])
    for site, asked, reply in trained[: len(SIZES)]:
        network = plan.network_of(plan.homes.get(site, FEDERATION))
        module = plain_module(network, trained_state(asked, reply)).eval()
        logits = module(PUBLIC).detach()
        (place,) = [number for number, one in enumerate(rest) if torch.allclose(one, logits, atol=1e-5)]
        rest.pop(place)
    assert rest == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.zeros(50), r"P401.*\[50\], expected .T. = .12."),
        (torch.full((12,), torch.nan), "P301.*not finite"),
        (torch.zeros(12, dtype=torch.float64), "P401.*float64"),
    ],
)
def test_an_answer_that_is_no_update_of_the_sites_network_is_that_sites_failure(change, words):
    class Lying(LocalEngine):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                if function == "train" and site == "Aachen":
                    reply.tensors["change"] = change
                yield site, reply

    federation = Federation(
        sites(), [feddf()], model=WIDE, networks=MIXED, training={"rounds": 2, "quorum": 3}, engine=Lying(sites())
    )
    progress, rows = federation.rounds()
    assert {row["site"] for row in rows} == {"Bonn", "Celle", "Dresden"}
    assert re.search(f"Aachen.*{words}", progress.failures[0]), progress.failures
    without = {name: data for name, data in sites().items() if name != "Aachen"}
    others = {site: network for site, network in MIXED.items() if site != "Aachen"}
    honest = Federation(without, [feddf()], model=WIDE, networks=others, training={"rounds": 2})
    same(progress.models, models(honest))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topology": "cyclic"}, "only one at a time|for one model"),
        ({"procedure": "synthetic_cases"}, "the procedure synthetic_cases is for one model"),
        ({"server": [{"heterofl": {"widths": {"Bonn": 0.5}}}, "ensemble_distillation"]}, "need"),
        ({"local": ["control_variates"]}, "control_variates needs all sites to have"),
        ({"local": ["tent"]}, "tent needs all sites to have"),
        (
            {"server": [{"fltrust": {"trusted": "Bonn"}}, "ensemble_distillation"]},
            "fltrust goes by what single sites send",
        ),
        ({"local": ["super_model"]}, "super_model needs all sites to have"),
        ({"share": "body"}, "needs whole models"),
        ({"channel": ["secure_sum"]}, "by itself|each site's|single"),
        ({"server": "mean"}, "no weights can be put together"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    given = {"share": "all", **options}
    with pytest.raises(StudyError, match=f"P104.*({words})"):
        Federation(sites(), [{"feddf": given}], model=WIDE, networks=MIXED)


def test_a_sites_policy_must_allow_that_a_model_that_may_be_its_own_goes_to_sites_that_did_not_train():
    def refused(networks=MIXED, unseen=True, voters=(), **policy):
        evaluation = {"unseen_sites": unseen, "voters": list(voters)}
        study = declare(public=True, model=WIDE, methods=["feddf"], networks=networks, evaluation=evaluation)
        return list(refusals(Policy(floor=1, predictions=True, **policy), study, ""))

    (why,) = refused()
    assert "may be this site's alone" in why
    assert "ensemble_distillation" in why
    assert refused(unseen=False, voters=["Dresden"])
    assert not refused(personal_models=True)
    assert not refused(unseen=False)
    assert not refused(networks={})


@pytest.mark.parametrize(
    "options",
    [
        {"local": ["proximal"]},
        {"personal": "ditto"},
        {"personal": {"apfl": {}}},
        {"channel": ["clip", {"gaussian_noise": {"noise": 0.01}}, "float16"]},
        {"channel": [{"top_k": {"share": 0.5}}]},
        {"server": [DISTILLING, "fedadam"]},
        {"server": ["loss_weights", DISTILLING]},
        {"server": [{"norm_bound": {"bound": 1.0}}, DISTILLING]},
    ],
)
def test_other_parts_work_on_the_model_of_each_network(options):
    federation = Federation(
        sites(part=None), [{"feddf": options}], model=WIDE, networks=MIXED | {"Celle": SMALL}, training={"rounds": 2},
        evaluation={"folds": 3},
    )  # fmt: skip
    outcome = federation.outcome()
    assert {name for frame in outcome.predictions for name in frame["site"]} == set(SIZES)
    assert all(frame["score"].notna().all() for frame in outcome.predictions)
    (tensors,) = outcome.models.values()
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_outlines_and_numbers_are_distilled_too():
    pictures = image_sites({"Aachen": 8, "Bonn": 6}, masks=True)
    public = next(iter(image_sites({"Celle": 5}).values())).inputs
    numbers = {name: number_site(name, 12) for name in ("Aachen", "Bonn")}
    small = {"unet": {"channels": [2, 3], "residual_units": 0}}
    for data, task, model, own, shared in (
        (pictures, "segmentation", {"unet": {"channels": [2, 4], "residual_units": 0}}, small, public),
        (numbers, "regression", "logistic", {"mlp": {"hidden": [3]}}, PUBLIC),
    ):
        federation = Federation(
            with_public(data, shared), [feddf(), feddf(steps=0, label="plain")], model=model, networks={"Bonn": own},
            task=task, training={"batch_size": 4, "optimizer": {"sgd": {"lr": 0.01}}},
        )  # fmt: skip
        distilled, plain = models(federation, "feddf"), models(federation, "plain")
        for name in (FEDERATION, ONE):
            assert distilled[name].isfinite().all()
            assert not torch.equal(distilled[name], plain[name])


# Certain case ---------------------------------------------------------------------------------------------------------


def corners(names, seed, cases=40):
    """Cases around the corners of a triangle, one for each class."""
    source = torch.Generator().manual_seed(seed)
    places = torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])
    labels = torch.tensor(names).repeat_interleave(cases // len(names))
    return places[labels] + 0.4 * torch.randn(len(labels), 2, generator=source), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sites_with_small_networks_learn_a_class_that_none_of_them_has(seed):
    """Two sites with small networks have two of three classes; two with larger ones have all. Neither alone nor from
    the mean of their two models can the first know the third class; from what all find in the public set they do."""
    known = {"Small": [0, 1], "Little": [0, 1], "Wide": [0, 1, 2], "Large": [0, 1, 2]}
    data = {}
    for number, (name, classes) in enumerate(known.items()):
        data[name] = site_of(name, *corners(classes, 10 * seed + number, 42))
    public = corners([0, 1, 2], 100 + seed, 60)[0]
    federation = Federation(
        with_public(data, public), ["single", feddf(steps=0, label="averaged"), feddf(steps=60, lr=0.02)],
        model={"mlp": {"hidden": [16]}}, networks=dict.fromkeys(("Small", "Little"), SMALL),
        training={"rounds": 15, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.1}}}, classes=3,
    )  # fmt: skip
    inputs, labels = corners([0, 1, 2], 200 + seed, 120)
    network = federation.plan("feddf").network_of(ONE)

    def right(vector):
        module = plain_module(network, vector).eval()
        return float((module(inputs).argmax(1) == labels).float().mean())

    progress, _ = federation.rounds("single")
    kept = federation.kept(progress)
    found = {name: right(kept[name].own) for name in ("Small", "Little")}
    found |= {label: right(models(federation, label)[ONE]) for label in ("averaged", "feddf")}
    assert found["Small"] < 0.7
    assert found["Little"] < 0.7
    assert found["averaged"] < 0.7  # two classes of three
    assert found["feddf"] > 0.9
