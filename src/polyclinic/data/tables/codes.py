"""Cells as codes: which texts mean the same value of a label, a group, or a condition.

A number in plain decimals is the same however it is written: ``1``, ``1.0`` and ``+1.00``. Its digits are compared,
never rounded ones, so two codes of 18 digits stay two. All else is the text itself: ``007`` is not ``7``, and the ward
``1E2`` is not the ward ``100``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import Scalar

_PLAIN = re.compile(r"([+-]?)(0|[1-9][0-9]*)?(?:\.([0-9]*))?")
#: What true and false stand for in a table; the study file means them by `true` and `false` without quotes.
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def plain_number(text: str) -> str | None:
    """The one spelling of a number in plain decimals, or None for any other text.

    >>> plain_number("+1.50"), plain_number("-0.0"), plain_number("007"), plain_number("1E2")
    ('1.5', '0', None, None)
    """
    found = _PLAIN.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return None
    decimals = (found[3] or "").rstrip("0")
    digits = (found[2] or "0") + (f".{decimals}" if decimals else "")
    return f"-{digits}" if found[1] == "-" and digits != "0" else digits


def number_text(number: float) -> str:
    """``1.0`` as ``1``, ``0.5`` as ``0.5``, ``1e-5`` as ``0.00001``."""
    return np.format_float_positional(number, trim="-") if np.isfinite(number) else repr(number)


def scalar_text(value: Scalar) -> str:
    """A value of the study file as it would stand in a table."""
    return number_text(value) if isinstance(value, float) else str(value)


def equals(cells: pd.Series[str], value: Scalar) -> npt.NDArray[np.bool_]:
    """Bool ``[N]``: which cells are the value; a missing cell never is."""
    if isinstance(value, bool):
        return cells.str.lower().isin(_TRUE if value else _FALSE).to_numpy(dtype=bool)
    text = scalar_text(value)
    number = plain_number(text)
    if number is None:
        return (cells == text).to_numpy(dtype=bool, na_value=False)
    places, texts = pd.factorize(cells)
    same = np.array([plain_number(found) == number for found in texts] + [False], dtype=np.bool_)
    return np.asarray(same[places], dtype=np.bool_)  # a missing cell has place -1


def canonical(cells: pd.Series[str]) -> pd.Series[str]:
    """The same cells with one text for each value: ``1.0`` becomes ``1``.

    Where the column holds other texts, too, numbers keep their spelling unless there are several of the same number.
    """
    spellings = one_text_each(cells.dropna().unique())
    return cells.map(spellings).astype("str") if spellings else cells


def one_text_each(spellings: Iterable[str]) -> dict[str, str]:
    """For each of all spellings in a column, the text that stands for its value; see ``canonical``."""
    numbers = {text: plain_number(text) for text in spellings}
    counts = Counter(numbers.values())
    mixed = None in counts
    return {
        text: text if number is None or (mixed and counts[number] < 2) else number for text, number in numbers.items()
    }


def levels(cells: pd.Series[str]) -> list[str]:
    """The different values of ``canonical`` cells, in order."""
    return in_order(cells.dropna().unique().tolist())


def in_order(values: Iterable[str]) -> list[str]:
    """Values in numeric order if all are numbers, else in text order."""
    found = sorted(values)
    if all(plain_number(text) is not None for text in found):
        found.sort(key=Decimal)
    return found


def alike(texts: Iterable[str]) -> list[list[str]]:
    """Groups of different codes that a person may mean as one, each sorted: ``1`` and ``001``, ``Yes`` and ``yes``.

    Alike are texts that differ only in capital letters, Unicode form, blanks, hyphens, underscores or leading zeros,
    and numbers of the same value in another notation (``1E2`` and ``100``).

    >>> alike(["1", "001", "2", "Köln", "KÖLN"])
    [['001', '1'], ['KÖLN', 'Köln']]
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for text in texts:
        groups[likeness(text)].setdefault(plain_number(text) or text, text)
    return sorted(sorted(group.values()) for group in groups.values() if len(group) > 1)


def likeness(text: str) -> str:
    """A text that is the same for all codes that ``alike`` puts into one group."""
    folded = unicodedata.normalize("NFKC", text).casefold().strip()
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)e[+-]?[0-9]{1,3}", folded):
        folded = f"{Decimal(folded):f}"
    number = plain_number(re.sub(r"^([+-]?)0+(?=[0-9])", r"\1", folded))
    return number or re.sub(r"(?<![0-9.])0+(?=[0-9])", "", re.sub(r"[\s_-]+", " ", folded))
