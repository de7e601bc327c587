"""Tables as texts: finding a file, its columns, and the rows that fulfil a condition.

Every cell is read as text first (`polyclinic.data.tables.cells`). What means "missing" is then the study file's choice
and no guess, and a patient called ``007`` stays ``007``; see `polyclinic.data.tables.codes` for texts that are
compared, and `polyclinic.data.tables.numbers` for those that must be numbers.
"""

from __future__ import annotations

import importlib.metadata
import logging
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import Scalar
from polyclinic.data.tables.cells import read_cells
from polyclinic.data.tables.codes import canonical, equals, levels, number_text, plain_number, scalar_text
from polyclinic.data.tables.frames import FRAME, find_frame
from polyclinic.data.tables.numbers import parse_numbers, to_numbers
from polyclinic.errors import DataError, nearest

__all__ = [
    "OPPOSITE", "canonical", "comparison", "is_missing", "levels", "locate", "matches", "number_text", "open_table",
    "parse_numbers", "read_cells", "require_column", "scalar_text", "to_numbers",
]  # fmt: skip

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Table:
    """A table that was read.

    Attributes:
        cells: texts.
        title: what it is called in messages.
        stem: name of its site, where nothing else names one.
        folder: to which paths in its cells are relative.
    """

    cells: pd.DataFrame
    title: str
    stem: str
    folder: Path


def open_table(name: str, folder: Path, columns: list[str] | None = None) -> Table:
    """The cells of what ``name`` means, a file (see `locate`) or a frame (see `polyclinic.data.tables.frames`).

    Raises:
        DataError: P201, P202 or P503.
    """
    if name.startswith(FRAME):
        frame = find_frame(name)
        if columns is not None:
            raise DataError("P202", "`columns` is for files without a header line, and a frame names its columns.",
                            "Leave `columns` out.")  # fmt: skip
        place = folder if frame.images is None else Path(frame.images.name)
        return Table(frame.cells, f"The table {frame.name!r}", frame.name, place)
    path = locate(name, folder)
    return Table(read_cells(path, columns), f"The table {path.name!r}", path.stem, path.parent)


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


def comparison(wanted: Scalar) -> tuple[str, str] | None:
    """The operator and right side of a comparison such as ``"< 1"``, or None where ``wanted`` is a plain value.

    ``"> x"`` is a value, not a comparison: only numbers have an order.
    """
    found = _COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return None
    sign, right = found.groups()
    return (sign, right) if sign in ("==", "!=") or _is_number(right) else None


def matches(cells: pd.Series[str], wanted: Scalar | Sequence[Scalar]) -> npt.NDArray[np.bool_]:
    """Bool ``[N]``: which cells are the value, one of the values, or fulfil the comparison ``wanted``.

    ``1``, ``1.0`` and ``"1"`` are the same, other texts are compared exactly (`polyclinic.data.tables.codes`); with
    ``<``, ``<=``, ``>`` and ``>=`` all cells must be numbers. A missing cell never matches, not even ``"!= x"``.
    """
    if not isinstance(wanted, str) and isinstance(wanted, Sequence):
        found = np.zeros(len(cells), dtype=np.bool_)
        for value in wanted:
            found |= matches(cells, value)
        return found
    compared = comparison(wanted)
    if compared is None:
        return equals(cells, wanted)
    sign, right = compared
    if sign in _COMPARE:
        return _COMPARE[sign](to_numbers(cells, f"{sign} {right}", identifies=True), float(right))
    equal = equals(cells, right)
    return equal if sign == "==" else ~equal & cells.notna().to_numpy()


def is_missing(cells: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
    """Which cells are empty or one of the texts that mean a missing value: bool, shaped as ``cells``.

    A number among the texts is meant however it is written: ``-999`` is ``-999.0`` and ``-999.00`` as well.
    """
    wanted = {"", *texts}
    for text in texts:
        number = plain_number(text)
        if number is not None:
            point = "" if "." in number else "."
            wanted |= {number, *(f"{number}{point}{'0' * zeros}" for zeros in range(7))}
    return cells.isin(wanted)


def _is_number(text: str) -> bool:
    return not bool(np.isnan(parse_numbers(pd.Series([text], dtype="str"))).all())
