"""Weights from what the sites say of their models: losses, gaps and contributions, towards one model fair to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.server.rules import SERVER_RULES, Collected, Update, Weighting, declared_shares, weighted_sum
from polyclinic.server.weights import (
    Remembering,
    carry_over,
    inverse,
    normalised,
    project_to_simplex,
    reported,
)

#: Added to losses in q-FedAvg, whose powers of a loss of 0 need not be finite.
LEAST_LOSS = 1e-10

#: Least contribution of a site in FedCE, so that none is left out for good.
LEAST_CONTRIBUTION = 1e-6


@SERVER_RULES.add("loss_weights")
class LossWeights(Weighting):
    """Sites whose trained model fits their own cases badly count less: a_k ∝ p_k / F_k(w_k).

    Sites with a loss of 0 share everything, in proportion to p_k. Equal losses give FedAvg.

    Source: Li et al., 2021, as told by Guan et al., Federated learning for medical image analysis: a survey, Pattern
    Recognition 151, 2024. Differs: no formula is given there; the inverse of the training loss is the plainest one.
    """

    facts = ("end_loss",)

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """p_k / F_k."""
        return declared_shares(updates) * inverse(reported(updates, "end_loss"))


@SERVER_RULES.add("fedcostwavg")
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

    facts = ("end_loss",)

    def __init__(self, *, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """α p_k + (1 − α) r_k / Σ r."""
        declared, now = declared_shares(updates), reported(updates, "end_loss")
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


@SERVER_RULES.add("qfedavg")
class QFedAvg(Collected):
    """Steps towards a more even loss over the sites: minimises Σ F_k^{q+1} / (q + 1).

    With L = 1 / lr and Δ_k = w_k − w: w ← w + Σ F_k^q L Δ_k / Σ (q F_k^{q−1} ‖L Δ_k‖² + L F_k^q), F_k the mean loss of
    the received model over the site's training cases. Sites with a high loss count more, the more so the larger q; with
    q > 0 the step is shorter than a mean's. Statistics of normalisation layers are averaged with shares ∝ F_k^q.

    Args:
        q: 0 is the mean with equal weights; the paper tries 0.001 to 15.
        lr: learning rate of the sites' training, whose inverse stands for the Lipschitz constant L of their gradients.

    Source: Li et al., Fair resource allocation in federated learning, ICLR 2020, algorithm 2 (q-FedAvg). As in the
    authors' program, 10⁻¹⁰ is added to losses. Differs: the paper draws the sites of a round with probability p_k; here
    who takes part is settled elsewhere, so that p_k does not enter.
    """

    facts = ("start_loss",)

    def __init__(self, *, q: NonNegativeFloat = 1.0, lr: PositiveFloat = 0.01) -> None:
        self.q, self.lr = q, lr

    def combine(self, updates: Sequence[Update]) -> Tensor:
        """The step, with every term divided by L times the greatest F^q so that powers stay between 0 and 1."""
        trainable, before = self.now.trainable, self.now.state
        losses = reported(updates, "start_loss") + LEAST_LOSS
        powers = (losses / losses.max()) ** self.q
        norms = torch.stack(
            [(update.state - before)[:trainable].square().sum(dtype=torch.float64) for update in updates]
        )
        curvature = powers * (1 + self.q * norms / (self.lr * losses))
        shares = normalised(powers)
        self.shares = {update.site: float(share) for update, share in zip(updates, shares, strict=True)}
        state = weighted_sum([update.state for update in updates], shares)
        length = float(powers.sum() / curvature.sum())
        if length < 1:
            state[:trainable].sub_(before[:trainable]).mul_(length).add_(before[:trainable])
        return state


@SERVER_RULES.add("afl")
class AgnosticFL(Remembering):
    """Agnostic federated learning: the best model for the worst mixture of sites.

    w ← Σ λ_k w_k, then λ ← projection of λ + lr F onto the simplex, F_k the mean loss of the received model over the
    site's training cases. λ starts at p_k. Sites that take no part in a round keep their λ; the others share the rest.

    Args:
        lr: step of λ; 0 is FedAvg.

    Source: Mohri, Sivek and Suresh, Agnostic federated learning, ICML 2019, algorithm Stochastic-AFL. Differs: a
    round of local training stands for one gradient step of w, losses are over all training cases instead of a drawn
    one, and the result is the last w instead of the mean over all rounds.
    """

    facts = ("start_loss",)

    def __init__(self, *, lr: NonNegativeFloat = 0.1) -> None:
        super().__init__()
        self.lr = lr

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """λ as it was when the round began."""
        shares = carry_over(self.recall("share"), self.now.everyone)
        weights = torch.tensor([shares[update.site] for update in updates], dtype=torch.float64)
        total = float(weights.sum())
        moved = project_to_simplex(weights + self.lr * reported(updates, "start_loss", signed=True), total)
        new = zip(updates, moved.tolist(), strict=True)
        self.keep("share", shares | {update.site: share for update, share in new})
        return weights if total > 0 else declared_shares(updates)


@SERVER_RULES.add("feddg_ga")
class GeneralizationAdjustment(Remembering):
    """Sites at which the common model is worse than their own count more.

    The gap of a site is G_k = F_k(w) − F_k(w_k): validation loss of the aggregated model minus that of the model which
    the site had put in. a_k ← max(0, a_k + d (G_k − Ḡ) / max |G_j − Ḡ|), brought to a sum of 1, with
    d = step (1 − r / rounds) after r rounds. a_k starts at 1/K. A gap is known one round later, of the sites that take
    part in both; where it is not known, a_k stays.

    Args:
        step: d before any decay.
        rounds: rounds until the step is 0, as a rule those of the study; without it the step stays as it is.

    Source: Zhang et al., Federated domain generalization with generalization adjustment, CVPR 2023.
    Differs: sites may miss rounds. The authors' program leaves out Ḡ and divides the step by the number of sites; this
    is the paper's rule.
    """

    facts = ("start_validation_loss", "end_validation_loss")

    def __init__(self, *, step: Annotated[float, Field(ge=0, lt=1)] = 0.2, rounds: PositiveInt | None = None) -> None:
        super().__init__()
        self.step, self.rounds = step, rounds

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """a_k, moved by the gaps of the last round's model."""
        shares = carry_over(self.recall("share"), dict.fromkeys(self.now.everyone, 1.0))
        received, trained = (reported(updates, fact, signed=True).tolist() for fact in self.facts)
        own = self.recall("own")
        gaps = {
            update.site: loss - own[update.site]
            for update, loss in zip(updates, received, strict=True)
            if update.site in own
        }
        shares = self.moved(shares, gaps)
        self.keep("share", shares)
        self.kept["own"] = {}  # of the last round only: the model received is made of the models of that round
        self.keep("own", {update.site: loss for update, loss in zip(updates, trained, strict=True)})
        return normalised(torch.tensor([shares[update.site] for update in updates], dtype=torch.float64))

    def moved(self, shares: dict[str, float], gaps: Mapping[str, float]) -> dict[str, float]:
        """Shares after a step along the gaps."""
        mean = sum(gaps.values()) / max(len(gaps), 1)
        largest = max((abs(gap - mean) for gap in gaps.values()), default=0.0)
        if largest <= 1e-12 * max(map(abs, gaps.values()), default=0.0):  # gaps that differ by rounding are equal
            return shares
        decay = 1.0 if self.rounds is None else max(0.0, 1 - self.now.number / self.rounds)
        shares = shares | {
            site: max(0.0, shares[site] + self.step * decay * (gap - mean) / largest) for site, gap in gaps.items()
        }
        total = sum(shares.values())
        return {site: share / total for site, share in shares.items()}


@SERVER_RULES.add("fedce")
class FedCE(Remembering):
    """Sites count as much as they contribute, in the space of gradients and in that of data.

    Gradients: g_k ∝ 1 − cos(Δ_k, Δ_−k), Δ_−k = Σ_{j≠k} a_j Δ_j with the last weights: what goes another way than the
    others is new. Data: e_k ∝ loss at the site of the leave-one-out model w_−k = Σ_{j≠k} a_j w_j / (1 − a_k) of the
    last round: what the others' model does not know is new. Cosines and losses are means over all rounds so far.
    a_k ∝ g_k + e_k or g_k e_k, starting at 1/K. Cosines are over the weights without statistics.

    The last model of each site is kept until the next round, so that memory and checkpoints grow with the number of
    sites. It can't be less: the leave-one-out models of K sites are K vectors of which none follows from the others.

    Args:
        mode: ``plus`` or ``times``: how the two contributions are put together.

    Source: Jiang et al., Fair federated medical image segmentation via client contribution estimation, CVPR 2023,
    and the authors' program, whose least contribution before it is normalised, 10⁻⁶, is taken over. Differs: the error
    of the leave-one-out model is its validation loss, where the paper takes 1 − Dice, the same thing for a Dice loss;
    in the first round, which has no leave-one-out model, e_k is equal for all and does not enter the means; sites that
    miss a round keep their weight, and there is no leave-one-out model for them in the next.
    """

    facts = ("leave_one_out_loss",)
    sends: ClassVar[Mapping[str, str]] = {
        "leave_one_out": "the mean of the other sites' models of the last round: with two sites, the other site's model"
    }

    def __init__(self, *, mode: Literal["plus", "times"] = "plus") -> None:
        super().__init__()
        self.mode = mode

    def send(self, site: str) -> dict[str, Tensor]:
        """The leave-one-out model of a site that took part in the last round with others."""
        states, shares = self.kept.get("state", {}), self.recall("share")
        others = [other for other in states if other != site]
        if site not in states or not others:
            return {}
        # Summed anew and not subtracted from the aggregate: variances must not become negative by rounding.
        weights = normalised(torch.tensor([shares[other] for other in others], dtype=torch.float64))
        return {"leave_one_out": weighted_sum([states[other] for other in others], weights)}

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """a_k from both contributions."""
        shares = carry_over(self.recall("share"), dict.fromkeys(self.now.everyone, 1.0))
        last = torch.tensor([shares[update.site] for update in updates], dtype=torch.float64)
        new_cosines = self.cosines(updates, last)
        cosines = self.mean_so_far("cosine", {u.site: c for u, c in zip(updates, new_cosines, strict=True)})
        answered = [update for update in updates if "leave_one_out_loss" in update.facts]
        losses = reported(answered, "leave_one_out_loss").tolist()
        errors = self.mean_so_far("error", {u.site: loss for u, loss in zip(answered, losses, strict=True)})
        known = [errors[update.site] for update in updates if update.site in errors]
        typical = sum(known) / len(known) if known else 1.0  # of sites that have not answered yet
        gradient = contributions([1 - cosines[update.site] for update in updates])
        data = contributions([errors.get(update.site, typical) for update in updates])
        weights = normalised(gradient + data if self.mode == "plus" else gradient * data)
        new = (weights * last.sum()).tolist()
        self.keep("share", shares | {update.site: share for update, share in zip(updates, new, strict=True)})
        self.kept["state"] = {update.site: update.state for update in updates}
        return weights

    def cosines(self, updates: Sequence[Update], weights: Tensor) -> list[float]:
        """cos(Δ_k, Δ_−k) of each update; 0 where one of them is zero."""
        trainable = self.now.trainable
        before = self.now.state[:trainable]
        changes = weighted_sum_of_changes(updates, before, weights)
        found = []
        for update, weight in zip(updates, weights.tolist(), strict=True):
            own = (update.state[:trainable] - before).double()
            others = changes - weight * own
            norms = float(own.norm() * others.norm())
            found.append(float(own @ others) / norms if norms > 0 else 0.0)
        return found

    def mean_so_far(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """Mean of each site's values over all rounds, this one's included."""
        kept = self.kept.setdefault(name, {})
        for site, value in values.items():
            kept[site] = kept.get(site, torch.zeros(2, dtype=torch.float64)) + torch.tensor([value, 1.0]).double()
        return {site: float(total / count) for site, (total, count) in kept.items()}


def weighted_sum_of_changes(updates: Sequence[Update], before: Tensor, weights: Tensor) -> Tensor:
    """Σ a_k (w_k − w) over the first coordinates that ``before`` has, as float64."""
    total = torch.zeros_like(before, dtype=torch.float64)
    for update, weight in zip(updates, weights.tolist(), strict=True):
        total.add_((update.state[: len(before)] - before).double(), alpha=weight)
    return total


def contributions(values: Sequence[float]) -> Tensor:
    """Shares of contributions ``[K]``, each at least a little."""
    return normalised(torch.tensor(values, dtype=torch.float64).clamp_min(LEAST_CONTRIBUTION))
