"""Where a study's evidence comes from: predictions that lie in one place, or sites that keep their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from polyclinic.statistics.calibration import site_trust
from polyclinic.statistics.evidence import Evidence, site_evidence
from polyclinic.statistics.samples import Cases
from polyclinic.statistics.subgroups import SiteGroups, site_groups
from polyclinic.statistics.survival import Floats, RiskCurves, SiteSurvival, risk_curves, site_survival
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

    @abstractmethod
    def groups(self, family: Family) -> Mapping[str, SiteGroups]:
        """Site -> what it says of groups of its patients."""

    @abstractmethod
    def survival(self, family: Family, steps: Floats) -> Mapping[str, SiteSurvival]:
        """Site -> how long its cases live.

        Args:
            family: methods, of which each makes groups of higher and lower risk.
            steps: times at which that may be told.
        """

    def risk_curves(self, family: Family, steps: Floats) -> Mapping[str, RiskCurves]:
        """Method -> the curves of its two groups over all sites; nothing where sites keep their predictions."""
        return {}


class Rows(Source):
    """Predictions that lie in one place.

    Args:
        predictions: method, run, seed, fold, trained_on, site, subject, case, and the columns of the task.
        task: its name.
        classes: how many.
        metrics: those of the study, by which groups of patients are measured.
        seed: of the draws.
        bootstrap: number of draws.
    """

    def __init__(
        self, predictions: pd.DataFrame, task: str, classes: int, metrics: Sequence[str] = (), *, seed: int = 0,
        bootstrap: int = 1000,
    ) -> None:  # fmt: skip
        self.predictions = (
            predictions if predictions.empty else predictions.assign(site=predictions["site"].astype(str))
        )
        self.task, self.classes, self.metrics = task, classes, list(metrics)
        self.seed, self.bootstrap = seed, bootstrap

    def _rows(self, family: Family) -> pd.DataFrame:
        if self.predictions.empty:
            return self.predictions
        names = {(one.method, one.run): one.name for one in family}
        keys = zip(self.predictions["method"], self.predictions[RUN], strict=True)
        named = [names.get(key) for key in keys]
        rows = self.predictions.assign(method=pd.Series(named, self.predictions.index, dtype=object))
        return rows[rows["method"].notna()]

    def _sites(self, family: Family) -> Iterator[tuple[str, pd.DataFrame]]:
        """Each site with its rows; nothing of a family that has none."""
        rows = self._rows(family)
        if not rows.empty:
            yield from ((str(site), mine) for site, mine in rows.groupby("site", sort=False))

    def evidence(
        self, family: Family, sites: Sequence[str], metrics: Sequence[str]
    ) -> Mapping[str, Mapping[str, Evidence]]:
        """See `Source.evidence`."""
        found = dict(self._sites(family))
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
        found = dict(self._sites(family))
        return {site: site_trust(found[site]) for site in sites if site in found}

    def groups(self, family: Family) -> Mapping[str, SiteGroups]:
        """See `Source.groups`."""
        asked = (self.task, self.classes, self.metrics)
        return {
            site: site_groups(mine, *asked, seed=self.seed, bootstrap=self.bootstrap)
            for site, mine in self._sites(family)
        }

    def survival(self, family: Family, steps: Floats) -> Mapping[str, SiteSurvival]:
        """See `Source.survival`."""
        return {site: site_survival(mine, steps) for site, mine in self._sites(family)}

    def risk_curves(self, family: Family, steps: Floats) -> Mapping[str, RiskCurves]:
        """See `Source.risk_curves`."""
        return risk_curves(self._rows(family), steps)
