"""Real numbers as whole numbers modulo 2^k, so that sums of them are exact and can't wrap unseen.

A site's value v with the site's weight w becomes round(v w / step). The weight itself is one more element, in steps of
its own, so that the mean is known without anybody's weight: Σ w v / Σ w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from polyclinic.errors import StudyError, TrainingError
from polyclinic.secure.masks import container

#: Elements that are worked on at a time.
CHUNK = 1 << 17
#: v w / step is computed in 64-bit floats, rounded twice.
SLACK = 1 + Fraction(1, 2**50)
MOST_BITS = 64
#: Up to the largest weight; the next power of two may halve them.
WEIGHT_STEPS = 2**9


@dataclass(frozen=True)
class Total:
    """A sum that was decoded.

    Attributes:
        values: Σ w v ``[T]``, float64.
        weight: Σ w.
    """

    values: Tensor
    weight: float

    @property
    def mean(self) -> Tensor:
        """Σ w v / Σ w ``[T]``, float64."""
        return self.values / self.weight


@dataclass(frozen=True)
class Ring:
    """How values become whole numbers, the same at all sites; made by `fit`.

    Attributes:
        bound: no value is larger than this.
        most_weight: no weight of a site is larger than this.
        step: of v w.
        weight_step: of w, a power of two; a whole-numbered weight is exact where it is 1 or less.
        bits: k.
    """

    bound: float
    most_weight: float
    step: float
    weight_step: float
    bits: int

    @classmethod
    def fit(
        cls, bound: float, sites: int, *, most_weight: float = 1.0, total_weight: float | None = None,
        step: float | None = None, bits: int | None = None, noise: int = 0,
    ) -> Ring:  # fmt: skip
        """The steps and the number of bits with which no sum wraps.

        Σ |v w / step| ≤ bound · total_weight / step, and each site's rounding adds less than 1: that must be at most
        2^(k-1) - 1, and so must the sum of the weights.

        Args:
            bound: the largest absolute value before weighting, such as a clipping bound. It is rounded up to a 32-bit
                float, so that 32-bit values that were clipped to it are inside.
            sites: how many there are at most in a sum.
            most_weight: the largest weight of a site.
            total_weight: the largest sum of weights, if it is known to be less than ``sites`` times that.
            step: of v w. Without it the finest power of two that fits into the bits.
            bits: k, 2 to 64. Without it the fewest that hold ``step``, or 32 if there is none either. The weight has
                at least 2^8 steps up to ``most_weight``.
            noise: how many steps what sites add to their numbers may change a sum by; only with ``step``.

        Raises:
            StudyError: P102, it does not fit.
        """
        if total_weight is None:
            total_weight = sites * most_weight
        bound = _float32_above(bound)
        given = [bound, most_weight, total_weight] + ([] if step is None else [step])
        if not all(math.isfinite(one) and one > 0 for one in given) or sites < 1 or total_weight < most_weight:
            raise StudyError(
                "P102", f"A secure sum got bound {bound:g}, {sites} sites, weights up to {most_weight:g}, their sum up "
                f"to {total_weight:g} and step {step}; expected finite numbers above 0, and no weight above the sum.",
                "Give such numbers.",
            )  # fmt: skip
        if bits is not None and not 2 <= bits <= MOST_BITS:
            raise StudyError("P102", f"A secure sum got {bits} bits; expected 2 to {MOST_BITS}.", "Give such a number.")
        largest = Fraction(bound) * Fraction(total_weight) * SLACK
        if step is None:
            bits = 32 if bits is None else bits
            step = _power_above(largest / max(2 ** (bits - 1) - 1 - sites, 1))
        highest = max(largest / Fraction(step), Fraction(total_weight) / Fraction(most_weight) * WEIGHT_STEPS)
        needed = (math.ceil(highest) + sites + noise).bit_length() + 1
        if bits is None:
            bits = needed
        if needed > min(bits, MOST_BITS):
            with_noise = f" with noise of up to {noise * step:g}" if noise else ""
            raise StudyError(
                "P102",
                f"Values up to {bound:g}, weights up to {most_weight:g} with a sum of {total_weight:g}, and {sites} "
                f"sites need {needed} bits in steps of {step:g}{with_noise}; {min(bits, MOST_BITS)} are there.",
                "Give a lower bound, smaller weights, a larger step, or more bits.",
            )
        weight_step = _power_above(Fraction(total_weight) / (2 ** (bits - 1) - 1 - sites))
        weight_step = max(weight_step, _power_above(Fraction(most_weight) / 2**52))  # whole in 64-bit floats
        return cls(bound, most_weight, step, weight_step, bits)

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors: int32 for up to 32 bits, else int64."""
        return container(self.bits)

    def encode(self, values: Tensor, weight: float, generator: torch.Generator | None = None) -> Tensor:
        """A site's values, weighted, and its weight.

        Args:
            values: ``[T]``, floats.
            weight: of the site. It is rounded down to a multiple of ``weight_step``, which then weights the values.
            generator: of the site alone; with it values are rounded up or down by chance, so that their mean is right,
                else to the nearest, half to even.

        Returns:
            Integers ``[T + 1]``.

        Raises:
            TrainingError: P301, a value is not finite or beyond the bound, or the weight is.
        """
        units = math.floor(weight / self.weight_step) if math.isfinite(weight) else 0
        if units < 1 or weight > self.most_weight:
            raise TrainingError("P301", "A site's weight in a secure sum is not above 0, or above what was agreed.",
                                "Weights are agreed on before the first round.")  # fmt: skip
        if values.dtype not in (torch.float32, torch.float64) or values.dim() != 1:
            raise ValueError(f"got {values.dtype} {list(values.shape)}; expected 32-bit or 64-bit floats [T]")
        weight = units * self.weight_step
        found = torch.empty(len(values) + 1, dtype=self.dtype)
        infinite = beyond = 0
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            inside = int((chunk.abs() <= self.bound).sum())
            if inside < len(chunk):
                finite = int(chunk.isfinite().sum())
                infinite, beyond = infinite + len(chunk) - finite, beyond + finite - inside
            elif not infinite + beyond:
                found[start : start + len(chunk)] = self._whole(chunk, weight, generator)
        if infinite or beyond:
            raise TrainingError(
                "P301", f"Of {len(values)} values for a secure sum {infinite} are not finite and {beyond} are beyond "
                f"the bound of {self.bound:g}.", "Clip them, lower the learning rate, or agree on a larger bound.",
            )  # fmt: skip
        found[-1] = units
        return found

    def decode(self, total: Tensor) -> Total:
        """The sum of encoded vectors ``[T + 1]``, which may have come from a secure sum or from adding them."""
        return Total(total[:-1].double() * self.step, int(total[-1]) * self.weight_step)

    def _whole(self, values: Tensor, weight: float, generator: torch.Generator | None) -> Tensor:
        """v w / step, rounded."""
        scaled = values.double().mul_(weight).div_(self.step)
        if generator is None:
            return scaled.round_()
        lower = scaled.floor()
        rest = scaled.sub_(lower)
        return lower.add_(torch.rand(len(lower), dtype=torch.float64, generator=generator) < rest)


def _power_above(value: Fraction) -> float:
    """The least power of two that is at least this."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    while Fraction(2) ** exponent < value:
        exponent += 1
    while Fraction(2) ** (exponent - 1) >= value:
        exponent -= 1
    return math.ldexp(1.0, exponent)


def _float32_above(value: float) -> float:
    with np.errstate(over="ignore"):
        near = np.float32(value)
        return float(near if float(near) >= value else np.nextafter(near, np.float32(np.inf)))
