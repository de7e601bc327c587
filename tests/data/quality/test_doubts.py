"""Notes on columns that were read as they are, and may mean something else."""

import numpy as np
import pytest

from polyclinic.data.open import open_data
from polyclinic.data.spec import DataSpec
from polyclinic.errors import DataError

ENTRIES = {"table": "table.csv", "site": "site", "subject": "id", "label": "y", "features": ["x"]}


@pytest.fixture
def opened(write_table):
    """Write a table of 40 rows with these columns besides site, id, y and x, and open it."""

    def write(target="labels", columns=None, **entries):
        table = {
            "site": ["A"] * 20 + ["B"] * 20,
            "id": [f"p{i}" for i in range(40)],
            "y": [str(i // 4 % 2) for i in range(40)],
            "x": [str(20 + 7 * i % 37) for i in range(40)],
        } | (columns or {})
        lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
        return open_data(DataSpec.model_validate(ENTRIES | entries), write_table("\n".join(lines) + "\n"), target)

    return write


def found(result, *numbers):
    return [(note.number, str(note)) for note in result.notes if note.number in numbers]


def test_a_plain_table_has_no_notes(opened):
    ages = np.random.default_rng(0).normal(60, 9, 40).round(4)
    assert opened(columns={"x": ages.astype(str).tolist()}).notes == []


@pytest.mark.parametrize(
    ("values", "noted"),
    [
        (["-999", "-999"], ["-999"]),
        (["-999.0", "-999.00"], ["-999"]),
        (["9999", "9999"], ["9999"]),
        (["999.9", "999.9", "-99", "-99"], ["-99", "999.9"]),
        (["-1", "-1"], ["-1"]),
        (["-1", "-2"], []),
        (["88", "88"], []),  # an age among ages of 20 to 59
        (["-999"], []),
        (["1000", "1000"], []),
    ],
)
def test_numbers_that_stand_for_missing(opened, values, noted):
    cells = [*values, *(str(20 + i) for i in range(40 - len(values)))]
    told = " ".join(note for _, note in found(opened(columns={"x": cells}), "N236"))
    codes = ("-99", "-999", "9999", "999.9", "-1", "-2", "88", "1000")
    assert [code for code in codes if f"x {code} (" in told] == noted
    if noted:
        assert not found(opened(columns={"x": cells}, missing=[str(cell) for cell in noted]), "N236")
        assert found(opened("numbers", columns={"z": cells}, label="z"), "N236")


def test_divided_numbers_are_looked_at_before(opened):
    cells = ["-999"] * 2 + [str(20 + i) for i in range(38)]
    result = opened(columns={"x": cells, "icv": [str(3 + i) for i in range(40)]}, divide_by="icv")
    assert len(found(result, "N236")) == 1


def test_groups_with_a_number_for_missing(opened):
    """Too few values for a usual range."""
    assert len(found(opened(columns={"x": ["-999"] * 2 + ["0", "1"] * 19}), "N236")) == 1
    assert not found(opened(columns={"x": ["2"] * 2 + ["0", "1"] * 19}), "N236")


def test_codes_that_count_as_numbers(opened):
    result = opened(columns={"x": [f"{7 * i % 10:03}" for i in range(40)]})
    assert found(result, "N211") == [(
        "N211", "Column 'x': 40 cells begin with a 0, as codes do, and count as numbers: if they are codes, name the "
        "column under `categorical`.",
    )]  # fmt: skip
    assert result.sites["A"].inputs[:, 0].tolist() == [7 * i % 10 for i in range(20)]
    counted = opened(columns={"x": [f"{i:03}" for i in range(40)]})  # what numbers the rows is told by N221
    assert [number for number, _ in found(counted, "N211", "N221")] == ["N221"]
    assert not found(opened(columns={"x": [f"0.{i:03}" for i in range(40)]}), "N211")


def test_one_value_in_two_spellings(opened):
    wards = ["1", "001", "1.0", "Yes", "yes"] * 8
    result = opened(columns={"ward": wards}, categorical=["ward"])
    assert result.features == ["x", "ward=001", "ward=1", "ward=Yes", "ward=yes"]
    assert found(result, "N212") == [(
        "N212", "Column 'ward' tells apart what differs in spelling only: '001', '1'; 'Yes', 'yes'. If they mean the "
        "same, write them alike.",
    )]  # fmt: skip


def test_codes_that_count_as_one_number(opened):
    result = opened(columns={"icd": ["250.0", "250.00", "250.1", "7"] * 10}, categorical=["icd"])
    assert result.features == ["x", "icd=7", "icd=250", "icd=250.1"]
    assert "takes as one number what codes may tell apart: '250.0', '250.00'." in found(result, "N212")[0][1]
    assert not found(opened(columns={"icd": ["1", "1.0", "2.0"] * 13 + ["2"]}, categorical=["icd"]), "N212")


def test_codes_that_a_spreadsheet_has_rounded(opened):
    result = opened(columns={"id": ["9.99E+17", "1E+15", "1.5E+03", "E+17"] * 10})
    assert [note[:20] for _, note in found(result, "N213")] == ["Column 'id': 20 cell"]


def test_where_leaves_what_is_spelt_otherwise(opened):
    centres = ["010", "10", "10.0", "011"] * 10
    result = opened(columns={"centre": centres}, where={"centre": "010"})
    assert sum(len(data) for data in result.sites.values()) == 10
    assert len(found(result, "N239")) == 1
    both = opened(columns={"centre": centres}, where={"centre": ["010", 10]})
    assert sum(len(data) for data in both.sites.values()) == 30
    assert not found(both, "N239")
    assert not found(opened(columns={"centre": centres}, where={"centre": "> 9"}), "N239")


def test_long_codes_stay_apart_in_every_use(opened):
    codes = ["999000011000000103", "999000011000000111", "999000031000000106", "999000031000000106"] * 10
    assert opened(columns={"y": codes}).classes == sorted(set(codes))
    positive = opened(columns={"y": codes}, positive=codes[0])
    assert sum(data.targets.sum().item() for data in positive.sites.values()) == 10
    assert len(opened(columns={"code": codes}, categorical=["code"]).features) == 4
    assert sum(len(data) for data in opened(columns={"code": codes}, where={"code": codes[0]}).sites.values()) == 10
    assert len(opened(columns={"site": codes}).sites) == 3
    assert len(set(opened(columns={"id": codes}).sites["A"].subjects)) == 3
    with pytest.raises(DataError, match=r"P203 The column 'code' .*more than 15 digits, which are codes"):
        opened(columns={"code": codes}, features=["x", "code"])


def test_covariates_in_another_notation(opened):
    combat = {"combat": {"covariates": ["age"]}}
    for cells, hint in (
        (['"61,5"', '"60,25"'], "Write a decimal point instead of a decimal comma"),
        (["061", "060"], "Name the column under `groups`"),
        (["999000011000000103", "60"], "Name the column under `groups`"),
        (["1.234", "998"], "without separators of thousands"),
    ):
        with pytest.raises(DataError, match=rf"P203 .*'age'.* {hint}"):
            opened(columns={"age": cells * 20}, harmonisation=combat)
    groups = opened(columns={"age": ["001", "1", "002", "2"] * 10}, harmonisation={"combat": {"groups": ["age"]}})
    assert groups.covariates == {"age": ["age=002", "age=1", "age=2"]}
    assert found(groups, "N212")


def test_numbers_to_predict_with_decimal_commas(opened):
    with pytest.raises(DataError, match=r"P203 The column 'z' \(`label`\) has 20 cells"):
        opened("numbers", columns={"z": ['"1,5"', "2"] * 20}, label="z")


def test_lost_cells_are_not_filled_with_the_mean(opened, write_table):
    folder = write_table("site,id,y,x,z\n" + "".join(f"A,p{i},{i % 2},{i}{',5' if i % 9 else ''}\n" for i in range(40)))
    with pytest.raises(DataError, match=r"P201 .* has 5 rows with too few cells \(lines 2, 11, 20, 29 and 38\)"):
        open_data(DataSpec.model_validate(ENTRIES), folder, "labels")


def test_notes_hold_no_patient(opened):
    cells = ["-999"] * 2 + [str(20 + i) for i in range(38)]
    result = opened(columns={"x": cells, "id": ["1E+15", "2E+15"] * 20})
    assert len(found(result, "N236", "N213")) == 2
    assert not any(name in note for note in result.notes for name in ("1E+15", "p1"))
    assert np.isfinite(result.sites["A"].inputs.numpy()).all()
