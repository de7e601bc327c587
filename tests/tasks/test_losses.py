"""Losses of the tasks against plain PyTorch, MONAI, and numbers worked by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.tasks import TASKS, build_task
from polyclinic.tasks.segmentation import Segmentation


def outputs_and_masks(classes, shape, cases=3):
    torch.manual_seed(0)
    channels = classes if classes > 2 else 1
    return torch.randn(cases, channels, *shape), torch.randint(0, classes, (cases, 1, *shape), dtype=torch.uint8)


# --- regression


def test_numbers_are_learned_in_standardised_units():
    task = build_task("regression", 0, "mse", (50.0, 10.0))
    outputs, targets = torch.tensor([[0.0], [1.0], [-2.0]]), torch.tensor([50.0, 50.0, 40.0])
    assert task.outputs == 1
    assert task.loss(outputs, targets).tolist() == [0.0, 1.0, 1.0]
    assert build_task("regression", 0, "mae", (50.0, 10.0)).loss(outputs, targets + 30).tolist() == [3.0, 2.0, 4.0]
    # Huber: half the square up to one deviation, then the distance less a half.
    huber = build_task("regression", 0, "huber", (50.0, 10.0)).loss(outputs, torch.tensor([55.0, 90.0, 30.0]))
    assert huber.tolist() == [0.125, 2.5, 0.0]
    assert task.probabilities(outputs).tolist() == [[50.0], [60.0], [30.0]]


# --- segmentation


@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 8)])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", Segmentation.losses)
def test_every_loss_is_a_number_for_each_case_and_falls_towards_the_mask(shape, classes, loss):
    task = build_task("segmentation", classes, loss)
    outputs, masks = outputs_and_masks(classes, shape)
    found = task.loss(outputs.requires_grad_(), masks)
    assert found.shape == (3,)
    found.sum().backward()
    assert outputs.grad.isfinite().all()
    right = F.one_hot(masks[:, 0].long(), classes).movedim(-1, 1).float()
    sure = 20 * (right if classes > 2 else 2 * right[:, 1:] - 1)
    assert (task.loss(sure, masks) < 0.02).all()
    assert (task.loss(sure, masks) < found).all()
    one = task.loss(outputs[1:2], masks[1:2])
    assert one.item() == pytest.approx(found[1].item(), rel=1e-5)  # a case does not depend on the others


def test_cross_entropy_of_several_structures_is_that_of_pytorch():
    outputs, masks = outputs_and_masks(4, (4, 8, 8))
    theirs = F.cross_entropy(outputs, masks[:, 0].long(), reduction="none").flatten(1).mean(1)
    assert torch.allclose(build_task("segmentation", 4, "cross_entropy").loss(outputs, masks), theirs)


def test_soft_dice_of_several_structures_leaves_the_background_out():
    outputs, masks = outputs_and_masks(3, (8, 8), cases=1)
    p, y = outputs.softmax(1), F.one_hot(masks[:, 0].long(), 3).movedim(-1, 1).float()
    each = [1 - (2 * (p[0, c] * y[0, c]).sum() + 1e-5) / (p[0, c].sum() + y[0, c].sum() + 1e-5) for c in (1, 2)]
    found = build_task("segmentation", 3, "dice").loss(outputs, masks)
    assert found[0] == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_focal_loss_by_its_formula():
    outputs, masks = outputs_and_masks(3, (8, 8), cases=2)
    p = outputs.softmax(1).gather(1, masks.long())
    theirs = (-((1 - p) ** 2) * p.log()).flatten(1).mean(1)
    assert torch.allclose(build_task("segmentation", 3, "focal").loss(outputs, masks), theirs, atol=1e-6)
    binary, masks = outputs_and_masks(2, (8, 8), cases=2)
    p = torch.where(masks == 1, binary.sigmoid(), 1 - binary.sigmoid())
    theirs = (-((1 - p) ** 2) * p.log()).flatten(1).mean(1)
    assert torch.allclose(build_task("segmentation", 2, "focal").loss(binary, masks), theirs, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_heads_are_weighted_by_halves(classes):
    task = build_task("segmentation", classes, "dice_cross_entropy")
    outputs, masks = outputs_and_masks(classes, (8, 8))
    heads = torch.stack([outputs, -outputs, outputs * 2], dim=1)
    each = [task.loss(head, masks) for head in heads.unbind(1)]
    expected = (4 * each[0] + 2 * each[1] + each[2]) / 7
    assert torch.allclose(task.loss(heads, masks), expected)


def test_the_class_of_a_pixel():
    binary, several = build_task("segmentation", 2, "dice"), build_task("segmentation", 3, "dice")
    assert (binary.outputs, several.outputs) == (1, 3)
    assert binary.decide(torch.tensor([[[[0.2, 0.4, 0.9]]]]), 0.4).tolist() == [[[0, 1, 1]]]
    p = torch.tensor([0.1, 0.6, 0.3]).view(1, 3, 1, 1)
    assert several.decide(p, 0.9).tolist() == [[[1]]]


@given(st.integers(2, 5), st.sampled_from([(4, 6), (2, 4, 4)]))
def test_probabilities_are_shares(classes, shape):
    task = build_task("segmentation", classes, "dice")
    outputs, _ = outputs_and_masks(classes, shape)
    p = task.probabilities(outputs)
    assert p.shape == outputs.shape
    assert ((p >= 0) & (p <= 1)).all()
    if classes > 2:
        assert torch.allclose(p.sum(1), torch.ones(()))


def test_default_metrics_are_metrics():
    for task in TASKS.values():
        assert set(task.default_metrics) <= set(task.metrics)
