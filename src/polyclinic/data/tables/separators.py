"""How a table's columns are separated, and what stands above it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from itertools import islice

from polyclinic.errors import DataError

#: Separator -> what it is called.
SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
#: Spreadsheet programs write and read such a first line.
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"])"?[,;\t| ]*', re.IGNORECASE)
#: So many records decide.
_SAMPLE = 50


def find_layout(text: str, columns: Sequence[str] | None, refuse: Callable[[str, str], DataError]) -> tuple[str, int]:
    """The separator, and how many lines stand above the table.

    Args:
        text: of the file.
        columns: names for a table without a header line; None where its first line names the columns.
        refuse: makes an error of what the table does and a hint.

    Raises:
        DataError: what ``refuse`` made, when there is no table or no one separator.
    """
    lines = [line.rstrip("\r\n") for line in islice(io.StringIO(text, newline=""), 20 * _SAMPLE)]
    filled = [position for position, line in enumerate(lines) if line.strip()]
    if not filled:
        raise refuse("is empty.", "Give a file with a row for each case.")
    start = filled[0]
    named = _SEPARATOR_LINE.fullmatch(lines[start])
    if named is not None:
        return named[1], start + 1
    comments = start
    while comments < len(lines) and (lines[comments].startswith("#") or not lines[comments].strip()):
        comments += 1
    separator = _separator(lines[comments:] or lines[start:], columns, refuse)
    # A first line with a name such as `#IID` looks like a comment, but has the cells of the lines below.
    while comments > start and comments < len(lines):
        width = _width(lines[comments - 1], separator)
        if width < 2 or width != _width(lines[comments], separator):
            break
        if columns is not None:
            hint = "Take the line out if it is a comment; else let no first cell begin with #."
            raise refuse(f"has a line {comments} that is a comment or a case: it begins with #.", hint)
        comments -= 1
    return separator, comments


def _separator(lines: Sequence[str], columns: Sequence[str] | None, refuse: Callable[[str, str], DataError]) -> str:
    """That by which most of the first rows have as many cells as the first one; of several such, the one with most."""
    fits: dict[str, tuple[float, int]] = {}
    for separator in SEPARATORS:
        try:
            reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=True)
            widths = [len(row) for row in islice((row for row in reader if row), _SAMPLE)]
        except csv.Error:  # said with its line when the rows are read
            continue
        if widths and widths[0] > 1:
            fits[separator] = (widths.count(widths[0]) / len(widths), widths[0])
    if columns is not None:  # a first line without names has decimal commas as well
        fits = {key: fit for key, fit in fits.items() if fit[1] == len(columns)} or fits
    if not fits:
        words = {len(line.split()) for line in lines if line.strip()}
        if len(words) == 1 and words.pop() > 2:
            hint = "Separate the columns by commas, tabs, semicolons or vertical bars."
            raise refuse("seems to separate its columns by blanks, which cells may hold, too.", hint)
        return ","
    best = max(fits.values())
    found = [separator for separator, fit in fits.items() if fit == best]
    if len(found) > 1:
        names = " or ".join(SEPARATORS[separator] for separator in found)
        hint = "Say it in a line above the first one, such as sep=; - or put texts with this character in quotes."
        raise refuse(f"does not tell how its columns are separated: by {names}.", hint)
    return found[0]


def _width(line: str, separator: str) -> int:
    """Number of cells of one line; 1 where it is none of a table."""
    try:
        return max(1, sum(len(row) for row in csv.reader([line], delimiter=separator)))
    except csv.Error:
        return 1
