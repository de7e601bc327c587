"""A worker process that dies is no absent hospital: its sites are loaded again, and the bytes are the same."""

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest

from helpers import table_sites, write_table_study
from polyclinic.communication.message import Message
from polyclinic.engine import processes, reloading
from polyclinic.engine.base import SitesLost
from polyclinic.engine.processes import ProcessEngine
from polyclinic.engine.worker import _answer
from polyclinic.errors import TrainingError
from polyclinic.site import Workspace
from polyclinic.study.display import Display
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.study import Study

#: What is told of times, and what differs between ways to run sites.
ASIDE = ("provenance.json", "study.yaml", "site.log", "rounds.csv", "notes.json")


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda out: out / "report.html")


def entries(folder, methods, **more):
    """A study whose quorum would allow to go on without the sites of a worker."""
    found = write_table_study(folder, {"Aachen": 24, "Bonn": 20, "Celle": 22, "Dresden": 18})
    found["data"]["scaling"] = "federated"
    found["model"] = {"mlp": {"hidden": [4], "norm": "layer"}}
    found["training"] |= {"quorum": 1, "rounds": 3}
    found["methods"] = methods
    return found | more


def contents(out):
    said = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ASIDE
    }
    rounds = pd.read_csv(out / "rounds.csv").drop(columns="seconds")
    return said | {"rounds.csv": rounds.to_csv(index=False).encode()}


class Mortal(processes._Worker):
    """A worker in this process, which starts at once; when it dies, all its sites are gone.

    Attributes:
        fatal: tells by what is asked, and how often that was asked before, whether it dies.
        dead: how many have died.
    """

    fatal = staticmethod(lambda function, count: False)
    dead, asked = 0, Counter()
    one_at_a_time = None

    def __init__(self, threads, device, most, sites):
        self.reason, self.sites, self.loaded = "", sites, False
        self._turns = self.one_at_a_time
        self._begin = lambda: (Workspace(device), {})
        self.held, self.gone = self._begin(), False

    def restart(self):
        gone, self.gone = self.gone, False
        self.held = self._begin() if gone else self.held
        return gone

    def ask(self, function, site, request, lend):
        if not self.loaded and function != "load":
            raise SitesLost(self.sites, "before it was asked")
        Mortal.asked[function] += 1
        Mortal.asked["anything"] += 1
        dies = Mortal.fatal(function, Mortal.asked)
        if not dies or Mortal.dead % 2:  # every second one dies when it has done its work, and before it says so
            reply = _answer(function, site, Message(request.fields, dict(request.tensors)), *self.held)
        if dies:
            self.loaded, self.gone = False, True
            Mortal.dead += 1
            raise SitesLost(self.sites, "killed by signal 9")
        return reply

    def close(self):
        pass


@pytest.fixture
def mortal(monkeypatch):
    monkeypatch.setattr(processes, "_Worker", Mortal)
    monkeypatch.setattr(Mortal, "asked", Counter())
    monkeypatch.setattr(Mortal, "dead", 0)
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Mortal, "one_at_a_time", pool)
        yield partial(monkeypatch.setattr, Mortal, "fatal")


class Listening(Display):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def compare(tmp_path, content, deaths):
    """Run a study one site after another, and with workers that die; ``deaths()`` tells how many did."""
    Study.of(content, tmp_path).run(tmp_path / "one")
    display = Listening()
    content = content | {"engine": {"mode": "processes", "workers": 2, "threads": 1}}
    Study.of(content, tmp_path).run(tmp_path / "many", display=display)
    told = [text for text in display.said if "Another one takes its place" in text]
    assert len(told) == deaths() > 0
    assert all("ended unexpectedly (killed by signal 9)" in text for text in told)
    one, many = (json.loads((tmp_path / name / "notes.json").read_text()) for name in ("one", "many"))
    note = f"{deaths()} worker processes" if deaths() > 1 else "A worker process"
    assert [n["text"].split(" ended")[0] for n in many if n["number"] == "N109"] == [note]
    assert [n for n in many if n["number"] != "N109"] == one
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


NOISY = {"fedavg": {"local": ["dp_sgd"], "label": "noisy"}}
MASKED = {"fedavg": {"channel": ["secure_sum"], "label": "masked"}}
NOISED = {"fedavg": {"local": ["control_variates", {"dp_sgd": {"noise": 1.0}}]}}
PRIVACY = {"epsilon": 20.0, "over": "study", "delta": 1e-3, "summaries": "secure_sum"}


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(reloading, "MOST_LOSSES", 99)


def test_whatever_is_asked_when_a_worker_dies_the_bytes_are_the_same(tmp_path, mortal, patient):
    """State at sites, a personal model, a pool, sums of training and of preparation, noise with one budget for all."""
    content = entries(tmp_path, ["scaffold", "ditto", "mix", NOISY, MASKED], privacy=PRIVACY)
    content["evaluation"]["threshold"] = "validation"
    seen = set()

    def first_and_fifth(function, asked):
        seen.add(function)
        return function != "load" and asked[function] in (2, 6)

    mortal(first_and_fifth)
    compare(tmp_path, content, lambda: Mortal.dead)
    assert {"prepare", "share", "apply", "start", "train", "evaluate", "save", "predict", "threshold", "keep", "spent",
            "restore", "sum_advertise", "sum_unmask", "secure_sum/agree", "secure_sum/unmask"} <= seen  # fmt: skip
    assert Mortal.dead > 30


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_at_whatever_message_a_worker_dies_the_bytes_are_the_same(tmp_path, mortal, patient, seed):
    content = entries(tmp_path, [NOISED, "fedrep"])
    content["attack"] = {"sites": ["Bonn"], "sign_flip": {}}
    content["evaluation"] |= {"predictions": "sites"}
    left = np.random.default_rng(seed).integers(20, 90, 30).cumsum().tolist()
    mortal(lambda function, asked: bool(left) and asked["anything"] >= left[0] and bool(left.pop(0)))
    compare(tmp_path, content, lambda: Mortal.dead)


def test_what_sites_say_of_their_predictions_is_asked_again(tmp_path, mortal, patient):
    content = entries(tmp_path, ["fedavg", "fedrep"])
    content["evaluation"] |= {"predictions": "sites", "bootstrap": 100}
    asked = ("compare", "groups", "spread", "threshold")
    mortal(lambda function, asked_so_far: function in asked and asked_so_far[function] in (1, 4))
    compare(tmp_path, content, lambda: Mortal.dead)
    assert Mortal.asked["compare"] > 4


def test_a_worker_that_is_killed_in_earnest(tmp_path, monkeypatch):
    killed, asked, ask = [], Counter(), processes._Worker.ask

    def killing(worker, function, site, request, lend):
        asked[function] += 1
        if function == "train" and asked["train"] == 14:
            killed.append(worker.child.number)
            os.kill(worker.child.number, signal.SIGKILL)
        return ask(worker, function, site, request, lend)

    monkeypatch.setattr(processes._Worker, "ask", killing)
    compare(tmp_path, entries(tmp_path, ["scaffold"]), lambda: len(killed))


@pytest.mark.parametrize("where", ["load", "prepare", "train", "predict"])
def test_workers_that_die_again_and_again_end_the_study_with_the_cause(tmp_path, mortal, where):
    content = entries(tmp_path, ["fedavg"], engine={"mode": "processes", "workers": 2, "threads": 1})
    mortal(lambda function, asked: function == where)
    with pytest.raises(TrainingError) as caught:
        Study.of(content, tmp_path).run(tmp_path / "out")
    assert caught.value.code == "P403"
    assert caught.value.message.startswith("At the same point 3 worker processes ended one after another. The worker ")
    assert "(killed by signal 9). Most often that is the system, when memory is short." in caught.value.message
    assert "--resume" in caught.value.hint


def test_a_worker_that_dies_in_every_round_does_not_end_the_study(tmp_path, mortal):
    """What it does is done once more, and each round gets further."""
    content = entries(tmp_path, ["fedavg"])
    content["training"]["rounds"] = 6
    mortal(lambda function, asked: function == "train" and asked["train"] % 9 == 0)
    compare(tmp_path, content, lambda: Mortal.dead)
    assert Mortal.dead > 3


def test_what_was_asked_of_others_when_a_worker_died_is_no_answer_to_what_is_asked_next(mortal):
    data = table_sites()
    mortal(lambda function, asked: function == "prepare" and asked["prepare"] == 2)
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    fields = {
        "fold": 0,
        "folds": 2,
        "validation": 0.0,
        "split_seed": 0,
        "small_sites": "train",
        "steps": [],
        "classes": 2,
    }
    for site in engine.sites:
        engine.post(site, "prepare", Message(fields))
    with pytest.raises(SitesLost):
        list(engine.replies())
    with pytest.raises(SitesLost, match="before it was asked"):
        list(engine.call("prepare", dict.fromkeys(engine.sites, Message(fields))))
    engine.reload()
    assert list(engine.replies()) == []
    assert [site for site, _ in engine.call("prepare", dict.fromkeys(engine.sites, Message(fields)))] == engine.sites


def test_a_final_model_is_the_same_though_workers_die(tmp_path, mortal, patient):
    content = entries(tmp_path, ["ditto"])
    content["training"]["rounds"] = 2
    found = []
    for name in ("one", "many"):
        fit_model(Study.of(content, tmp_path), tmp_path / name, Wanted(rounds=2))
        found.append({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.safetensors")})
        content["engine"] = {"mode": "processes", "workers": 2, "threads": 1}
        mortal(lambda function, asked: asked[function] == 3 and function in ("prepare", "train", "save", "retain"))
    assert found[0] == found[1]
    assert Mortal.dead == 4
