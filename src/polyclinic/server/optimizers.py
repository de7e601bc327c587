"""Server optimisers: the aggregated change Δ is a pseudo-gradient −Δ.

Only weights are optimised; statistics of normalisation layers are taken as aggregated, for which steps make no sense.

Source: Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2 (FedAdagrad, FedAdam, FedYogi; without
bias correction and with the second moment started at τ²); Hsu et al., Measuring the effects of non-identical data
distribution for federated visual classification, 2019 (FedAvgM). The second moment is of the round's own Δ and not of
its exponential mean m, as Flower reads the paper, too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from polyclinic.options import Decay
from polyclinic.parts import SERVER_PARTS, Memory, ServerPart, Step

#: τ; one that float32 has not would leave weights that do not change without a number.
Adaptivity = Annotated[float, Field(ge=1e-30)]


class ServerOptimizer(ServerPart):
    """Takes the aggregated change as the negative of a gradient."""

    def finish(self, step: Step) -> Step:
        """The server's step."""
        return replace(step, change=self.step(step.change))

    @abstractmethod
    def step(self, change: Tensor) -> Tensor:
        """What to add to the weights for the sites' aggregated change Δ ``[T]``, which is not kept."""


@SERVER_PARTS.add("fedavgm")
class FedAvgM(ServerOptimizer):
    """v ← β v + Δ; w ← w + η v. With β = 0 and η = 1 it is FedAvg.

    Args:
        lr: server learning rate η.
        momentum: β.
    """

    def __init__(self, *, lr: PositiveFloat = 1.0, momentum: Decay = 0.9) -> None:
        self.lr, self.momentum = lr, momentum
        self._velocity: Tensor | None = None

    def step(self, change: Tensor) -> Tensor:
        """η v."""
        self._velocity = change.clone() if self._velocity is None else self._velocity.mul_(self.momentum).add_(change)
        return self.lr * self._velocity

    def memory(self) -> Memory:
        """The velocity v ``[T]``."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def restore(self, memory: Memory) -> None:
        """Take back v."""
        self._velocity = memory.get("velocity")


class Adaptive(ServerOptimizer):
    """m ← β₁ m + (1 − β₁) Δ; v ← a rule of the subclass; w ← w + η m / (√v + τ).

    What is kept of v is √v, since float32 does not hold the square of a change of 10²⁰.

    Args:
        lr: server learning rate η.
        beta1: β₁.
        beta2: β₂ (not used by FedAdagrad).
        tau: τ, the degree of adaptivity; small means more adaptive.
    """

    def __init__(
        self, *, lr: PositiveFloat = 0.01, beta1: Decay = 0.9, beta2: Decay = 0.99, tau: Adaptivity = 1e-3
    ) -> None:
        self.lr, self.beta1, self.beta2, self.tau = lr, beta1, beta2, tau
        self._first: Tensor | None = None
        self._root: Tensor | None = None

    def step(self, change: Tensor) -> Tensor:
        """η m / (√v + τ)."""
        if self._first is None or self._root is None:
            self._first, self._root = torch.zeros_like(change), torch.full_like(change, self.tau)
        self._first.mul_(self.beta1).add_(change, alpha=1 - self.beta1)
        self._root = self.root(self._root, change)
        return self.lr * self._first / (self._root + self.tau)

    @abstractmethod
    def root(self, root: Tensor, change: Tensor) -> Tensor:
        """√v from the one before and Δ."""

    def memory(self) -> Memory:
        """m and √v ``[T]``."""
        return {} if self._first is None or self._root is None else {"first": self._first, "root": self._root}

    def restore(self, memory: Memory) -> None:
        """Take back m and √v."""
        self._first, self._root = memory.get("first"), memory.get("root")


@SERVER_PARTS.add("fedadam")
class FedAdam(Adaptive):
    """v ← β₂ v + (1 − β₂) Δ²."""

    def root(self, root: Tensor, change: Tensor) -> Tensor:
        """Root of the exponential mean of Δ²."""
        return torch.hypot(math.sqrt(self.beta2) * root, math.sqrt(1 - self.beta2) * change)


@SERVER_PARTS.add("fedyogi")
class FedYogi(Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²)."""

    def root(self, root: Tensor, change: Tensor) -> Tensor:
        """v moves towards Δ² by an amount that does not depend on v."""
        length = change.abs()
        moves = math.sqrt(1 - self.beta2) * length
        # Where v falls, v - (1 - β₂) Δ² is a product; elsewhere what the square roots give is not used.
        fallen = (root - moves).clamp_min(0).sqrt() * (root + moves).sqrt()
        return torch.where(root == length, root, torch.where(root > length, fallen, torch.hypot(root, moves)))


@SERVER_PARTS.add("fedadagrad")
class FedAdagrad(Adaptive):
    """v ← v + Δ²; β₁ = 0 in the paper's experiments."""

    def __init__(self, *, lr: PositiveFloat = 0.01, beta1: Decay = 0.0, tau: Adaptivity = 1e-3) -> None:
        super().__init__(lr=lr, beta1=beta1, tau=tau)

    def root(self, root: Tensor, change: Tensor) -> Tensor:
        """Root of the sum of Δ²."""
        return torch.hypot(root, change)
