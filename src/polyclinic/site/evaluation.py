"""Measuring models on a site's cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyclinic.site.messages import Start
from polyclinic.site.pictures import case_pictures
from polyclinic.site.run import Run
from polyclinic.tasks import Segmentation, Task, build_task
from polyclinic.tasks.metrics import auc, classification_metrics, threshold_counts
from polyclinic.tasks.regression_metrics import regression_metrics
from polyclinic.tasks.segmentation import without_ignored
from polyclinic.tasks.segmentation_metrics import metric_columns, segmentation_case, segmentation_classes

#: Thresholds tried for segmentation; each site answers with the summed Dice at each.
MASK_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def task_of(asked: Start) -> Task:
    """The task that a ``start`` message declares."""
    return build_task(asked.task, asked.classes, asked.loss, asked.target_scale or (0.0, 1.0))


def outputs(run: Run, vector: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Network outputs and targets for the cases ``index`` with the model ``vector [P]``."""
    run.model.load(vector)
    run.model.module.eval()
    found, targets = [], []
    with torch.no_grad():
        for chunk in index.split(_batch_size(run)):
            inputs, wanted = run.dataset.batch(chunk)
            found.append(_apply(run, inputs.to(run.model.vector.device)).float().cpu())
            targets.append(wanted)
    return torch.cat(found), torch.cat(targets)


def _batch_size(run: Run) -> int:
    """How many cases are predicted at once: what training does at once, or more where cases are small."""
    axes = len(run.dataset.shape)
    if axes == 4:
        return 1 if run.dataset.patch else run.work.batch_size
    return max(run.work.batch_size, 256 if axes == 1 else 32)


def _apply(run: Run, inputs: Tensor) -> Tensor:
    """The network's outputs; a volume larger than the boxes of training is covered by overlapping windows."""
    patch = run.dataset.patch
    if patch is None or tuple(inputs.shape[2:]) == patch.size:
        outputs: Tensor = run.model.module(inputs)
        return outputs
    from monai.inferers import sliding_window_inference

    windows: Tensor = sliding_window_inference(
        inputs, patch.size, run.work.batch_size, run.model.module, overlap=patch.overlap, mode="gaussian"
    )
    return windows


def probabilities(run: Run, vectors: list[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over ``vectors`` of the predicted probabilities, and the targets."""
    total: Tensor | None = None
    targets = torch.empty(0)
    for vector in vectors:
        found, targets = outputs(run, vector, index)
        predicted = run.task.probabilities(found)
        total = predicted if total is None else total.add_(predicted)
    if total is None:
        raise ValueError("no model to evaluate")
    return total.div_(len(vectors)), targets


def score(run: Run, vectors: list[Tensor], index: Tensor, metric: str) -> dict[str, Any]:
    """Mean loss and one metric over ``index``; the loss is not weighted by class."""
    if not len(index):
        return {"cases": 0, "loss": None, "metric": None}
    if isinstance(run.task, Segmentation):
        return _score_masks(run, run.task, vectors[0], index)
    found, targets = outputs(run, vectors[0], index)
    loss = float(run.task.loss(found, targets).mean())
    predicted = run.task.probabilities(found)
    if run.task.name == "regression":
        value = regression_metrics(targets.numpy(), predicted[:, 0].numpy(), [metric])[metric]
    elif metric == "auc" and run.task.classes == 2:
        value = auc(targets.numpy(), predicted[:, 1].numpy())
    else:
        value = classification_metrics(targets.numpy(), predicted.numpy(), [metric])[metric]
    return {"cases": len(index), "loss": loss, "metric": None if np.isnan(value) else value}


def measure(run: Run, vector: Tensor, index: Tensor) -> dict[str, float]:
    """Mean loss of a model over some cases, and its accuracy: share of right classes, or mean Dice of masks."""
    if isinstance(run.task, Segmentation):
        found = _score_masks(run, run.task, vector, index)
        return {"loss": found["loss"], "accuracy": found["metric"]}
    predicted, targets = outputs(run, vector, index)
    right = float("nan")
    if run.task.name == "classification":
        right = float((run.task.probabilities(predicted).argmax(1) == targets).double().mean())
    return {"loss": float(run.task.loss(predicted, targets).mean()), "accuracy": right}


def _score_masks(run: Run, task: Segmentation, vector: Tensor, index: Tensor) -> dict[str, Any]:
    losses, scores = [], []
    for chunk in [index] if len(run.dataset.shape) == 3 else index.split(1):
        found, targets = outputs(run, vector, chunk)
        losses.append(task.loss(found, targets))
        scores.append(_dice(task, task.decide(task.probabilities(found), 0.5), targets))
    value = torch.cat(scores).mean().item()
    return {"cases": len(index), "loss": float(torch.cat(losses).mean()), "metric": value}


def threshold_evidence(run: Run, vectors: list[Tensor], index: Tensor) -> Tensor:
    """What a site sends so that a threshold can be chosen: sums over its cases, not scores.

    Returns:
        classification: int64 ``[2, T + 1]``, see `polyclinic.tasks.metrics.threshold_counts`;
        segmentation: float64 ``[2, T]``, summed Dice and number of cases at each of ``MASK_THRESHOLDS``.
    """
    if isinstance(run.task, Segmentation):
        evidence = torch.zeros(2, len(MASK_THRESHOLDS), dtype=torch.float64)
        for chunk in _chunks(run, index):
            predicted, targets = probabilities(run, vectors, chunk)
            for column, threshold in enumerate(MASK_THRESHOLDS):
                evidence[0, column] += _dice(run.task, run.task.decide(predicted, threshold), targets).double().sum()
            evidence[1] += len(chunk)
        return evidence
    if not len(index):
        return torch.from_numpy(threshold_counts(np.zeros(0, dtype=np.int64), np.zeros(0)))
    predicted, targets = probabilities(run, vectors, index)
    return torch.from_numpy(threshold_counts(targets.numpy(), predicted[:, 1].numpy()))


def predict(
    run: Run, vectors: list[Tensor], index: Tensor, threshold: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Predictions for ``index``: probabilities and labels, numbers and labels, or metrics of each case for masks."""
    if isinstance(run.task, Segmentation):
        return _predict_masks(run, run.task, vectors, index, threshold)
    if run.task.name == "regression":
        if not len(index):
            return {}, dict.fromkeys(("predictions", "labels"), torch.zeros(0, dtype=torch.float64))
        predicted, targets = probabilities(run, vectors, index)
        return {}, {"predictions": predicted[:, 0].contiguous(), "labels": targets.double()}
    if not len(index):
        empty = torch.zeros(0, run.task.classes, dtype=torch.float64)
        return {}, {"probabilities": empty, "labels": torch.zeros(0, dtype=torch.int64)}
    predicted, targets = probabilities(run, vectors, index)
    return {}, {"probabilities": predicted, "labels": targets}


def _predict_masks(
    run: Run, task: Segmentation, vectors: list[Tensor], index: Tensor, threshold: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    asked = run.declared.metrics
    names, classes, spacing = asked.names, asked.classes, run.dataset.spacing
    columns = metric_columns(names, classes)
    rows = []
    for chunk in _chunks(run, index):
        predicted, targets = probabilities(run, vectors, chunk)
        found_masks, wanted = without_ignored(task.decide(predicted, threshold), targets)
        for mask, target in zip(found_masks.numpy(), wanted.numpy(), strict=True):
            if task.several:
                found = segmentation_classes(mask, target, names, classes, spacing, asked.tolerance)
            else:
                found = segmentation_case(mask, target, names, spacing, asked.tolerance)
            rows.append([found[name] for name in columns])
    return {"metrics": columns}, {"values": torch.tensor(rows, dtype=torch.float64).view(-1, len(columns))}


def overlays(
    run: Run, vectors: list[Tensor], index: Tensor, threshold: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Pictures of the best, median and worst case by Dice; see `polyclinic.site.pictures.case_pictures`."""
    task = run.task
    if not len(index) or not isinstance(task, Segmentation):
        return {}, {}
    scores = []
    for chunk in _chunks(run, index):
        predicted, targets = probabilities(run, vectors, chunk)
        scores.append(_dice(task, task.decide(predicted, threshold), targets))
    order = torch.cat(scores).argsort(stable=True)
    chosen = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    fields: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for rank, position in chosen.items():
        case = index[position : position + 1]
        predicted, targets = probabilities(run, vectors, case)
        fields[rank] = float(torch.cat(scores)[position])
        marked, wanted = without_ignored(task.decide(predicted, threshold), targets)
        shown = case_pictures(
            run.dataset.picture(int(case)), wanted[0].to(torch.uint8), marked[0],
            run.dataset.spacing, run.dataset.orientation,
        )  # fmt: skip
        tensors |= {f"{rank}/{name}": picture for name, picture in shown.items()}
    return fields, tensors


def _chunks(run: Run, index: Tensor) -> Sequence[Tensor]:
    """Cases measured at once: many images, or volumes one by one, so that memory is bounded."""
    chunks: Sequence[Tensor] = index.split(32 if len(run.dataset.shape) == 3 else 1)
    return chunks if len(index) else []


def _dice(task: Segmentation, decided: Tensor, targets: Tensor) -> Tensor:
    """Dice of each case ``[B]``, mean over the structures; 1 for a structure that is in neither mask."""
    decided, targets = without_ignored(decided, targets)
    scores = []
    for structure in range(1, max(task.classes, 2)):
        mask, target = (decided == structure).flatten(1), (targets == structure).flatten(1)
        overlap, total = (mask & target).sum(1), mask.sum(1) + target.sum(1)
        scores.append(torch.where(total > 0, 2 * overlap / total.clamp_min(1), torch.ones(())))
    return torch.stack(scores).mean(0)
