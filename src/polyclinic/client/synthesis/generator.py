"""What the server knows of a generator: what it makes of what, and how frequent that is at the sites."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from polyclinic.client.synthesis.adversaries import drawn
from polyclinic.models.generative import Generator, MaskGenerator
from polyclinic.parts import Memory, Stage
from polyclinic.tasks import Task

#: Inputs that are made together where nothing is learned.
AT_ONCE = 64


class Wanted(NamedTuple):
    """What a generator is asked for: classes, or images of masks.

    Attributes:
        values: classes ``[K]``, or masks uint8 ``[K, 1, H, W]``.
        shares: how frequent each of them is ``[K]``, float64.
    """

    values: Tensor
    shares: Tensor


class Maker:
    """A generator at the server, and what the sites have.

    Attributes:
        generator: the network; who trains it changes it in place.
        cases: site -> training cases of each class ``[C]``, or masks uint8 ``[n, 1, H, W]`` that it shared, of sites
            that ever answered.
        aside: site -> masks of patients from whom the generator does not learn ``[m, 1, H, W]``; nothing of classes.
    """

    def __init__(
        self, generator: Generator | MaskGenerator, device: torch.device, cases: Memory, aside: Memory
    ) -> None:
        self.generator, self.device, self.cases, self.aside = generator, device, cases, aside

    def of(self, site: str) -> Wanted:
        """What the generator learns to make for a site."""
        return wanted(self.cases[site])

    def everyone(self, stage: Stage) -> Wanted:
        """What all sites have that ever answered, by their weights; masks that were kept aside, too."""
        return together(wanted(self.shared(site), stage.weights[site]) for site in sorted(self.cases))

    def shared(self, site: str) -> Tensor:
        """All that the site told: its counts, or its masks, those that were kept aside last."""
        return torch.cat([self.cases[site], self.aside[site]]) if site in self.aside else self.cases[site]

    def drawn(self, source: torch.Generator, count: int, asked: Wanted) -> tuple[Tensor, Tensor]:
        """Random numbers ``[count, Z]`` and places ``[count]`` of what is asked for, as frequent as it is."""
        return drawn(source, count, self.generator.numbers, asked.shares)

    @torch.no_grad()
    def inputs(self, numbers: Tensor, values: Tensor) -> Tensor:
        """What is made of random numbers ``[count, Z]`` and classes or masks ``[count, ...]``, on the generator's
        device."""
        pairs = zip(numbers.split(AT_ONCE), values.split(AT_ONCE), strict=True)
        return torch.cat([self.generator(some.to(self.device), of.to(self.device)) for some, of in pairs])


def network_for(task: Task, shape: tuple[int, ...], *, latent: int, width: int) -> Generator | MaskGenerator:
    """A generator of what a task has: inputs of a class, or images of a mask."""
    kind = MaskGenerator if task.target == "masks" else Generator
    return kind(shape, kinds_of(task), latent=latent, width=width)


def kinds_of(task: Task) -> int:
    """How many classes cases have, or pixels."""
    return max(task.classes, 2)


def wanted(cases: Tensor, weight: float = 1.0) -> Wanted:
    """From counts of classes ``[C]``, or masks ``[n, 1, H, W]``, of a site with a weight."""
    if cases.ndim > 1:
        return Wanted(cases, torch.full((len(cases),), weight / len(cases), dtype=torch.float64))
    return Wanted(torch.arange(len(cases)), weight * frequent(cases))


def together(parts: Iterable[Wanted]) -> Wanted:
    """What several sites have."""
    values, shares = zip(*parts, strict=True)
    if values[0].ndim > 1:
        return Wanted(torch.cat(values), torch.cat(shares))
    return Wanted(values[0], torch.stack(shares).sum(0))


def frequent(cases: Tensor) -> Tensor:
    """Shares of classes ``[C]`` from their counts."""
    return cases.double() / cases.sum()
