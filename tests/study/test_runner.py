"""Whole studies on tiny data: what is written, interruptions, privacy of the folder, and what may go wrong."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import has_numbers, named, plain_module, scaling_steps, write_image_study, write_table_study
from polyclinic.communication.message import Message
from polyclinic.data.dataset import Dataset
from polyclinic.engine import LocalEngine
from polyclinic.errors import DataError, PolyclinicError, ResultsError, StudyError, TrainingError
from polyclinic.models import build_model
from polyclinic.site.run import Run
from polyclinic.study.display import Display
from polyclinic.study.study import Study

SIZES = {"Aachen": 24, "Bonn": 15, "Celle": 18}
SCORES = ["method", "run", "seed", "fold", "site", "subject", "case", "label", "score", "threshold", "trained_on"]


def no_report(folder, out=None):
    """Stands for the report, which takes longer than these studies and has tests of its own."""
    return folder / "report.html"


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", no_report)


def changed(entries, **parts):
    """Entries of a study with some of them changed inside."""
    return entries | {
        key: {**entries[key], **value} if isinstance(value, dict) and key in entries else value
        for key, value in parts.items()
    }


def run(entries, folder, out="out", **options):
    return Study.of(entries, folder).run(folder / out, **options)


def contents(out, *names):
    """Bytes of the files that must be the same in every run."""
    names = names or (
        "results.csv", "predictions.csv", "payloads.csv", "summary.csv", "sites.csv", "study.yaml", "notes.json",
    )  # fmt: skip
    files = [out / name for name in names] + sorted((out / "models").glob("*"))
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with every kind of method and its real report."""
    folder = tmp_path_factory.mktemp("finished")
    entries = write_table_study(folder, SIZES)
    entries = changed(entries, evaluation={"unseen_sites": ["fedbn", "mix"]}, seeds=[0, 7])
    results = run(entries, folder)
    from polyclinic.study.report.page import write_report

    write_report(results.folder)
    return folder, entries, results


# What is written ------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_it_should(finished):
    _, _, results = finished
    names = {path.name for path in results.folder.iterdir()}
    assert names == {
        "results.csv", "rounds.csv", "predictions.csv", "summary.csv", "sites.csv", "notes.json", "study.yaml",
        "provenance.json", "models", "sites", "report.html", "unseen.csv",
        "comparisons.csv", "site_comparisons.csv", "exchanged.csv", "payloads.csv", "calibration.csv",
        "decisions.csv", "flow.csv",
    }  # fmt: skip
    assert not [path for path in results.folder.rglob("*") if path.name.endswith((".tmp", ".part", ".draft"))]
    assert {path.name for path in (results.folder / "sites").rglob("*") if path.is_file()} == {
        "subjects.csv",
        "site.log",
    }


def test_results_have_a_row_for_each_model_site_and_metric(finished):
    _, _, results = finished
    table = results.results
    assert list(table.columns) == ["method", "run", "seed", "fold", "trained_on", "tested_on", "metric", "value"]
    table = named(table)
    assert list(dict.fromkeys(table["method"])) == [
        "single", "cross", "ensemble", "mix", "fedavg", "fedbn", "fedadam", "mix (unseen site)", "fedbn (unseen site)",
    ]  # fmt: skip
    assert set(table["seed"]) == {0, 7}
    assert set(table["fold"]) == {0, 1}
    pairs = {
        method: set(zip(rows["trained_on"], rows["tested_on"], strict=True)) for method, rows in table.groupby("method")
    }
    sites = list(SIZES)
    assert pairs["single"] == {(site, site) for site in sites} | {("own", "all")}
    assert pairs["cross"] == {(a, b) for a in sites for b in sites if a != b} | {(a, "all") for a in sites}
    assert pairs["mix"] == {("pool", site) for site in [*sites, "all"]}
    assert {tested for _, tested in pairs["mix (unseen site)"]} == {*sites, "all"}
    for method in ("ensemble", "fedavg", "fedbn", "fedadam", "fedbn (unseen site)"):
        assert pairs[method] == {("federation", site) for site in [*sites, "all"]}
    assert not table.duplicated(["method", "seed", "fold", "trained_on", "tested_on", "metric"]).any()
    assert table["value"].dropna().between(0, 1).all()


def test_every_case_is_predicted_once_by_each_method_and_seed(finished):
    folder, _, results = finished
    table = results.predictions
    assert list(table.columns) == SCORES
    table = named(table)
    counts = table[table["method"] != "cross"].groupby(["method", "seed", "site"]).size().unstack()
    assert (counts == pd.Series(SIZES)).all(axis=None)
    for _, rows in table[table["method"] != "cross"].groupby(["method", "seed"]):
        assert not rows["case"].str.cat(rows["site"]).duplicated().any()
    assert table["score"].between(0, 1).all()
    positive = table[table["method"] == "fedavg"].query("seed == 0").groupby("site")["label"].sum()
    cases = pd.read_csv(folder / "cases.csv")
    assert positive.to_dict() == cases[cases["diagnosis"] == "kind 1"].groupby("site").size().to_dict()


def test_the_results_follow_from_the_predictions(finished):
    _, _, results = finished
    scores = named(results.predictions)
    rows = named(results.results).set_index(["method", "seed", "fold", "trained_on", "tested_on", "metric"])["value"]
    mine = scores.query("method == 'fedbn' and seed == 7 and fold == 1 and site == 'Bonn'")
    right = (mine["score"] >= mine["threshold"]) == (mine["label"] == 1)
    assert rows["fedbn", 7, 1, "federation", "Bonn", "acc"] == pytest.approx(right.mean())
    mine = scores.query("method == 'single' and seed == 0 and fold == 0")
    right = (mine["score"] >= mine["threshold"]) == (mine["label"] == 1)
    assert rows["single", 0, 0, "own", "all", "acc"] == pytest.approx(right.mean())
    assert mine.groupby("site")["threshold"].nunique().eq(1).all()


def test_rounds_tell_what_every_site_did(finished):
    _, _, results = finished
    table = results.rounds
    assert list(table.columns) == [
        "method", "run", "seed", "fold", "round", "site", "seconds", "bytes_up", "bytes_down", "examples", "steps",
        "loss", "payloads", "sent", "share", "validation_loss", "validation_auc", "chosen", "without",
    ]  # fmt: skip
    table = named(table)
    counts = table.groupby(["method", "seed", "fold"])["round"].agg(["size", "nunique"])
    assert (counts["nunique"] == 3).all()
    assert (counts.loc["fedavg", "size"] == 9).all()
    assert (counts.loc["mix", "size"] == 3).all()
    assert "cross" not in counts.index.get_level_values("method"), "it shares the training of single"
    size = build_model("mlp", {"hidden": [4], "norm": "batch"}, (3,), 2).layout.size
    shared = {"single": 0, "mix": size, "fedavg": size, "fedbn": size - 16, "fedadam": size}
    for method, numbers in shared.items():
        rows = table[table["method"] == method]
        sizes = [*rows["bytes_up"], *rows["bytes_down"]]
        assert all(has_numbers(size, 4 * numbers) if numbers else size == 0 for size in sizes)
    assert set(table["payloads"]) == {0}
    assert results.payloads.empty
    shares = table[table["method"].isin(["fedavg", "fedbn", "fedadam"])].groupby(["method", "seed", "fold", "round"])
    assert shares["share"].sum().tolist() == pytest.approx([1.0] * len(shares))
    assert (table["steps"] > 0).all()
    assert (table["seconds"] > 0).all()
    rows = table.query("method == 'fedavg' and seed == 0 and fold == 0 and round == 0")
    assert list(rows["site"]) == list(SIZES)
    assert 0 < rows["examples"].sum() < sum(SIZES.values()) / 2, "training cases without the test and validation parts"


def test_every_case_found_is_counted(finished):
    _, _, results = finished
    sites = results.sites
    assert list(sites["site"]) == list(SIZES)
    assert (sites["found"] == sites["used"] + sites["rejected"]).all()
    assert sites["found"].tolist() == list(SIZES.values())


def test_rejected_cases_are_counted_with_their_reason(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    table.loc[[0, 1, 30], "diagnosis"] = ["", "NA", ""]
    table.to_csv(tmp_path / "cases.csv", index=False)
    sites = run(changed(entries, methods=["fedavg"]), tmp_path).sites.set_index("site")
    assert sites["found"].to_dict() == SIZES
    assert sites["used"].to_dict() == {"Aachen": 22, "Bonn": 14, "Celle": 18}
    assert sites["rejected"].to_dict() == {"Aachen": 2, "Bonn": 1, "Celle": 0}
    assert sites["reasons"].to_dict() == {
        "Aachen": "diagnosis is missing (2)", "Bonn": "diagnosis is missing (1)", "Celle": "",
    }  # fmt: skip


def test_provenance_says_what_the_results_depend_on(finished):
    _, _, results = finished
    record = results.provenance
    assert record["status"] == "finished"
    assert record["seeds"] == [0, 7]
    assert re.fullmatch(r"[0-9a-f]{64}", record["data_sha256"])
    assert record["plan"]["mode"] == "sequential"
    assert record["plan"]["threads"] == 1
    assert set(record["versions"]) >= {"python", "polyclinic", "torch", "numpy"}


def test_the_filled_study_file_gives_the_same_study_again(finished, tmp_path):
    folder, _, results = finished
    (tmp_path / "cases.csv").write_bytes((folder / "cases.csv").read_bytes())
    (tmp_path / "study.yaml").write_bytes((results.folder / "study.yaml").read_bytes())
    assert "&" not in (tmp_path / "study.yaml").read_text(), "YAML's anchors are not for people"
    again = Study.read(tmp_path / "study.yaml").run(tmp_path / "out")
    assert contents(again.folder) == contents(results.folder)


def test_saved_models_give_the_predictions_again(finished):
    """Each model is put into an ordinary network, and fed with cases scaled here from the site's training part."""
    folder, entries, results = finished
    opened = Study.of(entries, folder).open()
    engine = LocalEngine(opened.sites)
    ask = {"fold": 1, "folds": 2, "validation": 0.2, "split_seed": 0, "small_sites": "train",
           "steps": scaling_steps("per_site"), "augmentation": [], "classes": 2}  # fmt: skip
    engine.ask("prepare", dict.fromkeys(engine.sites, Message(ask)))
    network = build_model("mlp", {"hidden": [4], "norm": "batch"}, (3,), 2)
    scores = results.predictions.query("seed == 7 and fold == 1")
    for method, own in (("fedavg", False), ("mix", False), ("fedbn", True), ("single", True)):
        saved = load_file(results.folder / "models" / f"{method}-seed7-fold1.safetensors")
        for site, member in engine.members.items():
            tensors = {n.removeprefix(f"{site}/"): t for n, t in saved.items() if not own or n.startswith(f"{site}/")}
            module = plain_module(network, network.vector).eval()
            module.load_state_dict({**module.state_dict(), **tensors})
            assert set(tensors) == {entry.name for entry in network.layout.entries}
            train = opened.sites[site].inputs[member.parts.train].double()
            test = opened.sites[site].inputs[member.parts.test].double()
            scaled = ((test - train.mean(0)) / train.std(0, correction=0)).float()
            with torch.no_grad():
                expected = module(scaled).double().softmax(1)[:, 1].numpy()
            found = scores.query("method == @method and run == 'plain' and site == @site")["score"].to_numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_two_runs_are_byte_equal(tmp_path, mode):
    entries = changed(small_study(tmp_path), engine={"mode": mode})
    first, again = run(entries, tmp_path, "first"), run(entries, tmp_path, "again")
    assert contents(again.folder) == contents(first.folder)
    same = [name for name in first.rounds.columns if name != "seconds"]
    assert again.rounds[same].equals(first.rounds[same])


def test_the_order_of_the_rows_in_the_table_does_not_decide_the_split(tmp_path):
    entries = changed(write_table_study(tmp_path, SIZES), methods=["single"])
    first = run(entries, tmp_path, "first").predictions
    table = pd.read_csv(tmp_path / "cases.csv")
    table.sample(frac=1, random_state=3).to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries, tmp_path, "second").predictions
    folds = [frame.groupby(["site", "subject"])["fold"].first().to_dict() for frame in (first, second)]
    assert folds[0] == folds[1]


@pytest.mark.parametrize("part", ["seeds", "split_seed"])
def test_other_seeds_give_other_numbers(tmp_path, part):
    entries = changed(write_table_study(tmp_path, SIZES), methods=["fedavg"])
    other = changed(entries, seeds=[5]) if part == "seeds" else changed(entries, evaluation={"split_seed": 5})
    first, second = run(entries, tmp_path, "first").predictions, run(other, tmp_path, "second").predictions
    assert first["score"].tolist() != second["score"].tolist()
    same_folds = first["fold"].tolist() == second["fold"].tolist() and first["case"].tolist() == second["case"].tolist()
    assert same_folds is (part == "seeds")


def test_stacked_agrees_with_sequential(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    results, stacked = (
        run(changed(entries, engine={"mode": mode}), tmp_path, mode) for mode in ("sequential", "stacked")
    )
    left, right = results.predictions, stacked.predictions
    texts = ["method", "seed", "fold", "site", "subject", "case", "label", "trained_on"]
    assert left[texts].equals(right[texts])
    np.testing.assert_allclose(left["score"], right["score"], atol=1e-4)


@pytest.mark.long
def test_processes_are_byte_equal_to_sequential(finished, tmp_path):
    folder, entries, results = finished
    entries = changed(entries, engine={"mode": "processes", "workers": 2})
    again = Study.of(entries, folder).run(tmp_path / "processes")
    assert contents(again.folder, "results.csv", "predictions.csv") == contents(
        results.folder, "results.csv", "predictions.csv"
    )


# Interruptions --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def small_study(folder):
    """Jobs with private parts, a kept optimiser and a pool, in half a second."""
    entries = write_table_study(folder, {"Aachen": 16, "Bonn": 12})
    return changed(entries, methods=["fedbn", "single", "mix", "fedadam"], training={"rounds": 2})


class Dying:
    """Kills the study before the n-th file is put into its place; afterwards nothing more is written."""

    def __init__(self, monkeypatch, moment):
        self.left, self.dead = moment, False
        original = Path.replace

        def replace(path, target):
            self.left -= 1
            if self.left == 0 or self.dead:
                self.dead = True
                raise Killed
            return original(path, target)

        monkeypatch.setattr(Path, "replace", replace)


def files_written(folder, entries, monkeypatch):
    with monkeypatch.context() as patch:
        dying = Dying(patch, -1)
        run(entries, folder, "unbroken")
        return -1 - dying.left


def kill_and_resume(folder, entries, monkeypatch, moments):
    unbroken = contents(folder / "unbroken")
    for moment in moments:
        out = f"killed-{moment}"
        with monkeypatch.context() as patch:
            Dying(patch, moment)
            with pytest.raises(Killed):
                run(entries, folder, out)
        run(entries, folder, out, resume=True)
        assert contents(folder / out) == unbroken, f"killed before file {moment}"
        assert not (folder / out / "jobs").exists()


def test_a_study_killed_at_some_file_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    entries = small_study(tmp_path)
    count = files_written(tmp_path, entries, monkeypatch)
    assert count > 80
    kill_and_resume(tmp_path, entries, monkeypatch, [1, 2, 3, 5, 29, count // 2, count - 6, count])


@pytest.mark.long
def test_a_study_killed_at_any_file_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    entries = small_study(tmp_path)
    count = files_written(tmp_path, entries, monkeypatch)
    kill_and_resume(tmp_path, entries, monkeypatch, range(1, count + 1))


def killed_for_good(arguments, folder, ready, delay):
    """Run the command and kill -9 it some time after ``ready(folder)``; whether it was still running."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ready(folder):
        time.sleep(0.005)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def jobs_done(folder):
    return len([path for path in (folder / "jobs").glob("*") if path.suffix not in {".part", ".draft"}])


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.long)])
def test_kill_9_and_resume(tmp_path, kills):
    entries = changed(small_study(tmp_path), training={"rounds": 20})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries))
    study = Study.read(tmp_path / "study.yaml")
    unbroken = contents(study.run(tmp_path / "unbroken").folder)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "polyclinic.cli", "run", str(tmp_path / "study.yaml"), "--out", str(out)]
    killed = 0
    for number in range(kills):
        wanted = 1 + 7 * number // kills

        def ready(folder, wanted=wanted):
            return jobs_done(folder) >= wanted or (folder / "report.html").exists()

        killed += killed_for_good([*command, "--resume"], out, ready, delay=0.02 * number)
    assert killed >= 1, "or the test would show nothing"
    study.run(out, resume=True)
    assert contents(out) == unbroken


class Counting(Display):
    """Notes which jobs were run and which were done before."""

    def __init__(self):
        self.ran, self.skipped = [], []

    def job(self, number, title, skipped):
        (self.skipped if skipped else self.ran).append(title)


def interrupted(entries, folder, out="out", jobs=3):
    """A study that stops after some jobs."""

    class Stopping(Display):
        def job(self, number, title, skipped):
            if number == jobs:
                raise Killed

    with pytest.raises(Killed):
        run(entries, folder, out, display=Stopping())


def test_finished_jobs_are_not_run_again(tmp_path):
    entries = small_study(tmp_path)
    interrupted(entries, tmp_path)
    display = Counting()
    run(entries, tmp_path, resume=True, display=display)
    assert (len(display.skipped), len(display.ran)) == (3, 5)


def test_resuming_a_finished_study_trains_nothing(tmp_path, monkeypatch):
    entries = small_study(tmp_path)
    before = contents(run(entries, tmp_path).folder)
    monkeypatch.setattr("polyclinic.study.jobs.run_rounds", lambda *_, **__: pytest.fail("trained"))
    run(entries, tmp_path, resume=True)
    assert contents(tmp_path / "out") == before


def test_resuming_what_was_never_begun_is_a_start(tmp_path):
    entries = small_study(tmp_path)
    assert (run(entries, tmp_path, resume=True).folder / "results.csv").is_file()


def refused(entries, folder, **options):
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    with pytest.raises(ResultsError) as caught:
        run(entries, folder, **options)
    assert caught.value.code == "P501"
    return caught.value, before


def untouched(folder, before, *but):
    after = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file() and path.name not in but}
    return after == {path: content for path, content in before.items() if path.name not in but}


def test_a_changed_study_is_not_resumed(tmp_path):
    entries = small_study(tmp_path)
    interrupted(entries, tmp_path)
    error, before = refused(changed(entries, training={"rounds": 3}, seeds=[4]), tmp_path, resume=True)
    assert error.message == f"The study in {tmp_path / 'out'} is not this one: it differs in `seeds`, `training`."
    assert error.hint == "Resume with the study file that it was started with."
    assert untouched(tmp_path, before)


def test_changed_data_is_not_resumed(tmp_path):
    entries = small_study(tmp_path)
    interrupted(entries, tmp_path)
    path = tmp_path / "cases.csv"
    path.write_text(path.read_text().replace("kind 0", "kind 1", 1))
    error, before = refused(entries, tmp_path, resume=True)
    assert error.message == f"The data is not what it was when the study in {tmp_path / 'out'} was started."
    assert untouched(tmp_path, before, "provenance.json")


@pytest.mark.parametrize(("stop", "state"), [(True, "failed"), (False, "finished")])
def test_a_study_is_not_overwritten(tmp_path, stop, state):
    entries = small_study(tmp_path)
    if stop:
        interrupted(entries, tmp_path)
    else:
        run(entries, tmp_path)
    error, before = refused(entries, tmp_path)
    assert error.message == f"The folder {tmp_path / 'out'} already holds a study ({state})."
    assert error.hint == "Go on with it with --resume, or choose another folder with --out."
    assert untouched(tmp_path, before)


@pytest.mark.parametrize("resume", [False, True])
def test_other_things_in_the_folder_are_not_touched(tmp_path, resume):
    entries = small_study(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    error, before = refused(entries, tmp_path, resume=resume)
    assert error.message == f"The folder {tmp_path / 'out'} is not empty and holds no study."
    assert untouched(tmp_path, before)


def test_a_file_is_no_folder(tmp_path):
    entries = small_study(tmp_path)
    (tmp_path / "out").write_text("")
    with pytest.raises(ResultsError, match=r"P501 .*out is a file, not a folder"):
        run(entries, tmp_path)


def test_a_study_that_failed_says_why_and_can_go_on(tmp_path, monkeypatch):
    entries = small_study(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("polyclinic.site.evaluation.predict", lambda *_: 1 / 0)
        with pytest.raises(PolyclinicError, match="P401 Site Aachen failed during 'predict': ZeroDivisionError"):
            run(entries, tmp_path)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"].startswith(
        "P402 When asked to predict, 0 of 2 sites answered (2 needed). Aachen: P401 Site"
    )
    assert "Aachen failed during 'predict': ZeroDivisionError in test_runner.py" in record["reason"]
    assert "; likewise Bonn. All failed in the same way" in record["reason"]
    run(entries, tmp_path, resume=True)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["status"] == "finished"


# A full disk ----------------------------------------------------------------------------------------------------------


class Full:
    """A file on a disk that is full."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(patch, moment):
    """From the n-th file opened for writing on, the disk is full; returns how many files were opened."""
    original, opened = Path.open, [0]

    def open_file(path, mode="r", *args, **kwargs):
        file = original(path, mode, *args, **kwargs)
        if mode[0] == "r" and "+" not in mode:
            return file
        opened[0] += 1
        return Full(file) if opened[0] >= moment else file

    patch.setattr(Path, "open", open_file)
    return opened


def test_a_full_disk_is_told_and_the_study_goes_on_when_there_is_space(tmp_path, monkeypatch):
    entries = small_study(tmp_path)
    with monkeypatch.context() as patch:
        opened = fill_disk(patch, 10**6)
        unbroken = contents(run(entries, tmp_path, "unbroken").folder)
    for moment in (1, 2, 3, 7, opened[0] // 2, opened[0]):
        out = f"full-{moment}"
        with monkeypatch.context() as patch:
            fill_disk(patch, moment)
            with pytest.raises(ResultsError) as caught:
                run(entries, tmp_path, out)
        assert caught.value.code == "P502", moment
        assert re.fullmatch(r"The disk is full: \S+ could not be written to \S+\.", caught.value.message)
        assert "--resume" in caught.value.hint
        run(entries, tmp_path, out, resume=True)
        assert contents(tmp_path / out) == unbroken, moment


def test_a_disk_that_is_full_only_when_it_is_synchronised(tmp_path, monkeypatch):
    entries = small_study(tmp_path)

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("polyclinic.files.os.fsync", fail)
    with pytest.raises(ResultsError, match=r"P502 The disk is full: study\.yaml could not be written"):
        run(entries, tmp_path)


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    entries = small_study(tmp_path)
    original = Path.mkdir

    def refuse(path, *args, **kwargs):
        if path.name == "out":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResultsError, match=r"P501 \.lock could not be written to .*\(Permission denied\)"):
        run(entries, tmp_path)


# Test cases are for testing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_each_part_of_the_cases_is_used_for_its_purpose_only(tmp_path, monkeypatch, mode):
    """Every access to inputs is noted with what the site was asked for at that time."""
    entries = write_table_study(tmp_path, SIZES)
    entries = changed(
        entries, engine={"mode": mode}, evaluation={"unseen_sites": ["fedavg"]}, methods=[*entries["methods"], "fedsgd"]
    )
    parts, used, asked = {}, [], ["nothing"]
    original_run, original_batch, original_call = Run.__init__, Dataset.batch, LocalEngine.call

    def start(self, site, declared, initial, model, task, dataset, own_parts, *others):
        parts[id(dataset)] = own_parts
        original_run(self, site, declared, initial, model, task, dataset, own_parts, *others)

    def batch(self, index, **options):
        own = parts[id(self)]
        used.append((asked[-1], own, set(index.tolist())))
        return original_batch(self, index, **options)

    def call(self, function, requests):
        asked.append(function)
        yield from original_call(self, function, requests)
        asked.pop()

    monkeypatch.setattr(Run, "__init__", start)
    monkeypatch.setattr(Dataset, "batch", batch)
    monkeypatch.setattr(LocalEngine, "call", call)
    run(entries, tmp_path)
    allowed = {"train": "train", "evaluate": "validation", "threshold": "validation", "predict": "test"}
    assert {function for function, _, _ in used} == set(allowed)
    for function, own, index in used:
        assert index <= set(getattr(own, allowed[function]).tolist())
        assert not index & set(own.test.tolist()) or function == "predict"


@pytest.mark.parametrize(("scaling", "imputation"), [("per_site", "mean"), ("federated", "mean"), ("none", "median")])
def test_what_the_test_cases_are_changes_nothing_that_is_learned(tmp_path, scaling, imputation):
    """The test cases' features and labels are replaced by others: models, rounds and thresholds stay the same bytes."""
    entries = write_table_study(tmp_path, SIZES)
    entries = changed(
        entries, data={"scaling": scaling, "imputation": imputation}, training={"class_weights": "balanced"},
        methods=["single", "mix", "fedbn", "fedsgd"],
    )  # fmt: skip
    entries["evaluation"] = {"split": "part", "validation": 0.25, "metrics": ["auc", "acc"], "bootstrap": 0}
    table = pd.read_csv(tmp_path / "cases.csv")
    table["part"] = np.where(np.arange(len(table)) % 4 == 3, "test", "train")
    table.loc[::7, "x1"] = np.nan
    table.to_csv(tmp_path / "cases.csv", index=False)
    first = run(entries, tmp_path, "first")
    test = table["part"] == "test"
    table.loc[test, ["x0", "x1", "x2"]] = np.random.default_rng(0).normal(50, 30, size=(int(test.sum()), 3))
    table.loc[test, "diagnosis"] = table.loc[test, "diagnosis"].to_numpy()[::-1]
    table.to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries, tmp_path, "second")
    models = [{path.name: path.read_bytes() for path in (r.folder / "models").iterdir()} for r in (first, second)]
    assert models[0] == models[1]
    same = [name for name in first.rounds.columns if name != "seconds"]
    assert first.rounds[same].equals(second.rounds[same])
    assert first.predictions["threshold"].equals(second.predictions["threshold"])
    assert not first.predictions["score"].equals(second.predictions["score"])


# Nothing leaks --------------------------------------------------------------------------------------------------------


def leaks(out, secrets):
    """Files outside the sites' own folders that contain one of ``secrets``, in their name or content."""
    found = []
    for path in out.rglob("*"):
        if path.relative_to(out).parts[0] == "sites":
            continue
        content = path.read_bytes() if path.is_file() else b""
        found += [(path.name, secret) for secret in secrets if secret.encode() in content or secret in path.name]
    return found


def test_no_patient_and_no_path_leaves_the_sites_folders(finished):
    folder, _, results = finished
    patients = pd.read_csv(folder / "cases.csv")["patient"].tolist()
    assert leaks(results.folder, [*patients, "-secret", "MRN-", str(folder), "row 1"]) == []
    kept = (results.folder / "sites" / "Bonn" / "subjects.csv").read_text().splitlines()
    assert kept[0] == "pseudonym,case,subject,source"
    assert len(kept) == 1 + SIZES["Bonn"]
    assert sum("MRN-B" in line for line in kept) == SIZES["Bonn"]


def test_the_sites_list_says_who_is_who(finished):
    folder, _, results = finished
    kept = pd.read_csv(results.folder / "sites" / "Bonn" / "subjects.csv", dtype=str)
    cases = pd.read_csv(folder / "cases.csv").set_index("patient")
    scores = results.predictions.query("method == 'fedavg' and seed == 0 and site == 'Bonn'").merge(kept, on="case")
    assert len(scores) == SIZES["Bonn"]
    labels = cases.loc[scores["subject_y"], "diagnosis"].to_numpy()
    assert [f"kind {label}" for label in scores["label"]] == labels.tolist()
    order = kept["subject"].tolist()
    by_number = kept.sort_values("pseudonym")["subject"].tolist()
    assert by_number != sorted(order), "numbers in the order of the names would tell something"


def test_no_patient_leaves_where_a_site_fails_while_running(tmp_path, monkeypatch):
    entries = small_study(tmp_path)

    def fail(run, vectors, index, threshold, completion):
        raise ValueError(f"patient MRN-A0003-secret in {tmp_path}")

    monkeypatch.setattr("polyclinic.site.evaluation.predict", fail)
    with pytest.raises(PolyclinicError) as caught:
        run(entries, tmp_path)
    assert "MRN" not in str(caught.value)
    assert leaks(tmp_path / "out", ["MRN-", "-secret", str(tmp_path)]) == []
    assert "patient MRN-A0003-secret" in (tmp_path / "out" / "sites" / "Aachen" / "site.log").read_text()


def test_a_name_of_a_site_can_not_lead_out_of_the_folder(tmp_path):
    entries = write_table_study(tmp_path, {"../../Aachen": 16, "Bonn/St. Marien (Köln)": 16, "Bonn_St": 12, "01": 16})
    results = run(changed(entries, methods=["fedavg", "single"], evaluation={"unseen_sites": True}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cases.csv", "out"}
    assert set(results.predictions["site"]) == {"../../Aachen", "Bonn/St. Marien (Köln)", "Bonn_St", "01"}
    folders = [path for path in (results.folder / "sites").iterdir() if (path / "subjects.csv").is_file()]
    assert len(folders) == 4


# Unusual data ---------------------------------------------------------------------------------------------------------


def written(folder):
    return sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []


def test_sites_too_small_to_split_are_trained_on_and_not_tested(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 16, "Bonn": 4, "Celle": 16})
    entries = changed(entries, evaluation={"folds": 5}, methods=["single", "fedavg"], model={"mlp": {"hidden": [4]}})
    results = run(entries, tmp_path)
    assert set(results.results["tested_on"]) == {"Aachen", "Celle", "all"}
    assert set(results.rounds.query("method == 'fedavg'")["site"]) == {"Aachen", "Bonn", "Celle"}
    assert "Site Bonn has 4 patients, too few for 5 folds: used for training only." in results.notes


def test_sites_too_small_to_split_can_be_left_out(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 16, "Bonn": 4, "Celle": 16})
    entries = changed(entries, evaluation={"folds": 5, "small_sites": "drop"}, methods=["fedavg", "mix", "fedbn"])
    results = run(entries, tmp_path)
    assert set(results.rounds.query("method == 'fedavg'")["site"]) == {"Aachen", "Celle"}
    assert "Site Bonn has 4 patients, too few for 5 folds: left out." in results.notes


def test_sites_too_small_to_split_can_stop_the_study(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 16, "Bonn": 4})
    with pytest.raises(DataError, match="P206 Site Bonn has 4 patients, too few for 5 folds"):
        run(changed(entries, evaluation={"folds": 5, "small_sites": "stop"}), tmp_path)
    assert written(tmp_path) == []


def test_no_site_can_be_split(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 3, "Bonn": 4})
    with pytest.raises(DataError, match="P206 No site has enough patients to be both trained on and tested"):
        run(changed(entries, evaluation={"folds": 5}), tmp_path)
    assert written(tmp_path) == []


def test_a_site_with_a_single_class_is_not_scored_but_counts_in_the_whole(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[table["site"] == "Bonn", "diagnosis"] = "kind 0"
    table.to_csv(tmp_path / "cases.csv", index=False)
    results = run(changed(entries, methods=["single", "fedavg"]), tmp_path)
    auc = results.results.query("metric == 'auc' and method == 'fedavg'").groupby("tested_on")["value"]
    assert auc.count().to_dict() == {"Aachen": 2, "Bonn": 0, "Celle": 2, "all": 2}
    sites = results.sites.set_index("site")
    assert sites["scored"].to_dict() == {"Aachen": True, "Bonn": False, "Celle": True}
    assert sites["note"]["Bonn"] == "can't be scored by itself: 0 of 'kind 1' (at least 5 needed)"
    assert set(results.predictions["site"]) == set(SIZES)


def test_of_three_classes_a_site_has_two_and_is_scored_by_these(tmp_path):
    entries = write_table_study(tmp_path, SIZES, classes=3)
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[(table["site"] == "Bonn") & (table["diagnosis"] == "kind 2"), "diagnosis"] = "kind 0"
    table.to_csv(tmp_path / "cases.csv", index=False)
    sites = run(changed(entries, methods=["single"]), tmp_path).sites.set_index("site")
    assert sites["scored"].all()
    assert sites["note"]["Bonn"] == "scored by what it has: 0 of 'kind 2' (at least 5 needed)"


def test_three_classes(tmp_path):
    entries = write_table_study(tmp_path, SIZES, classes=3)
    results = run(changed(entries, evaluation={"metrics": ["auc", "acc", "bac", "brier"]}), tmp_path)
    table = results.predictions
    assert list(table.columns) == [*SCORES[:9], "score_0", "score_1", "score_2", "threshold", "trained_on"]
    np.testing.assert_allclose(table[["score_0", "score_1", "score_2"]].sum(axis=1), 1.0)
    assert table["score"].equals(table[["score_0", "score_1", "score_2"]].max(axis=1))
    mine = table.query("method == 'fedavg' and fold == 0 and site == 'Aachen'")
    right = mine[["score_0", "score_1", "score_2"]].to_numpy().argmax(axis=1) == mine["label"].to_numpy()
    rows = results.results.query("method == 'fedavg' and fold == 0 and tested_on == 'Aachen' and metric == 'acc'")
    assert rows["value"].item() == pytest.approx(right.mean())
    assert results.results.query("method == 'mix' and tested_on == 'all' and metric == 'bac'")["value"].gt(0.4).all()


def test_segmentation(tmp_path):
    entries = write_image_study(tmp_path, {"Aachen": 8, "Bonn": 6})
    entries = changed(
        entries, training={"rounds": 4}, methods=["single", "cross", "ensemble", "mix", "fedavg", "fedbn"]
    )
    results = run(entries, tmp_path)
    table = results.predictions
    assert list(table.columns) == ["method", "run", "seed", "fold", "site", "subject", "case", "dice", "hd95", "sen",
                                   "pre", "space", "trained_on"]  # fmt: skip
    assert table[table["method"] == "fedavg"].groupby("site").size().to_dict() == {"Aachen": 8, "Bonn": 6}
    mine = table.query("method == 'fedavg' and fold == 0 and site == 'Bonn'")
    rows = results.results.query("method == 'fedavg' and fold == 0 and tested_on == 'Bonn' and metric == 'dice'")
    assert rows["value"].item() == pytest.approx(mine["dice"].mean())
    assert table["dice"].between(0, 1).all()
    assert (results.folder / "overlays.safetensors").is_file()
    assert leaks(results.folder, ["MRN-", "-secret", str(tmp_path)]) == []
    assert contents(run(entries, tmp_path, "again").folder) == contents(results.folder)


def test_a_study_may_show_no_pictures(tmp_path):
    entries = write_image_study(tmp_path, {"Aachen": 8, "Bonn": 6})
    results = run(changed(entries, methods=["fedavg"], report={"overlays": False}), tmp_path)
    assert not (results.folder / "overlays.safetensors").exists()


def test_the_site_left_out_is_tested_and_not_trained_on(finished):
    _, _, results = finished
    rounds = results.rounds
    for method in ("fedbn", "mix"):
        rows = results.predictions[results.predictions["method"] == method].query("run == 'unseen'")
        assert rows.groupby(["seed", "site"]).size().unstack().eq(pd.Series(SIZES)).all(axis=None)
    rows = rounds.query("method == 'fedbn' and run == 'unseen'")
    per_round = rows.groupby(["seed", "fold", "round"])["site"].agg(["size", "nunique"])
    assert (per_round["size"] == 3 * 2).all(), "three sites left out in turn, two train each time"
    names = {path.name for path in (results.folder / "models").iterdir() if "without" in path.name}
    assert len(names) == 2 * 3 * 2 * 2, "method, site, seed, fold"


def test_without_a_site_the_model_does_not_depend_on_it(finished, tmp_path):
    folder, entries, results = finished
    table = pd.read_csv(folder / "cases.csv")
    table.loc[table["site"] == "Celle", ["x0", "x1", "x2"]] *= -3
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries = changed(entries, methods=["mix", "fedbn"])
    again = Study.of(entries, tmp_path).run(tmp_path / "out")
    for path in (results.folder / "models").glob("*without-Celle*"):
        assert (again.folder / "models" / path.name).read_bytes() == path.read_bytes()
    for path in (results.folder / "models").glob("fedbn*without-Bonn*"):
        assert (again.folder / "models" / path.name).read_bytes() != path.read_bytes()


def test_a_personal_model_of_an_unseen_site_is_the_mean_of_the_others(finished):
    """Celle has no normalisation layers of its own without training: the models of Aachen and Bonn vote."""
    folder, entries, results = finished
    opened = Study.of(entries, folder).open()
    engine = LocalEngine(opened.sites)
    ask = {"fold": 0, "folds": 2, "validation": 0.2, "split_seed": 0, "small_sites": "train",
           "steps": scaling_steps("per_site"), "augmentation": [], "classes": 2}  # fmt: skip
    engine.ask("prepare", dict.fromkeys(engine.sites, Message(ask)))
    member = engine.members["Celle"]
    inputs, _ = member.dataset.batch(member.parts.test)
    (path,) = (results.folder / "models").glob("fedbn*-seed0-fold0-without-Celle.safetensors")
    saved = load_file(path)
    assert {name.split("/")[0] for name in saved} == {"Aachen", "Bonn"}
    network, votes = build_model("mlp", {"hidden": [4], "norm": "batch"}, (3,), 2), []
    for site in ("Aachen", "Bonn"):
        module = plain_module(network, network.vector).eval()
        own = {n.removeprefix(f"{site}/"): t for n, t in saved.items() if n.startswith(f"{site}/")}
        module.load_state_dict({**module.state_dict(), **own})
        with torch.no_grad():
            votes.append(module(inputs).double().softmax(1)[:, 1].numpy())
    found = results.predictions.query("method == 'fedbn' and run == 'unseen' and seed == 0 and fold == 0")
    found = found[found["site"] == "Celle"]
    np.testing.assert_allclose(found["score"].to_numpy(), np.mean(votes, axis=0), atol=1e-6)


def test_a_site_with_test_cases_only_gets_the_mean_of_the_personal_models(tmp_path):
    entries = changed(write_table_study(tmp_path, SIZES), methods=["single", "fedavg", "fedbn"])
    entries["evaluation"] = {"split": "part", "metrics": ["auc", "acc"], "bootstrap": 0}
    table = pd.read_csv(tmp_path / "cases.csv")
    table["part"] = np.where((np.arange(len(table)) % 3 == 0) | (table["site"] == "Celle"), "test", "train")
    table.to_csv(tmp_path / "cases.csv", index=False)
    results = run(entries, tmp_path)
    pairs = set(zip(results.predictions["method"], results.predictions["site"], strict=True))
    assert pairs == {(m, s) for m in ("single", "fedavg", "fedbn") for s in SIZES} - {("single", "Celle")}
    saved = load_file(results.folder / "models" / "fedbn-seed0-fold0.safetensors")
    scaled = torch.from_numpy(table[table["site"] == "Celle"][["x0", "x1", "x2"]].to_numpy()).float()
    network, votes = build_model("mlp", {"hidden": [4], "norm": "batch"}, (3,), 2), []
    for site in ("Aachen", "Bonn"):
        module = plain_module(network, network.vector).eval()
        own = {n.removeprefix(f"{site}/"): t for n, t in saved.items() if n.startswith(f"{site}/")}
        module.load_state_dict({**module.state_dict(), **own})
        with torch.no_grad():
            votes.append(module(scaled).double().softmax(1)[:, 1].numpy())
    found = results.predictions.query("method == 'fedbn' and site == 'Celle'")["score"].to_numpy()
    np.testing.assert_allclose(found, np.mean(votes, axis=0), atol=1e-5)


# Mistakes that only the data shows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": {"table": "nowhere.csv"}}, DataError, "P201 "),
        ({"data": {"site": "hospital"}}, DataError, "P202 "),
        ({"model": "unet"}, TrainingError, "P302 The model unet can't be built for inputs of shape (3,)"),
        ({"training": {"class_weights": [1.0, 2.0, 3.0]}}, StudyError,
         "P102 `training: {class_weights: ...}` has 3 numbers, but there are 2 classes: kind 0, kind 1."),
        ({"engine": {"mode": "stacked"}, "model": {"mlp": {"hidden": [4], "dropout": 0.5}}}, StudyError,
         "P104 `engine: {mode: stacked}` is impossible: the network has dropout"),
    ],
    ids=["file", "column", "model", "class weights", "stacked"],
)  # fmt: skip
def test_nothing_is_written_when_study_and_data_do_not_fit(tmp_path, change, error, message):
    entries = write_table_study(tmp_path, SIZES)
    with pytest.raises(error) as caught:
        run(changed(entries, **{k: v for k, v in change.items() if k != "model"}) | {
            k: v for k, v in change.items() if k == "model"}, tmp_path)  # fmt: skip
    assert str(caught.value).startswith(message)
    assert written(tmp_path) == []


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_a_single_case_is_too_few_for_batch_normalisation(tmp_path, mode):
    entries = changed(write_table_study(tmp_path, {"Aachen": 16, "Bonn": 16, "Celle": 1}), engine={"mode": mode})
    message = r"P302 At site Celle a training batch has a single case, and batch normalisation needs two\."
    with pytest.raises(TrainingError, match=message):
        run(changed(entries, methods=["fedavg"]), tmp_path)
    assert written(tmp_path) == []  # it is said of all splits before the first training


def test_a_single_case_is_enough_where_the_site_does_not_train_the_model(tmp_path):
    """Batch normalisation is done at the server then, on made cases."""
    made = {"asyndgan": {"generator_rounds": 1, "steps": 2, "network_steps": 2, "checked": 4}}
    entries = changed(write_table_study(tmp_path, {"Aachen": 16, "Bonn": 16, "Celle": 1}), training={"rounds": 2})
    results = run(changed(entries, methods=[made]), tmp_path)
    assert "Celle" in set(results.rounds["site"])


def test_the_results_can_be_read_by_anyone(finished):
    """As long tables with numbers that lose nothing."""
    _, _, results = finished
    plain = pd.read_csv(results.folder / "results.csv", float_precision="round_trip")
    assert plain["value"].equals(results.results["value"])
    assert hashlib.sha256((results.folder / "results.csv").read_bytes()).digest() == hashlib.sha256(
        results.results.to_csv(index=False, lineterminator="\n").encode()
    ).digest()  # fmt: skip


def test_a_study_can_be_run_without_a_folder(tmp_path):
    results = Study.of(small_study(tmp_path), tmp_path).run()
    folder = results.folder
    assert len(results.table()) == 4
    del results
    assert not folder.exists()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ({"krum": {}}, {}, "krum needs the answers of 5 sites in each round, and 3 take part."),
        ({"trimmed_mean": {"trim": 2}}, {}, "needs the answers of 5 sites"),
        (
            {"trimmed_mean": {}},
            {"unseen_sites": True},
            "of 3 sites in each round, and 2 take part where one is left out",
        ),
        (
            {"trimmed_mean": {"training": {"participation": {"uniform": {"sites": 2}}}}},
            {},
            "of 3 sites in each round, and 2",
        ),
        (
            {"fedavg": {"channel": ["secure_sum"], "label": "hidden"}},
            {"unseen_sites": True},
            "of 3 sites in each round, and 2 take part where one is left out. A sum of few tells of single sites .*"
            "allow it: `secure_sum: {least: 2}`",
        ),
        (
            {"median": {"channel": [{"secure_sum": {"group_size": 3}}]}},
            {},
            "needs 2 updates to compare .median., and `group_size` makes 1 group of 3 sites",
        ),
        (
            {"trimmed_mean": {"channel": [{"homomorphic_sum": {"least": 2, "group_size": 2}}]}},
            {},
            "needs 3 updates to compare .trimmed_mean., and `group_size` makes 1 group of 3 sites",
        ),
    ],
)
def test_a_rule_that_needs_more_sites_is_refused_before_anything_is_trained(tmp_path, method, changes, message):
    entries = write_table_study(tmp_path, {"Aachen": 12, "Bonn": 12, "Celle": 12})
    entries |= {"methods": ["fedavg", method], "evaluation": entries["evaluation"] | changes}
    with pytest.raises(StudyError, match=f"P104 .*{message}"):
        Study.of(entries, tmp_path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quorum_of_more_sites_than_there_are_is_refused(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 12, "Bonn": 12})
    entries["training"]["quorum"] = 3
    with pytest.raises(StudyError, match=r"P104 .*quorum: 3.* wants more sites than the 2 there are"):
        Study.of(entries, tmp_path).run(tmp_path / "out")
