"""Where NVIDIA FLARE is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
sys.modules["nvflare"] = None  # importing it fails
from importlib import util
real = util.find_spec
util.find_spec = lambda name, *more: None if name == "nvflare" else real(name, *more)
from polyclinic.cli import main
main()
"""


@pytest.mark.parametrize("command", ["rehearse", "run", "federation"])
def test_it_is_said_what_is_missing(tmp_path: Path, command: str) -> None:
    import yaml

    from helpers import write_table_study

    study, consortium, kit = tmp_path / "study.yaml", tmp_path / "consortium.yaml", tmp_path / "kit"
    study.write_text(yaml.safe_dump(write_table_study(tmp_path, {"Aachen": 8})))
    consortium.write_text("{consortium: a, coordinator: {host: localhost}, sites: [b], researchers: [c@d.org]}")
    (kit / "startup").mkdir(parents=True)
    (kit / "startup" / "fed_admin.json").write_text("{}")
    (kit / "party.json").write_text('{"name": "c@d.org", "sites": ["b"]}')
    arguments = {
        "rehearse": ["rehearse", study, "--out", tmp_path / "out"],
        "run": ["run", study, "--engine", "nvflare", "--kit", kit, "--out", tmp_path / "out"],
        "federation": ["federation", "new", consortium, "--out", tmp_path / "kits"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert "P503 Studies across hospitals need the package nvflare." in " ".join(done.stderr.split())
    assert "pip install 'polyclinic[federation]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--engine", "nvflare"], "go together"),
        (["--kit", "x"], "go together"),
        (["--engine", "nvflare", "--kit", "x", "--method", "fedavg"], "sites take part in whole studies"),
        (["--engine", "nvflare", "--kit", "nowhere"], "P602 There is no start-up kit in"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, more: list[str], words: str) -> None:
    command = [sys.executable, "-m", "polyclinic.cli", "run", "study.yaml", "--out", "out", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2 or "P602" in words


def test_results_of_another_study_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("mine")
    command = [
        sys.executable,
        "-m",
        "polyclinic.cli",
        "run",
        "study.yaml",
        "--engine",
        "nvflare",
        "--kit",
        "kit",
        "--out",
    ]
    done = subprocess.run([*command, "out"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "P501 The folder out is not empty." in " ".join(done.stderr.split())
    assert (tmp_path / "out" / "results.csv").read_text() == "mine"
