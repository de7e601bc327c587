"""Values that the study file names and the tables write otherwise; patients whom no key names."""

import pytest

from note_helpers import note, numbers


def test_rows_left_out_for_their_writing(opened, noise):
    frame = noise().assign(scanner="Skyra")
    frame.loc[[3, 4, 50], "scanner"] = "skyra "
    frame.loc[5, "scanner"] = "Prisma"
    found = opened(frame, where={"scanner": "Skyra"})
    assert numbers(found) == ["N239"]
    assert "`where` names values of 'scanner' that 3 more rows have in other writing" in note(found, "N239")
    assert "'skyra' (3)" in note(found, "N239")
    assert numbers(opened(frame, where={"scanner": ["Skyra", "skyra"]})) == []


def test_a_value_that_no_row_has(opened, noise):
    frame = noise().assign(scanner="Skyra")
    found = opened(frame, where={"scanner": ["Skyra", "Pisma"]})
    assert "of which 'Pisma' stands in no row" in note(found, "N239")


def test_patients_are_not_quoted(opened, noise):
    frame = noise()
    chosen = [f"A{row:03}" for row in range(30)] + [f"B{row:03}" for row in range(30)]
    found = opened(frame, where={"pid": [*chosen[:-1], "b029", "Z9"]})
    assert "1 more row has in other writing, and these rows do not count as such. Write" in found.notes[0]
    assert "of which 2 stand in no row" in found.notes[1]


@pytest.mark.parametrize("wanted", [1, "1", "< 5", True, "!= 7"])
def test_comparisons_and_numbers(opened, noise, wanted):
    assert numbers(opened(noise().assign(scanner=1), where={"scanner": wanted})) == []


def test_a_class_that_is_written_otherwise(opened, noise):
    """`akiec` is listed as positive and written in capitals: all of it would count as negative."""
    frame = noise()
    frame["y"] = [["nv", "bkl", "mel", "AKIEC"][row * 7 % 4] for row in range(80)]
    found = opened(frame, positive=["mel", "akiec"])
    assert numbers(found) == ["N239", "N239"]
    assert "20 more rows have in other writing, and these rows do not count as such: 'AKIEC' (20)" in found.notes[0]
    assert "of which 'akiec' stands in no row" in found.notes[1]
    assert numbers(opened(frame, positive=["mel", "AKIEC"])) == []


@pytest.mark.parametrize("name", ["patient", "Subject ID", "participant_id", "PID"])
def test_a_column_of_patients_and_no_subject(opened, noise, name):
    frame = noise().drop(columns="pid")
    frame[name] = [f"P{row // 2}" for row in range(80)]
    found = opened(frame, subject=None)
    assert f"40 rows repeat a value of the column {name!r}" in note(found, "N238")
    assert numbers(opened(frame, subject=name)) in ([], ["N233"])


def test_a_column_of_patients_with_a_row_each(opened, noise):
    assert numbers(opened(noise().rename(columns={"pid": "patient"}), subject=None)) == []


def test_patient_or_control_is_a_group(opened, noise):
    assert numbers(opened(noise().assign(patient=[row // 3 % 2 for row in range(80)]), subject=None)) == []


def test_a_value_to_be_left_out_that_is_written_otherwise(opened, noise):
    """`!= A003` keeps the row of a003, `!= 999` leaves out nothing and nobody minds."""
    frame = noise()
    frame.loc[3, "pid"] = "a003"
    found = opened(frame, where={"pid": "!= A003"})
    assert sum(site.counts.found for site in found.sites.values()) == 80
    assert "`where` names values of 'pid' that 1 more row has in other writing" in note(found, "N239")


@pytest.mark.parametrize("wanted", [["!= 1", "!= 2"], ["> 1", "< 3"]])
def test_a_list_of_comparisons_that_every_row_fulfils(opened, noise, wanted):
    frame = noise().assign(scanner=[row % 4 for row in range(80)])
    found = opened(frame, where={"scanner": wanted})
    assert "2 comparisons for 'scanner', of which one is enough, and every row" in note(found, "N239")
    assert numbers(opened(frame, where={"scanner": ["< 1", "> 2"]})) == []
