"""Arithmetic of site weights, used by the rules that weigh sites by what they sent or said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyclinic.errors import StudyError, TrainingError
from polyclinic.parts import Memory, ServerPart, SiteEnd, Update
from polyclinic.parts.measures import MEASURES, Measuring, measured
from polyclinic.server.rules import Weighting


class Measured(ServerPart):
    """A part whose end at a site measures what it ``reveals``, and sends nothing else."""

    shapes = measured(*MEASURES, "steps", "path")

    def at_site(self) -> SiteEnd:
        """Measures those numbers."""
        return Measuring(*self.reveals) if self.reveals else SiteEnd()

    def reported(self, updates: Sequence[Update], name: str, *, signed: bool = False) -> Tensor:
        """A number that every site sent with its update, float64 ``[K]``.

        Args:
            updates: of the round.
            name: of the number.
            signed: whether it may be negative.

        Raises:
            TrainingError: P301 if a site's number is not finite.
            StudyError: P104 if a site's number is negative though it must not be.
        """
        numbers = [float(self.sent(update)[name]) for update in updates]
        for update, number in zip(updates, numbers, strict=True):
            if not math.isfinite(number):
                raise TrainingError(
                    "P301",
                    f"The server rule needs {name} of site {update.site} as a finite number; got {number}.",
                    "Lower the learning rate, or set `training: {clip: 1.0}`.",
                )
            if number < 0 and not signed:
                raise StudyError(
                    "P104",
                    f"The server rule needs {name} to be at least 0; site {update.site} reported {number:g}.",
                    "Choose a loss that is never negative, or another server rule.",
                )
        return torch.tensor(numbers, dtype=torch.float64)


class Remembering(Measured, Weighting):
    """A weighting that keeps something of each site between rounds.

    Attributes:
        kept: name -> site -> what is kept of it; names have no ``/``.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Memory] = {}

    def keep(self, name: str, values: Mapping[str, float]) -> None:
        """Keep a number of each site; other sites keep what they have."""
        numbers = {site: torch.tensor([value], dtype=torch.float64) for site, value in values.items()}
        self.kept[name] = self.kept.get(name, {}) | numbers

    def recall(self, name: str) -> dict[str, float]:
        """The numbers that were kept."""
        return {site: float(value) for site, value in self.kept.get(name, {}).items()}

    def memory(self) -> Memory:
        """Everything kept, as ``name/site``."""
        return {f"{name}/{site}": value for name, sites in self.kept.items() for site, value in sites.items()}

    def restore(self, memory: Memory) -> None:
        """Take back what was kept."""
        self.kept = {}
        for key, value in memory.items():
            name, site = key.split("/", maxsplit=1)
            self.kept.setdefault(name, {})[site] = value


def normalised(values: Tensor) -> Tensor:
    """Non-negative ``values`` ``[K]`` as shares of their sum; equal shares if all are 0."""
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, 1.0 / len(values))


def inverse(values: Tensor) -> Tensor:
    """1 / ``values`` ``[K]`` up to a common factor, where values are at least 0.

    Where some are 0, this is the limit: they count the same and the others do not count.
    """
    least = values.min()
    return least / values if least > 0 else (values == 0).to(values.dtype)


def project_to_simplex(values: Tensor, total: float) -> Tensor:
    """The nearest point to ``values`` ``[K]`` whose elements are at least 0 and sum to ``total``.

    Source: Wang and Carreira-Perpiñán, Projection onto the probability simplex, arXiv 1309.1541, algorithm 1.
    """
    if total <= 0:
        return torch.zeros_like(values)
    values = values - values.max()  # the projection is the same, and large values lose no digits
    ordered = values.sort(descending=True).values
    excess = (ordered.cumsum(0) - total) / torch.arange(1, len(values) + 1)
    last = int((ordered > excess).nonzero().max())
    return (values - excess[last]).clamp_min(0)


def carry_over(kept: Mapping[str, float], everyone: Mapping[str, float]) -> dict[str, float]:
    """Shares of all sites of the federation now, from those that were kept.

    Sites that are new start with their share of ``everyone``; the others keep their proportions and share the rest.

    Args:
        kept: shares of sites, of which some may have left.
        everyone: weight of each site; its shares are what sites start with.

    Returns:
        Shares that sum to 1.
    """
    total = sum(everyone.values())
    start = {site: weight / total for site, weight in everyone.items()}
    rest = sum(share for site, share in start.items() if site in kept)
    known = sum(kept[site] for site in everyone if site in kept)
    if known <= 0:  # all are new, or those left counted nothing
        return start
    return {site: kept[site] / known * rest if site in kept else share for site, share in start.items()}
