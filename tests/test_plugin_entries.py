"""Losses, metrics, tasks, readers, networks and intensities of plug-ins, as a study, a site and a user see them."""

import importlib
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from helpers import declare
from polyclinic import catalogues, origins
from polyclinic.cli import app
from polyclinic.data.readers.read import READERS, read_volume
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.errors import PartError, StudyError
from polyclinic.models.catalogue import MODELS
from polyclinic.new_plugin import name_problem, write_plugin
from polyclinic.options import Catalogue, EntryError
from polyclinic.study.given.plugins import needed_plugins, used_plugins
from polyclinic.tasks import TASKS, build_task
from polyclinic.tasks.base import Task, register
from polyclinic.tasks.metrics import METRICS, Judged, enter_metric, entered_values, weighted_metrics
from test_plugins import load  # noqa: F401 - a fixture

LOSSES = TASKS["classification"].losses


@pytest.fixture(autouse=True)
def only_here():
    before, known = catalogues._entered(), dict(origins.LOADED)
    yield
    catalogues._take_back(before)
    origins.LOADED.clear()
    origins.LOADED.update(known)


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """The package that `polyclinic plugin new` writes, as if it were installed."""
    folder = write_plugin("more-parts", tmp_path)
    about = folder / "src" / "more_parts.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: more-parts\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[polyclinic.parts]\nmore_parts = more_parts\n")
    monkeypatch.syspath_prepend(folder / "src")
    importlib.invalidate_caches()
    monkeypatch.setattr(catalogues, "PLUGINS", catalogues.load())
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("more_parts", "test_more_parts")]:
        del sys.modules[name]


# What is entered ------------------------------------------------------------------------------------------------------


def test_a_loss_has_options_that_are_checked():
    @LOSSES.add("powered")
    def powered(outputs, targets, *, power: int = 2):
        return F.cross_entropy(outputs, targets, reduction="none") ** power

    found = declare(training={"loss": {"powered": {"power": 3}}})
    assert found.loss_of(found.training) == ("powered", {"power": 3})
    assert found.filled()["training"]["loss"] == {"powered": {"power": 3}}
    outputs, targets = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    task = build_task("classification", 2, ("powered", {"power": 3}))
    assert task.loss(outputs, targets).item() == pytest.approx(np.log(2) ** 3)
    with pytest.raises(EntryError, match="powered has no option 'pwer'"):
        declare(training={"loss": {"powered": {"pwer": 3}}})
    with pytest.raises(EntryError, match="got 'x'; expected a whole number"):
        declare(training={"loss": {"powered": {"power": "x"}}})
    assert declare(training={"loss": "powered"}).filled()["training"]["loss"] == {"powered": {"power": 2}}


def test_a_mean_in_the_place_of_a_loss_of_each_case_is_refused_when_the_study_is_read():
    LOSSES.add("mean")(lambda outputs, targets: F.cross_entropy(outputs, targets))
    with pytest.raises(EntryError, match=r"The loss mean gave a tensor \[\]; expected the loss of each case"):
        declare(training={"loss": "mean"})


def test_a_loss_that_compares_cases_says_so_or_is_refused():
    def centred(outputs, targets):
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses - losses.mean() / 2

    LOSSES.add("centred")(centred)
    with pytest.raises(EntryError, match=r"centred\.compares_cases = True"):
        declare(training={"loss": "centred"})
    centred.compares_cases = True
    declare(training={"loss": "centred"})
    with pytest.raises(EntryError, match="a batch of one case teaches nothing"):
        declare(training={"loss": "centred", "batch_size": 1})


def test_sites_that_are_trained_together_are_not_compared_with_each_other():
    def centred(outputs, targets):
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses - losses.mean() / 2

    centred.compares_cases = True
    LOSSES.add("centred")(centred)
    task = build_task("classification", 3, "centred")
    outputs, targets = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 0, 1, 1, 0, 2])
    real = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found = task.stacked_loss(outputs, targets, real)
    for site, count in enumerate((3, 2)):
        alone = task.loss(outputs[site, :count], targets.view(2, 4)[site, :count])
        assert torch.allclose(found[site, :count], alone)
    assert found[~real].tolist() == [0.0, 0.0, 0.0]


def accuracy(cases):
    return float(((cases.labels == cases.decided) * cases.weights).sum() / cases.weights.sum())


def test_a_metric_agrees_with_that_of_the_task_under_weights():
    enter_metric("right", "classification", "Right", "Share.", higher_is_better=True)(accuracy)
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 40), random.random(40)
    cases = pd.DataFrame({"label": labels, "score": scores, "threshold": 0.4})
    weights = random.integers(0, 3, (40, 30)).astype(float)
    task = build_task("classification", 2)
    found = task.measure(cases, ["auc", "right", "acc"])(np.arange(40), weights)
    predicted = np.stack([1 - scores, scores], axis=1)
    own = weighted_metrics(labels, predicted, weights, ["auc", "acc"], np.full(40, 0.4))
    assert np.allclose(found, [own["auc"], own["acc"], own["acc"]])
    totals = task.totals(cases, ["auc", "right"])
    assert np.isnan(task.from_totals(totals, ["auc", "right"])["right"])
    spread = task.influence(cases, totals, ["right", "acc"])
    assert np.isnan(spread[0]).all()
    assert not np.isnan(spread[1]).any()
    assert np.isnan(task.influence(cases, totals, ["right"])).all()


def test_a_metric_of_numbers_and_one_of_masks():
    enter_metric("worst", "regression", "Worst", "Largest.", higher_is_better=False, range=(0.0, float("inf")))(
        lambda cases: float(abs(cases.labels - cases.predicted).max())
    )
    cases = pd.DataFrame({"label": [1.0, 2.0, 5.0], "score": [1.5, 2.0, 2.0]})
    assert build_task("regression", 0).values(cases, ["mae", "worst"])["worst"] == 3.0
    from polyclinic.tasks.segmentation_metrics import segmentation_case

    enter_metric("volume", "segmentation", "Volume", "Marked.", higher_is_better=True)(
        lambda prediction, mask, spacing: prediction.sum() * np.prod(spacing)
    )
    found = segmentation_case([[1, 1], [0, 0]], [[1, 0], [0, 0]], ["dice", "volume"], (2.0, 3.0))
    assert found == {"dice": pytest.approx(2 / 3), "volume": 12.0}


def test_cases_that_a_bootstrap_did_not_draw_are_not_there():
    seen = []
    enter_metric("seen", "classification", "Seen", "Seen.", higher_is_better=True)(
        lambda cases: seen.append(cases.labels.tolist()) or 0.5
    )
    given = Judged(np.array([0, 1]), np.eye(2), np.array([0, 1]), np.ones(2))
    entered_values(["seen"], given, np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    assert seen == [[0], [0, 1]]


def test_a_metric_that_fails_says_so():
    enter_metric("bad", "classification", "Bad", "Bad.", higher_is_better=True)(lambda cases: 1 / 0)
    with pytest.raises(PartError, match=r"P304 The metric bad of .* failed: ZeroDivisionError"):
        build_task("classification", 2).values(pd.DataFrame({"label": [0], "score": [0.1], "threshold": 0.5}), ["bad"])


@pytest.mark.parametrize(("name", "task", "why"), [
    ("auc", "classification", "there is a metric 'auc' already"),
    ("a b", "classification", "is no name for a metric"),
    ("own", "survival", "not for survival"),
])  # fmt: skip
def test_metrics_that_can_not_be_entered(name, task, why):
    with pytest.raises(ValueError, match=why):
        enter_metric(name, task, "", "", higher_is_better=True)(accuracy)
    assert "own" not in METRICS


def test_a_task_of_a_plugin(load):  # noqa: F811
    def bring():
        @register
        class Halves(type(build_task("regression", 0))):
            """Numbers, halved."""

            name = "halves"
            losses = Catalogue("loss of halves")

        Halves.losses.add("mse")(lambda predicted, wanted: (predicted - wanted) ** 2)

    (found,) = load(a=bring)
    assert not found.problem
    assert ("task", "halves") in found.brings
    assert TASKS["halves"].target == "numbers"


@pytest.mark.parametrize(("bring", "why"), [
    (lambda: register(type("Own", (Task,), {"name": "own"})), "the task 'own' lacks"),
    (lambda: register(type("Own", (TASKS["regression"],), {})), "there is a task 'regression' already"),
    (lambda: LOSSES.add("focal")(len), "there is a loss of classification 'focal' already"),
    (lambda: READERS.add("mha")(len), "'mha' is no ending of a file's name"),
    (lambda: READERS.add(".nii")(len), "there is a reader of image files '.nii' already"),
    (lambda: MODELS.add("own")(3), "'own' under `model` has to be a function or a class"),
])  # fmt: skip
def test_what_is_wrong_is_taken_back(load, bring, why):  # noqa: F811
    before = catalogues._entered()
    (found,) = load(a=bring)
    assert found.problem.startswith(f"ValueError: {why}")
    assert catalogues._entered() == before


# Readers --------------------------------------------------------------------------------------------------------------


def reader_of_plugin(function):
    function.__module__ = "grids.read"
    origins.LOADED["grids"] = "The plug-in grids (grids 1.0)"
    READERS.add(".grid")(function)


def test_a_reader_by_the_ending_of_a_name(tmp_path):
    reader_of_plugin(lambda path: Volume(np.fromfile(path, np.uint8).reshape(2, 3, 4), np.eye(4)))
    np.arange(24, dtype=np.uint8).tofile(tmp_path / "a.GRID")
    assert read_volume("a.GRID", tmp_path).values[1, 2, 3] == 23


@pytest.mark.parametrize(("function", "why"), [
    (lambda path: 1 / 0, r"the plug-in grids \(grids 1.0\) failed to read it: ZeroDivisionError"),
    (lambda path: np.zeros((2, 2, 2)), "gave no volume"),
    (lambda path: Volume(np.zeros(3), np.eye(4)), "gave no volume"),
])  # fmt: skip
def test_a_reader_that_fails_is_a_reason(tmp_path, function, why):
    reader_of_plugin(function)
    (tmp_path / "a.grid").write_bytes(b"")
    with pytest.raises(UnreadableError, match=f"(?i){why}"):
        read_volume("a.grid", tmp_path)


def test_a_reader_gives_pictures_too(tmp_path):
    from polyclinic.data.pictures.decode import ImageFiles, decode_images

    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    reader_of_plugin(lambda path: Volume(values.T[:, :, None], np.eye(4)))
    (tmp_path / "a.grid").write_bytes(b"x")
    images, _, failures = decode_images(ImageFiles(["a.grid"], None, [tmp_path]), (8, 8), "grey")
    assert not failures
    assert images[0, 0].tolist() == values.tolist()


# The package that is written ------------------------------------------------------------------------------------------


def test_the_names_of_a_plugin_stand_with_its_version(plugged):
    found = CliRunner().invoke(app, ["methods", "--parts"], env={"COLUMNS": "200"}, terminal_width=200)
    assert found.exit_code == 0
    text = " ".join(found.output.split())
    for name in ("more_parts_decay", "more_parts_net", "more_parts_smooth", "more_parts_mcc"):
        assert name in text
    assert text.count("The plug-in more_parts (more-parts 0.1)") == 4


def test_a_study_tells_which_plugins_it_needs(plugged):
    assert used_plugins(declare()) == {}
    for entries in (
        {"methods": [{"fedavg": {"local": ["more_parts_decay"]}}]},
        {"model": "more_parts_net"},
        {"training": {"loss": "more_parts_smooth"}},
        {"evaluation": {"metrics": ["more_parts_mcc"]}},
    ):
        assert used_plugins(declare(**entries)) == {"more-parts": "0.1"}, entries
    (plugin,) = needed_plugins(declare(model="more_parts_net"))
    assert str(plugin) == "The plug-in more_parts (more-parts 0.1)"


@pytest.mark.parametrize(("allowed", "refused"), [
    ([], True), (["more-parts"], False), (["More_Parts"], False), (["more-parts==0.1"], False),
    (["more-parts==0.2"], True), (["other"], True),
])  # fmt: skip
def test_a_site_allows_the_plugins_that_its_policy_names(plugged, allowed, refused):
    from polyclinic.federation.ends.policy import refusals
    from polyclinic.federation.site_file import Policy

    policy = Policy(predictions=True, floor=1, plugins=allowed)
    why = list(refusals(policy, declare(model="more_parts_net"), ""))
    needs = ["it needs the plug-in more-parts 0.1, which `plugins` of the policy does not name"]
    assert why == (needs if refused else [])
    assert not list(refusals(policy, declare(), ""))


def test_another_version_at_a_site_is_told():
    pytest.importorskip("nvflare")
    from polyclinic.federation.ends.coordinator import _other_plugins

    assert _other_plugins({"a": "1"}, {"a": "1"}) is None
    assert _other_plugins({"a": "2"}, {"a": "1"}) == ("the plug-in a 2", "the plug-in a 1")
    assert _other_plugins(None, {"a": "1"}) == ("no plug-in a", "the plug-in a 1")
    assert _other_plugins({"b": "1"}, {}) == ("the plug-in b 1", "no plug-in b")


def test_its_own_tests_pass(plugged, monkeypatch):
    monkeypatch.syspath_prepend(plugged / "tests")
    tests = importlib.import_module("test_more_parts")
    for name in [name for name in vars(tests) if name.startswith("test_")]:
        getattr(tests, name)()


@pytest.mark.parametrize("name", ["1a", "A", "a b", "", "json", "class", "polyclinic", "../a", "a-"])
def test_names_that_no_package_can_have(name, tmp_path):
    assert name_problem(name)
    found = CliRunner().invoke(app, ["plugin", "new", name, "--out", str(tmp_path)])
    assert found.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_package_is_not_written_over(tmp_path):
    assert CliRunner().invoke(app, ["plugin", "new", "mine", "--out", str(tmp_path)]).exit_code == 0
    with pytest.raises(Exception, match="P501"):
        write_plugin("mine", tmp_path)


@pytest.mark.long
def test_it_can_be_installed(tmp_path):
    from test_plugin_runs import command, install, table_study

    library = install(write_plugin("more-parts", tmp_path), tmp_path / "installed")
    study = table_study(tmp_path, {"decay": {"local": ["more_parts_decay"]}})
    found = command("run", study, "--out", tmp_path / "out", lib=library)
    assert found.returncode == 0, found.stderr
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["plugins_used"] == {"more-parts": "0.1"}


def test_what_a_program_gave_is_told_from_a_typing_error():
    with pytest.raises(EntryError, match="P104 python:Net:1 is a model that a Python program gave, and is not here"):
        MODELS.name("python:Net:1", ())
    assert StudyError.exit_status == 2
