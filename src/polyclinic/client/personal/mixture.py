"""Two networks that predict together, each as much as the case says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyclinic.client.features import frozen_outputs, mean_over_places
from polyclinic.parts.predictor import Outputs, Predictor
from polyclinic.state import FlatModule


@dataclass(frozen=True)
class Mixture(Predictor):
    """Two states of a network whose outputs are mixed for each case, see `mixed`.

    Attributes:
        shared: the one that the gate looks at ``[P]``.
        personal: the other one ``[P]``.
        gate: ψ and b ``[G + 1]``.
    """

    shared: Tensor
    personal: Tensor
    gate: Tensor

    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """All cases together."""
        device = model.vector.device
        model.load(self.shared)
        personal, gate = self.personal.to(device), self.gate.to(device)

        def outputs(inputs: Tensor) -> Tensor:
            found: list[Tensor] = []
            hook = model.record_features(found)
            try:
                shared: Tensor = model.module(inputs)
            finally:
                hook.remove()
            return mixed(gate, mean_over_places(found[0]), shared, frozen_outputs(model, personal, inputs))

        yield torch.arange(len(index)), outputs


def mixed(gate: Tensor, features: Tensor, shared: Tensor, personal: Tensor) -> Tensor:
    """a o + (1 − a) o' of outputs o and o' ``[B, ...]``, with a = σ(⟨ψ, z⟩ + b) for features z ``[B, G]`` of each case.

    Args:
        gate: ψ and b ``[G + 1]``.
        features: z.
        shared: o.
        personal: o'.
    """
    share = torch.sigmoid(features.float() @ gate[:-1] + gate[-1]).view(-1, *[1] * (shared.dim() - 1))
    return share * shared + (1 - share) * personal
