"""Parties that run: one process for each kit, how it is ended, what is told of it, and the unit for systemd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from polyclinic.cli import app
from polyclinic.errors import FederationError
from polyclinic.federation.audit_log import AUDIT_LOG, AuditLog
from polyclinic.federation.checks.kit import check_process
from polyclinic.federation.consortium import Consortium
from polyclinic.federation.job import study_hash
from polyclinic.federation.kit import Kit
from polyclinic.federation.kits import make_kits
from polyclinic.federation.processes import parties
from polyclinic.federation.processes.party_status import status
from polyclinic.federation.processes.running import RUNNING, end, held, hold, processes, running, was_cut_off
from polyclinic.federation.processes.service import unit, unit_name
from polyclinic.federation.site_file import SITE_FILE

pytest.importorskip("nvflare")

#: In the place of FLARE's process: starts one for a study in a session of its own, as FLARE does, and waits.
STAND_IN = """
import os, sys, time
if sys.argv[1].endswith("client_train"):
    job = ["nvflare.private.fed.app.client.worker_process", *sys.argv[2:], "job-1"]
    again = [sys.executable, *sys.orig_argv[1:-3], *job]
    os.posix_spawn(sys.executable, again, os.environ, setsid=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    entries = {"consortium": "lungs", "coordinator": {"host": "localhost", "port": 18996}, "sites": ["aachen"],
               "researchers": ["maria@hospital.org"]}  # fmt: skip
    return make_kits(Consortium.model_validate(entries), tmp_path_factory.mktemp("kits"))


@pytest.fixture
def kit(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    """A site's kit; what is started with it does nothing."""
    shutil.copytree(made["aachen"], tmp_path / "kit")
    found = Kit.read(tmp_path / "kit", "site")
    words = [sys.executable, "-c", STAND_IN, "nvflare.private.fed.app.client.client_train", "-m", str(found.folder)]
    monkeypatch.setattr(parties, "command", lambda kit: words)
    yield found
    end(found, 1.0)


def started(kit: Kit) -> subprocess.Popen[bytes]:
    """A process of the kit, and one of a study; for a moment the second has the words of the first."""
    process = parties.start(kit)
    until = time.monotonic() + 20
    while not any("job-1" in one.info["cmdline"] for one in processes(kit)):
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


def told(kit: Kit) -> dict[str, str]:
    return dict(status(kit))


def test_a_kit_is_started_once(kit: Kit) -> None:
    assert running(kit) is None
    process = started(kit)
    found = running(kit)
    assert found is not None
    assert found.number == process.pid
    assert check_process(kit).state == "passes"
    with pytest.raises(FederationError, match=r"P602 aachen runs already .*polyclinic site stop --kit"):
        parties.start(kit)
    assert len(processes(kit)) == 2


def test_all_processes_of_a_kit_are_ended(kit: Kit) -> None:
    process = started(kit)
    own = [one.pid for one in processes(kit)]
    assert end(kit)
    assert process.wait(5) == -signal.SIGTERM
    assert not [one for one in own if psutil.pid_exists(one) and psutil.Process(one).status() != "zombie"]
    assert (running(kit), held(kit), was_cut_off(kit)) == (None, False, False)
    assert not end(kit)
    started(kit)  # and it can be started again


def test_processes_that_a_crash_has_left_are_found_and_ended(kit: Kit) -> None:
    process = started(kit)
    process.kill()
    process.wait()
    assert running(kit) is None
    assert held(kit)
    with pytest.raises(FederationError, match="P602 aachen runs already"):
        parties.start(kit)
    found = check_process(kit)
    assert (found.state, found.advice) == ("fails", f"polyclinic site stop --kit {kit.folder}")
    assert CliRunner().invoke(app, ["site", "stop", "--kit", str(kit.folder)]).exit_code == 0
    assert not held(kit)


def test_another_process_that_has_the_number_is_left_alone(kit: Kit) -> None:
    about = {"process": 1, "birth": 1.0, "since": "2026-01-01T00:00:00+00:00"}
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (kit.folder / RUNNING).write_text(json.dumps(about | {"process": other.pid}))
        lock = hold(kit)  # somebody has the kit, but it is not this process
        assert running(kit) is None
        assert not end(kit)
        assert other.poll() is None
        os.close(lock)
    finally:
        other.kill()
        other.wait()


def test_a_run_that_was_cut_off_is_told(kit: Kit) -> None:
    process = started(kit)
    for one in processes(kit):
        one.kill()
    process.wait()
    while held(kit):
        time.sleep(0.02)
    assert check_process(kit).state == "warning"
    assert told(kit)["runs"] == "no; it ended without being stopped, see party.log"
    done = CliRunner().invoke(app, ["site", "status", "--kit", str(kit.folder)])
    assert done.exit_code == 1
    started(kit)
    assert CliRunner().invoke(app, ["site", "status", "--kit", str(kit.folder)]).exit_code == 0


def test_the_command_ends_well_when_it_is_stopped(kit: Kit) -> None:
    done = CliRunner().invoke(app, ["site", "start", "--kit", str(kit.folder), "--background"])
    assert done.exit_code == 0
    assert running(kit) is not None
    assert "aachen has ended." in CliRunner().invoke(app, ["site", "stop", "--kit", str(kit.folder)]).stderr
    assert "aachen did not run." in CliRunner().invoke(app, ["site", "stop", "--kit", str(kit.folder)]).stderr


def test_what_a_site_does_is_told_in_words(kit: Kit) -> None:
    text = "study: Lungs of the north\n"
    for folder in ("job-1/app_aachen/config", "job-2/app_aachen/config", "waiting"):
        (kit.folder / folder).mkdir(parents=True)
    for number in (1, 2):
        (kit.folder / f"job-{number}" / "app_aachen" / "config" / "study.yaml").write_text(text + "#" * number)
    (kit.folder / "waiting" / f"{study_hash(text)}.yaml").write_text(text)
    log = AuditLog(kit.folder)
    log.add("study joined", study="a" * 64, researcher="maria@hospital.org")
    log.add("answered", function="open", asked={"bytes": 3}, left={"bytes": 512})
    log.add("refused", function="predict", asked={"bytes": 3}, reason="Predictions may not leave.")
    with (kit.folder / AUDIT_LOG).open("a") as file:
        file.write("torn")
    started(kit)
    lines = list(status(kit))
    mark = study_hash(text)[:12]
    assert [text for name, text in lines if name == "study"] == [f"Lungs of the north ({study_hash(text + '#')[:12]})"]
    assert dict(lines)["waits"] == f"Lungs of the north ({mark}); polyclinic site approve {mark} --kit {kit.folder}"
    of_log = [text for name, text in lines if name == "audit log"]
    assert of_log.pop() == "a line that can't be read; `polyclinic audit-log verify` says more"
    assert [text[20:] for text in of_log] == [
        "study joined, aaaaaaaaaaaa, for maria@hospital.org", "answered, open, 512 bytes left",
        "refused, predict, Predictions may not leave.",
    ]  # fmt: skip
    assert dict(lines)["connected"].startswith("no, not to localhost:18996")
    assert "more days" in dict(lines)["certificate"]


def test_a_connection_is_told(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path = kit.folder / "startup" / "fed_client.json"
        path.write_text(path.read_text().replace("18996", str(port)))
        code = f"import socket, time; one = socket.create_connection(('127.0.0.1', {port})); time.sleep(60)"
        words = [sys.executable, "-c", code, "nvflare.private.fed.app.client.client_train", "-m", str(kit.folder)]
        monkeypatch.setattr(parties, "command", lambda kit: words)
        parties.start(kit)
        server.settimeout(20)
        connection, _ = server.accept()
        assert told(kit)["connected"] == f"to localhost:{port}"
        connection.close()


# The unit -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settled(kit: Kit, tmp_path: Path) -> Kit:
    """A kit whose data are at places with names that need care."""
    data = {}
    for number, name in enumerate(["export", 'a "new" disk', "100 %"]):
        (tmp_path / name).mkdir()
        data[f"DATA{number}"] = str(tmp_path / name)
    (kit.folder / "local" / SITE_FILE).write_text(yaml.safe_dump({"data": data}))
    return kit


def test_the_unit_of_a_site_bounds_what_it_may_do(settled: Kit, tmp_path: Path) -> None:
    lines = unit(settled, "polyclinic").splitlines()
    assert unit_name(settled) == "polyclinic-aachen.service"
    for line in ("User=polyclinic", f"ReadWritePaths={settled.folder}", "NoNewPrivileges=yes", "ProtectSystem=strict",
                 "PrivateTmp=yes", "Restart=on-failure", "After=network-online.target",
                 f"ExecStart={sys.executable} -m polyclinic site start --kit {settled.folder}",
                 f'ReadOnlyPaths={tmp_path}/export "{tmp_path}/a \\"new\\" disk" "{tmp_path}/100 %%"'):  # fmt: skip
        assert line in lines, line


def test_the_unit_of_a_coordinator_has_no_data(made: dict[str, Path]) -> None:
    found = unit(Kit.read(made["coordinator"], "coordinator"))
    assert "ReadOnlyPaths" not in found
    assert "polyclinic coordinator start --kit" in found


def test_systemd_takes_the_unit(settled: Kit, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd")
    path = tmp_path / unit_name(settled)
    path.write_text(unit(settled, "root"))
    done = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, told) == (0, [])


def test_the_container_runs_a_command_that_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    lines = (root / "deploy" / "Containerfile").read_text(encoding="utf-8").splitlines()
    entry, words = (json.loads(line.partition(" ")[2]) for line in lines if line.startswith(("ENTRYPOINT", "CMD")))
    assert entry == ["polyclinic"]
    done = CliRunner().invoke(app, [*words[:2], "--help"])
    assert done.exit_code == 0
    assert words[2] in done.stdout
    assert "USER polyclinic" in lines
    for name in [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]:
        assert (root / name).exists()
