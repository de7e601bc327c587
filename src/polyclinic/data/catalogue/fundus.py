"""Photographs of the retina: diabetic retinopathy (EyePACS, APTOS), and glaucoma with disc and cup (REFUGE)."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    by_stem,
    find_copies,
    find_tables,
    pick_column,
    read_table,
    stem,
    told_once,
    walk_files,
    what_is_there,
)

_IMAGES = (".png", ".jpg", ".jpeg")

# Diabetic retinopathy -------------------------------------------------------------------------------------------------


def _eyepacs(request: Request, files: dict[str, str]) -> list[pd.DataFrame]:
    parts = []
    for path in find_tables(request.source, "trainLabels.csv", "retinopathy_solution.csv"):
        table = read_table(path)
        name = table[pick_column(table, path, "image")]
        eye = name.str.extract(r"^(\d+)_(left|right)$")
        rows = {
            "site": "EyePACS",
            "subject": ("eyepacs " + eye[0]).fillna(""),
            "eye": eye[1].fillna(""),
            "image": name.map(files).fillna(""),
            "grade": table[pick_column(table, path, "level")].str.removesuffix(".0"),
            "split": "train" if path.name.lower().startswith("train") else "test",
            "reason": "",
        }
        parts.append(pd.DataFrame(rows, index=table.index))
    return parts


def _aptos(request: Request, files: dict[str, str]) -> list[pd.DataFrame]:
    parts = []
    for path in find_tables(request.source, "train.csv"):
        table = read_table(path)
        if not {"id_code", "diagnosis"} <= set(table.columns):
            continue
        name = table["id_code"]
        rows = {
            "site": "APTOS",
            "subject": "aptos " + name,
            "eye": "",
            "image": name.map(files).fillna(""),
            "grade": table["diagnosis"].str.removesuffix(".0"),
            "split": "train",
            "reason": "",
        }
        parts.append(pd.DataFrame(rows, index=table.index))
    return parts


def _reject_copies(request: Request, rows: pd.DataFrame) -> None:
    """Of pictures with the same bytes the first counts; none of those that are graded differently."""
    here = rows["image"] != ""
    first = find_copies(request.source, rows.loc[here, "image"])
    same = rows["image"].map(first).fillna(rows["image"])
    differ = rows[here].groupby(same[here])["grade"].transform("nunique") > 1
    rows.loc[differ.index[differ], "reason"] = "copies of one picture have different grades"
    rows.loc[rows["image"].isin(first) & (rows["reason"] == ""), "reason"] = "a copy of another picture"


def _retinopathy(request: Request) -> Draft:
    files = by_stem(walk_files(request.source, _IMAGES))
    parts = _eyepacs(request, files) + _aptos(request, files)
    if not parts:
        raise LayoutError(
            "Neither trainLabels.csv (EyePACS) nor train.csv with id_code and diagnosis (APTOS) was found; "
            f"{what_is_there(request.source)}."
        )
    rows = pd.concat(parts, ignore_index=True)
    _reject_copies(request, rows)
    return Draft(rows, "image", images=["image"], data={"size": [224, 224]}, training={"class_weights": "balanced"})


RETINOPATHY = Entry(
    name="diabetic-retinopathy",
    title="Diabetic retinopathy (Kaggle EyePACS, APTOS 2019)",
    about="Photographs of the retina of people with diabetes, graded from 0 (none) to 4 (proliferative). EyePACS is "
    "from screening in the USA with many cameras, APTOS from the Aravind Eye Hospital in India.",
    modality="colour fundus photography",
    sites="2, each a competition: EyePACS and APTOS. One alone works as well, with artificial sites.",
    subjects="EyePACS: 35,126 images of 17,563 people for training, 53,576 of 26,788 for testing; APTOS: 3,662 images.",
    access="https://www.kaggle.com/c/diabetic-retinopathy-detection, "
    "https://www.kaggle.com/c/aptos2019-blindness-detection",
    licence="Kaggle rules",
    terms="Kaggle account and the rules of the competitions: research, no sharing.",
    citation="Cuadros J, Bresnick G. EyePACS: an adaptable telemedicine system for diabetic retinopathy screening. J "
    "Diabetes Sci Technol 2009;3:509-516. Karthik, Maggie, Dane S. APTOS 2019 blindness detection. Kaggle 2019.",
    layout="""\
retinopathy/                            one or both
  eyepacs/
    trainLabels.csv                     image (10_left), level
    train/10_left.jpeg                  any folder
    retinopathy_solution.csv            image, level, Usage: the test set, may be missing
    test/1_left.jpeg
  aptos/
    train.csv                           id_code, diagnosis
    train_images/000c1434d8d7.png
""",
    labels={
        "referable": Label("grade", "referable retinopathy: grade 2, 3 or 4 against 0 and 1",
                           positive=("2", "3", "4"), against=("0", "1")),
        "grade": Label("grade", "the grade from 0 to 4"),
    },
    sites_by={"source": "the competition"},
    draft=_retinopathy,
    assumed=(
        "Both eyes of a person in EyePACS are one subject. APTOS names no people: each of its images is a subject of "
        "its own, so eyes of one person may be in different parts.",
        "Pictures that are copies of each other to the byte count once, and not at all if their grades differ; APTOS "
        "has some of both. Copies that were resized are not found.",
        "The test set of APTOS has no grades and is not read.",
    ),
)  # fmt: skip


# REFUGE ---------------------------------------------------------------------------------------------------------------

_NAME = re.compile(r"^([gntv])(\d{4})$", re.IGNORECASE)


def _glaucoma(request: Request, masks: dict[str, str]) -> dict[str, str]:
    """Name of an image in small letters -> yes or no, from names, folders and tables where these agree."""
    known: list[tuple[str, str]] = []
    for name, path in masks.items():
        folder = path.split("/")[-2].lower() if "/" in path else ""
        if name[0] in "gn":
            known.append((name, "yes" if name[0] == "g" else "no"))
        elif folder in ("g", "n", "glaucoma", "non-glaucoma"):
            known.append((name, "yes" if folder.startswith("g") else "no"))
    if request.label != "glaucoma":
        return dict(known)
    patterns = ("Fovea_location*", "Glaucoma_label_and_Fovea_location*")
    for found in find_tables(request.source, *(each + end for each in patterns for end in (".xlsx", ".csv"))):
        table = read_table(found)
        label = next((name for name in table.columns if "glaucoma" in str(name).lower()), None)
        if label is not None:
            names = table[pick_column(table, found, "ImgName")].map(stem).str.lower()
            told = table[label].str.removesuffix(".0").map({"1": "yes", "0": "no"}).fillna("")
            known += zip(names, told, strict=True)
    return told_once(*zip(*known, strict=True)) if known else {}


def _refuge(request: Request) -> Draft:
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for path in walk_files(request.source, (*_IMAGES, ".bmp")):
        if not _NAME.match(stem(path)):
            continue
        is_mask = path.lower().endswith(".bmp") or "mask" in path.lower()
        (masks if is_mask else images).setdefault(stem(path).lower(), path)
    if not images:
        raise LayoutError(f"None of g0001.jpg, V0001.jpg and T0001.jpg was found; {what_is_there(request.source)}.")
    glaucoma = _glaucoma(request, {name: masks.get(name, path) for name, path in images.items()})
    rows = pd.DataFrame(
        [
            [
                "Canon" if name[0] in "vt" else "Zeiss", name, path, masks.get(name, ""), glaucoma.get(name, ""),
                {"t": "test", "v": "validation"}.get(name[0], "train"), "",
            ]
            for name, path in sorted(images.items())
        ],
        columns=["site", "subject", "image", "mask", "glaucoma", "split", "reason"],
    )  # fmt: skip
    # Black is the cup, grey the rim of the disc around it, white everything else.
    data: dict[str, Any] = {"size": [256, 256]}
    if request.label == "disc":
        data |= {"mask": {"column": "mask", "background": 255}, "mask_classes": {"cup": 0, "rim": 128}}
    return Draft(rows, "image", images=["image"], mask="mask", data=data)


REFUGE = Entry(
    name="refuge",
    title="REFUGE (glaucoma, optic disc and cup)",
    about="Photographs of the retina of people with and without glaucoma, with optic disc and cup outlined by seven "
    "experts. The training part was taken with another camera than the rest.",
    modality="colour fundus photography",
    sites="2 cameras, told by the names of the files: Zeiss Visucam 500 (g and n, the training part) and Canon CR-2 (V "
    "and T, the validation and the test part).",
    subjects="1,200 images: 400 for training, 400 for validation, 400 for testing; a tenth with glaucoma.",
    access="https://refuge.grand-challenge.org/",
    licence="research use",
    terms="After registration with the challenge; research use with citation.",
    citation="Orlando JI et al. REFUGE Challenge: a unified framework for evaluating automated methods for glaucoma "
    "assessment from fundus photographs. Med Image Anal 2020;59:101570.",
    layout="""\
REFUGE/                                                  any depth; the names of the files tell
  REFUGE-Training400/Training400/Glaucoma/g0001.jpg      Non-Glaucoma/n0001.jpg
  Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp
  REFUGE-Validation400/V0001.jpg
  REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp
  REFUGE-Validation400-GT/Fovea_locations.xlsx           ImgName, Glaucoma Label (.xlsx or .csv)
  REFUGE-Test400/Test400/T0001.jpg
  REFUGE-Test-GT/Disc_Cup_Masks/G/T0001.bmp              also N
  REFUGE-Test-GT/Glaucoma_label_and_Fovea_location.xlsx  ImgName, Label(Glaucoma=1) (.xlsx or .csv)
""",
    labels={
        "disc": Label("mask", "the cup and the rim of the optic disc", task="segmentation"),
        "glaucoma": Label("glaucoma", "glaucoma: yes or no", positive=("yes",), against=("no",)),
    },
    sites_by={"camera": "the first letter of the file's name"},
    draft=_refuge,
    assumed=(
        "Masks are black (0) for the cup, grey (128) for the rest of the disc and white (255) for what is outside. The "
        "whole disc is cup and rim together.",
        "The files name no people: each image is a subject of its own.",
        "Cameras are those of the paper; the files do not name them.",
    ),
)
