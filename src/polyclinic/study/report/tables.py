"""The tables of the report."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from polyclinic.study.baselines import BASELINES
from polyclinic.study.kinds import PLAIN, UNSEEN
from polyclinic.study.report import figures
from polyclinic.study.report.answer import ALPHA, p_text, signed
from polyclinic.study.report.figures import Cell
from polyclinic.study.report.folder import CLASS, CROSS, Folder, Measure, of_run
from polyclinic.tasks.metrics import class_metric


@dataclass(frozen=True)
class Score:
    """One cell of the main table."""

    mean: str
    deviation: str
    interval: str
    runs: str
    """In how many of the runs it has a value, where not in all of them."""
    best: bool
    marks: list[tuple[str, str]]
    """Sign and its meaning, e.g. ``("▲S", "better than single, p = 0.012")``, where the difference is beyond chance."""
    differences: list[str]
    """Each difference to a baseline and its corrected p, e.g. ``"S +0.082 (p < 0.001)"``."""


def main_table(folder: Folder, over: str) -> list[tuple[str, list[tuple[str, list[Score | None]]]]]:
    """Groups of rows (method, a cell a metric): methods tested at sites they know, and at sites they do not know."""
    groups = []
    for title, run, methods in (
        ("", PLAIN, folder.methods),
        ("Tested at sites that took no part in training", UNSEEN, folder.unseen),
    ):
        scores = {m: [_score(folder, m, one, over, methods, run) for one in folder.metrics] for m in methods}
        rows = [(method, cells) for method, cells in scores.items() if any(cells)]
        if rows:
            groups.append((title, rows))
    return groups


def _score(
    folder: Folder, method: str, metric: Measure, over: str, methods: list[str], run: str = PLAIN
) -> Score | None:
    row = folder.line(method, metric.name, over, run)
    if row is None:
        return None
    others = [line["mean"] for other in methods if (line := folder.line(other, metric.name, over, run))]
    best = len(others) > 1 and row["mean"] == (max(others) if metric.higher_is_better else min(others))
    marks, differences = [], []
    for other in BASELINES:
        letter = other[0].upper()
        difference, p = (float(row.get(column, np.nan)) for column in (f"vs_{other}", f"p_{other}_adjusted"))
        if not np.isfinite(difference):
            continue
        differences.append(f"{letter} {signed(metric, difference)} (p {p_text(p) if np.isfinite(p) else 'unknown'})")
        if p < ALPHA:
            sign, word = ("▲", "better") if metric.better(difference) else ("▼", "worse")
            marks.append((f"{sign}{letter}", f"{word} than {folder.baselines.get(other, other)}, p {p_text(p)}"))
    deviation = f"± {metric.text(row['deviation'])}" if np.isfinite(row["deviation"]) else ""
    interval = f"{metric.text(row['low'])} to {metric.text(row['high'])}" if np.isfinite(row["low"]) else ""
    runs = len(of_run(folder.results, run)[["seed", "fold"]].drop_duplicates())
    counted = f"in {row['n']:.0f} of {runs} runs" if row.get("n", runs) < runs else ""
    return Score(metric.text(row["mean"]), deviation, interval, counted, bool(best), marks, differences)


def interval_text(metric: Measure, low: float, high: float) -> str:
    """The interval of a difference; empty where there is none."""
    return f"{signed(metric, low)} to {signed(metric, high)}" if np.isfinite(low) and np.isfinite(high) else ""


@dataclass(frozen=True)
class UnseenTable:
    """What it costs to be unseen, by the primary metric.

    Attributes:
        title: over what.
        rows: method, seen, unseen, lost (or gained, with a sign), its interval, and p; texts.
    """

    title: str
    rows: list[tuple[str, str, str, str, str, str]]


def unseen_tables(folder: Folder) -> list[UnseenTable]:
    """For all sites together and over the sites: each method with itself, tested at sites it knows and does not."""
    metric = folder.primary
    found = []
    for over, title in (("all", "All sites together"), ("sites", "Mean over sites")):
        costs = folder.costs_of_unseen
        costs = costs[(costs["over"] == over) & (costs["metric"] == metric.name) & costs["difference"].notna()]
        rows = [_unseen_row(metric, row) for row in costs.to_dict("records")]
        if rows:
            found.append(UnseenTable(title, rows))
    return found


def _unseen_row(metric: Measure, row: dict[Hashable, Any]) -> tuple[str, str, str, str, str, str]:
    sign = 1 if metric.higher_is_better else -1
    ends = sorted(sign * row[end] for end in ("low", "high"))
    lost, low, high = (signed(metric, value).removeprefix("+") for value in (sign * row["difference"], *ends))
    interval = f"{low} to {high}" if np.isfinite(row["low"]) else ""
    p = p_text(row["p_adjusted"]).removeprefix("= ") if np.isfinite(row["p_adjusted"]) else "–"
    return row["method"], metric.text(row["seen"]), metric.text(row["unseen"]), lost, interval, p


@dataclass(frozen=True)
class StructureTable:
    """One metric of each structure: a row a method, a cell a structure."""

    metric: Measure
    rows: list[tuple[str, list[Score | None]]]


def structure_tables(folder: Folder) -> list[StructureTable]:
    """One table a metric where there are several structures, over the predictions of all sites together."""
    tables = []
    for metric in folder.metrics if folder.structures else []:
        names = [class_metric(metric.name, structure) for structure in folder.structures]
        measures = [replace(metric, name=name) for name in names]
        methods = folder.methods
        rows = [(method, [_score(folder, method, one, "all", methods) for one in measures]) for method in methods]
        tables.append(StructureTable(metric, [row for row in rows if any(row[1])]))
    return [table for table in tables if table.rows]


@dataclass(frozen=True)
class Cross:
    """The cross matrix: its rows and columns, its cells, the mean of each row elsewhere, and a sentence."""

    trained: list[str]
    tested: list[str]
    cells: list[list[Cell]]
    elsewhere: list[str]
    ends: tuple[Cell, Cell]
    words: str


def cross_matrix(folder: Folder) -> Cross | None:
    """Rows: the site a model was trained at; columns: the site it was tested at; None without the method ``cross``."""
    rows = of_run(folder.results)
    rows = rows[rows["metric"] == folder.primary.name]
    home = (rows["method"] == folder.baselines.get("single")) & (rows["trained_on"] == rows["tested_on"])
    away = rows["method"].isin(folder.named(CROSS)[:1]) & (rows["tested_on"] != "all")
    if not away.any():
        return None
    trained, tested = (
        [site for site in folder.sites if site in set(rows[home | away][end])] for end in ("trained_on", "tested_on")
    )
    shown = rows[(home | away) & rows["tested_on"].isin(folder.scored)]
    table = shown.pivot_table(index="trained_on", columns="tested_on", values="value", aggfunc="mean")
    values = table.reindex(index=trained, columns=tested).to_numpy(dtype=float)
    if not np.isfinite(values).any():
        return None
    cells = figures.heat(
        values, higher_is_better=folder.primary.higher_is_better, text=lambda value: folder.primary.text(value, 2)
    )
    diagonal = np.array([[site == other for other in tested] for site in trained])
    others = [_mean(row[~at_home]) for row, at_home in zip(values, diagonal, strict=True)]
    words = (
        f"On average a site's own model reaches {folder.primary.text(_mean(values[diagonal]), 2)} "
        f"at home and {folder.primary.text(_mean(values[~diagonal]), 2)} at the other sites."
    )
    finite = values[np.isfinite(values)]
    ends = figures.heat(
        np.array([[finite.min(), finite.max()]]),
        higher_is_better=folder.primary.higher_is_better,
        text=lambda value: folder.primary.text(value, 2),
    )[0]
    return Cross(trained, tested, cells, [folder.primary.text(mean, 2) for mean in others], (ends[0], ends[1]), words)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


ALL_SITES = "All sites"


@dataclass(frozen=True)
class SiteRow:
    """One line of the table of sites; numbers are text, empty where they are not known."""

    site: str
    found: str
    used: str
    unlabelled: str
    """How many of those used have no label or mask; empty where all have one."""
    rejected: str
    reasons: str
    patients: str
    classes: list[tuple[str, float]]
    """Number of cases of each class, and its share of the site's cases."""
    foreground: str
    label: str
    """Mean and deviation of the numbers to be predicted."""
    missing: str
    duplicates: str
    note: str
    """Why the site is not scored by itself, or of which classes it has few; empty for others."""


def site_rows(folder: Folder) -> list[SiteRow]:
    """A row a site and one for all sites together."""
    return rows_of_sites(folder.site_table, folder.classes, folder.scored, folder.finding_sizes)


def rows_of_sites(
    table: pd.DataFrame, classes: list[str], scored: list[str], sizes: Sequence[int] = ()
) -> list[SiteRow]:
    """A row a site and one for all sites together, of a table like ``sites.csv``.

    Args:
        table: a row a site, with a column ``class: NAME`` for each of ``classes``.
        classes: names of the classes, where cases have one.
        scored: the sites that can be scored by themselves.
        sizes: how many of the classes are of each of several findings; empty where all belong together.
    """
    if table.empty:
        return []
    sizes = sizes or [len(classes)]
    known = (*scored, ALL_SITES)
    rows = [_site_row(row["site"], row, classes, known, sizes) for _, row in table.iterrows()]
    if len(table) > 1:
        total = table.select_dtypes("number").sum(min_count=1)
        for column in ("foreground", "label mean", "label deviation", "missing"):
            total[column] = np.nan
        rows.append(_site_row(ALL_SITES, total, classes, known, sizes))
    return rows


def _site_row(
    name: str, row: pd.Series[Any], classes: list[str], scored: tuple[str, ...], sizes: Sequence[int]
) -> SiteRow:
    counts = [row[CLASS + label] for label in classes]
    groups = np.split(np.array(counts, dtype=np.float64), np.cumsum(sizes)[:-1])
    totals = [float(np.nansum(group)) or 1.0 for group in groups for _ in group]
    share, mean = row.get("foreground", np.nan), row.get("label mean", np.nan)
    return SiteRow(
        site=name,
        **{column: count_text(row.get(column, np.nan)) for column in ("found", "used", "rejected", "patients")},
        unlabelled=count_text(row.get("unlabelled", np.nan) or np.nan),
        reasons=row.get("reasons", ""),
        classes=[
            (count_text(count), float(count) / total if np.isfinite(count) else 0.0)
            for count, total in zip(counts, totals, strict=True)
        ],
        foreground=f"{100 * share:.1f}\u00a0%" if np.isfinite(share) else "",
        label=f"{mean:.3g} ± {row['label deviation']:.3g}" if np.isfinite(mean) else "",
        missing=count_text(row.get("missing", np.nan)),
        duplicates=count_text(row.get("duplicates", np.nan)),
        note=row.get("note", "") or ("" if name in scored else "can't be scored by itself"),
    )


def count_text(value: float) -> str:
    """A whole number as such, another with three digits, nothing where it is not a number."""
    if not np.isfinite(value):
        return ""
    return f"{value:,.0f}".replace(",", "\u202f") if float(value).is_integer() else f"{value:.3g}"


@dataclass(frozen=True)
class Cost:
    """Time and traffic of one method; texts with units."""

    method: str
    rounds: str
    seconds: str
    seconds_per_round: str
    slowest: str
    up: str
    down: str


def costs(folder: Folder) -> list[Cost]:
    """Time and traffic of each method, for one fold with one seed, as a mean over folds and seeds.

    Methods tested at unseen sites are left out: their rows hold one training for each site left out.
    """
    rows = []
    table = of_run(folder.rounds)
    for method in ordered(folder.methods, table["method"].unique()):
        mine = table[table["method"] == method]
        runs = mine.groupby(["seed", "fold"])
        rounds = mine.groupby(["seed", "fold", "round"])["seconds"]
        # The pool of all data sends no model to anybody.
        sites = mine[mine["site"] != "pool"].groupby(["seed", "fold", "site"])
        rows.append(
            Cost(
                method=method,
                rounds=count_text(round(float(runs["round"].nunique().mean()), 1)),
                seconds=seconds_text(float(runs["seconds"].sum(min_count=1).mean())),
                seconds_per_round=seconds_text(float(rounds.sum(min_count=1).mean())),
                slowest=seconds_text(float(rounds.max().mean())),
                up=bytes_text(float(sites["bytes_up"].sum(min_count=1).mean())),
                down=bytes_text(float(sites["bytes_down"].sum(min_count=1).mean())),
            )
        )
    return rows


def ordered(first: list[str], names: Any) -> list[str]:
    """``names`` in the order of ``first``; those not in it come last."""
    return [name for name in first if name in set(names)] + [name for name in names if name not in first]


def seconds_text(seconds: float) -> str:
    """A duration in the unit a person would choose."""
    if not np.isfinite(seconds):
        return "–"
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def bytes_text(size: float) -> str:
    """A size in powers of 1000: bytes, kB, MB or GB."""
    if not np.isfinite(size):
        return "–"
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def confusion(folder: Folder, method: str) -> list[list[Cell]] | None:
    """For more than two classes: of the cases of each class (row), the share called each class (column).

    A case is called the class with the highest score. Cases of all folds, seeds and sites count together.
    """
    size = len(folder.classes)
    if size < 3 or (found := _counted(folder, method) if folder.kept_at_sites else _called(folder, method)) is None:
        return None
    counts = np.zeros((size, size))
    np.add.at(counts, (found["label"].to_numpy(dtype=int), found["called"].to_numpy(dtype=int)), found["cases"])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    return figures.heat(shares, higher_is_better=True, text=lambda share: f"{share:.0f}\u00a0%")


def _called(folder: Folder, method: str) -> pd.DataFrame | None:
    """Of a method's predictions the true class and the one that each is called; None where there are none."""
    rows = of_run(own_predictions(folder))
    rows = rows[rows["method"] == method]
    scores = [f"score_{index}" for index in range(len(folder.classes))]
    if not set(scores) <= set(rows.columns) or rows.empty:
        return None
    rows = rows.dropna(subset=["label", *scores])
    return rows[["label"]].assign(called=rows[scores].to_numpy().argmax(axis=1), cases=1)


def _counted(folder: Folder, method: str) -> pd.DataFrame | None:
    """The same from the sites' counts."""
    rows = of_run(folder.confusion)
    rows = rows[rows["method"] == method]
    return None if rows.empty else rows


def own_predictions(folder: Folder) -> pd.DataFrame:
    """Predictions of each method where it is meant to be used: not those of the cross matrix.

    Where the sites kept them, and counted scores between thresholds, a row a case with a score in between.
    """
    rows = folder.predictions
    if folder.kept_at_sites:
        counts = folder.score_counts
        rows = counts.loc[counts.index.repeat(counts["cases"].to_numpy(dtype=int))].drop(columns="cases")
    return rows[~rows["method"].isin(folder.named(CROSS))]


def nested_rows(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as lines of name and value: ``{"a": {"b": [1, 2]}}`` becomes ``("a › b", "1, 2")``."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            rows += nested_rows(value, f"{before}{name} › ")
        else:
            rows.append((f"{before}{name}", plain(value)))
    return rows


def plain(value: Any) -> str:
    """A value of the study file in plain words: ``{"mlp": {"hidden": [64]}}`` becomes ``mlp (hidden: 64)``.

    Options that are not set are left out.
    """
    if isinstance(value, dict):
        return ", ".join(_option(str(name), inner) for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None or value == "" else str(value)


def networks(study: Mapping[str, Any]) -> str:
    """The network of a study, and those of sites that have another, in plain words; empty where none is named."""
    own = "; ".join(f"{site}: {plain(entry)}" for site, entry in (study.get("networks") or {}).items())
    return plain(study.get("model") or {}) + (f" (other networks at {own})" if own else "")


def _option(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{name} ({plain(value)})" if value else name
    return f"{name}: {plain(value)}"
