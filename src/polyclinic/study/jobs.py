"""Running a job of a study: train one composition on one fold with one seed; `polyclinic.study.testing` tests it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from polyclinic.audit.poisoning import Attack
from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine, Engine, LocalEngine
from polyclinic.notes import Note
from polyclinic.parts import FEDERATION
from polyclinic.rounds import run_rounds
from polyclinic.running.attendance import gather
from polyclinic.running.plan import OwnNetwork, Plan
from polyclinic.running.progress import Checkpoint, Progress, Row
from polyclinic.running.validation import validated, validation_score
from polyclinic.state import FlatModule
from polyclinic.study.columns import CHOSEN
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job, Outcome, slug
from polyclinic.study.kinds import RUN
from polyclinic.study.planning import Planner
from polyclinic.study.privacy import privacy_rows
from polyclinic.study.public import Public
from polyclinic.study.synthesis import contact_sheet, copy_notes, memorised
from polyclinic.study.testing import Tester, Trained, predictions_at


class JobRunner:
    """Runs jobs on prepared sites.

    Args:
        declaration: the study.
        engine: who runs the sites.
        local: the same sites in this process, for what only one process can do (pooling); None where none has them all.
        template: a network of the study's kind, for its layout and initial weights.
        initial: initial model state ``[P]`` of a seed.
        classes: names of the classes.
        attack: what is done in jobs that are attacked, see `Attack.on`.
        public: the public set, if there is one.
        networks: gives the networks of sites that have another than the study's, with the initial states of a seed.
    """

    def __init__(
        self, declaration: Declaration, engine: Engine, local: LocalEngine | None, template: FlatModule,
        initial: Callable[[int], Tensor], classes: Sequence[str], attack: Attack | None = None,
        public: Public | None = None, networks: Callable[[int], Mapping[str, OwnNetwork]] = lambda seed: {},
    ) -> None:  # fmt: skip
        self.declaration, self.engine, self.local, self.attack = declaration, engine, local, attack
        self.template, self.initial, self.classes, self.networks = template, initial, classes, networks
        folder = engine.folder_here or declaration.folder
        self.planner = Planner(declaration, template, classes, attack, public, folder)

    def run(
        self, job: Job, fold: Fold, *, checkpoint: Checkpoint | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> Outcome:  # fmt: skip
        """Train and test.

        Raises:
            PolyclinicError: a site failed, or too few answered.
        """
        study = job.methods[0]
        outcome = Outcome()
        trained = self.train(job, fold, checkpoint=checkpoint, report=report)
        progress = trained.progress
        if progress.lost:
            progress.failures.append(
                f"{', '.join(progress.lost)}: not tested, since what stays there of the model of the best round was "
                "not kept."
            )
        tester = self.tester(job, fold, trained.plan)
        untested = set[str]().union(*[tester.test(method, trained, outcome) for method in job.methods])
        outcome.rounds, outcome.privacy = trained.rows, trained.spending
        if trained.models:
            name = f"{slug(study.label)}-seed{job.seed}-fold{job.fold}" + job.suffix
            outcome.models[name] = self._tensors(trained.plan, trained.models)
        outcome.notes = round_notes(job, progress.failures)
        self._tell_made(job, trained.plan, outcome)
        if untested:
            absent = ", ".join(sorted(untested))
            text = f"{job.title}: results are without {absent}, not tested for want of an answer."
            outcome.notes.append(Note("N810", text))
        return outcome

    def _tell_made(self, job: Job, plan: Plan, outcome: Outcome) -> None:
        """What is told of cases that the method made, if it made any."""
        made = plan.procedure[1].made()
        if made is None:
            return
        outcome.memorisation = memorised(job, made)
        outcome.notes += copy_notes(job, made, plan.sites, outcome.memorisation)
        hidden = bool(made.masks) and not self.declaration.report.overlays
        picture = None if hidden else contact_sheet(made, len(self.classes))
        if picture is not None and sum(row["passed"] for row in outcome.memorisation) == len(plan.sites):
            outcome.pictures[job.methods[0].label] = picture

    def train(
        self, job: Job, fold: Fold, *, checkpoint: Checkpoint | None = None,
        report: Callable[[int, int], None] | None = None, whole: bool | None = None,
    ) -> Trained:  # fmt: skip
        """Train, and ask for the models.

        Args:
            job: what is trained.
            fold: the sites' parts.
            checkpoint: where progress is kept.
            report: called with the round and the number of rounds.
            whole: whether sites are asked for the parts of their models that a method keeps there; None decides by what
                is tested, and where.

        Raises:
            PolyclinicError: a site failed, or too few answered.
        """
        study = job.methods[0]
        pooled = study.method.scope == "pool"
        plan, engine = self._ready(job, fold)
        if pooled:  # sites must know the model to test the pool's on their cases
            sites = CheckedEngine(self.engine, plan.known)
            sites.ask("start", plan.started(sites.sites))
        progress, rows = run_rounds(plan, engine, checkpoint=checkpoint, report=report)
        models = self._models(plan, engine, progress, self._asks_for_models(job, fold) if whole is None else whole)
        names = {"method": study.label, RUN: job.run, "seed": job.seed, "fold": job.fold}
        best = {group: done for group, (_, done) in progress.best.items()}
        last = best.get(FEDERATION, progress.done - 1)
        without = {} if job.without is None else {"without": job.without}
        rounds = [
            {**names, **without, **row, "site": "pool" if pooled else row["site"],
             CHOSEN: int(row["round"] == best.get(row["site"], last))}
            for row in rows
        ]  # fmt: skip
        spending = list[Row]()
        if plan.protects:
            asked = dict.fromkeys(plan.sites, Message({}, {}))
            replies = gather(engine, "spent", asked, plan.quorum, progress.failures)
            real, delta = self.engine.real, self.declaration.privacy.delta
            costs = privacy_rows(plan, replies, progress.done, delta, real=real)
            spending = [{**names, **without, **row} for row in costs]
        return Trained(plan, progress, models, rounds, spending)

    def tester(self, job: Job, fold: Fold, plan: Plan) -> Tester:
        """Who tests what was trained."""
        sites = CheckedEngine(self.engine, plan.known)
        at_sites = predictions_at(self.declaration, self.engine) == "sites"
        return Tester(sites, self.declaration, self.classes, job, fold, self.attack, at_sites=at_sites)

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
            score = validation_score(plan, validated(plan, engine, progress, [*plan.sites, *plan.voters]).values())
        if score is None or not math.isfinite(score):
            return None, progress.failures
        return -score if plan.choose_by == "metric" and plan.higher_is_better else score, progress.failures

    def try_out(self, job: Job, fold: Fold) -> None:
        """Let each site train on one batch, and forget it: network, data and memory are known to fit before the rounds.

        Raises:
            PolyclinicError: at a site they don't.
        """
        plan, engine = self._ready(job, fold)
        engine.ask("start", plan.started(engine.sites))
        states = {site: plan.first(plan.homes.get(site, FEDERATION)) for site in plan.sites}
        engine.ask("try", {site: Message({}, {"state": state}) for site, state in states.items()})

    def _ready(self, job: Job, fold: Fold) -> tuple[Plan, Engine]:
        """What a job's training is given, and who runs it."""
        sites = fold.trains(job.methods[0].method, job.without)
        if job.methods[0].method.scope != "pool":
            plan, engine = self.plan(job, fold, sites), self.engine
            if job.attacked and self.attack is not None:
                engine = self.attack.around(engine, self.template.layout, plan.selection, job.seed)
            return plan, CheckedEngine(engine, plan.known)
        if self.local is None:
            raise ValueError("the sites' cases are not in one place")
        name = "+".join(sites)
        plan = self.plan(job, fold, [name])
        return plan, CheckedEngine(self.local.pool(name, sites, plan.start), plan.known)

    def plan(self, job: Job, fold: Fold, sites: list[str]) -> Plan:
        """What the loop is given for a job trained at ``sites``."""
        return self.planner.plan(job, fold, sites, self.initial(job.seed), self.networks(job.seed))

    def _asks_for_models(self, job: Job, fold: Fold) -> bool:
        """Whether sites are asked for the parts of their models that a method keeps there: to be kept with the results
        where all is on one machine, else only where other sites are tested with them."""
        alone = all(one.method.scope != "pool" and one.method.tests == "own" for one in job.methods)
        own = set(fold.tested_sites) <= set(fold.trains(job.methods[0].method))
        return self.engine.holds_all or job.without is not None or not (alone and own)

    def _models(self, plan: Plan, engine: Engine, progress: Progress, asked_for: bool) -> dict[str, Tensor]:
        """Whole model of the best round ``[P]`` of each site that has it; where everything is shared, the models that
        are; nothing where sites are not asked for theirs."""
        if plan.selection.everything:
            return progress.best_models or {FEDERATION: progress.first}
        if not asked_for:
            return {}
        sites = [site for site in plan.sites if site not in progress.lost]
        asked = {site: Message({}, {"state": progress.best_state(site)}) for site in sites}
        replies = gather(engine, "model", asked, plan.quorum, progress.failures)
        return {site: reply.tensors["model"] for site, reply in replies.items()}

    @staticmethod
    def _tensors(plan: Plan, models: dict[str, Tensor]) -> dict[str, Tensor]:
        """The models as named tensors, for a file."""
        alone = list(models) == [FEDERATION]
        return {
            (name if alone else f"{owner}/{name}"): tensor.clone()
            for owner, vector in models.items()
            for name, tensor in plan.network_of(owner).layout.split(vector).items()
        }


def round_notes(job: Job, failures: Sequence[str]) -> list[Note]:
    """What went wrong in the rounds of a job."""
    return [Note("N803", f"{job.title}: {failure}") for failure in _few(failures)]


def _few(sentences: Sequence[str], most: int = 3) -> list[str]:
    """The first ones of each kind, and how many there are besides: a site that is late is late in every round."""
    found, seen = list[str](), dict[str, int]()
    for sentence in sentences:
        kind = re.sub(r"\d[\d.,]*", "0", sentence)
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= most:
            found.append(sentence)
    left = len(sentences) - len(found)
    more = [f"{left} more notes like these; rounds.csv tells who took part in each round."] if left > 0 else []
    return [*found, *more]


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
    # A site that did not say how good its model is has nothing in that column.
    return validation_score(plan, [{"cases": cases[row["site"]], plan.choose_by: row.get(column)} for row in best])
