"""Networks for reconstruction."""

import pytest
import torch
from torch import nn

from helpers import LINES
from polyclinic.data.acquisition import acquire, measured_lines
from polyclinic.errors import TrainingError
from polyclinic.kspace import of_inputs, to_kspace
from polyclinic.models import build_model, networks_in
from polyclinic.models.unrolled import Unrolled

UNET = {"unet": {"channels": [4, 8, 16]}}


def measured(*shape, cases=2):
    generator = torch.Generator().manual_seed(0)
    lines = torch.stack([measured_lines(shape[-1], LINES, seed) for seed in range(cases)])
    return acquire(torch.rand(cases, 1, *shape, generator=generator), lines)


class Adds(nn.Module):
    """A network that finds something fixed."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, images):
        return self.found(images)


def test_a_network_that_finds_nothing_leaves_the_zero_filled_image():
    inputs, targets = measured(10, 13)
    for parts, weight in ((True, float("inf")), (True, 2.0), (False, 0.0)):
        module = Unrolled([Adds(torch.zeros_like)] * 3, 1, weight, parts=parts, width=2 if parts else 1)
        torch.testing.assert_close(module(inputs), targets[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("inner", [UNET, {"unet": {"channels": [4, 8], "residual_units": 2}}, "segresnet"])
@pytest.mark.parametrize(("sees", "consistency"), [("complex", "hard"), ("complex", 2.0), ("magnitude", "none")])
def test_an_untrained_network_gives_the_zero_filled_image(inner, sees, consistency):
    inputs, targets = measured(16, 24)
    options = {"network": inner, "cascades": 2, "sees": sees, "consistency": consistency}
    module = build_model("unrolled", options, (3, 16, 24), 1).module
    torch.testing.assert_close(module(inputs), targets[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("consistency", ["hard", 0.5])
def test_an_untrained_network_that_sees_the_magnitude_is_not_worse_than_the_zero_filled_image(consistency):
    inputs, targets = measured(16, 24, cases=20)
    options = {"network": UNET, "cascades": 3, "consistency": consistency}
    found = build_model("unrolled", options, (3, 16, 24), 1).module(inputs)
    errors = [(one - targets[:, :1]).square().sum((1, 2, 3)) for one in (found, targets[:, 1:])]
    assert (errors[0] < errors[1]).all()


def test_an_untrained_network_learns_in_its_last_layer_first_and_then_everywhere():
    inputs, targets = measured(16, 24)
    model = build_model("unrolled", {"network": UNET, "cascades": 2}, (3, 16, 24), 1)
    optimizer, moved = torch.optim.Adam(model.module.parameters(), lr=0.01), []
    for _ in range(2):
        optimizer.zero_grad()
        (model.module(inputs) - targets[:, :1]).square().mean().backward()
        moved.append({name.split(".")[0] for name, one in model.module.named_parameters() if one.grad.any()})
        optimizer.step()
    assert moved == [{"last"}, {"last", "networks"}]


def test_a_network_that_knows_the_image_gives_it():
    inputs, targets = measured(10, 13)
    module = Unrolled([Adds(lambda images: targets[:, :1] - images)], 1, float("inf"), parts=False)
    nn.init.ones_(module.last[0].weight)
    torch.testing.assert_close(module(inputs), targets[:, :1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("weight", "share"), [(float("inf"), 1.0), (3.0, 0.75), (0.0, 0.0)])
def test_measured_lines_are_put_back_by_their_weight(weight, share):
    inputs, _ = measured(8, 16)
    zero_filled, lines = of_inputs(inputs)
    module = Unrolled([], 1, weight, parts=False)
    image = torch.rand(2, 1, 8, 16).to(torch.complex64)
    found, before, told = to_kspace(module._consistent(image, to_kspace(zero_filled), lines)), to_kspace(image), None
    told = to_kspace(zero_filled)
    wanted = torch.where(lines.expand_as(told.real) > 0, (1 - share) * before + share * told, before)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16), (15, 22), (3, 13, 10)])
@pytest.mark.parametrize("sees", ["magnitude", "complex"])
def test_images_of_any_size_keep_it(shape, sees):
    options = {"network": UNET, "cascades": 2, "sees": sees}
    model = build_model("unrolled", options, (3, *shape), 1)
    assert model.module(measured(*shape)[0]).shape == (2, 1, *shape)
    assert len(model.module.networks) == 2
    for network in model.module.networks:
        inside = set(network.modules())
        assert any(layer in inside for layer in model.head)


def test_what_can_not_be_built_is_told():
    with pytest.raises(TrainingError, match="measured images"):
        build_model("unrolled", {"network": UNET}, (1, 16, 16), 1)
    assert networks_in("unrolled", {"network": UNET}) == ["unrolled", "unet"]
    assert networks_in("unet", {}) == ["unet"]


def test_gradients_are_finite_where_an_image_is_black():
    inputs, _ = acquire(torch.zeros(2, 1, 8, 8), torch.ones(2, 8))
    model = build_model("unrolled", {"network": UNET}, (3, 8, 8), 1)
    model.module(inputs).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.module.parameters())


def test_the_latent_code_is_the_feature_and_all_after_it_the_decoder():
    """Channels 4, 8, 16: the coarsest layers have 16 channels and a quarter of each side."""
    model = build_model("unrolled", {"network": UNET, "cascades": 2}, (3, 16, 24), 1)
    found = []
    model.record_features(found)
    model.module(measured(16, 24)[0])
    assert [one.shape for one in found] == [(2, 16, 4, 6)]
    decoder = {entry.name for entry in model.layout.entries if entry.named(["decoder"])}
    ups = {entry.name for entry in model.layout.entries
           if entry.named(["networks.*.model.2", "networks.*.model.1.submodule.2"])}  # fmt: skip
    assert decoder == ups | {"last.0.weight", "last.1.weight"}
    assert {"networks.0.model.2.0.adn.N.running_mean", "networks.1.model.2.0.conv.weight"} <= decoder


@pytest.mark.parametrize("inner", ["attention_unet", "segresnet", "dynunet"])
def test_other_networks_have_encoder_and_decoder(inner):
    model = build_model("unrolled", {"network": inner}, (3, 32, 40), 1)
    assert model.module(measured(32, 40)[0]).shape == (2, 1, 32, 40)
    decoder = sum(entry.size for entry in model.layout.entries if entry.named(["decoder"]))
    assert 0.03 < decoder / model.layout.size < 0.9
