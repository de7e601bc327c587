"""The entry `tracking`, names that every tracker takes, and what of a study file travels."""

import math
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import write_table_study
from polyclinic.errors import StudyError
from polyclinic.federation.job import run_hash, sent_text, study_hash
from polyclinic.study.reading import without_entry
from polyclinic.study.study import Study
from polyclinic.study.tracking import entry
from polyclinic.study.tracking.about import without_paths
from polyclinic.study.tracking.names import label, metric_name
from polyclinic.study.tracking.values import best_rounds, by_round, flat

#: What MLflow takes (`mlflow.utils.validation`), without a slash, which makes groups.
ALLOWED = re.compile(r"[\w.\- ]+")


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        (["tensorbord"], "'tensorbord' is no tracker. Did you mean 'tensorboard'?"),
        (["mlflow", {"mlflow": {"experiment": "E"}}], "The tracker mlflow is there twice."),
        ([{"mlflow": {"url": "https://there"}}], "has no entry 'url'"),
        ([{"mlflow": {"uri": "mlruns"}}], "expected https://SERVER or sqlite:///FILE"),
        ([{"mlflow": {"uri": "file:///srv/mlruns"}}], "MLflow no longer writes folders of files"),
        ([{"mlflow": {"uri": "https://me:secret@there"}}], "Set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_mistakes_are_sentences(tmp_path, tracking, said):
    with pytest.raises(StudyError) as found:
        Study.of(write_table_study(tmp_path, {"A": 8, "B": 8}) | {"tracking": tracking}, tmp_path)
    assert said in f"{found.value.message} {found.value.hint}"
    assert "secret" not in f"{found.value.message} {found.value.hint}"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_what_is_not_installed_is_told_before_anything_is_done(tmp_path, monkeypatch, name):
    monkeypatch.setattr(entry, "find_spec", lambda package: None)
    study = Study.of(write_table_study(tmp_path, {"A": 8, "B": 8}) | {"tracking": [name]}, tmp_path)
    study.check()  # at a site that is only asked to look at a study, nobody is told of it
    with pytest.raises(StudyError, match=f"P503.*tracking: .{name}.*pip install 'polyclinic.{name}."):
        study.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_tracked_into_a_folder_that_goes(tmp_path):
    study = Study.of(write_table_study(tmp_path, {"A": 8, "B": 8}) | {"tracking": ["tensorboard"]}, tmp_path)
    with pytest.raises(StudyError, match=r"P104.*Without `out`"):
        study.run()


@given(st.text(min_size=1, max_size=200))
@example("0" * 81)
@example("a" * 72 + " " * 20 + "b")
def test_labels_are_names_everywhere(text):
    found = label(text)
    assert ALLOWED.fullmatch(found)
    assert found.strip(".")
    assert found == found.strip()
    assert len(found) <= 80
    assert label(found) == found


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_different_sites_have_different_labels(one, other):
    assert (label(one) == label(other)) == (one == other)


def test_names_of_metrics_are_readable():
    assert metric_name("auc") == "auc"
    assert metric_name("dice[left caudate]") == "dice.left caudate"
    assert metric_name("brier[365]") == "brier.365"


def test_a_round_in_numbers():
    rows = [
        {"round": 0, "site": "A", "loss": 1.0, "steps": 2, "bytes_up": 10, "validation_auc": None, "extra_up": "x"},
        {"round": 0, "site": "B", "loss": 2.0, "steps": 3, "bytes_up": 30, "validation_auc": 0.5, "extra_up": "x"},
        {"round": 0, "site": "A", "loss": 4.0, "steps": 1, "bytes_up": 10, "validation_auc": None, "extra_up": "x"},
        {
            "round": 2,
            "site": "B",
            "loss": math.nan,
            "steps": 3,
            "bytes_up": 30,
            "validation_auc": 0.75,
            "chosen": 1,
        },
    ]
    # A site that is asked twice in a round: what it did adds up, and of what was measured the last counts.
    assert by_round(rows) == [
        (0, {"loss/A": 4.0, "steps/A": 3.0, "bytes_up/A": 20.0, "loss/B": 2.0, "steps/B": 3.0, "bytes_up/B": 30.0,
             "validation_auc/B": 0.5, "mean/loss": 3.0, "total/bytes_up": 50.0, "mean/validation_auc": 0.5}),
        (2, {"steps/B": 3.0, "bytes_up/B": 30.0, "validation_auc/B": 0.75, "total/bytes_up": 30.0,
             "mean/validation_auc": 0.75}),
    ]  # fmt: skip
    assert best_rounds(rows) == {"best_round": 2.0}
    assert best_rounds([{"site": "A", "round": 1, "chosen": 1}, {"site": "B", "round": 2, "chosen": 1}]) == {
        "best_round/A": 1.0, "best_round/B": 2.0,
    }  # fmt: skip


def test_options_are_flat_and_have_no_paths():
    content = {
        "data": {"table": "/srv/a.csv", "tables": {"A": "/srv/a.csv"}, "root": "/srv", "features": "x*",
                 "where": {"patient": ["P7"]}},
        "model": {"bundle": {"path": "/srv/net", "head": None}}, "seeds": [0, 1], "flag": True,
    }  # fmt: skip
    found = flat(without_paths(content))
    assert found == {
        "data.tables.A": "PATH", "data.features": "x*", "model.bundle.path": "PATH", "seeds": "[0, 1]", "flag": "true",
    }  # fmt: skip
    assert "/srv" not in str(found)
    assert "P7" not in str(found)


FILES = {
    "in the middle": "study: A  # a comment\ntracking: [mlflow]\n# of seeds\nseeds: [0]\n",
    "at the end": "study: A\nseeds: [0]  # two\n\ntracking:\n  - mlflow: {uri: 'https://there'}\n  - tensorboard\n",
    "at the beginning": "tracking: [mlflow]\nstudy: A\nseeds: [0]\n",
    "in a flow": "{study: A, tracking: [mlflow], seeds: [0]}\n",
    "at the end of a flow": "{study: A, seeds: [0], tracking: [mlflow]}\n",
    "with an anchor": "tracking: &some [mlflow]\nstudy: A\nseeds: [0]\nmethods: *some\n",
    "after other letters": "study: Zürich 🏥\ntracking: [mlflow]\nseeds: [0]\n",
}


@pytest.mark.parametrize("name", FILES)
def test_what_travels_says_nothing_of_trackers(name):
    text = FILES[name]
    sent, content = sent_text(text), yaml.safe_load(text)
    del content["tracking"]
    assert yaml.safe_load(sent) == content
    assert "there" not in sent
    assert sent_text(sent) == sent
    if name == "in the middle":
        assert sent == "study: A  # a comment\nseeds: [0]\n"


def test_a_study_has_the_same_hash_whoever_is_told(tmp_path):
    plain = "# of the north\nstudy: A\nseeds: [0]\n"
    assert sent_text(plain) == plain == without_entry(plain, "tracking")
    assert study_hash(sent_text(plain + "tracking: [mlflow]\n")) == study_hash(plain)
    assert run_hash(sent_text(plain + "tracking: [tensorboard]\n"), ["x"]) == run_hash(plain, ["x"])
