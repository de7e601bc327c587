"""The flow of cases: found, rejected with reasons, used, and the parts of the split; in total and site by site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from polyclinic.data.spec import PUBLIC
from polyclinic.study.drawing import Panel
from polyclinic.study.report.flow_figure import flow_figure
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.tables import ALL_SITES, count_text

#: Stage in ``flow.csv`` -> name of the part.
PARTS = {"train": "Training", "validation": "Validation", "test": "Test"}


@dataclass(frozen=True)
class Part:
    """One part of a split: numbers of each fold; patients are NaN where they are not known."""

    cases: list[float]
    patients: list[float]
    classes: dict[str, list[float]]


@dataclass(frozen=True)
class SiteFlow:
    """Where the cases of a site, or of all together, went.

    Attributes:
        site: its name.
        found, used, unlabelled: cases; those without a label are among those used.
        hidden: training cases of each fold whose labels are hidden.
        instances: of the cases used, where these are bags; else 0.
        patients: among the cases used; NaN where it is not known.
        rejected: reason and number of cases, the most frequent first.
        parts: stage -> what is in it; empty for a site that is left out.
    """

    site: str
    found: int
    used: int
    unlabelled: int
    patients: float
    rejected: list[tuple[str, int]]
    parts: dict[str, Part]
    hidden: list[float]
    instances: int = 0


@dataclass(frozen=True)
class FlowRow:
    """A line of the table; texts."""

    site: str
    found: str
    rejected: str
    used: str
    parts: list[str]


@dataclass(frozen=True)
class FlowSection:
    """What the report shows.

    Attributes:
        panel: the picture of all sites together.
        rows: a line a site and one of all.
        folds: how many there are.
        patients: whether numbers of patients stand behind those of cases.
    """

    panel: Panel
    rows: list[FlowRow]
    folds: int
    patients: bool
    groups: list[tuple[str, str, list[str]]]
    """Subgroup, group, and its patients in each part, of all sites together."""


def flow_section(folder: Folder) -> FlowSection | None:
    """The picture and the table; None for results of a version that did not write ``flow.csv``."""
    sites = site_flows(folder)
    if not sites:
        return None
    total = together(sites)
    public = [_of_site(PUBLIC, rows) for site, rows in folder.flow.groupby("site", sort=False) if site == PUBLIC]
    rows = [*public, *sites, total] if len(sites) > 1 else [*public, *sites]
    folds = len(next((one.parts["test"].cases for one in sites if one.parts), []))
    named = (folder.study.get("data") or {}).get("subject") is not None
    lines = [
        FlowRow(one.site, count_text(one.found), _rejected(one), _used(one, named=named), _parts(one, named=named))
        for one in rows
    ]
    panel = flow_figure(
        found=f"{_cases(total.found)} at {_sites(len(sites))}",
        rejected=[(reason, count_text(count)) for reason, count in total.rejected],
        used=f"{_cases(total.used)}{_of_patients(total.patients) if named else ''} at "
        f"{_sites(sum(one.used > 0 for one in sites))}"
        f"{f', {count_text(total.instances)} instances' if total.instances else ''}",
        unlabelled=count_text(total.unlabelled) if total.unlabelled else "",
        parts=[(PARTS[stage], *_lines(part, named=named)) for stage, part in total.parts.items()],
        folds=folds,
    )
    return FlowSection(panel, lines, folds, named, group_counts(folder))


def group_counts(folder: Folder) -> list[tuple[str, str, list[str]]]:
    """Subgroup, group, and its patients in the three parts (the least and the largest of the folds), of all sites."""
    table = folder.characteristics
    table = table[table["site"] == "all"]
    found = []
    for (name, group), rows in table.groupby(["subgroup", "group"], sort=False):
        texts = []
        for stage in PARTS:
            own = rows[rows["stage"] == stage]
            known = spread(own["patients"].astype(float).to_list())
            few = [str(note).replace("fewer than ", "< ").replace(" patients", "") for note in own["note"] if note]
            texts.append(
                " to ".join([*few[:1], *known.split(" to ")[-1:]]) if few and known else known or "".join(few[:1])
            )
        found.append((str(name), str(group), texts))
    return found


@lru_cache(maxsize=1)  # every other item of a checklist asks for it
def site_flows(folder: Folder) -> list[SiteFlow]:
    """The flow at each site, in the order of ``flow.csv``."""
    found = folder.flow.groupby("site", sort=False)
    return [_of_site(str(site), rows) for site, rows in found if site != PUBLIC]


def together(sites: Sequence[SiteFlow]) -> SiteFlow:
    """The flow of all sites: numbers are added up, fold by fold."""
    reasons = Counter[str]()
    for one in sites:
        reasons.update(dict(one.rejected))
    split = [one.parts for one in sites if one.parts]
    parts = {
        stage: Part(
            _added([parts[stage].cases for parts in split]),
            _added([parts[stage].patients for parts in split]),
            {name: _added([parts[stage].classes[name] for parts in split]) for name in split[0][stage].classes},
        )
        for stage in (PARTS if split else [])
    }
    return SiteFlow(
        ALL_SITES, sum(one.found for one in sites), sum(one.used for one in sites),
        sum(one.unlabelled for one in sites), float(np.sum([one.patients for one in sites])),
        sorted(reasons.items(), key=lambda item: (-item[1], item[0])), parts,
        _added([one.hidden for one in sites if one.hidden]),
        sum(one.instances for one in sites),
    )  # fmt: skip


def _of_site(site: str, rows: pd.DataFrame) -> SiteFlow:
    def count(stage: str) -> int:
        return int(rows.loc[rows["stage"] == stage, "cases"].sum())

    used = rows[rows["stage"] == "used"]
    rejected = rows[rows["stage"] == "rejected"]
    parts = {stage: _part(rows[rows["stage"] == stage]) for stage in PARTS if (rows["stage"] == stage).any()}
    return SiteFlow(
        site, count("found"), count("used"), count("unlabelled"), float(used["patients"].sum(min_count=1)),
        [(str(reason), int(cases)) for reason, cases in zip(rejected["what"], rejected["cases"], strict=True)], parts,
        rows.loc[rows["stage"] == "hidden", "cases"].astype(float).to_list(), count("instances"),
    )  # fmt: skip


def _part(rows: pd.DataFrame) -> Part:
    whole = rows[rows["what"] == ""]
    classes = {
        str(name): own["cases"].astype(float).to_list()
        for name, own in rows[rows["what"] != ""].groupby("what", sort=False)
    }
    return Part(whole["cases"].astype(float).to_list(), whole["patients"].astype(float).to_list(), classes)


def _added(columns: list[list[float]]) -> list[float]:
    return [float(number) for number in np.sum(columns, axis=0)] if columns else []


# --- words ------------------------------------------------------------------------------------------------------------


def spread(numbers: Sequence[float]) -> str:
    """A number, or the least and the largest of the folds; empty where none is known."""
    known = [number for number in numbers if np.isfinite(number)]
    return " to ".join(dict.fromkeys(count_text(end) for end in (min(known), max(known)))) if known else ""


def _cases(count: float) -> str:
    return f"{count_text(count)} case{'' if count == 1 else 's'}"


def _sites(count: int) -> str:
    return f"{count} site{'' if count == 1 else 's'}"


def _of_patients(patients: float) -> str:
    return f" of {count_text(patients)} patient{'' if patients == 1 else 's'}" if np.isfinite(patients) else ""


def _lines(part: Part, *, named: bool) -> tuple[str, str]:
    """Cases and patients of a part, in words for its box."""
    patients = spread(part.patients) if named else ""
    return spread(part.cases), f"{patients} patients" if patients else ""


def _rejected(one: SiteFlow) -> str:
    if not one.rejected:
        return "0"
    reasons = ", ".join(f"{reason} ({count_text(count)})" for reason, count in one.rejected)
    return f"{count_text(sum(count for _, count in one.rejected))}: {reasons}"


def _used(one: SiteFlow, *, named: bool) -> str:
    patients = f" ({count_text(one.patients)})" if named and np.isfinite(one.patients) else ""
    without = f", {count_text(one.unlabelled)} without a label" if one.unlabelled else ""
    inside = f", of {count_text(one.instances)} instances" if one.instances else ""
    return f"{count_text(one.used)}{patients}{inside}{without}"


def _parts(one: SiteFlow, *, named: bool) -> list[str]:
    if not one.parts:
        return ["–"] * len(PARTS)
    patients = [spread(part.patients) if named else "" for part in one.parts.values()]
    cases = [spread(part.cases) for part in one.parts.values()]
    if one.hidden:
        cases[list(one.parts).index("train")] += f" and {spread(one.hidden)} whose labels are hidden"
    return [f"{text}{f' ({people})' if people else ''}" for text, people in zip(cases, patients, strict=True)]
