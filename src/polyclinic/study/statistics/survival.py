"""How long test cases live at each site, and whether those of higher predicted risk live shorter.

What sites say (see `polyclinic.statistics.survival`) becomes two tables; the log-rank test rests on three sums of each
site, which are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from polyclinic.statistics.survival import Floats
from polyclinic.study.columns import ALL, HIGHER, LOG_RANK, LOWER, SURVIVAL
from polyclinic.study.kinds import PLAIN, RUN, RUNS
from polyclinic.study.statistics.source import Source, of_run
from polyclinic.tasks.survival_curves import added

#: Steps of the common times where the study has none.
STEPS = 20


def survival_tables(source: Source, results: pd.DataFrame, steps: Floats) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``survival.csv`` and ``log_rank.csv``.

    The curves are of all test cases of a site, and for each method of its cases in two groups: those whose predicted
    risk is above the median of the test cases that the same model has at the site, and the others. Where predictions
    lie in one place there is one curve of each group, of all sites; else each site has its own. The test compares the
    two, stratified by site. Both are of the first seed: another predicts the same cases.

    Args:
        source: gives what the sites say.
        results: method and run of all that was tested.
        steps: what ``common_times`` gives.
    """
    curves, tests = list[pd.DataFrame](), list[tuple[object, ...]]()
    for run in [run for run in RUNS if (results[RUN] == run).any()]:
        methods = list(dict.fromkeys(results["method"][results[RUN] == run]))
        family = of_run(run, methods)
        sites = source.survival(family, steps)
        if run == PLAIN:
            curves += [one.curve.assign(method="", run=run, site=site, group=ALL) for site, one in sites.items()]
        pooled = source.risk_curves(family, steps)
        for method in methods:
            found = {site: one.methods[method] for site, one in sites.items() if method in one.methods}
            if not found:
                continue
            named = {ALL: pooled[method]} if method in pooled else {site: one.curves for site, one in found.items()}
            for site, (higher, lower) in named.items():
                for group, curve in ((HIGHER, higher), (LOWER, lower)):
                    curves.append(curve.assign(method=method, run=run, site=site, group=group))
            sums = added(one.sums for one in found.values())
            counts = (sum(one.cases for one in found.values()), sum(one.higher for one in found.values()))
            tests.append((method, run, len(found), *counts, *sums, sums.statistic, sums.p))
    told = [curve for curve in curves if len(curve)]
    table = pd.concat(told, ignore_index=True) if told else pd.DataFrame(columns=SURVIVAL)
    return table[SURVIVAL], pd.DataFrame(tests, columns=LOG_RANK)


def common_times(longest: float, edges: Sequence[float]) -> Floats:
    """The times of the study, or steps up to a round number that no time is beyond."""
    return np.asarray(edges, dtype=np.float64) if len(edges) else np.linspace(0, longest, STEPS + 1)[1:]
