"""Fundus photographs: eyes of one person, copies, cameras, and masks that are drawn the other way round."""

import numpy as np
import pytest
from PIL import Image


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def retinopathy(tree):
    """Eight people with two eyes, and twelve pictures of APTOS of which two have copies."""
    train = [f"{10 + number // 2}_{('left', 'right')[number % 2]},{number % 5}" for number in range(16)]
    tree.table("eyepacs/trainLabels.csv", "image,level", *train, "99_left,0", "noname,1")
    tree.table("eyepacs/retinopathy_solution.csv", "image,level,Usage", "1_left,4,Public", "1_right,0,Private")
    for number, name in enumerate([line.split(",")[0] for line in train] + ["1_left", "1_right"]):
        tree.image(f"eyepacs/{'test' if name[0:2] == '1_' else 'train'}/{name}.jpeg", picture(number))
    codes = [f"{number:012x}" for number in range(12)]
    # The third picture is a copy of the second with its grade, the fifth one of the fourth with another.
    grades = [0, 2, 2, 1, 3, *(number % 5 for number in range(7))]
    tree.table("aptos/train.csv", "id_code,diagnosis", *map("{},{}".format, codes, grades))
    tree.table("aptos/test.csv", "id_code", "ffffffffffff")
    for number, code in enumerate(codes):
        tree.image(f"aptos/train_images/{code}.png", picture(100 + {2: 1, 4: 3}.get(number, number)))
    return tree


def test_retinopathy(retinopathy, prepared):
    result = prepared("diabetic-retinopathy")
    assert result.sites == {"APTOS": 9, "EyePACS": 18}
    assert result.reasons == {
        "a copy of another picture": 1, "copies of one picture have different grades": 2, "image is missing": 1,
        "subject is missing": 1,
    }  # fmt: skip
    assert result.prepared.subjects == {"APTOS": 9, "EyePACS": 9}
    eyes = result.manifest.query("site == 'EyePACS'").groupby("subject")["eye"].agg(sorted)
    assert set(map(tuple, eyes)) == {("left", "right")}
    assert (result.study["data"]["label"], result.study["data"]["positive"]) == ("grade", ["2", "3", "4"])
    assert result.check() == [27, 27, 0]


def test_all_grades_of_one_competition(retinopathy, prepared):
    result = prepared("diabetic-retinopathy", retinopathy.folder / "eyepacs", label="grade")
    assert result.sites == {"EyePACS": 18}
    assert set(result.manifest["grade"]) == set("01234")


@pytest.fixture
def refuge(tree):
    mask = np.full((32, 32), 255, dtype=np.uint8)
    mask[8:24, 8:24], mask[12:20, 12:20] = 128, 0
    names = {
        **{f"g000{n}": ("Training400/Training400/Glaucoma", "Annotation-Training400/Disc_Cup_Masks/Glaucoma")
           for n in (1, 2)},
        **{f"n000{n}": ("Training400/Training400/Non-Glaucoma", "Annotation-Training400/Disc_Cup_Masks/Non-Glaucoma")
           for n in (1, 2)},
        **{f"V000{n}": ("REFUGE-Validation400", "REFUGE-Validation400-GT/Disc_Cup_Masks") for n in (1, 2)},
        "T0001": ("REFUGE-Test400/Test400", "REFUGE-Test-GT/Disc_Cup_Masks/G"),
        "T0002": ("REFUGE-Test400/Test400", "REFUGE-Test-GT/Disc_Cup_Masks/N"),
    }  # fmt: skip
    for number, (name, (images, masks)) in enumerate(names.items()):
        tree.image(f"{images}/{name}.jpg", picture(number))
        if name != "n0002":
            tree.image(f"{masks}/{name}.bmp", mask)
    tree.touch("REFUGE-Test400/T0400_preview.jpg")
    return tree


def test_refuge_disc_and_cup(refuge, prepared):
    result = prepared("refuge")
    assert result.sites == {"Canon": 4, "Zeiss": 3}
    assert result.reasons == {"mask is missing": 1}
    assert result.study["data"]["mask"] == {"column": "mask", "background": 255}
    assert result.study["data"]["mask_classes"] == {"cup": 0, "rim": 128}
    assert result.check() == [7, 7, 0]


def test_refuge_glaucoma(refuge, prepared):
    names = prepared("refuge", label="glaucoma", out="names")
    assert names.prepared.classes == {"Canon": {"yes": 1, "no": 1}, "Zeiss": {"yes": 2, "no": 2}}
    assert names.reasons == {"glaucoma is missing": 2}
    refuge.table("REFUGE-Validation400-GT/Fovea_locations.csv", "ID,ImgName,Fovea_X,Fovea_Y,Glaucoma Label",
                 "1,V0001.jpg,1,2,1", "2,V0002.jpg,1,2,0")  # fmt: skip
    tables = prepared("refuge", label="glaucoma", out="tables")
    assert tables.prepared.classes["Canon"] == {"yes": 2, "no": 2}
    assert "mask" not in tables.study["data"]
    assert tables.check() == [8, 8, 0]
    assert Image.open(tables.files("image")[0]).size == (32, 32)
