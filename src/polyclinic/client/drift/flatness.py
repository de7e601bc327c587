"""Parts that look for flat optima: models whose loss stays low when weights move a little, as they do in a mean."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from polyclinic.parts import LOCAL_PARTS, Memory, SitePart


@LOCAL_PARTS.add("weight_perturbation")
class WeightPerturbation(SitePart):
    """HarmoFL's local rule: each step goes along the gradient at weights that were moved up the slope.

    With g = ∇F(w): w ← w − η ∇F(w + α g / ‖g‖), on the same batch, so a round costs about twice as much. Statistics of
    normalisation layers are those at w. A second model that is trained beside this one (`apfl`) is not moved.

    Source: Jiang, Wang, Dou, HarmoFL: harmonizing local and global drifts in federated learning on heterogeneous
    medical images, AAAI 2022, as in the authors' code, where α is 0.05; without the other parts it is the rule of
    Foret et al., Sharpness-aware minimization, ICLR 2021.

    Args:
        alpha: α, how far weights are moved; 0 changes nothing.
    """

    def __init__(self, *, alpha: NonNegativeFloat = 0.05) -> None:
        self.alpha = alpha

    def perturbation(self, gradient: Tensor, given: Memory) -> Tensor | None:
        """α g / ‖g‖."""
        return gradient * (self.alpha / gradient.norm().clamp_min(1e-12)) if self.alpha else None
