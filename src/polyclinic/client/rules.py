"""What a local rule is: a small change to local training that composes with every other."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from polyclinic.options import Catalogue


class GradientRule(ABC):
    """A rule that changes the gradient of each local step.

    It is written with broadcasting, so the same code serves one site (``[T]``) and many stacked sites (``[S, T]``).
    """

    @abstractmethod
    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor) -> None:
        """Change ``gradient`` in place.

        Args:
            gradient: of the loss at ``weights``, ``[T]`` or ``[S, T]``.
            weights: the site's current trainable weights, same shape.
            start: the weights it started the round from, same shape or broadcastable to it.
        """


#: Local rules by the name used under ``local:`` in a study file.
LOCAL_RULES: Catalogue[type[GradientRule]] = Catalogue("local rule")
