"""What mixes patients is refused, by name where it is known and else by what it does."""

import pytest
import torch
from torch import nn

from polyclinic.client.private.obstacles import check_private
from polyclinic.errors import StudyError
from polyclinic.models import build_model
from polyclinic.parts.site_end import SiteEnd
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task


class Centred(nn.Module):
    def forward(self, inputs):
        return inputs - inputs.mean(0)


class Sized(nn.Module):
    def forward(self, inputs):
        return inputs * len(inputs)


class Shifted(nn.Module):
    """Looks at the case before."""

    def forward(self, inputs):
        return inputs + 1e-3 * inputs.roll(1, 0)


class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, inputs):
        self.seen.mul_(0.5).add_(0.5 * inputs.detach().mean(0))
        return inputs


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def forward(self, inputs):
        self.count += len(inputs)
        return inputs


class Mixed(SiteEnd):
    name = "mixup"

    def batch(self, batch, given):
        return batch


class Term(SiteEnd):
    name = "contrast"

    def loss(self, batch, given):
        return None


class Proximal(SiteEnd):
    name = "proximal"

    def gradient(self, gradient, weights, start, given):
        gradient += weights - start


def between(layer):
    head = nn.Linear(6, 2)
    return FlatModule(nn.Sequential(nn.Linear(5, 6), layer, head), [head])


CLASSES = build_task("classification", 2)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm1d(6), r"the layer 1 \(BatchNorm1d\) mixes the cases of a batch"),
        (nn.BatchNorm1d(6, affine=False, track_running_stats=False), r"the layer 1 \(BatchNorm1d\) mixes"),
        (nn.SyncBatchNorm(6), r"the layer 1 \(SyncBatchNorm\) mixes"),
        (Centred(), "depends on another case of the batch"),
        (Shifted(), "depends on another case of the batch"),
        (nn.Softmax(0), "depends on another case of the batch"),
        (Sized(), "depends on how many there are"),
        (Moving(), "changes a statistic of its own"),
        (Counting(), "changes a statistic of its own"),
    ],
)
def test_layers_that_mix_cases_are_refused(layer, reason):
    model = between(layer)
    before = model.vector.clone()
    with pytest.raises(StudyError, match=reason) as refused:
        check_private(model, CLASSES, (5,))
    assert refused.value.code == "P104"
    assert "`norm: group`" in refused.value.hint
    assert torch.equal(model.vector, before)


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.Dropout(0.5), nn.RReLU(), nn.Softmax(1)])
def test_layers_that_keep_cases_apart_are_not(layer):
    model = between(layer)
    state = torch.random.get_rng_state()
    check_private(model, CLASSES, (5,), [Proximal()])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_running_statistics_of_instance_normalisation_are_refused():
    model = FlatModule(nn.Sequential(nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True)))
    with pytest.raises(StudyError, match=r"the layer 1 \(InstanceNorm1d\) keeps running statistics"):
        check_private(model, CLASSES, (1, 9))


@pytest.mark.parametrize(
    ("name", "options", "shape", "fits"),
    [
        ("logistic", {}, (5,), True),
        ("mlp", {"norm": "layer", "dropout": 0.3}, (5,), True),
        ("cnn", {}, (1, 16, 16), False),
        ("cnn", {"norm": "group"}, (1, 16, 16), True),
        ("sfcn", {}, (1, 32, 32), False),
        ("resnet", {"depth": 10}, (1, 32, 32), False),
        ("efficientnet", {}, (1, 32, 32), False),
        ("unet", {"channels": [4, 8]}, (1, 16, 16), False),
        ("unet", {"channels": [4, 8], "norm": "instance", "dropout": 0.2}, (1, 16, 16), True),
        ("segresnet", {"dropout": 0.2}, (1, 16, 16), True),
        ("attention_unet", {"channels": [4, 8]}, (1, 16, 16), False),
        ("dynunet", {"filters": [4, 8, 8], "deep_supervision": True}, (1, 16, 16), True),
        ("dynunet", {"filters": [4, 8, 8], "norm": "batch"}, (1, 16, 16), False),
        ("swinunetr", {"features": 12}, (1, 64, 64), True),
    ],
)
def test_networks_of_the_catalogue(name, options, shape, fits):
    model = build_model(name, options, shape, 2)
    if fits:
        check_private(model, CLASSES, shape)
    else:
        with pytest.raises(StudyError, match="BatchNorm"):
            check_private(model, CLASSES, shape)


def test_a_loss_that_compares_cases_is_refused():
    model = build_model("logistic", {}, (5,), 1)
    with pytest.raises(StudyError, match="the loss cox compares each case with others"):
        check_private(model, build_task("survival", 0, "cox"), (5,))


@pytest.mark.parametrize(
    ("end", "reason"), [(Mixed(), "mixup changes the batch"), (Term(), "contrast changes the loss")]
)
def test_parts_that_see_several_cases_are_refused(end, reason):
    with pytest.raises(StudyError, match=reason):
        check_private(build_model("logistic", {}, (5,), 2), CLASSES, (5,), [Proximal(), end])
