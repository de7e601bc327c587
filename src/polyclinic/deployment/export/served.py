"""What an exported file computes: from the inputs of a case to what is predicted of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyclinic.deployment.export.front import Front
from polyclinic.models import build_model
from polyclinic.study.final_model.folder import Model
from polyclinic.tasks import Task


class Served(nn.Module):
    """Scaling, network and probabilities in one; of several networks the mean of their probabilities.

    A case with inputs that are no numbers gives none: a network may hide them, since in some programs ReLU makes 0 of
    them.

    Args:
        networks: with their weights.
        task: what their outputs mean.
        front: what is done to inputs.
    """

    def __init__(self, networks: Sequence[nn.Module], task: Task, front: Front) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.task, self.front = task, front
        self.scaler = front.scaler if front.fills or (front.scaler is not None and front.scaler.changes) else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions float32 ``[B, ...]``, see `Task.probabilities`, of inputs ``[B, F]`` or ``[B, C, ...]``."""
        front, values = self.front, inputs
        if front.pixels:
            values = inputs.float() / 255.0
        broken = values.isinf() if front.fills else ~values.isfinite()
        if self.scaler is not None:
            values = self.scaler.apply(values)
        found = [self.task.probabilities(network(values)) for network in self.networks]
        mean = torch.stack(found).mean(0)
        wrong = broken.flatten(1).any(1).view(-1, *[1] * (mean.ndim - 1))
        return torch.where(wrong, torch.nan, mean.float())


def served(model: Model, front: Front) -> Served:
    """What the exported file of a model computes."""
    description = model.description
    name, options = description.network
    networks = []
    for vector in model.vectors:
        flat = build_model(name, options, description.shape, description.outputs)
        flat.load(vector)
        networks.append(flat.module.eval())
    return Served(networks, description.built_task, front).eval()
