"""What all pages draw plots with: small panels, each one inline SVG.

Panels are drawn about as wide as a phone, so that their text keeps its size on every screen. Colours are of the
Okabe-Ito palette (Okabe and Ito 2008, "Color universal design"). The same values give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8A939C", "#27313B"
FONT_SIZE = 9.0
#: Labels longer than this are shortened in the middle, so that the plot keeps its room.
LONGEST_LABEL = 26

STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.formatter.limits": (-6, 9),  # a power of ten at the end of an axis would stand in its title
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": "#E3E7EB",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Panel:
    """One small figure: its title, its picture (SVG, or an ``img`` with a data URI) and the same in plain words."""

    title: str
    picture: Markup
    words: str


def shorten(label: str) -> str:
    """``label`` with its middle left out if it is longer than ``LONGEST_LABEL``."""
    if len(label) <= LONGEST_LABEL:
        return label
    half = (LONGEST_LABEL - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


@contextmanager
def plot(width: float, height: float, left: float, bottom: float = 0.5) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``width`` × ``height`` inches with one plot in it, ``left`` and ``bottom`` inches from the edges."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        size = [left / width, bottom / height, (width - left - 0.14) / width, (height - bottom - 0.1) / height]
        yield figure, figure.add_axes((size[0], size[1], size[2], size[3]))


#: Where figures are kept as pictures, too, while someone asks for that.
_PICTURES: ContextVar[list[tuple[str, NDArray[np.uint8]]] | None] = ContextVar("pictures", default=None)


@contextmanager
def pictured() -> Iterator[list[tuple[str, NDArray[np.uint8]]]]:
    """Gives all figures that are drawn within the context: kind and title, and the picture ``[H, W, 3]``."""
    found = list[tuple[str, NDArray[np.uint8]]]()
    before = _PICTURES.set(found)
    try:
        yield found
    finally:
        _PICTURES.reset(before)


def as_panel(figure: Figure, title: str, kind: str, words: str) -> Panel:
    """The figure as a panel whose ``svg`` scales with the page, uses the page's fonts, and is read out as ``words``.

    ``kind`` and ``title`` together are unlike those of any other figure, so that the identifiers inside the elements
    of a page differ.
    """
    if (kept := _PICTURES.get()) is not None:
        figure.canvas.draw()
        kept.append((f"{kind}/{title}", np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()))  # type: ignore[attr-defined]
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"{kind} {title}"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = re.sub(r"'DejaVu Sans'", "inherit", text)
    text = re.sub(r' d="[^"]*"', lambda match: re.sub(r"(\.\d)\d+", r"\1", match[0]), text)
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    inside = text[text.index(">", text.index("<svg")) + 1 :]
    start = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], f"{title}. {words}")
    return Panel(title, start + Markup(inside), words)  # noqa: S704 (matplotlib escapes all text)
