"""Tables about patients and visits, written as they are on open archives."""

import pytest

from polyclinic.data.readers.people.matching import match_names
from polyclinic.data.readers.people.people import People

ONE = {name: {""} for name in ("01", "02", "03", "10")}
TWO = {name: {"1", "2"} for name in ("01", "02")}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row.split("|")) + "\n" for row in rows))


def numbers(people):
    return sorted(note.number for note in people.notes)


def column(people, visits, name):
    return [people.covariates(person, visit).get(name) for person in visits for visit in sorted(visits[person])]


@pytest.fixture
def read(tmp_path):
    """People of a folder with the given participants.tsv."""

    def make(visits, *rows, site_column=True):
        write(tmp_path / "participants.tsv", *rows)
        return People(tmp_path, visits, site_column=site_column)

    return make


@pytest.mark.parametrize(
    ("names", "other"),
    [
        (["sub-01", "sub-02", "sub-03", "sub-10"], 0),
        (["01", "02", "03", "10"], 0),
        (["1", "2", "3", "10"], 3),
        (["sub-1", "sub-2", "sub-3", "sub-10"], 3),
        (["Sub-01", "SUB-02", "Sub-03", "sub-10"], 3),
        (["1.0", "2.0", "3.0", "10.0"], 4),
        (["sub_001", "sub 02", "sub03", "10"], 3),
    ],
)
def test_names_of_patients(read, names, other):
    ages = ["61", "62", "63", "64"]
    rows = [f"{name}|{age}|north" for name, age in zip(names, ages, strict=True)]
    people = read(ONE, "participant_id|age|site", *rows)
    assert column(people, ONE, "age") == ages
    assert {people.site(person, "") for person in ONE} == {"north"}
    assert numbers(people) == ["N320"] * (other > 0)
    assert all(f"{other} names" in note for note in people.notes)


def test_two_names_for_one_are_not_matched():
    assert match_names(["1", "001"], ["01"], "sub").found == {}
    assert match_names(["1", "01"], ["01", "2"], "sub").found == {"01": "01"}
    assert match_names(["001", "1"], ["01", "1"], "sub").found == {"1": "1", "001": "01"}
    assert match_names(["002_S_0413"], ["002S0413"], "sub").found == {"002_S_0413": "002S0413"}
    assert match_names(["0050772"], ["50772", "0050773"], "sub").found == {"0050772": "50772"}
    assert match_names(["Ses-01", "bl"], ["1", "BL"], "ses").found == {"Ses-01": "1", "bl": "BL"}
    assert match_names(["", "sub-"], ["01"], "sub").found == {}


@pytest.mark.parametrize("title", ["session_id", "session", "Ses", "visit", "timepoint", "redcap_event"])
@pytest.mark.parametrize("names", [("ses-1", "ses-2"), ("1", "2"), ("01", "02"), ("SES-1", "SES-2")])
def test_a_row_a_session(read, title, names):
    rows = [
        f"sub-0{n}|{name}|{age}|{dx}|north"
        for n in (1, 2)
        for name, age, dx in zip(names, ("61", "63"), ("CN", "AD"), strict=True)
    ]
    people = read(TWO, f"participant_id|{title}|age|dx|site", *rows)
    assert column(people, TWO, "age") == ["61", "63"] * 2
    assert column(people, TWO, "dx") == ["CN", "AD"] * 2
    assert {people.site(person, "1") for person in TWO} == {"north"}
    assert not {"N321", "N322", "N323"} & set(numbers(people))


def test_rows_for_more_visits_than_images(read):
    people = read({"01": {"1"}}, "participant_id|session_id|age", "sub-01|ses-1|61", "sub-01|ses-2|63")
    assert people.covariates("01", "1") == {"age": "61"}
    assert numbers(people) == ["N322"]


def test_a_visit_without_a_row_gets_nothing(read):
    people = read(
        TWO,
        "participant_id|session_id|age|site",
        "sub-01|ses-1|61|north",
        "sub-02|ses-1|62|north",
        "sub-02|ses-2|64|north",
    )
    assert column(people, TWO, "age") == ["61", None, "62", "64"]
    assert people.site("01", "2") == "north"
    assert numbers(people) == ["N321"]
    assert "1 visit of other patients" in people.notes[0]


def test_visits_called_otherwise_are_not_guessed(read):
    people = read(TWO, "participant_id|visit|age", "sub-01|intake|61", "sub-02|intake|62")
    assert column(people, TWO, "age") == [None] * 4
    assert numbers(people) == ["N321", "N322"]


def test_one_visit_without_a_name(read):
    people = read(ONE, "participant_id|session_id|age", *(f"sub-{name}|ses-1|6{n}" for n, name in enumerate(ONE)))
    assert column(people, ONE, "age") == ["60", "61", "62", "63"]
    assert people.notes == []


def test_contradictions_are_refused(read):
    rows = ["sub-01|61|CN", "sub-01|63|AD", "sub-02|62|CN", "sub-02|62|CN", "sub-03|63|AD", "sub-10|64|AD"]
    people = read(ONE, "participant_id|age|dx", *rows)
    assert column(people, ONE, "age") == [None, "62", "63", "64"]
    assert numbers(people) == ["N323"]
    assert "about 1 patient," in people.notes[0]


def test_sites_of_contradictions(read):
    rows = ["sub-01|61|north", "sub-01|63|north", "sub-02|62|north", "sub-02|62|south", "sub-03|63|n/a"]
    people = read(ONE, "participant_id|age|site", *rows)
    assert [people.site(name, "") for name in ONE] == ["north", "", "", ""]


def test_patients_who_travel(read):
    rows = ["sub-01|ses-1|north", "sub-01|ses-2|south", "sub-02|ses-1|south"]
    people = read(TWO, "participant_id|session_id|site", *rows)
    assert [people.site(name, visit) for name in TWO for visit in ("1", "2")] == ["north", "south", "south", "south"]


def test_missing_patients_and_surplus_rows(read):
    people = read(ONE, "participant_id|age|site", "sub-01|61|north", "sub-02|62|south", "sub-77|70|north")
    assert [people.site(name, "") for name in ONE] == ["north", "south", "", ""]
    assert numbers(people) == ["N321", "N322"]
    assert "no row for 2 patients" in people.notes[0]
    assert "1 row " in people.notes[1]


def test_no_site_column(read):
    people = read(ONE, "participant_id|age", "sub-01|61")
    assert people.site("01", "") is None
    assert read(ONE, "participant_id|site", "sub-01|n/a").site("01", "") is None
    assert read(ONE, "participant_id|site", "sub-01|north", site_column=False).site("01", "") is None


def test_visits_beside_each_other(read):
    people = read(
        TWO, "participant_id|sex|age_ses-1|age_ses-2|item_1|item_2", "sub-01|F|61|63|a|b", "sub-02|M|62|n/a|a|a"
    )
    assert people.covariates("01", "1") == {"sex": "F", "age": "61", "item_1": "a", "item_2": "b"}
    assert people.covariates("01", "2")["age"] == "63"
    assert people.covariates("02", "2")["age"] == ""
    named = {"01": {"baseline", "month12"}}
    people = read(named, "participant_id|dx_baseline|dx_month12", "sub-01|CN|AD")
    assert [people.covariates("01", visit) for visit in ("baseline", "month12")] == [{"dx": "CN"}, {"dx": "AD"}]


@pytest.mark.parametrize("place", ["sub-01/sub-01_sessions.tsv", "sub-01/sessions.tsv"])
@pytest.mark.parametrize("prefix", ["ses-", ""])
def test_tables_of_sessions(read, tmp_path, place, prefix):
    write(tmp_path / place, "session_id|age|acq_date", f"{prefix}1|61|2019-01-01", f"{prefix}2|63|2020-01-01")
    people = read(TWO, "participant_id|sex|age", "sub-01|F|60", "sub-02|M|70")
    assert [people.covariates("01", visit) for visit in "12"] == [{"sex": "F", "age": "61"}, {"sex": "F", "age": "63"}]
    assert people.covariates("02", "1") == {"sex": "M", "age": "70"}
    assert "N301" in numbers(people)


def test_sessions_of_the_whole_data_set(read, tmp_path):
    write(
        tmp_path / "sessions.tsv",
        "participant_id|session_id|age",
        *(f"sub-0{n}|ses-{k}|{n}{k}" for n in (1, 2) for k in (1, 2)),
    )
    people = read(TWO, "participant_id|sex", "sub-01|F", "sub-02|M")
    assert column(people, TWO, "age") == ["11", "12", "21", "22"]
    assert column(people, TWO, "sex") == ["F", "F", "M", "M"]
    assert people.notes == []


def test_a_visit_that_its_table_of_sessions_lacks(read, tmp_path):
    write(tmp_path / "sub-01/sub-01_sessions.tsv", "session_id|age", "ses-2|63")
    people = read(TWO, "participant_id|age", "sub-01|60", "sub-02|70")
    assert people.covariates("01", "1") == {"age": ""}  # 60 may be of any visit


def test_phenotypes(read, tmp_path):
    write(tmp_path / "phenotype/moca.tsv", "participant_id|session_id|total", "1|1|26", "1|2|22", "2|1|29")
    write(tmp_path / "phenotype/gds.tsv", "participant_id|total|sex", "sub-01|3|F", "sub-02|n/a|M")
    people = read(TWO, "participant_id|sex", "sub-01|F", "sub-02|n/a")
    assert people.covariates("01", "2") == {"sex": "F", "total": "3", "moca_total": "22"}
    assert people.covariates("02", "1") == {"sex": "M", "total": "", "moca_total": "29"}
    assert people.covariates("02", "2").get("moca_total", "") == ""
    assert "N325" in numbers(people)


def test_tables_that_cannot_be_used(read, tmp_path):
    write(tmp_path / "phenotype/bad.tsv", "a|b", "1|2|3")
    write(tmp_path / "phenotype/nobody.tsv", "score", "1")
    write(tmp_path / "sub-01/sub-01_sessions.tsv", "when|age", "ses-1|61")
    people = read(TWO, "participant_id|age", "sub-01|61", "sub-02|62")
    assert numbers(people) == ["N324", "N324", "N324"]
    assert column(people, TWO, "age") == ["61", "61", "62", "62"]


def test_notes_name_no_patient(read):
    rows = ["Quixote|61|1", "Quixote|62|2", "sub-02|62|1", "Dulcinea|9|1"]
    people = read({"quixote": {""}, "02": {""}, "03": {""}}, "participant_id|age|ward", *rows)
    assert numbers(people) == ["N320", "N321", "N322", "N323"]
    assert not any(word in note for note in people.notes for word in ("uixote", "02", "Dulcinea"))
