"""Trainings side by side: the same bytes as one after another, whatever is killed, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from helpers import image_site, survival_site, table_site, write_table_study
from polyclinic.cli import app
from polyclinic.communication.message import Message
from polyclinic.data.scaling import Summary
from polyclinic.engine.cases import cases_received, cases_sent
from polyclinic.engine.child import Child
from polyclinic.engine.planner import EnginePlan
from polyclinic.errors import PolyclinicError, SiteError, StudyError, TrainingError, error_from, error_told
from polyclinic.site.diary import Diary
from polyclinic.site.spending import Spending
from polyclinic.study.display import Display, RichDisplay, duration
from polyclinic.study.job import Fold, SiteParts
from polyclinic.study.side_by_side import crew
from polyclinic.study.side_by_side.agenda import Agenda
from polyclinic.study.side_by_side.jobs_entry import wanted_jobs
from polyclinic.study.study import Study

#: A search for each fold, private parts of models, a pool, a ledger, and summaries of sites in the preparation.
METHODS = ["fedbn", "mix", {"fedavg": {"local": [{"dp_sgd": {"noise": 1.2}}], "label": "noisy"}}]


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda out: out / "report.html")


def entries(folder):
    found = write_table_study(folder, {"Aachen": 24, "Bonn": 20, "Celle": 22})
    found["data"]["scaling"] = "federated"
    found["model"] = {"mlp": {"hidden": [4], "norm": "layer"}}
    found["training"]["rounds"] = 4
    found["evaluation"] |= {"unseen_sites": ["fedbn"]}
    found["methods"] = METHODS
    found["attack"] = {"sites": ["Bonn"], "label_flip": {"fraction": 0.5}}
    found["search"] = {"trials": 2, "parameters": {"training.optimizer.sgd.lr": [0.1, 0.02]}}
    found["engine"] = {"mode": "sequential"}
    return found


def contents(out):
    """Bytes of all that a study leaves, but for what tells times and the order in which things happened."""
    said = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("provenance.json", "site.log", "rounds.csv")
    }
    rounds = pd.read_csv(out / "rounds.csv").drop(columns="seconds")
    return said | {"rounds.csv": rounds.to_csv(index=False).encode()}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """The study, and what it leaves if one training goes after another."""
    folder = tmp_path_factory.mktemp("jobs")
    content = entries(folder)
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyclinic.study.runner.write_report", lambda out: out / "report.html")
        Study.of(content, folder).run(folder / "one", jobs=1)
    return folder, content, contents(folder / "one")


class Killing(Display):
    """Kills a worker, once, when it is in the middle of a training that is no trial; and notes what is told."""

    def __init__(self, monkeypatch):
        self.skipped, self.said, self.most, self.killed, self.children = 0, [], 0, None, []
        start = crew.Crew._start

        def noted(own, instead=None):
            child = start(own, instead)
            self.children.append(child.number)
            return child

        monkeypatch.setattr(crew.Crew, "_start", noted)
        monkeypatch.setattr("polyclinic.study.side_by_side.job_worker._PAUSE", 0)

    def job(self, number, title, skipped):
        self.skipped += skipped

    def together(self, done, running):
        self.most = max(self.most, len(running))
        if self.killed is None and done > 3:
            self.killed = self.children[-1]
            os.kill(self.killed, signal.SIGKILL)

    def note(self, text):
        self.said.append(text)


def test_side_by_side_gives_the_same_bytes_though_a_worker_is_killed(one_by_one, tmp_path, monkeypatch):
    folder, content, expected = one_by_one
    display = Killing(monkeypatch)
    results = Study.of(content, folder).run(tmp_path / "out", jobs=2, display=display)
    assert display.most == 2
    assert len(display.children) == 3, "another one took its place"
    assert len(display.said) == 1
    assert "ended unexpectedly (killed by signal 9); another one goes on from its checkpoint." in display.said[0]
    found = contents(tmp_path / "out")
    notes = json.loads(found.pop("notes.json"))
    assert [note for note in notes if note["number"] == "N109"] == [notes[-1]]
    assert json.dumps(notes[:-1], indent=2) + "\n" == expected["notes.json"].decode()
    assert found == {name: content for name, content in expected.items() if name != "notes.json"}
    assert results.provenance["plan"]["jobs"] == 2
    assert results.provenance["worker_deaths"] == 1
    assert not any(alive(number) for number in display.children)


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def workers_of(process):
    """Numbers of the processes that run jobs for another one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"polyclinic.study.side_by_side.job_worker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def jobs_done(out):
    return len([path for path in (out / "jobs").glob("*") if path.suffix not in {".part", ".draft"}])


def stopped_by(number, folder, out, more):
    """Start the command, send it a signal when ``more`` trainings are done; its status, and what it said."""
    before = jobs_done(out)
    command = [sys.executable, "-m", "polyclinic.cli", "run", str(folder / "study.yaml"), "--out", str(out)]
    process = subprocess.Popen([*command, "--resume", "--jobs", "2"], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and jobs_done(out) < before + more:
        time.sleep(0.01)
    workers = workers_of(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    until = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(map(alive, workers)), "nobody is left behind"
    return process.returncode, said


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_and_kill_leave_no_process_and_a_study_that_goes_on(one_by_one, tmp_path):
    folder, content, expected = one_by_one
    out = tmp_path / "out"
    status, said = stopped_by(signal.SIGINT, folder, out, 2)
    assert (status, "Stopped. Finished rounds are saved" in said) == (130, True)
    assert "2 trainings side by side" in said
    status, _ = stopped_by(signal.SIGKILL, folder, out, 2)
    assert status == -signal.SIGKILL
    assert jobs_done(out) >= 4
    Study.of(content, folder).run(out, resume=True, jobs=1)  # the plan is that of the start, the number is not
    assert contents(out) == expected


def test_a_training_that_ends_every_worker_ends_the_study(one_by_one, tmp_path, monkeypatch):
    folder, content, _ = one_by_one
    started = []

    def broken(module, arguments, most, environment):
        started.append(Child("polyclinic.no_such_module", arguments, most, environment))
        return started[-1]

    monkeypatch.setattr(crew, "Child", broken)
    with pytest.raises(TrainingError) as caught:
        Study.of(content, folder).run(tmp_path / "out", jobs=2)
    assert caught.value.code == "P403"
    assert "ended its worker process 3 times (exit status 1: " in caught.value.message
    assert "fewer `--jobs`" in caught.value.hint
    assert 4 <= len(started) <= 8
    assert all(child.is_gone for child in started)


@pytest.mark.long
def test_a_training_that_fails_says_the_same(one_by_one, tmp_path):
    folder, content, _ = one_by_one
    content = {
        **content,
        "methods": ["fedavg"],
        "training": {**content["training"], "optimizer": {"sgd": {"lr": 1e30}}},
        "evaluation": {**content["evaluation"], "unseen_sites": False},
    }
    del content["search"], content["attack"]
    said = []
    for jobs in (1, 2):
        with pytest.raises(PolyclinicError) as caught:
            Study.of(content, folder).run(tmp_path / f"out{jobs}", jobs=jobs)
        said.append((type(caught.value), caught.value.code, caught.value.message, caught.value.hint))
        record = json.loads((tmp_path / f"out{jobs}" / "provenance.json").read_text())
        said[-1] += record["status"], record["reason"]
    assert said[0] == said[1]
    assert said[0][1] == "P301"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["stacked", "sequential"])
def test_as_many_threads_as_one_by_one(one_by_one, tmp_path, mode):
    """What is asked for changes no thread, so that it changes no byte."""
    folder, content, _ = one_by_one
    content = {**content, "engine": {"mode": mode}, "methods": ["fedbn"]}
    del content["search"], content["attack"]
    outs = [tmp_path / f"out{jobs}" for jobs in (1, 2)]
    for jobs, out in enumerate(outs, 1):
        Study.of(content, folder).run(out, jobs=jobs)
    plans = [json.loads((out / "provenance.json").read_text())["plan"] for out in outs]
    assert {**plans[0], "jobs": 2} == plans[1]
    assert contents(outs[0]) == contents(outs[1])


# What is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        (0, "a number of at least 1"),
        (-1, "a number of at least 1"),
        (1.5, "a whole number"),
        (True, "a whole number"),
        ("many", "'auto'"),
        ("2", "a whole number"),
        (None, "a whole number"),
        ([2], "a whole number"),
    ],
)
def test_bad_numbers_of_a_study_file_are_refused(tmp_path, jobs, expected):
    content = entries(tmp_path) | {"engine": {"jobs": jobs}}
    with pytest.raises(StudyError) as caught:
        Study.of(content, tmp_path)
    assert caught.value.code == "P102"
    assert "engine.jobs" in caught.value.message
    assert expected in caught.value.message


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "many", "-1", "1.5", "0", "²", "", [2]])
def test_bad_numbers_asked_for_are_refused_before_anything_is_written(tmp_path, jobs):
    with pytest.raises(StudyError) as caught:
        Study.of(entries(tmp_path), tmp_path).run(tmp_path / "out", jobs=jobs)
    assert caught.value.code == "P102"
    assert caught.value.message == f"`jobs`: got {jobs!r}; expected a whole number from 1 on, or 'auto'."
    assert not (tmp_path / "out").exists()


def test_numbers_asked_for_go_before_those_of_the_file(tmp_path):
    options = Study.of(entries(tmp_path) | {"engine": {"jobs": 3}}, tmp_path).declaration.engine
    asked = [wanted_jobs(options, jobs) for jobs in (None, 1, "4", "auto")]
    assert asked == [3, 1, 4, None]


def test_not_with_processes_that_share_out_sites(tmp_path):
    content = entries(tmp_path) | {"engine": {"mode": "processes", "jobs": 2}}
    with pytest.raises(StudyError, match=r"P104 .*engine\.jobs: With `mode: processes` the sites of one training"):
        Study.of(content, tmp_path)
    study = Study.of(content | {"engine": {"mode": "processes"}}, tmp_path)
    with pytest.raises(StudyError, match="P104 With `mode: processes`"):
        study.run(tmp_path / "out", jobs=2)
    assert wanted_jobs(study.declaration.engine, 1) == 1


def test_the_command_refuses_in_a_sentence(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries(tmp_path)))
    command = ["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*command, "--jobs", "-1"])
    assert isinstance(found.exception, StudyError)
    found = CliRunner().invoke(app, [*command, "--jobs", "2", "--engine", "nvflare", "--kit", str(tmp_path)])
    assert found.exit_code == 2
    assert "one training after another" in " ".join(found.output.replace("│", " ").split())


# Who does what --------------------------------------------------------------------------------------------------------


def test_an_agenda_keeps_a_worker_at_sites_that_are_prepared_and_others_away():
    agenda = Agenda([()] * 6, ["a", "a", "a", "b", "b", "c"], done=[1])
    first = agenda.take()
    second = agenda.take()
    assert (first, second) == (0, 3)
    assert agenda.take("a") == 2
    assert agenda.take("b") == 4
    assert agenda.take("b") == 5
    assert agenda.take("a") is None


def test_an_agenda_hands_out_a_training_when_what_it_needs_is_done_and_no_later():
    agenda = Agenda([(), (), (0, 1), (), (3,)], [0] * 5, done=[])
    assert [agenda.take(0) for _ in range(3)] == [0, 1, 3]
    agenda.finish(3)
    assert agenda.take(0) == 4, "others are not waited for"
    found = []
    waiting = threading.Thread(target=lambda: found.append(agenda.take(0)))
    waiting.start()
    agenda.finish(0)
    assert found == []
    agenda.finish(1)
    waiting.join(timeout=60)
    assert found == [2]


def test_an_agenda_that_is_stopped_lets_nobody_wait():
    agenda = Agenda([(), (0,)], [0, 0], done=[])
    agenda.take()
    found = []
    waiting = threading.Thread(target=lambda: found.append(agenda.take()))
    waiting.start()
    agenda.stop()
    waiting.join(timeout=60)
    assert found == [None]


def test_one_display_counts_all_and_says_when_they_will_be_done(monkeypatch):
    clock, console = [0.0], Console(file=StringIO(), width=200)
    monkeypatch.setattr("polyclinic.study.display.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with RichDisplay(console) as display:
        display.planned(EnginePlan("stacked", "cpu", 1, 2, 1, "small", jobs=2), 10)
        for clock[0], done in ((20.0, 1), (25.0, 2), (40.0, 3), (4000.0, 4)):
            display.together(done, {"fedavg [a] (seed 0, fold 1)": (2, 30), "mix": None})
    assert console.file.getvalue().splitlines() == [
        "Engine: stacked on cpu, 1 thread, 2 trainings side by side: small.",
        "1 of 10 trainings done; now fedavg [a] (seed 0, fold 1) 2/30; mix",
        "3 of 10 trainings done, about 70 s left; now fedavg [a] (seed 0, fold 1) 2/30; mix",
        "4 of 10 trainings done, about 2.2 h left; now fedavg [a] (seed 0, fold 1) 2/30; mix",
    ]
    assert duration(600) == "10 min"


# What goes to workers -------------------------------------------------------------------------------------------------


def test_a_fold_comes_back_to_the_bit():
    summary = Summary(*(torch.tensor([value], dtype=torch.float64) for value in (7, 0.1 + 0.2, 1e-300)))
    fold = Fold(2, {"a": 3}, {"a": 1}, {"a": 2}, {"a": [1, 2]}, {"a": summary},
                {"a": SiteParts([3, 1, 2], [[1, 2], [1, 0], [1, 1]], {"sex": {"f": [1, 1, 1, 3]}})})  # fmt: skip
    back = Fold.from_json(json.loads(json.dumps(fold.to_json())))
    assert (back.train, back.classes, back.counted) == (fold.train, fold.classes, fold.counted)
    for name, tensor in summary.to_tensors().items():
        assert torch.equal(back.targets["a"].to_tensors()[name], tensor)


@pytest.mark.parametrize(
    "site", [table_site("Aachen", 5), image_site("Bonn", 4, masks=True), survival_site("Celle", 6)]
)
def test_cases_come_with_all_that_is_known_of_them(site):
    cases = len(site)
    site.groups, site.spacings = {"sex": list("fm" * cases)[:cases]}, [(1.0, 0.5)] * cases
    site.covariates = torch.rand(cases, 2, dtype=torch.float64)
    site.labelled, site.depth = torch.arange(cases) < 3, 12
    fields, tensors = cases_sent(site)
    back = Message.from_bytes(Message(fields, tensors).to_bytes())
    found = cases_received(site.site, back.fields, back.tensors)
    for name, value in vars(site).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name), value), name
        elif name != "counts":
            assert getattr(found, name) == value, name


def test_errors_come_as_what_they_were():
    for error in (SiteError("P401", "one", "two", site="a"), StudyError("P102", "three"), PolyclinicError("P303", "x")):
        back = error_from(json.loads(json.dumps(error_told(error))))
        assert (type(back), str(back)) == (type(error), str(error))


def test_what_two_processes_write_down_at_a_site_is_known_to_both(tmp_path):
    """Two of each stand for two processes."""
    from polyclinic.privacy import Event

    first, second = (Spending("a", tmp_path / "privacy.jsonl") for _ in range(2))
    event = Event.gaussian(1.0)
    for number in range(3):
        first.record("one", number, [event])
        second.record("two", number, [event])
    assert first.by_training() == second.by_training()
    assert Counter({run: events[0].count for run, events in first.by_training().items()}) == {"one": 3, "two": 3}
    assert first.rounds("two", 3) == second.rounds("one", 3) == 3
    diaries = [Diary("a", tmp_path / "diary.jsonl") for _ in range(2)]
    for number in range(3):
        for name, diary in enumerate(diaries):
            diary.note(f"{name} {number}", "text")
    for diary in diaries:
        assert [diary.recall(f"{name} 2") for name in range(2)] == ["text", "text"]
    assert len((tmp_path / "diary.jsonl").read_text().splitlines()) == 6
