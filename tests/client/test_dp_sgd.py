"""DP-SGD in local training: whose gradient counts how much, what it costs, and what it is not for."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, image_sites, table_site, table_sites
from polyclinic.engine import LocalEngine
from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.options import EntryError
from polyclinic.privacy import Event, epsilon
from polyclinic.running.progress import Checkpoint
from polyclinic.site.spending import Spending
from polyclinic.study.job import Job

MODEL = {"mlp": {"hidden": [6]}}
SITES = {"Aachen": 21, "Bonn": 9, "Celle": 14}
#: So little noise that it is none in 32 bits.
SILENT = 1e-12


def federation(entry=None, data=None, **options):
    options.setdefault("model", MODEL)
    training = {"rounds": 2} | options.pop("training", {})
    local = {"local": [{"dp_sgd": {"norm": 1e3, "noise": SILENT}}]} if entry is None else entry
    return Federation(data or table_sites(SITES), [{"fedavg": {**local, "label": "private"}}], training=training,
                      **options)  # fmt: skip


def with_patients(site, subjects):
    """A site whose cases are of these patients."""
    return replace(site, subjects=subjects)


# Steps ----------------------------------------------------------------------------------------------------------------


def test_with_all_patients_in_a_step_and_no_clipping_it_is_the_gradient_of_all():
    """q = 1: a batch as large as the site. The mean over patients is that over cases where each has one."""
    training = {"batch_size": 100, "rounds": 3}
    found, expected = federation(training=training).state(), federation({}, training=training).state()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (expected - federation({}, training={**training, "rounds": 1}).state()).abs().max() > 1e-3


def test_a_patient_with_many_images_counts_as_one():
    """Aachen's first patient has ten cases; the step is that of patients' means."""
    site = table_site("Aachen", 12)
    subjects = ["twin"] * 10 + ["b", "c"]
    data = {"Aachen": with_patients(site, subjects), "Bonn": table_site("Bonn", 9)}
    training = {"batch_size": 100, "rounds": 1, "optimizer": {"sgd": {"lr": 0.5}}}
    made = federation(data=data, training=training)
    state, model, task = made.state(), made.network(0), made.plan().task
    means = []
    for name, groups in (("Aachen", [range(10), [10], [11]]), ("Bonn", [[case] for case in range(9)])):
        inputs, targets = data[name].inputs, data[name].labels
        gradients = []
        for group in groups:
            model.load(made.initial(0))
            model.gradient.zero_()
            task.loss(model.module(inputs[list(group)]), targets[list(group)]).mean().backward()
            gradients.append(model.gradient.double().clone())
        means.append(torch.stack(gradients).mean(0))
    expected = made.initial(0).double() - 0.5 * (12 * means[0] + 9 * means[1]) / 21
    torch.testing.assert_close(state, expected.float(), rtol=0, atol=1e-6)


def test_no_patient_moves_a_step_by_more_than_the_clip():
    """With C = 0.01 and q = 1 a step of learning rate 1 over N patients is at most 0.01 long; Aachen alone."""
    data = {"Aachen": table_site("Aachen", 12), "Bonn": table_site("Bonn", 12)}
    entry = {"local": [{"dp_sgd": {"norm": 0.01, "noise": SILENT}}]}
    training = {"batch_size": 100, "rounds": 1, "optimizer": {"sgd": {"lr": 1.0}}}
    made = federation(entry, data, training=training)
    length = float((made.state() - made.initial(0)).norm())
    assert 0.001 < length <= 0.01 * (1 + 1e-5)


def test_noise_is_as_large_as_it_should_be():
    """σ C / (q N) = 8 · 0.5 / 10 for each weight in a step of learning rate 1; two sites of the same weight."""
    data = {name: table_site(name, 20, features=60) for name in ("Aachen", "Bonn")}
    entry = {"local": [{"dp_sgd": {"norm": 0.5, "noise": 8.0}}]}
    training = {"batch_size": 10, "rounds": 1, "local_steps": 1, "optimizer": {"sgd": {"lr": 1.0}}}
    made = federation(entry, data, training=training, model={"mlp": {"hidden": [80]}})
    quiet = federation({"local": [{"dp_sgd": {"norm": 0.5, "noise": SILENT}}]}, data, training=training,
                       model={"mlp": {"hidden": [80]}})  # fmt: skip
    noise = (made.state() - quiet.state()).double()
    assert len(noise) > 5000
    assert noise.std().item() == pytest.approx(8 * 0.5 / 10 / math.sqrt(2), rel=0.05)
    assert abs(noise.mean().item()) < 4 * noise.std().item() / math.sqrt(len(noise))


def test_the_divisor_is_no_secret(monkeypatch):
    """It is q N of all patients of the training part, whoever took part."""
    import polyclinic.client.private.dp_sgd as module

    seen, sizes = [], []
    original = module.private_gradient

    def noted(total, norm, noise, expected, draws, trained=None):
        seen.append(expected)
        return original(total, norm, noise, expected, draws, trained)

    monkeypatch.setattr(module, "private_gradient", noted)
    gradient = module.PrivateSteps.gradient

    def counted(self, model, chosen, seed):
        sizes.append(len(chosen))
        return gradient(self, model, chosen, seed)

    monkeypatch.setattr(module.PrivateSteps, "gradient", counted)
    data = {name: table_site(name, 21) for name in ("Aachen", "Bonn")}
    federation(data=data, training={"rounds": 4}).rounds()
    assert set(seen) == {8.0}
    assert len(set(sizes)) > 3, "batches are of different sizes"


# Other parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [
    {"local": ["proximal"]}, {"local": ["control_variates"]}, {"local": ["dynamic_regularisation"]},
    {"server": ["normalised"]}, {"server": ["fedadam"]}, {"personal": "ditto"}, {"share": "body"},
    {"channel": ["clip", "top_k"]}, {"channel": ["secure_sum"]}, {"topology": "cyclic"}, {"server": ["median"]},
], ids=str)  # fmt: skip
def test_it_goes_with_other_parts(entry):
    both = {**entry, "local": [{"dp_sgd": {"noise": 0.5}}, *entry.get("local", [])]}
    made = federation(both)
    state = made.state()
    assert state.isfinite().all()
    plain = {**entry, "local": entry.get("local", [])}
    assert not torch.equal(state, federation(plain).state())


@pytest.mark.parametrize(("entry", "words"), [
    ({"local": [{"dp_sgd": {"noise": 1}}, "label_shares"]}, "tells more"),
    ({"local": [{"dp_sgd": {"noise": 1}}], "server": ["qfedavg"]}, "tells more"),
    ({"local": [{"dp_sgd": {"noise": 1}}], "personal": "apfl"}, "apfl trains two models"),
])  # fmt: skip
def test_what_could_not_be_protected_is_refused(entry, words):
    with pytest.raises(EntryError, match="P104") as caught:
        federation(entry)
    assert words in str(caught.value)


@pytest.mark.parametrize("data", [None, "images"])
def test_batch_normalisation_is_refused_with_what_to_use(data):
    model = {"mlp": {"hidden": [6], "norm": "batch"}} if data is None else {"cnn": {"channels": [4]}}
    made = federation(data=image_sites(SITES) if data else None, model=model)
    with pytest.raises(StudyError, match="P104 dp_sgd can't be used here: the layer") as caught:
        made.rounds()
    assert "norm: group" in str(caught.value)


def test_images_are_protected_too():
    made = federation(
        data=image_sites(SITES), model={"cnn": {"channels": [4], "norm": "group"}}, training={"rounds": 1}
    )
    assert (made.state() - made.initial(0)).abs().max() > 0


@pytest.mark.parametrize("option", [{"norm": 0}, {"norm": -1}, {"norm": float("nan")}, {"noise": 0}, {"noise": "1"}])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(EntryError, match="P102"):
        federation({"local": [{"dp_sgd": option}]})


def test_an_error_does_not_tell_the_loss():
    """Noise of 1e200 breaks the weights; the loss before it is finite, and stays at the site."""
    with pytest.raises(PolyclinicError, match="P301 Training at site Aachen gave weights that are not") as caught:
        federation({"local": [{"dp_sgd": {"noise": 1e200}}]}, training={"local_steps": 1}).rounds()
    assert "loss" not in str(caught.value)


def test_without_noise_and_budget_it_is_refused():
    with pytest.raises(StudyError, match=r"P102 dp_sgd has no noise"):
        federation({"local": ["dp_sgd"]}).rounds()


# What it costs --------------------------------------------------------------------------------------------------------


def test_a_training_costs_all_its_steps_sampled_by_patients():
    """Bonn: 6 patients with 2 cases each, batch 3 → q = 1/2; 12 cases are 4 batches a pass; 2 rounds of 2 passes."""
    subjects = [f"p{number // 2}" for number in range(12)]
    data = {"Aachen": table_site("Aachen", 21), "Bonn": with_patients(table_site("Bonn", 12), subjects)}
    made = federation({"local": [{"dp_sgd": {"noise": 1.5}}]}, data,
                      training={"batch_size": 3, "local_epochs": 2})  # fmt: skip
    rows = {row["site"]: row for row in made.outcome().privacy}
    assert rows["Bonn"]["epsilon"] == epsilon([Event.gaussian(1.5, 0.5, 16)], 1e-5)
    assert rows["Aachen"]["epsilon"] == epsilon([Event.gaussian(1.5, 1 / 7, 28)], 1e-5)
    assert {row["unit"] for row in rows.values()} == {"a patient"}
    assert all(math.isnan(row["loss"]) for row in made.outcome().rounds)


def test_steps_of_a_model_that_stays_at_the_site_are_not_counted():
    """Ditto trains a model of the site's own besides, without noise: a round of Bonn's 9 cases is 2 noisy steps."""
    made = federation({"local": [{"dp_sgd": {"noise": 1.5}}], "personal": {"ditto": {"epochs": 3}}})
    row = next(row for row in made.outcome().privacy if row["site"] == "Bonn")
    assert (row["steps"], row["epsilon"]) == (2, epsilon([Event.gaussian(1.5, 8 / 9, 2)], 1e-5))


@pytest.mark.parametrize("how", ["serialise", "processes"])
def test_engines_give_the_same(how):
    entry = {"local": [{"dp_sgd": {"noise": 0.7}}]}
    expected = federation(entry).state()
    if how == "serialise":
        assert torch.equal(federation(entry, serialise=True).state(), expected)
        return
    from polyclinic.engine.processes import ProcessEngine

    data = table_sites(SITES)
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    try:
        assert torch.equal(federation(entry, data, engine=engine).state(), expected)
    finally:
        engine.close()


def test_phases_that_train_other_layers_have_ways_of_their_own():
    """FedRep trains the head, for which there is a fast way, and then a layer of a kind for which there is none."""

    class Net(nn.Module):
        def __init__(self, features, outputs):
            super().__init__()
            self.body, self.head = nn.Bilinear(features, features, 4), nn.Linear(4, outputs)

        def forward(self, inputs):
            return self.head(self.body(inputs, inputs).relu())

    def build(shape, outputs):
        module = Net(shape[0], outputs)
        return module, [module.head]

    entry = {"local": [{"dp_sgd": {"norm": 1e3, "noise": SILENT}}], "label": "x", "head_epochs": 1}
    with catalogued("bilinear", build):
        training = {"batch_size": 100, "rounds": 2}
        private, plain = (
            Federation(table_sites(SITES), [{"fedrep": one}], model="bilinear", training=training).state()
            for one in (entry, {**entry, "local": []})
        )
    torch.testing.assert_close(private, plain, rtol=0, atol=1e-6)


def test_sites_are_not_trained_together():
    made = federation({"local": [{"dp_sgd": {"noise": 0.7}}]}, stacked=True)
    assert torch.equal(made.state(), federation({"local": [{"dp_sgd": {"noise": 0.7}}]}).state())


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path):
    def outcome(folder, stop=None):
        made = federation(
            {"local": [{"dp_sgd": {"noise": 0.7}}]}, table_sites({"A": 33, "B": 24, "C": 27}, part=None),
            evaluation={"folds": 2}, training={"rounds": 4}, folder=folder / "sites",
        )  # fmt: skip

        def report(done, _):
            if done == stop:
                raise Killed

        job = Job((made.method(),), 0, 0)
        found = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        (tensors,) = found.models.values()
        return found.privacy, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    unbroken = outcome(tmp_path / "whole")
    for stop in (1, 3):
        with pytest.raises(Killed):
            outcome(tmp_path / str(stop), stop)
        assert outcome(tmp_path / str(stop)) == unbroken


def test_at_a_hospital_nothing_can_be_repeated():
    """Noise and choice come from the system: two runs of one study differ, where a simulation gives the same."""
    states = []
    for real in (False, False, True, True):
        data = table_sites(SITES)
        engine = LocalEngine(data)
        for site in engine.members.values():
            site.spending = Spending(site.name, None, real=real)
        states.append(federation({"local": [{"dp_sgd": {"noise": 0.7}}]}, data, engine=engine).state())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[2], states[3])
    assert not torch.equal(states[1], states[2])


def test_at_a_hospital_nobody_foresees_what_the_network_drops():
    """All patients in each step and no noise to speak of, so what differs is dropout, which could else be told from the
    study's seed: a patient more would then change what is dropped of the others."""
    states = []
    for real in (False, False, True, True):
        data = table_sites(SITES)
        engine = LocalEngine(data)
        for site in engine.members.values():
            site.spending = Spending(site.name, None, real=real)
        made = federation(data=data, engine=engine, model={"mlp": {"hidden": [6], "dropout": 0.5}},
                          training={"batch_size": 100})  # fmt: skip
        states.append(made.state())
    assert torch.equal(states[0], states[1])
    assert (states[2] - states[3]).abs().max() > 1e-4
