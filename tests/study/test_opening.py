"""Sites that open their own data: the same numbers as where all are in one place, or a refusal that names the site."""

import shutil

import pandas as pd
import pytest

from elsewhere import Elsewhere, split_table
from helpers import write_image_study, write_number_study, write_survival_study, write_table_study
from polyclinic.engine import LocalEngine
from polyclinic.errors import DataError, StudyError
from polyclinic.study.opening import ask_agree, ask_open, local_engine
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study

SIZES = {"Aachen": 24, "Bonn": 15, "Celle": 18}
TABLES = ("results.csv", "predictions.csv", "summary.csv", "sites.csv", "comparisons.csv")


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")


def write_coded_study(folder):
    """A table with codes in several writings, gaps, and a number of each row, and its study."""
    entries = write_table_study(folder, SIZES)
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    places = range(len(table))
    table["kind"] = [("1", "1.0", "2", "", "10")[place % 5] for place in places]
    table["ward"] = [("north", "south", "")[place % 3] if place < 24 else "west" for place in places]
    table["xid"] = [str(place + 1) for place in places]
    table["diagnosis"] = [
        ("0", "1.0", "1", "0")[place % 4] if place < 24 else ("0", "1")[place % 2] for place in places
    ]
    table.loc[5, "x1"] = ""
    table.to_csv(folder / "cases.csv", index=False)
    entries["data"] |= {"categorical": ["kind", "ward"]}
    return entries


WRITERS = {
    "table": write_table_study, "numbers": write_number_study, "images": write_image_study,
    "times": write_survival_study,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*WRITERS, "codes"])
def test_sites_elsewhere_give_the_same_numbers(tmp_path, kind):
    entries = write_coded_study(tmp_path) if kind == "codes" else WRITERS[kind](tmp_path, SIZES)
    entries |= {"methods": ["single", "fedavg", "fedbn"]}
    entries["evaluation"] |= {"unseen_sites": ["fedavg"], "predictions": "coordinator"}
    if kind == "codes":
        entries["evaluation"] |= {"subgroups": ["ward", "kind", {"x2": [-9, 0, 9]}], "subgroup_patients": 2}
    folders = split_table(tmp_path)
    if kind == "images":
        for site, folder in folders.items():
            shutil.copytree(tmp_path / site, folder / site)
    study = Study.of(entries, tmp_path)
    study.run(tmp_path / "here")
    run_study(study, tmp_path / "out", engine=Elsewhere(folders, tmp_path / "sites"))
    for name in TABLES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    tables = {"codes": ("subgroups.csv", "characteristics.csv"), "times": ("survival.csv", "log_rank.csv")}
    for name, its in ((name, its) for its, names in tables.items() for name in names):
        assert (tmp_path / "here" / name).is_file() == (kind == its)
        if kind == its:
            assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert "N108" in (tmp_path / "out" / "notes.json").read_text()
    assert (tmp_path / "sites" / "Bonn" / "subjects.csv").is_file()


def test_bytes_give_the_same_cohort(tmp_path):
    entries = write_coded_study(tmp_path)
    entries["data"] |= {
        "scaling": "federated",
        "harmonisation": {"combat": {"covariates": ["ward"], "groups": ["kind"]}},
    }
    cohorts = []
    for serialise in (False, True):
        study = Study.of(entries, tmp_path)
        engine = local_engine(study, serialise=serialise)
        cohorts.append(ask_agree(ask_open(study, engine), engine))
    assert cohorts[0] == cohorts[1]
    assert cohorts[0] == study.open().cohort
    assert cohorts[0].covariates == {"ward": ["ward=south", "ward=west"], "kind": ["kind=2", "kind=10"]}


def test_what_needs_all_cases_in_one_place_is_refused(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    engine = Elsewhere(split_table(tmp_path))

    def refused(match, **more):
        with pytest.raises(StudyError, match=match):
            run_study(Study.of(entries | more, tmp_path), tmp_path / "out", engine=engine)

    refused("P104 mix trains on the pooled cases of all sites", methods=["fedavg", "mix"])
    refused("P104 `attack` is a simulation", methods=["fedavg"], attack={"sites": ["Bonn"], "sign_flip": {}})
    parted = {**entries["data"], "partition": {"sites": 2, "even": {}}}
    refused("P104 `data: {partition: ...}` shares patients out", methods=["fedavg"], data=parted)
    assert not (tmp_path / "out" / "results.csv").exists()


def opened_elsewhere(tmp_path, entries, floor=1):
    study, engine = Study.of(entries, tmp_path), Elsewhere(split_table(tmp_path), floor=floor)
    return ask_agree(ask_open(study, engine), engine), engine


def change(folder, **columns):
    """Change cells of a column: ``{row: text}``, or all of them by a function of the row."""
    table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    for name, cells in columns.items():
        if callable(cells):
            table[name] = [cells(row) for row in range(len(table))]
        else:
            for row, text in cells.items():
                table.loc[row, name] = text
    table.to_csv(folder / "cases.csv", index=False)


def test_a_column_that_one_site_lacks(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    folders = split_table(tmp_path)
    pd.read_csv(folders["Bonn"] / "cases.csv", dtype=str).drop(columns="x1").to_csv(
        folders["Bonn"] / "cases.csv", index=False
    )
    with pytest.raises(DataError, match="P202 Site Bonn has no feature 'x1', which site Aachen has"):
        ask_open(Study.of(entries, tmp_path), Elsewhere(folders))


def test_a_covariate_that_is_a_number_at_one_site_and_a_word_at_another(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["data"] |= {"harmonisation": {"combat": {"covariates": ["scanner"]}}}
    change(tmp_path, scanner=lambda row: str(row % 3) if row < 24 else "abc"[row % 3])
    with pytest.raises(DataError, match=r"P203 The covariate 'scanner' has 24 numbers and 33 .* \(at Bonn, Celle\)"):
        opened_elsewhere(tmp_path, entries)


def test_other_units_at_a_site(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, x1=lambda row: str((50 + row % 12) / (10 if 24 <= row < 39 else 1)))
    cohort, _ = opened_elsewhere(tmp_path, entries)
    units = [note for note in cohort.notes if note.number == "N235"]
    assert len(units) == 1
    assert "x1 (about 0.1 times at Bonn)" in units[0]
    assert units[0] in Study.of(entries, tmp_path).open().notes
    assert cohort.facts["Bonn"].medians[1] == pytest.approx(5.5, abs=0.2)


def test_a_class_of_one_site_is_a_class_of_all(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, diagnosis={0: "kind 7", 1: "kind 7", 2: "kind 7"})
    cohort, _ = opened_elsewhere(tmp_path, entries)
    assert cohort.classes == ["kind 0", "kind 1", "kind 7"]
    assert [facts.classes[2] for facts in cohort.facts.values()] == [3, 0, 0]


def test_numbers_of_rows_are_no_feature_wherever_they_stand(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, xid=lambda row: str(1000 + row))
    cohort, _ = opened_elsewhere(tmp_path, entries)
    assert cohort.features == ["x0", "x1", "x2"]
    shutil.rmtree(tmp_path / "at Bonn")
    shutil.rmtree(tmp_path / "at Aachen")
    shutil.rmtree(tmp_path / "at Celle")
    change(tmp_path, xid=lambda row: str(1000 + row) if row < 39 else str((7 * row) % 5))
    cohort, _ = opened_elsewhere(tmp_path, entries)  # a measurement at Celle, so it is one everywhere
    assert cohort.features == ["x0", "x1", "x2", "xid"]


def test_rare_values_are_not_named_unless_the_study_lists_them(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["data"] |= {"categorical": ["ward"]}
    change(tmp_path, ward=lambda row: "rare" if row in (3, 30) else "north" if row % 2 else "south")
    with pytest.raises(DataError, match="P203 Site Aachen: 1 value has too few cases in the column 'ward' to be named"):
        opened_elsewhere(tmp_path, entries, floor=5)
    entries["data"] |= {"categories": {"ward": ["north", "south"]}}
    for site in SIZES:
        shutil.rmtree(tmp_path / f"at {site}")
    cohort, _ = opened_elsewhere(tmp_path, entries, floor=5)
    assert cohort.features == ["x0", "x1", "x2", "ward=north", "ward=south"]
    assert cohort.facts["Aachen"].rejected == {"ward is not one of its categories": 1}
    assert cohort.facts["Celle"].rejected == {}


def test_a_rare_class_is_not_named_either(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, diagnosis={0: "a syndrome"})
    with pytest.raises(DataError, match="Site Aachen: 1 value has too few cases in the column 'diagnosis'"):
        opened_elsewhere(tmp_path, entries, floor=5)


def test_a_site_without_a_usable_case_is_left_out(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, diagnosis=lambda row: "" if 24 <= row < 39 else f"kind {row % 2}")
    cohort, engine = opened_elsewhere(tmp_path, entries)
    assert cohort.sites == engine.sites == ["Aachen", "Celle"]
    assert cohort.left_out["Bonn"].rejected == {"diagnosis is missing": 15}
    assert any("Site Bonn is left out: none of its 15 cases" in note for note in cohort.notes)
    for site in SIZES:
        shutil.rmtree(tmp_path / f"at {site}")
    change(tmp_path, diagnosis=lambda row: "")
    with pytest.raises(DataError, match="P205 No row can be used: the sites have 57 rows"):
        opened_elsewhere(tmp_path, entries)


def test_a_site_of_another_name(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    folders = split_table(tmp_path)
    with pytest.raises(DataError, match="P203 The table has no row of the site 'Bern'"):
        ask_open(Study.of(entries, tmp_path), Elsewhere({"Bern": folders["Bonn"]}))


@pytest.mark.parametrize("entry", [{"table": "../cases.csv"}, {"cache": "../x"}, {"root": "/"}])
def test_nothing_outside_the_folder_of_a_site_is_read(tmp_path, entry):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["data"] |= entry
    with pytest.raises(DataError, match=r"P201 `data: .* names a place outside the folder of site Aachen"):
        ask_open(Study.of(entries, tmp_path), Elsewhere(split_table(tmp_path)))


def test_labels_are_not_told_where_they_are_measurements(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, diagnosis=lambda row: str(20 + row / 8))
    entries["data"] |= {"positive": "> 24"}
    study = Study.of(entries, tmp_path)
    engine = local_engine(study)
    answers = dict(engine.call("open", {site: _open(study) for site in engine.sites}))
    assert [answer.fields["positives"] for answer in answers.values()] == [0, 6, 18]
    assert all("labels" not in answer.fields for answer in answers.values())


def _open(study):
    from polyclinic.communication.message import Message
    from polyclinic.site.messages import Open

    return Message(Open(data=study.declaration.data, target="labels").fields())


def test_a_site_must_open_first(tmp_path):
    from polyclinic.communication.message import Message

    engine = LocalEngine(["A"])
    for function in ("prepare", "agree", "open"):
        answer = next(iter(engine.call(function, {"A": Message()})))[1]
        assert "P401" in str(answer), function


def test_what_sites_say_of_labels_is_put_together(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, diagnosis=lambda row: "01"[row % 2] if row < 24 else "12"[row % 2])
    cohort, _ = opened_elsewhere(tmp_path, entries)
    together = Study.of(entries, tmp_path).open()
    told = next(note for note in cohort.notes if note.number == "N224")
    assert told == next(note for note in together.notes if note.number == "N224")
    assert "0, 1 at Aachen, 1, 2 at Bonn, Celle" in told


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_mistake_in_one_table_names_the_site(tmp_path, elsewhere):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, x1={30: "2,5", 31: "3,5"})
    with pytest.raises(DataError, match=r"P203 (Site Bonn: )?The column 'x1' .*2 cells.*\(Site Bonn\.\)"):
        opened_elsewhere(tmp_path, entries) if elsewhere else Study.of(entries, tmp_path).open()


def test_a_site_without_rows_is_left_out(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    folders = split_table(tmp_path)
    table = folders["Bonn"] / "cases.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    engine = Elsewhere(folders)
    cohort = ask_agree(ask_open(Study.of(entries, tmp_path), engine), engine)
    assert cohort.sites == ["Aachen", "Celle"]
    assert any("Site Bonn is left out: none of its 0 cases" in note for note in cohort.notes)


def test_rare_labels_do_not_matter_where_the_study_says_what_is_positive(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    change(tmp_path, diagnosis=lambda row: "rare" if row == 30 else "healthy" if 24 <= row < 39 else f"kind {row % 2}")
    entries["data"] |= {"positive": "kind 1"}
    cohort, _ = opened_elsewhere(tmp_path, entries, floor=5)  # Bonn has no positive case, and a rare other one
    assert [facts.classes[1] for facts in cohort.facts.values()] == [12, 0, 9]


@pytest.mark.parametrize(("floor", "said"), [(1, 61.5), (5, None)])
def test_the_number_of_a_few_patients_is_not_said(tmp_path, floor, said):
    entries = write_number_study(tmp_path, {"Aachen": 24, "Bonn": 3}) | {"methods": ["fedavg"]}
    change(tmp_path, age=dict.fromkeys((24, 25, 26), "61.5"))
    answered = ask_open(Study.of(entries, tmp_path), Elsewhere(split_table(tmp_path), floor=floor))
    assert answered.censuses["Bonn"].one_number == said
    assert answered.censuses["Aachen"].one_number is None


def test_a_group_of_few_patients_is_not_named_outside_its_site(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"subgroups": ["ward"]}
    change(tmp_path, ward=lambda row: "hospice" if row in (3, 30) else "1" if row % 2 else "1.0" if row < 24 else "2")
    study, engine = Study.of(entries, tmp_path), Elsewhere(split_table(tmp_path), floor=5)
    answered = ask_open(study, engine)
    assert answered.agreement.subgroups == {"ward": {"1": "1", "1.0": "1", "2": "2"}}
    cohort = ask_agree(answered, engine)
    told = [str(note) for note in cohort.notes if note.number == "N240"]
    assert [text.split(":")[0] for text in told] == ["Site Aachen", "Site Bonn"]
    assert "1 of 24 cases have values that too few cases have" in told[0]
    assert "hospice" not in " ".join(map(str, cohort.notes))


def test_a_subgroup_that_names_patients_is_refused_from_counts(tmp_path):
    entries = write_table_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"subgroups": ["patient_name"]}
    change(tmp_path, patient_name=lambda row: f"Doe {row}")
    with pytest.raises(DataError, match="'patient_name' has 57 values among 57 patients") as error:
        opened_elsewhere(tmp_path, entries)
    assert "Doe" not in error.value.message


def test_codes_of_events_are_agreed_on(tmp_path):
    entries = write_survival_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    del entries["data"]["positive"]
    change(tmp_path, status=lambda row: ("1" if row % 3 else "0") if row < 39 else "2" if row % 3 else "1")
    with pytest.raises(DataError, match=r"'status' \(`event`\) has 1 and 2 at Celle; expected 1 where the event"):
        opened_elsewhere(tmp_path, entries)
    for site in SIZES:
        shutil.rmtree(tmp_path / f"at {site}")
    # At Bonn all had the event, so that the site alone could not tell what its codes mean.
    change(tmp_path, status=lambda row: "1.0" if 24 <= row < 39 else "TRUE" if row % 3 else "false")
    cohort, _ = opened_elsewhere(tmp_path, entries)
    assert [facts.classes for facts in cohort.facts.values()] == [[8, 16], [0, 15], [6, 12]]
    assert "N250" in {note.number for note in cohort.notes}
    opened = Study.of(entries, tmp_path).open()
    assert [facts.classes for facts in opened.cohort.facts.values()] == [[8, 16], [0, 15], [6, 12]]


def test_another_unit_of_time_at_a_site(tmp_path):
    entries = write_survival_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[table["site"] == "Bonn", "days"] /= 30.0
    table.to_csv(tmp_path / "cases.csv", index=False)
    cohort, _ = opened_elsewhere(tmp_path, entries)
    units = [str(note) for note in cohort.notes if note.number == "N253"]
    assert [text.split(":")[0] for text in units] == ["Site Bonn"]
    assert units == [str(note) for note in Study.of(entries, tmp_path).open().notes if note.number == "N253"]


def test_times_that_nobody_was_seen_for_are_refused_from_counts(tmp_path):
    entries = write_survival_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"times": [100, 5000]}
    engine = Elsewhere(split_table(tmp_path))
    with pytest.raises(StudyError, match=r"P104 .*asked for at 5000 days, and no case was seen for longer"):
        run_study(Study.of(entries, tmp_path), tmp_path / "out", engine=engine)
