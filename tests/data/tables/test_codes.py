import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from polyclinic.data.tables.codes import alike, canonical, equals, levels, number_text, plain_number, scalar_text

LONG = ["999000011000000103", "999000011000000111", "999000031000000106"]


def column(*cells):
    return pd.Series(cells, dtype="str", name="code")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", "1"), ("1.0", "1"), ("1.", "1"), ("+1.00", "1"), ("-0.0", "0"), (".5", "0.5"), ("-0.50", "-0.5"),
        ("0", "0"),
        ("001", None), ("1E2", None), ("1e-3", None), ("1,5", None), ("", None), (".", None), ("-", None), ("١", None),
        ("inf", None), ("nan", None), ("0x1", None), ("1 ", None), (LONG[0] + ".0", LONG[0]),
    ],
)  # fmt: skip
def test_one_spelling_of_a_number(text, expected):
    assert plain_number(text) == expected


def test_long_codes_stay_apart():
    cells = column(*LONG, *LONG)
    assert levels(canonical(cells)) == LONG
    for value in (LONG[0], int(LONG[0])):
        assert equals(cells, value).tolist() == [True, False, False] * 2
        assert scalar_text(value) == LONG[0]


def test_texts_that_only_look_like_a_number_are_not_it():
    cells = column("1E2", "100", "0100", "1e2", "100.0")
    assert equals(cells, 100).tolist() == equals(cells, "100").tolist() == [False, True, False, False, True]
    assert equals(cells, "1E2").tolist() == [True, False, False, False, False]
    assert equals(cells, "0100").tolist() == [False, False, True, False, False]
    assert levels(canonical(cells)) == ["0100", "100", "1E2", "1e2"]


def test_small_numbers_are_found_however_they_are_given():
    cells = column("0.00001", "0.1", "0.000010")
    assert equals(cells, 1e-5).tolist() == [True, False, True]
    assert [number_text(number) for number in (1.0, 0.5, 1e-5, 1e22)] == ["1", "0.5", "0.00001", "1" + 22 * "0"]


def test_spellings_of_a_number_among_texts():
    assert canonical(column("1.0", "x")).tolist() == ["1.0", "x"]
    assert canonical(column("1.0", "x", "1", "2.0")).tolist() == ["1", "x", "1", "2.0"]


def test_missing_cells_stay_missing():
    cells = column("1.0", np.nan, "1")
    assert canonical(cells).isna().tolist() == [False, True, False]
    assert equals(cells, 1).tolist() == [True, False, True]
    assert equals(column(np.nan, np.nan), 1).tolist() == [False, False]
    assert canonical(column(np.nan)).isna().all()


def test_alike():
    assert alike(["1", "1.0", "2"]) == []
    assert alike(["001", "1", "01"]) == [["001", "01", "1"]]
    assert alike(["100", "1E2", "1e+02"]) == [["100", "1E2", "1e+02"]]
    assert alike(["Yes", "yes ", "no"]) == [["Yes", "yes "]]
    assert alike(["Ko\u0308ln", "K\u00f6ln"]) == [["Ko\u0308ln", "K\u00f6ln"]]
    assert alike(["site-1", "Site_01", "site 2"]) == [["Site_01", "site-1"]]
    assert alike(["-5", "5", "1.05", "1.5", "v1.05", "v1.5"]) == []


@given(st.lists(st.from_regex(r"[0-9]{1,22}(\.[0-9]{1,4})?", fullmatch=True), min_size=2, max_size=2, unique=True))
def test_different_digits_are_different_codes(pair):
    exact = [text.rstrip("0").rstrip(".") if "." in text else text for text in pair]
    cells = column(*pair)
    assert (canonical(cells).nunique() == 1) == (exact[0] == exact[1])
    assert equals(cells, pair[0]).all() == (exact[0] == exact[1])
