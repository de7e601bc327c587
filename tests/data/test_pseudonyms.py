"""Names of patients that tell nothing without the site's secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.data.pseudonyms import find_salt, keep_salt, new_salt, pseudonym
from polyclinic.errors import DataError, ResultsError


def test_pseudonyms():
    assert new_salt() != new_salt()
    name = pseudonym("4711", "salt", "sub")
    # printf 4711 | openssl dgst -sha256 -hmac salt
    assert name == "sub-0f494b86f1cd"
    assert name == pseudonym(" 4711", "salt", "sub")
    assert len({name, pseudonym("4711", "pepper", "sub"), pseudonym("4712", "salt", "sub")}) == 3


@given(st.text(), st.text(), st.text(), st.text())
def test_names_differ_where_patient_or_salt_do(subject, salt, other_subject, other_salt):
    same = (subject.strip(), salt) == (other_subject.strip(), other_salt)
    names = pseudonym(subject, salt, "sub"), pseudonym(other_subject, other_salt, "sub")
    assert (names[0] == names[1]) == same


def test_salt_is_kept_beside_the_manifest(tmp_path):
    out = tmp_path / "out/m.csv"
    salt = find_salt(out, None)
    assert len(salt) == 32
    assert salt != find_salt(out, None)
    place = keep_salt(out, salt)
    assert place == tmp_path / "out/m.salt"
    assert "never send it" in place.read_text()
    assert place.stat().st_mode & 0o077 == 0
    assert find_salt(out, None) == salt
    assert find_salt(out, "mine") == "mine"
    place.write_text("# nothing\n")
    with pytest.raises(DataError, match=r"P201 The salt file 'm.salt' is empty"):
        find_salt(out, None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="P501"):
        keep_salt(tmp_path / "file/m.csv", salt)
