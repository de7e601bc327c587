"""What a job trained is tested: decision thresholds, predictions of every tested site, and the table of results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyclinic.audit.poisoning import Attack
from polyclinic.client.work import NOT_FINITE
from polyclinic.communication.message import Message
from polyclinic.engine import Engine
from polyclinic.errors import TrainingError
from polyclinic.methods import Method
from polyclinic.running.attendance import gather, leave_out
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress, Row
from polyclinic.running.sums import ask_sum, lengths
from polyclinic.shapes import Shaped
from polyclinic.site.messages import Predict, Test
from polyclinic.statistics.rows import attention_rows, opened, prediction_rows
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job, Outcome
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.tested import Key, TestedSite, TestedTogether, Threshold, joined
from polyclinic.tasks import Task, build_task
from polyclinic.tasks.base import Totals


@dataclass(frozen=True)
class Trained:
    """What a job trained.

    Attributes:
        plan: what was run.
        progress: tells the models of the best round, and takes notes of sites that do not answer.
        models: whole model ``[P]`` of each site that trained; or, where everything is shared, the models that are.
        rows: a row a round and site.
        spending: a row a site whose patients noise protects.
    """

    plan: Plan
    progress: Progress
    models: dict[str, Tensor]
    rows: list[Row]
    spending: list[Row]

    def with_beside(self, trial: Trial) -> Trial:
        """A trial in which sites are sent what parts at the server send them beside the model of the best round."""
        beside, plan = self.progress.best_beside, self.plan

        def full(sent: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
            return {site: {**models, **plan.sent_beside(beside, site)} for site, models in sent.items()}

        return replace(trial, validate=full(trial.validate), test=full(trial.test)) if beside else trial


@dataclass(frozen=True)
class Trial:
    """One model, or models to be averaged, and who measures it.

    Attributes:
        trained_on: as in ``results.csv``.
        validate: what is sent to the sites that trained it, whose validation cases choose the threshold.
        test: what is sent to the sites that test.
    """

    trained_on: str
    validate: dict[str, dict[str, Tensor]]
    test: dict[str, dict[str, Tensor]]


Ask = Callable[[str, Mapping[str, Message]], dict[str, Message]]
#: The sum over sites of a tensor of what they answer about a trial; None if none does.
Sums = Callable[[str, Trial, str, Shaped], Tensor | None]


class Tester:
    """Tests what a job trained.

    Args:
        engine: who runs the sites.
        declaration: the study.
        classes: names of the classes.
        job: what was trained.
        fold: the sites' parts.
        attack: the attack of the study; for a backdoor it is tested whether it opens.
        at_sites: whether predictions stay at the sites.
    """

    def __init__(
        self, engine: Engine, declaration: Declaration, classes: Sequence[str], job: Job, fold: Fold,
        attack: Attack | None = None, *, at_sites: bool = False,
    ) -> None:  # fmt: skip
        self.engine, self.declaration, self.job, self.fold = engine, declaration, job, fold
        self.at_sites = at_sites
        self.names = declaration.metrics, list(classes)
        self.task = build_task(declaration.task, len(classes), grid=declaration.grid, heads=declaration.heads)
        self.attack = attack if attack is not None and attack.name == "backdoor" and job.without is None else None

    def test(self, study: StudyMethod, trained: Trained, outcome: Outcome) -> set[str]:
        """Test as ``study`` asks; adds predictions, and overlays where there are any, to ``outcome``.

        Returns:
            Sites that should have been tested and were not, since they did not answer.
        """
        label, silent = study.label, set(trained.progress.lost)
        quorum, notes, sites = study.training.quorum, trained.progress.failures, self.fold.tested_sites

        untested = silent.intersection(sites if self.job.without is None else [self.job.without])

        def ask(function: str, requests: Mapping[str, Message]) -> dict[str, Message]:
            answers = gather(self.engine, function, requests, quorum, notes, silent, sites)
            if function in ("predict", "test"):
                untested.update(requests.keys() - answers.keys())
            return answers

        summed = self._summing(trained, quorum, silent, sites)
        totals = list[tuple[str, str, Totals]]()
        for trial in map(trained.with_beside, self._trials(study.method, trained)):
            if not trial.test:
                continue
            thresholds = self._thresholds(trial, summed)
            if thresholds is None:  # nobody answered; a note says so
                untested.update(trial.test)
                continue
            threshold, several = thresholds
            completion = [*several, *self._completion(trained.plan.task, trial, summed)]
            asked = Predict(threshold=threshold, completion=completion)
            if self.at_sites:
                if self.task.has_threshold:
                    names = [head.name for head in self.task.heads] or [""]
                    limits = zip(several or [threshold] * len(names), names, strict=True)
                    outcome.tested.thresholds += [
                        Threshold(self._key(label), trial.trained_on, limit, name) for limit, name in limits
                    ]
                totals += self._test_at_sites(label, trained.plan.start.run, trial, asked, ask, outcome)
            else:
                self._gather_predictions(label, trial, asked, ask, outcome)
            if self.attack is not None:
                outcome.backdoor += self._backdoor(self.attack, label, trial, threshold, ask)
            if self._wants_overlays(study.method):
                requests = _each(trial, Predict(threshold=threshold))
                for site, reply in ask("overlays", requests).items():
                    outcome.overlays |= {f"{label}/{site}/{name}": tensor for name, tensor in reply.tensors.items()}
                    outcome.overlay_scores |= {f"{label}/{site}/{rank}": v for rank, v in reply.fields.items()}
        for trained_on, of in joined(totals, self.task).items():
            outcome.tested.together.append(TestedTogether(self._key(label), trained_on, of))
        return untested

    def settle(self, method: Method, trained: Trained) -> tuple[float, list[float]]:
        """What predictions need besides a model that is not tested: the threshold, and what completes them."""
        trial = trained.with_beside(self._trials(method, trained)[0])
        summed = self._summing(trained, trained.plan.quorum, set(), ())
        thresholds = self._thresholds(trial, summed) if trained.plan.validate else None
        threshold, several = (0.5, []) if thresholds is None else thresholds
        return threshold, [*several, *self._completion(trained.plan.task, trial, summed)]

    def _summing(self, trained: Trained, quorum: int | None, silent: set[str], among: Iterable[str]) -> Sums:
        """How sums over the sites that trained a model are asked for; the arguments are as in `gather`."""
        sizes = {"K": len(self.declaration.grid.edges), "heads": len(self.task.heads)}
        notes = trained.progress.failures

        def summed(function: str, trial: Trial, name: str, shaped: Shaped) -> Tensor | None:
            away = trained.plan.voters if function == "sums" else ()  # which have no training cases
            requests = {site: Message({}, sent) for site, sent in trial.validate.items() if site not in away}
            if not trained.plan.start.hides:
                replies = gather(self.engine, function, requests, quorum, notes, silent, among).values()
                return torch.stack([reply.tensors[name] for reply in replies]).sum(0) if replies else None
            added = ask_sum(self.engine, function, requests, lengths({name: shaped}, sizes))
            if added.failures:
                leave_out(function, added.failures, {*requests, *among}, quorum, notes, silent)
            if not added.broken:
                return added.total[name].to(next(iter(shaped.types)))
            if shaped.finite:
                what = f"What {added.broken} of {len(added.sites)} sites answered to {function!r}"
                raise TrainingError("P301", f"{what} is not finite numbers.", NOT_FINITE)
            return torch.full_like(added.total[name], torch.nan)  # as the sum is, of a model that broke down

        return summed

    def _key(self, label: str) -> Key:
        return Key(label, self.job.run, self.job.seed, self.job.fold)

    def _gather_predictions(self, label: str, trial: Trial, asked: Predict, ask: Ask, outcome: Outcome) -> None:
        """Predictions of the test cases of every site, as tables."""
        for site, reply in ask("predict", _each(trial, asked)).items():
            names = (reply.fields["subject"], reply.fields["case"])
            sent = (reply.fields, reply.tensors)
            about = self._key(label)._asdict() | {"site": site}
            groups = reply.fields.get("groups", {})
            rows = prediction_rows(self.task, *names, sent, asked.threshold, about, trial.trained_on, groups)
            outcome.predictions.append(rows)
            if "attention" in reply.tensors:
                outcome.attention.append(attention_rows(*names, reply.tensors, about, trial.trained_on))

    def _test_at_sites(
        self, label: str, training: str, trial: Trial, asked: Predict, ask: Ask, outcome: Outcome
    ) -> list[tuple[str, str, Totals]]:
        """What the sites say of their test cases; returns what the model was trained on, the site, and its totals."""
        request = Test(
            threshold=asked.threshold, completion=asked.completion, method=label, kind=self.job.run,
            trained_on=trial.trained_on, floor=self.declaration.evaluation.disclosure_floor,
        )  # fmt: skip
        names, found = self.task.result_metrics(*self.names), list[tuple[str, str, Totals]]()
        for site, reply in ask("test", _each(trial, request)).items():
            numbers = {name: tensor.numpy() for name, tensor in reply.tensors.items()}
            values = numbers.pop("values", None)
            known = {} if values is None else dict(zip(names, values.tolist(), strict=True))
            counts = (reply.fields["cases"], reply.fields["patients"])
            one = TestedSite(self._key(label), trial.trained_on, site, training, *counts, known)
            outcome.tested.sites.append(one)
            if numbers:  # in the order of the task: messages have none
                found.append((trial.trained_on, site, {name: numbers[name] for name in self.task.totalled}))
        return found

    def _backdoor(self, attack: Attack, label: str, trial: Trial, threshold: float, ask: Ask) -> list[Row]:
        """Of the test cases of other classes than the target, with the mark: how many are predicted as the target."""
        marked, target = {"threshold": threshold, "mark": attack.options}, attack.options["target"]
        function, asked = "predict", Predict(**marked)
        if self.at_sites:
            function, asked = (
                "test",
                Test(**marked, method=label, kind=self.job.run, trained_on=trial.trained_on, floor=0),
            )
        rows: list[Row] = []
        for site, reply in ask(function, _each(trial, asked)).items():
            if self.at_sites:
                cases, found = reply.fields["cases"], reply.fields["opened"]
            else:
                cases, found = opened(self.task, reply.tensors, threshold, target)
            about = self._key(label)._asdict() | {"trained_on": trial.trained_on, "tested_on": site}
            rows.append({**about, "cases": cases, "opened": found})
        return rows

    def _trials(self, method: Method, found: Trained) -> list[Trial]:
        without, models, lost = self.job.without, found.models, found.progress.lost
        tested = [site for site in self.fold.tested_sites if site not in lost]
        trained = [site for site in self.fold.trains(method, without) if site not in lost]
        state = {site: found.progress.best_state(site) for site in trained}

        def whole(site: str) -> Tensor | None:
            """A site's whole model, or the one that it shares; None if it did not answer when asked for it."""
            return state[site] if found.plan.selection.everything else models.get(site)

        def named(site: str) -> str:
            """How its model is called."""
            return found.plan.model_name(found.plan.homes.get(site, site))

        voting = {site: {"state": found.progress.best_state(site)} for site in found.plan.voters if site not in lost}
        called = found.plan.model_name
        together = {called(owner, f"{place:05d}"): model for place, (owner, model) in enumerate(models.items())}
        if without is not None:
            # The site left out has no part of its own: it gets the mean of the predictions of all models.
            own = {site: {named(site): model} for site in trained if (model := whole(site)) is not None}
            return [Trial("federation", own | voting, {without: together} if without in tested else {})]
        if method.scope == "pool":
            return [Trial("pool", dict.fromkeys(trained, together), dict.fromkeys(tested, together))]
        if method.tests == "ensemble":
            return [Trial("federation", dict.fromkeys(trained, together), dict.fromkeys(tested, together))]
        if method.scope == "federation":
            # A site without training cases has no part of its own either.
            own = {site: {"state": state[site]} for site in trained}
            return [Trial("federation", own | voting, {site: own.get(site, together) for site in tested})]
        trials, home = [], method.tests == "own"
        for source in trained:
            sent = {"state": state[source]}  # with its own part, which needs not leave it
            if not home or found.plan.selection.everything:
                model = whole(source)
                if model is None:
                    continue
                sent = {named(source): model}
            others = [site for site in tested if (site == source) is home]
            trials.append(Trial(source, {source: sent}, dict.fromkeys(others, sent)))
        return trials

    def _thresholds(self, trial: Trial, summed: Sums) -> tuple[float, list[float]] | None:
        """The decision threshold, and those of several labels, chosen on validation cases by sums that the sites
        answer; None if none does."""
        fixed = self.declaration.evaluation.threshold
        if fixed != "validation":
            return fixed, []
        if not self.task.has_threshold or self.task.counts is None:
            return 0.5, []
        evidence = summed("threshold", trial, "counts", self.task.counts)
        if evidence is None:
            return None
        return self.task.choose_threshold(evidence), self.task.choose_thresholds(evidence)

    @staticmethod
    def _completion(task: Task, trial: Trial, summed: Sums) -> list[float]:
        """What predictions need besides the model, from sums over the training cases of the sites that trained it."""
        if not task.needs_sums or task.summed is None:
            return []
        sums = summed("sums", trial, "sums", task.summed)
        return [] if sums is None else task.completion(sums)

    def _wants_overlays(self, method: Method) -> bool:
        first = self.job == replace(self.job, seed=self.declaration.all_seeds[0], fold=0, without=None, attacked=False)
        shown = self.task.has_pictures() and self.declaration.report.overlays
        return first and shown and method.tests == "own" and not self.at_sites


def predictions_at(declaration: Declaration, engine: Engine) -> str:
    """Where predictions of test cases are kept: ``coordinator`` or ``sites``."""
    return declaration.evaluation.predictions or ("coordinator" if engine.holds_all else "sites")


def _each(trial: Trial, asked: Predict) -> dict[str, Message]:
    """The same question for every site that tests."""
    return {site: Message(asked.fields(), sent) for site, sent in trial.test.items()}
