"""Fed-TCGA-BRCA: six regions told by barcodes, and times of 0."""

import pytest

from polyclinic.errors import DataError

HEADER = 'pid,age_at_index,ajcc_pathologic_n_N0 (i-),"primary_diagnosis_Infiltrating duct carcinoma, NOS",E,T'


@pytest.fixture
def breast(tree):
    """Ten patients of each of three codes; NA is a code, and no missing cell."""
    rows, split = [], []
    for number in range(30):
        code = ("BH", "NA", "D8")[number % 3]
        pid = f"TCGA-{code}-A{number:03}"
        rows.append(
            f"{pid},{40 + number},{number % 2},{number // 2 % 2},{float(number % 4 < 3)},{100.0 + 150 * number}"
        )
        split.append(f"{pid},{'test' if number > 24 else 'train'},x")
    rows += ["TCGA-BH-A100,50,0,0,0.0,0.0", "TCGA-OK-A101,50,0,0,1.0,20.0", "TCGA-ZZ-A102,50,0,0,1.0,20.0"]
    tree.table("brca.csv", HEADER, *rows)
    tree.table(
        "centers.csv", "TSS Code,Source Site,Country,State,Region", "BH,University of Pittsburgh,USA,PA,Northeast",
        "NA,Somewhere,USA,CA,West", "D8,Greater Poland Cancer Center,Poland,Other,Europe",
        "OK,Karachi,Pakistan,Other,Other",
    )  # fmt: skip
    tree.table("dataset_creation_scripts/train_test_split.csv", "pid,fold,fold2", *split)
    return tree


def test_six_regions(breast, prepared):
    result = prepared("fed-tcga-brca")
    assert result.sites == {"Europe": 10, "Northeast": 10, "West": 10}
    assert result.reasons == {"days is not above 0": 1, "outside of the six regions": 1, "site is unknown": 1}
    assert (result.study["task"], result.study["data"]["time"], result.study["data"]["event"]) == (
        "survival", "days", "event",
    )  # fmt: skip
    assert result.study["data"]["features"][1:] == [
        "ajcc_pathologic_n_N0 (i-)", "primary_diagnosis_Infiltrating duct carcinoma, NOS",
    ]  # fmt: skip
    assert result.manifest["split"].value_counts().to_dict() == {"train": 25, "test": 5}
    assert result.check() == [30, 30, 0]


def test_artificial_sites_have_no_classes(breast, prepared):
    result = prepared("fed-tcga-brca", sites_by="quantity", sites=2, alpha=20.0)
    assert set(result.sites) == {"artificial-1", "artificial-2"}
    with pytest.raises(DataError, match="P208 Dirichlet sites need classes"):
        prepared("fed-tcga-brca", sites_by="dirichlet")
