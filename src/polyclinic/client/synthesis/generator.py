"""What the server knows of a generator: what it makes, and how frequent classes are at the sites."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyclinic.client.synthesis.adversaries import drawn
from polyclinic.parts import Memory, Stage

#: Inputs that are made together where nothing is learned.
AT_ONCE = 64


class Maker:
    """A generator at the server, and the sites' classes.

    Attributes:
        generator: the network; who trains it changes it in place.
        latent: random numbers that a case is made of.
        cases: site -> training cases of each class ``[C]``, of sites that ever answered.
    """

    def __init__(self, generator: nn.Module, latent: int, device: torch.device, cases: Memory) -> None:
        self.generator, self.latent, self.device, self.cases = generator, latent, device, cases

    def everyone(self, stage: Stage) -> Tensor:
        """How frequent classes are at all sites that ever answered, by their weights ``[C]``."""
        return torch.stack([stage.weights[site] * frequent(self.cases[site]) for site in sorted(self.cases)]).sum(0)

    def drawn(self, source: torch.Generator, count: int, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Random numbers ``[count, Z]`` and classes ``[count]``, as frequent as ``classes`` ``[C]``."""
        return drawn(source, count, self.latent, classes)

    @torch.no_grad()
    def inputs(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """What is made of them ``[count, ...]``, on the network's device."""
        pairs = zip(numbers.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
        return torch.cat([self.generator(some.to(self.device), of.to(self.device)) for some, of in pairs])


def frequent(cases: Tensor) -> Tensor:
    """Shares of classes ``[C]`` from their counts."""
    return cases.double() / cases.sum()
