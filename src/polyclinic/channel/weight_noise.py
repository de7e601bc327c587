"""A step of the channel: noise on a site's weights, as large as these differ among themselves."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from polyclinic.limits import NotNegative
from polyclinic.parts import CHANNEL_PARTS, Memory, SitePart, SiteView
from polyclinic.privacy.draws import gaussian
from polyclinic.shapes import Shaped


@CHANNEL_PARTS.add("weight_noise")
class WeightNoise(SitePart):
    """Each site adds Gaussian noise to its trained weights, in each tensor α times the standard deviation of its
    values, before they are averaged.

    Tensors of one axis (biases, scales and shifts) are left as they are. No bound of what a patient can change is
    known, so this guarantees nothing: it makes weights harder to read, as the paper's authors wanted. For a guarantee
    there are `dp_sgd` and `gaussian_noise`.

    Source: Lu et al., Federated learning for computational pathology on gigapixel whole slide images, Medical Image
    Analysis 2022, as in their program HistoFL.

    Args:
        noise: α; 0 adds none.
    """

    def __init__(self, *, noise: NotNegative = 0.0) -> None:
        self.noise = noise

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The weights that training starts from, and the round's random numbers."""
        self._shapes, self._draws = view.shapes, view.draws(self.name)
        self._start = view.shared(view.vector)[: sum(map(prod, view.shapes))].cpu()
        return {}

    def close(self, packed: Memory) -> Memory:
        """Add."""
        if not self.noise:
            return packed
        change = packed["change"].clone()
        sizes = [prod(shape) for shape in self._shapes]
        for shape, start, part in zip(self._shapes, self._start.split(sizes), change.split(sizes), strict=True):
            if len(shape) > 1 and part.numel() > 1:
                deviation = self.noise * (start + part).double().std()
                part.add_((gaussian(part.numel(), self._draws) * deviation).to(torch.float32))
        return {**packed, "change": change}

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """The same."""
        return before
