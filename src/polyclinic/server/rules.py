"""What the parts of a server rule are built on: aggregations that need all updates at once, and weighted means.

All vectors are the shared coordinates of the model: ``[T]`` weights and ``[S]`` statistics of normalisation layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from polyclinic.parts import Aggregation, Now, ServerPart, Step, Update
from polyclinic.server.order import blocks

#: Coordinates at a time: the sum of a block stays in the cache while all vectors are added to it.
BLOCK = 2**18

#: Between these float32 has all its digits.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-37, 1e38


class Collected(ServerPart, Aggregation):
    """An aggregation that needs all updates at once; memory grows with the number of sites."""

    needs_each = True

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep the update for ``combine``."""
        self._updates.append(update)

    def done(self) -> Step:
        """What ``combine`` makes of all updates."""
        updates, self._updates = self._updates, []
        return self.combine(updates)

    @abstractmethod
    def combine(self, updates: Sequence[Update]) -> Step:
        """The step from all updates."""


class Weighting(Collected):
    """A weighted mean whose weights are found from all updates."""

    def combine(self, updates: Sequence[Update]) -> Step:
        """Σ a_k Δ_k, and the same of statistics, with the weights a_k brought to a sum of 1."""
        weights = self.weights(updates).double()
        weights = weights / weights.sum()
        shares = {update.site: float(weight) for update, weight in zip(updates, weights, strict=True)}
        change = weighted_sum([update.change for update in updates], weights)
        return Step(change, self.statistics(updates, weights), shares)

    def statistics(self, updates: Sequence[Update], weights: Tensor) -> Tensor:
        """What the statistics of all updates give ``[S]``: their mean with the same weights ``[K]``."""
        return weighted_sum([update.statistics for update in updates], weights)

    @abstractmethod
    def weights(self, updates: Sequence[Update]) -> Tensor:
        """Non-negative weights ``[K]`` of the updates, not all zero."""


def declared_shares(updates: Sequence[Update]) -> Tensor:
    """p_k: the declared weights as shares of their sum, float64 ``[K]``."""
    weights = torch.tensor([update.weight for update in updates], dtype=torch.float64)
    return weights / weights.sum()


def equal_shares(updates: Sequence[Update]) -> dict[str, float]:
    """1 / K for each site."""
    return {update.site: 1.0 / len(updates) for update in updates}


def weighted_sum(vectors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ a_k v_k, reading each vector once; vectors with weight 0 are not read, so that they may hold anything.

    Weights beyond what float32 can hold are applied in float64, so that the product is right where it can be held.
    """
    total = torch.zeros_like(vectors[0])
    used = [(vector, weight) for vector, weight in zip(vectors, weights.tolist(), strict=True) if weight]
    for block in blocks(len(total), BLOCK):
        part = total[block]
        for vector, weight in used:
            if SMALLEST_WEIGHT < abs(weight) < LARGEST_WEIGHT:
                part.add_(vector[block], alpha=weight)
            else:
                part.add_(vector[block].double().mul_(weight))
    return total
