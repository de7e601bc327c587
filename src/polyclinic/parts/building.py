"""Finding and building parts by name, wherever in a study file they are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from polyclinic.options import Catalogue
from polyclinic.parts.catalogue import CHANNEL_PARTS, LOCAL_PARTS, SERVER_PARTS, Part
from polyclinic.parts.grouping import TOPOLOGIES
from polyclinic.parts.procedure import PROCEDURES
from polyclinic.parts.server_end import Hiding
from polyclinic.shapes import Shaped

if TYPE_CHECKING:
    from polyclinic.models.variant import Variant
    from polyclinic.state import FlatModule

#: Name and options of a part.
Entry = tuple[str, dict[str, Any]]
#: Entry of a study file -> the parts that can be named there.
PLACES: dict[str, Catalogue[Any]] = {
    "local": LOCAL_PARTS, "server": SERVER_PARTS, "topology": TOPOLOGIES, "procedure": PROCEDURES,
    "channel": CHANNEL_PARTS,
}  # fmt: skip


def part_class(name: str) -> type[Part]:
    """The class of a part.

    Raises:
        KeyError: there is no such part here.
    """
    for catalogue in PLACES.values():
        if name in catalogue:
            found: type[Part] = catalogue[name]
            return found
    raise KeyError(name)


def build_part(name: str, options: dict[str, Any]) -> Part:
    """A part with its options."""
    part = part_class(name)(**options)
    part.name = name
    return part


def build_parts(entries: Iterable[Entry]) -> dict[str, Part]:
    """Parts by name, in the order in which they close what leaves a site; each knows those before it."""
    parts = {name: build_part(name, options) for name, options in entries}
    summed = any(isinstance(part.at_server(), Hiding) for part in parts.values())
    before: Part | None = None
    for part in parts.values():
        part.summed, part.before, before = summed, before, part
    return parts


def tell_parts(
    parts: Mapping[str, Part], given: Mapping[str, Mapping[str, Shaped] | None], sizes: Mapping[str, int]
) -> None:
    """Tell parts what they are ``given`` to close, of a model with these ``sizes``."""
    for name, part in parts.items():
        part.given, part.sizes = given.get(name) or {}, sizes


def pretraining_of(parts: Iterable[Part]) -> Part | None:
    """The part that has the first rounds for itself; None if no one has."""
    return next((part for part in parts if part.pretraining_rounds), None)


def variant_of(
    parts: Iterable[Part], site: str, whole: FlatModule, seed: Sequence[str | int]
) -> Variant | None:  # fmt: skip
    """What a site trains in place of the study's network with these parts, of which one at most says it."""
    return next(filter(None, (part.variant(site, whole, seed) for part in parts)), None)


def build_chain(channel: Sequence[Entry], local: Iterable[Entry], server: Iterable[Entry]) -> dict[str, Part]:
    """The parts whose ends at the server make a step, by name, in the order in which it passes them.

    What is done to all that leaves a site comes first. Parts of local training look at the step that comes out, so
    those at the head of the server rule that undo what they did to updates come before them.
    """
    local, server = list(local), list(server)
    parts = build_parts([*channel, *local, *server])
    undone, trained, ruled = (
        [(name, parts[name]) for name, _ in entries] for entries in (reversed(channel), local, server)
    )
    undoing = list(takewhile(lambda named: named[1].undoes, ruled))
    return dict([*undone, *undoing, *trained, *ruled[len(undoing) :]])
