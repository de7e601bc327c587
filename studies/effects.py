"""What the studies of the project find: a method's value in one repeat, and its difference to fedavg over repeats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from polyclinic import Results
from polyclinic.statistics.intervals import holm
from polyclinic.study.kinds import ATTACKED, PLAIN, RUN, UNSEEN

BASELINE = "fedavg"
#: Shown for orientation; no methods to be compared with fedavg.
REFERENCES = ("single", "mix")
#: Of a table, by the metric that comes first in its study.
HEADINGS = {"auc": "AUC", "dice": "Dice", "acc": "accuracy"}


class Effect(NamedTuple):
    """A method's difference to fedavg.

    Attributes:
        method: its label.
        mean: its own result, mean over the repeats.
        effect: mean difference.
        low, high: 95 % interval of the difference.
        p: two-sided, paired t-test; NaN for references.
    """

    method: str
    mean: float
    effect: float
    low: float
    high: float
    p: float


def effects(values: pd.DataFrame) -> list[Effect]:
    """The effect of each method from its results, a row a repeat and a column a method."""
    found = []
    for method in values.columns:
        difference = (values[method] - values[BASELINE]).to_numpy()
        mean, count = float(difference.mean()), len(difference)
        if method == BASELINE:
            found.append(Effect(method, float(values[method].mean()), 0.0, 0.0, 0.0, float("nan")))
            continue
        error = float(difference.std(ddof=1) / np.sqrt(count))
        reach = float(stats.t.ppf(0.975, count - 1)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
        compared = float("nan") if method in REFERENCES else p
        found.append(Effect(method, float(values[method].mean()), mean, mean - reach, mean + reach, compared))
    return found


def verdicts(found: Sequence[Effect]) -> list[str]:
    """``helps``, ``hurts``, ``no clear effect``, or nothing for those that are not compared."""
    compared = [i for i, effect in enumerate(found) if not np.isnan(effect.p)]
    adjusted = dict(zip(compared, holm([found[i].p for i in compared]), strict=True))
    words = []
    for i, effect in enumerate(found):
        if i not in adjusted:
            words.append("")
        elif adjusted[i] < 0.05:
            words.append("helps" if effect.effect > 0 else "hurts")
        else:
            words.append("no clear effect")
    return words


def values_of(over: str, results: Results) -> pd.Series:
    """The value of each method in one repeat by the study's first metric: method -> value.

    Args:
        over: ``all`` (one value for the cases of all sites), ``sites`` (mean over the sites that can be scored),
            ``each`` (mean over all sites), ``worst`` (the lowest of those that can be scored), ``unseen`` (mean over
            the sites that were left out), ``honest`` (mean over the sites that are not corrupt, with the attack),
            ``even`` (1 minus the difference of sensitivities between the first two groups of patients).
        results: of the repeat.
    """
    if over == "even":
        return _evenness(results)
    table, metric = results.results, declared(results)["evaluation"]["metrics"][0]
    run = {"honest": ATTACKED, "unseen": UNSEEN}.get(over, PLAIN)
    table = table[(table["metric"] == metric) & (table[RUN] == run)]
    if over == "all":
        return table[table["tested_on"] == "all"].groupby("method", sort=False)["value"].mean()
    counted = results.sites if over == "each" else results.sites[results.sites["scored"]]
    table = table[table["tested_on"].astype(str).isin(counted["site"].astype(str))]
    if over == "honest":
        corrupt = declared(results)["attack"]["sites"]
        table = table[~table["tested_on"].astype(str).isin(corrupt)]
    groups = table.groupby("method", sort=False)["value"]
    return groups.min() if over == "worst" else groups.mean()


def _evenness(results: Results) -> pd.Series:
    """How alike the ill of a group and of all others are found, within sites."""
    table = pd.read_csv(results.folder / "subgroups.csv", dtype={"group": str})
    table = table[(table["metric"] == "sen") & (table[RUN] == PLAIN)]
    return 1 - table.groupby("method", sort=False)["gap"].first().abs()


def declared(results: Results) -> dict[str, Any]:
    """The study file of finished results."""
    content: dict[str, Any] = yaml.safe_load((results.folder / "study.yaml").read_text(encoding="utf-8"))
    return content


def measure_of(results: Results, over: str = "sites") -> str:
    """What the values of a study are, in the words of a table."""
    if over == "even":
        return "Evenness"
    return HEADINGS[declared(results)["evaluation"]["metrics"][0]]


def last_day(finished: Sequence[Results]) -> str:
    """When the last of several repeats was finished."""
    return max(str(results.provenance["finished"])[:10] for results in finished)


def finished_in(out: Path, name: str) -> list[Results]:
    """The finished repeats of a study, in the folders ``NAME-0``, ``NAME-1``, ..."""
    found = [folder for folder in sorted(out.glob(f"{name}-[0-9]*")) if (folder / "results.csv").is_file()]
    return [one for one in map(Results, found) if one.provenance.get("status") == "finished"]
