"""Orders in which the model goes from site to site within a round."""

from __future__ import annotations

from collections.abc import Sequence

from polyclinic.parts.grouping import FEDERATION, TOPOLOGIES, Grouping, Groups, Turn


@TOPOLOGIES.add("cyclic")
class Cyclic(Grouping):
    """Cyclic weight transfer: the model goes from site to site; a round is one cycle.

    Source: Chang et al., Distributed deep learning networks among institutions for medical imaging, JAMIA 2018.
    """

    one_by_one = True

    def stages(self, turn: Turn) -> Sequence[Groups]:
        """Site after site."""
        return [{FEDERATION: [site]} for site in turn.sites]


@TOPOLOGIES.add("incremental")
class Incremental(Grouping):
    """Institutional incremental learning: each site trains to its end before the next one, and never again.

    Every site does the local work of all rounds, one site after the other, so that it trains as long as in the other
    topologies. A round is as many exchanges as there are sites, mostly with the same one.

    Source: Sheller et al., Multi-institutional deep learning modeling without sharing patient data, BrainLes 2018.
    """

    one_by_one = True

    def stages(self, turn: Turn) -> Sequence[Groups]:
        """The site whose turn it is, again and again."""
        sites = turn.sites
        order = [sites[(turn.number * len(sites) + place) // turn.rounds] for place in range(len(sites))]
        return [{FEDERATION: [site]} for site in order]
