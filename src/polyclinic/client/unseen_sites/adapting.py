"""Adaptation at test time: to the cases that a site wants predicted, without their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from polyclinic.client.domain_shift.spectra import trained_on_boxes
from polyclinic.errors import StudyError, TrainingError
from polyclinic.parts import LOCAL_PARTS, Memory, SitePart, SiteView
from polyclinic.parts.predictor import Network, Outputs, Predictor
from polyclinic.roles import Role
from polyclinic.state import FlatModule, Selection
from polyclinic.tasks import Task

_BatchNorm = nn.modules.batchnorm._BatchNorm
#: Probabilities below have no part in an entropy.
_LEAST = 1e-30


@LOCAL_PARTS.add("tent")
class Tent(SitePart):
    """Tent: normalisation is adapted to the cases that are predicted, which shall be predicted with little doubt.

    Training is as without it. When a site's cases are predicted, they are put into batches in a random order that
    follows from the seed. Layers of batch normalisation take mean and variance of each batch, and scale and shift of
    all normalisation layers make ``steps`` steps of Adam down the mean entropy of the batch's predictions. Then the
    batch is predicted, by the network as it is now and with the batch's statistics. ``online`` goes on from batch to
    batch, ``episodic`` begins each with the model that was trained. Test cases are seen without their labels, all of a
    batch for each of its predictions; validation cases likewise where they choose the threshold. The best round is
    chosen by the model as it is.

    A batch has two cases at least where cases have no places (tables); a site with a single one has no adaptation.

    Source: Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021, and the authors' code,
    which predicts a batch before its last step. Its optimiser is Adam with a rate of 0.001 here as there, for small
    images. With 0 steps it is Nado et al., Evaluating prediction-time batch normalization, arXiv 2006.10963.

    Args:
        mode: whether a batch goes on where the one before ended.
        steps: with each batch; 0 takes its statistics alone.
        lr: rate of Adam.
        batch_size: cases that are adapted to together; None for the batch size of training.
        statistics: whether batch normalisation takes those of the batch; else it keeps those of training.
    """

    tasks: ClassVar = ("classification", "segmentation")
    needs_normalisation = True
    no_bags = True

    def __init__(
        self, *, mode: Literal["online", "episodic"] = "online", steps: NonNegativeInt = 1,
        lr: Annotated[float, Field(ge=0)] = 0.001, batch_size: PositiveInt | None = None, statistics: bool = True,
    ) -> None:  # fmt: skip
        self.mode, self.steps, self.lr, self.batch_size, self.statistics = mode, steps, lr, batch_size, statistics

    def meet(self, view: SiteView) -> Memory:
        """Refuses boxes of volumes, of which a case has many."""
        if trained_on_boxes(view):
            raise StudyError("P104", f"{self.name} adapts to whole images, and the network is trained on boxes of "
                             "volumes.", f"Leave {self.name} out, or train on whole volumes (no `patch`).")  # fmt: skip
        return {}

    def adapted(self, network: Network, index: Tensor, inputs: Callable[[Tensor], Tensor], view: SiteView) -> Network:
        """What predicts each batch."""
        model, norm = view.model, view.layout.select({Role.NORM_WEIGHT, Role.NORM_STATISTIC})
        moves = self.statistics or (self.steps and self.lr)
        if not isinstance(network, Tensor) or not norm.size or not moves:
            return network
        order = torch.randperm(len(index), generator=view.generator("tent"))
        alone = 1 if len(view.input_shape) > 1 else 2
        batches = _batches(index[order], self.batch_size or view.batch_size, alone)
        if not batches:
            return network
        adapting = _Adapting(model, view.task, network, self)
        kept = [norm.take(adapting.batch(inputs(batch).to(model.vector.device))).cpu().clone() for batch in batches]
        return Adapted(network, norm, dict(zip(torch.cat(batches).tolist(), _numbers(batches), strict=True)), kept)


@dataclass(frozen=True)
class Adapted(Predictor):
    """A network whose normalisation is another one for each batch of cases.

    Attributes:
        vector: its state without that ``[P]``.
        norm: the coordinates of normalisation layers.
        batch_of: position of each case -> its batch.
        kept: these coordinates for each batch.
    """

    vector: Tensor
    norm: Selection
    batch_of: dict[int, int]
    kept: Sequence[Tensor]

    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """The cases of each batch."""
        numbers = torch.tensor([self.batch_of[place] for place in index.tolist()])
        for number in numbers.unique().tolist():
            vector = self.vector.clone()
            self.norm.put(vector, self.kept[number])
            model.load(vector)
            yield (numbers == number).nonzero().flatten(), model.module


class _Adapting:
    """A network on its way from batch to batch; see `Tent`."""

    def __init__(self, model: FlatModule, task: Task, vector: Tensor, part: Tent) -> None:
        self.model, self.task, self.start, self.part = model, task, vector, part
        self._layers = [one for one in model.module.modules() if isinstance(one, _BatchNorm)] if part.statistics else []
        self._begin()

    def _begin(self) -> None:
        self.model.load(self.start)
        self.model.module.eval()
        weights = self.model.layout.select({Role.NORM_WEIGHT})
        parameters = self.model.parameters_of(weights) if weights.size else []
        self._optimizer = torch.optim.Adam(parameters, lr=self.part.lr) if parameters else None

    def batch(self, inputs: Tensor) -> Tensor:
        """The state ``[P]`` that predicts a batch ``[B, ...]``."""
        if self.part.mode == "episodic":
            self._begin()
        try:
            for _ in range(self.part.steps if self._optimizer is not None else 0):
                self._step(inputs)
            self._measure(inputs)
        except ValueError as error:  # of batch normalisation
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError("P302", "Batch normalisation has a single value of a channel in a batch of test cases.",
                                "Give tent a `batch_size` above 1.") from None  # fmt: skip
        return self.model.vector

    def _step(self, inputs: Tensor) -> None:
        self.model.gradient.zero_()
        with torch.enable_grad(), _own_statistics(self._layers):
            entropy(self.task.probabilities(self.model.module(inputs))).backward()
        if self._optimizer is not None:
            self._optimizer.step()

    def _measure(self, inputs: Tensor) -> None:
        """Put mean and variance of each layer's inputs, which normalise the batch, into the network."""

        def measure(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            axes = [0, *range(2, given[0].dim())]
            layer.running_mean.copy_(given[0].mean(axes))  # type: ignore[operator]
            layer.running_var.copy_(given[0].var(axes, correction=0))  # type: ignore[operator]

        hooks = [one.register_forward_pre_hook(measure) for one in self._layers if one.running_mean is not None]
        try:
            with torch.no_grad():
                self.model.module(inputs)
        finally:
            for hook in hooks:
                hook.remove()


def entropy(probabilities: Tensor) -> Tensor:
    """Mean over cases and places of −Σ_c p_c log p_c, for probabilities of classes ``[B, C, ...]`` or of foreground
    ``[B, 1, ...]``."""
    whole = torch.cat([probabilities, 1 - probabilities], 1) if probabilities.shape[1] == 1 else probabilities
    found: Tensor = torch.special.entr(whole.clamp_min(_LEAST)).sum(1).mean()
    return found


@contextmanager
def _own_statistics(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within it batch normalisation goes by the batch, and remembers nothing of it."""
    before = [one.momentum for one in layers]
    for one in layers:
        one.momentum = 0.0  # type: ignore[assignment]
        one.train()
    try:
        yield
    finally:
        for one, momentum in zip(layers, before, strict=True):
            one.momentum = momentum
            one.eval()


def _batches(order: Tensor, size: int, least: int) -> list[Tensor]:
    """Batches of ``size`` cases, with ``least`` at least: a last one that is too small joins the one before."""
    batches = list(order.split(max(size, least)))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [batch for batch in batches if len(batch) >= least]


def _numbers(batches: Sequence[Tensor]) -> list[int]:
    return [number for number, batch in enumerate(batches) for _ in range(len(batch))]
