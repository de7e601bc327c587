"""Where cases go: the table of a run, its sums, and the picture in the report."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import table_site, write_image_study, write_number_study
from polyclinic.data.opening.facts import SiteFacts
from polyclinic.data.part_counts import part_classes, part_patients
from polyclinic.data.splits import split
from polyclinic.study.columns import FLOW
from polyclinic.study.flow import characteristics_table, flow_table
from polyclinic.study.job import Fold, SiteParts
from polyclinic.study.report.flow import flow_section, site_flows, spread, together
from polyclinic.study.report.flow_figure import flow_figure
from polyclinic.study.report.folder import Folder
from polyclinic.study.study import Study


def test_the_table_has_every_count_once():
    counts = {
        "A": SiteFacts(
            found=10, used=8, rejected={"label is missing": 1, "image file is damaged": 1}, unlabelled=1, patients=7
        ),
        "B": SiteFacts(found=3, rejected={"label is missing": 3}),
    }
    parts = SiteParts([3, 1, 2], [[2, 1], [1, 0], [1, 2]])
    folds = {0: Fold(0, {"A": 3}, {"A": 1}, {"A": 3}, {"A": [2, 1]}, counted={"A": parts})}
    table = flow_table(counts, folds, ["no", "yes"])
    assert list(table.columns) == FLOW
    rows = [tuple(None if pd.isna(one) else one for one in row) for row in table.itertuples(index=False)]
    assert rows == [
        ("A", "found", None, "", 10, None),
        ("A", "rejected", None, "image file is damaged", 1, None),
        ("A", "rejected", None, "label is missing", 1, None),
        ("A", "used", None, "", 8, 7),
        ("A", "unlabelled", None, "", 1, None),
        ("A", "train", 0, "", 3, 3), ("A", "train", 0, "no", 2, None), ("A", "train", 0, "yes", 1, None),
        ("A", "validation", 0, "", 1, 1), ("A", "validation", 0, "no", 1, None), ("A", "validation", 0, "yes", 0, None),
        ("A", "test", 0, "", 3, 2), ("A", "test", 0, "no", 1, None), ("A", "test", 0, "yes", 2, None),
        ("B", "found", None, "", 3, None),
        ("B", "rejected", None, "label is missing", 3, None),
        ("B", "used", None, "", 0, 0),
    ]  # fmt: skip


@given(st.lists(st.integers(0, 5), min_size=12, max_size=40), st.integers(0, 3))
def test_parts_add_up_to_the_site(people, fold):
    data = table_site("A", len(people), part=None)
    data.subjects = [f"p{one}" for one in people]
    parts = split(data, folds=4, fold=fold, validation=0.3, seed=1)
    patients, classes = part_patients(data, parts), part_classes(data, parts, 2)
    assert sum(patients) == len(set(people))
    assert [sum(own) for own in classes] == [len(parts.train), len(parts.validation), len(parts.test)]
    whole = np.sum(classes, axis=0)
    assert whole.tolist() == [int((data.targets == one).sum()) for one in (0, 1)]


def test_a_run_accounts_for_every_case(finished_study):
    table = pd.read_csv(finished_study / "flow.csv", keep_default_na=False)
    sites = pd.read_csv(finished_study / "sites.csv").set_index("site")
    assert list(dict.fromkeys(table["site"])) == ["Aachen", "Bonn", "Celle", "Dessau"]
    for site, rows in table.groupby("site"):
        count = {stage: int(own["cases"].sum()) for stage, own in rows[rows["what"] == ""].groupby("stage")}
        rejected = int(rows[rows["stage"] == "rejected"]["cases"].sum())
        assert count["found"] == count["used"] + rejected
        if site == "Dessau":
            assert (count["found"], rejected) == (4, 4)
            continue
        assert (count["found"], count["used"]) == tuple(sites.loc[site, ["found", "used"]])
        assert count["test"] == count["used"]  # every case is tested in one fold
        for _, fold in rows[rows["fold"] != ""].groupby("fold"):
            whole = fold[fold["what"] == ""]
            assert whole["cases"].sum() == count["used"]
            assert fold[fold["what"] != ""]["cases"].sum() == count["used"]
            assert whole["patients"].astype(int).sum() == sites.loc[site, "patients"]
    predictions = pd.read_csv(finished_study / "predictions.csv")
    mine = predictions[(predictions["method"] == "fedavg") & (predictions["run"] == "plain")]
    tested = mine.groupby(["site", "fold", "label"]).size()
    classes = {"kind 0": 0, "kind 1": 1}
    listed = table[(table["stage"] == "test") & (table["what"] != "")]
    for row in listed.to_dict("records"):
        assert row["cases"] == tested[row["site"], int(row["fold"]), classes[row["what"]]]


def test_groups_are_in_the_order_of_their_numbers_whichever_site_has_them():
    folds = {0: Fold(0, {}, {}, {}, {}, counted={
        "A": SiteParts([], [], {"age": {"50 to 60": [4, 4, 4, 3, 3, 3], "not known": [5, 5, 5, 5, 5, 5]}}),
        "B": SiteParts([], [], {"age": {"5 to below 50": [7, 7, 7, 7, 7, 1], "50 to 60": [1, 1, 1, 1, 1, 1]}}),
    })}  # fmt: skip
    table = characteristics_table(folds, 4)
    together = table[(table["site"] == "all") & (table["stage"] == "train")]
    assert together["group"].tolist() == ["5 to below 50", "50 to 60", "not known"]
    assert together["cases"].tolist() == [7, 5, 5]
    assert table["site"].tolist()[-9:] == ["all"] * 9
    small = table[(table["site"] == "B") & (table["group"] == "5 to below 50") & (table["stage"] == "test")].iloc[0]
    assert pd.isna(small["cases"])
    assert small["note"] == "fewer than 4 patients"


def test_sites_are_added_up_fold_by_fold(finished_study):
    flows = site_flows(Folder(finished_study))
    total = together(flows)
    assert (total.found, total.used) == (110, 103)
    assert total.rejected == [("diagnosis is missing", 7)]
    assert sum(total.parts["test"].cases) == 103
    assert sum(total.parts["test"].classes["kind 1"]) == 52  # Aachen lost two of kind 0 and one of kind 1
    for fold in range(2):
        assert sum(part.cases[fold] for part in total.parts.values()) == 103


def test_the_report_shows_picture_and_table(finished_study):
    section = flow_section(Folder(finished_study))
    assert section.folds == 2
    assert [row.site for row in section.rows] == ["Aachen", "Bonn", "Celle", "Dessau", "All sites"]
    left_out = section.rows[3]
    assert (left_out.found, left_out.used, left_out.parts) == ("4", "0 (0)", ["–"] * 3)
    assert left_out.rejected == "4: diagnosis is missing (4)"
    words = section.panel.words
    assert words.startswith("Found 110 cases at 4 sites; rejected")
    assert "7 diagnosis is missing" in words
    assert "used 103 cases of 103 patients at 3 sites" in words
    page = (finished_study / "report.html").read_text()
    assert "The flow at each site" in page
    assert page.count("7 diagnosis is missing") >= 1


def test_results_of_before_have_no_flow_and_a_report(finished_study, tmp_path):
    from shutil import copytree

    from polyclinic.study.report.page import render

    copytree(finished_study, tmp_path / "out")
    (tmp_path / "out" / "flow.csv").unlink()
    folder = Folder(tmp_path / "out")
    assert flow_section(folder) is None
    assert "The flow at each site" not in render(folder)


def test_numbers_and_masks_have_a_flow_without_classes(tmp_path):
    for write, name in ((write_number_study, "numbers"), (write_image_study, "masks")):
        folder = tmp_path / name
        folder.mkdir()
        entries = write(folder, {"Aachen": 8, "Bonn": 8})
        entries["methods"], entries["training"]["rounds"] = ["fedavg"], 1
        entries["evaluation"] |= {"bootstrap": 0, "folds": None, "holdout": 0.25}
        Study.of(entries, folder).run(folder / "out")
        table = pd.read_csv(folder / "out" / "flow.csv")
        parts = table[table["fold"].notna()]
        assert parts["what"].isna().all()
        assert parts.groupby("site")["cases"].sum().tolist() == [8, 8]
        assert "In each of" not in flow_section(Folder(folder / "out")).panel.picture


@pytest.mark.parametrize(
    ("numbers", "text"), [([3, 3], "3"), ([3, 5, 4], "3 to 5"), ([float("nan"), 2], "2"), ([float("nan")], "")]
)
def test_numbers_of_folds_are_told_by_their_ends(numbers, text):
    assert spread(numbers) == text


def test_many_and_long_reasons_are_cut_and_escaped():
    reasons = [
        (f"<b>image</b> can't be read because of reason number {number} & more words", "12") for number in range(9)
    ]
    parts = [("Training", "10 to 12", "")] * 3
    panel = flow_figure(found="99 cases at 40 sites", rejected=reasons, used="1", unlabelled="3", parts=parts, folds=5)
    assert "and 5 more reasons" in panel.picture
    assert "<b>" not in panel.picture
    assert "In each of 5 folds" in panel.picture
    box = [float(one) for one in re.search(r'viewBox="([^"]*)"', panel.picture)[1].split()]
    assert box[2] < 330
    assert box[3] < 330
