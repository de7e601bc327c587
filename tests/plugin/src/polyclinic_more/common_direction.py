"""A gradient rule: what a site does in a step shall not undo what all sites did together."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from polyclinic.parts import LOCAL_PARTS, Memory, SitePart, SiteView


@LOCAL_PARTS.add("common_direction")
class CommonDirection(SitePart):
    """Takes a share of what undoes the last change of the common model out of each gradient.

    With d the change since the site got the model last, and ⟨g, d⟩ > 0, so that a step along −g goes back:
    g ← g − s ⟨g, d⟩ d / ‖d‖². In a site's first round d is zero.

    Source: after Yu et al., Gradient surgery for multi-task learning, NeurIPS 2020, where gradients of tasks are
    projected in this way.

    Args:
        strength: s; 1 takes all of it out, 0 changes nothing.
    """

    def __init__(self, *, strength: Annotated[float, Field(ge=0, le=1)] = 1.0) -> None:
        self.strength = strength

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """d ``[T]``."""
        weights = view.vector[: view.trainable]
        before = self.kept.get("weights", weights)
        self.kept = {"weights": weights.clone()}
        return {"direction": weights - before}

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Project."""
        direction = given["direction"]
        length = direction.square().sum(-1, keepdim=True).clamp_min(1e-30)
        back = (gradient * direction).sum(-1, keepdim=True).clamp_min(0)
        gradient.sub_(self.strength * back / length * direction)
