"""A grouping: several models, of which each site trains the one that fits it best."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from polyclinic.errors import PolyclinicError
from polyclinic.parts import TOPOLOGIES, Grouping, Groups, Memory, SiteEnd, SiteView, Turn
from polyclinic.seeds import generator


@TOPOLOGIES.add("clusters")
class Clusters(Grouping):
    """IFCA: in every round each site trains the model that has the lowest loss on its training cases.

    The paper starts from different models. Here all are the same at first, and sites are dealt out at random in their
    first round, which makes them differ. A site that can't say which model fits stays with the one that it had.

    Source: Ghosh et al., An efficient framework for clustered federated learning, NeurIPS 2020, algorithm 1.

    Args:
        number: of models.
    """

    several = True
    reveals: ClassVar = {"loss": "a mean over the site's training cases: how well each model fits them"}

    def __init__(self, *, number: Annotated[int, Field(ge=2)] = 2) -> None:
        self.names = [f"cluster {place + 1}" for place in range(number)]
        self._homes: dict[str, int] = {}

    def at_site(self) -> SiteEnd:
        """Says how well a model fits."""
        return _Judging()

    def stages(self, turn: Turn) -> Sequence[Groups]:
        """One stage, in which every model is trained that has sites."""
        if all(name in turn.models for name in self.names):
            self._choose(turn)
        new = [site for site in turn.sites if site not in self._homes]
        order = torch.randperm(len(new), generator=generator("clusters", turn.seed, turn.number)).tolist()
        self._homes |= {new[place]: number % len(self.names) for number, place in enumerate(order)}
        groups = {name: [s for s in turn.sites if self._homes[s] == place] for place, name in enumerate(self.names)}
        return [{name: sites for name, sites in groups.items() if sites}]

    def _choose(self, turn: Turn) -> None:
        losses: dict[str, list[float]] = {}
        for name in self.names:
            for site, found in turn.ask("loss", {site: {"state": turn.models[name]} for site in turn.sites}):
                if not isinstance(found, PolyclinicError):
                    losses.setdefault(site, []).append(float(found["loss"]))
        known = {site: found for site, found in losses.items() if len(found) == len(self.names)}
        self._homes |= {site: found.index(min(found)) for site, found in known.items()}

    def memory(self) -> Memory:
        """Where the sites are."""
        return {site: torch.tensor(home) for site, home in self._homes.items()}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._homes = {site: int(home) for site, home in memory.items()}


class _Judging(SiteEnd):
    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        if verb != "loss":
            return super().answer(verb, asked, view)
        return {"loss": torch.tensor(view.measure(view.vector)["loss"], dtype=torch.float64)}
