"""Tables that a program has in memory, in the place of files: the same texts in cells, and the same checks.

An entry ``frame:HASH`` of a study names one by its content, so that a study can be told from one with other data.
Frames live as long as whoever keeps them, in the process that has them; nothing of a table is written.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import numbers
from dataclasses import dataclass
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd

from polyclinic.data.tables.cells import parse_cells
from polyclinic.errors import DataError

#: Before the hash of a frame.
FRAME = "frame:"


@dataclass(frozen=True, eq=False)
class Frame:
    """A table in memory.

    Attributes:
        name: what it is called in messages; where no column names the site, the site.
        cells: texts without surrounding blanks, "" where nothing is known.
        entry: ``frame:HASH``, by which a study names it.
        images: folder with images that its cells name; None where their paths are relative to the study's folder.
    """

    name: str
    cells: pd.DataFrame
    entry: str
    images: TemporaryDirectory[str] | None = None


_KEPT: WeakValueDictionary[str, Frame] = WeakValueDictionary()


def keep_frame(
    frame: pd.DataFrame, name: str, images: TemporaryDirectory[str] | None = None, digest: bytes = b""
) -> Frame:
    """Take in a table; it can be found by its entry as long as what is returned lives.

    Args:
        frame: with a row a case. An index with a name is a column; another index means nothing.
        name: what it is called.
        images: folder with images that it names.
        digest: of these images.

    Raises:
        DataError: P201, it has no column, or is not as a table must be; P203, a cell is neither a number nor a text, a
            date or a truth value.
    """
    named = [level for level in frame.index.names if level is not None]
    if named:
        frame = frame.reset_index()
    if not len(frame.columns):
        raise DataError("P201", f"The frame {name!r} has no columns.", "Give one with a row a case.")
    columns = [str(column) for column in frame.columns]
    cells = [
        [_text(value, column, name) for value in frame.iloc[:, place].array] for place, column in enumerate(columns)
    ]
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([columns, *zip(*cells, strict=True)])
    content = file.getvalue().encode()
    found = hashlib.sha256(repr(name).encode() + content + digest).hexdigest()
    kept = Frame(name, parse_cells(b"sep=,\n" + content, name), FRAME + found, images)
    return _KEPT.setdefault(kept.entry, kept)


def find_frame(entry: str) -> Frame:
    """The frame that an entry of a study names.

    Raises:
        DataError: P201, nobody here keeps it.
    """
    found = _KEPT.get(entry)
    if found is None:
        raise DataError(
            "P201", f"The table {entry[:18]!r}... is a frame of a Python program, and is not here.",
            "Give the study its frames with `Study.of`, or write them as CSV files and name these.",
        )  # fmt: skip
    return found


def _text(value: Any, column: str, name: str) -> str:
    """A cell as a file would have it; numbers with all their digits, so that they are read as they were."""
    if isinstance(value, str):
        return value.strip()
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, float) or (isinstance(value, np.floating) and value.itemsize >= 8):
        return repr(float(value))
    if isinstance(value, numbers.Real | Decimal | np.floating):
        return str(value)
    if isinstance(value, datetime.date | np.datetime64):
        return pd.Timestamp(value).isoformat().removesuffix("T00:00:00")
    raise DataError(
        "P203", f"The frame {name!r}, column {column!r}: got a cell of type {type(value).__name__}, expected a number, "
        "a text, a date or a truth value.", "Give each number a column of its own; images as paths, or by a data set.",
    )  # fmt: skip
