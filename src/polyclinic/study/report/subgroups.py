"""The report's section on groups of patients: values, gaps with intervals, and calibration."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from polyclinic.study.drawing import Panel
from polyclinic.study.report import figures
from polyclinic.study.report.answer import headline, signed
from polyclinic.study.report.figures import Estimate
from polyclinic.study.report.folder import Folder, Measure, of_run
from polyclinic.study.report.tables import count_text, interval_text, ordered

#: Names of the rows on calibration, as ``subgroups.csv`` has them.
INTERCEPT, SLOPE = "calibration intercept", "calibration slope"
Row = Mapping[Hashable, Any]


@dataclass(frozen=True)
class GroupLine:
    """One group of one method; texts, a dash where there is no number.

    ``numbers`` are value and gap by the primary metric, calibration intercept and slope, each with its interval.
    """

    group: str
    patients: str
    cases: str
    numbers: list[tuple[str, str]]


@dataclass(frozen=True)
class MethodGroups:
    """One method: its figures, for each subgroup its lines, and for each group its values by the other metrics."""

    method: str
    open: bool
    panels: list[Panel]
    tables: list[tuple[str, list[GroupLine]]]
    others: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class SubgroupSection:
    """The section.

    Attributes:
        methods: the one that the study's answer is about first.
        words: how many groups were compared, and that intervals are not adjusted.
        least: patients that a group must have.
        binary: whether there is calibration.
    """

    methods: list[MethodGroups]
    words: str
    least: int
    binary: bool


def subgroup_section(folder: Folder) -> SubgroupSection | None:
    """The section, or None where the study has no subgroups."""
    table = of_run(folder.subgroups)
    if table.empty:
        return None
    best = headline(folder)
    methods = ordered(folder.methods, table["method"].unique())
    if best is not None and best.method in methods:
        methods = [best.method, *(method for method in methods if method != best.method)]
    compared = table[table["gap"].notna() & (table["metric"] == folder.primary.name)]
    groups = compared[["subgroup", "group"]].drop_duplicates()
    count = f"{len(groups)} groups of {groups['subgroup'].nunique()} subgroup"
    words = (
        f"{count}{'' if groups['subgroup'].nunique() == 1 else 's'} were compared with the rest, for "
        f"{len(methods)} method{'' if len(methods) == 1 else 's'}. Intervals are those of single gaps, not adjusted "
        "for their number: where nothing differs, one of twenty leaves out nought."
        if len(groups)
        else "No group could be compared with the rest: too few patients."
    )
    least = int((folder.study.get("evaluation") or {}).get("subgroup_patients") or 0)
    binary = bool(table[table["metric"] == INTERCEPT]["sites"].gt(0).any())
    return SubgroupSection([_method(folder, table, m, m == methods[0]) for m in methods], words, least, binary)


def _method(folder: Folder, table: pd.DataFrame, method: str, first: bool) -> MethodGroups:
    mine = table[table["method"] == method]
    names = list(dict.fromkeys(mine["subgroup"]))
    tables = [(name, _lines(folder, mine[mine["subgroup"] == name])) for name in names]
    others = [line for name in names for line in _others(folder, name, mine[mine["subgroup"] == name])]
    return MethodGroups(method, first, _panels(folder, mine, names) if first else [], tables, others)


def _panels(folder: Folder, mine: pd.DataFrame, names: Sequence[str]) -> list[Panel]:
    """For each subgroup its values and its gaps; all values have one axis, and all gaps."""
    primary = mine[mine["metric"] == folder.primary.name]
    panels = []
    for columns, axis, line in (
        (("value", "low", "high"), folder.primary.label, float("nan")),
        (("gap", "gap_low", "gap_high"), f"Difference in {folder.primary.label}", 0.0),
    ):
        shown = primary[primary[columns[0]].notna()]
        ends = shown[list(columns)].to_numpy(dtype=float)
        if not np.isfinite(ends).any():
            continue
        low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
        margin = 0.05 * (high - low) or 0.05
        for name in names:
            rows = [
                (f"{row['group']} (n = {count_text(row['patients'])})",
                 Estimate(*(float(row[column]) for column in columns)), False)
                for row in shown[shown["subgroup"] == name].to_dict("records")
            ]  # fmt: skip
            if rows:
                limits = (low - margin, high + margin)
                kind = f"subgroup {columns[0]}"
                title = name if columns[0] == "value" else f"{name}: gap to the rest"
                panels.append((name, figures.forest(title, rows, axis=axis, limits=limits, line=line, name=kind)))
    return [panel for name in names for own, panel in panels if own == name]


def _others(folder: Folder, name: str, rows: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Group, and its values with intervals by all metrics but the primary one; without groups that are too small."""
    for group, own in rows.groupby("group", sort=False):
        found = {str(row["metric"]): row for row in own.to_dict("records")}
        values = [_value(one, found[one.name]) for one in folder.metrics[1:] if one.name in found]
        if any(interval or value != "–" for value, interval in values):
            yield f"{name}: {group}", values


def _lines(folder: Folder, rows: pd.DataFrame) -> list[GroupLine]:
    lines = []
    for group, own in rows.groupby("group", sort=False):
        found = {str(row["metric"]): row for row in own.to_dict("records")}
        main = found[folder.primary.name] if folder.primary.name in found else next(iter(found.values()))
        few = not np.isfinite(main["patients"])
        counts = (str(main["note"]).replace("fewer than ", "< ").replace(" patients", ""), "–") if few else (
            count_text(main["patients"]), count_text(main["cases"])
        )  # fmt: skip
        calibration = [_plain(found.get(name)) for name in (INTERCEPT, SLOPE)]
        lines.append(GroupLine(str(group), *counts, [_value(folder.primary, main), _gap(folder, main), *calibration]))
    return lines


def _value(metric: Measure, row: Row) -> tuple[str, str]:
    text = metric.text
    if not np.isfinite(row["value"]):
        return "–", ""
    return text(row["value"]), f"{text(row['low'])} to {text(row['high'])}" if np.isfinite(row["low"]) else ""


def _gap(folder: Folder, row: Row) -> tuple[str, str]:
    if not np.isfinite(row["gap"]):
        return "–", ""
    return signed(folder.primary, row["gap"]), interval_text(folder.primary, row["gap_low"], row["gap_high"])


def _plain(row: Row | None) -> tuple[str, str]:
    if row is None or not np.isfinite(row["value"]):
        return "–", ""
    value, low, high = (f"{row[name]:.2f}".replace("-", "−") for name in ("value", "low", "high"))
    return value, f"{low} to {high}" if np.isfinite(row["low"]) else ""
