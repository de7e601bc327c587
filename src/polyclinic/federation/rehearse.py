"""All parties of a study on this machine, as real processes with real certificates: for trying, and for tests."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from polyclinic.federation.consortium import Consortium, CoordinatorEntry
from polyclinic.federation.job import COPIES
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.optional import require_flare
from polyclinic.federation.processes import parties
from polyclinic.federation.processes.running import end
from polyclinic.federation.session import Follow, Researcher
from polyclinic.federation.site_file import SITE_FILE
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.given.plugins import used_plugins
from polyclinic.study.opening import local_engine
from polyclinic.study.study import Study

RESEARCHER = "researcher@rehearsal.org"
#: Seconds within which all parties must be there.
START = 120.0


def rehearse(study: Path, out: Path, follow: Follow, keep: Path | None = None) -> None:
    """Run a study between processes on this machine; its data are where they are for `polyclinic run`.

    Args:
        study: the study file.
        out: folder for the results; it is made.
        follow: is told where the study is.
        keep: folder for the parties' kits and logs; a temporary one by default.

    Raises:
        PolyclinicError: as a study between hospitals; P603, a party does not start.
    """
    require_flare()
    CheckedStudy.read(study, named=True)  # what is refused between hospitals is so before any party starts
    found = Study.read(study)
    names = local_engine(found).sites
    data = {place.name: str(place) for place in sorted(study.resolve().parent.iterdir()) if place != out.resolve()}
    data |= _variables(study)
    allowed = {
        "patients": 1, "floor": 1, "predictions": True, "overlays": True, "personal_models": True,
        "masks": True, "plugins": list(used_plugins(found.declaration)),
    }  # fmt: skip
    files = {
        f"site-{number}": {"name": name, "data": data, "device": found.declaration.engine.device, "policy": allowed}
        for number, name in enumerate(names, start=1)
    }
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polyclinic-")))
        folder.mkdir(parents=True, exist_ok=True)
        researcher = stack.enter_context(all_parties(folder, files, data))
        researcher.run(study, out, list(files), follow)


@contextmanager
def all_parties(
    folder: Path, files: Mapping[str, Mapping[str, Any]], copies: Mapping[str, str] | None = None
) -> Iterator[Researcher]:
    """All parties of a consortium as processes on this machine, for as long as the context lasts.

    Args:
        folder: for their kits.
        files: party -> entries of the ``site.yaml`` of each site.
        copies: name -> place of files that the coordinator has, too.

    Raises:
        PolyclinicError: P603, a party does not start.
    """
    consortium = Consortium(
        consortium="rehearsal", coordinator=CoordinatorEntry(host="localhost", port=_free_port()), sites=list(files),
        researchers=[RESEARCHER],
    )  # fmt: skip
    kits = make_kits(consortium, folder)
    for party, entries in files.items():
        (kits[party] / "local" / SITE_FILE).write_text(yaml.safe_dump(dict(entries)), encoding="utf-8")
    here = kits["coordinator"] / COPIES
    here.mkdir(exist_ok=True)
    for name, place in (copies or {}).items():
        if not (here / name).is_symlink():
            (here / name).symlink_to(place)
    ours = [Kit.read(kits["coordinator"], "coordinator"), *(Kit.read(kits[party], "site") for party in files)]
    started = list[subprocess.Popen[bytes]]()
    try:
        coordinator = parties.start(ours[0])
        started.append(coordinator)
        kit = Kit.read(kits[RESEARCHER], "researcher")
        with Researcher.connect(kit, START, lambda: coordinator.poll() is None) as researcher:
            started += [parties.start(one) for one in ours[1:]]
            researcher.wait_for(list(files), START)
            yield researcher
    finally:
        for one in reversed(ours):
            end(one)
        for process in started:
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _variables(study: Path) -> dict[str, str]:
    """Environment variables that the study's data are named by."""
    names = re.findall(r"\$\{(\w+)\}", study.read_text(encoding="utf-8"))
    return {name: os.environ[name] for name in names if name in os.environ}
