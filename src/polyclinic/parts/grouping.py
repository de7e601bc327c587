"""Which sites share a model, and in which order they meet the server within a round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyclinic.options import Catalogue
from polyclinic.parts.catalogue import Part
from polyclinic.parts.server_end import Ask
from polyclinic.parts.site_end import Memory

#: Name of the one model where all sites share it.
FEDERATION = "federation"
#: Model -> the sites that train it, in site order.
Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Turn:
    """What is known when a round is divided.

    Attributes:
        number: rounds done before.
        rounds: of the whole training.
        sites: who takes part, in site order.
        models: model -> its state ``[Q]``; empty before the first round, when every model is the first one.
        ask: asks the sites something, which the grouping's end there answers (``answer``).
        seed: of the training.
    """

    number: int
    rounds: int
    sites: Sequence[str]
    models: Mapping[str, Tensor]
    ask: Ask
    seed: int


class Grouping(Part):
    """Divides a round into stages, one after another; in a stage, groups of sites train each a model of their own.

    A model that is named for the first time is the first state of the training.

    Attributes:
        one_by_one: whether there are stages that build on each other, so that nothing is put together in a server.
        several: whether there can be more than one model.
    """

    one_by_one: ClassVar[bool] = False
    several: ClassVar[bool] = False

    @abstractmethod
    def stages(self, turn: Turn) -> Sequence[Groups]:
        """The stages of a round; a site is in one group of a stage at most."""

    def memory(self) -> Memory:
        """What is kept between rounds, for checkpoints."""
        return {}

    def restore(self, memory: Memory) -> None:
        """Take back what ``memory`` gave."""


#: Groupings by the name used under ``topology:`` in a study file.
TOPOLOGIES: Catalogue[type[Grouping]] = Catalogue("topology")


@TOPOLOGIES.add("star")
class Star(Grouping):
    """All sites at once share one model, with a server between them."""

    def stages(self, turn: Turn) -> Sequence[Groups]:
        """One group."""
        return [{FEDERATION: turn.sites}]
