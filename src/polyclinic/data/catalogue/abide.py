"""ABIDE I: preprocessed or raw images, and tables of regional volumes."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

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

_CITATION = "Di Martino A et al. The autism brain imaging data exchange. Mol Psychiatry 2014;19:659-667."
_RAW = re.compile(r"(?:^|/)(\d{7})/session_1/anat_1/mprage\.nii(?:\.gz)?$")
#: Derivatives in the order in which the starter study takes one; func_preproc is a time series.
_PREFERRED = ("t1", "anat_thickness", "reho", "alff", "falff", "lfcd", "degree_weighted", "vmhc", "func_preproc")
#: An eTIV below this (mm3) is a failed estimate.
_LEAST_INTRACRANIAL = 800_000


def _images(source: Path, file_ids: dict[str, str]) -> dict[str, dict[str, str]]:
    """Subject -> column -> path. Preprocessed files begin with the FILE_ID; raw ones lie in the subject's folder."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk_files(source, (".nii.gz", ".nii")):
        raw = _RAW.search(path)
        if raw:
            found[raw[1].lstrip("0")]["t1"] = path
            continue
        name = re.match(r"(.+_\d{7})_(.+)", stem(path))
        if name and name[1] in file_ids:
            found[file_ids[name[1]]].setdefault(name[2].lower(), path)
    return found


def _draft(request: Request) -> Draft:
    path = find_table(request.source, "Phenotypic_V1_0b*.csv")
    table = read_table(path, "-9999", "no_filename")
    subjects = table[pick_column(table, path, "SUB_ID")].str.lstrip("0")
    site_ids = table[pick_column(table, path, "SITE_ID")].str.upper()
    files = optional_column(table, "FILE_ID")
    images = _images(request.source, {file: subject for file, subject in zip(files, subjects, strict=True) if file})
    columns = sorted({name for mine in images.values() for name in mine}, key=_rank)
    if not columns:
        raise LayoutError(
            "The table is there, but neither FILE_ID_*.nii.gz nor SUB_ID/session_1/anat_1/mprage.nii.gz; "
            f"{what_is_there(request.source)}."
        )
    rows = pd.DataFrame(
        {
            "site": site_ids.str.replace(r"_\d$", "", regex=True) if request.sites_by == "institution" else site_ids,
            "subject": subjects,
            **{name: [images.get(subject, {}).get(name, "") for subject in subjects] for name in columns},
            "diagnosis": table[pick_column(table, path, "DX_GROUP")].map({"1": "autism", "2": "control"}).fillna(""),
            "age": optional_column(table, "AGE_AT_SCAN"),
            "sex": optional_column(table, "SEX").map({"1": "M", "2": "F"}).fillna(""),
            "reason": "",
        }
    )
    brain = columns[0] in ("t1", "anat_thickness")
    size, spacing = ((96, 112, 96), (2.0, 2.0, 2.0)) if brain else ((64, 80, 64), (3.0, 3.0, 3.0))
    further = {"frames": "mean"} if columns[0] == "func_preproc" else {}
    notes = [f"The starter study reads the column {columns[0]}; others found: {', '.join(columns[1:]) or 'none'}."]
    return Draft(
        rows,
        "volume",
        images=columns[:1],
        further_images=columns[1:],
        data={"preprocessing": grid(size, spacing=spacing, **further)},
        notes=notes,
    )


def _rank(name: str) -> tuple[int, str]:
    return (_PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED), name)


ABIDE = Entry(
    name="abide",
    title="ABIDE I (autism, T1-weighted and functional MRI)",
    about="Autism spectrum disorder against typical control, collected by 17 institutions on 20 protocols. Hard: "
    "accuracies across sites published for structural features lie near 0.55 to 0.65, for functional connectivity "
    "near 0.7.",
    modality="T1-weighted MRI, resting-state fMRI and derivatives",
    sites="20 sites in the column SITE_ID (17 institutions; LEUVEN, UCLA and UM count twice).",
    subjects="1,112 subjects: 539 with autism, 573 controls.",
    access="http://preprocessed-connectomes-project.org/abide/ (derivatives), "
    "https://fcon_1000.projects.nitrc.org/indi/abide/abide_I.html (raw)",
    licence="CC BY-NC-SA",
    terms="CC BY-NC-SA: non-commercial, share alike; raw data after registration.",
    citation=_CITATION
    + " Preprocessed: Craddock C et al. Front Neuroinform 2013, doi:10.3389/conf.fninf.2013.09.00041.",
    layout="""\
ABIDE/
  Phenotypic_V1_0b_preprocessed1.csv     SUB_ID, SITE_ID, FILE_ID, DX_GROUP, AGE_AT_SCAN, SEX
  .../FILE_ID_DERIVATIVE.nii.gz          preprocessed, in any folder (also as nilearn's fetch_abide_pcp leaves them):
                                         Pitt_0050003_reho.nii.gz, Pitt_0050003_anat_thickness.nii.gz
  .../SUB_ID/session_1/anat_1/mprage.nii.gz    raw T1-weighted image, SUB_ID with seven digits
""",
    labels={
        "diagnosis": Label("diagnosis", "autism against control", positive=("autism",), against=("control",)),
        "sex": Label("sex", "sex: F against M", positive=("F",), against=("M",)),
        "age": Label("age", "age at the scan in years", task="regression"),
    },
    sites_by={
        "site": "the column SITE_ID (20 sites)",
        "institution": "SITE_ID without _1 and _2 (17 institutions)",
    },
    draft=_draft,
    assumed=(
        "Each derivative found becomes an image column; the starter study reads one of them (a raw T1-weighted image "
        "before cortical thickness before functional maps).",
        "Of a time series (func_preproc) the starter study takes the mean over time.",
    ),
)


def _draft_regional(request: Request) -> Draft:
    volumes = find_tables(request.source, "grey_matter_volumes.csv")
    path = volumes[0] if volumes else find_table(request.source, "cortical_thickness.csv")
    table = read_table(path)
    named = {name: pick_column(table, path, name) for name in ("subject_id", "site", "autism", "age", "sex")}
    rows = table.rename(columns={named["subject_id"]: "subject"})
    rows["autism"] = rows["autism"].map({"1": "autism", "0": "control"}).fillna("")
    rows = rows.rename(columns={"autism": "diagnosis"})
    rows["reason"] = ""
    features = [name for name in rows.columns if re.match(r"(lh|rh)_|Left-|Right-", name)]
    data = {}
    if volumes:
        size = pd.to_numeric(rows[pick_column(table, path, "intracranial_volume")], errors="coerce")
        # FreeSurfer's estimate fails now and then, down to the volume of an egg.
        rows.loc[~(size > _LEAST_INTRACRANIAL), "reason"] = "intracranial volume below 800 cm3"
        data = {"divide_by": "intracranial_volume"}
    globs = ["lh_*", "rh_*", *(["Left-*", "Right-*"] if volumes else [])]
    if not features:
        raise LayoutError(f"The table {path.name} has no columns lh_*, rh_*, Left-* or Right-*.")
    training = {"rounds": 40, "batch_size": 8,
                "optimizer": {"sgd": {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.3}}}  # fmt: skip
    return Draft(rows, "table", features=globs, data=data | {"scaling": "per_site"},
                 training={} if request.label == "age" else training)  # fmt: skip


REGIONAL = Entry(
    name="abide-regional",
    title="ABIDE I regional volumes (FreeSurfer)",
    about="Grey-matter volumes of 84 brain regions, or cortical thickness of 68, one row a subject of ABIDE I. The "
    "site is very easy to tell from them, autism hardly: a good set for site effects and harmonisation.",
    modality="table (regional grey-matter volumes or cortical thickness from T1-weighted MRI)",
    sites="16 sites of ABIDE I in the column `site`.",
    subjects="835 subjects.",
    access="https://github.com/dfsp-spirit/abide_preproc_smri_freesurfer6 (stats tables, to be joined with the ABIDE "
    "phenotype table)",
    licence="CC BY-NC-SA",
    terms="CC BY-NC-SA (ABIDE usage agreement): non-commercial, share alike.",
    citation=_CITATION,
    layout="""\
abide-regional/
  grey_matter_volumes.csv       subject_id, site, autism (1, 0), age, sex (M, F), intracranial_volume (mm3) and the
                                volumes lh_*_volume, rh_*_volume, Left-*, Right-* (mm3)
  cortical_thickness.csv        the same with lh_*_thickness, rh_*_thickness (mm); read where volumes are missing
""",
    labels=ABIDE.labels,
    sites_by={"site": "the column `site`"},
    draft=_draft_regional,
    assumed=(
        "Subjects whose intracranial volume was estimated below 800 cm3 are rejected: the estimate failed.",
        "Volumes are divided by the intracranial volume.",
    ),
)
