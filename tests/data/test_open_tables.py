from collections import Counter
from pathlib import Path

import pytest
import torch

from polyclinic.data.open import open_data
from polyclinic.data.spec import DataSpec
from polyclinic.errors import DataError, StudyError
from polyclinic.study.study import Study

TABLE = """id,hospital,age,sex,head,dx,part,wing
007,north,50,M,2,1,train,a
008,north,60,F,4,0,val,a
009,north,70,M,2,1.0,TEST,b
010,south,40,?,2,0,dev,b
011,south,30,F,1,1,test,a
"""
BASE = {"table": "table.csv", "site": "hospital", "subject": "id", "label": "dx", "features": ["age", "head"]}


def opened(folder: Path, split=None, target="labels", **entries):
    return open_data(DataSpec.model_validate(BASE | entries), folder, target, split)


def rejected(result, site):
    counts = result.sites[site].counts
    assert counts.found == counts.used + counts.rejected.total()
    assert counts.used == len(result.sites[site])
    return counts.rejected


def test_a_plain_table(write_table):
    result = opened(write_table(TABLE))
    assert list(result.sites) == ["north", "south"]
    assert result.features == ["age", "head"]
    assert result.classes == ["0", "1"]
    north = result.sites["north"]
    assert north.inputs.dtype == torch.float32
    assert north.inputs.tolist() == [[50.0, 2.0], [60.0, 4.0], [70.0, 2.0]]
    assert north.targets.dtype == torch.int64
    assert north.targets.tolist() == [1, 0, 1]
    assert north.subjects == ["007", "008", "009"]
    assert north.cases == ["row 1", "row 2", "row 3"]
    assert north.parts is None
    assert rejected(result, "north") == Counter()
    assert result.notes == []


def test_star_takes_no_column_with_another_part(write_table):
    result = opened(write_table(TABLE), split="part", features="*", exclude=["s?x", "wing"])
    assert result.features == ["age", "head"]


def test_label_as_a_feature_is_refused(write_table):
    with pytest.raises(StudyError, match="P104 The label 'dx' is also among the features"):
        opened(write_table(TABLE), features=["age", "dx"])


def test_column_with_brackets_is_found_by_its_name(write_table):
    result = opened(write_table(TABLE.replace("age", "age [y]")), features="age [y]")
    assert result.features == ["age [y]"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"label": "dxx"}, r"P202 The table 'table.csv' has no column 'dxx', which `label` names. Did you mean 'dx'\?"),
        ({"features": "vol_*"}, r"P202 The table 'table.csv' has no column that matches 'vol_\*' \(`features`\)"),
        ({"exclude": "vol_*"}, r"P202 .* matches 'vol_\*' \(`exclude`\)"),
        ({"exclude": ["age", "head"]}, "P202 No feature is left after `exclude`"),
        ({"where": {"agee": 1}}, "P202 .*no column 'agee', which `where` names"),
        ({"categorical": ["sexx"]}, "P202 .*no column 'sexx', which `categorical` names"),
        ({"features": ["age", "sex"]}, r"P203 The column 'sex' .* has 4 cells that are not numbers.*`categorical`"),
        (
            {"features": None, "categorical": ["sex"], "missing": ["M", "F", "?"]},
            "P203 The column 'sex' .*has no value",
        ),
        ({"where": {"age": "> 100"}}, "P205 No row is selected. Compare `where`"),
        ({"label": "hospital", "where": {"hospital": "north"}}, r"P203 The column 'hospital' \(`label`\) has 1 value"),
        ({"missing": ["0", "1", "1.0"]}, r"P205 No row can be used: dx is missing \(5\)"),
    ],
)
def test_wrong_entries(write_table, entries, message):
    with pytest.raises(DataError, match=message):
        opened(write_table(TABLE), **entries)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"table": None}, "P102 `data` needs one of `table` and `tables`"),
        ({"tables": {"a": "table.csv"}}, "P102 `data` needs one of `table` and `tables`"),
        ({"table": None, "tables": {}}, "P102 `tables` is empty"),
        ({"table": None, "tables": {"a": "table.csv"}}, "P104 `tables` names the sites already"),
        ({"label": None}, "P102 Classification needs a `label`"),
        ({"features": None}, "P102 Classification needs `features` or `image`"),
        ({"image": "id"}, "P104 `image` and feature columns"),
        ({"image": "id", "features": None}, "P102 Images need a `size`"),
        ({"subject_pattern": "("}, "P102 `subject_pattern` is no regular expression"),
        ({"subject_pattern": "a"}, "P102 `subject_pattern` has no group"),
        ({"subject": None, "subject_pattern": "(a)"}, "P102 `subject_pattern` needs `subject`"),
        ({"classes": [1, 1.0]}, "P102 `classes` is"),
    ],
)
def test_entries_that_do_not_go_together(write_table, entries, message):
    with pytest.raises(StudyError, match=message):
        opened(write_table(TABLE), **entries)


def test_segmentation_needs_image_and_mask(write_table):
    with pytest.raises(StudyError, match="P102 Segmentation needs `image` and `mask`"):
        opened(write_table(TABLE), target="masks")


def test_every_row_is_accounted_for(write_table):
    folder = write_table(
        "id,site,x,dx,head\n"
        "1,A,1,0,2\n"
        ",A,1,0,2\n"  # no patient
        "3,A,1,n/a,2\n"  # no label
        "4,A,1,7,2\n"  # label of no class
        "5,A,1,1,0\n"  # divisor 0
        "6,A,1,1,\n"  # no divisor
        "7,,1,1,2\n"  # no site
        "8,A,?,1,2\n"  # no feature
        "9,A,3,1,2\n"
        "10,B,3,,2\n"  # the only row of its site
    )
    entries = {"site": "site", "features": "x", "classes": [0, 1], "divide_by": "head", "imputation": "drop"}
    result = opened(folder, **entries)
    assert list(result.sites) == ["A"]
    assert result.sites["A"].inputs.tolist() == [[0.5], [1.5]]
    assert rejected(result, "A") == Counter(
        {
            "id is missing": 1,
            "dx is missing": 1,
            "dx is not one of the classes": 1,
            "head is not positive": 1,
            "head is missing": 1,
            "x is missing": 1,
        }
    )
    assert result.sites["A"].counts.found == 8
    assert result.notes[:2] == [
        "1 row names no site and is left out (column 'site').",
        "Site B is left out: none of its 1 cases can be used (dx is missing (1)).",
    ]
    kept = opened(folder, **entries | {"imputation": "mean"})
    assert kept.sites["A"].inputs.isnan().flatten().tolist() == [False, True, False]


def test_rows_that_where_does_not_select_are_not_found(write_table):
    result = opened(write_table(TABLE), where={"wing": "a", "age": ">= 40"})
    assert list(result.sites) == ["north"]
    assert result.sites["north"].counts.found == 2
    assert result.sites["north"].cases == ["row 1", "row 2"]


def test_split_column(write_table):
    result = opened(write_table(TABLE), split="part")
    assert result.sites["north"].parts == ["train", "validation", "test"]
    assert result.sites["south"].parts == ["validation", "test"]
    result = opened(write_table(TABLE.replace(",val,", ",held out,").replace("TEST", "")), split="part")
    assert rejected(result, "north") == Counter({"part is not train, validation or test": 1, "part is missing": 1})


@pytest.mark.parametrize(
    ("positive", "names", "targets"),
    [
        ("> 45", ["age <= 45", "age > 45"], [1, 1, 1, 0, 0]),
        ("!= 50", ["age == 50", "age != 50"], [0, 1, 1, 1, 1]),
        (50, ["age not 50", "age 50"], [1, 0, 0, 0, 0]),
        ([50, "60.0"], ["age not 50/60.0", "age 50/60.0"], [1, 1, 0, 0, 0]),
    ],
)
def test_positive(write_table, positive, names, targets):
    result = opened(write_table(TABLE), label="age", features="head", positive=positive)
    assert result.classes == names
    assert [target for data in result.sites.values() for target in data.targets.tolist()] == targets


def test_order_of_classes(write_table):
    result = opened(write_table(TABLE), classes=["1", 0])
    assert result.classes == ["1", "0"]
    assert result.sites["north"].targets.tolist() == [0, 1, 0]
    assert opened(write_table(TABLE), label="age", features="head").classes == ["30", "40", "50", "60", "70"]
    empty = opened(write_table(TABLE), classes=[0, 1, 2])
    assert empty.notes == ["No case of class 2."]


def test_a_measurement_is_no_label(write_table):
    folder = write_table("site,x,y\n" + "".join(f"A,1,{number}\n" for number in range(101)))
    with pytest.raises(DataError, match=r"P203 The column 'y' \(`label`\) has 101 different values, which can't be"):
        opened(folder, site="site", subject=None, features="x", label="y")


def test_one_hot_columns_are_the_same_at_all_sites(write_table):
    result = opened(write_table(TABLE), features="age", categorical=["sex", "head"])
    assert result.features == ["age", "sex=F", "sex=M", "head=1", "head=2", "head=4"]
    assert result.sites["north"].inputs[:, 1:].tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0]]
    south = result.sites["south"].inputs[:, 1:]
    assert south[0, :2].isnan().all()
    assert south[0, 2:].tolist() == [0, 1, 0]


def test_tables_keep_the_order_of_the_study_file(write_table):
    write_table("x,dx\n1,0\n2,1\n", "one.csv")
    folder = write_table("dx;x;surplus\n1;5;z\n0;6;z\n", "two.csv")
    entries = {
        "table": None,
        "site": None,
        "subject": None,
        "tables": {"Z": "one.csv", "A": "two.csv"},
        "features": "x",
    }
    result = opened(folder, **entries)
    assert list(result.sites) == ["Z", "A"]
    assert result.sites["A"].inputs.flatten().tolist() == [5.0, 6.0]
    assert result.sites["A"].subjects == ["row 1", "row 2"]
    with pytest.raises(DataError, match=r"P202 The table 'one\.csv' has no column 'surplus', which `features` names"):
        opened(folder, **entries | {"features": "*"})


def test_a_table_without_site_column_is_one_site(write_table):
    assert list(opened(write_table(TABLE), site=None).sites) == ["table"]


def test_reserved_site_names(write_table):
    with pytest.raises(DataError, match="P203 A site can't be called 'pool'"):
        opened(write_table(TABLE.replace("north", "pool")))


def test_subject_pattern(write_table):
    folder = write_table(TABLE.replace("007", "eye_1L").replace("008", "eye_1R"))
    result = opened(folder, subject_pattern=r"(eye_\d+)[LR]")
    assert result.sites["north"].subjects == ["eye_1", "eye_1", "009"]
    warning = "`subject_pattern` does not fit 3 of 5 'id' cells: there the whole cell names the patient."
    assert result.notes == [warning]


def test_warnings(write_table):
    folder = write_table(
        "id,site,a,b,c,d,dx\n"
        "p1,A,1,5,?,1,0\np2,A,1,5,?,1,1\np3,A,2,5,?,1,1\n"
        "p1,B,3,5,?,?,0\np5,B,3,5,?,?,1\np6,B,4,5,?,?,0\n"
    )
    result = opened(folder, site="site", features=["a", "b", "c", "d"])
    assert result.notes == [
        "1 patient name stands at more than one site: the same person may be in training and test data. If these are "
        "different people (each site counts from 1), put the site in front of the names.",
        "Site A: 1 row repeats an earlier one of the same site under another patient's name: "
        "both may be in training and test data.",
        "Site B: 1 row repeats an earlier one of the same site under another patient's name: "
        "both may be in training and test data.",
        "1 feature is missing in every case: c.",
        "2 features are constant over all sites: b, d.",
        "Site B: 1 feature is missing in every case: d.",
    ]
    assert not any(name in warning for warning in result.notes for name in ("p1", "p5"))
    unnamed = opened(folder, site="site", subject=None, features=["a", "b", "c", "d"])
    assert unnamed.notes[0] == "Site A: 1 row repeats an earlier one of the same site."


def test_fingerprint_depends_on_what_is_used(write_table):
    first = opened(write_table(TABLE)).fingerprint
    assert len(first) == 64
    assert opened(write_table(TABLE.replace("\n007", "\n\n007"))).fingerprint == first
    assert opened(write_table(TABLE.replace(",b\n", ",c\n"))).fingerprint == first
    for old, new in (("50", "51"), ("007", "07"), ("south", "sou"), ("M,2,1,", "M,2,0,")):
        assert opened(write_table(TABLE.replace(old, new))).fingerprint != first
    assert opened(write_table(TABLE), split="part").fingerprint != first


def test_groups_alone_are_features(write_table, tmp_path):
    rows = [f"p{row},{'AB'[row % 2]},{'FM'[row // 3 % 2]},{row // 2 % 2}" for row in range(24)]
    write_table("\n".join(["id,site,sex,dx", *rows]) + "\n")
    (tmp_path / "study.yaml").write_text(
        "data: {table: table.csv, site: site, label: dx, positive: 1, categorical: [sex]}\nmodel: logistic\n"
    )
    frame, _ = Study.read(tmp_path / "study.yaml").check()
    assert frame["used"].tolist() == [12, 12]
