"""Weights from the training losses of the sites' own models: how low they are, and how they fell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from polyclinic.parts import SERVER_PARTS, Update
from polyclinic.parts.measures import revealed
from polyclinic.server.rules import Weighting, declared_shares
from polyclinic.server.weights import Measured, Remembering, inverse, normalised

#: Rounds of a site, the one that ends included, over which FedPIDAvg looks back.
LOOK_BACK = 5


@SERVER_PARTS.add("loss_weights")
class LossWeights(Measured, Weighting):
    """Sites whose trained model fits their own cases badly count less: a_k ∝ p_k / F_k(w_k).

    Sites with a loss of 0 share everything, in proportion to p_k. Equal losses give FedAvg.

    Source: Li et al., 2021, as told by Guan et al., Federated learning for medical image analysis: a survey, Pattern
    Recognition 151, 2024. Differs: no formula is given there; the inverse of the training loss is the plainest one.
    """

    reveals = revealed("end_loss")

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """p_k / F_k."""
        return declared_shares(updates) * inverse(self.reported(updates, "end_loss"))


@SERVER_PARTS.add("fedcostwavg")
class FedCostWAvg(Remembering):
    """Sites whose cost fell most count more: w ← Σ (α p_k + (1 − α) r_k / Σ r) w_k, r_k = c_k before / c_k now.

    c_k is the mean loss of the site's trained model over its training cases, in this round and in the last one in which
    the site took part. A site in its first round has no earlier cost and counts with the mean ratio of the others;
    where no site has one, the round is FedAvg.

    Args:
        alpha: α; 1 is FedAvg.

    Source: Mächler et al., FedCostWAvg: a new averaging for better federated learning, BrainLes at MICCAI 2021
    (FeTS 2021), with α = 0.5. The paper does not say what the ratio of the first round is.
    """

    reveals = revealed("end_loss")

    def __init__(self, *, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """α p_k + (1 − α) r_k / Σ r."""
        declared, now = declared_shares(updates), self.reported(updates, "end_loss")
        last = self.recall("cost")
        self.keep("cost", {update.site: cost for update, cost in zip(updates, now.tolist(), strict=True)})
        known = torch.tensor([update.site in last for update in updates])
        if not known.any():
            return declared
        before = torch.tensor([last[update.site] for update in updates if update.site in last], dtype=torch.float64)
        ratios = torch.empty_like(declared)
        ratios[known] = before * inverse(now[known])
        ratios[~known] = ratios[known].mean()
        return self.alpha * declared + (1 - self.alpha) * normalised(ratios)


@SERVER_PARTS.add("fedpidavg")
class FedPIDAvg(Remembering):
    """Sites whose cost fell most, and those whose cost has been high, count more, besides those with many cases.

    w ← Σ (α p_k + β d_k / Σ d + γ m_k / Σ m) w_k with α + β + γ = 1. c_k is the mean loss of the site's trained model
    over its training cases, d_k = c_k before − c_k now its drop since the last round in which the site took part, and
    m_k its mean over the last five such rounds. These are a controller's proportional, differential and integral terms.

    A cost that rose counts as one that did not fall (d_k = 0). A site in its first round has no drop and counts with
    the mean of the others'. The differential term is p_k where nobody's cost fell, the integral one where all are 0;
    where no site has an earlier cost, the round is FedAvg.

    Args:
        alpha: weight of the number of cases.
        beta: of the drop.
        gamma: of the costs so far. Only the proportions of the three count; with β = γ = 0 it is FedAvg.

    Source: Mächler et al., FedPIDAvg: a PID controller inspired aggregation method for federated learning, BrainLes at
    MICCAI 2022 (FeTS 2022), with 0.45, 0.45 and 0.1. Taken from its abstract and from programs written after it, since
    its text was not at hand. Differs: m_k is a mean and not a sum, which is the same where all sites take part in
    all rounds; shares can't be negative, as those of costs that rise would be. The paper also has sites with unusually
    many cases do less work in a round, which is a matter of local training, not of this rule.
    """

    reveals = revealed("end_loss")

    def __init__(
        self, *, alpha: PositiveFloat = 0.45, beta: NonNegativeFloat = 0.45, gamma: NonNegativeFloat = 0.1
    ) -> None:
        super().__init__()
        self.terms = torch.tensor([alpha, beta, gamma], dtype=torch.float64)

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """α p_k + β d_k / Σ d + γ m_k / Σ m."""
        declared, now = declared_shares(updates), self.reported(updates, "end_loss").tolist()
        before = self.kept.get("costs", {})
        costs = {
            update.site: torch.tensor([*before.get(update.site, ()), cost][-LOOK_BACK:], dtype=torch.float64)
            for update, cost in zip(updates, now, strict=True)
        }
        self.kept["costs"] = before | costs
        drops = {site: max(0.0, float(own[-2] - own[-1])) for site, own in costs.items() if len(own) > 1}
        if not drops:
            return declared
        typical = sum(drops.values()) / len(drops)
        fell = torch.tensor([drops.get(site, typical) for site in costs], dtype=torch.float64)
        high = torch.stack([own.mean() for own in costs.values()])
        terms = [declared, *(normalised(term) if term.any() else declared for term in (fell, high))]
        return (self.terms / self.terms.sum()) @ torch.stack(terms)
