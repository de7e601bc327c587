"""Segmentation of one or several structures in images and volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from polyclinic.candidates import possible, undecided
from polyclinic.ignored import IGNORED
from polyclinic.options import Catalogue
from polyclinic.shapes import Shaped
from polyclinic.tasks.base import Asked, Batch, LossFunction, Score, Sent, register
from polyclinic.tasks.case_means import MeasuredByCase
from polyclinic.tasks.metrics import SEGMENTATION
from polyclinic.tasks.segmentation_metrics import metric_columns, segmentation_case, segmentation_classes

if TYPE_CHECKING:
    from monai.losses import DiceLoss, FocalLoss

#: Thresholds tried on validation cases; each site answers with the summed Dice at each.
MASK_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))

#: A logit that is as good as infinite, but in half precision, too.
_SURE = 1e4


#: Functions of network outputs ``[B, C, ...]`` and targets ``[B, 1, ...]``, uint8 class indices, that give ``[B]``, or
#: ``[2, B]`` with a loss of whole masks and one that is a mean over pixels, which are added. Where the truth is
#: ``IGNORED`` they see background, and outputs that are sure of it; means over pixels are put right afterwards.
LOSSES: Catalogue[LossFunction] = Catalogue("loss of segmentation")


def _sum_of(*parts: LossFunction) -> LossFunction:
    return lambda outputs, targets: torch.stack([part(outputs, targets) for part in parts]).sum(0)


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Soft Dice (Milletari 2016), mean over the structures without the background."""
    found = _soft_dice(several=outputs.shape[1] > 1)(outputs, targets.to(outputs.dtype)).flatten(1).mean(1)
    return torch.stack([found, torch.zeros_like(found)])


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels."""
    if outputs.shape[1] > 1:
        entropy = F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
    else:
        entropy = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
    found = entropy.flatten(1).mean(1)
    return torch.stack([torch.zeros_like(found), found])


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean focal loss of the pixels (Lin 2017, gamma 2)."""
    # Of the classes' maps only that of the true class is not zero.
    found = _focal(several=outputs.shape[1] > 1)(outputs, targets.to(outputs.dtype)).sum(1).flatten(1).mean(1)
    return torch.stack([torch.zeros_like(found), found])


LOSSES.add("dice_cross_entropy")(_sum_of(dice, cross_entropy))
LOSSES.add("dice")(dice)
LOSSES.add("cross_entropy")(cross_entropy)
LOSSES.add("dice_focal")(_sum_of(dice, focal))
LOSSES.add("focal")(focal)


@cache
def _soft_dice(*, several: bool) -> DiceLoss:
    from monai.losses import DiceLoss

    if several:
        return DiceLoss(softmax=True, to_onehot_y=True, include_background=False, reduction="none")
    return DiceLoss(sigmoid=True, reduction="none")


@cache
def _focal(*, several: bool) -> FocalLoss:
    from monai.losses import FocalLoss

    return FocalLoss(gamma=2.0, use_softmax=several, to_onehot_y=several, reduction="none")


@register
class Segmentation(MeasuredByCase):
    """A mask a case, in two or three dimensions.

    One structure: outputs are logits ``[B, 1, H, W]`` or ``[B, 1, D, H, W]``. Several: one channel a class, background
    first, ``[B, C, ...]``. Targets are class indices ``[B, 1, ...]``, uint8; pixels of the index ``IGNORED`` play no
    part. A network in training may give several heads, ``[B, heads, C, ...]``, the finest first (deep supervision).
    """

    name = "segmentation"
    target = "masks"
    losses: ClassVar = LOSSES
    metrics: ClassVar[tuple[str, ...]] = SEGMENTATION
    default_metrics: ClassVar[tuple[str, ...]] = ("dice", "hd95", "sen", "pre")

    has_accuracy = True
    says: ClassVar = {"metrics": list[str], "space": str}
    counts = Shaped("float64", 2, len(MASK_THRESHOLDS))

    @property
    def several(self) -> bool:
        """Whether there is more than one structure besides the background."""
        return self.classes > 2

    @property
    def outputs(self) -> int:
        """One logit a pixel, or one for each class where there are several structures."""
        return self.classes if self.several else 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]``, by a function of `LOSSES`.

        The losses of several heads are added with weights 1, 1/2, 1/4, ... that are divided by their sum (Isensee 2021,
        nnU-Net).
        """
        if outputs.dim() == targets.dim() + 1:
            weights = [0.5**head for head in range(outputs.shape[1])]
            losses = [
                self._loss(head, targets) * weight for head, weight in zip(outputs.unbind(1), weights, strict=True)
            ]
            return torch.stack(losses).sum(0) / sum(weights)
        return self._loss(outputs, targets)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = self._merged(outputs, targets)
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

    def _merged(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets in which all classes that a pixel may be of are its background: it has the sum of their
        probabilities, and they have none left (marginal loss: Shi et al., Medical Image Analysis 2021)."""
        unsure = undecided(targets, self.classes)
        if not unsure.any():
            return outputs, targets
        if not self.several:
            return outputs, targets.masked_fill(unsure, IGNORED)
        allowed = possible(targets, self.classes) & unsure
        together = outputs.masked_fill(~allowed, -torch.inf).logsumexp(dim=1, keepdim=True)
        merged = outputs.masked_fill(allowed, -_SURE)
        merged = torch.cat([torch.where(unsure, together, merged[:, :1]), merged[:, 1:]], dim=1)
        return merged, targets.masked_fill(unsure, 0)

    def _whole_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The parts of the loss ``[2, B]``: of the whole masks, and means over pixels."""
        found = self.losses[self.loss_name](outputs, targets, **self.loss_options)
        if isinstance(found, Tensor) and found.shape == (2, len(outputs)):
            return found
        whole = self._checked(found, outputs)
        return torch.stack([whole, torch.zeros_like(whole)])

    def example(self) -> tuple[Tensor, Tensor]:
        """See `Task.example`: pictures."""
        targets = torch.arange(4 * 16 * 16).view(4, 1, 16, 16) // 7 % max(self.classes, 2)
        outputs = torch.linspace(-1.0, 2.0, 4 * self.outputs * 256).mul(40).sin().view(4, self.outputs, 16, 16)
        return outputs, targets.to(torch.uint8)

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

    @classmethod
    def validation_metric(cls, primary: str) -> str:
        """Dice, whatever is reported: it is always defined, and quick."""
        return "dice"

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """Mean loss and mean Dice at a threshold of one half."""
        losses, scores = [], []
        for outputs, targets, _ in batches:
            losses.append(self.loss(outputs, targets))
            scores.append(self._overlap(self.decide(self.probabilities(outputs), 0.5), targets))
        return Score(float(torch.cat(losses).mean()), torch.cat(scores).mean().item())

    def accuracy(self, batches: Iterable[Batch]) -> Score:
        """Mean loss and mean Dice."""
        return self.score(batches, "dice")

    def evidence(self, batches: Iterable[Batch]) -> Tensor:
        """float64 ``[2, T]``: summed Dice and number of cases at each of ``MASK_THRESHOLDS``."""
        evidence = torch.zeros(2, len(MASK_THRESHOLDS), dtype=torch.float64)
        for predicted, targets, _ in batches:
            for column, threshold in enumerate(MASK_THRESHOLDS):
                evidence[0, column] += self._overlap(self.decide(predicted, threshold), targets).double().sum()
            evidence[1] += len(targets)
        return evidence

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """Names of the ``metrics`` and the ``space`` of the masks, and ``values`` float64 ``[N, M]``; distances by each
        case's own spacing."""
        columns = metric_columns(asked.names, asked.classes)
        rows = []
        for batch in batches:
            masks, wanted = (one.numpy() for one in self.shown(batch, threshold))
            for place, (mask, target) in enumerate(zip(masks, wanted, strict=True)):
                spacing = None if batch.spacings is None else batch.spacings[place]
                if self.several:
                    left_out = self._unknown(batch.targets[place])
                    found = segmentation_classes(
                        mask, target, asked.names, asked.classes, spacing, asked.tolerance, left_out
                    )
                else:
                    found = segmentation_case(mask, target, asked.names, spacing, asked.tolerance)
                rows.append([found[name] for name in columns])
        values = torch.tensor(rows, dtype=torch.float64).view(-1, len(columns))
        return {"metrics": columns, "space": asked.space}, {"values": values}

    def misfit(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], asked: Asked) -> str:
        """The metrics are those that were asked for, in the space that was asked for."""
        wrong = super().misfit(fields, tensors, asked)
        if wrong:
            return wrong
        if fields["space"] != asked.space:
            return f"space: got {str(fields['space'])[:20]!r}, expected {asked.space!r}"
        return ""

    def case_scores(self, batches: Iterable[Batch], threshold: float) -> Tensor:
        """Dice of each case ``[N]``."""
        return torch.cat([self._overlap(self._decided(one, threshold), one.targets) for one in batches])

    def shown(self, batch: Batch, threshold: float) -> tuple[Tensor, Tensor]:
        """Predicted and true masks, with background where the truth is ``IGNORED``."""
        return self._comparable(self._decided(batch, threshold), batch.targets)

    def _comparable(self, decided: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See `without_ignored`; where a pixel may be of several classes, one of them is as good as another."""
        unsure = undecided(targets, self.classes)
        if unsure.any():
            fits = possible(targets, max(self.classes, 2)).gather(1, decided[:, None].long())[:, 0]
            decided, targets = decided.masked_fill(unsure[:, 0] & fits, 0), targets.masked_fill(unsure, 0)
        return without_ignored(decided, targets)

    def _unknown(self, target: Tensor) -> list[int]:
        """Structures of which a mask ``[1, ...]`` does not say where they are."""
        unsure = undecided(target, self.classes)
        if not unsure.any():
            return []
        found = possible(target[unsure].view(1, 1, -1), self.classes)[0].any(1)
        return [structure for structure in range(1, self.classes) if found[structure]]

    def _decided(self, batch: Batch, threshold: float) -> Tensor:
        return batch.found if batch.decided else self.decide(batch.found, threshold)

    def _overlap(self, decided: Tensor, targets: Tensor) -> Tensor:
        """Dice of each case ``[B]``, mean over the structures; 1 for a structure that is in neither mask. Structures of
        which a mask does not say where they are count for nothing."""
        unsure = bool(undecided(targets, self.classes).any())
        left_out = [self._unknown(target) for target in targets] if unsure else []
        decided, targets = self._comparable(decided, targets)
        scores = []
        for structure in range(1, max(self.classes, 2)):
            mask, target = (decided == structure).flatten(1), (targets == structure).flatten(1)
            overlap, total = (mask & target).sum(1), mask.sum(1) + target.sum(1)
            scores.append(torch.where(total > 0, 2 * overlap / total.clamp_min(1), torch.ones(())))
            for case, others in enumerate(left_out):
                if structure in others:
                    scores[-1][case] = torch.nan
        return torch.stack(scores).nanmean(0) if left_out else torch.stack(scores).mean(0)

    @property
    def has_threshold(self) -> bool:
        """Of one structure; of several the most probable one is taken."""
        return not self.several

    def choose_threshold(self, evidence: Tensor) -> float:
        """The highest mean Dice."""
        if not evidence[1, 0]:
            return 0.5
        return MASK_THRESHOLDS[int((evidence[0] / evidence[1]).argmax())]

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """A column for each metric, and one for the space in which it was measured."""
        found = super().columns(fields, tensors, threshold)
        return found | {"space": [fields["space"]] * len(tensors["values"])}

    def result_metrics(self, names: Sequence[str], classes: Sequence[str]) -> list[str]:
        """With several structures also each metric of each structure, see `metric_columns`."""
        return metric_columns(names, classes)


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
