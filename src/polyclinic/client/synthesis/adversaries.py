"""What a generator and a discriminator do to each other in a step, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from polyclinic.client.optimizers import restore_state, state_of
from polyclinic.parts import Memory
from polyclinic.state import FlatModule

#: Adam's, with a first mean that forgets sooner: with the usual 0.9 the two networks swing (Radford et al., ICLR 2016).
BETAS = (0.5, 0.999)
#: Under which name a network's own state is kept; what else is kept is Adam's.
_NETWORK = "network"


class Learning:
    """A network that Adam trains, with what is kept of both.

    Args:
        module: as it was drawn.
        lr: of Adam.
        device: where it is.
        memory: what `memory` gave where a training goes on; else empty.
    """

    def __init__(self, module: nn.Module, lr: float, device: torch.device, memory: Memory) -> None:
        self.network = FlatModule(module, device=device)
        self._optimizer = torch.optim.Adam([self.network.weights], lr=lr, betas=BETAS)
        kept = dict(memory)
        if _NETWORK in kept:
            self.network.load(kept.pop(_NETWORK))
        restore_state(self._optimizer, [self.network.weights], kept)

    def descend(self, made: Tensor, gradient: Tensor | None = None) -> None:
        """A step of Adam down the gradient of ``made``: of a scalar, or of what has the given gradient."""
        self.network.gradient.zero_()
        made.backward(gradient)
        self._optimizer.step()

    def moments(self) -> Memory:
        """What Adam keeps between steps."""
        adam = state_of(self._optimizer, [self.network.weights])
        return {name: tensor.cpu().clone() for name, tensor in adam.items()}

    def memory(self) -> Memory:
        """For a checkpoint: the network's state and Adam's."""
        return {_NETWORK: self.network.vector.to("cpu", copy=True), **self.moments()}


def judged(judge: Learning, real: Tensor, targets: Tensor, made: Tensor, wanted: Tensor) -> Tensor:
    """A step of a discriminator D to tell real inputs from made ones; its loss before, a scalar.

    The loss is −mean log D(x | y) − mean log(1 − D(x̂ | y)).

    Args:
        judge: the discriminator.
        real, targets: inputs ``[B, ...]`` and their classes ``[B]``, or masks ``[B, 1, H, W]``.
        made, wanted: likewise ``[M, ...]``.
    """
    loss = _cross_entropy(judge.network.module(real, targets), real=True)
    loss = loss + _cross_entropy(judge.network.module(made.detach(), wanted), real=False)
    judge.descend(loss)
    return loss.detach()


def doubted(judge: Learning, made: Tensor, wanted: Tensor) -> Tensor:
    """−mean log D(x̂ | y), a scalar: how little made inputs are taken for real, with gradient for them."""
    return _cross_entropy(judge.network.module(made, wanted), real=True)


def drawn(source: torch.Generator, count: int, numbers: int, shares: Tensor) -> tuple[Tensor, Tensor]:
    """What ``count`` inputs are made of: random numbers ``[count, numbers]``, and places ``[count]`` as frequent as
    ``shares`` ``[K]``."""
    places = torch.multinomial(shares, count, replacement=True, generator=source)
    return torch.randn(count, numbers, generator=source), places


def grouped(memory: Mapping[str, Tensor], group: str) -> Memory:
    """Those of ``group/name``, by name."""
    return {key.removeprefix(f"{group}/"): one for key, one in memory.items() if key.startswith(f"{group}/")}


def in_group(group: str, memory: Mapping[str, Tensor]) -> Memory:
    """The reverse."""
    return {f"{group}/{name}": tensor for name, tensor in memory.items()}


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    return nnf.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
