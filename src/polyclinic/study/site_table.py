"""The table of sites: what was found, used and rejected at each, and whether it can be scored by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from polyclinic.audit.poisoning import Attack
from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.opening.facts import facts_frame
from polyclinic.study.checked import CheckedStudy

NOT_SCORED = "can't be scored by itself"


def site_table(study: CheckedStudy, cohort: Cohort, attack: Attack | None) -> pd.DataFrame:
    """A row a site: cases found, used and rejected, classes, and whether it can be scored by itself."""
    frame = facts_frame(cohort.facts, cohort.classes)
    least, target = study.declaration.evaluation.min_cases_per_class, study.declaration.target
    scored, notes = [], []
    for facts in cohort.facts.values():
        if facts.numbers is not None:
            scored.append(facts.labelled >= least)
            count = f"{facts.labelled} case{'s' * (facts.labelled != 1)}"
            notes.append("" if scored[-1] else f"{NOT_SCORED}: only {count} (at least {least} needed)")
            continue
        if target == "times":
            happened = facts.classes[1]
            scored.append(happened >= least)
            text = f"{NOT_SCORED}: only {happened} case{'s' * (happened != 1)} with the event (at least {least} needed)"
            notes.append("" if scored[-1] else text)
            continue
        if target == "findings":
            known = _scored_findings(study, facts.classes, least)
            scored.append(any(known.values()))
            lacking = [name for name, enough in known.items() if not enough]
            few = f"fewer than {least} cases of two classes of {', '.join(lacking)}"
            notes.append(f"{'scored by what it has' if scored[-1] else NOT_SCORED}: {few}" if lacking else "")
            continue
        counts = facts.classes
        rare = [f"{n} of {name!r}" for name, n in zip(cohort.classes, counts, strict=False) if n < least]
        enough = len(counts) - len(rare) >= 2 or not counts
        scored.append(enough)
        few = f"{' and '.join(rare)} (at least {least} needed)"
        notes.append(f"{'scored by what it has' if enough else NOT_SCORED}: {few}" if rare else "")
    frame["scored"], frame["note"] = scored, notes
    if attack is not None:
        frame["corrupt"] = frame["site"].isin(attack.names)
    return frame


def _scored_findings(study: CheckedStudy, counts: Sequence[int], least: int) -> dict[str, bool]:
    """Finding -> whether a site has enough cases of two of its classes; ``counts`` are of the classes of all."""
    found, first = dict[str, bool](), 0
    for head in study.declaration.heads:
        found[head.name] = sum(count >= least for count in counts[first : first + head.classes]) >= 2
        first += head.classes
    return found
