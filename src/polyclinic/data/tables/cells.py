"""The cells of a table file: how a CSV or TSV file is taken apart, and what stops it.

A row keeps its cells or the file is refused: nothing is filled in, cut off or guessed. What a program puts around a
table is understood (a byte order mark, ``sep=;``, comment lines on top, separators at the ends of all lines).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.data.tables.separators import SEPARATORS, find_layout
from polyclinic.errors import DataError

#: The cells of a row. Tuples of texts are nothing that Python's collector of garbage has to look through.
Row = tuple[str, ...]
#: Characters without a width, which str.strip leaves.
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
#: Texts that stand for a missing value somewhere, so that they are no units.
_NO_UNITS = {"", "na", "n/a", "nan", "null", "none", "?", ".", "-"}
#: What stands in front of a line that sums up the others, in small letters.
_SUMS = re.compile(
    r"(grand |sub-?)?totals?:?|sums?:?|means?:?|averages?:?|median:?|std\.?( ?dev\.?)?:?|s\.?d\.?:?|n ?=.*|"
    r"mean ?(±|\+/-) ?sd|summe:?|gesamt:?|mittelwert:?|moyenne:?|somme:?|suma:?|media:?|promedio:?"
)
#: So many rows tell whether a column holds numbers.
_SAMPLE = 50
#: A number may be cut off if so many others, and all, have more decimals.
_ENOUGH = 10


def read_cells(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """All cells of a CSV or TSV file as texts without surrounding blanks.

    The separator (comma, tab, semicolon or vertical bar) is the one by which the first rows have the same number of
    cells as the first line, unless a line ``sep=;`` above the first one names it. Lines that begin with ``#`` above the
    first line are comments. Columns without a name or a cell at the end of all lines are left out.

    Args:
        path: the file, in UTF-8.
        columns: names for a file without a header line; by default the first line names the columns.

    Raises:
        DataError: P201 when the file is empty, is not text, or its rows have not the same number of cells; P202 when
            ``columns`` gives another number of names.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError("P201", f"The table {path.name!r} can't be read: {error.strerror}.") from None
    return parse_cells(content, path.name, columns)


def parse_cells(content: bytes, name: str, columns: list[str] | None = None) -> pd.DataFrame:
    """The cells of a file's content; see ``read_cells``. ``name`` is the file's, for messages."""
    table = _Table(_decoded(content, name), name, columns)
    rows = table.rows()
    first = columns if columns is not None else list(rows.pop(0))
    table.check_rows(first, rows)
    cells = np.array(rows, dtype=object).reshape(len(rows), len(first))
    return pd.DataFrame(cells, columns=pd.Index(first), dtype="str")


def _decoded(content: bytes, name: str) -> str:
    if content.startswith(b"PK\x03\x04"):
        hint = "It is a spreadsheet or an archive: save the table as CSV in UTF-8."
        raise DataError("P201", f"The table {name!r} is not UTF-8 text.", hint)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("P201", f"The table {name!r} is not UTF-8 text.", "Save it as CSV in UTF-8.") from None
    start = text[:200].lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<?xml")):
        raise DataError("P201", f"The table {name!r} is a web page or XML.", "Download or export the table itself.")
    if start.startswith("version https://git-lfs"):
        hint = "Fetch the file itself, for example with git lfs pull."
        raise DataError("P201", f"The table {name!r} is a pointer of Git LFS to a file elsewhere.", hint)
    if "\0" in text:
        hint = "The file is damaged, or is no CSV in UTF-8: write it again."
        raise DataError("P201", f"The table {name!r} has NUL characters, which no text has.", hint)
    return text.rstrip("\x1a")  # old programs end a file with it


class _Table:
    """A table's text on its way to rows of equal length."""

    def __init__(self, text: str, name: str, columns: Sequence[str] | None) -> None:
        self.text, self.name, self.columns = text, name, columns
        self.separator, self.skipped = find_layout(text, columns, self.refuse)

    def refuse(self, what: str, hint: str) -> DataError:
        return DataError("P201", f"The table {self.name!r} {what}", hint)

    # The rows ---------------------------------------------------------------------------------------------------------

    def _records(self, *, strict: bool) -> tuple[list[Row], list[int]]:
        """Cells without surrounding blanks, and the line in which each row begins; rows without any cell left out."""
        file = io.StringIO(self.text, newline="")
        for _ in range(self.skipped):
            next(file)
        reader = csv.reader(file, delimiter=self.separator, skipinitialspace=True, strict=strict)
        rows: list[Row] = []
        lines: list[int] = []
        before = self.skipped + 1
        try:
            for row in reader:
                cells = tuple(map(str.strip, row))
                if cells and (len(cells) > 1 or cells[0]):
                    rows.append(cells)
                    lines.append(before)
                before = self.skipped + reader.line_num + 1
        except csv.Error as error:
            if strict and "expected after" in str(error):  # such as "A" north: a quote within a text
                return self._records(strict=False)
            if "unexpected end" in str(error):
                what = f"has a quote in line {before} that nothing closes: the file may be cut off."
                raise self.refuse(what, "Close the quote, or copy the file again.") from None
            raise self.refuse(f"has a cell that can't be read in line {before}: {error}.", "Mend this line.") from None
        return rows, lines

    def rows(self) -> list[Row]:
        """All rows with the same number of cells, the header among them."""
        rows, lines = self._records(strict=True)
        if any(mark in self.text for mark in _INVISIBLE):
            rows = [tuple(cell.strip(_INVISIBLE).strip() for cell in row) for row in rows]
        if not rows:
            raise self.refuse("is empty.", "Give a file with a row for each case.")
        if '"' in self.text:
            self._check_quotes(rows, lines)
        given = self.columns
        width = len(rows[0])
        if given is None:
            while width > 1 and not rows[0][width - 1]:
                width -= 1
        elif any(rows[0][len(given) :]) or width < len(given):
            raise DataError(
                "P202",
                f"`columns` gives {len(given)} names, but the table {self.name!r} has {width} columns.",
                "Give one name for each column, in order.",
            )
        else:
            width = len(given)
        if given is None and any(any(row[width : len(rows[0])]) for row in rows):
            width = len(rows[0])  # a column without a name, with cells
        odd = [place for place, row in enumerate(rows) if len(row) != width]
        short = [lines[place] for place in odd if len(rows[place]) < width]
        long = [lines[place] for place in odd if any(rows[place][width:])]
        if short or long:
            raise self._ragged(width, {line: rows[lines.index(line)] for line in {*short, *long}}, short, long)
        for place in odd:
            rows[place] = rows[place][:width]
        return rows

    def _check_quotes(self, rows: list[Row], lines: list[int]) -> None:
        """A quote that is not closed swallows rows up to the next one."""
        for row, line in zip(rows, lines, strict=True):
            for cell in row:
                breaks = len(re.findall(r"\r\n?|\n", cell)) if "\n" in cell or "\r" in cell else 0
                if breaks and cell.count(self.separator) == breaks * (len(rows[0]) - 1):
                    what = f"has a cell that seems to hold whole rows; it begins in line {line}."
                    hint = "Is a quote not closed there? Close it; if it is one text, take its line breaks out."
                    raise self.refuse(what, hint)

    def _ragged(self, width: int, rows: dict[int, Row], short: list[int], long: list[int]) -> DataError:
        parts = [
            f"{_rows(len(found))} with too {much} cells ({_lines(found)})"
            for found, much in ((short, "few"), (long, "many"))
            if found
        ]
        line = (short or long)[0]
        first = "first line has" if self.columns is None else "others have"
        what = f"has {' and '.join(parts)}: its {first} {width}, line {line} has {len(rows[line])}."
        ended = self.text.endswith(("\n", "\r"))
        last = sum(1 for _ in io.StringIO(self.text, newline=""))
        if len(short) == 1 and not long and short[0] == last and not ended:
            return self.refuse(what, "The file ends within a row, so its copy was cut off: copy it again.")
        if any(row[0].startswith("#") for row in rows.values()):
            return self.refuse(what, "Comments (#) may stand above the first line only: take the others out.")
        if not short and all(len(row) == width + 1 for row in rows.values()) and len(rows) > 2:
            hint = (
                "Are there decimal commas? Or has R written names of rows, without a name for them (row.names = FALSE)?"
            )
            return self.refuse(what, hint)
        if not short and all(len(row) > width + 1 for row in rows.values()):
            return self.refuse(what, "If the first line is a title and not the names of the columns, take it out.")
        hint = "Mend those lines: often a text with a separator lacks its quotes, or a row has lost its end."
        return self.refuse(what, hint)

    # What is no row of a case -----------------------------------------------------------------------------------------

    def check_rows(self, names: Sequence[str], rows: list[Row]) -> None:
        """Stop at a second header, a row of units, or a last number that seems to be cut off.

        Raises:
            DataError: P201.
        """
        wanted = set(names)
        if len(wanted) > 1:
            again = [place for place, row in enumerate(rows) if row[0] in wanted and set(row) == wanted]
            if again:
                lines = self._records(strict=False)[1][self.columns is None :]
                if self.columns is not None and again[0] == 0:
                    hint = "Take `columns` out of the study file."
                    raise self.refuse("has a first line with the names that `columns` gives.", hint)
                what = f"repeats the names of its columns ({_lines([lines[place] for place in again])})."
                raise self.refuse(what, "Were tables joined? Take these lines out; compare the order of the columns.")
        if len(names) == 1:
            self._check_one_column(names[0], [row[0] for row in rows])
        if len(names) > 2 and sum(name != "" for name in names) == 1 and all(any(row[1:]) for row in rows):
            what = "has a first line with one text, which names no columns."
            raise self.refuse(what, "If it is a title, take it out, so that the first line names the columns.")
        if self.columns is None and len(rows) > 3:
            self._check_units(names, rows)
        if len(rows) > 3:
            self._check_sums(names, rows)
        if rows and not self.text.endswith(("\n", "\r")):
            self._check_end(rows)

    def _check_one_column(self, name: str, cells: list[str]) -> None:
        """One column may be several that were not told apart."""
        for separator, word in SEPARATORS.items():
            count = name.count(separator)
            if count and cells and all(cell.count(separator) == count for cell in cells):
                what = f"has one column only, in which every cell has the same number of {word}s."
                raise self.refuse(what, "Are whole rows in quotes, or is the line sep= above them wrong? Mend it.")

    def _check_units(self, names: Sequence[str], rows: list[Row]) -> None:
        second, others = rows[0], rows[1 : _SAMPLE + 1]
        if any(_NUMBER.fullmatch(cell) for cell in second):
            return
        for column, cell in enumerate(second):
            if cell.lower() in _NO_UNITS:
                continue
            below = [row[column] for row in others if row[column].lower() not in _NO_UNITS]
            if len(below) > 2 and all(map(_NUMBER.fullmatch, below)):
                what = f"has a second line that is no case: {names[column]!r} is a text there and a number below."
                raise self.refuse(what, "If this line holds units or explanations, take it out.")

    def _check_sums(self, names: Sequence[str], rows: list[Row]) -> None:
        """The last row may be the sum or the mean of the others: a first cell, or a name among names, says so."""
        last, others = rows[-1], rows[:-1]
        first = next(column for column, cell in enumerate(last) if cell)
        for column, cell in enumerate(last):
            if _SUMS.fullmatch(cell.lower()) is None:
                continue
            above = [row[column] for row in others]
            if cell not in above and (column == first or len(set(above)) == len(above)):
                what = f"has a last line that is no case: {cell!r} stands there in {names[column]!r}."
                raise self.refuse(what, "Take lines that sum up the others out of the table.")

    def _check_end(self, rows: list[Row]) -> None:
        """The last row has all its cells; but is its last number whole?"""
        decimals = [len(row[-1].partition(".")[2]) for row in rows if _NUMBER.fullmatch(row[-1])]
        whole = _NUMBER.fullmatch(rows[-1][-1]) is not None
        if whole and len(decimals) > _ENOUGH and decimals[-1] < min(decimals[:-1]):
            what = "does not end with a line end, and its last number has fewer decimals than all others of its column."
            raise self.refuse(what, "Its copy may be cut off: copy it again; if it is whole, end it with a line end.")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _lines(numbers: Sequence[int]) -> str:
    """``line 3``, ``lines 3, 5 to 9 and 12``; of many the first few."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    texts = [" to ".join(map(str, span)) for span in spans]
    if len(texts) > 5:
        texts = [*texts[:4], f"{len(texts) - 4} more places"]
    listed = texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + f" and {texts[-1]}"
    return f"{'line' if len(numbers) == 1 else 'lines'} {listed}"
