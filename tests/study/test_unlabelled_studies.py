"""Studies with cases without a label: what their tables, pages and results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helpers import write_image_study, write_number_study, write_table_study
from polyclinic import Study
from polyclinic.errors import StudyError
from polyclinic.study.display import counts_text


def unlabel(folder: Path, column: str, every: int) -> int:
    """Empty each so-and-so-many-th cell of a column; how many there were."""
    table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    table.loc[::every, column] = ""
    table.to_csv(folder / "cases.csv", index=False)
    return int((table[column] == "").sum())


@pytest.mark.parametrize("write", [write_table_study, write_number_study])
def test_results_of_methods_that_need_labels_are_the_same(write: Any, tmp_path: Path) -> None:
    content = write(tmp_path, {"north": 31, "south": 24}) | {"methods": ["mix", "fedavg"]}
    content["training"] |= {"rounds": 1}
    content["data"] |= {"scaling": "federated", "harmonisation": "combat"}
    gone = unlabel(tmp_path, content["data"]["label"], 4)
    found = {}
    for word in ("reject", "use"):
        study = Study.of({**content, "data": content["data"] | {"unlabelled": word}}, tmp_path)
        study.run(tmp_path / word)
        found[word] = {
            str(path.relative_to(tmp_path / word)): path.read_bytes()
            for path in (tmp_path / word).rglob("*")
            if path.name in ("results.csv", "predictions.csv") or path.suffix == ".safetensors"
        }
    assert {"results.csv", "predictions.csv"} < set(found["use"])
    assert found["use"] == found["reject"]
    sites = pd.read_csv(tmp_path / "use" / "sites.csv")
    assert sites["used"].tolist() == [31, 24]
    assert sites["unlabelled"].sum() == gone
    report = (tmp_path / "use" / "report.html").read_text(encoding="utf-8")
    assert f"55 of 55 cases used, {gone} of them without a label" in report
    assert "without a label" not in (tmp_path / "reject" / "report.html").read_text(encoding="utf-8")


def test_the_data_sheet_shows_cases_without_a_mask_as_such(tmp_path: Path) -> None:
    content = write_image_study(tmp_path, {"north": 9, "south": 6})
    content["data"] |= {"unlabelled": "use"}
    unlabel(tmp_path, "mask", 3)
    study = Study.of(content, tmp_path)
    sites, notes = study.check(out=tmp_path / "sheet")
    assert sites[["site", "found", "used", "unlabelled"]].to_numpy().tolist() == [
        ["north", 9, 9, 3],
        ["south", 6, 6, 2],
    ]
    assert counts_text(sites) == "15 cases found, 15 used (5 of them without a label), 0 rejected"
    assert [note.number for note in notes].count("N209") == 1
    page = (tmp_path / "sheet" / "data-sheet.html").read_text(encoding="utf-8")
    assert page.count("no mask") - page.count("have no mask") == 5
    assert "15 cases of 15 patients used (5 of them without a label), 0 rejected" in page
    assert "3 without a label" in page


def test_sites_are_scored_by_their_labelled_cases(tmp_path: Path) -> None:
    content = write_number_study(tmp_path, {"north": 12, "south": 30})
    content["data"] |= {"unlabelled": "use"}
    content["evaluation"] |= {"min_cases_per_class": 9}
    unlabel(tmp_path, "age", 3)
    sites, _ = Study.of(content, tmp_path).check()
    assert sites["scored"].tolist() == [False, True]
    assert sites["note"].tolist() == ["can't be scored by itself: only 8 cases (at least 9 needed)", ""]


# Labels that are hidden from training ---------------------------------------------------------------------------------


def scarce(folder: Path, out: str, labels: dict[str, Any] | None, **entries: Any) -> pd.DataFrame:
    """Run a study with few labels; its predictions."""
    content = write_table_study(folder, {"north": 40, "south": 30}) | {"methods": ["fedavg"]}
    content["data"] |= {"scaling": "federated"} | ({} if labels is None else {"labels": labels})
    for name, entry in entries.items():
        content[name] = content[name] | entry if isinstance(entry, dict) else entry
    return Study.of(content, folder).run(folder / out).predictions


def test_labels_are_hidden_and_counted(tmp_path: Path) -> None:
    first = scarce(tmp_path, "out", {"share": 0.2, "sites": ["north"]})
    sites = pd.read_csv(tmp_path / "out" / "sites.csv")
    assert sites["used"].tolist() == [40, 30]
    flow = pd.read_csv(tmp_path / "out" / "flow.csv")
    cases = flow[flow["what"].isna()].pivot_table(index=["site", "fold"], columns="stage", values="cases")
    assert (cases.loc["south", "hidden"] == 0).all()
    whole = cases.loc["north"].eval("train + hidden")
    assert (cases.loc["north", "train"] == (0.2 * whole).round()).all()
    assert (whole + cases.loc["north"].eval("validation + test") == 40).all()
    assert "N111" in (tmp_path / "out" / "notes.json").read_text()
    assert "whose labels are hidden" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not scarce(tmp_path, "all", None)["score"].equals(first["score"])


@pytest.mark.parametrize("engine", [{"mode": "processes", "workers": 2}, {"mode": "stacked"}, {"jobs": 2}], ids=str)
def test_in_every_engine_the_same_labels_are_hidden(tmp_path: Path, engine: dict[str, Any]) -> None:
    labels = {"share": 0.3}
    here = scarce(tmp_path, "here", labels, engine={"mode": "sequential", "threads": 1, "jobs": 1})
    there = scarce(tmp_path, "there", labels, engine={"threads": 1, **engine})
    assert here["score"].to_numpy() == pytest.approx(there["score"].to_numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"share": 0.0}, "P102 .*with `share: 0` name the `sites`"), ({"share": 1.2}, "P102 .*labels.share"),
        ({}, "P102 .*labels"),
        ({"share": 0.5, "sites": ["nort"]}, r"P103 .*names the site 'nort'.*'north'"),
        ({"share": 0.5, "site": "north"}, "P103 .*'site'"),
    ],
)  # fmt: skip
def test_labels_that_can_not_be_hidden_are_refused(tmp_path: Path, labels: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        scarce(tmp_path, "out", labels)
