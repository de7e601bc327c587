"""The server's parts of methods against client drift."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveFloat
from torch import Tensor

from polyclinic.server.rules import SERVER_RULES, Change, ServerRound, Update


@SERVER_RULES.add("feddyn")
class FedDyn(Change):
    """h ← h − α Σ p_k Δ_k over the sites that took part; w ← w̄ − h / α, with w̄ what the aggregation gave.

    The sites' part is the local rule ``dynamic_regularisation`` with the same α.

    Source: Acar et al., Federated learning based on dynamic regularization, ICLR 2021, algorithm 1, where all sites
    weigh the same (`training: {weights: uniform}`).

    Args:
        alpha: α.
    """

    def __init__(self, *, alpha: PositiveFloat = 0.01) -> None:
        self.alpha = alpha
        self._gradient: Tensor | None = None

    def begin(self, now: ServerRound) -> None:
        """Begin a round."""
        super().begin(now)
        self._weight = 0.0

    def update(self, update: Update) -> Update:
        """Count who took part."""
        self._weight += update.weight
        return update

    def result(self, state: Tensor) -> Tensor:
        """w̄ − h / α; statistics stay as aggregated."""
        trainable = self.now.trainable
        weights = state[:trainable]
        share = self._weight / (sum(self.now.everyone.values()) or self.now.total_weight)
        if self._gradient is None:
            self._gradient = torch.zeros_like(weights)
        self._gradient = self._gradient.sub(weights - self.now.state[:trainable], alpha=self.alpha * share)
        weights.sub_(self._gradient, alpha=1.0 / self.alpha)
        return state

    def memory(self) -> dict[str, Tensor]:
        """h ``[T]``."""
        return {} if self._gradient is None else {"gradient": self._gradient}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back h."""
        self._gradient = memory.get("gradient")


@SERVER_RULES.add("normalised")
class Normalised(Change):
    """FedNova: updates are divided by the length ‖a_k‖₁ of their path before they are aggregated, and what comes out is
    multiplied by Σ p_k ‖a_k‖₁. So sites that take more steps do not count for more than their cases.

    ‖a_k‖₁ is measured by the site, see `polyclinic.client.work.path_length`: the number of steps for SGD, longer with
    momentum, shorter with a proximal term.

    Source: Wang et al., Tackling the objective inconsistency problem in heterogeneous federated optimization, NeurIPS
    2020, equation 6 and section 4. Statistics of normalisation layers are aggregated as they are.
    """

    facts = ("path",)
    undoes = True

    def begin(self, now: ServerRound) -> None:
        """Begin a round."""
        super().begin(now)
        self._paths: list[tuple[float, float]] = []

    def update(self, update: Update) -> Update:
        """w + Δ_k / ‖a_k‖₁."""
        trainable, path = self.now.trainable, update.facts["path"]
        self._paths.append((update.weight, path))
        before = self.now.state[:trainable]
        state = update.state.clone()
        state[:trainable] = before + (update.state[:trainable] - before) / path
        return replace(update, state=state)

    def result(self, state: Tensor) -> Tensor:
        """w + Σ p_k ‖a_k‖₁ times the aggregated change."""
        total = sum(weight for weight, _ in self._paths)
        if not total:
            return state
        length = sum(weight * path for weight, path in self._paths) / total
        before = self.now.state[: self.now.trainable]
        weights = state[: self.now.trainable]
        weights.copy_(before + (weights - before) * length)
        return state
