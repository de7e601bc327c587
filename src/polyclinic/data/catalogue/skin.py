"""HAM10000 and ISIC 2019: dermatoscopic images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    by_stem,
    find_table,
    find_tables,
    optional_column,
    pick_column,
    read_table,
    walk_files,
    what_is_there,
)

_MALIGNANT_HAM = ("mel", "bcc", "akiec")
_CLASSES_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
_MALIGNANT_2019 = ("MEL", "BCC", "AK", "SCC")
_MASK = "_segmentation"
_FLIPS_AND_SIZE = {"size": [96, 128]}


def _yes_no(diagnosis: pd.Series[str], malignant: tuple[str, ...]) -> pd.Series[str]:
    return diagnosis.isin(malignant).map({True: "yes", False: "no"}).where(diagnosis != "", "")


def _draft_ham(request: Request) -> Draft:
    path = find_table(
        request.source, "HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab", "labels.csv"
    )
    table = read_table(path, "unknown")
    image_id = table[pick_column(table, path, "image_id")]
    files = by_stem(walk_files(path.parent, (".jpg", ".jpeg", ".png")))
    folder = path.parent.relative_to(request.source).as_posix() if path.parent != request.source else ""
    files = {name: f"{folder}/{file}".lstrip("/") for name, file in files.items()}
    images, masks = _images_and_masks(table, image_id, files)
    if not (images != "").any():
        raise LayoutError(f"The table is there, but no ISIC_0024306.jpg or the like; {what_is_there(request.source)}.")
    diagnosis = table[pick_column(table, path, "dx")]
    rows = pd.DataFrame(
        {
            "site": table[pick_column(table, path, "dataset", "site")],
            "subject": table[pick_column(table, path, "lesion_id")],
            "image": images,
            "mask": masks,
            "malignant": _yes_no(diagnosis, _MALIGNANT_HAM),
            "diagnosis": diagnosis,
            "age": optional_column(table, "age"),
            "sex": optional_column(table, "sex").map({"male": "M", "female": "F"}).fillna(""),
            "localization": optional_column(table, "localization"),
            "reason": "",
        }
    )
    return Draft(rows, "image", images=["image"], mask="mask", data=dict(_FLIPS_AND_SIZE))


def _images_and_masks(
    table: pd.DataFrame, image_id: pd.Series[str], files: dict[str, str]
) -> tuple[pd.Series[str], pd.Series[str]]:
    """Paths by the table's columns where it has them, else by the names of the files."""
    if {"image", "mask"} <= set(table.columns):
        return table["image"], table["mask"]
    return image_id.map(files).fillna(""), (image_id + _MASK).map(files).fillna("")


HAM10000 = Entry(
    name="ham10000",
    title="HAM10000 (skin lesions, four sources)",
    about="Dermatoscopic images of pigmented skin lesions in seven classes, with the lesion outlined. The four "
    "sources differ in camera, digitisation and in how frequent cancer is.",
    modality="dermatoscopy (colour images)",
    sites="4 sources, in the column `dataset`: rosendahl (Queensland), vidir_modern, vidir_molemax and vienna_dias "
    "(Vienna).",
    subjects="10,015 images of 7,470 lesions; patients are not named.",
    access="https://doi.org/10.7910/DVN/DBW86T",
    licence="CC BY-NC 4.0",
    terms="CC BY-NC 4.0: non-commercial; open download.",
    citation="Tschandl P, Rosendahl C, Kittler H. The HAM10000 dataset. Sci Data 2018;5:180161. Masks: Tschandl P et "
    "al. Nat Med 2020;26:1229-1234.",
    layout="""\
HAM10000/
  HAM10000_metadata (.csv, .tab)               lesion_id, image_id, dx, dx_type, age, sex, localization, dataset
  HAM10000_images_part_1/ISIC_0024306.jpg      any folder
  HAM10000_segmentations_lesion_tschandl/ISIC_0024306_segmentation.png      may be missing
or skin-lesions/
  labels.csv                                   the same with site instead of dataset, and image and mask (paths)
""",
    labels={
        "malignant": Label(
            "malignant", "malignant lesion: yes (mel, bcc, akiec) or no", positive=("yes",), against=("no",)
        ),
        "diagnosis": Label("diagnosis", "diagnosis: akiec, bcc, bkl, df, mel, nv, vasc"),
        "lesion": Label("mask", "the lesion; not zero is lesion", task="segmentation"),
    },
    sites_by={"source": "the column `dataset` (or `site`)"},
    draft=_draft_ham,
    assumed=(
        "All images of a lesion are one subject; images of a patient's different lesions can't be told and may be "
        "parted.",
        "Actinic keratosis and Bowen's disease (akiec) count as malignant.",
        "Some copies of the metadata lack `dataset`; FLamby (github.com/owkin/FLamby) ships one that has it.",
    ),
)


def _draft_2019(request: Request) -> Draft:
    path = find_table(request.source, "ISIC_2019_Training_Metadata.csv")
    table = read_table(path)
    truth_path = find_table(request.source, "ISIC_2019_Training_GroundTruth.csv")
    truth = read_table(truth_path)
    named = truth.set_index(pick_column(truth, truth_path, "image"))
    image = table[pick_column(table, path, "image")]
    scores = pd.DataFrame({name: pd.to_numeric(named[name], errors="coerce") for name in _CLASSES_2019})
    diagnosis = scores.idxmax(axis=1).where(scores.max(axis=1) > 0, "")
    lesion = table[pick_column(table, path, "lesion_id")]
    ham = find_tables(request.source, "HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
    files = by_stem(walk_files(request.source, (".jpg", ".jpeg", ".png")))
    diagnoses = image.map(diagnosis).fillna("")
    rows = pd.DataFrame(
        {
            "site": _centres(image, lesion, ham),
            "subject": lesion,
            "image": image.map(files).fillna(""),
            "malignant": _yes_no(diagnoses, _MALIGNANT_2019),
            "diagnosis": diagnoses,
            "age": optional_column(table, "age_approx"),
            "sex": optional_column(table, "sex").map({"male": "M", "female": "F"}).fillna(""),
            "localization": optional_column(table, "anatom_site_general"),
            "reason": "",
        }
    )
    rows.loc[lesion == "", "reason"] = "no lesion_id, so neither centre nor lesion is known"
    notes = [] if ham else ["Without HAM10000_metadata the four sources of HAM10000 are one site, HAM."]
    return Draft(rows, "image", images=["image"], data=dict(_FLIPS_AND_SIZE), notes=notes)


def _centres(image: pd.Series[str], lesion: pd.Series[str], ham: list[Path]) -> pd.Series[str]:
    """BCN and MSK by the lesion's name, those of HAM10000 by its own table."""
    centre = lesion.str.extract(r"^([A-Za-z]+)")[0].fillna("").str.upper()
    if ham:
        table = read_table(ham[0])
        dataset = table[pick_column(table, ham[0], "dataset")].set_axis(table[pick_column(table, ham[0], "image_id")])
        centre = centre.where(centre != "HAM", image.map(dataset).fillna(""))
    return centre


ISIC_2019 = Entry(
    name="isic2019",
    title="ISIC 2019 (skin lesions, six centres)",
    about="Dermatoscopic images in eight classes from three archives: Barcelona (BCN_20000), Memorial Sloan Kettering "
    "(MSK) and HAM10000 with its four sources; the centres of FLamby's Fed-ISIC2019.",
    modality="dermatoscopy (colour images)",
    sites="6 centres: BCN and MSK by the beginning of lesion_id, and with HAM10000_metadata rosendahl, vidir_modern, "
    "vidir_molemax, vienna_dias.",
    subjects="25,331 images; 23,247 with a lesion_id (BCN 12,413, vidir_molemax 3,954, vidir_modern 3,363, rosendahl "
    "2,259, MSK 819, vienna_dias 439).",
    access="https://challenge.isic-archive.com/data/#2019; HAM10000_metadata: https://doi.org/10.7910/DVN/DBW86T",
    licence="CC BY-NC 4.0",
    terms="CC BY-NC 4.0: non-commercial; open download.",
    citation="Tschandl P et al. Sci Data 2018;5:180161. Codella NCF et al. arXiv:1710.05006. Combalia M et al. "
    "arXiv:1908.02288. Split: Ogier du Terrail J et al. FLamby, NeurIPS 2022.",
    layout="""\
ISIC_2019/
  ISIC_2019_Training_Metadata.csv        image, age_approx, anatom_site_general, lesion_id, sex
  ISIC_2019_Training_GroundTruth.csv     image, MEL, NV, BCC, AK, BKL, DF, VASC, SCC, UNK
  HAM10000_metadata (.csv, .tab)         image_id, dataset (may be missing)
  ISIC_2019_Training_Input/ISIC_0000000.jpg      any folder, also resized copies
""",
    labels={
        "malignant": Label(
            "malignant", "malignant lesion: yes (MEL, BCC, AK, SCC) or no", positive=("yes",), against=("no",)
        ),
        "diagnosis": Label("diagnosis", "diagnosis: MEL, NV, BCC, AK, BKL, DF, VASC, SCC"),
    },
    sites_by={"centre": "the beginning of lesion_id, and the source in HAM10000_metadata"},
    draft=_draft_2019,
    assumed=(
        "Images without lesion_id (2,084) are rejected, as in FLamby: their centre is not known.",
        "All images of a lesion are one subject. Fed-ISIC2019's own split parts them, so its scores are not "
        "comparable.",
    ),
)
