"""Where a study's evidence comes from: predictions that lie in one place, or sites that keep their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from polyclinic.statistics.calibration import site_trust
from polyclinic.statistics.evidence import Evidence, site_evidence
from polyclinic.statistics.samples import Cases
from polyclinic.study.kinds import PLAIN, RUN, UNSEEN
from polyclinic.study.statistics.calibration import SitesTrust
from polyclinic.study.statistics.together import OfCases, Together
from polyclinic.tasks import build_task


class Entry(NamedTuple):
    """One of several things that are compared.

    Attributes:
        method: label of a method.
        run: kind of run.
        name: what it is called where it is compared.
    """

    method: str
    run: str
    name: str


#: What is compared with each other.
Family = tuple[Entry, ...]


def of_run(run: str, methods: Sequence[str]) -> Family:
    """The methods in one kind of run."""
    return tuple(Entry(method, run, method) for method in methods)


def seen_and_unseen(method: str) -> Family:
    """A method trained with a site and without it."""
    return tuple(Entry(method, run, run) for run in (PLAIN, UNSEEN))


class Source(ABC):
    """Gives evidence.

    Attributes:
        complete: whether each value of ``results.csv`` has its evidence, so that what has none has no predictions.
    """

    complete = True

    @abstractmethod
    def evidence(
        self, family: Family, sites: Sequence[str], metrics: Sequence[str]
    ) -> Mapping[str, Mapping[str, Evidence]]:
        """Site -> metric -> what the site says of the entries; what it can say nothing of is not there."""

    @abstractmethod
    def together(self, family: Family, metrics: Sequence[str], others: Sequence[str]) -> Together:
        """What is known of numbers over the cases of all sites.

        Args:
            family: what is compared.
            metrics: names of the metrics.
            others: those of the entries that all are compared with.
        """

    @abstractmethod
    def trust(self, family: Family, sites: Sequence[str]) -> SitesTrust | None:
        """What the sites say of the probabilities of a binary classification; None for others."""


class Rows(Source):
    """Predictions that lie in one place.

    Args:
        predictions: method, run, seed, fold, trained_on, site, subject, case, and the columns of the task.
        task: its name.
        classes: how many.
        seed: of the draws.
        bootstrap: number of draws.
    """

    def __init__(
        self, predictions: pd.DataFrame, task: str, classes: int, *, seed: int = 0, bootstrap: int = 1000
    ) -> None:
        self.predictions = (
            predictions if predictions.empty else predictions.assign(site=predictions["site"].astype(str))
        )
        self.task, self.classes, self.seed, self.bootstrap = task, classes, seed, bootstrap

    def _rows(self, family: Family) -> pd.DataFrame:
        if self.predictions.empty:
            return self.predictions
        names = {(one.method, one.run): one.name for one in family}
        keys = zip(self.predictions["method"], self.predictions[RUN], strict=True)
        named = [names.get(key) for key in keys]
        rows = self.predictions.assign(method=pd.Series(named, self.predictions.index, dtype=object))
        return rows[rows["method"].notna()]

    def evidence(
        self, family: Family, sites: Sequence[str], metrics: Sequence[str]
    ) -> Mapping[str, Mapping[str, Evidence]]:
        """See `Source.evidence`."""
        rows = self._rows(family)
        found = {} if rows.empty else {str(site): mine for site, mine in rows.groupby("site", sort=False)}
        return {
            site: site_evidence(found[site], self.task, self.classes, metrics, seed=self.seed, bootstrap=self.bootstrap)
            for site in sites
            if site in found
        }

    def together(self, family: Family, metrics: Sequence[str], others: Sequence[str]) -> Together:
        """See `Source.together`."""
        cases = Cases(self._rows(family), self.task, self.classes, metrics)
        return OfCases(cases, others, self.seed, self.bootstrap)

    def trust(self, family: Family, sites: Sequence[str]) -> SitesTrust | None:
        """See `Source.trust`."""
        rows = self._rows(family)
        if rows.empty or build_task(self.task, self.classes).ranked(rows) is None:
            return None
        found = {str(site): mine for site, mine in rows.groupby("site", sort=False)}
        return {site: site_trust(found[site]) for site in sites if site in found}
