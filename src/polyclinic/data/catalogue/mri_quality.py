"""MRIQC's quality measures with ratings of experts."""

from __future__ import annotations

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, find_tables, pick_column, read_table, what_is_there

_RATINGS = {"1": "accept", "0": "doubtful", "-1": "exclude"}
#: Table -> the column of the rater who rated all scans.
_RATERS = {"abide": "rater_3", "ds030": "rater_1"}
_NOT_MEASURES = ("rater_", "has_ghost", "site", "subject")


def _draft(request: Request) -> Draft:
    parts = []
    for name, rater in _RATERS.items():
        for path in find_tables(request.source, f"{name}.csv", f"{name}.tsv")[:1]:
            table = read_table(path)
            head = {
                "site": table[pick_column(table, path, "site")],
                "subject": name + " " + table[pick_column(table, path, "subject_id")],
                "quality": pd.to_numeric(table[pick_column(table, path, rater)], errors="coerce")
                .map({float(value): text for value, text in _RATINGS.items()})
                .fillna(""),
            }
            measures = [column for column in table.columns if not column.startswith(_NOT_MEASURES)]
            parts.append(pd.DataFrame(head).join(table[measures]))
    if not parts:
        raise LayoutError(
            f"No abide.csv, abide.tsv, ds030.csv or ds030.tsv was found; {what_is_there(request.source)}."
        )
    rows = pd.concat(parts, ignore_index=True, join="inner")
    rows["reason"] = ""
    features = [name for name in rows.columns if name not in {"site", "subject", "quality", "reason"}]
    return Draft(rows, "table", features=features)


ENTRY = Entry(
    name="mri-quality",
    title="MRI quality control (MRIQC measures of ABIDE I and UCLA CNP)",
    about="Measures of image quality of T1-weighted scans, computed by MRIQC, and whether an expert would accept the "
    "scan. Scanners differ strongly, so that a rule learnt at one site often fails at another.",
    modality="table (68 image quality measures of T1-weighted MRI)",
    sites="17 sites of ABIDE I and two scanners (BMC, CCN) of the UCLA CNP study, in the column `site`.",
    subjects="1,101 and 265 scans, one a subject.",
    access="https://pypi.org/project/mriqc-learn/ (the tables are inside the package, in mriqc_learn/datasets)",
    licence="by source",
    terms="Package Apache 2.0; ABIDE CC BY-NC-SA (non-commercial, share alike), ds000030 CC0; open download.",
    citation="Esteban O et al. MRIQC: advancing the automatic prediction of image quality in MRI from unseen sites. "
    "PLoS ONE 2017;12:e0184661.",
    layout="""\
datasets/
  abide.tsv (or abide.csv)      subject_id, site, rater_1, rater_2, rater_3 and the measures
  ds030.tsv (or ds030.csv)      subject_id, site, rater_1 and the measures (may be missing)
""",
    labels={
        "quality": Label(
            "quality",
            "the expert would not accept the scan: exclude or doubtful, against accept",
            positive=("exclude", "doubtful"),
            against=("accept",),
        )
    },
    sites_by={"site": "the column `site`"},
    draft=_draft,
    assumed=("The rating is rater_3's in ABIDE and rater_1's in ds030: the raters who rated all scans.",),
)
