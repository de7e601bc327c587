"""Fills the catalogues of parts: with the parts of this package, and with those of plug-ins.

A plug-in is an installed package with entry points in the group ``polyclinic.parts``; each names a module that enters
its parts, topologies, procedures, networks or methods when it is imported. One that can't be loaded as a whole brings
nothing; this is told wherever a study names something unknown, and noted with the results of every study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import polyclinic.communication.topology
import polyclinic.server  # noqa: F401 - the parts enter their catalogues
from polyclinic.client.personal import PERSONAL
from polyclinic.methods import PUBLISHED
from polyclinic.models.catalogue import MODELS
from polyclinic.options import ABSENT, Catalogue
from polyclinic.parts import PLACES, part_class
from polyclinic.server.selection import PARTICIPATION

GROUP = "polyclinic.parts"

#: What plug-ins may add to, besides methods.
_OPEN: Mapping[str, Catalogue[Any]] = {
    **PLACES, "personal": PERSONAL, "participation": PARTICIPATION, "model": MODELS,
}  # fmt: skip


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found.

    Attributes:
        name: of the entry point.
        package: that has it, with its version.
        problem: why it could not be loaded; empty if it was.
    """

    name: str
    package: str
    problem: str = ""

    def __str__(self) -> str:
        """For people."""
        said = f"The plug-in {self.name} ({self.package})"
        return f"{said} could not be loaded: {self.problem.removesuffix('.')}." if self.problem else said


def load() -> list[Plugin]:
    """Import what all entry points name; one that fails does not keep the others from it."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        before = _entered()
        try:
            point.load()
            _check(before)
        except Exception as error:  # anything may go wrong in code of others
            _take_back(before)
            found.append(Plugin(point.name, package, f"{type(error).__name__}: {error}"))
        else:
            found.append(Plugin(point.name, package))
    return found


def _entered() -> dict[str, set[str]]:
    """Names that there are, by place."""
    return {**{place: set(catalogue) for place, catalogue in _OPEN.items()}, "methods": set(PUBLISHED)}


def _check(before: Mapping[str, set[str]]) -> None:
    """Look at what came after ``before``.

    Raises:
        ValueError: a part has the name of another one, or one that messages can't have; or a method names what is not
            there.
    """
    now = _entered()
    for place in PLACES:
        for name in sorted(now[place] - before[place]):
            others = [other for other in PLACES if other != place and name in now[other]]
            if others:
                raise ValueError(f"there is a {_OPEN[others[0]].kind} {name!r} already, and names of parts differ")
            if not name.isidentifier():
                raise ValueError(f"{name!r} is no name for a part: it has letters, digits and underscores")
    for name in sorted(now["methods"] - before["methods"]):
        method = PUBLISHED[name].method
        for part, _ in method.parts:
            try:
                part_class(part)
            except KeyError:
                raise ValueError(f"the method {name} has a part {part!r}, which is not there") from None


def _take_back(before: Mapping[str, set[str]]) -> None:
    """Take out what came after ``before``."""
    for place, catalogue in _OPEN.items():
        for name in set(catalogue) - before[place]:
            catalogue.remove(name)
    for name in set(PUBLISHED) - before["methods"]:
        del PUBLISHED[name]


#: All plug-ins of this environment, by name.
PLUGINS: list[Plugin] = load()
ABSENT += [str(plugin) for plugin in PLUGINS if plugin.problem]
