"""The tables of the flow of cases: what was found, rejected and used at each site, and who is in which part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from polyclinic.data.opening.facts import SiteFacts
from polyclinic.data.opening.public import PublicFacts
from polyclinic.data.opening.subgroups import group_order
from polyclinic.data.spec import PUBLIC
from polyclinic.study.columns import CHARACTERISTICS, FLOW
from polyclinic.study.job import Fold

#: The parts of a fold in the order of a site's answer.
PARTS = ("train", "validation", "test")

#: Name of the rows in which all sites stand together.
ALL = "all"

Row = tuple[object, ...]


def flow_table(
    facts: Mapping[str, SiteFacts], folds: Mapping[int, Fold], classes: Sequence[str], public: PublicFacts | None = None
) -> pd.DataFrame:
    """``flow.csv``: where each site's cases went, as whole numbers.

    Args:
        facts: what each site says of its cases; also of sites that are left out, since none of their cases is used.
        folds: what is known of the sites in each fold.
        classes: names of the classes; empty where targets are no classes.
        public: what is said of the public set, which has rows of its own as if it were a site; it is in no part.

    Returns:
        Rows with the columns `FLOW`.
    """
    rows: list[Row] = []
    for site, found in facts.items():
        rows += _opened(site, found)
        rows.append((site, "used", None, "", found.used, found.patients))
        if found.instances is not None:
            rows.append((site, "instances found", None, "", found.instances_found, None))
            ordered = sorted(found.instances_rejected.items(), key=lambda item: (-item[1], item[0]))
            rows += [(site, "instances rejected", None, reason, count, None) for reason, count in ordered]
            rows.append((site, "instances", None, "", found.instances, None))
        if found.unlabelled:
            rows.append((site, "unlabelled", None, "", found.unlabelled, None))
        for name, count in (("boxed", found.boxed), ("named", found.named)):
            rows += [(site, name, None, "", count, None)] if count else []
        for fold in folds.values():
            rows += [(site, *row) for row in _of_fold(site, fold, classes)]
    if public is not None:
        rows += [*_opened(PUBLIC, public), (PUBLIC, "used", None, "", public.used, None)]
    frame = pd.DataFrame(rows, columns=FLOW)
    return frame.astype({"fold": "Int64", "cases": "Int64", "patients": "Int64"})


def _opened(site: str, facts: SiteFacts | PublicFacts) -> Iterator[Row]:
    yield site, "found", None, "", facts.found, None
    for reason, count in sorted(facts.rejected.items(), key=lambda item: (-item[1], item[0])):
        yield site, "rejected", None, reason, count, None


def _of_fold(site: str, fold: Fold, classes: Sequence[str]) -> Iterator[Row]:
    """Stage, fold, class, cases and patients of the three parts: first of all classes, then of each."""
    if site not in fold.train:
        return
    counted = fold.counted.get(site)
    if any(fold.hidden.values()):
        yield "hidden", fold.number, "", fold.hidden[site], None
    for place, (part, cases) in enumerate(zip(PARTS, (fold.train, fold.validation, fold.test), strict=True)):
        patients = counted.patients[place] if counted and counted.patients else None
        yield part, fold.number, "", cases[site], patients
        for name, count in zip(classes, counted.classes[place] if counted else [], strict=False):
            yield part, fold.number, name, count, None


def characteristics_table(folds: Mapping[int, Fold], least: int) -> pd.DataFrame:
    """``characteristics.csv``: how many of each group of patients are in each part, at each site and at all together.

    Args:
        folds: what is known of the sites in each fold.
        least: a count of fewer patients is not told.

    Returns:
        Rows with the columns `CHARACTERISTICS`; none where the study has no subgroups.
    """
    rows: list[Row] = []
    for fold in folds.values():
        counts: dict[tuple[str, str, str], list[int]] = {}
        for site, counted in fold.counted.items():
            for name, groups in counted.groups.items():
                for group, own in groups.items():
                    counts[site, name, group] = own
                    total = counts.get((ALL, name, group), [0] * 6)
                    counts[ALL, name, group] = [a + b for a, b in zip(total, own, strict=True)]
        for (site, name, group), own in counts.items():
            for place, part in enumerate(PARTS):
                cases, patients = own[place], own[place + len(PARTS)]
                told = (cases, patients, "") if patients >= least else (None, None, f"fewer than {least} patients")
                rows.append((site, name, group, fold.number, part, *told))
    frame = pd.DataFrame(rows, columns=CHARACTERISTICS).astype({"cases": "Int64", "patients": "Int64"})
    subgroups = {name: place for place, name in enumerate(frame["subgroup"].unique())}
    ranks = {name: place for place, name in enumerate(sorted(frame["group"].unique(), key=group_order))}
    order = frame.assign(
        _all=frame["site"] == ALL, _subgroup=frame["subgroup"].map(subgroups), _group=frame["group"].map(ranks)
    )
    order = order.sort_values(["_all", "site", "_subgroup", "_group", "fold"], kind="stable")
    return order[CHARACTERISTICS].reset_index(drop=True)
