"""Two runs at once in one folder: the second is refused, and the first lives."""

import subprocess
import sys

import pytest

from helpers import write_table_study
from polyclinic.errors import ResultsError, StudyError
from polyclinic.study.display import Display
from polyclinic.study.lock import LOCK, locked
from polyclinic.study.study import Study

HOLD = """
import sys
from pathlib import Path
from polyclinic.study.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that writes into ``tmp_path/out``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused(other_run, tmp_path):
    with (
        pytest.raises(ResultsError, match="P501 Another run is writing into") as caught,
        locked(tmp_path / "out"),
    ):
        pytest.fail("two at once")
    assert "--out" in caught.value.hint
    assert other_run.poll() is None


def test_a_run_that_was_killed_holds_nothing(other_run, tmp_path):
    other_run.kill()
    other_run.wait()
    assert (tmp_path / "out" / LOCK).exists()
    with locked(tmp_path / "out"):
        pass


def test_a_study_keeps_others_out_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder: folder)
    study = Study.of(write_table_study(tmp_path, {"A": 12, "B": 12}) | {"methods": ["fedavg"]}, tmp_path)
    refused = []

    class Meddling(Display):
        def job(self, number, title, skipped):
            for resume in (False, True):
                with pytest.raises(ResultsError, match="Another run") as caught:
                    study.run(tmp_path / "out", resume=resume)
                refused.append(caught.value.code)

    results = study.run(tmp_path / "out", display=Meddling())
    assert set(refused) == {"P501"}
    assert len(results.results)
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_folder_in_which_nothing_was_written_is_taken_away_again(tmp_path):
    with pytest.raises(StudyError), locked(tmp_path / "out"):
        raise StudyError("P102", "wrong")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_can_not_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="P501"), locked(tmp_path / "file" / "out"):
        pass


def test_sites_may_have_names_as_long_as_file_systems_take(tmp_path, monkeypatch):
    """250 bytes, and two that differ at their end alone."""
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder: folder)
    names = ["é" * 124 + "xA", "é" * 124 + "xB"]
    entries = write_table_study(tmp_path, dict.fromkeys(names, 12))
    entries |= {"methods": ["single", "fedavg", "fedbn"], "evaluation": {"folds": 2, "unseen_sites": ["fedavg"]}}
    results = Study.of(entries, tmp_path).run(tmp_path / "out")
    assert set(results.results["tested_on"]) == {*names, "all"}
    assert len(list((tmp_path / "out" / "sites").iterdir())) == 2
