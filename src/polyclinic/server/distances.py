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

#: Coordinates at a time where a block is read twice.
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
    length = math.sqrt(square(change))
    return length if SHORT < length < LONG else exactly(change, change)[0]


def lengths_and_products(changes: Sequence[Tensor], index: int) -> tuple[Tensor, Tensor]:
    """‖Δ_k‖ and ⟨Δ_k, Δ_i⟩, float64 ``[K]``, of changes ``[K]`` x ``[T]`` with one of them, reading each once."""
    direction, found = changes[index], [[0.0, 0.0] for _ in changes]
    for block in blocks(len(direction), WIDE_BLOCK):
        towards = direction[block].split(BLOCK)
        for sums, change in zip(found, changes, strict=True):
            part = change[block]  # is in the cache when it is read again
            sums[0] += square(part)
            sums[1] += sum(float(a.dot(b)) for a, b in zip(part.split(BLOCK), towards, strict=True))
    lengths = [math.sqrt(squares) for squares, _ in found]
    held = [SHORT < length < LONG for length in lengths]
    both = torch.tensor([
        (length, product) if held[number] and held[index] else exactly(changes[number], direction)
        for number, (length, (_, product)) in enumerate(zip(lengths, found, strict=True))
    ], dtype=torch.float64)  # fmt: skip
    return both[:, 0], both[:, 1]


def square(change: Tensor) -> float:
    """‖Δ‖² of a change or of part of one, with the digits that float32 has."""
    rows = change[: len(change) // ROW * ROW].view(-1, ROW)
    total = float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())
    return total if rows.numel() == len(change) else total + float(change[rows.numel() :].double().square().sum())


def exactly(change: Tensor, direction: Tensor) -> tuple[float, float]:
    """‖Δ‖ and ⟨Δ, ``direction``⟩ of ``[T]`` in float64, which holds whatever float32 can say."""
    squares = product = 0.0
    for block in blocks(len(change), BLOCK):
        wide = change[block].double()
        squares, product = squares + float(wide.dot(wide)), product + float(wide.dot(direction[block].double()))
    return math.sqrt(squares), product
