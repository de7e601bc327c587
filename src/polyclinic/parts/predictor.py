"""What predicts cases: a state of the network, or more than one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from polyclinic.state import FlatModule

#: Outputs ``[B, ...]`` of inputs ``[B, ...]``, as in evaluation.
Outputs = Callable[[Tensor], Tensor]


class Predictor(ABC):
    """What predicts, where that is not one state of the network for all cases."""

    @abstractmethod
    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """What predicts which of some cases; each is there once.

        Args:
            model: lends its network, set to evaluation, until the next ones are asked for.
            index: positions of the cases ``[n]`` in their data set.

        Yields:
            places in ``index``, and what gives the outputs of these cases.
        """


class OfNetwork(Predictor):
    """A state of another network than the site's.

    Args:
        network: it.
        vector: the state ``[P]``.
    """

    def __init__(self, network: FlatModule, vector: Tensor) -> None:
        self.network, self.vector = network, vector

    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """See `Predictor.in_use`."""
        yield from in_use(self.vector, self.network, index)


#: The state of a network ``[P]``, or what predicts instead.
Network = Tensor | Predictor


def in_use(network: Network, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
    """See `Predictor.in_use`."""
    model.module.eval()
    if isinstance(network, Predictor):
        yield from network.in_use(model, index)
        return
    model.load(network)
    yield torch.arange(len(index)), model.module
