"""Groups of patients by columns: intervals, values, what is refused, and what opening a study's data makes of them."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsewhere import Elsewhere, split_table
from helpers import write_table_study
from polyclinic.data.open import open_data
from polyclinic.data.opening.subgroups import (
    NOT_KNOWN,
    Subgroup,
    agree_groups,
    assign_groups,
    spelling_notes,
    take_grouping,
)
from polyclinic.errors import DataError
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study

AGE = Subgroup("age", (0.0, 50.0, 65.0, 120.0))


def groups_of(texts, subgroup, patients=None):
    cells = pd.Series(texts, dtype="str").replace("", np.nan)
    people = pd.Series([f"p{number}" for number in range(len(texts))] if patients is None else patients, dtype="str")
    spellings = agree_groups(subgroup, [take_grouping(subgroup, cells, people)])
    found, notes = assign_groups(subgroup, cells, spellings)
    return found.tolist(), notes


def test_intervals_hold_their_lower_edge_and_the_last_one_both():
    found, notes = groups_of(["0", "49.999", "50", "64", "65", "120"], AGE)
    young, middle, old = AGE.intervals
    assert (young, middle, old) == ("0 to below 50", "50 to below 65", "65 to 120")
    assert found == [young, young, middle, middle, old, old]
    assert notes == []


def test_what_lies_outside_or_is_no_number_is_not_known_and_noted():
    found, notes = groups_of(["", "-1", "120.5", "about 60", "60", "inf"], AGE)
    assert found == [NOT_KNOWN] * 4 + ["50 to below 65", NOT_KNOWN]
    assert [note.number for note in notes] == ["N240"]
    assert "4 of 6" in notes[0]  # the empty cell is missing, and that is no surprise
    assert "2 no number" in notes[0]
    assert "2 outside" in notes[0]
    assert "about" not in notes[0]  # no cell is quoted


@given(st.lists(st.floats(-50, 200), min_size=1), st.lists(st.floats(-40, 190), min_size=2, max_size=9, unique=True))
def test_intervals_are_those_of_plain_comparisons(values, edges):
    edges = sorted(edges)
    one = Subgroup("x", tuple(edges))
    inside = [edges[0] <= value <= edges[-1] for value in values]
    if not any(inside):
        with pytest.raises(DataError, match="P203"):
            groups_of([repr(value) for value in values], one)
        return
    found, _ = groups_of([repr(value) for value in values], one)
    for value, there, name in zip(values, inside, found, strict=True):
        place = next((k for k in range(len(edges) - 1) if edges[k] <= value < edges[k + 1]), len(edges) - 2)
        assert name == (one.intervals[place] if there else NOT_KNOWN)


def test_values_are_groups_however_numbers_are_written():
    found, notes = groups_of(["1", "1.0", "2", "", "01"] * 4, Subgroup("sex"))
    assert set(found) <= {"1", "2", "01", NOT_KNOWN}
    assert found[0] == found[1] == "1"
    assert found[3] == NOT_KNOWN
    assert not notes
    assert [note.number for note in spelling_notes({"sex": ["1", "2", "01"]})] == ["N212"]  # 1 and 01 may be the same


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["F", "f", "M"], "'F', 'f'."),
        (["F", "female", "f", "M", "Male"], "'F', 'f', 'female'; 'M', 'Male'."),
        (["y", "n", "Yes", "NO"], "'Yes', 'y'."),
        (["ward a", "Ward A"], "'Ward A', 'ward a'."),
        (["1", "1E0", "2"], "'1', '1E0'."),
        (["F", "M"], ""),
        (["female", "male"], ""),
        (["A", "B", "AB", "O"], ""),
        (["1", "10", "12"], ""),
        (["I", "2"], ""),
    ],
)
def test_groups_that_may_be_one_are_noted(names, said):
    notes = spelling_notes({"sex": names})
    assert [said in note for note in notes] == [True] * bool(said)


def test_spellings_at_different_sites_are_noted_wherever_their_rows_are(tmp_path, monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")
    content = write_table_study(tmp_path, {"north": 24, "south": 24})
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    sexes = {"north": ["F", "M", "M"], "south": ["f", "M", "M"]}
    table["sex"] = [sexes[site][place % 3] for place, site in enumerate(table["site"])]
    table.to_csv(tmp_path / "cases.csv", index=False)
    content["evaluation"] = {"holdout": 0.3, "bootstrap": 0, "subgroups": ["sex"], "predictions": "coordinator"}
    content |= {"methods": ["fedavg"]}
    Study.of(content, tmp_path).run(tmp_path / "here")
    run_study(Study.of(content, tmp_path), tmp_path / "there", engine=Elsewhere(split_table(tmp_path)))
    for name in ("here", "there"):
        said = [one for one in json.loads((tmp_path / name / "notes.json").read_text()) if one["number"] == "N212"]
        assert [one["text"] for one in said] == [
            "Subgroup 'sex' tells apart what may be the same in another spelling: 'F', 'f'. If they mean the same, "
            "write them alike, at all sites."
        ]


@pytest.mark.parametrize("count", [21, 60])
def test_a_column_of_many_values_is_refused(count):
    with pytest.raises(DataError, match="seems to name patients") as error:
        groups_of([f"code {number}" for number in range(count)] * 4, Subgroup("zip"))
    assert error.value.code == "P203"
    assert "code" not in error.value.message.replace("zip", "")


def test_a_column_with_a_value_a_patient_is_refused_at_a_small_site():
    with pytest.raises(DataError, match="9 values among 9 patients"):
        groups_of([f"name {number}" for number in range(9)], Subgroup("who"))
    groups_of(["F", "M", "M"], Subgroup("sex"))  # few values of few patients are groups


def test_an_empty_column_is_refused():
    with pytest.raises(DataError, match="is empty in all rows"):
        groups_of(["", "", ""], Subgroup("sex"))


def test_ages_in_another_unit_are_refused_rather_than_not_known():
    with pytest.raises(DataError, match="No value of the subgroup column 'age'"):
        groups_of(["400", "700", "810"], AGE)


# --- opened data ------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 12, "Bonn": 10})
    table = pd.read_csv(tmp_path / "cases.csv")
    table["sex"] = ["F", "M"] * 11
    table["age"] = np.arange(22) * 3 + 20
    table.loc[4, "age"] = np.nan
    table.loc[6, "diagnosis"] = np.nan
    table.to_csv(tmp_path / "cases.csv", index=False)
    return tmp_path, entries, table


def opened(study, subgroups, **data):
    folder, entries, _ = study
    declared = Study.of(entries | {"data": entries["data"] | data}, folder).declaration
    return open_data(declared.data, folder, "labels", None, None, subgroups)


def test_each_case_has_its_rows_group_and_nothing_else_changes(study):
    plain, grouped = opened(study, []), opened(study, [Subgroup("sex"), AGE])
    table = study[2].dropna(subset=["diagnosis"])
    for site, data in grouped.sites.items():
        rows = table[table["site"] == site]
        assert data.groups["sex"] == rows["sex"].tolist()
        young = ["0 to below 50" if age < 50 else "50 to below 65" if age < 65 else "65 to 120" for age in rows["age"]]
        assert data.groups["age"] == [NOT_KNOWN if np.isnan(a) else g for a, g in zip(rows["age"], young, strict=True)]
        assert data.inputs.equal(plain.sites[site].inputs)
    assert grouped.features == plain.features
    assert grouped.fingerprint == plain.fingerprint
    assert all(data.groups is None for data in plain.sites.values())


def test_a_subgroup_may_be_a_feature_as_well(study):
    wide = {"features": ["x*", "age"]}
    assert opened(study, [AGE], **wide).features == opened(study, [], **wide).features


def test_rows_shuffled_give_the_same_groups_of_patients(study):
    folder, _, table = study
    before = opened(study, [Subgroup("sex"), AGE]).sites
    table.sample(frac=1, random_state=3).to_csv(folder / "cases.csv", index=False)
    after = opened(study, [Subgroup("sex"), AGE]).sites
    for site, data in before.items():
        for name, groups in data.groups.items():
            again = dict(zip(after[site].subjects, after[site].groups[name], strict=True))
            assert again == dict(zip(data.subjects, groups, strict=True))


def test_cases_without_a_label_keep_their_groups_apart(study):
    data = opened(study, [Subgroup("sex")], unlabelled="use").sites["Aachen"]
    assert len(data.groups["sex"]) == len(data) == 12
    known = data.with_labels()
    assert known.groups["sex"] == [sex for sex, there in zip(data.groups["sex"], data.known, strict=True) if there]
    assert len(known.groups["sex"]) == 11


def test_a_column_that_is_not_there_is_named_with_the_nearest(study):
    with pytest.raises(DataError, match="'sax', which `subgroups` names") as error:
        opened(study, [Subgroup("sax")])
    assert error.value.code == "P202"
    assert "sex" in error.value.hint
