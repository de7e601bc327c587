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
#: Or so many times the median, whatever the deviation on a log scale.
_TIMES = 1e6
#: Values below this part of the median may be too small.
_TINY = 8.0
#: Fewer values of a site than this have no usual range.
_LEAST = 10
#: A robust deviation: the median absolute deviation of a normal distribution times this.
_NORMAL = 1.4826
#: How far sites' medians may be from a power of ten of each other, on a log10 scale.
_SLACK = 0.2
#: Where values scatter by more than this share of the median, sites' medians differ for other reasons than units.
_TIGHT = 0.5
#: Numbers that mean "not measured" in many tables.
_CODES = (
    0.0, -1.0, -2.0, -3.0, -7.0, -8.0, -9.0,
    *(sign * float(np.float32(code)) for sign in (1, -1) for code in
      (77, 88, 99, 777, 888, 999, 7777, 8888, 9999, 99999, 999999, 99.9, 999.9, 9999.9, 99.99, 999.99)),
)  # fmt: skip


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
    measured = np.array([is_measured(column) for column in together.T], dtype=bool)
    codes = _code_columns(together, measured)
    blanked = {site: _blanked(table, codes) for site, table in tables.items()}
    usual = {site: _robust(table) for site, table in blanked.items()}
    return [
        *_extreme(sites, blanked, usual, names, measured),
        *_code_notes(sites, tables, names, codes),
        *_units(usual, names, measured),
    ]


def usual_values(data: SiteData) -> tuple[Values, Values]:
    """Median and robust deviation of each feature that is measured and has enough values at a site, else NaN; two
    ``[F]``."""
    table = data.table.double().numpy()
    measured = np.array([is_measured(column) for column in table.T], dtype=bool)
    blanked = _blanked(table, _code_columns(table, measured))
    centre, spread = _robust(blanked)
    return np.where(measured, centre, np.nan), np.where(measured, spread, np.nan)


def unit_notes(usual: dict[str, tuple[Values, Values]], names: list[str], known: str | None = None) -> list[Note]:
    """A note on features whose values differ between sites as if the unit did.

    Args:
        usual: site -> median and robust deviation of each feature, NaN where it has none.
        names: of the features.
        known: whose values are right, if one of ``usual`` is a model that knows them.
    """
    return _units(usual, names, np.ones(len(names), dtype=bool), known) if len(usual) > 1 and names else []


def _table(data: SiteData, *, with_label: bool) -> Values:
    table = data.table.double().numpy()
    if with_label and data.labels is not None:
        return np.column_stack([table, data.labels.double().numpy()])
    return table


def is_measured(column: npt.NDArray[np.floating]) -> bool:
    """Whether a column has so many different values, missing ones left out, that it is no list of groups."""
    return any(
        len(np.unique(part[~np.isnan(part)])) >= _LEAST for part in (column[:: max(1, len(column) // 1000)], column)
    )


def _extreme(
    sites: dict[str, SiteData],
    tables: dict[str, Values],
    usual: dict[str, tuple[Values, Values]],
    names: list[str],
    measured: npt.NDArray[np.bool_],
) -> list[Note]:
    """A note on values that are far from the site's median."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    cases = []
    for site, table in tables.items():
        far = _far(table, *usual[site]) & measured
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
        f"{counted(total, 'value is', 'values are')} far from the usual values of the site, in {features}: {listed}. "
        "One such value can spoil scaling and training: look for failed measurements and wrong units, and leave such "
        'rows out with `where` (`{volume: "> 800"}`) or mend them.'
    )
    return [Note("N234", text, cases)]


def _far(values: Values, centre: Values, spread: Values) -> npt.NDArray[np.bool_]:
    """Which values are far from the median of their column."""
    far = (np.abs(values - centre) > _FAR * spread) & (spread > 0)
    small = (values > 0) & (values < centre / _TINY)
    struck = np.flatnonzero((far | small).any(axis=0))
    far[:, struck] = _far_in_size(values[:, struck], far[:, struck], small[:, struck], centre[struck])
    return far


def _far_in_size(
    values: Values, far: npt.NDArray[np.bool_], small: npt.NDArray[np.bool_], centre: Values
) -> npt.NDArray[np.bool_]:
    """Which values of columns without negative numbers are far from the median on a log scale, too.

    A skewed column, such as the volume of lesions, has values far above its median that are no mistakes; and in any
    column a value far too small is near the median as a difference.
    """
    signed = (values < 0).any(axis=0)
    logs = np.log(np.where(values > 0, values, np.nan))
    middle, width = _robust(logs)
    in_size = (np.abs(logs - middle) > _FAR_LOG * width) & (width > 0)
    return np.where(signed, far, (far | small) & (in_size | ((values > _TIMES * centre) & (centre > 0))))


def _robust(values: Values) -> tuple[Values, Values]:
    """Median and robust deviation of each column, NaN where there are few values.

    Where most values are equal, the deviation comes from the middle four fifths.
    """
    centre = _quantile(values, 0.5)
    spread = _NORMAL * _quantile(np.abs(values - centre), 0.5)
    flat = np.flatnonzero(spread == 0)
    if len(flat):
        spread[flat] = (_quantile(values[:, flat], 0.9) - _quantile(values[:, flat], 0.1)) / 2.56
    few = (~np.isnan(values)).sum(axis=0) < _LEAST
    return np.where(few, np.nan, centre), np.where(few, np.nan, spread)


def _quantile(values: Values, share: float) -> Values:
    """Quantile of each column without its missing values, NaN where there are none."""
    ordered = np.sort(np.ascontiguousarray(values.T), axis=1).T  # missing values last
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
            others = together[
                ~hits[:, place] & ~np.isnan(together[:, place]) & ~np.isin(together[:, place], _CODES), place
            ]
            if len(others) >= _LEAST and _stands_apart(code, others):
                found.setdefault(int(place), []).append(code)
    return found


def _stands_apart(code: float, others: Values) -> bool:
    low, high = others.min(), others.max()
    if low <= code <= high:
        return False
    first, third = np.quantile(others, [0.25, 0.75])
    gap = low - code if code < low else code - high
    # Beyond the largest gap that the values leave among themselves, and by more than the usual range; a small positive
    # number may well be an age or a score, and must be further out.
    reach = high - low if 0 < code < 100 else third - first
    return bool(gap > reach and gap > 2 * np.diff(np.sort(others)).max())


def _blanked(table: Values, codes: dict[int, list[float]]) -> Values:
    table = table.copy()
    for place, values in codes.items():
        table[np.isin(table[:, place], values), place] = np.nan
    return table


def _code_notes(
    sites: dict[str, SiteData], tables: dict[str, Values], names: list[str], codes: dict[int, list[float]]
) -> list[Note]:
    said, cases = [], dict[str, None]()
    for place, values in sorted(codes.items()):
        for code in values:
            hits = {site: np.flatnonzero(table[:, place] == code).tolist() for site, table in tables.items()}
            said.append(f"{names[place]} {code:g} ({sum(map(len, hits.values()))})")
            cases |= {f"{site}, {sites[site].cases[row]}": None for site, rows in hits.items() for row in rows}
    if not said:
        return []
    them = "it" if len(said) == 1 else "them"
    text = (
        f"{counted(len(said), 'number stands', 'numbers stand')} apart from all other values and may mean that "
        f"nothing was measured: {some(said)}. If so, add {them} to `missing`, or leave the rows out with `where`."
    )
    return [Note("N236", text, cases)]


def _units(
    usual: dict[str, tuple[Values, Values]], names: list[str], measured: npt.NDArray[np.bool_], right: str | None = None
) -> list[Note]:
    """A note on sites whose values are a power of ten times those of the others, in centre and in spread."""
    sites = list(usual)
    first = None if right is None else sites.index(right)
    centres, spreads = (np.stack([found[part] for found in usual.values()]) for part in (0, 1))
    notes: dict[tuple[str, ...], list[str]] = defaultdict(list)
    sizes = np.where(np.isnan(centres), 0.0, np.abs(centres))
    known = np.where(sizes > 0, sizes, np.inf).min(axis=0)
    for place in np.flatnonzero(measured & (sizes.max(axis=0) > 5 * known)).tolist():
        shifts = _shifts(centres[:, place], spreads[:, place], first)
        if any(shifts):
            where = (
                f"about {10.0**shift:g} times at {site}" for site, shift in zip(sites, shifts, strict=True) if shift
            )
            notes[tuple(where)].append(names[place])
    if not notes:
        return []
    said = "; ".join(f"{some(columns)} ({some(where)})" for where, columns in list(notes.items())[:MOST_NAMES])
    text = (
        "Values differ between sites as if the unit did (mm for cm, g for kg), compared with the site in the middle: "
        f"{said}. Bring all sites to one unit."
    )
    if right is not None:
        text = (
            f"Values differ from those that the model has seen as if the unit did (mm for cm, g for kg): {said}. "
            "Bring them to the unit of the model."
        )
    return [Note("N235", text)]


def _shifts(centres: Values, spreads: Values, right: int | None) -> list[int]:
    """For each site by which power of ten its values differ from those of the site in the middle, or of ``right``.

    0 where a site has no usual range, where the sign differs from site to site, and where sites lie in between, too:
    then the column differs from scanner to scanner, or from population to population.
    """
    shifts = np.zeros(len(centres), dtype=np.int64)
    known = np.flatnonzero((spreads > 0) & (spreads < _TIGHT * np.abs(centres)))
    if len(known) < 2 or right not in {None, *known.tolist()} or len(np.unique(np.sign(centres[known]))) > 1:
        return shifts.tolist()
    sizes, widths = np.log10(np.abs(centres[known])), np.log10(spreads[known])
    middle = np.argsort(sizes, kind="stable")[(len(known) - 1) // 2] if right is None else known.tolist().index(right)
    sizes, widths = sizes - sizes[middle], widths - widths[middle]
    powers = sizes.round()
    fits = (np.abs(sizes - powers) < _SLACK) & (np.abs(widths - powers) < 2.5 * _SLACK)
    if fits.all():
        shifts[known] = powers.astype(np.int64)
    return shifts.tolist()
