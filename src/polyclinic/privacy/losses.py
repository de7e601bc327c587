"""Privacy losses on a grid: their distributions, sums, and what δ they give at any ε.

The privacy loss of a step is L = ln P(o)/Q(o) of its outcome o, under P: the two are the distributions of the outcome
for two neighbours. The losses of steps add up, so their distributions are convolved, and with the masses p of the sum

    δ(ε) = P(L = ∞) + Σ p(l) (1 − exp(ε − l))  over l > ε.

Every approximation here errs to the side of a greater δ, for all ε:

- A loss between two points of the grid becomes one of both, by chance, so that both P and Q keep their masses: then δ
  is the chord of the true convex curve in exp(ε). A point of a coarser grid is one of the finer grid, too.
- Masses that are cut off above count as infinite losses; below they are moved up to the first point that is kept.
- What rounding may take away in a Fourier transform is added to the mass at infinity.

Sources: Koskela, Jälkö and Honkela, Computing tight differential privacy guarantees using FFT, AISTATS 2020; Gopi, Lee
and Wutschitz, Numerical composition of differential privacy, NeurIPS 2021; Doroshenko et al., Connect the dots:
tighter discrete approximations of privacy loss distributions, PETS 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Probability of the tails that are cut off, each time.
TAIL = 1e-18
#: Points of the grid in a standard deviation, at least, where `MOST` allows it.
FINE = 48
#: Points of a grid, at most.
MOST = 2**17
#: Powers of two by which a grid becomes coarser at once, at most.
STRIDE = 10
#: Pairs of masses that are multiplied one by one, at most, before a Fourier transform does it.
ONE_BY_ONE = 2**25


@dataclass(frozen=True)
class Losses:
    """Masses of privacy losses at points of a grid.

    Attributes:
        step: the grid's points are multiples of 2 to this power.
        first: which multiple the first mass belongs to.
        masses: probabilities ``[N]``.
        infinite: probability that the loss is infinite.
    """

    step: int
    first: int
    masses: Array
    infinite: float

    def values(self) -> Array:
        """The losses ``[N]`` of the masses."""
        import numpy as np

        return np.ldexp(np.arange(self.first, self.first + len(self.masses), dtype=np.float64), self.step)

    def delta(self, epsilon: float) -> float:
        """The δ for which (ε, δ) is guaranteed."""
        import numpy as np

        start = max(math.floor(math.ldexp(epsilon, -self.step)) + 1 - self.first, 0)
        if start >= len(self.masses):
            return self.infinite
        values, masses = self.values()[start:], self.masses[start:]
        return min(self.infinite + float(np.sum(-np.expm1(epsilon - values) * masses)), 1.0)

    def epsilon(self, delta: float) -> float:
        """The least ε >= 0 for which (ε, δ) is guaranteed; infinite if there is none."""
        low, high = 0.0, max(math.ldexp(self.first + len(self.masses), self.step), 0.0)
        if self.delta(high) > delta:
            return math.inf
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.delta(middle) <= delta else (middle, high)
        return high


def grid(losses: Losses) -> int:
    """Which step is fine enough, and has few enough points."""

    values = losses.values()
    mean = float(values @ losses.masses)
    spread = math.sqrt(max(float((values - mean) ** 2 @ losses.masses), 1e-300))
    width = math.ldexp(len(values), losses.step)
    return max(math.floor(math.log2(spread / FINE)), math.ceil(math.log2(width / MOST)))


def coarser(losses: Losses, step: int) -> Losses:
    """The same on a coarser grid: a loss l between points a < b becomes a with a probability by which Q is kept, too.

    That is (exp(b − l) − 1) / (exp(b − a) − 1).
    """
    import numpy as np

    if step == losses.step:
        return losses
    if step > losses.step + STRIDE:  # by way of other grids, which changes nothing and needs less memory
        return coarser(coarser(losses, losses.step + STRIDE), step)
    factor = 2 ** (step - losses.step)
    first = losses.first // factor
    before = losses.first - first * factor
    after = -(before + len(losses.masses)) % factor
    rows = np.pad(losses.masses, (before, after)).reshape(-1, factor)
    behind = np.ldexp(np.arange(factor, dtype=np.float64), losses.step)
    whole = np.expm1(-math.ldexp(1.0, step))
    down = (whole - np.expm1(-behind)) / whole
    masses = np.zeros(len(rows) + 1)
    masses[:-1] = rows @ down
    masses[1:] += rows @ (1 - down)
    return Losses(step, first, masses, losses.infinite)


def convolved(one: Losses, other: Losses) -> Losses:
    """The sum of independent losses on the same grid."""
    masses, lost = _convolved(one.masses, other.masses)
    infinite = one.infinite + other.infinite - one.infinite * other.infinite + lost
    return Losses(one.step, one.first + other.first, masses, infinite)


def _convolved(one: Array, other: Array) -> tuple[Array, float]:
    """The convolution, and how much of it rounding may have taken away.

    Products of great masses are added up one by one: their errors are relative to each sum. Only the small ones are
    left to the Fourier transform, whose errors are absolute.
    """
    import numpy as np

    if len(one) * len(other) <= ONE_BY_ONE // 8:
        return np.convolve(one, other), 0.0
    (start, core, tail), (place, bulk, rest) = _split(one), _split(other)
    masses, lost = _by_transform(tail, other)
    more, added = _by_transform(one - tail, rest)
    masses, lost = masses + more, lost + added
    if len(core) * len(bulk) <= ONE_BY_ONE:
        centre = np.convolve(core, bulk)
    else:
        centre, added = _by_transform(core, bulk)
        lost += added
    masses[start + place : start + place + len(centre)] += centre
    return masses, lost


def _split(masses: Array) -> tuple[int, Array, Array]:
    """Where the great masses begin, these, and all others at their places."""
    import numpy as np

    great = np.flatnonzero(masses > 1e-6 * masses.max())
    start, stop = int(great[0]), int(great[-1]) + 1
    rest = masses.copy()
    rest[start:stop] = 0
    return start, masses[start:stop], rest


def _by_transform(one: Array, other: Array) -> tuple[Array, float]:
    """A convolution by Fourier transforms, and a bound of the sum of its absolute errors.

    The relative error of a transform in the L2 norm is at most a small multiple of log2 N units in the last place
    (Schatzman, Accuracy of the discrete Fourier transform and the fast Fourier transform, SIAM 1996), and a sum over N
    errors at most the root of N times that norm.
    """
    import numpy as np
    from scipy.fft import irfft, next_fast_len, rfft

    size = len(one) + len(other) - 1
    length = next_fast_len(size, real=True)
    found = irfft(rfft(one, length) * rfft(other, length), length)[:size]
    norms = min(np.linalg.norm(one) * np.sum(other), np.sum(one) * np.linalg.norm(other))
    lost = 4 * np.finfo(np.float64).eps * math.log2(length) * math.sqrt(length) * float(norms)
    return np.maximum(found, 0.0), lost


def trimmed(losses: Losses) -> Losses:
    """Without its tails: what is above counts as infinite, what is below moves up to the first that is kept."""
    import numpy as np

    masses = losses.masses
    below, above = np.cumsum(masses), np.cumsum(masses[::-1])
    start = int(np.searchsorted(below, TAIL, side="right"))
    cut = int(np.searchsorted(above, TAIL, side="right"))
    kept = masses[start : len(masses) - cut].copy()
    if not len(kept):
        raise ValueError("no losses are left")
    kept[0] += below[start - 1] if start else 0.0
    infinite = losses.infinite + (float(above[cut - 1]) if cut else 0.0)
    return Losses(losses.step, losses.first + start, kept, infinite)
