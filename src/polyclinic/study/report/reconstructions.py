"""Pictures of reconstructed cases: the image without a network, what was made of it, the truth, and both errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from polyclinic.study.drawing import Panel
from polyclinic.study.pictures import jpeg

#: Part of the pictures -> what stands above it, from left to right.
_TITLES = {
    "zero_filled": "zero-filled", "reconstruction": "reconstructed", "reference": "reference",
    "zero_filled_error": "error, zero-filled", "error": "error, reconstructed",
}  # fmt: skip
_COLOURS = "inferno"
#: Pixels: of the side of a picture at least and at most, above it, between two of them, and beside them for the scale.
_LEAST, _MOST, _ABOVE, _BETWEEN, _BESIDE = 200, 320, 24, 4, 64


def reconstruction(title: str, about: str, parts: Mapping[str, NDArray[Any]]) -> Panel:
    """One row of pictures, as a JPEG.

    Args:
        title: of the panel.
        about: which case it is, for those who can't see it.
        parts: see `polyclinic.site.pictures.reconstruction_pictures`.
    """
    rows, columns = parts["reference"].shape
    wide = int(np.clip(columns, _LEAST, _MOST))
    high = max(round(wide * rows / columns), 1)
    width, height = len(_TITLES) * (wide + _BETWEEN) + _BESIDE, high + _ABOVE
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    for place, (name, text) in enumerate(_TITLES.items()):
        left = place * (wide + _BETWEEN)
        axes = figure.add_axes((left / width, 0, wide / width, high / height))
        axes.set_axis_off()
        colours = _COLOURS if name.endswith("error") else "gray"
        axes.imshow(parts[name], cmap=colours, vmin=0, vmax=255, aspect="auto")
        figure.text((left + wide / 2) / width, 1 - _ABOVE / 2 / height, text, color="white", fontsize=9.5,
                    ha="center", va="center", family="DejaVu Sans")  # fmt: skip
    span = float(parts["span"][0])
    _scale(figure, (1 - (_BESIDE - 6) / width, 0.05 * high / height, 12 / width, 0.9 * high / height), span)
    canvas.draw()
    means = [f"{_percent(span * float(parts[name].mean()) / 255)} {text}"
             for name, text in (("zero_filled_error", "zero-filled"), ("error", "reconstructed"))]  # fmt: skip
    words = f"Mean absolute error in the picture, of the largest value of the image: {' and '.join(means)}."
    data = jpeg(np.asarray(canvas.buffer_rgba())[..., :3])
    alternative = f"{title.partition(',')[0]} test case of {about}: {', '.join(_TITLES.values())}. {words}"
    return Panel(title, Markup('<img src="{}" alt="{}">').format(data, alternative), words)


def _scale(figure: Figure, place: tuple[float, float, float, float], span: float) -> None:
    """What the colours of errors mean."""
    axes = figure.add_axes(place)
    axes.imshow(np.arange(256)[::-1, None], cmap=matplotlib.colormaps[_COLOURS], aspect="auto")
    axes.set_axis_off()
    for height, value in ((1.0, span), (0.0, 0.0)):
        axes.text(1.3, height, _percent(value), transform=axes.transAxes, color="white", fontsize=8,
                  va="top" if height else "bottom", family="DejaVu Sans")  # fmt: skip


def _percent(share: float) -> str:
    """
    >>> _percent(0.1234), _percent(0.000012), _percent(0.0)
    ('12\\xa0%', '0.0012\\xa0%', '0\\xa0%')
    """
    return f"{100 * share:.2g}\u00a0%"
