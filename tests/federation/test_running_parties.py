"""Real parties that run: no line of the doctor fails, what they do is told, and they end with all they started."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from elsewhere import split_table
from helpers import write_table_study
from polyclinic.errors import PolyclinicError
from polyclinic.federation.checks.doctor import check_coordinator, check_site
from polyclinic.federation.kit import Kit
from polyclinic.federation.processes.party_status import status
from polyclinic.federation.processes.running import end, held, processes, running
from polyclinic.federation.rehearse import all_parties

pytest.importorskip("nvflare")
pytestmark = pytest.mark.long

SIZES = {"Aachen": 24, "Bonn": 30}


def until(what: Any, seconds: float = 60.0) -> Any:
    """What ``what`` gives as soon as it is something."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_parties_are_checked_told_of_and_ended(tmp_path: Path) -> None:
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"predictions": "sites"}
    entries["training"] |= {"rounds": 3000}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries))
    own = split_table(tmp_path)
    policy = {"patients": 24, "floor": 5}
    files = {name.lower(): {"name": name, "data": {"cases.csv": str(own[name] / "cases.csv")}, "policy": policy}
             for name in SIZES}  # fmt: skip
    with all_parties(tmp_path / "kits", files) as researcher:
        site, coordinator = (Kit.read(tmp_path / "kits" / name, role) for name, role in
                             (("aachen", "site"), ("coordinator", "coordinator")))  # fmt: skip
        for lines in (check_site(site.folder, tmp_path / "study.yaml"), check_coordinator(coordinator.folder)):
            wrong = {name: found for name, found in lines if found.state == "fails"}
            assert not wrong
        assert dict(status(site))["connected"].startswith("to localhost:")
        assert dict(status(coordinator))["connected"].startswith("3 connections")

        failures = list[PolyclinicError]()

        def run() -> None:
            try:
                researcher.run(tmp_path / "study.yaml", tmp_path / "out", list(files), lambda now: None)
            except PolyclinicError as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        told = until(lambda: dict(status(site)).get("study"))
        assert told.startswith("A small study (")
        until(lambda: any("study joined" in text for name, text in status(site) if name == "audit log"))
        before = [process.pid for process in processes(site)]
        assert len(before) == 2  # its own, and that of the study, which has a session of its own
        assert end(site)
        assert not [one for one in before if psutil.pid_exists(one) and psutil.Process(one).status() != "zombie"]
        assert (running(site), held(site)) == (None, False)

        foreground_ends_when_it_is_asked_to(site)


def foreground_ends_when_it_is_asked_to(site: Kit) -> None:
    """As systemd asks, and as ``polyclinic site stop`` does."""
    words = [sys.executable, "-m", "polyclinic", "site"]
    for asked, expected in (("signal", 143), ("stop", 0)):
        process = subprocess.Popen([*words, "start", "--kit", str(site.folder)])
        until(lambda: dict(status(site)).get("connected", "").startswith("to "))
        if asked == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            subprocess.run([*words, "stop", "--kit", str(site.folder)], check=True)
        assert process.wait(30) == expected
        assert not processes(site)
