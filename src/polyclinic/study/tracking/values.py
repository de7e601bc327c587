"""What of a round, and of the results, is tracked as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from polyclinic.study.columns import CHOSEN, PAYLOADS
from polyclinic.study.kinds import RUN
from polyclinic.study.tracking.names import label, metric_name

Row = Mapping[str, Any]
#: Columns that say of what a row is, or whose numbers are names.
_ABOUT = {"method", RUN, "seed", "fold", "without", "round", "site", PAYLOADS, CHOSEN}
#: What adds up where a site is asked several times in a round; of all else the last counts.
_ADDED = {"seconds", "bytes_up", "bytes_down", "steps"}
#: What is added over the sites.
_TOTALS = ("bytes_up", "bytes_down")


def is_number(value: object) -> bool:
    """Whether there is a number: an empty cell is none, and NaN is what an empty cell is read as."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def by_round(rows: Iterable[Row]) -> list[tuple[int, dict[str, float]]]:
    """Number of each round -> name -> value; rows are in order of the rounds.

    ``loss/SITE`` is a column of ``rounds.csv`` at a site, ``mean/loss`` the mean of losses, or of what was validated,
    over the sites (as ``polyclinic watch`` shows it), ``total/bytes_up`` a sum over them.
    """
    return [(number, _of_round(list(own))) for number, own in groupby(rows, lambda row: int(row["round"]))]


def _of_round(rows: list[Row]) -> dict[str, float]:
    sites: dict[str, dict[str, float]] = {}
    for row in rows:
        found = sites.setdefault(str(row["site"]), {})
        for name, value in row.items():
            if name not in _ABOUT and is_number(value):
                found[name] = float(value) + (found.get(name, 0.0) if name in _ADDED else 0.0)
    told = {f"{metric_name(name)}/{label(site)}": value for site, own in sites.items() for name, value in own.items()}
    for name in dict.fromkeys(name for own in sites.values() for name in own):
        values = [own[name] for own in sites.values() if name in own]
        if name == "loss" or name.startswith("validation_"):
            told[f"mean/{metric_name(name)}"] = sum(values) / len(values)
        elif name in _TOTALS:
            told[f"total/{name}"] = sum(values)
    return told


def best_rounds(rows: Iterable[Row]) -> dict[str, float]:
    """The round whose model is tested: once, or of each site where sites have their own."""
    best = {str(row["site"]): float(row["round"]) for row in rows if row.get(CHOSEN) == 1}
    if len(set(best.values())) == 1:
        return {"best_round": next(iter(best.values()))}
    return {f"best_round/{label(site)}": number for site, number in best.items()}


def flat(content: Mapping[str, Any], before: str = "") -> dict[str, str | float]:
    """Entries of a study file by their paths: ``training.optimizer.sgd.lr``; lists as text; empty ones are left out."""
    found: dict[str, str | float] = {}
    for key, value in content.items():
        name = f"{before}{label(str(key))}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif value is not None and value != []:
            found[name] = value if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)
    return found


def _text(value: object) -> str:
    """A value as YAML would have it on one line, no longer than a store takes."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 400 else f"{text[:399]}…"
