"""Methods by name, with the options of their parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import polyclinic.catalogues  # noqa: F401 - the parts enter their catalogues
from polyclinic.client.personal.models import PERSONAL
from polyclinic.methods import PUBLISHED, Method, PartEntry
from polyclinic.options import Catalogue, option_names, with_defaults
from polyclinic.parts import CHANNEL_PARTS, LOCAL_PARTS, PROCEDURES, SERVER_PARTS, TOPOLOGIES


class Composition:
    """A published method; its keyword-only arguments are the options of its parts.

    Args:
        name: of the method.

    Attributes:
        options_of: the classes of its parts.
    """

    def __init__(self, name: str) -> None:
        self.method = PUBLISHED[name].method
        self.options_of = [catalogue[part] for _, catalogue, part in _places(self.method)]

    def __call__(self, **options: Any) -> Method:
        """The method; options that are not given have the defaults of the parts."""

        def filled(catalogue: Catalogue[Any], entry: PartEntry) -> PartEntry:
            part = catalogue[entry[0]]
            own = {name: options[name] for name in option_names(part) if name in options}
            return entry[0], with_defaults(part, own)

        method = self.method
        return replace(
            method,
            local=[filled(LOCAL_PARTS, entry) for entry in method.local],
            channel=[filled(CHANNEL_PARTS, entry) for entry in method.channel],
            server=[filled(SERVER_PARTS, entry) for entry in method.server],
            personal=None if method.personal is None else filled(PERSONAL, method.personal),
            topology=filled(TOPOLOGIES, method.topology),
            procedure=filled(PROCEDURES, method.procedure),
        )

    def options_of_others(self, places: Collection[str]) -> dict[str, str]:
        """Options that mean nothing where other parts stand in these places: option -> the place of its part."""
        found: dict[str, str] = {}
        kept = set[str]()
        for place, catalogue, part in _places(self.method):
            names = option_names(catalogue[part])
            if place in places:
                found |= dict.fromkeys(names, place)
            else:
                kept |= set(names)
        return {name: place for name, place in found.items() if name not in kept}


def _places(method: Method) -> Iterator[tuple[str, Catalogue[Any], str]]:
    """Every part that a method names, with its place and the catalogue that has it."""
    placed = (
        ("local", LOCAL_PARTS, method.local), ("personal", PERSONAL, [method.personal] if method.personal else []),
        ("channel", CHANNEL_PARTS, method.channel), ("server", SERVER_PARTS, method.server),
        ("topology", TOPOLOGIES, [method.topology]), ("procedure", PROCEDURES, [method.procedure]),
    )  # fmt: skip
    return ((place, catalogue, name) for place, catalogue, entries in placed for name, _ in entries)


class _Methods(Catalogue[Any]):
    """All published methods."""

    def __getitem__(self, name: str) -> Composition:
        return Composition(name)

    def __contains__(self, name: object) -> bool:
        return name in PUBLISHED

    def __iter__(self) -> Iterator[str]:
        return iter(PUBLISHED)


METHODS = _Methods("method")
