"""FedMRI: decoders of the sites' own, and a contrast of weights."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, measured_site, site_of, table_sites
from polyclinic.client.drift.corrections import WeightedContrast
from polyclinic.data.spec import Undersampling
from polyclinic.options import EntryError

UNROLLED = {"unrolled": {"network": {"unet": {"channels": [4, 8], "residual_units": 0, "norm": "instance"}}}}
MLP = {"mlp": {"hidden": [4]}}
CONTRAST = {"fedavg": {"local": ["weighted_contrast"], "label": "contrast"}}


def given(last, shared):
    return {"last": torch.tensor(last), "shared": torch.tensor(shared)}


def test_the_gradient_by_hand():
    """θ − θ_g = (1, −2, 9), θ − θ_k = (−1, 3, 7), the third weight is not shared: 3 / 4 is the fraction."""
    weights, start = torch.tensor([1.0, -2.0, 9.0]), torch.zeros(3)
    gradient = torch.ones(3)
    WeightedContrast(beta=2.0).gradient(gradient, weights, start, given([2.0, -5.0, 2.0], [1.0, 1.0, 0.0]))
    torch.testing.assert_close(gradient, 1 + 2 * torch.tensor([1 / 4 + 3 / 16, -1 / 4 - 3 / 16, 0.0]))


def test_the_gradient_is_that_of_the_term_for_one_and_for_many_sites():
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(3, 6))
    start, last, shared = torch.randn(3, 6), torch.randn(3, 6), torch.tensor([1.0, 1, 0, 1, 1, 0]).expand(3, 6)
    near, away = ((weights - one) * shared for one in (start, last))
    (0.7 * near.abs().sum(1) / away.abs().sum(1)).sum().backward()
    part, found = WeightedContrast(beta=0.7), torch.zeros(3, 6)
    part.gradient(found, weights.detach(), start, {"last": last, "shared": shared})
    torch.testing.assert_close(found, weights.grad)
    for row in range(3):
        one = torch.zeros(6)
        part.gradient(one, weights.detach()[row], start[row], {"last": last[row], "shared": shared[row]})
        torch.testing.assert_close(one, found[row])


def test_it_is_fedavg_without_its_term_and_in_the_first_round():
    for options, training, same in (
        ({"beta": 0.0}, {"rounds": 3}, True), ({}, {"rounds": 1}, True), ({}, {"rounds": 3, "local_steps": 1}, True),
        ({}, {"rounds": 3}, False),
    ):  # fmt: skip
        method = {"fedavg": {"local": [{"weighted_contrast": options}], "label": "contrast"}}
        made = Federation(table_sites(), ["fedavg", method], model=MLP, training=training)
        assert torch.equal(made.state("contrast"), made.state("fedavg")) is same


def test_of_one_site_the_term_is_constant():
    """Where it ended is what it receives: the fraction is 1, but for rounding."""
    made = Federation(table_sites({"Aachen": 20}), ["fedavg", CONTRAST], model=MLP, training={"rounds": 4})
    torch.testing.assert_close(made.state("contrast"), made.state("fedavg"), rtol=1e-4, atol=1e-5)


def test_decoders_stay_at_the_sites():
    data = {name: measured_site(name, cases) for name, cases in (("Aachen", 8), ("Bonn", 6))}
    made = Federation(data, ["fedmri"], model=UNROLLED, task="reconstruction", classes=0, training={"rounds": 2})
    layout, selection = made.template.layout, made.method().method.selection(made.template.layout)
    shared = {entry.name for entry in layout.inside(selection)}
    assert shared == {entry.name for entry in layout.entries if not entry.named(["decoder"])}
    found = next(iter(made.outcome("fedmri").models.values()))
    one, two = ({name.split("/", 1)[1]: tensor for name, tensor in found.items() if name.startswith(site)}
                for site in data)  # fmt: skip
    apart = {name for name in one if not torch.equal(one[name], two[name])}
    assert apart
    assert not apart & shared


class Place(nn.Module):
    """Makes four pixels of one, and adds a number of its own to each place; not 0 at first, since what is behind is."""

    def __init__(self, *sides):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(1, 1, *sides))

    def forward(self, coarse):
        return 0.0 * coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) + self.weight


def placed(shape, outputs):
    """An encoder that halves the image, and a decoder that adds an image."""
    module = nn.Sequential(nn.Conv2d(shape[0], outputs, 2, stride=2), Place(*shape[1:]))
    return module, [module[1]]


def halves(site, sign, cases=12):
    """Images whose measured lines are alike at both sites, and whose other lines have another sign at each.

    All measured lines are in the middle, so no mask is drawn. A network that is shared can't know the sign; one with a
    decoder of its own can.
    """
    rng = np.random.default_rng(7)
    column = 25 * np.cos(np.pi * np.arange(16))  # the highest frequency, which is not measured
    base = rng.integers(60, 200, size=(cases, 1, 1, 1))
    images = torch.from_numpy(np.broadcast_to(base + sign * column, (cases, 1, 16, 16)).round().astype(np.uint8))
    data = site_of(site, images, images)
    data.undersampling = Undersampling(acceleration=4, center=0.25)
    data.parts = ["train"] * (cases - 4) + ["test"] * 4
    return data


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_decoder_of_its_own_knows_what_the_other_site_has_otherwise(seed):
    data = {"A": halves("A", 1.0), "B": halves("B", -1.0)}
    training = {"rounds": 10, "local_epochs": 2, "optimizer": {"adam": {"lr": 0.02}}, "loss": "mse"}
    with catalogued("placed", placed):
        made = Federation(data, ["fedavg", "fedmri"], model={"unrolled": {"network": "placed"}}, task="reconstruction",
                          classes=0, training=training)  # fmt: skip
        errors = {}
        for method in ("fedavg", "fedmri"):
            frames = made.outcome(method, seed=seed).predictions
            errors[method] = float(np.mean([frame["nmse"].mean() for frame in frames]))
    assert errors["fedmri"] < 0.5 * errors["fedavg"]


def test_it_is_for_the_network_that_has_a_decoder():
    with pytest.raises(EntryError, match="fedmri is for the model unrolled"):
        Federation(table_sites(), ["fedmri"], model=MLP)
