"""One method being trained at one site: what the site keeps between rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import polyclinic.catalogues  # noqa: F401 - the parts enter their catalogues
from polyclinic.client.optimizers import with_learning_rate
from polyclinic.client.personal.models import PERSONAL, Personal, Phase
from polyclinic.client.stacked.training import parts_not_stackable, reason_not_stackable
from polyclinic.client.work import (
    LocalJob,
    Work,
    augmentation_seed,
    batch_sizes,
    case_order,
    check_batches,
)
from polyclinic.communication.exchange import check_declared
from polyclinic.data.dataset import Dataset
from polyclinic.data.splits import Parts
from polyclinic.errors import SiteError
from polyclinic.models import has_batch_norm
from polyclinic.models.variant import Apart
from polyclinic.parts import Memory, SiteEnd, build_parts, pretraining_of, tell_parts, variant_of
from polyclinic.parts.checks import Unwritten, tensors_of
from polyclinic.parts.predictor import Network
from polyclinic.parts.site_end import overrides
from polyclinic.privacy import Budget, Event, merged
from polyclinic.secure import Signer
from polyclinic.site.diary import Diary
from polyclinic.site.messages import Question, Start
from polyclinic.site.schema import Known
from polyclinic.site.spending import Spending, budget_spent, check_delta, lifetime_spent
from polyclinic.site.view import View
from polyclinic.state import FlatModule, Layout, Role, Selection
from polyclinic.tasks import Task

#: ``(run, vector [P], index [n]) -> {"loss": ..., "accuracy": ...}``.
Measure = Callable[["Run", Tensor, Tensor], Mapping[str, float]]


def not_stackable(personal: type[Personal] | None, work: Work, ends: Sequence[SiteEnd]) -> str:
    """Why sites can't be trained together, besides what their network says; empty if they can.

    Args:
        personal: the way to a personal model, or None.
        work: local work.
        ends: the parts at the sites.
    """
    if any(own.seconds is not None and own.step_seconds is None for own in work.own.values()):
        return "a time budget is kept by the clock"
    return (personal.not_stackable if personal else "") or parts_not_stackable(ends, work)


@dataclass
class Kept:
    """What a site keeps between rounds; tensors in it are replaced, never written to.

    Attributes:
        own: the coordinates that are not shared ``[P - Q]``.
        personal: of the personal model.
        parts: of each part.
        optimizers: state of the optimiser of each phase.
        trained: how often all this was trained, in exchanges that counted.
    """

    own: Tensor
    personal: Memory
    parts: dict[str, Memory]
    optimizers: list[Memory] = field(default_factory=list)
    trained: int = 0


class Run:
    """A method at a site.

    Args:
        site: the site's name.
        declared: what the coordinator sent with ``start``.
        initial: first model state ``[P]``.
        model: the process's network of this kind, which is validated and tested; it is also trained, unless a part has
            another one trained in its place.
        task: the study's task.
        dataset: the site's cases.
        parts: its training, validation and test cases.
        measure: gives loss and accuracy of a model on some of the site's cases.
        spending: what trainings cost the patients' privacy; None keeps it in memory.
        identity: signs for the site.
        diary: what the site must not forget; None keeps it in memory.
        public: the public set; None without one.
        apart: a network of the site's own, which is trained; None for that of the study.
    """

    def __init__(
        self, site: str, declared: Start, initial: Tensor, model: FlatModule, task: Task, dataset: Dataset,
        parts: Parts, measure: Measure, spending: Spending | None = None, identity: Signer | None = None,
        diary: Diary | None = None, public: Dataset | None = None, apart: Apart | None = None,
    ) -> None:  # fmt: skip
        self.spending = Spending(site, None) if spending is None else spending
        self.site, self.declared, self.work = site, declared, declared.work
        self.model, self.task, self.dataset, self.parts, self._measure = model, task, dataset, parts, measure
        name, options = declared.personal or ("shared_model", {})
        self.personal = PERSONAL[name](**options)
        self._check_named(model.layout)
        self._check_public(public)
        built = build_parts(declared.parts)
        self.variant = apart or variant_of(built.values(), site, model, (declared.seed, declared.fold))
        self.known = Known.of(declared, model, {} if self.variant is None else {site: self.variant})
        if self.variant is None:
            self.network = model
            self.shared = model.layout.select(declared.share, declared.modules, declared.without)
            self.private = model.layout.rest(self.shared)
        else:
            self.network, self.shared = self.variant.network, self.variant.shared
            nothing = Selection((), 0, 0, self.shared.total)
            self.private = self.network.layout.rest(self.shared) if self.variant.stays else nothing
            self._first = initial
            initial = self.variant.start(self.variant.sent(initial), initial)
        self.phases = list(self.personal.phases(self.work, self.network.layout))
        known = self.known.at(site, "train")
        tell_parts(built, known.given, known.sizes)
        self.reveals = {f"{name}/{key}" for name, part in built.items() for key in part.reveals}
        self.ends = {name: part.at_site() for name, part in built.items()}
        owner = pretraining_of(built.values())
        self.pretraining = 0 if owner is None else owner.pretraining_rounds
        self.pretrains = None if owner is None else self.ends[owner.name]
        for name, end in self.ends.items():
            end.name = name
        first = View(
            site, initial, self.network, task, dataset, parts, self.shared,
            (declared.seed, "parts", site, declared.fold), self.measure, self.received, self._batches,
            with_learning_rate(self.work.optimizer, 0.0), identity,
        )  # fmt: skip
        self.budget = self._budget()
        first.rounds, first.budget, first.run = declared.rounds, self.budget, declared.run
        first.diary = Diary(site, None) if diary is None else diary
        first.real, first.ends = self.spending.real, list(self.ends.values())
        first.public = None if declared.public is None else public
        steps = zip(self.phases, self._steps_in_phases(), strict=False)
        first.steps, first.batch_size = sum(n for phase, n in steps if phase.ends is None), self.work.batch_size
        self.protects = any(part.private for part in built.values())
        if declared.privacy is not None and any(part.private == "a patient" for part in built.values()):
            check_delta(site, declared.privacy.delta, len(first.people().unique()))
        self.announced, unwritten = dict[str, Tensor](), Unwritten({"vector": initial})
        for name, end in self.ends.items():
            told = tensors_of(name, "meet", end.meet(first), site)
            unwritten.check(name, "meet", site)
            self.announced |= {f"{name}/{key}": tensor for key, tensor in told.items()}
        check_declared(self.announced, self.reveals, site)
        for end in self.ends.values():
            if overrides(end, "images"):
                self.dataset = self.dataset.seen_through(end.images)
        self.view = first.at(torch.empty(0), 0, with_learning_rate(self.work.optimizer, 0.0))  # the first model may go
        self.view.look_at(self.dataset)
        self.kept = Kept(
            self.private.take(initial).clone(), self.personal.initial(first),
            self.parts_keep(), [{} for _ in self.phases],
        )  # fmt: skip
        self._left: tuple[int, Kept] | None = None
        self.keep()
        self._check_batches()
        self._allowed: int | None = None
        self._affordable: int | None = None

    def _check_named(self, layout: Layout) -> None:
        """Whether all modules that are named are there: what a pattern that finds nothing should keep would leave."""
        missing = layout.unnamed([*self.declared.modules, *self.declared.without])
        if missing:
            raise SiteError(
                "P401", f"Site {self.site} was told of the module {missing[0]!r}, which its network has not.",
                "Let all sites and the server run the same version of Polyclinic.", site=self.site,
            )  # fmt: skip

    def _check_public(self, public: Dataset | None) -> None:
        """Whether the public set is the one that the coordinator speaks of."""
        wanted = self.declared.public
        if wanted is not None and (public is None or len(public) != wanted[0]):
            has = "none" if public is None else f"one of {len(public)}"
            raise SiteError(
                "P401", f"Site {self.site} was told of a public set of {wanted[0]} cases, and has {has}.",
                "Let all sites and the server run the same version of Polyclinic.", site=self.site,
            )  # fmt: skip

    @cached_property
    def body(self) -> Selection:
        """All weights but those of the head."""
        layout = self.network.layout
        return layout.select(set(Role) - {Role.HEAD}).within(layout.trainable)

    @cached_property
    def shares_statistics(self) -> bool:
        """Whether statistics of normalisation layers are shared: of all such layers, or of none."""
        if self.variant is not None and self.variant.stays:
            return False
        declared = self.declared
        statistics = [role for role in declared.share if role is Role.NORM_STATISTIC]
        return bool(self.model.layout.select(statistics, declared.modules, declared.without).size)

    def spend(self, number: int, turn: int) -> None:
        """Write down what a round costs the patients' privacy, before anything of it leaves the site.

        Raises:
            SiteError: P306, it would be more than the training's budget, or that of the site's policy.
        """
        events = tuple(event for end in self.ends.values() for event in end.spends())
        if not events:
            return
        name, budget, lifetime = self.declared.run, self.budget, self.spending.lifetime
        done = self.spending.rounds(name, number, turn) if budget or lifetime else 0
        if budget is not None:
            if self._allowed is None:
                self._allowed = self._within(budget, merged(events), done, self.declared.rounds)
            if done + 1 > self._allowed:
                raise budget_spent(self.site, budget, done)
        if lifetime is not None:
            if self._affordable is None:
                whole = Budget(*lifetime, before=self.spending.others(name))
                self._affordable = self._within(whole, merged(events), done, done + self.declared.rounds)
            if done + 1 > self._affordable:
                raise lifetime_spent(self.site, lifetime)
        self.spending.record(name, number, events, turn)

    def _budget(self) -> Budget | None:
        """What the training may cost, after others of the study where ε is for them together."""
        asked = self.declared.privacy
        if asked is None or asked.epsilon is None:
            return None
        if asked.over == "training":
            return Budget(asked.epsilon, asked.delta)
        before = self.spending.others(self.declared.run, of_study=True)
        return Budget(asked.epsilon, asked.delta, asked.trainings, before)

    def _within(self, budget: Budget, events: tuple[Event, ...], done: int, most: int) -> int:
        """How many of ``most`` rounds a budget allows, with those ``done``, which may have cost something else: the
        training goes on after a stop, and data or study are not what they were."""
        own = self.spending.of(self.declared.run)
        rounds = own[0].count // events[0].count if own else 0
        if own == merged(event.times(event.count * rounds) for event in events):
            return budget.rounds(events, most)
        rest = replace(budget, trainings=1, before=merged([*budget.before, *own]))
        return done + rest.rounds(events, max(most - done, 0))

    def at(
        self, vector: Tensor, number: int, learning_rate: float, cycled: Mapping[str, Any], turn: int = 0
    ) -> View:  # fmt: skip
        """What the parts see of the site in a turn of a round, with a model ``[P]``."""
        return self.view.at(vector, number, with_learning_rate(self.work.optimizer, learning_rate, cycled), turn)

    def _batches(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that the first phase takes in a round."""
        index, phase = self.trained_on(number), self.phases[0]
        sizes = batch_sizes(len(index), phase.work, self.steps(phase, number))
        seed = (self.declared.seed, "train", self.site, self.declared.fold, number)
        job = LocalJob(self.site, self.dataset, index, torch.empty(0), seed, 0.0)
        for step, chosen in enumerate(index[case_order(job, sizes)].split(sizes)):
            yield self.dataset.batch(chosen, augment=augmentation_seed(job, step) if self.dataset.augments else None)

    def measure(self, vector: Tensor, index: Tensor) -> Mapping[str, float]:
        """Loss and accuracy of a model, as the site trains it, on some of the site's cases."""
        run = self
        if self.variant is not None:
            run = copy(self)
            run.model = self.network
        return self._measure(run, vector, index)

    @property
    def not_stackable(self) -> str:
        """Why sites can't be trained together with this method; empty if they can."""
        personal = None if self.declared.personal is None else type(self.personal)
        general = not_stackable(personal, self.work, list(self.ends.values()))
        shape = self.dataset.training_shape
        return general or next(
            filter(None, (reason_not_stackable(self.network, p.work, shape) for p in self.phases)), ""
        )

    def _check_batches(self) -> None:
        if any(end.spares_model for end in self.ends.values()):
            return
        sizes = list[int]()
        for number in {0, self.pretraining}:
            cases = len(self.trained_on(number))
            if self.work.kind == "gradient":
                sizes.append(cases)
            for phase in self.phases if self.work.kind == "train" and cases else ():
                sizes += batch_sizes(cases, phase.work, self.steps(phase, number))
        check_batches(self.site, sizes, self.network.module)

    def shared_model(self, state: Tensor, *, best: bool = False, kept: Kept | None = None) -> Tensor:
        """The shared ``state [Q]`` with what the site does not share ``[P]``: what is kept, of the best round if asked,
        or what is ``kept`` elsewhere."""
        if self.shared.everything or self.variant is not None:
            return state
        vector = torch.empty(self.shared.total, device=state.device)
        self.shared.put(vector, state)
        self.private.put(vector, (kept or (self.best if best else self.kept)).own)
        return vector

    def received(self, state: Tensor, kept: Kept | None = None) -> Tensor:
        """The model that the site works with in a round ``[P]`` when it is sent the shared ``state [Q]``."""
        if self.variant is not None and self.variant.stays:
            return (kept or self.kept).own
        if self.variant is not None:
            return self.variant.start(state, self._first)
        kept = kept or self.kept
        vector = self.shared_model(state, kept=kept)
        return self.personal.model(vector, kept.personal) if self.personal.starts_own else vector

    def vector(self, state: Tensor, *, best: bool = False) -> Tensor:
        """The site's model for its own cases ``[P]`` from the shared ``state [Q]`` (of the best round, if asked)."""
        memory = (self.best if best else self.kept).personal
        return self.personal.model(self.shared_model(state, best=best), memory)

    def predictor(self, state: Tensor, *, best: bool = False) -> Network:
        """The same, where that may be more than one network."""
        memory = (self.best if best else self.kept).personal
        return self.personal.predictor(self.shared_model(state, best=best), memory)

    @property
    def batch_size(self) -> int:
        """Of training."""
        return self.work.batch_size

    def own_weights(self, state: Tensor) -> dict[str, Tensor]:
        """Tensors of the site's model for its own cases that nobody else has, by name: those that it does not share, or
        all of a personal model."""
        if self.variant is not None or (self.declared.personal is None and self.shared.everything):
            return {}
        split = self.model.layout.split(self.vector(state, best=True).cpu())
        if self.declared.personal is not None:
            return split
        kept = self.private.slices
        return {
            entry.name: split[entry.name]
            for entry in self.model.layout.entries
            if any(start <= entry.offset < stop for start, stop in kept)
        }

    def trained_on(self, number: int) -> Tensor:
        """The cases that local training goes through in a round ``[n]``.

        A single one without a label stands there twice for batch normalisation, which needs two: what parts learn of it
        is a mean, and no label counts.
        """
        parts = self.parts
        found = torch.cat([parts.train, parts.unlabelled]) if number < self.pretraining else parts.trained_on
        alone = len(found) == 1 and not len(parts.train) and has_batch_norm(self.network.module)
        return found.repeat(2) if alone else found

    def steps(self, phase: Phase, number: int, done: int = 0) -> int | None:
        """The site's own number of steps in a phase, where the study gives each site its own, or a time and a speed.

        Args:
            phase: of the method.
            number: of the round.
            done: steps that the site did in this round before.
        """
        own, work = self.work.of(self.site), phase.work
        steps = own.steps if phase.declared else None
        if own.epochs is not None and phase.declared:
            steps = own.epochs * len(batch_sizes(len(self.trained_on(number)), replace(work, epochs=1, steps=None)))
        if own.seconds is not None and own.step_seconds is not None:
            declared = len(batch_sizes(len(self.trained_on(number)), work, steps))
            steps = max(1, min(declared, int(own.seconds / own.step_seconds + 1e-9) - done))
        return steps

    def steps_in_round(self, number: int) -> list[int]:
        """Steps of each phase in a round (at most: a budget may be kept by the clock)."""
        found = list[int]()
        for phase in self.phases:
            steps = self.steps(phase, number, sum(found))
            gradient = phase.work.kind == "gradient"
            found.append(1 if gradient else len(batch_sizes(len(self.trained_on(number)), phase.work, steps)))
        return found

    @property
    def steps_in_all(self) -> int:
        """Steps of all phases in a round."""
        return sum(self._steps_in_phases())

    def _steps_in_phases(self) -> list[int]:
        """Steps of each phase in a round, at most; of none without training cases."""
        return self.steps_in_round(0) if len(self.parts.trained_on) else []

    def teaches(self, number: int) -> bool:
        """Whether a phase trains weights that are shared, so that parts learn from its steps."""
        phase = self.phases[number]
        if phase.gives != "shared" or phase.trained is None:
            return phase.gives == "shared"
        trained = torch.zeros(self.shared.total)
        phase.trained.within(self.network.layout.trainable).fill(trained, 1.0)
        return bool(self.shared.take(trained).any())

    def answer(self, name: str, verb: str, asked: Question, tensors: Memory) -> Memory:
        """What a part answers to its end at the server, which may send a ``state [Q]`` for the view.

        What it keeps then is kept at once; if it is asked before it is known whether an exchange counts, then with what
        that exchange left.
        """
        end, kept = self.ends[name], self.kept if self._left is None else self._left[1]
        state = tensors.get("state")
        vector = torch.empty(0) if state is None else self.received(state, kept)
        view = self.at(vector, asked.round, asked.learning_rate, asked.optimizer)
        end.kept, before = dict(kept.parts[name]), Unwritten(kept.parts[name])
        given = {key: tensor for key, tensor in tensors.items() if key != "state"}
        found = tensors_of(name, "answer", end.answer(verb, given, view), self.site)
        check_declared((f"{name}/{key}" for key in found if key != "state"), self.reveals, self.site)
        before.check(name, "kept", self.site)
        kept.parts[name] = tensors_of(name, "kept", end.kept, self.site)
        return found

    # What is kept -------------------------------------------------------------------------------------------------

    def parts_keep(self) -> dict[str, Memory]:
        """What each part keeps now."""
        return {name: tensors_of(name, "kept", end.kept, self.site) for name, end in self.ends.items()}

    def leave(self, exchange: int, kept: Kept) -> None:
        """What an exchange left; it is not kept before the coordinator says that the exchange counted."""
        self._left = (exchange, kept)

    def settle(self, counted: int | None) -> None:
        """Keep what the last exchange left if it is the one that ``counted``, or forget it; None says nothing."""
        if counted is None or self._left is None:
            return
        exchange, kept = self._left
        if exchange == counted:
            self.kept = kept
        self._left = None

    def keep(self) -> None:
        """The round just done is the best so far."""
        self.best = self.kept

    @property
    def keeps_memory(self) -> bool:
        """Whether the site may have to remember something between rounds: plain SGD has no state even where it is kept,
        and a part may keep something only from some round on."""
        hooks = ("meet", "answer", "begin", "sends", "end", "close")
        may = any(overrides(end, hook) for end in self.ends.values() for hook in hooks)
        return may or bool(self.memory()) or self.work.keep_optimizer

    def memory(self) -> Memory:
        """What a checkpoint at the site must hold."""
        groups = {"personal": self.kept.personal}
        groups |= {f"part {name}": memory for name, memory in self.kept.parts.items()}
        groups |= {f"optimizer{number}": state for number, state in enumerate(self.kept.optimizers)}
        kept = {f"{group}/{name}": tensor for group, found in groups.items() for name, tensor in found.items()}
        if self.private.size:
            kept["own"] = self.kept.own
        if self.private.size or self.kept.personal:
            kept["trained"] = torch.tensor(self.kept.trained)
        if self.best is not self.kept:  # else it is what is kept now
            best = {f"best_personal/{name}": tensor for name, tensor in self.best.personal.items()}
            best |= {"best": self.best.own} if self.private.size else {}
            kept |= {name: tensor.clone() for name, tensor in best.items()}  # may be a tensor that is kept, too
        return kept

    def restore(self, memory: Memory) -> None:
        """Take back what ``memory`` gave."""

        def group(name: str) -> Memory:
            return {key.removeprefix(f"{name}/"): t for key, t in memory.items() if key.startswith(f"{name}/")}

        parts = {name: group(f"part {name}") for name in self.ends}
        optimizers = [group(f"optimizer{number}") for number in range(len(self.phases))]
        trained = int(memory.get("trained", 0))
        self.kept = Kept(memory.get("own", self.kept.own), group("personal"), parts, optimizers, trained)
        self.best = self.kept
        if any(name.startswith("best") for name in memory):
            own, personal = memory.get("best", self.kept.own), group("best_personal") or self.kept.personal
            self.best = replace(self.kept, own=own, personal=personal)
        self._left = None
