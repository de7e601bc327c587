"""Names of patients and visits in a table against those of folders: ``1``, ``Sub-01`` and ``sub-1`` are ``sub-01``."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Matches:
    """Which name of the folders each name of a table means.

    Attributes:
        found: the table's name -> the folders' name, for names that mean just one.
        otherwise: number of names among them that are written in another way.
    """

    found: dict[str, str]
    otherwise: int


def match_names(given: Collection[str], wanted: Collection[str], prefix: str) -> Matches:
    """Match names, from strict to lenient; each name of the folders is matched once, and nothing where two would fit.

    First as written (with or without ``prefix-``); then without regard to capital letters; then without zeros at the
    beginning of numbers and ``.0`` behind them; then letters and digits alone (BIDS allows no others in names).

    >>> match_names(["1", "Sub-02", "99"], ["01", "02"], "sub").found
    {'1': '01', 'Sub-02': '02'}
    """
    found: dict[str, str] = {}
    otherwise = 0
    for level, form in enumerate((_as_written, _folded, _without_zeros, _letters)):
        free: dict[str, set[str]] = defaultdict(set)
        for name in set(wanted) - set(found.values()):
            free[form(name, prefix)].add(name)
        asking: dict[str, set[str]] = defaultdict(set)
        for name in set(given) - set(found):
            asking[form(name, prefix)].add(name)
        for key, names in asking.items():
            if len(names) == 1 and len(free[key]) == 1 and key:
                (name,), (owner,) = names, free[key]
                found[name] = owner
                otherwise += level > 0
    return Matches({name: found[name] for name in sorted(found)}, otherwise)


Form = Callable[[str, str], str]


def _as_written(name: str, prefix: str) -> str:
    return name.removeprefix(f"{prefix}-")


def _folded(name: str, prefix: str) -> str:
    folded = unicodedata.normalize("NFC", name).casefold().strip()
    return re.sub(rf"^{prefix}[-_ ]?(?=.)", "", folded)


def _without_zeros(name: str, prefix: str) -> str:
    folded = _folded(name, prefix)
    whole = re.sub(r"^(\d+)\.0+$", r"\1", folded)
    return re.sub(r"(?<!\d)0+(?=\d)", "", whole)


def _letters(name: str, prefix: str) -> str:
    return "".join(letter for letter in _without_zeros(name, prefix) if letter.isalnum())
