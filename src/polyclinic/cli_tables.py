"""Tables for terminals of any width: no number is ever cut; what has no room stands in a further table below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

#: The first column is folded beyond so many letters, or a third of the terminal if that is more.
_FIRST = 12
#: Cells up to this length stand in one line.
_SHORT = 12
#: Padding and line between two columns, in letters.
_BETWEEN = 2


def tables_that_fit(heads: list[str], rows: list[list[str]], width: int) -> Iterator[Table]:
    """``rows`` under ``heads`` as tables of at most ``width`` letters, the first column in each of them.

    Texts may break between words, never within one; only the first column (names) and a word that is wider than the
    terminal may break anywhere.
    """
    from rich.box import SIMPLE
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.table import Table

    least = [
        max(
            cell_len(piece)
            for text in column
            for piece in ([text] if 0 < cell_len(text) <= _SHORT else text.split(" "))
        )
        for column in zip(heads, *rows, strict=True)
    ]
    first = min(max(cell_len(row[0]) for row in [heads, *rows]), max(_FIRST, width // 3))
    room = width - first - _BETWEEN
    for part in parts({str(number): wide + _BETWEEN for number, wide in enumerate(least) if number}, room):
        table = Table(header_style="bold", box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column(escape(heads[0]), overflow="fold", min_width=first, max_width=first)
        numbers = [int(name) for name in part]
        for number in numbers:
            table.add_column(escape(heads[number]), min_width=min(least[number], room), overflow="fold")
        for row in rows:
            table.add_row(*(escape(row[number]) for number in (0, *numbers)))
        yield table


def parts(widths: dict[str, int], room: int) -> Iterator[list[str]]:
    """The columns in order, as many at a time as there is room for, and at least one."""
    part: list[str] = []
    for name, width in widths.items():
        if part and sum(widths[one] for one in part) + width > room:
            yield part
            part = []
        part.append(name)
    if part:
        yield part
