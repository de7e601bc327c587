"""In which order sites and server meet within a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from polyclinic.options import Catalogue


class Topology(ABC):
    """Divides a round into exchanges: the model goes to a group of sites, and their answers make the next model."""

    @abstractmethod
    def groups(self, number: int, rounds: int, sites: Sequence[str]) -> list[list[str]]:
        """The groups of a round, one after another.

        Args:
            number: rounds done before.
            rounds: of the whole training.
            sites: who takes part, in site order.
        """


#: Topologies by name.
TOPOLOGIES: Catalogue[type[Topology]] = Catalogue("topology")


@TOPOLOGIES.add("star")
class Star(Topology):
    """All sites at once, with a server between them."""

    def groups(self, number: int, rounds: int, sites: Sequence[str]) -> list[list[str]]:
        """One group."""
        return [list(sites)]


@TOPOLOGIES.add("cyclic")
class Cyclic(Topology):
    """Cyclic weight transfer: the model goes from site to site; a round is one cycle.

    Source: Chang et al., Distributed deep learning networks among institutions for medical imaging, JAMIA 2018.
    """

    def groups(self, number: int, rounds: int, sites: Sequence[str]) -> list[list[str]]:
        """Site after site."""
        return [[site] for site in sites]


@TOPOLOGIES.add("incremental")
class Incremental(Topology):
    """Institutional incremental learning: each site trains to its end before the next one, and never again.

    Every site does the local work of all rounds, one site after the other, so that it trains as long as in the other
    topologies. A round is as many exchanges as there are sites, mostly with the same one.

    Source: Sheller et al., Multi-institutional deep learning modeling without sharing patient data, BrainLes 2018.
    """

    def groups(self, number: int, rounds: int, sites: Sequence[str]) -> list[list[str]]:
        """The site whose turn it is, again and again."""
        return [[sites[(number * len(sites) + turn) // rounds]] for turn in range(len(sites))]
