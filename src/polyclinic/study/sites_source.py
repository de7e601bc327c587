"""Evidence that is asked of sites which keep their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine, Engine
from polyclinic.errors import SiteError
from polyclinic.limits import Body
from polyclinic.running.attendance import gather
from polyclinic.site.messages import AskGroups, AskSurvival, Compare, KeptTrial, Spread
from polyclinic.site.schema import Known
from polyclinic.statistics.calibration import Line, Trust
from polyclinic.statistics.evidence import Evidence
from polyclinic.statistics.intervals import Floats
from polyclinic.statistics.subgroups import Place, SiteGroups, groups_from_tensors
from polyclinic.statistics.survival import SiteSurvival, survival_from_tensors
from polyclinic.study.statistics.calibration import SitesTrust
from polyclinic.study.statistics.of_totals import OfTotals, Spreads
from polyclinic.study.statistics.source import Family, Source
from polyclinic.study.statistics.together import Together
from polyclinic.study.tested import OWN, Key, Tested, TestedSite, all_together
from polyclinic.tasks import build_task
from polyclinic.tasks.base import Head, Totals

#: A training, and what one of its models was trained on.
Cell = tuple[Key, str]


class Sites(Source):
    """Predictions that each site keeps.

    Args:
        engine: who runs the sites.
        tested: what they said of each model that they tested.
        task: its name.
        classes: how many.
        metrics: by which methods are compared.
        grouped: subgroups, and the metrics by which they are measured.
        bootstrap: number of draws.
        floor: of fewer patients sites say nothing.
        quorum: least number of sites that must answer; None for all.
        heads: the labels, where they are several.

    Attributes:
        notes: about sites that did not answer.
        few: sites that said nothing of their comparisons, since they have too few patients.
        withheld: subgroup -> sites that said nothing of some of its groups.
        mixed: subgroup -> sites where the few patients of no known group count with the rest.
    """

    complete = False

    def __init__(
        self, engine: Engine, tested: Tested, task: str, classes: int, metrics: Sequence[str], *,
        grouped: tuple[Sequence[str], Sequence[str]] = ((), ()), bootstrap: int, floor: int, quorum: int | None = None,
        heads: Sequence[Head] = (),
    ) -> None:  # fmt: skip
        self.engine, self.tested, self.quorum = CheckedEngine(engine, Known()), tested, quorum
        self.task, self.classes, self.metrics = task, classes, list(metrics)
        self.grouped, self.bootstrap, self.floor = grouped, bootstrap, floor
        self._task = build_task(task, classes, heads=heads)
        self._together = all_together(tested, self._task)
        self._at_site: dict[str, list[TestedSite]] = {}
        for one in tested.sites:
            self._at_site.setdefault(one.site, []).append(one)
        self.notes = list[str]()
        self.few = dict[str, None]()
        self.withheld, self.mixed = dict[str, dict[str, None]](), dict[str, dict[str, None]]()
        self._answers = dict[Family, dict[str, Message]]()

    def evidence(
        self, family: Family, sites: Sequence[str], metrics: Sequence[str]
    ) -> Mapping[str, Mapping[str, Evidence]]:
        """See `Source.evidence`."""
        answers = self._ask(family, sites)
        return {site: _read(site, "compare", _evidence, answers[site]) for site in sites if site in answers}

    def together(self, family: Family, metrics: Sequence[str], others: Sequence[str]) -> Together:
        """See `Source.together`."""
        names = {(one.method, one.run): one.name for one in family}
        cells = {key: found for key, found in self._together.items() if (key.method, key.run) in names}
        totals = {
            (names[key.method, key.run], key.seed, key.fold): list(found.values()) for key, found in cells.items()
        }
        several = {
            names[one.key.method, one.key.run]
            for one in self.tested.sites
            if one.cases != one.patients and (one.key.method, one.key.run) in names
        }
        values, shares = self._values(cells), dict[Cell, Floats]()
        for name in dict.fromkeys(names.values()):
            shares |= _shares({cell: found for cell, found in values.items() if names[cell[0][:2]] == name})
        return OfTotals(totals, self._means(names, values, shares), self._spreads(family, shares), several)

    def _means(
        self, names: Mapping[tuple[str, str], str], values: Mapping[Cell, Floats], shares: Mapping[Cell, Floats]
    ) -> dict[tuple[str, str], float]:
        """(name, metric) -> mean over seeds and folds; what has no value anywhere is not there."""
        means: dict[tuple[str, str], float] = {}
        for cell, share in shares.items():
            for metric, part, value in zip(self.metrics, share.tolist(), values[cell].tolist(), strict=True):
                if part:
                    key = names[cell[0][:2]], metric
                    means[key] = means.get(key, 0.0) + part * value
        return means

    def _values(self, cells: Mapping[Key, Mapping[str, Totals]]) -> dict[Cell, Floats]:
        """Metrics of each model over all sites, [K]."""
        found = {}
        for key, models in cells.items():
            for trained_on, totals in models.items():
                values = self._task.from_totals(totals, self.metrics)
                found[key, trained_on] = np.array([values[metric] for metric in self.metrics])
        return found

    def trust(self, family: Family, sites: Sequence[str]) -> SitesTrust | None:
        """See `Source.trust`."""
        answers = self._ask(family, sites)
        found = {site: _read(site, "compare", _trust, answers[site]) for site in sites if site in answers}
        return found if any(found.values()) else None

    def groups(self, family: Family) -> Mapping[str, SiteGroups]:
        """See `Source.groups`."""
        found = {}
        for site, answer in self._kept("groups", family, self._groups_question).items():
            one = found[site] = _read(site, "groups", _groups, answer)
            columns = {*(place.subgroup for place in one.found), *(column for column, _ in one.withheld), *one.mixed}
            asked = {name for names in self.grouped for name in names}
            _check_names(site, "groups", {place.method for place in one.found}, {entry.name for entry in family})
            _check_names(site, "groups", columns | {*one.metrics}, asked)
            for told, which in ((self.withheld, [column for column, _ in one.withheld]), (self.mixed, one.mixed)):
                for column in dict.fromkeys(which):
                    told.setdefault(column, {})[site] = None
        return found

    def _groups_question(self, trials: list[KeptTrial]) -> AskGroups:
        return AskGroups(
            task=self.task, classes=self.classes, metrics=list(self.grouped[1]), trials=trials,
            bootstrap=self.bootstrap, floor=self.floor,
        )  # fmt: skip

    def survival(self, family: Family, steps: Floats) -> Mapping[str, SiteSurvival]:
        """See `Source.survival`."""

        def question(trials: list[KeptTrial]) -> AskSurvival:
            return AskSurvival(trials=trials, steps=steps.tolist(), floor=self.floor)

        found = {}
        for site, answer in self._kept("survival", family, question).items():
            if answer.tensors:
                one = found[site] = _read(site, "survival", _survival, answer)
                _check_names(site, "survival", set(one.methods), {entry.name for entry in family})
        return found

    def _kept(self, function: str, family: Family, question: Callable[[list[KeptTrial]], Body]) -> dict[str, Message]:
        """What all sites answer that kept predictions of a family."""
        trials = {site: [kept for kept, _ in self._trials(family, site)] for site in self._at_site}
        requests = {site: Message(question(mine).fields()) for site, mine in trials.items() if mine}
        return gather(self.engine, function, requests, self.quorum, self.notes)

    def _ask(self, family: Family, sites: Sequence[str]) -> dict[str, Message]:
        """What the sites that are scored say of a family; asked once."""
        if family not in self._answers:
            asked = {site: self._question(family, site) for site in sites if site in self._at_site}
            requests = {site: Message(one.fields()) for site, one in asked.items() if one.trials}
            answers = gather(self.engine, "compare", requests, self.quorum, self.notes)
            for site, answer in answers.items():
                _check(site, asked[site], answer)
                if not answer.fields.get("methods"):
                    self.few[site] = None
            self._answers[family] = {site: one for site, one in answers.items() if one.fields.get("methods")}
        return self._answers[family]

    def _question(self, family: Family, site: str) -> Compare:
        return Compare(
            task=self.task, classes=self.classes, metrics=self.metrics, bootstrap=self.bootstrap, floor=self.floor,
            trials=[trial for trial, _ in self._trials(family, site)],
            trust=all(one.method == one.name for one in family),
        )  # fmt: skip

    def _trials(self, family: Family, site: str) -> list[tuple[KeptTrial, TestedSite]]:
        """What a site tested of a family, in the order of its entries."""
        entries = {(one.method, one.run): place for place, one in enumerate(family)}
        mine = [one for one in self._at_site.get(site, []) if one.key[:2] in entries]
        mine.sort(key=lambda one: entries[one.key[:2]])
        return [
            (KeptTrial(run=one.training, method=one.key.method, trained_on=one.trained_on,
                       name=family[entries[one.key[:2]]].name), one)
            for one in mine
        ]  # fmt: skip

    def _spreads(self, family: Family, shares: Mapping[Cell, Floats]) -> Spreads:
        """How far the patients of all sites lie apart, which each site says of its own."""
        requests = dict[str, Message]()
        for site in self._at_site:
            trials = [(kept, one) for kept, one in self._trials(family, site) if one.values]
            if trials and self._task.totalled:
                requests[site] = self._spread_question(trials, shares)
        methods = list(dict.fromkeys(one.name for one in family))
        covariance = np.zeros((len(self.metrics), len(methods), len(methods)))
        counted = np.zeros((len(self.metrics), len(methods)))
        for answer in gather(self.engine, "spread", requests, self.quorum, self.notes).values():
            places = np.array([methods.index(name) for name in answer.fields.get("methods", [])])
            if len(places):
                covariance[:, places[:, None], places] += answer.tensors["covariance"].numpy()
                counted[:, places] += np.nan_to_num(answer.tensors["counted"].numpy())
        if not requests:
            covariance[:] = np.nan
        return Spreads(methods, self.metrics, covariance, counted)

    def _spread_question(
        self, trials: Sequence[tuple[KeptTrial, TestedSite]], shares: Mapping[Cell, Floats]
    ) -> Message:
        """Each trial with the totals of all sites, and how much it counts in its method's mean."""
        asked = Spread(
            task=self.task, classes=self.classes, metrics=self.metrics, trials=[kept for kept, _ in trials],
            floor=self.floor,
        )  # fmt: skip
        counts, tensors = list[Floats](), dict[str, torch.Tensor]()
        for number, (_, one) in enumerate(trials):
            models = self._together[one.key]
            trained_on = one.trained_on if one.trained_on in models else OWN
            totals = models[trained_on]
            flat = [totals[name].ravel().astype(np.float64) for name in self._task.totalled]
            tensors[f"totals{number}"] = torch.from_numpy(np.concatenate(flat))
            counts.append(shares[one.key, trained_on])
        return Message(asked.fields(), {"shares": torch.from_numpy(np.stack(counts)), **tensors})


def _shares(values: Mapping[Cell, Floats]) -> dict[Cell, Floats]:
    """How much each model of a method counts in its mean over seeds and folds, [K], by the values that there are.

    Args:
        values: metrics of each model, [K].
    """
    known = {cell: np.isfinite(found).astype(np.float64) for cell, found in values.items()}
    models = dict[Key, Floats]()
    for (key, _), found in known.items():
        models[key] = models.get(key, 0.0) + found
    cells = np.sum([found > 0 for found in models.values()], axis=0)
    return {(key, model): found / np.maximum(models[key] * cells, 1) for (key, model), found in known.items()}


def _check(site: str, asked: Compare, answer: Message) -> None:
    """Whether a site speaks of what it was asked.

    Raises:
        SiteError: P401, it does not.
    """
    said, names = answer.fields, {one.name for one in asked.trials}
    methods = {*said.get("methods", []), *said.get("trusted", []), *said.get("several", [])}
    _check_names(site, "compare", methods | {*said.get("metrics", [])}, names | {*asked.metrics})


def _check_names(site: str, function: str, said: set[str], asked: set[str]) -> None:
    """Whether a site speaks of what it was asked.

    Raises:
        SiteError: P401, it does not.
    """
    if not said <= asked:
        raise _misfit(site, function, "it is about what was not asked")


T = TypeVar("T")


def _read(site: str, function: str, read: Callable[[Message], T], answer: Message) -> T:
    """What a site says, as it is read.

    Raises:
        SiteError: P401, its fields and tensors do not go together.
    """
    try:
        return read(answer)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise _misfit(site, function, "its fields and tensors do not go together") from None


def _misfit(site: str, function: str, what: str) -> SiteError:
    text = f"The answer of site {site} to {function!r} is not as it should be: {what}."
    return SiteError("P401", text, "Let all sites and the server run the same version of Polyclinic.", site=site)


def _groups(answer: Message) -> SiteGroups:
    said = answer.fields
    places = [Place(*place) for place in said.get("places", [])]
    withheld = [(column, group) for column, group in said.get("withheld", [])]
    found = groups_from_tensors(places, answer.tensors) if places else {}
    return SiteGroups(said.get("metrics", []), found, withheld, said.get("mixed", []))


def _survival(answer: Message) -> SiteSurvival:
    return survival_from_tensors(answer.fields.get("methods", []), answer.tensors)


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
