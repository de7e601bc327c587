"""The page that says whether methods help: its arithmetic by hand, its studies, and a small run of the whole."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import yaml

import effects
from helpers import script
from polyclinic import Study
from polyclinic.methods import PUBLISHED

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@pytest.fixture
def benefits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, writing its page into a folder of its own."""
    module = script(STUDIES / "make_benefits.py")
    monkeypatch.setattr(module, "PAGE", tmp_path / "benefits.md")
    return module


def test_every_study_is_asked_about_and_compares_with_fedavg(benefits: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYCLINIC_DATA", "/data")
    monkeypatch.setenv("POLYCLINIC_PHANTOMS", "/phantoms")
    paths = {path.stem: path for path in (STUDIES / "benefits").glob("*.yaml")}
    assert set(paths) == {question.name for question in benefits.QUESTIONS}
    for path in paths.values():
        declaration = Study.read(path).declaration
        assert "fedavg" in {method.label for method in declaration.study_methods}
        assert declaration.metrics[0] == ("dice" if declaration.task == "segmentation" else "auc")


def test_an_effect_by_hand():
    """Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, standard error 0.1 / √3 = 0.05774, t(0.975, 2) = 4.303."""
    values = pd.DataFrame({"fedavg": [0.5, 0.6, 0.7], "fedprox": [0.6, 0.8, 1.0], "single": [0.5, 0.6, 0.7]})
    fedavg, fedprox, single = effects.effects(values)
    assert (fedavg.mean, fedavg.effect) == (pytest.approx(0.6), 0.0)
    assert fedprox.mean == pytest.approx(0.8)
    assert fedprox.effect == pytest.approx(0.2)
    assert fedprox.low == pytest.approx(0.2 - 4.303 * 0.05774, abs=1e-4)
    assert fedprox.high == pytest.approx(0.2 + 4.303 * 0.05774, abs=1e-4)
    assert fedprox.p == pytest.approx(0.0742, abs=1e-4)  # t = 3.4641 with 2 degrees of freedom
    assert np.isnan(fedavg.p)
    assert np.isnan(single.p), "a reference is not compared"


def test_what_papers_say_stands_beside_what_was_found(benefits: ModuleType):
    said = pd.read_csv(STUDIES / "benefits" / "claims.csv")
    assert set(said["method"]) <= set(PUBLISHED)
    assert not said["method"].duplicated().any()
    rows = [("groups", "fairfed(subgroup=sex, group=0)", 0.035, "no clear effect"), ("groups", "fedavg", 0.0, "")]
    lines = benefits.claims(pd.DataFrame(rows, columns=["study", "method", "effect", "verdict"]))
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["|---|---|---|---|", "| fairfed"]
    assert lines[-1].endswith("| Ezzeldin et al., AAAI 2023 | groups +0.035 (no clear effect) |")


def test_verdicts_are_corrected_for_the_number_of_methods():
    def effect(change: float, p: float) -> object:
        return effects.Effect("method", 0.5, change, 0.0, 0.0, p)

    nan = float("nan")
    found = [effect(0.0, nan), effect(0.1, 0.01), effect(-0.1, 0.02), effect(0.1, 0.2)]
    assert effects.verdicts(found) == ["", "helps", "hurts", "no clear effect"]  # adjusted 0.03, 0.04, 0.2
    found = [effect(0.0, nan), *(effect(0.1, 0.02) for _ in range(3))]
    assert effects.verdicts(found) == ["", *["no clear effect"] * 3]  # adjusted 0.06


def test_a_page_is_made_of_a_small_study(
    benefits: ModuleType, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("POLYCLINIC_DATA", str(data_folder))
    small = tmp_path / "studies"
    small.mkdir()
    for name in ("unequal-work", "unseen-sites"):
        content = yaml.safe_load((STUDIES / "benefits" / f"{name}.yaml").read_text(encoding="utf-8"))
        del content["search"]
        content["training"]["rounds"] = 2
        content["methods"] = ["mix", "fedavg", "fedprox"]
        (small / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(benefits, "STUDIES", small)
    benefits.main(only=["unequal-work", "unseen-sites"], out=tmp_path / "results", repeats=2, write=True)
    page = (tmp_path / "benefits.md").read_text(encoding="utf-8")
    assert "| Method | unequal-work | unseen-sites |" in page
    assert page.count("| fedprox |") == 3
    assert "Not run yet: label-skew" in page
    assert benefits.page(benefits.told(tmp_path / "elsewhere"), 2) == page, "what is not run again stays as it was"
    for repeat in (0, 1):
        study = yaml.safe_load((tmp_path / "results" / f"unequal-work-{repeat}" / "study.yaml").read_text("utf-8"))
        assert (study["seeds"], study["evaluation"]["split_seed"]) == ([repeat], repeat)
