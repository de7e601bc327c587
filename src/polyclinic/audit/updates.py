"""Attacks on updates: what corrupt sites send in place of what they have learned."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveFloat
from scipy.special import ndtri
from torch import Tensor

from polyclinic.options import Catalogue
from polyclinic.seeds import generator


@dataclass(frozen=True)
class Exchange:
    """What corrupt sites know when they choose what to send.

    It is about the changes of the trainable weights, w_k − w, about those of the coordinates that are not trained
    (statistics of normalisation layers), or about one tensor that a local rule sends besides: such a tensor is taken as
    a change from zero, with all its values in a row.

    Attributes:
        seed: of the training.
        names: for each of the M corrupt sites that take part, what its random numbers are a function of besides.
        own: the changes that they would send if they were honest ``[M, T]``.
        others: the changes of the honest sites ``[H, T]``.
    """

    seed: int
    names: Sequence[Sequence[str | int]]
    own: Tensor
    others: Tensor


@dataclass(frozen=True)
class Statistics:
    """What corrupt sites know of the coordinates that are not trained.

    Attributes:
        changes: of all sites.
        received: what each of the M corrupt sites was sent ``[M, S]``.
        honest: what each would send if it were honest ``[M, S]``.
        variances: which of these are running variances ``[S]``.
    """

    changes: Exchange
    received: Tensor
    honest: Tensor
    variances: Tensor


class UpdateAttack(ABC):
    """Changes what corrupt sites send.

    Attributes:
        honest_weights: whether weights, and what local rules send with them, are sent as they are.
    """

    honest_weights: ClassVar[bool] = False

    @abstractmethod
    def forge(self, now: Exchange) -> Tensor:
        """The changes ``[M, T]`` that the corrupt sites send; nothing of ``now`` is written to."""

    def statistics(self, now: Statistics) -> Tensor:
        """The values ``[M, S]`` that the corrupt sites send for coordinates that are not trained.

        Unless an attack says otherwise, these are forged by the same rule as weights, about what was received.
        """
        return now.received + self.forge(now.changes)

    def note(self, sites: int, corrupt: int) -> str:
        """A sentence for the report on this attack in a federation of so many sites, or ""."""
        return ""


#: Attacks on updates by the name used under ``attack:`` in a study file.
UPDATES: Catalogue[type[UpdateAttack]] = Catalogue("attack on updates")


@UPDATES.add("sign_flip")
class SignFlip(UpdateAttack):
    """The site sends w − s Δ_k: it pulls the model away from what it has learned.

    Source: Li et al., RSA: Byzantine-robust stochastic aggregation methods, AAAI 2019.

    Args:
        scale: s.
    """

    def __init__(self, *, scale: PositiveFloat = 1.0) -> None:
        self.scale = scale

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        return -self.scale * now.own


@UPDATES.add("scaling")
class Scaling(UpdateAttack):
    """The site sends w + s Δ_k: with s the inverse of its share of the weights, its own model replaces that of all.

    Source: Bagdasaryan et al., How to backdoor federated learning, AISTATS 2020, equation 3. There the model that
    replaces the others is a poisoned one.

    Args:
        scale: s.
    """

    def __init__(self, *, scale: PositiveFloat = 10.0) -> None:
        self.scale = scale

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        return self.scale * now.own


@UPDATES.add("gaussian_noise")
class GaussianNoise(UpdateAttack):
    """The site sends w + n instead of w + Δ_k, where n is normal noise.

    Source: Blanchard et al., Machine learning with adversaries, NeurIPS 2017, where the deviation is fixed; here it is
    relative, so that it means the same for every network.

    Args:
        deviation: of the noise, as a multiple of the root mean square of Δ_k.
    """

    def __init__(self, *, deviation: PositiveFloat = 10.0) -> None:
        self.deviation = deviation

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        sources = [generator(now.seed, "gaussian_noise", *names) for names in now.names]
        noise = torch.stack([torch.randn(now.own.shape[1], generator=source) for source in sources])
        return self.deviation * now.own.square().mean(dim=1, keepdim=True).sqrt() * noise


@UPDATES.add("alie")
class ALittleIsEnough(UpdateAttack):
    """All corrupt sites send μ + z σ in each coordinate: too near to the others to stand out, yet always to one side.

    Source: Baruch, Baruch, Goldberg, A little is enough, NeurIPS 2019, algorithm 3. As there, mean and deviation are
    those of the corrupt sites' own honest changes. A single corrupt site has no deviation: here it is given the changes
    of all sites, which makes it stronger than in the paper.

    Args:
        z: how many deviations; without it the largest that the paper's reckoning allows, see ``largest_z``.
    """

    def __init__(self, *, z: PositiveFloat | None = None) -> None:
        self.z = z

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        known = now.own if len(now.own) > 1 else torch.cat([now.own, now.others])
        z = largest_z(len(now.own) + len(now.others), len(now.own)) if self.z is None else self.z
        return (known.mean(dim=0) + z * known.std(dim=0, correction=0)).expand_as(now.own)

    def note(self, sites: int, corrupt: int) -> str:
        """See `UpdateAttack.note`."""
        if self.z is not None or largest_z(sites, corrupt) > 0:
            return ""
        return (
            f"With {corrupt} corrupt of {sites} sites the reckoning of `alie` gives z = 0: the corrupt sites send the "
            "mean of what they know, which does little harm. Give `alie: {z: ...}`, or more corrupt sites."
        )


def largest_z(sites: int, corrupt: int) -> float:
    """How far corrupt sites may stray so that enough honest ones stray further.

    z = max {z: φ(z) < (n − m − s) / (n − m)} with s = ⌊n/2 + 1⌋ − m, the honest sites needed for a majority of n sites
    of which m are corrupt (Baruch et al. 2019, algorithm 3). Never below 0, which small federations would give.
    """
    needed = math.floor(sites / 2 + 1) - corrupt
    honest = sites - corrupt
    share = min(max((honest - needed) / honest, 0.0), 1.0) if honest else 0.0
    return max(float(ndtri(share)), 0.0) if share < 1 else math.inf


@UPDATES.add("inner_product")
class InnerProduct(UpdateAttack):
    """All corrupt sites send −ε times the mean of the honest changes, so that the sum points the wrong way.

    Where no honest site takes part, each takes its own change for that mean.

    Source: Xie, Koyejo, Gupta, Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation, UAI
    2019, equation 3.

    Args:
        epsilon: ε. Small ones deceive rules that look for what is near the others; to turn a mean of n updates of the
            same weight, m of them corrupt, it must be above (n − m) / m.
    """

    def __init__(self, *, epsilon: PositiveFloat = 1.0) -> None:
        self.epsilon = epsilon

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        if not len(now.others):
            return -self.epsilon * now.own
        return (-self.epsilon * now.others.mean(dim=0)).expand_as(now.own)


@UPDATES.add("false_statistics")
class FalseStatistics(UpdateAttack):
    """The site sends honest weights, and running variances of normalisation layers many times too large.

    Rules that compare or bound changes of weights do not see it. A model whose variances are too large divides its
    features by too much, and says the same of every case; with a factor far below 1 it breaks down.

    Args:
        factor: how many times.
    """

    honest_weights = True

    def __init__(self, *, factor: PositiveFloat = 1000.0) -> None:
        self.factor = factor

    def forge(self, now: Exchange) -> Tensor:
        """See `UpdateAttack.forge`."""
        return now.own

    def statistics(self, now: Statistics) -> Tensor:
        """See `UpdateAttack.statistics`."""
        return torch.where(now.variances, self.factor * now.honest, now.honest)
