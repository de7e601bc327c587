"""Comparing finished studies: methods in each of them, and the differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from polyclinic.files import write_atomic
from polyclinic.study.comparing.page import render
from polyclinic.study.comparing.studies import (
    OVER,
    Compared,
    Paired,
    Value,
    Versus,
    differing_entries,
    read_studies,
    why_not_paired,
)
from polyclinic.study.kinds import RUN, Entry
from polyclinic.study.table_files import write_table

PAGE, TABLE = "compare.html", "compare.csv"


@dataclass(frozen=True)
class Comparison:
    """Several studies side by side.

    Attributes:
        studies: as they were given.
        entries: entries of their study files that differ, with the value in each.
        values: by method and kind of run, number of the study, and ``over`` as in ``summary.csv``.
        versus: each two studies, the earlier one first.
    """

    studies: list[Compared]
    entries: list[tuple[str, list[str]]]
    values: dict[tuple[Entry, int, str], Value]
    versus: list[Versus]

    def table(self) -> pd.DataFrame:
        """``compare.csv``: rows of values, then, where ``versus`` is a number, of differences."""
        folders = {one.number: one.folder.path.resolve().name for one in self.studies}
        metric = self.studies[0].folder.primary.name
        rows: list[dict[str, object]] = []
        for ((method, run), number, over), value in self.values.items():
            about = {"study": number, "folder": folders[number], "method": method, RUN: run, "metric": metric}
            rows.append(about | {"over": over, "mean": value.mean, "low": value.low, "high": value.high, "versus": ""})
        for one in self.versus:
            for entry, over in dict.fromkeys([*one.differences, *((entry, "sites") for entry in one.why)]):
                method, run = entry
                about = {"study": one.later, "folder": folders[one.later], "method": method, RUN: run, "metric": metric}
                about |= {"over": over, "versus": str(one.earlier), "difference": one.differences.get((entry, over))}
                rows.append(about | self._paired(one, entry, over))
        return pd.DataFrame(rows, columns=COLUMNS)

    def _paired(self, one: Versus, entry: Entry, over: str) -> dict[str, object]:
        found = one.paired.get(entry)
        if over != "sites" or found is None:
            return {"note": one.why.get(entry, "") if over == "sites" else ""}
        return {
            "paired": found.difference, "paired_low": found.low, "paired_high": found.high, "p": found.p,
            "p_adjusted": found.p_adjusted, "sites": found.sites, "note": "",
        }  # fmt: skip

    def write(self, out: Path) -> None:
        """Write page and table into a folder.

        Raises:
            ResultsError: P501, the folder can't be written; P502, the disk is full.
        """
        write_table(out / TABLE, self.table())
        write_atomic(out / PAGE, render(self.studies, self.entries, self.values, self.versus), durable=False)


#: Columns of ``compare.csv``.
COLUMNS = [
    *("study", "folder", "method", RUN, "metric", "over", "mean", "low", "high", "versus", "difference"),
    *("paired", "paired_low", "paired_high", "p", "p_adjusted", "sites", "note"),
]


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare the studies in several results folders by their primary metric.

    Raises:
        ResultsError: P501, one of them is no finished study, or they can't be compared.
    """
    studies = read_studies(paths)
    versus = [_versus(a, b) for a, b in combinations(studies, 2)]
    return Comparison(studies, differing_entries(studies), _values(studies), versus)


def _values(studies: Sequence[Compared]) -> dict[tuple[Entry, int, str], Value]:
    """Values of all methods in the order in which they appear, each with all studies that have it."""
    entries = list(dict.fromkeys(entry for one in studies for entry in one.folder.titles))
    lines = {
        (entry, one.number, over): one.folder.line(entry[0], one.folder.primary.name, over, entry[1])
        for over in OVER
        for entry in entries
        for one in studies
    }
    return {key: Value(line["mean"], line["low"], line["high"]) for key, line in lines.items() if line is not None}


def _versus(a: Compared, b: Compared) -> Versus:
    """What two studies say of the methods that both have."""
    common = [entry for entry in a.folder.titles if entry in b.folder.titles]
    names = {entry: [one.folder.name(entry[0]) for one in (a, b)] for entry in common}
    alike = [entry for entry in common if len(set(names[entry])) == 1]
    why = {
        entry: f"The label stands for {names[entry][0]} in study {a.number}, for {names[entry][1]} in study {b.number}."
        for entry in common
        if entry not in alike
    }
    values = _values([a, b])
    differences = {
        (entry, over): round(values[entry, b.number, over].mean - values[entry, a.number, over].mean, 12)
        for over in OVER
        for entry in alike
        if {(entry, a.number, over), (entry, b.number, over)} <= values.keys()
    }
    if reason := why_not_paired(a, b):
        return Versus(a.number, b.number, differences, {}, dict.fromkeys(alike, reason) | why)
    from polyclinic.study.comparing.paired import paired  # computes metrics, and so loads PyTorch

    found = paired(a, b, alike)
    why |= {entry: one for entry, one in found.items() if isinstance(one, str)}
    return Versus(
        a.number, b.number, differences, {entry: one for entry, one in found.items() if isinstance(one, Paired)}, why
    )
