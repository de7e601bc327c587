"""The server's ends of all parts of a method, at work on one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polyclinic.parts import Aggregation, Ask, Memory, Now, ServerEnd, Update
from polyclinic.server.mean import Mean


@dataclass(frozen=True)
class Result:
    """What a round made: the next state ``[Q]``, and how much each site counted."""

    state: Tensor
    shares: Mapping[str, float]


class Chain:
    """A chain of ends around one aggregation; without one among them it is the mean.

    Args:
        ends: name -> end, in the order in which steps pass them; updates are opened and taken in the same order.

    Raises:
        ValueError: there are several aggregations.
    """

    def __init__(self, ends: Mapping[str, ServerEnd]) -> None:
        for name, end in ends.items():
            end.name = name
        self.ends = dict(ends)
        found = [end for end in ends.values() if isinstance(end, Aggregation)]
        if len(found) > 1:
            raise ValueError("a server rule has one aggregation")
        self.aggregation = found[0] if found else Mean()
        self.others = [end for end in ends.values() if end is not self.aggregation]

    def meet(
        self, announced: Mapping[str, Mapping[str, Memory]], everyone: Mapping[str, float], ask: Mapping[str, Ask]
    ) -> None:  # fmt: skip
        """Training starts: site -> part -> what it told; and how each part asks the sites."""
        for name, end in self.ends.items():
            end.ask = ask[name]
            end.meet({site: dict(parts.get(name, {})) for site, parts in announced.items()}, everyone)

    def begin(self, now: Now) -> None:
        """Begin a round."""
        self.now, self._updates = now, 0
        for end in (*self.others, self.aggregation):
            end.begin(now)

    def send(self, site: str) -> Memory:
        """What a site is sent besides the state: ``part/name`` -> tensor."""
        return {f"{name}/{key}": t for name, end in self.ends.items() for key, t in end.send(site).items()}

    def take(self, site: str, packed: Memory, weight: float, lag: int = 0) -> None:
        """Take in what left a site; answers come in site order."""
        for end in self.ends.values():
            packed = end.open(packed)
        sent = {name: named(packed, name) for name in self.ends}
        update = Update(site, packed["change"], packed["statistics"], weight, sent, lag)
        for end in self.others:
            update = end.take(update)
        self.aggregation.add(update)
        self._updates += 1

    def finish(self) -> Result | None:
        """The next state; None if there was no update."""
        if not self._updates:
            return None
        step = self.aggregation.done()
        for end in self.others:
            step = end.finish(step)
        before = self.now.weights
        state = torch.empty(len(before) + len(step.statistics), dtype=before.dtype)
        torch.add(before, step.change, out=state[: len(before)])
        state[len(before) :] = step.statistics
        return Result(state, step.shares)

    def memory(self) -> Memory:
        """What all ends keep between rounds, for checkpoints."""
        return {f"{name}/{key}": tensor for name, end in self.ends.items() for key, tensor in end.memory().items()}

    def restore(self, memory: Memory) -> None:
        """Take back what ``memory`` gave."""
        for name, end in self.ends.items():
            end.restore(named(memory, name))


def named(tensors: Mapping[str, Tensor], name: str) -> Memory:
    """Those of ``tensors`` that are called ``name/...``, without that."""
    return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}


def names_of(tensors: Iterable[str]) -> set[str]:
    """The parts to which tensors called ``part/name`` belong."""
    return {key.split("/", 1)[0] for key in tensors if "/" in key}
