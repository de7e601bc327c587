"""Feature columns of a table: which they are, and their values as one matrix."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import ComBatOptions, DataSpec
from polyclinic.data.tables.codes import equals, plain_number, scalar_text
from polyclinic.data.tables.table import parse_numbers, require_column, to_numbers
from polyclinic.errors import DataError, StudyError, nearest
from polyclinic.options import EntryError


def choose_features(
    spec: DataSpec, available: Sequence[str], taken: set[str], table: str, counters: Collection[str] = ()
) -> list[str]:
    """Names of the feature columns, in the order of the study file, then of the table.

    An entry of ``features`` or ``exclude`` is a column's name or a glob. A glob never takes a column that has another
    part in the study (``taken``: site, subject, label, split, ...), so that ``"*"`` can't leak the label, nor one of
    ``counters``, which give away the order of the rows. Columns under ``categorical`` are features too.

    Args:
        spec: the ``data:`` part of the study file.
        available: names of the table's columns.
        taken: columns with another part in the study.
        table: what to call the table in a message.
        counters: columns that number the rows; they are features only where their own name stands in the study.

    Raises:
        DataError: P202 when an entry matches no column, or nothing is left.
        StudyError: P104 when the label is also a feature.
    """
    wanted = _expand(spec.features, "features", available, taken, table)
    named = {spec.features} if isinstance(spec.features, str) else set(spec.features or [])
    wanted = [name for name in wanted if name in named or name not in counters]
    wanted += spec.categorical
    excluded = set(_expand(spec.exclude, "exclude", available, set(), table))
    chosen = [name for name in dict.fromkeys(wanted) if name not in excluded]
    for column in (spec.time, spec.event, *(spec.findings or ())):
        if column in chosen:
            text = f"{column!r}, which is to be predicted, is also among the features."
            raise StudyError("P104", text, "Take it out of `features`.")
    if spec.label in chosen:
        raise StudyError("P104", f"The label {spec.label!r} is also among the features.", "Take it out of `features`.")
    if not chosen and wanted:
        raise DataError("P202", "No feature is left after `exclude`.", "Exclude fewer columns.")
    if not chosen:
        raise DataError(
            "P202",
            "No feature is left: the columns that `features` takes have no name or only number the rows.",
            "Name the columns with the measurements.",
        )
    for name in chosen:
        require_column(available, name, "categorical" if name in spec.categorical else "features", table)
    return chosen


def check_categories(spec: DataSpec) -> None:
    """Stop where the listed values of a column of codes are no list of different values, or nothing takes them.

    Raises:
        EntryError: P102 with the place.
    """
    combat = spec.harmonisation.combat
    used = {*spec.categorical, *(combat.covariates if combat else []), *(combat.groups if combat else [])}
    for column, values in spec.categories.items():
        place = ("data", "categories", column)
        if column not in used:
            raise EntryError("P102", f"the column {column!r} is no column of codes in this study.",
                             "Name it under `categorical` or as a covariate, or take it out.", place=place)  # fmt: skip
        if any(isinstance(value, bool) for value in values):
            raise EntryError("P102", f"got {values}; yes, no, true and false without quotes are no texts.",
                             'Put them in quotes as they stand in the table: ["yes", "no"].', place=place)  # fmt: skip
        texts = [plain_number(text) or text for text in map(scalar_text, values)]
        if len(set(texts)) < len(texts) or not texts:
            raise EntryError("P102", f"got {values}; expected one or more values, each of them once.",
                             "1, 1.0 and \"1\" are the same.", place=place)  # fmt: skip


#: For each column of codes the values in order, and what each spelling means; where the study file lists the values
#: there are no spellings.
Codes = tuple[Mapping[str, Sequence[str]], Mapping[str, Mapping[str, str]]]


def encode_features(
    cells: pd.DataFrame, chosen: Sequence[str], codes: Codes, spec: DataSpec
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The feature matrix and the names of its columns.

    A column under ``categorical`` becomes one column of 0 and 1 for each of its values (``cp=1``, ``cp=2``, ...; values
    of all sites, in order). A missing categorical cell is NaN in all of them, so that imputation by the mean gives each
    value its share of the training part. Other features are divided by ``divide_by`` where that is set.

    Args:
        cells: texts of rows, NaN where missing.
        chosen: feature columns.
        codes: what the sites agreed on.
        spec: the ``data:`` part of the study file.

    Returns:
        float32 ``[N, F]`` with NaN where missing, and F names.

    Raises:
        DataError: P203 when a feature is not a number.
    """
    divisor = parse_numbers(cells[spec.divide_by]) if spec.divide_by else np.ones(len(cells))
    values: list[npt.NDArray[np.float32]] = []
    names: list[str] = []
    for name in chosen:
        if name in spec.categorical:
            for value, here in _indicators(cells[name], name, codes):
                values.append(np.where(cells[name].isna(), np.nan, here).astype(np.float32))
                names.append(f"{name}={value}")
            continue
        numbers = to_numbers(cells[name], "features", identifies=name == spec.subject)
        with np.errstate(over="ignore"):
            values.append((numbers / divisor).astype(np.float32))
        names.append(name)
        if np.isinf(values[-1]).any():
            raise DataError("P203", f"The column {name!r} (`features`) has numbers beyond 3.4e38.", "Use another unit.")
    return np.stack(values, axis=1), names


def encode_covariates(
    cells: pd.DataFrame, codes: Codes, combat: ComBatOptions
) -> tuple[npt.NDArray[np.float64], dict[str, list[str]]]:
    """The covariates of harmonisation, and the names of their columns.

    A column of numbers is one column. A column of codes becomes a column of 0 and 1 for each of its values but the
    first (values of all sites, in order), so a covariate with one value only has none.

    Args:
        cells: texts of rows, without missing covariates.
        codes: what the sites agreed on; a covariate that is not among them is a number.
        combat: the entry of the study file.

    Returns:
        float64 ``[N, K]``, and for each column of the table the names of the columns made of it, K in all.

    Raises:
        DataError: P203 when a number is a code, or its points stand for thousands.
    """
    values: list[npt.NDArray[np.float64]] = []
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys([*combat.covariates, *combat.groups]):
        if name not in codes[0]:
            numbers = to_numbers(cells[name], "covariates")
            values.append(numbers)
            names[name] = [name]
            continue
        others = list(_indicators(cells[name], name, codes))[1:]
        values += [here.astype(np.float64) for _, here in others]
        names[name] = [f"{name}={value}" for value, _ in others]
    return np.stack(values, axis=1) if values else np.empty((len(cells), 0)), names


def _indicators(cells: pd.Series[str], name: str, codes: Codes) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Each value of a column of codes, and which cells have it."""
    spellings = codes[1].get(name)
    texts = cells if spellings is None else cells.map(dict(spellings))
    for value in codes[0][name]:
        yield (
            value,
            equals(cells, value) if spellings is None else (texts == value).to_numpy(dtype=bool, na_value=False),
        )


def _expand(
    entries: str | list[str] | None, use: str, available: Sequence[str], taken: set[str], table: str
) -> list[str]:
    found: list[str] = []
    for entry in [entries] if isinstance(entries, str) else entries or []:
        if entry in available:
            found.append(entry)
            continue
        matching = [name for name in available if name not in taken and fnmatchcase(name, entry)]
        if not matching:
            raise DataError(
                "P202", f"{table} has no column that matches {entry!r} (`{use}`).", nearest(entry, list(available))
            )
        found += matching
    return found
