"""Networks of a share of the width: which weights they have, and that they compute the same without the others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import catalogued
from polyclinic.errors import TrainingError
from polyclinic.models import build_model
from polyclinic.models.slices import left_of, slice_of
from polyclinic.state import FlatModule

DENSE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [2, 2]}
RESIDUAL = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 6, 8, 8], "spatial_dims": 2,
            "n_input_channels": 1, "num_classes": 2}  # fmt: skip
#: Network, options, inputs, outputs, and options of the same network of half the width, if its options can say it.
NETWORKS = [
    ("mlp", {"hidden": [6, 4], "norm": "batch"}, (5,), 3, {"hidden": [3, 2], "norm": "batch"}),
    ("mlp", {"hidden": [6, 4], "norm": "layer"}, (5,), 1, {"hidden": [3, 2], "norm": "layer"}),
    ("cnn", {"channels": [4, 8]}, (1, 8, 8), 8, {"channels": [2, 4]}),
    ("cnn", {"channels": [16, 32], "norm": "group"}, (3, 8, 8), 2, None),
    ("sfcn", {"channels": [4, 6, 2]}, (1, 8, 8, 8), 1, {"channels": [2, 3, 1]}),
    ("unet", {"channels": [4, 8, 16]}, (1, 16, 16), 2, {"channels": [2, 4, 8]}),
    ("unet", {"channels": [4, 8], "residual_units": 0, "norm": "instance"}, (2, 8, 8, 8), 3, None),
    ("attention_unet", {"channels": [8, 16]}, (1, 16, 16), 1, {"channels": [4, 8]}),
    ("segresnet", {"filters": 8}, (1, 16, 16), 2, None),
    ("dynunet", {"filters": [4, 8, 16], "deep_supervision": True}, (1, 16, 16), 2,
     {"filters": [2, 4, 8], "deep_supervision": True}),
    ("monai", {"network": "DenseNet", "arguments": {**DENSE, "init_features": 8, "growth_rate": 4, "bn_size": 2}},
     (1, 16, 16), 2, None),
    ("monai", {"network": "ResNet", "arguments": RESIDUAL}, (1, 16, 16), 2, None),
]  # fmt: skip


def built(build, shape, outputs=2):
    with catalogued("own", build):
        return build_model("own", {}, shape, outputs)


class Joined(nn.Module):
    """What a layer is given comes from two others, side by side."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1)
        self.last = nn.Conv2d(10, 2, 1)

    def forward(self, inputs):
        first = self.first(inputs)
        return self.last(torch.cat([first, self.second(first.relu())], dim=1)).mean((2, 3))


def test_places_by_hand():
    """Weights 1 × 3, biases 3, weights 3 × 2, biases 2: of half the width 2 units are left of 3."""
    whole = build_model("mlp", {"hidden": [3]}, (1,), 2)
    found = slice_of(whole, 0.5)
    assert found.places.tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert found.sizes == {"Q": 10, "T": 10, "S": 0, "W": 10}
    assert slice_of(whole, 0.5) is found


def test_channels_are_followed_through_a_concatenation():
    whole = built(lambda shape, outputs: ((net := Joined()), [net.last]), (1, 4, 4))
    found = slice_of(whole, 0.5)
    last = whole.layout.split(torch.arange(whole.layout.size).float())["last.weight"].flatten(1)
    mine = found.network.layout.split(found.places.float())["last.weight"].flatten(1)
    assert torch.equal(mine, last[:, [0, 1, 4, 5, 6]]), "the first of each, not the first of all"


def test_a_picture_that_is_flattened_keeps_all_places_of_the_channels_that_are_left():
    def build(shape, outputs):
        head = nn.Linear(4 * 9, outputs)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), head), [head]

    found = slice_of(built(build, (1, 3, 3)), 0.5)
    assert found.network.layout.shapes(found.shared)[-2] == (2, 18)


@pytest.mark.parametrize(("name", "options", "shape", "outputs", "half"), NETWORKS, ids=lambda v: str(v)[:24])
def test_a_network_of_the_catalogue_at_half_its_width(name, options, shape, outputs, half):
    whole = build_model(name, options, shape, outputs)
    found = slice_of(whole, 0.5)
    assert bool((found.places.diff() > 0).all()), "in order, each once"
    assert len(found.places) == found.network.layout.size < 0.6 * whole.layout.size
    assert [e.name for e in found.network.layout.entries] == [e.name for e in whole.layout.entries]
    if half is not None:
        own = build_model(name, half, shape, outputs).layout.entries
        assert [e.shape for e in found.network.layout.entries] == [e.shape for e in own]
    narrow, inputs = found.network, torch.randn(2, *shape)
    narrow.load(found.sent(whole.vector))
    outputs_of = narrow.module.eval()(inputs)
    assert torch.equal(outputs_of, without(whole, found, inputs)) or torch.allclose(
        outputs_of, without(whole, found, inputs), rtol=1e-3, atol=1e-4
    )
    narrow.module.train()(inputs).square().mean().backward()
    assert narrow.gradient.isfinite().all()
    assert len(narrow.head) == len(whole.head)


def without(whole, found, inputs):
    """What the whole network gives where no weight leads on from what is left out: only for layers that work on each
    channel, or on groups that are left as a whole; networks with others are judged by their own options alone."""
    if any(isinstance(layer, nn.LayerNorm) for layer in whole.module.modules()):
        found.network.load(found.sent(whole.vector))
        return found.network.module.eval()(inputs)
    keep = torch.zeros(whole.layout.size)
    keep[found.places] = 1
    vector = whole.vector.clone()
    for entry in whole.layout.entries:
        if entry.role.value in ("weight", "head") and len(entry.shape) > 1:
            vector[entry.offset : entry.offset + entry.size] *= keep[entry.offset : entry.offset + entry.size]
    before = whole.vector.clone()
    whole.load(vector)
    with torch.no_grad():
        outputs = whole.module.eval()(inputs)
    whole.load(before)
    return outputs


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    share=st.floats(0.05, 0.99),
    norm=st.sampled_from(["none", "batch"]),
)
def test_any_share_of_an_mlp_is_an_mlp(hidden, share, norm):
    whole = build_model("mlp", {"hidden": hidden, "norm": norm}, (4,), 2)
    found = slice_of(whole, share)
    own = build_model("mlp", {"hidden": [left_of(n, share) for n in hidden], "norm": norm}, (4,), 2)
    assert [e.shape for e in found.network.layout.entries] == [e.shape for e in own.layout.entries]
    change, statistics = torch.randn(found.sizes["T"]), torch.randn(found.sizes["S"])
    before = torch.randn(whole.layout.size)
    moved, others = found.spread(change, statistics, before)
    assert torch.equal(torch.cat([moved, others])[found.places], torch.cat([change, statistics]))
    assert moved.count_nonzero() == change.count_nonzero()
    absent = torch.ones(whole.layout.size, dtype=torch.bool)
    absent[found.places] = False
    trainable = whole.layout.trainable
    assert torch.equal(others[absent[trainable:]], before[trainable:][absent[trainable:]])


def test_slices_of_one_network_lie_within_each_other():
    whole = build_model("unet", {"channels": [4, 8, 16]}, (1, 16, 16), 2)
    small, large = (set(slice_of(whole, share).places.tolist()) for share in (0.25, 0.5))
    assert small < large


def test_the_scaler_works_in_training_alone():
    """With half of the width, what a hidden layer gives is doubled; what the last one gives is not."""
    whole = build_model("mlp", {"hidden": [2]}, (1,), 1)
    network = slice_of(whole, 0.5).network
    network.load(torch.tensor([3.0, 1.0, 5.0, 7.0]))
    inputs = torch.tensor([[2.0]])
    assert network.module.train()(inputs).item() == 2 * (3 * 2 + 1) * 5 + 7
    assert network.module.eval()(inputs).item() == (3 * 2 + 1) * 5 + 7


def test_a_convolution_of_each_channel_by_itself_keeps_the_channels_that_it_is_given():
    def build(shape, outputs):
        layers = [nn.Conv2d(1, 6, 1), nn.ZeroPad2d(1), nn.Conv2d(6, 12, 3, groups=6), nn.SiLU()]
        head = nn.Linear(12, outputs)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), [head]

    found = slice_of(built(build, (1, 4, 4)), 0.5)
    assert found.network.layout.shapes(found.shared) == [(3, 1, 1, 1), (3,), (6, 1, 3, 3), (6,), (2, 6), (2,)]


def test_tracing_leaves_network_and_random_numbers_as_they_are():
    whole = build_model("cnn", {"channels": [4], "dropout": 0.5}, (1, 8, 8), 2)
    before, state = whole.vector.clone(), torch.random.get_rng_state()
    found = slice_of(whole, 0.5)
    counters = [b for b in found.network.module.buffers() if not b.is_floating_point()]
    assert torch.equal(whole.vector, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(int(counter) == 0 for counter in counters)


class Shuffled(nn.Module):
    """A layer that is used twice, with other channels the second time."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.last(self.twice(self.twice(self.first(inputs)).flip(1)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight

    def forward(self, inputs):
        return self.last(self.first(inputs))


class Counting(nn.Module):
    """The width stands in the code."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.last(self.first(inputs).view(-1, 2, 2).flatten(1))


class Mixing(nn.Module):
    """Channels are compared with each other outside of layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.last(self.first(inputs).softmax(1))


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.last(inputs * self.scale)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Shuffled, "used several times"),
        (Tied, "weights in common"),
        (Counting, "does not run with fewer channels"),
        (Mixing, "nothing is left of what last is given"),
        (Weighted, "weights of a kind that can't be cut"),
    ],
)
def test_what_can_not_be_cut_is_refused_in_a_sentence(kind, words):
    whole = built(lambda shape, outputs: ((net := kind()), [net.last]), (3,))
    with pytest.raises(TrainingError, match=words) as refused:
        slice_of(whole, 0.5)
    assert refused.value.code == "P302"
    assert "width of all sites at 1" in refused.value.hint


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Conv2d(1, 16, 1), nn.GroupNorm(8, 16)], "no whole groups"),
        ([nn.Conv2d(1, 4, 1), nn.Conv2d(4, 16, 1, groups=2)], "in 2 groups"),
        ([nn.Conv2d(1, 4, 1), nn.LayerNorm([4, 3, 3])], "over places and channels together"),
    ],
)
def test_groups_that_would_be_torn_apart_are_refused(layers, words):
    def build(shape, outputs):
        head = nn.Linear(layers[0].out_channels if len(layers) < 2 else 16 if "16" in str(layers) else 4, outputs)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), [head]

    with pytest.raises(TrainingError, match=words):
        slice_of(built(build, (1, 3, 3)), 0.3)


def test_a_network_whose_inputs_are_not_known_is_a_mistake_of_the_program():
    with pytest.raises(ValueError, match="not known"):
        slice_of(FlatModule(nn.Linear(2, 2)), 0.5)
