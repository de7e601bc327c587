"""Networks for bags: numbers by hand, padding, and bags of one instance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import declare
from polyclinic.data.bags import Bags, joined, padded
from polyclinic.errors import TrainingError
from polyclinic.models import build_model
from polyclinic.models.pooling import POOLING, BagNetwork, GatedAttention, attention_of
from polyclinic.models.trial import try_network
from polyclinic.options import EntryError

MLP = {"mlp": {"hidden": [6], "norm": "none", "dropout": 0.0}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def batch(*sizes, shape=(3,), seed=0):
    source = torch.Generator().manual_seed(seed)
    return padded(torch.randn(sum(sizes), *shape, generator=source), sizes)


def test_gated_attention_of_three_instances_by_hand():
    """Of features h = 1, 2, 0 with V = 1, U = −1, w = 2 the scores are 2 tanh(h) σ(−h), and the third is 0.

    The fourth place is padding. With the softmax of these a the pooled feature is a₁ + 2 a₂.
    """
    pooling = GatedAttention(1, 1)
    for layer, value in ((pooling.value, 1.0), (pooling.gate, -1.0), (pooling.score, 2.0)):
        layer.weight.data.fill_(value)
        layer.bias.data.zero_()
    scores = [2 * math.tanh(h) / (1 + math.exp(h)) for h in (1, 2)] + [0.0]
    shares = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
    seen = []
    pooling.attention.register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs))
    found = pooling(torch.tensor([[[1.0], [2.0], [0.0], [9.0]]]), torch.tensor([[True, True, True, False]]))
    close(found, [[shares[0] + 2 * shares[1]]])
    close(seen[0], [[*shares, 0.0]])


def test_mean_and_maximum_by_hand():
    bags = padded(torch.tensor([[1.0, -4.0], [3.0, -2.0], [5.0, 0.0]]), [2, 1])
    for name, wanted in (("mean_pooling", [[2.0, -3.0], [5.0, 0.0]]), ("max_pooling", [[3.0, -2.0], [5.0, 0.0]])):
        network = build_model(name, {"encoder": {"logistic": {}}}, (2,), 2)
        network.module.head.weight.data.copy_(torch.eye(2))
        close(network.module(bags), wanted)


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize(("encoder", "shape"), [(MLP, (3,)), ({"logistic": {}}, (3,)), ({"cnn": {}}, (1, 8, 8))])
def test_bags_of_one_instance_give_what_the_encoder_alone_gives(name, encoder, shape):
    network = build_model(name, {"encoder": encoder}, shape, 2, seed=3)
    plain = build_model(*next(iter(encoder.items())), shape, 2, seed=3)
    for module in (network.module, plain.module):
        module.train()
    inputs = torch.randn(4, *shape)
    assert torch.equal(network.module(inputs[:, None]), plain.module(inputs))
    assert torch.equal(network.module(inputs), plain.module(inputs)), "an input without an axis for instances is a bag"


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("norm", ["none", "batch"])
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5), more=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(name, norm, sizes, more):
    network = build_model(name, {"encoder": {"mlp": {"hidden": [6], "norm": norm}}}, (3,), 2).module
    bags = batch(*sizes)
    wider = torch.cat([bags, torch.full((len(sizes), more, 3), torch.nan)], 1)
    network.train()
    together = network(bags)
    together.sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    close(network(wider), together)
    network(wider).sum().backward()
    for before, parameter in zip(gradients, (p for p in network.parameters() if p.grad is not None), strict=True):
        assert parameter.grad.isfinite().all()
        close(parameter.grad, before, 1e-5)
    network.eval()
    together = network(wider)
    for place, size in enumerate(sizes):
        close(network(bags[place : place + 1, :size]), together[place : place + 1], 1e-5)


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_instances_does_not_matter_and_their_weights_are_shares(sizes, seed):
    network = build_model("gated_attention", {"encoder": MLP, "hidden": 4}, (3,), 2).module.eval()
    bags, weights = batch(*sizes, seed=seed), []
    attention_of(network).register_forward_hook(lambda layer, inputs, outputs: weights.append(outputs))
    close(network(bags.flip(1)), network(bags), 1e-5)
    for found in weights:
        close(found.sum(1), torch.ones(len(sizes)))
    there = ~bags.isnan().all(2)
    assert (weights[1][~there] == 0).all()


def test_large_bags_are_encoded_piece_by_piece_in_tests(monkeypatch):
    monkeypatch.setattr("polyclinic.models.pooling._ROWS", 2)
    network = build_model("gated_attention", {"encoder": MLP}, (3,), 2).module.eval()
    bags, sizes = batch(5, 3), []
    whole = network(bags)
    network.encoder.register_forward_hook(lambda layer, inputs, outputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        close(network(bags), whole)
    assert sizes == [2, 2, 2, 2]


def test_batches_of_bags_are_put_together():
    first, second = batch(1, 2), batch(4, seed=1)
    found = joined([first, second])
    assert found.shape == (3, 4, 3)
    assert torch.equal(found[:2, :2].nan_to_num(9), first.nan_to_num(9))
    assert found[:2, 2:].isnan().all()


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121", "efficientnet", "cnn", "sfcn"])
def test_every_kind_of_image_network_can_be_an_encoder(encoder):
    network = try_network("gated_attention", {"encoder": {encoder: {}}}, (3, 32, 32), 2, masks=False)
    assert isinstance(network.module, BagNetwork)


def test_what_can_be_no_encoder_is_refused():
    with pytest.raises(TrainingError, match="does not end in one fully connected layer"):
        build_model("gated_attention", {"encoder": {"unet": {}}}, (3, 32, 32), 2)
    data = {"table": "cases.csv", "site": "site", "subject": "p", "features": "x*", "label": "label", "bag": {}}
    with pytest.raises(EntryError, match="mean_pooling can't be the encoder"):
        declare(data=data, model={"gated_attention": {"encoder": "mean_pooling"}})
    with pytest.raises(EntryError, match="'mpl' is no model"):
        declare(data=data, model={"gated_attention": {"encoder": "mpl"}})
    with pytest.raises(EntryError, match="takes single instances"):
        declare(data=data, model="mlp")
    with pytest.raises(EntryError, match="is for bags, and each row is a case"):
        declare(model="mean_pooling")
    with pytest.raises(EntryError, match="attention_mil is for the model gated_attention"):
        declare(data=data, model="mean_pooling", methods=["attention_mil"])


def test_bags_can_not_be_empty():
    with pytest.raises(ValueError, match="3 instances can't be 2 bags"):
        Bags.of(torch.zeros(3, 2), [3, 0])
    assert len(Bags.of(torch.zeros(0, 2), [])) == 0
