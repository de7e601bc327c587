"""Inner products and distances of the sites' changes Δ_k = w_k - w.

All are in float64: a corrupt site may send values whose squares float32 can't hold, and distances between similar
changes are small differences of large products. Each Δ_k is taken from the round's own state, never from another
site's, so that nothing a site sends can change the distances between others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyclinic.server.order import BLOCK, blocks

#: Coordinates at a time where no more than two vectors are read together.
PAIR_BLOCK = 4 * BLOCK

#: Squared distances below this share of the squared norms are rounding, and count as 0.
ROUNDING = 1e-14


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


def cosine_distances(products: Tensor) -> Tensor:
    """1 - cos(Δ_i, Δ_j) ``[K, K]`` from a Gram matrix; 1 for a change of zero, which has no direction."""
    norms = products.diagonal().sqrt()
    cosines = (products / norms[:, None] / norms).nan_to_num(0.0, 0.0, 0.0)
    return (1 - cosines).clamp(0.0, 2.0).round(decimals=12).fill_diagonal_(0.0)


def norm(state: Tensor, origin: Tensor) -> float:
    """‖w_k - ``origin``‖."""
    return math.sqrt(compare(state, origin)[0])


def compare(state: Tensor, origin: Tensor, direction: Tensor | None = None) -> tuple[float, float]:
    """‖Δ‖² and ⟨Δ, ``direction``⟩ (0 without one) of Δ = ``state`` - ``origin``, all ``[T]``, in one reading."""
    buffer = torch.empty(2, min(PAIR_BLOCK, len(origin)), dtype=torch.float64)
    square = product = 0.0
    for block in blocks(len(origin), PAIR_BLOCK):
        change, other = buffer[:, : block.stop - block.start]
        torch.sub(state[block], origin[block], out=change)
        square += float(change.dot(change))
        if direction is not None:
            product += float(change.dot(other.copy_(direction[block])))
    return square, product
