"""UK Biobank: a table of measures that were derived from brain MRI."""

from __future__ import annotations

import re

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, find_table, find_tables, optional_column, read_table
from polyclinic.data.tables.table import read_cells

#: Fields of volumes: FAST and SIENAX of the whole brain, FIRST of nuclei, FAST of regions, FreeSurfer.
_FIELDS = (range(25001, 25026), range(25782, 25921), range(26501, 27773))
_CENTRE, _SEX, _AGE = 54, 31, 21003
_CENTRES = {"11025": "Cheadle", "11026": "Reading", "11027": "Newcastle", "11028": "Bristol"}
#: Field, instance and array of a column: 25010-2.0, f.25010.2.0, p25010_i2 (or p31, p25010_i2_a0).
_NAMES = (
    re.compile(r"^(\d+)-(\d+)\.(\d+)$"),
    re.compile(r"^f\.(\d+)\.(\d+)\.(\d+)$"),
    re.compile(r"^(?:participant\.)?p(\d+)(?:_i(\d+))?(?:_a(\d+))?$"),
)
_IMAGING = (2, 3)


def parse_field(name: str) -> tuple[int, int] | None:
    """Field and instance of a column's name; None for another name, or for a further value of an array."""
    for pattern in _NAMES:
        found = pattern.match(name)
        if found and not int(found[3] or 0):
            return int(found[1]), int(found[2] or 0)
    return None


def _withdrawn(request: Request) -> set[str]:
    """Participants who withdrew, from the lists that UK Biobank sends: a number a line."""
    names: set[str] = set()
    for path in find_tables(
        request.source, *(each + end for each in ("w*_*", "withdraw*") for end in (".csv", ".txt"))
    ):
        if not re.match(r"w(\d+_|ithdraw)", path.name.lower()):
            continue
        if not path.stat().st_size:  # nobody has withdrawn
            continue
        cells = _number(read_cells(path, ["eid"])["eid"])
        names |= set(cells[cells.str.fullmatch(r"\d+")])
    return names


def _number(texts: pd.Series[str]) -> pd.Series[str]:
    """``1000005``, also where a program has written ``1000005.0``."""
    return texts.str.strip().str.removesuffix(".0")


def _at(table: pd.DataFrame, columns: dict[tuple[int, int], str], field: int, instance: int) -> pd.Series[str]:
    name = columns.get((field, instance))
    return optional_column(table, name) if name else pd.Series("", index=table.index, dtype=str)


def _participants(request: Request) -> tuple[pd.DataFrame, pd.Series[str]]:
    """The table, and the number of each participant."""
    path = find_table(request.source, "ukb*.csv", "ukb*.tsv", "*participant*.csv", "*participant*.tsv")
    # -1 is "do not know", -3 "prefer not to answer".
    table = read_table(path, "-1", "-3")
    names = {str(name).lower(): str(name) for name in table.columns}
    found = next((names[name] for name in ("eid", "f.eid", "participant.eid") if name in names), None)
    if found is None:
        raise LayoutError(f"The table {path.name} has no column 'eid' or 'f.eid'.")
    return table, _number(table[found])


def _draft(request: Request) -> Draft:
    table, participant = _participants(request)
    columns = {field: str(name) for name in table.columns if (field := parse_field(str(name)))}
    measures = sorted({field for field, at in columns if at in _IMAGING and any(field in each for each in _FIELDS)})
    if not measures:
        raise LayoutError(
            "The table has no volumes of brain MRI at instance 2 or 3 (25010-2.0, f.25010.2.0, p25010_i2)."
        )
    gone = _withdrawn(request)
    parts = []
    for instance in _IMAGING:
        idps = pd.DataFrame({f"f{field}": _at(table, columns, field, instance) for field in measures})
        centre = _at(table, columns, _CENTRE, instance).str.replace(r"\s*\(imaging\)$", "", regex=True)
        sex = _at(table, columns, _SEX, 0).map({"0": "F", "1": "M", "Female": "F", "Male": "M"}).fillna("")
        rows = idps.assign(
            site=centre.str.removesuffix(".0").replace(_CENTRES),
            subject=participant,
            session=f"instance-{instance}",
            age=_at(table, columns, _AGE, instance),
            sex=sex,
            reason="",
        )
        empty = (idps == "").all(axis=1)
        rows.loc[empty, "reason"] = "no volumes at this visit"
        # Who was not imaged is counted at the first imaging visit alone.
        parts.append(rows if instance == _IMAGING[0] else rows[~empty])
    rows = pd.concat(parts, ignore_index=True)
    rows.loc[rows["subject"].isin(gone) | rows["subject"].str.startswith("-"), "reason"] = "participant withdrew"
    first = ["site", "subject", "session", "age", "sex"]
    rows = rows[[*first, *(name for name in rows.columns if name not in {*first, "reason"}), "reason"]]
    notes = ["No list of participants who withdrew was found; put the newest one beside the table."]
    if gone:
        notes = [f"Of {len(gone)} participants who withdrew {len(gone & set(participant))} are in the table; they are "
                 "rejected."]  # fmt: skip
    covariates = [name for name in ("age", "sex") if name != request.label]
    return Draft(
        rows, "table", features=[f"f{field}" for field in measures],
        data={"harmonisation": {"combat": {"covariates": covariates}}}, notes=notes,
    )  # fmt: skip


ENTRY = Entry(
    name="uk-biobank",
    title="UK Biobank (volumes from brain MRI)",
    about="Volumes of the brain and of its regions, computed by UK Biobank from T1-weighted MRI of volunteers aged 44 "
    "to 82, at four centres with the same scanners and protocol: sites that hardly differ.",
    modality="table (imaging-derived measures of T1-weighted MRI)",
    sites="4 imaging centres in field 54: 11025 Cheadle, 11026 Reading, 11027 Newcastle, 11028 Bristol.",
    subjects="More than 60,000 participants with brain MRI; some thousands were imaged twice.",
    access="https://www.ukbiobank.ac.uk/enable-your-research/apply-for-access",
    licence="agreement",
    terms="Material transfer agreement after an approved application; no passing on, and who withdraws must be left "
    "out.",
    citation="Miller KL et al. Multimodal population brain imaging in the UK Biobank prospective epidemiological "
    "study. Nat Neurosci 2016;19:1523-1536. Alfaro-Almagro F et al. NeuroImage 2018;166:400-424.",
    layout="""\
ukb/
  ukb12345.csv (or .tsv)            a row a participant: eid, and 31-0.0 (sex), 54-2.0 (centre), 21003-2.0 (age),
                                    25001-2.0 to 25025-2.0, 25782-2.0 to 25920-2.0, 26501-2.0 to 27772-2.0 (volumes);
                                    or columns f.eid, f.25010.2.0, ...; or eid, p31, p25010_i2, ...
  w12345_20230425.csv (or .txt)     participants who withdrew, a number a line; also withdraw12345_....txt
""",
    labels={
        "sex": Label("sex", "sex: F against M", positive=("F",), against=("M",)),
        "age": Label("age", "age at the imaging visit in years (brain age)", task="regression"),
    },
    sites_by={"centre": "field 54, the centre of the visit"},
    draft=_draft,
    assumed=(
        "Of the fields those of volumes are taken (whole brain, nuclei, regions of FAST, FreeSurfer), whichever are "
        "in the table; of arrays the first value. A table of all fields is large: export only those above.",
        "Instance 2 is the first imaging visit, instance 3 the repeated one (`--sessions all`).",
        "Participants in the list of those who withdrew, or with a negative number, are rejected. Ask for the newest "
        "list.",
        "-1 (do not know) and -3 (prefer not to answer) are missing.",
        "The starter study takes differences between centres out by ComBat and keeps those of age and sex.",
    ),
)
