"""Several labels of a case: a column each, of which a cell may be empty and a site may lack the whole.

The classes of all findings stand in one row, those of the first finding first: with ``tb`` (0, 1) and ``grade`` (1, 2,
3) the class ``grade=2`` is number 3. A label that is missing is `NO_CLASS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.spec import DataSpec, Finding
from polyclinic.data.tables.codes import scalar_text
from polyclinic.data.tables.labels import binary_names
from polyclinic.data.tables.table import matches
from polyclinic.errors import DataError, nearest
from polyclinic.notes import Note

#: The number of a label that is missing; as of a case without a label, see `polyclinic.data.cases.NO_CLASS`.
_MISSING = -1


def finding_classes(spec: DataSpec) -> dict[str, list[str]]:
    """Finding -> names of its classes, of two the positive one last."""
    return {name: _class_names(name, finding) for name, finding in (spec.findings or {}).items()}


def flat_classes(spec: DataSpec) -> list[str]:
    """Names of the classes of all findings, one after another."""
    return [text for names in finding_classes(spec).values() for text in names]


def _class_names(name: str, finding: Finding) -> list[str]:
    if finding.positive is not None:
        return binary_names(name, finding.positive)
    return [f"{name}={text}" for text in map(scalar_text, finding.classes or (0, 1))]


def _is_class(cells: pd.Series[str], finding: Finding) -> npt.NDArray[np.bool_]:
    """Which rows are of which class, bool ``[C, N]``; none of a missing cell."""
    known = cells.notna().to_numpy()
    there = cells[known]
    if finding.positive is not None:
        positive = matches(there, finding.positive)
        own = np.stack([~positive, positive])
    elif finding.classes is None:  # true, yes and on are 1
        own = np.stack([matches(there, [0, False]), matches(there, [1, True])])
    else:
        own = np.stack([matches(there, value) for value in finding.classes])
    found = np.zeros((len(own), len(cells)), dtype=np.bool_)
    found[:, known] = own
    return found


def has_finding(cells: pd.DataFrame, spec: DataSpec) -> npt.NDArray[np.bool_]:
    """Which rows have a label of any finding, bool ``[N]``."""
    return np.asarray(cells[list(spec.findings or ())].notna().any(axis=1), dtype=np.bool_)


def finding_reasons(cells: pd.DataFrame, spec: DataSpec) -> dict[str, npt.NDArray[np.bool_]]:
    """Why rows can't be used -> which, bool ``[N]``: a cell has a value that is none of the finding's classes."""
    found = dict[str, npt.NDArray[np.bool_]]()
    for name, finding in (spec.findings or {}).items():
        one = "1 or 0" if finding.classes is None else "one of its classes"
        found[f"{name} is not {one}"] = ~_is_class(cells[name], finding).any(axis=0) & cells[name].notna().to_numpy()
    return found


def encode_findings(cells: pd.DataFrame, spec: DataSpec) -> npt.NDArray[np.int64]:
    """Number of the class of each finding, int64 ``[N, K]``, -1 where the label is missing.

    Args:
        cells: of rows that passed ``finding_reasons``.
        spec: the ``data:`` part of the study file.
    """
    columns, first = [], 0
    for name, finding in (spec.findings or {}).items():
        own = _is_class(cells[name], finding)
        columns.append(np.where(own.any(axis=0), own.argmax(axis=0) + first, _MISSING))
        first += len(own)
    return np.stack(columns, axis=1).astype(np.int64)


def class_counts(labels: npt.NDArray[np.int64], classes: int) -> list[int]:
    """Labels of each class of all findings, ``[C]``, from ``[N, K]``."""
    found: list[int] = np.bincount(labels[labels >= 0].ravel(), minlength=classes).tolist()
    return found


def absent_notes(tables: Mapping[str | None, Sequence[str]], spec: DataSpec) -> list[Note]:
    """Notes on tables that lack the column of a finding.

    Args:
        tables: site (None for the only table) -> names of its columns.
        spec: the ``data:`` part of the study file.
    """
    notes = []
    for site, columns in tables.items():
        absent = [name for name in spec.findings or () if name not in columns]
        if absent:
            hints = [nearest(name, list(columns)) for name in absent]
            text = (
                f"{'The table' if site is None else f'Site {site}'} has no column {', '.join(map(repr, absent))}: its "
                f"cases have no label of {'this finding' if len(absent) == 1 else 'these findings'}, and are not "
                "scored for it."
            )
            notes.append(Note("N285", " ".join([text, *(hint for hint in hints if hint.startswith("Did"))])))
    return notes


def check_findings(labels: Mapping[str, Sequence[int]], spec: DataSpec) -> None:
    """Stop where nothing of a finding can be learned from all sites together.

    Args:
        labels: site -> labels of each class of all findings, ``[C]``.
        spec: the ``data:`` part of the study file.

    Raises:
        DataError: P203 with the finding.
    """
    totals, first = np.sum([list(own) for own in labels.values()], axis=0), 0
    for name, classes in finding_classes(spec).items():
        own = totals[first : first + len(classes)]
        first += len(classes)
        if not own.sum():
            raise DataError(
                "P203", f"No site has a label of {name!r} (`findings`).",
                "Compare the name with the columns of the tables, or take it out.",
            )  # fmt: skip
        if np.count_nonzero(own) < 2:
            only = classes[int(own.argmax())]
            raise DataError(
                "P203", f"All {int(own.sum())} labels of {name!r} (`findings`) are {only!r}, so there is nothing to "
                "learn.", "Say with `positive` or `classes` what its values mean, or take it out.",
            )  # fmt: skip
