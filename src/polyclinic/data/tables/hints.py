"""What a table says of masks that are not there: boxes around structures, and names of structures that are present."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.spec import DataSpec

#: In a cell: there is no structure.
NOTHING = "none"
_NUMBERS = 4
#: Of pixels: what is more than these comes of shares of a side, or of 32 bits, and 16.0000001 would be beyond an image.
_DECIMALS = 3

#: A structure's number (1, 2, ...), and x0, y0, x1, y1.
Box = tuple[int, float, float, float, float]


class HintError(ValueError):
    """A cell can't be understood; says why, without its text."""


@dataclass(frozen=True)
class Hint:
    """What is known of a mask that is not there.

    Attributes:
        boxes: in pixels of the image as it is to be looked at. A box of x0 y0 x1 y1 has the pixels from x0 up to x1,
            which is not in it, and likewise down from the top.
        anywhere: structures that are present, and of which no box says where.
    """

    boxes: tuple[Box, ...] = ()
    anywhere: frozenset[int] = frozenset()


def hint_kinds(cells: pd.DataFrame, spec: DataSpec) -> npt.NDArray[np.object_]:
    """What each row has: ``mask``, else ``box``, else ``label``, else nothing, "". Object ``[N]``."""
    found = np.full(len(cells), "", dtype=object)
    named = spec.label if spec.mask is not None else None
    for kind, column in (("label", named), ("box", spec.box), ("mask", spec.mask_column)):
        if column is not None:
            found[cells[column].notna().to_numpy()] = kind
    return found


def hint_reasons(cells: pd.DataFrame, spec: DataSpec) -> npt.NDArray[np.object_]:
    """Why what rows without a mask say can't be used, "" where it can or there is nothing: object ``[N]``."""
    kinds, found = hint_kinds(cells, spec), np.full(len(cells), "", dtype=object)
    for place in np.flatnonzero((kinds == "box") | (kinds == "label")).tolist():
        try:
            hint_of(cells.iloc[place], spec)
        except HintError as error:
            found[place] = str(error)
    return found


def hints_of(cells: pd.DataFrame, spec: DataSpec) -> list[Hint | None]:
    """What each of some rows that passed ``hint_reasons`` says; None where that is nothing, or there is a mask."""
    kinds = hint_kinds(cells, spec)
    return [hint_of(cells.iloc[place], spec) if kind in ("box", "label") else None for place, kind in enumerate(kinds)]


def hint_of(row: pd.Series[str], spec: DataSpec) -> Hint:
    """What a row says that has a box or names of structures.

    With boxes, a structure without one is not there; with names, one that is not named. With both, a structure that is
    named and has no box may be anywhere.

    Raises:
        HintError: a cell can't be understood, or the two contradict each other.
    """
    names = MaskClasses.of(spec).names[1:]
    box, label = (_text(row, column) for column in (spec.box, spec.label))
    boxes = () if box is None else _boxes(box, names, str(spec.box))
    if label is None:
        return Hint(boxes)
    present = _present(label, names, str(spec.label))
    if not present.issuperset(structure for structure, *_ in boxes):
        raise HintError(f"{spec.box} has a structure that {spec.label} does not name")
    if box is not None and boxes == () and present:
        raise HintError(f"{spec.label} names a structure, and {spec.box} says that there is none")
    return Hint(boxes, present - {structure for structure, *_ in boxes})


def _text(row: pd.Series[str], column: str | None) -> str | None:
    cell = None if column is None else row[column]
    return None if cell is None or pd.isna(cell) else str(cell)


def _present(cell: str, names: Sequence[str], column: str) -> frozenset[int]:
    """Numbers of the structures that a cell names, which ``;`` or ``,`` divide."""
    words = [word.strip() for word in cell.replace(",", ";").split(";") if word.strip()]
    if [word.lower() for word in words] == [NOTHING] and NOTHING not in names:
        return frozenset()
    if not words or not set(words) <= set(names):
        raise HintError(f"{column} names no structure, or another one than `mask_classes`")
    return frozenset(names.index(word) + 1 for word in words)


def _boxes(cell: str, names: Sequence[str], column: str) -> tuple[Box, ...]:
    """The boxes of a cell, which ``;`` divides."""
    entries = [entry.strip() for entry in cell.split(";") if entry.strip()]
    if [entry.lower() for entry in entries] == [NOTHING]:
        return ()
    if not entries:
        raise HintError(f"{column} has no box")
    return tuple(_box(entry.replace(",", " ").split(), names, column) for entry in entries)


def _box(words: list[str], names: Sequence[str], column: str) -> Box:
    try:
        left, top, right, bottom = (round(float(word), _DECIMALS) for word in words[-_NUMBERS:])
    except ValueError:
        raise HintError(f"{column} is not x0 y0 x1 y1") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise HintError(f"{column} is not x0 y0 x1 y1")
    if left >= right or top >= bottom:
        raise HintError(f"{column} has a box that ends before it begins: x0 y0 x1 y1 are two corners of it")
    if right <= 1 and bottom <= 1:
        raise HintError(f"{column} has shares of the image, or a box of less than a pixel: give pixels")
    name = " ".join(words[:-_NUMBERS])
    if not name and len(names) > 1:
        raise HintError(f"{column} does not say of which structure its box is")
    if name and name not in names:
        raise HintError(f"{column} names another structure than `mask_classes`")
    return (names.index(name) + 1 if name else 1, left, top, right, bottom)
