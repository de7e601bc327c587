"""Notes on times and events: what a person should know before survival is learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.cases import SiteData
from polyclinic.data.quality.words import some
from polyclinic.data.spec import DataSpec
from polyclinic.data.tables.numbers import parse_numbers
from polyclinic.data.tables.table import canonical, levels
from polyclinic.notes import Note

#: A site's median time is so many times that of the others, or so small a part: weeks for days, months for days.
_ANOTHER_UNIT = 6.0
#: Fewest cases, or events, of which a median or an order says something.
_LEAST = 10
#: A value of fewer cases is not named.
_NAMED = 5
#: A rank correlation with the time of the event beyond this is hardly found by chance, or by biology.
_FOLLOWS = 0.98

Floats = npt.NDArray[np.float64]


def time_notes(
    cells: pd.DataFrame, origin: pd.DataFrame, sites: Mapping[str, SiteData], features: Sequence[str], spec: DataSpec
) -> list[Note]:
    """What looks wrong in times and events but does not stop a study.

    Args:
        cells: texts of the used rows of all sites.
        origin: aligned with ``cells``: ``site``, ``subject``, ``case``.
        sites: the usable cases.
        features: names of the feature columns.
        spec: the ``data:`` part of the study file.
    """
    notes = [*_one_sided(sites), *_other_events(cells, spec)]
    if spec.subject is not None:
        notes += _several_times(cells, origin, spec)
    medians = {site: usual for site, data in sites.items() if (usual := usual_time(data)) is not None}
    return [*notes, *time_unit_notes(medians, spec), *_rounded(cells, spec), *_followers(sites, features)]


def _one_sided(sites: Mapping[str, SiteData]) -> list[Note]:
    notes = []
    for words, wanted in (("never happens", 0), ("always happens", 1)):
        found = [site for site, data in sites.items() if _events(data).min() == wanted == _events(data).max()]
        if found:
            what = (
                "Cox's likelihood learns nothing there, and the site is not scored by itself" if wanted == 0 else
                "if cases that were not seen until the event are left out there, its times are too short"
            )  # fmt: skip
            notes.append(
                Note("N250", f"The event {words} at {len(found)} of {len(sites)} sites ({some(found)}): {what}.")
            )
    return notes


def _events(data: SiteData) -> npt.NDArray[np.int64]:
    labels = data.labels
    if labels is None:
        raise ValueError("the cases have no events")
    found: npt.NDArray[np.int64] = labels.numpy()
    return found


def _times(data: SiteData) -> Floats:
    times = data.times
    if times is None:
        raise ValueError("the cases have no times")
    found: Floats = times.double().numpy()
    return found


def _other_events(cells: pd.DataFrame, spec: DataSpec) -> list[Note]:
    """A note where an event column has three values or more, so that something else may have happened to cases."""
    if spec.positive is None or (isinstance(spec.positive, str) and spec.positive.strip()[:1] in "<>=!"):
        return []
    texts = canonical(cells[str(spec.event)])
    meant = {str(value) for value in (spec.positive if isinstance(spec.positive, list) else [spec.positive])}
    others = [text for text in levels(texts) if text not in meant]
    if len(others) < 2:
        return []
    sizes = {text: int((texts == text).sum()) for text in others}
    named = [text for text in others if sizes[text] >= _NAMED]
    rest = sum(sizes.values()) - sum(sizes[text] for text in named)
    counts = ", ".join([f"{text} ({sizes[text]})" for text in named[:5]] + [f"rare ones ({rest})"] * (rest > 0))
    return [
        Note(
            "N251", f"Column {spec.event!r}: {len(others)} values besides `positive` count as the end of observation: "
            f"{counts}{', ...' if len(named) > 5 else ''}. If one of them is an event that keeps the other from "
            "happening (a competing risk), predicted probabilities of survival are those of a world without it.",
        )
    ]  # fmt: skip


def _several_times(cells: pd.DataFrame, origin: pd.DataFrame, spec: DataSpec) -> list[Note]:
    frame = origin[["site", "subject"]].assign(time=parse_numbers(cells[str(spec.time)]), event=cells[str(spec.event)])
    different = frame.groupby(["site", "subject"])[["time", "event"]].nunique().max(axis=1) > 1
    if not different.any():
        return []
    count = int(different.sum())
    have = "patient has" if count == 1 else "patients have"
    return [
        Note(
            "N252", f"{count} {have} rows with different times or events. Each row counts from a time 0 of its own; "
            "rows that follow each other (start and stop, or covariates that change) are not understood.",
        )
    ]  # fmt: skip


def usual_time(data: SiteData) -> float | None:
    """Median of a site's times; None of few cases, or without times."""
    return float(np.median(_times(data))) if data.times is not None and len(data) >= _LEAST else None


def round_time(longest: float) -> float:
    """A round number that a time is not beyond: 1, 2, 5 or 10 times a power of ten, so that the time stays untold."""
    size = 10.0 ** np.floor(np.log10(longest))
    return next(float(part * size) for part in (1, 2, 5, 10) if part * size >= longest)


def time_unit_notes(medians: Mapping[str, float], spec: DataSpec) -> list[Note]:
    """A note on sites that seem to count time in another unit.

    Args:
        medians: site -> its median time.
        spec: the ``data:`` part of the study file.
    """
    if len(medians) < 3:  # of two nobody could say which is the odd one
        return []
    notes, usual = [], float(np.exp(np.median(np.log(list(medians.values())))))
    for site, own in medians.items():
        ratio = own / usual
        if not 1 / _ANOTHER_UNIT < ratio < _ANOTHER_UNIT:
            times = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
            notes.append(
                Note(
                    "N253", f"Site {site}: the median of {spec.time!r} is {times} that of most sites. All sites "
                    f"must count in {spec.time_unit}.",
                )
            )  # fmt: skip
    return notes


def _rounded(cells: pd.DataFrame, spec: DataSpec) -> list[Note]:
    times = np.unique(parse_numbers(cells[str(spec.time)]))
    lost = len(times) - len(np.unique(times.astype(np.float32)))
    if not lost:
        return []
    text = (
        f"Column {spec.time!r}: {lost} of {len(times)} different times become equal to others with the 7 digits kept."
    )
    return [Note("N254", f"{text} Use a larger unit, or count from a later day.")]


def _followers(sites: Mapping[str, SiteData], features: Sequence[str]) -> list[Note]:
    """Features that order the cases with the event as their times do: they are likely to be made from them."""
    if next(iter(sites.values())).inputs.ndim != 2:
        return []
    happened = [_events(data) == 1 for data in sites.values()]
    times = pd.Series(np.concatenate([_times(data)[one] for data, one in zip(sites.values(), happened, strict=True)]))
    tables = [data.table.numpy()[one] for data, one in zip(sites.values(), happened, strict=True)]
    table = pd.DataFrame(np.concatenate(tables).astype(np.float64), columns=list(features))
    if len(times) < _LEAST or times.nunique() < _LEAST:
        return []
    enough = table.loc[:, (table.notna().sum() >= _LEAST) & (table.nunique() >= _LEAST)]
    ranks = enough.corrwith(times, method="spearman").abs()
    found = [str(name) for name, value in ranks.items() if value > _FOLLOWS]
    if not found:
        return []
    are = "feature orders" if len(found) == 1 else "features order"
    text = f"{len(found)} {are} the cases with the event as its time does: {some(found)}."
    return [
        Note("N255", f"{text} What is known only with the event must not be a feature: take it out with `exclude`.")
    ]
