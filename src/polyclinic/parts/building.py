"""Finding and building parts by name, wherever in a study file they are named."""

from __future__ import annotations

from typing import Any

from polyclinic.options import Catalogue
from polyclinic.parts.catalogue import CHANNEL_PARTS, LOCAL_PARTS, SERVER_PARTS, Part
from polyclinic.parts.grouping import TOPOLOGIES
from polyclinic.parts.procedure import PROCEDURES

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
    return part_class(name)(**options)
