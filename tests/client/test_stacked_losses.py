"""Parts that add to the loss what they draw for each step, at sites that are trained together."""

from dataclasses import replace

import pytest
import torch

from helpers import Federation, table_sites
from polyclinic.client.few_labels.consistency import PseudoLabels
from polyclinic.engine.local import LocalEngine
from polyclinic.tasks import build_task

SIZES = {"Aachen": 30, "Bonn": 22, "Celle": 17, "Dresden": 41, "Essen": 9}
METHODS = [
    {"fixmatch": {"threshold": 0.55}}, {"mean_teacher": {"ramp": 2, "weight": 2}}, {"fedperl": {"threshold": 0.55}},
]  # fmt: skip
TRAINING = {"rounds": 4, "local_epochs": 2, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.1}}}


def some_labelled(share=2, all_at=("Essen",), none_at=(), **options):
    """Sites where one case in ``share`` has a label; at some all have, or none has."""
    found = {}
    for name, site in table_sites(SIZES, features=5, **options).items():
        labelled = torch.arange(len(site)) % share == 0
        labelled |= torch.tensor(name in all_at)
        labelled &= torch.tensor(name not in none_at)
        found[name] = replace(site, labelled=labelled)
    return found


def states(data, method, **options):
    """The states after one site after another, and after all together."""
    options = {"model": {"mlp": {"hidden": [6], "norm": "batch"}}, "training": TRAINING} | options
    return [Federation(data, [method], stacked=stacked, **options).state() for stacked in (False, True)]


@pytest.fixture
def alone(monkeypatch):
    """Names of the sites that were trained by themselves."""
    names, plain = [], LocalEngine._each

    def each(engine, function, requests):
        names.extend(requests if function == "train" else ())
        return plain(engine, function, requests)

    monkeypatch.setattr(LocalEngine, "_each", each)
    return names


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("norm", "share"), [("batch", 2), ("none", 2), ("none", 3)])
def test_sites_together_are_sites_one_after_another(method, norm, share, alone):
    """Batches of two or three cases are left out where they normalise: rounding grows a hundredfold in a round."""
    model = {"mlp": {"hidden": [6], "norm": norm}}
    one, many = states(some_labelled(share), method, model=model)
    assert len(alone) == 4 * len(SIZES), "the first of both, and only it"
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)
    plain = states(some_labelled(share), "fedavg", model=model)[1]
    assert (many - plain).abs().max() > 1e-2, "or nothing was learned from the others"


def test_a_peer_matters():
    data = some_labelled()
    fixmatch, fedperl = (states(data, {name: {"threshold": 0.6}})[1] for name in ("fixmatch", "fedperl"))
    assert (fixmatch - fedperl).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_sites_without_labels_are_trained_by_themselves(method, alone):
    one, many = states(some_labelled(none_at=("Bonn",)), method)
    assert alone.count("Bonn") == 8
    assert alone.count("Aachen") == 4
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_all_cases_is_taken_by_each_site():
    """Its batches draw their own cases each, and sites have another number of batches."""
    training = TRAINING | {"batch_size": 10}
    options = {"fedsgd": {"local": [{"pseudo_labels": {"threshold": 0.55}}]}}
    one, many = states(some_labelled(), options, model={"mlp": {"hidden": [6]}}, training=training)
    torch.testing.assert_close(many, one, rtol=1e-6, atol=1e-6)


def test_several_classes(alone):
    data = some_labelled(classes=3)
    one, many = states(data, {"mean_teacher": {"ramp": 0}}, classes=3)
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)
    assert len(alone) == 4 * len(SIZES)


def test_who_reads_what_only_its_site_knows_is_asked_for_each_site(monkeypatch, alone):
    """Not in its place: what one site knows does not get into the losses of another."""

    def loss(self, batch, given):
        return batch.outputs.square().mean() * self._view.count() / 10

    monkeypatch.setattr(PseudoLabels, "loss", loss)
    one, many = states(some_labelled(), "fixmatch")
    assert len(alone) == 8 * len(SIZES)
    torch.testing.assert_close(many, one, rtol=0, atol=0)


def test_tasks_are_equal_that_mean_the_same():
    one, other = (build_task("classification", 3) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != build_task("classification", 2)
    assert one != build_task("segmentation", 3)
    assert one != build_task("classification", 3, ("focal", {}))
