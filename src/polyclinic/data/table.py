"""Tables as texts: finding a file, reading its cells, comparing them and turning them into numbers.

Every cell is read as text first. What means "missing" is then the study file's choice and no guess, and a patient
called ``007`` stays ``007``.
"""

from __future__ import annotations

import csv
import importlib.metadata
import logging
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import Scalar
from polyclinic.errors import DataError, nearest

logger = logging.getLogger(__name__)

SEPARATORS = (",", "\t", ";")
PACKAGE = "package:"
_COMPARISON = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*(.*\S)\s*")
_COMPARE: dict[str, Callable[[npt.NDArray[np.float64], float], npt.NDArray[np.bool_]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: The comparison that holds exactly where the first one doesn't.
OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
# YAML 1.1 reads an unquoted yes, on or true as the same value.
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def locate(name: str, folder: Path) -> Path:
    """The file that ``name`` means: a path relative to ``folder``, or ``package:DISTRIBUTION/path``.

    A file of an installed distribution is found through its list of files; nothing of the package is imported.

    Raises:
        DataError: P503 when the distribution is not installed, P201 when the file is missing.
    """
    if name.startswith(PACKAGE):
        distribution, _, path = name.removeprefix(PACKAGE).partition("/")
        try:
            files = importlib.metadata.distribution(distribution).files or []
        except importlib.metadata.PackageNotFoundError:
            raise DataError(
                "P503",
                f"The table {name!r} is part of the Python package {distribution!r}, which is not installed.",
                f"Run: pip install {distribution}",
            ) from None
        for file in files:
            if file.as_posix() == path:
                return Path(str(file.locate()))
        tables = [file.as_posix() for file in files if file.suffix in (".csv", ".tsv", ".data")]
        hint = nearest(path, tables) if tables else ""
        raise DataError("P201", f"The Python package {distribution!r} has no file {path!r}.", hint)
    path_on_disk = folder / name
    if not path_on_disk.is_file():
        logger.debug("no file at %s", path_on_disk)
        raise DataError(
            "P201",
            f"The table {Path(name).name!r} can't be found.",
            "Paths are relative to the folder of the study file.",
        )
    return path_on_disk


def read_cells(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """All cells of a CSV or TSV file as texts without surrounding blanks; the separator is found in the first line.

    Args:
        path: the file, in UTF-8.
        columns: names for a file without a header line; by default the first line names the columns.

    Raises:
        DataError: P201 when the file is empty, is not text, or has rows of different lengths.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
        separator = max(SEPARATORS, key=first.count)
        # Without header=None pandas would take surplus cells for an index and rename repeated columns.
        frame = pd.read_csv(path, sep=separator, header=None, dtype=str, na_filter=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("P201", f"The table {path.name!r} is not UTF-8 text.", "Save it as CSV in UTF-8.") from None
    except pd.errors.EmptyDataError:
        raise DataError("P201", f"The table {path.name!r} is empty.", "Give a file with a row for each case.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        cause = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise DataError(
            "P201", f"The table {path.name!r} has rows that do not fit together: {cause}.", "Mend those lines."
        ) from None
    except OSError as error:
        raise DataError("P201", f"The table {path.name!r} can't be read: {error.strerror}.") from None
    frame = pd.DataFrame({number: cells.str.strip() for number, cells in frame.items()})
    if columns is None:
        frame.columns = pd.Index(frame.iloc[0].tolist())
        return frame.iloc[1:].reset_index(drop=True)
    if len(columns) != frame.shape[1]:
        raise DataError(
            "P202",
            f"`columns` gives {len(columns)} names, but the table {path.name!r} has {frame.shape[1]} columns.",
            "Give one name for each column, in order.",
        )
    frame.columns = pd.Index(columns)
    return frame


def require_column(available: Sequence[str], column: str, use: str, table: str) -> None:
    """Stop unless ``column`` exists exactly once among ``available``.

    Raises:
        DataError: P202 with the nearest name.
    """
    count = list(available).count(column)
    if count == 0:
        raise DataError(
            "P202", f"{table} has no column {column!r}, which `{use}` names.", nearest(column, list(available))
        )
    if count > 1:
        raise DataError("P202", f"{table} has {count} columns called {column!r}.", "Rename all but one of them.")


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
        return numbers
    mostly_numbers = len(bad) < cells.notna().sum() / 2
    repeated = bad.nunique() <= len(bad) / 10
    example = f" (such as {bad.iloc[0]!r})" if not identifies and (mostly_numbers or repeated) else ""
    if bad.str.fullmatch(r"[+-]?\d+,\d+").all():
        hint = "Write a decimal point instead of a decimal comma."
    else:
        hint = "If the text means a missing value, add it to `missing`; "
        hint += "for groups, name the column under `categorical`; or take it out with `exclude`."
    cells_are = "cell that is not a number" if len(bad) == 1 else "cells that are not numbers"
    raise DataError("P203", f"The column {str(cells.name)!r} (`{use}`) has {len(bad)} {cells_are}{example}.", hint)


def comparison(wanted: Scalar) -> tuple[str, str] | None:
    """The operator and right side of a comparison such as ``"< 1"``, or None where ``wanted`` is a plain value.

    ``"> x"`` is a value, not a comparison: only numbers have an order.
    """
    found = _COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return None
    sign, right = found.groups()
    return (sign, right) if sign in ("==", "!=") or _number(right) is not None else None


def matches(cells: pd.Series[str], wanted: Scalar | Sequence[Scalar]) -> npt.NDArray[np.bool_]:
    """Bool ``[N]``: which cells are the value, one of the values, or fulfil the comparison ``wanted``.

    Numbers are compared as numbers (``1``, ``1.0`` and ``"1"`` are the same), other texts exactly. A missing cell never
    matches, not even ``"!= x"``.
    """
    if not isinstance(wanted, str) and isinstance(wanted, Sequence):
        found = np.zeros(len(cells), dtype=np.bool_)
        for value in wanted:
            found |= matches(cells, value)
        return found
    compared = comparison(wanted)
    if compared is None:
        return _equals(cells, wanted)
    sign, right = compared
    if sign in _COMPARE:
        return _COMPARE[sign](to_numbers(cells, f"{sign} {right}", identifies=True), float(right))
    equal = _equals(cells, right)
    return equal if sign == "==" else ~equal & cells.notna().to_numpy()


def canonical(cells: pd.Series[str]) -> pd.Series[str]:
    """The same cells with one text for each value: in an all-numeric column ``1.0`` becomes ``1``."""
    numbers = parse_numbers(cells)
    if np.isnan(numbers[cells.notna().to_numpy()]).any():
        return cells
    texts = [number_text(number) if number == number else np.nan for number in numbers.tolist()]
    return pd.Series(texts, index=cells.index, name=cells.name, dtype="str")


def levels(cells: pd.Series[str]) -> list[str]:
    """The different values of ``canonical`` cells: in numeric order if all are numbers, else in text order."""
    found = sorted(cells.dropna().unique().tolist())
    if all(_number(text) is not None for text in found):
        found.sort(key=float)
    return found


def number_text(number: float) -> str:
    """``1.0`` as ``1``, ``0.5`` as ``0.5``."""
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def scalar_text(value: Scalar) -> str:
    """A value of the study file as it would stand in a table."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_text(float(value))
    return str(value)


def _number(text: str) -> float | None:
    number = parse_numbers(pd.Series([text], dtype="str"))[0]
    return None if np.isnan(number) else float(number)


def _equals(cells: pd.Series[str], value: Scalar) -> npt.NDArray[np.bool_]:
    if isinstance(value, bool):
        return cells.str.lower().isin(_TRUE if value else _FALSE).to_numpy(dtype=bool)
    number = _number(value) if isinstance(value, str) else float(value)
    equal = (cells == str(value)).to_numpy(dtype=bool, na_value=False)
    return equal if number is None else equal | (parse_numbers(cells) == number)
