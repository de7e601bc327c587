"""A plug-in is installed, its parts are run by the command line, killed and resumed; and what happens if it is bad."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import polyclinic
from helpers import write_image_study, write_table_study
from plugin_helpers import PLUGIN
from polyclinic.data.spec import DataSpec

SRC = Path(polyclinic.__file__).parents[1]

METHODS = {
    "common_direction": {"local": ["common_direction"]},
    "common_statistics": {"local": ["common_statistics"]},
    "largest": {"channel": [{"largest": {"share": 0.3}}]},
    "masked_sum": {"channel": ["masked_sum"]},
    "clusters": {"topology": "clusters"},
    "buffered": {"procedure": "buffered", "server": ["mean", "stale"]},
    "split": {"procedure": "split"},
}
#: Those with which sites can be trained together.
STACKABLE = {name: METHODS[name] for name in ("common_direction", "largest", "masked_sum", "clusters", "buffered")}
#: Runs a command again and again, resuming it, and ends each of its processes, as by `kill -9`, before the n-th
#: checkpoint is in its place. They are copies of one that has loaded everything.
DYING = """
import os, signal, sys
from pathlib import Path
import torch
import polyclinic.study.runner
from polyclinic.cli import main
torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # what of PyTorch is loaded only then
replace, left = Path.replace, 0
def dying(path, target):
    global left
    left -= Path(target).name == "checkpoint.safetensors"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
Path.replace = dying
for number, left in enumerate(map(int, sys.argv.pop(1).split(","))):
    process = os.fork()
    if not process:
        sys.argv += ["--resume"] * bool(number)
        main()
        sys.exit()
    ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if ended != -signal.SIGKILL:
        sys.exit(f"run {number} ended with {ended}")
"""


def install(plugin, folder):
    """Install a package into a folder, without network, and with nothing left where it comes from."""
    source = folder / "source"
    shutil.copytree(plugin, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", *command, "--target", folder / "lib", source], check=True)
    return folder / "lib"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return install(PLUGIN, tmp_path_factory.mktemp("plugin"))


def command(*words, lib=None, dying=()):
    """The command line in a process of its own, with the packages in ``lib``; or in several that are killed."""
    paths = [str(path) for path in (lib, SRC) if path is not None]
    start = ["-c", DYING, ",".join(map(str, dying))] if dying else ["-m", "polyclinic"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    found = [sys.executable, *start, *map(str, words)]
    return subprocess.run(found, capture_output=True, text=True, env=environment, check=False)


def table_study(folder, methods=METHODS, **engine):
    """A study of a table, with fedavg besides the methods; two sites of five have their labels the other way round."""
    entries = write_table_study(folder, {"Aachen": 24, "Bonn": 21, "Celle": 30, "Dresden": 26, "Erfurt": 18})
    table = pd.read_csv(folder / "cases.csv")
    other = table["site"].isin(["Celle", "Dresden"])
    table.loc[other, "diagnosis"] = table.loc[other, "diagnosis"].map({"kind 0": "kind 1", "kind 1": "kind 0"})
    table.to_csv(folder / "cases.csv", index=False)
    entries["methods"] = ["fedavg", *({"fedavg": {"label": label, **parts}} for label, parts in methods.items())]
    entries["training"] |= {"rounds": 4, "step_seconds": {"Aachen": 3.0, "Bonn": 1.0, "Celle": 1.0, "Dresden": 1.0,
                                                          "Erfurt": 2.0}}  # fmt: skip
    entries["training"] |= {"optimizer": {"sgd": {"lr": 0.3}}}
    entries["engine"] |= engine
    (folder / "study.yaml").write_text(yaml.safe_dump(entries))
    return folder / "study.yaml"


def run(study, out, *words, lib, dying=()):
    found = command("run", study, "--out", out, *words, lib=lib, dying=dying)
    assert found.returncode == 0, found.stderr + found.stdout
    return found


def sent(folder):
    """What the numbers in the column ``payloads`` of ``rounds.csv`` stand for, as one text."""
    told = pd.read_csv(folder / "payloads.csv", dtype=str, keep_default_na=False)
    texts = told.agg(" ".join, axis=1).groupby(told["payloads"]).agg("; ".join)
    return pd.read_csv(folder / "rounds.csv", dtype=str)["payloads"].map(texts).fillna("")


def contents(folder):
    """All results but times, and sizes where keys were exchanged again."""
    rounds = pd.read_csv(folder / "rounds.csv").drop(columns="seconds")
    again = rounds["method"] == "masked_sum"
    rounds.loc[again, ["bytes_up", "bytes_down"]] = 0
    rounds["payloads"] = sent(folder).where(~again, "")
    models = {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}
    return {
        **{name: (folder / name).read_bytes() for name in ("results.csv", "predictions.csv", "summary.csv")},
        "rounds": rounds.to_csv(), **models,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(installed, tmp_path_factory):
    """A study of all parts."""
    folder = tmp_path_factory.mktemp("study")
    run(table_study(folder), folder / "out", lib=installed)
    return folder / "out"


@pytest.fixture(scope="module")
def rounds(finished):
    return pd.read_csv(finished / "rounds.csv", keep_default_na=False)


@pytest.mark.parametrize("label", METHODS)
def test_a_study_of_every_part_is_run_and_reported(finished, rounds, label):
    results = pd.read_csv(finished / "results.csv")
    values = results[(results["method"] == label) & (results["metric"] == "auc")]
    assert set(values["tested_on"]) == {"Aachen", "Bonn", "Celle", "Dresden", "Erfurt", "all"}
    assert values["value"].between(0, 1).all()
    own = rounds[rounds["method"] == label]
    assert set(own["round"]) == {0, 1, 2, 3}
    assert len(own) == 2 * 4 * (2 if label == "buffered" else 5)
    assert (own[["bytes_up", "bytes_down"]] > 0).all(axis=None)
    assert label in (finished / "report.html").read_text(encoding="utf-8")
    assert list((finished / "models").glob(f"{label}-seed0-fold0*"))


def test_provenance_names_the_plugin(finished):
    assert json.loads((finished / "provenance.json").read_text())["plugins"] == {"more": "polyclinic-more 1.0"}


def test_the_report_tells_what_was_exchanged(finished, rounds):
    page = " ".join((finished / "report.html").read_text(encoding="utf-8").split())
    for text in ("which weights changed most", "the label of each training case", "how well each model fits them"):
        assert text in page
    split = sent(finished)[(rounds["method"] == "split") & (rounds["round"] == 1)].iloc[0]
    assert "up split/features [8, 4]" in split
    assert "8 × 4 numbers or 2 × 4 numbers or" in page, "of several steps"


def test_identities_hold_in_a_study(finished):
    results = pd.read_csv(finished / "results.csv")
    values = results.pivot_table(index=["fold", "tested_on", "metric"], columns="method", values="value", sort=False)
    pd.testing.assert_series_equal(values["masked_sum"], values["fedavg"], check_names=False, atol=1e-6)
    everywhere = values.xs("auc", level="metric").groupby("tested_on").mean().drop("all")
    assert everywhere["clusters"].min() > 0.75
    assert everywhere["fedavg"].min() < 0.6, "of sites with labels the other way round"


def test_parts_of_plugins_are_listed(installed):
    found = command("methods", "--parts", lib=installed)
    for name in (*METHODS, "consistency", "stale"):
        assert name in found.stdout
    assert "Each site sends the largest changes of weights only" in " ".join(found.stdout.split())
    assert "could not be loaded" not in found.stderr


def killed_and_resumed(study, out, installed, moments):
    """Run a study that is killed again and again, each time before the checkpoint of this number."""
    run(study, out, lib=installed, dying=moments)
    run(study, out, "--resume", lib=installed)
    return contents(out)


def test_a_study_killed_in_the_middle_ends_with_the_same_bytes(installed, finished, tmp_path):
    """The 27th checkpoint is that of the third round of `buffered`, whose sites are busy in between."""
    assert killed_and_resumed(table_study(tmp_path), tmp_path / "out", installed, [27]) == contents(finished)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["stacked", "sequential", "processes"])
def test_a_study_killed_within_every_method_ends_with_the_same_bytes(installed, finished, tmp_path, mode):
    """Of four rounds the third one is cut off: then come two more checkpoints, and two of the next method."""
    methods = STACKABLE if mode == "stacked" else METHODS
    study = table_study(tmp_path, methods, mode=mode)
    if mode == "stacked":
        run(study, tmp_path / "unbroken", lib=installed)
    expected = contents(tmp_path / "unbroken" if mode == "stacked" else finished)  # processes give the same bytes
    assert killed_and_resumed(study, tmp_path / "out", installed, [3, *[4] * len(methods)]) == expected


@pytest.mark.long
def test_a_study_of_images_runs_with_every_part(installed, tmp_path):
    entries = write_image_study(tmp_path, {"Aachen": 10, "Bonn": 8})
    parts = {label: parts for label, parts in METHODS.items() if label not in ("split", "clusters")}
    entries["methods"] = [{"fedavg": {"label": label, **own}} for label, own in parts.items()]
    entries["training"]["step_seconds"] = 1.0
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries))
    run(tmp_path / "study.yaml", tmp_path / "out", lib=installed)
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(results["method"]) == set(parts)


@pytest.mark.skipif("unlabelled" not in DataSpec.model_fields, reason="cases without a label are rejected")
def test_cases_without_a_label_are_learned_from(installed, tmp_path):
    """A third of the labels is missing; with no weight the term changes nothing."""
    losses = {"with": {"weight": 20.0, "noise": 0.5}, "without": {"weight": 0.0}}
    study = table_study(tmp_path, {name: {"local": [{"consistency": own}]} for name, own in losses.items()})
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[table.index % 3 == 0, "diagnosis"] = None
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries = yaml.safe_load(study.read_text())
    entries["data"]["unlabelled"] = "use"
    study.write_text(yaml.safe_dump(entries))
    run(study, tmp_path / "out", lib=installed)
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv").set_index(["method", "fold", "round", "site"])["loss"]
    assert rounds["without"].equals(rounds["fedavg"])
    assert (rounds["with"] - rounds["fedavg"]).abs().max() > 0.01
