"""Columns that are not numbers after all: refused, with advice that does not make another number of them."""

import pandas as pd
import pytest

from polyclinic.data.tables.numbers import notation, require_points, to_numbers
from polyclinic.errors import DataError


def column(*cells, name="x"):
    return pd.Series(cells, dtype="str", name=name)


def refusal(*cells, use="features"):
    with pytest.raises(DataError, match=rf"P203 The column 'x' \(`{use}`\)") as caught:
        to_numbers(column(*cells), use)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cells", "advice"),
    [
        (("1,234", "998"), "The comma may separate thousands or decimals"),
        (("1,234,567", "998"), "The comma may separate thousands or decimals"),
        (("1,234.5", "998"), "without separators of thousands"),
        (("1 234", "2"), "without separators of thousands"),
        (("1\u00a0234,5", "2"), "without separators of thousands"),
        (("1'234", "2"), "without separators of thousands"),
        (("1.234,5", "2"), "1234.5, not 1.234,5"),
        (("1.234.567", "2"), "no separators of thousands"),
        (("1,5", "-", "2"), "Write a decimal point instead of a decimal comma"),
        (("1,5", "2,75"), "Write a decimal point instead of a decimal comma"),
        (("5%", "6,5 %"), "without the percent sign"),
        (("5 mm", "6"), "Write the unit into the column's name"),
        (("<0.01", "1"), "A limit is no number"),
        (("≥ 90", "1"), "A limit is no number"),
        (("\u22125", "1"), "the hyphen of the keyboard"),
        (("#N/A", "#DIV/0!", "1"), "errors of a spreadsheet"),
        (("2021-01-31", "31.1.2021", "1/31/21"), "Dates are no numbers"),
        (("-", "1"), "add it to `missing`"),
        ((".", "None", "1"), "add it to `missing`"),
        (("1_000", "1"), "add it to `missing`"),
        (("yes", "5 mm"), "add it to `missing`"),
    ],
)
def test_the_notation_is_named(cells, advice):
    assert advice in refusal(*cells)


def test_no_advice_makes_a_decimal_of_a_thousand():
    for cells in (("1,234", "998"), ("1.234", "998"), ("1,234.5", "998")):
        assert "decimal point instead" not in refusal(*cells)
        assert "1.25" not in refusal(*cells)


@pytest.mark.parametrize(
    "cells",
    [
        ("1.234", "998", "1.301", "950"),
        ("50.000", "1.000", "2.500", "998", "100"),
        ("1.234", "1000", "1500"),  # one site writes separators, another none
        ("-1.234", "-998", "1.100"),
    ],
)
def test_points_that_separate_thousands(cells):
    assert "a point seems to separate thousands (such as 1.234 for 1234)" in refusal(*cells)
    assert "a point seems" in refusal(*cells, use="label")


@pytest.mark.parametrize(
    "cells",
    [
        ("1.234", "1.301"),
        ("12.125", "13", "40"),
        ("0.125", "998"),
        ("123.456", "3905", "2"),
        ("1.25", "1.125", "998"),
        ("1.2340", "998", "1.3010"),
        ("1.0", "998.0", "1500.0"),
        ("1e-3", ".5", "+2", "-7"),
        ("0.12345678901234567", "1"),
        ("1", "2"),
    ],
)
def test_decimals_are_read(cells):
    assert to_numbers(column(*cells), "features").tolist() == [float(cell) for cell in cells]


def test_a_column_with_three_decimals_throughout():
    texts = [f"{4 + (37 * i % 101) / 13:.3f}" for i in range(200)]
    assert to_numbers(column(*texts), "features").tolist() == [float(text) for text in texts]


def test_long_codes_are_no_numbers():
    assert "has 2 cells with more than 15 digits, which are codes" in refusal(
        "999000011000000103", "-1234567890123456", "1"
    )
    assert "Name the column under `groups`" in refusal("999000011000000103", "1", use="covariates")
    assert to_numbers(column("999000011000000", "1"), "features").tolist() == [999000011000000.0, 1.0]


def test_numbers_to_predict_are_not_lost_to_their_notation():
    require_points(column("12", "old", "<18"), "label")  # such rows are rejected and counted
    with pytest.raises(DataError, match=r"P203 .* has 1 cell that is not a number"):
        require_points(column("12", "12,5", "13"), "label")


def test_texts_of_several_kinds_have_no_notation():
    assert notation(column("5 mm", "north")) == ""
    assert notation(column("-", "NA")) == ""
    assert notation(column()) == ""
