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

    For each layer, with K sites, changes Δ_k K p_k and the mean h of the steps before: the changes are put in the order
    of their length along h, the first is paired with the last, the second with the last but one, and so on. Where
    ⟨a, b⟩ < 0 in a pair, a ← a − ⟨a, b⟩ b / ‖b‖² and b ← b − ⟨a, b⟩ a / ‖a‖², both with a and b as they were. The sums
    of the pairs (and the one in the middle) are put in order and paired in the same way, until one is left. Of it the
    step is the K-th part, and h ← γ h + (1 − γ) step. In the first round, where there is no h, it is the mean. Without
    conflicts it is FedAvg. Statistics of normalisation layers are averaged.

    A layer is a tensor of two dimensions or more and the vectors that follow it: biases, and what normalises and
    activates. By itself a tensor of one number could not move where two sites' signs differ, however small one is.

    A site whose weights did not change has learned nothing, such as one whose weak labels were of no use in the round.
    It plays no part: else it would shorten the step of the others, and be paired in the place of one of them.

    Source: Zhu, Chen, Yuan, FedDM: federated weakly supervised segmentation via annotation calibration and gradient
    de-conflicting, IEEE TMI 2023 (hierarchical gradient de-conflicting); from the authors' program, as the paper's text
    was not at hand. There p_k is 1/K, layers are named and statistics are treated as weights are.

    Args:
        decay: γ.
    """

    def __init__(self, *, decay: Annotated[float, Field(ge=0, le=1)] = 0.99) -> None:
        self.decay = decay
        self._history = torch.empty(0)

    def combine(self, updates: Sequence[Update]) -> Step:
        """The step."""
        learned = [update for update in updates if update.change.any()] or updates
        shares = declared_shares(learned)
        change = weighted_sum([update.change for update in learned], shares)
        if len(self._history) == len(change):
            factors = (len(learned) * shares).tolist()
            scaled = [update.change * factor for update, factor in zip(learned, factors, strict=True)]
            sizes = layer_sizes(self.now.shapes)
            layers = zip(*(one.split(sizes) for one in (*scaled, self._history)), strict=True)
            change = torch.cat([put_together(own, past) / len(learned) for *own, past in layers])
            self._history = self.decay * self._history + (1 - self.decay) * change
        else:
            self._history = change.clone()
        statistics = weighted_sum([update.statistics for update in learned], shares)
        counted = dict(zip((update.site for update in learned), shares.tolist(), strict=True))
        return Step(change, statistics, {update.site: counted.get(update.site, 0.0) for update in updates})

    def memory(self) -> Memory:
        """The mean of the steps before."""
        return {"history": self._history} if len(self._history) else {}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._history = memory.get("history", torch.empty(0))


def layer_sizes(shapes: Sequence[Sequence[int]]) -> list[int]:
    """How many weights each layer has: a tensor of two dimensions or more with the vectors that follow it.

    >>> layer_sizes([(4, 1, 3, 3), (4,), (1,), (2, 4), (2,)])
    [41, 10]
    """
    sizes = list[int]()
    for shape in shapes:
        if len(shape) > 1 or not sizes:
            sizes.append(0)
        sizes[-1] += torch.Size(shape).numel()
    return sizes


def put_together(changes: Sequence[Tensor], past: Tensor) -> Tensor:
    """The sum of changes ``[N]`` of a layer, without what two of a pair undo of each other.

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
    # Of changes of very different lengths these factors are beyond what float32 can hold.
    return (one.double() * (1 - both / first) + other.double() * (1 - both / second)).to(one.dtype)
