"""A small network that tells sites apart by features, trained beside the study's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from polyclinic.parts import Batch
from polyclinic.seeds import generator


class SiteClassifier:
    """Two layers with ReLU between them, whose weights are one vector ``[D]``; trained by plain gradient steps.

    Args:
        features: G.
        hidden: of the layer between.
        outputs: K.
    """

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        self.shapes = [(hidden, features), (hidden,), (outputs, hidden), (outputs,)]
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self._trained: int | None = None

    @property
    def size(self) -> int:
        """D."""
        return sum(self._sizes)

    def initial(self) -> Tensor:
        """The first weights, the same everywhere: even between ± 1 / √(inputs of the layer), as in PyTorch ``[D]``."""
        source = generator("site classifier")
        reach = [self.shapes[layer][1] ** -0.5 for layer in (0, 0, 2, 2)]
        parts = [
            bound * (2 * torch.rand(size, generator=source) - 1) for size, bound in zip(self._sizes, reach, strict=True)
        ]
        return torch.cat(parts)

    def __call__(self, weights: Tensor, features: Tensor) -> Tensor:
        """Outputs ``[B, K]`` for features ``[B, G]`` with ``weights [D]``."""
        first, bias, second, last = (
            part.view(shape) for part, shape in zip(weights.split(self._sizes), self.shapes, strict=True)
        )
        outputs: Tensor = (features @ first.T + bias).relu() @ second.T + last
        return outputs

    def train(self, weights: Tensor, loss: Callable[[Tensor], Tensor], rate: float, batch: Batch) -> Tensor:
        """The weights after a step down ``loss``; as they are if a step was made on the same batch before.

        A batch is looked at again where gradients overflow in half precision, or are taken elsewhere.
        """
        if self._trained == batch.seed:
            return weights
        self._trained = batch.seed
        leaf = weights.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(leaf), leaf)
        return weights.detach() - rate * slope
