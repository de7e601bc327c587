"""Local training of many sites at once, for networks so small that a step is mostly overhead.

The sites' states are rows of one matrix ``[S, P]``; `torch.func.vmap` runs the network on all of them. Sites of unequal
size are padded within a step and the padding is masked out of the loss and of batch statistics; a site that has done
all its steps is left alone while the others go on. The results agree with `polyclinic.client.train` to float tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from polyclinic.client.optimizers import build_optimizer, is_elementwise, restore_state, state_of, with_learning_rate
from polyclinic.client.stacked.losses import StackedLosses
from polyclinic.client.stacked.network import StackedNetwork
from polyclinic.client.stacked.rules import StackedRule
from polyclinic.client.stacked.stackable import network_obstacle
from polyclinic.client.work import (
    LocalJob,
    LocalResult,
    Work,
    augmentation_seed,
    batch_sizes,
    case_order,
    check_finite,
    clip_gradient,
    gradient_step,
    perturbation,
)
from polyclinic.errors import PolyclinicError
from polyclinic.parts.site_end import SiteEnd, overrides
from polyclinic.seeds import derive_seed
from polyclinic.state import FlatModule
from polyclinic.tasks import Task


def reason_not_stackable(model: FlatModule, work: Work, shape: tuple[int, ...]) -> str:
    """Why these sites can't be trained stacked, with inputs of ``shape``; empty if they can."""
    if work.kind == "train" and not is_elementwise(work.optimizer):
        return f"the optimiser {work.optimizer[0]} does not treat every coordinate on its own"
    if work.mixed_precision:
        return "mixed precision is on"
    return network_obstacle(model, shape)


def parts_not_stackable(ends: Iterable[SiteEnd], work: Work) -> str:
    """Why sites with these parts can't be trained together; empty if they can."""
    changing = {"batch": "changes the cases of each batch", "outputs": "changes the outputs of each batch"}
    ends = list(ends)
    batches = [f"a part {what}" for end in ends for hook, what in changing.items() if overrides(end, hook)]
    losses = ["a part adds to the loss of each batch" for end in ends if overrides(end, "loss") and not end.stacks_loss]
    draws = work.kind == "gradient" and any(overrides(end, "drawn") for end in ends)
    whole = ["a part draws cases of its own for each of the batches of a gradient"] if draws else []
    return next(filter(None, [*batches, *losses, *whole, *(end.alone for end in ends)]), "")


@dataclass(frozen=True)
class _Schedule:
    """Where each site's cases stand in the padded steps; the same every round.

    Attributes:
        sizes: batch sizes of each job.
        width: cases of the widest step, B.
        slots: for all jobs one after another, the flat positions in ``[S, steps, B]`` of the cases in order of use.
        share: 1 / batch size at real cases and 0 at padding, ``[S, steps, B]``.
        padded: for each step, whether any of its active sites is padded.
    """

    sizes: list[list[int]]
    width: int
    slots: Tensor
    share: Tensor
    padded: list[bool]

    @classmethod
    def of(cls, sizes: list[list[int]]) -> _Schedule:
        steps, width = len(sizes[0]), max(max(s) for s in sizes)
        share, padded = torch.zeros(len(sizes), steps, width), [False] * steps
        for job, job_sizes in enumerate(sizes):
            for step, size in enumerate(job_sizes):
                share[job, step, :size] = 1.0 / size
                padded[step] |= size < width
        return cls(sizes, width, share.view(-1).nonzero()[:, 0], share, padded)


class StackedCases:
    """The training cases of sites one after another, each site's once, for trainers of any sets of these sites.

    Attributes:
        inputs: ``[N, ...]``.
        targets: ``[N, ...]``.
        first: site -> position of its first training case.
    """

    inputs: Tensor
    targets: Tensor

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first: dict[str, int] = {}

    def add(self, jobs: Sequence[LocalJob]) -> None:
        """Take in the cases of those sites that are not there yet."""
        new = [job for job in jobs if job.site not in self.first]
        pairs = [job.dataset.batch(job.index) for job in new]
        if not pairs:
            return
        before = [(self.inputs, self.targets)] if self.first else []
        total = len(self.targets) if self.first else 0
        for job in new:
            self.first[job.site] = total
            total += len(job.index)
        together = [*before, *((inputs.to(self.device), targets.to(self.device)) for inputs, targets in pairs)]
        self.inputs = torch.cat([inputs for inputs, _ in together])
        self.targets = torch.cat([targets for _, targets in together])


class StackedTrainer:
    """Trains the same set of sites round after round.

    Args:
        model: the network; used as a template, its own state is not touched.
        task: loss.
        work: local work.
        jobs: the sites of the first round; later rounds bring the same sites in the same order.
        cases: where the sites' cases are, or are put if they are not there; by default a place of their own.

    Raises:
        ValueError: these sites can't be trained together.
    """

    def __init__(
        self, model: FlatModule, task: Task, work: Work, jobs: Sequence[LocalJob], cases: StackedCases | None = None
    ) -> None:
        shape = jobs[0].dataset.training_shape
        parts = [end for end, _ in jobs[0].ends]
        obstacle = reason_not_stackable(model, work, shape) or parts_not_stackable(parts, work)
        if obstacle or any(job.companion is not None for job in jobs):
            raise ValueError(obstacle or "a second model is trained beside the first")
        if not all(job.labelled for job in jobs):
            raise ValueError("the cases of some site have no labels")
        self.task, self.work, self.layout = task, work, model.layout
        self.device = model.vector.device
        self.model, self.network = model, StackedNetwork(model.module, model.layout, shape)
        train = work.kind == "train"
        sizes = [batch_sizes(len(job.index), work, job.steps) if train else [len(job.index)] for job in jobs]
        #: Jobs by falling number of steps, so that the active ones are always the first rows.
        self.by_steps = sorted(range(len(jobs)), key=lambda job: -len(sizes[job]))
        self.schedule = _Schedule.of([sizes[job] for job in self.by_steps])
        self.steps = [len(s) for s in self.schedule.sizes]
        self.active = [sum(n > step for n in self.steps) for step in range(self.steps[0])]
        trained, total = jobs[0].trained, model.layout.trainable
        whole = ((0, total),)
        self.pieces = whole if trained is None else trained.within(total).slices
        self.frozen = None if trained is None else trained.others(total)
        self.augments = any(job.dataset.augments for job in jobs)
        self.cases = StackedCases(self.device) if cases is None else cases
        if not self.augments:
            self.cases.add(jobs)

    def train(self, jobs: Sequence[LocalJob]) -> list[LocalResult | PolyclinicError]:
        """One round for each of ``jobs``; the results are in the same order."""
        rows = [jobs[job] for job in self.by_steps]
        start = torch.stack([row.start.to(self.device) for row in rows])
        first = start[:, : self.layout.trainable]
        weights, statistics = first.clone(), start[:, self.layout.trainable :].clone()
        positions = self._positions(rows)
        run = self._full_gradient if self.work.kind == "gradient" else self._mini_batches
        anchored = any(row.anchor is not None for row in rows)
        anchors = torch.stack([_anchor(row, first[i]) for i, row in enumerate(rows)]) if anchored else first
        self._begin(rows, anchors, start)
        losses = run(rows, weights, statistics, anchors, positions)
        vectors = (torch.cat([weights, statistics], dim=1) if statistics.shape[1] else weights).cpu()
        results: list[LocalResult | PolyclinicError] = [PolyclinicError("P401", "")] * len(rows)
        for row, job, loss in zip(range(len(rows)), self.by_steps, losses.tolist(), strict=True):
            steps = self.steps[row]
            try:
                results[job] = check_finite(LocalResult(vectors[row], steps, loss / steps), rows[row].site)
            except PolyclinicError as error:
                results[job] = error
        return results

    def _begin(self, rows: list[LocalJob], start: Tensor, states: Tensor) -> None:
        """Let parts change losses and gradients with what they are given, and stack class weights, where sites have
        their own."""
        known = [row.class_weights for row in rows if row.class_weights is not None]
        self.class_weights = torch.stack(known).to(self.device) if known else None
        numbers = [number for number, (end, _) in enumerate(rows[0].ends) if overrides(end, "gradient")]
        self.rules = [StackedRule([row.ends[number] for row in rows], start) for number in numbers]
        self.perturbing = [number for number, (end, _) in enumerate(rows[0].ends) if overrides(end, "perturbation")]
        adding = [number for number, (end, _) in enumerate(rows[0].ends) if overrides(end, "loss")]
        self.terms = None
        if adding:
            received = [own if row.anchor is None else row.anchor for own, row in zip(states, rows, strict=True)]
            together = torch.stack([one.to(self.device) for one in received])
            ends = [[row.ends[number] for row in rows] for number in adding]
            self.terms = StackedLosses(self.model, self.network, ends, together, [row.site for row in rows])

    def _change(self, gradient: Tensor, weights: Tensor, start: Tensor) -> None:
        """Let the parts change the gradient of the active sites; frozen weights have no part in its norm."""
        for rule in self.rules:
            rule.change(gradient, weights, start)
        if self.frozen is not None:
            self.frozen.fill(gradient, 0.0)
        clip_gradient(gradient, self.work.clip)

    def _positions(self, rows: list[LocalJob]) -> Tensor:
        """Which case stands where, ``[S, steps, B]``; padding repeats the step's first case and has no weight."""
        orders = []
        for job, sizes in zip(rows, self.schedule.sizes, strict=True):
            order = case_order(job, sizes) if self.work.kind == "train" else torch.arange(len(job.index))
            orders.append(order if self.augments else order + self.cases.first[job.site])
        positions = torch.zeros(self.schedule.share.shape, dtype=torch.int64)
        positions.view(-1)[self.schedule.slots] = torch.cat(orders)
        # Not any case: no weight, times a value of another site that is not a number, is not a number.
        return torch.where(self.schedule.share > 0, positions, positions[:, :, :1])

    def _mini_batches(
        self, rows: list[LocalJob], weights: Tensor, statistics: Tensor, start: Tensor, positions: Tensor
    ) -> Tensor:
        groups = self._groups(rows, weights)
        optimizer = build_optimizer(
            with_learning_rate(self.work.optimizer, rows[0].learning_rate, rows[0].cycled),
            [parameter for _, _, pieces in groups for parameter in pieces],
        )
        if self.work.keep_optimizer:
            for first, stop, (parameter, *_) in groups:
                states = [row.optimizer_state for row in rows[first:stop]]
                together = {
                    name: torch.stack([state[name] for state in states]) if value.dim() else value
                    for name, value in states[0].items()
                }
                restore_state(optimizer, [parameter], together)
        total = torch.zeros(len(rows), device=self.device)
        for step, active in enumerate(self.active):
            losses, gradient = self._gradient(rows, weights[:active], statistics[:active], positions, step)
            self._change(gradient, weights[:active], start)
            for first, stop, pieces in groups:
                for (low, high), parameter in zip(self.pieces, pieces, strict=True):
                    parameter.grad = gradient[first:stop, low:high] if stop <= active else None
            optimizer.step()
            total[:active] += losses.detach()
        if self.work.keep_optimizer:
            for first, stop, (parameter, *_) in groups:
                kept = state_of(optimizer, [parameter]).items()
                for row in range(first, stop):  # a dictionary of its own: it counts only if the round does
                    rows[row].optimizer_state = {n: (v[row - first] if v.dim() else v).clone() for n, v in kept}
        return total

    def _groups(self, rows: list[LocalJob], weights: Tensor) -> list[tuple[int, int, list[nn.Parameter]]]:
        """Rows with the same number of steps (and the same kept optimiser step) are one parameter of the optimiser, or
        one for each slice of the weights that are trained."""

        def key(row: int) -> tuple[int, bool, float]:
            kept = rows[row].optimizer_state
            return self.steps[row], bool(kept), float(kept.get("step", 0.0))

        found = [list(members) for _, members in groupby(range(len(rows)), key)]
        return [
            (m[0], m[-1] + 1, [nn.Parameter(weights[m[0] : m[-1] + 1, low:high]) for low, high in self.pieces])
            for m in found
        ]

    def _full_gradient(
        self, rows: list[LocalJob], weights: Tensor, statistics: Tensor, start: Tensor, positions: Tensor
    ) -> Tensor:
        losses, gradient = self._gradient(rows, weights, statistics, positions, 0)
        self._change(gradient, weights, start)
        parameter = nn.Parameter(weights)
        parameter.grad = gradient
        build_optimizer(gradient_step(self.work.optimizer, rows[0].learning_rate), parameter).step()
        return losses.detach()

    def _gradient(
        self, rows: list[LocalJob], weights: Tensor, statistics: Tensor, positions: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Mean loss of each active site in one step ``[A]``, and its gradient ``[A, T]`` where parts want it."""
        leaf = weights.detach().requires_grad_()
        losses = self._losses(rows, leaf, statistics, positions, step)
        gradient = torch.autograd.grad(losses.sum(), leaf)[0]
        if not self.perturbing:
            return losses, gradient
        if self.frozen is not None:
            self.frozen.fill(gradient, 0.0)
        moved, before = weights.detach().clone(), statistics.clone()
        for number in self.perturbing:
            for place, row in enumerate(rows[: len(weights)]):
                end, given = row.ends[number]
                own = {name: tensor.to(self.device) for name, tensor in given.items()}
                move = perturbation(end, gradient[place], own, row.site)
                moved[place] += 0.0 if move is None else move
        moved = moved.requires_grad_()
        gradient = torch.autograd.grad(self._losses(rows, moved, statistics, positions, step).sum(), moved)[0]
        statistics.copy_(before)
        return losses, gradient

    def _losses(
        self, rows: list[LocalJob], weights: Tensor, statistics: Tensor, positions: Tensor, step: int
    ) -> Tensor:
        """Mean loss of each active site in one step, ``[A]``."""
        active, width = len(weights), self.schedule.width
        share = self.schedule.share[:active, step].to(self.device)
        if self.augments:
            inputs, targets = self._augmented(rows[:active], positions, step)
        else:
            chosen = positions[:active, step].reshape(-1).to(self.device)
            found = self.cases.inputs.index_select(0, chosen)
            inputs, targets = found.view(active, width, *found.shape[1:]), self.cases.targets.index_select(0, chosen)
        mask = share.sign() if self.schedule.padded[step] else None
        if self.terms is None:
            outputs, terms = self.network.outputs(weights, statistics, inputs, mask), None
        else:
            sizes = [self.schedule.sizes[row][step] for row in range(active)]
            own = targets.view(active, width, *targets.shape[1:])
            seeds = [derive_seed(*row.seed, "parts", step) for row in rows[:active]]
            outputs, terms = self.terms.outputs(weights, statistics, inputs, own, sizes, seeds)
        losses = self.task.stacked_loss(outputs, targets, share > 0)
        if self.class_weights is not None:
            losses = losses * self.class_weights[:active].gather(1, targets.view(active, width))
        mean = (losses * share).sum(1)
        return mean if terms is None else mean + terms

    def _augmented(self, rows: list[LocalJob], positions: Tensor, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = [], []
        for row, job in enumerate(rows):
            size = self.schedule.sizes[row][step]
            x, y = job.dataset.batch(job.index[positions[row, step, :size]], augment=augmentation_seed(job, step))
            padding = self.schedule.width - size
            inputs.append(torch.cat([x, x[:1].expand(padding, *x.shape[1:])]))
            targets.append(torch.cat([y, y[:1].expand(padding, *y.shape[1:])]))
        return torch.stack(inputs).to(self.device), torch.cat(targets).to(self.device)


def _anchor(job: LocalJob, start: Tensor) -> Tensor:
    return start if job.anchor is None else job.anchor[: len(start)].to(start.device)
