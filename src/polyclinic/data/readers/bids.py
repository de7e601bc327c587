"""BIDS data sets: https://bids-specification.readthedocs.io."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.found import Findings, FoundImage, Tick, relative
from polyclinic.data.readers.nifti.read import header_findings, is_nifti, names_patient, scanner_facts, stem
from polyclinic.data.readers.people.people import People

_DATATYPES = ("anat", "func", "dwi", "perf", "pet", "fmap", "swi", "ct", "ses-")
_MASKS = ("mask", "dseg")
_HEADS = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT1", "inplaneT2", "UNIT1", "MP2RAGE")


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


def is_derivative(folder: Path) -> bool:
    """Whether a data set says that it was made from another one, whose patients it shares."""
    try:
        content = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    kind = str(content.get("DatasetType", "")).lower()
    return kind == "derivative" or bool(content.get("GeneratedBy") or content.get("PipelineDescription"))


def scan_bids(
    files: Sequence[Path],
    bids: Path,
    folder: Path,
    site: str,
    salt: str,
    tick: Tick,
    *,
    site_column: bool,
    home: str = "",
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
        home: what tells ``sub-01`` of this data set from ``sub-01`` of others; "" where there is one.
    """
    findings = Findings("BIDS data set")
    named: list[tuple[Path, BidsName]] = []
    for path in files:
        name = BidsName.parse(stem(path)) if is_nifti(path) else None
        if name is not None and "sourcedata" not in path.relative_to(bids).parts:
            named.append((path, name))
        else:
            kind = "NIfTI file without a name of BIDS" if is_nifti(path) else path.suffix.lower()
            findings.others[kind or "no ending"] += 1
            tick()
    visits: dict[str, set[str]] = defaultdict(set)
    for path, name in named:
        if not name.is_mask and not _derived(path, bids):
            visits[name.entities["sub"]].add(name.entities.get("ses", ""))
    for _, name in named:
        visits[name.entities["sub"]] = visits[name.entities["sub"]] or {name.entities.get("ses", "")}
    people = People(bids, visits, site_column=site_column)
    findings.notes += people.notes
    columns = _columns(named, bids)
    for path, name in named:
        subject, session = name.entities["sub"], name.entities.get("ses", "")
        if name.is_mask and not session and len(visits[subject]) == 1:
            (session,) = visits[subject]  # masks are often drawn once, in names without the only visit
        where = people.site(subject, session)
        reason, noted = header_findings(path)
        findings.images.append(
            FoundImage(
                site=site if where is None else where,
                subject=pseudonym(f"{home}/{subject}" if home else subject, salt, "sub"),
                session=f"ses-{session}" if session else "",
                column=columns[path],
                where=relative(path, folder),
                is_mask=name.is_mask,
                reason=reason,
                notes=noted,
                about={} if name.is_mask else scanner_facts(path),
                covariates=people.covariates(subject, session),
                head=not _derived(path, bids) and name.suffix in _HEADS and "deface" not in path.name.lower(),
                named=names_patient(path),
                layout=_layout(name, path, bids),
                example=_example(_layout(name, path, bids), columns[path]),
            )
        )
        tick()
    return findings


def _derived(path: Path, bids: Path) -> bool:
    return "derivatives" in path.relative_to(bids).parts


def _layout(name: BidsName, path: Path, bids: Path) -> str:
    """The path by the rules of BIDS, with fields; other folders are ``*``."""
    levels = []
    for level in path.parent.relative_to(bids).parts:
        key = level.partition("-")[0]
        field = {"sub": "sub-{subject}", "ses": "ses-{session}"}.get(key)
        levels.append(field or (level if level in (*_DATATYPES, "derivatives") else "*"))
    session = "_ses-{session}" if "ses" in name.entities else ""
    what = "{mask}" if name.is_mask else "{contrast}"
    return "/".join([*levels, f"sub-{{subject}}{session}_{what}{path.name[len(stem(path)) :]}"])


def _example(layout: str, column: str) -> str:
    example = layout.replace("{subject}", "***").replace("{session}", "###")
    return re.sub(r"\{contrast\}|\{mask\}", lambda _: column, example)


def _columns(named: Sequence[tuple[Path, BidsName]], bids: Path) -> dict[Path, str]:
    """The suffix alone where no visit has two such images, else with the entities that tell them apart."""
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for path, name in named:
        if not _derived(path, bids):
            counts[name.suffix][name.entities["sub"], name.entities.get("ses", "")] += 1
    single = {suffix for suffix, visits in counts.items() if max(visits.values()) == 1}
    return {
        path: name.suffix if name.suffix in single and not _derived(path, bids) else name.column()
        for path, name in named
    }
