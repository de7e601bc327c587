"""Weights from the models themselves: how near a site's model is to the others', and where the sites agree."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.parts import SERVER_PARTS, Now, Step, Update
from polyclinic.parts.measures import revealed
from polyclinic.server.mean import Mean
from polyclinic.server.order import blocks
from polyclinic.server.rules import Collected, Weighting, declared_shares, weighted_sum
from polyclinic.server.weights import Measured, inverse

#: ε of SimAgg and RegAgg: how near counts as equal.
NEAR = 1e-5

#: So many coordinates are weighed at once, to bound the memory for temporary values.
BLOCK = 2**18


@SERVER_PARTS.add("ida")
class IDA(Measured, Weighting):
    """Sites far from the mean model count less: a_k ∝ 1 / ‖w̄ − w_k‖₁, with w̄ = (1/K) Σ w_k over the K sites of the
    round.

    Sites at distance 0 share everything (the limit of the rule), so that equal models count the same. Distances are
    over the weights; statistics of normalisation layers are averaged with the same a_k.

    Args:
        times: ``none``; ``cases``: a_k is multiplied by the site's declared weight n_k; ``accuracy``: a_k is multiplied
            by 1 / max(1/K, accuracy), with the accuracy of the site's trained model on its training cases (INTRAC), so
            that sites which fit their own cases too well count less.

    Source: Yeganeh et al., Inverse distance aggregation for federated learning with non-IID data, DART at MICCAI 2020.
    Differs: distances are over the weights only, and a distance of 0 has the limit of the rule. K is read as the number
    of sites that answered, also in the floor of the accuracy.
    """

    def __init__(self, *, times: Literal["none", "cases", "accuracy"] = "none") -> None:
        self.times = times
        self.needs_accuracy = times == "accuracy"
        if times == "accuracy":
            self.reveals = revealed("end_accuracy")  # type: ignore[misc]

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """1 / distance, times the factor that was asked for."""
        changes = [update.change for update in updates]
        mean = weighted_sum(changes, torch.full((len(changes),), 1.0 / len(changes), dtype=torch.float64))
        near = inverse(torch.stack([(change - mean).abs().sum(dtype=torch.float64) for change in changes]))
        if self.times == "cases":
            return near * declared_shares(updates)
        if self.times == "accuracy":
            return near / self.reported(updates, "end_accuracy").clamp_min(1.0 / len(updates))
        return near


class PerParameter(Collected):
    """A weighted mean with weights of its own for each parameter."""

    def combine(self, updates: Sequence[Update]) -> Step:
        """The mean of each parameter and each statistic; ``shares`` are means over all of them."""
        declared = declared_shares(updates)[:, None]
        change, counted = self.mean([update.change for update in updates], declared)
        statistics, also = self.mean([update.statistics for update in updates], declared)
        shares = (counted + also) / (len(change) + len(statistics))
        return Step(change, statistics, dict(zip((update.site for update in updates), shares.tolist(), strict=True)))

    def mean(self, vectors: Sequence[Tensor], declared: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of ``[K]`` vectors, and over its elements the sum of each vector's weights ``[K]``."""
        result = torch.empty_like(vectors[0])
        totals = torch.zeros(len(vectors), dtype=torch.float64)
        for part in blocks(len(result), BLOCK):
            block = torch.stack([vector[part] for vector in vectors]).double()
            similarity = 1 / ((block - block.mean(0)).abs() + NEAR)
            weights = self.mix(similarity / similarity.sum(0), declared)
            weights = weights / weights.sum(0)
            result[part] = (weights * block).sum(0)
            totals += weights.sum(1)
        return result, totals

    @abstractmethod
    def mix(self, similarity: Tensor, declared: Tensor) -> Tensor:
        """Weights ``[K, B]`` of B parameters, up to a factor of each.

        Args:
            similarity: u, how near each site is to the mean of the sites ``[K, B]``; sums to 1 over the sites.
            declared: v = p_k ``[K, 1]``.
        """


@SERVER_PARTS.add("simagg")
class SimAgg(PerParameter):
    """For each parameter, the mean of p_k and of how near the site's value is to the sites' mean.

    u_k ∝ 1 / (|w_k − w̄| + ε) with w̄ = (1/K) Σ w_k and ε = 10⁻⁵; w ← Σ (u_k + p_k) / 2 · w_k.

    Source: Khan et al., Adaptive weight aggregation in federated learning for brain tumor segmentation, BrainLes at
    MICCAI 2021 (FeTS 2021), similarity weighted aggregation. Differs: weights are for each parameter, as the
    paper's formulas are read; the authors' program has one weight for each tensor, from the difference of the sums of
    its elements. The paper's choice of collaborators by a sliding window is a matter of who takes part, not of this
    rule.
    """

    def mix(self, similarity: Tensor, declared: Tensor) -> Tensor:
        """The sum u + v."""
        return similarity + declared


@SERVER_PARTS.add("regagg")
class RegAgg(PerParameter):
    """For each parameter, p_k times how near the site's value is to the sites' mean.

    u_k as in SimAgg; w ← Σ u_k p_k w_k / Σ u_k p_k.

    Source: as SimAgg, regularised aggregation. Differs: as SimAgg.
    """

    def mix(self, similarity: Tensor, declared: Tensor) -> Tensor:
        """The product u v."""
        return similarity * declared


@SERVER_PARTS.add("guided_gradient")
class GuidedGradient(Mean):
    """FedAvg's step, taken only by those weights on whose direction the sites agree; the others stay.

    The agreement on a weight is |Σ_k sign(Δ_k)| / K: 1 where all sites go the same way, 0 where they are divided. Every
    site has one vote, whatever its number of cases. Statistics of normalisation layers are averaged. A running sum:
    memory does not grow with the number of sites.

    Args:
        threshold: least agreement. 0 is FedAvg; 0.5 asks that three quarters of the sites go the same way; 1 asks that
            all do.

    Source: Fan et al., A federated deep learning framework for 3D brain MRI images, IJCNN 2021, as told by Guan et al.,
    Federated learning for medical image analysis: a survey, Pattern Recognition 151, 2024. Differs: no formula is given
    there; the agreement is that of Tenison et al., Gradient masked averaging for federated learning, TMLR 2023, without
    their soft weights below the threshold.
    """

    needs_each = True

    def __init__(self, *, threshold: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        self.threshold = threshold

    def begin(self, now: Now) -> None:
        """Begin with no votes."""
        super().begin(now)
        self._votes, self._voters = torch.zeros(len(now.weights), dtype=torch.int16), 0

    def add(self, update: Update) -> None:
        """Add the update and the site's votes."""
        super().add(update)
        self._votes += update.change.sign().to(torch.int16)
        self._voters += 1

    def done(self) -> Step:
        """The mean where the sites agree, nothing elsewhere."""
        step = super().done()
        # Votes are compared as whole numbers, since 3/5 as a float32 is less than 0.6.
        enough = next(votes for votes in range(self._voters + 1) if votes / self._voters >= self.threshold)
        return replace(step, change=step.change.masked_fill_(self._votes.abs() < enough, 0.0))
