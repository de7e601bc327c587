"""Weights from losses, gaps and contributions of the sites, towards one model that is fair to all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from polyclinic.parts import SERVER_PARTS, Memory, SiteEnd, Step, Update
from polyclinic.parts.measures import Measuring, measured, revealed
from polyclinic.server.distances import ROUNDING, gram, norm
from polyclinic.server.rules import Collected, Weighting, declared_shares, weighted_sum
from polyclinic.server.weights import Measured, Remembering, carry_over, normalised, project_to_simplex
from polyclinic.shapes import Shaped

#: Added to losses in q-FedAvg, whose powers of a loss of 0 need not be finite.
LEAST_LOSS = 1e-10

#: ε of PropFair: a site whose loss is higher than M less this counts as if it were as high.
LEAST_UTILITY = 0.2

#: Least share of a site in each contribution of FedCE, so that none is left out for good.
LEAST_CONTRIBUTION = 1e-3

#: 1 - cos of changes that differ by rounding alone.
SAME_DIRECTION = 1e-12


@SERVER_PARTS.add("qfedavg")
class QFedAvg(Measured, Collected):
    """Steps towards a more even loss over the sites: minimises Σ F_k^{q+1} / (q + 1).

    With Δ_k = w_k − w: w ← w + Σ F_k^q L Δ_k / Σ (q F_k^{q−1} ‖L Δ_k‖² + L F_k^q), F_k the mean loss of the received
    model over the site's training cases. Sites with a high loss count more, the more so the larger q; with q > 0 the
    step is shorter than a mean's. Statistics of normalisation layers are averaged with shares ∝ F_k^q.

    L stands for the Lipschitz constant of the gradients, of which the paper takes 1/L as the step of local training.
    So L is 1 / learning rate of the round, and L Δ_k the sum of the gradients along the site's way, however many steps
    it took. Where steps are longer or shorter than the learning rate, as with momentum or a proximal term, 1/L is their
    mean length: learning rate x Σ ‖a_k‖₁ / Σ τ_k, for τ_k steps of path ‖a_k‖₁ (see `normalised`).

    Args:
        q: 0 is the mean with equal weights; the paper tries 0.001 to 15.

    Source: Li et al., Fair resource allocation in federated learning, ICLR 2020, algorithm 2 (q-FedAvg). As in the
    authors' program, 10⁻¹⁰ is added to losses, and 1/L is the sites' learning rate. Differs: the paper draws the sites
    of a round with probability p_k; here who takes part is settled elsewhere, so that p_k does not enter. The paper
    knows no momentum.
    """

    reveals = revealed("start_loss", "steps", "path")
    needs_sgd = True

    def __init__(self, *, q: NonNegativeFloat = 1.0) -> None:
        self.q = q

    def combine(self, updates: Sequence[Update]) -> Step:
        """The step, with every term divided by L times the greatest F^q so that powers stay between 0 and 1."""
        losses = self.reported(updates, "start_loss") + LEAST_LOSS
        powers = (losses / losses.max()) ** self.q
        squares = torch.tensor([norm(update.change) ** 2 for update in updates], dtype=torch.float64)
        # A schedule may end at a rate of 0, where nothing changes.
        growth = (self.q * squares / (self.mean_step(updates) * losses)).nan_to_num(0.0, math.inf)
        shares = normalised(powers)
        length = float(powers.sum() / (powers * (1 + growth)).sum())
        return Step(
            weighted_sum([update.change for update in updates], shares * length),
            weighted_sum([update.statistics for update in updates], shares),
            dict(zip((update.site for update in updates), shares.tolist(), strict=True)),
        )

    def mean_step(self, updates: Sequence[Update]) -> float:
        """1/L: how far a constant gradient of 1 moves the weights in a local step, in the mean over all steps."""
        steps, path = (float(self.reported(updates, name).sum()) for name in ("steps", "path"))
        return self.now.learning_rate * (path / steps if steps else 1.0)


@SERVER_PARTS.add("propfair")
class PropFair(Measured, Weighting):
    """Proportional fairness: sites gain and lose relative to what they have, so that those badly off count more.

    It maximises Σ p_k log(M − F_k), a bargain between the sites in which M − F_k is the utility of site k: how far its
    loss is below M, the loss of a model that nobody would use. Its gradient is Σ p_k ∇F_k / (M − F_k), so
    w ← Σ a_k w_k with a_k ∝ p_k / max(M − F_k, ε), F_k the mean loss of the received model over the site's training
    cases and ε = 0.2. Where losses of all sites are within ε of M, or equal, and the larger M, it is FedAvg.

    Args:
        baseline: M. Just above the loss of a model that knows nothing it is fairest.

    Source: Zhang, Malekmohammadi, Chen and Yu, Proportional fairness in federated learning, arXiv 2202.01666, and the
    authors' program, which has ε. Differs: there each site minimises −log(1 − F/M) batch by batch; here local training
    stays as it is, and the weights are those that this loss gives whole sites in the first local step, brought to a sum
    of 1. Read were the abstract and the program, not the whole paper.

    It stands for the survey's Prop-FFL (Hosseini et al., Proportionally fair hospital collaborations in federated
    learning of histopathology images, IEEE TMI 2023), which has the same aim; its formula was not at hand.
    """

    reveals = revealed("start_loss")
    shapes = measured("start_loss", signed=True)

    def __init__(self, *, baseline: PositiveFloat = 2.0) -> None:
        self.baseline = baseline

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """p_k / max(M − F_k, ε)."""
        utilities = self.baseline - self.reported(updates, "start_loss", signed=True)
        return declared_shares(updates) / utilities.clamp_min(LEAST_UTILITY)


@SERVER_PARTS.add("afl")
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

    reveals = revealed("start_loss")
    shapes = measured("start_loss", signed=True)

    def __init__(self, *, lr: NonNegativeFloat = 0.1) -> None:
        super().__init__()
        self.lr = lr

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """λ as it was when the round began."""
        shares = carry_over(self.recall("share"), self.now.everyone)
        weights = torch.tensor([shares[update.site] for update in updates], dtype=torch.float64)
        total = float(weights.sum())
        moved = project_to_simplex(weights + self.lr * self.reported(updates, "start_loss", signed=True), total)
        new = zip(updates, moved.tolist(), strict=True)
        self.keep("share", shares | {update.site: share for update, share in new})
        return weights if total > 0 else declared_shares(updates)


@SERVER_PARTS.add("feddg_ga")
class GeneralizationAdjustment(Remembering):
    """Sites at which the common model is worse than their own count more.

    The gap of a site is G_k = F_k(w) − F_k(w_k): validation loss of the aggregated model minus that of the model which
    the site had put in. a_k ← max(0, a_k + d (G_k − Ḡ) / max |G_j − Ḡ|), brought to a sum of 1, with
    d = step (1 − r / R) after r of R rounds. a_k starts at 1/K. A gap is known one round later, of the sites that take
    part in both; where it is not known, a_k stays.

    Args:
        step: d before any decay.

    Source: Zhang et al., Federated domain generalization with generalization adjustment, CVPR 2023.
    Differs: sites may miss rounds. The authors' program leaves out Ḡ, divides the step by the number of sites and is
    two rounds behind in its decay; this is the paper's rule.
    """

    reveals = revealed("start_validation_loss", "end_validation_loss")
    shapes = measured("start_validation_loss", "end_validation_loss", signed=True)

    def __init__(self, *, step: Annotated[float, Field(ge=0, lt=1)] = 0.2) -> None:
        super().__init__()
        self.step = step

    def weights(self, updates: Sequence[Update]) -> Tensor:
        """a_k, moved by the gaps of the last round's model."""
        shares = carry_over(self.recall("share"), dict.fromkeys(self.now.everyone, 1.0))
        received, trained = (self.reported(updates, name, signed=True).tolist() for name in self.reveals)
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
        step = self.step * max(0.0, 1 - self.now.number / self.now.rounds)
        shares = shares | {site: max(0.0, shares[site] + step * (gap - mean) / largest) for site, gap in gaps.items()}
        total = sum(shares.values())
        return {site: share / total for site, share in shares.items()}


@SERVER_PARTS.add("fedce")
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
    and the authors' program, in which g_k, e_k and a_k are at least 10⁻³ after they were normalised. (There a_k may
    then add up to a little more than 1; here they are normalised again.) Differs: the error of the leave-one-out model
    is its validation loss, where the paper takes 1 − Dice, the same thing for a Dice loss; in the first round, which
    has no leave-one-out model, e_k is equal for all and does not enter the means; sites that miss a round keep their
    weight, and there is no leave-one-out model for them in the next.
    """

    reveals = revealed("leave_one_out_loss") | {
        "leave_one_out": "the mean of the other sites' models of the last round: with two sites, the other site's model"
    }
    shapes = measured("leave_one_out_loss") | {"leave_one_out": Shaped("float32", "Q")}
    returns = True
    same_network = True

    def __init__(self, *, mode: Literal["plus", "times"] = "plus") -> None:
        super().__init__()
        self.mode = mode

    def at_site(self) -> SiteEnd:
        """Measures the model that leaves the site out."""
        return Measuring("leave_one_out_loss", sent="leave_one_out")

    def send(self, site: str) -> Memory:
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
        answered = [update for update in updates if "leave_one_out_loss" in self.sent(update)]
        losses = self.reported(answered, "leave_one_out_loss").tolist()
        errors = self.mean_so_far("error", {u.site: loss for u, loss in zip(answered, losses, strict=True)})
        known = [errors[update.site] for update in updates if update.site in errors]
        typical = sum(known) / len(known) if known else 1.0  # of sites that have not answered yet
        gradient = contributions([max(1 - cosines[update.site], SAME_DIRECTION) for update in updates])
        data = contributions([errors.get(update.site, typical) for update in updates])
        weights = gradient + data if self.mode == "plus" else gradient * data
        weights = normalised(normalised(weights).clamp_min(LEAST_CONTRIBUTION))
        new = (weights * last.sum()).tolist()
        self.keep("share", shares | {update.site: share for update, share in zip(updates, new, strict=True)})
        before = self.now.weights
        self.kept["state"] = {u.site: torch.cat([before + u.change, u.statistics]) for u in updates}
        return weights

    def cosines(self, updates: Sequence[Update], weights: Tensor) -> list[float]:
        """cos(Δ_k, Δ_−k) of each update; 0 where one of them is zero."""
        products = gram([update.change for update in updates])
        others = weights.repeat(len(updates), 1).fill_diagonal_(0.0)
        squares = (others @ products * others).sum(1)
        # Changes of the others that cancel leave nothing but rounding.
        squares[squares <= ROUNDING * (others.square() @ products.diagonal())] = 0.0
        norms = (products.diagonal() * squares).sqrt()
        return ((others * products).sum(1) / norms).nan_to_num(0.0, 0.0, 0.0).tolist()

    def mean_so_far(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """Mean of each site's values over all rounds, this one's included."""
        kept = self.kept.setdefault(name, {})
        none = torch.zeros(2, dtype=torch.float64)
        for site, value in values.items():
            kept[site] = kept.get(site, none) + torch.tensor([value, 1.0], dtype=torch.float64)
        return {site: float(total / count) for site, (total, count) in kept.items()}


def contributions(values: Sequence[float]) -> Tensor:
    """Shares of contributions ``[K]``, each at least a little."""
    return normalised(torch.tensor(values, dtype=torch.float64)).clamp_min(LEAST_CONTRIBUTION)
