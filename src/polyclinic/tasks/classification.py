"""Binary and multi-class classification of cases."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from polyclinic.tasks.base import Task
from polyclinic.tasks.metrics import CLASSIFICATION


class Classification(Task):
    """One label a case. Outputs are logits ``[B, C]``, targets class indices ``[B]``."""

    name = "classification"
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal")
    metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION
    default_metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION

    @property
    def outputs(self) -> int:
        """One logit a class (two for a binary label)."""
        return self.classes

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each case ``[B]``; ``focal`` scales it by (1 - p)² (Lin 2017, equation 4, gamma 2)."""
        losses = F.cross_entropy(outputs, targets, reduction="none")
        if self.loss_name == "focal":
            losses = (1 - (-losses).exp()) ** 2 * losses
        return losses

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over classes ``[B, C]``, in double precision so that close scores keep their order."""
        return outputs.double().softmax(dim=1)
