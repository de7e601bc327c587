"""Rounds at the server without sites: what they would have sent is written down."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyclinic.parts import Memory, Now, ServerEnd, Step, build_part
from polyclinic.server.chain import Chain


class Sent(NamedTuple):
    """What a site sent: weights and statistics ``[Q]``, its declared weight, and numbers that parts asked for."""

    site: str
    numbers: Tensor
    weight: float
    facts: Mapping[str, float]


class Last(ServerEnd):
    """Sees the step that comes out of a chain."""

    def finish(self, step: Step) -> Step:
        self.step = step
        return step


class Rule:
    """A chain of parts of the catalogue, and what its last round gave."""

    def __init__(self, *named: tuple[str, Mapping[str, Any]]) -> None:
        self.parts = {name: build_part(name, dict(options)) for name, options in named}
        self.last = Last()
        self.chain = Chain({name: part.at_server() for name, part in self.parts.items()} | {"last": self.last})
        self.shares: dict[str, float] = {}

    @property
    def part(self) -> Any:
        """Its only part's end at the server."""
        (name,) = self.parts
        return self.chain.ends[name]

    def begin(self, start: Tensor, statistics: Tensor, weights: Mapping[str, float], **now: Any) -> None:
        """Begin a round in which sites of these ``weights`` are asked."""
        known = {"number": 0, "rounds": 100, "learning_rate": 0.1, "everyone": dict(weights), **now}
        self.chain.begin(Now(weights=start, statistics=statistics, total_weight=sum(weights.values()), **known))

    def take(self, site: str, change: Tensor, statistics: Tensor, weight: float, facts: Mapping[str, float]) -> None:
        """Take in an update; each part gets those numbers that it asks for."""
        packed = {"change": change, "statistics": statistics}
        for name, part in self.parts.items():
            found = {key: value for key, value in facts.items() if key in part.reveals}
            packed |= {f"{name}/{key}": torch.tensor(value, dtype=torch.float64) for key, value in found.items()}
        self.chain.take(site, packed, weight)

    def finish(self) -> Tensor | None:
        """The next state ``[Q]``; None if there was no update."""
        result = self.chain.finish()
        self.shares = {} if result is None else dict(result.shares)
        return None if result is None else result.state

    def send(self, site: str) -> Memory:
        return {key.split("/", 1)[1]: tensor for key, tensor in self.chain.send(site).items()}

    def memory(self) -> Memory:
        return self.chain.memory()

    def restore(self, memory: Memory) -> None:
        self.chain.restore(memory)


def rule(name: str, **options: Any) -> Rule:
    """A chain of one part."""
    return Rule((name, options))


def update(site: str, numbers: Sequence[float], weight: float = 1.0, **facts: float) -> Sent:
    """What a site sent."""
    return Sent(site, torch.tensor(numbers, dtype=torch.float32), weight, facts)


def away_from_zero(length: int) -> Tensor:
    """Where rounds begin unless a test says otherwise: beside these, small changes would be lost in float32."""
    return torch.linspace(-300.0, 500.0, length + 2)[1 : length + 1] if length else torch.zeros(0)


def play(
    rule: Rule, updates: Sequence[Sent], state: Sequence[float] | Tensor | None = None, *, trainable: int | None = None,
    everyone: Mapping[str, float] | None = None, **now: Any,
) -> Tensor:  # fmt: skip
    """One round of which all that sent something were asked; without ``everyone`` they are all the sites there are.

    Args:
        rule: plays.
        updates: in site order.
        state: where the round begins ``[Q]``; updates and the result are then states. Without it the round begins away
            from zero, and the weights of updates and of the result are changes.
        trainable: so many of the numbers are weights, the rest statistics.
        everyone: weight of each site of the federation.
        now: what else is known of the round.
    """
    count = len(updates[0].numbers) if trainable is None else trainable
    given_state = state if state is not None else away_from_zero(len(updates[0].numbers))
    start, statistics = torch.as_tensor(given_state, dtype=torch.float32).split([count, len(given_state) - count])
    weights = {update.site: update.weight for update in updates}
    rule.begin(start, statistics, weights, everyone=everyone or weights, **now)
    given = [start, statistics]
    for site, numbers, weight, facts in updates:
        change = numbers[:count].clone() if state is None else numbers[:count] - start
        given += [change, numbers[count:].clone()]
        rule.take(site, change, given[-1], weight, facts)
    before = [tensor.clone() for tensor in given]
    result, step = rule.finish(), rule.last.step
    assert result is not None
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True)), "written to"
    storages = {tensor.untyped_storage().data_ptr() for tensor in given if len(tensor)}
    assert not storages & {step.change.untyped_storage().data_ptr(), step.statistics.untyped_storage().data_ptr()}
    assert torch.equal(result, torch.cat([start + step.change, step.statistics]))
    return torch.cat([step.change, step.statistics]) if state is None else result


def close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Vectors, or numbers by site, that agree up to the rounding of float32."""
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        actual, expected = list(actual.values()), list(expected.values())
    as_tensors = [torch.as_tensor(values, dtype=torch.float64) for values in (actual, expected)]
    torch.testing.assert_close(*as_tensors, rtol=tolerance, atol=tolerance)
