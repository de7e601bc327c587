"""What a study tells of the noise in its trainings: rows of privacy.csv, and the report's section."""

import re
from pathlib import Path

import pandas as pd
import pytest

from helpers import write_table_study
from polyclinic import Study
from polyclinic.privacy import Event, epsilon
from polyclinic.study.columns import PRIVACY
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.privacy import WORDS, guaranteed

METHODS = [
    "single",
    "fedavg",
    {"fedavg": {"local": [{"dp_sgd": {"noise": 1.2}}], "label": "steps"}},
    {"fedavg": {"channel": ["clip", "gaussian_noise"], "label": "sites"}},
    {"fedavg": {"channel": ["clip", {"central_noise": {"noise": 3.0}}], "label": "centre"}},
    {"fedavg": {"channel": ["clip", "distributed_noise", "secure_sum"], "label": "shared"}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("privacy")
    content = write_table_study(base, {"Aachen": 22, "Bonn": 30, "Celle": 26})
    content["model"] = "logistic"
    content["training"] |= {"rounds": 2}
    content["methods"] = METHODS
    content["privacy"] = {"epsilon": 6.0, "delta": 1e-3}
    content["evaluation"] |= {"folds": 2}
    content["seeds"] = [0, 1]
    Study.of(content, base).run(base / "results")
    return base / "results"


def test_each_training_has_a_row_for_each_site_or_one_for_the_server(folder: Path) -> None:
    table = pd.read_csv(folder / "privacy.csv")
    assert list(table.columns) == PRIVACY
    counts = table.groupby(["method", "seed", "fold"])["site"].agg(list)
    assert len(counts) == 4 * 2 * 2
    for (method, *_), sites in counts.items():
        assert sites == (["federation"] if method == "centre" else ["Aachen", "Bonn", "Celle"])
    assert (table["delta"] == 1e-3).all()
    assert dict(table.groupby("method")["unit"].first()) == {
        "steps": "a patient",
        "sites": "a patient",
        "centre": "a site",
        "shared": "a patient",
    }
    assert dict(table.groupby("method")["trust"].first()) == {
        "steps": "the patient's own site",
        "sites": "the patient's own site",
        "centre": "the server",
        "shared": "the patient's own site, and all but 1 of the sites in its secure sum, to add their shares of the "
        "noise",
    }


def test_noise_that_was_not_given_keeps_the_budget_and_given_noise_is_told(folder: Path) -> None:
    table = pd.read_csv(folder / "privacy.csv").set_index("method")
    assert ((table.loc["sites", "epsilon"] > 5.95) & (table.loc["sites", "epsilon"] <= 6)).all()
    assert ((table.loc["shared", "epsilon"] > 5.95) & (table.loc["shared", "epsilon"] <= 6)).all()
    assert (table.loc["shared", "accountant"] == "rdp").all()
    assert (table.loc["centre", "epsilon"] == epsilon([Event.gaussian(1.5, count=2)], 1e-3)).all()


def test_over_a_study_epsilon_only_grows(folder: Path) -> None:
    """In the order in which trainings ran, whatever method they were of; the server's noise by itself."""
    table = pd.read_csv(folder / "privacy.csv")
    assert (table["lifetime_epsilon"] >= table["epsilon"] - 1e-9).all()
    centre = table[table["method"] == "centre"]["lifetime_epsilon"].tolist()
    assert centre == [epsilon([Event.gaussian(1.5, count=2 * n)], 1e-3) for n in (1, 2, 3, 4)]
    for _, own in table[table["site"] != "federation"].groupby("site"):
        both = own.sort_values(["seed", "fold"], kind="stable")["lifetime_epsilon"]
        assert both.max() > 1.5 * own["epsilon"].max()


def test_the_report_says_what_is_guaranteed_item_by_item(folder: Path) -> None:
    found = guaranteed(Folder(folder))
    assert found is not None
    assert [one.method for one in found.methods] == ["steps", "sites", "centre", "shared"]
    assert found.others == ["fedavg"]
    assert found.simulated
    for one in found.methods:
        titles = [title for title, _ in one.rows]
        assert titles[:3] == ["Unit of privacy", "Neighbouring data", "Bound of a unit's contribution"]
        assert all(text and "nan" not in text.split() for _, text in one.rows)
    page = (folder / "report.html").read_text(encoding="utf-8")
    section = page[page.index('id="privacy"') :].partition("</section>")[0]
    assert "This was a simulation" in section
    for words in (
        "dp_sgd: Gaussian, noise 1.2, rate",
        "(of 6)",
        "Validation and test cases",
        "whose updates had no noise",
        "not the server, which gets the sum with its noise and no site",
        "distributed_noise: discrete Gaussian, noise",
        "drawn and added as whole numbers, exactly",
    ):
        assert words in re.sub(r"\s+", " ", section)


def test_training_losses_of_private_methods_are_not_told(folder: Path) -> None:
    rounds = pd.read_csv(folder / "rounds.csv")
    told = rounds.groupby("method")["loss"].apply(lambda loss: loss.notna().all())
    assert told.to_dict() == {
        "fedavg": True,
        "single": True,
        "steps": False,
        "sites": False,
        "centre": False,
        "shared": False,
    }
    assert rounds[rounds["method"] == "steps"]["loss"].isna().all()


def test_a_study_without_noise_has_neither_table_nor_section(tmp_path: Path) -> None:
    content = write_table_study(tmp_path, {"Aachen": 22, "Bonn": 30})
    content["methods"] = [{"fedavg": {"channel": ["top_k"]}}]
    content["training"] |= {"rounds": 1}
    Study.of(content, tmp_path).run(tmp_path / "results")
    assert not (tmp_path / "results" / "privacy.csv").exists()
    assert guaranteed(Folder(tmp_path / "results")) is None
    assert 'id="privacy"' not in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")


def test_all_parts_with_noise_have_words() -> None:
    from polyclinic.parts import PLACES

    private = {name for place in PLACES.values() for name in place if place[name].private}
    assert private == set(WORDS)
