"""The page for beginners: every command of it, in its order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyclinic.federation.audit_log import verify

pytest.importorskip("nvflare")
pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "first-consortium.md"
KITS = ("coordinator", "north", "south")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for name in KITS:
        command = [sys.executable, "-m", "polyclinic", "coordinator" if name == KITS[0] else "site", "stop", "--kit"]
        subprocess.run([*command, str(tmp_path / "kits" / name)], check=False, capture_output=True)


def test_every_command_of_the_page_works(folder: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").replace("pip install 'polyclinic[federation]'\n", "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        text = text.replace("8102", str(free.getsockname()[1]))
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 7
    script = "set -eu\n" + "\n".join(blocks)
    command = Path(sys.executable).parent / "polyclinic"
    surroundings = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    assert shutil.which("polyclinic", path=surroundings["PATH"])
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "a person there must approve the study" in done.stderr
    assert "Diagnosis from regional volumes" in (folder / "results" / "report.html").read_text(encoding="utf-8")
    assert "finished" in (folder / "results" / "status.html").read_text(encoding="utf-8").lower()
    for name in KITS:
        assert verify(folder / "kits" / name).lines > 3
