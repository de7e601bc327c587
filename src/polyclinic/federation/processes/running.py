"""Whether a party runs on this machine, and which processes are its own.

Its process holds a lock, which all that it starts inherits: a kit that is held can't be started a second time, whatever
became of who started it. A file says which process that is, and when it was started, so that a process that happens to
have its number later is never taken for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyclinic.errors import FederationError
from polyclinic.federation.kit import Kit
from polyclinic.files import write_atomic

#: Name of the file in a kit.
RUNNING = "running.json"
_LOCK = ".running.lock"
#: Seconds for which a start waits for somebody who only looks.
_MOMENT = 0.5
#: What the processes of parties run.
_MODULES = ("nvflare.private.fed.app.", "polyclinic.federation.processes.coordinator")


@dataclass(frozen=True)
class Running:
    """The process of a party that runs.

    Attributes:
        number: of the process.
        since: when it was started.
    """

    number: int
    since: datetime


def hold(kit: Kit) -> int:
    """Take a party's lock; the process that is given the open file that is returned holds it until it ends.

    Raises:
        FederationError: P602, the party runs already, or the kit is another user's.
    """
    try:
        opened = os.open(kit.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:
        raise FederationError("P602", f"This user may not write into {kit.folder}.",
                              "Start it as the user whom the kit belongs to.") from None  # fmt: skip
    until = time.monotonic() + _MOMENT
    while not _locked(opened, fcntl.LOCK_EX):
        if time.monotonic() > until:
            os.close(opened)
            raise FederationError("P602", f"{kit.name} runs already with the kit in {kit.folder}.",
                                  f"End it with `polyclinic {kit.role} stop --kit {kit.folder}`.")  # fmt: skip
        time.sleep(0.05)
    return opened


def held(kit: Kit) -> bool:
    """Whether a process of the party lives."""
    try:
        opened = os.open(kit.folder / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(opened, fcntl.LOCK_SH)
    finally:
        os.close(opened)


def _locked(opened: int, kind: int) -> bool:
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def note(kit: Kit, number: int) -> None:
    """Write down which process runs a party."""
    about = {"process": number, "birth": _birth(number), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomic(kit.folder / RUNNING, json.dumps(about))


def forget(kit: Kit) -> None:
    """The party was ended as it should be."""
    (kit.folder / RUNNING).unlink(missing_ok=True)


def running(kit: Kit) -> Running | None:
    """The process that runs a party; None where none does."""
    try:
        about = json.loads((kit.folder / RUNNING).read_text(encoding="utf-8"))
        found = Running(int(about["process"]), datetime.fromisoformat(about["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if held(kit) and about.get("birth") == _birth(found.number) else None


def was_cut_off(kit: Kit) -> bool:
    """Whether the party has ended without being stopped."""
    return (kit.folder / RUNNING).is_file() and not held(kit)


def _birth(number: int) -> float | None:
    """What tells a process from others that have its number: when it was started, by a clock that nobody sets."""
    try:
        return float(Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:
        pass
    import psutil

    try:
        return float(psutil.Process(number).create_time())
    except psutil.Error:
        return None


def processes(kit: Kit) -> list[Any]:
    """All processes of a party: its own, and those of studies, which live on for a while where it is killed."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(kit.folder) in words and any(word.startswith(_MODULES) for word in words):
            found.append(process)
    return [process for process in found if _lives(process)]


def _lives(process: Any) -> bool:
    """Whether a process is there; while it ends, its command is gone already, and afterwards its parent may ask."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end(kit: Kit, seconds: float = 5.0) -> bool:
    """End all processes of a party, and wait until they are gone; returns whether there were any.

    Args:
        kit: of the party.
        seconds: after which those that are still there are killed.

    Raises:
        FederationError: P602, they are another user's.
    """
    import psutil

    there = found = processes(kit)
    for kind, patience in (("terminate", seconds), ("kill", 2.0)):
        for process in there:
            try:
                getattr(process, kind)()
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                raise FederationError("P602", f"{kit.name} was started by another user.",
                                      f"Call this as {process.username()}.") from None  # fmt: skip
        until = time.monotonic() + patience
        # A process whose threads still end counts as ended already, and holds the lock.
        while (there := [one for one in {*found, *processes(kit)} if _lives(one)]) or (found and held(kit)):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    forget(kit)
    return bool(found)
