"""Notes: a text with a number, and with cases that stay at the site."""

import copy
import json

import pytest

from polyclinic.notes import TITLES, Note


def test_a_note_is_its_text():
    note = Note("N202", "Site A: 1 row repeats.", ["row 3"])
    assert note == "Site A: 1 row repeats."
    assert (note.number, note.cases) == ("N202", ("row 3",))


def test_results_have_the_number_and_no_case():
    written = json.dumps(Note("N202", "Site A: 1 row repeats.", ["row 3"]).to_json())
    assert "row 3" not in written
    read = Note.from_json(json.loads(written))
    assert (read, read.number, read.cases) == ("Site A: 1 row repeats.", "N202", ())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_keep_number_and_cases(copied):
    note = copied(Note("N201", "text", ["p1"]))
    assert (note, note.number, note.cases) == ("text", "N201", ("p1",))


def test_numbers_are_known():
    with pytest.raises(ValueError, match="N999"):
        Note("N999", "text")
    assert list(TITLES) == sorted(TITLES)
