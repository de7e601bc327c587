"""Rounds at the server without sites: what they would have sent is written down."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyclinic.server.rules import SERVER_RULES, Aggregation, ServerRound, Update


def rule(name: str, **options: Any) -> Aggregation:
    """An aggregation of the catalogue."""
    part = SERVER_RULES[name](**options)
    assert isinstance(part, Aggregation)
    return part


def update(site: str, state: Sequence[float], weight: float = 1.0, **facts: float) -> Update:
    """What a site sent."""
    return Update(site, torch.tensor(state, dtype=torch.float32), weight, facts)


def play(
    part: Aggregation,
    updates: Sequence[Update],
    state: Sequence[float] | None = None,
    *,
    trainable: int | None = None,
    number: int = 0,
    everyone: Mapping[str, float] | None = None,
) -> Tensor:
    """One round; without ``state`` it begins at zero, without ``everyone`` all sites take part."""
    before = torch.zeros_like(updates[0].state) if state is None else torch.tensor(state, dtype=torch.float32)
    weights = {update.site: update.weight for update in updates}
    total, trainable = sum(weights.values()), len(before) if trainable is None else trainable
    part.begin(ServerRound(number, before, trainable, total, everyone or weights))
    for each in updates:
        part.add(each)
    return part.finish()


def close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Vectors, or numbers by site, that agree up to the rounding of float32."""
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        actual, expected = list(actual.values()), list(expected.values())
    as_tensors = [torch.as_tensor(values, dtype=torch.float64) for values in (actual, expected)]
    torch.testing.assert_close(*as_tensors, rtol=tolerance, atol=tolerance)
