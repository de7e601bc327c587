"""Small readers of a results folder that the answers are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polyclinic.methods import PUBLISHED
from polyclinic.study.report.folder import CROSS, POOLED, Folder, of_run

#: So many names are listed; of more the first ones and how many there are.
MOST_NAMES = 12


def part(folder: Folder, name: str) -> dict[str, Any]:
    """A part of the study file; empty where it is not there."""
    found = folder.study.get(name)
    return found if isinstance(found, dict) else {}


def listed(names: list[str], most: int = MOST_NAMES) -> str:
    """``A, B and C``, or the first ``most`` and how many more there are."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def counted(count: int, thing: str) -> str:
    """``1 site``, ``3 sites``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share with the digits that count."""
    return f"{100 * share:.3g}\u00a0%"


def federated_rows(folder: Folder) -> pd.DataFrame:
    """Rows of ``rounds.csv`` of methods whose sites exchange something: no site alone, no pool."""
    table = of_run(folder.rounds)
    return table[(table["bytes_up"] + table["bytes_down"] > 0) & (table["site"] != "pool")]


def federated_methods(folder: Folder) -> list[str]:
    """Labels of the methods that are federations, in the order of the study."""
    references = {name for name, one in PUBLISHED.items() if one.place == PUBLISHED["single"].place}
    return [label for label in folder.methods if folder.name(label) not in references | {CROSS, POOLED}]


def notes_of(folder: Folder, *numbers: str) -> str:
    """The notes with these numbers, one after another; empty without any."""
    return " ".join(f"Note {note.number}: {note}" for note in folder.notes if note.number in numbers)


def interval(folder: Folder, low: float, high: float) -> str:
    """The 95 % interval of a value of the primary metric; empty without one."""
    text = folder.primary.text
    return f" (95\u00a0% interval {text(low)} to {text(high)})" if np.isfinite(low) and np.isfinite(high) else ""
