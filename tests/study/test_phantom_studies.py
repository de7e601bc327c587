"""Three-dimensional studies from raw files to the report, on phantoms as NIfTI, BIDS and DICOM."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from helpers import named
from polyclinic import Study
from polyclinic.cli import app

DOCS = Path(__file__).parents[2] / "docs"
METHODS = ["single", "mix", "fedavg", "fedbn"]


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def phantoms(folder, form):
    command("phantom", "--sites", 2, "--subjects", 6, "--spacing", 6, "--as", form, "--out", folder)


def shortened(content):
    """The same study with as little training as shows that everything works."""
    content["training"] |= {"rounds": 1, "local_epochs": 1}
    content["evaluation"] |= {"folds": 2, "bootstrap": 20, "unseen_sites": ["fedavg"]}
    return content


def run(content, folder, out):
    Study.of(shortened(content), folder).run(out)
    rows = pd.read_csv(out / "results.csv")
    assert set(named(rows)["method"]) == {*METHODS, "fedavg (unseen site)"}
    assert rows["value"].notna().any()
    assert (out / "report.html").stat().st_size > 50_000
    return rows


@pytest.mark.long
@pytest.mark.parametrize("name", ["tissue", "diagnosis", "age"])
def test_the_studies_that_come_with_phantoms(tmp_path, name):
    phantoms(tmp_path / "brains", "nifti")
    content = yaml.safe_load((tmp_path / "brains" / f"study-{name}.yaml").read_text())
    assert content["methods"] == METHODS
    run(content, tmp_path / "brains", tmp_path / "out")


@pytest.mark.long
def test_a_bids_data_set_is_scanned_and_learned_from(tmp_path):
    phantoms(tmp_path / "brains", "bids")
    found = command("data", "scan", tmp_path / "brains", "--site-from", "column", "--out", tmp_path / "manifest.csv")
    assert "BIDS" in found
    table = pd.read_csv(tmp_path / "manifest.csv")
    assert table["site"].nunique() == 2
    content = {
        "data": {
            "table": "manifest.csv", "root": "brains", "site": "site", "subject": "subject", "image": "image",
            "label": "age", "preprocessing": {"spacing": "auto", "size": "auto"},
        },
        "task": "regression", "model": "auto", "training": {"batch_size": 4}, "evaluation": {}, "methods": METHODS,
    }  # fmt: skip
    rows = run(content, tmp_path, tmp_path / "out")
    assert "mae" in set(rows["metric"])


@pytest.mark.long
def test_the_page_from_a_pacs_export_to_a_segmentation(tmp_path, monkeypatch):
    page = (DOCS / "from-pacs.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    (study,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    smaller = {"--subjects 12": "--subjects 4", "--spacing 4": "--spacing 6", "--sites 3": "--sites 2"}
    for line in commands:
        for large, small in smaller.items():
            line = line.replace(large, small)
        if "study.yaml" in line and not Path("study.yaml").exists():
            exec(compile(script, "from-pacs.md", "exec"), {})  # noqa: S102 - the page's own lines
            Path("study.yaml").write_text(yaml.safe_dump(shortened(yaml.safe_load(study))))
        assert line.startswith("polyclinic ")
        output = command(*line.split()[1:])
        if " check " in line:
            assert "Planned" in output
    assert {"dice[fluid]", "dice[grey]", "dice[white]", "hd95"} <= set(pd.read_csv("results/results.csv")["metric"])
    assert 'alt="Best test case' in Path("results/report.html").read_text(encoding="utf-8")
