"""Numbers as whole ones of 512 bits, so that sums of them are exact, whatever their size.

A number v becomes round(v / 2^-192), in eight words of 64 bits. No bound has to be agreed on and nothing is lost: a
float64 of 2^-140 (7e-43) or more is a multiple of the step, so the sum of such numbers is that of exact arithmetic and
is rounded once, when it becomes a float64 again. Smaller ones are rounded to the step, 1.6e-58. The largest that is
taken, 2^300 (2e90), is that of the squares of 32-bit floats over a trillion cases; half a million sites can't wrap.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BITS = 512
#: The step is 2^-192.
FRACTION_BITS = 192
LARGEST = 2.0**300
_WORDS = BITS // 64


def fits(values: Tensor) -> Tensor:
    """Which of these float64 can be encoded: bool, same shape."""
    return values.double().abs() <= LARGEST  # not those that are no numbers


def encode(values: Tensor) -> Tensor:
    """Whole numbers of float64 ``[T]``: int64 ``[8 T]``, for each its words, the lowest first.

    Raises:
        ValueError: a value is not finite or larger than `LARGEST`.
    """
    if not bool(fits(values).all()):
        raise ValueError(f"got values that are not finite numbers up to {LARGEST:g}")
    found = b"".join(_whole(value).to_bytes(BITS // 8, "little", signed=True) for value in values.double().tolist())
    return torch.from_numpy(np.frombuffer(found, dtype="<i8").copy())


def decode(total: Tensor) -> Tensor:
    """The inverse of `encode`, of a sum of encoded vectors: float64 ``[T]``, each the nearest to the exact sum."""
    data = total.numpy().reshape(-1, _WORDS)
    numbers = [int.from_bytes(row.tobytes(), "little", signed=True) / (1 << FRACTION_BITS) for row in data]
    return torch.tensor(numbers, dtype=torch.float64)


def _whole(value: float) -> int:
    """The nearest multiple of the step."""
    mantissa, exponent = math.frexp(value)
    shift = exponent - 53 + FRACTION_BITS
    digits = int(mantissa * 2**53)
    return digits << shift if shift >= 0 else (digits + (1 << (-shift - 1))) >> -shift
