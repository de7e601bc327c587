"""Sites that are not in one place: each has a folder with its own files, and is reached by bytes only."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import write_table_study
from polyclinic import Study
from polyclinic.communication.message import Message
from polyclinic.data.opening.source import Source
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.base import Reply
from polyclinic.study.runner import run_study


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


def alike_elsewhere(content: dict[str, Any], folder: Path, names: Sequence[str]) -> None:
    """A study of images whose sites are elsewhere writes the same files as with all in one place.

    Args:
        content: of the study file.
        folder: where the table and a folder of images for each site are.
        names: of the files.
    """
    folders = split_table(folder)
    for site, own in folders.items():
        shutil.copytree(folder / site, own / site)
    Study.of(content, folder).run(folder / "here")
    run_study(Study.of(content, folder), folder / "there", engine=Elsewhere(folders, folder / "sites"))
    for name in names:
        assert (folder / "here" / name).read_bytes() == (folder / "there" / name).read_bytes(), name


def hospital_files(folder: Path, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """A table of several sites in ``all``, split among them, and what their ``site.yaml`` say: kit -> entries."""
    (folder / "all").mkdir()
    write_table_study(folder / "all", sizes)
    own = split_table(folder / "all")
    rest = {"device": "cpu", "policy": {"patients": 1, "floor": 1}}
    return {
        f"site-{number}": {"name": name, "data": {"cases.csv": str(own[name] / "cases.csv")}} | rest
        for number, name in enumerate(sorted(own), start=1)
    }


def split_table(folder: Path, name: str = "cases.csv", column: str = "site") -> dict[str, Path]:
    """A folder for each site with the rows of its own."""
    table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    found = {}
    for site in sorted(table[column].unique()):
        found[site] = folder / f"at {site}"
        found[site].mkdir()
        table[table[column] == site].to_csv(found[site] / name, index=False)
    return found


def kill_processes(kit: Any, *, job_only: bool) -> list[int]:
    """Kill all processes of a party, or that of a study alone, as a machine that runs out of memory would."""
    from polyclinic.federation.processes.running import processes

    jobs = ("nvflare.private.fed.app.server.runner_process", "nvflare.private.fed.app.client.worker_process")
    found = [one for one in processes(kit) if not job_only or any(job in one.info["cmdline"] for job in jobs)]
    for process in found:
        process.kill()
    return [process.pid for process in found]
