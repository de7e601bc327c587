"""What a site is asked to do in one round, and in which order it sees its cases."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import pydantic.dataclasses
import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from polyclinic.client.companion import Companion
from polyclinic.client.optimizers import Named, build_optimizer, with_learning_rate
from polyclinic.data.dataset import Dataset
from polyclinic.errors import TrainingError
from polyclinic.limits import AboveZero, NamedPart, NotNegative, Switch, Times
from polyclinic.models import has_batch_norm
from polyclinic.parts.checks import kind_of, tensors_of, wrong
from polyclinic.parts.site_end import Memory, SiteEnd, overrides
from polyclinic.seeds import derive_seed, generator
from polyclinic.shapes import finite
from polyclinic.state import Selection

#: What to do where training gave values that are not finite numbers.
NOT_FINITE = "Lower the learning rate, set `training: {clip: 1.0}`, or look for extreme values with `polyclinic check`."
_DECLARED = ConfigDict(extra="forbid", allow_inf_nan=False)


@pydantic.dataclasses.dataclass(frozen=True, config=_DECLARED)
class OwnWork:
    """What holds for one site only; None is what holds for all.

    Attributes:
        epochs: passes over its training cases.
        steps: optimiser steps.
        seconds: time budget.
        step_seconds: declared time of a step, by which the budget is then kept instead of the clock.
    """

    epochs: Times | None = None
    steps: Times | None = None
    seconds: AboveZero | None = None
    step_seconds: AboveZero | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=_DECLARED)
class Work:
    """Local work of one round, as the coordinator declares it and a site does it.

    Attributes:
        kind: ``train`` (mini-batch steps) or ``gradient`` (one full-batch gradient, followed by w − η g).
        epochs: passes over the training cases; None if ``steps`` is given.
        steps: optimiser steps; epochs are drawn one after another until they suffice.
        batch_size: cases a step.
        optimizer: name and options of the torch.optim optimiser.
        keep_optimizer: whether its state stays at the site for the next round.
        clip: largest Euclidean norm of the gradient, or None.
        class_weights: weight of each class's cases in the loss C numbers, or None. A batch's loss is the mean over its
            cases of weight x loss, not divided by the sum of weights as in PyTorch's ``CrossEntropyLoss(weight)``.
        mixed_precision: autocast to half precision on a GPU.
        own: what holds for single sites, by name.
    """

    kind: Literal["train", "gradient"]
    epochs: Times | None
    steps: Times | None
    batch_size: Times
    optimizer: NamedPart
    keep_optimizer: Switch = False
    clip: AboveZero | None = None
    class_weights: tuple[NotNegative, ...] | None = None
    mixed_precision: Switch = False
    own: Mapping[str, OwnWork] = field(default_factory=dict)

    def of(self, site: str) -> OwnWork:
        """What holds for one site only."""
        return self.own.get(site, OwnWork())


@dataclass
class LocalJob:
    """One site's local work in one round.

    Attributes:
        site: its name.
        dataset: its cases.
        index: the cases that it trains on, positions in ``dataset`` ``[n]``.
        labelled: whether these have a label. Else the loss is what parts add to it.
        pretrains: the one end among ``ends`` whose ``batch``, ``outputs`` and ``loss`` are heeded; None for all.
        start: model state that it starts from ``[P]``; not written to.
        seed: names from which the round's randomness is derived.
        learning_rate: of this round.
        batches: of how many batches the normalisation statistics of ``start`` are. It only matters where a network
            averages them over all batches (``momentum: null``): a site that does k steps a round has done r k after r
            rounds, and so the received statistics, whoever's they are, stand for as many of its batches. What one
            site trains by itself is thereby the plain average over all rounds, and what many sites train is the mean
            of theirs. Where one site trains after another, it is the number of batches of all; statistics that stay at
            the site are of its own.
        cycled: other options of the optimiser in this round, where the schedule cycles them (momentum or betas).
        optimizer_state: tensors of the optimiser kept from the round before; replaced when kept again.
        anchor: the received state ``[P]``, whose weights rules measure distances from; None for ``start``.
        ends: the parts at the site, each with what it is given in this round.
        class_weights: weight of each class's cases at this site ``[C]``, or None.
        steps: the site's own number of steps; None for the work's.
        seconds: stop after so much time by the clock, but not before one step; None for no limit.
        trained: the coordinates that are trained; None for all weights. An optimiser of its own, which is not kept.
        companion: is trained beside this model, step by step.
    """

    site: str
    dataset: Dataset
    index: Tensor
    start: Tensor
    seed: tuple[str | int, ...]
    learning_rate: float
    labelled: bool = True
    pretrains: SiteEnd | None = None
    batches: int = 0
    cycled: Mapping[str, Any] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    anchor: Tensor | None = None
    ends: Sequence[tuple[SiteEnd, Memory]] = ()
    class_weights: Tensor | None = None
    steps: int | None = None
    seconds: float | None = None
    trained: Selection | None = None
    companion: Companion | None = None


@dataclass(frozen=True)
class LocalResult:
    """What came of a ``LocalJob``: the site's state ``[P]`` in main memory, steps taken and mean training loss."""

    vector: Tensor
    steps: int
    loss: float


def batch_sizes(cases: int, work: Work, own_steps: int | None = None) -> list[int]:
    """Number of cases in each step of a round; ``own_steps`` is the site's own number of steps.

    A last batch of a single case is joined to the one before it, because batch normalisation needs two.

    >>> batch_sizes(7, Work("train", 2, None, 3, ("sgd", {})))
    [3, 4, 3, 4]
    """
    size = min(work.batch_size, cases)
    epoch = [size] * (cases // size) + ([cases % size] if cases % size else [])
    if len(epoch) > 1 and epoch[-1] == 1 < size:
        epoch[-2:] = [size + 1]
    steps = work.steps if own_steps is None else own_steps
    if steps is None:
        return epoch * (work.epochs or 1)
    return (epoch * (steps // len(epoch) + 1))[:steps]


def check_batches(site: str, sizes: Collection[int], module: nn.Module) -> None:
    """Batch normalisation needs two cases in each batch.

    Args:
        site: that trains.
        sizes: of batches.
        module: the network.

    Raises:
        TrainingError: P302, there is a batch of one.
    """
    if 1 in sizes and has_batch_norm(module):
        raise TrainingError(
            "P302", f"At site {site} a training batch has a single case, and batch normalisation needs two.",
            "Use a `training: {batch_size: ...}` above 1, leave the site out, or a model with another `norm`.",
        )  # fmt: skip


def case_order(job: LocalJob, sizes: list[int]) -> Tensor:
    """Positions in ``job.index`` in the order of use ``[sum(sizes)]``: one random permutation after another."""
    source, wanted, cases = generator(*job.seed), sum(sizes), len(job.index)
    epochs = [torch.randperm(cases, generator=source) for _ in range(-(-wanted // cases))]
    return torch.cat(epochs)[:wanted] if len(epochs) != 1 else epochs[0][:wanted]


def augmentation_seed(job: LocalJob, step: int) -> int:
    """Seed of the random transforms of one step."""
    return derive_seed(*job.seed, "augmentation", step)


def clip_gradient(gradient: Tensor, largest: float | None) -> None:
    """Scale ``gradient`` ``[T]`` or each row of ``[S, T]`` in place so that its norm is at most ``largest``."""
    if largest is not None:
        norm = gradient.norm(dim=-1, keepdim=True)
        gradient.mul_((largest / norm.clamp_min(1e-12)).clamp_max(1.0))


def change_gradient(
    end: SiteEnd, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory, site: str = ""
) -> None:  # fmt: skip
    """Let a part change a gradient in place.

    Raises:
        PartError: P304, it gives a gradient instead, which nobody would look at.
    """
    found: object = end.gradient(gradient, weights, start, given)  # type: ignore[func-returns-value]
    if found is not None:
        raise wrong(end.name, "gradient", kind_of(found), "nothing: it changes `gradient` in place", site)


def drawn(end: SiteEnd, seed: int, device: torch.device, site: str) -> Memory:
    """What the loss of a part is given in a step besides what ``begin`` gave, on the network's device.

    Raises:
        PartError: P304, it draws something else.
    """
    if not overrides(end, "drawn"):
        return {}
    return {name: tensor.to(device) for name, tensor in tensors_of(end.name, "drawn", end.drawn(seed), site).items()}


def perturbation(end: SiteEnd, gradient: Tensor, given: Memory, site: str = "") -> Tensor | None:
    """How far from the weights a part wants the gradient of a step ``[T]``, or None.

    Raises:
        PartError: P304, it gives something else.
    """
    found: object = end.perturbation(gradient, given)
    if found is None or (isinstance(found, Tensor) and found.shape == gradient.shape):
        return found
    raise wrong(end.name, "perturbation", kind_of(found), f"a tensor {list(gradient.shape)} or None", site)


def check_finite(result: LocalResult, site: str) -> LocalResult:
    """``result`` if its loss and state are numbers.

    Raises:
        TrainingError: P301 naming the site.
    """
    known = math.isfinite(result.loss)  # then it may have to stay at the site
    if not known or not finite(result.vector):
        what, loss = ("weights", "") if known else ("a loss or weights", f" (loss {result.loss})")
        text = f"Training at site {site} gave {what} that are not finite numbers{loss}."
        raise TrainingError("P301", text, NOT_FINITE)
    return result


def gradient_step(named: Named, rate: float) -> Named:
    """The optimiser of one full-batch step: plain SGD with the weight decay of the study's and without its momentum.

    Raises:
        ValueError: the study's is not SGD, whose rate says nothing about a step along the gradient.
    """
    name, options = named
    if name != "sgd":
        raise ValueError(f"a full-batch gradient step is a step of sgd, not of {name}")
    return name, {"lr": rate, "weight_decay": options.get("weight_decay", 0.0)}


def path_length(
    work: Work, ends: Sequence[SiteEnd], steps: int, learning_rate: float, cycled: Mapping[str, Any] | None = None
) -> float:
    """‖a‖₁: how far, in units of the learning rate, a constant gradient of 1 moves weights in so many steps.

    It is measured on a single weight with the work's own optimiser and the gradient hooks of parts (which may pull
    towards the start), so it holds for momentum, Nesterov's momentum, dampening and proximal terms alike. Weight decay
    counts as part of the loss.

    Source: Wang et al., Tackling the objective inconsistency problem in heterogeneous federated optimization, NeurIPS
    2020, section 4, where it is given in closed form for momentum and for the proximal term.

    Args:
        work: local work.
        steps: optimiser steps.
        learning_rate: of the round.
        cycled: other options of the optimiser in the round.

    Raises:
        ValueError: the optimiser is not SGD, so steps are no linear combination of gradients.
    """
    name, options = with_learning_rate(work.optimizer, learning_rate, cycled)
    if name != "sgd" and work.kind == "train":
        raise ValueError(f"{name} is not a linear combination of gradients")
    if work.kind == "gradient":
        return 1.0
    momentum = tuple((key, options[key]) for key in ("momentum", "dampening", "nesterov") if key in options)
    pulling = tuple(end for end in ends if overrides(end, "gradient") and _pulls(end))
    if pulling and learning_rate:  # with a rate of 0, which a schedule may reach, nothing pulls: the limit is without
        return _simulated_path(momentum, pulling, steps, learning_rate)
    return _simulated_path(momentum, (), steps, 1.0) if momentum else float(steps)


def _pulls(end: SiteEnd) -> bool:
    """Whether what the part adds depends on where the weights are."""
    gradient = torch.zeros(1, dtype=torch.float64)
    end.gradient(gradient, torch.ones_like(gradient), torch.zeros_like(gradient), _Zeros())
    return bool(gradient.any())


@lru_cache(maxsize=64)
def _simulated_path(
    momentum: tuple[tuple[str, Any], ...], ends: tuple[SiteEnd, ...], steps: int, learning_rate: float
) -> float:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    start = torch.zeros(1, dtype=torch.float64)
    nothing = _Zeros()
    optimizer = build_optimizer(("sgd", {**dict(momentum), "lr": learning_rate}), weight)
    for _ in range(steps):
        gradient = torch.ones(1, dtype=torch.float64)
        for end in ends:
            end.gradient(gradient, weight.detach(), start, nothing)
        weight.grad = gradient
        optimizer.step()
    return -float(weight.detach()) / learning_rate


class _Zeros(dict[str, Tensor]):
    """What a part is given where all of it is zero."""

    def __missing__(self, name: str) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)
