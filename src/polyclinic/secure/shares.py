"""Shamir's shares of a secret: t of them give it back, fewer say nothing.

The secret is the value at 0 of a polynomial of degree t - 1 over a prime field, with coefficients from the operating
system's randomness; a share is its value at another point. Numbers are exact.

Source: Shamir, How to share a secret, Communications of the ACM 22 (11), 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache

from polyclinic.secure.binding import UnfitError

#: The least prime above 2^256, so that every secret of 32 bytes is in the field.
PRIME = 2**256 + 297
#: Of a share as bytes, little endian.
SHARE_BYTES = 33


def split(secret: int, threshold: int, points: Sequence[int], prime: int = PRIME) -> dict[int, int]:
    """Point -> share.

    Args:
        secret: 0 .. prime - 1.
        threshold: t, how many shares give the secret back.
        points: different numbers from 1 to prime - 1, at least t.
        prime: of the field.

    Raises:
        ValueError: an argument is not as said above.
    """
    if not 0 <= secret < prime:
        raise ValueError("the secret is not in the field")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"{len(points)} shares can't have the threshold {threshold}")
    if len(set(points)) < len(points) or not all(0 < point < prime for point in points):
        raise ValueError("points of shares must be different, above 0 and in the field")
    coefficients = [secret, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    return {point: value_at(coefficients, point, prime) for point in points}


def value_at(coefficients: Sequence[int], point: int, prime: int = PRIME) -> int:
    """Σ c_i x^i modulo the prime, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


def rebuild(shares: Iterable[tuple[int, int]], threshold: int, prime: int = PRIME) -> int:
    """The secret, from pairs of point and share.

    Shares beyond the threshold are compared with the others.

    Raises:
        UnfitError: there are too few shares, two for a point, one that is not in the field, or they are not of one
            polynomial.
    """
    pairs = list(shares)
    points = tuple(point for point, _ in pairs)
    if len(set(points)) < len(points):
        raise UnfitError("Two shares are for the same point.")
    if len(pairs) < threshold:
        raise UnfitError(f"There are {len(pairs)} shares; {threshold} are needed.")
    if not all(0 < point < prime and 0 <= share < prime for point, share in pairs):
        raise UnfitError("A share is not in the field.")
    used, values = points[:threshold], [share for _, share in pairs[:threshold]]
    for point, share in pairs[threshold:]:
        if _interpolate(used, values, point, prime) != share:
            raise UnfitError("The shares are not all of one secret.")
    return _interpolate(used, values, 0, prime)


def _interpolate(points: tuple[int, ...], values: Sequence[int], at: int, prime: int) -> int:
    factors = _lagrange(points, at, prime)
    return sum(factor * value for factor, value in zip(factors, values, strict=True)) % prime


@lru_cache(maxsize=256)  # in a complete graph all secrets are rebuilt from the same sites
def _lagrange(points: tuple[int, ...], at: int, prime: int) -> tuple[int, ...]:
    """Lagrange's factors: Π_{j≠i} (x - x_j) / (x_i - x_j)."""
    factors = []
    for place, point in enumerate(points):
        above = below = 1
        for other in points[:place] + points[place + 1 :]:
            above = above * (at - other) % prime
            below = below * (point - other) % prime
        factors.append(above * pow(below, -1, prime) % prime)
    return tuple(factors)
