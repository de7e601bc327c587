"""A method in one study against the same in another, on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from polyclinic.statistics.evidence import site_evidence
from polyclinic.statistics.intervals import holm
from polyclinic.study.comparing.studies import Compared, Paired
from polyclinic.study.kinds import RUN, Entry
from polyclinic.study.statistics.within import within_sites
from polyclinic.study.table_files import read_table
from polyclinic.tasks.metrics import value_range

#: What a test case of a training is known by.
CASE = ["seed", "fold", "site", "case"]
#: Columns of what is predicted, where the task has them; of several labels they are called ``label[NAME]``.
TRUTH = ("label", "time", "event")


def paired(a: Compared, b: Compared, entries: Sequence[Entry]) -> dict[Entry, Paired | str]:
    """Compare methods of two studies whose cases can be paired, by their primary metric.

    The predictions of a method in both studies are taken for those of two methods of one study, of the seeds that both
    have, so all is as in a study's own comparison within sites.

    Args:
        a, b: the earlier and the later study.
        entries: methods and kinds of run that both have.

    Returns:
        For each what was found, or a sentence why it can't be compared.
    """
    tables = [_predictions(one) for one in (a, b)]
    found: dict[Entry, Paired | str] = {}
    for entry in entries:
        rows = [table[(table["method"] == entry[0]) & (table[RUN] == entry[1])] for table in tables]
        seeds = set(rows[0]["seed"]) & set(rows[1]["seed"])
        rows = [one[one["seed"].isin(seeds)] for one in rows]
        found[entry] = _unlike(rows) or _compared(a, b, rows)
    known = {entry: one for entry, one in found.items() if isinstance(one, Paired)}
    adjusted = holm([one.p for one in known.values()]).tolist() if known else []
    return found | {entry: replace(one, p_adjusted=p) for (entry, one), p in zip(known.items(), adjusted, strict=True)}


def _predictions(study: Compared) -> pd.DataFrame:
    table = read_table(study.folder.path / "predictions.csv")
    return table.assign(site=table["site"].astype(str), case=table["case"].astype(str))


def _unlike(rows: Sequence[pd.DataFrame]) -> str:
    """Why the rows of two studies are not of the same cases; empty if they are."""
    if not all(map(len, rows)):
        return "There are no predictions of it with the same seeds in both."
    known = [name for name in rows[0] if name in TRUTH or str(name).startswith("label[")]
    truth = [str(name) for name in known if all(name in one for one in rows)]
    cases = [one[[*CASE, *truth]].drop_duplicates(CASE).set_index(CASE).sort_index() for one in rows]
    if not cases[0].index.equals(cases[1].index):
        return "The studies tested it on different cases."
    if not cases[0].equals(cases[1]):
        return f"What is predicted of the cases is not the same ({', '.join(truth)})."
    return ""


def _compared(a: Compared, b: Compared, rows: Sequence[pd.DataFrame]) -> Paired | str:
    """Compare the same cases of two studies."""
    names = ("earlier", "later")
    both = pd.concat([one.assign(method=name) for one, name in zip(rows, names, strict=True)], ignore_index=True)
    sites = [site for site in a.folder.scored if site in set(b.folder.scored)]
    metric, task = a.folder.primary.name, str(a.folder.study["task"])
    draws = max(int((one.folder.study.get("evaluation") or {}).get("bootstrap") or 0) for one in (a, b))
    evidence = {
        str(site): found[metric]
        for site, mine in both[both["site"].isin(sites)].groupby("site", sort=False)
        if metric in (found := site_evidence(mine, task, len(a.folder.classes), [metric], bootstrap=draws))
    }
    within = within_sites(evidence, (names[1], names[0]))
    if not within.combined.sites:
        return f"{a.folder.primary.title} can't be computed from the predictions of a single site."
    most = float(np.subtract(*value_range(metric)[::-1]))
    low, high = np.clip(within.combined.interval, -most, most).tolist()
    return Paired(within.combined.mean, low, high, within.combined.p, float("nan"), within.combined.sites)
