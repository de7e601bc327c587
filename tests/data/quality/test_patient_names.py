"""Names of patients and sites: two writings of one name, and one name for many."""

import pytest

from note_helpers import note, numbers
from polyclinic.data.quality.words import folded_name
from polyclinic.errors import DataError


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("P01", "p01"), ("Zoë", "Zoe\u0308"), ("P 1", "P  1"), ("1", "1.0"), ("001", "1"), ("sub-01", "01"),
        ("Sub-01", "sub-1"), ("P-1", "P\u20131"), ("P_1", "P 1"), ("P1", "Ｐ1"),
    ],
)  # fmt: skip
def test_two_writings_of_one_name(opened, noise, first, second):
    frame = noise()
    frame.loc[[3, 4], "pid"] = [first, second]
    found = opened(frame)
    assert numbers(found) == ["N230"]
    assert "Site A: 1 patient's name is written in several ways" in note(found, "N230")
    assert note(found, "N230").cases == ("row 4", "row 5")
    assert first not in note(found, "N230").replace("`.0`", "")[30:] or len(first) < 2


@pytest.mark.parametrize(
    ("first", "second"), [("P1", "P2"), ("P10", "P1"), ("1.0", "10"), ("1.05", "1.5"), ("a-1", "a1")]
)
def test_different_names(first, second):
    assert folded_name(first) != folded_name(second)


def test_two_writings_at_two_sites(opened, noise):
    frame = noise()
    frame.loc[[3, 44], "pid"] = ["X01", "x1"]
    found = opened(frame)
    assert numbers(found) == ["N230"]
    assert "1 patient name stands at more than one site in different writing" in note(found, "N230")


@pytest.mark.parametrize(
    "names",
    [("Bonn", "bonn"), ("Köln", "Ko\u0308ln"), ("Site 1", "site_1"), ("1", "1.0"), ("01", "1")],
)
def test_two_writings_of_a_site_are_refused(opened, noise, names):
    frame = noise()
    frame["site"] = frame["site"].map(dict(zip("AB", names, strict=True)))
    with pytest.raises(DataError, match="P203 1 site has a name that is written in several ways"):
        opened(frame)


@pytest.mark.parametrize(
    "name", ["ANONYMOUS", "anonymous", "unknown", "0", "Anonymized", "de-identified", "No Name", "-"]
)
def test_a_name_for_nobody(opened, noise, name):
    frame = noise()
    frame.loc[:19, "pid"] = name
    found = opened(frame)
    assert numbers(found) == ["N231"]
    assert "Site A: 20 of 40 rows have a patient's name that stands for an unknown one" in note(found, "N231")
    assert len(note(found, "N231").cases) == 20


def test_all_rows_have_one_name(opened, noise):
    frame = noise()
    frame.loc[:39, "pid"] = "MRHEAD"
    assert "Site A: 40 of 40 rows have the same patient's name" in note(opened(frame), "N231")


def test_a_pattern_that_takes_the_same_of_all(opened, noise):
    frame = noise()
    frame["pid"] = [f"sub-{row:03}" for row in range(80)]
    found = opened(frame, subject_pattern="(sub)-")
    assert numbers(found).count("N231") == 2


@pytest.mark.parametrize("form", ["{}", "{}.0", "{:03}"])
def test_patient_0_is_a_patient_like_others(opened, noise, form):
    frame = noise()
    frame["pid"] = [form.format(row // 2) for row in range(80)]
    frame = frame.assign(y=[row // 2 % 2 for row in range(80)])
    assert "N231" not in numbers(opened(frame))


@pytest.mark.parametrize(
    "endings",
    [("_MR1", "_MR2"), ("_ses-01", "_ses-02"), ("_L", "_R"), ("-v1", "-v2"), ("_pre", "_post"), ("_week12", "_week0")],
)
def test_visits_that_count_as_patients(opened, noise, endings):
    frame = noise()
    frame["pid"] = [f"X{site}{row // 2:02}{endings[row % 2]}" for row, site in enumerate(frame["site"])]
    found = opened(frame)
    assert numbers(found) == ["N232", "N232"]
    assert "Site A: 40 patients' names differ only in an ending" in note_of(found, 0)
    assert "look like 20 patients" in note_of(found, 0)


def note_of(found, place):
    return found.notes[place]


@pytest.mark.parametrize("pattern", ["HOSP_S{:03}", "north-{:02}", "ABC{:04}", "s{:03}", "{:08x}", "P{:03}_M"])
def test_patients_that_are_numbered_are_patients(opened, noise, pattern):
    frame = noise()
    frame["pid"] = [pattern.format(row * 7919) for row in range(80)]
    assert numbers(opened(frame)) == []


def test_a_patient_with_two_classes(opened, noise):
    frame = noise()
    frame["pid"] = [f"Q{row // 2:02}" for row in range(80)]
    frame["y"] = [row // 2 % 2 for row in range(80)]
    assert numbers(opened(frame)) == []
    frame.loc[7, "y"] = 1 - frame.loc[7, "y"]
    found = opened(frame)
    assert "1 of 40 patients with several cases has cases of different classes" in note(found, "N233")
    assert note(found, "N233").cases == ("row 7", "row 8")


def test_where_the_label_belongs_to_the_case(opened, noise):
    """Most patients have cases of both classes, as eyes or lesions do: no mistake."""
    frame = noise()
    frame["pid"] = [f"Q{row // 2:02}" for row in range(80)]
    frame["y"] = [row % 2 for row in range(80)]
    assert numbers(opened(frame)) == []


def test_rounded_names_are_told_once(opened, noise):
    frame = noise()
    frame["pid"] = ["9.99E+17" if row % 8 and row < 40 else f"P{row}" for row in range(80)]
    found = opened(frame)
    assert numbers(found) == ["N213"]
    assert "35 cells look like long codes" in note(found, "N213")
