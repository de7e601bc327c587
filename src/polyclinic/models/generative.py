"""Two networks that learn from each other: one makes inputs of a wanted class or from a mask, the other tells them from
real ones.

They are small. Images of a class are made by MONAI's ``Generator`` from a few numbers, doubling their sides, those of a
mask by its ``UNet``; they are looked at by its ``Discriminator``; rows of features by fully connected layers. Nothing
in them mixes the cases of a batch, so what a case is made of, and the gradient for it, depend on that case alone.

Source: Radford, Metz, Chintala, Unsupervised representation learning with deep convolutional generative adversarial
networks, ICLR 2016, with group normalisation in place of batch normalisation; conditions as in Mirza, Osindero,
Conditional generative adversarial nets, arXiv 1411.1784. From masks by a U-Net as in Isola, Zhu, Zhou, Efros,
Image-to-image translation with conditional adversarial networks, CVPR 2017, with random numbers in place of dropout.
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
#: Nor are those of an image with a mask more often: what a pixel looks like depends on what is near.
_MOST_HALVINGS = 3


class Generator(nn.Module):
    """Makes inputs from random numbers and a wanted class.

    Its last layer is linear, since inputs are standardised and have no bounds.

    Args:
        shape: of an input, ``(F,)`` or ``(C, H, W)``.
        classes: how many there are.
        latent: random numbers that a case is made of.
        width: channels, or units, of its last hidden layer; the ones before have more.

    Attributes:
        numbers: random numbers that it is given for a case, Z.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, latent: int, width: int) -> None:
        super().__init__()
        self.shape, self.classes, self.numbers, given = tuple(shape), classes, latent, latent + classes
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


class MaskGenerator(nn.Module):
    """Makes images from random numbers and wanted masks.

    A U-Net that is given the one-hot mask, a few maps with one value each, which follow from ``latent`` random numbers,
    and a map with a random number for each pixel. It has no normalisation: of a mask that is background everywhere
    nothing would be left by one (Park, Liu, Wang, Zhu, Semantic image synthesis with spatially-adaptive normalization,
    CVPR 2019). Sides are padded to what can be halved as often as it halves them, and what is too much is cut off.

    Args:
        shape: of an image, ``(C, H, W)``.
        classes: of pixels, the background among them.
        latent: random numbers for the whole image.
        width: channels of its finest layer; coarser ones have more.

    Attributes:
        numbers: random numbers that it is given for a case, Z: ``latent`` and one for each pixel.
    """

    def __init__(self, shape: Sequence[int], classes: int, *, latent: int, width: int) -> None:
        super().__init__()
        self.shape, self.classes, self.latent = tuple(shape), classes, latent
        self.numbers = latent + shape[1] * shape[2]
        halvings, styles = min(_halvings(shape[1:]), _MOST_HALVINGS), width // 4
        self._multiple = 2**halvings
        self.style = nn.Linear(latent, styles)
        self.body = build_network(
            "UNet", spatial_dims=2, in_channels=classes + styles + 1, out_channels=shape[0],
            channels=[width * min(2**place, 4) for place in range(halvings + 2)], strides=[1, *[2] * halvings],
            num_res_units=0, act=("leakyrelu", {"negative_slope": _SLOPE}), norm=None,
        )  # fmt: skip

    def forward(self, numbers: Tensor, masks: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` from random numbers ``[B, Z]`` and masks uint8 ``[B, 1, H, W]``."""
        height, width = masks.shape[2:]
        style = self.style(numbers[:, : self.latent])[:, :, None, None].expand(-1, -1, height, width)
        grain = numbers[:, self.latent :].view(-1, 1, height, width)
        given = torch.cat([_maps(masks, self.classes, masks.shape[2:]), style, grain], dim=1)
        given = nn.functional.pad(given, (0, -width % self._multiple, 0, -height % self._multiple))
        made: Tensor = self.body(given)
        return made[:, :, :height, :width]


class Discriminator(nn.Module):
    """Tells real inputs of a class, or with a mask, from those that were made.

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

    def forward(self, inputs: Tensor, wanted: Tensor) -> Tensor:
        """For inputs ``[B, *shape]`` and their classes ``[B]``, or masks ``[B, 1, H, W]``, logits of being real
        ``[B]``."""
        found: Tensor = self.body(torch.cat([inputs, _maps(wanted, self.classes, inputs.shape[2:])], dim=1))
        return found.flatten()


def _maps(wanted: Tensor, classes: int, sides: Sequence[int]) -> Tensor:
    """One-hot classes ``[B]`` as maps ``[B, C, *sides]`` of one value each; of masks ``[B, 1, *sides]`` their own."""
    if wanted.ndim > 1:
        return _one_hot(wanted[:, 0].long(), classes).movedim(-1, 1)
    return _one_hot(wanted, classes).view(len(wanted), classes, *[1] * len(sides)).expand(-1, -1, *sides)


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
