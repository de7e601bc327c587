"""What every task offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Task(ABC):
    """Meaning of a network's outputs.

    Args:
        classes: number of classes.
        loss: one of ``losses``.
    """

    name: ClassVar[str]
    #: Names of the losses; the first is the default.
    losses: ClassVar[tuple[str, ...]]
    #: Names of the metrics; the first is the default primary metric.
    metrics: ClassVar[tuple[str, ...]]

    def __init__(self, classes: int, loss: str) -> None:
        self.classes = classes
        self.loss_name = loss

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of output channels that the network must have."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]`` from network outputs ``[B, ...]`` and targets."""

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Predicted probabilities from network outputs."""
