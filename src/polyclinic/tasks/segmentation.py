"""Segmentation of one or several structures in images and volumes."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from polyclinic.ignored import IGNORED
from polyclinic.tasks.base import Task
from polyclinic.tasks.metrics import SEGMENTATION

#: A logit that is as good as infinite, but in half precision, too.
_SURE = 1e4


class Segmentation(Task):
    """A mask a case, in two or three dimensions.

    One structure: outputs are logits ``[B, 1, H, W]`` or ``[B, 1, D, H, W]``. Several: one channel a class, background
    first, ``[B, C, ...]``. Targets are class indices ``[B, 1, ...]``, uint8; pixels of the index ``IGNORED`` play no
    part. A network in training may give several heads, ``[B, heads, C, ...]``, the finest first (deep supervision).
    """

    name = "segmentation"
    losses: ClassVar[tuple[str, ...]] = ("dice_cross_entropy", "dice", "cross_entropy", "dice_focal", "focal")
    metrics: ClassVar[tuple[str, ...]] = SEGMENTATION
    default_metrics: ClassVar[tuple[str, ...]] = ("dice", "hd95", "sen", "pre")

    def __init__(self, classes: int, loss: str, scale: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(classes, loss, scale)
        from monai.losses import DiceLoss, FocalLoss
        from torch.nn import BCEWithLogitsLoss

        several = self.several
        self._dice = (
            DiceLoss(softmax=True, to_onehot_y=True, include_background=False, reduction="none")
            if several
            else DiceLoss(sigmoid=True, reduction="none")
        )
        self._focal = FocalLoss(gamma=2.0, use_softmax=several, to_onehot_y=several, reduction="none")
        self._cross_entropy = BCEWithLogitsLoss(reduction="none")

    @property
    def several(self) -> bool:
        """Whether there is more than one structure besides the background."""
        return self.classes > 2

    @property
    def outputs(self) -> int:
        """One logit a pixel, or one for each class where there are several structures."""
        return self.classes if self.several else 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]``: soft Dice (Milletari 2016), cross-entropy, focal (Lin 2017, gamma 2) or a sum.

        Soft Dice is the mean over the structures without the background. The losses of several heads are added with
        weights 1, 1/2, 1/4, ... that are divided by their sum (Isensee 2021, nnU-Net).
        """
        if outputs.dim() == targets.dim() + 1:
            weights = [0.5**head for head in range(outputs.shape[1])]
            losses = [
                self._loss(head, targets) * weight for head, weight in zip(outputs.unbind(1), weights, strict=True)
            ]
            return torch.stack(losses).sum(0) / sum(weights)
        return self._loss(outputs, targets)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        ignored = targets == IGNORED
        if not ignored.any():
            return self._whole_loss(outputs, targets).sum(0)
        # Where the answer is background and the network is sure of it, neither losses nor gradients have anything: then
        # only the means have to be taken over fewer pixels.
        background = outputs.new_full((1, outputs.shape[1], *[1] * (outputs.dim() - 2)), -_SURE)
        if self.several:
            background[:, 0] = 0.0
        sure = torch.where(ignored, background, outputs)
        dice, others = self._whole_loss(sure, targets.masked_fill(ignored, 0))
        pixels = ignored[0].numel()
        total: Tensor = dice + others * (pixels / (pixels - ignored.flatten(1).sum(1)).clamp_min(1))
        return total

    def _whole_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The parts of the loss ``[2, B]``: soft Dice, and the means over pixels."""
        wanted = targets.to(outputs.dtype)
        total = outputs.new_zeros(outputs.shape[0])
        dice = self._dice(outputs, wanted).flatten(1).mean(1) if "dice" in self.loss_name else total
        if "cross_entropy" in self.loss_name:
            total = total + self._pixel_entropy(outputs, targets, wanted).flatten(1).mean(1)
        if "focal" in self.loss_name:
            # Of the classes' maps only that of the true class is not zero.
            total = total + self._focal(outputs, wanted).sum(1).flatten(1).mean(1)
        return torch.stack([dice, total])

    def _pixel_entropy(self, outputs: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
        if self.several:
            return F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
        entropy: Tensor = self._cross_entropy(outputs, wanted)
        return entropy

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probability of foreground ``[B, 1, ...]``, or of each class ``[B, C, ...]``."""
        return outputs.float().softmax(dim=1) if self.several else outputs.float().sigmoid()

    def decide(self, probabilities: Tensor, threshold: float) -> Tensor:
        """Class indices ``[B, ...]``, uint8: foreground from ``threshold`` on, or the most probable of several classes.

        Args:
            probabilities: as ``probabilities`` gives them.
            threshold: plays no part where there are several structures.
        """
        if self.several:
            return probabilities.argmax(dim=1).to(torch.uint8)
        return (probabilities[:, 0] >= threshold).to(torch.uint8)


def without_ignored(decided: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true class indices with background wherever the truth is ``IGNORED``, so that nothing is counted
    there.

    Args:
        decided: ``[B, ...]``.
        targets: ``[B, 1, ...]``.

    Returns:
        both ``[B, ...]``.
    """
    truth = targets[:, 0]
    ignored = truth == IGNORED
    return decided.masked_fill(ignored, 0), truth.masked_fill(ignored, 0)
