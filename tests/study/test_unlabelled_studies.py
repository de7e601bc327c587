"""Studies with cases without a label: what their tables, pages and results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from helpers import write_image_study, write_number_study, write_table_study
from polyclinic import Study
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
