"""Measuring models on a site's cases: networks are run here, and what is made of their outputs is the task's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polyclinic.data.dataset import Dataset
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.errors import DataError
from polyclinic.models import attention_of
from polyclinic.parts.predictor import Network, Outputs, in_use
from polyclinic.site.messages import Evaluated, Pictured, Start
from polyclinic.site.pictures import case_pictures, reconstruction_pictures
from polyclinic.site.run import Run
from polyclinic.state import FlatModule
from polyclinic.tasks import Task, build_task
from polyclinic.tasks.base import Asked, Batch, Space

#: Images whose predictions are measured at once where cases are measured one by one.
IMAGES_AT_ONCE = 32


def task_of(asked: Start) -> Task:
    """The task that a ``start`` message declares."""
    loss = asked.loss, asked.loss_options
    return build_task(asked.task, asked.classes, loss, asked.target_scale or (0.0, 1.0), asked.grid, asked.heads)


class Predicting(Protocol):
    """A network with cases that it is run on: a training at a site, or a model in use.

    Attributes:
        model: the network.
        dataset: the cases.
        task: what its outputs mean.
        batch_size: of training; small cases are predicted in larger batches.
    """

    model: FlatModule
    dataset: Dataset
    task: Task

    @property
    def batch_size(self) -> int:
        """Of training."""


def outputs(run: Predicting, vector: Network, index: Tensor) -> tuple[Tensor, Tensor]:
    """Network outputs and targets for the cases ``index`` with the model ``vector [P]``, or what predicts instead."""
    places, found, targets = [], [], []
    with torch.no_grad():
        for where, network in in_use(vector, run.model, index):
            places.append(where)
            for chunk in run.dataset.pieces(index[where], _batch_size(run)):
                inputs, wanted = run.dataset.batch(chunk)
                found.append(_apply(run, network, inputs.to(run.model.vector.device)).float().cpu())
                targets.append(wanted)
    outputs, wanted = torch.cat(found), torch.cat(targets)
    if len(places) < 2:
        return outputs, wanted
    order = torch.cat(places).argsort()
    return outputs[order], wanted[order]


def _batch_size(run: Predicting) -> int:
    """How many cases are predicted at once: what training does at once, or more where cases are small."""
    axes = len(run.dataset.shape)
    if axes == 4:
        return 1 if run.dataset.patch else run.batch_size
    return max(run.batch_size, 256 if axes == 1 else 32)


def _apply(run: Predicting, network: Outputs, inputs: Tensor) -> Tensor:
    """The network's outputs; a volume larger than the boxes of training is covered by overlapping windows."""
    patch = run.dataset.patch
    if patch is None or tuple(inputs.shape[2:]) == patch.size:
        return network(inputs)
    from monai.inferers import sliding_window_inference

    windows: Tensor = sliding_window_inference(
        inputs, patch.size, run.batch_size, network, overlap=patch.overlap, mode="gaussian"
    )
    return windows


def probabilities(run: Predicting, vectors: Sequence[Network], index: Tensor) -> tuple[Tensor, Tensor]:
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


def attention(run: Predicting, vectors: Sequence[Network], index: Tensor) -> dict[str, Tensor]:
    """How much each instance of the cases ``index [N]`` counts, mean over ``vectors``.

    Returns:
        ``attention [A]``, float32, one case after another, and how many ``instances`` each has, int64 ``[N]``; nothing
        where the network does not say it, or something else than one network predicts.
    """
    layer = attention_of(run.model.module)
    whole = [vector for vector in vectors if isinstance(vector, Tensor)]
    if layer is None or not len(index) or len(whole) < len(vectors):
        return {}
    found = [_attention(run, layer, vector, index) for vector in whole]
    counts = torch.tensor([len(case) for case in found[0]])
    return {"instances": counts, "attention": torch.stack([torch.cat(cases) for cases in found]).mean(0)}


def _attention(run: Predicting, layer: nn.Module, vector: Tensor, index: Tensor) -> list[Tensor]:
    """The weights of each case's instances with one model."""
    weights: list[Tensor] = []
    hook = layer.register_forward_hook(lambda layer, inputs, outputs: weights.append(outputs.float().cpu()))
    found: list[Tensor] = []
    run.model.load(vector)
    run.model.module.eval()
    try:
        with torch.no_grad():
            for chunk in run.dataset.pieces(index, _batch_size(run)):
                inputs, _ = run.dataset.batch(chunk)
                run.model.module(inputs.to(run.model.vector.device))
                counts = (~inputs.flatten(2).isnan().all(2)).sum(1).tolist()
                found += [case[:count] for case, count in zip(weights.pop(), counts, strict=True)]
    finally:
        hook.remove()
    return found


def score(run: Run, vectors: Sequence[Network], index: Tensor, metric: str) -> Evaluated:
    """Mean loss and one metric over ``index``; the loss is not weighted by class."""
    if not len(index):
        return Evaluated(cases=0, loss=None, metric=None)
    found = run.task.score(_batches(run, vectors[0], index), metric)
    return Evaluated(cases=len(index), loss=found.loss, metric=None if math.isnan(found.value) else found.value)


def measure(run: Run, vector: Network, index: Tensor) -> dict[str, float]:
    """Mean loss of a model over some cases, and its accuracy: share of right classes, or mean Dice of masks."""
    found = run.task.accuracy(_batches(run, vector, index))
    return {"loss": found.loss, "accuracy": found.value}


def threshold_evidence(run: Run, vectors: Sequence[Network], index: Tensor) -> Tensor:
    """What a site sends so that a threshold can be chosen: sums over its cases, not scores; see `Task.evidence`."""
    return run.task.evidence(predicted(run, vectors, index))


def sums(run: Run, vectors: Sequence[Network], index: Tensor) -> Tensor:
    """What a site sends of its training cases so that predictions can be completed; see `Task.sums`."""
    return run.task.sums(predicted(run, vectors, index))


def predict(
    run: Run, vectors: Sequence[Network], index: Tensor, threshold: float, completion: Sequence[float] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is sent of the cases ``index``, such as probabilities and labels; see `Task.rows`."""
    metrics = run.declared.metrics
    asked = Asked(metrics.names, metrics.classes, metrics.tolerance, completion, metrics.space)
    return run.task.rows(tested(run, vectors, index, threshold, metrics.space), threshold, asked)


def overlays(
    run: Run, vectors: Sequence[Network], index: Tensor, threshold: float
) -> tuple[Pictured, dict[str, Tensor]]:  # fmt: skip
    """Pictures of the best, median and worst case, on the study's grid, by the task's `case_scores`, as the results
    have them; cases that have none are not shown. See `polyclinic.site.pictures`."""
    cases = tested(run, vectors, index, threshold, run.declared.metrics.space)
    found = run.task.case_scores(cases, threshold) if len(index) else None
    if found is None or found.isnan().all():
        return Pictured(), {}
    order = found.argsort(stable=True)[: int((~found.isnan()).sum())]  # NaN comes last
    chosen = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    scores = {rank: float(found[position]) for rank, position in chosen.items()}
    tensors: dict[str, Tensor] = {}
    for rank, position in chosen.items():
        shown = _pictures(run, vectors, index[position : position + 1], threshold)
        # Of one or two test cases the same one has several ranks, and no file takes tensors that share their memory.
        tensors |= {f"{rank}/{name}": picture.clone() for name, picture in shown.items()}
    return Pictured(**scores), tensors


def _pictures(run: Run, vectors: Sequence[Network], case: Tensor, threshold: float) -> dict[str, Tensor]:
    """Those of one case ``[1]``."""
    spacings, batch = run.dataset.spacings, Batch(*probabilities(run, vectors, case))
    spacing = None if spacings is None else spacings[int(case)]
    if run.task.target == "images":
        truth, zero_filled = batch.targets[0]
        return reconstruction_pictures(batch.found[0, 0], truth, zero_filled, spacing, run.dataset.orientation)
    marked, wanted = run.task.shown(batch, threshold)
    image = run.dataset.picture(int(case))
    return case_pictures(image, wanted[0].to(torch.uint8), marked[0], spacing, run.dataset.orientation)


def _batches(run: Run, vector: Network, index: Tensor) -> Iterator[Batch]:
    """Outputs of one model: all at once, or of volumes measured case by case one by one, so that memory is bounded."""
    for chunk in index.split(1) if run.task.case_by_case and len(run.dataset.shape) == 4 else [index]:
        yield Batch(*outputs(run, vector, chunk))


def predicted(run: Predicting, vectors: Sequence[Network], index: Tensor) -> Iterator[Batch]:
    """Probabilities, mean over the models: all cases at once, or many images or one volume; nothing without cases."""
    if not len(index):
        return
    chunks = index.split(IMAGES_AT_ONCE if len(run.dataset.shape) == 3 else 1) if run.task.case_by_case else [index]
    spacings = run.dataset.spacings
    for chunk in chunks:
        own = None if spacings is None else [spacings[position] for position in chunk.tolist()]
        yield Batch(*probabilities(run, vectors, chunk), own)


def tested(
    run: Predicting, vectors: Sequence[Network], index: Tensor, threshold: float, space: Space
) -> Iterator[Batch]:  # fmt: skip
    """What test cases are measured by: probabilities as ``predicted`` gives them, or the masks that a model in use
    would write, each with the reference as it lies on disk, which is read when its case is measured.

    Args:
        run: the network and the cases.
        vectors: states whose predictions are averaged.
        index: which cases.
        threshold: of decision.
        space: in which masks are measured.

    Raises:
        DataError: P204, the files of a case can't be read any more, or have changed.
    """
    if space == "grid":
        yield from predicted(run, vectors, index)
        return
    originals = run.dataset.originals
    if originals is None:
        raise ValueError("the cases have no masks")
    for case in index.split(1):
        found, _ = probabilities(run, vectors, case)
        try:
            one = originals[int(case)].compared(found[0].numpy(), threshold)
        except (UnreadableError, OSError) as error:
            why = str(error) if isinstance(error, UnreadableError) else "file can't be read"
            raise DataError(
                "P204", f"Site {run.dataset.site}: image or mask of a test case can't be read as it was when the study "
                f"began: {why}.", "Put the files back, and go on with `--resume`.",
            ) from None  # fmt: skip
        spacings = None if one.spacing is None else [one.spacing]
        predicted_mask, reference = torch.from_numpy(one.predicted), torch.from_numpy(one.reference)
        yield Batch(predicted_mask[None], run.dataset.partly(reference)[None, None], spacings)
