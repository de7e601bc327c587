"""Fills the catalogues of parts: with the parts of this package, and with those of plug-ins.

A plug-in is an installed package with entry points in the group ``polyclinic.parts``; each names a module that enters
its parts, networks, losses, metrics, tasks, readers of image files and methods when it is imported. One that can't be
loaded as a whole brings nothing; this is told wherever a study names something unknown, and noted with the results of
every study.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

import polyclinic.channel
import polyclinic.communication.topology
import polyclinic.server  # noqa: F401 - the parts enter their catalogues
from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.data.readers.read import READERS
from polyclinic.data.volumes.intensity import INTENSITIES
from polyclinic.methods import PUBLISHED, SHARES, Method
from polyclinic.models.catalogue import MODELS
from polyclinic.options import ABSENT, Catalogue, option_names
from polyclinic.origins import LOADED, said
from polyclinic.parts import PLACES, Grouping, Part, Procedure
from polyclinic.server.selection import PARTICIPATION, Participation
from polyclinic.tasks import TASKS
from polyclinic.tasks.metrics import ENTERED, METRICS

log = logging.getLogger(__name__)

GROUP = "polyclinic.parts"

#: What plug-ins may add to, besides methods, tasks, losses of tasks and metrics.
_OPEN: Mapping[str, Catalogue[Any]] = {
    **PLACES, "personal": PERSONAL, "participation": PARTICIPATION, "model": MODELS, "intensity": INTENSITIES,
    "reader": READERS,
}  # fmt: skip
#: What is entered there has to be a class of this kind; networks may be made by functions.
_KINDS: Mapping[str, type] = {
    "local": Part, "channel": Part, "server": Part, "topology": Grouping, "procedure": Procedure, "personal": Personal,
    "participation": Participation,
}  # fmt: skip
#: Place of the losses of a task, before the name of the task.
_LOSS_OF = "loss of "


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found.

    Attributes:
        name: of the entry point.
        package: that has it, with its version.
        problem: why it could not be loaded; empty if it was.
        module: that its entry point names.
        brings: what it entered: place and name.
    """

    name: str
    package: str
    problem: str = ""
    module: str = ""
    brings: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        """For people."""
        said = f"The plug-in {self.name} ({self.package})"
        return f"{said} could not be loaded: {self.problem.removesuffix('.')}." if self.problem else said


def load() -> list[Plugin]:
    """Import what all entry points name; one that fails does not keep the others from it."""
    found = list[Plugin]()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "? ?"
        before = _entered()
        plugin = Plugin(point.name, package, module=point.module)
        root = point.module.partition(".")[0]
        LOADED[root] = str(plugin)
        try:
            point.load()
            _check(before)
        except (Exception, SystemExit) as error:  # anything may go wrong in code of others, and it may want to end all
            log.debug("loading %s", package, exc_info=True)
            _take_back(before)
            if all(one.module.partition(".")[0] != root for one in found):
                del LOADED[root]
            found.append(Plugin(point.name, package, said(error)))
        else:
            brought = {
                (place, str(name)) for place, names in _entered().items() for name in names - before.get(place, set())
            }
            found.append(replace(plugin, brings=frozenset(brought)))
    return found


def plugin_of(place: str, name: str) -> Plugin | None:
    """The plug-in that brought what has a name at a place; None if it is of this package."""
    return next((plugin for plugin in PLUGINS if (place, name) in plugin.brings), None)


def _catalogue(place: str) -> Catalogue[Any]:
    """The catalogue of a place."""
    return TASKS[place.removeprefix(_LOSS_OF)].losses if place.startswith(_LOSS_OF) else _OPEN[place]


def _entered() -> dict[str, set[str]]:
    """Names that there are, by place."""
    return {
        **{place: set(catalogue) for place, catalogue in _OPEN.items()},
        **{_LOSS_OF + name: set(getattr(task, "losses", ())) for name, task in TASKS.items()},
        "task": set(TASKS), "metric": set(METRICS), "methods": set(PUBLISHED),
    }  # fmt: skip


def _check(before: Mapping[str, set[str]]) -> None:
    """Look at what came after ``before``.

    Raises:
        ValueError: a part has the name of another one, or one that messages can't have, or is none; or a method names
            what is not there.
    """
    now = _entered()
    new = {place: sorted(names - before.get(place, set()), key=str) for place, names in now.items()}
    for name in new["task"]:
        _check_task(TASKS[name])
    for place in [place for place in now if place in _OPEN or place.startswith(_LOSS_OF)]:
        for name in new[place]:
            if place in PLACES:
                _check_name(name, place, now)
            if place == "reader" and (not str(name).startswith(".") or name != str(name).lower()):
                raise ValueError(f"{name!r} is no ending of a file's name for a reader: `.mha`, in small letters")
            _check_part(name, place, _catalogue(place)[name])
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
    if not callable(part):
        raise ValueError(f"{name!r} under `{place}` has to be a function or a class")
    try:
        option_names(part)
    except Exception as error:  # of whatever stands as a type
        raise ValueError(f"the options of {name!r} can't be checked: {error}") from error


def _check_task(task: Any) -> None:
    """Whether a task has what every task must have."""
    missing = sorted(one for one in dir(task) if getattr(getattr(task, one), "__isabstractmethod__", False))
    missing += [one for one in ("target", "losses", "metrics", "default_metrics", "sends") if not hasattr(task, one)]
    if missing:
        raise ValueError(f"the task {task.name!r} lacks {' and '.join(missing)}")
    if not isinstance(task.losses, Catalogue) or not list(task.losses):
        raise ValueError(f'the task {task.name!r} has no catalogue of losses: `losses = Catalogue("loss of ...")`')
    absent = [name for name in task.metrics if name not in METRICS]
    if absent:
        raise ValueError(f"the task {task.name!r} has a metric {absent[0]!r} that is not in METRICS")


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
    if not isinstance(method.share, str) or method.share not in SHARES:
        raise ValueError(f"the method {name} shares {method.share!r}; expected one of {', '.join(SHARES)}")


def _take_back(before: Mapping[str, set[str]]) -> None:
    """Take out what came after ``before``."""
    for name in set(TASKS) - before["task"]:
        del TASKS[name]
    for name in set(METRICS) - before["metric"]:
        del METRICS[name]
        ENTERED.pop(name, None)
    for name in set(PUBLISHED) - before["methods"]:
        del PUBLISHED[name]
    for place, names in _entered().items():
        if place in _OPEN or place.startswith(_LOSS_OF):
            for name in names - before[place]:
                _catalogue(place).remove(name)


#: All plug-ins of this environment, by name.
PLUGINS: list[Plugin] = load()
ABSENT += [str(plugin) for plugin in PLUGINS if plugin.problem]
