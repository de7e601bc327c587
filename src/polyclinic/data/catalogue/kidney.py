"""KiTS: kidneys and their tumours in CT, as the challenges of 2019, 2021 and 2023 lay them out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LEAST_PATIENTS,
    OTHERS,
    LayoutError,
    find_tables,
    join_small_sites,
    pick_column,
    read_table,
    told_once,
    walk_files,
    what_is_there,
)
from polyclinic.data.catalogue.studies import grid

_CASE = re.compile(r"(?:^|/)(case_\d{5})/(imaging|segmentation|aggregated_MAJ_seg)\.nii(?:\.gz)?$")
_TABLES = ("anony_sites.csv", "thresholded_sites.csv")


def _clinical(request: Request) -> dict[str, dict[str, Any]]:
    """Case -> what kits.json tells of it; nothing where there is no such file."""
    found: dict[str, dict[str, Any]] = {}
    for path in find_tables(request.source, "kits*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise LayoutError(f"{path.name} is no JSON file.") from None
        cases = content if isinstance(content, list) else []
        found |= {str(case.get("case_id", "")): case for case in cases if isinstance(case, dict)}
    return found


def _hospitals(request: Request) -> dict[str, str]:
    """Case -> hospital, from one of FLamby's tables."""
    for path in find_tables(request.source, *_TABLES):
        table = read_table(path)
        cases = table[pick_column(table, path, "case_ids", "case", "case_id")]
        numbers = table[pick_column(table, path, "site_ids", "site_id")].str.removesuffix(".0")
        return {case: f"hospital-{number}" for case, number in told_once(cases, numbers).items()}
    raise LayoutError(
        f"Nothing tells the hospitals: neither {_TABLES[0]} nor {_TABLES[1]} (of FLamby) is there. For made-up sites "
        "add `--sites-by quantity`."
    )


def _with_cysts(source: Path, files: list[str]) -> bool:
    """Whether it is the set of 2021 or 2023, which outline cysts, too."""
    names = {path.rsplit("/", 1)[-1] for path in files} | {path.name for path in find_tables(source, "kits*.json")}
    later = any(int(found[1][-5:]) >= 300 for path in files if (found := _CASE.search(path)))
    parts = any("/instances/" in path or "/segmentations/" in path for path in files)
    return later or parts or bool({"aggregated_MAJ_seg.nii.gz", "kits21.json", "kits23.json"} & names)


def _draft(request: Request) -> Draft:
    files = walk_files(request.source, (".nii.gz", ".nii"))
    cases: dict[str, dict[str, str]] = {}
    for path in files:
        found = _CASE.search(path)
        if found:
            cases.setdefault(found[1], {}).setdefault("image" if found[2] == "imaging" else "mask", path)
    if not cases:
        raise LayoutError(f"No case_00000/imaging.nii.gz was found; {what_is_there(request.source)}.")
    clinical = _clinical(request)
    rows = []
    for case, paths in sorted(cases.items()):
        known = clinical.get(case, {})
        malignant = known.get("malignant")
        rows.append({
            "site": "", "subject": case, "image": paths.get("image", ""), "mask": paths.get("mask", ""),
            "malignant": {True: "yes", False: "no"}.get(malignant, "") if isinstance(malignant, bool) else "",
            "age": str(known.get("age_at_nephrectomy") or ""),
            "sex": str(known.get("gender") or "")[:1].upper(),
            "reason": "",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    notes: list[str] = []
    if request.sites_by == "hospital":
        sites = table["subject"].map(_hospitals(request)).fillna("")
        table["site"], notes = join_small_sites(sites, table["subject"])
    data: dict[str, Any] = {"preprocessing": grid((192, 192, 96), spacing=(2, 2, 3),
                                                  intensity={"window": {"lower": -80, "upper": 300}})}  # fmt: skip
    if request.label == "kidney":
        structures = {"kidney": 1, "tumour": 2} | ({"cyst": 3} if _with_cysts(request.source, files) else {})
        data |= {"mask_classes": structures, "patch": [96, 96, 64]}
    return Draft(table, "volume", images=["image"], mask="mask", data=data, notes=notes)


ENTRY = Entry(
    name="kits",
    title="KiTS (kidney tumours in CT)",
    about="CT of the abdomen with contrast agent of patients before a kidney or part of it was taken out, with "
    "kidneys, tumours and (since 2021) cysts outlined.",
    modality="CT of the abdomen",
    sites="Patients came to the University of Minnesota from 87 hospitals that had scanned them; FLamby's table for "
    "KiTS19 says which. Later sets do not tell.",
    subjects="KiTS19: 210 patients with outlines; KiTS23: 489.",
    access="https://kits-challenge.org/kits23/, https://github.com/neheller/kits19, https://github.com/neheller/kits23",
    licence="CC BY-NC-SA 4.0",
    terms="CC BY-NC-SA 4.0; open download.",
    citation="Heller N et al. The state of the art in kidney and kidney tumor segmentation in contrast-enhanced CT "
    "imaging: results of the KiTS19 challenge. Med Image Anal 2021;67:101821. Heller N et al. arXiv:2307.01984 "
    "(KiTS21).",
    layout="""\
kits19/
  data/kits.json                                   case_id, malignant, age_at_nephrectomy, gender; may be missing
  data/case_00000/imaging.nii.gz
  data/case_00000/segmentation.nii.gz              1 kidney, 2 tumour
  anony_sites.csv                                  of FLamby's fed_kits19/metadata: case, site_id; or
                                                   thresholded_sites.csv (the six hospitals with most cases)
or kits23/
  dataset/kits23.json
  dataset/case_00000/imaging.nii.gz
  dataset/case_00000/segmentation.nii.gz           1 kidney, 2 tumour, 3 cyst
  dataset/case_00000/instances/...                 not used
""",
    labels={
        "kidney": Label("mask", "kidneys and tumours, and cysts where they are outlined", task="segmentation"),
        "malignant": Label("malignant", "a malignant tumour: yes or no", positive=("yes",), against=("no",)),
    },
    sites_by={"hospital": "FLamby's table of hospitals (KiTS19)"},
    draft=_draft,
    assumed=(
        f"Hospitals of fewer than {LEAST_PATIENTS} patients are put together as `{OTHERS}`.",
        "Cysts are a structure of their own where a folder `instances`, kits21.json, kits23.json or a case from 00300 "
        "on shows that the set is one of 2021 or 2023.",
        "Cases without an outline (the test set of 2019) are rejected for the label kidney.",
        "Left and right are as the files say; the axes of these files are in another order than usual, which the "
        "study's grid mends.",
    ),
)
