"""Changes of sites that contradict each other: FedDM's gradient de-conflicting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.parts import SERVER_PARTS, Memory, Step, Update
from polyclinic.server.rules import Collected, declared_shares, weighted_sum


@SERVER_PARTS.add("deconflicted")
class Deconflicted(Collected):
    """What two sites' changes undo of each other is taken out, and sites are put together pair by pair.

    For each tensor of weights, with K sites, changes Δ_k K p_k and the mean h of the steps before: the changes are put
    in the order of their length along h, the first is paired with the last, the second with the last but one, and so
    on. Where ⟨a, b⟩ < 0 in a pair, a ← a − ⟨a, b⟩ b / ‖b‖² and b ← b − ⟨a, b⟩ a / ‖a‖², both with a and b as they were.
    The sums of the pairs (and the one in the middle) are put in order and paired in the same way, until one is left. Of
    it the step is the K-th part, and h ← γ h + (1 − γ) step. In the first round, where there is no h, it is the mean.
    Without conflicts it is FedAvg. Statistics of normalisation layers are averaged.

    Source: Zhu, Chen, Yuan, FedDM: federated weakly supervised segmentation via annotation calibration and gradient
    de-conflicting, IEEE TMI 2023 (hierarchical gradient de-conflicting); from the authors' program, as the paper's text
    was not at hand. There p_k is 1/K, weights and bias of a layer are one vector, statistics are treated likewise, and
    the method also calibrates boxes at the sites.

    Args:
        decay: γ.
    """

    def __init__(self, *, decay: Annotated[float, Field(ge=0, le=1)] = 0.99) -> None:
        self.decay = decay
        self._history = torch.empty(0)

    def combine(self, updates: Sequence[Update]) -> Step:
        """The step."""
        shares = declared_shares(updates)
        sizes = [torch.Size(shape).numel() for shape in self.now.shapes]
        change = weighted_sum([update.change for update in updates], shares)
        if len(self._history) == len(change):
            factors = (len(updates) * shares).tolist()
            scaled = [update.change * factor for update, factor in zip(updates, factors, strict=True)]
            layers = zip(*(one.split(sizes) for one in (*scaled, self._history)), strict=True)
            change = torch.cat([put_together(own, past) / len(updates) for *own, past in layers])
            self._history = self.decay * self._history + (1 - self.decay) * change
        else:
            self._history = change.clone()
        statistics = weighted_sum([update.statistics for update in updates], shares)
        return Step(change, statistics, dict(zip((one.site for one in updates), shares.tolist(), strict=True)))

    def memory(self) -> Memory:
        """The mean of the steps before."""
        return {"history": self._history} if len(self._history) else {}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._history = memory.get("history", torch.empty(0))


def put_together(changes: Sequence[Tensor], past: Tensor) -> Tensor:
    """The sum of changes ``[N]`` of a tensor, without what two of a pair undo of each other.

    Args:
        changes: of the sites.
        past: by whose direction ``[N]`` they are paired.
    """
    while len(changes) > 1:
        along = torch.stack([change.double() @ past.double() for change in changes])
        ordered = [changes[place] for place in along.argsort(descending=True, stable=True).tolist()]
        pairs = zip(ordered[: len(ordered) // 2], reversed(ordered), strict=False)
        middle = ordered[len(ordered) // 2 : len(ordered) // 2 + len(ordered) % 2]
        changes = [*(_reconciled(one, other) for one, other in pairs), *middle]
    return changes[0]


def _reconciled(one: Tensor, other: Tensor) -> Tensor:
    both = float(one.double() @ other.double())
    if both >= 0:
        return one + other
    first, second = (float(change.double().square().sum()) for change in (one, other))
    return one * (1 - both / first) + other * (1 - both / second)
