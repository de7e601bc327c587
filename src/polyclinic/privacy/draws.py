"""Random numbers of private training, and where they come from.

A guarantee rests on draws that nobody else can foresee: which patients take part in a step, and the noise. Whoever
could repeat them could take the noise away again.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

#: Numbers that are drawn at once, to bound memory.
_AT_ONCE = 1 << 18
#: Binary digits of a uniform number.
DIGITS = 53


class Draws(ABC):
    """Where random numbers come from.

    Attributes:
        summed: how many normal numbers are added up to one; see `gaussian`.
        source: in words.
    """

    summed: ClassVar[int]
    source: ClassVar[str]

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
    source = "the study's seed, as in a simulation"

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
    source = "the operating system's cryptographic generator"

    def uniform(self, count: int) -> Tensor:
        """See `Draws.uniform`."""
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        whole = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
        return (whole & ((1 << DIGITS) - 1)).double() * 2.0**-DIGITS


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
    found = torch.empty(count, dtype=torch.float64)
    for part in found.split(_AT_ONCE):
        size = draws.summed * len(part)
        lengths = draws.uniform(size).neg_().log1p_().mul_(-2.0).sqrt_()  # of 1 - u, which is never 0
        summands = lengths.mul_(draws.uniform(size).mul_(2 * math.pi).cos_()).view(draws.summed, len(part))
        part.copy_(summands.sum(0).div_(math.sqrt(draws.summed)))
    return found


def laplace(count: int, draws: Draws) -> Tensor:
    """Independent numbers of the Laplace distribution of scale 1, float64 ``[count]``: differences of exponential ones.

    Where noise is to protect, each exponential number is a sum of squares of normal ones (as above, section 4).
    """
    if draws.summed == 1:
        lengths = draws.uniform(2 * count).neg_().log1p_().neg_().view(2, count)
        return lengths[0].sub(lengths[1])
    squares = gaussian(4 * count, draws).square_().view(2, 2, count).sum(1)
    return squares[0].sub(squares[1]).div_(2)
