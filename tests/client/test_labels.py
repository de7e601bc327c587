"""FedSLD: cases weighted by how frequent their class is in the federation and at the site."""

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, declare, recorded, site_of, table_site, table_sites
from polyclinic.options import EntryError

BATCH = {"mlp": {"hidden": [6], "norm": "batch"}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def two_weights(shape, outputs):
    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    return layer, [layer]


def skewed():
    """A: three of class 0 and one of class 1. B: four of class 1. So p = (3/8, 5/8)."""
    return {
        "A": site_of("A", torch.tensor([[2.0]] * 4), torch.tensor([0, 0, 0, 1])),
        "B": site_of("B", torch.tensor([[4.0]] * 4), torch.tensor([1] * 4)),
    }


@pytest.mark.parametrize("stacked", [False, True])
def test_fedsld_by_hand(stacked):
    """At w = 0 a case of class 0 has the gradient (-x/2, x/2), one of class 1 (x/2, -x/2).

    A weights class 0 with (3/8) / (3/4) = 1/2 and class 1 with (5/8) / (1/4) = 5/2; its mean gradient is
    (3 · 1/2 · -1 + 5/2 · 1) / 4 = 1/4. B has no class 0 and weights class 1 with 5/8: gradient 5/8 · 2 = 5/4.
    The mean of both steps is -0.1 (1/4 + 5/4) / 2 = -0.075.
    """
    with catalogued("two_weights", two_weights):
        federation = Federation(skewed(), ["fedsld"], model="two_weights", stacked=stacked)
        close(federation.state(), [-0.075, 0.075])


def test_class_weights_of_the_study_come_on_top():
    """[2, 1]: A's gradient is (3 · 1/2 · 2 · -1 + 5/2) / 4 = -1/8, B's stays 5/4."""
    with catalogued("two_weights", two_weights):
        federation = Federation(skewed(), ["fedsld"], model="two_weights", training={"class_weights": [2.0, 1.0]})
        close(federation.state(), [-0.1 * (-0.125 + 1.25) / 2, 0.1 * (-0.125 + 1.25) / 2])


def test_equal_shares_give_fedavg_to_the_bit():
    data = {name: table_site(name, cases) for name, cases in (("Aachen", 34), ("Bonn", 10), ("Celle", 6))}
    federation = Federation(data, ["fedavg", "fedsld"], model=BATCH, training={"rounds": 3})
    assert torch.equal(federation.state("fedsld"), federation.state("fedavg"))
    data["Bonn"].targets[:7] = 1
    federation = Federation(data, ["fedavg", "fedsld"], model=BATCH, training={"rounds": 3})
    assert not torch.equal(federation.state("fedsld"), federation.state("fedavg"))


@pytest.mark.parametrize("method", ["fedsld", {"fedsgd": {"local": ["label_shares"]}}], ids=str)
def test_stacked_agrees_where_sites_lack_classes(method):
    """The first site's first case is the padding of the others: here of a class that they do not have."""
    data = table_sites(classes=3)
    data["Aachen"].targets[0] = 2
    data["Bonn"].targets[:] = torch.arange(10) % 2
    data["Celle"].targets[:] = 0
    states = [
        Federation(data, [method], classes=3, model=BATCH, training={"rounds": 3}, stacked=stacked).state()
        for stacked in (False, True)
    ]
    assert states[0].isfinite().all()
    close(states[1], states[0], 1e-5)


def test_counts_are_said_once_and_shares_every_round():
    federation = Federation(skewed(), ["fedsld"], training={"rounds": 2})
    plan = federation.plan()
    with recorded(federation.engine) as said:
        _, rows = federation.rounds()
    started = {site: reply.tensors for function, site, _, reply in said if function == "start"}
    assert started["A"]["label_shares/counts"].tolist() == [3, 1]
    assert started["B"]["label_shares/counts"].tolist() == [0, 4]
    for function, _, request, reply in said:
        if function == "train":
            assert request.tensors["label_shares/shares"].tolist() == [3 / 8, 5 / 8]
            assert set(reply.tensors) == {"change", "statistics"}
    assert set(plan.reveals) >= {"label_shares/counts", "label_shares/shares"}
    assert all("label_shares/shares [2] 16 bytes" in row["extra_down"] for row in rows)


def test_sites_that_do_not_train_do_not_count():
    federation = Federation(skewed(), ["fedsld"])
    plan = federation.plan()
    plan.sites.remove("B")
    with recorded(federation.engine) as said:
        from polyclinic.rounds import run_rounds

        run_rounds(plan, federation.engine)
    (request,) = [request for function, _, request, _ in said if function == "train"]
    assert request.tensors["label_shares/shares"].tolist() == [3 / 4, 1 / 4]


@pytest.mark.parametrize("task", ["regression", "segmentation"])
def test_only_classes_have_shares(task):
    with pytest.raises(EntryError, match=f"label_shares is for classification, and the task is {task}"):
        declare(task=task, methods=["fedsld"])
