"""How notes write lists, counts and texts, and when two texts are the same but for their writing."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

MOST_NAMES = 5

# Characters that no one sees: soft hyphen, zero-width blanks and joiners, marks of direction, byte order mark.
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_WHOLE = re.compile(r"(?<![\d.])0+(?=\d)")
_SHORTENED = re.compile(r"[0-9](\.[0-9]+)?E\+(1[1-9]|[2-9][0-9])")
_POINT_ZERO = re.compile(r"(?<=\d)\.0+$")


def some(names: Iterable[str]) -> str:
    """The first names and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return ", ".join(listed[:MOST_NAMES]) + more


def counted(number: int, one: str, several: str) -> str:
    """``1 row is`` or ``3 rows are``."""
    return f"{number} {one if number == 1 else several}"


def is_shortened(text: str) -> bool:
    """Whether a spreadsheet program writes a long code so: ``1.23E+17``."""
    return "E+" in text and _SHORTENED.fullmatch(text) is not None


def folded(text: str) -> str:
    """The text without what only its writing decides.

    These are capitals, the Unicode form (``é`` as one character or as two, full-width letters), blanks, dashes,
    characters that can't be seen, and underscores for blanks.
    """
    if text.isascii():
        return " ".join(text.lower().replace("_", " ").split())
    plain = unicodedata.normalize("NFKC", _DASHES.sub("-", _UNSEEN.sub("", text)))
    return " ".join(unicodedata.normalize("NFKC", plain.casefold()).replace("_", " ").split())


def folded_name(text: str) -> str:
    """As `folded`, and without leading zeros, ``.0`` at the end and the ``sub-`` of BIDS: names of patients and sites.

    >>> folded_name("Sub-001"), folded_name("1.0"), folded_name("P07_2")
    ('1', '1', 'p7 2')
    """
    return _WHOLE.sub("", _POINT_ZERO.sub("", folded(text).removeprefix("sub-")))


def alike(texts: Iterable[str]) -> dict[str, list[str]]:
    """Groups of different texts that are the same but for their writing: `folded_name` -> the texts, sorted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text in sorted(set(texts)):
        groups[folded_name(text)].append(text)
    return {key: group for key, group in groups.items() if len(group) > 1}
