"""Names of patients and sites: written in several ways, standing for many, or not those of patients at all."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd

from polyclinic.data.quality.words import alike, counted, folded, folded_name, is_shortened, some
from polyclinic.errors import DataError
from polyclinic.notes import Note

#: What is written where a patient's name was taken away or never known; `folded`, letters and figures only.
_NOBODY = re.compile(
    r"|anon(ym.*)?|deid(ent.*)?|unk|unknown.*|unbekannt|inconnue?|desconocid[oa]|none|null|nil|nan?|no(patient)?(name|id)|"
    r"nameless|not(available|applicable|given|known)|missing|empty|blank|removed|redacted|masked|hidden|withheld|"
    r"confidential|dummy|test(patient)?|(patient|subject|participant)?(id|name)?|sub|x+|0+|99999*"
)
#: A patient with more than this share of a site's rows is pointed out, where the site has so many rows.
_SHARE, _LEAST_ROWS = 0.5, 10
#: A number such as 0 may be a patient like others; with so many times the usual number of rows it is not.
_UNUSUAL = 5
#: Endings by which visits, sides and copies of one patient differ.
_ENDING = re.compile(
    r"(?:[._-]+|(?<=\d))(?:ses|sess|session|visit|vis|mr|scan|run|tp|time|week|wk|month|mo|year|yr|baseline|bl|followup|"
    r"fu|pre|post|left|right|eye|od|os|copy)[._-]?\d*$|[._-]+[vtmwlr]\d{0,2}$|(?<=\d)[lr]$"
)


def check_site_names(sites: list[str]) -> None:
    """Stop where two names of sites can only mean the same one.

    Raises:
        DataError: P203 with the names.
    """
    groups = alike(sites)
    if groups:
        pairs = some(" and ".join(map(repr, group)) for group in groups.values())
        raise DataError(
            "P203",
            f"{counted(len(groups), 'site has a name that is', 'sites have names that are')} written in several ways: "
            f"{pairs}. As they stand, each would be a site of its own.",
            "Write a site's name alike in all rows.",
        )


def patient_notes(rows: pd.DataFrame, *, named: bool) -> list[Note]:
    """What is said of the patients' names.

    Args:
        rows: ``site``, ``subject`` and ``case`` of each used row.
        named: whether a column names the patients.
    """
    if not named:
        return []
    notes = [note for site, mine in rows.groupby("site", sort=False) for note in _site_notes(str(site), mine)]
    return notes + _written_at_several(rows)


def torn_notes(rows: pd.DataFrame, labels: np.ndarray, *, named: bool) -> list[Note]:
    """A note on patients whose cases have different labels.

    Args:
        rows: ``site``, ``subject`` and ``case`` of each used row that has a label.
        labels: class of each row, int ``[N]``.
        named: whether a column names the patients.
    """
    return _torn(rows, labels) if named else []


def _site_notes(site: str, mine: pd.DataFrame) -> list[Note]:
    counts = mine["subject"].value_counts()
    names = counts.index.tolist()
    notes = []
    groups = alike(names)
    if groups:
        pairs = counted(len(groups), "patient's name is", "patients' names are")
        text = (
            f"Site {site}: {pairs} written in several ways, which differ only in capitals, blanks, Unicode form, "
            "leading zeros or `.0`. Each counts as a patient of its own, so the same person may be in training and "
            "test data: write a name alike in all rows."
        )
        notes.append(Note("N230", text, _cases(mine, {name for group in groups.values() for name in group})))
    return notes + _one_for_many(site, mine, counts) + _visits(site, mine, names)


def _one_for_many(site: str, mine: pd.DataFrame, counts: pd.Series[int]) -> list[Note]:
    """A note where many rows of a site have one patient's name, or one that says that there is none."""
    usual = float(counts.median()) if len(counts) > 2 else 1.0
    several = [(str(name), int(count)) for name, count in counts.items() if count > 1]
    nobody = {
        name: count
        for name, count in several
        if _is_nobody(name) and (not _letters(name).isdigit() or count >= _UNUSUAL * usual)
    }
    if nobody:
        rows = sum(nobody.values())
        text = (
            f"Site {site}: {rows} of {len(mine)} rows have a patient's name that stands for an unknown one (such as "
            f"ANONYMOUS, unknown or 0), and count as {counted(len(nobody), 'patient', 'patients')}. If they are "
            "several people, give each a name; if it is not known who they are, add that text to `missing`."
        )
        return [Note("N231", text, _cases(mine, set(nobody)))]
    rounded = is_shortened(str(counts.index[0]))  # of which another note speaks
    if len(mine) >= _LEAST_ROWS and counts.iloc[0] > _SHARE * len(mine) and not rounded:
        text = (
            f"Site {site}: {counts.iloc[0]} of {len(mine)} rows have the same patient's name, and count as one "
            "patient. Look whether `subject` (and `subject_pattern`) name the patient."
        )
        return [Note("N231", text, _cases(mine, {str(counts.index[0])}))]
    return []


def _visits(site: str, mine: pd.DataFrame, names: list[str]) -> list[Note]:
    """A note where names differ only in an ending such as ``_MR2``, ``_ses-02`` or ``_L``."""
    stems = {name: _ENDING.sub("", folded(name).replace(" ", "_")) for name in names}
    # Two writings of one name are no visits.
    several = Counter(stem for stem, _ in {(stem, folded_name(name)) for name, stem in stems.items()} if stem)
    shared = {name for name, stem in stems.items() if several[stem] > 1}
    # Where the same beginning stands before most names it is that of the site, not of a patient.
    if not shared or (len(names) > 2 and max(several.values()) > _SHARE * len(names)):
        return []
    people = len({stems[name] for name in shared})
    text = (
        f"Site {site}: {len(shared)} patients' names differ only in an ending like that of a visit, a scan or a side "
        f"(_MR2, _ses-02, _L), and look like {counted(people, 'patient', 'patients')}. Each counts as a patient of its "
        r'own: give the column with the patient, or a `subject_pattern` such as "(.+)_MR\d+".'
    )
    return [Note("N232", text, _cases(mine, shared))]


def _written_at_several(rows: pd.DataFrame) -> list[Note]:
    """A note on names that stand at several sites in different writing; equal ones have a note of their own."""
    homes = rows.drop_duplicates(["site", "subject"])
    keys = homes["subject"].map(folded_name)
    spread = pd.DataFrame({"key": keys, "site": homes["site"], "subject": homes["subject"]}).groupby("key").nunique()
    known = spread.index[(spread["site"] > 1) & (spread["subject"] > 1)]
    if not len(known):
        return []
    text = (
        f"{counted(len(known), 'patient name stands', 'patient names stand')} at more than one site in different "
        "writing (capitals, blanks, Unicode form, leading zeros or `.0`): if they mean the same person, that one may "
        "be in training and test data."
    )
    return [Note("N230", text, homes["case"][keys.isin(known)])]


def _torn(rows: pd.DataFrame, labels: np.ndarray) -> list[Note]:
    """A note on patients whose cases have different labels."""
    codes = pd.factorize(rows["site"].astype(str) + "\0" + rows["subject"].astype(str))[0]
    frame = pd.DataFrame({"patient": codes, "label": labels})
    kinds = frame.groupby("patient")["label"].nunique()
    torn = kinds.index[kinds > 1]
    several = int((frame["patient"].value_counts() > 1).sum())
    # Where most patients have cases of several classes, the label belongs to the case: an eye, a lesion, a visit.
    if not 0 < len(torn) <= several / 2:
        return []
    text = (
        f"{len(torn)} of {counted(several, 'patient', 'patients')} with several cases "
        f"{'has' if len(torn) == 1 else 'have'} cases of different classes. That is right where the label can change "
        "from visit to visit, or from side to side; else it is a mistake."
    )
    return [Note("N233", text, rows["case"][frame["patient"].isin(torn).to_numpy()])]


def _is_nobody(name: str) -> bool:
    return _NOBODY.fullmatch(_letters(name)) is not None


def _letters(name: str) -> str:
    return "".join(letter for letter in folded(name) if letter.isalnum())


def _cases(mine: pd.DataFrame, names: set[str]) -> list[str]:
    return mine["case"][mine["subject"].isin(names)].tolist()
