"""What sites that keep their predictions say of the cases that a job tested, and the table of results from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from polyclinic.study.kinds import RUN, RUNS
from polyclinic.tasks import Task
from polyclinic.tasks.base import Totals

#: Where each case is predicted by its own site's model, the model of all cases together.
OWN = "own"
KEYS = ["method", RUN, "seed", "fold"]
RESULTS = [*KEYS, "trained_on", "tested_on", "metric", "value"]


class Key(NamedTuple):
    """Which trainings are taken together in a row over all sites; as in ``results.csv``."""

    method: str
    run: str
    seed: int
    fold: int


@dataclass(frozen=True)
class TestedSite:
    """One model at one site.

    Attributes:
        key, trained_on, site: as in ``results.csv``.
        training: name of the training that the model is of, which the site knows its predictions by.
        cases, patients: how many were tested.
        values: of each metric; empty where there are too few patients for more to be said.
    """

    key: Key
    trained_on: str
    site: str
    training: str
    cases: int
    patients: int
    values: Mapping[str, float]


class Threshold(NamedTuple):
    """From which score a model's cases are called positive; as in ``thresholds.csv``."""

    key: Key
    trained_on: str
    threshold: float
    finding: str = ""


class TestedTogether(NamedTuple):
    """Totals of one model, or of each site's own, over the cases of several sites; as in ``results.csv``."""

    key: Key
    trained_on: str
    totals: Totals


@dataclass
class Tested:
    """What was tested, in the order in which it was."""

    sites: list[TestedSite] = field(default_factory=list)
    together: list[TestedTogether] = field(default_factory=list)
    thresholds: list[Threshold] = field(default_factory=list)

    def sort(self, methods: Sequence[str]) -> None:
        """Bring what was tested into the order of the tables.

        Args:
            methods: labels, in their order.
        """
        runs = list(RUNS)

        def place(one: TestedSite | TestedTogether | Threshold) -> tuple[int, int, int, int]:
            return runs.index(one.key.run), methods.index(one.key.method), one.key.seed, one.key.fold

        self.sites.sort(key=place)
        self.together.sort(key=place)
        self.thresholds.sort(key=place)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which give the same bits back."""
        totals = [(*one[:2], {name: values.tolist() for name, values in one.totals.items()}) for one in self.together]
        return {"sites": [vars(one) for one in self.sites], "together": totals, "thresholds": self.thresholds}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tested:
        """What ``to_json`` gave."""
        return cls(
            [TestedSite(**{**one, "key": Key(*one["key"])}) for one in content["sites"]],
            [
                TestedTogether(Key(*key), trained_on, {name: np.array(values) for name, values in totals.items()})
                for key, trained_on, totals in content["together"]
            ],
            [Threshold(Key(*key), *others) for key, *others in content.get("thresholds", [])],
        )


def joined(found: Iterable[tuple[str, str, Totals]], task: Task) -> dict[str, Totals]:
    """Totals over the sites of each model, by what it was trained on; `OWN` where each site has its own.

    Args:
        found: what the model was trained on, the site, and its totals.
        task: whose they are.
    """
    found = list(found)
    own = all(trained_on == site for trained_on, site, _ in found)
    parts: dict[str, list[Totals]] = {}
    for trained_on, _, totals in found:
        parts.setdefault(OWN if own else trained_on, []).append(totals)
    return {trained_on: task.joined(of) for trained_on, of in parts.items()}


def rows_tested(predictions: pd.DataFrame, task: Task, names: Sequence[str]) -> pd.DataFrame:
    """The results table of predictions that lie in one place.

    Metrics at a site are those of its cases. Those of all sites together follow from the sites' totals, so that they
    are the same where sites keep their predictions; but what follows from totals only nearly is found from the cases.
    """
    rows: list[tuple[object, ...]] = []
    summed = [name for name in names if task.totalled and name not in task.approximate]
    others = [name for name in names if name not in summed]
    for key, found in predictions.groupby(KEYS, sort=False):
        totals = list[tuple[str, str, Totals]]()
        for (trained_on, site), cases in found.groupby(["trained_on", "site"], sort=False):
            rows += [(*key, trained_on, site, name, value) for name, value in task.values(cases, names).items()]
            totals.append((str(trained_on), str(site), task.totals(cases, names)))
        together = joined(totals, task)
        for trained_on, of in together.items():
            cases = found if len(together) == 1 else found[found["trained_on"] == trained_on]
            values = task.from_totals(of, summed) | (task.values(cases, others) if others else {})
            rows += [(*key, trained_on, "all", name, values[name]) for name in names]
    return pd.DataFrame(rows, columns=RESULTS)


def sites_tested(tested: Tested, task: Task, names: Sequence[str]) -> pd.DataFrame:
    """The same table of what the sites said; NaN where there were too few patients for more to be said."""
    rows: list[tuple[object, ...]] = []
    together = all_together(tested, task)
    for key in dict.fromkeys(one.key for one in tested.sites):
        for one in tested.sites:
            if one.key == key:
                rows += [(*key, one.trained_on, one.site, name, one.values.get(name, np.nan)) for name in names]
        for trained_on, totals in together.get(key, {}).items():
            values = task.from_totals(totals, names)
            rows += [(*key, trained_on, "all", name, values[name]) for name in names]
    return pd.DataFrame(rows, columns=RESULTS)


def all_together(tested: Tested, task: Task) -> dict[Key, dict[str, Totals]]:
    """Of each training what a model was trained on -> the totals of all sites."""
    parts: dict[Key, dict[str, list[Totals]]] = {}
    for one in tested.together:
        parts.setdefault(one.key, {}).setdefault(one.trained_on, []).append(one.totals)
    return {key: {model: task.joined(of) for model, of in found.items()} for key, found in parts.items()}
