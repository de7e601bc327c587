"""The tables of a results folder as files: CSV, or Parquet for those that grow with the study.

A table is called by the name of its CSV file everywhere; as Parquet it stands in a file of the same name that ends in
``.parquet``. Reading gives the same frame from both.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Final

import pandas as pd

from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic
from polyclinic.statistics.columns import SUBGROUP

#: Columns that hold text, whatever it looks like (a site may be called 01 or NA).
TEXT = {"method", "run", "site", "trained_on", "tested_on", "metric", "over", "interval", "subject", "case", "reasons",
        "part", "unit", "mechanism", "accountant", "source", "events",
        "note", "feature", "stage", "without", "extra_up", "extra_down", "way", "payload", "shape", "reveals",
        "versus", "what", "subgroup", "group", "space", "phase"}  # fmt: skip
#: Tables with a row for each case, for each site and method, or for each round: these can be Parquet.
GROWING = {"results.csv", "predictions.csv", "rounds.csv", "payloads.csv", "site_comparisons.csv", "decisions.csv",
           "calibration.csv", "backdoor.csv", "harmonisation.csv", "attention.csv"}  # fmt: skip
PARQUET = ".parquet"
COMPRESSION: Final = "zstd"
#: As many rows of CSV are made at a time.
ROWS = 100_000


def is_text(column: str) -> bool:
    """Whether a column holds text."""
    return column in TEXT or column.startswith(SUBGROUP)


def parquet_problem() -> str:
    """Why Parquet can't be written and read here; empty if it can.

    It is tried, since a package may be there and too old, broken, or built without a part.
    """
    try:
        pd.DataFrame({"site": ["A"]}).to_parquet(BytesIO(), engine="pyarrow", compression=COMPRESSION)
    except (ImportError, OSError, NotImplementedError, AttributeError) as error:
        if find_spec("pyarrow") is None:
            return "the package pyarrow, which is not installed"
        return f"the package pyarrow, which does not work here ({' '.join(str(error).split())})"
    return ""


def write_table(path: Path, frame: pd.DataFrame, *, parquet: bool = False) -> None:
    """Write a table in one step; numbers so that reading gives the same bits back.

    The bytes depend on nothing but the frame and, for Parquet, on the versions of pyarrow and pandas.

    Args:
        path: of the table as CSV.
        frame: the table, whose index is not kept.
        parquet: write Parquet instead.
    """
    short = frame.select_dtypes("float32").columns  # as text these would be other numbers
    frame = frame.astype(dict.fromkeys(short, "float64"))
    if parquet:
        buffer = BytesIO()
        _as_read(frame).to_parquet(buffer, engine="pyarrow", index=False, compression=COMPRESSION)
        write_atomic(path.with_suffix(PARQUET), buffer.getvalue())
    else:
        write_atomic(path, _csv_parts(frame))


def has_table(path: Path) -> bool:
    """Whether a table is there, in one form or the other; ``path`` is that of the CSV file."""
    return path.is_file() or path.with_suffix(PARQUET).is_file()


def stored(path: Path) -> Path:
    """The file in which a table stands; ``path`` is that of the CSV file, also where there is none of either form.

    Raises:
        ResultsError: P501, both are there; P503, it is Parquet and pyarrow is missing.
    """
    other = path.with_suffix(PARQUET)
    if not other.is_file():
        return path
    if path.is_file():
        raise ResultsError("P501", f"{path.name} and {other.name} are both in {path.parent}; expected one of them.",
                           "Delete the one that does not belong to this study.")  # fmt: skip
    if problem := parquet_problem():
        raise ResultsError("P503", f"{other.name} needs {problem}.",
                           "Run: pip install 'polyclinic[parquet]'")  # fmt: skip
    return other


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a table; ``path`` is that of the CSV file."""
    file = stored(path)
    if file.suffix == PARQUET:
        from pyarrow.parquet import read_schema

        return [str(name) for name in read_schema(file).names]
    with file.open(encoding="utf-8", newline="") as lines:
        return next(csv.reader(lines), [])


def read_table(path: Path, *, without: Collection[str] = ()) -> pd.DataFrame:
    """Read what ``write_table`` wrote, in one form or the other.

    Args:
        path: of the CSV file.
        without: columns that are not read.

    Raises:
        ResultsError: P501, both forms are there; P503, it is Parquet and pyarrow is missing.
    """
    file, names = stored(path), [name for name in columns_of(path) if name not in without]
    if file.suffix == PARQUET:
        return pd.read_parquet(file, engine="pyarrow", columns=names)
    return _read_csv(file, names)


def _read_csv(file: Path | StringIO, names: list[str]) -> pd.DataFrame:
    types = {name: str for name in names if is_text(name)}
    missing = {name: ["", "nan", "NaN"] for name in names if not is_text(name)}
    wanted: Callable[[str], bool] = set(names).__contains__
    return pd.read_csv(
        file, dtype=types, usecols=wanted, keep_default_na=False, na_values=missing, float_precision="round_trip",
        low_memory=False,  # a column is of one kind, however long it is
    )  # fmt: skip


def _csv_parts(frame: pd.DataFrame) -> Iterator[bytes]:
    """A frame as CSV, some rows at a time, so that the text of a large one is never in memory as a whole."""
    for start in range(0, max(len(frame), 1), ROWS):
        rows, first = frame.iloc[start : start + ROWS], start == 0
        text = rows.to_csv(index=False, header=first, lineterminator="\n")
        if "\r" in text:  # it would end the line when it is read, unless it is in quotes
            text = rows.to_csv(index=False, header=first, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        yield text.encode()


def _as_read(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame as it would be if it were written as CSV and read again."""
    found = {}
    for name in frame.columns:
        column = frame[name]
        if is_text(str(name)):
            found[name] = column.astype(object).where(column.notna(), "").astype(str)
        elif len(column) and column.dtype in ("float64", "int64", "bool"):
            found[name] = column
        else:
            rows = pd.DataFrame({"row": range(len(column)), name: column.array})  # a row by itself may be a blank line
            text = b"".join(_csv_parts(rows)).decode()
            found[name] = _read_csv(StringIO(text), ["row", str(name)])[name]
    return pd.DataFrame({name: column.reset_index(drop=True) for name, column in found.items()})
