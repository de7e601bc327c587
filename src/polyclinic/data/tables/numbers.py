"""Cells as numbers: what is one, and what to do with a column that is not one after all.

Nothing is guessed: a decimal comma, a separator of thousands, a unit or a percent sign stops the column, and the
message says which of them it is. A column whose points may stand for thousands is not read as decimals.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.errors import DataError

_N = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
#: How a cell that is not a number is written -> what to do about it. The first that fits all such cells counts.
_NOTATIONS = (
    (
        r"[+-]?[1-9]\d{0,2}(,\d{3})+",
        "The comma may separate thousands or decimals: write numbers anew from where they came from, without "
        "separators of thousands and with a decimal point.",
    ),
    (
        r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?|[+-]?\d{1,3}([ \u00a0\u202f\u2009'’]\d{3})+([.,]\d*)?",
        "Write numbers without separators of thousands.",
    ),
    (
        r"[+-]?\d{1,3}(\.\d{3})+(,\d*)?|[+-]?\d+,\d+",
        "Write a decimal point instead of a decimal comma, and no separators of thousands: 1234.5, not 1.234,5.",
    ),
    (rf"(?:{_N}|\d+,\d+)\s*%", "Write percentages without the percent sign."),
    (rf"[<>≤≥~]=?\s*(?:{_N}|\d+,\d+)", "A limit is no number: give one, or add such texts to `missing`."),
    (r"[\u2012-\u2015\u2212]\s*\d.*", "Write a minus as the hyphen of the keyboard (-)."),
    (r"#[A-Z/0!?]+[!?A]?", "Cells with errors of a spreadsheet: mend them there, or add their texts to `missing`."),
    (
        r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./-]\d\d?[./-]\d{2,4}",
        "Dates are no numbers: turn them into an age or into days since a common event, or take the column out.",
    ),
    (
        rf"(?!0[xX]){_N}\s*[a-zA-Zµμ°][a-zA-Z0-9µμ°/.³²^*]*",
        "Write the unit into the column's name, not into its cells.",
    ),
)
#: Texts that mean a missing value somewhere.
_MISSING = re.compile(r"-+|\.+|none|null|na|n\.a\.|nan|nat|<na>|missing|unknown|not (done|known|available)|\?+", re.I)
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
#: Fewer points than this may stand before three digits by chance.
_SOME = 3
#: A float64 holds so many decimal digits for sure.
_DIGITS = 15


def parse_numbers(cells: pd.Series[str]) -> npt.NDArray[np.float64]:
    """Float64 ``[N]`` of the cells, NaN where a cell is missing or is not a finite number."""
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def to_numbers(cells: pd.Series[str], use: str, *, identifies: bool = False) -> npt.NDArray[np.float64]:
    """Float64 ``[N]`` of cells that must be numbers; missing cells become NaN.

    Args:
        cells: texts, NaN where missing; the series' name is the column's.
        use: key of the study file that needs numbers, for the message.
        identifies: whether the column identifies patients: then the message quotes no cell.

    Raises:
        DataError: P203 with the column and the number of cells. One cell is quoted only where it can't be an
            identifier: the column is otherwise numeric, or the same texts come again and again.
    """
    numbers = parse_numbers(cells)
    bad = cells[np.isnan(numbers) & cells.notna().to_numpy()]
    if bad.empty:
        require_decimals(cells, numbers, use)
        return numbers
    mostly_numbers = len(bad) < cells.notna().sum() / 2
    repeated = bad.nunique() <= len(bad) / 10
    example = f" (such as {bad.iloc[0]!r})" if not identifies and (mostly_numbers or repeated) else ""
    cells_are = "cell that is not a number" if len(bad) == 1 else "cells that are not numbers"
    message = f"The column {str(cells.name)!r} (`{use}`) has {len(bad)} {cells_are}{example}."
    raise DataError("P203", message, notation(bad) or _DEFAULT)


_DEFAULT = (
    "If the text means a missing value, add it to `missing`; for groups, name the column under `categorical`; or take "
    "it out with `exclude`."
)


def notation(texts: pd.Series[str]) -> str:
    """What to do about texts that are numbers in another notation, all of them in one; "" for any other texts.

    Texts that usually mean a missing value don't count, as long as there are others.
    """
    rest = [text for text in texts.dropna().unique() if not _MISSING.fullmatch(text)]
    if not rest:
        return ""
    return next((advice for form, advice in _NOTATIONS if all(re.fullmatch(form, text) for text in rest)), "")


def require_points(cells: pd.Series[str], use: str) -> None:
    """Stop where cells are numbers with decimal commas or separators of thousands.

    Raises:
        DataError: P203.
    """
    bad = cells[np.isnan(parse_numbers(cells))].dropna()
    if any(re.fullmatch(form, text) for text in bad.unique() for form, _ in _NOTATIONS[:3]):
        to_numbers(cells, use)


def require_decimals(cells: pd.Series[str], numbers: npt.NDArray[np.float64], use: str) -> None:
    """Stop where a column reads as numbers and is something else.

    Its points may stand for thousands (``1.234`` beside ``998``: every point is followed by three digits, and the
    numbers are of one size only when it is left out), or it may be a code with more digits than a number keeps.

    Args:
        cells: texts, NaN where missing.
        numbers: what they read as.
        use: key of the study file that needs numbers, for the message.

    Raises:
        DataError: P203.
    """
    name = str(cells.name)
    size = np.abs(numbers)
    with np.errstate(invalid="ignore"):
        broken = (numbers != np.trunc(numbers)) & ~np.isnan(numbers)
        large = size >= 10.0**_DIGITS
    if large.any() and cells[large].str.fullmatch(rf"[+-]?\d{{{_DIGITS + 1},}}").any():
        count = int(cells[large].str.fullmatch(rf"[+-]?\d{{{_DIGITS + 1},}}").sum())
        raise DataError(
            "P203", f"The column {name!r} (`{use}`) has {count} {'cell' if count == 1 else 'cells'} with more than "
            f"{_DIGITS} digits, which are codes: as numbers they would be rounded.",
            f"Name the column under `{'groups' if use == 'covariates' else 'categorical'}`, or take it out.",
        )  # fmt: skip
    if broken.any() and (size[broken].max() >= 1000 or size[broken].min() < 1):
        return
    texts = cells.fillna("").tolist()
    if not all(_POINTS.fullmatch(text) for text in texts if "." in text):
        return
    with_point = np.array(["." in text for text in texts], dtype=np.bool_)
    count = int(with_point.sum())
    if count == int(np.isfinite(numbers).sum()):  # three decimals in every cell: nothing speaks against them
        return
    clearly = 1 if count >= _SOME else 10
    if clearly * _spread(np.where(with_point, 1000, 1) * size) < _spread(size):
        raise DataError(
            "P203", f"The column {name!r} (`{use}`) has {count} {'cell' if count == 1 else 'cells'} in which a point "
            "seems to separate thousands (such as 1.234 for 1234), beside numbers without one.",
            "Write numbers without separators of thousands; if they are decimals, with one more 0 at their end.",
        )  # fmt: skip


def _spread(sizes: npt.NDArray[np.float64]) -> float:
    """How many times the largest size is the smallest one, 0 and NaN left out."""
    there = sizes[sizes > 0]
    return float(there.max() / there.min()) if len(there) else 0.0
