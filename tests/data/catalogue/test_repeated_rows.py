"""Rows that stand twice or contradict each other, names that come again, and spellings that programs leave behind."""

import numpy as np
import pandas as pd
import pytest
from pydicom.uid import CTImageStorage

from dicom_files import write_dicom
from polyclinic.data.catalogue.layout import reject_repeated, told_once

AGAIN, CONTRADICT = "a second row of the same {}", "rows of one {} contradict each other"


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (24, 24), dtype=np.uint8)


@pytest.mark.parametrize("order", [range(7), reversed(range(7)), (3, 0, 6, 5, 1, 2, 4)])
def test_rows_of_one_case_in_any_order(order):
    """a stands twice, b says two things, c is alone, one has no name, one of d can't be used."""
    rows = pd.DataFrame(
        [("a", "1", ""), ("a", "1", ""), ("b", "1", ""), ("b", "2", ""), ("c", "1", ""), ("d", "1", "damaged"),
         ("d", "2", "")],
        columns=["image", "label", "reason"],
    ).iloc[list(order)].reset_index(drop=True)  # fmt: skip
    rows.loc[len(rows)] = rows.loc[len(rows) + 1] = ["", "1", ""]
    reject_repeated(rows, ["image"], ["label"], "image")
    found = rows.groupby("image")["reason"].agg(sorted).to_dict()
    assert found == {
        "a": ["", AGAIN.format("image")], "b": [CONTRADICT.format("image")] * 2, "c": [""], "d": ["", "damaged"],
        "": ["", ""],
    }  # fmt: skip


def test_what_is_told_once():
    assert told_once(["a", "a", "b", "b", "c", "c"], ["1", "1", "1", "2", "", "3"]) == {"a": "1", "c": "3"}


def test_images_of_the_covid_collection(tree, prepared):
    """One row again, one with another finding, one with another patient: none of it may be on both sides of a split."""
    header = "patientid,finding,view,modality,filename,url"
    rows = [f"{n},{'COVID-19' if n % 2 else 'No Finding'},PA,X-ray,{n}.png,https://a.org/{n}" for n in range(12)]
    rows += [rows[0], rows[1].replace("COVID-19", "No Finding"), rows[2].replace("2,", "77,", 1)]
    tree.table("metadata.csv", header, *rows)
    for number in range(12):
        tree.image(f"images/{number}.png", picture(number))
    result = prepared("covid-collection")
    assert result.reasons == {AGAIN.format("image"): 1, CONTRADICT.format("image"): 4}
    assert sorted(result.manifest["image"]) == sorted(f"images/{n}.png" for n in (0, *range(3, 12)))


def test_names_that_come_again_in_another_part_of_covidx(tree, prepared):
    lines = [f"{n} {n}.png {'positive' if n % 3 else 'negative'} ricord" for n in range(10)]
    tree.text("train.txt", "\n".join([*lines, "1 1.png negative ricord"]) + "\n")
    tree.text("test.txt", "50 3.png negative rsna\n51 other.png positive rsna\n")
    for number in range(10):
        tree.image(f"train/{number}.png", picture(number))
    tree.image("Test/3.png", picture(99))
    tree.image("somewhere/other.png", picture(98))
    result = prepared("covidx")
    images = result.manifest.set_index("image")
    assert images.loc["train/3.png", ["site", "split"]].tolist() == ["ricord", "train"]
    assert images.loc["Test/3.png", ["site", "split"]].tolist() == ["rsna", "test"]
    assert "somewhere/other.png" in images.index
    assert result.reasons == {CONTRADICT.format("image"): 2}


def test_grades_of_eyes(tree, prepared):
    tree.table("trainLabels.csv", "image,level", "1_left,0", "1_right,2.0", "1_left,0.0", "2_left,3", "2_right,1")
    for number, name in enumerate(("1_left", "1_right", "2_left", "2_right")):
        tree.image(f"train/{name}.JPEG", np.stack([picture(number)] * 3, 2), format="JPEG")
    result = prepared("diabetic-retinopathy")
    assert result.reasons == {AGAIN.format("image"): 1}
    assert result.manifest["grade"].tolist() == ["0", "2", "3", "1"]


def test_glaucoma_that_is_told_in_two_ways(tree, prepared):
    """By the name and the table, or twice in the table; with a byte order mark, semicolons and decimal commas."""
    for name in ("g0001", "n0001", "V0001", "V0002"):
        tree.image(f"{name}.JPG", np.stack([picture(1)] * 3, 2), format="JPEG")
    rows = ["1;V0001.jpg;1,5;1", "2;V0002.jpg;1,5;0", "3;V0002.jpg;1,5;1", "4;n0001.jpg;2,5;1", "5;g0001.jpg;2,5;1"]
    tree.text("Fovea_locations.csv", "\ufeff" + "\r\n".join(["ID;ImgName;Fovea_X;Glaucoma Label", *rows]) + "\r\n")
    result = prepared("refuge", label="glaucoma", positive=("yes",))
    assert result.manifest.set_index("image")["glaucoma"].to_dict() == {"V0001.JPG": "yes", "g0001.JPG": "yes"}
    assert result.reasons == {"glaucoma is missing": 2}


def test_patients_of_the_table_of_breast_cancer(tree, prepared):
    rows = [f"TCGA-A{n % 2}-{n:04},{n % 2}.0,{100 + n},{50 + n}" for n in range(20)]
    tree.table("brca.csv", "pid,E,T,age", *rows, rows[0], "TCGA-A1-0001,0.0,999,51")
    tree.table("centers.csv", "TSS Code,Source Site,Region", "A0,x,South", "A1,y,West")
    result = prepared("fed-tcga-brca")
    assert result.reasons == {AGAIN.format("patient"): 1, CONTRADICT.format("patient"): 2}
    assert result.sites == {"South": 10, "West": 9}


def test_films_of_hearts(tree, prepared):
    """The film's name with and without its ending; a film that stands twice, and one with two fractions."""
    films = [f"0X{n}{'.AVI' if n < 3 else ''},{40 + n},{'TRAIN' if n % 2 else 'VAL'}" for n in range(8)]
    tree.table("FileList.csv", "FileName,EF,Split", *films, "0X5,80,TEST", "0X6,46,VAL")
    for number in range(8):
        tree.image(f"frames/0X{number}/1.png", picture(number))
    result = prepared("echonet-dynamic")
    assert sorted(result.manifest["film"]) == [f"0X{n}" for n in (0, 1, 2, 3, 4, 6, 7)]
    assert result.reasons == {AGAIN.format("film"): 1, CONTRADICT.format("film"): 2}


def test_slides_of_tcga(tree, prepared):
    rows = []
    for number in range(6):
        name = f"TCGA-A7-A{number:03}-01Z-00-DX1.ab{number}"
        rows.append(f"{name}.{'SVS' if number % 2 else 'svs'},{'xy'[number % 2]}")
        path = tree.folder / "features" / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.full((3, 4), number, dtype=np.float32))
    tree.table("labels.csv", "slide_id,label", *rows, rows[0], rows[1].replace(",y", ",x"))
    result = prepared("tcga-slides")
    assert result.reasons == {AGAIN.format("slide"): 1, CONTRADICT.format("slide"): 2}
    assert result.manifest["slide"].nunique() == 5


def test_a_case_of_two_hospitals(tree, prepared):
    for number in range(12):
        tree.volume(f"data/case_{number:05}/imaging.nii.gz")
        tree.volume(f"data/case_{number:05}/segmentation.nii.gz")
    sites = [f"case_{n:05},0" for n in range(12)]
    tree.table("anony_sites.csv", "case,site_id", *sites, sites[2], "case_00003,1")
    result = prepared("kits")
    assert result.sites == {"hospital-0": 11}
    assert result.reasons == {"site is unknown": 1}


def participants(tree, *more, ending=""):
    rng = np.random.default_rng(0)
    rows = [
        f"{1000 + n}{ending},{n % 2},{50 + n},{11025 + n % 2},{rng.normal():.3f},{rng.normal():.3f}" for n in range(24)
    ]
    tree.table("ukb1.csv", "eid,31-0.0,21003-2.0,54-2.0,25010-2.0,25011-2.0", *rows, *(more and [rows[3], *more]))


def test_participants_that_stand_twice(tree, prepared):
    participants(tree, "1004,0,54,11025,0.5,0.25")
    result = prepared("uk-biobank", sessions="all")
    assert result.reasons == {AGAIN.format("visit"): 1, CONTRADICT.format("visit"): 2}
    assert sum(result.sites.values()) == 23


@pytest.mark.parametrize("name", ["w1234_20230821.csv", "withdraw1234_12_20230821.txt", "W1234_1.TXT"])
@pytest.mark.parametrize("ending", ["", ".0"])
def test_who_withdrew_is_found_in_all_writings(tree, prepared, name, ending):
    participants(tree, ending=ending)
    tree.text(name, "1005\r\n1006\r\n9999\r\n")
    result = prepared("uk-biobank")
    assert result.reasons == {"participant withdrew": 2}
    assert "Of 3 participants who withdrew 2 are in the table; they are rejected." in result.prepared.notes


def test_an_empty_list_of_those_who_withdrew(tree, prepared):
    participants(tree)
    tree.text("w1234_20230821.csv", "")
    assert sum(prepared("uk-biobank").sites.values()) == 24


def test_haemorrhages_in_other_writings(tree, prepared):
    rows = []
    for number in range(24):
        name = f"ID_{number:09x}"
        rows += [f"{name}_{kind},{number % 2}.0" for kind in ("epidural", "any")]
        write_dicom(
            tree.folder / f"stage_2_train/{name}.DCM", np.full((8, 8), number, dtype=np.int16), Modality="CT",
            SOPClassUID=CTImageStorage, PatientID=f"p{number}", SeriesInstanceUID=f"1.2.{number}",
        )  # fmt: skip
    tree.table("stage_2_train.csv", "ID,Label", *rows, "bad,1", "ID_00000000f_Epidural,1")
    result = prepared("rsna-haemorrhage", label="any", sites=2, alpha=20.0)
    assert set(result.manifest["any"]) == {"0", "1"}
    assert sum(result.sites.values()) == 24
    assert any(note.startswith("2 rows of stage_2_train.csv name no image") for note in result.prepared.notes)


def test_a_byte_order_mark_before_what_is_told_of_a_heart(tree, prepared):
    for name in ("frame01", "frame01_gt", "frame12", "frame12_gt"):
        tree.volume(f"training/patient001/patient001_{name}.nii.gz")
    tree.text("training/patient001/Info.cfg", "\ufeffED: 1\r\nES: 12\r\nGroup: DCM\r\n")
    assert prepared("acdc").manifest["phase"].tolist() == ["ED", "ES"]
