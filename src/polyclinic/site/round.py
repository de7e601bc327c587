"""One site's work in one round of one method."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from polyclinic.client.optimizers import with_learning_rate
from polyclinic.client.personal.models import Phase
from polyclinic.client.work import (
    LocalJob,
    LocalResult,
    Work,
    check_finite,
    path_length,
)
from polyclinic.communication.exchange import check_declared
from polyclinic.communication.message import Message
from polyclinic.parts import Ended, Memory, SiteEnd
from polyclinic.parts.checks import Unwritten, kind_of, tensors_of, wrong
from polyclinic.parts.site_end import overrides
from polyclinic.site.messages import Train, Trained
from polyclinic.site.run import Kept, Run


class Round:
    """One site's work in one round: a job for each phase of the method, then an answer.

    Args:
        run: the method at the site.
        request: the ``train`` message.
        tensors: its tensors.
    """

    def __init__(self, run: Run, request: Train, tensors: Memory) -> None:
        self.run, self.request = run, request
        self.received = run.received(tensors["state"])
        self.rate = request.learning_rate
        self.view = run.at(self.received, request.round, self.rate, request.optimizer, request.turn)
        named = with_learning_rate(run.work.optimizer, self.rate, request.optimizer)
        self.pretrains = request.round < run.pretraining
        own_batches = run.kept.trained * run.steps_in_round(request.round)[0]
        self.companion = run.personal.companion(run.kept.personal, named, run.work.clip, own_batches)
        self._counted = {name: Unwritten(run.kept.parts[name]) for name in run.ends}
        self._vector = Unwritten({"vector": self.received})
        run.spend(request.round, request.turn)
        self._given = {name: self._begin(name, end, tensors) for name, end in run.ends.items()}
        self._first = self._moved("starts_at", self.received)
        if any(phase.start == "personal" for phase in run.phases):
            self._personal = self._moved("own_starts_at", run.kept.personal["model"])
        # Who knew what a network drops, or how images are changed, could tell who else was in a batch.
        self._own = [secrets.token_hex(16)] if run.protects and run.spending.real else []
        self._jobs: list[LocalJob] = []
        self._results: list[LocalResult] = []
        self._begun = time.monotonic()

    def _begin(self, name: str, end: SiteEnd, tensors: Memory) -> Memory:
        end.kept = dict(self.run.kept.parts[name])  # what is set in it by name is of this round only, too
        received = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        given = tensors_of(name, "begin", end.begin(self.view, received), self.run.site)
        self._vector.check(name, "begin", self.run.site)
        return given

    def _moved(self, hook: Literal["starts_at", "own_starts_at"], vector: Tensor) -> Tensor:
        """Where training starts: at ``vector [P]``, or where parts move it to in a hook, one after another."""
        unwritten = Unwritten({"vector": vector})
        for name, end in self.run.ends.items():
            if not overrides(end, hook):
                continue
            found = getattr(end, hook)(vector, self.view, self._given[name])
            if not isinstance(found, Tensor) or found.shape != vector.shape:
                raise wrong(name, hook, kind_of(found), f"a tensor {list(vector.shape)}", self.run.site)
            unwritten.check(name, hook, self.run.site)
            vector = found
        return vector

    @property
    def phases(self) -> int:
        """How many jobs there are."""
        return len(self.run.phases)

    def work(self, number: int) -> Work:
        """What is done in a phase. An optimiser of a pretraining is not kept: it is of other weights."""
        work = self.run.phases[number].work
        return replace(work, keep_optimizer=False) if self.pretrains else work

    def job(self, number: int) -> LocalJob:
        """The job of a phase; the jobs before it must be done."""
        run, phase, declared = self.run, self.run.phases[number], self.run.declared
        ends = self._ends(phase)
        job = LocalJob(
            site=run.site,
            dataset=run.dataset,
            index=run.trained_on(self.request.round),
            labelled=bool(len(run.parts.train)) and not self.pretrains,
            pretrains=run.pretrains if self.pretrains else None,
            start=self._start(phase),
            seed=(declared.seed, "train", run.site, declared.fold, self.request.round, *self._turn(number), *self._own),
            learning_rate=self.rate,
            batches=self._batches(number),
            cycled=self.request.optimizer,
            optimizer_state=run.kept.optimizers[number],
            ends=ends,
            class_weights=None if self.pretrains else self._class_weights(phase.work, ends),
            steps=run.steps(phase, self.request.round, sum(result.steps for result in self._results)),
            seconds=self._seconds(),
            trained=run.body if self.pretrains else phase.trained,
            companion=None if number else self.companion,
        )
        if job.start is not self.received:
            job.anchor = self.received
        self._jobs.append(job)
        return job

    def _batches(self, number: int) -> int:
        """Of how many batches the statistics are that this phase starts from, see `LocalJob.batches`."""
        run, phases, start = self.run, self.run.phases, self.run.phases[number].start
        steps = run.steps_in_round(self.request.round)
        chain = [i for i, phase in enumerate(phases) if (phase.start == "personal") is (start == "personal")]
        before = sum(steps[i] for i in chain if i < number) if start == "before" else 0
        rounds, batches = self.request.after_rounds, self.request.after_batches
        if start == "personal" or not run.shares_statistics:
            rounds, batches = run.kept.trained, 0  # what stays at the site was trained nowhere else
        if run.pretraining:  # then there is one phase
            first = min(rounds, run.pretraining)
            done = first * run.steps_in_round(0)[0] + (rounds - first) * run.steps_in_round(run.pretraining)[0]
        else:
            done = rounds * sum(steps[i] for i in chain)
        return batches + done + before

    def _turn(self, phase: int) -> list[str]:
        """Names that make the seeds of a second turn in a round, or of a phase that goes on from another, others.

        A phase that starts elsewhere sees the same batches as the first one.
        """
        turn, further = self.request.turn, self.run.phases[phase].start == "before"
        return [f"{kind} {number}" for kind, number in (("turn", turn), ("phase", phase * further)) if number]

    def _start(self, phase: Phase) -> Tensor:
        if phase.start == "before":
            return self._results[-1].vector
        return self._personal if phase.start == "personal" else self._first

    def _seconds(self) -> float | None:
        own = self.run.work.of(self.run.site)
        if own.seconds is None or own.step_seconds is not None:
            return None
        return max(0.0, own.seconds - (time.monotonic() - self._begun if self._results else 0.0))

    def _ends(self, phase: Phase) -> list[tuple[SiteEnd, Memory]]:
        """The parts with what they are given; a phase with parts of its own has none that are given anything."""
        if phase.ends is not None:
            return [(end, {}) for end in phase.ends]
        return [(end, self._given[name]) for name, end in self.run.ends.items()]

    def _class_weights(self, work: Work, ends: Sequence[tuple[SiteEnd, Memory]]) -> Tensor | None:
        weights = None if work.class_weights is None else torch.tensor(work.class_weights, dtype=torch.float32)
        for end, given in ends:
            own = end.class_weights(given)
            if own is not None:
                expected = (self.run.declared.classes,)
                if not isinstance(own, Tensor) or own.shape != expected:
                    raise wrong(
                        end.name, "class_weights", kind_of(own), f"a tensor {list(expected)} or None", self.run.site
                    )
                weights = own.float() if weights is None else weights * own.float()
        return weights

    def took(self, result: LocalResult) -> None:
        """Take in what came of the job of the phase that comes next."""
        self._results.append(result)

    def finish(self, seconds: float) -> Message:
        """What the site answers after so many ``seconds`` of work; what it leaves is kept once the round counts."""
        run, results = self.run, self._results
        last = {phase.gives: number for number, phase in enumerate(run.phases)}
        shared = results[last["shared"]]
        personal = results[last["personal"]].vector if "personal" in last else None
        kept = run.personal.end(run.kept.personal, shared.vector, personal, self.companion)
        for tensor in kept.values():
            check_finite(LocalResult(tensor, 0, shared.loss), run.site)
        packed = self._packed(shared.vector, run.personal.model(shared.vector, kept))
        optimizers = [
            job.optimizer_state if phase.work.keep_optimizer else {}
            for job, phase in zip(self._jobs, run.phases, strict=True)
        ]
        own = run.private.take(shared.vector).clone() if run.private.size else run.kept.own
        if packed:
            run.leave(self.request.exchange, Kept(own, kept, run.parts_keep(), optimizers, run.kept.trained + 1))
        steps = sum(result.steps for result in results)
        batches = sum(
            result.steps for result, phase in zip(results, run.phases, strict=True) if phase.gives == "shared"
        )
        said = Trained(
            examples=len(self._jobs[0].index.unique()), steps=steps, loss=None if run.protects else shared.loss,
            seconds=seconds, batches=None if batches == steps else batches,
        )  # fmt: skip
        return Message(said.fields(), packed)

    def _packed(self, trained: Tensor, own: Tensor) -> Memory:
        """What leaves the site: the change of the weights, the statistics, and what the parts send; nothing if a part
        keeps the update back."""
        run, size = self.run, self.run.shared.trainable
        ended = self._ended(trained, own)
        if not all(self._sends(name, end, ended) for name, end in run.ends.items()):
            return {}
        state, before = run.shared.take(trained), run.shared.take(self.received)
        packed = {"change": state[:size] - before[:size], "statistics": state[size:].clone()}
        for name, end in run.ends.items():
            told = tensors_of(name, "end", end.end(ended, self._given[name]), run.site)
            self._counted[name].check(name, "kept", run.site)
            packed |= {f"{name}/{key}": tensor for key, tensor in told.items()}
        for name, end in run.ends.items():
            packed = tensors_of(name, "close", end.close(packed), run.site)
        check_declared(packed, run.reveals, run.site)
        return packed

    def _sends(self, name: str, end: SiteEnd, ended: Ended) -> bool:
        found: object = end.sends(ended)
        if not isinstance(found, bool):
            raise wrong(name, "sends", kind_of(found), "True or False", self.run.site)
        self._counted[name].check(name, "kept", self.run.site)
        return found

    def _ended(self, vector: Tensor, own: Tensor) -> Ended:
        """What the parts learn from: the phases that train what is shared."""
        run, trainable = self.run, self.run.network.layout.trainable
        steps = {number: result.steps for number, result in enumerate(self._results) if run.teaches(number)}
        start, end = self.received[:trainable], vector[:trainable]
        private = run.private.within(trainable)
        if private.size:
            end = end.clone()
            private.put(end, private.take(start))

        def path() -> float:  # every phase has an optimiser that starts anew
            ends, cycled = list(run.ends.values()), self.request.optimizer
            return sum(path_length(run.phases[n].work, ends, count, self.rate, cycled) for n, count in steps.items())

        return Ended(self.view, start, end, vector, own, sum(steps.values()), path)
