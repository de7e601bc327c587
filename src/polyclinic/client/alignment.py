"""Rules that align what the sites' models make of their cases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.func import functional_call

from polyclinic.client.rules import LOCAL_RULES, Batch, Ended, LossRule, Memory, SiteFacts, mean_over_places
from polyclinic.state import FlatModule


@LOCAL_RULES.add("model_contrastive")
class ModelContrastive(LossRule):
    """MOON: features shall be like the received model's and unlike those of the site's own model of its last round.

    Adds μ · mean of −log(e^{cos(z, z_glob)/T} / (e^{cos(z, z_glob)/T} + e^{cos(z, z_prev)/T})), where z is the features
    before the head, averaged over places. The two other models are run as in evaluation: with their running statistics
    and without dropout. As long as a site has not trained, its model of the last round is the first model, so the term
    is constant in the first round.

    Source: Li et al., Model-contrastive federated learning, CVPR 2021, equation 3. There z comes from a projection head
    of two layers that is added to the network; here networks are left as they are. The authors' code leaves the term
    out in the first round, where its gradient is zero.

    Args:
        mu: μ; 0 changes nothing.
        temperature: T.
    """

    needs_body = True

    def __init__(self, *, mu: NonNegativeFloat = 1.0, temperature: PositiveFloat = 0.5) -> None:
        self.mu, self.temperature = mu, temperature

    def initial(self, site: SiteFacts) -> Memory:
        """The first model."""
        return {"previous": site.vector.clone()}

    def begin(self, start: Tensor, memory: Memory, received: Mapping[str, Tensor]) -> Memory:
        """The site's model of its last round ``[P]``."""
        return memory

    def loss(self, batch: Batch, given: Memory) -> Tensor:
        """The term."""
        others = (frozen_features(batch.model, vector, batch.inputs) for vector in (batch.received, given["previous"]))
        similarities = [F.cosine_similarity(batch.features.float(), other, dim=1) for other in others]
        logits = torch.stack(similarities, dim=1) / self.temperature
        return self.mu * F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))

    def end(self, ended: Ended, memory: Memory) -> tuple[Memory, Memory]:
        """The model that the site ended with, also of what stays at the site."""
        return {"previous": ended.vector.clone()}, {}


def frozen_features(model: FlatModule, vector: Tensor, inputs: Tensor) -> Tensor:
    """What the head is given in evaluation with the state ``vector [P]``, averaged over places ``[B, G]``.

    ``model`` lends its network, which may be in the middle of a step: its own state is not touched.

    Raises:
        TrainingError: P302 if the model has no head.
    """
    found: list[Tensor] = []
    hook = model.record_features(found)
    model.module.eval()
    try:
        with torch.no_grad():
            functional_call(model.module, model.layout.split(vector), (inputs,))
    finally:
        model.module.train()
        hook.remove()
    return mean_over_places(found[0]).float()
