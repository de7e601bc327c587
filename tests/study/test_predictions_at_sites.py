"""Studies whose sites keep their predictions: the same numbers wherever these are, and no row of a patient."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import write_image_study, write_number_study, write_survival_study, write_table_study
from polyclinic.communication.message import Message
from polyclinic.errors import ResultsError, SiteError, StudyError
from polyclinic.study import setup
from polyclinic.study.report.page import write_report
from polyclinic.study.study import Study
from refusing import Refusing, RowFound

SIZES = {"Aachen": 47, "Bonn": 61, "Celle": 53}
WITHIN = (
    "comparisons.csv", "site_comparisons.csv", "calibration.csv", "decisions.csv", "backdoor.csv", "subgroups.csv",
    "log_rank.csv", "characteristics.csv",
)  # fmt: skip
KEYS = ["method", "run", "seed", "fold", "trained_on", "tested_on", "metric"]
METHODS = ["single", "cross", "mix", "fedavg"]
#: Kind of study -> changes of its entries.
KINDS = {
    "two classes": {
        "evaluation": {
            "metrics": ["auc", "acc", "ap", "brier", "ece", "sen"], "unseen_sites": ["fedavg"],
            "subgroups": ["sex", {"weight": [40, 70, 100]}],
        }
    },
    "three classes": {"evaluation": {"metrics": ["auc", "acc", "spe", "f1"]}, "methods": ["single", "fedavg"]},
    "numbers": {"methods": ["single", "fedavg"], "evaluation": {"subgroups": ["sex"]}},
    "masks": {"methods": ["single", "fedavg"], "evaluation": {"subgroups": ["sex"]}},
    "times": {"methods": ["single", "cross", "fedavg"], "evaluation": {"subgroups": ["sex"]}},
}  # fmt: skip


def entries(folder, kind, **changes):
    """A study file of small sites."""
    write = {"numbers": write_number_study, "masks": write_image_study, "times": write_survival_study}.get(
        kind, write_table_study
    )
    sizes = dict.fromkeys(("Aachen", "Bonn"), 13) if kind == "masks" else SIZES
    found = write(folder, sizes, **({"classes": 3} if kind == "three classes" else {}))
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    rng = np.random.default_rng(1)
    table["sex"], table["weight"] = rng.choice(["1", "2"], len(table)), rng.integers(40, 100, len(table))
    table.to_csv(folder / "cases.csv", index=False)
    found |= {"methods": METHODS, "seeds": [0, 1] if kind == "two classes" else [0]}
    if kind not in ("masks", "times"):
        found["model"] = {"two classes": "logistic", "numbers": {"mlp": {"hidden": [2]}}}.get(kind, "logistic")
        found["training"] = {**found["training"], "rounds": 2}
    for part in (KINDS[kind], changes):
        evaluation = {**found["evaluation"], "bootstrap": 100, **part.get("evaluation", {})}
        found |= {**part, "evaluation": evaluation}
    return found


def run(content, folder, name, *, predictions="sites", wrap=None, monkeypatch=None, **options):
    content = content | {"evaluation": {**content["evaluation"], "predictions": predictions}}
    if wrap is None:
        return Study.of(content, folder).run(folder / name, **options)
    with pytest.MonkeyPatch.context() as patch:
        engines = setup.Setup.start

        def wrapped(self, plan):
            engine, local = engines(self, plan)
            self.engines = [wrap(engine)]
            return self.engines[0], local

        patch.setattr(setup.Setup, "start", wrapped)
        return Study.of(content, folder).run(folder / name, **options)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """The same study with the predictions here and at sites that refuse to send any row."""
    folder = tmp_path_factory.mktemp("kinds")
    content = entries(folder, request.param)
    here = run(content, folder, "here", predictions="coordinator")
    return request.param, here, run(content, folder, "there", wrap=Refusing)


def test_within_sites_all_numbers_are_the_same(both):
    _, here, there = both
    for name in WITHIN:
        assert (here.folder / name).is_file() == (there.folder / name).is_file()
        if (here.folder / name).is_file():
            assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes(), name
    tables = [results.results[results.results["tested_on"] != "all"] for results in (here, there)]
    pd.testing.assert_frame_equal(*(one.reset_index(drop=True) for one in tables), check_exact=True)
    tables = [results.summary[results.summary["over"] == "sites"] for results in (here, there)]
    pd.testing.assert_frame_equal(*(one.reset_index(drop=True) for one in tables), check_exact=True)
    assert len(tables[0])
    assert tables[0]["low"].notna().all()


def test_over_all_sites_values_are_the_same_but_for_what_comes_from_the_grid(both):
    kind, here, there = both
    one, other = (results.results[results.results["tested_on"] == "all"] for results in (here, there))
    if kind == "times":  # pairs and weights of patients do not follow from sums
        assert len(one)
        assert not len(other)
        assert "N805" in {note.number for note in there.notes}
        return
    assert one[KEYS].equals(other[KEYS])
    nearly = one["metric"].isin(["auc", "ap"])
    pd.testing.assert_frame_equal(one[~nearly], other[~nearly], check_exact=True)
    assert nearly.any() == ("classes" in kind)
    told = [str(note) for note in there.notes if note.number == "N805"]
    assert bool(told) == nearly.any()
    for metric in one["metric"][nearly].unique():
        margin = float(re.search(rf"{metric} by ([0-9.e-]*[0-9])", told[0]).group(1))
        apart = (one["value"] - other["value"])[one["metric"] == metric].abs()
        assert apart.max() <= margin * 1.05  # it is told with two digits
        assert 0 < apart.max() < 0.05


def test_over_all_sites_intervals_and_tests_are_nearly_the_same(both):
    """The bootstrap on one side, what the sites' patients contribute on the other."""
    kind, here, there = both
    if kind == "times":
        return
    keys = ["method", "run", "metric", "over"]
    table = here.summary.merge(there.summary, on=keys, suffixes=("", "_there"))
    table = table[(table["over"] == "all") & (table["n"] > 1)]
    assert (table["low"].notna() == table["low_there"].notna()).all()
    width = table["high"] - table["low"]
    # Percentiles of 100 draws are off by a tenth or so themselves.
    assert np.median((table["high_there"] - table["low_there"]) / width) == pytest.approx(1, abs=0.25)
    assert ((table["low_there"] <= table["mean"]) & (table["mean"] <= table["high_there"])).all()
    baseline = "vs_single"
    scale = np.maximum(width, 1e-3)
    assert ((table[baseline] - table[f"{baseline}_there"]).abs() / scale).max() < 0.1
    pairs = table[["p_single", "p_single_there"]].dropna()
    assert len(pairs) == table["p_single"].notna().sum() > 0
    assert np.median((pairs["p_single"] - pairs["p_single_there"]).abs()) < 0.05


def test_predictions_stay_in_the_folders_of_the_sites(both):
    _, here, there = both
    assert not (there.folder / "predictions.csv").exists()
    assert there.provenance["predictions"] == "sites"
    kept = sorted((there.folder / "sites").glob("*/predictions/*.csv"))
    own = pd.concat([pd.read_csv(path, dtype={"trained_on": str}) for path in kept])
    assert len(own) == len(here.predictions)
    assert set(own["subject"]) == set(here.predictions["subject"])
    for path in kept:
        assert set(pd.read_csv(path)["site"]) == {path.parent.parent.name}
    with pytest.raises(ResultsError, match=r"P501 There is no predictions\.csv: each site kept its own predictions"):
        _ = there.predictions
    left = [path for path in there.folder.rglob("*") if path.is_file() and "sites" not in path.parts]
    for path in left:
        assert not re.search(rb"P0000[1-9]|MRN-|secret", path.read_bytes()), path


def test_curves_of_risk_groups_are_those_of_each_site(both):
    kind, here, there = both
    assert (there.folder / "survival.csv").is_file() == (kind == "times")
    if kind != "times":
        return
    one, other = (pd.read_csv(of.folder / "survival.csv", keep_default_na=False) for of in (here, there))
    sites = [table[table["method"] == ""].reset_index(drop=True) for table in (one, other)]
    pd.testing.assert_frame_equal(*sites, check_exact=True)
    assert set(sites[0]["site"]) == set(SIZES)
    groups = other[other["method"] != ""]
    assert set(one["site"][one["method"] != ""]) == {"all"}
    assert set(groups["site"]) == set(SIZES)
    assert set(groups["method"]) == {"single", "fedavg"}
    for (_, site), of_site in groups.groupby(["method", "site"]):
        higher, lower = (of_site[of_site["group"] == name] for name in ("higher", "lower"))
        assert higher["time"].tolist() == lower["time"].tolist()
        whole = sites[0][sites[0]["site"] == site]
        assert set(higher["time"]) <= set(whole["time"])  # else steps of few cases would follow from differences
        at = whole.set_index("time").loc[higher["time"], "at_risk"].tolist()
        assert (higher["at_risk"].to_numpy() + lower["at_risk"].to_numpy()).tolist() == at
        assert (higher[["events", "censored"]].sum(axis=1).iloc[1:] >= 5).all()
    page = write_report(there.folder).read_text(encoding="utf-8")
    assert "Do patients with a higher predicted risk" in page


def test_the_report_says_that_predictions_stayed(both):
    kind, here, there = both
    page, other = (write_report(results.folder).read_text(encoding="utf-8") for results in (there, here))
    assert "stayed at the sites" in page
    assert "stayed at the sites, which" not in other
    assert "the predictions of single cases stay there" in page
    headings = {"two classes": "ROC: cases found against false alarms", "three classes": "Which classes are mixed up"}
    for heading in ("Differences within sites", *filter(None, [headings.get(kind)])):
        assert (heading in page, heading in other) == (True, True)
    assert ("Predicted against true" in other) == (kind == "numbers")
    assert "Predicted against true" not in page
    assert ("plots of predicted against true numbers would show single cases" in page) == (kind == "numbers")


def small(folder, **changes):
    """A study that takes a second."""
    found = entries(folder, "two classes", **({"methods": ["single", "fedavg"], "seeds": [0]} | changes))
    found["evaluation"] |= {"unseen_sites": False, "metrics": ["auc", "acc"], "subgroups": []}
    found["training"]["rounds"] = 1
    return found


def test_an_engine_that_looks_finds_rows(tmp_path):
    """What refuses rows can tell them."""
    content = small(tmp_path, methods=["fedavg"])
    with pytest.raises(RowFound, match="predict at Aachen"):
        run(content, tmp_path, "out", predictions="coordinator", wrap=Refusing)


def test_engines_agree_byte_for_byte(tmp_path):
    content = small(tmp_path)
    names = ("results.csv", "comparisons.csv", "summary.csv", "calibration.csv", "notes.json", "score_counts.csv")
    found = {
        "local": run(content, tmp_path, "local"),
        "bytes": run(content, tmp_path, "bytes", wrap=lambda engine: Refusing(engine, serialise=True)),
        "processes": run(
            content | {"engine": {"mode": "processes", "workers": 2, "threads": 1}}, tmp_path, "processes"
        ),
    }
    files = {name: {file: (of.folder / file).read_bytes() for file in names} for name, of in found.items()}
    for name in found:
        pd.testing.assert_frame_equal(found["local"].summary, found[name].summary, check_exact=True, obj=name)
    assert files["local"] == files["bytes"] == files["processes"]


class Garbled(Refusing):
    """One site's answers to a question come with other tensors, which are as the schema has them."""

    def __init__(self, inner, function, change):
        super().__init__(inner)
        self.function, self.change = function, change

    def call(self, function, requests):
        for site, reply in super().call(function, requests):
            garbled = function == self.function and site == "Bonn" and isinstance(reply, Message)
            yield site, self.change(reply) if garbled else reply


def without_tensors(reply):
    return Message(reply.fields, {})


def with_counts_that_are_none(reply):
    curve = torch.full_like(reply.tensors["curve"], torch.nan)
    return Message(reply.fields, {**reply.tensors, "curve": curve})


def about_others(reply):
    places = [["a method", *place[1:]] for place in reply.fields["places"]]
    return Message({**reply.fields, "places": places}, reply.tensors)


@pytest.mark.parametrize(
    ("kind", "function", "change", "words"),
    [
        ("numbers", "compare", without_tensors, "do not go together"),
        ("numbers", "groups", without_tensors, "do not go together"),
        ("numbers", "groups", about_others, "about what was not asked"),
        ("times", "survival", with_counts_that_are_none, "do not go together"),
    ],
)
def test_an_answer_that_can_not_be_is_a_failure_of_its_site(tmp_path, kind, function, change, words):
    content = entries(tmp_path, kind)
    with pytest.raises(SiteError, match=rf"P401 The answer of site Bonn to '{function}' .*{words}"):
        run(content, tmp_path, "out", wrap=lambda engine: Garbled(engine, function, change))


class Killed(BaseException):
    """As if the process was gone."""


class Dying(Refusing):
    """Dies when it is asked something for the n-th time."""

    def __init__(self, inner, function, times):
        super().__init__(inner)
        self.function, self.left = function, times

    def call(self, function, requests):
        self.left -= function == self.function
        if not self.left:
            raise Killed
        yield from super().call(function, requests)


def test_a_study_that_was_killed_ends_with_the_same_bytes(tmp_path):
    """In the middle of a job, where some sites have kept rows that will be replaced, and at the very end."""
    content = small(tmp_path)
    names = ("results.csv", "comparisons.csv", "summary.csv", "calibration.csv", "score_counts.csv")
    whole = run(content, tmp_path, "whole")
    for function, times in (("test", 5), ("spread", 1)):
        name = f"{function} {times}"
        with pytest.raises(Killed):
            run(content, tmp_path, name, wrap=lambda engine: Dying(engine, function, times))  # noqa: B023
        again = run(content, tmp_path, name, resume=True)
        for file in names:
            assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), (name, file)
        rows = [sorted((of.folder / "sites").glob("*/predictions/*.csv")) for of in (whole, again)]
        assert [path.read_bytes() for path in rows[0]] == [path.read_bytes() for path in rows[1]]


def test_a_site_with_few_patients_says_only_how_many(tmp_path):
    """Bonn has four test patients in a fold, and eight in both; Celle has fewer than the floor in both together."""
    write_table_study(tmp_path, SIZES)
    table = pd.read_csv(tmp_path / "cases.csv")
    table["sex"] = np.where(np.arange(len(table)) % 3 > 0, "F", "M")
    sizes = {"Aachen": 40, "Bonn": 9, "Celle": 6}
    kept = table[table.groupby("site").cumcount() < table["site"].map(sizes)]
    content = entries(tmp_path, "two classes", methods=["single", "fedavg"], seeds=[0])
    kept.to_csv(tmp_path / "cases.csv", index=False)
    content["evaluation"] |= {
        "unseen_sites": False,
        "metrics": ["auc", "acc"],
        "min_cases_per_class": 3,
        "disclosure_floor": 7,
        "subgroups": ["sex"],
    }
    there = run(content, tmp_path, "there", wrap=Refusing)
    here = run(content, tmp_path, "here", predictions="coordinator")
    values = there.results.groupby("tested_on")["value"].count()
    assert values[["Bonn", "Celle"]].tolist() == [0, 0]
    assert values["Aachen"] == here.results.groupby("tested_on")["value"].count()["Aachen"]
    few = [str(note) for note in there.notes if note.number == "N806"]
    assert re.search(r"8 of 12 tests of a model at a site were of fewer than 7 patients \(Bonn, Celle\)", few[0])
    assert re.search(r"^Celle had test cases of fewer than 7 patients in all folds together", few[1])
    told = [str(note) for note in there.notes if note.number == "N808"]
    assert re.search(r"nothing of groups of fewer than 7 patients.* \(sex: Bonn\)", told[0])  # 6 and 3 there
    groups = pd.read_csv(there.folder / "subgroups.csv")
    assert set(groups["sites"][groups["metric"] == "acc"]) == {1}
    compared = [results.site_comparisons for results in map(_site_comparisons, (there, here))]
    assert set(compared[0]["site"]) == {"Aachen", "Bonn"}
    assert set(compared[1]["site"]) == {"Aachen", "Bonn", "Celle"}
    ours = [table[table["site"] != "Celle"][["site", "metric", "difference"]] for table in compared]
    pd.testing.assert_frame_equal(*(table.reset_index(drop=True) for table in ours), check_exact=True)
    alone = there.results[there.results["tested_on"] == "Aachen"].drop(columns=["tested_on", "trained_on"])
    together = there.results[there.results["tested_on"] == "all"].drop(columns=["tested_on", "trained_on"])
    merged = alone.merge(together, on=["method", "run", "seed", "fold", "metric"], suffixes=("", "_all"))
    assert (
        merged["value"] - merged["value_all"]
    ).abs().max() < 0.02  # but for the grid: without the other sites' cases


def _site_comparisons(results):
    class Read:
        site_comparisons = pd.read_csv(results.folder / "site_comparisons.csv")

    return Read


def test_where_predictions_are_by_default(tmp_path):
    content = small(tmp_path, methods=["fedavg"])

    class Far(Refusing):
        def __init__(self, inner):
            super().__init__(inner)
            self.holds_all = False

    assert (run(content, tmp_path, "here", predictions=None).folder / "predictions.csv").is_file()
    far = run(content, tmp_path, "far", predictions=None, wrap=Far)
    assert not (far.folder / "predictions.csv").is_file()
    assert far.provenance["predictions"] == "sites"


def test_what_does_not_go_with_predictions_at_sites(tmp_path):
    content = entries(tmp_path, "masks")
    content["evaluation"]["predictions"] = "sites"
    assert Study.of(content, tmp_path).declaration.filled()["report"]["overlays"] is False
    again = Study.of(Study.of(content, tmp_path).declaration.filled(), tmp_path)  # as it is written to the folder
    assert again.declaration.evaluation.predictions == "sites"
    with pytest.raises(StudyError, match=r"P104.*overlays show patients.*`overlays: false`"):
        Study.of(content | {"report": {"overlays": True}}, tmp_path)
    content["evaluation"]["bootstrap"] = 99
    with pytest.raises(StudyError, match=r"P104.*100 draws or more.*`bootstrap: 0`"):
        Study.of(content, tmp_path)


def test_a_backdoor_is_counted_at_the_sites(tmp_path):
    content = small(tmp_path, methods=["fedavg"])
    content["attack"] = {"backdoor": {"target": "kind 1", "features": {"x0": 9.0}}, "sites": ["Bonn"]}
    here = run(content, tmp_path, "here", predictions="coordinator")
    there = run(content, tmp_path, "there", wrap=Refusing)
    for name in ("backdoor.csv", "comparisons.csv"):
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes()
