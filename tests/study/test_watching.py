"""A study that is watched by its folder: what is shown is what is there, and the run notices nothing."""

import json
import os
import subprocess
import sys
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from helpers import write_table_study
from polyclinic.cli import app
from polyclinic.errors import ResultsError
from polyclinic.study.display import Display
from polyclinic.study.lock import LOCK, locked
from polyclinic.study.study import Study
from polyclinic.study.watching import held
from polyclinic.study.watching.progress import TRAININGS, Training, Watcher
from polyclinic.study.watching.terminal import line, sparkline, watch

SIZES = {"A": 16, "B": 16}
LINUX = pytest.mark.skipif(not held.LOCKS.is_file(), reason="the kernel has no table of locks")


@pytest.fixture
def told(monkeypatch):
    """As on a computer whose kernel tells all locks, also where the tests run in a container."""
    monkeypatch.setattr(held, "ALL_PROCESSES", str(held.PROCESSES.readlink()))
    monkeypatch.setattr(held, "file_system", lambda _: "ext4")


def written(folder):
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


class Watching(Display):
    """Looks at the folder after each round."""

    def __init__(self, out):
        self.watcher, self.seen = Watcher(out), []

    def opened(self, sites, notes):
        self.seen.append(self.watcher.look())

    def round(self, done, total):
        before = written(self.watcher.folder)
        self.seen.append(self.watcher.look())
        assert written(self.watcher.folder) == before


@LINUX
def test_a_run_is_watched(tmp_path, told):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg", {"fedavg": {"label": "[b]other[/b]"}}, "mix"]}
    display = Watching(tmp_path / "out")
    Study.of(entries, tmp_path).run(tmp_path / "out", display=display)
    early, *seen = display.seen
    assert (early.state, early.total, early.done) == ("preparing", None, ())
    assert {one.state for one in seen} == {"running"}
    assert {one.total for one in seen} == {4}  # two methods that are one, and one more, in two folds
    assert [len(one.done) for one in seen] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert seen[0].left is None
    assert seen[-1].left is not None
    assert seen[0].under_way[0].title == "fedavg + [b]other[/b] (seed 0, fold 0)"
    assert [(one.under_way[0].done, one.under_way[0].rounds) for one in seen] == [(1, 3), (2, 3), (3, 3)] * 4
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv").query("method == 'fedavg' and fold == 0")
    assert seen[2].under_way[0].losses == pytest.approx(rounds.groupby("round")["validation_loss"].mean().tolist())
    last = rounds[rounds["round"] == 2]["validation_auc"].mean()
    assert seen[2].under_way[0].metric == ("auc", pytest.approx(last))
    assert Watcher(tmp_path / "out").look().state == "finished"
    assert not (tmp_path / "out" / "jobs").exists()


def test_a_run_that_is_stopped_or_fails(tmp_path):
    class Stopping(Display):
        def round(self, done, total):
            raise error

    out = tmp_path / "out"
    study = Study.of(write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}, tmp_path)
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study.run(out, display=Stopping())
    seen = Watcher(out).look()
    assert (seen.state, len(seen.done), seen.total) == ("interrupted", 0, 2)
    assert [one.done for one in seen.under_way] == [1]
    error = ResultsError("P502", "The disk is full.", "")
    with pytest.raises(ResultsError):
        study.run(out, display=Stopping(), resume=True)
    seen = Watcher(out).look()
    assert (seen.state, seen.reason) == ("failed", "P502 The disk is full.")
    assert line(seen).startswith("failed: P502 The disk is full.; 0 of 2 trainings done; fedavg (seed 0, fold 0) round")
    study.run(out, resume=True)
    assert Watcher(out).look().state == "finished"


@LINUX
def test_a_run_that_was_killed_holds_nothing(tmp_path, told):
    out = begun(tmp_path)
    hold = "import sys, time; from pathlib import Path; from polyclinic.study.lock import locked\n"
    hold += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert Watcher(out).look().state == "running"
        process.kill()
    assert (out / LOCK).exists()
    assert Watcher(out).look().state == "interrupted"
    with locked(out):
        (out / "provenance.json").write_text('{"status": "failed", "reason": "interrupted"}')
        assert Watcher(out).look().state == "running"  # it is being resumed


@pytest.mark.parametrize("what", ["network drive", "container", "no table"])
def test_where_nobody_can_tell_who_holds_the_lock(what, tmp_path, monkeypatch):
    out = begun(tmp_path)
    (out / LOCK).touch()
    if what == "network drive":
        monkeypatch.setattr(held, "file_system", lambda _: "nfs4")
    elif what == "container":
        monkeypatch.setattr(held, "ALL_PROCESSES", "pid:[0]")
    else:
        monkeypatch.setattr(held, "LOCKS", tmp_path / "none")
    seen = Watcher(out).look()
    assert seen.state == "unknown"
    assert not seen.is_over
    assert "can't be told from here (last written" in line(seen)


def begun(folder, *, done=(), listed=4):
    """A folder as a run leaves it behind that is killed."""
    out = folder / "out"
    (out / "jobs").mkdir(parents=True)
    (out / "provenance.json").write_text('{"status": "running", "study_file": "mine"}')
    trainings = [{"name": f"m-{i}", "title": "m", "seed": i, "fold": 0, "rounds": 5} for i in range(listed)]
    if listed:
        (out / "jobs" / TRAININGS).write_text(json.dumps(trainings))
    for name in done:
        (out / "jobs" / name).mkdir()
    return out


def test_the_end_is_estimated_from_trainings_of_this_run(tmp_path, monkeypatch):
    monkeypatch.setattr("polyclinic.study.watching.progress.is_held", lambda _: True)
    monkeypatch.setattr("polyclinic.study.watching.progress.time.time", lambda: 1030.0)
    out = begun(tmp_path, done=["m-0", "m-1", "m-2"], listed=8)
    for name, when in {"m-0": 500, TRAININGS: 900, "m-1": 950, "m-2": 1000}.items():
        os.utime(out / "jobs" / name, (when, when))
    assert Watcher(out).look().left == 50 * 5 - 30  # m-0 is of an earlier run
    monkeypatch.setattr("polyclinic.study.watching.progress.time.time", lambda: 10.0)  # a clock that is wrong
    assert Watcher(out).look().left == 250


def test_files_that_are_being_written_and_folders_of_other_versions(tmp_path):
    out = begun(tmp_path, done=["a-seed0-fold0", "b-seed0-fold0.draft"], listed=0)
    part = out / "jobs" / "b-seed0-fold0.part"
    part.mkdir()
    rows = [
        {"round": 0, "site": "A", "validation_loss": 3.0},
        {"round": 0, "site": "A", "validation_loss": 1.0},  # of a round that was begun anew
        {"round": 0, "site": "B", "validation_loss": 2.0},
        {"round": 1, "site": "A", "validation_loss": float("nan"), "validation_auc": float("inf")},
        {"round": 1, "site": "B"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '[1]\n{"round": 2, "sit'
    (part / "rounds.jsonl").write_text(text)
    (out / "jobs" / "a-seed0-fold0" / "notes.json").write_text(
        '[{"number": "N1", "text": "so"}, {"number": "N1", "text'
    )
    (out / "jobs" / "c-seed0-fold0.part").mkdir()  # no round is done
    seen = Watcher(out).look()
    assert (seen.done, seen.total, seen.left, seen.notes) == (["a-seed0-fold0"], None, None, [])
    assert seen.under_way[0] == Training("b-seed0-fold0", 2, None, [1.5, None], None)
    assert seen.under_way[1] == Training("c-seed0-fold0", 0, None, [], None)
    assert "1 of an unknown number of trainings done; b-seed0-fold0 round 2 of unknown" in line(seen)


def test_notes_of_finished_trainings_are_told_once(tmp_path):
    out = begun(tmp_path, done=["m-0", "m-1"])
    for name in ("m-0", "m-1"):
        (out / "jobs" / name / "notes.json").write_text('[{"number": "N303", "text": "A site was late."}]')
    assert Watcher(out).look().notes == ["N303: A site was late."]


@pytest.mark.parametrize("made", ["none", "empty", "status.html", "broken"])
def test_what_holds_no_study_is_refused(made, tmp_path):
    folder = tmp_path / "out"
    if made != "none":
        folder.mkdir()
    if made == "status.html":
        (folder / made).touch()
    if made == "broken":
        (folder / "provenance.json").write_text("{")
    said = CliRunner().invoke(app, ["watch", str(folder), "--once"])
    assert isinstance(said.exception, ResultsError)
    assert said.exception.code == "P501"
    assert ("status.html" in said.exception.hint) == (made == "status.html")


@pytest.mark.parametrize(
    ("losses", "drawn"),
    [
        ([], ""), ([None], ""), ([2.0], "▁"), ([1.0, 1.0], "▁▁"), ([7.0, None, 0.0, 3.0], "█·▁▄"),
        ([9.0] + [0.0] * 24, "▁" * 24),
    ],
)  # fmt: skip
def test_losses_as_bars(losses, drawn):
    assert sparkline(Training("m", len(losses), None, losses, None)) == drawn


def test_lines_where_output_is_no_terminal(tmp_path, monkeypatch):
    """A line for what is new; a look that fails is tried again; the last line tells how it ended."""
    out = begun(tmp_path)
    (out / LOCK).touch()
    looks = iter([None, "lost", None, "failed"])

    def look(_):
        what = next(looks)
        if what == "lost":
            (out / "provenance.json").rename(out / "away")
            (out / LOCK).unlink()
        elif (out / "away").exists():
            (out / "away").rename(out / "provenance.json")
        if what == "failed":
            (out / "provenance.json").write_text('{"status": "failed", "reason": "P402 A site is lost."}')
            return False
        return what is None

    monkeypatch.setattr("polyclinic.study.watching.progress.is_held", look)
    monkeypatch.setattr("polyclinic.study.watching.terminal.EVERY", 0)
    text = StringIO()
    watch(Watcher(out), Console(file=text, width=80))
    assert text.getvalue().splitlines() == [
        "running; 0 of 4 trainings done",
        "failed: P402 A site is lost.; 0 of 4 trainings done",
    ]


def test_watching_needs_no_heavy_library(tmp_path):
    out = begun(tmp_path, done=["m-0"])
    (out / "jobs" / "m-1.part").mkdir()
    code = f"import sys; sys.argv = ['polyclinic', 'watch', {str(out)!r}, '--once']\nfrom polyclinic.cli import main\n"
    code += "try: main()\nfinally: print('heavy:', *({'torch', 'monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().endswith("heavy:")
    for text in ("mine: interrupted", "1/4", "Done: m (seed 0, fold 0)", "m (seed 1, fold 0)", "round 0 of 5"):
        assert text in done.stdout
