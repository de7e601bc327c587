"""A loss on unlabelled cases."""

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from polyclinic.parts import LOCAL_PARTS, Batch, Memory, SitePart, SiteView


@LOCAL_PARTS.add("consistency")
class Consistency(SitePart):
    """Two noisy views of an unlabelled case shall be predicted alike: adds the mean squared difference to the loss.

    The prediction of the first view is the target, without gradient. A site without unlabelled cases trains as usual.

    Source: Laine and Aila, Temporal ensembling for semi-supervised learning, ICLR 2017 (the Π-model).

    Args:
        weight: of the term; 0 changes nothing.
        noise: deviation of what is added to the inputs.
        cases: unlabelled cases in each step.
    """

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, noise: NonNegativeFloat = 0.1, cases: PositiveInt = 16
    ) -> None:
        self.weight, self.noise, self.cases = weight, noise, cases

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Remember where the cases are."""
        self._view = view
        return {}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        count = self._view.count("unlabelled")
        if not count or not self.weight:
            return None
        source = torch.Generator().manual_seed(batch.seed)
        index = torch.randint(count, (min(self.cases, count),), generator=source)
        inputs = self._view.cases(index, "unlabelled")[0]
        first, second = (inputs + self.noise * torch.randn(inputs.shape, generator=source) for _ in range(2))
        task, device = self._view.task, batch.inputs.device
        with torch.no_grad():
            target = task.probabilities(batch.model.module(first.to(device)))
        found = task.probabilities(batch.model.module(second.to(device)))
        return self.weight * (found - target).square().mean()
