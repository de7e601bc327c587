"""Camelyon17 patches as WILDS cut them."""

from __future__ import annotations

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import find_table, pick_column, read_table


def _draft(request: Request) -> Draft:
    path = find_table(request.source, "metadata.csv")
    table = read_table(path)
    patient, node, x, y, tumor, center = (
        table[pick_column(table, path, name)] for name in ("patient", "node", "x_coord", "y_coord", "tumor", "center")
    )
    patient = patient.str.zfill(3)
    folder = path.parent.relative_to(request.source).as_posix()
    base = "" if folder == "." else folder + "/"
    slide = "patient_" + patient + "_node_" + node
    rows = pd.DataFrame(
        {
            "site": "center-" + center,
            "subject": patient,
            "image": base + "patches/" + slide + "/patch_" + slide + "_x_" + x + "_y_" + y + ".png",
            "tumor": tumor.map({"1": "yes", "0": "no", "1.0": "yes", "0.0": "no"}).fillna(""),
            "node": node,
            "reason": "",
        }
    )
    data = {"size": [96, 96], "augmentation": [{"RandFlip": {"prob": 0.5, "spatial_axis": 0}},
                                               {"RandRotate90": {"prob": 0.5}}]}  # fmt: skip
    return Draft(rows, "image", images=["image"], data=data)


ENTRY = Entry(
    name="camelyon17",
    title="Camelyon17 patches (WILDS)",
    about="Patches of 96 x 96 pixels from slides of lymph nodes of women with breast cancer; the question is whether "
    "the middle of the patch shows tumour. Hospitals differ in staining and scanner.",
    modality="histopathology (colour patches)",
    sites="5 hospitals in the Netherlands, in the column `center` (0 to 4).",
    subjects="455,954 patches of 50 slides, 10 slides a hospital.",
    access="https://wilds.stanford.edu/datasets/#camelyon17",
    licence="CC0",
    terms="CC0; open download.",
    citation="Bandi P et al. From detection of individual metastases to classification of lymph node status at the "
    "patient level: the CAMELYON17 challenge. IEEE TMI 2019;38:550-560. Koh PW et al. WILDS. ICML 2021.",
    layout="""\
camelyon17_v1.0/
  metadata.csv                           patient, node, x_coord, y_coord, tumor, slide, center, split
  patches/patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png
""",
    labels={
        "tumor": Label("tumor", "tumour in the middle of the patch: yes or no", positive=("yes",), against=("no",))
    },
    sites_by={"center": "the column `center`"},
    draft=_draft,
    assumed=(
        "WILDS' official split keeps whole hospitals for validation and test; the starter study instead splits "
        "patients within each hospital. For its question add `unseen_sites: [fedavg]` under `evaluation`.",
        "A hospital has ten slides of about as many patients, so that folds by patient are few and coarse.",
    ),
)
