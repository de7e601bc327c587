"""What every task offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Task(ABC):
    """Meaning of a network's outputs.

    Args:
        classes: number of classes; 0 for numbers.
        loss: one of ``losses``.
        scale: mean and deviation by which targets that are numbers are standardised.
    """

    name: ClassVar[str]
    #: Names of the losses; the first is the default.
    losses: ClassVar[tuple[str, ...]]
    #: Names of the metrics.
    metrics: ClassVar[tuple[str, ...]]
    #: Those that are reported where the study names none; the first is the default primary metric.
    default_metrics: ClassVar[tuple[str, ...]]

    def __init__(self, classes: int, loss: str, scale: tuple[float, float] = (0.0, 1.0)) -> None:
        self.classes = classes
        self.loss_name = loss
        self.scale = scale

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of output channels that the network must have."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]`` from network outputs ``[B, ...]`` and targets."""

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Predicted probabilities from network outputs; where targets are numbers, the predicted numbers."""
