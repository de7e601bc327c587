"""The page of what protection costs: it is what its table says, its studies are valid, its examples run."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers import script, write_table_study
from polyclinic import Study
from polyclinic.secure import fit_shape
from polyclinic.study.display import Display

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "studies"


@pytest.fixture
def protection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, writing its page into a folder of its own."""
    module = script(STUDIES / "make_protection.py")
    monkeypatch.setattr(module, "PAGE", tmp_path / "protection.md")
    return module


def examples() -> list[dict[str, Any]]:
    page = (STUDIES / "protection" / "page.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, flags=re.M | re.S)]


def test_the_page_is_what_its_table_says():
    module = script(STUDIES / "make_protection.py")
    assert module.page(module.written()) == (ROOT / "docs" / "protection.md").read_text(encoding="utf-8")
    assert "<<" not in module.page(module.written())


def test_what_the_page_says_of_noise_holds():
    table = script(STUDIES / "make_protection.py").written().set_index(["study", "method", "epsilon"]).sort_index()
    heart, volumes = ("noise-heart", "dp_sgd"), ("noise-volumes", "dp_sgd")
    assert set(table.loc[heart, "verdict"]) == {"no clear effect"}
    assert set(table.loc[volumes, "verdict"]) == {"hurts"}
    assert table.loc[(*volumes, 4.0), "effect"] > 1.3 * table.loc[(*volumes, 16.0), "effect"], "most is not noise"
    for study in ("noise-heart", "noise-volumes"):
        assert set(table.loc[(study, "gaussian_noise"), "verdict"]) == {"hurts"}
        for method in ("gaussian_noise", "central_noise"):
            assert table.loc[(study, method, 1.0), "mean_low"] <= 0.5, "nothing is left"
        for method in ("dp_sgd", "gaussian_noise", "central_noise"):
            paid = table.loc[(study, method), "spent"]
            assert (paid <= paid.index).all()
    own = {study: table.loc[(study, "central_noise"), "mean"] for study in ("noise-heart", "noise-volumes")}
    assert (own["noise-volumes"] > own["noise-heart"]).all()
    assert table.loc[("noise-volumes", "central_noise", 16.0), "mean_low"] > 0.6, "most is kept"


def test_what_the_page_says_of_flamby_s_runs_holds():
    table = script(STUDIES / "make_protection.py").written()
    ours = table[(table["study"] == "flamby-heart") & (table["method"] == "dp_sgd")].set_index("epsilon")["mean"]
    assert (ours[0.1] + 0.01 < ours[[0.5, 1.0, 5.0, 10.0, 50.0]]).all()
    from_one = ours[[1.0, 5.0, 10.0, 50.0]]
    assert from_one.max() - from_one.min() < 0.01, "hardly changes from 1 on"


def test_every_study_is_asked_about_and_has_a_plain_fedavg(protection: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYCLINIC_DATA", "/data")
    monkeypatch.setenv("POLYCLINIC_FLAMBY", "/flamby")
    paths = {path.stem: path for path in (STUDIES / "protection").glob("*.yaml")}
    assert set(paths) == {question.name for question in protection.QUESTIONS}
    for question in protection.QUESTIONS:
        declaration = Study.read(paths[question.name]).declaration
        plain = declaration.study_methods[0]
        assert (plain.label, plain.method.channel, plain.method.local) == ("fedavg", [], [])
        assert (declaration.privacy.epsilon is None) == (not question.budgets)
        assert declaration.engine.threads == 1


def test_flamby_s_protocol_is_that_of_its_own_study():
    own = yaml.safe_load((STUDIES / "flamby" / "heart-disease.yaml").read_text(encoding="utf-8"))
    with_noise = yaml.safe_load((STUDIES / "protection" / "flamby-heart.yaml").read_text(encoding="utf-8"))
    for part in ("data", "model", "training", "task"):
        assert with_noise[part] == own[part]
    assert with_noise["privacy"]["delta"] == 1e-4
    assert with_noise["methods"][1]["fedavg"]["local"] == [{"dp_sgd": {"norm": 1.1}}]


def test_flamby_s_noise_costs_more_than_was_said(
    protection: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hospital of fewer patients pays more; one with 400, of which 15 rounds are 15 passes, pays what was said."""
    monkeypatch.setattr(protection, "FLAMBY_PATIENTS", {"cleveland": 400, "switzerland": 30})
    costs = protection.accounting(1.0, tmp_path).set_index("method")["mean"]
    assert 0.99 < costs["cleveland"] <= 1
    assert costs["switzerland"] > 3
    told = tmp_path / "flamby-accounting-epsilon-1.csv"
    told.write_text(told.read_text(encoding="utf-8").replace("cleveland", "elsewhere"), encoding="utf-8")
    assert protection.accounting(1.0, tmp_path)["method"][0] == "elsewhere", "what was found is not found again"


def test_the_least_that_a_mean_may_be_by_hand(protection: ModuleType):
    """Mean 0.6, deviation 0.1, standard error 0.1 / √3 = 0.05774, t(0.975, 2) = 4.303."""
    assert protection.lower_end(pd.Series([0.5, 0.6, 0.7])) == pytest.approx(0.6 - 4.303 * 0.05774, abs=1e-4)


def test_the_words_on_noise(protection: ModuleType):
    def row(method: str, verdict: str, least: float) -> Any:
        return pd.Series({"method": method, "verdict": verdict, "mean_low": least})

    words = protection.noise_words
    assert words(row("dp_sgd", "hurts", 0.51)) == "hurts"
    assert words(row("central_noise", "hurts", 0.49)) == "hurts, **not clearly above chance**"
    assert words(row("fedavg", "", 0.4)) == ""


def test_rounds_are_timed_by_their_ends(protection: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Rounds end at 0, 1, 3 and 4 seconds with the first method: 1, 2 and 1 seconds long; the second's 5, 2 and 3."""
    ends = {"fedavg": [0.0, 1.0, 3.0, 4.0], "int8": [10.0, 15.0, 17.0, 20.0]}
    now = iter([*ends["fedavg"], *ends["int8"]])
    monkeypatch.setattr(protection.time, "perf_counter", lambda: next(now))

    def run(study: Study, folder: Path, *, display: Display) -> None:
        assert study.declaration.engine.jobs == 1, "the clock sees no trainings in other processes"
        display.planned(None, 2)  # type: ignore[arg-type]
        for number, label in enumerate(ends):
            display.job(number, label, False)
            for done in range(4):
                display.round(done + 1, 4)

    content = {"training": {"rounds": 3}, "methods": ["fedavg", {"fedavg": {"channel": ["int8"], "label": "int8"}}],
               "data": {"table": "t.csv", "site": "s", "label": "l", "features": "*"}, "model": "logistic"}  # fmt: skip
    monkeypatch.setattr(protection, "content_of", lambda name: content)
    monkeypatch.setattr(Study, "run", run)
    assert protection.seconds("any").to_dict() == {"fedavg": 1.0, "int8": 2.0}


def test_the_guesses_are_those_of_epsilon():
    """Of two cases as likely beforehand, e^ε / (1 + e^ε) is the most that can be guessed right."""
    page = (STUDIES / "protection" / "page.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| ([\d.]+) \| (\S.*?) \| [a-z]", page.split("## How to read ε")[1], flags=re.M))
    right = {float(e): 1 / (1 + math.exp(-float(e))) for e in table}
    assert {e: round(100 * right[e]) for e in (0.1, 1.0, 4.0)} == {0.1: 52, 1.0: 73, 4.0: 98}
    assert [table[e].split(" ")[0] for e in ("0.1", "1", "4")] == ["52", "73", "98"]
    assert table["10"] == "9,999 of 10,000"
    assert right[10.0] < 0.99996 > 0.9999
    assert table["16"] == "all but 1 in 9 million"
    assert round(1 / (1 - right[16.0]) / 1e6) == 9


def test_what_the_page_says_of_shared_noise_holds():
    """√(n / (m − 1)) of n sites, of which m must be left."""
    page = (STUDIES / "protection" / "page.md").read_text(encoding="utf-8")
    assert "a sum of 12 is opened with 9" in page
    assert "1.2 times as much for 12 sites, and 1.3 for 5" in page
    left = {sites: fit_shape(sites).agreement for sites in (5, 12)}
    assert left == {5: 4, 12: 9}
    assert [round(math.sqrt(sites / (fewest - 1)), 1) for sites, fewest in left.items()] == [1.3, 1.2]


@pytest.mark.parametrize("example", examples(), ids=["hidden", "private", "line", "shared", "found"])
def test_the_examples_of_the_page_run(example: dict[str, Any], tmp_path: Path):
    for package in ("cryptography", "zstandard"):
        pytest.importorskip(package)
    content = write_table_study(tmp_path, {"Aachen": 30, "Bonn": 30, "Celle": 30})
    content["training"] |= {"rounds": 2} | example.pop("training", {})
    content["evaluation"]["bootstrap"], content["model"] = 0, {"mlp": {"hidden": [4]}}
    results = Study.of(content | example, tmp_path).run(tmp_path / "results")
    labels = [next(iter(one.values()))["label"] for one in example["methods"] if isinstance(one, dict)]
    assert set(results.results["method"]) == {"fedavg", *labels}
    costs = results.folder / "privacy.csv"
    assert costs.is_file() == ("privacy" in example)
    if costs.is_file():
        assert 0 < pd.read_csv(costs)["epsilon"].max() <= example["privacy"]["epsilon"]


def small(name: str) -> dict[str, Any]:
    """A study of the page, shortened."""
    content: dict[str, Any] = yaml.safe_load((STUDIES / "protection" / f"{name}.yaml").read_text(encoding="utf-8"))
    content["training"] |= {"rounds": 2}
    wanted = ("clip", "gaussian_noise", "int8")
    content["methods"] = [one for one in content["methods"] if one == "fedavg" or one["fedavg"]["label"] in wanted]
    return content


def test_a_page_is_made_of_small_studies(
    protection: ModuleType, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("POLYCLINIC_DATA", str(data_folder))
    monkeypatch.setattr(protection, "content_of", small)
    monkeypatch.setattr(protection, "TIMED", ("bytes-volumes",))
    cheaper = [replace(one, budgets=one.budgets[1:2]) for one in protection.QUESTIONS]
    monkeypatch.setattr(protection, "QUESTIONS", cheaper)
    out = tmp_path / "results"
    protection.main(only=["seconds", "noise-heart", "bytes-volumes"], out=out, repeats=2, write=True)
    page = (tmp_path / "protection.md").read_text(encoding="utf-8")
    assert page.startswith("# What protection costs\n\n**Which protection for which worry**\n")
    assert "Not run yet: flamby-heart, noise-volumes, bytes-skin." in page
    assert page.count("| gaussian_noise | 4 | ") == 1
    assert page.count("| clip | none | ") == 1
    table = protection.written()
    noisy = table[table["method"] == "gaussian_noise"].set_index("epsilon")["spent"]
    assert (noisy <= noisy.index).all()
    assert (noisy > 0.99 * noisy.index).all()
    sent = table[table["study"] == "bytes-volumes"].set_index("method")
    share = sent.loc["int8", "bytes"] / sent.loc["fedavg", "bytes"]
    assert share == pytest.approx(0.25, abs=0.01)
    assert re.search(rf"^\| int8 \| {share:.2f} \| {sent.loc['int8', 'mean']:.3f} \|", page, flags=re.M)
    assert np.isfinite(sent["seconds"]).all()
    for repeat in (0, 1):
        told = yaml.safe_load((out / f"noise-heart-epsilon-4-{repeat}" / "study.yaml").read_text("utf-8"))
        assert (told["seeds"], told["evaluation"]["split_seed"], told["privacy"]["epsilon"]) == ([repeat], repeat, 4.0)
    protection.main(only=["seconds"], out=tmp_path / "elsewhere", repeats=2, write=True)
    assert (tmp_path / "protection.md").read_text(encoding="utf-8") == page, "what is not run again stays as it was"
