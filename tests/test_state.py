from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from helpers import flat, plain_module
from polyclinic.errors import TrainingError
from polyclinic.methods import SHARES, Method
from polyclinic.models import MODELS, build_model
from polyclinic.models.pooling import POOLING
from polyclinic.state import FlatModule, Layout, Role, Selection

NORM = {Role.NORM_WEIGHT, Role.NORM_STATISTIC}


def roles(module, head=()):
    return {entry.name: entry.role for entry in Layout.of(module, head).entries}


class Residual(nn.Module):
    """A residual block whose normalisation layers hide behind names without "bn"."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.downsample = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head((self.body(x) + self.downsample(x)).mean((2, 3)))


# Roles ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "statistics"),
    [
        (nn.BatchNorm1d(4), 2),
        (nn.BatchNorm2d(4), 2),
        (nn.BatchNorm3d(4), 2),
        (nn.SyncBatchNorm(4), 2),
        (nn.BatchNorm2d(4, track_running_stats=False), 0),
        (nn.InstanceNorm2d(4, affine=True), 0),
        (nn.InstanceNorm3d(4, affine=True, track_running_stats=True), 2),
        (nn.GroupNorm(2, 4), 0),
        (nn.LayerNorm(4), 0),
    ],
)
def test_normalisation_is_found_by_type(layer, statistics):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ModuleDict({"x": layer})))
    found = roles(model)
    inside = {name: role for name, role in found.items() if name.startswith("1.")}
    assert sorted(inside.values()) == sorted([Role.NORM_WEIGHT] * 2 + [Role.NORM_STATISTIC] * statistics)
    assert found["0.weight"] == found["0.bias"] == Role.WEIGHT


def test_rms_norm_has_a_scale_only():
    assert roles(nn.RMSNorm(3)) == {"weight": Role.NORM_WEIGHT}


def test_instance_norm_without_scale_has_nothing_to_share():
    assert roles(nn.InstanceNorm2d(4)) == {}


def test_the_downsampling_branch_of_a_residual_block_is_not_missed():
    block = Residual()
    assert roles(block, [block.head]) == {
        "body.0.weight": Role.WEIGHT,
        "body.0.bias": Role.WEIGHT,
        "body.1.weight": Role.NORM_WEIGHT,
        "body.1.bias": Role.NORM_WEIGHT,
        "downsample.0.weight": Role.WEIGHT,
        "downsample.0.bias": Role.WEIGHT,
        "downsample.1.weight": Role.NORM_WEIGHT,
        "downsample.1.bias": Role.NORM_WEIGHT,
        "head.weight": Role.HEAD,
        "head.bias": Role.HEAD,
        "body.1.running_mean": Role.NORM_STATISTIC,
        "body.1.running_var": Role.NORM_STATISTIC,
        "downsample.1.running_mean": Role.NORM_STATISTIC,
        "downsample.1.running_var": Role.NORM_STATISTIC,
    }


def test_monai_resnet_has_every_normalisation_layer_as_such():
    model = build_model("resnet18", {}, (1, 32, 32), 2)
    norms = [name for name, layer in model.module.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    found = {entry.name: entry.role for entry in model.layout.entries}
    assert len(norms) == 20
    assert any("downsample" in name for name in norms)
    for name in norms:
        assert {found[f"{name}.weight"], found[f"{name}.bias"]} == {Role.NORM_WEIGHT}
        assert {found[f"{name}.running_mean"], found[f"{name}.running_var"]} == {Role.NORM_STATISTIC}
    assert sum(role in NORM for role in found.values()) == 4 * 20
    assert {name for name, role in found.items() if role is Role.HEAD} == {"fc.weight", "fc.bias"}


def test_a_normalisation_layer_inside_the_head_is_still_one():
    head = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2), head)
    found = roles(model, [head])
    assert found["1.0.weight"] == Role.NORM_WEIGHT
    assert found["1.1.weight"] == Role.HEAD


def test_other_floating_point_buffers_are_neither_weights_nor_statistics():
    model = nn.Linear(2, 2)
    model.register_buffer("temperature", torch.ones(1))
    assert roles(model) == {"weight": Role.WEIGHT, "bias": Role.WEIGHT, "temperature": Role.BUFFER}


@pytest.mark.parametrize("name", sorted({*MODELS} - {"bundle", "monai"}))
def test_every_network_of_the_catalogue_declares_a_head(name):
    shape = (5,) if name in {"logistic", "mlp", *POOLING} else (1, 32, 32)
    shape = {"swinunetr": (1, 64, 64), "unrolled": (3, 32, 32)}.get(name, shape)
    layout = build_model(name, {}, shape, 1 if name == "unrolled" else 2).layout
    assert any(entry.role is Role.HEAD for entry in layout.entries)


# Layout ---------------------------------------------------------------------------------------------------------------


def test_trainable_parameters_come_first_then_frozen_ones_then_buffers():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    layout = Layout.of(model)
    assert [entry.name for entry in layout.entries] == [
        "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "0.weight", "1.running_mean", "1.running_var",
    ]  # fmt: skip
    assert [entry.trainable for entry in layout.entries] == [True] * 5 + [False] * 3
    assert layout.trainable == 3 + 3 + 3 + 6 + 2
    assert layout.size == layout.trainable + 6 + 3 + 3
    assert [entry.offset for entry in layout.entries] == [0, 3, 6, 9, 15, 17, 23, 26]


def test_tied_weights_are_one_tensor():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    flat_model = FlatModule(model)
    assert [entry.name for entry in flat_model.layout.entries] == ["0.weight"]
    assert flat_model.layout.size == 9
    flat_model.vector.fill_(2.0)
    assert model[2].weight.eq(2.0).all()
    assert model[2].weight is model[0].weight
    flat_model.module(torch.ones(1, 3)).sum().backward()
    assert flat_model.gradient.ne(0).any()


def test_a_module_used_twice_is_counted_once():
    layer = nn.BatchNorm1d(2)
    assert Layout.of(nn.ModuleDict({"a": layer, "b": layer})).size == 8


def test_integer_buffers_are_never_in_the_vector():
    model = FlatModule(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not any("num_batches_tracked" in entry.name for entry in model.layout.entries)
    assert model.layout.size == 4 + 2 + 4 * 2


def test_loading_returns_integer_buffers_to_their_start():
    model = FlatModule(nn.Sequential(nn.BatchNorm1d(2)))
    model.module.train()
    before = model.vector.clone()
    model.module(torch.randn(4, 2))
    assert model.module[0].num_batches_tracked == 1
    assert not torch.equal(model.vector, before)
    model.load(before)
    assert model.module[0].num_batches_tracked == 0
    assert torch.equal(model.vector, before)


# Views ----------------------------------------------------------------------------------------------------------------


def test_parameters_gradients_and_buffers_are_views():
    model = FlatModule(Residual())
    model.vector.copy_(torch.arange(model.layout.size))
    named = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    for entry in model.layout.entries:
        expected = torch.arange(entry.offset, entry.offset + entry.size, dtype=torch.float32).view(entry.shape)
        assert torch.equal(named[entry.name], expected)
    with torch.no_grad():
        model.module.head.bias.fill_(-1.0)
        model.module.body[1].running_mean.fill_(-2.0)
    assert model.layout.split(model.vector)["head.bias"].eq(-1.0).all()
    assert model.layout.split(model.vector)["body.1.running_mean"].eq(-2.0).all()
    assert model.weights.data_ptr() == model.vector.data_ptr()
    assert model.weights.shape == (model.layout.trainable,)


def test_backward_adds_the_gradient_of_an_ordinary_module_into_one_vector():
    torch.manual_seed(0)
    model = FlatModule(Residual())
    plain = plain_module(model, model.vector)
    inputs = torch.randn(3, 2, 4, 4)
    for module in (model.module, plain):
        module(inputs).square().sum().backward()
    expected = torch.cat([
        dict(plain.named_parameters())[entry.name].grad.reshape(-1) for entry in model.layout.entries if entry.trainable
    ])  # fmt: skip
    assert torch.equal(model.gradient, expected)
    assert torch.equal(model.vector, flat(model, plain))
    model.module(inputs).square().sum().backward()
    assert not torch.equal(model.gradient, expected), "gradients add up until they are set to zero"


def test_frozen_parameters_have_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    flat_model = FlatModule(model)
    flat_model.module(torch.ones(1, 2)).sum().backward()
    assert flat_model.gradient.shape == (6,)
    assert model[0].weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_than_float32_are_refused(dtype):
    with pytest.raises(TrainingError) as caught:
        FlatModule(nn.Linear(2, 2).to(dtype))
    assert caught.value.code == "P302"
    assert caught.value.message == f"The model has parameters of type {dtype}; only torch.float32 is supported."


def test_buffers_of_another_precision_are_brought_to_float32():
    model = nn.Linear(2, 2)
    model.register_buffer("scale", torch.full((1,), 0.1, dtype=torch.float64))
    flat_model = FlatModule(model)
    assert model.scale.dtype == torch.float32
    flat_model.vector.fill_(3.0)
    assert model.scale == 3.0


# Selection ------------------------------------------------------------------------------------------------------------


@st.composite
def selections(draw):
    total = draw(st.integers(1, 30))
    cuts = sorted(draw(st.sets(st.integers(0, total), min_size=0, max_size=8)))
    pairs = tuple((start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=False) if start < stop)
    return Selection(pairs, sum(stop - start for start, stop in pairs), 0, total)


@given(selections(), st.integers(0, 3))
@settings(max_examples=50)
def test_put_undoes_take_and_touches_nothing_else(selection, rows):
    shape = (selection.total,) if rows == 0 else (rows, selection.total)
    vector = torch.randn(shape)
    chosen = selection.take(vector)
    assert chosen.shape == (*shape[:-1], selection.size)
    target = torch.full(shape, -7.0)
    selection.put(target, chosen)
    mask = torch.zeros(selection.total, dtype=torch.bool)
    for start, stop in selection.slices:
        mask[start:stop] = True
    assert torch.equal(target[..., mask], vector[..., mask])
    assert target[..., ~mask].eq(-7.0).all()
    assert torch.equal(selection.take(target), chosen)


@given(st.sets(st.sampled_from(sorted(Role))))
@settings(max_examples=32)
def test_a_selection_and_its_rest_make_the_whole(chosen):
    layout = Layout.of(block := Residual(), [block.head])
    part, rest = layout.select(chosen), layout.select(set(Role) - chosen)
    assert part.size + rest.size == part.total == layout.size
    assert part.trainable + rest.trainable == layout.trainable
    vector, whole = torch.randn(layout.size), torch.full((layout.size,), torch.nan)
    part.put(whole, part.take(vector))
    rest.put(whole, rest.take(vector))
    assert torch.equal(whole, vector)
    slices = part.slices
    assert all(start < stop for start, stop in slices)
    assert all(before[1] < after[0] for before, after in pairwise(slices)), "joined and sorted"


@pytest.mark.parametrize(
    ("share", "shared"),
    [
        ("all", {"weight", "norm weight", "statistic", "head"}),
        ("no_norm", {"weight", "head"}),
        ("no_norm_statistics", {"weight", "norm weight", "head"}),
        ("body", {"weight", "norm weight", "statistic"}),
        ("head", {"head"}),
        ("none", set()),
    ],
)
def test_what_each_way_of_sharing_shares(share, shared):
    layout = Layout.of(block := Residual(), [block.head])
    selection = Method(share=share).selection(layout)
    mask = torch.zeros(layout.size)
    selection.put(mask, torch.ones(selection.size))
    examples = {
        "weight": "downsample.0.weight",
        "norm weight": "downsample.1.bias",
        "statistic": "downsample.1.running_var",
        "head": "head.weight",
    }
    parts = layout.split(mask)
    assert {what for what, name in examples.items() if parts[name].eq(1).all()} == shared
    assert {what for what, name in examples.items() if parts[name].eq(0).all()} == set(examples) - shared
    assert selection.everything is (share == "all")
    assert set(SHARES) == {"all", "no_norm", "no_norm_statistics", "body", "head", "none"}
