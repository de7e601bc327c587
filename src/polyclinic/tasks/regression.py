"""Prediction of a number for each case, such as the age from an image of the brain."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from polyclinic.tasks.base import Task
from polyclinic.tasks.metrics import REGRESSION


class Regression(Task):
    """One number a case. Outputs are ``[B, 1]`` in standardised units, targets float32 ``[B]`` in their own unit.

    The network learns ``(target - mean) / deviation`` with ``scale``, the mean and deviation over the training cases of
    all training sites together, so that learning rates mean the same whatever the unit.
    """

    name = "regression"
    losses: ClassVar[tuple[str, ...]] = ("mse", "mae", "huber")
    metrics: ClassVar[tuple[str, ...]] = REGRESSION
    default_metrics: ClassVar[tuple[str, ...]] = REGRESSION

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]`` in standardised units; ``huber`` is linear beyond one deviation (Huber 1964)."""
        mean, deviation = self.scale
        wanted = (targets.to(outputs.dtype) - mean) / deviation
        if self.loss_name == "mae":
            return F.l1_loss(outputs[:, 0], wanted, reduction="none")
        measure = F.huber_loss if self.loss_name == "huber" else F.mse_loss
        return measure(outputs[:, 0], wanted, reduction="none")

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The predicted numbers ``[B, 1]`` in the unit of the targets."""
        mean, deviation = self.scale
        return outputs.double() * deviation + mean
