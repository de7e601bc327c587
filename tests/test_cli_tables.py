"""Tables at any width: every number whole, every row and column there."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from polyclinic.cli_tables import tables_that_fit

HEADS = ["site", "found", "Erkrankt not ja", "foreground", "duplicates", "orientations", "a[b]"]
ROWS = [
    ["Köln", "12345", "70021", "3.7 %", "0", "LAS (8)", "[red]"],
    ["S" * 60, "1", "2", "11 %", "0", "RAS (90)", "-"],
]


def shown(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables_that_fit(HEADS, ROWS, width):
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_nothing_is_cut_at_any_width(width):
    text = shown(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for cell in ("12345", "70021", "3.7 %", "11 %", "LAS (8)", "RAS (90)", "[red]", "a[b]", "duplicates"):
        assert text.count(cell) == 1, cell
    assert text.count("Köln") == text.count("site")
    assert text.count("S") >= 60


def test_one_table_where_there_is_room():
    assert shown(200).count("Köln") == 1
    assert shown(40).count("Köln") > 1
