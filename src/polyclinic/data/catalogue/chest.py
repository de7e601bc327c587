"""Chest X-rays with findings: CheXpert, ChestX-ray14 and MIMIC-CXR-JPG, each a site."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    find_tables,
    optional_column,
    pick_column,
    read_table,
    walk_files,
    what_is_there,
)

#: Findings that all three sources name -> the name in ChestX-ray14.
FINDINGS = {
    "Pleural Effusion": "Effusion",
    "Cardiomegaly": "Cardiomegaly",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Pneumonia": "Pneumonia",
    "No Finding": "No Finding",
}
_STATES = {"1.0": "present", "1": "present", "0.0": "absent", "0": "absent", "": "absent", "-1.0": "uncertain",
           "-1": "uncertain"}  # fmt: skip


def _column(finding: str) -> str:
    return finding.lower().replace(" ", "_")


def _findings(table: pd.DataFrame, path: Path) -> dict[str, pd.Series[str]]:
    """The columns of CheXpert's labeller; what a report does not mention is absent."""
    return {_column(name): table[pick_column(table, path, name)].map(_STATES).fillna("") for name in FINDINGS}


def _inside(path: Path, source: Path) -> str:
    """Beginning of the paths of files in the folder of ``path``."""
    folder = path.parent.relative_to(source).as_posix()
    return "" if folder == "." else folder + "/"


def _chexpert(source: Path) -> list[pd.DataFrame]:
    parts = []
    for path in find_tables(source, "train.csv", "valid.csv"):
        table = read_table(path)
        if "Frontal/Lateral" not in table.columns:
            continue
        # The first folder of the cell is the name of the download, which may have been renamed.
        image = _inside(path, source) + table[pick_column(table, path, "Path")].str.replace(r"^[^/]+/", "", regex=True)
        lateral = table["Frontal/Lateral"] != "Frontal"
        rows = {
            "source": "CheXpert",
            "subject": "chexpert " + image.str.extract(r"(patient\d+)")[0].fillna(""),
            "image": image,
            **_findings(table, path),
            "view": optional_column(table, "AP/PA").str.upper(),
            "age": optional_column(table, "Age"),
            "sex": optional_column(table, "Sex").str[:1].replace("U", ""),
            "reason": lateral.map({True: "lateral view", False: ""}),
        }
        parts.append(pd.DataFrame(rows, index=table.index))
    return parts


def _chestxray14(source: Path) -> list[pd.DataFrame]:
    parts = []
    for path in find_tables(source, "Data_Entry_2017*.csv"):
        table = read_table(path)
        index = table[pick_column(table, path, "Image Index")]
        base = _inside(path, source)
        files = {name.rsplit("/", 1)[-1]: base + name for name in walk_files(path.parent, (".png", ".jpg"))}
        named = "|" + table[pick_column(table, path, "Finding Labels")] + "|"
        findings = {
            _column(name): named.str.contains(f"|{theirs}|", regex=False).map({True: "present", False: "absent"})
            for name, theirs in FINDINGS.items()
        }
        rows = {
            "source": "ChestX-ray14",
            "subject": "chestxray14 " + table[pick_column(table, path, "Patient ID")],
            "image": index.map(files).fillna(""),
            **findings,
            "view": optional_column(table, "View Position").str.upper(),
            "age": optional_column(table, "Patient Age").str.lstrip("0").str.rstrip("Y"),
            "sex": optional_column(table, "Patient Gender"),
            "reason": "",
        }
        parts.append(pd.DataFrame(rows, index=table.index))
    return parts


def _mimic(source: Path) -> list[pd.DataFrame]:
    parts = []
    for path in find_tables(source, "mimic-cxr-2*-chexpert.csv", "mimic-cxr-2*-chexpert.csv.gz")[:1]:
        labels = read_table(path)
        found = find_tables(path.parent, "mimic-cxr-2*-metadata.csv", "mimic-cxr-2*-metadata.csv.gz")
        if not found:
            raise LayoutError(f"{path.name} is there, but not its mimic-cxr-2.0.0-metadata.csv (or .csv.gz).")
        metadata = read_table(found[0])
        keys = ["subject_id", "study_id"]
        for key in keys:
            pick_column(labels, path, key)
            pick_column(metadata, found[0], key)
        table = metadata.merge(labels, on=keys, how="left").fillna("")
        in_labels = table.set_index(keys).index.isin(labels.set_index(keys).index)
        subject, study, dicom = (table[name] for name in (*keys, pick_column(metadata, found[0], "dicom_id")))
        view = table[pick_column(metadata, found[0], "ViewPosition")].str.upper()
        folder = "files/p" + subject.str[:2] + "/p" + subject + "/s" + study
        reason = pd.Series("", index=table.index).where(in_labels, "no findings for the study")
        rows = {
            "source": "MIMIC-CXR",
            "subject": "mimic " + subject,
            "image": _inside(path, source) + folder + "/" + dicom + ".jpg",
            **_findings(table, path),
            "view": view,
            "age": "",
            "sex": "",
            "reason": reason.where(view.isin(("AP", "PA")), "lateral view"),
        }
        parts.append(pd.DataFrame(rows, index=table.index))
    return parts


def _draft(request: Request) -> Draft:
    parts = [part for read in (_chexpert, _chestxray14, _mimic) for part in read(request.source)]
    if not parts:
        raise LayoutError(
            "Neither train.csv (CheXpert), Data_Entry_2017.csv (ChestX-ray14) nor mimic-cxr-2.0.0-chexpert.csv.gz was "
            f"found there or in a folder below; {what_is_there(request.source)}."
        )
    rows = pd.concat(parts, ignore_index=True)
    known = rows["view"].isin(("AP", "PA"))
    by_view = (rows["source"] + "-" + rows["view"]).where(known, "")
    rows.insert(0, "site", by_view if request.sites_by == "view" else rows["source"])
    rows = rows.drop(columns="source")
    return Draft(rows, "image", images=["image"], data={"size": [224, 224], "channels": "grey", "augmentation": []},
                 training={"class_weights": "balanced"})  # fmt: skip


ENTRY = Entry(
    name="chest-xrays",
    title="Chest X-rays (CheXpert, ChestX-ray14, MIMIC-CXR)",
    about="Chest radiographs with findings taken from their reports by programs. Each source is a site; one alone "
    "works as well. Sources differ in patients, machines and in how findings were read from the reports.",
    modality="chest radiography",
    sites="Up to 3, each a data set of one hospital: CheXpert (Stanford), ChestX-ray14 (NIH Clinical Center), "
    "MIMIC-CXR (Beth Israel Deaconess, Boston).",
    subjects="CheXpert 224,316 images of 65,240 patients; ChestX-ray14 112,120 of 30,805; MIMIC-CXR-JPG 377,110 of "
    "65,379.",
    access="https://stanfordmlgroup.github.io/competitions/chexpert/, https://nihcc.app.box.com/v/ChestXray-NIHCC, "
    "https://physionet.org/content/mimic-cxr-jpg/",
    licence="by source",
    terms="CheXpert: Stanford research use agreement, non-commercial; ChestX-ray14: open with citation; MIMIC-CXR-JPG: "
    "PhysioNet credentialed access with training and agreement.",
    citation="Irvin J et al. AAAI 2019;33:590-597 (CheXpert). Wang X et al. CVPR 2017:2097-2106 (ChestX-ray14). "
    "Johnson AEW et al. arXiv:1901.07042 (MIMIC-CXR-JPG).",
    layout="""\
chest/                                           one or more of
  CheXpert-v1.0-small/
    train.csv, valid.csv                         Path, Sex, Age, Frontal/Lateral, AP/PA and 14 findings
    train/patient00001/study1/view1_frontal.jpg
  ChestX-ray14/
    Data_Entry_2017.csv                          Image Index, Finding Labels, Patient ID, Patient Age,
                                                 Patient Gender, View Position
    images_001/images/00000001_000.png           any folder
  mimic-cxr-jpg/
    mimic-cxr-2.0.0-chexpert.csv.gz              subject_id, study_id and 14 findings (.gz or not)
    mimic-cxr-2.0.0-metadata.csv.gz              dicom_id, subject_id, study_id, ViewPosition
    files/p10/p10000032/s50414267/02aa804e-....jpg
""",
    labels={
        _column(name).replace("_", "-"): Label(
            _column(name), f"{name.lower()}: present against absent", positive=("present",), against=("absent",)
        )
        for name in FINDINGS
    },
    sites_by={"source": "the data set", "view": "the data set and the direction of the beam (AP or PA)"},
    draft=_draft,
    assumed=(
        "Only frontal views are used.",
        "A finding that a report does not mention counts as absent; uncertain ones (-1) are rejected, unless "
        "`--positive present,uncertain` asks for them.",
        "In ChestX-ray14 a finding that is not listed is absent.",
        "Every image is kept; a patient's images stay together.",
    ),
)
