"""FedDF: the mean model learns on a public set what the sites' models find there together."""

import pytest
import torch
from torch import nn

from helpers import Federation, image_sites, number_site, plain_module, site_of, table_sites, with_public
from polyclinic.errors import StudyError, TrainingError
from polyclinic.parts import Now, Step, Update, Workplace
from polyclinic.running.progress import Checkpoint
from polyclinic.server.distillation import EnsembleDistillation
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

PUBLIC = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
BATCH_NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}


def sites(**options):
    return with_public(table_sites(**options), PUBLIC)


def test_without_steps_it_is_fedavg_to_the_bit():
    methods = ["fedavg", {"feddf": {"steps": 0, "label": "feddf"}}]
    federation = Federation(sites(), methods, model=BATCH_NORM, training={"rounds": 3})
    assert torch.equal(federation.state("feddf"), federation.state("fedavg"))


def test_one_site_is_its_own_ensemble():
    """The mean model is the only teacher: the divergence is 0 and so is its gradient, which Adam makes of the order of
    its rounding."""
    one = {"Aachen": sites()["Aachen"]}
    federation = Federation(
        one, ["fedavg", {"feddf": {"steps": 3, "lr": 1e-4, "label": "feddf"}}], training={"rounds": 2}
    )
    torch.testing.assert_close(federation.state("feddf"), federation.state("fedavg"), rtol=0, atol=7e-4)


@pytest.mark.parametrize("options", [{"serialise": True}, {"stacked": True}])
def test_other_engines_give_the_same(options):
    made = [Federation(sites(), ["feddf"], training={"rounds": 2}, **one) for one in ({}, options)]
    states = [one.state("feddf") for one in made]
    if "serialise" in options:
        assert torch.equal(*states)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


def test_statistics_stay_those_of_the_sites():
    federation = Federation(sites(), ["fedavg", "feddf"], model=BATCH_NORM)
    size = federation.template.layout.trainable
    plain, distilled = federation.state("fedavg"), federation.state("feddf")
    assert torch.equal(plain[size:], distilled[size:])
    assert not torch.equal(plain[:size], distilled[:size])


class Rows:
    """A public set of a table ``[N, F]``."""

    def __init__(self, values):
        self.values, self.shape = values, tuple(values.shape[1:])

    def __len__(self):
        return len(self.values)

    def batch(self, index):
        return self.values[index], None


def distilling(*weights, **options):
    """The part at a server whose model has such weights, one input and two outputs w x."""
    layer = nn.Linear(1, 2, bias=False)
    part = EnsembleDistillation(**options)
    part.name = "ensemble_distillation"
    model = FlatModule(nn.Sequential(layer), [layer])
    part.workplace = Workplace(model, build_task("classification", 2), Rows(torch.tensor([[1.0], [2.0]])))
    part.begin(Now(0, 1, 0.1, torch.tensor(weights), torch.empty(0), 2.0))
    return part


def test_the_ensemble_and_a_step_by_hand():
    """Models (2, 0) and (0, 2) find (2x, 0) and (0, 2x): their mean (x, x) is one half for each class. The model (1, 0)
    finds σ(x) for the first class, 0.731 and 0.881: the gradients q − p are (0.231 x, −0.231 x) and likewise, of one
    sign, so that the first step of Adam is the rate: (1, 0) − 0.1 (1, −1)."""
    part = distilling(1.0, 0.0, steps=1, lr=0.1, batch_size=2)
    for site, change in (("A", [1.0, 0.0]), ("B", [-1.0, 2.0])):
        part.take(Update(site, torch.tensor(change), torch.empty(0), 9.0 if site == "A" else 1.0))
    found = part.finish(Step(torch.zeros(2), torch.empty(0), {"A": 0.9, "B": 0.1}))
    assert found.change.tolist() == pytest.approx([-0.1, 0.1], abs=1e-6)
    assert found.shares == {"A": 0.9, "B": 0.1}


def test_many_steps_come_to_what_the_ensemble_finds():
    """Of weights (a, b) only a − b counts: that of the mean of the logits, (3 + 1) / 2 − (0 + 2) / 2 = 1."""
    part = distilling(4.0, -3.0, steps=400, lr=0.1, batch_size=2)
    for site, model in (("A", [3.0, 0.0]), ("B", [1.0, 2.0])):
        part.take(Update(site, torch.tensor(model) - torch.tensor([4.0, -3.0]), torch.empty(0), 1.0))
    found = torch.tensor([4.0, -3.0]) + part.finish(Step(torch.zeros(2), torch.empty(0), {})).change
    assert float(found[0] - found[1]) == pytest.approx(1.0, abs=0.02)


def test_what_a_round_that_was_given_up_left_is_forgotten():
    part = distilling(1.0, 0.0, steps=5)
    part.take(Update("A", torch.tensor([9.0, -9.0]), torch.empty(0), 1.0))
    part.begin(part.now)
    part.take(Update("B", torch.zeros(2), torch.empty(0), 1.0))
    assert part.finish(Step(torch.zeros(2), torch.empty(0), {})).change.tolist() == pytest.approx([0, 0], abs=0.01)


def corners(names, seed, cases=60, classes=6):
    """Cases around places on a circle, one for each class."""
    source = torch.Generator().manual_seed(seed)
    angles = torch.arange(classes) * 2 * torch.pi / classes
    labels = torch.tensor(list(names)).repeat_interleave(cases // len(names))
    places = 3 * torch.stack([angles.cos(), angles.sin()], dim=1)[labels]
    return places + 0.5 * torch.randn(len(labels), 2, generator=source), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_networks_whose_units_are_in_another_order_are_fused(seed):
    """Two sites have the same function, and the hidden units in another order: the mean of the weights is another
    function, and that of the logits is not."""
    inputs, labels = corners(range(6), seed, 120)
    site = {"Aachen": site_of("Aachen", inputs, labels)}
    training = {"rounds": 1, "local_epochs": 40, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.3}}}
    federation = Federation(site, model={"mlp": {"hidden": [16]}}, training=training, classes=6)
    first, network = federation.state(), federation.template
    parts = network.layout.split(first)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    moved = {
        name: value[order] if value.shape[0] == 16 else value[:, order] if value.shape[-1] == 16 else value
        for name, value in parts.items()
    }
    second = torch.cat([value.flatten() for value in moved.values()])
    part = EnsembleDistillation(steps=300, lr=0.02)
    part.name = "ensemble_distillation"
    public = Rows(corners(range(6), 50 + seed, 120)[0])
    part.workplace = Workplace(network, build_task("classification", 6), public)
    part.begin(Now(0, 1, 0.1, first, torch.empty(0), 2.0))
    for name, model in (("A", first), ("B", second)):
        part.take(Update(name, model - first, torch.empty(0), 1.0))
    mean = (second - first) / 2
    found = part.finish(Step(mean.clone(), torch.empty(0), {})).change
    cases, truth = corners(range(6), 100 + seed, 300)
    right = [
        (plain_module(network, first + change).eval()(cases).argmax(1) == truth).float().mean().item()
        for change in (torch.zeros_like(mean), mean, found)
    ]
    assert right[1] < min(right[0], right[2])  # right[0] is each of the two
    assert right[2] > 0.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_sites_have_classes_of_their_own_the_loss_is_lower(seed):
    """Three sites have two classes each, and train long before they meet: the paper's claim, as far as a loss shows."""
    data = {}
    for number in range(3):
        inputs, labels = corners([2 * number, 2 * number + 1], 10 * seed + number)
        data[f"Site {number}"] = site_of(f"Site {number}", inputs, labels)
    training = {"rounds": 1, "local_epochs": 60, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.3}}}
    methods = ["fedavg", {"feddf": {"steps": 300, "lr": 0.02, "label": "feddf"}}]
    public = corners(range(6), 100 + seed, 120)[0]
    federation = Federation(
        with_public(data, public), methods, model={"mlp": {"hidden": [16]}}, training=training, classes=6
    )
    inputs, labels = corners(range(6), 200 + seed, 300)
    loss = {}
    for label in ("fedavg", "feddf"):
        module = plain_module(federation.template, federation.state(label, seed)).eval()
        loss[label] = nn.functional.cross_entropy(module(inputs), labels).item()
    assert loss["feddf"] < loss["fedavg"]


def test_outlines_and_numbers_are_distilled_too():
    pictures = image_sites({"Aachen": 8, "Bonn": 6}, masks=True)
    public = next(iter(image_sites({"Celle": 5}).values())).inputs
    numbers = {name: number_site(name, 12) for name in ("Aachen", "Bonn")}
    for data, task, model, shared in (
        (pictures, "segmentation", {"unet": {"channels": [2, 4], "residual_units": 0}}, public),
        (numbers, "regression", "logistic", PUBLIC),
    ):
        federation = Federation(
            with_public(data, shared), ["fedavg", {"feddf": {"steps": 3, "label": "feddf"}}], model=model, task=task,
            training={"batch_size": 4, "optimizer": {"sgd": {"lr": 0.01}}},
        )  # fmt: skip
        state = federation.state("feddf")
        assert state.isfinite().all()
        assert not torch.equal(state, federation.state("fedavg"))


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path):
    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 1:
            raise Killed

    whole = Federation(sites(), ["feddf"], training={"rounds": 3}).state("feddf")
    with pytest.raises(Killed):
        Federation(sites(), ["feddf"], training={"rounds": 3}, folder=tmp_path).rounds(
            checkpoint=Checkpoint(tmp_path / "job"), report=stop
        )
    again = Federation(sites(), ["feddf"], training={"rounds": 3}, folder=tmp_path)
    progress, _ = again.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    assert torch.equal(progress.model("federation"), whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": "body"}, "needs whole models"),
        ({"channel": ["secure_sum"]}, "by itself|each site's|single"),
        ({"topology": "cyclic"}, "only one at a time"),
        ({"channel": ["clip", {"central_noise": {"noise": 1.0}}]}, "lets it move what others count for"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(StudyError, match=f"P104.*({words})"):
        Federation(sites(), [{"feddf": options}])


def test_images_that_sites_change_are_no_public_ones():
    pictures = image_sites({"Aachen": 8, "Bonn": 6})
    public = next(iter(image_sites({"Celle": 5}).values())).inputs
    with pytest.raises(StudyError, match=r"P104.*changes the images of each site"):
        Federation(with_public(pictures, public), [{"harmofl": {"server": ["ensemble_distillation"]}}], model="cnn")


def test_values_that_are_no_numbers_are_told():
    part = distilling(1.0, 0.0, steps=2)
    part.take(Update("A", torch.tensor([torch.inf, 0.0]), torch.empty(0), 1.0))
    with pytest.raises(TrainingError, match=r"P301.*not finite"):
        part.finish(Step(torch.zeros(2), torch.empty(0), {}))
