"""IOP-FL: at a site that did not train, each case is predicted by the mixture of all sites' models that is surest."""

import math

import pytest
import torch
from torch import nn

from helpers import Federation, image_sites, plain_module, recorded, site_of, table_sites
from polyclinic.client.few_labels.views import strong_view
from polyclinic.client.unseen_sites.adapting import entropy
from polyclinic.client.unseen_sites.routing import Routed, Routing, local_range, mixture, modules_of
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.state import FlatModule
from polyclinic.study.final_model.entry import unusable
from polyclinic.study.job import Job

NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
FOLDS = {"folds": 2, "validation": 0.2, "best_round": "loss"}
SITES = {"Aachen": 33, "Bonn": 14, "Celle": 17}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def iop_fl(label="iop_fl", **options):
    return {"iop_fl": {"label": label, **options}}


def tables(*methods, **options):
    options = {"model": NORM, "evaluation": FOLDS, **options}
    options["training"] = {"rounds": 3, **options.get("training", {})}
    data = options.pop("data", None) or table_sites(SITES, part=None)
    return Federation(data, list(methods), **options)


def scores(made, label=None, without=None):
    """What the sites' test cases are predicted as."""
    frames = made.runner.run(Job((made.method(label),), 0, 0, without), made.fold).predictions
    return {frame["site"].iloc[0]: torch.tensor(frame["score"].tolist()) for frame in frames if len(frame)}


# Numbers worked out by hand -------------------------------------------------------------------------------------------


def test_a_mixture_by_hand():
    """Two modules: in the first both models count the same, in the second the second one three times as much."""
    models, logits = torch.tensor([[0.0, 4.0, 8.0], [2.0, 8.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    close(mixture(models, torch.tensor([0, 1, 1]), logits), [1.0, 7.0, 2.0])


def test_modules_are_mixed_each_by_itself():
    model = FlatModule(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    groups = modules_of(model.layout)
    for entry in model.layout.entries:
        assert groups[entry.offset : entry.offset + entry.size].unique().tolist() == [int(entry.name[0])]


def test_the_border_of_a_mask():
    """A pixel of 1 among 0: within one pixel of 9 of 25 places there is a difference of 1."""
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 2, 2] = 1
    close(local_range(mask, 1), 9 / 25)
    close(local_range(torch.full((1, 1, 5, 5), 0.7), 2), 0.0)
    close(local_range(mask[..., None].expand(1, 1, 5, 5, 5), 1), 9 / 25)


def test_what_a_mixture_goes_down():
    part = Routing(consistency=2.0, shape=0.5, reach=1)
    case, view = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    close(part.objective(case, view), math.log(2) + 2 * 0.16)
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 2, 2] = 1
    close(part.objective(mask, mask), 0.5 * 9 / 25)
    classes = torch.cat([1 - mask, mask], 1)
    close(part.objective(classes, classes), 0.5 * 9 / 25)


def test_the_accumulated_model_by_hand():
    """θ ← 0.25 θ + 0.75 w of what the site trained in each round, from the first one on."""
    made = tables(iop_fl(keep=0.25), evaluation=None, data=table_sites({"Aachen": 16, "Bonn": 10}))
    with recorded(made.engine) as said:
        progress, _ = made.rounds()
    for site, kept in made.kept(progress).items():
        wanted = None
        for function, name, request, reply in said:
            if function == "train" and name == site:
                change = reply.tensors["change"]
                weights = request.tensors["state"][: len(change)] + change
                trained = torch.cat([weights, reply.tensors["statistics"]])
                wanted = trained if wanted is None else 0.25 * wanted + 0.75 * trained
                close(reply.tensors["test_time_routing/model"], wanted, 1e-5)
        close(kept.personal["model"], wanted, 1e-5)


# Identities -----------------------------------------------------------------------------------------------------------


def test_the_shared_model_is_that_of_fedavg():
    made = tables("fedavg", "iop_fl")
    assert torch.equal(made.state("iop_fl"), made.state("fedavg"))


def test_one_site_that_keeps_nothing_is_fedavg():
    made = tables("fedavg", iop_fl(keep=0.0), data=table_sites({"Aachen": 33}, part=None))
    close(scores(made, "iop_fl")["Aachen"], scores(made, "fedavg")["Aachen"])


def test_where_all_models_are_the_same_there_is_nothing_to_choose():
    """Sites that are alike, with a batch for all cases: a site that does not train is predicted as with fedavg."""
    twin, other = table_sites({"Aachen": 24, "Bonn": 10}).values()
    data = {name: site_of(name, twin.inputs, twin.targets) for name in "AB"}
    data["C"] = site_of("C", other.inputs, other.targets, "test")
    made = tables("fedavg", iop_fl(keep=0.0), data=data, model="logistic", evaluation=None,
                  training={"batch_size": 24})  # fmt: skip
    close(scores(made, "iop_fl")["C"], scores(made, "fedavg")["C"], 1e-5)


def test_without_steps_it_is_the_mean_of_the_models():
    made = tables(iop_fl(steps=0))
    (score,) = scores(made, without="Celle").values()
    job = Job((made.method(),), 0, 0, "Celle")
    progress = made.runner.train(job, made.fold).progress
    models = [progress.best_beside[f"test_time_routing/model{place}"] for place in range(2)]
    module = plain_module(made.network(0), torch.stack([*models, progress.best_state("Aachen")]).mean(0)).eval()
    member = made.engine.members["Celle"]
    with torch.no_grad():
        close(score, module(member.dataset.batch(member.parts.test)[0]).softmax(1)[:, 1], 1e-5)


def test_sites_that_train_are_predicted_by_their_own_model_and_sent_nothing():
    made = tables("iop_fl")
    with recorded(made.engine) as said:
        found = scores(made)
    progress = made.rounds()[0]
    assert not [request for _, _, request, _ in said if "test_time_routing/model0" in request.tensors]
    for site, member in made.engine.members.items():
        vector = member.run.vector(progress.best_state(site), best=True)
        module = plain_module(made.network(0), vector).eval()
        with torch.no_grad():
            close(found[site], module(member.dataset.batch(member.parts.test)[0]).softmax(1)[:, 1], 1e-5)


# At a site that did not train -----------------------------------------------------------------------------------------


def test_the_steps_of_a_case_as_autograd_says():
    """With a mixture made tensor by tensor, and views drawn in the same order."""
    made = tables(iop_fl(steps=3, lr=0.2, consistency=0.5), model={"mlp": {"hidden": [4]}})
    (score,) = scores(made, without="Celle").values()
    progress = made.runner.train(Job((made.method(),), 0, 0, "Celle"), made.fold).progress
    models = [progress.best_beside[f"test_time_routing/model{place}"] for place in range(2)]
    models.append(progress.best_state("Aachen"))
    network, member = made.network(0), made.engine.members["Celle"]
    split = [network.layout.split(one) for one in models]
    inputs, _ = member.dataset.batch(member.parts.test)
    for place in range(4):
        source = member.run.view.generator("routing", int(member.parts.test[place]))
        logits = {name: torch.zeros(3, requires_grad=True) for name in ("0", "2")}
        adam = torch.optim.Adam(logits.values(), lr=0.2)

        def predicted(case, logits=logits):
            mixed = {
                name: sum(r * one[name] for r, one in zip(logits[name[0]].softmax(0), split, strict=True))
                for name in split[0]
            }
            return torch.func.functional_call(network.module, mixed, (case,)).softmax(1)

        case = inputs[place : place + 1]
        for _ in range(3):
            other = strong_view(case, source, 0.5, cut=False)
            p, q = predicted(case), predicted(other)
            adam.zero_grad()
            (entropy(p) + 0.5 * (p - q).square().mean()).backward()
            adam.step()
        close(score[place], predicted(case)[0, 1], 1e-4)


def sure_and_unsure(seed):
    """B has five times the cases, of the other class, of which 3 in 10 are wrong; C is like A, and does not train."""
    source = torch.Generator().manual_seed(seed)
    found = {}
    for name, cases in (("A", 20), ("B", 100), ("C", 20)):
        signal = torch.tensor([1.0, -1.0]).repeat(cases // 2)
        labels = (signal > 0).long()
        if name == "B":
            labels = 1 - labels
            wrong = torch.arange(30)
            labels[wrong] = 1 - labels[wrong]
        inputs = signal[:, None] + 0.05 * torch.randn(cases, 1, generator=source)
        found[name] = site_of(name, inputs, labels, "test" if name == "C" else "train")
    return found


def test_the_model_that_is_sure_predicts():
    for seed in range(3):
        made = Federation(sure_and_unsure(seed), ["fedavg", iop_fl(lr=0.3)], model="logistic",
                          training={"rounds": 4, "local_epochs": 30, "batch_size": 100,
                                    "optimizer": {"sgd": {"lr": 0.3}}})  # fmt: skip
        right = {}
        for label in ("fedavg", "iop_fl"):
            frames = made.runner.run(Job((made.method(label),), seed, 0), made.fold).predictions
            (frame,) = [one for one in frames if len(one) and one["site"].iloc[0] == "C"]
            right[label] = ((frame["score"] > 0.5) == (frame["label"] == 1)).mean()
        assert right["fedavg"] <= 0.5, right
        assert right["iop_fl"] == 1.0, right


def test_images_and_masks():
    data = image_sites({"Aachen": 6, "Bonn": 5, "Celle": 4}, masks=True, part=None)
    network = {"unet": {"channels": [2, 4]}}
    methods = [iop_fl(steps=0, label="mean"), iop_fl(steps=2, lr=1.0)]
    made = Federation(data, methods, task="segmentation", model=network, evaluation={"folds": 2})
    dice = {}
    for label in ("mean", "iop_fl"):
        (frame,) = made.runner.run(Job((made.method(label),), 0, 0, "Celle"), made.fold).predictions
        dice[label] = torch.tensor(frame["dice"].tolist())
        assert dice[label].isfinite().all()


# In all engines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    plain, other = (tables("iop_fl", **chosen) for chosen in ({}, options))
    close(scores(other, without="Celle")["Celle"], scores(plain, without="Celle")["Celle"], 1e-4)
    close(other.state(), plain.state(), 1e-5)


def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        made = tables("iop_fl", folder=folder / "sites")

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        job = Job((made.method(),), 0, 0, "Celle")
        outcome = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        return [frame["score"].tolist() for frame in outcome.predictions]

    whole = train(tmp_path / "whole")
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        assert train(tmp_path / str(stop)) == whole


def test_it_goes_with_other_ways_to_a_model_of_its_own():
    for personal in ("ditto", "apfl", None):
        made = tables({"iop_fl": {"personal": personal, "local": ["proximal"]}})
        assert scores(made, without="Celle")["Celle"].isfinite().all()
    assert made.rounds()[0].model(FEDERATION).isfinite().all()


def test_a_mixture_leaves_the_models_that_it_is_made_of():
    model = build_model("mlp", {"hidden": [3]}, (2,), 2)
    models = torch.stack([model.vector.clone(), torch.zeros_like(model.vector)])
    before = models.clone()
    routed = Routed(models, modules_of(model.layout), {7: torch.zeros(2, 2)})
    (place, _), = routed.in_use(model, torch.tensor([7]))  # fmt: skip
    assert place.tolist() == [0]
    assert torch.equal(models, before)
    close(model.vector, before[0] / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channel": ["secure_sum"]}, "test_time_routing needs each site's update, and secure_sum shows"),
        ({"share": "no_norm"}, "test_time_routing needs whole models at the server"),
        ({"local": ["super_model"]}, "test_time_routing and super_model both adapt"),
        ({"topology": "incremental"}, "test_time_routing needs a server between the sites"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(EntryError, match=f"P104 {words}"):
        tables({"iop_fl": options}, model={"mlp": {"hidden": [4]}})
    with pytest.raises(EntryError, match="P104 test_time_routing is for classification and segmentation"):
        tables("iop_fl", task="regression", classes=0)
    assert "what test_time_routing makes of the models of all sites" in unusable(tables("iop_fl").method().method)
