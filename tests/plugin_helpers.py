"""The plug-in in tests/plugin, for tests in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers import Federation, table_sites
from polyclinic import catalogues
from polyclinic.errors import SiteError

PLUGIN = Path(__file__).parent / "plugin"
MODEL = {"mlp": {"hidden": [5], "norm": "batch"}}


@contextmanager
def plugged_in() -> Iterator[ModuleType]:
    """The plug-in's parts are in the catalogues."""
    before = catalogues._entered()
    sys.path.insert(0, str(PLUGIN / "src"))
    try:
        import polyclinic_more

        yield polyclinic_more
    finally:
        sys.path.remove(str(PLUGIN / "src"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "polyclinic_more"]:
            del sys.modules[name]
        catalogues._take_back(before)


def federation(entry: Any = "fedavg", data: Any = None, **options: Any) -> Federation:
    """A federation of one method: fedavg with other parts, where ``entry`` is a dictionary."""
    method = {"fedavg": entry} if isinstance(entry, dict) else entry
    training = {"rounds": 3} | options.pop("training", {})
    return Federation(data or table_sites(), [method], model=MODEL, training=training, **options)


def failing(engine: Any, *absent: tuple[int, str]) -> None:
    """Let sites fail in rounds, given as (round, site)."""
    original = engine.call

    def call(function: str, requests: Any) -> Iterator[Any]:
        for site, reply in original(function, requests):
            late = function == "train" and (requests[site].fields["round"], site) in absent
            yield site, SiteError("P401", f"{site} is away.", site=site) if late else reply

    engine.call = call
