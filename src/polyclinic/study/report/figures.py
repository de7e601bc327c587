"""The figures of the report: small panels, that the page lays out side by side or in a column.

What tells things apart is always a shape, a line style or a label too, never colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from polyclinic.study.drawing import (
    BLUE,
    FONT_SIZE,
    GREY,
    INK,
    ORANGE,
    Numbers,
    Panel,
    as_panel,
    plot,
    shorten,
)
from polyclinic.study.pictures import edge_length, jpeg, structure_colour


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map: its text and its colours; ``text`` is a dash where there is no value."""

    text: str
    background: str
    ink: str


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; ``low`` and ``high`` are NaN where one value alone gives no interval."""

    mean: float
    low: float
    high: float


def forest(
    site: str,
    rows: Sequence[tuple[str, Estimate, bool]],
    *,
    axis: str,
    limits: tuple[float, float],
    line: float,
    name: str = "forest",
) -> Panel:
    """One metric at one site: a row a method, the mean as a mark and the interval as a bar.

    Args:
        site: title of the panel.
        rows: label, estimate and whether the method is a reference (drawn as an open square) for each row.
        axis: what the horizontal axis shows.
        limits: ends of the horizontal axis, the same for all sites.
        line: a value to draw as a dashed line through all rows (NaN: none).
        name: what sets this panel apart from others of the same site.
    """
    left = 0.16 + 0.075 * max(len(shorten(label)) for label, _, _ in rows)
    with plot(3.9, 0.62 + 0.2 * len(rows), left, 0.46) as (figure, axes):
        for place, (_, estimate, reference) in enumerate(rows):
            if not np.isfinite(estimate.mean):
                axes.text(limits[0], place, " can't be scored", va="center", color=GREY, style="italic")
                continue
            colour = GREY if reference else BLUE
            axes.plot([estimate.low, estimate.high], [place, place], color=colour, solid_capstyle="butt", zorder=2)
            marker, face = ("s", "white") if reference else ("o", BLUE)
            axes.plot(estimate.mean, place, marker, color=colour, markerfacecolor=face, markersize=5, zorder=3)
        if np.isfinite(line):
            axes.axvline(line, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5))
        axes.set_xlabel(axis, x=1.0, horizontalalignment="right")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_yticks(range(len(rows)), [shorten(label) for label, _, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        words = f"{axis}: " + "; ".join(f"{label} {_words(estimate)}" for label, estimate, _ in rows) + "."
        return as_panel(figure, site, name, words)


def _words(estimate: Estimate) -> str:
    if not np.isfinite(estimate.mean):
        return "can't be scored"
    interval = f" ({_short(estimate.low)} to {_short(estimate.high)})" if np.isfinite(estimate.low) else ""
    return f"{_short(estimate.mean)}{interval}"


def _short(value: float) -> str:
    """Two decimals, or two digits of what is too small for them."""
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def roc(predictions: pd.DataFrame, methods: Sequence[str], reference: str | None) -> list[Panel]:
    """Receiver operating characteristic: a panel a method, the mean curve over folds and seeds with ± 1 deviation.

    Args:
        predictions: columns ``method``, ``seed``, ``fold``, ``label`` (0 or 1) and ``score``.
        methods: which methods, in order.
        reference: a method drawn as a dashed line in the panel of every other method.
    """
    curves = {method: _mean_roc(predictions[predictions["method"] == method]) for method in methods}
    panels = []
    for method in methods:
        curve = curves[method]
        if curve is None:
            continue
        mean, deviation = curve
        with plot(3.1, 2.9, 0.64) as (figure, axes):
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.fill_between(GRID, np.clip(mean - deviation, 0, 1), np.clip(mean + deviation, 0, 1), color="#CFE3F1")
            other = curves.get(reference) if reference not in (None, method) else None
            if other is not None:
                axes.plot(GRID, other[0], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label=reference)
            axes.plot(GRID, mean, color=BLUE, label=shorten(method))
            axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="False alarms (1 − specificity)", ylabel="Sensitivity")
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            axes.grid()
            axes.legend(loc="lower right", frameon=False, fontsize=FONT_SIZE - 1)
            at_tenth = float(np.interp(0.1, GRID, mean))
            words = f"At 10\u00a0% false alarms it finds {100 * at_tenth:.0f}\u00a0% of the positive cases."
            panels.append(as_panel(figure, method, "roc", words))
    return panels


GRID: Numbers = np.linspace(0, 1, 101)


def _mean_roc(predictions: pd.DataFrame) -> tuple[Numbers, Numbers] | None:
    """Mean and deviation of the sensitivity on ``GRID`` over folds and seeds; None where no fold has both classes."""
    from sklearn.metrics import roc_curve

    curves = []
    for _, run in predictions.groupby(["seed", "fold"], sort=True):
        if run["label"].nunique() == 2:
            false, true, _ = roc_curve(run["label"], run["score"])
            curve = np.interp(GRID, false, true)
            curve[0] = 0.0
            curves.append(curve)
    if not curves:
        return None
    return np.mean(curves, axis=0), np.std(curves, axis=0)


def calibration(predictions: pd.DataFrame, methods: Sequence[str]) -> list[Panel]:
    """How often the positive class came true where the model gave each probability: a panel a method, ten equal groups.

    Args:
        predictions: columns ``method``, ``label`` (0 or 1) and ``score`` (probability of the positive class).
        methods: which methods, in order.
    """
    from sklearn.calibration import calibration_curve

    panels = []
    for method in methods:
        rows = predictions[predictions["method"] == method]
        if rows["label"].nunique() != 2 or not rows["score"].between(0, 1).all():
            continue
        observed, expected = calibration_curve(rows["label"], rows["score"], n_bins=10, strategy="quantile")
        with plot(3.1, 2.9, 0.64) as (figure, axes):
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.plot(expected, observed, "o-", color=BLUE, markersize=4.5, linewidth=1.4)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Predicted probability", ylabel="Share that was positive")
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            axes.grid()
            for line in axes.lines:
                line.set_clip_on(False)
            words = (
                f"Predicted {100 * rows['score'].mean():.0f}\u00a0% positive on average, "
                f"{100 * rows['label'].mean():.0f}\u00a0% were."
            )
            panels.append(as_panel(figure, method, "calibration", words))
    return panels


#: Colours and strokes of the methods of a decision curve.
_STROKES = ((BLUE, "-"), (ORANGE, (0, (4, 1.5))), (INK, (0, (1, 1.2))))


def decisions(table: pd.DataFrame, methods: Sequence[str], sites: Sequence[str]) -> list[Panel]:
    """Net benefit of acting from each threshold on: a panel a site, with acting on all and on nobody.

    Args:
        table: columns ``method``, ``site``, ``threshold``, ``net_benefit`` and ``act_on_all``.
        methods: which methods, three at most, in order.
        sites: which sites, in order.
    """
    panels, shown = [], list(methods[: len(_STROKES)])
    of_sites = dict(list(table[table["method"].isin(shown)].groupby("site", sort=False)))
    for site in [site for site in sites if site in of_sites]:
        mine = of_sites[site]
        curves = {method: mine[mine["method"] == method].set_index("threshold") for method in shown}
        curves = {method: curve for method, curve in curves.items() if len(curve)}
        if not curves:
            continue
        first = next(iter(curves.values()))
        top = max(float(curve["net_benefit"].max()) for curve in curves.values())
        top = max(top, float(first["act_on_all"].max()), 0.02)
        with plot(3.1, 2.4, 0.64) as (figure, axes):
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.plot(first.index, first["act_on_all"], color=GREY, linewidth=1.0, label="act on all")
            for (method, curve), (colour, stroke) in zip(curves.items(), _STROKES, strict=False):
                axes.plot(curve.index, curve["net_benefit"], color=colour, linestyle=stroke, label=shorten(method))
            axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.1 * top), xlabel="Act from this probability on",
                     ylabel="Net benefit")  # fmt: skip
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            axes.grid()
            axes.legend(loc="upper right", frameon=False, fontsize=FONT_SIZE - 1)
            method, curve = next(iter(curves.items()))
            better = curve.index[curve["net_benefit"] > np.maximum(curve["act_on_all"], 0) + 1e-12]
            words = f"{method} does more good than acting on all or on nobody at no threshold."
            if len(better):
                words = (
                    f"{method} does more good than acting on all or on nobody at {len(better)} of {len(curve)} "
                    f"thresholds, from {better.min():.2f} to {better.max():.2f}."
                )
            panels.append(as_panel(figure, site, "decision", words))
    return panels


#: Points drawn at most in one scatter plot.
MOST_POINTS = 1500


def scatter(groups: Mapping[str, pd.DataFrame], name: str) -> list[Panel]:
    """Predicted against true numbers: a panel a group, all with the same axes, with the line on which both are equal.

    Args:
        groups: title of the panel -> its cases, columns ``label`` and ``score``; a panel draws ``MOST_POINTS`` cases at
            most, evenly spaced in the order of the rows.
        name: what the numbers are.
    """
    ends = np.array([frame[column].agg(["min", "max"]) for frame in groups.values() for column in ("label", "score")])
    if not np.isfinite(ends).any():
        return []
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    panels = []
    for title, frame in groups.items():
        if frame.empty:
            continue
        few = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, MOST_POINTS).round().astype(int))]
        alpha = float(np.clip(40 / np.sqrt(len(few)) / 10, 0.15, 0.6))
        with plot(3.1, 2.9, 0.64) as (figure, axes):
            axes.plot(limits, limits, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
            axes.plot(few["label"], few["score"], "o", color=BLUE, markersize=3.5, alpha=alpha, markeredgewidth=0)
            axes.set(xlim=limits, ylim=limits, xlabel=f"True {shorten(name)}", ylabel=f"Predicted {shorten(name)}")
            for one in (axes.xaxis, axes.yaxis):
                one.set_major_locator(MaxNLocator(nbins=5))
            axes.grid()
            axes.set_axisbelow(True)
            error = frame["score"] - frame["label"]
            drawn = f" {len(few)} of them are drawn." if len(few) < len(frame) else ""
            side = "high" if error.mean() > 0 else "low"
            words = (
                f"{len(frame)} predictions; on average {abs(error.mean()):.3g} too {side}, and "
                f"{error.abs().mean():.3g} away from the truth.{drawn}"
            )
            panels.append(as_panel(figure, title, "scatter", words))
    return panels


def convergence(
    rounds: pd.DataFrame, methods: Sequence[str], curves: Sequence[tuple[str, str]], *, axis: str, name: str
) -> list[Panel]:
    """Curves over rounds: a panel a method, the mean over folds and seeds with ± 1 deviation as a band.

    Args:
        rounds: columns ``method``, ``seed``, ``fold``, ``round`` (from 0; drawn from 1) and one per curve, a row a run
            and round.
        methods: which methods, in order.
        curves: column and label of each curve: the first is drawn solid, the second dashed.
        axis: what the vertical axis shows, for the alternative text.
        name: what sets these panels apart from others of the same methods.
    """
    columns = [column for column, _ in curves]
    rounds = rounds.assign(round=rounds["round"] + 1)
    grouped = rounds.groupby(["method", "round"], sort=True)[columns]
    means, deviations = grouped.mean(), grouped.std(ddof=0)
    # One method that runs away would press all others flat: its panel says how far it goes.
    tops = means.groupby("method").max().max(axis=1)
    limit = 3 * tops.median() if means.min().min() >= 0 else np.inf
    low, high = float((means - deviations).min().min()), float(min((means + deviations).max().max(), limit))
    margin = 0.06 * (high - low) or 0.1
    panels = []
    for method in methods:
        if method not in means.index.get_level_values("method"):
            continue
        mean, deviation = means.loc[method], deviations.loc[method]
        words = []
        with plot(3.0, 2.2, 0.48) as (figure, axes):
            for (column, label), colour, tint, style in zip(
                curves, (BLUE, ORANGE), ("#CFE3F1", "#F6DCCB"), ("-", (0, (4, 1.5))), strict=False
            ):
                line = mean[column].dropna()
                if line.empty:
                    continue
                width = deviation[column].loc[line.index]
                axes.fill_between(line.index, line - width, line + width, color=tint, linewidth=0)
                marker = "o" if len(line) == 1 else ""
                axes.plot(line.index, line, color=colour, linestyle=style, label=label, marker=marker, markersize=4)
                words.append(f"{label} went from {_short(line.iloc[0])} to {_short(line.iloc[-1])}")
            if not words:
                continue
            axes.set(ylim=(low - margin, high + margin), xlabel="Round")
            if tops[method] > high:
                axes.text(0.5, 1.0, f"up to {tops[method]:.3g} ↑", transform=axes.transAxes, va="top", ha="center")
                words.append(f"cut off, its highest value is {tops[method]:.3g}")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
            axes.grid()
            if len(curves) > 1:
                axes.legend(loc="best", frameon=False, fontsize=FONT_SIZE - 1)
            panels.append(as_panel(figure, method, name, f"{axis}: " + "; ".join(words) + "."))
    return panels


def attention(method: str, bags: Mapping[str, Numbers]) -> Panel:
    """How much of the attention the instances have that count most, of some bags.

    Args:
        method: title of the panel.
        bags: words for each bag, and the weights of its instances, the largest first ``[M]``.
    """
    words = []
    with plot(3.0, 2.2, 0.48) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        for (label, weights), colour, style in zip(
            bags.items(), (GREY, ORANGE, BLUE), ((0, (1, 1.5)), (0, (4, 1.5)), "-"), strict=False
        ):
            shares = np.arange(len(weights) + 1) / len(weights)
            drawn = np.concatenate([[0.0], np.cumsum(weights)])
            axes.plot(shares, drawn, color=colour, linestyle=style, label=f"{label} ({len(weights)})")
            words.append(f"in {label} the first of {len(weights)} instances has {100 * weights[0]:.0f} %")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Instances, those that count most first")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid()
        axes.legend(loc="lower right", frameon=False, fontsize=FONT_SIZE - 1)
        return as_panel(figure, method, "attention", f"Share of the attention: {'; '.join(words)}.")


#: Colours of reference and prediction where there is one structure.
REFERENCE, PREDICTION = "#56D3FF", "#FFB000"
_DASHED = (0, (2.5, 1.5))


def site_shares(before: Numbers, after: Numbers, chance: float) -> Panel:
    """Share of each feature's variance that the site explains, before and after harmonisation.

    Args:
        before: ``[F]``, in the order in which the features are drawn from left to right.
        after: ``[F]``.
        chance: the share to be expected if sites did not matter.
    """
    with plot(3.9, 2.5, 0.62) as (figure, axes):
        place = np.arange(1, len(before) + 1)
        axes.vlines(place, after, before, color="#D5DADF", linewidth=1.0, zorder=1)
        size = 4.5 if len(before) <= 30 else 3.0
        axes.plot(place, before, "s", color=ORANGE, markerfacecolor="white", markersize=size, label="before", zorder=2)
        axes.plot(place, after, "o", color=BLUE, markersize=size, label="after", zorder=3)
        axes.axhline(chance, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label="by chance", zorder=1)
        top = max(float(np.max(before)), float(np.max(after)), chance)
        axes.set(ylim=(0, 1.08 * top), xlim=(0.2, len(before) + 0.8), xlabel="Features, the most dependent first")
        axes.set_ylabel("Explained by site")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0 if top > 0.08 else 1, "\u00a0%"))
        axes.grid(axis="y")
        axes.legend(loc="upper right", frameon=False, fontsize=FONT_SIZE - 1)
        words = (
            f"On average {100 * before.mean():.1f}\u00a0% before, {100 * after.mean():.1f}\u00a0% after; "
            f"{100 * chance:.1f}\u00a0% would be expected by chance."
        )
        return as_panel(figure, "Share of variance explained by the site", "harmonisation", words)


def site_distributions(feature: str, rows: pd.DataFrame, sites: Sequence[str]) -> Panel:
    """One feature at each site: median and quartiles before and after harmonisation, one below the other.

    Args:
        feature: title of the panel.
        rows: columns ``site``, ``stage`` (before, after), ``mean``, ``low``, ``median`` and ``high``; where the
            quartiles are missing, the mean is drawn.
        sites: the sites from top to bottom.
    """
    shown = [site for site in sites if site in set(rows["site"])]
    left = 0.16 + 0.075 * max(len(shorten(site)) for site in shown)
    medians: dict[str, list[float]] = {}
    with plot(3.9, 0.7 + 0.27 * len(shown), left, 0.3) as (figure, axes):
        for stage, colour, shift, marker, face in (
            ("before", ORANGE, -0.17, "s", "white"), ("after", BLUE, 0.17, "o", BLUE)
        ):  # fmt: skip
            own = rows[rows["stage"] == stage].set_index("site").reindex(shown)
            place = np.arange(len(shown)) + shift
            middle = own["median"].fillna(own["mean"]).to_numpy(dtype=float)
            axes.hlines(place, own["low"], own["high"], color=colour, linewidth=1.6, zorder=2)
            axes.plot(middle, place, marker, color=colour, markerfacecolor=face, markersize=4.5, label=stage, zorder=3)
            medians[stage] = [float(np.nanmin(middle)), float(np.nanmax(middle))]
        axes.set(ylim=(len(shown) - 0.4, -0.9))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.set_yticks(range(len(shown)), [shorten(site) for site in shown])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=FONT_SIZE - 1, borderaxespad=0.0)
        ends = {stage: f"{low:.3g} to {high:.3g}" for stage, (low, high) in medians.items()}
        words = f"Medians of the sites from {ends['before']} before, from {ends['after']} after."
        return as_panel(figure, feature, "distribution", words)


def overlay(
    title: str,
    words: str,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    structures: Sequence[str] = (),
    planes: Sequence[int] = (),
) -> Panel:
    """An image with the outline of the reference mask (solid) and of the predicted mask (dashed), as a JPEG.

    Args:
        title: title of the panel.
        words: what the picture shows.
        image: ``[C, H, W]``, one channel (grey) or three (red, green, blue).
        mask: ``[H, W]``, non-zero is foreground; with several ``structures`` their numbers from 1.
        prediction: ``[H, W]``, as the mask.
        structures: names of the structures, where there are several; each has a colour of its own.
        planes: widths of the axial, coronal and sagittal slice of a volume, which stand side by side.
    """
    height, width = mask.shape
    # Around fine structures such as vessels, thick lines would hide what they surround.
    fine = max(edge_length(mask), edge_length(prediction)) > 6 * (height + width)
    pixels, thickness = (560, 1.0) if fine else (400, 2.0)
    if planes:
        pixels, thickness = 1000, 2.2
    figure = Figure(figsize=(pixels / 100, pixels / 100 * height / width), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    pixels_shown = np.moveaxis(image[:3], 0, -1) if image.shape[0] >= 3 else image[0]
    axes.imshow(pixels_shown, cmap="gray", vmin=0, vmax=255, aspect="auto")
    for index in range(max(len(structures), 1)):
        for region, colour, style in ((mask, REFERENCE, "solid"), (prediction, PREDICTION, _DASHED)):
            area = region == index + 1 if structures else region > 0
            _outline(axes, area, structure_colour(index) if structures else colour, style, thickness, halo=not fine)
    _name_planes(axes, planes)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    canvas.draw()
    data = jpeg(np.asarray(canvas.buffer_rgba())[..., :3])
    marked = _marked(mask, prediction, structures, "slices" if planes else "image")
    picture = Markup('<img src="{}" alt="{}">').format(data, f"{words} {marked}")
    return Panel(title, picture, marked)


def _outline(axes: Axes, area: NDArray[np.bool_], colour: str, style: Any, thickness: float, *, halo: bool) -> None:
    from matplotlib.patheffects import withStroke

    if not area.any():
        return
    height, width = area.shape
    # A border of background, so that what reaches the edge of the image has an outline there.
    drawn = axes.contour(
        np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(area, 1).astype(float),
        levels=[0.5], colors=[colour], linewidths=thickness, linestyles=[style],
    )  # fmt: skip
    if halo:
        drawn.set_path_effects([withStroke(linewidth=thickness + 1, foreground="#000000A0")])


def _name_planes(axes: Axes, planes: Sequence[int]) -> None:
    """Thin lines between the slices of a volume, and the name of each."""
    start = 0
    for name, width in zip(("axial", "coronal", "sagittal"), planes, strict=False):
        axes.text(start + 0.02 * width, 0.5, name, color="white", fontsize=16, va="top", family="DejaVu Sans")
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=1)
        start += width


def _marked(mask: NDArray[np.uint8], prediction: NDArray[np.uint8], structures: Sequence[str], where: str) -> str:
    """How much of the picture is marked, in words."""

    def share(region: NDArray[np.bool_]) -> str:
        return f"{100 * np.count_nonzero(region) / region.size:.1f}\u00a0%"

    if not structures:
        return f"Marked by the reference: {share(mask > 0)} of the {where}, by the model: {share(prediction > 0)}."
    each = [
        f"{name} {share(mask == index)} and {share(prediction == index)}"
        for index, name in enumerate(structures, start=1)
    ]
    return f"Marked by the reference and by the model, of the {where}: {', '.join(each)}."


def _luminance(*colour: float) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines; below 0.18 white text reads better than black."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def heat(values: Numbers, *, higher_is_better: bool, text: Callable[[float], str]) -> list[list[Cell]]:
    """Colours for numbers ``[rows, columns]``: the better, the darker. NaN becomes a white cell with a dash."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    colours = matplotlib.colormaps["Blues"]

    def cell(value: float) -> Cell:
        if not np.isfinite(value):
            return Cell("–", "#ffffff", INK)
        share = (value - low) / (high - low) if high > low else 0.5
        red, green, blue, _ = colours(0.04 + 0.86 * (share if higher_is_better else 1 - share))
        dark = _luminance(red, green, blue) < 0.18
        return Cell(text(value), matplotlib.colors.to_hex((red, green, blue)), "#ffffff" if dark else "#16202a")

    return [[cell(float(value)) for value in row] for row in values]
