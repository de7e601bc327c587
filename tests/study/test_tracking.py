"""Trackers are told what the results have: number by number, once, whatever is killed, and nothing of a patient."""

import contextlib
import json
import math
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import write_image_study, write_number_study, write_survival_study, write_table_study
from polyclinic.deployment.loaded import Model
from polyclinic.study.display import Display
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study
from polyclinic.study.table_files import read_table
from polyclinic.study.tracking import track
from polyclinic.study.tracking.about import About
from polyclinic.study.tracking.names import label
from polyclinic.study.tracking.outcome import Outcome
from polyclinic.study.tracking.track import Tracking, track_folder
from polyclinic.study.tracking.trainings import Reader, Training

pytest.importorskip("tensorboard")
pytest.importorskip("alembic")
mlflow = pytest.importorskip("mlflow")

SIZES = {"Aix/Marseille": 16, "Bonn am Rhein": 16, "Köln (Süd)": 16}
#: Columns of rounds.csv that are tracked, of what the studies here have.
COLUMNS = ["seconds", "bytes_up", "bytes_down", "examples", "steps", "loss", "sent", "share", "validation_loss"]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Looks at the folder often, and gives a server that is not there up at once."""
    monkeypatch.setattr(track, "_PAUSE", 0.02)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A file of MLflow without runs: to make one takes two seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def scalars(folder):
    """(name, step) -> values in the event files of a run: more than one where a step was written twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    told = {}
    for name in found.Tags()["scalars"]:
        for one in found.Scalars(name):
            told.setdefault((name, one.step), []).append(one.value)
    return told


def boards(out):
    """Name of each training -> its scalars, in the default place."""
    (study,) = (out / "tracking" / "tensorboard").iterdir()
    return {folder.name: scalars(folder) for folder in study.iterdir()}


class Store:
    """What MLflow has of the one study in a store."""

    def __init__(self, uri):
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        experiments = [one for one in self.client.search_experiments() if one.name != "Default"]
        runs = self.client.search_runs([one.experiment_id for one in experiments], max_results=1000)
        (self.parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        self.runs = {run.info.run_name: run for run in runs if run.info.run_id != self.parent.info.run_id}
        assert {run.data.tags["mlflow.parentRunId"] for run in self.runs.values()} <= {self.parent.info.run_id}

    def scalars(self, run):
        return {
            (name, one.step): [same.value for same in history if same.step == one.step]
            for name in run.data.metrics
            for history in [self.client.get_metric_history(run.info.run_id, name)]
            for one in history
        }

    def files(self, folder=None):
        return {one.path for one in self.client.list_artifacts(self.parent.info.run_id, folder)}

    def text(self, file, folder):
        return Path(self.client.download_artifacts(self.parent.info.run_id, file, str(folder))).read_text()


def store(out):
    beside = out.parent / "mlflow.db"
    return Store(f"sqlite:///{beside if beside.is_file() else out / 'tracking' / 'mlflow.db'}")


def expected(out):
    """Training -> (name, step) -> value, by rounds.csv, results.csv and privacy.csv."""
    found = {}
    for row in read_table(out / "rounds.csv").to_dict("records"):
        without = row.get("without")
        name = Training(row["method"], row["run"], row["seed"], row["fold"],
                        without if isinstance(without, str) else "").name  # fmt: skip
        for column in [*COLUMNS, *(key for key in row if key.startswith("validation_"))]:
            if column in row and not math.isnan(row[column]):
                found.setdefault(name, {})[f"{column}/{label(row['site'])}", row["round"]] = row[column]
    for row in read_table(out / "results.csv").to_dict("records"):
        if (row["run"] == "unseen" and row["tested_on"] == "all") or math.isnan(row["value"]):
            continue
        without = row["tested_on"] if row["run"] == "unseen" else ""
        name = Training(row["method"], row["run"], row["seed"], row["fold"], without).name
        by = f"/by {label(row['trained_on'])}" if row["method"] == "cross" else ""
        metric = row["metric"].replace("[", ".").replace("]", "")
        found.setdefault(name, {})[f"test_{metric}/{label(row['tested_on'])}{by}", 0] = row["value"]
    return found


def check(out, *, made_up=("mean/", "total/", "best_round", "epsilon/")):
    """Both trackers have each number of the tables once, and none else."""
    wanted, told, runs = expected(out), boards(out), store(out)
    assert set(told) == {*wanted, "study"}
    assert set(runs.runs) == set(wanted)
    for name, numbers in wanted.items():
        board, there = told[name], runs.scalars(runs.runs[name])
        assert all(len(values) == 1 for values in [*board.values(), *there.values()])
        assert {key for key in there if not key[0].startswith(made_up)} == set(numbers)
        assert {key for key in board if not key[0].startswith((*made_up, "_hparams_"))} == set(numbers)
        for key, value in numbers.items():
            assert there[key] == [value]
            assert board[key] == [np.float32(value)]
    return told, runs


def entries(folder, **changes):
    found = write_table_study(folder, SIZES)
    found["training"]["rounds"] = 3
    found["engine"] = {"mode": "sequential"}
    return found | {"tracking": ["tensorboard", "mlflow"]} | changes


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    noisy = {"fedavg": {"local": [{"dp_sgd": {"noise": 1.2}}], "label": "noisy"}}
    found = entries(folder, methods=["single", "cross", "mix", {"fedavg": {"label": "shared"}}, noisy])
    found["model"] = {"mlp": {"hidden": [4], "norm": "layer"}}
    found["evaluation"] |= {"unseen_sites": ["shared"], "holdout": 0.5, "folds": None}
    study = Study.of({name: value for name, value in found.items() if value is not None}, folder)
    study.run(folder / "out", jobs=2)
    return folder, study


def test_all_numbers_are_those_of_the_tables(tracked):
    folder, _ = tracked
    told, runs = check(folder / "out")
    rounds = read_table(folder / "out" / "rounds.csv").query("method == 'shared' and run == 'plain' and round == 1")
    shared = runs.scalars(runs.runs["shared-seed0-fold0"])
    assert shared["mean/loss", 1] == [pytest.approx(rounds["loss"].mean(), rel=1e-15)]
    assert shared["total/bytes_up", 1] == [rounds["bytes_up"].sum()]
    (best,) = {*read_table(folder / "out" / "rounds.csv").query("method == 'mix' and chosen == 1")["round"]}
    assert runs.runs["mix-seed0-fold0"].data.metrics["best_round"] == best
    spent = read_table(folder / "out" / "privacy.csv").query("run == 'plain'")
    noisy = runs.runs["noisy-seed0-fold0"].data.metrics
    assert {name: value for name, value in noisy.items() if name.startswith("epsilon/")} == {
        f"epsilon/{label(site)}": epsilon for site, epsilon in zip(spent["site"], spent["epsilon"], strict=True)
    }
    summary = read_table(folder / "out" / "summary.csv").query("run == 'plain' and over == 'sites'")
    for row in summary.to_dict("records"):
        name = f"{row['metric']}/sites/{row['method']}/mean"
        assert runs.parent.data.metrics[name] == row["mean"]
        assert told["study"][name, 0] == [np.float32(row["mean"])]


def test_parameters_are_those_of_the_study_without_its_places(tracked):
    folder, _ = tracked
    runs = store(folder / "out")
    parameters = runs.parent.data.params
    assert (parameters["training.rounds"], parameters["training.optimizer.sgd.lr"]) == ("3", "0.1")
    assert parameters["data.features"] == "x*"
    assert not {name for name in parameters if name.startswith("data.table")}
    one = runs.runs[Training("shared", "unseen", 0, 0, "Köln (Süd)").name]
    assert one.data.params["without"] == "Köln (Süd)"
    assert {run.info.status for run in [runs.parent, *runs.runs.values()]} == {"FINISHED"}
    assert len({run.data.tags["polyclinic.study"] for run in [runs.parent, *runs.runs.values()]}) == 1


def test_nothing_of_a_patient_and_no_path_is_tracked(tracked, tmp_path):
    folder, _ = tracked
    runs = store(folder / "out")
    tables = runs.files("tables")
    assert {"tables/results.csv", "tables/rounds.csv", "tables/notes.json", "tables/privacy.csv"} <= tables
    assert not {one for one in tables if "predictions" in one or one.endswith((".yaml", ".safetensors"))}
    subjects = read_table(folder / "out" / "predictions.csv")["subject"].unique()
    texts = [runs.text(one, tmp_path) for one in ["report.html", *tables]]
    texts += [one.read_bytes().decode("latin-1") for one in (folder / "out" / "tracking").rglob("events*")]
    for text in texts:
        assert str(folder) not in text
        assert "cases.csv" not in text
        assert not [subject for subject in subjects if subject in text]


def test_results_are_the_same_bytes_whoever_is_told(tracked, tmp_path):
    folder, study = tracked
    content = study.declaration.filled()
    assert "tracking" not in content
    Study.of(content, folder).run(tmp_path / "out", jobs=1)
    for name in ("study.yaml", "results.csv", "predictions.csv", "summary.csv", "notes.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "out" / name).read_bytes()
    assert not (tmp_path / "out" / "tracking").exists()


def test_a_finished_study_is_told_again_without_a_word_twice(tracked):
    folder, study = tracked
    before = (folder / "out" / "tracking" / "id").read_text()
    assert track_folder(study, folder / "out") == []
    check(folder / "out")
    assert (folder / "out" / "tracking" / "id").read_text() == before


class Stopping(Display):
    """Stops the study after some rounds, as a kill does: nobody says goodbye."""

    def __init__(self, rounds):
        self.left = rounds

    def round(self, done, total):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def local(folder, empty_store):
    """Trackers of a study in a folder, with a store that was made before."""
    shutil.copy(empty_store, folder / "mlflow.db")
    return ["tensorboard", {"mlflow": {"uri": "sqlite:///mlflow.db"}}]


@pytest.mark.parametrize("come", ["results", "what there is so far"])
def test_what_comes_from_hospitals_is_tracked_when_it_is_here(tmp_path, empty_store, come):
    """As after `polyclinic run --engine nvflare`: nobody tracked while it ran, and a copy of the folder came."""
    found = entries(tmp_path, methods=["fedavg", "mix"], tracking=local(tmp_path, empty_store))
    found["evaluation"]["unseen_sites"] = ["fedavg"]
    there = Study.of({name: value for name, value in found.items() if name != "tracking"}, tmp_path)
    display = Stopping(11 if come != "results" else 1000)  # three trainings of three rounds, and two rounds
    with contextlib.suppress(KeyboardInterrupt):
        there.run(tmp_path / "there", display=display, jobs=1)
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    study = Study.of(found, tmp_path)
    assert track_folder(study, tmp_path / "here") == []
    if come != "results":
        runs = store(tmp_path / "here")
        assert sorted(run.info.status for run in runs.runs.values()) == ["FINISHED"] * 3 + ["KILLED"]
        there.run(tmp_path / "there", resume=True, jobs=1)
        shutil.copytree(tmp_path / "there", tmp_path / "here", dirs_exist_ok=True)
        assert track_folder(study, tmp_path / "here") == []
    check(tmp_path / "here")


def test_after_a_kill_no_step_is_lost_and_none_is_there_twice(tmp_path, monkeypatch, empty_store):
    tracking = local(tmp_path, empty_store)
    study = Study.of(entries(tmp_path, methods=["fedavg", "mix"], tracking=tracking), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "close", lambda self: [one.halt() for one in self._followers])
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "out", display=Stopping(8), jobs=1)
    study.run(tmp_path / "out", resume=True)
    check(tmp_path / "out")


STUDIES = {"regression": write_number_study, "survival": write_survival_study, "segmentation": write_image_study}


@pytest.mark.parametrize("task", STUDIES)
def test_other_tasks(tmp_path, task, empty_store):
    found = STUDIES[task](tmp_path, {"A": 14, "B": 14})
    found["training"]["rounds"] = 2
    found["evaluation"] |= {"bootstrap": 0}
    found |= {"methods": ["fedavg"], "engine": {"mode": "sequential"}, "tracking": local(tmp_path, empty_store)}
    Study.of(found, tmp_path).run(tmp_path / "out")
    _, runs = check(tmp_path / "out")
    page = runs.text("report.html", tmp_path)
    assert "data:image" not in page
    assert "Predicted against true" not in page
    if task == "segmentation":
        assert "data:image" in (tmp_path / "out" / "report.html").read_text()


def test_a_tracker_that_fails_ends_no_study(tmp_path):
    (tmp_path / "file").write_text("no folder can be made here")
    tracking = [{"tensorboard": {"folder": "file"}}, {"mlflow": {"uri": "http://127.0.0.1:9"}}]
    study = Study.of(entries(tmp_path, methods=["fedavg"], tracking=tracking), tmp_path)
    said = []
    display = Display()
    display.note = said.append
    results = study.run(tmp_path / "out", display=display)
    notes = [note for note in results.notes if note.number == "N112"]
    assert [note.split()[0] for note in notes] == ["TensorBoard", "MLflow"]
    assert all("failed" in note and "127.0.0.1" not in note and "file" not in note for note in notes)
    assert [note.split()[0] for note in said if note in said and getattr(note, "number", "") == "N112"] == [
        "TensorBoard", "MLflow",
    ]  # fmt: skip
    # It is made up for later.
    (tmp_path / "file").unlink()
    found = entries(tmp_path, methods=["fedavg"], tracking=[{"tensorboard": {"folder": "file"}}])
    Study.of(found, tmp_path).run(tmp_path / "out", resume=True)
    (board,) = (tmp_path / "file").iterdir()
    (wanted,) = [numbers for name, numbers in expected(tmp_path / "out").items() if name == "fedavg-seed0-fold0"]
    there = scalars(board / "fedavg-seed0-fold0")
    assert all(there[key] == [np.float32(value)] for key, value in wanted.items())


@pytest.mark.parametrize("kind", ["fit", "study", "study alone"])
def test_a_final_training_and_its_model(tmp_path, empty_store, kind):
    found = entries(tmp_path, methods=["fedavg", "mix"], tracking=local(tmp_path, empty_store))
    if kind == "fit":
        Model.fit(Study.of(found, tmp_path), tmp_path / "model", method="fedavg", rounds=3)
        out, model = tmp_path / "model-tracking", tmp_path / "model"
        assert not list(model.glob("*tracking*"))
    else:
        found["final_model"] = {"method": "fedavg", "rounds": 3, "alone": kind == "study alone"}
        run_study(Study.of(found, tmp_path), tmp_path / "out")
        out, model = tmp_path / "out" / "tracking", tmp_path / "out" / "model"
        if kind == "study":
            check(tmp_path / "out")
    runs = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    name = "fedavg-seed0-fold2-final"
    assert (len(runs.runs), runs.parent.info.run_name) == {
        "fit": (1, "A small study: model"), "study": (5, "A small study"), "study alone": (1, "A small study"),
    }[kind]  # fmt: skip
    there = runs.scalars(runs.runs[name])
    assert {step for name, step in there if name == "loss/Bonn am Rhein"} == {0, 1, 2}
    (board,) = (out / "tensorboard").iterdir()
    numbers = scalars(board / name)
    assert {key: np.float32(value) for key, (value,) in there.items()} == {
        key: value for key, (value,) in numbers.items() if not key[0].startswith("_hparams_")
    }
    assert runs.runs[name].info.status == "FINISHED"
    assert {f"model/{one.name}" for one in model.iterdir()} == runs.files("model")


# Without a study -----------------------------------------------------------------------------------------------------


def rows(number, **values):
    return [{"round": number, "site": site, "loss": number + place / 2, "steps": 2, **values}
            for place, site in enumerate(SIZES)]  # fmt: skip


class Written:
    """A results folder as a run writes it."""

    def __init__(self, folder):
        self.folder, self.training = folder, Training("fedavg", "plain", 0, 0)
        about = {"name": self.training.name, "method": "fedavg", "run": "plain", "seed": 0, "fold": 0,
                 "without": None, "trial": None, "pooled": False}  # fmt: skip
        self.part = folder / "jobs" / f"{self.training.name}.part"
        self.part.mkdir(parents=True)
        (folder / "jobs" / "trainings.json").write_text(json.dumps([about, about | {"trial": 0, "name": "x"}]))
        self.lines = []

    def rounds(self, *numbers, **values):
        self.lines += [json.dumps(row) + "\n" for number in numbers for row in rows(number, **values)]
        (self.part / "rounds.jsonl").write_text("".join(self.lines))

    def done(self, *numbers):
        place = self.folder / "jobs" / self.training.name
        place.mkdir()
        about = {"method": "fedavg", "run": "plain", "seed": 0, "fold": 0}
        pd.DataFrame([about | row for n in numbers for row in rows(n)]).to_csv(place / "rounds.csv", index=False)


def about(folder):
    return About("Title", "0123456789", folder, {"training.rounds": 3}, {"fedavg": {"training.rounds": 3}})


def made(kind, folder, empty_store):
    from polyclinic.study.tracking.mlflow import Mlflow
    from polyclinic.study.tracking.tensorboard import TensorBoard

    if kind == "tensorboard":
        return TensorBoard(about(folder), folder / kind)
    if not (folder / "mlflow.db").is_file():
        shutil.copy(empty_store, folder / "mlflow.db")
    return Mlflow(about(folder), None, "E")


def losses(kind, folder):
    name = "fedavg-seed0-fold0"
    if kind == "tensorboard":
        found = scalars(folder / "tensorboard" / name)
    else:
        found = Store(f"sqlite:///{folder / 'mlflow.db'}")
        found = found.scalars(found.runs[name])
    return {step: values for (name, step), values in found.items() if name == "loss/Bonn am Rhein"}


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_killed_run_goes_on_where_it_was(tmp_path, kind, empty_store):
    written = Written(tmp_path)
    written.rounds(0, 1, 2)
    first = track._Follower(made(kind, tmp_path, empty_store), Reader(tmp_path))
    first.look()  # and is killed; of its last round nobody knows whether it will be written again
    assert losses(kind, tmp_path) == {0: [0.5], 1: [1.5]}
    written.rounds(3)
    second = track._Follower(made(kind, tmp_path, empty_store), Reader(tmp_path))
    second.look()
    second.look()
    assert losses(kind, tmp_path) == {0: [0.5], 1: [1.5], 2: [2.5]}
    written.done(0, 1, 2, 3, 4)
    second.look()
    third = track._Follower(made(kind, tmp_path, empty_store), Reader(tmp_path))
    third.look()
    third.end(Outcome)
    assert losses(kind, tmp_path) == {number: [number + 0.5] for number in range(5)}
    assert third.reader.over(written.training)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_failure_in_the_middle_is_made_up_for(tmp_path, kind, monkeypatch, empty_store):
    written = Written(tmp_path)
    written.rounds(0, 1, 2, 3)
    follower = track._Follower(made(kind, tmp_path, empty_store), Reader(tmp_path))
    follower.attempt(follower.look)
    written.rounds(4, 5)
    told = follower.tracker.rounds

    def half(part):
        told(part)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(follower.tracker, "rounds", half)
    follower.attempt(follower.look)
    assert follower.note() == (
        f"{follower.tracker.title} was not told of all that is in the results: that failed once (OSError). Results are "
        "not touched by it."
    )
    monkeypatch.setattr(follower.tracker, "rounds", told)
    written.done(0, 1, 2, 3, 4, 5)
    follower.attempt(follower.look)
    assert follower.note() is None
    assert losses(kind, tmp_path) == {number: [number + 0.5] for number in range(6)}


def test_what_is_no_number_and_what_is_infinite(tmp_path, empty_store):
    written = Written(tmp_path)
    written.rounds(0, validation_loss=float("nan"), validation_auc=None, share=float("inf"))
    written.rounds(1)
    for kind in ("tensorboard", "mlflow"):
        track._Follower(made(kind, tmp_path, empty_store), Reader(tmp_path)).look()
    board = scalars(tmp_path / "tensorboard" / "fedavg-seed0-fold0")
    runs = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    there = runs.scalars(runs.runs["fedavg-seed0-fold0"])
    assert not [name for name, _ in [*board, *there] if "validation" in name]
    assert board["share/Bonn am Rhein", 0] == [math.inf]
    assert there["share/Bonn am Rhein", 0] == [np.finfo(np.float64).max]  # so MLflow keeps it


def test_a_file_is_where_its_path_says_whatever_letters_are_in_it(tmp_path, empty_store):
    folder = tmp_path / "what? 100%25 #1 Ä"
    written = Written(folder)
    written.rounds(0, 1)
    track._Follower(made("mlflow", folder, empty_store), Reader(folder)).look()
    database = sqlite3.connect(folder / "mlflow.db")
    assert database.execute("select count(*) from metrics where key = 'loss/Köln _Süd_-55c832'").fetchall() == [(1,)]


def test_mlflow_tells_nobody_else_of_itself(tmp_path, monkeypatch, empty_store):
    from mlflow.telemetry import get_telemetry_client

    for name in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    made("mlflow", tmp_path, empty_store)._open()
    assert get_telemetry_client() is None
    database = sqlite3.connect(tmp_path / "mlflow.db")
    assert {name for (name,) in database.execute("select user_id from runs")} == {"unknown"}
