"""OASIS-1 and OASIS-2: ageing and dementia, from one institution."""

from __future__ import annotations

import re

import pandas as pd

from polyclinic.data.catalogue.convert import pair_to_nifti
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    find_table,
    optional_column,
    pick_column,
    read_table,
    walk_files,
)
from polyclinic.data.catalogue.studies import grid

_TERMS = "OASIS data use agreement: cite, do not identify subjects, share under the same terms; open download after "
"agreeing."
_LABELS = {
    "dementia": Label("dementia", "dementia: yes (CDR above 0) or no (CDR 0)", positive=("yes",), against=("no",)),
    "sex": Label("sex", "sex: F against M", positive=("F",), against=("M",)),
    "age": Label("age", "age in years", task="regression"),
}
_SITES_BY = {"institution": "one site: Washington University"}
_ASSUMED = (
    "There is one site only. For a study with several take `--sites-by dirichlet` or `quantity`, which make sites up, "
    "or put the manifest together with those of other sets.",
    "MMSE and CDR are in the manifest but not among the features: they are part of the diagnosis.",
    "Pairs of .img and .hdr are written as .nii.gz next to the manifest. An Analyze header does not tell left from "
    "right: its convention (x from right to left) is assumed.",
    "Without image folders the starter study reads the table: age, sex, head size (eTIV) and whole-brain volume "
    "(nWBV).",
)


def _sessions(request: Request, pattern: str, images: dict[str, str], *tables: str) -> Draft:
    """Rows of one table with the images of its sessions.

    Args:
        request: of the user.
        pattern: expression with the groups subject and session of a session's name.
        images: name of a session -> path of its image.
        tables: patterns of the table's name.
    """
    path = find_table(request.source, *tables)
    table = read_table(path)
    names = table[pick_column(table, path, "MRI ID", "ID")]
    parts = names.str.extract(pattern)
    cdr = table[pick_column(table, path, "CDR")]
    rated = pd.to_numeric(cdr, errors="coerce")
    columns = {
        "site": "WashU",
        "subject": parts[0].fillna(""),
        "session": parts[1].fillna(""),
        **({"t1": names.map(images).fillna("")} if images else {}),
        "dementia": rated.gt(0).map({True: "yes", False: "no"}).where(rated.notna(), ""),
        "age": table[pick_column(table, path, "Age")],
        "sex": table[pick_column(table, path, "M/F", "Sex", "Gen", "Gender")].str[:1].str.upper(),
        "education": optional_column(table, "Educ", "Education Level", "EDUC"),
        "ses": optional_column(table, "SES"),
        "mmse": optional_column(table, "MMSE"),
        "cdr": cdr,
        "etiv": optional_column(table, "eTIV"),
        "nwbv": optional_column(table, "nWBV"),
        "reason": "",
    }
    rows = pd.DataFrame(columns, index=table.index).sort_values(["subject", "session"], kind="stable")
    if images:
        _convert(request, rows)
        data = {"preprocessing": grid((96, 112, 96), spacing=(2, 2, 2))}
        return Draft(rows, "volume", images=["t1"], data=data)
    features = [name for name in ("age", "sex", "etiv", "nwbv") if name != request.label]
    return Draft(rows, "table", features=features, data={"categorical": ["sex"]} if "sex" in features else {})


def _convert(request: Request, rows: pd.DataFrame) -> None:
    """Write pairs of ``.img`` and ``.hdr`` as NIfTI, those with a label: readers take no pairs."""
    pairs = rows.index[rows["t1"].str.endswith(".img") & (rows[request.label] != "")]
    for number, row in enumerate(pairs):
        target = f"images/{rows.loc[row, 'subject']}_{rows.loc[row, 'session']}.nii.gz"
        try:
            pair_to_nifti(request.source / str(rows.loc[row, "t1"]), request.out / target)
            rows.loc[row, "t1"] = f"out:{target}"
        except (OSError, ValueError):
            rows.loc[row, "reason"] = "t1 file is damaged, or its .hdr is missing"
        request.progress(number + 1, len(pairs))


def _draft_one(request: Request) -> Draft:
    images: dict[str, str] = {}
    for path in walk_files(request.source, ("_t88_masked_gfc.img", "_t88_masked_gfc.nii.gz", "_t88_masked_gfc.nii")):
        name = re.search(r"OAS1_\d{4}_MR\d", path)
        if name:
            images.setdefault(name[0], path)
    return _sessions(
        request, r"^(OAS1_\d{4})_(MR\d+)$", images, "oasis*cross*sectional*.csv", "oasis*cross*sectional*.xlsx"
    )


def _draft_two(request: Request) -> Draft:
    images: dict[str, str] = {}
    for path in walk_files(request.source, (".nifti.img", ".nii.gz", ".nii")):
        name = re.search(r"(OAS2_\d{4}_MR\d+)/RAW/mpr-1\.", path)
        if name:
            images.setdefault(name[1], path)
    return _sessions(request, r"^(OAS2_\d{4})_(MR\d+)$", images, "oasis*longitudinal*.csv", "oasis*longitudinal*.xlsx")


OASIS_1 = Entry(
    name="oasis-1",
    title="OASIS-1 (ageing and early dementia, cross-sectional)",
    about="T1-weighted MRI of adults aged 18 to 96; 100 of those over 60 have very mild to moderate dementia. 20 "
    "subjects were scanned twice.",
    modality="T1-weighted MRI, with a table of three volumes",
    sites="1: Washington University, St Louis.",
    subjects="416 subjects, 436 sessions; 235 sessions are rated for dementia.",
    access="https://sites.wustl.edu/oasisbrains/",
    licence="agreement",
    terms=_TERMS,
    citation="Marcus DS et al. Open Access Series of Imaging Studies (OASIS): cross-sectional MRI data in young, "
    "middle aged, nondemented, and demented older adults. J Cogn Neurosci 2007;19:1498-1507.",
    layout="""\
OASIS-1/
  oasis_cross-sectional.csv (or .xlsx)        ID, M/F, Hand, Age, Educ, SES, MMSE, CDR, eTIV, nWBV, ASF, Delay
  disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img (with its .hdr)
  disc2/...  to disc12/...                    any depth; without images the starter study reads the table
""",
    labels=_LABELS,
    sites_by=_SITES_BY,
    draft=_draft_one,
    assumed=(
        *_ASSUMED,
        "The image is the average of the session's scans in atlas space, without the skull (t88_masked_gfc).",
        "Sessions that were not rated (most subjects under 60) are rejected for the label dementia.",
    ),
)

OASIS_2 = Entry(
    name="oasis-2",
    title="OASIS-2 (ageing and dementia, longitudinal)",
    about="T1-weighted MRI of adults aged 60 to 96 at two or more visits; 14 became demented during the study.",
    modality="T1-weighted MRI, with a table of three volumes",
    sites="1: Washington University, St Louis.",
    subjects="150 subjects, 373 sessions.",
    access="https://sites.wustl.edu/oasisbrains/",
    licence="agreement",
    terms=_TERMS,
    citation="Marcus DS et al. Open Access Series of Imaging Studies: longitudinal MRI data in nondemented and "
    "demented older adults. J Cogn Neurosci 2010;22:2677-2684.",
    layout="""\
OASIS-2/
  oasis_longitudinal.csv (or .xlsx)           Subject ID, MRI ID, Group, Visit, MR Delay, M/F, Hand, Age, EDUC, SES,
                                              MMSE, CDR, eTIV, nWBV, ASF
  OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1.nifti.img (with its .hdr)      any depth; may be missing
""",
    labels=_LABELS,
    sites_by=_SITES_BY,
    draft=_draft_two,
    assumed=(*_ASSUMED, "The image is the session's first scan (mpr-1)."),
)
