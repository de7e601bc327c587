"""The comparison within sites: a table of all methods against the baselines, and each site's own difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polyclinic.study.baselines import BASELINES
from polyclinic.study.drawing import Panel
from polyclinic.study.kinds import PLAIN, UNSEEN
from polyclinic.study.report import figures
from polyclinic.study.report.answer import ALPHA, headline, p_text, signed
from polyclinic.study.report.figures import Estimate
from polyclinic.study.report.folder import Folder, Line
from polyclinic.study.report.tables import interval_text

#: Standard errors from a difference to the ends of its 95 % interval.
Z95 = 1.96


@dataclass(frozen=True)
class Versus:
    """All methods against one of them, by the primary metric.

    Attributes:
        title: against whom.
        open: whether it is shown at once.
        rows: method, a sign for what is beyond chance (``▲`` or ``▼``), difference, its interval, p, what a new
            hospital may expect, and how far sites lie apart (τ, I²); texts.
        panel: each site's own difference of the best method, and all together; None where there is nothing to show.
    """

    title: str
    open: bool
    rows: list[tuple[str, str, str, str, str, str, str]]
    panel: Panel | None


def within(folder: Folder) -> list[Versus]:
    """A table for each baseline, and where it was tested at sites left out of training another."""
    found = []
    for run in (PLAIN, UNSEEN):
        methods = folder.methods if run == PLAIN else folder.unseen
        for name in BASELINES:
            label = folder.baselines.get(name)
            rows = [(m, row) for m in methods if (row := folder.compared(m, label, run)) is not None]
            if label is None or not rows:
                continue
            title = label if run == PLAIN else f"{label}, at sites that took no part in training"
            found.append(Versus(title, run == PLAIN, [_row(folder, *row) for row in rows], _panel(folder, label, run)))
    return found


def _row(folder: Folder, method: str, row: Line) -> tuple[str, str, str, str, str, str, str]:
    metric, sign = folder.primary, ""
    if row["p_adjusted"] < ALPHA:
        sign = "▲" if metric.better(row["difference"]) else "▼"
    p = f"{p_text(row['p_adjusted']).removeprefix('= ')}" if np.isfinite(row["p_adjusted"]) else "–"
    apart = "–"
    if np.isfinite(row["between"]):
        apart = f"{metric.text(np.sqrt(row['between']))} ({100 * row['unlike']:.0f}\u00a0%)"
    return (
        method, sign, signed(metric, row["difference"]), interval_text(metric, row["low"], row["high"]), p,
        interval_text(metric, row["expected_low"], row["expected_high"]) or "–", apart,
    )  # fmt: skip


def _panel(folder: Folder, versus: str, run: str) -> Panel | None:
    """Each site's own difference between the best method and another."""
    best = headline(folder)
    if best is None or best.method == versus or (row := folder.compared(best.method, versus, run)) is None:
        return None
    table = folder.site_comparisons
    keys = (table["method"] == best.method) & (table["versus"] == versus) & (table["run"] == run)
    sites = table[keys & (table["metric"] == folder.primary.name)].to_dict("records")
    rows = [
        *((one["site"], Estimate(one["difference"], *_ends(one["difference"], one["error"])), True) for one in sites),
        ("all sites", Estimate(row["difference"], row["low"], row["high"]), False),
    ]
    if np.isfinite(row["expected_low"]):
        rows.append(("a new hospital", Estimate(row["difference"], row["expected_low"], row["expected_high"]), False))
    ends = np.array(list(_finite(one for _, one, _ in rows)))
    margin = 0.05 * float(np.ptp(ends)) or 0.05
    limits = (float(ends.min()) - margin, float(ends.max()) + margin)
    axis = f"{folder.primary.label}: {best.method} minus {versus}"
    return figures.forest(
        f"{best.method} against {versus}", rows, axis=axis, limits=limits, line=0.0, name=f"within {run}"
    )


def _ends(difference: float, error: float) -> tuple[float, float]:
    return difference - Z95 * error, difference + Z95 * error


def _finite(rows: Iterator[Estimate]) -> Iterator[float]:
    for one in rows:
        yield from (value for value in (one.mean, one.low, one.high) if np.isfinite(value))
