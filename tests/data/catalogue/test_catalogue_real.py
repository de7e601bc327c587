"""The entries whose data are at hand, with the numbers that their documentation gives."""

import pytest

from polyclinic import Study


def check(result):
    """The starter study opens the manifest as it is; returns found, used and rejected over all sites."""
    sites, _ = Study.read(result.out / "study.yaml").check()
    return sites[["found", "used", "rejected"]].sum().tolist()


def test_heart_disease(prepared, data_folder):
    result = prepared("heart-disease", data_folder / "heart-disease")
    assert result.sites == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
    classes = {site: (counts["no"], counts["yes"]) for site, counts in result.prepared.classes.items()}
    assert classes == {"cleveland": (164, 139), "hungarian": (188, 106), "switzerland": (8, 115), "va": (51, 149)}
    assert check(result) == [920, 740, 180]  # as FLamby uses them


def test_heart_disease_by_stage(prepared, data_folder):
    result = prepared("heart-disease", data_folder / "heart-disease", label="num", positive=("4", "3"), against=("0",))
    assert result.study["data"]["positive"] == ["4", "3"]
    assert set(result.manifest["num"]) == {"0", "3", "4"}
    assert set(result.reasons) == {"num is neither 4 or 3 nor 0"}
    check(result)


def test_mri_quality(prepared, data_folder):
    result = prepared("mri-quality", data_folder / "mriqc-iqm")
    assert len(result.sites) == 19
    assert result.sites["NYU"] == 184
    assert result.prepared.used == 1101 + 265
    assert dict(result.prepared.classes["BMC"] + result.prepared.classes["CCN"]) == {
        "accept": 45, "doubtful": 145, "exclude": 75,
    }  # fmt: skip
    assert len(result.study["data"]["features"]) == 68
    assert check(result) == [1366, 1366, 0]


def test_abide_regional(prepared, data_folder):
    result = prepared("abide-regional", data_folder / "abide-regional")
    assert result.prepared.used == 806
    assert result.reasons == {"intracranial volume below 800 cm3": 29}
    assert result.sites["NYU"] == 170
    assert check(result) == [806, 806, 0]
    sex = prepared("abide-regional", data_folder / "abide-regional", out="sex", label="sex")
    assert sex.study["data"]["positive"] == "F"
    check(sex)


def test_oasis_tables(prepared, data_folder):
    one = prepared("oasis-1", data_folder / "oasis-tables")
    assert {site: dict(counts) for site, counts in one.prepared.classes.items()} == {"WashU": {"no": 135, "yes": 100}}
    assert one.reasons == {"dementia is missing": 201}
    assert one.study["methods"] == ["single"]
    assert "cdr" not in one.study["data"]["features"]
    assert check(one) == [235, 235, 0]
    two = prepared("oasis-2", data_folder / "oasis-tables", out="two", sessions="all")
    assert (two.prepared.used, two.prepared.subjects) == (373, {"WashU": 150})
    first = prepared("oasis-2", data_folder / "oasis-tables", out="first")
    assert first.reasons == {"a later session of the same subject": 223}


def test_oasis_on_artificial_sites(prepared, data_folder):
    result = prepared("oasis-1", data_folder / "oasis-tables", sites_by="dirichlet", sites=3, alpha=1.0)
    assert set(result.sites) == {"artificial-1", "artificial-2", "artificial-3"}
    assert any("artificial" in note for note in result.prepared.notes)
    assert check(result) == [235, 235, 0]


def test_skin_lesions(prepared, data_folder):
    result = prepared("ham10000", data_folder / "skin-lesions")
    malignant = {site: counts["yes"] for site, counts in result.prepared.classes.items()}
    assert malignant == {"rosendahl": 363, "vidir_modern": 274, "vidir_molemax": 18, "vienna_dias": 55}
    assert result.prepared.used == 2169
    assert result.manifest["subject"].nunique() == 1766
    assert all(path.is_file() for path in result.files("image") + result.files("mask"))


def test_retina_vessels(prepared, data_folder):
    result = prepared("retina-vessels", data_folder / "retina-vessels")
    assert result.sites == {"chasedb1": 28, "drive": 40, "stare": 20}
    assert result.prepared.subjects == {"chasedb1": 14, "drive": 40, "stare": 20}
    assert check(result) == [88, 88, 0]


@pytest.mark.parametrize("name", ["heart-disease", "mri-quality", "abide-regional", "oasis-1", "ham10000"])
def test_a_wrong_folder_is_told(prepared, data_folder, name):
    from polyclinic.errors import DataError

    with pytest.raises(DataError, match=r"P201 .* as the catalogue knows it") as caught:
        prepared(name, data_folder / "nifti-spine")
    assert "it holds " in caught.value.message
    assert f"data describe {name}" in caught.value.hint
