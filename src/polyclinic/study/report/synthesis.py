"""The report's section on cases that a method made: whether they are copies of patients' cases, and some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from polyclinic.study.drawing import Panel, png
from polyclinic.study.kinds import RUN, titled
from polyclinic.study.report.folder import Folder

#: Sides of a pixel of a made image, in the page's file.
_ENLARGED = 2


@dataclass(frozen=True)
class CopiedLine:
    """One method at one site, over all of its trainings; texts.

    Attributes:
        method, site: names.
        trainings: how many there were.
        nearer: made cases below the limit, of all made ones.
        expected: how many there would be if they were no copies.
        chance: the smallest chance of a training.
        suspected: trainings whose made cases may be copies.
    """

    method: str
    site: str
    trainings: int
    nearer: str
    expected: str
    chance: str
    suspected: int


@dataclass(frozen=True)
class MadeSection:
    """What the section shows: a line a method and site, and pictures of methods that are not suspected."""

    lines: list[CopiedLine]
    panels: list[Panel]


def made_cases(folder: Folder) -> MadeSection | None:
    """The section; None where no method made cases."""
    if folder.memorisation.empty:
        return None
    lines = list[CopiedLine]()
    for (method, run, site), rows in folder.memorisation.groupby(["method", RUN, "site"], sort=False):
        lines.append(CopiedLine(
            titled(str(method), str(run)), str(site), len(rows),
            f"{rows['nearer'].sum():.0f} of {rows['made'].sum():.0f}",
            f"{rows['expected'].sum():.0f}", f"{rows['chance'].min():.2g}", int((rows["passed"] == 0).sum()),
        ))  # fmt: skip
    panels = [_panel(method, picture) for method, picture in folder.made_pictures().items()]
    return MadeSection(lines, panels)


def _panel(method: str, picture: np.ndarray) -> Panel:
    pixels = picture.transpose(1, 2, 0).repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
    words = f"Images that the generator of {method} made, a row for each class."
    return Panel(method, Markup('<img src="{}" alt="{}">').format(png(np.ascontiguousarray(pixels)), words), words)
