"""A personal model of two networks: a gate says for each case how much the shared one and the site's own count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.client.companion import Companion
from polyclinic.client.features import feature_count, frozen_outputs
from polyclinic.client.optimizers import Named, build_optimizer
from polyclinic.client.personal.mixture import Mixture, mixed
from polyclinic.client.personal.models import PERSONAL, Beside, Personal
from polyclinic.client.work import clip_gradient
from polyclinic.errors import TrainingError
from polyclinic.parts import Memory, SiteView
from polyclinic.state import FlatModule

#: No share that float32 knows is nearer to 0 or 1 than that of a gate of this size.
_SHUT = 120.0


@PERSONAL.add("mixture_of_experts")
class MixtureOfExperts(Personal):
    """Fed-MoE: outputs for the site's own cases are a(x) o_w(x) + (1 − a(x)) o_v(x), of the shared w and its own v.

    The gate is a(x) = σ(⟨ψ, z(x)⟩ + b), with the features z that w gives its head, averaged over places; v, ψ and b
    stay at the site. In each step v is trained as if it were alone, v ← v − η ∇F_k(o_v), then w and the gate with the
    loss of the mixture, each by an optimiser of the same kind. v is taken as in evaluation there, and the gate moves no
    features. Terms of loss rules and weights of classes count for both networks.

    Source: Li et al., Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation: ABIDE
    results, Medical Image Analysis 65 (2020), as in the authors' code, after Peterson et al., Private federated
    learning with domain adaptation, arXiv 1912.06733. There the gate looks at the inputs, which z is for a linear
    model, and log-probabilities are mixed and not brought to the sum 1; outputs mixed as here are the same
    log-probabilities, brought to it. There v is taken as in training.

    Args:
        mixture: a at the start, for all cases; 1 is the shared model, 0 the site's own alone.
        learn_gate: whether the gate is learned.
    """

    not_stackable = "mixture_of_experts trains a second model beside the first"
    keeps_optimizer = False
    mixed_precision = False

    def __init__(self, *, mixture: Annotated[float, Field(ge=0, le=1)] = 0.5, learn_gate: bool = True) -> None:
        self.mixture, self.learn_gate = mixture, learn_gate

    def initial(self, view: SiteView) -> Memory:
        """v is the first model."""
        features = feature_count(view.model)
        if features is None:
            text = "The model declares no head, and the gate of mixture_of_experts looks at what the head is given."
            raise TrainingError("P302", text, "Choose another model, or name its `head`.")
        gate = torch.zeros(features + 1)
        gate[-1] = torch.logit(torch.tensor(self.mixture)).clamp(-_SHUT, _SHUT)
        weights, statistics = view.vector[: view.trainable], view.vector[view.trainable :]
        return {"weights": weights.clone(), "statistics": statistics.clone(), "gate": gate}

    def companion(self, memory: Memory, optimizer: Named, clip: float | None, batches: int) -> Companion | None:
        """Trains v and the gate."""
        return _Experts(memory, optimizer, clip, batches, learn=self.learn_gate)

    def predictor(self, shared: Tensor, memory: Memory) -> Mixture:
        """Both networks and the gate."""
        return Mixture(shared, torch.cat([memory["weights"], memory["statistics"]]), memory["gate"])

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """v and the gate after the round."""
        return companion.memory() if isinstance(companion, _Experts) else memory


class _Experts(Beside):
    """Trains v for a round, and the gate with the shared model; see `MixtureOfExperts`."""

    needs_features = True

    def __init__(self, memory: Memory, optimizer: Named, clip: float | None, batches: int, *, learn: bool) -> None:
        alone = {**memory, "mixture": torch.tensor(1.0)}
        super().__init__(alone, optimizer, clip, batches, learn=False)
        self.gate, self.learns = nn.Parameter(memory["gate"].clone()), learn
        self._gate_optimizer: torch.optim.Optimizer | None = None
        self._model: FlatModule | None = None
        self._used: Tensor | None = None

    def step(self, model: FlatModule, backward: Callable[[], Tensor]) -> None:
        """One step of v; the gate makes that of the batch before."""
        self._move_gate()
        self._model = None
        super().step(model, backward)
        self._model = model

    def mixed(self, inputs: Tensor, outputs: Tensor, features: Tensor) -> Tensor:
        """The mixture, where the shared model is trained."""
        if self._model is None:
            return outputs
        own = torch.cat([self.weights.detach(), self.statistics])
        self._used = self.gate.detach().to(outputs.device).requires_grad_(self.learns)
        return mixed(self._used, features.detach(), outputs, frozen_outputs(self._model, own, inputs))

    def _move_gate(self) -> None:
        """The gate's step with the gradient of the batch that was last mixed."""
        if self._used is None or self._used.grad is None:
            return
        if self._gate_optimizer is None:
            self._gate_optimizer = build_optimizer(self.named, [self.gate])
        gradient, self._used = self._used.grad.to(self.gate.device), None
        clip_gradient(gradient, self.clip)
        self.gate.grad = gradient
        self._gate_optimizer.step()

    def memory(self) -> Memory:
        """See `MixtureOfExperts.initial`."""
        self._move_gate()
        found = {"weights": self.weights.detach(), "statistics": self.statistics, "gate": self.gate.detach()}
        return {name: tensor.to("cpu", copy=True) for name, tensor in found.items()}
