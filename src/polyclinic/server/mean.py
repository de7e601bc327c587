"""The weighted mean."""

from __future__ import annotations

from torch import Tensor

from polyclinic.parts import SERVER_PARTS, Aggregation, Now, ServerPart, Step, Update


@SERVER_PARTS.add("mean")
class Mean(ServerPart, Aggregation):
    """FedAvg: w ← w + Σ p_k Δ_k with p_k the site's share of the weights.

    A running sum: memory does not grow with the number of sites.

    Source: McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017.
    """

    needs_each = False

    def begin(self, now: Now) -> None:
        """Begin with a sum of nothing."""
        super().begin(now)
        self._change: Tensor | None = None
        self._only: Update | None = None
        self._weights: dict[str, float] = {}

    def add(self, update: Update) -> None:
        """Add ``weight / total_weight`` of the update."""
        share = update.weight / self.now.total_weight
        self._only = None if self._weights else update  # which needs no arithmetic
        if self._change is None:
            self._change, self._statistics = update.change * share, update.statistics * share
        else:
            self._change.add_(update.change, alpha=share)
            self._statistics.add_(update.statistics, alpha=share)
        self._weights[update.site] = self._weights.get(update.site, 0.0) + update.weight

    def done(self) -> Step:
        """The mean over the sites that answered."""
        if self._change is None:
            raise ValueError("a mean of no updates")
        if self._only is not None:
            only, self._change = self._only, None
            return Step(only.change.clone(), only.statistics.clone(), {only.site: 1.0})
        added = sum(self._weights.values())
        if added != self.now.total_weight:  # a site did not answer
            self._change.mul_(self.now.total_weight / added)
            self._statistics.mul_(self.now.total_weight / added)
        step = Step(self._change, self._statistics, {site: w / added for site, w in self._weights.items()})
        self._change = None
        return step
