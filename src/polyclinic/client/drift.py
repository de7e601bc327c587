"""Rules against client drift: local models that move away from each other because the sites' data differ."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from polyclinic.client.rules import LOCAL_RULES, GradientRule


@LOCAL_RULES.add("proximal")
class Proximal(GradientRule):
    """FedProx: adds μ/2 ‖w' − w‖² to the local loss, so μ (w' − w) to its gradient.

    Source: Li et al., Federated optimization in heterogeneous networks, MLSys 2020, equation 2.

    Args:
        mu: μ; 0 changes nothing.
    """

    def __init__(self, *, mu: NonNegativeFloat = 0.01) -> None:
        self.mu = mu

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor) -> None:
        """Add μ (w' − w)."""
        gradient.add_(weights, alpha=self.mu).sub_(start, alpha=self.mu)
