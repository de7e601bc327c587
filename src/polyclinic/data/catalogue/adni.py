"""ADNI as downloaded from LONI: folders of images and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    find_table,
    find_tables,
    optional_column,
    pick_column,
    read_table,
    walk_files,
    what_is_there,
)
from polyclinic.data.catalogue.studies import grid

#: Behind the subject in LONI's folders: series, day, number of the image or series, file.
_LONI = r"/(?P<series>[^/]+)/(?P<date>\d{4}-\d\d-\d\d)[^/]*/(?P<last>[A-Z]\d+)/(?P<file>[^/]+)$"
_SUBJECT = r"\d{3}_S_\d{4,5}"
#: Names of T1-weighted series.
T1 = re.compile(r"mp[-_ ]?rage|mpr|spgr|(?:^|[^a-z])t1(?:[^a-z]|$)", re.IGNORECASE)
#: The more LONI corrected a series, the earlier it stands.
_CORRECTIONS = ("Scaled", "N3", "B1_Correction", "GradWarp")
_DIAGNOSES = {
    "CN": "CN", "NL": "CN", "SMC": "CN", "MCI": "MCI", "EMCI": "MCI", "LMCI": "MCI", "AD": "AD", "DEMENTIA": "AD",
}  # fmt: skip
_VOLUMES = ("Ventricles", "Hippocampus", "WholeBrain", "Entorhinal", "Fusiform", "MidTemp")
_KNOWN = ["visit", "phase", "diagnosis", "age", "sex", "field_strength"]
#: A row of ADNIMERGE belongs to a scan when its examination was at most so many days away.
_MOST_DAYS = 183


@dataclass(frozen=True)
class Scan:
    """A series in a folder as LONI (the Laboratory of Neuro Imaging) packs it; ``path`` is relative to the source."""

    subject: str
    series: str
    date: str
    image_id: str
    path: str


def find_scans(source: Path, subject: str = _SUBJECT) -> list[Scan]:
    """Every series found in LONI's folders, the most corrected of a day first; a DICOM series is its folder.

    Args:
        source: the folder of the data set.
        subject: expression for the folder of a subject.
    """
    folders = re.compile(rf"(?:^|/)(?P<subject>{subject}){_LONI}")
    found: dict[tuple[str, str], Scan] = {}
    for path in walk_files(source, (".nii", ".nii.gz", ".dcm")):
        match = folders.search(path)
        if match is None:
            continue
        from_name = re.search(r"_(I\d+)\.", match["file"])
        image_id = match["last"] if match["last"].startswith("I") else from_name[1] if from_name else match["last"]
        place = path.rsplit("/", 1)[0] if path.lower().endswith(".dcm") else path
        found.setdefault(
            (match["subject"], image_id), Scan(match["subject"], match["series"], match["date"], image_id, place)
        )
    return sorted(found.values(), key=lambda scan: (scan.subject, scan.date, _corrections(scan.series), scan.image_id))


def _corrections(series: str) -> int:
    return -sum(word in series for word in _CORRECTIONS)


def _diagnosis(texts: pd.Series[str]) -> pd.Series[str]:
    """CN, MCI or AD; of a change ("MCI to Dementia") what it changed to."""
    last = texts.str.split(" to ").str[-1].str.strip().str.upper()
    return last.map(_DIAGNOSES).fillna("")


def _merge_table(source: Path) -> pd.DataFrame | None:
    """ADNIMERGE with the columns that are used here, or None."""
    if not find_tables(source, "ADNIMERGE*.csv"):
        return None
    path = find_table(source, "ADNIMERGE*.csv")
    table = read_table(path, "-4")
    age = pd.to_numeric(table[pick_column(table, path, "AGE")], errors="coerce")
    years = pd.to_numeric(optional_column(table, "Years_bl", "Years.bl"), errors="coerce").fillna(0)
    sex = table[pick_column(table, path, "PTGENDER")].str[:1].str.upper()
    rows = pd.DataFrame(
        {
            "subject": table[pick_column(table, path, "PTID")],
            "visit": table[pick_column(table, path, "VISCODE")],
            "date": pd.to_datetime(table[pick_column(table, path, "EXAMDATE")], errors="coerce"),
            "phase": table[pick_column(table, path, "COLPROT")],
            "diagnosis": _diagnosis(table[pick_column(table, path, "DX")]),
            "age": (age + years).round(1).map(lambda value: "" if np.isnan(value) else f"{value:g}"),
            "sex": sex,
            "field_strength": optional_column(table, "FLDSTRENG").str.extract(r"^([\d.]+)")[0].fillna(""),
            "image_id": "I" + optional_column(table, "IMAGEUID").str.replace(r"\.0$", "", regex=True),
            "ICV": optional_column(table, "ICV"),
        }
    )
    for name in _VOLUMES:
        rows[name] = optional_column(table, name)
    return rows


def _collection_table(source: Path) -> pd.DataFrame | None:
    """The table that LONI adds to every collection, with the columns that are used here, or None."""
    for path in find_tables(source, "*.csv"):
        with path.open(encoding="utf-8", errors="replace") as file:
            if "Image Data ID" not in file.readline():  # ADNI has many other tables, and long ones
                continue
        table = read_table(path)
        return pd.DataFrame(
            {
                "image_id": "I" + table["Image Data ID"].str.lstrip("I"),
                "visit": optional_column(table, "Visit"),
                "diagnosis": _diagnosis(optional_column(table, "Group")),
                "age": optional_column(table, "Age"),
                "sex": optional_column(table, "Sex").str[:1].str.upper(),
            }
        ).drop_duplicates("image_id")
    return None


def _visits(scans: pd.DataFrame, merge: pd.DataFrame) -> pd.DataFrame:
    """The row of ADNIMERGE of each scan: by the image's number, else the nearest examination of the patient."""
    by_image = merge[merge["image_id"] != "I"].drop_duplicates("image_id").set_index("image_id")[_KNOWN]
    exact = by_image.reindex(scans["image_id"]).set_axis(scans.index).fillna("")
    dated = pd.DataFrame({"subject": scans["subject"], "date": pd.to_datetime(scans["date"]), "position": scans.index})
    nearest = pd.merge_asof(
        dated.sort_values("date"),
        merge[merge["date"].notna()].sort_values("date")[["subject", "date", *_KNOWN]],
        on="date",
        by="subject",
        direction="nearest",
        tolerance=pd.Timedelta(days=_MOST_DAYS),
    )
    near = nearest.set_index("position")[_KNOWN].reindex(scans.index).fillna("")
    return exact.where(scans["image_id"].isin(by_image.index), near)


def _from_images(request: Request, scans: list[Scan]) -> Draft:
    merge, collection = _merge_table(request.source), _collection_table(request.source)
    if merge is None and collection is None:
        raise LayoutError("The images are there, but no table: neither ADNIMERGE*.csv nor the collection's CSV "
                          "(with a column 'Image Data ID').")  # fmt: skip
    rows = pd.DataFrame([vars(scan) for scan in scans])
    known = pd.DataFrame("", index=rows.index, columns=_KNOWN) if merge is None else _visits(rows, merge)
    if collection is not None:
        more = collection.set_index("image_id").reindex(rows["image_id"]).set_axis(rows.index).fillna("")
        for name in ("visit", "diagnosis", "age", "sex"):
            known[name] = known[name].where(known[name] != "", more[name])
    rows["t1"] = rows.pop("path")
    rows = rows.join(known)
    rows["reason"] = np.where(rows["series"].str.contains(T1), "", "series is not T1-weighted by its name")
    usable = rows[rows["reason"] == ""]
    again = usable.index[usable.duplicated(["subject", "date"])]
    rows.loc[again, "reason"] = "another series of the same session"
    dates = rows.groupby("subject")["date"].rank(method="dense").astype(int)
    rows["session"] = dates.astype(str)
    rows["site"] = _sites(rows, request.sites_by, merge is not None)
    columns = [
        "site",
        "subject",
        "session",
        "t1",
        "diagnosis",
        "age",
        "sex",
        "phase",
        "visit",
        "field_strength",
        "reason",
    ]
    data = {"preprocessing": grid((96, 112, 96), spacing=(2, 2, 2), centre="foreground")}
    return Draft(rows[columns], "volume", images=["t1"], data=data)


def _sites(rows: pd.DataFrame, sites_by: str, merged: bool) -> pd.Series[str]:
    if sites_by in ("phase", "field") and not merged:
        raise LayoutError(f"Sites by {sites_by} need ADNIMERGE*.csv. Without it take `--sites-by center`.")
    if sites_by == "center":
        return rows["subject"].str[:3]
    if sites_by == "field":
        return (rows["field_strength"] + " T").where(rows["field_strength"] != "", "")
    return rows["phase"]


def _from_table(request: Request) -> Draft:
    merge = _merge_table(request.source)
    if merge is None:
        raise LayoutError(
            "Neither images (ADNI/002_S_0413/SERIES/DATE/I45112/...) nor ADNIMERGE*.csv were found; "
            f"{what_is_there(request.source)}."
        )
    rows = merge.sort_values(["subject", "date"], kind="stable").reset_index(drop=True)
    rows["session"] = rows["visit"]
    rows["site"] = _sites(rows, request.sites_by, True)
    rows["reason"] = ""
    rows.loc[~(pd.to_numeric(rows["ICV"], errors="coerce") > 0), "reason"] = "no volumes at this visit"
    columns = [
        "site",
        "subject",
        "session",
        "diagnosis",
        "age",
        "sex",
        "phase",
        "field_strength",
        "ICV",
        *_VOLUMES,
        "reason",
    ]
    return Draft(rows[columns], "table", features=list(_VOLUMES), data={"divide_by": "ICV"},
                 notes=["No images were found: the starter study reads the six volumes of ADNIMERGE."])  # fmt: skip


def _draft(request: Request) -> Draft:
    scans = find_scans(request.source)
    return _from_images(request, scans) if scans else _from_table(request)


ENTRY = Entry(
    name="adni",
    title="ADNI (Alzheimer's disease)",
    about="T1-weighted MRI of elderly people with normal cognition, mild cognitive impairment and Alzheimer's disease, "
    "at more than 60 centres in North America since 2004. ADNI1 was scanned at 1.5 T (a quarter also at 3 T), ADNIGO, "
    "ADNI2 and ADNI3 at 3 T: two scanner generations, which are the sites of the survey's experiment.",
    modality="T1-weighted MRI; or the table of six volumes in ADNIMERGE",
    sites="Phases ADNI1, ADNIGO, ADNI2, ADNI3 (COLPROT in ADNIMERGE), or the field strength, or more than 60 centres "
    "(the first three digits of the PTID).",
    subjects="About 2,400 subjects with repeated visits.",
    access="https://adni.loni.usc.edu/data-samples/adni-data/",
    licence="agreement",
    terms="ADNI Data Use Agreement after an application: no attempt to identify, no passing on, acknowledgement of "
    "ADNI in the author list.",
    citation="Jack CR et al. The Alzheimer's Disease Neuroimaging Initiative (ADNI): MRI methods. J Magn Reson Imaging "
    "2008;27:685-691.",
    layout="""\
ADNI/
  ADNIMERGE.csv (or ADNIMERGE_18Feb2025.csv)      PTID, VISCODE, EXAMDATE, COLPROT, DX, AGE, Years_bl, PTGENDER,
                                                  FLDSTRENG, IMAGEUID, ICV, Hippocampus, ...
  MyCollection_2_18_2025.csv                      the collection's table: Image Data ID, Subject, Group, Sex, Age, Visit
  ADNI/002_S_0413/MPR__GradWarp__B1_Correction__N3__Scaled/2006-05-02_12_31_52.0/I45112/*.nii (or *.dcm)
""",
    labels={
        "diagnosis": Label("diagnosis", "Alzheimer's disease: AD against CN", positive=("AD",), against=("CN",)),
        "sex": Label("sex", "sex: F against M", positive=("F",), against=("M",)),
        "age": Label("age", "age at the examination in years", task="regression"),
    },
    sites_by={
        "phase": "ADNI1, ADNIGO, ADNI2, ADNI3 (needs ADNIMERGE)",
        "field": "field strength: 1.5 T or 3 T (needs ADNIMERGE)",
        "center": "the centre: first three digits of the PTID",
    },
    draft=_draft,
    assumed=(
        "One of the two tables is enough. ADNIMERGE gives the diagnosis at the visit (DX), the collection's table the "
        "group at baseline; ADNIMERGE counts where both are there.",
        "A scan's row in ADNIMERGE is the one with its IMAGEUID, or the patient's nearest examination within half a "
        "year.",
        "EMCI and LMCI count as MCI, SMC as CN, Dementia as AD; of a change (MCI to Dementia) the later.",
        "A series is T1-weighted if its name says so (MPR, MP-RAGE, SPGR, T1); of several on a day the most corrected "
        "one counts (Scaled, N3, B1_Correction, GradWarp).",
        "A DICOM series is its folder.",
        "Paths in the manifest hold ADNI's subject codes and dates, as the folders do; the subject names do not.",
        "Without images the starter study reads six volumes of ADNIMERGE, divided by the intracranial volume.",
    ),
)
