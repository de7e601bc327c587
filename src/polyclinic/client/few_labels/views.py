"""Two views of cases, for parts that learn without labels: a weak one, and a strong one of the same place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Images are moved by up to this share of each side.
_MOVED = 8
#: Deviation of the noise that a weak view adds to the features of a table, which are scaled.
_WEAK_NOISE = 0.1


def weak_view(inputs: Tensor, size: Sequence[int], source: torch.Generator) -> Tensor:
    """Cases as they might as well have been: images moved a little, or cut to a box, at random; tables with a little
    noise. Nothing is mirrored: which side an organ is on may matter.

    Args:
        inputs: ``[B, F]``, ``[B, C, H, W]`` or ``[B, C, D, H, W]``, on the processor.
        size: sides of the images that the network is trained on; those of ``inputs``, or smaller.
        source: of the random numbers.

    Returns:
        ``[B, F]`` or ``[B, C, *size]``.
    """
    if inputs.ndim == 2:
        return inputs + _WEAK_NOISE * torch.randn(inputs.shape, generator=source)
    found = inputs.new_empty(*inputs.shape[:2], *size)
    for case, image in enumerate(inputs):
        for axis, (side, wanted) in enumerate(zip(image.shape[1:], size, strict=True), start=1):
            reach = side // _MOVED if side == wanted else 0
            start = int(torch.randint(-reach, side - wanted + reach + 1, (), generator=source))
            places = torch.arange(start, start + wanted).clamp(0, side - 1)  # the border goes on beyond it
            image = image.index_select(axis, places)
        found[case] = image
    return found


def strong_view(inputs: Tensor, source: torch.Generator, strength: float, *, cut: bool) -> Tensor:
    """Cases changed so much that it is just seen what they are, each in its own way; nothing is moved.

    Images get another contrast and brightness (factors of up to 1 ± s, shifts of up to ± s deviations), noise of s/2
    deviations, and, if ``cut``, a box of a quarter to half of each side without content. Features of tables get noise
    of s deviations, and each is missing (0, the mean of scaled features) with probability s/4.

    Args:
        inputs: ``[B, F]`` or ``[B, C, ...]``, on the processor.
        source: of the random numbers.
        strength: s, 0 to 1; 0 changes nothing but the box.
        cut: whether images lose a box.

    Source: the changes are those of RandAugment (Cubuk et al., CVPR workshops 2020) and cutout (DeVries and Taylor,
    2017) that go for grey images and volumes, too.
    """
    if inputs.ndim == 2:
        noisy = inputs + strength * torch.randn(inputs.shape, generator=source)
        return torch.where(torch.rand(inputs.shape, generator=source) < strength / 4, torch.zeros_like(noisy), noisy)
    axes = tuple(range(2, inputs.ndim))
    shape = (*inputs.shape[:2], *(1 for _ in axes))
    mean = inputs.mean(axes, keepdim=True)
    deviation = inputs.std(axes, keepdim=True, correction=0)
    factor = 1 + strength * (2 * torch.rand(shape, generator=source) - 1)
    shift = strength * (2 * torch.rand(shape, generator=source) - 1) * deviation
    found = (inputs - mean) * factor + mean + shift
    found = found + strength / 2 * deviation * torch.randn(inputs.shape, generator=source)
    for case in range(len(inputs)) if cut else ():
        box = [_box(side, source) for side in inputs.shape[2:]]
        found[case][(slice(None), *box)] = mean[case].view(-1, *(1 for _ in axes))
    return found


def _box(side: int, source: torch.Generator) -> slice:
    """A part of a side, between a quarter and half of it."""
    length = int(torch.randint(side // 4, side // 2 + 1, (), generator=source))
    start = int(torch.randint(0, side - length + 1, (), generator=source))
    return slice(start, start + length)
