"""Inner products and distances of the sites' changes Δ_k.

A corrupt site may send values whose squares float32 can't hold; such blocks are computed in float64. So are all
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

#: Below this square of a block's length float32 may have lost some of the single squares.
SMALLEST = 1e-20


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
    return math.sqrt(sum(dot(change[block]) for block in blocks(len(change), BLOCK)))


def lengths_and_products(changes: Sequence[Tensor], direction: Tensor) -> tuple[Tensor, Tensor]:
    """‖Δ_k‖ and ⟨Δ_k, ``direction``⟩, float64 ``[K]``, of changes ``[K]`` x ``[T]``, reading each once."""
    found = torch.zeros(2, len(changes), dtype=torch.float64)
    for block in blocks(len(direction), BLOCK):
        towards = direction[block]
        found += torch.tensor([[dot(change[block]) for change in changes],
                               [dot(change[block], towards) for change in changes]], dtype=torch.float64)  # fmt: skip
    return found[0].sqrt(), found[1]


def dot(first: Tensor, second: Tensor | None = None) -> float:
    """⟨``first``, ``second``⟩ of two blocks ``[B]``, or of one with itself."""
    second = first if second is None else second
    return float(first.double().dot(second.double()))
