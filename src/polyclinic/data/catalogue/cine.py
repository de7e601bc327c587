"""Cine MRI of the heart: ACDC, and M&Ms with its vendors and centres."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from polyclinic.data.catalogue.convert import frame_to_nifti
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    by_stem,
    find_table,
    optional_column,
    pick_column,
    read_table,
    reject_repeated,
    walk_files,
    what_is_there,
)
from polyclinic.data.catalogue.studies import grid

_GRID = grid((160, 160, 16), spacing=(1.5, 1.5, 8))
_VOLUMES = (".nii.gz", ".nii")


def _data(structures: dict[str, int]) -> dict[str, Any]:
    return {"preprocessing": _GRID, "mask_classes": structures}


# ACDC -----------------------------------------------------------------------------------------------------------------

_PATIENT = re.compile(r"^patient\d{3}$")
_PHASES = ("ED", "ES")


def _read_info(path: Path) -> dict[str, str]:
    """Lines such as ``ED: 1``, ``Group: DCM``."""
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def _acdc_patients(source: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Folder, patient and what its Info.cfg says (nothing where it is missing)."""
    folders = sorted({path.rsplit("/", 1)[0] for path in walk_files(source, _VOLUMES) if "/" in path})
    seen = set()
    for folder in folders:
        names = folder.split("/")
        at = next((number for number, name in enumerate(names) if _PATIENT.match(name)), None)
        if at is None or names[at] in seen:
            continue
        seen.add(names[at])
        home = "/".join(names[: at + 1])
        info = source / home / "Info.cfg"
        yield home, names[at], _read_info(info) if info.is_file() else {}


def _acdc(request: Request) -> Draft:
    files = by_stem(walk_files(request.source, _VOLUMES))
    rows: list[dict[str, str]] = []
    for home, patient, info in _acdc_patients(request.source):
        common = {
            "site": "Dijon",
            "subject": patient,
            "group": info.get("Group", ""),
            "height": info.get("Height", ""),
            "weight": info.get("Weight", ""),
            "split": "test" if "testing" in home.lower().split("/") else "train",
            "reason": "" if info else "Info.cfg is missing",
        }
        frames = {phase: info.get(phase, "") for phase in _PHASES}
        names = {phase: f"{patient}_frame{number.zfill(2)}" for phase, number in frames.items() if number}
        if request.label == "group":
            images = {phase.lower(): files.get(names.get(phase, ""), "") for phase in _PHASES}
            rows.append(common | images)
            continue
        for phase in _PHASES:
            name = names.get(phase, "")
            rows.append(common | {"phase": phase, "image": files.get(name, ""), "mask": files.get(f"{name}_gt", "")})
    if not rows:
        raise LayoutError(f"No folder patient001 with volumes was found; {what_is_there(request.source)}.")
    if request.label == "group":
        return Draft(pd.DataFrame(rows), "volume", images=["ed", "es"], data={"preprocessing": _GRID})
    data = _data({"right_ventricle": 1, "myocardium": 2, "left_ventricle": 3})
    return Draft(pd.DataFrame(rows), "volume", images=["image"], mask="mask", data=data)


ACDC = Entry(
    name="acdc",
    title="ACDC (cine MRI of the heart)",
    about="Short-axis cine MRI with both ventricles and the myocardium outlined at the end of diastole (ED) and of "
    "systole (ES), and one of five diagnoses.",
    modality="cine MRI",
    sites="1: the University Hospital of Dijon (two scanners of 1.5 and 3 tesla, which the files do not tell apart).",
    subjects="150 patients (100 for training, 50 for testing), two outlined volumes each.",
    access="https://humanheart-project.creatis.insa-lyon.fr/database/#collection/637218c173e9f0047faa00fb",
    licence="CC BY-NC-SA 4.0",
    terms="After registration; research use with citation (CC BY-NC-SA 4.0 as the challenge's page says).",
    citation="Bernard O et al. Deep learning techniques for automatic MRI cardiac multi-structures segmentation and "
    "diagnosis: is the problem solved? IEEE TMI 2018;37:2514-2525.",
    layout="""\
ACDC/database/
  training/patient001/
    Info.cfg                               ED: 1, ES: 12, Group: DCM, Height, NbFrame, Weight
    patient001_frame01.nii.gz              the frame of ED, and that of ES
    patient001_frame01_gt.nii.gz           1 right ventricle, 2 myocardium, 3 left ventricle
    patient001_4d.nii.gz                   not needed
  testing/patient101/...                   the same
""",
    labels={
        "heart": Label("mask", "both ventricles and the myocardium, at ED and at ES", task="segmentation"),
        "group": Label("group", "diagnosis: DCM, HCM, MINF, NOR or RV, from ED and ES as two channels"),
    },
    sites_by={"hospital": "one site: Dijon"},
    draft=_acdc,
    assumed=(
        "ED and ES of a patient are two cases, which stay together.",
        "There is one site only: take `--sites-by quantity`, or put the manifest together with that of M&Ms. Mind the "
        "masks: in ACDC 1 is the right ventricle, in M&Ms the left one.",
        "The column `split` has the challenge's parts; the starter study makes folds instead.",
    ),
)


# M&Ms -----------------------------------------------------------------------------------------------------------------

#: Letter of the challenge -> maker of the scanner.
_VENDORS = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
_PARTS = {"training": "train", "validation": "validation", "testing": "test"}


def _mms(request: Request) -> Draft:
    path = find_table(request.source, "*M&Ms*Dataset*information*.csv", "*mnms*information*.csv")
    table = read_table(path)
    code = table[pick_column(table, path, "External code")]
    vendor = table[pick_column(table, path, "Vendor")]
    centre = table[pick_column(table, path, "Centre", "Center")]
    frames = {phase: table[pick_column(table, path, phase)] for phase in _PHASES}
    extra = {name.lower(): optional_column(table, name) for name in ("Pathology", "Age", "Sex")}
    files = by_stem(path for path in walk_files(request.source, _VOLUMES) if re.search(r"_sa(_gt)?\.", path))
    site = "vendor-" + vendor if request.sites_by == "vendor" else "centre-" + centre
    site = site.where((vendor if request.sites_by == "vendor" else centre) != "", "")
    rows = []
    for at in table.index:
        image, mask = files.get(f"{code[at]}_sa", ""), files.get(f"{code[at]}_sa_gt", "")
        folders = {name.lower() for name in image.split("/")}
        common = {
            "site": site[at],
            "subject": code[at],
            "vendor": _VENDORS.get(vendor[at], vendor[at]),
            "centre": centre[at],
            "split": next((part for folder, part in _PARTS.items() if folder in folders), ""),
            **{name: column[at] for name, column in extra.items()},
        }
        for phase in _PHASES:
            reason = "not outlined (Training/Unlabeled)" if "unlabeled" in folders else ""
            rows.append(
                common | {"phase": phase, "frame": frames[phase][at], "image": image, "mask": mask, "reason": reason}
            )
    drawn = pd.DataFrame(rows)
    reject_repeated(drawn, ["subject", "phase"], ["frame", "site"], "phase")
    _extract(request, drawn)
    data = _data({"left_ventricle": 1, "myocardium": 2, "right_ventricle": 3})
    return Draft(drawn.drop(columns="frame"), "volume", images=["image"], mask="mask", data=data)


def _extract(request: Request, rows: pd.DataFrame) -> None:
    """Write ED and ES of image and mask as volumes of their own."""
    usable = rows.index[(rows["reason"] == "") & (rows["image"] != "") & (rows["mask"] != "")]
    for number, at in enumerate(usable):
        row = rows.loc[at]
        try:
            frame = int(float(row["frame"]))
            # With the frame: versions of the table differ in it, and what is there already is not written again.
            names = [f"{kind}/{row['subject']}_{row['phase']}_{frame:02}.nii.gz" for kind in ("images", "masks")]
            frame_to_nifti(request.source / row["image"], frame, request.out / names[0])
            outlined = frame_to_nifti(request.source / row["mask"], frame, request.out / names[1], mask=True)
            rows.loc[at, ["image", "mask"]] = [f"out:{name}" for name in names]
            if not outlined:
                rows.loc[at, "reason"] = "nothing is outlined at the frame that the table tells"
        except (OSError, ValueError, EOFError):
            rows.loc[at, "reason"] = "frame is missing, or the file is damaged"
        request.progress(number + 1, len(usable))


MMS = Entry(
    name="mms",
    title="M&Ms (cine MRI of the heart, several vendors and centres)",
    about="Short-axis cine MRI of healthy people and patients, with both ventricles and the myocardium outlined at the "
    "end of diastole (ED) and of systole (ES). Made to measure how models fare on scanners that they have not seen.",
    modality="cine MRI",
    sites="6 hospitals in Spain, Germany and Canada (column `Centre`) with scanners of four makers (column `Vendor`: A "
    "Siemens, B Philips, C GE, D Canon).",
    subjects="375 subjects, 345 of them open; the 25 with scanners of vendor C in the training part are not outlined.",
    access="https://www.ub.edu/mnms/",
    licence="CC BY-NC-SA 4.0",
    terms="Open download after a form; CC BY-NC-SA 4.0.",
    citation="Campello VM et al. Multi-centre, multi-vendor and multi-disease cardiac segmentation: the M&Ms "
    "challenge. IEEE TMI 2021;40:3543-3554.",
    layout="""\
OpenDataset/
  211230_M&Ms_Dataset_information_diagnosis_opendataset.csv
                                           External code, VendorName, Vendor, Centre, ED, ES, ...
  Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz         a time series
  Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz      1 left ventricle, 2 myocardium, 3 right ventricle
  Training/Unlabeled/...                           vendor C; its _gt files are empty
  Validation/..., Testing/...
""",
    labels={"heart": Label("mask", "both ventricles and the myocardium, at ED and at ES", task="segmentation")},
    sites_by={"centre": "the column `Centre`", "vendor": "the column `Vendor`"},
    draft=_mms,
    assumed=(
        "The two frames that the table names (ED and ES, counted from 0) are written as volumes next to the manifest.",
        "ED and ES of a subject are two cases, which stay together.",
        "Subjects in Training/Unlabeled are rejected: the files of their masks hold nothing.",
        "The column `split` has the challenge's parts; the starter study makes folds within each site instead. For the "
        "challenge's question add `unseen_sites: [fedavg]` under `evaluation`.",
        "The names of the columns Pathology, Age and Sex could not be confirmed; they are taken if they are there.",
    ),
)
