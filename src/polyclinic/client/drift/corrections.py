"""Parts against client drift: local models that move away from each other because the sites' data differ."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from polyclinic.parts import (
    LOCAL_PARTS,
    Ended,
    Memory,
    Now,
    Part,
    ServerEnd,
    SiteEnd,
    SitePart,
    SiteView,
    Step,
    Update,
)
from polyclinic.shapes import Shaped

#: ε of `WeightedContrast`.
_TINY = 1e-14


@LOCAL_PARTS.add("proximal")
class Proximal(SitePart):
    """FedProx: adds μ/2 ‖w' − w‖² to the local loss, so μ (w' − w) to its gradient.

    Source: Li et al., Federated optimization in heterogeneous networks, MLSys 2020, equation 2.

    Args:
        mu: μ; 0 changes nothing.
    """

    zero_at_start = True

    def __init__(self, *, mu: NonNegativeFloat = 0.01) -> None:
        self.mu = mu

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Add μ (w' − w)."""
        gradient.add_(weights, alpha=self.mu).sub_(start, alpha=self.mu)


@LOCAL_PARTS.add("weighted_contrast")
class WeightedContrast(SitePart):
    """FedMRI: shared weights shall stay near those received and away from the site's own of its last round.

    Adds β ‖θ − θ_g‖₁ / (‖θ − θ_k‖₁ + ε) to the loss, so β (sign(θ − θ_g) / n − p sign(θ − θ_k) / n²) to its gradient,
    with p and n the two parts of the fraction. θ are the weights that are shared; θ_g those received, θ_k those at
    which the site's last round ended. It begins in a site's second round, and is zero in the first step of each.

    Source: Feng et al., Specificity-preserving federated learning for MR image reconstruction, IEEE TMI 2022, as in the
    authors' code, where ε is 1e-14 and β has no default. There θ_k are the encoders of all sites, one after another,
    which sites would have to send each other; here each keeps its own.

    Args:
        beta: β; 0 changes nothing.
    """

    zero_at_start = True

    def __init__(self, *, beta: NonNegativeFloat = 0.001) -> None:
        self.beta = beta

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """θ_k ``[T]`` and which weights are shared, 1 or 0 ``[T]``; nothing in a site's first round."""
        if "last" not in self.kept:
            return {}
        shared = view.shared(view.vector)
        ends = [view.whole(torch.full_like(shared, value))[: view.trainable] for value in (1.0, 0.0)]
        return {"last": self.kept["last"], "shared": ends[0] - ends[1]}

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Add the gradient of the fraction."""
        if "last" not in given or not self.beta:
            return
        near, away = (weights - start) * given["shared"], (weights - given["last"]) * given["shared"]
        distance = away.abs().sum(-1, keepdim=True) + _TINY
        share = near.abs().sum(-1, keepdim=True) / distance
        gradient.add_((near.sign() - share * away.sign()) / distance, alpha=self.beta)

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Keep the weights of the end."""
        self.kept = {"last": ended.end.clone()}
        return {}


@LOCAL_PARTS.add("control_variates")
class ControlVariates(Part):
    """SCAFFOLD: each step goes along g − c_k + c, where c_k estimates the site's own gradient and c everybody's.

    After a round c_k ← c_k − c + (w − w_k) / (‖a‖₁ η), and c moves by the sites' mean change of c_k, weighted as their
    updates are; a site that sat the round out, or whose answer did not count, counts with no change, and keeps its c_k.
    With equal weights c stays the mean of all c_k.

    Source: Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated learning, ICML 2020, algorithm 1
    with option II. ‖a‖₁ is the number of steps for plain SGD, as there; with momentum it is what makes (w − w_k) /
    (‖a‖₁ η) the mean gradient again. The paper weights all sites alike (`training: {weights: uniform}`).
    """

    reveals: ClassVar = {
        "control_change": "the change of the site's mean gradient in the round: like a second update",
        "control": "the mean gradient of all sites: like a second global model",
    }
    means: ClassVar = frozenset({"control_change"})
    retells = True
    shapes: ClassVar = {"control_change": Shaped("float32", "W", always="train"), "control": Shaped("float32", "W")}
    needs_sgd = True
    same_network = True

    def at_site(self) -> SiteEnd:
        """Keeps c_k."""
        return _OwnControl()

    def at_server(self) -> ServerEnd:
        """Keeps c."""
        return _MeanControl()


class _OwnControl(SiteEnd):
    def meet(self, view: SiteView) -> Memory:
        """c_k = 0."""
        self.kept = {"control": torch.zeros(view.trainable)}
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """c − c_k; before the first round c = 0, which is not sent."""
        self._control, own = received.get("control"), self.kept["control"]
        return {"correction": -own if self._control is None else self._control - own}

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Add c − c_k."""
        gradient.add_(given["correction"])

    def end(self, ended: Ended, given: Memory) -> Memory:
        """c_k⁺, and its change."""
        length = ended.path() * ended.view.learning_rate
        if not length:  # a schedule may reach a rate of 0: a site that stays where it is learns nothing of its gradient
            return {"control_change": torch.zeros_like(ended.start)}
        change = (ended.start - ended.end).div_(length)
        if self._control is not None:
            change.sub_(self._control)
        self.kept = {"control": self.kept["control"] + change}
        return {"control_change": change}


class _MeanControl(ServerEnd):
    """c ← c + Σ p_k (c_k⁺ − c_k), with p_k the site's share of the whole federation."""

    def __init__(self) -> None:
        self._control: Tensor | None = None

    def begin(self, now: Now) -> None:
        """Begin with no change."""
        super().begin(now)
        self._change: Tensor | None = None

    def send(self, site: str) -> Memory:
        """c; nothing as long as it is zero."""
        return {} if self._control is None else {"control": self._control}

    def take(self, update: Update) -> Update:
        """Add a site's change."""
        change, share = self.sent(update)["control_change"], update.weight / sum(self.now.everyone.values())
        self._change = change * share if self._change is None else self._change.add_(change, alpha=share)
        return update

    def finish(self, step: Step) -> Step:
        """Move c."""
        if self._change is not None:
            self._control = self._change if self._control is None else self._control + self._change
        return step

    def memory(self) -> Memory:
        """c."""
        return {} if self._control is None else {"control": self._control}

    def restore(self, memory: Memory) -> None:
        """Take back c."""
        self._control = memory.get("control")


@LOCAL_PARTS.add("dynamic_regularisation")
class DynamicRegularisation(Part):
    """FedDyn: at the site adds α/2 ‖w' − w‖² − ⟨h_k, w'⟩ to the local loss, and after a round h_k ← h_k − α Δ_k; at the
    server h ← h − α Σ p_k Δ_k over the sites that took part, and w ← w̄ − h / α, with w̄ what the aggregation gave.

    Source: Acar et al., Federated learning based on dynamic regularization, ICLR 2021, algorithm 1, where all sites
    weigh the same (`training: {weights: uniform}`).

    Args:
        alpha: α.
    """

    same_network = True

    def __init__(self, *, alpha: PositiveFloat = 0.01) -> None:
        self.alpha = alpha

    def at_site(self) -> SiteEnd:
        """Keeps h_k."""
        return _OwnGradient(self.alpha)

    def at_server(self) -> ServerEnd:
        """Keeps h."""
        return _MeanGradient(self.alpha)


class _OwnGradient(SiteEnd):
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def meet(self, view: SiteView) -> Memory:
        """h_k = 0."""
        self.kept = {"gradient": torch.zeros(view.trainable)}
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """h_k + α w, so that a step adds two vectors only."""
        return {"offset": self.kept["gradient"].add(view.vector[: view.trainable], alpha=self.alpha)}

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Add α (w' − w) − h_k."""
        gradient.add_(weights, alpha=self.alpha).sub_(given["offset"])

    def end(self, ended: Ended, given: Memory) -> Memory:
        """h_k − α Δ_k."""
        self.kept = {"gradient": self.kept["gradient"].sub(ended.end - ended.start, alpha=self.alpha)}
        return {}


class _MeanGradient(ServerEnd):
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._gradient: Tensor | None = None

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self._weight = 0.0

    def take(self, update: Update) -> Update:
        """Count who took part."""
        self._weight += update.weight
        return update

    def finish(self, step: Step) -> Step:
        """w̄ − h / α; statistics stay as aggregated."""
        share = self._weight / sum(self.now.everyone.values())
        before = torch.zeros_like(step.change) if self._gradient is None else self._gradient
        self._gradient = before.sub(step.change, alpha=self.alpha * share)
        step.change.sub_(self._gradient, alpha=1.0 / self.alpha)
        return step

    def memory(self) -> Memory:
        """h ``[T]``."""
        return {} if self._gradient is None else {"gradient": self._gradient}

    def restore(self, memory: Memory) -> None:
        """Take back h."""
        self._gradient = memory.get("gradient")
