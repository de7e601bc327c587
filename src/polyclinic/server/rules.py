"""What the parts of a server rule are: one aggregation, and changes before and after it.

A round at the server is a chain: every update passes the chain's changes, an aggregation puts the updates together, and
what comes out passes the changes again. ``[norm_bound, trimmed_mean, fedadam]`` clips each update, takes the trimmed
mean, and gives that to Adam. All vectors are ``[Q]``, the shared coordinates of the model's state, trainable ones
first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.options import Catalogue


@dataclass(frozen=True)
class ServerRound:
    """What is known when a round begins.

    Attributes:
        number: rounds done before.
        state: the global state that the sites were sent ``[Q]``; not written to.
        trainable: the first so many coordinates are weights, the rest statistics.
        total_weight: expected sum of the weights of the updates.
        everyone: weight of each site of the federation, whether or not it takes part in this round.
    """

    number: int
    state: Tensor
    trainable: int
    total_weight: float
    everyone: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What one site ended a round with.

    Attributes:
        site: its name.
        state: the state that it ended with ``[Q]``; not written to.
        weight: declared weight of the site (usually its number of training cases).
        facts: numbers that the site added because a part asked for them, see `polyclinic.site.facts`.
    """

    site: str
    state: Tensor
    weight: float
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """All that one site sent at the end of its work.

    Attributes:
        update: for the server rule.
        extras: for the counterparts of local rules: ``rule/name`` -> tensor; not written to.
        turn: how often the site had its turn in this round before.
    """

    update: Update
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    turn: int = 0


class ServerPart(ABC):  # noqa: B024 - its kinds are below
    """A part of a server rule.

    Attributes:
        facts: names of the numbers that it needs from every site, see `polyclinic.site.facts`.
        sends: what it sends to sites besides the state: name -> what that could reveal to them.
        undoes: whether its ``result`` undoes what its ``update`` did, so that it must come before others that change
            the result.
        named: sites that its options name.
        least: with fewer answers it can't work.
    """

    facts: ClassVar[tuple[str, ...]] = ()
    sends: ClassVar[Mapping[str, str]] = {}
    undoes: ClassVar[bool] = False
    named: Sequence[str] = ()
    least: int = 1

    def begin(self, now: ServerRound) -> None:
        """Begin a round."""
        self.now = now

    def send(self, site: str) -> dict[str, Tensor]:
        """What to send to a site with the state of the round that begins next; names are keys of ``sends``."""
        return {}

    def memory(self) -> dict[str, Tensor]:
        """What the part keeps between rounds, for checkpoints."""
        return {}

    def restore(self, memory: dict[str, Tensor]) -> None:  # noqa: B027 - most parts keep nothing
        """Take back what ``memory`` gave."""


class Change(ServerPart):
    """Changes updates before they are aggregated, or what the aggregation gave."""

    def update(self, update: Update) -> Update:
        """The update as it goes on; ``update`` itself is not written to."""
        return update

    def result(self, state: Tensor) -> Tensor:
        """The next state from the aggregated one ``[Q]``, which may be written to."""
        return state


class Aggregation(ServerPart):
    """Turns the states that the sites end a round with into one state.

    Attributes:
        shares: after ``finish``, how much each site counted in the round: 1 / K for each where all count the same.
    """

    shares: dict[str, float]

    @abstractmethod
    def add(self, update: Update) -> None:
        """Take in one site's update; they come in site order."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The aggregated state ``[Q]``, a vector of its own; without updates it is a copy of the round's state."""


class Collected(Aggregation):
    """An aggregation that needs all updates at once; memory grows with the number of sites."""

    def begin(self, now: ServerRound) -> None:
        """Begin a round."""
        super().begin(now)
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep the update for ``combine``."""
        self._updates.append(update)

    def finish(self) -> Tensor:
        """What ``combine`` makes of all updates."""
        updates, self._updates = self._updates, []
        self.shares = {update.site: 1.0 / len(updates) for update in updates}
        return self.combine(updates) if updates else self.now.state.clone()

    @abstractmethod
    def combine(self, updates: Sequence[Update]) -> Tensor:
        """The aggregated state ``[Q]``, a vector of its own; sets ``shares`` where sites count differently."""


class Weighting(Collected):
    """A weighted mean whose weights are found from all updates."""

    def combine(self, updates: Sequence[Update]) -> Tensor:
        """Σ a_k w_k with the weights a_k brought to a sum of 1."""
        weights = self.weights(updates).double()
        weights = weights / weights.sum()
        self.shares = {update.site: float(weight) for update, weight in zip(updates, weights, strict=True)}
        return weighted_sum([update.state for update in updates], weights)

    @abstractmethod
    def weights(self, updates: Sequence[Update]) -> Tensor:
        """Non-negative weights ``[K]`` of the updates, not all zero."""


def declared_shares(updates: Sequence[Update]) -> Tensor:
    """p_k: the declared weights as shares of their sum, float64 ``[K]``."""
    weights = torch.tensor([update.weight for update in updates], dtype=torch.float64)
    return weights / weights.sum()


def weighted_sum(states: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ a_k w_k ``[Q]`` as a running sum; states with weight 0 are not read, so that they may hold anything."""
    total = torch.zeros_like(states[0])
    for state, weight in zip(states, weights.tolist(), strict=True):
        if weight:
            total.add_(state, alpha=weight)
    return total


class ServerRule:
    """A chain of changes around one aggregation.

    Args:
        aggregation: puts the updates together.
        changes: applied in this order, to updates and to what comes out.
    """

    def __init__(self, aggregation: Aggregation, changes: Sequence[Change] = ()) -> None:
        self.aggregation, self.changes = aggregation, tuple(changes)

    @property
    def parts(self) -> tuple[ServerPart, ...]:
        """All parts."""
        return (*self.changes, self.aggregation)

    @property
    def facts(self) -> list[str]:
        """Names of the numbers that sites must add to their updates."""
        return list(dict.fromkeys(fact for part in self.parts for fact in part.facts))

    @property
    def sends(self) -> dict[str, str]:
        """Name of what the rule sends besides the state -> what it could reveal."""
        return {name: reveals for part in self.parts for name, reveals in part.sends.items()}

    def begin(self, now: ServerRound) -> None:
        """Begin a round."""
        for part in self.parts:
            part.begin(now)

    def add(self, update: Update) -> None:
        """Take in one site's update; they come in site order."""
        for change in self.changes:
            update = change.update(update)
        self.aggregation.add(update)

    def finish(self) -> Tensor:
        """The next global state ``[Q]``, a vector of its own."""
        state = self.aggregation.finish()
        for change in self.changes:
            state = change.result(state)
        return state

    @property
    def shares(self) -> dict[str, float]:
        """How much each site counted in the round that was finished last."""
        return self.aggregation.shares

    def send(self, site: str) -> dict[str, Tensor]:
        """What a site is sent besides the state."""
        return {name: tensor for part in self.parts for name, tensor in part.send(site).items()}

    def memory(self) -> dict[str, Tensor]:
        """What the parts keep between rounds, for checkpoints."""
        return {
            f"{number}/{name}": tensor
            for number, part in enumerate(self.parts)
            for name, tensor in part.memory().items()
        }

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back what ``memory`` gave."""
        for number, part in enumerate(self.parts):
            prefix = f"{number}/"
            part.restore({n.removeprefix(prefix): tensor for n, tensor in memory.items() if n.startswith(prefix)})


#: Parts of a server rule by the name used under ``server:`` in a study file.
SERVER_RULES: Catalogue[type[ServerPart]] = Catalogue("server rule")


def is_aggregation(name: str) -> bool:
    """Whether the part puts updates together; otherwise it changes them before or after."""
    return issubclass(SERVER_RULES[name], Aggregation)


def build_server(parts: Sequence[tuple[str, dict[str, object]]]) -> ServerRule:
    """The chain of named parts; without an aggregation among them it is the mean.

    Raises:
        ValueError: there are several aggregations.
    """
    built = [SERVER_RULES[name](**options) for name, options in parts]
    aggregations = [part for part in built if isinstance(part, Aggregation)]
    if len(aggregations) > 1:
        raise ValueError("a server rule has one aggregation")
    if not aggregations:
        mean = SERVER_RULES["mean"]()
        aggregations = [mean] if isinstance(mean, Aggregation) else []
    return ServerRule(aggregations[0], [part for part in built if isinstance(part, Change)])
