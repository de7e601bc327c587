"""Histograms of the sites, one above the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from polyclinic.study.drawing import BLUE, GREY, INK, Numbers, Panel, as_panel, plot, shorten

_TINT, _BINS, NO_VALUE = "#CFE3F1", 64, "no value"
#: The axis leaves out values farther from the median of their site than so many widths of most of its values.
_FAR = 3.0


def ridges(title: str, rows: Mapping[str, Numbers], *, limits: tuple[float, float] | None = None, kind: str) -> Panel:
    """Histograms of the sites, one above the other on one axis; of two values, bars with the share of the higher one.

    Each histogram is scaled to its own height, so that small sites are seen as well as large ones. A line marks the
    median. Without ``limits`` the axis leaves out far values; the panel's words count them.

    Args:
        title: of the panel.
        rows: site -> values; those that are not finite are left out.
        limits: ends of the axis.
        kind: what sets this panel apart from others of the same title.
    """
    rows = {site: values[np.isfinite(values)] for site, values in rows.items()}
    pooled = np.concatenate(list(rows.values()))
    two = np.unique(pooled) if limits is None else pooled
    edges = np.array([0.0, 1.0]) if len(two) == 2 else _edges(rows.values(), limits)
    left = 0.16 + 0.075 * max(len(shorten(site)) for site in rows)
    height = 0.36 if len(rows) <= 8 else 0.26
    with plot(3.9, 0.5 + height * len(rows), left, 0.3) as (figure, axes):
        for place, values in enumerate(rows.values()):
            base = len(rows) - 1 - place
            axes.axhline(base, color=GREY, linewidth=0.6)
            if not len(values):
                axes.text(edges[0], base + 0.15, f" {NO_VALUE}", color=GREY, style="italic")
            elif len(two) == 2:
                axes.barh(base + 0.42, (values == two[1]).mean(), 0.6, color=_TINT, edgecolor=BLUE, linewidth=0.9)
            else:
                _ridge(axes, values, edges, base)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(-0.08, len(rows) + 0.05))
        axes.set_yticks(range(len(rows)), [shorten(site) for site in reversed(rows)], va="bottom")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=edges[-1] - edges[0] >= 4 and _whole(pooled)))
        axes.ticklabel_format(axis="x", useOffset=False, scilimits=(-4, 6))
        if len(two) == 2:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0, "\u00a0%"))
            axes.set(xlim=(0, 1.06), xticks=[0, 0.25, 0.5, 0.75, 1])
            shares = {site: _mean((values == two[1]).astype(float)) for site, values in rows.items()}
            words = _range(f"Share of the value {two[1]:.4g}", shares, ".1%")
        else:
            outside = int(((pooled < edges[0]) | (pooled > edges[-1])).sum())
            beyond = f" {outside} of {len(pooled)} values lie beyond the axis." if outside else ""
            medians = {site: float(np.median(values)) if len(values) else np.nan for site, values in rows.items()}
            words = _range("Median", medians) + beyond
        return as_panel(figure, title, kind, words)


def _ridge(axes: Axes, values: Numbers, edges: Numbers, base: int) -> None:
    """One histogram that stands on ``base``."""
    heights = base + 0.92 * _heights(values, edges)
    axes.stairs(heights, edges, baseline=base, fill=True, color=_TINT)
    axes.stairs(heights, edges, baseline=base, color=BLUE, linewidth=0.9)
    middle = float(np.median(values))
    if edges[0] <= middle <= edges[-1]:
        axes.plot([middle, middle], [base, base + 0.5], color=INK, linewidth=1.4)


def _range(what: str, middles: Mapping[str, float], form: str = ".4g") -> str:
    """The lowest and the highest of the sites' values in words, and the sites without one (NaN)."""
    known = {site: value for site, value in middles.items() if np.isfinite(value)}
    lost = [site for site in middles if site not in known]
    end = f" {', '.join(lost)}: {NO_VALUE}." if lost else ""
    if not known:
        return end.strip()
    low, high = min(known, key=lambda site: known[site]), max(known, key=lambda site: known[site])
    if len(known) == 1:
        return f"{what}: {known[low]:{form}}.{end}"
    return f"{what}: from {known[low]:{form}} ({shorten(low)}) to {known[high]:{form}} ({shorten(high)}).{end}"


def _whole(values: Numbers) -> bool:
    return bool((values == np.rint(values)).all())


def _edges(rows: Collection[Numbers], limits: tuple[float, float] | None) -> Numbers:
    """Edges of the cells of a histogram: one a value for few whole numbers, else even ones.

    Without ``limits`` they reach over what is usual at each of the sites, so that no site lies beyond them.
    """
    rows = [values for values in rows if len(values)]
    if not rows:
        return np.array([0.0, 1.0])
    if limits is None:
        low, high = _ends(rows)
        if all(_whole(values) for values in rows) and high - low <= _BINS / 2:
            return np.arange(low - 0.5, high + 1)
        limits = (low, high)
    width = limits[1] - limits[0] or abs(limits[0]) * 1e-3 or 1.0
    cases = np.mean([len(values) for values in rows])
    return np.linspace(limits[0], limits[0] + width, min(_BINS, max(20, int(2 * np.sqrt(cases)))) + 1)


def _ends(rows: Collection[Numbers]) -> tuple[float, float]:
    """From the lowest to the highest value of all sites, without those far from the others of their site."""
    ends = []
    for values in rows:
        reach = max(_FAR * (np.percentile(values, share) - np.percentile(values, 100 - share)) for share in (75, 90))
        middle = np.median(values)
        near = values[np.abs(values - middle) <= reach] if reach > 0 else values
        ends.append((near.min(), near.max()))
    lows, highs = zip(*ends, strict=True)
    return float(min(lows)), float(max(highs))


def _heights(values: Numbers, edges: Numbers) -> Numbers:
    """Heights from 0 to 1. A peak far above all others is cut off, so that the others can be seen."""
    counts = np.histogram(values, edges)[0].astype(float)
    ordered = np.sort(counts)[::-1]
    top = min(ordered[0], 3 * ordered[2]) if len(ordered) > 2 and ordered[2] > 0 else ordered[0]
    heights: Numbers = np.minimum(counts / max(top, 1.0), 1.0)
    return heights


def _mean(values: Numbers) -> float:
    return float(values.mean()) if len(values) else float("nan")
