"""Whether the probabilities can be believed at each site, and whether acting on them does more good than harm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from polyclinic.study.drawing import Panel
from polyclinic.study.report import figures
from polyclinic.study.report.answer import headline
from polyclinic.study.report.folder import Folder, of_run

#: Name in ``calibration.csv`` of the row in which all sites stand together.
TOGETHER = "all"


@dataclass(frozen=True)
class Trust:
    """Calibration of one method at each site.

    Attributes:
        method: its label.
        open: whether it is shown at once.
        rows: site, cases, positive ones, intercept with interval, slope with interval; texts.
        expected: what a new hospital may expect of intercept and slope; empty where nothing can be said.
    """

    method: str
    open: bool
    rows: list[tuple[str, str, str, str, str]]
    expected: str


@dataclass(frozen=True)
class Trusted:
    """The part of the section on calibration: a table a method, and decision curves a site of the methods compared."""

    methods: list[Trust]
    decisions: list[Panel]


def trusted(folder: Folder) -> Trusted | None:
    """What ``calibration.csv`` and ``decisions.csv`` say; None without them."""
    table, best = of_run(folder.calibration), headline(folder)
    known = [method for method in folder.methods if method in set(table["method"])]
    if not known or best is None:
        return None
    first = [best.method] if best.method in known else []
    order = [*first, *(method for method in known if method not in first)]
    methods = [_trust(table[table["method"] == method], method, method == order[0]) for method in order]
    shown = [*first, *(m for m in folder.baselines.values() if m in known and m not in first)]
    return Trusted(methods, figures.decisions(of_run(folder.decisions), shown or order[:1], folder.scored))


def _trust(table: pd.DataFrame, method: str, first: bool) -> Trust:
    rows = table.to_dict("records")
    together = next((row for row in rows if row["site"] == TOGETHER), None)
    expected = ""
    if together is not None and np.isfinite(together["intercept_expected_low"]):
        parts = [f"an intercept from {_number(together, 'intercept_expected_low')} to "
                 f"{_number(together, 'intercept_expected_high')}"]  # fmt: skip
        if np.isfinite(together["slope_expected_low"]):
            parts.append(
                f"a slope from {_number(together, 'slope_expected_low')} to {_number(together, 'slope_expected_high')}"
            )
        expected = " and ".join(parts)
    texts = [
        ("All sites" if row["site"] == TOGETHER else str(row["site"]), f"{row['cases']:.0f}", f"{row['positive']:.0f}",
         _text(row, "intercept"), _text(row, "slope"))
        for row in rows
    ]  # fmt: skip
    return Trust(method, first, texts, expected)


def _text(row: Mapping[Hashable, Any], name: str) -> str:
    if not np.isfinite(row[name]):
        return "–"
    ends = f" ({_number(row, f'{name}_low')} to {_number(row, f'{name}_high')})"
    return _number(row, name) + (ends if np.isfinite(row[f"{name}_low"]) else "")


def _number(row: Mapping[Hashable, Any], name: str) -> str:
    return f"{row[name]:.2f}".replace("-", "−")
