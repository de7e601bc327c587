"""What was sent besides the model, as the tables of a results folder have it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pandas as pd

from polyclinic.study.columns import EXCHANGED

#: One payload as `polyclinic.communication.exchange.Traffic.describe` writes it.
_PAYLOAD = re.compile(r"^(?P<name>\S+) (?P<shape>\[[\d, ]*\])(?: × (?P<times>\d+))? (?P<size>\d+) bytes$")


def payloads(text: str) -> Iterator[re.Match[str]]:
    """The payloads of a cell ``extra_up`` or ``extra_down``: groups ``name``, ``shape``, ``times`` and ``size``."""
    return (found for found in map(_PAYLOAD.match, text.split("; ")) if found is not None)


def exchanged_table(rounds: pd.DataFrame, reveals: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """What could be revealed by what was sent, said once a method and payload.

    Args:
        rounds: rows of ``rounds.csv``.
        reveals: method -> payload -> what it could reveal.
    """
    rows = []
    for method, told in reveals.items():
        mine = rounds[rounds["method"] == method]
        texts = {text for column in ("extra_up", "extra_down") for text in mine[column].unique()}
        sent = {found["name"] for text in texts for found in payloads(text)}
        rows += [(method, name, words) for name, words in told.items() if name in sent]
    return pd.DataFrame(rows, columns=EXCHANGED)
