"""What was sent besides the model: said once in ``payloads.csv``, to which rows of ``rounds.csv`` point by a number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.errors import ResultsError
from polyclinic.study.columns import EXCHANGED, MODEL, PAYLOAD_COLUMNS, PAYLOADS
from polyclinic.study.table_files import has_table, read_table

#: Columns that a training writes, with what went each way in words.
WORDS = {"up": "extra_up", "down": "extra_down"}
#: One payload as `polyclinic.communication.exchange.Traffic.describe` writes it, up to the next one.
_PAYLOAD = re.compile(
    r"(?P<name>\S.*?) (?P<shape>\[[\d, ]*\])(?: × (?P<times>\d+))? (?P<size>\d+) bytes(?:; (?=.)|$)", re.DOTALL
)


@dataclass(frozen=True)
class Sent:
    """Tensors of one name and shape that went one way in one exchange.

    Attributes:
        name: ``PART/NAME``.
        shape: as it is written, ``[8, 5]``; ``[]`` is a single number.
        times: how many there were.
        size: of all of them, bytes.
    """

    name: str
    shape: str
    times: int
    size: int


def read_payloads(text: str) -> list[Sent]:
    """The payloads of a cell ``extra_up`` or ``extra_down``.

    Raises:
        ValueError: the text is something else.
    """
    found, place = list[Sent](), 0
    while place < len(text):
        one = _PAYLOAD.match(text, place)
        if one is None:
            raise ValueError(f"got {text[place:]!r}, expected 'PART/NAME [SHAPE] SIZE bytes'")
        found.append(Sent(one["name"], one["shape"], int(one["times"] or 1), int(one["size"])))
        place = one.end()
    return found


class Numbers:
    """Gives the same number to rounds in which the same was sent besides the model, from 1 on; 0 is nothing."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {("", ""): 0}

    def put(self, rounds: pd.DataFrame) -> pd.DataFrame:
        """Rows of a training with a number where they had words; itself without such words.

        Numbers are given in the order in which things are seen, so the same rows in the same order get the same.
        """
        up, down = WORDS.values()
        if not {up, down} <= set(rounds.columns):
            return rounds
        ups, up_words = pd.factorize(rounds[up].fillna("").astype(str))
        downs, down_words = pd.factorize(rounds[down].fillna("").astype(str))
        pairs, seen = pd.factorize(ups * len(down_words) + downs)
        places = zip(*np.divmod(seen, max(len(down_words), 1)), strict=True)
        said = [(str(up_words[int(one)]), str(down_words[int(other)])) for one, other in places]
        own = np.array([self._numbers.setdefault(words, len(self._numbers)) for words in said], dtype=np.int64)
        found = rounds.drop(columns=[up, down])
        found.insert(list(rounds.columns).index(up), PAYLOADS, own[pairs])
        return found

    def table(self) -> pd.DataFrame:
        """What the numbers mean: content of ``payloads.csv``.

        Raises:
            ValueError: words that tell of nothing that was sent.
        """
        rows = [
            (number, way, one.name, one.shape, one.times, one.size)
            for words, number in self._numbers.items()
            for way, text in zip(WORDS, words, strict=True)
            for one in read_payloads(text)
        ]
        return pd.DataFrame(rows, columns=PAYLOAD_COLUMNS)


def read_rounds(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is in ``rounds.csv`` and ``payloads.csv``; ``path`` is that of the former.

    Where an older version wrote words into every row, they are given numbers now.

    Raises:
        ResultsError: P501, the two files do not belong together, or words can't be understood.
    """
    rounds, other = read_table(path), path.with_name("payloads.csv")
    try:
        if PAYLOADS not in rounds:
            numbers = Numbers()
            return numbers.put(rounds), numbers.table()
        payloads = read_table(other) if has_table(other) else pd.DataFrame(columns=PAYLOAD_COLUMNS)
        unknown = set(rounds[PAYLOADS].unique()) - {0, *payloads[PAYLOADS]}
        if unknown:
            raise ValueError(f"it says nothing of number {min(unknown)}, which {path.name} has")
    except ValueError as error:
        name = path.name if PAYLOADS not in rounds else other.name
        raise ResultsError("P501", f"{name} in the results folder can't be used: {error}.",
                           "Put the file back as the study wrote it, or run the study again.") from None  # fmt: skip
    return rounds, payloads


def exchanged_table(
    sent: Mapping[str, Iterable[int]], payloads: pd.DataFrame, reveals: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    """What could be revealed by what was sent, said once a method and payload.

    Args:
        sent: method -> numbers in the column ``payloads`` of its rows in ``rounds.csv``.
        payloads: content of ``payloads.csv``.
        reveals: method -> payload -> what it could reveal; of the model, which of it is shared.
    """
    rows = []
    for method, told in reveals.items():
        names = set(payloads["payload"][payloads[PAYLOADS].isin(set(sent.get(method, ())))])
        rows += [(method, name, words) for name, words in told.items() if name in names or name == MODEL]
    return pd.DataFrame(rows, columns=EXCHANGED)
