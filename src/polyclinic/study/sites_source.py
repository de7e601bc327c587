"""Evidence that is asked of sites which keep their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine, Engine
from polyclinic.errors import SiteError
from polyclinic.running.attendance import gather
from polyclinic.site.messages import Compare, KeptTrial
from polyclinic.site.schema import Known
from polyclinic.statistics.calibration import Line, Trust
from polyclinic.statistics.evidence import Evidence
from polyclinic.study.statistics.calibration import SitesTrust
from polyclinic.study.statistics.of_totals import OfTotals
from polyclinic.study.statistics.source import Entry, Family, Source
from polyclinic.study.statistics.together import Together
from polyclinic.study.tested import Tested, all_together
from polyclinic.tasks import build_task


class Sites(Source):
    """Predictions that each site keeps.

    Args:
        engine: who runs the sites.
        tested: what they said of each model that they tested.
        task: its name.
        classes: how many.
        metrics: by which methods are compared.
        bootstrap: number of draws.
        floor: of fewer patients sites say nothing.
        quorum: least number of sites that must answer; None for all.

    Attributes:
        notes: about sites that did not answer.
        few: sites that said nothing of their comparisons, since they have too few patients.
    """

    complete = False

    def __init__(
        self, engine: Engine, tested: Tested, task: str, classes: int, metrics: Sequence[str], *, bootstrap: int,
        floor: int, quorum: int | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.tested, self.quorum = CheckedEngine(engine, Known()), tested, quorum
        self.task, self.classes, self.metrics = task, classes, list(metrics)
        self.bootstrap, self.floor = bootstrap, floor
        self.notes = list[str]()
        self.few = dict[str, None]()
        self._answers = dict[Family, dict[str, Message]]()

    def evidence(
        self, family: Family, sites: Sequence[str], metrics: Sequence[str]
    ) -> Mapping[str, Mapping[str, Evidence]]:
        """See `Source.evidence`."""
        answers = self._ask(family, sites)
        return {site: _evidence(answers[site]) for site in sites if site in answers}

    def together(self, family: Family, metrics: Sequence[str], others: Sequence[str]) -> Together:
        """See `Source.together`."""
        names = {(one.method, one.run): one.name for one in family}
        task = build_task(self.task, self.classes)
        totals = {
            (names[key.method, key.run], key.seed, key.fold): list(found.values())
            for key, found in all_together(self.tested, task).items()
            if (key.method, key.run) in names
        }
        several = {
            names[one.key.method, one.key.run]
            for one in self.tested.sites
            if one.cases != one.patients and (one.key.method, one.key.run) in names
        }
        return OfTotals(task, totals, several)

    def trust(self, family: Family, sites: Sequence[str]) -> SitesTrust | None:
        """See `Source.trust`."""
        answers = self._ask(family, sites)
        found = {site: _trust(answers[site]) for site in sites if site in answers}
        return found if any(found.values()) else None

    def _ask(self, family: Family, sites: Sequence[str]) -> dict[str, Message]:
        """What the sites that are scored say of a family; asked once."""
        if family not in self._answers:
            asked = {site: self._question(family, site) for site in sites}
            requests = {site: Message(one.fields()) for site, one in asked.items() if one.trials}
            answers = gather(self.engine, "compare", requests, self.quorum, self.notes)
            for site, answer in answers.items():
                _check(site, asked[site], answer)
                if not answer.fields.get("methods"):
                    self.few[site] = None
            self._answers[family] = {site: one for site, one in answers.items() if one.fields.get("methods")}
        return self._answers[family]

    def _question(self, family: Family, site: str) -> Compare:
        entries = {(one.method, one.run): one for one in family}
        order = {one: place for place, one in enumerate(family)}
        mine: list[tuple[Entry, KeptTrial]] = []
        for one in self.tested.sites:
            entry = entries.get((one.key.method, one.key.run))
            if one.site == site and entry is not None:
                trial = KeptTrial(run=one.training, method=one.key.method, trained_on=one.trained_on, name=entry.name)
                mine.append((entry, trial))
        mine.sort(key=lambda pair: order[pair[0]])
        return Compare(
            task=self.task, classes=self.classes, metrics=self.metrics, trials=[trial for _, trial in mine],
            bootstrap=self.bootstrap, floor=self.floor, trust=all(one.method == one.name for one in family),
        )  # fmt: skip


def _check(site: str, asked: Compare, answer: Message) -> None:
    """Whether a site speaks of what it was asked.

    Raises:
        SiteError: P401, it does not.
    """
    said, names = answer.fields, {one.name for one in asked.trials}
    methods = {*said.get("methods", []), *said.get("trusted", []), *said.get("several", [])}
    if methods <= names and set(said.get("metrics", [])) <= set(asked.metrics):
        return
    raise SiteError(
        "P401", f"The answer of site {site} to 'compare' is not as it should be: it is about what was not asked.",
        "Let all sites and the server run the same version of Polyclinic.", site=site,
    )  # fmt: skip


def _evidence(answer: Message) -> dict[str, Evidence]:
    said, tensors = answer.fields, {name: tensor.numpy() for name, tensor in answer.tensors.items()}
    return {
        metric: Evidence(
            said["methods"], said["seeds"],
            *(tensors[name][place] for name in ("values", "differences", "variances", "patients")),
        )
        for place, metric in enumerate(said["metrics"])
    }  # fmt: skip


def _trust(answer: Message) -> dict[str, Trust | None]:
    said, tensors = answer.fields, {name: tensor.numpy() for name, tensor in answer.tensors.items()}
    found: dict[str, Trust | None] = dict.fromkeys(said.get("several", []))
    for place, method in enumerate(said.get("trusted", [])):
        lines = tensors["lines"][place].tolist()
        cases, positive = tensors["counts"][place].tolist()
        curves = (np.asarray(tensors[name][place]) for name in ("benefit", "everybody"))
        found[method] = Trust(cases, positive, Line(*lines[:2]), Line(*lines[2:]), *curves)
    return found
