"""Pixels that play no part: neither in a loss, nor in a gradient, nor in a metric."""

import math

import pytest
import torch

from polyclinic.ignored import IGNORED
from polyclinic.tasks import build_task
from polyclinic.tasks.segmentation import Segmentation, without_ignored

SHAPES = [(8, 8), (4, 6, 8)]


def drawn(classes, shape, cases=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    outputs = 3 * torch.randn(cases, classes if classes > 2 else 1, *shape, generator=source)
    masks = torch.randint(0, classes, (cases, 1, *shape), generator=source, dtype=torch.uint8)
    ignored = torch.rand(masks.shape, generator=source) < 0.4
    return outputs, masks, ignored


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", Segmentation.losses)
def test_ignored_pixels_are_as_if_they_were_not_there(loss, classes, shape):
    task = build_task("segmentation", classes, loss)
    outputs, masks, ignored = drawn(classes, shape)
    ignored[0], ignored[0, :, :2] = False, True  # whole rows, so that the rest is an image of its own
    outputs.requires_grad_()
    found = task.loss(outputs, masks.masked_fill(ignored, IGNORED))
    rest = task.loss(outputs[:1, :, 2:], masks[:1, :, 2:])
    assert found[0].item() == pytest.approx(rest.item(), rel=1e-5)
    found.sum().backward()
    there = ignored.expand_as(outputs)
    assert not outputs.grad[there].any()
    assert outputs.grad[~there].all()
    # What the network says there makes no difference, to the last bit.
    other = torch.where(there, 50 * torch.randn(outputs.shape), outputs.detach())
    assert torch.equal(task.loss(other, masks.masked_fill(ignored, IGNORED)), found.detach())


def test_losses_by_hand():
    outputs = torch.tensor([[[[0.0, math.log(3.0), 5.0, -math.log(3.0)]]]])  # probabilities 1/2, 3/4, ?, 1/4
    masks = torch.tensor([[[[1, 1, IGNORED, 0]]]], dtype=torch.uint8)
    entropy = (math.log(2) + 2 * math.log(4 / 3)) / 3
    dice = 1 - (2 * (0.5 + 0.75) + 1e-5) / (2 + 1.5 + 1e-5)
    for loss, value in (("cross_entropy", entropy), ("dice", dice), ("dice_cross_entropy", entropy + dice)):
        assert build_task("segmentation", 2, loss).loss(outputs, masks).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", Segmentation.losses)
def test_where_all_is_ignored_there_is_nothing_to_learn(loss, classes):
    outputs, masks, _ = drawn(classes, (4, 4))
    outputs.requires_grad_()
    found = build_task("segmentation", classes, loss).loss(outputs, torch.full_like(masks, IGNORED))
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0, 0.0]
    assert not outputs.grad.any()


@pytest.mark.parametrize("classes", [2, 3])
def test_every_head_leaves_them_out(classes):
    task = build_task("segmentation", classes, "dice_cross_entropy")
    outputs, masks, ignored = drawn(classes, (8, 8))
    masks = masks.masked_fill(ignored, IGNORED)
    heads = torch.stack([outputs, -outputs, outputs * 2], dim=1)
    each = [task.loss(head, masks) for head in heads.unbind(1)]
    assert torch.allclose(task.loss(heads, masks), (4 * each[0] + 2 * each[1] + each[2]) / 7)


def test_half_precision_stays_finite():
    outputs, masks, ignored = drawn(3, (8, 8))
    found = build_task("segmentation", 3, "dice_focal").loss(outputs.bfloat16(), masks.masked_fill(ignored, IGNORED))
    assert found.isfinite().all()


def test_masks_without_them():
    decided = torch.tensor([[[1, 2, 0, 1]]], dtype=torch.uint8)
    targets = torch.tensor([[[[IGNORED, 2, 1, 1]]]], dtype=torch.uint8)
    found, wanted = without_ignored(decided, targets)
    assert found.tolist() == [[[0, 2, 0, 1]]]
    assert wanted.tolist() == [[[0, 2, 1, 1]]]
