"""Preparing the sites: each fold where a job works on it, and nothing twice in a row."""

from dataclasses import replace

import pytest

from helpers import write_table_study
from polyclinic.engine import LocalEngine
from polyclinic.engine.processes import ProcessEngine
from polyclinic.models import build_model
from polyclinic.notes import Note
from polyclinic.study.preparing import prepare
from polyclinic.study.study import Study

SIZES = {"Aachen": 24, "Bonn": 20, "Celle": 22}


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder)


@pytest.fixture
def prepared(monkeypatch):
    """For each engine the folds that its sites were asked to prepare, in this order."""
    found = {"sites": [], "workers": []}
    for kind, name in ((LocalEngine, "sites"), (ProcessEngine, "workers")):

        def call(self, function, requests, *, original=kind.call, folds=found[name]):
            if function == "prepare":
                assert list(requests) == list(SIZES)
                (fold,) = {request.fields["fold"] for request in requests.values()}
                folds.append(fold)
            return original(self, function, requests)

        monkeypatch.setattr(kind, "call", call)
    return found


def run(folder, methods, out="out", *, mode="sequential", data=None, **entries):
    study = write_table_study(folder, SIZES)
    study["data"] |= data or {}
    study["training"] |= {"rounds": 1}
    study["evaluation"] |= entries.pop("evaluation", {})
    study |= {"methods": methods, "model": "logistic", **entries}
    study["engine"] = {"threads": 1, "mode": mode, **({"workers": 2} if mode == "processes" else {})}
    return Study.of(study, folder).run(folder / out)


def test_a_study_of_one_fold_prepares_once(prepared, tmp_path):
    run(tmp_path, ["single", "mix", "fedavg"], evaluation={"folds": None, "holdout": 0.3})
    assert prepared == {"sites": [0], "workers": []}


def test_the_fold_that_was_counted_last_is_the_first_to_be_trained_on(prepared, tmp_path):
    run(tmp_path, ["single", "mix", "fedavg"], evaluation={"folds": 5})
    assert prepared == {"sites": [4, 3, 2, 1, 0, 1, 2, 3, 4], "workers": []}


def test_the_pools_twin_is_prepared_for_pooled_jobs_only(prepared, tmp_path):
    run(tmp_path, ["single", "fedavg"], "without", mode="processes")
    assert prepared == {"sites": [], "workers": [1, 0, 1]}
    prepared["workers"].clear()
    with_mix = run(tmp_path, ["single", "mix", "fedavg"], "with", mode="processes")
    assert prepared == {"sites": [0, 1], "workers": [1, 0, 1]}
    prepared["sites"].clear()
    here = run(tmp_path, ["single", "mix", "fedavg"], "here")
    assert prepared == {"sites": [1, 0, 1], "workers": [1, 0, 1]}
    for name in ("results.csv", "predictions.csv", "notes.json"):
        assert (with_mix.folder / name).read_bytes() == (here.folder / name).read_bytes()


def test_a_pooled_trial_needs_no_workers(prepared, tmp_path):
    """One search for all: its trials go through the folds once, in this process; then both are prepared for tests."""
    search = {"trials": 2, "nested": False, "folds": 2, "parameters": {"training.batch_size": [8, 4]}}
    run(tmp_path, ["mix"], mode="processes", search=search)
    assert prepared == {"sites": [0, 1, 0, 1], "workers": [1, 0, 1]}


@pytest.mark.parametrize(
    ("scaling", "expected"), [("per_site", [1, 0, 1]), ("federated", [1, 0, *[0] * 3, 1, *[1] * 3])]
)
def test_sites_are_prepared_again_without_one_only_where_that_changes_them(prepared, tmp_path, scaling, expected):
    run(tmp_path, ["fedavg", "mix"], data={"scaling": scaling}, evaluation={"unseen_sites": True})
    assert prepared["sites"] == expected


def test_notes_are_in_the_order_of_the_folds(tmp_path, monkeypatch):
    """Though folds are counted from the last to the first; what all of them say is said once."""

    def noting(engine, request, without=None, features=0):
        notes = [Note("N801", f"Fold {request.fold}."), Note("N801", "Any fold.")]
        return replace(prepare(engine, request, without), notes=notes)

    monkeypatch.setattr("polyclinic.study.folds.prepare", noting)
    notes = run(tmp_path, ["fedavg"], evaluation={"folds": 3}).notes
    assert [str(note) for note in notes if note.number == "N801"] == ["Fold 0.", "Any fold.", "Fold 1.", "Fold 2."]


def test_methods_and_folds_start_from_one_network_of_each_seed(tmp_path, monkeypatch):
    built = []

    def counting(*arguments, seed=None, **options):
        built.append(seed)
        return build_model(*arguments, **options, **({} if seed is None else {"seed": seed}))

    monkeypatch.setattr("polyclinic.study.setup.build_model", counting)
    run(tmp_path, ["single", "mix", "fedavg", "fedbn"], seeds=[3])
    assert built == [None, 3]  # the first for its layout
