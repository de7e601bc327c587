"""The notebooks of the documentation run."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def code_of(path):
    """The code of a notebook's cells."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_frames_to_a_report(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in code_of(path):
        exec(compile(code, path.name, "exec"), names)  # noqa: S102 - our own page
    assert names["report"].is_file()
    assert names["summary"].loc["fedavg", "auc"] > 0.8
    lines = [line for code in code_of(path) for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_results_in_them(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in content["cells"])
