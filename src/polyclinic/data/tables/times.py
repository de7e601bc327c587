"""Times and events of a table: when something happened to a case, or until when it had not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.quality.words import some
from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.codes import in_order, one_text_each
from polyclinic.data.tables.numbers import parse_numbers, require_points, to_numbers
from polyclinic.data.tables.table import matches
from polyclinic.errors import DataError

#: Names of what became of a case, by whether the event happened.
EVENT_CLASSES = ("censored", "event")
_MOST_QUOTED = 10
#: Names of columns in which 1 is likely to mean that the event did not happen.
_OPPOSITE = re.compile(r"cens|alive|surviv(?!al)|living|lost", re.IGNORECASE)


def time_reasons(cells: pd.DataFrame, spec: DataSpec) -> npt.NDArray[np.object_]:
    """Why a row's time or event can't be used, "" where they can: object ``[N]``.

    Raises:
        DataError: P203 when no time is a number, or numbers have decimal commas or separators of thousands.
    """
    time, event = cells[str(spec.time)], cells[str(spec.event)]
    require_points(time, "time")
    numbers = parse_numbers(time)
    if time.notna().any() and np.isnan(numbers).all():
        to_numbers(time, "time")  # says what they are instead, such as dates
    reasons = np.full(len(cells), "", dtype=object)
    reasons[event.isna().to_numpy()] = f"{spec.event} is missing"
    reasons[~(numbers > 0)] = f"{spec.time} is not above 0"
    reasons[np.isnan(numbers)] = f"{spec.time} is not a number"
    reasons[time.isna().to_numpy()] = f"{spec.time} is missing"
    return reasons


def encode_times(cells: pd.DataFrame, spec: DataSpec) -> npt.NDArray[np.float32]:
    """Time of each row, and 1 where the event happened or 0 where the case was last seen without it, ``[N, 2]``.

    Args:
        cells: of used rows; each passed ``time_reasons``, and all sites together ``check_events``.
        spec: the ``data:`` part of the study file.

    Raises:
        DataError: P203 when a time is beyond what float32 holds.
    """
    with np.errstate(over="ignore"):
        times = to_numbers(cells[str(spec.time)], "time").astype(np.float32)
    if np.isinf(times).any():
        raise DataError("P203", f"The column {spec.time!r} (`time`) has numbers beyond 3.4e38.", "Use another unit.")
    events = happened(cells[str(spec.event)], spec)
    return np.stack([times, events.astype(np.float32)], axis=1)


def happened(cells: pd.Series[str], spec: DataSpec) -> npt.NDArray[np.bool_]:
    """Which cells of the column ``event`` say that the event happened, bool ``[N]``."""
    if spec.positive is not None:
        return matches(cells, spec.positive)
    return np.asarray(_codes(cells) == 1.0, dtype=np.bool_)


def unknown_codes(cells: pd.Series[str], spec: DataSpec) -> int:
    """How many cells of the column ``event`` are neither 1 nor 0 (or true and false), where that is what counts."""
    return 0 if spec.positive is not None else int((~np.isin(_codes(cells), (0.0, 1.0))).sum())


def _codes(cells: pd.Series[str]) -> npt.NDArray[np.float64]:
    return parse_numbers(cells.str.strip().str.lower().replace({"true": "1", "false": "0"}))


def check_events(
    cases: Mapping[str, int], events: int, unknown: Mapping[str, int], values: Iterable[str], spec: DataSpec
) -> None:
    """Stop where what the column ``event`` says can't be what is meant.

    Nothing is guessed of codes: without ``positive`` an event is 1 and none is 0 (or true and false), and both are
    there. Where a table has 1 and 2, or 1 alone, only the person who has it knows what they mean.

    Args:
        cases: of each site.
        events: how many of them had the event.
        unknown: site -> cells that are neither 1 nor 0, of the sites that have some.
        values: spellings in the column, as far as the sites name them.
        spec: the ``data:`` part of the study file.

    Raises:
        DataError: P203 when events are not 0 and 1 and ``positive`` is not given, or none happened.
    """
    if spec.positive is not None:
        if not events:
            raise DataError(
                "P203", f"The event never happens: the column {spec.event!r} (`event`) {_says(values)}, and none of "
                f"them is `positive` ({spec.positive!r}).",
                "Say with `positive` which of them mean that the event happened.",
            )  # fmt: skip
        return
    if _OPPOSITE.search(str(spec.event)):
        raise DataError(
            "P203", f"The column {spec.event!r} (`event`) seems to say which cases did not have the event.",
            "Say with `positive` which values mean that it happened: `positive: 0` if 0 does.",
        )  # fmt: skip
    if not unknown and 0 < events < sum(cases.values()):
        return
    where = f" at {some(list(unknown))}" if unknown and len(unknown) < len(cases) else ""
    raise DataError(
        "P203", f"The column {spec.event!r} (`event`) {_says(values)}{where}; expected 1 where the event happened and "
        "0 where it did not.", "Say with `positive` which values mean that the event happened, such as `positive: 2`.",
    )  # fmt: skip


def _says(values: Iterable[str]) -> str:
    found = in_order(set(one_text_each(values).values()))
    if len(found) > _MOST_QUOTED:  # it may be an identifier
        return f"has {len(found)} different values"
    if not found:
        return "has values that are not named"
    return f"has {' and '.join(filter(None, (', '.join(found[:-1]), found[-1])))}"
