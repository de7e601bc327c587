"""What a site says of its own rows before anything is agreed: counts, names of columns, and values of codes.

Numbers of patients are not among it: of a column of numbers only how many cells are numbers. Values of labels and
groups are named with their counts, since they become classes and columns of all sites; those of few cases only where
the site lets them be named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from polyclinic.data.opening.subgroups import Grouping, Subgroup, take_grouping
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.findings import class_counts, encode_findings, flat_classes
from polyclinic.data.tables.labels import MOST_CLASSES
from polyclinic.data.tables.numbers import notation
from polyclinic.data.tables.rows import Rows
from polyclinic.data.tables.table import comparison, matches, parse_numbers
from polyclinic.data.tables.times import happened, unknown_codes
from polyclinic.data.volumes.fingerprint import SiteFingerprint
from polyclinic.limits import Body, Count, Name, Number, Sentence

#: Spelling -> number of labelled cases.
Spellings = dict[Name, Count]


class Kind(Body):
    """How a covariate is written.

    Attributes:
        numbers, others: cells that are numbers, and that are not.
        advice: what to do about the others, where they are numbers in another notation.
        padded: whether numbers begin with a 0, as codes do.
    """

    numbers: Count
    others: Count
    advice: Sentence = ""
    padded: bool = False


class Census(Body):
    """What a site says of its rows.

    Attributes:
        found: rows that belong to the study.
        usable: those that can be used, as far as the table tells.
        labelled: those of them with a label or mask.
        features: columns that are features, in order.
        counters: further columns that `features` would take, but here they only number the rows.
        labels: each spelling of the label; empty where `positive` or `classes` say what counts, or for other targets.
        different: how many values the label has, where they are too many to be classes; else 0.
        positives: of the labelled cases, how many are positive, where the study says what that is, or how many had the
            event; else None.
        unknown: cells of the column ``event`` that are neither 1 nor 0, where the study does not say what counts.
        findings: labels of each class of all findings, in the order of the study file; empty for other targets.
        one_number: the number to be predicted, where it is the same in every case; else None.
        groups: for each column of codes its spellings; those that only cases without a label have count 0.
        covariates: for each covariate that may be a number, how it is written.
        subgroups: for each column of a subgroup, what is said of it.
        withheld: column -> how many of its values are not named, since too few cases have them.
        volumes: voxel sizes and extents of the images, where something is planned from them.
    """

    found: Count
    usable: Count
    labelled: Count
    features: list[Name] = []
    counters: list[Name] = []
    labels: Spellings = {}
    different: Count = 0
    positives: Count | None = None
    unknown: Count = 0
    findings: list[Count] = []
    one_number: Number | None = None
    groups: dict[Name, Spellings] = {}
    covariates: dict[Name, Kind] = {}
    subgroups: dict[Name, Grouping] = {}
    withheld: dict[Name, Count] = {}
    volumes: SiteFingerprint | None = None


def take_census(
    rows: Rows, found: int, spec: DataSpec, target: Target, floor: int = 1, volumes: SiteFingerprint | None = None,
    subgroups: Sequence[Subgroup] = (),
) -> Census:  # fmt: skip
    """What is said of a site's usable rows.

    Args:
        rows: the site's rows that can be used.
        found: how many rows it has in all.
        spec: the ``data:`` part of the study file.
        target: what is to be predicted of each case.
        floor: values of fewer cases are not named.
        volumes: what is said of its images.
        subgroups: by what patients are grouped.
    """
    withheld = dict[str, int]()

    def named(column: str, counts: Mapping[str, int]) -> Spellings:
        kept = {text: count for text, count in counts.items() if count >= floor or (not count and floor == 1)}
        rare = sum(1 for text, count in counts.items() if count and text not in kept)
        if rare:
            withheld[column] = rare
        return kept

    cases = rows.cases()
    found_labels: dict[str, object] = {}
    if target == "times":
        cells = cases.cells[str(spec.event)]
        found_labels = _events(cells, spec)
        if "labels" in found_labels:
            found_labels["labels"] = named(str(spec.event), found_labels["labels"])  # type: ignore[arg-type]
    elif target == "findings":
        found_labels = {"findings": class_counts(encode_findings(rows.cells, spec), len(flat_classes(spec)))}
    elif target not in ("masks", "images") and spec.label is not None:
        found_labels = _labels(cases.cells[spec.label][cases.labelled], spec, target)
        if cases.labelled.sum() < floor:  # the number of a few patients
            found_labels.pop("one_number", None)
        if "labels" in found_labels:
            found_labels["labels"] = named(spec.label, found_labels["labels"])  # type: ignore[arg-type]
    groups, covariates = dict[str, Spellings](), dict[str, Kind]()
    for column in code_columns(spec, rows.chosen):
        if column not in spec.categories:
            groups[column] = named(column, _spellings(rows, column))
    combat = spec.harmonisation.combat
    for column in combat.covariates if combat else []:
        if column in groups or column in spec.categories:
            continue
        covariates[column] = kind = _kind(rows.cells[column])
        if not kind.numbers and not kind.advice:
            groups[column] = named(column, _spellings(rows, column))
    return Census(
        found=found, usable=len(cases), labelled=int(cases.labelled.sum()), features=rows.chosen,
        counters=rows.left_out, groups=groups, covariates=covariates, withheld=withheld, volumes=volumes,
        subgroups={
            one.column: take_grouping(one, cases.cells[one.column], cases.origin["subject"], floor) for one in subgroups
        },
        **found_labels,
    )  # fmt: skip


def code_columns(spec: DataSpec, chosen: list[str]) -> list[str]:
    """The columns whose cells are codes for sure: categorical features, and covariates that the study calls groups or
    lists the values of."""
    combat = spec.harmonisation.combat
    named = [name for name in chosen if name in spec.categorical]
    listed = [name for name in (combat.covariates if combat else []) if name in spec.categories]
    return list(dict.fromkeys([*named, *(combat.groups if combat else []), *listed]))


def _labels(cells: pd.Series[str], spec: DataSpec, target: Target) -> dict[str, object]:
    """The entries of `Census` that speak of the label."""
    if target == "numbers":
        numbers = np.unique(parse_numbers(cells).astype(np.float32))
        return {"one_number": float(numbers[0])} if len(numbers) == 1 else {}
    if spec.positive is None and spec.classes is not None:
        return {}
    counts = {str(text): int(count) for text, count in cells.value_counts(sort=False).items()}
    if spec.positive is None:
        return {"labels": counts} if len(counts) <= MOST_CLASSES else {"different": len(counts)}
    positives = int(matches(cells, spec.positive).sum())
    # The values are told only where nothing can be learned, so that a person sees what to write instead.
    measured = isinstance(spec.positive, str) and comparison(spec.positive) is not None
    told = {} if 0 < positives < len(cells) or measured or len(counts) > MOST_CLASSES else {"labels": counts}
    return {"positives": positives, **told}


def _events(cells: pd.Series[str], spec: DataSpec) -> dict[str, object]:
    """The entries of `Census` that speak of the event; its values are told only where they can't be used."""
    events, unknown = int(happened(cells, spec).sum()), unknown_codes(cells, spec)
    counts = {str(text): int(count) for text, count in cells.value_counts(sort=False).items()}
    told = len(counts) <= MOST_CLASSES and (unknown or not 0 < events < len(cells))
    return {"positives": events, "unknown": unknown, **({"labels": counts} if told else {})}


def _spellings(rows: Rows, column: str) -> dict[str, int]:
    rows = rows.cases(column)
    counts = rows.cells[column][rows.labelled].value_counts(sort=False)
    other = rows.cells[column][~rows.labelled].dropna().unique()
    found = {str(text): int(count) for text, count in counts.items()}
    return found | {str(text): 0 for text in other if text not in found}


def _kind(cells: pd.Series[str]) -> Kind:
    numbers = parse_numbers(cells)
    others = cells[np.isnan(numbers)]
    return Kind(
        numbers=int((~np.isnan(numbers)).sum()), others=len(others), advice=notation(others) if len(others) else "",
        padded=bool(cells.str.match(r"0\d").any()),
    )  # fmt: skip
