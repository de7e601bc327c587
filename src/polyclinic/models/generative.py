"""Two networks that learn from each other: one makes inputs of a wanted class, the other tells them from real ones.

They are small. Images are made by MONAI's ``Generator`` from a few numbers, doubling their sides, and looked at by its
``Discriminator``; rows of features by fully connected layers. Nothing in them mixes the cases of a batch, so what a
case is made of, and the gradient for it, depend on that case alone.

Source: Radford, Metz, Chintala, Unsupervised representation learning with deep convolutional generative adversarial
networks, ICLR 2016, with group normalisation in place of batch normalisation; conditions as in Mirza, Osindero,
Conditional generative adversarial nets, arXiv 1411.1784.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from polyclinic.models.monai_networks import build_network

#: A layer that looks at images lets negative values through with this slope.
_SLOPE = 0.2
#: Shorter sides are not halved.
_LEAST_SIDE = 4


class Generator(nn.Module):
    """Makes inputs from random numbers and a wanted class.

    Its last layer is linear, since inputs are standardised and have no bounds.

    Args:
        shape: of an input, ``(F,)`` or ``(C, H, W)``.
        classes: how many there are.
        latent: random numbers that a case is made of.
        width: channels, or units, of its last hidden layer; the ones before have more.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, latent: int, width: int) -> None:
        super().__init__()
        self.shape, self.classes, given = tuple(shape), classes, latent + classes
        if len(shape) == 1:
            self.body: nn.Module = _connected([given, 4 * width, 4 * width, shape[0]])
            return
        halvings = _halvings(shape[1:])
        start = [-(-side // 2**halvings) for side in shape[1:]]  # rounded up; what is too much is cut off
        channels = [width * 2**place for place in reversed(range(halvings))]
        self.body = build_network(
            "Generator", latent_shape=[given], start_shape=[width * 2**halvings, *start],
            channels=[*channels, shape[0]], strides=[*([2] * halvings), 1], num_res_units=0, act="relu",
            norm=("group", {"num_groups": 4}),
        )  # fmt: skip

    def forward(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """Inputs ``[B, *shape]`` from random numbers ``[B, Z]`` and classes ``[B]``."""
        made: Tensor = self.body(torch.cat([numbers, _one_hot(labels, self.classes)], dim=1))
        return made[(slice(None), slice(None), *(slice(side) for side in self.shape[1:]))]


class Discriminator(nn.Module):
    """Tells real inputs of a class from those that were made.

    Args:
        shape: of an input, ``(F,)`` or ``(C, H, W)``.
        classes: how many there are.
        width: channels, or units, of its first layer; those after it have more.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, width: int) -> None:
        super().__init__()
        self.classes = classes
        if len(shape) == 1:
            self.body: nn.Module = _connected([shape[0] + classes, 4 * width, 4 * width, 1])
            return
        halvings = max(_halvings(shape[1:]), 1)
        self.body = build_network(
            "Discriminator", in_shape=[shape[0] + classes, *shape[1:]],
            channels=[width * 2**place for place in range(halvings)], strides=[2] * halvings, num_res_units=0,
            act=("leakyrelu", {"negative_slope": _SLOPE}), norm=None, dropout=None, last_act=None,
        )  # fmt: skip

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """For inputs ``[B, *shape]`` and their classes ``[B]`` logits of being real ``[B]``."""
        maps = _one_hot(labels, self.classes).view(len(labels), self.classes, *[1] * (inputs.ndim - 2))
        found: Tensor = self.body(torch.cat([inputs, maps.expand(-1, -1, *inputs.shape[2:])], dim=1))
        return found.flatten()


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return nn.functional.one_hot(labels, classes).float()


def _halvings(sides: Sequence[int]) -> int:
    """How often the sides of an image are halved on the way to its smallest form."""
    found, side = 0, min(sides)
    while side >= 2 * _LEAST_SIDE and found < 4:
        side, found = -(-side // 2), found + 1
    return found


def _connected(sizes: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers[:-1])
