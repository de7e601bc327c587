"""Fills the catalogues of parts: with the parts of this package, and with those of plug-ins.

A plug-in is an installed package with entry points in the group ``polyclinic.parts``; each names a module that enters
its parts, topologies, procedures or methods when it is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

import polyclinic.client
import polyclinic.communication.topology
import polyclinic.server  # noqa: F401 - the parts enter their catalogues

GROUP = "polyclinic.parts"


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


def _load() -> list[Plugin]:
    """Import what all entry points name; one that fails does not keep the others from it."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        try:
            point.load()
        except Exception as error:  # anything may go wrong in code of others
            found.append(Plugin(point.name, package, f"{type(error).__name__}: {error}"))
        else:
            found.append(Plugin(point.name, package))
    return found


#: All plug-ins of this environment, by name.
PLUGINS: list[Plugin] = _load()
