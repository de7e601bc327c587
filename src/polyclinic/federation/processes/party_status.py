"""What a party does at the moment, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from polyclinic.federation.audit_log import AUDIT_LOG
from polyclinic.federation.checks.connection import address, connections
from polyclinic.federation.checks.kit import dates_found, kind_of_files
from polyclinic.federation.job import STUDY_FILE, study_hash
from polyclinic.federation.kit import Kit
from polyclinic.federation.processes.parties import LOG
from polyclinic.federation.processes.running import processes, running, was_cut_off

#: So many lines of the audit log are told.
_LINES = 5
#: Bytes at the end of an audit log in which these are looked for.
_TAIL = 65536


def status(kit: Kit) -> Iterator[tuple[str, str]]:
    """What is told of a party: names and sentences."""
    found = running(kit)
    if found is None:
        how = f"no; it ended without being stopped, see {LOG}" if was_cut_off(kit) else "no"
        yield "runs", how
    else:
        yield "runs", f"since {_time(found.since)}, process {found.number}"
        yield "connected", _connected(kit, found.number)
    for title in _in_work(kit):
        yield "study", title
    for path in sorted((kit.folder / "waiting").glob("*.yaml")):
        yield "waits", f"{_title(path)}; polyclinic site approve {path.stem[:12]} --kit {kit.folder}"
    for line in _last_lines(kit.folder / AUDIT_LOG):
        yield "audit log", line
    yield "certificate", dates_found("certificate", kit.folder / "startup" / f"{kind_of_files(kit)}.crt").text


def _connected(kit: Kit, number: int) -> str:
    """Whether a party has a connection now, as the system knows it."""
    host, port = address(kit)
    count = connections(kit, number)
    if count is None:
        return "not known: the process is another user's"
    if kit.role == "coordinator":
        return f"{count} connection{'' if count == 1 else 's'} of sites and researchers to port {port}"
    return f"to {host}:{port}" if count else f"no, not to {host}:{port}; `polyclinic site check` looks for the cause"


def _in_work(kit: Kit) -> Iterator[str]:
    """The studies whose processes live."""
    words = {word for process in processes(kit) for word in process.info["cmdline"]}
    for path in sorted(kit.folder.glob(f"*/app_*/config/{STUDY_FILE}")):
        if path.relative_to(kit.folder).parts[0] in words:
            yield _title(path)


def _title(path: Path) -> str:
    """Name and hash of a study."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        name = str(yaml.safe_load(text).get("study", "without a name"))
    except (yaml.YAMLError, AttributeError):
        name = "not readable"
    return f"{name} ({study_hash(text)[:12]})"


def _last_lines(path: Path) -> Iterator[str]:
    """The end of an audit log, in words."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in lines[-_LINES:]:
        try:
            yield _words(json.loads(line))
        except (ValueError, KeyError, TypeError):
            yield "a line that can't be read; `polyclinic audit-log verify` says more"


def _words(about: dict[str, Any]) -> str:
    """A line of an audit log in words: when, what, and of which study or message."""
    words = [f"{_time(datetime.fromisoformat(about['time']))} {about['event']}"]
    words += [str(about["function"])] if "function" in about else []
    words += [str(about["study"])[:12]] if "study" in about else []
    words += [f"for {about['researcher']}"] if about.get("researcher") else []
    words += [f"{about['left']['bytes']} bytes left"] if "left" in about else []
    words += [f"hidden by {', '.join(about['hidden_by'])}"] if "hidden_by" in about else []
    words += [str(about["state"])] if "state" in about else []
    words += [str(about["reason"])] if "reason" in about else []
    return ", ".join(words)


def _time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
