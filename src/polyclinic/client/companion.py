"""A second model that a site trains beside the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from polyclinic.state import FlatModule


class Companion(ABC):
    """A second model that is trained on the same batches as the first.

    Attributes:
        needs_features: whether ``mixed`` reads the features of a batch.
    """

    needs_features: ClassVar[bool] = False

    @abstractmethod
    def step(self, model: FlatModule, backward: Callable[[], Tensor]) -> None:
        """Train it on the batch that the first model makes a step on next.

        Args:
            model: holds the first model; must hold it again afterwards.
            backward: writes into ``model.gradient`` the gradient of the batch's loss at whatever ``model`` holds, with
                the terms of loss rules, and gives the loss.
        """

    def mixed(self, inputs: Tensor, outputs: Tensor, features: Tensor) -> Tensor:
        """What the first model's loss is of, instead of its outputs.

        Args:
            inputs: ``[B, ...]``.
            outputs: ``[B, ...]``, with gradient.
            features: what the head was given, averaged over places ``[B, G]``; empty unless it ``needs_features``.
        """
        return outputs
