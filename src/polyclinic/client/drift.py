"""Rules against client drift: local models that move away from each other because the sites' data differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from polyclinic.client.rules import LOCAL_RULES, Counterpart, Ended, GradientRule, Memory, SiteFacts


@LOCAL_RULES.add("proximal")
class Proximal(GradientRule):
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


@LOCAL_RULES.add("control_variates")
class ControlVariates(GradientRule):
    """SCAFFOLD: each step goes along g − c_k + c, where c_k estimates the site's own gradient and c everybody's.

    After a round c_k ← c_k − c + (w − w_k) / (‖a‖₁ η), and c moves by the sites' mean change of c_k, weighted as their
    updates are; a site that sat the round out counts with no change. So does one whose answer came too late, but it has
    moved its own c_k and does not know, so that c is no longer the mean of all c_k.

    Source: Karimireddy et al., SCAFFOLD: stochastic controlled averaging for federated learning, ICML 2020, algorithm 1
    with option II. ‖a‖₁ is the number of steps for plain SGD, as there; with momentum it is what makes (w − w_k) /
    (‖a‖₁ η) the mean gradient again. The paper weights all sites alike (`training: {weights: uniform}`).
    """

    sends: ClassVar = {"control_change": "the change of the site's mean gradient in the round: like a second update"}
    receives: ClassVar = {"control": "the mean gradient of all sites: like a second global model"}
    needs_sgd = True

    def counterpart(self) -> Counterpart:
        """Keeps c."""
        return MeanControl()

    def initial(self, site: SiteFacts) -> Memory:
        """c_k = 0."""
        return {"control": torch.zeros(site.trainable)}

    def begin(self, start: Tensor, memory: Memory, received: Mapping[str, Tensor]) -> Memory:
        """c − c_k."""
        if "control" not in received:  # before the first round c = 0
            return {"correction": -memory["control"]}
        return {"correction": received["control"] - memory["control"]}

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Add c − c_k."""
        gradient.add_(given["correction"])

    def end(self, ended: Ended, memory: Memory) -> tuple[Memory, Memory]:
        """c_k⁺, and its change."""
        change = (ended.start - ended.end).div_(ended.path * ended.learning_rate)
        if "control" in ended.received:
            change.sub_(ended.received["control"])
        return {"control": memory["control"] + change}, {"control_change": change}


class MeanControl(Counterpart):
    """c ← c + Σ p_k (c_k⁺ − c_k)."""

    def __init__(self) -> None:
        self._control: Tensor | None = None
        self._change: Tensor | None = None

    def send(self) -> Memory:
        """c; nothing as long as it is zero."""
        return {} if self._control is None else {"control": self._control}

    def begin(self) -> None:
        """Begin with no change."""
        self._change = None

    def add(self, site: str, share: float, sent: Memory) -> None:
        """Add a site's change."""
        change = sent["control_change"]
        self._change = change * share if self._change is None else self._change.add_(change, alpha=share)

    def finish(self) -> None:
        """Move c."""
        if self._change is not None:
            self._control = self._change if self._control is None else self._control + self._change
        self._change = None

    def memory(self) -> Memory:
        """c."""
        return self.send()

    def restore(self, memory: Memory) -> None:
        """Take back c."""
        self._control = memory.get("control")


@LOCAL_RULES.add("dynamic_regularisation")
class DynamicRegularisation(GradientRule):
    """FedDyn at the site: adds α/2 ‖w' − w‖² − ⟨h_k, w'⟩ to the local loss; after a round h_k ← h_k − α Δ_k.

    The server's part is the server rule ``feddyn`` with the same α.

    Source: Acar et al., Federated learning based on dynamic regularization, ICLR 2021, algorithm 1.

    Args:
        alpha: α.
    """

    partner = "feddyn"

    def __init__(self, *, alpha: PositiveFloat = 0.01) -> None:
        self.alpha = alpha

    def initial(self, site: SiteFacts) -> Memory:
        """h_k = 0."""
        return {"gradient": torch.zeros(site.trainable)}

    def begin(self, start: Tensor, memory: Memory, received: Mapping[str, Tensor]) -> Memory:
        """h_k + α w, so that a step adds two vectors only."""
        return {"offset": memory["gradient"].add(start, alpha=self.alpha)}

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """Add α (w' − w) − h_k."""
        gradient.add_(weights, alpha=self.alpha).sub_(given["offset"])

    def end(self, ended: Ended, memory: Memory) -> tuple[Memory, Memory]:
        """h_k − α Δ_k."""
        return {"gradient": memory["gradient"].sub(ended.end - ended.start, alpha=self.alpha)}, {}
