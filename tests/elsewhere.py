"""Sites that are not in one place: each has a folder with its own files, and is reached by bytes only."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from polyclinic.communication.message import Message
from polyclinic.data.opening.source import Source
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.base import Reply


class Elsewhere(Engine):
    """Carries messages to sites each of which knows its own files alone.

    Args:
        folders: site -> folder with its files.
        keep: folder in which the sites keep what is theirs.
        floor: values of fewer cases are not named outside the sites.
    """

    def __init__(self, folders: Mapping[str, Path], keep: Path | None = None, floor: int = 1) -> None:
        self.sites = list(folders)
        self.hospitals = {
            site: LocalEngine([site], source=Source(folder, site=site, floor=floor), serialise=True, folder=keep)
            for site, folder in folders.items()
        }

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        for site in self.sites:
            if site in requests:
                yield from self.hospitals[site].call(function, {site: requests[site]})


def split_table(folder: Path, name: str = "cases.csv", column: str = "site") -> dict[str, Path]:
    """A folder for each site with the rows of its own."""
    table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    found = {}
    for site in sorted(table[column].unique()):
        found[site] = folder / f"at {site}"
        found[site].mkdir()
        table[table[column] == site].to_csv(found[site] / name, index=False)
    return found
