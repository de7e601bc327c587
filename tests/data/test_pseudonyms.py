"""Names of patients that tell nothing without the site's secret."""

import hashlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.data.pseudonyms import SALT_FILE, pseudonym, study_salt
from polyclinic.errors import DataError


def test_a_name_worked_by_hand():
    text = (3).to_bytes(8, "little") + b"abc" + (4).to_bytes(8, "little") + b"P001"
    assert pseudonym("P001", "abc") == "S" + hashlib.sha256(text).hexdigest()[:10]


@given(st.text(), st.text(), st.text(), st.text())
def test_names_differ_where_patient_or_salt_do(subject, salt, other_subject, other_salt):
    same = (subject, salt) == (other_subject, other_salt)
    assert (pseudonym(subject, salt) == pseudonym(other_subject, other_salt)) == same


def test_moving_a_letter_from_salt_to_patient_changes_the_name():
    assert pseudonym("bc", "a") != pseudonym("c", "ab")


def test_the_salt_is_made_once_and_is_the_owners_alone(tmp_path):
    folder = tmp_path / "new"
    salt = study_salt(folder)
    assert len(salt) == 64
    assert study_salt(folder) == salt
    assert study_salt(tmp_path / "other") != salt
    assert stat.S_IMODE((folder / SALT_FILE).stat().st_mode) == 0o600
    assert "must stay at the site" in (folder / SALT_FILE).read_text()


@pytest.mark.parametrize(
    "content", [b"", b"# only a comment\n", b"short\n", b"a" * 20 + b"\n" + b"b" * 20, b"\xff\xfe"]
)
def test_a_file_that_holds_no_salt_is_told(tmp_path, content):
    (tmp_path / SALT_FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"P201 salt\.txt (holds no salt of at least 16 characters|can't be read)"):
        study_salt(tmp_path)
