"""One job of a study: train one composition on one fold with one seed, and test it as each method asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polyclinic.audit.poisoning import Attack
from polyclinic.client.optimizers import learning_rates
from polyclinic.client.rules import LOCAL_RULES, LocalRule
from polyclinic.communication.message import Message
from polyclinic.communication.topology import TOPOLOGIES
from polyclinic.data.scaling import Scaler, Summary, merge
from polyclinic.engine import Engine, LocalEngine
from polyclinic.methods import SHARES, Method
from polyclinic.notes import Note
from polyclinic.rounds import Checkpoint, Plan, Progress, Row, run_rounds, validation_score
from polyclinic.seeds import derive_seed
from polyclinic.server import ServerRule, build_server
from polyclinic.site.evaluation import MASK_THRESHOLDS
from polyclinic.site.facts import FACTS
from polyclinic.state import FlatModule, Selection
from polyclinic.study.declaration import (
    Declaration,
    StudyMethod,
    Training,
    build_participation,
    optimizer_of,
    schedule_of,
)
from polyclinic.study.kinds import ATTACKED, PLAIN, RUN, UNSEEN, titled
from polyclinic.tasks import TASKS
from polyclinic.tasks.metrics import METRICS, choose_threshold, classification_metrics
from polyclinic.tasks.regression_metrics import regression_metrics


@dataclass(frozen=True)
class Fold:
    """What is known of the sites after a split.

    Attributes:
        number: which fold.
        train, validation, test: number of cases of each site.
        classes: training cases of each class, by site; empty lists for segmentation and regression.
        targets: count, mean and sum of squared deviations of the training cases' numbers, by site; regression only.
    """

    number: int
    train: dict[str, int]
    validation: dict[str, int]
    test: dict[str, int]
    classes: dict[str, list[int]]
    targets: dict[str, Summary] = field(default_factory=dict)

    def corrupted(self, attack: Attack) -> Fold:
        """What is known where the training cases of some sites are corrupt: a class may be missing there."""
        left = attack.corruption().left
        classes = {site: left(counts) if site in attack.names else counts for site, counts in self.classes.items()}
        train = {site: cases - sum(self.classes[site]) + sum(classes[site]) for site, cases in self.train.items()}
        return replace(self, train=train, classes=classes)

    @property
    def training_sites(self) -> list[str]:
        """Sites that have training cases."""
        return [site for site, cases in self.train.items() if cases]

    @property
    def tested_sites(self) -> list[str]:
        """Sites that have test cases."""
        return [site for site, cases in self.test.items() if cases]


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        methods: what the training serves (single, cross and ensemble share one).
        seed: model seed.
        fold: number of the fold.
        without: the site left out, for an unseen-site run.
        attacked: whether the study's corrupt sites are corrupt in this training.
        trial: number of the configuration that a search tries; None for what is tested.
        trials: how many are tried.
    """

    methods: tuple[StudyMethod, ...]
    seed: int
    fold: int
    without: str | None = None
    attacked: bool = False
    trial: int | None = None
    trials: int = 0

    @property
    def title(self) -> str:
        """For progress displays."""
        names = " + ".join(method.label for method in self.methods)
        if self.attacked:
            names = titled(names, ATTACKED)
        what = f"{names} without {self.without}" if self.without else names
        return what if self.trial is None else f"search: {what}, trial {self.trial + 1} of {self.trials}"

    @property
    def suffix(self) -> str:
        """Ending of the names of this job's files."""
        if self.attacked:
            return "-attacked"
        without = f"-without-{slug(self.without)}" if self.without is not None else ""
        return without if self.trial is None else f"{without}-trial{self.trial}"

    @property
    def run(self) -> str:
        """Which kind of run this is, as in the results."""
        return ATTACKED if self.attacked else UNSEEN if self.without is not None else PLAIN


@dataclass
class Outcome:
    """Everything a job found.

    Attributes:
        predictions: a row a test case, method and model.
        rounds: a row a round and site.
        models: file stem -> tensors by name.
        overlays: name -> picture (segmentation).
        overlay_dice: ``METHOD/SITE/RANK`` -> Dice.
        backdoor: a row a model and site: test cases with the mark of a backdoor, and how many of them it opened.
        notes: what went wrong in rounds.
    """

    predictions: list[pd.DataFrame] = field(default_factory=list)
    rounds: list[Row] = field(default_factory=list)
    models: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    overlays: dict[str, Tensor] = field(default_factory=dict)
    overlay_dice: dict[str, float] = field(default_factory=dict)
    backdoor: list[Row] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


class JobRunner:
    """Runs jobs on prepared sites.

    Args:
        declaration: the study.
        engine: who runs the sites.
        local: the same sites in this process, for what only one process can do (pooling).
        template: a network of the study's kind, for its layout and initial weights.
        initial: initial model state ``[P]`` of a seed.
        classes: names of the classes.
        attack: what is done in jobs that are attacked, see `Attack.on`.
    """

    def __init__(
        self, declaration: Declaration, engine: Engine, local: LocalEngine, template: FlatModule,
        initial: Callable[[int], Tensor], classes: Sequence[str], attack: Attack | None = None,
    ) -> None:  # fmt: skip
        self.declaration, self.engine, self.local, self.attack = declaration, engine, local, attack
        self.template, self.initial, self.classes = template, initial, classes
        self.primary = declaration.metrics[0]

    def run(
        self, job: Job, fold: Fold, *, checkpoint: Checkpoint | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> Outcome:  # fmt: skip
        """Train and test.

        Raises:
            PolyclinicError: a site failed, or too few answered.
        """
        study = job.methods[0]
        pooled = study.method.scope == "pool"
        plan, engine = self._ready(job, fold)
        if pooled:
            self._start_everywhere(plan)
        progress, rows = run_rounds(plan, engine, checkpoint=checkpoint, report=report)
        outcome = Outcome(notes=[Note("N803", f"{job.title}: {failure}") for failure in _few(progress.failures)])
        models = self._models(plan, engine, progress)
        tester = Tester(self.engine, self.declaration, self.classes, job, fold, self.attack)
        for method in job.methods:
            tester.test(method, models, plan.selection, progress.best_state, outcome)
        names = {"method": study.label, RUN: job.run, "seed": job.seed, "fold": job.fold}
        outcome.rounds = [{**names, **row, "site": "pool" if pooled else row["site"]} for row in rows]
        outcome.models[f"{slug(study.label)}-seed{job.seed}-fold{job.fold}" + job.suffix] = self._tensors(plan, models)
        return outcome

    def attempt(
        self, job: Job, fold: Fold, *, checkpoint: Checkpoint | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> tuple[float | None, list[str]]:  # fmt: skip
        """Train a configuration that a search tries; no test case is looked at.

        Returns:
            The validation score by what the search chooses by, of the round that would be tested; None if it is not a
            finite number. And sentences about rounds in which a site was left out.

        Raises:
            PolyclinicError: a site failed, or too few answered.
        """
        plan, engine = self._ready(job, fold)
        plan = replace(plan, choose_by=self.declaration.search_by)
        progress, rows = run_rounds(plan, engine, checkpoint=checkpoint, report=report)
        if plan.validate:
            score = best_score(plan, progress, rows, fold.validation)
        else:
            request = Message({"metric": plan.metric}, {"state": progress.state})
            replies = engine.ask("evaluate", dict.fromkeys(plan.sites, request))
            score = validation_score(plan, [reply.fields for reply in replies.values()])
        if score is None or not math.isfinite(score):
            return None, progress.failures
        return -score if plan.choose_by == "metric" and plan.higher_is_better else score, progress.failures

    def _ready(self, job: Job, fold: Fold) -> tuple[Plan, Engine]:
        """What a job's training is given, and who runs it."""
        sites = [site for site in fold.training_sites if site != job.without]
        if job.methods[0].method.scope != "pool":
            return self.plan(job, fold, sites), self.engine
        name = "+".join(sites)
        plan = self.plan(job, fold, [name])
        return plan, self.local.pool(name, sites, plan.declaration)

    def plan(self, job: Job, fold: Fold, sites: list[str]) -> Plan:
        """What the federated loop is given for a job trained at ``sites``."""
        study, attack = job.methods[0], self._attack(job)
        method, training = study.method, study.training
        evaluation = self.declaration.evaluation
        if attack is not None and not attack.changes_updates:
            fold = fold.corrupted(attack)
        selection = method.selection(self.template.layout)
        server = build_server(method.server)
        rules = {name: LOCAL_RULES[name](**options) for name, options in method.local}
        keeps = not selection.everything or method.personal is not None
        cases = {site: float(fold.train.get(site, 1)) for site in sites}
        metric = "dice" if self.declaration.task == "segmentation" else self.primary
        validation = sum(fold.validation.get(site, 0) for site in (fold.train if method.scope == "pool" else sites))
        return Plan(
            declaration=self.declare(job, fold, training),
            initial=self.initial(job.seed),
            selection=selection,
            server=server,
            sites=sites,
            weights=cases if training.weights == "cases" else dict.fromkeys(sites, 1.0),
            learning_rates=learning_rates(optimizer_of(training), schedule_of(training), training.rounds),
            together=method.scope != "sites",
            metric=metric,
            choose_by=evaluation.best_round if evaluation.best_round != "last" else "loss",
            higher_is_better=METRICS[metric].higher_is_better,
            validate=evaluation.best_round != "last" and validation > 0,
            patience=training.early_stopping,
            quorum=None if training.quorum is None else min(training.quorum, len(sites)),
            save=bool(keeps or method.local or self._keeps_optimizer(method, training)),
            keeps=keeps,
            counterparts={name: part for name, rule in rules.items() if (part := rule.counterpart()) is not None},
            reveals=_reveals(rules, server),
            participation=build_participation(training) if method.scope == "federation" else [],
            topology=TOPOLOGIES[method.topology](),
            corrupt=None if attack is None else attack.on_updates(selection.trainable, job.seed),
            endures=attack is not None,
        )

    def _attack(self, job: Job) -> Attack | None:
        return self.attack if job.attacked else None

    def _corrupt(self, job: Job) -> dict[str, Any]:
        """What is said of sites that train on corrupt cases: their names, and what is wrong with the cases."""
        attack = self._attack(job)
        if attack is None or attack.changes_updates:
            return {}
        return {"corrupt": {site: [attack.name, attack.options] for site in attack.names}}

    @staticmethod
    def _keeps_optimizer(method: Method, training: Training) -> bool:
        return method.keep_optimizer or training.optimizer_state == "keep"

    def declare(self, job: Job, fold: Fold, training: Training) -> dict[str, Any]:
        """What every site is told when the training starts: JSON values only."""
        method = job.methods[0].method
        mixed = self.declaration.engine.mixed_on(str(self.template.vector.device))
        weights = self._class_weights(training, fold, job.without)
        return {
            "run": f"{slug(job.methods[0].label)}-seed{job.seed}-fold{job.fold}{job.suffix}",
            "task": self.declaration.task,
            "classes": len(self.classes),
            "loss": training.loss or TASKS[self.declaration.task].losses[0],
            "target_scale": self._target_scale(fold, job.without),
            "metrics": {
                "names": self.declaration.metrics,
                "classes": list(self.classes),
                "tolerance": self.declaration.evaluation.surface_tolerance,
            },
            "model": list(self.declaration.model_part),
            "share": sorted(SHARES[method.share]),
            "local": [[name, options] for name, options in method.local],
            "personal": None if method.personal is None else list(method.personal),
            "facts": build_server(method.server).facts,
            "keep_optimizer": self._keeps_optimizer(method, training),
            "seed": job.seed,
            "fold": job.fold,
            "work": work_fields(method, training, list(fold.train), mixed=mixed, class_weights=weights),
            **self._corrupt(job),
        }

    def _class_weights(self, training: Training, fold: Fold, without: str | None) -> list[float] | None:
        if training.class_weights == "none":
            return None
        if training.class_weights != "balanced":
            return list(training.class_weights)
        return balanced_weights([fold.classes[site] for site in fold.training_sites if site != without])

    @staticmethod
    def _target_scale(fold: Fold, without: str | None) -> list[float] | None:
        """Mean and deviation of the numbers to be predicted, over the training cases of all training sites."""
        summaries = [fold.targets[site] for site in fold.training_sites if site != without and site in fold.targets]
        if not summaries:
            return None
        scaler = Scaler.from_summary(merge(summaries))
        return [scaler.mean.item(), scaler.deviation.item()]

    def _start_everywhere(self, plan: Plan) -> None:
        """Sites must know the model to test the pool's on their cases."""
        self.engine.ask("start", dict.fromkeys(self.engine.sites, Message(plan.declaration, {"initial": plan.initial})))

    def _models(self, plan: Plan, engine: Engine, progress: Progress) -> dict[str, Tensor]:
        """Whole model of the best round ``[P]`` of each site; one for all where everything is shared."""
        if plan.selection.everything:
            return {"federation": progress.best_state}
        request = Message({}, {"state": progress.best_state})
        replies = engine.ask("model", dict.fromkeys(plan.sites, request))
        return {site: reply.tensors["model"] for site, reply in replies.items()}

    def _tensors(self, plan: Plan, models: dict[str, Tensor]) -> dict[str, Tensor]:
        """The models as named tensors, for a file."""
        layout = self.template.layout
        return {
            (name if plan.selection.everything else f"{site}/{name}"): tensor.clone()
            for site, vector in models.items()
            for name, tensor in layout.split(vector).items()
        }


def _few(sentences: Sequence[str], most: int = 3) -> list[str]:
    """The first ones, and how many there are besides: a site that is late is late in every round."""
    left = len(sentences) - most
    more = [f"{left} more notes like these; rounds.csv tells who took part in each round."] if left > 0 else []
    return [*sentences[:most], *more]


def balanced_weights(counts: Sequence[Sequence[int]]) -> list[float]:
    """Weights of classes by the inverse of their number over some sites, each with its ``counts`` of cases."""
    totals = np.asarray(counts).sum(axis=0)
    return [float(totals.sum() / (len(totals) * max(count, 1))) for count in totals]


def work_fields(
    method: Method, training: Training, sites: Sequence[str], *, mixed: bool, class_weights: list[float] | None = None
) -> dict[str, Any]:
    """The local work that a site is told, as JSON values; ``own`` is what holds for single ``sites`` only."""
    epochs, steps = training.local_epochs, training.local_steps
    common_steps = steps if isinstance(steps, int) else None
    common_epochs = epochs if isinstance(epochs, int) else 1
    return {
        "kind": method.work,
        "epochs": None if common_steps else common_epochs,
        "steps": common_steps,
        "batch_size": training.batch_size,
        "optimizer": list(optimizer_of(training)),
        "clip": training.clip,
        "class_weights": class_weights,
        "mixed_precision": mixed,
        "own": {site: own for site in sites if (own := _own_work(training, site))},
    }


def _own_work(training: Training, site: str) -> dict[str, float]:
    """What holds for one site only."""
    given = {
        "epochs": training.local_epochs, "steps": training.local_steps, "seconds": training.time_budget,
        "step_seconds": training.step_seconds,
    }  # fmt: skip
    own: dict[str, float] = {key: value for key, value in given.items() if isinstance(value, float)}
    for key, value in given.items():
        if isinstance(value, dict) and site in value:
            own[key] = value[site]
    return own


def _reveals(rules: Mapping[str, LocalRule], server: ServerRule) -> dict[str, str]:
    """What is exchanged besides the state -> what it could reveal."""
    found = {
        f"{name}/{key}": reveals
        for name, rule in rules.items()
        for declared in (rule.announces, rule.sends, rule.receives)
        for key, reveals in declared.items()
    }
    return found | server.sends | {fact: FACTS[fact].reveals for fact in server.facts}


@dataclass(frozen=True)
class Trial:
    """One model, or models to be averaged, and who measures it.

    Attributes:
        trained_on: as in ``results.csv``.
        validate: what is sent to the sites whose validation cases choose the threshold.
        test: what is sent to the sites that test.
    """

    trained_on: str
    validate: dict[str, dict[str, Tensor]]
    test: dict[str, dict[str, Tensor]]


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
        self.engine, self.declaration, self.classes, self.job, self.fold = engine, declaration, classes, job, fold
        self.attack = attack if attack is not None and attack.name == "backdoor" and job.without is None else None

    def test(
        self, study: StudyMethod, models: dict[str, Tensor], selection: Selection, state: Tensor, outcome: Outcome
    ) -> None:
        """Test as ``study`` asks; adds predictions, and overlays where there are any, to ``outcome``.

        Args:
            study: the method.
            models: whole model of each site that trained, or ``{"federation": model}``.
            selection: the shared coordinates.
            state: shared state of the best round ``[Q]``.
            outcome: is added to.
        """
        label = study.label
        for trial in self._trials(study.method, models, selection, state):
            threshold = self._threshold(trial)
            requests = {site: Message({"threshold": threshold}, sent) for site, sent in trial.test.items()}
            for site, reply in self.engine.ask("predict", requests).items():
                frame = self._frame(reply, threshold)
                frame.insert(0, "method", label)
                frame.insert(1, RUN, self.job.run)
                frame.insert(2, "seed", self.job.seed)
                frame.insert(3, "fold", self.job.fold)
                frame.insert(4, "site", site)
                frame["trained_on"] = trial.trained_on
                outcome.predictions.append(frame)
            if self.attack is not None:
                outcome.backdoor += self._backdoor(self.attack, label, trial, threshold)
            if self._wants_overlays(study.method):
                for site, reply in self.engine.ask("overlays", requests).items():
                    outcome.overlays |= {f"{label}/{site}/{name}": tensor for name, tensor in reply.tensors.items()}
                    outcome.overlay_dice |= {f"{label}/{site}/{rank}": v for rank, v in reply.fields.items()}

    def _backdoor(self, attack: Attack, label: str, trial: Trial, threshold: float) -> list[Row]:
        """Of the test cases of other classes than the target, with the mark: how many are predicted as the target."""
        fields = {"threshold": threshold, "mark": attack.options}
        requests = {site: Message(fields, sent) for site, sent in trial.test.items()}
        rows: list[Row] = []
        for site, reply in self.engine.ask("predict", requests).items():
            predicted = reply.tensors["probabilities"]
            decided = (predicted[:, 1] >= threshold).long() if len(self.classes) == 2 else predicted.argmax(1)
            others = reply.tensors["labels"] != attack.options["target"]
            rows.append({
                "method": label, RUN: self.job.run, "seed": self.job.seed, "fold": self.job.fold,
                "trained_on": trial.trained_on, "tested_on": site, "cases": int(others.sum()),
                "opened": int((decided[others] == attack.options["target"]).sum()),
            })  # fmt: skip
        return rows

    def _trials(self, method: Method, models: dict[str, Tensor], selection: Selection, state: Tensor) -> list[Trial]:
        tested, without = self.fold.tested_sites, self.job.without
        trained = [site for site in self.fold.training_sites if site != without]
        together = {f"model{position:05d}": model for position, model in enumerate(models.values())}
        if without is not None:
            # The site left out has no part of its own: it gets the mean of the predictions of all models.
            own = {site: {"model": models.get(site, state)} for site in trained}
            return [Trial("federation", own, {without: together} if without in tested else {})]
        if method.scope == "pool":
            return [Trial("pool", dict.fromkeys(trained, together), dict.fromkeys(tested, together))]
        if method.tests == "ensemble":
            return [Trial("federation", dict.fromkeys(trained, together), dict.fromkeys(tested, together))]
        if method.scope == "federation":
            # A site without training cases has no part of its own either.
            sent = {"state": state}
            test = {site: sent if site in trained else together for site in tested}
            return [Trial("federation", dict.fromkeys(trained, sent), test)]
        trials = []
        for source in trained:
            sent = {"model": models.get(source, state)}
            home = method.tests == "own"
            others = [site for site in tested if (site == source) is home]
            trials.append(Trial(source, {source: sent}, dict.fromkeys(others, sent)))
        return trials

    def _threshold(self, trial: Trial) -> float:
        """The decision threshold, chosen on validation cases by sums that the sites answer."""
        fixed = self.declaration.evaluation.threshold
        if fixed != "validation":
            return fixed
        if not trial.test or len(self.classes) != 2:
            return 0.5
        requests = {site: Message({}, sent) for site, sent in trial.validate.items()}
        evidence = [reply.tensors["counts"] for reply in self.engine.ask("threshold", requests).values()]
        total = torch.stack(evidence).sum(0)
        if self.declaration.task == "classification":
            return choose_threshold(total.numpy())
        if not total[1, 0]:
            return 0.5
        return MASK_THRESHOLDS[int((total[0] / total[1]).argmax())]

    def _frame(self, reply: Message, threshold: float) -> pd.DataFrame:
        """Predictions of one site as a table."""
        frame = pd.DataFrame({"subject": reply.fields["subject"], "case": reply.fields["case"]}, dtype=str)
        if self.declaration.task == "segmentation":
            for column, name in enumerate(reply.fields["metrics"]):
                frame[name] = reply.tensors["values"][:, column].numpy()
            return frame
        frame["label"] = reply.tensors["labels"].numpy()
        if self.declaration.task == "regression":
            frame["score"] = reply.tensors["predictions"].numpy()
            return frame
        predicted = reply.tensors["probabilities"].numpy()
        if len(self.classes) == 2:
            frame["score"] = predicted[:, 1]
        else:
            frame["score"] = predicted.max(axis=1) if len(predicted) else predicted[:, 0]
            for column in range(predicted.shape[1]):
                frame[f"score_{column}"] = predicted[:, column]
        frame["threshold"] = threshold
        return frame

    def _wants_overlays(self, method: Method) -> bool:
        first = self.job == replace(self.job, seed=self.declaration.all_seeds[0], fold=0, without=None, attacked=False)
        shown = self.declaration.task == "segmentation" and self.declaration.report.overlays
        return first and shown and method.tests == "own"


def best_score(plan: Plan, progress: Progress, rows: Sequence[Row], cases: Mapping[str, int]) -> float | None:
    """The validation score of the best round, to be lowered; where each site has its own, the mean over all cases.

    Args:
        plan: what was run.
        progress: tells the best round of the federation or of each site.
        rows: a row a round and site.
        cases: number of validation cases of each site.
    """
    if plan.together:
        return progress.best["federation"][0]
    column = f"validation_{plan.metric if plan.choose_by == 'metric' else 'loss'}"
    best = [row for row in rows if row["round"] == progress.best[row["site"]][1]]
    return validation_score(plan, [{"cases": cases[row["site"]], plan.choose_by: row[column]} for row in best])


def result_rows(predictions: pd.DataFrame, task: str, names: Sequence[str], classes: int) -> pd.DataFrame:
    """The results table: every metric for each model and tested site, and over all sites together.

    ``all`` is over the predictions of all sites together; for `single`, where every site has a model of its own, its
    ``trained_on`` is ``own``.
    """
    rows: list[tuple[object, ...]] = []
    for key, found in predictions.groupby(["method", RUN, "seed", "fold"], sort=False):
        for (trained_on, site), cases in found.groupby(["trained_on", "site"], sort=False):
            values = measure(cases, task, names, classes)
            rows += [(*key, trained_on, site, name, value) for name, value in values.items()]
        own = (found["trained_on"] == found["site"]).all()
        groups = [("own", found)] if own else found.groupby("trained_on", sort=False)
        for trained_on, cases in groups:
            values = measure(cases, task, names, classes)
            rows += [(*key, trained_on, "all", name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["method", RUN, "seed", "fold", "trained_on", "tested_on", "metric", "value"])


def measure(cases: pd.DataFrame, task: str, names: Sequence[str], classes: int) -> dict[str, float]:
    """The metrics of some predictions; for segmentation ``names`` are columns of ``cases``."""
    if task == "segmentation":
        return {name: float(cases[name].mean()) for name in names}
    if task == "regression":
        return regression_metrics(cases["label"].to_numpy(), cases["score"].to_numpy(), names)
    if classes == 2:
        score = cases["score"].to_numpy()
        predicted = np.stack([1 - score, score], axis=1)
    else:
        predicted = cases[[f"score_{column}" for column in range(classes)]].to_numpy()
    return classification_metrics(cases["label"].to_numpy(), predicted, names, cases["threshold"].to_numpy())


def slug(text: str) -> str:
    """``text`` as part of a file name: letters, digits, dots and dashes; different texts stay different."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "_" for c in text)[:60]
    return plain if plain == text else f"{plain}-{derive_seed(text) % 16**6:06x}"
