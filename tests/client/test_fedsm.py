"""FedSM: a selector says for each case whose site's model predicts it."""

import pytest
import torch
import torch.nn.functional as F

from helpers import (
    Federation,
    finding_site,
    image_sites,
    number_site,
    plain_module,
    recorded,
    site_of,
    survival_site,
    table_sites,
)
from polyclinic.client.unseen_sites.site_models import pulled
from polyclinic.client.unseen_sites.super_model import NOBODY, Selected, selector_network
from polyclinic.communication.message import Message
from polyclinic.errors import SiteError
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.site.messages import Evaluate
from polyclinic.study.final_model.entry import unusable
from polyclinic.study.job import Job

NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
FOLDS = {"folds": 2, "validation": 0.2, "best_round": "loss"}
SITES = {"Aachen": 33, "Bonn": 14, "Celle": 17}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def fedsm(label="fedsm", **options):
    return {"fedsm": {"label": label, **options}}


def tables(*methods, **options):
    options = {"model": NORM, "evaluation": FOLDS, **options}
    options["training"] = {"rounds": 3, **options.get("training", {})}
    data = options.pop("data", None) or table_sites(SITES, part=None)
    return Federation(data, list(methods), **options)


def scores(made, label=None, without=None, seed=0):
    """What the sites' test cases are predicted as."""
    frames = made.runner.run(Job((made.method(label),), seed, 0, without), made.fold).predictions
    return {frame["site"].iloc[0]: torch.tensor(frame["score"].tolist()) for frame in frames}


def trained(made, label=None, without=None):
    """The progress of a job, which is tested, too."""
    job = Job((made.method(label),), 0, 0, without)
    return made.runner.train(job, made.fold).progress


def selector_of(beside, shape, sites):
    network = selector_network(shape, sites)
    torch.nn.utils.vector_to_parameters(beside["super_model/selector"].clone(), network.parameters())
    return network


# Numbers worked out by hand -------------------------------------------------------------------------------------------


def test_soft_pull_by_hand():
    """0.5 (8, 0) + 0.25 ((4, 4) + (0, 8)) = (5, 3), and so on."""
    models = {"A": torch.tensor([8.0, 0.0]), "B": torch.tensor([4.0, 4.0]), "C": torch.tensor([0.0, 8.0])}
    found = pulled(models, 0.5)
    assert {site: one.tolist() for site, one in found.items()} == {"A": [5.0, 3.0], "B": [4.0, 4.0], "C": [3.0, 5.0]}
    assert all(one is models[site] for site, one in pulled(models, 1.0).items())
    for one in pulled(models, 1 / 3).values():
        close(one, [4.0, 4.0])
    assert pulled({"A": models["A"]}, 0.2)["A"] is models["A"]
    close(pulled({"A": models["A"], "B": models["B"]}, 0.0)["A"], models["B"])


def test_the_selector_is_trained_as_on_the_cases_of_all_sites_together():
    """Full-batch steps of Adam on the mean cross-entropy of all training cases, with the site as the class."""
    made = tables(fedsm(selector_steps=2, selector_lr=0.05), evaluation=None, data=table_sites(SITES))
    found = made.rounds()[0].beside
    network = selector_network(made.shape, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    inputs = torch.cat([site.inputs for site in made.data.values()])
    places = torch.cat([torch.full((len(site),), place) for place, site in enumerate(made.data.values())])
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), places)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    close(found["super_model/selector"], torch.nn.utils.parameters_to_vector(network.parameters()), 1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_a_state_for_each_case():
    module = Federation(table_sites({"Aachen": 8})).network(0)
    states = {place: torch.full_like(module.vector, float(place)) for place in (NOBODY, 0, 2)}
    chosen = Selected(states, {5: 0, 3: 2, 8: NOBODY, 9: 1, 4: 0})
    found = [
        (where.tolist(), float(module.vector[0])) for where, _ in chosen.in_use(module, torch.tensor([3, 5, 9, 4]))
    ]
    assert found == [([2], NOBODY), ([1, 3], 0), ([0], 2)], "a site that has no model gets the shared one"


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [None, "Bonn"])
def test_with_a_confidence_of_one_it_is_fedavg_to_the_bit(without):
    made = tables("fedavg", fedsm(confidence=1.0))
    plain = scores(made, "fedavg", without)
    assert plain
    assert all(torch.equal(found, plain[site]) for site, found in scores(made, "fedsm", without).items())


def test_one_site_is_fedavg():
    made = tables("fedavg", "fedsm", data=table_sites({"Aachen": 33}, part=None))
    close(scores(made, "fedsm")["Aachen"], scores(made, "fedavg")["Aachen"])


def test_models_that_are_not_drawn_together_are_those_that_sites_train_alone():
    made = tables("single", fedsm(pull=1.0), training={"optimizer_state": "reset"})
    alone = made.rounds("single")[0]
    own = {site: member.run.vector(alone.state(site)) for site, member in made.engine.members.items()}
    beside = made.rounds("fedsm")[0].beside
    for place, vector in enumerate(own.values()):
        assert torch.equal(beside[f"super_model/model{place}"], vector)


def test_models_that_are_all_drawn_to_one_are_fedavg_of_sites_that_count_the_same():
    made = tables("fedavg", fedsm(pull=1 / 3), training={"weights": "uniform"}, model={"mlp": {"hidden": [6]}})
    state, beside = made.state("fedavg"), made.rounds("fedsm")[0].beside
    for place in range(3):
        close(beside[f"super_model/model{place}"], state, 1e-5)


@pytest.mark.parametrize("options", [{}, {"local": ["proximal"], "personal": {"ditto": {"weight": 0.3}}}])
def test_the_shared_model_is_that_of_the_method_without_it(options):
    plain = {"ditto": {"weight": 0.3, "local": ["proximal"], "label": "plain"}} if options else "fedavg"
    made = tables(plain, fedsm(**options))
    assert torch.equal(made.state("fedsm"), made.state("plain" if options else "fedavg"))


# Which model predicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [None, "Celle"])
def test_each_case_is_predicted_by_the_model_that_the_selector_chooses(without):
    made = tables(fedsm(confidence=0.5, selector_lr=0.05), training={"optimizer": {"sgd": {"lr": 0.5}}, "rounds": 4})
    found, progress, chosen = scores(made, without=without), trained(made, without=without), set()
    beside, network = progress.best_beside, made.network(0)
    others = [site for site in SITES if site != without]
    selector = selector_of(beside, made.shape, len(others))
    for site, score in found.items():
        member = made.engine.members[site]
        inputs, _ = member.dataset.batch(member.parts.test)
        with torch.no_grad():
            best = selector(inputs).softmax(1).max(1)
        for case, (sure, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            name = f"super_model/model{place}" if sure > 0.5 else "shared"
            chosen.add(name)
            module = plain_module(network, {**beside, "shared": progress.best_state(site)}[name]).eval()
            with torch.no_grad():
                close(score[case], module(inputs[case : case + 1]).softmax(1)[0, 1], 1e-5)
    assert {f"super_model/model{place}" for place in range(len(others))} <= chosen
    assert set(found) == ({without} if without else set(SITES))


def opposite(seed):
    """At two scanners the same sign means different classes, and the second feature tells the scanner; C and D, with
    one scanner each, have test cases alone."""
    source, found = torch.Generator().manual_seed(seed), {}
    for name, scanner in (("A", 1.0), ("B", -1.0), ("C", 1.0), ("D", -1.0)):
        signal = torch.tensor([1.0, -1.0]).repeat(12)
        inputs = torch.stack([signal, torch.full((24,), scanner)], 1) + 0.1 * torch.randn(24, 2, generator=source)
        found[name] = site_of(name, inputs, (signal * scanner > 0).long(), "train" if name in "AB" else "test")
    return found


def test_sites_that_look_like_one_that_trained_get_that_site_s_model():
    """Of the four kinds of cases no linear model is right in more than three."""
    for seed in range(3):
        made = Federation(opposite(seed), ["fedavg", fedsm(selector_lr=0.05)], model="logistic",
                          training={"rounds": 15, "batch_size": 24, "optimizer": {"sgd": {"lr": 0.3}}})  # fmt: skip
        right = {}
        for label in ("fedavg", "fedsm"):
            frames = made.runner.run(Job((made.method(label),), seed, 0), made.fold).predictions
            found = {f["site"].iloc[0]: (f["score"] > 0.5) == (f["label"] == 1) for f in frames if len(f)}
            right[label] = sum(found[site].mean() for site in "CD") / 2
        assert right["fedavg"] <= 0.75
        assert right["fedsm"] == 1.0


def test_a_case_that_the_selector_makes_nothing_of_gets_the_shared_model():
    made = tables("fedsm", model="logistic")
    made.rounds()
    view = next(iter(made.engine.members.values())).run.view
    selector = torch.nn.utils.parameters_to_vector(selector_network(made.shape, 3).parameters()).detach()
    state = torch.zeros_like(view.vector) if len(view.vector) else torch.zeros(made.template.layout.size)
    sent = {"selector": selector, "sites": torch.tensor(3), "model0": state}
    end = next(iter(made.engine.members.values())).run.ends["super_model"]
    cases = {0: torch.full((1, 5), 1e38), 1: torch.full((1, 5), float("nan"))}
    found = end.adapted(state, torch.tensor([0, 1]), lambda some: torch.cat([cases[one] for one in some.tolist()]),
                        view.predicting(state, sent))  # fmt: skip
    assert found.choice[1] == NOBODY


# In all engines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    plain, other = (trained(tables("fedsm", **chosen)) for chosen in ({}, options))
    close(other.model(FEDERATION), plain.model(FEDERATION), 1e-5)
    assert plain.best_beside.keys() == other.best_beside.keys()
    for name, one in plain.best_beside.items():
        close(other.best_beside[name], one, 1e-5)


def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        made = tables("fedsm", folder=folder / "sites")

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        job = Job((made.method(),), 0, 0)
        outcome = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        return outcome.models, {frame["site"].iloc[0]: frame["score"].tolist() for frame in outcome.predictions}

    whole = train(tmp_path / "whole")
    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        models, found = train(tmp_path / str(stop))
        assert found == whole[1]
        for name, tensors in models.items():
            assert all(torch.equal(one, whole[0][name][key]) for key, one in tensors.items())


@pytest.mark.parametrize("task", ["segmentation", "regression", "multi_label"])
def test_other_tasks(task):
    if task == "segmentation":
        data = image_sites({"Aachen": 6, "Bonn": 5}, masks=True, part=None)
        made = Federation(data, ["fedsm"], task=task, model={"unet": {"channels": [2, 4]}}, evaluation=FOLDS)
    else:
        make = number_site if task == "regression" else finding_site
        kind = {"classes": 0, "model": "logistic"} if task == "regression" else {"classes": 4, "model": "logistic"}
        data = {name: make(name, cases, part=None) for name, cases in SITES.items()}
        made = Federation(data, ["fedsm"], task=task, evaluation=FOLDS, **kind)
    for without in (None, "Bonn"):
        frames = made.runner.run(Job((made.method(),), 0, 0, without), made.fold).predictions
        assert {frame["site"].iloc[0] for frame in frames} == ({without} if without else set(made.data))


# What is sent ---------------------------------------------------------------------------------------------------------


def test_what_goes_which_way_and_is_counted():
    made = tables("fedsm", "fedavg")
    with recorded(made.engine) as said:
        _, rows = made.rounds("fedsm")
    size = 4 * made.template.layout.size
    for row in rows:
        assert row["bytes_up"] > 2 * size
        assert "super_model/model" in row["extra_up"]
        assert "super_model/gradient" in row["extra_up"]
        assert "super_model/selector" in row["extra_down"]
        assert ("super_model/own" in row["extra_down"]) == (row["round"] > 0)
    evaluated = [request for function, _, request, _ in said if function == "evaluate"]
    assert {f"super_model/model{place}" for place in range(3)} <= evaluated[0].tensors.keys()


def test_of_a_site_that_was_away_the_last_model_counts():
    def all_of(number):
        made = tables(fedsm(pull=1.0, training={"participation": {"uniform": {"sites": 2}}}),
                      training={"rounds": number, "optimizer_state": "reset"},
                      evaluation={**FOLDS, "best_round": "last"})  # fmt: skip
        progress, rows = made.rounds()
        return progress.beside, {row["site"] for row in rows if row["round"] == number - 1}

    (before, _), (after, there) = all_of(5), all_of(6)
    for place, site in enumerate(SITES):
        same = torch.equal(before[f"super_model/model{place}"], after[f"super_model/model{place}"])
        assert same == (site not in there)


@pytest.mark.parametrize(("function", "name"), [("train", "model"), ("super_model/tell_apart", "gradient")])
def test_an_answer_of_another_length_is_that_site_s_failure(monkeypatch, function, name):
    made = tables("fedsm", training={"quorum": 2})
    member = made.engine.members["Bonn"]
    handle = member.handle

    def wrong(asked, request):
        reply = handle(asked, request)
        if asked != function:
            return reply
        key = f"super_model/{name}" if asked == "train" else name
        return Message(reply.fields, {**reply.tensors, key: torch.zeros(3)})

    monkeypatch.setattr(member, "handle", wrong)
    progress, rows = made.rounds()
    assert ({row["site"] for row in rows} == {"Aachen", "Celle"}) == (function == "train")
    assert [text for text in progress.failures if "Bonn" in text]
    assert all(one.isfinite().all() for one in progress.beside.values() if one.is_floating_point())


def test_a_message_with_something_else_beside_the_model_is_refused():
    made = tables("fedsm")
    progress = made.rounds()[0]
    member = made.engine.members["Aachen"]
    fields = Evaluate(metric="auc").fields()
    for beside in ({"super_model/model0": torch.zeros(3)}, {"other/model0": torch.zeros(3)}):
        with pytest.raises(SiteError, match="P401 A message 'evaluate' to site Aachen is not as it should be"):
            member.handle("evaluate", Message(fields, {"state": progress.model(FEDERATION), **beside}))


# What makes no sense --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channel": ["secure_sum"]}, "super_model needs each site's update, and secure_sum shows"),
        ({"channel": [{"secure_sum": {"group_size": 2}}]}, "super_model sends something of each site"),
        ({"share": "body"}, "super_model needs whole models at the server, and the method shares body"),
        ({"topology": "cyclic"}, "super_model needs a server between the sites"),
        ({"personal": "mixture_of_experts"}, "super_model adapts one network .* mixture_of_experts predicts by two"),
        ({"local": ["tent"]}, "super_model and tent both adapt"),
        ({"channel": ["clip", {"gaussian_noise": {"noise": 1.0}}]}, "super_model tells more of a site's patients"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(EntryError, match=f"P104 {words}"):
        tables({"fedsm": options}, model={"mlp": {"hidden": [4]}})


def test_no_model_s_folder_can_choose():
    assert "what super_model makes of the models of all sites" in unusable(tables("fedsm").method().method)
    with pytest.raises(EntryError, match=r"P104 super_model is for .*, and the task is survival"):
        Federation({"A": survival_site("A", 12)}, ["fedsm"], task="survival", classes=0)
