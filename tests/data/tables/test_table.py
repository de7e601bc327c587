import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from polyclinic.data.tables.table import (
    canonical,
    comparison,
    is_missing,
    levels,
    locate,
    matches,
    read_cells,
    to_numbers,
)
from polyclinic.errors import DataError


def column(*cells, name="age"):
    return pd.Series(cells, dtype="str", name=name)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_separator_is_found_and_cells_stay_texts(write_table, separator):
    rows = [["id", "name with blanks", "x"], ["007", " Ann ", "1.50"], ["010", "", "?"]]
    folder = write_table("\n".join(separator.join(row) for row in rows) + "\n", "any.name")
    cells = read_cells(folder / "any.name")
    assert cells.columns.tolist() == rows[0]
    assert cells.to_numpy().tolist() == [["007", "Ann", "1.50"], ["010", "", "?"]]


def test_byte_order_mark_and_quotes(tmp_path):
    (tmp_path / "t.csv").write_text('id,note\n1,"a, b"\n', encoding="utf-8-sig")
    cells = read_cells(tmp_path / "t.csv")
    assert cells.columns.tolist() == ["id", "note"]
    assert cells["note"].tolist() == ["a, b"]


def test_file_without_header(write_table):
    folder = write_table("63,1\n44,0\n", "x.data")
    assert read_cells(folder / "x.data", ["age", "sex"])["age"].tolist() == ["63", "44"]
    with pytest.raises(DataError, match=r"P202 `columns` gives 3 names, but the table 'x.data' has 2 columns"):
        read_cells(folder / "x.data", ["age", "sex", "cp"])


def test_surplus_cells_are_no_index(write_table):
    folder = write_table("a,b\n1,2,3\n")
    with pytest.raises(DataError, match=r"P201 .* has 1 row with too many cells \(line 2\)"):
        read_cells(folder / "table.csv")


def test_empty_and_binary_files(tmp_path):
    (tmp_path / "e.csv").write_text("")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match=r"P201 The table 'e.csv' is empty"):
        read_cells(tmp_path / "e.csv")
    with pytest.raises(DataError, match=r"P201 The table 'b.csv' is not UTF-8 text"):
        read_cells(tmp_path / "b.csv")


def test_missing_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(DataError, match=r"P201 The table 'gone.csv' can't be found") as caught:
        locate("sub/gone.csv", tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_missing_package_says_what_to_install(tmp_path):
    with pytest.raises(DataError, match=r"P503 .*Run: pip install no-such-package-x"):
        locate("package:no-such-package-x/a.csv", tmp_path)


def test_missing_file_of_a_package(tmp_path):
    with pytest.raises(DataError, match=r"P201 The Python package 'pytest' has no file '../../etc/passwd'"):
        locate("package:pytest/../../etc/passwd", tmp_path)


def test_numbers():
    numbers = to_numbers(column("1", "-2.5", "1e3", np.nan), "features")
    np.testing.assert_array_equal(numbers, [1.0, -2.5, 1000.0, np.nan])


def test_text_among_numbers_is_quoted():
    expected = r"P203 The column 'age' \(`features`\) has 1 cell that is not a number \(such as 'old'\)\. If the text"
    with pytest.raises(DataError, match=expected):
        to_numbers(column("1", "2", "3", "old"), "features")


def test_infinity_is_not_a_number():
    with pytest.raises(DataError, match="such as 'inf'"):
        to_numbers(column("1", "2", "inf"), "features")


@pytest.mark.parametrize(
    ("cells", "identifies"),
    [(("1", "2", "3", "Ann Smith"), True), (("Ann Smith", "Bob Smith"), False), (("Ann Smith",) * 3 + ("1",), False)],
)
def test_text_of_an_identifying_column_is_not_quoted(cells, identifies):
    with pytest.raises(DataError, match=r"P203 The column 'age'") as caught:
        to_numbers(column(*cells), "features", identifies=identifies)
    assert "Smith" not in str(caught.value)


def test_text_that_comes_again_and_again_is_quoted():
    with pytest.raises(DataError, match=r"20 cells that are not numbers \(such as 'M'\)"):
        to_numbers(column(*"MF" * 10), "features")


def test_decimal_comma():
    with pytest.raises(DataError, match="Write a decimal point instead of a decimal comma"):
        to_numbers(column("1,5", "2,5"), "features")


@pytest.mark.parametrize(
    ("cells", "wanted", "expected"),
    [
        (["1", "1.0", "2", "x"], 1, [True, True, False, False]),
        (["1", "1.0", "2", "x"], "1", [True, True, False, False]),
        (["1", "1.0", "2", "x"], [1, "x"], [True, True, False, True]),
        (["mel", "Mel", "nv", np.nan], "mel", [True, False, False, False]),
        (["mel", "Mel", "nv", np.nan], "!= mel", [False, True, True, False]),
        (["mel", "nv", "bcc"], "== nv", [False, True, False]),
        (["-1", "0", "1", np.nan], "< 1", [True, True, False, False]),
        (["-1", "0", "1", np.nan], "<=0", [True, True, False, False]),
        (["-1", "0", "1", np.nan], "> -0.5", [False, True, True, False]),
        (["-1", "0", "1", np.nan], ">=0", [False, True, True, False]),
        (["yes", "No", "TRUE", "0", "1"], True, [True, False, True, False, True]),
        (["yes", "No", "TRUE", "0", "1"], False, [False, True, False, True, False]),
        ([">50K", "<=50K"], ">50K", [True, False]),
        (["a", np.nan], [], [False, False]),
    ],
)
def test_matches(cells, wanted, expected):
    assert matches(column(*cells), wanted).tolist() == expected


def test_order_needs_numbers_and_quotes_none():
    with pytest.raises(DataError, match=r"P203 The column 'age'") as caught:
        matches(column("1", "2", "Smith"), "< 3")
    assert "Smith" not in str(caught.value)


def test_comparison_is_told_from_a_value():
    assert comparison("< 1") == ("<", "1")
    assert comparison("!= a b") == ("!=", "a b")
    assert comparison("> x") is None
    assert comparison("x < 1") is None
    assert comparison(3) is None


def test_levels_in_order():
    assert levels(column("10", "9", "1")) == ["1", "9", "10"]
    assert levels(column("b", "10", "9")) == ["10", "9", "b"]
    assert canonical(column("1.0", "2", "0.50", np.nan)).tolist()[:3] == ["1", "2", "0.5"]
    assert canonical(column("1.0", "x")).tolist() == ["1.0", "x"]


def test_a_missing_number_is_meant_however_it_is_written():
    cells = pd.DataFrame({"x": ["-999", "-999.0", "-999.00", "-9990", "999", "", "NA", "0999"]})
    assert is_missing(cells, ["-999", "NA"])["x"].tolist() == [True, True, True, False, False, True, True, False]
    assert is_missing(cells.replace("-999", "99.90"), ["99.9"])["x"].tolist()[:2] == [True, False]


@given(st.lists(st.integers(-1000, 1000), min_size=1))
def test_number_texts_do_not_matter(values):
    plain = canonical(column(*map(str, values)))
    floats = canonical(column(*(f"{value}.0" for value in values)))
    assert plain.tolist() == floats.tolist() == [str(value) for value in values]
