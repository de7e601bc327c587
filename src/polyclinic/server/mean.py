"""The weighted mean."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from polyclinic.server.rules import SERVER_RULES, ServerRule


@SERVER_RULES.add("mean")
class Mean(ServerRule):
    """FedAvg: w ← Σ p_k w_k with p_k the site's share of the weights.

    A running sum: memory does not grow with the number of sites. With one site the result is that site's state exactly.

    Source: McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017.
    """

    def start(self, state: Tensor, trainable: int, total_weight: float) -> None:
        """Begin with a sum of zero."""
        self._sum: Tensor | None = None
        self._like, self._total, self._added = state, total_weight, 0.0

    def add(self, update: Tensor, weight: float) -> None:
        """Add ``weight / total_weight`` of the update."""
        share = weight / self._total
        if self._sum is None:
            self._sum = update * share
        else:
            self._sum.add_(update, alpha=share)
        self._added += weight

    def finish(self) -> Tensor:
        """The mean over the sites that answered."""
        if self._sum is None:
            return self._like.clone()
        if self._added != self._total:  # a site did not answer
            self._sum.mul_(self._total / self._added)
        result, self._sum = self._sum, None
        return result


class MeanThen(Mean):
    """A mean whose change Δ = mean − w is then treated as the negative of a gradient by a server optimiser.

    Only weights are optimised; statistics of normalisation layers are plain means, for which steps make no sense.
    """

    def start(self, state: Tensor, trainable: int, total_weight: float) -> None:
        """Remember the state that the change is measured from."""
        super().start(state, trainable, total_weight)
        self._state, self._trainable = state, trainable

    def finish(self) -> Tensor:
        """The state after the server's step."""
        mean = super().finish()
        before, weights = self._state[: self._trainable], mean[: self._trainable]
        weights.copy_(before + self.step(weights - before))
        return mean

    @abstractmethod
    def step(self, change: Tensor) -> Tensor:
        """What to add to the weights for the sites' mean change Δ ``[T]``."""
