"""Segmentation of one foreground structure in 2D images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from polyclinic.tasks.base import Task
from polyclinic.tasks.metrics import SEGMENTATION


class Segmentation(Task):
    """A mask a case. Outputs are logits ``[B, 1, H, W]``, targets masks ``[B, 1, H, W]`` of 0 and 1."""

    name = "segmentation"
    losses: ClassVar[tuple[str, ...]] = ("dice_cross_entropy", "dice", "cross_entropy")
    metrics: ClassVar[tuple[str, ...]] = tuple(SEGMENTATION)

    def __init__(self, classes: int, loss: str) -> None:
        super().__init__(classes, loss)
        from monai.losses import DiceLoss
        from torch.nn import BCEWithLogitsLoss

        self._dice = DiceLoss(sigmoid=True, reduction="none")
        self._cross_entropy = BCEWithLogitsLoss(reduction="none")

    @property
    def outputs(self) -> int:
        """One logit a pixel."""
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]``: soft Dice (Milletari 2016), binary cross-entropy, or their sum."""
        targets = targets.to(outputs.dtype)
        total = outputs.new_zeros(outputs.shape[0])
        if self.loss_name != "cross_entropy":
            total = total + self._dice(outputs, targets).flatten(1).mean(1)
        if self.loss_name != "dice":
            total = total + self._cross_entropy(outputs, targets).flatten(1).mean(1)
        return total

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probability of foreground ``[B, 1, H, W]``."""
        return outputs.float().sigmoid()
