"""Sampling of patients and noise of private training, and where their random numbers come from.

The guarantee of differentially private training rests on two draws that nobody else can foresee: which patients take
part in a step, and the noise. Whoever could repeat them could take the noise away again.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.state import Selection

#: Coordinates of noise that are drawn at once, to bound memory.
_AT_ONCE = 1 << 18
#: Binary digits of a uniform number.
_DIGITS = 53


class Draws(ABC):
    """Where random numbers come from.

    Attributes:
        summed: how many normal numbers are added up to one; see `gaussian`.
    """

    summed: ClassVar[int]

    @abstractmethod
    def uniform(self, count: int) -> Tensor:
        """Independent numbers in [0, 1), float64 ``[count]`` on the processor, all multiples of 2⁻⁵³."""


class RepeatableDraws(Draws):
    """Numbers that follow from a seed: for simulations, which must give the same results again.

    They protect nobody. Who knows the seed knows the noise; and who doesn't can try them all, since PyTorch's generator
    on the processor starts from 32 bits of its seed, and its further numbers follow from 624 that were seen.

    Args:
        generator: on the processor.
    """

    summed = 1

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, count: int) -> Tensor:
        """See `Draws.uniform`."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)


class SystemDraws(Draws):
    """Numbers from the operating system's cryptographic generator, which nobody can foresee: for real patients.

    Every number comes from there, not only a seed: see `RepeatableDraws` for why a seed would not do.
    """

    summed = 4

    def uniform(self, count: int) -> Tensor:
        """See `Draws.uniform`."""
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        whole = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
        return (whole & ((1 << _DIGITS) - 1)).double() * 2.0**-_DIGITS


def gaussian(count: int, draws: Draws) -> Tensor:
    """Independent standard normal numbers, float64 ``[count]``, by Box and Muller (1958).

    Computers' normal numbers are not all the numbers that there are: from the last digits of a noisy value it can be
    read which values without noise are possible at all (Mironov 2012, "On significance of the least significant bits
    for differential privacy"). Where noise is to protect, each number is therefore half the sum of four, so that too
    many ways lead to the same digits for all of them to be tried (Holohan and Braghin 2021, "Secure random sampling in
    differential privacy", section 4, with n = 2). It makes such an attack too expensive and is no proof that there is
    none.

    From 53 digits no number is beyond 8.6 deviations, which the normal distribution exceeds once in 10¹⁷ times.
    """
    size = draws.summed * count
    lengths = draws.uniform(size).neg_().log1p_().mul_(-2.0).sqrt_()  # of 1 - u, which is never 0
    found = lengths.mul_(draws.uniform(size).mul_(2 * math.pi).cos_())
    return found.view(draws.summed, count).sum(0).div_(math.sqrt(draws.summed))


def poisson_batches(patients: Tensor, rate: float, steps: int, draws: Draws) -> Iterator[Tensor]:
    """The cases of each step: every patient takes part with probability q, whoever else does, and with all their cases.

    Batches have no fixed size; some are empty, in which case only noise is added. This is the sampling for which
    privacy is amplified as the accountant says (Abadi et al. 2016, section 3.1; Mironov et al. 2019); shuffled batches
    of one size are not.

    Args:
        patients: of each case ``[n]``, integers.
        rate: q, above 0 and at most 1.
        steps: how many batches.
        draws: where the choice comes from.

    Returns:
        Positions of cases, rising, ``[B]``.

    Raises:
        ValueError: the rate is no such number.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the sampling rate must be above 0 and at most 1, got {rate}")
    different, members = patients.unique(return_inverse=True)
    for _ in range(steps):
        chosen = draws.uniform(len(different)) < rate
        yield chosen.to(members.device)[members].nonzero().flatten()


def private_gradient(
    total: Tensor, norm: float, noise_multiplier: float, expected: float, draws: Draws, trained: Selection | None = None
) -> Tensor:
    """The private gradient (Σ + N(0, (σ C)²)) / (q N), float32 ``[T]`` (Abadi et al. 2016, algorithm 1).

    Sum and noise are added in float64 and rounded once, afterwards, so that the last digits that come out are those of
    the noise.

    Args:
        total: Σ, the sum over patients of their clipped gradients, float64 ``[T]``.
        norm: C, the largest norm of a patient's gradient.
        noise_multiplier: σ; 0 adds no noise, and protects nobody.
        expected: q N, how many patients take part in a step on average, N being a number that all may know. Never how
            many did: that would tell of the patients, and noise would shrink where few take part.
        draws: where the noise comes from.
        trained: the coordinates that are trained; the others stay 0. None for all.

    Raises:
        ValueError: a number is out of its range.
    """
    for name, value, fits in (
        ("norm", norm, 0 < norm < math.inf),
        ("noise multiplier", noise_multiplier, 0 <= noise_multiplier < math.inf),
        ("expected number of patients", expected, 0 < expected < math.inf),
    ):
        if not fits:
            raise ValueError(f"the {name} is out of its range: {value}")
    found = total.to("cpu", torch.float64, copy=True)
    places = ((0, len(found)),) if trained is None else trained.within(len(found)).slices
    if noise_multiplier:
        for start, stop in places:
            for first in range(start, stop, _AT_ONCE):
                part = found[first : min(first + _AT_ONCE, stop)]
                part.add_(gaussian(len(part), draws), alpha=noise_multiplier * norm)
    return (found / expected).float().to(total.device)
