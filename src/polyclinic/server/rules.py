"""What a server rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from polyclinic.options import Catalogue


class ServerRule(ABC):
    """Turns the states that the sites end a round with into the next global state.

    A round is ``start(global)``, ``add(update, weight)`` for each site in site order, ``finish() -> global``.
    All vectors are ``[Q]``, the shared coordinates of the model's state, trainable ones first.
    """

    @abstractmethod
    def start(self, state: Tensor, trainable: int, total_weight: float) -> None:
        """Begin a round.

        Args:
            state: the global state that the sites were sent; not written to.
            trainable: the first so many coordinates are weights, the rest statistics.
            total_weight: expected sum of the weights of the updates.
        """

    @abstractmethod
    def add(self, update: Tensor, weight: float) -> None:
        """Take in the state that one site ended with, with its weight (usually its number of cases)."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The next global state, a vector of its own."""

    def memory(self) -> dict[str, Tensor]:
        """What the rule keeps between rounds, for checkpoints."""
        return {}

    def restore(self, memory: dict[str, Tensor]) -> None:  # noqa: B027 - most rules keep nothing
        """Take back what ``memory`` gave."""


#: Server rules by the name used under ``server:`` in a study file.
SERVER_RULES: Catalogue[type[ServerRule]] = Catalogue("server rule")
