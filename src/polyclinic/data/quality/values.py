"""Values that can hardly be true: far from all others, in another unit, or codes for "not measured"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polyclinic.data.cases import SiteData
from polyclinic.data.quality.words import MOST_NAMES, counted, some
from polyclinic.notes import Note

Values = npt.NDArray[np.float64]

#: A value is far out so many robust deviations from the site's median, and for positive features also on a log scale.
_FAR, _FAR_LOG = 20.0, 10.0
#: Or so many times the median, whatever the deviation.
_TIMES = 1e6
#: Fewer values of a site than this have no usual range.
_LEAST = 10
#: A robust deviation: the median absolute deviation of a normal distribution times this.
_NORMAL = 1.4826
#: Sites' medians so far apart, on a log10 scale, are looked at; and how far from a power of ten they may be.
_APART, _SLACK = 0.8, 0.2
#: Where values scatter by more than this share of the median, sites' medians differ for other reasons than units.
_TIGHT = 0.5
#: Numbers that mean "not measured" in many tables.
_CODES = (-9999.0, -999.0, -99.0, -9.0, -1.0, 0.0, 99.0, 999.0, 9999.0, 99999.0)


def value_notes(sites: dict[str, SiteData], features: Sequence[str], label: str | None) -> list[Note]:
    """What is said of the values of features that are measured, and of numbers to be predicted.

    Columns with fewer than ten different values are groups and are left alone.

    Args:
        sites: the usable cases.
        features: names of the feature matrix' columns.
        label: name of the label's column where it is a number, else None.
    """
    names = [*features, *([] if label is None else [f"{label} (the label)"])]
    tables = {site: _table(data, with_label=label is not None) for site, data in sites.items()}
    together = np.concatenate(list(tables.values()))
    measured = np.array([_is_measured(column) for column in together.T], dtype=bool)
    codes = _code_columns(together, measured)
    without_codes = {site: _blanked(table, codes) for site, table in tables.items()}
    return [
        *_extreme(sites, without_codes, names, measured),
        *_code_notes(tables, names, codes),
        *_units(without_codes, names, measured),
    ]


def _table(data: SiteData, *, with_label: bool) -> Values:
    table = data.table.double().numpy()
    if with_label and data.labels is not None:
        return np.column_stack([table, data.labels.double().numpy()])
    return table


def _is_measured(column: Values) -> bool:
    return len(np.unique(column[:: max(1, len(column) // 1000)])) >= _LEAST or len(np.unique(column)) >= _LEAST


def _extreme(sites: dict[str, SiteData], tables: dict[str, Values], names: list[str], measured: npt.NDArray[np.bool_]) -> list[Note]:  # fmt: skip
    found: dict[str, dict[str, int]] = defaultdict(dict)
    cases = []
    for site, table in tables.items():
        far = _far(table) & measured
        for place in np.flatnonzero(far.any(axis=0)):
            found[names[place]][site] = int(far[:, place].sum())
        cases += [f"{site}: {sites[site].cases[row]}" for row in np.flatnonzero(far.any(axis=1))]
    if not found:
        return []
    ordered = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    listed = some(
        f"{name} ({', '.join(f'{site} {count}' for site, count in list(counts.items())[:MOST_NAMES])}"
        f"{', ...' if len(counts) > MOST_NAMES else ''})"
        for name, counts in ordered
    )
    total = sum(sum(counts.values()) for counts in found.values())
    features = counted(len(found), "column", "columns")
    text = (
        f"{counted(total, 'value is', 'values are')} far from all others of the site, in {features}: {listed}. One such "
        "value can spoil scaling and training: look for failed measurements and wrong units, and leave such rows out "
        'with `where` (`{volume: "> 800"}`) or mend them.'
    )
    return [Note("N234", text, cases)]


def _far(table: Values) -> npt.NDArray[np.bool_]:
    """Which values are far from the median of their column."""
    far = np.zeros(table.shape, dtype=bool)
    enough = np.flatnonzero((~np.isnan(table)).sum(axis=0) >= _LEAST)
    if not len(enough):
        return far
    values = table[:, enough]
    centre, spread = _robust(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(values - centre)
        hits = (distance > _FAR * spread) & (spread > 0)
        positive = np.nanmin(values, axis=0) >= 0
        logs = np.log(np.where(positive & (values != 0), values, np.where(positive, np.nan, 1.0)))
        middle, width = _robust(logs)
        # A skewed column, such as a volume of lesions, is judged by orders of magnitude.
        hits &= ~positive | (np.abs(logs - middle) > _FAR_LOG * width)
        hits |= (np.abs(values) > _TIMES * np.abs(centre)) & (centre != 0) & (distance > _FAR * spread)
    far[:, enough] = hits
    return far


def _robust(values: Values) -> tuple[Values, Values]:
    """Median and robust deviation of each column; where most values are equal, from the middle four fifths."""
    centre = _quantile(values, 0.5)
    spread = _NORMAL * _quantile(np.abs(values - centre), 0.5)
    flat = np.flatnonzero(spread == 0)
    if len(flat):
        spread[flat] = (_quantile(values[:, flat], 0.9) - _quantile(values[:, flat], 0.1)) / 2.56
    return centre, spread


def _quantile(values: Values, share: float) -> Values:
    """Quantile of each column without its missing values, NaN where there are none."""
    ordered = np.sort(values, axis=0)  # missing values last
    last = np.maximum((~np.isnan(values)).sum(axis=0) - 1, 0)
    place = share * last
    low, high = np.floor(place).astype(np.int64), np.ceil(place).astype(np.int64)
    columns = np.arange(values.shape[1])
    below, above = ordered[low, columns], ordered[high, columns]
    return np.asarray(below + (place - low) * (above - below))


def _code_columns(together: Values, measured: npt.NDArray[np.bool_]) -> dict[int, list[float]]:
    """Columns with a well-known code that repeats and stands apart from all other values."""
    found: dict[int, list[float]] = {}
    for code in _CODES:
        hits = together == code
        for place in np.flatnonzero((hits.sum(axis=0) >= 2) & measured):
            others = together[~hits[:, place] & ~np.isnan(together[:, place]) & ~np.isin(together[:, place], _CODES), place]
            if len(others) >= _LEAST and _stands_apart(code, others):
                found.setdefault(int(place), []).append(code)
    return found


def _stands_apart(code: float, others: Values) -> bool:
    low, high = others.min(), others.max()
    if low <= code <= high:
        return False
    first, third = np.quantile(others, [0.25, 0.75])
    gap = low - code if code < low else code - high
    # Beyond the largest gap that the values leave among themselves, and by more than the usual range.
    return bool(gap > (third - first) and gap > 2 * np.diff(np.sort(others)).max())


def _blanked(table: Values, codes: dict[int, list[float]]) -> Values:
    table = table.copy()
    for place, values in codes.items():
        table[np.isin(table[:, place], values), place] = np.nan
    return table


def _code_notes(tables: dict[str, Values], names: list[str], codes: dict[int, list[float]]) -> list[Note]:
    said = []
    for place, values in sorted(codes.items()):
        for code in values:
            count = sum(int((table[:, place] == code).sum()) for table in tables.values())
            said.append(f"{names[place]} {code:g} ({count})")
    if not said:
        return []
    text = (
        f"{counted(len(said), 'number stands', 'numbers stand')} apart from all other values and may mean that "
        f"nothing was measured: {some(said)}. If so, add them to `missing`, or leave the rows out with `where`."
    )
    return [Note("N236", text)]


def _units(tables: dict[str, Values], names: list[str], measured: npt.NDArray[np.bool_]) -> list[Note]:
    """A note on sites whose values are a power of ten times those of the others, in centre and in spread."""
    if len(tables) < 2:
        return []
    sites = list(tables)
    centres, spreads = (np.full((len(sites), len(names)), np.nan) for _ in range(2))
    for row, table in enumerate(tables.values()):
        enough = (~np.isnan(table)).sum(axis=0) >= _LEAST
        if enough.any():
            centres[row, enough], spreads[row, enough] = _robust(table[:, enough])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(centres != 0, np.log10(np.abs(centres)), np.nan)
        tight = spreads < _TIGHT * np.abs(centres)
    notes: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for place in np.flatnonzero(measured):
        known = np.flatnonzero(~np.isnan(logs[:, place]) & tight[:, place] & (spreads[:, place] > 0))
        if len(known) < 2 or len(np.unique(np.sign(centres[known, place]))) > 1:
            continue
        middle = known[np.argsort(logs[known, place])[(len(known) - 1) // 2]]
        shifts = logs[known, place] - logs[middle, place]
        stretched = np.log10(spreads[known, place]) - np.log10(spreads[middle, place])
        odd = (np.abs(shifts) > _APART) & (np.abs(shifts - shifts.round()) < _SLACK)
        odd &= np.abs(stretched - shifts.round()) < 0.5
        if odd.any():
            where = tuple(f"{sites[site]} {10.0 ** shift.round():g} times" for site, shift in zip(known[odd], shifts[odd], strict=True))  # fmt: skip
            notes[where].append(names[place])
    if not notes:
        return []
    said = "; ".join(f"{some(columns)} ({some(where)})" for where, columns in list(notes.items())[:MOST_NAMES])
    text = (
        f"Values of a column differ between sites like a change of unit (mm for cm, g for kg), compared with the other "
        f"sites: {said}. Bring all sites to one unit."
    )
    return [Note("N235", text)]
