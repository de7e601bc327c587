"""One method being trained at one site: what the site keeps between rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polyclinic.client.personal import PERSONAL, Phase
from polyclinic.client.rules import LOCAL_RULES, Ended, Memory, SiteFacts, WeightingRule
from polyclinic.client.stacked import reason_not_stackable
from polyclinic.client.work import LocalJob, LocalResult, Work, batch_sizes, check_finite, path_length
from polyclinic.communication.message import Message
from polyclinic.data.dataset import Dataset
from polyclinic.data.splits import Parts
from polyclinic.errors import TrainingError
from polyclinic.models import has_batch_norm
from polyclinic.site.facts import FACTS, LEAVE_ONE_OUT, models_needed
from polyclinic.state import FlatModule, Layout, Role
from polyclinic.tasks import Task


def build_work(fields: dict[str, Any], keep_optimizer: bool, local: list[tuple[str, dict[str, Any]]]) -> Work:
    """Local work as the coordinator declared it."""
    weights = fields["class_weights"]
    return Work(
        kind=fields["kind"],
        epochs=fields["epochs"],
        steps=fields["steps"],
        batch_size=fields["batch_size"],
        optimizer=(fields["optimizer"][0], dict(fields["optimizer"][1])),
        keep_optimizer=keep_optimizer,
        clip=fields["clip"],
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float32),
        mixed_precision=fields["mixed_precision"],
        rules=tuple(LOCAL_RULES[name](**options) for name, options in local),
    )


def not_stackable(personal: Sequence[Any] | None, own: Mapping[str, Mapping[str, float]]) -> str:
    """Why sites can't be trained together, besides what network and local work say; empty if they can.

    Args:
        personal: name and options of the way to a personal model, or None.
        own: what holds for single sites, as in a declaration's work.
    """
    if any("seconds" in found and "step_seconds" not in found for found in own.values()):
        return "a time budget is kept by the clock"
    return PERSONAL[personal[0]].not_stackable if personal else ""


class Run:
    """A method at a site.

    Args:
        site: the site's name.
        declaration: what the coordinator sent with ``start``.
        initial: first model state ``[P]``.
        model: the process's network of this kind.
        task: the study's task.
        dataset: the site's cases.
        parts: its training, validation and test cases.
    """

    def __init__(
        self, site: str, declaration: dict[str, Any], initial: Tensor, model: FlatModule, task: Task,
        dataset: Dataset, parts: Parts,
    ) -> None:  # fmt: skip
        self.site, self.model, self.task, self.dataset, self.parts = site, model, task, dataset, parts
        self.declaration = declaration
        self.work = build_work(declaration["work"], declaration["keep_optimizer"], declaration["local"])
        name, options = declaration["personal"] or ("shared_model", {})
        self.personal = PERSONAL[name](**options)
        self.phases = list(self.personal.phases(self.work, model.layout))
        layout: Layout = model.layout
        shared = {Role(role) for role in declaration["share"]}
        self.shared, self.private = layout.select(shared), layout.select(set(Role) - shared)
        self.about = SiteFacts(initial, layout.trainable, self._class_counts())
        self.own = self.private.take(initial).clone()
        self.rule_memory: list[Memory] = [rule.initial(self.about) for rule in self.work.rules]
        self.personal_memory = self.personal.initial(self.about)
        self.keep()
        self.optimizer_states: list[dict[str, Tensor]] = [{} for _ in self.phases]
        self._check_batches()

    def _class_counts(self) -> Tensor | None:
        targets = self.dataset.targets
        if self.task.target != "labels" or not isinstance(targets, Tensor):
            return None
        return torch.bincount(targets[self.parts.train], minlength=self.task.classes).double()

    def announce(self) -> dict[str, Tensor]:
        """What the rules say of the site once, when training starts."""
        return {
            f"{name}/{key}": tensor
            for (name, _), rule in zip(self.declaration["local"], self.work.rules, strict=True)
            for key, tensor in rule.announce(self.about).items()
        }

    @property
    def not_stackable(self) -> str:
        """Why sites can't be trained together with this method; empty if they can."""
        general = not_stackable(self.declaration["personal"], self.declaration["work"].get("own", {}))
        return general or next(filter(None, (reason_not_stackable(self.model, p.work) for p in self.phases)), "")

    def _check_batches(self) -> None:
        cases = len(self.parts.train)
        sizes = [cases] if self.work.kind == "gradient" else []
        if self.work.kind == "train" and cases:
            sizes = [size for phase in self.phases for size in batch_sizes(cases, phase.work, self.steps(phase))]
        if 1 in sizes and has_batch_norm(self.model.module):
            raise TrainingError(
                "P302", f"At site {self.site} a training batch has a single case, and batch normalisation needs two.",
                "Use a `training: {batch_size: ...}` above 1, leave the site out, or a model with another `norm`.",
            )  # fmt: skip

    def shared_model(self, state: Tensor, *, best: bool = False) -> Tensor:
        """The shared ``state [Q]`` with what the site does not share (of the best round, if asked) ``[P]``."""
        if self.shared.everything:
            return state
        vector = torch.empty(self.shared.total, device=state.device)
        self.shared.put(vector, state)
        self.private.put(vector, self.best if best else self.own)
        return vector

    def vector(self, state: Tensor, *, best: bool = False) -> Tensor:
        """The site's model for its own cases ``[P]`` from the shared ``state [Q]`` (of the best round, if asked)."""
        memory = self.best_personal if best else self.personal_memory
        return self.personal.model(self.shared_model(state, best=best), memory)

    def steps(self, phase: Phase, done: int = 0) -> int | None:
        """The site's own number of steps in a phase, where the study gives each site its own, or a time and a speed.

        Args:
            phase: of the method.
            done: steps that the site did in this round before.
        """
        own, work = self.declaration["work"].get("own", {}).get(self.site, {}), phase.work
        steps: int | None = own.get("steps") if phase.declared else None
        if "epochs" in own and phase.declared:
            steps = own["epochs"] * len(batch_sizes(len(self.parts.train), replace(work, epochs=1, steps=None)))
        budget, speed = own.get("seconds"), own.get("step_seconds")
        if budget is not None and speed is not None:
            declared = len(batch_sizes(len(self.parts.train), work, steps))
            steps = max(1, min(declared, int(budget / speed + 1e-9) - done))
        return steps

    def teaches(self, number: int) -> bool:
        """Whether a phase trains weights that are shared, so that rules and server learn from its steps."""
        phase = self.phases[number]
        if phase.gives != "shared" or phase.trained is None:
            return phase.gives == "shared"
        trained = torch.zeros(self.shared.total)
        phase.trained.within(self.about.trainable).fill(trained, 1.0)
        return bool(self.shared.take(trained).any())

    def jobs(self, request: Message) -> Round:
        """The local work that a ``train`` message asks for, in as many jobs as the method has phases."""
        return Round(self, request)

    def keep(self) -> None:
        """The round just done is the best so far."""
        self.best = self.own.clone()
        self.best_personal = {name: tensor.clone() for name, tensor in self.personal_memory.items()}

    @property
    def keeps_memory(self) -> bool:
        """Whether the site must remember something between rounds (plain SGD has no state even where it is kept)."""
        return bool(self.memory()) or self.work.keep_optimizer

    def memory(self) -> dict[str, Tensor]:
        """What a checkpoint at the site must hold."""
        kept = {"own": self.own, "best": self.best} if self.private.size else {}
        groups = {"personal": self.personal_memory, "best_personal": self.best_personal}
        groups |= {f"rule{number}": memory for number, memory in enumerate(self.rule_memory)}
        groups |= {f"optimizer{number}": state for number, state in enumerate(self.optimizer_states)}
        return kept | {f"{group}/{name}": tensor for group, found in groups.items() for name, tensor in found.items()}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back what ``memory`` gave."""

        def group(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): t for key, t in memory.items() if key.startswith(f"{name}/")}

        self.own, self.best = memory.get("own", self.own), memory.get("best", self.best)
        self.personal_memory, self.best_personal = group("personal"), group("best_personal")
        self.rule_memory = [group(f"rule{number}") for number in range(len(self.rule_memory))]
        self.optimizer_states = [group(f"optimizer{number}") for number in range(len(self.optimizer_states))]


class Round:
    """One site's work in one round: a job for each phase of the method, then an answer.

    Args:
        run: the method at the site.
        request: the ``train`` message.
    """

    def __init__(self, run: Run, request: Message) -> None:
        self.run, self.request = run, request
        self.received = run.shared_model(request.tensors["state"])
        self.rate = request.fields["learning_rate"]
        self.companion = run.personal.companion(run.personal_memory, run.work, self.rate)
        self._jobs: list[LocalJob] = []
        self._results: list[LocalResult] = []
        self._begun = time.monotonic()

    @property
    def phases(self) -> int:
        """How many jobs there are."""
        return len(self.run.phases)

    def work(self, number: int) -> Work:
        """What is done in a phase."""
        return self.run.phases[number].work

    def job(self, number: int) -> LocalJob:
        """The job of a phase; the jobs before it must be done."""
        run, phase = self.run, self.run.phases[number]
        declared = run.declaration
        job = LocalJob(
            site=run.site,
            dataset=run.dataset,
            index=run.parts.train,
            start=self._start(phase),
            seed=(declared["seed"], "train", run.site, declared["fold"], self.request.fields["round"],
                  *self._turn(number)),
            learning_rate=self.rate,
            optimizer_state=run.optimizer_states[number],
            given=self._given(phase.work),
            class_weights=self._class_weights(phase.work),
            steps=run.steps(phase, sum(result.steps for result in self._results)),
            seconds=self._seconds(),
            trained=phase.trained,
            companion=None if number else self.companion,
        )  # fmt: skip
        if phase.start != "received":
            job.anchor = self.received
        self._jobs.append(job)
        return job

    def _turn(self, phase: int) -> list[str]:
        """Names that make the seeds of a second turn in a round, or of a phase that goes on from another, others.

        A phase that starts elsewhere sees the same batches as the first one.
        """
        turn, further = self.request.fields.get("turn", 0), self.run.phases[phase].start == "before"
        return [f"{kind} {number}" for kind, number in (("turn", turn), ("phase", phase * further)) if number]

    def _start(self, phase: Phase) -> Tensor:
        if phase.start == "before":
            return self._results[-1].vector
        return self.run.personal_memory["model"] if phase.start == "personal" else self.received

    def _seconds(self) -> float | None:
        own = self.run.declaration["work"].get("own", {}).get(self.run.site, {})
        if "seconds" not in own or "step_seconds" in own:
            return None
        return max(0.0, float(own["seconds"]) - (time.monotonic() - self._begun if self._results else 0.0))

    def _received(self, number: int) -> dict[str, Tensor]:
        """What the counterpart of a rule sent."""
        prefix = self.run.declaration["local"][number][0] + "/"
        return {name.removeprefix(prefix): t for name, t in self.request.tensors.items() if name.startswith(prefix)}

    def _given(self, work: Work) -> list[Memory]:
        """What the rules are given; a phase with rules of its own has none that remember anything."""
        run, start = self.run, self.received[: self.run.model.layout.trainable]
        if work.rules is not run.work.rules:
            return []
        return [
            rule.begin(start, run.rule_memory[number], self._received(number)) for number, rule in enumerate(work.rules)
        ]

    def _class_weights(self, work: Work) -> Tensor | None:
        weights = work.class_weights
        for number, rule in enumerate(work.rules):
            if isinstance(rule, WeightingRule):
                own = rule.class_weights(self.run.rule_memory[number], self._received(number)).float()
                weights = own if weights is None else weights * own
        return weights

    def took(self, result: LocalResult) -> None:
        """Take in what came of the job of the phase that comes next."""
        self._results.append(result)

    def finish(self, seconds: float, measure: Measure) -> Message:
        """Keep what stays at the site; the rest is the answer. The round only counts from here on.

        Args:
            seconds: that the jobs took.
            measure: gives the loss or accuracy of a model on some of the site's cases.
        """
        run, results = self.run, self._results
        last = {phase.gives: number for number, phase in enumerate(run.phases)}
        shared = results[last["shared"]]
        personal = results[last["personal"]].vector if "personal" in last else None
        kept = run.personal.end(run.personal_memory, personal, self.companion)
        for tensor in kept.values():
            check_finite(LocalResult(tensor, 0, shared.loss), run.site)
        steps = {number: result.steps for number, result in enumerate(results) if run.teaches(number)}
        facts = self._facts(shared.vector, steps, measure)  # may fail, and is of what the site had in the round
        for number, job in enumerate(self._jobs):
            run.optimizer_states[number] = job.optimizer_state if run.phases[number].work.keep_optimizer else {}
        answer = {"state": run.shared.take(shared.vector), **self._end_rules(shared.vector, steps)}
        run.personal_memory = kept
        if run.private.size:
            run.own = run.private.take(shared.vector).clone()
        fields = {
            "examples": len(self._jobs[0].index), "steps": sum(result.steps for result in results),
            "loss": shared.loss, "seconds": seconds, **({"facts": facts} if facts else {}),
        }  # fmt: skip
        return Message(fields, answer)

    def _path(self, steps: Mapping[int, int]) -> float:
        """‖a‖₁ over phases with so many steps each; every phase has an optimiser that starts anew."""
        return sum(path_length(self.run.phases[number].work, count, self.rate) for number, count in steps.items())

    def _end_rules(self, vector: Tensor, steps: Mapping[int, int]) -> dict[str, Tensor]:
        """Let the rules learn from the phases that train what is shared (phase -> its steps); what they send."""
        run, trainable = self.run, self.run.model.layout.trainable
        if not any(run.rule_memory) and not any(rule.sends for rule in run.work.rules):
            return {}
        sent: dict[str, Tensor] = {}
        linear = any(rule.needs_sgd for rule in run.work.rules)
        count = sum(steps.values())
        path = self._path(steps) if linear else float(count)
        start, end = self.received[:trainable], vector[:trainable]
        private = run.private.within(trainable)
        if private.size:
            end = end.clone()
            private.put(end, private.take(start))
        for number, rule in enumerate(run.work.rules):
            received = self._received(number)
            ended = Ended(start, end, vector, count, self.rate, path, received)
            run.rule_memory[number], found = rule.end(ended, run.rule_memory[number])
            sent |= {f"{run.declaration['local'][number][0]}/{name}": tensor for name, tensor in found.items()}
        return sent

    def _facts(self, trained: Tensor, steps: Mapping[int, int], measure: Measure) -> dict[str, float]:
        """The numbers that the server rule asks for."""
        wanted: list[str] = self.run.declaration["facts"]
        found = {}
        models = models_needed(wanted, self.received, trained, self._sent())
        for name, vector in models.items():
            validation = FACTS[name].part == "validation" and len(self.run.parts.validation)
            index = self.run.parts.validation if validation else self.run.parts.train
            found[name] = measure(vector, index)[FACTS[name].value]
        if "steps" in wanted:
            found["steps"] = float(sum(steps.values()))
        if "path" in wanted:
            found["path"] = self._path(steps)
        return found

    def _sent(self) -> Tensor | None:
        state = self.request.tensors.get(LEAVE_ONE_OUT)
        return None if state is None else self.run.shared_model(state)


#: ``(vector [P], index [n]) -> {"loss": ..., "accuracy": ...}``.
Measure = Callable[[Tensor, Tensor], Mapping[str, float]]
