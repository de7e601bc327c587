"""The report's section on cases that a method made: whether they are copies of patients' cases, and some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from polyclinic.study.drawing import Panel
from polyclinic.study.kinds import RUN, titled
from polyclinic.study.pictures import png
from polyclinic.study.report.folder import Folder

#: Sides of a pixel of a made image, in the page's file.
_ENLARGED = 2


@dataclass(frozen=True)
class CopiedLine:
    """One method at one site, over all of its trainings; texts.

    Attributes:
        method, site: names.
        masks: how many masks of patients the site gave to the server in a training, at most; a dash for none.
        trainings: how many there were.
        nearer: made cases below the limit, of all made ones.
        expected: how many there would be if they were no copies.
        chance: the smallest chance of a training.
        suspected: trainings whose made cases may be copies.
    """

    method: str
    site: str
    masks: str
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

    @property
    def from_masks(self) -> bool:
        """Whether any method made images from masks."""
        return any(line.masks != "–" for line in self.lines)


def made_cases(folder: Folder) -> MadeSection | None:
    """The section; None where no method made cases."""
    if folder.memorisation.empty:
        return None
    lines = list[CopiedLine]()
    for (method, run, site), rows in folder.memorisation.groupby(["method", RUN, "site"], sort=False):
        lines.append(CopiedLine(
            titled(str(method), str(run)), str(site), str(int(rows["masks"].max()) or "–"), len(rows),
            f"{rows['nearer'].sum():.0f} of {rows['made'].sum():.0f}",
            f"{rows['expected'].sum():.0f}", f"{rows['chance'].min():.2g}", int((rows["passed"] == 0).sum()),
        ))  # fmt: skip
    table = folder.memorisation
    masked = set(table["method"][table["masks"] > 0])
    panels = [_panel(method, picture, method in masked) for method, picture in folder.made_pictures().items()]
    return MadeSection(lines, panels)


def _panel(method: str, picture: np.ndarray, masked: bool) -> Panel:
    pixels = picture.transpose(1, 2, 0).repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
    each = "each above the mask of a patient that it was made from" if masked else "a row for each class"
    words = f"Images that the generator of {method} made, {each}."
    return Panel(method, Markup('<img src="{}" alt="{}">').format(png(np.ascontiguousarray(pixels)), words), words)
