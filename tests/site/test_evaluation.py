"""Measuring models on volumes with one and with several structures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from polyclinic.ignored import IGNORED
from polyclinic.site import evaluation
from polyclinic.site.messages import Evaluated, MetricNames, Pictured
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task
from polyclinic.tasks.segmentation import MASK_THRESHOLDS
from polyclinic.tasks.segmentation_metrics import hausdorff95, segmentation_classes

SIZE = (8, 10, 6)


class _Volumes:
    """Volumes whose grey values tell their structures: 1 + class index, and noise; class 0 below 1.5, and so on."""

    patch = None
    augments = False
    orientation = "RAS"

    def __init__(self, cases, classes, spacing):
        random = torch.Generator().manual_seed(0)
        self.targets = torch.zeros(cases, 1, *SIZE, dtype=torch.uint8)
        self.targets[:, :, 2:5, 2:7, 1:4] = 1
        if classes > 2:
            self.targets[:, :, 5:7, 7:9, 4:] = 2
        self.inputs = 1 + self.targets.float() + 0.3 * torch.randn(self.targets.shape, generator=random)
        self.shape, self.spacings = (1, *SIZE), None if spacing is None else [spacing] * cases

    def pieces(self, index, size):
        return index.split(size)

    def batch(self, index, *, augment=None):
        assert len(index) == 1, "volumes are measured one by one"
        return self.inputs[index], self.targets[index]

    def picture(self, position):
        return self.inputs[position]


def volume_run(classes, spacing=None, names=("dice", "hd95"), cases=4):
    """A run with a network that decides by the grey value."""
    task = build_task("segmentation", classes, "dice_cross_entropy")
    layer = nn.Conv3d(1, task.outputs, 1)
    means = torch.arange(1.0, classes + 1)
    with torch.no_grad():
        # The logarithm of a normal density around each class's mean, but for terms that all share.
        weight, bias = 10 * means, -5 * means**2
        if classes == 2:
            weight, bias = (weight[1:] - weight[:1]), (bias[1:] - bias[:1])
        layer.weight.copy_(weight.view(-1, 1, 1, 1, 1))
        layer.bias.copy_(bias)
    labels = ["background", *(f"part {index}" for index in range(1, classes))]
    run = SimpleNamespace(
        task=task, model=FlatModule(layer, [layer]), dataset=_Volumes(cases, classes, spacing),
        batch_size=1,
        declared=SimpleNamespace(metrics=MetricNames(names=list(names), classes=labels, tolerance=2.0)),
    )  # fmt: skip
    return run, [run.model.vector.clone()], torch.arange(cases)


@pytest.mark.parametrize("classes", [2, 3])
def test_volumes_are_scored_with_their_spacing(classes):
    spacing = (2.0, 1.0, 3.0)
    run, vectors, index = volume_run(classes, spacing)
    fields, tensors = evaluation.predict(run, vectors, index, 0.5)
    bounds = [1.5, 2.5][: classes - 1]
    decided = np.digitize(run.dataset.inputs[0, 0].numpy(), bounds)
    target = run.dataset.targets[0, 0].numpy()
    first = dict(zip(fields["metrics"], tensors["values"][0].tolist(), strict=True))
    if classes == 2:
        assert fields["metrics"] == ["dice", "hd95"]
        assert first["hd95"] == hausdorff95(decided == 1, target == 1, spacing)
        assert first["hd95"] != hausdorff95(decided == 1, target == 1)
    else:
        assert fields["metrics"] == ["dice", "hd95", "dice[part 1]", "dice[part 2]", "hd95[part 1]", "hd95[part 2]"]
        labels = run.declared.metrics.classes
        assert first == segmentation_classes(decided, target, ["dice", "hd95"], labels, spacing)
    assert tensors["values"].shape == (4, len(fields["metrics"]))


def test_each_volume_is_scored_and_shown_with_its_own_spacing():
    run, vectors, index = volume_run(2, (1.0, 1.0, 1.0))
    own = [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (2.0, 1.0, 1.0), (1.0, 3.0, 1.0)]
    run.dataset.spacings = own
    _, tensors = evaluation.predict(run, vectors, index.flip(0), 0.5)
    for case, found in zip(index.flip(0).tolist(), tensors["values"][:, 1].tolist(), strict=True):
        decided, target = run.dataset.inputs[case, 0].numpy() >= 1.5, run.dataset.targets[case, 0].numpy() == 1
        assert found == hausdorff95(decided, target, own[case])
    for case, height, widths in ((0, 10, [8, 8, 10]), (1, 24, [8, 8, 10]), (3, 30, [8, 8, 30])):
        _, pictures = evaluation.overlays(run, vectors, index[case : case + 1], 0.5)
        assert pictures["best/planes"].tolist() == widths
        assert pictures["best/mask"].shape[0] == height


def test_only_the_metrics_asked_for_are_computed(monkeypatch):
    from polyclinic.tasks import segmentation_metrics

    def refuse(*arguments):
        raise AssertionError("distances were not asked for")

    monkeypatch.setattr(segmentation_metrics, "outline_distances", refuse)
    run, vectors, index = volume_run(3, names=("dice", "sen", "lesion_f1"))
    fields, _ = evaluation.predict(run, vectors, index, 0.5)
    assert len(fields["metrics"]) == 9


@pytest.mark.parametrize("classes", [2, 3])
def test_validation_of_volumes_is_the_mean_over_cases(classes):
    run, vectors, index = volume_run(classes)
    found = evaluation.score(run, vectors, index, "dice")
    each = [evaluation.score(run, vectors, one, "dice") for one in index.split(1)]
    assert found.cases == 4
    assert found.metric == pytest.approx(np.mean([one.metric for one in each]))
    assert found.loss == pytest.approx(np.mean([one.loss for one in each]), rel=1e-5)
    _, tensors = evaluation.predict(run, vectors, index, 0.5)
    assert found.metric == pytest.approx(tensors["values"][:, 0].mean().item(), rel=1e-6)


def test_thresholds_of_volumes_with_one_structure():
    run, vectors, index = volume_run(2)
    evidence = evaluation.threshold_evidence(run, vectors, index)
    assert evidence.shape == (2, len(MASK_THRESHOLDS))
    assert evidence[1].tolist() == [4.0] * len(MASK_THRESHOLDS)
    best = MASK_THRESHOLDS[int(evidence[0].argmax())]
    for threshold in (0.05, 0.95):
        values = [evaluation.predict(run, vectors, index, t)[1]["values"][:, 0].mean() for t in (best, threshold)]
        assert values[0] >= values[1]


@pytest.mark.parametrize("classes", [2, 3])
def test_overlays_of_volumes_are_bytes_of_three_slices(classes):
    run, vectors, index = volume_run(classes, (1.0, 1.0, 2.0))
    shown, tensors = evaluation.overlays(run, vectors, index, 0.5)
    assert shown.best >= shown.median >= shown.worst
    assert tensors["best/planes"].tolist() == [8, 8, 10]
    assert tensors["best/image"].shape == (1, 12, 26)
    kinds = {name.split("/")[1]: tensor.dtype for name, tensor in tensors.items()}
    assert kinds == {
        "image": torch.uint8, "mask": torch.uint8, "prediction": torch.uint8, "planes": torch.int32,
    }  # fmt: skip
    assert 1 <= int(tensors["best/mask"].max()) < classes


def test_the_mean_of_several_models_decides():
    run, vectors, index = volume_run(3)
    wrong = torch.zeros_like(vectors[0])
    together, _ = evaluation.probabilities(run, [vectors[0], wrong], index[:1])
    alone, _ = evaluation.probabilities(run, vectors, index[:1])
    assert torch.allclose(together, (alone + 1 / 3) / 2)


def test_no_cases_give_empty_answers():
    none = torch.zeros(0, dtype=torch.int64)
    run, vectors, _ = volume_run(3)
    assert evaluation.score(run, vectors, none, "dice") == Evaluated(cases=0, loss=None, metric=None)
    assert evaluation.predict(run, vectors, none, 0.5)[1]["values"].shape == (0, 6)
    assert evaluation.overlays(run, vectors, none, 0.5) == (Pictured(), {})
    numbers = SimpleNamespace(task=build_task("regression", 0, "mse"), dataset=run.dataset, declared=run.declared)
    found = evaluation.predict(numbers, vectors, none, 0.5)[1]
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"predictions": (0,), "labels": (0,)}


@pytest.mark.parametrize("classes", [2, 3])
def test_ignored_voxels_count_nowhere(classes):
    names = ("dice", "hd95", "assd", "sen", "pre", "nsd", "lesion_sen", "lesion_f1")

    def measured(marked, truth):
        """Everything that a site says, with ``marked`` as the grey value and ``truth`` as the mask in some voxels."""
        run, vectors, index = volume_run(classes, (1.0, 1.0, 1.0), names)
        there = torch.zeros(SIZE, dtype=torch.bool)
        there[3:6, 4:8] = True  # within a structure, and beside it
        if marked is not None:
            run.dataset.inputs[:, :, there] = marked
        run.dataset.targets[:, :, there] = truth
        shown, pictures = evaluation.overlays(run, vectors, index, 0.5)
        score = evaluation.score(run, vectors, index, "dice")
        values = evaluation.predict(run, vectors, index, 0.5)[1]["values"]
        marks = {name: picture for name, picture in pictures.items() if not name.endswith("/image")}
        right, decided = (run.dataset.targets != IGNORED), np.digitize(run.dataset.inputs, [1.5, 2.5][: classes - 1])
        dice = [
            np.mean([_dice((decided == part)[case][right[case]], (run.dataset.targets == part)[case][right[case]])
                     for part in range(1, classes)])
            for case in range(len(index))
        ]  # fmt: skip
        return (
            values, dice, score.metric, score.loss, evaluation.threshold_evidence(run, vectors, index),
            torch.tensor(list(shown.fields().values())), marks,
        )  # fmt: skip

    plain, background, foreground = (measured(marked, IGNORED) for marked in (None, 1.0, 2.0))
    for other in (background, foreground):
        torch.testing.assert_close(plain, other, rtol=0, atol=0, equal_nan=True)
    assert plain[0][:, 0].tolist() == pytest.approx(plain[1])  # Dice by hand, over the other voxels
    assert max(int(picture.max()) for name, picture in plain[-1].items() if "planes" not in name) < IGNORED
    # The same voxels as background, or as foreground, would have counted.
    assert not torch.equal(measured(2.0, 0)[0], plain[0])


def _dice(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return 2 * (one & other).sum() / (one.sum() + other.sum())
