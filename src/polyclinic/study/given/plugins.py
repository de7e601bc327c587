"""Plug-ins that a study needs: those that bring what its file names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from polyclinic.catalogues import Plugin, plugin_of
from polyclinic.options import PYTHON, split_entry
from polyclinic.server.selection import PARTICIPATION
from polyclinic.study.declaration import Declaration


def needed_plugins(declaration: Declaration) -> list[Plugin]:
    """The plug-ins that bring what a study names, in order. Readers of files are not named: each site has its own."""
    found = {plugin.name: plugin for place, name in _named(declaration) if (plugin := plugin_of(place, name))}
    return [found[name] for name in sorted(found)]


def used_plugins(declaration: Declaration) -> dict[str, str]:
    """Package of each plug-in that a study needs -> its version."""
    return dict(plugin.package.rsplit(" ", 1) for plugin in needed_plugins(declaration))


def of_python(declaration: Declaration) -> bool:
    """Whether the network or a loss is what a Python program gave, which is in this process alone."""
    methods = [one.method for study in declaration.study_methods for one in declaration.candidates(study)]
    losses = [declaration.loss_of(method.training)[0] for method in methods]
    return any(name.startswith(PYTHON) for name in [*_networks(declaration), *losses])


def canonical_package(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _networks(declaration: Declaration) -> list[str]:
    return [name for name, _ in declaration.all_networks]


def _named(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Place and name of all that plug-ins can bring."""
    yield "task", declaration.task
    yield from (("model", name) for name in _networks(declaration))
    yield from (("metric", name) for name in declaration.metrics)
    preprocessing = declaration.data.preprocessing
    if preprocessing is not None:
        yield "intensity", split_entry(preprocessing.intensity, (), "")[0]
    for method in [one.method for study in declaration.study_methods for one in declaration.candidates(study)]:
        yield "methods", method.name
        yield from method.method.named_parts
        yield f"loss of {declaration.task}", declaration.loss_of(method.training)[0]
        chosen = method.training.participation or []
        for entry in chosen if isinstance(chosen, list) else [chosen]:
            yield "participation", split_entry(entry, (), PARTICIPATION.kind)[0]
