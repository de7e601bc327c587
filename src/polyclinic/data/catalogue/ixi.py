"""IXI: healthy brains from three London hospitals."""

from __future__ import annotations

import re
from collections import defaultdict

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    find_table,
    pick_column,
    read_table,
    stem,
    walk_files,
    what_is_there,
)
from polyclinic.data.catalogue.studies import grid

_FILE = re.compile(r"IXI(\d{3})-(Guys|HH|IOP)-\d+-(T1|T2|PD|MRA)$", re.IGNORECASE)
_SITES = {"guys": "Guys", "hh": "HH", "iop": "IOP"}
#: Field strength in tesla.
_FIELD = {"Guys": "1.5", "HH": "3", "IOP": "1.5"}


def _people(request: Request) -> tuple[dict[int, tuple[str, str]], set[int]]:
    """IXI number -> (age, sex), and the numbers whose rows in the table disagree."""
    path = find_table(request.source, "IXI*.xls", "IXI*.xlsx", "IXI*.csv")
    table = read_table(path)
    number = pd.to_numeric(table[pick_column(table, path, "IXI_ID")], errors="coerce")
    age = table[pick_column(table, path, "AGE")]
    sex = table[pick_column(table, path, "SEX_ID (1=m, 2=f)", "SEX_ID", "SEX")].map(
        {"1": "M", "2": "F", "1.0": "M", "2.0": "F"}
    )
    people: dict[int, tuple[str, str]] = {}
    torn: set[int] = set()
    for each, years, gender in zip(number, age, sex.fillna(""), strict=True):
        if pd.isna(each):
            continue
        person = (years, gender)
        if people.setdefault(int(each), person) != person:
            torn.add(int(each))
    return people, torn


def _draft(request: Request) -> Draft:
    images: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    for path in walk_files(request.source, (".nii.gz", ".nii")):
        name = _FILE.match(stem(path))
        if name:
            images[int(name[1]), _SITES[name[2].lower()]].setdefault(name[3].lower(), path)
    if not images:
        raise LayoutError(f"No IXI002-Guys-0828-T1.nii.gz or the like was found; {what_is_there(request.source)}.")
    people, torn = _people(request)
    contrasts = [name for name in ("t1", "t2", "pd", "mra") if any(name in mine for mine in images.values())]
    rows = []
    for (number, site), mine in sorted(images.items()):
        age, sex = people.get(number, ("", ""))
        reason = "not in the table" if number not in people else ""
        reason = "its rows in the table disagree" if number in torn else reason
        paths = [mine.get(name, "") for name in contrasts]
        rows.append([site, f"IXI{number:03}", *paths, age, sex, _FIELD[site], reason])
    columns = ["site", "subject", *contrasts, "age", "sex", "field_strength", "reason"]
    return Draft(
        pd.DataFrame(rows, columns=columns),
        "volume",
        images=contrasts[:1],
        further_images=contrasts[1:],
        data={"preprocessing": grid((96, 112, 96), spacing=(2, 2, 2), centre="foreground")},
    )


ENTRY = Entry(
    name="ixi",
    title="IXI (healthy brains, three London hospitals)",
    about="Brain MRI of healthy adults aged 20 to 86: T1, T2, PD, MRA (and diffusion, which is not read here). Used "
    "for brain age, harmonisation and synthesis.",
    modality="T1-, T2-, PD-weighted MRI and MRA of the head",
    sites="3 hospitals, in the names of the files: Guys (Guy's Hospital, Philips 1.5 T), HH (Hammersmith Hospital, "
    "Philips 3 T), IOP (Institute of Psychiatry, GE 1.5 T).",
    subjects="About 580 subjects with T1.",
    access="https://brain-development.org/ixi-dataset/",
    licence="CC BY-SA 3.0",
    terms="CC BY-SA 3.0; open download.",
    citation="IXI dataset, Biomedical Image Analysis Group, Imperial College London, brain-development.org (EPSRC "
    "GR/S21533/02).",
    layout="""\
IXI/
  IXI.xls (or saved as IXI.csv)              IXI_ID, SEX_ID (1=m, 2=f), AGE
  IXI-T1/IXI002-Guys-0828-T1.nii.gz          any folder; the names of the files tell
  IXI-T2/IXI002-Guys-0828-T2.nii.gz          may be missing, as PD and MRA
""",
    labels={
        "age": Label("age", "age in years", task="regression"),
        "sex": Label("sex", "sex: F against M", positive=("F",), against=("M",)),
    },
    sites_by={"hospital": "the hospital in the name of the file"},
    draft=_draft,
    assumed=(
        "Subjects whose rows in the table differ in age or sex, or who are not in it, are rejected.",
        "Reading IXI.xls needs the package xlrd; a copy saved as CSV does not.",
    ),
)
