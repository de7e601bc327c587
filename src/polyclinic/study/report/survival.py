"""How long the test cases of each site live, and whether those of higher predicted risk live shorter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from polyclinic.study.columns import ALL, HIGHER, LOWER
from polyclinic.study.drawing import BLUE, FONT_SIZE, ORANGE, Panel, as_panel, plot
from polyclinic.study.kinds import PLAIN, RUN
from polyclinic.study.report.answer import headline, p_text
from polyclinic.study.report.folder import Folder

#: Colour, band, stroke and name of each curve.
_LOOKS = {
    ALL: (BLUE, "#CFE3F1", "-", "all cases"),
    HIGHER: (ORANGE, "#F6DCCB", "-", "higher risk"),
    LOWER: (BLUE, "#CFE3F1", (0, (4, 1.5)), "lower risk"),
}


@dataclass(frozen=True)
class Survived:
    """How long patients live.

    Attributes:
        sites: curves of each site.
        methods: curves of each method's two groups.
        shown: where sites keep their predictions, the one method whose groups at each site are ``methods``; else empty.
        untold: sites of which nothing is told.
        tests: each method's test in numbers.
    """

    sites: list[Panel]
    methods: list[Panel]
    shown: str
    untold: list[str]
    tests: list[tuple[str, list[str]]]


def survived(folder: Folder) -> Survived | None:
    """What ``survival.csv`` and ``log_rank.csv`` say; None without them."""
    curves, unit, found = folder.survival, folder.time_unit, headline(folder)
    best = "" if found is None else found.method
    if curves.empty:
        return None
    end = float(curves["time"].max())
    whole = {site: curves[(curves["site"] == site) & (curves["group"] == ALL)] for site in folder.sites}
    sites = [_panel(site, [one], unit, end, "survival") for site, one in whole.items() if len(one) > 1]
    methods, tests, shown = [], [], ""
    for row in folder.log_rank.to_dict("records"):
        title = folder.titles.get((row["method"], row[RUN]))
        mine = curves[(curves["method"] == row["method"]) & (curves[RUN] == row[RUN])]
        if title is None:
            continue
        p = "–" if np.isnan(row["p"]) else p_text(row["p"])
        words = f"Log-rank test stratified by site: p {p}." if np.isfinite(row["p"]) else ""
        if (mine["site"] == ALL).any():
            methods += _groups(title, mine, unit, end, words)
        elif row["method"] == best and row[RUN] == PLAIN:
            shown, of_sites = title, mine.groupby("site", sort=False)
            methods += [one for site, own in of_sites for one in _groups(str(site), own, unit, end)]
        numbers = (f"{row['observed']:.0f}", f"{row['expected']:.1f}", f"{row['statistic']:.1f}", p.removeprefix("= "))
        tests.append((title, [f"{row['higher']:.0f} of {row['cases']:.0f}", *numbers]))
    untold = [site for site, one in whole.items() if len(one) < 2]
    return Survived(sites, methods, shown if methods else "", untold, tests) if sites or methods or tests else None


def _groups(title: str, curves: pd.DataFrame, unit: str, end: float, words: str = "") -> list[Panel]:
    """A picture of the two groups, if something of them is told."""
    groups = [one for name in (HIGHER, LOWER) if len(one := curves[curves["group"] == name]) > 1]
    return [_panel(title, groups, unit, end, "risk groups", words)] if groups else []


def _panel(title: str, curves: Sequence[pd.DataFrame], unit: str, end: float, kind: str, more: str = "") -> Panel:
    words = []
    with plot(3.1, 2.5, 0.64) as (figure, axes):
        for curve in curves:
            colour, band, stroke, name = _LOOKS[str(curve["group"].iloc[0])]
            low, high = (curve[end].fillna(curve["survival"]) for end in ("low", "high"))
            axes.fill_between(curve["time"], low, high, color=band, alpha=0.7, linewidth=0)
            axes.plot(
                curve["time"], curve["survival"], color=colour, linestyle=stroke, marker="o", markersize=2.5, label=name
            )
            words.append(_words(curve, name if len(curves) > 1 else "", unit))
        axes.set(xlim=(0, end * 1.02), ylim=(0, 1.02), xlabel=f"Time in {unit}", ylabel="Without the event")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid()
        if len(curves) > 1:
            axes.legend(loc="upper right", frameon=False, fontsize=FONT_SIZE - 1)
        return as_panel(figure, title, kind, " ".join(filter(None, [more, *words])))


def _words(curve: pd.DataFrame, name: str, unit: str) -> str:
    """How many there were, and how many were left without the event at the last time that is told."""
    last = curve.iloc[-1]
    cases = int(curve["at_risk"].iloc[0])
    whose = f"{name[0].upper()}{name[1:]}: of {cases} cases" if name else f"Of {cases} cases"
    return f"{whose} {100 * last['survival']:.0f}\u00a0% are without the event at {last['time']:g} {unit}."
