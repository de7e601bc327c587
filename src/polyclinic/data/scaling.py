"""Standardising inputs and filling in missing features, from the training part only.

Sites can share what is needed for it without sharing cases: ``merge`` combines their summaries exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from polyclinic.data.volumes.store import Volumes

#: Images summarised at once; bounds the memory.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Summary:
    """Count, mean and sum of squared deviations from the mean of each feature or channel: float64 ``[F]`` each.

    Missing values are not counted. For images the values are pixels from 0 to 1, and F is the number of channels.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """The summary as named tensors, to be sent."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Summary:
        """The inverse of ``to_tensors``."""
        return cls(tensors["count"], tensors["mean"], tensors["m2"])


def summarise(inputs: Tensor | Volumes, index: Tensor) -> Summary:
    """Summary of some cases; no other case is read.

    Args:
        inputs: float32 ``[N, F]`` with NaN where missing, uint8 images ``[N, C, H, W]``, or volumes.
        index: int64 ``[B]``.
    """
    if isinstance(inputs, Volumes):
        return _summarise_volumes(inputs, index)
    if inputs.ndim == 4:
        return _summarise_images(inputs, index)
    values = inputs.index_select(0, index).double()
    there = ~values.isnan()
    count = there.sum(dim=0).double()
    mean = values.nan_to_num(0.0).sum(dim=0) / count.clamp(min=1.0)
    m2 = torch.where(there, values - mean, 0.0).square().sum(dim=0)
    return Summary(count, mean, m2)


def merge(summaries: list[Summary]) -> Summary:
    """The summary of all cases together, from the summaries of their sites, in the given order.

    With delta = mean_b - mean_a and n = n_a + n_b: mean = mean_a + delta n_b / n and
    M2 = M2_a + M2_b + delta² n_a n_b / n.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, COMPSTAT 1982.
    """
    total, *others = summaries
    for other in others:
        count = total.count + other.count
        delta = other.mean - total.mean
        weight = other.count / count.clamp(min=1.0)
        total = Summary(count, total.mean + delta * weight, total.m2 + other.m2 + delta.square() * total.count * weight)
    return total


def sums(summary: Summary) -> dict[str, Tensor]:
    """What is added over sites where nobody is to see a site's own summary: first ``count`` and ``sum`` ``[F]``."""
    return {"count": summary.count, "sum": summary.count * summary.mean}


def sums_about(summary: Summary, centre: Tensor) -> dict[str, Tensor]:
    """Then ``deviation`` Σ (x - c) and ``squares`` Σ (x - c)² ``[F]``, about the common mean c of the first sums.

    So no square of a large value is ever added: far from zero, too, the digits of the deviation are kept.
    """
    shift = summary.mean - centre
    return {"deviation": summary.count * shift, "squares": summary.m2 + summary.count * shift.square()}


def common_mean(total: dict[str, Tensor]) -> Tensor:
    """The mean of all cases, from the first sums."""
    return total["sum"] / total["count"].clamp(min=1.0)


def of_sums(total: dict[str, Tensor], about: dict[str, Tensor]) -> Summary:
    """The summary of all cases, from both sums; what rounding has left in the mean is taken out by the second."""
    shift = about["deviation"] / total["count"].clamp(min=1.0)
    m2 = (about["squares"] - about["deviation"] * shift).clamp(min=0.0)
    return Summary(total["count"], common_mean(total) + shift, m2)


@dataclass(frozen=True, eq=False)
class Scaler:
    """``(x - mean) / deviation`` for each feature or channel, with ``fill`` in place of missing values.

    Attributes:
        mean, deviation, fill: float32 ``[F]``, in the units of the inputs (images: pixels from 0 to 1).
    """

    mean: Tensor
    deviation: Tensor
    fill: Tensor

    @classmethod
    def from_summary(cls, summary: Summary) -> Scaler:
        """Standardises to mean 0 and deviation 1 over the summarised cases; a missing value becomes the mean.

        The deviation is that of the population (divided by the count). Where it is 0, or nothing was counted, it is 1.
        """
        deviation = (summary.m2 / summary.count.clamp(min=1.0)).sqrt()
        # A constant such as 0.1 has a deviation of rounding errors only, which must not be blown up to 1.
        constant = deviation <= torch.finfo(torch.float32).eps * summary.mean.abs()
        mean = summary.mean.float()
        return cls(mean, torch.where(constant, 1.0, deviation).float(), mean)

    @classmethod
    def identity(cls, features: int) -> Scaler:
        """Leaves values as they are; a missing value becomes 0 unless ``with_mean`` or ``with_median`` follows."""
        return cls(torch.zeros(features), torch.ones(features), torch.zeros(features))

    def to_tensors(self) -> dict[str, Tensor]:
        """The scaling as named tensors."""
        return {"mean": self.mean, "deviation": self.deviation, "fill": self.fill}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Scaler:
        """The inverse of ``to_tensors``."""
        return cls(tensors["mean"], tensors["deviation"], tensors["fill"])

    @property
    def changes(self) -> bool:
        """Whether it changes values at all."""
        return bool((self.mean != 0).any() or (self.deviation != 1).any())

    def with_mean(self, summary: Summary) -> Scaler:
        """The same scaling, but a missing value becomes the mean of the summarised cases.

        A feature without any value there keeps its fill.
        """
        return replace(self, fill=torch.where(summary.count > 0, summary.mean.float(), self.fill))

    def with_median(self, inputs: Tensor, index: Tensor) -> Scaler:
        """The same scaling, but a missing value becomes the median of some cases.

        Args:
            inputs: float32 ``[N, F]`` with NaN where missing.
            index: int64 ``[B]``; no other case is read. A feature without any value there keeps its fill.
        """
        table = pd.DataFrame(inputs.index_select(0, index).numpy())
        median = torch.from_numpy(table.median().to_numpy(dtype="float32", copy=True))
        return replace(self, fill=torch.where(median.isnan(), self.fill, median))

    def apply(self, x: Tensor) -> Tensor:
        """Fill in missing values and scale: float32 ``[B, F]`` or ``[B, C, H, W]`` to the same shape."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        filled = torch.where(x.isnan(), self.fill.view(shape), x) if x.ndim == 2 else x
        return (filled - self.mean.view(shape)).div_(self.deviation.view(shape))


def _summarise_volumes(volumes: Volumes, index: Tensor) -> Summary:
    """Summary of each channel's voxels, one case after another."""
    nothing = torch.zeros(volumes.shape[1], dtype=torch.float64)
    found = [Summary(nothing, nothing, nothing)]
    for position in index.tolist():
        values = volumes[position].flatten(1).double()
        count = torch.full_like(nothing, values.shape[1])
        mean = values.mean(dim=1)
        found.append(Summary(count, mean, (values - mean[:, None]).square().sum(dim=1)))
    return merge(found)


def _summarise_images(inputs: Tensor, index: Tensor) -> Summary:
    """Exact summary from the histogram of each channel's 256 pixel values."""
    channels = inputs.shape[1]
    histogram = torch.zeros(channels, 256, dtype=torch.float64)
    for start in range(0, len(index), _CHUNK):
        images = inputs.index_select(0, index[start : start + _CHUNK])
        for channel in range(channels):
            # Pillow counts bytes ten times faster than torch.bincount.
            pixels = Image.fromarray(images[:, channel].numpy().reshape(-1, images.shape[3]))
            histogram[channel] += torch.tensor(pixels.histogram(), dtype=torch.float64)
    values = torch.arange(256, dtype=torch.float64) / 255.0
    count = histogram.sum(dim=1)
    mean = histogram @ values / count.clamp(min=1.0)
    m2 = (histogram * (values - mean[:, None]).square()).sum(dim=1)
    return Summary(count, mean, m2)
