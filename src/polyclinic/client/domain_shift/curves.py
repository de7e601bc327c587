"""A light generator of images in another style: curves for the channels and a mixture of them, chosen by the image."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from polyclinic.seeds import generator

#: How bright an image is, is seen by these quantiles of each channel.
_LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
#: At so many places of it at most.
_PLACES = 1024
#: An image that looks like no other counts as if it were at most so many deviations away.
_FARTHEST = 8.0
_HIDDEN = 32
#: Pieces of a curve.
_PIECES = 8
#: Logarithm of how much steeper or flatter than 1 a curve can be: contrasts grow or shrink 7.4-fold at most.
_STEEPEST = 2.0
#: Less than 1, so that a mixture can be undone.
_MOST_MIXED = 0.9


class CurveGenerator:
    """G(z) = A c(z): each pixel gets another value by its own alone, and what the image looks like says which.

    c is a rising curve for each channel, straight in 8 pieces of equal length between ``low`` and ``high`` and beyond;
    A mixes channels, is 1 on its diagonal and has less than 1 beside it in a row. So different values of an image stay
    different ones, edges stay where they are, and nothing is drawn that is not there. What curves and mixture are
    follows from the quantiles of the image's channels and their correlations by a network with one hidden layer.

    Source: curves that a small network chooses by the whole image are those of image enhancement: Zeng et al., Learning
    image-adaptive 3D lookup tables for high performance photo enhancement in real-time, IEEE TPAMI 2020, there with a
    convolutional network and one table for all channels together. Curves that rise, and the mixture, are ours.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        self.channels, mixed = channels, channels * (channels - 1)
        inputs, outputs = len(_LEVELS) * channels + mixed // 2, (_PIECES + 1) * channels + mixed
        self._shapes = [(_HIDDEN, inputs), (_HIDDEN,), (outputs, _HIDDEN), (outputs,)]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    @property
    def size(self) -> int:
        """Number of weights, W."""
        return sum(self._sizes)

    def initial(self) -> Tensor:
        """The first weights ``[W]``, the same everywhere: with them G changes nothing."""
        drawn = torch.randn(sum(self._sizes[:2]), generator=generator("style curves"))
        drawn[: self._sizes[0]] /= self._shapes[0][1] ** 0.5
        return torch.cat([drawn, torch.zeros(sum(self._sizes[2:]))])

    def change(self, weights: Tensor, values: Tensor, looks: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """G(z) − z for scaled ``values [B, C, N]`` of images that look as ``looks [B, I]`` says (`looks_of`).

        Args:
            weights: ``[W]``.
            values: z ``[B, C, N]``, at any places.
            looks: ``[B, I]``.
            low, high: where the pieces of the curves begin and end ``[C]``.
        """
        first, bias, second, last = (
            part.view(shape) for part, shape in zip(weights.split(self._sizes), self._shapes, strict=True)
        )
        chosen = (looks @ first.T + bias).tanh() @ second.T + last
        counts = _PIECES * self.channels, self.channels, self.channels * (self.channels - 1)
        slopes, shifts, mixture = chosen.split(counts, 1)
        bent: Tensor = self._bent(slopes.view(-1, self.channels, _PIECES), values, low, high) + shifts[..., None]
        return bent if self.channels == 1 else bent.baddbmm(self._mixture(mixture), values + bent)

    @staticmethod
    def _bent(slopes: Tensor, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """c(z) − z without its shift, from what the network says of the slopes ``[B, C, pieces]``."""
        steeper = (_STEEPEST * (slopes / _STEEPEST).tanh()).expm1()
        length, bent = (high - low)[:, None] / _PIECES, torch.zeros_like(values)
        for piece in range(_PIECES):
            inside = values - (low[:, None] + piece * length)
            inside = inside.clamp_min(0) if piece else inside
            inside = inside.minimum(length) if piece < _PIECES - 1 else inside
            bent = bent + steeper[..., piece : piece + 1] * inside
        return bent

    def _mixture(self, chosen: Tensor) -> Tensor:
        """A without its diagonal ``[B, C, C]``."""
        mixture = chosen.new_zeros(len(chosen), self.channels, self.channels)
        beside = ~torch.eye(self.channels, dtype=torch.bool, device=chosen.device)
        mixture[:, beside] = _MOST_MIXED / (self.channels - 1) * chosen.tanh()
        return mixture


def looks_of(values: Tensor) -> Tensor:
    """What scaled images look like ``[B, I]``, from their values ``[B, C, N]`` at the `places`: quantiles of each
    channel, and correlations of channels."""
    channels, count = values.shape[1:]
    levels = torch.tensor(_LEVELS, dtype=values.dtype, device=values.device)
    quantiles = values.quantile(levels, dim=2).permute(1, 2, 0).flatten(1)
    apart = values - values.mean(2, keepdim=True)
    apart = apart / apart.square().mean(2, keepdim=True).sqrt().clamp_min(1e-6)
    row, column = torch.tril_indices(channels, channels, -1, device=values.device)
    together = (apart @ apart.transpose(1, 2) / count)[:, row, column]
    return torch.cat([quantiles, together], 1).clamp(-_FARTHEST, _FARTHEST)


@lru_cache(maxsize=8)
def places(count: int) -> Tensor:
    """At which of so many places images are looked at, in no order: the same for all images of a size."""
    return torch.randperm(count, generator=generator("style places", count))[:_PLACES]
