"""RSNA 2019: intracranial haemorrhage in slices of head CT."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import find_table, pick_column, read_table, walk_files
from polyclinic.data.readers.dicom.header import read_header
from polyclinic.data.readers.volume import UnreadableError

KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
FINDINGS = (*KINDS, "any")
_NAME = r"^(ID_[0-9A-Za-z]+)_([a-z]+)$"


def _labels(request: Request) -> tuple[pd.DataFrame, list[str]]:
    """A row an image with a column a finding, from a table with a row for each image and finding; and notes."""
    path = find_table(request.source, "stage_2_train.csv", "stage_1_train.csv")
    table = read_table(path)
    parts = table[pick_column(table, path, "ID")].str.extract(_NAME)
    label = table[pick_column(table, path, "Label")].str.removesuffix(".0")
    long = pd.DataFrame({"image": parts[0], "finding": parts[1], "label": label})
    known = long["finding"].isin(FINDINGS)
    unknown = int((~known).sum())
    notes = [f"{unknown} rows of {path.name} name no image and finding; they are not used."] if unknown else []
    long = long[known].drop_duplicates()
    # What is left twice says two different things of one image.
    unclear = set(long.loc[long.duplicated(["image", "finding"]), "image"])
    wide = long.drop_duplicates(["image", "finding"]).pivot(index="image", columns="finding", values="label")
    wide = wide.reindex(columns=list(FINDINGS)).fillna("")
    wide["reason"] = ["rows of the image contradict each other" if name in unclear else "" for name in wide.index]
    return wide.reset_index(), notes


def _patient(path: Path) -> tuple[str, str]:
    """A name made of the PatientID of a file (empty for none), and why the file can't be used."""
    try:
        header = read_header(path, salt="rsna")
    except UnreadableError as error:
        return "", str(error)
    return header.subject, "pixels are truncated" if header.truncated else ""


def _draft(request: Request) -> Draft:
    rows, notes = _labels(request)
    images = {path.rsplit("/", 1)[-1][: -len(".dcm")]: path for path in walk_files(request.source, (".dcm",))}
    rows.insert(0, "site", "")
    rows.insert(1, "subject", "")
    names = rows["image"]
    rows["image"] = [images.get(name, "") for name in names]
    here = rows.index[rows["image"] != ""]
    rows.loc[rows["image"] == "", "reason"] = "image file is missing"
    for number, row in enumerate(here):
        patient, reason = _patient(request.source / str(rows.loc[row, "image"]))
        rows.loc[row, "subject"] = patient
        if reason and not rows.loc[row, "reason"]:
            rows.loc[row, "reason"] = reason
        if number % 100 == 99 or number + 1 == len(here):
            request.progress(number + 1, len(here))
    grid = {"orientation": "RAS", "size": [256, 256, 1], "spacing": [1, 1, 5]}
    data = {"preprocessing": grid | {"intensity": {"window": {"lower": 0, "upper": 80}}}}
    return Draft(rows, "volume", images=["image"], data=data, notes=notes)


ENTRY = Entry(
    name="rsna-haemorrhage",
    title="RSNA intracranial haemorrhage (head CT)",
    about="Slices of CT of the head without contrast agent. Of each slice neuroradiologists said which of five kinds "
    "of haemorrhage it shows; a slice may show several.",
    modality="CT (single slices in DICOM)",
    sites="None that is told: the images are from institutions in the USA, Canada and Brazil, and neither tables nor "
    "headers say which. Sites are artificial, made by quantity or (with a label such as any) by Dirichlet.",
    subjects="Training set of stage 2: 752,803 slices of 18,938 patients.",
    access="https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection",
    licence="Kaggle rules",
    terms="Kaggle account and the competition's rules: non-commercial and academic research, no sharing.",
    citation="Flanders AE et al. Construction of a machine learning dataset through collaboration: the RSNA 2019 Brain "
    "CT Hemorrhage Challenge. Radiol Artif Intell 2020;2:e190211.",
    layout="""\
rsna-intracranial-hemorrhage-detection/
  stage_2_train.csv                      ID (ID_12cadc6af_epidural), Label (0, 1): a row an image and finding
  stage_2_train/ID_12cadc6af.dcm         PatientID in the header tells the patient
""",
    labels={
        "findings": Label(
            "epidural", "kinds of haemorrhage: 1 or 0 for each", task="multi_label", findings=FINDINGS
        ),
        **{
            name: Label(name, f"{'any' if name == 'any' else name} haemorrhage: 1 against 0",
                        positive=("1",), against=("0",))
            for name in FINDINGS
        },
    },
    sites_by={},
    draft=_draft,
    assumed=(
        "Each slice is a case, as in the challenge; all slices of a patient stay together. Headers of all files are "
        "read for that, so preparing takes minutes.",
        "Rows that say the same twice count once (the table has some); an image whose rows contradict each other is "
        "rejected. So is an image whose file ends too early (ID_6431af929).",
        "Images of the test set are not read: their labels were never published.",
        "The window is that of the brain, 0 to 80 HU.",
    ),
)  # fmt: skip
