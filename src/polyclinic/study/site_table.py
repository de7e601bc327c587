"""The table of sites: what was found, used and rejected at each, and whether it can be scored by itself."""

from __future__ import annotations

import pandas as pd

from polyclinic.audit.poisoning import Attack
from polyclinic.data.cases import Opened
from polyclinic.data.check import check_frame, class_counts
from polyclinic.study.checked import CheckedStudy

NOT_SCORED = "can't be scored by itself"


def site_table(study: CheckedStudy, opened: Opened, attack: Attack | None) -> pd.DataFrame:
    """A row a site: cases found, used and rejected, classes, and whether it can be scored by itself."""
    declaration = study.declaration
    frame = check_frame(opened, declaration.data)
    least = declaration.evaluation.min_cases_per_class
    scored, notes = [], []
    for data in opened.sites.values():
        labels = data.with_labels().labels
        if labels is not None and labels.is_floating_point():
            scored.append(len(labels) >= least)
            count = f"{len(labels)} case{'s' * (len(labels) != 1)}"
            notes.append("" if scored[-1] else f"{NOT_SCORED}: only {count} (at least {least} needed)")
            continue
        if labels is not None and declaration.target == "times":
            happened = int(labels.sum())
            scored.append(happened >= least)
            text = f"{NOT_SCORED}: only {happened} case{'s' * (happened != 1)} with the event (at least {least} needed)"
            notes.append("" if scored[-1] else text)
            continue
        counts = [] if labels is None else class_counts(labels, len(opened.classes))
        rare = [f"{n} of {name!r}" for name, n in zip(opened.classes, counts, strict=False) if n < least]
        enough = len(counts) - len(rare) >= 2 or not counts
        scored.append(enough)
        few = f"{' and '.join(rare)} (at least {least} needed)"
        notes.append(f"{'scored by what it has' if enough else NOT_SCORED}: {few}" if rare else "")
    frame["scored"], frame["note"] = scored, notes
    if attack is not None:
        frame["corrupt"] = frame["site"].isin(attack.names)
    return frame
