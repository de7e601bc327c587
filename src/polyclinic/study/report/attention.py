"""The report's section on the instances of bags: how much of the attention goes to how few of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from polyclinic.study.drawing import Numbers, Panel
from polyclinic.study.report import figures
from polyclinic.study.report.folder import Folder, of_run
from polyclinic.study.report.tables import count_text

#: Bags of fewer instances have no attention to share out.
_SEVERAL = 2
#: Which bags are drawn: at these places among all, from the evenest to the one where fewest instances count.
_SHOWN = {"the evenest bag": 0.0, "the median bag": 0.5, "the most uneven bag": 1.0}


@dataclass(frozen=True)
class AttentionLine:
    """What is said of a method; texts.

    Attributes:
        method: its label.
        bags: how many tested bags of two instances or more.
        top: share of the attention that the instance with most of it has, mean over bags.
        half: share of the instances that have half of the attention, mean over bags.
    """

    method: str
    bags: str
    top: str
    half: str


@dataclass(frozen=True)
class AttentionSection:
    """A panel and a line for each method."""

    panels: list[Panel]
    lines: list[AttentionLine]


def attended(folder: Folder) -> AttentionSection | None:
    """The section; None where no network said how much instances count."""
    rows = folder.attention
    if not len(rows):
        return None
    panels, lines = list[Panel](), list[AttentionLine]()
    for method in folder.methods:
        bags = _bags(of_run(rows[rows["method"] == method]))
        if not bags:
            continue
        order = sorted(bags, key=lambda weights: (_half(weights), len(weights)), reverse=True)
        shown = {words: order[round(place * (len(order) - 1))] for words, place in _SHOWN.items()}
        panels.append(figures.attention(method, shown))
        top, half = np.mean([bag[0] for bag in bags]), np.mean([_half(bag) for bag in bags])
        lines.append(AttentionLine(method, count_text(len(bags)), f"{100 * top:.0f} %", f"{100 * half:.0f} %"))
    return AttentionSection(panels, lines) if lines else None


def _bags(rows: pd.DataFrame) -> list[Numbers]:
    """The weights of each bag, the largest first; rows of a bag follow one another, and begin with instance 1."""
    starts = np.flatnonzero(rows["instance"].to_numpy() == 1)
    every = np.split(rows["weight"].to_numpy(dtype=float), starts[1:])
    return [np.sort(bag)[::-1] for bag in every if len(bag) >= _SEVERAL and np.isfinite(bag).all()]


def _half(weights: Numbers) -> float:
    """Share of the instances that together have half of the attention."""
    return float((np.searchsorted(np.cumsum(weights), 0.5 * weights.sum()) + 1) / len(weights))
