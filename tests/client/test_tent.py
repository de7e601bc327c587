"""Tent: normalisation is adapted to the cases that are predicted."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, image_sites, site_of, table_sites
from polyclinic.client.unseen_sites.adapting import Adapted, Tent, _Adapting, _batches, entropy
from polyclinic.errors import SiteError, StudyError, TrainingError
from polyclinic.options import EntryError
from polyclinic.running.progress import Checkpoint
from polyclinic.state import FlatModule
from polyclinic.study.final_model.entry import unusable
from polyclinic.study.job import Job
from polyclinic.study.notes import idle_parts
from polyclinic.tasks import build_task

NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}
FOLDS = {"folds": 2, "validation": 0.2, "best_round": "loss"}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def tables(*methods, **options):
    options = {"model": NORM, "evaluation": FOLDS, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    data = options.pop("data", None) or table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    return Federation(data, list(methods), **options)


def scores(made, label=None, without=None, seed=0):
    """What the sites' test cases are predicted as."""
    frames = made.runner.run(Job((made.method(label),), seed, 0, without), made.fold).predictions
    return {frame["site"].iloc[0]: torch.tensor(frame["score"].tolist()) for frame in frames}


def adapting(module, **options):
    model = FlatModule(module)
    return _Adapting(model, build_task("classification", 2), model.vector.clone(), Tent(**options))


# Numbers worked out by hand -------------------------------------------------------------------------------------------


def test_the_entropy_of_a_batch():
    close(entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), math.log(2) / 2)
    close(entropy(torch.tensor([[[[0.5, 1.0]]]])), math.log(2) / 2)
    sure = torch.tensor([[1.0, 0.0]], requires_grad=True)
    entropy(sure).backward()
    assert sure.grad.isfinite().all()


def test_batches_have_two_cases_at_least():
    for count, sizes in ((1, []), (2, [2]), (4, [4]), (5, [5]), (6, [4, 2]), (9, [4, 5])):
        found = _batches(torch.arange(count), 4, 2)
        assert [len(batch) for batch in found] == sizes
    assert [len(batch) for batch in _batches(torch.arange(5), 4, 1)] == [4, 1]


def norm_alone():
    """One feature: logits (β + γ z, 0) of the normalised input z."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1, eps=1e-12)

        def forward(self, inputs):
            found = self.norm(inputs)
            return torch.cat([found, torch.zeros_like(found)], 1)

    return Network()


def test_a_step_by_hand():
    """Inputs 3 and 5 have mean 4 and variance 1: z = −1, 1, and logits −1, 1 have the same doubt.

    With p = σ(l) the entropy of a case has the slope −l p (1 − p) in its logit l. In γ that is −p (1 − p), mean over
    both cases, and 0 in β, where they cancel. A first step of Adam has the length of its rate: γ = 1 + 0.1. β has none.
    """
    network = adapting(norm_alone(), lr=0.1)
    state = network.batch(torch.tensor([[3.0], [5.0]]))
    close(state, [1.1, 0.0, 4.0, 1.0], 1e-5)


def test_without_steps_a_batch_is_normalised_by_itself():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5), nn.BatchNorm1d(5))
    network = adapting(module, steps=0)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    network.batch(inputs)
    module.eval()
    alone = module(inputs)
    module.train()
    close(alone, module(inputs), 1e-5)


def test_a_step_goes_down_the_entropy_as_autograd_says():
    """Also through mean and variance of later layers, which depend on the scale and shift of those before."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    other.load_state_dict(module.state_dict())
    inputs = torch.randn(8, 3)
    weights = [one for layer in (other[1], other[3]) for one in (layer.weight, layer.bias)]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    for _ in range(3):
        probabilities = other(inputs).softmax(1)
        loss = -(probabilities * probabilities.log()).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapting(module, lr=0.05, steps=3).batch(inputs)
    for found, wanted in zip((module[1], module[3]), (other[1], other[3]), strict=True):
        close(found.weight, wanted.weight, 1e-4)
        close(found.bias, wanted.bias, 1e-4)
    close(module[0].weight, other[0].weight)
    close(module.eval()(inputs), other(inputs), 1e-4)


# In a study -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [None, "Celle"])
def test_where_nothing_is_adapted_it_is_fedavg_to_the_bit(without):
    idle = {"tent": {"steps": 0, "statistics": False, "label": "idle"}}
    still = {"tent": {"lr": 0.0, "statistics": False, "label": "still"}}
    made = tables("fedavg", idle, still)
    plain = scores(made, "fedavg", without)
    for label in ("idle", "still"):
        assert torch.equal(made.state(label), made.state("fedavg"))
        found = scores(made, label, without)
        assert all(torch.equal(one, plain[site]) for site, one in found.items())


def test_networks_without_normalisation_are_as_they_were():
    made = tables("fedavg", "tent", model={"mlp": {"hidden": [4]}})
    plain = scores(made, "fedavg")
    assert all(torch.equal(found, plain[site]) for site, found in scores(made, "tent").items())
    (note,) = idle_parts(made.declaration, made.template.layout)
    assert note == "tent is the same as without its rule tent here: mlp has no normalisation layers."


@pytest.mark.parametrize("mode", ["online", "episodic"])
@pytest.mark.parametrize("without", [None, "Celle"])
def test_each_batch_is_predicted_as_an_independent_program_does(mode, without):
    entry = {"tent": {"mode": mode, "lr": 0.05, "batch_size": 3, "label": "tent"}}
    made = tables(entry, model={"mlp": {"hidden": [6], "norm": "batch"}})
    found, trained = scores(made, "tent", without), state_without(made, without)
    assert set(found) == ({"Celle"} if without else set(made.data))
    for site, predicted in found.items():
        member = made.engine.members[site]
        run, index = member.run, member.parts.test
        order = torch.randperm(len(index), generator=run.view.generator("tent"))
        wanted = torch.empty(len(index), dtype=torch.float64)
        module, optimizer = begun(made, trained)
        for batch in _batches(order, 3, 2):
            if mode == "episodic":
                module, optimizer = begun(made, trained)
            inputs, _ = member.dataset.batch(index[batch])
            loss = entropy(module(inputs).double().softmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                wanted[batch] = module(inputs).double().softmax(1)[:, 1]
        close(predicted.double(), wanted, 1e-5)


def state_without(made, without):
    """The common model ``[P]``, perhaps trained without a site."""
    return made.runner.train(Job((made.method(),), 0, 0, without), made.fold).models["federation"]


def begun(made, vector):
    """A network in training mode, so that it goes by each batch, and the optimiser of its normalisation."""
    flat = made.network(0)
    flat.load(vector)
    module = flat.module.train()
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
    return module, torch.optim.Adam([one for norm in norms for one in (norm.weight, norm.bias)], lr=0.05)


def shifted_sites(shift):
    """Three sites that are alike but for ``shift``, which is added to all features of the third."""
    source = torch.Generator().manual_seed(3)
    data = {}
    for site in ("A", "B", "C"):
        labels = torch.arange(40) % 2
        inputs = torch.randn(40, 2, generator=source) * 0.3 + (2.0 * labels - 1)[:, None]
        data[site] = site_of(site, inputs + shift * (site == "C"), labels, None)
    return data


def network(shape, outputs):
    norm, head = nn.BatchNorm1d(2), nn.Linear(2, outputs)
    return nn.Sequential(norm, head), [head]


def test_a_site_whose_features_are_shifted_is_predicted_as_the_others():
    """Its shift is larger than what classes differ by, so the common model takes all its cases for one class. All its
    cases are one batch, in which classes are as frequent as elsewhere."""
    whole = {"tent": {"batch_size": 40, "label": "tent"}}
    with catalogued("normed", network):
        for seed in range(3):
            made = tables("fedavg", whole, data=shifted_sites(4.0), model="normed", evaluation={"folds": 2},
                          training={"rounds": 10, "optimizer": {"sgd": {"lr": 0.5}}})  # fmt: skip
            right = {}
            for label in ("fedavg", "tent"):
                frames = made.runner.run(Job((made.method(label),), seed, 0, "C"), made.fold).predictions
                (frame,) = frames
                right[label] = ((frame["score"] > 0.5) == (frame["label"] == 1)).mean()
            assert right["fedavg"] <= 0.6
            assert right["tent"] == 1.0


def test_images_and_masks_are_adapted_to():
    data = image_sites({"Aachen": 12, "Bonn": 10}, masks=True, size=16, part=None)
    model = {"unet": {"channels": [4, 8], "norm": "batch"}}
    made = Federation(data, ["fedavg", "tent"], task="segmentation", classes=2, model=model, evaluation=FOLDS)
    dice = {}
    for label in ("fedavg", "tent"):
        frames = made.runner.run(Job((made.method(label),), 0, 0), made.fold).predictions
        dice[label] = torch.tensor([value for frame in frames for value in frame["dice"]])
    assert dice["tent"].isfinite().all()
    assert not torch.equal(dice["tent"], dice["fedavg"])


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    method = {"tent": {"local": ["proximal"]}}
    plain, other = scores(tables(method)), scores(tables(method, **options))
    for site, found in other.items():
        close(found, plain[site], 1e-4)


def test_twice_and_resumed_it_gives_the_same_bytes(tmp_path):
    def predicted(folder, stop=None):
        made = tables("tent", folder=folder / "sites")

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        job = Job((made.method(),), 0, 0)
        outcome = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        return [frame["score"].tolist() for frame in outcome.predictions]

    whole = predicted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "again", 1)
    assert predicted(tmp_path / "again") == whole


def test_no_label_is_looked_at():
    """With other labels of the test cases, predictions are the same."""
    data = table_sites({"Aachen": 20, "Bonn": 14})
    parts = {name: ["train"] * 10 + ["test"] * (len(site.targets) - 10) for name, site in data.items()}
    found = []
    for turned in (False, True):
        sites = {}
        for name, site in data.items():
            labels = site.targets.clone()
            if turned:
                labels[10:] = 1 - labels[10:]
            sites[name] = site_of(name, site.inputs, labels, None)
            sites[name].parts = parts[name]
        made = tables("tent", data=sites, evaluation={"validation": 0, "best_round": "last"})
        found.append(scores(made))
    assert all(torch.equal(one, found[1][site]) for site, one in found[0].items())


def test_predictions_do_not_depend_on_who_is_asked_for_together():
    vector = FlatModule(network((2,), 2)[0]).vector.clone()
    module = FlatModule(network((2,), 2)[0])
    norm = module.layout.select({role for role in module.layout.entries[0].role.__class__ if "NORM" in role.name})
    adapted = Adapted(vector, norm, {4: 1, 2: 0, 7: 1}, [torch.zeros(norm.size), torch.ones(norm.size)])
    groups = [(places.tolist(), norm.take(module.vector).clone()) for places, _ in
              adapted.in_use(module, torch.tensor([4, 2, 7]))]  # fmt: skip
    assert [places for places, _ in groups] == [[1], [0, 2]]
    assert [float(kept.sum()) for _, kept in groups] == [0.0, float(norm.size)]


def test_what_a_part_gives_in_the_place_of_a_network_is_looked_at(monkeypatch):
    monkeypatch.setattr(Tent, "adapted", lambda self, network, index, inputs, view: None)
    with pytest.raises(SiteError, match="P304 The part tent at site Aachen gave nothing in `adapted`"):
        scores(tables("tent"))


def test_what_can_not_be_is_refused():
    with pytest.raises(EntryError, match="P104 tent is for classification and segmentation"):
        tables("tent", task="regression", classes=0)
    with pytest.raises(EntryError, match=r"P104 tent adapts one network .* mixture_of_experts predicts by two"):
        tables({"fed_moe": {"local": ["tent"]}})
    assert "adapts its network to the cases that are predicted (tent)" in unusable(tables("tent").method().method)
    view = SimpleNamespace(count=lambda: 1, cases=lambda index: (torch.zeros(1, 1, 8, 8, 8), None),
                           input_shape=(1, 4, 4, 4))  # fmt: skip
    part = Tent()
    part.name = "tent"
    with pytest.raises(StudyError, match="P104 tent adapts to whole images"):
        part.meet(view)
    one = adapting(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 2)))
    with pytest.raises(TrainingError, match="P302 Batch normalisation has a single value"):
        one.batch(torch.zeros(1, 1, 4, 4))
