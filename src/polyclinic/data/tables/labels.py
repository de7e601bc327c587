"""Labels of a table as class indices with names a person can read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import DataSpec, Scalar
from polyclinic.data.tables.numbers import require_points
from polyclinic.data.tables.table import OPPOSITE, comparison, matches, parse_numbers, scalar_text, to_numbers
from polyclinic.errors import DataError

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


def encode_numbers(cells: pd.Series[str]) -> npt.NDArray[np.float32]:
    """The number of each row, float32 ``[N]``; each one passed ``number_reasons``.

    Raises:
        DataError: P203 when the numbers are codes, or their points stand for thousands.
    """
    return to_numbers(cells, "label").astype(np.float32)


def encode_labels(cells: pd.Series[str], spec: DataSpec, labels: Mapping[str, int] | None) -> npt.NDArray[np.int64]:
    """Class index of each row, int64 ``[N]``: of two classes index 1 is the positive one.

    Args:
        cells: labels of rows; each one passed ``label_reasons``.
        spec: the ``data:`` part of the study file; ``positive``, or else ``classes``, says what counts.
        labels: else spelling -> class index, as all sites agreed.

    Raises:
        DataError: P203 when a label is none of those agreed.
    """
    if spec.positive is not None:
        return matches(cells, spec.positive).astype(np.int64)
    if spec.classes is not None:
        is_class = np.stack([matches(cells, value) for value in spec.classes])
        return np.asarray(is_class.argmax(axis=0), dtype=np.int64)
    found = cells.map(labels or {}).to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(found).any():
        raise DataError(
            "P203", f"The column {spec.label!r} (`label`) has {int(np.isnan(found).sum())} cells with a value that the "
            "sites did not agree on.", "Did the table change while the study started? Start it again.",
        )  # fmt: skip
    return found.astype(np.int64)


def binary_names(label: str, positive: Scalar | list[Scalar]) -> list[str]:
    """Names of the two classes, the positive one last."""
    if isinstance(positive, list):
        values = "/".join(scalar_text(value) for value in positive)
        return [f"{label} not {values}", f"{label} {values}"]
    compared = comparison(positive)
    if compared is None:
        return [f"{label} not {scalar_text(positive)}", f"{label} {scalar_text(positive)}"]
    sign, right = compared
    return [f"{label} {OPPOSITE[sign]} {right}", f"{label} {sign} {right}"]
