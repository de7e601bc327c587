"""Studies side by side: what differs, the same numbers as within a study, and a sentence where nothing can be said."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from polyclinic.cli import app
from polyclinic.errors import ResultsError
from polyclinic.study.comparing.compare import compare
from polyclinic.study.results import Results

FEDAVG, FEDBN = ("fedavg", "plain"), ("fedbn", "plain")


@pytest.fixture
def other(finished_study, tmp_path):
    """A copy of a finished study, whose files a test may change."""
    return shutil.copytree(finished_study, tmp_path / "other", ignore=shutil.ignore_patterns("sites", "models"))


def change(folder, **entries):
    """Change entries of the study file; a dictionary is merged."""
    path = folder / "study.yaml"
    study = yaml.safe_load(path.read_text())
    for name, value in entries.items():
        study[name] = study[name] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(study, sort_keys=False))


def change_rows(folder, edit, name="predictions.csv"):
    edit(pd.read_csv(folder / name, float_precision="round_trip")).to_csv(folder / name, index=False)


def note(folder, **entries):
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_paired_difference_is_that_of_two_methods_of_one_study(finished_study, other):
    """In the copy `fedavg` has predicted what `fedbn` did: so it differs from the first as the two do in one study."""
    rng = np.random.default_rng(0)

    def exchange(rows):
        rows = rows[rows["method"] != "fedavg"]
        rows = pd.concat([rows, rows[rows["method"] == "fedbn"].assign(method="fedavg")])
        return rows.iloc[rng.permutation(len(rows))]

    change_rows(other, exchange)
    found = compare([finished_study, other]).versus[0]
    own = Results(finished_study).comparisons
    wanted = own[(own["method"] == "fedbn") & (own["versus"] == "fedavg") & (own["metric"] == "auc")]
    wanted = wanted[wanted["run"] == "plain"].iloc[0]
    mine = found.paired[FEDAVG]
    for name in ("difference", "low", "high", "p", "sites"):
        assert getattr(mine, name) == pytest.approx(wanted[name], abs=1e-12), name
    assert mine.difference != 0
    assert found.paired[FEDBN].difference == 0
    assert found.paired[FEDBN].p == 1
    assert ("fedavg", "unseen") not in found.paired  # of this method the copy has no predictions at unseen sites
    assert found.why["fedavg", "unseen"] == "There are no predictions of it with the same seeds in both."
    assert mine.p_adjusted == min(1, 3 * mine.p)  # single, fedavg and fedbn


def test_the_same_study_twice_differs_in_nothing(finished_study, other):
    found = compare([finished_study, other])
    assert found.entries == []
    assert set(found.versus[0].differences.values()) == {0}
    assert {one.difference for one in found.versus[0].paired.values()} == {0}
    assert found.versus[0].why == {}
    table = found.table()
    summary = Results(finished_study).summary.query("metric == 'auc'")
    for number in (1, 2):
        mine = table[(table["study"] == number) & (table["versus"] == "")].set_index(["method", "run", "over"])
        for row in summary.to_dict("records"):
            values = mine.loc[(row["method"], row["run"], row["over"]), ["mean", "low", "high"]]
            assert values.tolist() == [row["mean"], row["low"], row["high"]]


def flip(rows):
    return rows.assign(label=1 - rows["label"])


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda folder: note(folder, data_sha256="0" * 64), "The data are not the same"),
        (lambda folder: note(folder, data_sha256=None), "fingerprint of the data is not known"),
        (lambda folder: note(folder, predictions="sites"), "The sites of study 2 kept their predictions"),
        (lambda folder: (folder / "predictions.csv").unlink(), "Study 2 has no predictions.csv"),
        (lambda folder: change(folder, evaluation={"split_seed": 1}), "`evaluation: split_seed` is 0 and 1"),
        (lambda folder: change_rows(folder, lambda rows: rows.assign(seed=9), "results.csv"), "no seed in common"),
        (lambda folder: change_rows(folder, lambda rows: rows.assign(scored=False), "sites.csv"), "no site that is"),
        (lambda folder: change_rows(folder, lambda rows: rows[rows["case"] != rows["case"][0]]), "different cases"),
        (lambda folder: change_rows(folder, flip), "What is predicted of the cases is not the same (label)"),
        (lambda folder: change(folder, methods=["single", {"fedprox": {"label": "fedavg"}}, "fedbn"]),
         "The label stands for fedavg in study 1, for fedprox in study 2."),
    ],
)  # fmt: skip
def test_why_cases_are_not_paired(finished_study, other, edit, sentence, tmp_path):
    edit(other)
    found = compare([finished_study, other])
    assert FEDAVG not in found.versus[0].paired
    assert sentence in found.versus[0].why[FEDAVG]
    if "label stands" in sentence:
        assert (FEDAVG, "sites") not in found.versus[0].differences
    else:
        assert found.versus[0].differences[FEDAVG, "sites"] == 0
    found.write(tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    assert sentence.replace("'", "&#39;") in page
    notes = pd.read_csv(tmp_path / "out" / "compare.csv")["note"].dropna()
    assert notes.str.contains(sentence, regex=False).any()


def test_entries_that_differ_stand_side_by_side(finished_study, other):
    change(other, training={"rounds": 7, "new": True}, methods=["single", {"fedavg": {"share": "head"}}, {"mine": {}}],
           seeds=[0, 1], study="Another title")  # fmt: skip
    note(other, versions={"polyclinic": "9.9"})
    found = dict(compare([finished_study, other]).entries)
    assert found["training.rounds"] == ["2", "7"]
    assert found["training.new"] == ["–", "true"]
    assert found["methods.fedavg.share"] == ["all", "head"]
    assert found["methods.mine.method"] == ["–", "mine"]
    assert found["methods.fedbn.method"] == ["fedbn", "–"]
    assert found["seeds"] == ["[0]", "[0, 1]"]
    assert found["version"][1] == "9.9"
    assert "study" not in found
    assert "methods.single.method" not in found
    assert "training.batch_size" not in found


def three(finished_study, other, tmp_path):
    third = shutil.copytree(other, tmp_path / "third")
    change_rows(third, lambda rows: rows[rows["method"] != "fedbn"], "summary.csv")
    change_rows(third, lambda rows: rows[rows["method"] != "fedbn"], "results.csv")
    return [finished_study, other, third]


def test_three_studies_with_methods_of_their_own(finished_study, other, tmp_path):
    found = compare(three(finished_study, other, tmp_path))
    assert [(one.earlier, one.later) for one in found.versus] == [(1, 2), (1, 3), (2, 3)]
    assert [FEDBN in one.paired for one in found.versus] == [True, False, False]
    assert (FEDBN, 2, "sites") in found.values
    assert (FEDBN, 3, "sites") not in found.values


def test_the_page_holds_no_scripts_and_no_names_of_cases(finished_study, other, tmp_path):
    change(other, study="<script>alert(1)</script>", model={"mlp": {"hidden": ["<img src=x>"]}})
    note(other, status="incomplete")
    done = CliRunner().invoke(app, ["compare", str(finished_study), str(other), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert "incomplete: sites did not answer" in page
    assert not re.search(r"P\d{5}|MRN-|https?://", page)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.html"]
    for text in ("Study 2 minus study 1", "model.mlp.hidden", "fedavg"):
        assert text in done.output
        assert text in page.replace("<wbr>", "")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda folder: note(folder, status="running"), "is not finished (its state is running)"),
        (lambda folder: (folder / "provenance.json").unlink(), "is not finished (its state is not known)"),
        (lambda folder: (folder / "results.csv").unlink(), "There is no results.csv"),
        (lambda folder: (folder / "study.yaml").unlink(), "study.yaml is missing in"),
        (lambda folder: change(folder, task="regression"), "their task differs (classification; regression)"),
        (lambda folder: change(folder, evaluation={"metrics": ["acc", "auc"]}), "their primary metric differs"),
        (lambda folder: change_rows(folder, lambda t: t.rename(columns={"class: kind 0": "class: x"}), "sites.csv"),
         "their classes differ (kind 0, kind 1; x, kind 1)"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_refused(finished_study, other, edit, sentence):
    edit(other)
    with pytest.raises(ResultsError, match=re.escape(sentence)):
        compare([finished_study, other])


def test_classes_that_nobody_tells(finished_study, other, tmp_path):
    first = shutil.copytree(other, tmp_path / "first")
    for folder in (first, other):
        (folder / "sites.csv").unlink()
    found = compare([first, other]).versus[0]
    assert found.why[FEDAVG] == "The classes of study 1 are not known: its sites.csv is missing."


def test_one_folder_is_no_comparison(finished_study):
    for paths in ([finished_study], [finished_study, finished_study / ".." / "out"]):
        with pytest.raises(ResultsError, match="Fewer than two folders were given, or one of them twice"):
            compare(paths)


def test_where_nothing_is_paired_no_heavy_library_is_needed(finished_study, other, tmp_path):
    note(other, data_sha256="0" * 64)
    args = ["polyclinic", "compare", str(finished_study), str(other), "--out", str(tmp_path / "out")]
    code = f"import sys; sys.argv = {args}\nfrom polyclinic.cli import main\n"
    code += "try: main()\nfinally: print('heavy:', *({'torch', 'monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("heavy:")
