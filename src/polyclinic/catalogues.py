"""Fills the catalogues of parts: with the parts of this package, and with those of plug-ins.

A plug-in is an installed package with entry points in the group ``polyclinic.parts``; each names a module that enters
its parts, topologies, procedures, networks or methods when it is imported. One that can't be loaded as a whole brings
nothing; this is told wherever a study names something unknown, and noted with the results of every study.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import polyclinic.channel
import polyclinic.communication.topology
import polyclinic.server  # noqa: F401 - the parts enter their catalogues
from polyclinic.client.personal import PERSONAL, Personal
from polyclinic.methods import PUBLISHED, SHARES, Method
from polyclinic.models.catalogue import MODELS
from polyclinic.options import ABSENT, Catalogue, option_names
from polyclinic.parts import PLACES, Grouping, Part, Procedure
from polyclinic.server.selection import PARTICIPATION, Participation

GROUP = "polyclinic.parts"

#: What plug-ins may add to, besides methods.
_OPEN: Mapping[str, Catalogue[Any]] = {
    **PLACES, "personal": PERSONAL, "participation": PARTICIPATION, "model": MODELS,
}  # fmt: skip
#: What is entered there has to be a class of this kind; networks may be made by functions.
_KINDS: Mapping[str, type] = {
    "local": Part, "channel": Part, "server": Part, "topology": Grouping, "procedure": Procedure, "personal": Personal,
    "participation": Participation,
}  # fmt: skip


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found.

    Attributes:
        name: of the entry point.
        package: that has it, with its version.
        problem: why it could not be loaded; empty if it was.
        module: that its entry point names.
    """

    name: str
    package: str
    problem: str = ""
    module: str = ""

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
        except (Exception, SystemExit) as error:  # anything may go wrong in code of others, and it may want to end all
            _take_back(before)
            found.append(Plugin(point.name, package, f"{type(error).__name__}: {error}"))
        else:
            found.append(Plugin(point.name, package, module=point.module))
    return found


def note_origin(error: BaseException) -> None:
    """Let an error that came up in the code of a plug-in say so, below its traceback."""
    step, found = error.__traceback__, None
    while step is not None:
        package = str(step.tb_frame.f_globals.get("__name__")).partition(".")[0]
        found = next((one for one in PLUGINS if one.module.partition(".")[0] == package), found)
        step = step.tb_next
    if found is not None:
        error.add_note(f"{found} failed, not Polyclinic itself: whoever makes that package can mend it.")


def _entered() -> dict[str, set[str]]:
    """Names that there are, by place."""
    return {**{place: set(catalogue) for place, catalogue in _OPEN.items()}, "methods": set(PUBLISHED)}


def _check(before: Mapping[str, set[str]]) -> None:
    """Look at what came after ``before``.

    Raises:
        ValueError: a part has the name of another one, or one that messages can't have, or is none; or a method names
            what is not there.
    """
    now = _entered()
    for place, catalogue in _OPEN.items():
        for name in sorted(now[place] - before[place], key=str):
            if place in PLACES:
                _check_name(name, place, now)
            _check_part(name, place, catalogue[name])
    for name in sorted(now["methods"] - before["methods"]):
        _check_method(name, PUBLISHED[name].method)


def _check_name(name: object, place: str, now: Mapping[str, set[str]]) -> None:
    others = [other for other in PLACES if other != place and name in now[other]]
    if others:
        raise ValueError(f"there is a {_OPEN[others[0]].kind} {name!r} already, and names of parts differ")
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is no name for a part: it has letters, digits and underscores")


def _check_part(name: str, place: str, part: Any) -> None:
    """Whether a part is of the kind of its place, with all that it must have, and options that can be checked."""
    kind = _KINDS.get(place)
    if kind is not None:
        if not inspect.isclass(part) or not issubclass(part, kind) or (kind is Part and issubclass(part, _NOT_HERE)):
            ends = " (such as SitePart and ServerPart)" if kind is Part else ""
            raise ValueError(f"{name!r} under `{place}` has to be a subclass of {kind.__name__}{ends}")
        missing = sorted(one for one in dir(part) if getattr(getattr(part, one), "__isabstractmethod__", False))
        if missing:
            raise ValueError(f"{name!r} lacks {' and '.join(missing)}, which a {kind.__name__} of its kind must have")
        by_place = [
            one.name
            for one in inspect.signature(part).parameters.values()
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        if by_place:
            raise ValueError(
                f"{name!r} has {by_place[0]!r} among its arguments by place, and options are given by name: "
                f"`def __init__(self, *, {by_place[0]}: ...)`"
            )
    try:
        option_names(part)
    except Exception as error:  # of whatever stands as a type
        raise ValueError(f"the options of {name!r} can't be checked: {error}") from error


#: Parts that have a place of their own.
_NOT_HERE = (Grouping, Procedure)


def _check_method(name: str, method: Method) -> None:
    named = {
        "local": method.local, "channel": method.channel, "server": method.server, "topology": [method.topology],
        "procedure": [method.procedure], "personal": [method.personal] if method.personal else [],
    }  # fmt: skip
    for place, entries in named.items():
        for part, _ in entries:
            if part not in _OPEN[place]:
                raise ValueError(f"the method {name} has a part {part!r} under `{place}`, which is not there")
    if method.share not in SHARES:
        raise ValueError(f"the method {name} shares {method.share!r}; expected one of {', '.join(SHARES)}")


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
