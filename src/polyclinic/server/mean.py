"""The weighted mean."""

from __future__ import annotations

from torch import Tensor

from polyclinic.server.rules import SERVER_RULES, Aggregation, ServerRound, Update


@SERVER_RULES.add("mean")
class Mean(Aggregation):
    """FedAvg: w ← Σ p_k w_k with p_k the site's share of the weights.

    A running sum: memory does not grow with the number of sites. With one site the result is that site's state exactly.

    Source: McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017.
    """

    def begin(self, now: ServerRound) -> None:
        """Begin with a sum of zero."""
        super().begin(now)
        self._sum: Tensor | None = None
        self._weights: dict[str, float] = {}

    def add(self, update: Update) -> None:
        """Add ``weight / total_weight`` of the update."""
        share = update.weight / self.now.total_weight
        if self._sum is None:
            self._sum = update.state * share
        else:
            self._sum.add_(update.state, alpha=share)
        self._weights[update.site] = update.weight

    def finish(self) -> Tensor:
        """The mean over the sites that answered."""
        added = sum(self._weights.values())
        self.shares = {site: weight / added for site, weight in self._weights.items()}
        if self._sum is None:
            return self.now.state.clone()
        if added != self.now.total_weight:  # a site did not answer
            self._sum.mul_(self.now.total_weight / added)
        result, self._sum = self._sum, None
        return result
