"""What a training is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.data.dataset import Dataset
from polyclinic.models.variant import Variant
from polyclinic.parts import (
    FEDERATION,
    Grouping,
    Groups,
    Memory,
    Part,
    Procedure,
    Workplace,
    pretraining_of,
    tell_parts,
)
from polyclinic.parts.grouping import Star
from polyclinic.parts.procedure import Local
from polyclinic.privacy import Budget, Event, merged
from polyclinic.server.chain import Chain
from polyclinic.server.selection import Participation
from polyclinic.site.messages import SentNetwork, Start
from polyclinic.site.schema import Known, check_opened
from polyclinic.state import FlatModule, Selection
from polyclinic.tasks import Task


@dataclass(frozen=True, eq=False)
class OwnNetwork:
    """The network of sites that have another than the study's.

    Attributes:
        named: name and options.
        model: one of its kind, for its layout.
        initial: first state ``[P]``.
    """

    named: tuple[str, dict[str, Any]]
    model: FlatModule
    initial: Tensor


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        start: what every site is told at the start.
        initial: first model state ``[P]``.
        selection: the shared coordinates.
        parts: builds the parts of the method at the server anew, by name, in the order in which steps pass them.
        sites: who trains, in site order.
        weights: weight of each site's update.
        learning_rates: local learning rate of each round; its length is the number of rounds.
        cycled: other options of the local optimiser in each round, where the schedule cycles them; or empty.
        network: the server's own network, as a place to compute in.
        task: loss and measures.
        together: whether there is one best round; otherwise each site has its own.
        metric: reported on validation data each round.
        choose_by: ``loss`` or ``metric``: what the best round is chosen by (validation data only).
        higher_is_better: for ``metric``.
        validate: False trains all rounds and takes the last.
        patience: stop after so many rounds without a better one; None never stops early.
        quorum: least number of sites that must answer; None for all that are asked.
        save: whether sites keep state that must be saved with a checkpoint.
        keeps: whether sites keep a part of their model, or a model, of the best round.
        participation: who takes part in a round, applied one after another.
        grouping: name and grouping.
        procedure: name and procedure.
        voters: sites that do not train, and are asked how good the model is on their validation cases.
        variants: site -> what it trains in place of the study's network.
        networks: site -> its network, where it has another than the study's. All of it stays there, or it is shared by
            the sites that have it.
        apart: the same of sites that train it, where the study's network is what is validated and tested.
        pretrain_only: sites that take part in the rounds of a pretraining only, since they have no label to go on with.
        endures: whether a model that breaks down, with values that are not numbers, ends training instead of being a
            failure (a simulated attack, whose result that is).
        public: the public set, where a part at the server works on it.
        folder: see `Workplace`.
    """

    start: Start
    initial: Tensor
    selection: Selection
    sites: list[str]
    weights: dict[str, float]
    learning_rates: list[float]
    network: FlatModule
    task: Task
    parts: Callable[[], dict[str, Part]] = dict
    cycled: Sequence[dict[str, Any]] = ()
    together: bool = True
    metric: str = "auc"
    choose_by: str = "loss"
    higher_is_better: bool = True
    validate: bool = True
    patience: int | None = None
    quorum: int | None = 1
    save: bool = False
    keeps: bool = False
    participation: Sequence[Participation] = ()
    grouping: tuple[str, Grouping] = field(default_factory=lambda: ("star", Star()))
    procedure: tuple[str, Procedure] = field(default_factory=lambda: ("local", Local()))
    voters: Sequence[str] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    networks: Mapping[str, OwnNetwork] = field(default_factory=dict)
    apart: Mapping[str, OwnNetwork] = field(default_factory=dict)
    pretrain_only: Sequence[str] = ()
    endures: bool = False
    public: Dataset | None = None
    folder: Path | None = None

    def workplace(self, model: str) -> Workplace:
        """What parts at the server have to compute with for a model."""
        return Workplace(self.network_of(model), self.task, self.public, self.folder)

    @cached_property
    def pretraining(self) -> int:
        """How many of the first rounds are a pretraining, see `Part.pretraining_rounds`."""
        part = pretraining_of(self.parts().values())
        return 0 if part is None else part.pretraining_rounds

    def phase(self, number: int) -> dict[str, str]:
        """What a row of a round says of it, where there is a pretraining."""
        if not self.pretraining:
            return {}
        return {"phase": "pretraining" if number < self.pretraining else "training"}

    @property
    def protects(self) -> bool:
        """Whether a part of the method protects patients by noise."""
        return any(part.private for part in self.parts().values())

    @property
    def central(self) -> list[Event]:
        """What a round costs by the noise of the server."""
        ends = [part.at_server() for part in self.parts().values()]
        return [event for end in ends for event in end.spends(self.rounds, self.budget)]

    @cached_property
    def affordable(self) -> int:
        """How many rounds the noise of the server allows within the budget."""
        if self.budget is None or not self.central:
            return self.rounds
        return self.budget.rounds(merged(self.central), self.rounds)

    @property
    def budget(self) -> Budget | None:
        """What noise of the server may cost the sites."""
        asked = self.start.privacy
        if asked is None or asked.epsilon is None:
            return None
        return Budget(asked.epsilon, asked.delta, asked.trainings)

    @cached_property
    def preceding(self) -> int:
        """How many of the first rounds give nothing to choose a model by: those of a pretraining, which leave the head
        as it was drawn, or in which the procedure leaves the model as it is."""
        return max(self.pretraining, self.procedure[1].still_rounds)

    @property
    def rounds(self) -> int:
        """How many rounds there are at most."""
        return len(self.learning_rates)

    def chain(self, model: str) -> Chain:
        """The server's ends of the parts, for one model."""
        parts, known = self.parts(), self._knowns[self._own(model)]
        tell_parts(parts, known.given, known.sizes)
        ends = {name: part.at_server() for name, part in parts.items()}
        return Chain(ends, lambda part, packed, site: check_opened(self.known.at(site, "train"), part, packed))

    @cached_property
    def _elsewhere(self) -> frozenset[str]:
        """Parts that send something beside the model to sites alone that did not train."""
        return frozenset(name for name, part in self.parts().items() if part.at_server().predicts_elsewhere)

    def sent_beside(self, beside: Memory, site: str) -> Memory:
        """What of all that stands beside the model (`Progress.beside`) a site is sent whose cases are predicted."""
        trains = site in self.weights
        return {name: one for name, one in beside.items() if not (trains and name.split("/")[0] in self._elsewhere)}

    def cycled_in(self, number: int) -> dict[str, Any]:
        """Options of the local optimiser that the schedule cycles, in a round."""
        return self.cycled[number] if self.cycled else {}

    @cached_property
    def known(self) -> Known:
        """What is known of the messages of this training."""
        others = {site: self._knowns[one] for site, one in self.networks.items()}
        return replace(self._knowns[None], others=others)

    @cached_property
    def _knowns(self) -> dict[OwnNetwork | None, Known]:
        """What is known of those of each network."""
        found = dict[OwnNetwork | None, Known]({None: Known.of(self._starts[None], self.network, self.variants)})
        return found | {one: Known.of(self._starts[one], one.model) for one in self._others}

    @cached_property
    def _others(self) -> list[OwnNetwork]:
        """The networks besides the study's, in the order of their numbers, which begin at 1."""
        return list(dict.fromkeys(self.networks.values()))

    @cached_property
    def _starts(self) -> dict[OwnNetwork | None, Start]:
        """What is told to sites with a network of their own and, under None, to those with the study's."""
        if not self._others:
            apart = set(self.apart.values())
            return {None: self.start, **{one: self.start.model_copy(update={"own": one.named}) for one in apart}}
        sent = [SentNetwork(model=self.start.model, size=self.network.layout.size)]
        sent += [SentNetwork(model=one.named, size=one.model.layout.size) for one in self._others]
        start = self.start.model_copy(update={"networks": sent})
        return {None: start, **{one: start.model_copy(update={"model": one.named}) for one in self._others}}

    def started(self, sites: Iterable[str]) -> dict[str, Message]:
        """What each of some sites is told when the training starts, with its first model."""
        said = {one: Message(start.fields(), self._first(one)) for one, start in self._starts.items()}
        return {site: said[self.networks.get(site, self.apart.get(site))] for site in sites}

    def _first(self, own: OwnNetwork | None) -> Memory:
        """The first models of a site with this network."""
        if own is None:
            return {"initial": self.initial}
        return {"initial": own.initial} if self.networks else {"initial": self.initial, "own": own.initial}

    @cached_property
    def homes(self) -> dict[str, str]:
        """Site -> the model that it shares with those of the same network; of sites with another than the study's."""
        if not self.selection.size:
            return {}
        return {site: network_model(self._others.index(own) + 1) for site, own in self.networks.items()}

    def by_network(self, groups: Groups) -> Groups:
        """Groups of which each has one network."""
        found = dict[str, list[str]]()
        for model, sites in groups.items():
            for site in sites:
                found.setdefault(self.homes.get(site, model), []).append(site)
        return found if self.homes else groups

    def _own(self, owner: str) -> OwnNetwork | None:
        """The network of which a model is, if that is not the study's; ``owner`` as in `model_name`."""
        if not self.homes:
            return self.networks.get(owner)
        return next((self.networks[site] for site, model in self.homes.items() if model == owner), None)

    def network_of(self, owner: str) -> FlatModule:
        """The network of which a model is; ``owner`` as in `model_name`."""
        own = self._own(owner)
        return self.network if own is None else own.model

    def selection_of(self, model: str) -> Selection:
        """The shared coordinates of a model."""
        own, start = self._own(model), self.start
        if own is None:
            return self.selection
        return own.model.layout.select(start.share, start.modules, start.without)

    def first(self, model: str) -> Tensor:
        """The shared coordinates of a model's first state ``[Q]``."""
        own = self._own(model)
        return self.selection_of(model).take(self.initial if own is None else own.initial).clone()

    def model_name(self, owner: str, position: str = "") -> str:
        """How a whole model is called in a message: where sites have different networks, with the number of its own.

        Args:
            owner: the site whose model it is or, where sites share it, the model's own name.
            position: among several.
        """
        if not self._others:
            return f"model{position}"
        own = self._own(owner)
        return f"network{0 if own is None else self._others.index(own) + 1}_model{position}"

    def sent(self, site: str, state: Tensor) -> Tensor:
        """What of a model ``[Q]`` a site is sent to train it."""
        variant = self.variants.get(site)
        return state if variant is None else variant.sent(state)

    @cached_property
    def reveals(self) -> dict[str, str]:
        """``part/name`` of what is exchanged besides the model -> what it could reveal."""
        parts = {**self.parts(), self.grouping[0]: self.grouping[1], self.procedure[0]: self.procedure[1]}
        return {f"{name}/{key}": text for name, part in parts.items() for key, text in part.reveals.items()}


def network_model(number: int) -> str:
    """Name of the model that sites share which have the study's network with this number; that with 0 is its own."""
    return f"network {number}" if number else FEDERATION
