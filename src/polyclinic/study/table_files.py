"""The tables of a results folder as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyclinic.files import write_atomic

#: Columns that hold text, whatever it looks like (a site may be called 01 or NA).
TEXT = {"method", "run", "site", "trained_on", "tested_on", "metric", "over", "interval", "subject", "case", "reasons",
        "note", "feature", "stage", "without", "extra_up", "extra_down", "payload", "reveals",
        "versus", "group"}  # fmt: skip


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV, in one step; numbers so that reading gives the same bits back."""
    write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path) -> pd.DataFrame:
    """Read what ``write_table`` wrote."""
    header = path.open(encoding="utf-8").readline().rstrip("\n").split(",")
    types = {name: str for name in header if name in TEXT}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={
        name: ["", "nan", "NaN"] for name in header if name not in TEXT}, float_precision="round_trip")  # fmt: skip
