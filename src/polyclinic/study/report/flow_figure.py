"""The picture of the flow of cases: boxes from top to bottom, what drops out to the right."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from polyclinic.study.drawing import BLUE, FONT_SIZE, GREY, INK, Panel, as_panel, plot

#: Reasons shown by themselves; the table has all.
MOST_REASONS = 4
#: Inches: width of the picture, height of a line of text, and the gap between boxes.
_WIDTH, _LINE, _GAP = 4.3, 0.165, 0.24
#: Inches: width of the boxes on the left and on the right, and letters that fit into one on the right.
_LEFT, _RIGHT, _LETTERS = 1.95, 1.95, 30


def flow_figure(
    *,
    found: str,
    rejected: Sequence[tuple[str, str]],
    used: str,
    unlabelled: str,
    parts: Sequence[tuple[str, str, str]],
    folds: int,
) -> Panel:
    """Found, rejected, used, and the parts of the split.

    Args:
        found, used: what stands in these boxes.
        rejected: reason and number, the most frequent first.
        unlabelled: number of cases without a label; empty without any.
        parts: name, cases and patients (may be empty) of each part.
        folds: how many folds the numbers of the parts are of.
    """
    out = _reasons(rejected)
    without = [f"{unlabelled} without a label:", "only trained on"] if unlabelled else []
    first, second = _lines("Found", found, 22), _lines("Used", used, 22)
    heights = [max(_height(first), _height(out)), max(_height(second), _height(without))]
    split = f"In each of {folds} folds" if folds > 1 else ""
    last = 0.30 + 3 * _LINE if parts else 0.0
    total = sum(heights) + 2 * _GAP + last + (0.2 if split else 0.0) + 0.1
    with plot(_WIDTH, total, 0.0, 0.0) as (figure, axes):
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, _WIDTH), ylim=(total, 0))
        axes.set_axis_off()
        top = 0.05
        for lines, aside, height in ((first, out, heights[0]), (second, without, heights[1])):
            own = _height(lines)
            _box(axes, 0.05, top, _LEFT, own, lines, BLUE)
            if aside:
                _box(axes, _WIDTH - _RIGHT - 0.05, top, _RIGHT, _height(aside), aside, GREY)
                middle = top + min(own, _height(aside)) / 2
                _arrow(axes, (0.05 + _LEFT, middle), (_WIDTH - _RIGHT - 0.05, middle))
            _arrow(axes, (0.05 + _LEFT / 2, top + own), (0.05 + _LEFT / 2, top + height + _GAP))
            top += height + _GAP
        if split:
            axes.text(0.05, top + 0.09, split, va="center", color=INK, fontsize=FONT_SIZE - 1, style="italic")
            top += 0.2
        width = (_WIDTH - 0.1 - 0.2) / 3
        for place, (name, cases, patients) in enumerate(parts):
            lines = [name, f"{cases} cases", *([patients] if patients else [])]
            _box(axes, 0.05 + place * (width + 0.1), top, width, last - 0.1, lines, BLUE)
        words = f"Found {found}; rejected {', '.join(out) if rejected else 'none'}; used {used}" + "".join(
            f"; {name.lower()} {cases} cases" for name, cases, _ in parts
        )
        return as_panel(figure, "All sites together", "flow", f"{words}.")


def _reasons(rejected: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of the box of what was rejected."""
    if not rejected:
        return ["Rejected: none"]
    lines = ["Rejected"]
    for reason, count in rejected[:MOST_REASONS]:
        lines += wrap(f"{count} {reason}", _LETTERS, subsequent_indent="  ", max_lines=2, placeholder=" …")
    more = len(rejected) - MOST_REASONS
    return [*lines, f"and {more} more reason{'' if more == 1 else 's'}"] if more > 0 else lines


def _lines(title: str, text: str, width: int) -> list[str]:
    return [title, *wrap(text, width)]


def _height(lines: Sequence[str]) -> float:
    return 0.14 + _LINE * len(lines) if lines else 0.0


def _box(axes: Axes, left: float, top: float, width: float, height: float, lines: Sequence[str], colour: str) -> None:
    axes.add_patch(Rectangle((left, top), width, height, facecolor="white", edgecolor=colour, linewidth=1.1))
    for number, line in enumerate(lines):
        heavy = "bold" if number == 0 else "normal"
        place = top + 0.07 + _LINE * (number + 0.5)
        axes.text(left + 0.09, place, line, va="center", color=INK, fontsize=FONT_SIZE - 0.5, fontweight=heavy)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=GREY, linewidth=1.0,
                                   shrinkA=0, shrinkB=0))  # fmt: skip
