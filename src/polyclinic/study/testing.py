"""What a job trained is tested: decision thresholds, predictions of every tested site, and the table of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from polyclinic.audit.poisoning import Attack
from polyclinic.communication.message import Message
from polyclinic.engine import Engine
from polyclinic.methods import Method
from polyclinic.running.attendance import gather
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress, Row
from polyclinic.site.messages import Predict
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job, Outcome
from polyclinic.study.kinds import RUN
from polyclinic.study.method_entries import StudyMethod
from polyclinic.tasks import Task, build_task


@dataclass(frozen=True)
class Trained:
    """What a job trained.

    Attributes:
        plan: what was run.
        progress: tells the models of the best round, and takes notes of sites that do not answer.
        models: whole model ``[P]`` of each site that trained; or, where everything is shared, the models that are.
    """

    plan: Plan
    progress: Progress
    models: dict[str, Tensor]


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


class Tester:
    """Tests what a job trained.

    Args:
        engine: who runs the sites.
        declaration: the study.
        classes: names of the classes.
        job: what was trained.
        fold: the sites' parts.
        attack: the attack of the study; for a backdoor it is tested whether it opens.
    """

    def __init__(
        self, engine: Engine, declaration: Declaration, classes: Sequence[str], job: Job, fold: Fold,
        attack: Attack | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.declaration, self.job, self.fold = engine, declaration, job, fold
        self.task = build_task(declaration.task, len(classes), grid=declaration.grid)
        self.attack = attack if attack is not None and attack.name == "backdoor" and job.without is None else None

    def test(self, study: StudyMethod, trained: Trained, outcome: Outcome) -> None:
        """Test as ``study`` asks; adds predictions, and overlays where there are any, to ``outcome``."""
        label, silent = study.label, set(trained.progress.lost)
        quorum, notes, sites = study.training.quorum, trained.progress.failures, self.fold.tested_sites

        def ask(function: str, requests: Mapping[str, Message]) -> dict[str, Message]:
            return gather(self.engine, function, requests, quorum, notes, silent, sites)

        for trial in self._trials(study.method, trained):
            threshold = self._threshold(trial, ask)
            if threshold is None:  # nobody answered; a note says so
                continue
            completion = self._completion(trained.plan.task, trial, ask)
            asked = Predict(threshold=threshold, completion=completion).fields()
            requests = {site: Message(asked, sent) for site, sent in trial.test.items()}
            for site, reply in ask("predict", requests).items():
                frame = self._frame(reply, threshold)
                frame.insert(0, "method", label)
                frame.insert(1, RUN, self.job.run)
                frame.insert(2, "seed", self.job.seed)
                frame.insert(3, "fold", self.job.fold)
                frame.insert(4, "site", site)
                frame["trained_on"] = trial.trained_on
                outcome.predictions.append(frame)
            if self.attack is not None:
                outcome.backdoor += self._backdoor(self.attack, label, trial, threshold, ask)
            if self._wants_overlays(study.method):
                for site, reply in ask("overlays", requests).items():
                    outcome.overlays |= {f"{label}/{site}/{name}": tensor for name, tensor in reply.tensors.items()}
                    outcome.overlay_dice |= {f"{label}/{site}/{rank}": v for rank, v in reply.fields.items()}

    def _backdoor(self, attack: Attack, label: str, trial: Trial, threshold: float, ask: Ask) -> list[Row]:
        """Of the test cases of other classes than the target, with the mark: how many are predicted as the target."""
        fields = Predict(threshold=threshold, mark=attack.options).fields()
        requests = {site: Message(fields, sent) for site, sent in trial.test.items()}
        rows: list[Row] = []
        for site, reply in ask("predict", requests).items():
            decided = self.task.decided(reply.tensors, threshold)
            others = reply.tensors["labels"] != attack.options["target"]
            rows.append({
                "method": label, RUN: self.job.run, "seed": self.job.seed, "fold": self.job.fold,
                "trained_on": trial.trained_on, "tested_on": site, "cases": int(others.sum()),
                "opened": int((decided[others] == attack.options["target"]).sum()),
            })  # fmt: skip
        return rows

    def _trials(self, method: Method, found: Trained) -> list[Trial]:
        without, models, lost = self.job.without, found.models, found.progress.lost
        tested = [site for site in self.fold.tested_sites if site not in lost]
        trained = [site for site in self.fold.training_sites if site != without and site not in lost]
        state = {site: found.progress.best_state(site) for site in trained}

        def whole(site: str) -> Tensor | None:
            """A site's whole model, or the one that it shares; None if it did not answer when asked for it."""
            return state[site] if found.plan.selection.everything else models.get(site)

        together = {f"model{position:05d}": model for position, model in enumerate(models.values())}
        if without is not None:
            # The site left out has no part of its own: it gets the mean of the predictions of all models.
            own = {site: {"model": model} for site in trained if (model := whole(site)) is not None}
            return [Trial("federation", own, {without: together} if without in tested else {})]
        if method.scope == "pool":
            return [Trial("pool", dict.fromkeys(trained, together), dict.fromkeys(tested, together))]
        if method.tests == "ensemble":
            return [Trial("federation", dict.fromkeys(trained, together), dict.fromkeys(tested, together))]
        if method.scope == "federation":
            # A site without training cases has no part of its own either.
            own = {site: {"state": state[site]} for site in trained}
            return [Trial("federation", own, {site: own.get(site, together) for site in tested})]
        trials = []
        for source in trained:
            model = whole(source)
            if model is None:
                continue
            sent = {"model": model}
            home = method.tests == "own"
            others = [site for site in tested if (site == source) is home]
            trials.append(Trial(source, {source: sent}, dict.fromkeys(others, sent)))
        return trials

    def _threshold(self, trial: Trial, ask: Ask) -> float | None:
        """The decision threshold, chosen on validation cases by sums that the sites answer; None if none does."""
        fixed = self.declaration.evaluation.threshold
        if fixed != "validation":
            return fixed
        if not trial.test or not self.task.has_threshold:
            return 0.5
        requests = {site: Message({}, sent) for site, sent in trial.validate.items()}
        evidence = [reply.tensors["counts"] for reply in ask("threshold", requests).values()]
        return self.task.choose_threshold(torch.stack(evidence).sum(0)) if evidence else None

    @staticmethod
    def _completion(task: Task, trial: Trial, ask: Ask) -> list[float]:
        """What predictions need besides the model, from sums over the training cases of the sites that trained it."""
        if not trial.test or not task.needs_sums:
            return []
        replies = ask("sums", {site: Message({}, sent) for site, sent in trial.validate.items()})
        sums = [reply.tensors["sums"] for reply in replies.values()]
        return task.completion(torch.stack(sums).sum(0)) if sums else []

    def _frame(self, reply: Message, threshold: float) -> pd.DataFrame:
        """Predictions of one site as a table."""
        frame = pd.DataFrame({"subject": reply.fields["subject"], "case": reply.fields["case"]}, dtype=str)
        return frame.assign(**self.task.columns(reply.fields, reply.tensors, threshold))

    def _wants_overlays(self, method: Method) -> bool:
        first = self.job == replace(self.job, seed=self.declaration.all_seeds[0], fold=0, without=None, attacked=False)
        shown = self.task.has_pictures and self.declaration.report.overlays
        return first and shown and method.tests == "own"


def result_rows(predictions: pd.DataFrame, task: Task, names: Sequence[str]) -> pd.DataFrame:
    """The results table: every metric for each model and tested site, and over all sites together.

    ``all`` is over the predictions of all sites together; for `single`, where every site has a model of its own, its
    ``trained_on`` is ``own``.
    """
    rows: list[tuple[object, ...]] = []
    for key, found in predictions.groupby(["method", RUN, "seed", "fold"], sort=False):
        for (trained_on, site), cases in found.groupby(["trained_on", "site"], sort=False):
            values = task.values(cases, names)
            rows += [(*key, trained_on, site, name, value) for name, value in values.items()]
        own = (found["trained_on"] == found["site"]).all()
        groups = [("own", found)] if own else found.groupby("trained_on", sort=False)
        for trained_on, cases in groups:
            values = task.values(cases, names)
            rows += [(*key, trained_on, "all", name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["method", RUN, "seed", "fold", "trained_on", "tested_on", "metric", "value"])
