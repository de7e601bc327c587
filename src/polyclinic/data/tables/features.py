"""Feature columns of a table: which they are, and their values as one matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import ComBatOptions, DataSpec
from polyclinic.data.tables.numbers import notation, require_decimals
from polyclinic.data.tables.table import canonical, levels, parse_numbers, require_column, to_numbers
from polyclinic.errors import DataError, StudyError, nearest


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
    for column in (spec.time, spec.event):
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


def encode_features(
    cells: pd.DataFrame, chosen: list[str], spec: DataSpec
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The feature matrix and the names of its columns.

    A column under ``categorical`` becomes one column of 0 and 1 for each of its values (``cp=1``, ``cp=2``, ...; values
    of all sites, in order). A missing categorical cell is NaN in all of them, so that imputation by the mean gives each
    value its share of the training part. Other features are divided by ``divide_by`` where that is set.

    Args:
        cells: texts of all used rows of all sites, NaN where missing.
        chosen: feature columns.
        spec: the ``data:`` part of the study file.

    Returns:
        float32 ``[N, F]`` with NaN where missing, and F names.

    Raises:
        DataError: P203 when a feature is not a number, or a categorical one has no value at all.
    """
    divisor = parse_numbers(cells[spec.divide_by]) if spec.divide_by else np.ones(len(cells))
    values: list[npt.NDArray[np.float32]] = []
    names: list[str] = []
    for name in chosen:
        if name in spec.categorical:
            groups = canonical(cells[name])
            if groups.isna().all():
                raise DataError("P203", f"The column {name!r} (`categorical`) has no value.", "Take it out.")
            for level in levels(groups):
                values.append(np.where(groups.isna(), np.nan, groups == level).astype(np.float32))
                names.append(f"{name}={level}")
            continue
        numbers = to_numbers(cells[name], "features", identifies=name == spec.subject)
        with np.errstate(over="ignore"):
            values.append((numbers / divisor).astype(np.float32))
        names.append(name)
        if np.isinf(values[-1]).any():
            raise DataError("P203", f"The column {name!r} (`features`) has numbers beyond 3.4e38.", "Use another unit.")
    return np.stack(values, axis=1), names


def encode_covariates(
    cells: pd.DataFrame, combat: ComBatOptions
) -> tuple[npt.NDArray[np.float64], dict[str, list[str]]]:
    """The covariates of harmonisation, and the names of their columns.

    A column of numbers is one column. A column of texts, and each of ``combat.groups``, becomes a column of 0 and 1 for
    each of its values but the first (values of all sites, in order), so a covariate with one value only has none.

    Args:
        cells: texts of all used rows of all sites, without missing covariates.
        combat: the entry of the study file.

    Returns:
        float64 ``[N, K]``, and for each column of the table the names of the columns made of it, K in all.

    Raises:
        DataError: P203 when a covariate has numbers and texts.
    """
    values: list[npt.NDArray[np.float64]] = []
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys([*combat.covariates, *combat.groups]):
        numbers = parse_numbers(cells[name])
        texts = int(np.isnan(numbers).sum())
        other = notation(cells[name][np.isnan(numbers)]) if texts else ""
        if name not in combat.groups and (other or texts < len(numbers)):
            if texts:
                raise DataError(
                    "P203", f"The covariate {name!r} has {len(numbers) - texts} numbers and {texts} other values.",
                    other or "Add the other values to `missing`, or name the column under `groups`.",
                )  # fmt: skip
            require_decimals(cells[name], numbers, "covariates")
            if cells[name].str.match(r"0\d").any():
                raise DataError(
                    "P203", f"The covariate {name!r} has numbers that begin with a 0, as codes do.",
                    "Name the column under `groups`; for a number leave out the zeros in front.",
                )  # fmt: skip
            values.append(numbers)
            names[name] = [name]
            continue
        groups = canonical(cells[name])
        others = levels(groups)[1:]
        values += [np.where(groups == level, 1.0, 0.0) for level in others]
        names[name] = [f"{name}={level}" for level in others]
    return np.stack(values, axis=1) if values else np.empty((len(cells), 0)), names


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
