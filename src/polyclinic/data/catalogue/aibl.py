"""AIBL as downloaded from LONI: folders of images, and a table for each measure with a row a visit."""

from __future__ import annotations

import re

import pandas as pd

from polyclinic.data.catalogue.adni import T1, find_scans
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    find_table,
    find_tables,
    optional_column,
    pick_column,
    read_table,
    what_is_there,
)
from polyclinic.data.catalogue.studies import grid

_DIAGNOSES = {"1": "CN", "2": "MCI", "3": "AD"}
_KEYS = ["subject", "visit"]


def _visit(texts: pd.Series[str]) -> pd.Series[str]:
    """``bl``, ``m18``, ...: the tables have these, the collection's table ``Base`` and ``18 Mo``."""
    low = texts.str.strip().str.lower()
    months = low.str.extract(r"(\d+)", expand=False).fillna("").str.lstrip("0")
    return ("m" + months).where(months != "", "bl").where(low != "", "")


def _by_visit(request: Request, name: str, *columns: str) -> pd.DataFrame:
    """The table ``aibl_NAME_*.csv`` with RID, VISCODE and ``columns``, one row a visit; empty where it is missing."""
    if not find_tables(request.source, f"aibl_{name}_*.csv", f"aibl_{name}.csv"):
        return pd.DataFrame(columns=[*_KEYS, *columns], dtype=str)
    path = find_table(request.source, f"aibl_{name}_*.csv", f"aibl_{name}.csv")
    table = read_table(path, "-4", "-4.0")
    rows = pd.DataFrame(
        {
            "subject": table[pick_column(table, path, "RID")].str.lstrip("0"),
            "visit": _visit(table[pick_column(table, path, "VISCODE")]),
            **{column: optional_column(table, column) for column in columns},
        }
    )
    # Of a visit that two rows tell different things of nothing is known.
    return rows.drop_duplicates().drop_duplicates(_KEYS, keep=False)


def _visits(request: Request) -> pd.DataFrame:
    """A row a visit with site, diagnosis, scores and field strength."""
    if not find_tables(request.source, "aibl_pdxconv*.csv"):
        raise LayoutError(f"No aibl_pdxconv_*.csv was found; {what_is_there(request.source)}.")
    table = _by_visit(request, "pdxconv", "SITEID", "DXCURREN")
    for name, column in (("mmse", "MMSCORE"), ("cdr", "CDGLOBAL")):
        table = table.merge(_by_visit(request, name, column), on=_KEYS, how="left")
    fields = []
    for name, field in (("mri3meta", "3 T"), ("mrimeta", "1.5 T")):
        scans = _by_visit(request, name, "MMCONDCT")
        fields.append(scans.loc[~scans["MMCONDCT"].isin(("0", "0.0")), _KEYS].assign(field=field))
    scanned = pd.concat(fields).drop_duplicates(_KEYS, keep=False)  # at both field strengths: not told which
    table = table.merge(scanned, on=_KEYS, how="left").fillna("")
    table["site"] = ("site-" + table["SITEID"].str.removesuffix(".0")).where(table["SITEID"] != "", "")
    table["diagnosis"] = table["DXCURREN"].str.removesuffix(".0").map(_DIAGNOSES).fillna("")
    return table.rename(columns={"MMSCORE": "mmse", "CDGLOBAL": "cdr"})


def _collection(request: Request) -> pd.DataFrame:
    """The table that LONI adds to a collection: image, visit, age and sex."""
    for path in find_tables(request.source, "*.csv"):
        with path.open(encoding="utf-8", errors="replace") as file:
            if "Image Data ID" not in file.readline():
                continue
        table = read_table(path)
        found = pd.DataFrame(
            {
                "image_id": "I" + table["Image Data ID"].str.lstrip("I"),
                "visit": _visit(optional_column(table, "Visit")),
                "age": optional_column(table, "Age"),
                "sex": optional_column(table, "Sex").str[:1].str.upper(),
            }
        )
        return found.drop_duplicates().drop_duplicates("image_id", keep=False)
    raise LayoutError("The collection's table (CSV with a column 'Image Data ID') is missing: it tells whose visit a "
                      "scan is.")  # fmt: skip


def _draft(request: Request) -> Draft:
    scans = find_scans(request.source, r"\d{1,4}")
    if not scans:
        raise LayoutError(f"No AIBL/2/SERIES/DATE/I230500/... was found; {what_is_there(request.source)}.")
    rows = pd.DataFrame([vars(scan) for scan in scans])
    rows["subject"] = rows["subject"].str.lstrip("0")
    rows = rows.merge(_collection(request), on="image_id", how="left").fillna("")
    rows = rows.merge(_visits(request), on=_KEYS, how="left").fillna("")
    rows["t1"] = rows.pop("path")
    rows["reason"] = ""
    rows.loc[~rows["series"].str.contains(T1), "reason"] = "series is not T1-weighted by its name"
    rows.loc[(rows["visit"] == "") & (rows["reason"] == ""), "reason"] = "image is not in the collection's table"
    usable = rows[rows["reason"] == ""]
    rows.loc[usable.index[usable.duplicated(_KEYS)], "reason"] = "another series of the same visit"
    if request.sites_by == "field":
        rows["site"] = rows["field"]
    # By month: in the order of texts m18 would come after m108.
    months = rows["visit"].map(lambda text: int(re.sub(r"\D", "", text) or 0))
    rows = rows.assign(month=months).sort_values(["subject", "month"], kind="stable")
    rows["session"] = rows["visit"]
    columns = ["site", "subject", "session", "t1", "diagnosis", "age", "sex", "mmse", "cdr", "field", "reason"]
    data = {"preprocessing": grid((96, 112, 96), spacing=(2, 2, 2), centre="foreground")}
    return Draft(rows[columns], "volume", images=["t1"], data=data)


ENTRY = Entry(
    name="aibl",
    title="AIBL (Alzheimer's disease, Australia)",
    about="T1-weighted MRI of elderly Australians with normal cognition, mild cognitive impairment and Alzheimer's "
    "disease, every 18 months; scanned as ADNI is, so that both go together.",
    modality="T1-weighted MRI",
    sites="2 centres (Melbourne and Perth) in the column `SITEID`, or the field strength, by the tables mrimeta (1.5 "
    "T) and mri3meta (3 T).",
    subjects="About 860 subjects in the part that LONI gives out, not all of them with MRI.",
    access="https://ida.loni.usc.edu (project AIBL), https://aibl.org.au",
    licence="agreement",
    terms="AIBL data use agreement after an application at LONI: no attempt to identify, no passing on, "
    "acknowledgement.",
    citation="Ellis KA et al. The Australian Imaging, Biomarkers and Lifestyle (AIBL) study of aging: methodology and "
    "baseline characteristics of 1112 individuals recruited for a longitudinal study of Alzheimer's disease. Int "
    "Psychogeriatr 2009;21:672-687.",
    layout="""\
AIBL/
  Data_extract_3.3.0/
    aibl_pdxconv_01-Jun-2018.csv                  RID, SITEID, VISCODE, DXCURREN (1, 2, 3); -4 is missing
    aibl_mmse_*.csv, aibl_cdr_*.csv               MMSCORE, CDGLOBAL; may be missing
    aibl_mrimeta_*.csv, aibl_mri3meta_*.csv       scans at 1.5 T and at 3 T; may be missing
  AIBL_4_27_2020.csv                              the collection's table: Image Data ID, Subject, Sex, Age, Visit
  AIBL/2/MPRAGE/2006-11-01_10_00_00.0/I230500/*.nii (or *.dcm)
""",
    labels={
        "diagnosis": Label("diagnosis", "Alzheimer's disease: AD against CN", positive=("AD",), against=("CN",)),
        "sex": Label("sex", "sex: F against M", positive=("F",), against=("M",)),
        "age": Label("age", "age at the scan in years", task="regression"),
    },
    sites_by={"site": "the column `SITEID`", "field": "field strength: 1.5 T or 3 T"},
    draft=_draft,
    assumed=(
        "The visit of a scan is that of the collection's table (Base, 18 Mo, ...), by which the other tables are "
        "joined.",
        "DXCURREN 1 is CN, 2 MCI, 3 AD; other codes are no diagnosis.",
        "Which number of SITEID is which city could not be confirmed: sites are called site-1 and so on.",
        "A visit with scans at both field strengths has none of its own.",
        "Of several T1-weighted series of a visit the most corrected one counts, as for ADNI.",
    ),
)
