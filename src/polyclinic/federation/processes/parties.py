"""Processes of parties on this machine: how they are started, and what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from polyclinic.federation.kit import Kit
from polyclinic.federation.optional import require_flare
from polyclinic.federation.processes import running
from polyclinic.federation.trust.authority import ORGANISATION
from polyclinic.federation.trust.certificates import check_dates
from polyclinic.federation.trust.revoked import Revoked
from polyclinic.files import write_atomic

#: What FLARE takes from there: after how many seconds a site whose process is gone is told of, and for how many a study
#: that is over waits for sites that are not there.
_SURROUNDINGS = {
    "PYTHONUNBUFFERED": "1", "NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "5", "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "20",
}  # fmt: skip
#: Written by a party's process, for people.
LOG = "party.log"


def command(kit: Kit) -> list[str]:
    """The command that runs a party, in this Python."""
    coordinator = kit.role == "coordinator"
    module = (
        "polyclinic.federation.processes.coordinator" if coordinator else "nvflare.private.fed.app.client.client_train"
    )
    name = [] if coordinator else [f"uid={kit.name}"]
    return [
        sys.executable, "-u", "-m", module, "-m", str(kit.folder),
        "-s", "fed_server.json" if coordinator else "fed_client.json",
        "--set", "secure_train=true", *name, f"org={ORGANISATION}", "config_folder=config",
    ]  # fmt: skip


def settle(kit: Kit) -> None:
    """Let a coordinator keep its jobs in its own folder, wherever that is now; FLARE would share one in ``/tmp``."""
    path = kit.folder / "local" / "resources.json"
    resources = json.loads(path.read_text(encoding="utf-8"))
    for component in resources["components"]:
        if "uri_root" in component.get("args", {}):
            component["args"]["uri_root"] = str(kit.folder / "jobs")
    if "snapshot_persistor" in resources:
        resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit.folder / "snapshots")
    write_atomic(path, json.dumps(resources, indent=2))


def start(kit: Kit) -> subprocess.Popen[bytes]:
    """Start a party's process; it and what it starts can be ended by `polyclinic.federation.processes.running.end`.

    Raises:
        PolyclinicError: P602, it runs already, or its certificate is not valid now; P608, the coordinator's list of
            revoked ones was changed.
    """
    require_flare()
    check_dates(kit)
    Revoked(kit.folder).read()
    lock = running.hold(kit)
    try:
        settle(kit)
        for name in ("pid.fl", "shutdown.fl", "restart.fl"):
            (kit.folder / name).unlink(missing_ok=True)
        with (kit.folder / LOG).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - this Python
                command(kit), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=kit.folder,
                start_new_session=True, env=os.environ | _SURROUNDINGS, pass_fds=[lock],
            )  # fmt: skip
    finally:
        os.close(lock)
    running.note(kit, process.pid)
    return process


def last_words(folder: Path, lines: int = 5) -> str:
    """The end of a party's log."""
    path = folder / LOG
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if path.is_file() else ""
