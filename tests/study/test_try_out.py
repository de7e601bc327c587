"""Before the first round of a study between machines each site trains on one batch with each composition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elsewhere import Elsewhere, split_table
from helpers import recorded, write_table_study
from polyclinic import Study
from polyclinic.errors import TrainingError
from polyclinic.study.runner import run_study


def written(folder: Path) -> dict[str, Any]:
    entries = write_table_study(folder, {"Aachen": 24, "Bonn": 30})
    entries["evaluation"] |= {"bootstrap": 0, "predictions": "sites"}
    return entries | {"methods": ["fedavg", "single", "ensemble", "scaffold"]}


def test_each_composition_is_tried_once_before_the_rounds(tmp_path: Path) -> None:
    entries = written(tmp_path)
    elsewhere = Elsewhere(split_table(tmp_path), tmp_path / "sites")
    with recorded(elsewhere) as said:
        run_study(Study.of(entries, tmp_path), tmp_path / "out", engine=elsewhere)
    functions = [function for function, *_ in said]
    assert functions.count("try") == 3 * 2  # single and ensemble are trained the same
    assert functions.index("train") > max(place for place, name in enumerate(functions) if name == "try")
    tried = [(request, reply) for function, _, request, reply in said if function == "try"]
    assert all(not reply.fields and not reply.tensors for _, reply in tried)
    here = Study.of(entries, tmp_path).run(tmp_path / "here").folder
    assert (here / "results.csv").read_bytes() == (tmp_path / "out" / "results.csv").read_bytes()


def test_what_can_not_work_at_a_site_is_known_before_the_first_round(tmp_path: Path) -> None:
    entries = written(tmp_path) | {"model": {"mlp": {"hidden": [4], "norm": "batch"}}, "methods": ["single", "fedavg"]}
    entries["methods"][1] = {"fedavg": {"training": {"clip": 1e-30, "optimizer": {"sgd": {"lr": 0.1}}}}}
    own = split_table(tmp_path)
    path = own["Bonn"] / "cases.csv"
    lines = path.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    place = cells[0].index("x1")
    for number, row in enumerate(cells[1:]):
        row[place] = f"{(-1) ** number * 3e38:g}"
    path.write_text("\n".join(",".join(row) for row in cells) + "\n")
    entries["data"]["scaling"] = "none"
    elsewhere = Elsewhere(own, tmp_path / "sites")
    with recorded(elsewhere) as said, pytest.raises(TrainingError, match=r"P301 .*Bonn"):
        run_study(Study.of(entries, tmp_path), tmp_path / "out", engine=elsewhere)
    assert "train" not in {function for function, *_ in said}
