"""Numbers of patients that are none, stand for many, or are spelt in several ways."""

import numpy as np
import pytest

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.dicom.header import read_header
from polyclinic.data.readers.scan import scan_folder

PICTURE = np.arange(42, dtype=np.int16).reshape(6, 7)


@pytest.fixture
def people(dicom, tmp_path):
    """Writes a study for each set of elements; gives the patient of each, and numbers and texts of the notes."""

    def people(*studies):
        for number, elements in enumerate(studies):
            common = {"PatientBirthDate": None, "PatientName": None, "SeriesInstanceUID": f"1.5.{number}"}
            common |= {"StudyInstanceUID": f"1.6.{number}"}
            dicom(tmp_path / f"{number}.dcm", PICTURE + number, **(common | elements))
        found = scan_folder(tmp_path, site="s", salt="salt")
        subjects = {image.where: image.subject for image in found.images}
        names = [subjects[f"{number}.dcm"] for number in range(len(studies))]
        first = {name: index for index, name in reversed(list(enumerate(names)))}
        assert all(name.startswith("sub-") for name in names)
        return [first[name] for name in names], [
            (note.number, str(note)) for note in found.notes if getattr(note, "number", "").startswith("N52")
        ]

    return people


@pytest.mark.parametrize("number", ["ANONYMOUS", "anonymized", "0", "000000", "Unknown", "", None, "***", "N/A", "xxx"])
def test_placeholders_are_no_patients(people, number):
    patients, notes = people(*[{"PatientID": number}] * 3)
    assert patients == [0, 1, 2]
    ((kind, text),) = notes
    assert kind == "N520"
    assert text.startswith("Site s: 3 DICOM studies are without a PatientID, or with a placeholder")


@pytest.mark.parametrize("number", ["1", "X7", "ANON-17", "Patient3", "NA12", "unknown-4", "1000"])
def test_numbers_that_only_look_like_placeholders(people, number):
    assert people({"PatientID": number}, {"PatientID": number}) == ([0, 0], [])


def test_files_of_a_study_that_lack_the_number(people):
    one = {"PatientID": "P1", "StudyInstanceUID": "1.7"}
    assert people(one, {"PatientID": None, "StudyInstanceUID": "1.7"}) == ([0, 0], [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"PatientBirthDate": "19500101"}, {"PatientBirthDate": "19610203"}),
        ({"PatientSex": "M"}, {"PatientSex": "F"}),
        ({"PatientName": "Doe^John"}, {"PatientName": "Roe^Jane"}),
        (
            {"PatientName": "Doe^John", "PatientBirthDate": "19700101"},
            {"PatientName": "Roe^Jane", "PatientBirthDate": "19700101"},
        ),
    ],
)  # fmt: skip
def test_one_number_for_several_persons(people, one, other):
    common = {"PatientID": "SITE4"}
    common_name = {"PatientName": "Doe^John"} if "PatientSex" in one else {}
    patients, notes = people(common | common_name | one, common | common_name | other, common | common_name | one)
    assert patients == [0, 1, 0]
    assert [number for number, _ in notes] == ["N521"]
    assert notes[0][1].startswith("Site s: 1 PatientID stands for 2 persons")


def test_a_study_that_could_be_any_of_several_persons_is_one_of_its_own(people):
    birth = [{"PatientBirthDate": f"19{year}0203"} for year in (50, 60)]
    patients, notes = people(*[{"PatientID": "SITE4"} | more for more in (*birth, {}, {})])
    assert patients == [0, 1, 2, 3]
    assert "4 persons" in notes[0][1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"PatientName": "Doe^Jane"}, {"PatientName": "Smith^Jane"}),
        ({"PatientName": "Müller^Änne"}, {"PatientName": "MULLER^ANNE"}),
        ({"PatientName": "Doe^Jane"}, {"PatientName": "Anonymous"}),
        (
            {"PatientName": "Doe^J", "PatientBirthDate": "19550607"},
            {"PatientName": "Roe", "PatientBirthDate": "19550607"},
        ),
        ({"PatientBirthDate": "19550607"}, {"PatientBirthDate": "19000101"}),
        ({"PatientSex": "F"}, {"PatientSex": "O"}),
    ],
)  # fmt: skip
def test_visits_of_one_person_stay_together(people, one, other):
    assert people({"PatientID": "P1"} | one, {"PatientID": "P1"} | other) == ([0, 0], [])


@pytest.mark.parametrize("other", ["p1", " P1", "P 1"])
def test_a_number_in_several_spellings(people, other):
    patients, notes = people({"PatientID": "P1"}, {"PatientID": other}, {"PatientID": "Q"})
    assert patients == [0, 0, 2]
    assert [number for number, _ in notes] == ([] if other == " P1" else ["N522"])


def test_spellings_of_different_persons_are_kept_apart(people):
    patients, notes = people(
        {"PatientID": "a7", "PatientBirthDate": "19500202"}, {"PatientID": "A7", "PatientBirthDate": "19600303"}
    )
    assert patients == [0, 1]
    assert [number for number, _ in notes] == ["N523"]


def test_leading_zeros_need_a_second_witness(people):
    assert people({"PatientID": "001"}, {"PatientID": "1"})[0] == [0, 1]


def test_leading_zeros_with_a_second_witness(people):
    birth = {"PatientBirthDate": "19500202"}
    patients, notes = people({"PatientID": "001"} | birth, {"PatientID": "1"} | birth)
    assert patients == [0, 0]
    assert [number for number, _ in notes] == ["N522"]


def test_all_studies_with_one_number(people):
    patients, notes = people(*[{"PatientID": "HOSPITAL"}] * 5)
    assert patients == [0] * 5
    assert [number for number, _ in notes] == ["N524"]
    assert "All 5 DICOM studies have the same PatientID" in notes[0][1]


def test_one_person_with_many_visits(people):
    assert people(*[{"PatientID": "P1", "PatientName": "Doe^Jane"}] * 6) == ([0] * 6, [])


def test_the_same_study_and_number_for_different_persons(people):
    one = {"PatientID": "P", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    patients, _ = people(
        one | {"PatientBirthDate": "19500101"}, one | {"PatientName": "A^B", "PatientBirthDate": "19510203"}
    )
    assert patients == [0, 1]


def test_nothing_of_the_person_is_kept(dicom, patient, tmp_path):
    path = dicom(tmp_path / "a.dcm", PICTURE, PatientSex="F")
    header = read_header(path, salt="salt", root=tmp_path)
    assert not [text for text in patient if text in repr(header)]
    assert read_header(path, salt="salt").person.birth == header.person.birth != ""
    assert read_header(path, salt="another").person.birth != header.person.birth
    assert read_header(path).person.birth == ""


def test_one_number_at_two_hospitals_stands_for_two_persons(tmp_path, dicom):
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    for study, number in (("1", "0042"), ("2", "ANONYMOUS")):
        for site in ("north", "south"):  # which have the same UIDs, too
            for visit in ("1", "2"):
                uids = {"StudyInstanceUID": f"1.2.{study}.{visit}", "SeriesInstanceUID": f"1.3.{study}.{visit}"}
                dicom(tmp_path / site / number / f"{visit}.dcm", pixels, PatientID=number, **uids)
    frame = scan_folder(tmp_path, site_from="folder", salt="salt").manifest
    owners = frame.groupby("subject")["site"].unique()
    assert all(len(sites) == 1 for sites in owners)
    assert sorted(frame[frame["image"].str.contains("0042")].groupby("site")["subject"].nunique()) == [1, 1]
    assert len(owners) == 6  # a number at each site, and two studies without one at each
    alone = scan_folder(tmp_path / "north", site="north", salt="salt").manifest
    assert pseudonym("0042", "salt", "sub") in set(alone["subject"])  # names of a site by itself stay as they were
    assert pseudonym("north/0042", "salt", "sub") in set(owners.index)  # as NIfTI files of that name
