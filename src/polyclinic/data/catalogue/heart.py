"""Fed-Heart-Disease: the four UCI files."""

from __future__ import annotations

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import MISSING, LayoutError, find_tables, what_is_there
from polyclinic.data.tables.table import read_cells

COLUMNS = [
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
    "num",
]  # fmt: skip
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def _draft(request: Request) -> Draft:
    parts, absent = [], []
    for hospital in HOSPITALS:
        found = find_tables(request.source, f"processed.{hospital}.data")
        if not found:
            absent.append(f"processed.{hospital}.data")
            continue
        cells = read_cells(found[0], COLUMNS)
        cells = cells.mask(cells.isin(MISSING), "")
        cells.insert(0, "site", hospital)
        cells.insert(1, "subject", [f"{hospital} {number}" for number in range(1, len(cells) + 1)])
        parts.append(cells)
    if not parts:
        raise LayoutError(f"No processed.*.data was found there; {what_is_there(request.source)}.")
    rows = pd.concat(parts, ignore_index=True)
    stage = pd.to_numeric(rows["num"], errors="coerce")
    rows["disease"] = stage.gt(0).map({True: "yes", False: "no"}).where(stage.notna(), "")
    rows["reason"] = ""
    return Draft(
        rows,
        "table",
        features=[name for name in COLUMNS if name not in {"slope", "ca", "thal", "num"}],
        data={"categorical": ["cp", "restecg"], "imputation": "drop"},
        notes=[f"Not found: {', '.join(absent)}."] if absent else [],
    )


ENTRY = Entry(
    name="heart-disease",
    title="Fed-Heart-Disease (UCI Heart Disease, four hospitals)",
    about="Thirteen clinical measures of patients sent for coronary angiography, and whether a vessel was narrowed by "
    "more than half. The four files are the input of FLamby's Fed-Heart-Disease.",
    modality="table (13 clinical measures)",
    sites="4 hospitals, one file each: Cleveland Clinic Foundation, Hungarian Institute of Cardiology (Budapest), "
    "University Hospitals Zurich and Basel, V.A. Medical Center Long Beach.",
    subjects="920 patients: 303, 294, 123 and 200.",
    access="https://archive.ics.uci.edu/dataset/45/heart+disease",
    licence="CC BY 4.0",
    terms="CC BY 4.0; open download.",
    citation="Janosi A, Steinbrunn W, Pfisterer M, Detrano R. Heart Disease. UCI Machine Learning Repository 1988, "
    "doi:10.24432/C52P4X. Detrano R et al. Am J Cardiol 1989;64:304-310.",
    layout="""\
heart-disease/
  processed.cleveland.data      no header line, 14 columns, "?" for missing
  processed.hungarian.data
  processed.switzerland.data
  processed.va.data
""",
    labels={
        "disease": Label(
            "disease", "heart disease: yes (num 1 to 4) or no (num 0)", positive=("yes",), against=("no",)
        ),
        "num": Label("num", "stage of the disease, 0 to 4"),
    },
    sites_by={"hospital": "the file"},
    draft=_draft,
    assumed=(
        "The starter study leaves out slope, ca and thal, which are hardly measured outside Cleveland, and then rows "
        "with a missing feature, as FLamby does: 740 of 920 patients are used.",
        "A cholesterol of 0 (all of Switzerland, part of V.A.) means that it was not measured; it is kept as it is.",
        "The files name no patients: each row is a patient of its own.",
    ),
)
