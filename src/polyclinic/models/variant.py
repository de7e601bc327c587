"""What a site may train in place of the study's network: a narrower one, one with less to train, or another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.state import FlatModule, Selection


class Variant(ABC):
    """A network made of the study's, which a site trains; the study's own is validated and tested.

    Named dimensions: P, Q, T and S are those of the study's network, P', T' and S' of the variant.

    Attributes:
        network: that is trained, with P' coordinates.
        shared: those of its coordinates that leave the site: T' weights, then S' statistics.
        places: of the study's coordinates those that its training may change, in order. A site is sent these; others
            are at all sites as they were in the first model.
        stays: whether all of it stays at the site, which goes on from where it was.
    """

    stays: ClassVar[bool] = False
    network: FlatModule
    shared: Selection
    places: Tensor

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        """Of the weights that leave the site."""
        return self.network.layout.shapes(self.shared)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Lengths of dimensions in messages about training, as `polyclinic.site.schema` names them."""
        trained = self.shared.trainable
        statistics = self.shared.size - trained
        return {"Q": len(self.places), "T": trained, "S": statistics, "W": self.network.layout.trainable}

    def sent(self, state: Tensor) -> Tensor:
        """What of the study's model ``[P]`` a site is sent."""
        return state[self.places]

    @abstractmethod
    def start(self, sent: Tensor, first: Tensor) -> Tensor:
        """Where its training starts ``[P']``, from what the site was ``sent``, and the ``first`` model ``[P]``."""

    @abstractmethod
    def spread(self, change: Tensor, statistics: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """What a site's training is for the study's network.

        Args:
            change: of the variant's weights ``[T']``.
            statistics: of its normalisation layers ``[S']``.
            before: the study's model that the training started from ``[P]``.

        Returns:
            The change of weights ``[T]`` and the statistics ``[S]``; what the variant has not is 0, and as before.
        """


class Apart(Variant):
    """Another network, of which nothing leaves the site: others learn from what it finds in a public set.

    Args:
        network: of the site.
        first: its first state ``[P']``.
        whole: the study's network, all of which is shared.
    """

    stays: ClassVar = True

    def __init__(self, network: FlatModule, first: Tensor, whole: FlatModule) -> None:
        self.network, self.first, self._trainable = network, first, whole.layout.trainable
        self.shared = Selection((), 0, 0, network.layout.size)
        self.places = torch.empty(0, dtype=torch.int64)

    def start(self, sent: Tensor, first: Tensor) -> Tensor:
        """Where it starts in the first round; then it goes on from where it was."""
        return self.first

    def spread(self, change: Tensor, statistics: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing."""
        return change.new_zeros(self._trainable), before[self._trainable :].clone()
