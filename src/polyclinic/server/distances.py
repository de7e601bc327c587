"""Inner products and distances of the sites' changes Δ_k.

A corrupt site may send values whose squares float32 can't hold; such changes are computed in float64. So are all
products of changes with each other, because distances between similar changes are small differences of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyclinic.server.order import BLOCK, blocks

#: Squared distances below this share of the squared norms are rounding, and count as 0.
ROUNDING = 1e-14

#: Between these lengths of changes float32 loses no product of their elements that matters, and holds them all.
SHORT, LONG = 1e-10, 1e15

#: So many squares are summed in float32, which keeps its digits; the sums of rows are summed in float64.
ROW = 256

#: Coordinates at a time where a few operations follow each other.
WIDE_BLOCK = 2**18


def gram(changes: Sequence[Tensor]) -> Tensor:
    """⟨Δ_i, Δ_j⟩ of changes ``[K]`` x ``[T]``, float64 ``[K, K]``, reading each once."""
    count, length = len(changes), len(changes[0])
    size = max(1024, min(BLOCK, 2**20 // count))
    buffer = torch.empty(count, min(size, length), dtype=torch.float64)
    products = torch.zeros(count, count, dtype=torch.float64)
    for block in blocks(length, size):
        rows = buffer[:, : block.stop - block.start]
        for row, change in zip(rows, changes, strict=True):
            row.copy_(change[block])
        products += rows @ rows.T
    return (products + products.T) / 2


def squared_distances(products: Tensor) -> Tensor:
    """‖Δ_i - Δ_j‖² ``[K, K]`` from a Gram matrix; exactly 0 for equal changes."""
    squares = products.diagonal()
    sums = squares[:, None] + squares
    distances = sums - 2 * products
    distances[distances <= ROUNDING * sums] = 0.0
    return distances.fill_diagonal_(0.0)


def distances_to_mean(products: Tensor, weights: Tensor) -> Tensor:
    """‖Δ_k - Σ q_j Δ_j‖² ``[K]`` from a Gram matrix and weights q ``[K]`` with sum 1; exactly 0 for equal changes."""
    towards = products @ weights
    sums = products.diagonal() + weights @ towards
    distances = sums - 2 * towards
    # Which side of 0 rounding falls on differs from one processor to the next; no change may gain by it.
    return distances.masked_fill(distances <= ROUNDING * sums, 0.0)


def cosine_distances(products: Tensor) -> Tensor:
    """1 - cos(Δ_i, Δ_j) ``[K, K]`` from a Gram matrix; 1 for a change of zero, which has no direction."""
    norms = products.diagonal().sqrt()
    cosines = (products / norms[:, None] / norms).nan_to_num(0.0, 0.0, 0.0)
    return (1 - cosines).clamp(0.0, 2.0).round(decimals=12).fill_diagonal_(0.0)


def norm(change: Tensor) -> float:
    """‖Δ‖ of a change ``[T]``, reading it once."""
    rows = change[: len(change) // ROW * ROW].view(-1, ROW)
    squares = torch.linalg.vector_norm(rows, dim=1).double().square().sum() + square(change[rows.numel() :])
    length = math.sqrt(squares)
    if SHORT < length < LONG:
        return length
    return math.sqrt(sum(square(change[block]) for block in blocks(len(change), BLOCK)))


def square(block: Tensor) -> float:
    """‖Δ‖² of part of a change, computed in float64."""
    wide = block.double()
    return float(wide.dot(wide))


def products(changes: Sequence[Tensor], lengths: Sequence[float], index: int) -> list[float]:
    """⟨Δ_k, Δ_i⟩ of all changes ``[K]`` x ``[T]`` with one of them, reading each once.

    Args:
        changes: Δ_k.
        lengths: ‖Δ_k‖.
        index: i.
    """
    direction = changes[index]
    buffer = torch.empty(min(WIDE_BLOCK, len(direction)), dtype=direction.dtype)
    found = [0.0] * len(changes)
    narrow = [SHORT < length < LONG and SHORT < lengths[index] < LONG for length in lengths]
    for block in blocks(len(direction), WIDE_BLOCK):
        towards = direction[block]
        for number, change in enumerate(changes):
            if narrow[number]:
                product = torch.mul(change[block], towards, out=buffer[: len(towards)])
            else:
                product = change[block].double() * towards.double()
            found[number] += float(product.sum())
    return found
