"""BraTS and FeTS: brain tumours with four MRI contrasts."""

from __future__ import annotations

import re
from collections import defaultdict

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    find_table,
    find_tables,
    optional_column,
    pick_column,
    read_table,
    stem,
    walk_files,
    what_is_there,
)
from polyclinic.data.catalogue.studies import grid

_FILE = re.compile(r"(.+?)[_-](t1ce|t1c|t1n|t1|t2w|t2f|t2|flair|seg)$", re.IGNORECASE)
_SAME = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
CONTRASTS = ("t1", "t1ce", "t2", "flair")
#: BraTS19_TCIA01_131_1, Brats18_2013_0_1, Brats17_CBICA_AAB_1: the source stands after the challenge.
_OLD_NAME = re.compile(r"Brats1[789]_([A-Za-z]+|2013)\d*_", re.IGNORECASE)
#: BraTS-GLI-00000-000: patient and time point.
_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-(\d{3})$")


def _partition(request: Request, name: str) -> dict[str, str]:
    path = find_table(request.source, name)
    table = read_table(path)
    subject = table[pick_column(table, path, "Subject_ID")]
    site = table[pick_column(table, path, "Partition_ID", "InstitutionName")]
    return {case: f"institution-{each.zfill(2)}" for case, each in zip(subject, site, strict=True) if each}


def _institutions(request: Request, cases: list[str]) -> tuple[dict[str, str], str]:
    """Case -> institution, from whatever in the folder names it."""
    if find_tables(request.source, "partitioning_1.csv"):
        return _partition(request, "partitioning_1.csv"), "partitioning_1.csv"
    old = {case: case for case in cases}
    where = "the names of the cases"
    for path in find_tables(request.source, "name_mapping.csv"):
        table = read_table(path)
        now = table[pick_column(table, path, "BraTS_2020_subject_ID")]
        for column in ("BraTS_2017_subject_ID", "BraTS_2018_subject_ID", "BraTS_2019_subject_ID"):
            for case, name in zip(now, optional_column(table, column), strict=True):
                if name:
                    old[case] = name
        where = path.name
    found = {case: match[1].upper() for case, name in old.items() if (match := _OLD_NAME.match(name))}
    if not found:
        raise LayoutError(
            "Nothing names the institutions: neither partitioning_1.csv (FeTS) nor name_mapping.csv (BraTS 2020) is "
            "there, and the cases have no names like BraTS19_CBICA_AAB_1. For made-up sites add `--sites-by quantity`."
        )
    return found, where


def _grades(request: Request) -> dict[str, str]:
    grades: dict[str, str] = {}
    for path in find_tables(request.source, "name_mapping.csv"):
        table = read_table(path)
        pairs = zip(
            table[pick_column(table, path, "BraTS_2020_subject_ID")], optional_column(table, "Grade"), strict=True
        )
        grades |= dict(pairs)
    return grades


def _draft(request: Request) -> Draft:
    cases: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk_files(request.source, (".nii.gz", ".nii")):
        name = _FILE.match(stem(path))
        if name:
            kind = name[2].lower()
            cases[name[1]].setdefault(_SAME.get(kind, kind), path)
    if not cases:
        raise LayoutError(f"No NAME/NAME_t1ce.nii.gz or the like was found; {what_is_there(request.source)}.")
    sites: dict[str, str] = {}
    notes = []
    if request.sites_by == "institution":
        sites, where = _institutions(request, list(cases))
        notes = [f"The institutions are told by {where}."]
    elif request.sites_by == "partitioning_2":
        sites = _partition(request, "partitioning_2.csv")
    grades = _grades(request)
    rows = []
    for case, files in sorted(cases.items()):
        visit = _VISIT.match(case)
        subject, session = (visit[1], visit[2]) if visit else (case, "")
        folders = next(iter(files.values())).upper().split("/")
        grade = grades.get(case) or next((part for part in folders if part in ("HGG", "LGG")), "")
        paths = [files.get(name, "") for name in (*CONTRASTS, "seg")]
        rows.append([sites.get(case, ""), subject, session, *paths, grade, ""])
    columns = ["site", "subject", "session", *CONTRASTS, "mask", "grade", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    if not (table["session"] != "").any():
        table = table.drop(columns="session")
    return Draft(
        table,
        "volume",
        images=list(CONTRASTS),
        mask="mask",
        data={"preprocessing": grid((160, 192, 160), centre="foreground")}
        | ({"patch": [96, 96, 96]} if request.label == "tumour" else {}),
        notes=notes,
    )


ENTRY = Entry(
    name="brats",
    title="BraTS and FeTS (brain tumours)",
    about="Glioma before treatment in four MRI contrasts, skull-stripped and brought to 1 mm, with the parts of the "
    "tumour outlined. FeTS says which of 23 institutions each case of BraTS 2021 is from.",
    modality="T1-weighted, contrast-enhanced T1-weighted, T2-weighted and FLAIR MRI",
    sites="FeTS 2022: 23 institutions, in partitioning_1.csv; BraTS 2017 to 2019: sources such as CBICA, TCIA, TMC "
    "and 2013 in the names of the cases; BraTS 2020: the same through name_mapping.csv; BraTS 2021 and 2023: not told.",
    subjects="FeTS 2022 and BraTS 2021: 1,251 with outlines; BraTS 2020: 369.",
    access="https://www.synapse.org/fets2022, https://www.synapse.org/brats",
    licence="agreement, CC BY",
    terms="After registration with Synapse and acceptance of the challenge's data use agreement; CC BY for the TCIA "
    "parts.",
    citation="Baid U et al. arXiv:2107.02314. Menze BH et al. IEEE TMI 2015;34:1993-2024. Bakas S et al. Sci Data "
    "2017;4:170117. Pati S et al. arXiv:2105.05874 (FeTS).",
    layout="""\
MICCAI_FeTS2022_TrainingData/
  partitioning_1.csv                                 Partition_ID, Subject_ID
  partitioning_2.csv
  FeTS2022_00000/FeTS2022_00000_t1.nii.gz            also _t1ce, _t2, _flair, _seg
or MICCAI_BraTS2020_TrainingData/
  name_mapping.csv                                   Grade, BraTS_2019_subject_ID, BraTS_2020_subject_ID, ...
  BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz
or BraTS 2017 to 2019: HGG/BraTS19_TCIA01_131_1/BraTS19_TCIA01_131_1_t1.nii.gz, LGG/...
or BraTS 2023: BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz     also -t1c, -t2w, -t2f, -seg
""",
    labels={
        "tumour": Label("mask", "the whole tumour: all voxels whose label is not zero", task="segmentation"),
        "grade": Label("grade", "grade: HGG against LGG (BraTS up to 2020)", positive=("HGG",), against=("LGG",)),
    },
    sites_by={
        "institution": "partitioning_1.csv, or the source in the older names",
        "partitioning_2": "partitioning_2.csv: the largest institutions of FeTS divided again by the size of the "
        "tumour (artificial)",
    },
    draft=_draft,
    assumed=(
        "The labels of the parts are 1 necrosis, 2 oedema, 4 enhancing tumour (3 in BraTS 2023); the starter study "
        "takes them as one.",
        "A case without one of the four contrasts or the outline is rejected.",
        "TCIA01 to TCIA13 in the older names count as one source.",
    ),
)
