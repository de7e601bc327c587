"""Inner products and distances of the sites' changes Δ_k = w_k - w.

A corrupt site may send values whose squares float32 can't hold; such blocks are computed in float64. So are all
products of changes with each other, because distances between similar changes are small differences of them. Each Δ_k
is taken from the round's own state, never from another site's, so that nothing a site sends can change the distances
between others.
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


def gram(states: Sequence[Tensor], origin: Tensor) -> Tensor:
    """⟨Δ_i, Δ_j⟩ with Δ_k = w_k - ``origin``, float64 ``[K, K]``, reading every state once.

    Args:
        states: w_k ``[K]`` x ``[T]``.
        origin: w ``[T]``.
    """
    count = len(states)
    size = max(1024, min(BLOCK, 2**20 // count))
    buffer = torch.empty(count, min(size, len(origin)), dtype=torch.float64)
    products = torch.zeros(count, count, dtype=torch.float64)
    for block in blocks(len(origin), size):
        changes = buffer[:, : block.stop - block.start]
        for change, state in zip(changes, states, strict=True):
            torch.sub(state[block], origin[block], out=change)
        products += changes @ changes.T
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


def norm(state: Tensor, origin: Tensor) -> float:
    """‖w_k - ``origin``‖."""
    return math.sqrt(compare(state, origin)[0])


def compare(state: Tensor, origin: Tensor, direction: Tensor | None = None) -> tuple[float, float]:
    """‖Δ‖² and ⟨Δ, ``direction``⟩ (0 without one) of Δ = ``state`` - ``origin``, all ``[T]``, in one reading.

    Single differences and the sums within a block are in the states' own precision, as long as it can hold them.
    """
    buffer = torch.empty(min(BLOCK, len(origin)), dtype=origin.dtype)
    square = product = 0.0
    for block in blocks(len(origin), BLOCK):
        change = torch.sub(state[block], origin[block], out=buffer[: block.stop - block.start])
        towards = None if direction is None else direction[block]
        found = _products(change, towards)
        if not (SMALLEST < found[0] < math.inf and abs(found[1]) < math.inf):
            found = _products(state[block].double() - origin[block], None if towards is None else towards.double())
        square, product = square + found[0], product + found[1]
    return square, product


def _products(change: Tensor, direction: Tensor | None) -> tuple[float, float]:
    return float(change.dot(change)), 0.0 if direction is None else float(change.dot(direction))
