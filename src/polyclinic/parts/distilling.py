"""Distillation: steps after which a network finds in cases without labels what others found there.

Source: Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, NIPS 2014 workshop, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from polyclinic.data.dataset import Dataset
from polyclinic.errors import TrainingError
from polyclinic.shapes import finite
from polyclinic.state import FlatModule
from polyclinic.tasks import Task

#: Cases of tables and pictures at a time.
_ROWS, _PICTURES = 256, 16


def outputs_on(model: FlatModule, vector: Tensor, public: Dataset, index: Tensor | None = None) -> Tensor:
    """What a model finds in cases of the public set, as in evaluation: its outputs ``[K, V]``, one row a case.

    Args:
        model: lends its network.
        vector: the model ``[P]``.
        public: the public set.
        index: int64 ``[K]``; None for all.
    """
    chosen = torch.arange(len(public)) if index is None else index
    found = list[Tensor]()
    with evaluated(model, vector), torch.no_grad():
        for part in chosen.split(_ROWS if len(public.shape) == 1 else _PICTURES):
            inputs = public.batch(part)[0].to(model.vector.device)
            found.append(model.module(inputs).flatten(1).float().cpu())
    return torch.cat(found)


@contextmanager
def evaluated(model: FlatModule, vector: Tensor) -> Iterator[None]:
    """The network with a state ``[P]``, as in evaluation; then its mode is as before."""
    training = model.module.training
    model.load(vector)
    model.module.eval()
    try:
        yield
    finally:
        model.module.train(training)


def divergence(task: Task, outputs: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """How far outputs are from those that are wanted: T² · KL(σ(wanted / T) ‖ σ(outputs / T)), a mean over cases and,
    in segmentation, over pixels. A single logit z stands for the two 0 and z. Of numbers to be predicted it is the mean
    squared difference, in deviations of the targets.

    Args:
        task: of the study.
        outputs: of the network ``[B, C, ...]``, with gradient.
        wanted: the same numbers ``[B, V]``, without.
        temperature: T.
    """
    wanted = wanted.to(outputs.device).view_as(outputs)
    if task.target == "numbers":
        return (outputs - wanted).square().mean()
    own, others = (_of_classes(one) / temperature for one in (outputs, wanted))
    each = nnf.kl_div(own.log_softmax(1), others.log_softmax(1), reduction="none", log_target=True).sum(1)
    return temperature**2 * each.mean()


def _of_classes(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def distil(
    model: FlatModule, vector: Tensor, public: Dataset, batches: Iterable[Tensor],
    term: Callable[[Tensor, Tensor], Tensor], stepper: Callable[[list[nn.Parameter]], Callable[[], object]], *,
    training: bool = False,
) -> Tensor:  # fmt: skip
    """Steps down the gradient of a term on batches of the public set; the model after them ``[P]``.

    Args:
        model: lends its network.
        vector: where to start ``[P]``.
        public: the public set.
        batches: positions in it ``[B]``, one batch a step.
        term: gives from the network's outputs ``[B, ...]`` and the positions what is to become small.
        stepper: gives, for the network's parameters, what takes a step along their gradients.
        training: whether layers work as in training: normalisation by the batch, whose statistics move, and dropout.
            Else statistics stay as they are.

    Raises:
        TrainingError: P301, there are values that are not finite numbers.
    """
    before = model.module.training
    model.load(vector)
    model.module.train(training)
    step = stepper(model.parameters_of(None, whole=True))
    try:
        for index in batches:
            loss = term(model.module(public.batch(index)[0].to(model.vector.device)), index)
            model.gradient.zero_()
            loss.backward()
            step()
    finally:
        model.module.train(before)
    found = model.vector.to("cpu", copy=True)
    if not finite(found):
        raise TrainingError("P301", "Distillation on the public set gave weights that are not finite numbers.",
                            "Lower its learning rate, or look for extreme values in the public set.")  # fmt: skip
    return found


def falling_adam(lr: float, steps: int) -> Callable[[list[nn.Parameter]], Callable[[], None]]:
    """Adam, whose rate falls from ``lr`` to 0 along a cosine over so many steps; for `distil`."""

    def stepper(parameters: list[nn.Parameter]) -> Callable[[], None]:
        adam = torch.optim.Adam(parameters, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

        def step() -> None:
            adam.step()
            schedule.step()

        return step

    return stepper


def shuffled(cases: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of positions, one random order of all cases after another, without end; a last one of a single case joins
    the one before it."""
    while True:
        yield from _split(torch.randperm(cases, generator=generator), size)


def batches_of(cases: int, size: int) -> int:
    """How many batches `shuffled` makes of all cases."""
    return len(_split(torch.arange(cases), size))


def _split(order: Tensor, size: int) -> list[Tensor]:
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1 < size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
