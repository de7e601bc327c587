"""Server optimisers: the aggregated change Δ is a pseudo-gradient −Δ.

Only weights are optimised; statistics of normalisation layers are taken as aggregated, for which steps make no sense.

Source: Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2 (FedAdagrad, FedAdam, FedYogi; without
bias correction and with the second moment started at τ²); Hsu et al., Measuring the effects of non-identical data
distribution for federated visual classification, 2019 (FedAvgM). The second moment is of the round's own Δ and not of
its exponential mean m, as Flower reads the paper, too.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from pydantic import PositiveFloat
from torch import Tensor

from polyclinic.options import Decay
from polyclinic.parts import SERVER_PARTS, Memory, ServerPart, Step


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

    Args:
        lr: server learning rate η.
        beta1: β₁.
        beta2: β₂ (not used by FedAdagrad).
        tau: τ, the degree of adaptivity; small means more adaptive.
    """

    def __init__(
        self, *, lr: PositiveFloat = 0.01, beta1: Decay = 0.9, beta2: Decay = 0.99, tau: PositiveFloat = 1e-3
    ) -> None:
        self.lr, self.beta1, self.beta2, self.tau = lr, beta1, beta2, tau
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def step(self, change: Tensor) -> Tensor:
        """η m / (√v + τ)."""
        if self._first is None or self._second is None:
            self._first, self._second = torch.zeros_like(change), torch.full_like(change, self.tau**2)
        self._first.mul_(self.beta1).add_(change, alpha=1 - self.beta1)
        self.second_moment(self._second, change.square())
        return self.lr * self._first / (self._second.sqrt() + self.tau)

    @abstractmethod
    def second_moment(self, second: Tensor, square: Tensor) -> None:
        """Update v in place from Δ²."""

    def memory(self) -> Memory:
        """The moments m and v ``[T]``."""
        return {} if self._first is None or self._second is None else {"first": self._first, "second": self._second}

    def restore(self, memory: Memory) -> None:
        """Take back m and v."""
        self._first, self._second = memory.get("first"), memory.get("second")


@SERVER_PARTS.add("fedadam")
class FedAdam(Adaptive):
    """v ← β₂ v + (1 − β₂) Δ²."""

    def second_moment(self, second: Tensor, square: Tensor) -> None:
        """Exponential mean of Δ²."""
        second.mul_(self.beta2).add_(square, alpha=1 - self.beta2)


@SERVER_PARTS.add("fedyogi")
class FedYogi(Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²)."""

    def second_moment(self, second: Tensor, square: Tensor) -> None:
        """Moves towards Δ² by an amount that does not depend on v."""
        second.addcmul_(square, (second - square).sign(), value=-(1 - self.beta2))


@SERVER_PARTS.add("fedadagrad")
class FedAdagrad(Adaptive):
    """v ← v + Δ²; β₁ = 0 in the paper's experiments."""

    def __init__(self, *, lr: PositiveFloat = 0.01, beta1: Decay = 0.0, tau: PositiveFloat = 1e-3) -> None:
        super().__init__(lr=lr, beta1=beta1, tau=tau)

    def second_moment(self, second: Tensor, square: Tensor) -> None:
        """Sum of Δ²."""
        second.add_(square)
