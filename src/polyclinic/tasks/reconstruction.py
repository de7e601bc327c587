"""Reconstruction of MR images from part of their k-space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyclinic.options import Catalogue
from polyclinic.tasks.base import Asked, Batch, LossFunction, Score, Sent, register
from polyclinic.tasks.case_means import MeasuredByCase
from polyclinic.tasks.metrics import RECONSTRUCTION, ZERO_FILLED, class_metric
from polyclinic.tasks.reconstruction_metrics import K1, K2, WINDOW, reconstruction_case

#: Functions of reconstructed and true images, both ``[B, 1, H, W]`` or ``[B, 1, D, H, W]``, in units of the largest
#: value of the zero-filled image.
LOSSES: Catalogue[LossFunction] = Catalogue("loss of reconstruction")


@LOSSES.add("l1")
def l1(found: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of the pixels."""
    return (found - truth).abs().flatten(1).mean(1)


@LOSSES.add("mse")
def mse(found: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of the pixels."""
    return (found - truth).square().flatten(1).mean(1)


@LOSSES.add("ssim")
def ssim(found: Tensor, truth: Tensor) -> Tensor:
    """1 less the structural similarity in windows of 7 × 7 (Wang 2004), of a volume the mean over its slices.

    It is MONAI's, in 32 bits and with variances of the population; the metric has 64 bits and those of samples. The
    range of a black image is 1.
    """
    from monai.metrics.regression import compute_ssim_and_cs

    largest = truth.flatten(1).amax(1)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled = [image / largest.view(-1, *[1] * (image.ndim - 1)) for image in (found, truth)]
    slices = [image.reshape(-1, 1, *image.shape[-2:]) for image in scaled]
    similarity, _ = compute_ssim_and_cs(
        *slices, spatial_dims=2, kernel_size=[WINDOW] * 2, kernel_sigma=[1.5] * 2, kernel_type="uniform", k1=K1, k2=K2
    )
    losses: Tensor = 1 - similarity.reshape(len(found), -1).mean(1)
    return losses


@register
class Reconstruction(MeasuredByCase):
    """The image of a case that was measured faster than its size needs.

    Outputs are ``[B, 1, H, W]`` or ``[B, 1, D, H, W]``; targets ``[B, 2, ...]``: the fully sampled image, and the
    zero-filled one, which is measured beside the network's. Both in units of the largest value of the latter.
    """

    name = "reconstruction"
    target = "images"
    losses: ClassVar = LOSSES
    metrics: ClassVar[tuple[str, ...]] = RECONSTRUCTION
    default_metrics: ClassVar[tuple[str, ...]] = RECONSTRUCTION

    @property
    def outputs(self) -> int:
        """One value a pixel."""
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]``, by a function of `LOSSES`."""
        return self._called(outputs.float(), targets[:, :1].float())

    def example(self) -> tuple[Tensor, Tensor]:
        """See `Task.example`: pictures."""
        targets = torch.linspace(0.0, 1.0, 2 * 2 * 256).mul(30).sin().abs().view(2, 2, 16, 16)
        return targets[:, 1:] * 0.9, targets

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The reconstructed images ``[B, 1, ...]``."""
        return outputs.float()

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """See `Task.score`: the mean over the cases of which the metric is defined."""
        losses, values = list[Tensor](), list[float]()
        for found, targets, _ in batches:
            losses.append(self.loss(found, targets))
            values += [case[metric] for case in _measured(found, targets, [metric])]
        known = [value for value in values if not np.isnan(value)]
        return Score(float(torch.cat(losses).mean()), float(np.mean(known)) if known else float("nan"))

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """Names of the ``metrics`` and ``values`` float64 ``[N, M]``: of the reconstruction, then of the zero-filled
        image."""
        columns = self.result_metrics(asked.names, asked.classes)
        values = list[list[float]]()
        for found, targets, _ in batches:
            own = _measured(found, targets, asked.names)
            without = _measured(targets[:, 1:], targets, asked.names)
            values += [[*one.values(), *other.values()] for one, other in zip(own, without, strict=True)]
        return {"metrics": columns}, {"values": torch.tensor(values, dtype=torch.float64).view(-1, len(columns))}

    def case_scores(self, batches: Iterable[Batch], threshold: float) -> Tensor:
        """PSNR of each case ``[N]``; NaN where it is not defined."""
        cases = [case for found, targets, _ in batches for case in _measured(found, targets, ["psnr"])]
        return torch.tensor([case["psnr"] for case in cases], dtype=torch.float64)

    def result_metrics(self, names: Sequence[str], classes: Sequence[str]) -> list[str]:
        """The metrics, and the same of the zero-filled image.

        >>> Reconstruction(0, "l1").result_metrics(["psnr"], [])
        ['psnr', 'psnr[zero-filled]']
        """
        return [*names, *(class_metric(name, ZERO_FILLED) for name in names)]


def _measured(found: Tensor, targets: Tensor, names: Sequence[str]) -> list[dict[str, float]]:
    """The metrics of each case."""
    pairs = zip(found[:, 0].numpy(), targets[:, 0].numpy(), strict=True)
    return [reconstruction_case(image, truth, names) for image, truth in pairs]
