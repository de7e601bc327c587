"""Parts that align what the sites' models make of their cases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from polyclinic.client.features import frozen_features
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, SitePart, SiteView


@LOCAL_PARTS.add("model_contrastive")
class ModelContrastive(SitePart):
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

    stacks_loss = True
    needs_features = True
    needs_body = True
    needs_labels = False

    def __init__(self, *, mu: NonNegativeFloat = 1.0, temperature: PositiveFloat = 0.5) -> None:
        self.mu, self.temperature = mu, temperature

    def meet(self, view: SiteView) -> Memory:
        """The first model."""
        self.kept = {"previous": view.vector.clone()}
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The site's model of its last round ``[P]``."""
        return self.kept

    def loss(self, batch: Batch, given: Memory) -> Tensor:
        """The term."""
        others = (frozen_features(batch.model, vector, batch.inputs) for vector in (batch.received, given["previous"]))
        similarities = [F.cosine_similarity(batch.features.float(), other, dim=1) for other in others]
        logits = torch.stack(similarities, dim=1) / self.temperature
        return self.mu * F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Keep the model that the site ended with, also of what stays at the site."""
        self.kept = {"previous": ended.vector.clone()}
        return {}
