"""BIDS data sets: https://bids-specification.readthedocs.io."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.found import Findings, FoundImage, Tick, relative
from polyclinic.data.readers.nifti import is_nifti, names_patient, nifti_header, scanner_facts, stem
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.table import read_cells
from polyclinic.errors import DataError
from polyclinic.notes import Note

SITE_COLUMNS = (
    "site", "site_id", "siteid", "center", "centre", "institution", "institution_name", "hospital", "scanner",
)  # fmt: skip
_DATATYPES = ("anat", "func", "dwi", "perf", "pet", "fmap", "swi", "ct", "ses-")
_MASKS = ("mask", "dseg")
_HEADS = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT1", "inplaneT2", "UNIT1", "MP2RAGE")
_MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN")
_IDENTIFIES = re.compile(
    r"name|birth|dob\b|address|phone|mail|mrn|patient|insurance|ssn|zip|post_?code|date|initials", re.I
)


@dataclass(frozen=True)
class BidsName:
    """A file name's parts: ``sub-01_ses-2_acq-fast_T1w`` has entities sub, ses, acq and the suffix T1w."""

    entities: dict[str, str]
    suffix: str

    @classmethod
    def parse(cls, name: str) -> BidsName | None:
        """The parts, or None where the name is none of BIDS."""
        *pairs, suffix = name.split("_")
        split = [pair.partition("-") for pair in pairs]
        if not split or split[0][0] != "sub" or any(not key or not dash or not value for key, dash, value in split):
            return None
        return cls({key: value for key, _, value in split}, suffix) if suffix and "-" not in suffix else None

    def column(self) -> str:
        """What the image shows, without subject and visit: ``acq-fast_T1w``; masks: what they mark, ``brain_mask``."""
        entities = {key: value for key, value in self.entities.items() if key not in ("sub", "ses")}
        marked = "".join(f"{entities.pop(key)}_" for key in ("label", "desc") if key in entities and self.is_mask)
        return "".join(f"{key}-{value}_" for key, value in entities.items()) + marked + self.suffix

    @property
    def is_mask(self) -> bool:
        """Whether voxels are labels."""
        return self.suffix in _MASKS


def is_bids(folder: Path) -> bool:
    """Whether the folder is the root of a BIDS data set (or of a derivative one)."""
    if (folder / "dataset_description.json").is_file():
        return True
    subjects = [path for path in folder.glob("sub-*") if path.is_dir()]
    return any(
        child.name.startswith(_DATATYPES) for path in subjects[:20] for child in path.iterdir() if child.is_dir()
    )


def scan_bids(
    files: Sequence[Path], bids: Path, folder: Path, site: str, salt: str, tick: Tick, *, site_column: bool
) -> Findings:
    """The images and masks of a BIDS data set and its derivatives.

    Args:
        files: all files below ``bids``.
        bids: root of the data set.
        folder: the folder to which cells of the manifest are relative.
        site: name of the site where ``participants.tsv`` does not tell it.
        salt: for pseudonyms.
        tick: called after each file.
        site_column: whether ``participants.tsv`` names the site (columns ``SITE_COLUMNS``).
    """
    findings = Findings("BIDS data set")
    people, sites, notes = _participants(bids / "participants.tsv", site_column=site_column)
    findings.notes += notes
    named: list[tuple[Path, BidsName]] = []
    for path in files:
        name = BidsName.parse(stem(path)) if is_nifti(path) else None
        if name is not None and "sourcedata" not in path.relative_to(bids).parts:
            named.append((path, name))
        else:
            findings.others[path.suffix.lower() or "no ending"] += 1
            tick()
    columns = _columns(named, bids)
    visits: dict[str, dict[str, dict[str, str]]] = {}
    for path, name in named:
        subject, session = name.entities["sub"], name.entities.get("ses", "")
        if subject not in visits:
            visits[subject] = _sessions(bids / f"sub-{subject}" / f"sub-{subject}_sessions.tsv")
        derived = "derivatives" in path.relative_to(bids).parts
        findings.images.append(
            FoundImage(
                site=sites.get(subject, site),
                subject=pseudonym(subject, salt, "sub"),
                session=f"ses-{session}" if session else "",
                column=columns[path],
                where=relative(path, folder),
                is_mask=name.is_mask,
                reason=_reason(path),
                about={} if name.is_mask else scanner_facts(path),
                covariates=people.get(subject, {}) | visits[subject].get(session, {}),
                head=not derived and name.suffix in _HEADS and "deface" not in path.name.lower(),
                named=names_patient(path),
            )
        )
        tick()
    return findings


def _columns(named: Sequence[tuple[Path, BidsName]], bids: Path) -> dict[Path, str]:
    """The suffix alone where no visit has two such images, else with the entities that tell them apart."""
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for path, name in named:
        if "derivatives" not in path.relative_to(bids).parts:
            counts[name.suffix][name.entities["sub"], name.entities.get("ses", "")] += 1
    single = {suffix for suffix, visits in counts.items() if max(visits.values()) == 1}
    return {
        path: name.suffix
        if name.suffix in single and "derivatives" not in path.relative_to(bids).parts
        else name.column()
        for path, name in named
    }


def _reason(path: Path) -> str:
    try:
        nifti_header(path)
    except UnreadableError as error:
        return str(error)
    return ""


def _participants(table: Path, *, site_column: bool) -> tuple[dict[str, dict[str, str]], dict[str, str], list[Note]]:
    """Covariates and site of each subject, and notes on columns that were left out."""
    if not table.is_file():
        return {}, {}, []
    try:
        cells = read_cells(table)
    except DataError:
        return {}, {}, [Note("N302", "participants.tsv can't be read: its covariates and sites are missing.")]
    if "participant_id" not in cells or cells.columns.duplicated().any():
        text = "participants.tsv has no column participant_id, or has a column twice: it was not used."
        return {}, {}, [Note("N302", text)]
    keys = cells.pop("participant_id").str.removeprefix("sub-").tolist()
    home = next((str(name) for wanted in SITE_COLUMNS for name in cells if str(name).lower() == wanted), None)
    sites: dict[str, str] = {}
    if site_column and home is not None:
        texts = cells.pop(home).tolist()
        sites = {key: text for key, text in zip(keys, texts, strict=True) if text not in _MISSING}
    dropped = [name for name in cells if _identifies(str(name), cells[name])]
    covariates = _covariates(keys, cells.drop(columns=dropped))
    notes = []
    if dropped:
        are = "1 column is" if len(dropped) == 1 else f"{len(dropped)} columns are"
        text = f"{are} left out of participants.tsv: their names or values may identify patients."
        notes.append(Note("N301", text))
    return covariates, sites, notes


def _covariates(keys: Sequence[str], cells: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Key -> column -> text of each row, "" where missing."""
    rows = cells.replace(list(_MISSING), "").to_dict("records")
    return {key: {str(name): str(text) for name, text in row.items()} for key, row in zip(keys, rows, strict=True)}


def _identifies(name: str, cells: pd.Series[str]) -> bool:
    """Whether a column's name is one of an identifier, or its texts are dates or differ for all of many patients."""
    if _IDENTIFIES.search(name):
        return True
    texts = cells[~cells.isin(_MISSING)]
    if texts.empty or pd.to_numeric(texts, errors="coerce").notna().all():
        return False
    return bool(texts.str.fullmatch(r"\d{4}-\d\d-\d\d.*|\d\d?[./]\d\d?[./]\d{2,4}").any()) or (
        len(texts) >= 5 and texts.nunique() == len(texts)
    )


def _sessions(table: Path) -> dict[str, dict[str, str]]:
    """Covariates of each visit of a patient, by the same rules as those of patients."""
    if not table.is_file():
        return {}
    try:
        cells = read_cells(table)
    except DataError:
        return {}
    if "session_id" not in cells or cells.columns.duplicated().any():
        return {}
    keys = cells.pop("session_id").str.removeprefix("ses-").tolist()
    return _covariates(keys, cells.drop(columns=[name for name in cells if _identifies(str(name), cells[name])]))
