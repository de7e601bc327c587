"""Fed-TCGA-BRCA: survival with breast cancer, from FLamby's table."""

from __future__ import annotations

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, find_table, find_tables, pick_column, reject_repeated
from polyclinic.data.tables.table import read_cells

#: In the order of FLamby's centres 0 to 5.
REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
_COLUMNS = ("pid", "E", "T")


def _by_code(request: Request, codes: pd.Series[str]) -> pd.Series[str]:
    """The region of each tissue source site; one of the codes is NA, so that cells are taken as they are."""
    path = find_table(request.source, "centers.csv")
    table = read_cells(path)
    pairs = zip(table[pick_column(table, path, "TSS Code")], table[pick_column(table, path, "Region")], strict=True)
    return codes.map({code.strip(): region.strip() for code, region in pairs})


def _draft(request: Request) -> Draft:
    path = find_table(request.source, "brca.csv")
    table = read_cells(path)
    patient, event, time = (table[pick_column(table, path, name)].str.strip() for name in _COLUMNS)
    features = [str(name) for name in table.columns if name not in _COLUMNS and str(name)]
    if not features:
        raise LayoutError(f"The table {path.name} has no column beside {', '.join(_COLUMNS)}.")
    parts: dict[str, str] = {}
    for split in find_tables(request.source, "train_test_split.csv"):
        cells = read_cells(split)
        parts = dict(
            zip(cells[pick_column(cells, split, "pid")], cells[pick_column(cells, split, "fold")], strict=True)
        )
    region = _by_code(request, patient.str.extract(r"^TCGA-([A-Z0-9]{2})-", expand=False))
    rows = table[features].copy()
    rows.insert(0, "site", region.where(region.isin(REGIONS), ""))
    rows.insert(1, "subject", patient)
    rows["event"] = event.map({"1.0": "1", "1": "1", "0.0": "0", "0": "0"}).fillna("")
    rows["days"] = time
    rows["split"] = patient.map(parts).fillna("")
    rows["reason"] = ""
    rows.loc[region.notna() & ~region.isin(REGIONS), "reason"] = "outside of the six regions"
    reject_repeated(rows, ["subject"], ["event", "days", *features], "patient")
    return Draft(
        rows, "table", features=features, data={"time_unit": "days"},
        evaluation={"times": [365, 1095, 1825], "metrics": ["concordance", "uno", "ibs"]},
    )  # fmt: skip


ENTRY = Entry(
    name="fed-tcga-brca",
    title="Fed-TCGA-BRCA (survival with breast cancer)",
    about="Age, stage, histology and treatment of patients with breast cancer, one-hot encoded, and how long they "
    "lived or were seen. The table is the input of FLamby's Fed-TCGA-BRCA.",
    modality="table (39 clinical features)",
    sites="6 regions of the hospitals that sent the tissue: Northeast, South, West and Midwest of the USA, Europe, "
    "Canada.",
    subjects="1,088 patients: 311, 196, 206, 162, 162 and 51; 151 of 1,096 deaths in the table are seen.",
    access="https://github.com/owkin/FLamby/tree/main/flamby/datasets/fed_tcga_brca",
    licence="open, NIH policy",
    terms="Open clinical data of TCGA under the NIH Genomic Data Sharing policy; FLamby's code is under the MIT "
    "licence.",
    citation="Ogier du Terrail J et al. FLamby: datasets and benchmarks for cross-silo federated learning in realistic "
    "healthcare settings. NeurIPS 2022. Liu J et al. Cell 2018;173:400-416 (the clinical data).",
    layout="""\
fed_tcga_brca/
  brca.csv                                       pid, 39 features, E (1 death, 0 last seen alive), T (days)
  centers.csv                                    TSS Code, Source Site, Country, State, Region
  dataset_creation_scripts/train_test_split.csv  pid, fold, fold2; may be missing
""",
    labels={"survival": Label("days", "time to death", task="survival", event="event")},
    sites_by={"region": "the region of the second part of the barcode, in centers.csv"},
    draft=_draft,
    assumed=(
        "Patients whose hospital is in none of the six regions (8 in Brazil, Pakistan and elsewhere) are rejected, as "
        "in FLamby.",
        "Patients with a time of 0 (12 in the six regions) are rejected: nothing was seen of them. FLamby keeps them.",
        "The column `split` has FLamby's parts; the starter study makes folds instead. For its question set "
        "`evaluation: {split: split}`.",
    ),
)
