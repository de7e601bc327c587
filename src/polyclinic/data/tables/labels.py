"""Labels of a table as class indices with names a person can read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import DataSpec, Scalar
from polyclinic.data.tables.numbers import require_points
from polyclinic.data.tables.table import (
    OPPOSITE,
    canonical,
    comparison,
    levels,
    matches,
    parse_numbers,
    scalar_text,
    to_numbers,
)
from polyclinic.errors import DataError, StudyError

#: More different labels than this, without a list of `classes`, are a mistake (an age, an identifier), not classes.
MOST_CLASSES = 100


def label_reasons(cells: pd.Series[str], spec: DataSpec) -> npt.NDArray[np.object_]:
    """Why a row's label can't be used, "" where it can: object ``[N]``."""
    reasons = np.full(len(cells), "", dtype=object)
    if spec.classes is not None:
        reasons[~matches(cells, spec.classes)] = f"{spec.label} is not one of the classes"
    reasons[cells.isna().to_numpy()] = f"{spec.label} is missing"
    return reasons


def number_reasons(cells: pd.Series[str], spec: DataSpec) -> npt.NDArray[np.object_]:
    """Why a row's number can't be used, "" where it can: object ``[N]``.

    Raises:
        DataError: P203 when numbers have decimal commas or separators of thousands.
    """
    reasons = np.full(len(cells), "", dtype=object)
    require_points(cells, "label")
    reasons[np.isnan(parse_numbers(cells))] = f"{spec.label} is not a number"
    reasons[cells.isna().to_numpy()] = f"{spec.label} is missing"
    return reasons


def encode_numbers(cells: pd.Series[str], spec: DataSpec) -> npt.NDArray[np.float32]:
    """The number of each row, float32 ``[N]``.

    Args:
        cells: labels of all used rows of all sites; each one passed ``number_reasons``.
        spec: the ``data:`` part of the study file.

    Raises:
        DataError: P203 when all numbers are the same, so that there is nothing to learn, or they are codes.
    """
    numbers = to_numbers(cells, "label").astype(np.float32)
    if numbers.min() == numbers.max():
        raise DataError(
            "P203",
            f"The column {spec.label!r} (`label`) has the same number in every row, so there is nothing to learn.",
            "Name the column with the number to predict.",
        )
    return numbers


def encode_labels(cells: pd.Series[str], spec: DataSpec) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Class index of each row and the names of the classes.

    With ``positive`` there are two classes and index 1 is the positive one; else the classes are those of ``classes``
    in their order, else the labels found, sorted (as numbers where all are numbers).

    Args:
        cells: labels of all used rows of all sites; each one passed ``label_reasons``.
        spec: the ``data:`` part of the study file.

    Returns:
        int64 ``[N]`` and the names in index order.

    Raises:
        DataError: P203 when there is only one class, or the labels found are more than ``MOST_CLASSES``.
        StudyError: P102 when ``classes`` names a class twice.
    """
    if spec.positive is not None:
        positive = matches(cells, spec.positive).astype(np.int64)
        if positive.min() == positive.max():
            found = levels(canonical(cells))
            values = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
            raise DataError(
                "P203",
                f"`positive` ({spec.positive!r}) is true of {'every' if positive[0] else 'no'} row, so there is only "
                f"one class. The column {spec.label!r} (`label`) has: {values}.",
                "Say with `positive` which of them are the positive class.",
            )
        return positive, _binary_names(str(spec.label), spec.positive)
    if spec.classes is not None:
        names = [scalar_text(value) for value in spec.classes]
        if len(set(names)) < max(2, len(names)):
            raise StudyError("P102", f"`classes` is {names}.", "Give two or more different values.")
        is_class = np.stack([matches(cells, value) for value in spec.classes])
        return np.asarray(is_class.argmax(axis=0), dtype=np.int64), names
    texts = canonical(cells)
    names = levels(texts)
    if not 2 <= len(names) <= MOST_CLASSES:
        values = "value" if len(names) == 1 else "different values"
        raise DataError(
            "P203",
            f"The column {spec.label!r} (`label`) has {len(names)} {values}, which can't be classes.",
            "Say with `positive` which values are the positive class, or list the `classes`.",
        )
    index = {name: number for number, name in enumerate(names)}
    return np.array([index[text] for text in texts], dtype=np.int64), names


def _binary_names(label: str, positive: Scalar | list[Scalar]) -> list[str]:
    if isinstance(positive, list):
        values = "/".join(scalar_text(value) for value in positive)
        return [f"{label} not {values}", f"{label} {values}"]
    compared = comparison(positive)
    if compared is None:
        return [f"{label} not {scalar_text(positive)}", f"{label} {scalar_text(positive)}"]
    sign, right = compared
    return [f"{label} {OPPOSITE[sign]} {right}", f"{label} {sign} {right}"]
