"""What a check of a method is given, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyclinic.methods import Method
from polyclinic.parts import Part, build_chain, build_part


@dataclass(frozen=True)
class Refusal:
    """Why a method can't be run as composed.

    Attributes:
        message: what does not go together.
        hint: what to do instead.
        key: the entry of the method that it is about.
    """

    message: str
    hint: str
    key: str

    def place(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Where in the method's entry: nowhere if the method brought the part itself."""
        return (self.key,) if self.key in given else ()


@dataclass(frozen=True)
class Local:
    """What matters of the local training.

    Attributes:
        task: the study's.
        optimizer: name of the local optimiser.
        keeps_optimizer: whether its state stays between rounds.
        mixed_precision: whether the study asks for it.
        chosen: whether sites are chosen anew each round.
        stops_early: whether training ends once validation gets no better.
        besides: entries of the training that change how a site trains by itself, besides its optimiser and batches.
        by_loss: whether sites are chosen by their training loss.
        balanced: whether classes are weighted by their numbers.
        images: whether cases are images.
        subgroups: columns by whose groups results are given.
        model: name of the network.
        public: whether there is a public set.
        rounds: of the training.
        networks: whether sites have networks of their own.
        partial: whether some sites did not outline all structures.
    """

    task: str
    optimizer: str
    keeps_optimizer: bool
    mixed_precision: bool
    chosen: bool
    stops_early: bool
    besides: Sequence[str] = ()
    by_loss: bool = False
    balanced: bool = False
    images: bool = True
    subgroups: Sequence[str] = ()
    model: str = ""
    public: bool = False
    rounds: int = 0
    networks: bool = False
    partial: bool = False


def placed(method: Method) -> list[tuple[str, str, Part]]:
    """Entry of the method, name, and part, of all parts that change what is trained."""
    places = (("channel", reversed(method.channel)), ("local", method.local), ("server", method.server))
    return [(key, name, build_part(name, options)) for key, entries in places for name, options in entries]


def all_parts(method: Method) -> list[tuple[str, str, Part]]:
    """The same, with the topology and the procedure."""
    others = (("topology", method.topology), ("procedure", method.procedure))
    return [*placed(method), *((key, name, build_part(name, options)) for key, (name, options) in others)]


def built_parts(method: Method) -> list[tuple[str, Part]]:
    """Name and part, in the order in which steps pass them at the server."""
    return list(build_chain(method.channel, method.local, method.server).items())
