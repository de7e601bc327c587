"""Columns of codes whose values the study lists."""

import pytest
import torch

from polyclinic.data.open import open_data
from polyclinic.data.spec import DataSpec
from polyclinic.options import EntryError

TABLE = """site,patient,dx,x,cp,ward
A,1,0,0.5,2,north
A,2,1,1.5,1.0,south
A,3,0,2.5,9,north
B,4,1,3.5,3,
B,5,0,4.5,1,south
B,6,,5.5,1,south
"""


def opened(folder, **entries):
    (folder / "t.csv").write_text(TABLE)
    base = {"table": "t.csv", "site": "site", "subject": "patient", "label": "dx", "features": "x"}
    return open_data(DataSpec.model_validate(base | entries), folder, "labels")


@pytest.mark.parametrize("order", [[1, 2, 3], ["3", "1.0", 2]])
def test_each_listed_value_is_a_column(tmp_path, order):
    found = opened(tmp_path, categorical=["cp"], categories={"cp": order}, unlabelled="use")
    assert found.features == ["x", *(f"cp={value}" for value in order)]
    codes = {"A": [2, 1], "B": [3, 1, 1]}  # the row with 9 is rejected, the row without a label is kept
    for site, mine in codes.items():
        expected = [[float(code == float(value)) for value in order] for code in mine]
        assert torch.equal(found.sites[site].inputs[:, 1:], torch.tensor(expected))
    assert found.sites["A"].counts.rejected == {"cp is not one of its categories": 1}
    assert found.sites["B"].counts.unlabelled == 1


def test_a_listed_value_may_stand_nowhere(tmp_path):
    found = opened(tmp_path, categorical=["cp"], categories={"cp": [1, 2, 3, 9, 4]})
    assert found.features[-1] == "cp=4"
    assert all(not data.inputs[:, -1].any() for data in found.sites.values())
    assert found.sites["A"].inputs[:, 1:].tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_a_missing_code_is_missing_in_all_columns(tmp_path):
    found = opened(tmp_path, categorical=["ward"], categories={"ward": ["south", "north"]})
    assert found.sites["B"].inputs[0, 1:].isnan().all()
    assert found.sites["B"].inputs[1, 1:].tolist() == [1, 0]


def test_a_code_may_look_like_a_comparison(tmp_path):
    (tmp_path / "t.csv").write_text("site,patient,dx,x,band\nA,1,0,1,> 60\nA,2,1,2,<= 60\nA,3,1,2,70\n")
    base = {"table": "t.csv", "site": "site", "subject": "patient", "label": "dx", "features": "x"}
    spec = DataSpec.model_validate(base | {"categorical": ["band"], "categories": {"band": ["> 60", "<= 60"]}})
    found = open_data(spec, tmp_path, "labels").sites["A"]
    assert found.inputs[:, 1:].tolist() == [[1, 0], [0, 1]]
    assert found.counts.rejected == {"band is not one of its categories": 1}


def test_a_covariate_whose_values_are_listed_is_a_group(tmp_path):
    combat = {"combat": {"covariates": ["cp"]}}
    found = opened(tmp_path, harmonisation=combat, categories={"cp": [1, 2, 3]})
    assert found.covariates == {"cp": ["cp=2", "cp=3"]}
    assert found.sites["A"].covariates.tolist() == [[1, 0], [0, 0]]
    assert found.sites["B"].covariates.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([True, False], r"without quotes are no texts"),
        ([1, "1.0"], r"each of them once"),
        ([], r"one or more values"),
    ],
)
def test_values_that_are_no_list_of_codes(tmp_path, values, match):
    with pytest.raises(EntryError, match=match):
        opened(tmp_path, categorical=["cp"], categories={"cp": values})


def test_values_of_a_column_that_nothing_takes(tmp_path):
    with pytest.raises(EntryError, match="'cp' is no column of codes"):
        opened(tmp_path, categories={"cp": [1, 2]})
