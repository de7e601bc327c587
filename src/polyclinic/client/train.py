"""Local training of one site."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from polyclinic.client.companion import Companion
from polyclinic.client.features import mean_over_places
from polyclinic.client.optimizers import build_optimizer, is_elementwise, restore_state, state_of, with_learning_rate
from polyclinic.client.private.dp_sgd import private_part
from polyclinic.client.work import (
    LocalJob,
    LocalResult,
    Work,
    augmentation_seed,
    batch_sizes,
    case_order,
    change_gradient,
    check_finite,
    clip_gradient,
    drawn,
    gradient_step,
    perturbation,
)
from polyclinic.models import keeps_statistics
from polyclinic.parts.checks import kind_of, wrong
from polyclinic.parts.site_end import Batch, Memory, SiteEnd, overrides
from polyclinic.randomness import own_randomness
from polyclinic.seeds import derive_seed
from polyclinic.state import FlatModule, Selection
from polyclinic.tasks import Task


def train(model: FlatModule, task: Task, work: Work, job: LocalJob) -> LocalResult:
    """Do ``job`` with ``model`` as the workspace: plain PyTorch on one flat parameter.

    Raises:
        TrainingError: P301 if the loss or the weights are not finite.
    """
    model.load(job.start, job.batches)
    model.module.train()
    with own_randomness(*job.seed, "layers", device=model.vector.device):  # dropout, stochastic depth
        loss, steps = (_full_gradient if work.kind == "gradient" else _mini_batches)(model, task, work, job)
    return check_finite(LocalResult(model.vector.to("cpu", copy=True), steps, loss), job.site)


def _mini_batches(model: FlatModule, task: Task, work: Work, job: LocalJob) -> tuple[float, int]:
    sizes = batch_sizes(len(job.index), work, job.steps)
    parameters = model.parameters_of(job.trained, whole=not is_elementwise(work.optimizer))
    optimizer = build_optimizer(with_learning_rate(work.optimizer, job.learning_rate, job.cycled), parameters)
    if work.keep_optimizer and job.optimizer_state:
        restore_state(optimizer, parameters, job.optimizer_state)
    frozen = None if job.trained is None else job.trained.others(model.layout.trainable)
    private = private_part(job)
    steps = None if private is None else private.steps_of(model, task, work, job, len(sizes))
    batches = job.index[case_order(job, sizes)].split(sizes) if steps is None else steps.batches
    backward = _Backward(model, work)
    begun = time.monotonic()
    total, done = torch.zeros((), device=model.vector.device), 0
    with _Hooks(model, work, job) as hooks:
        for step, index in enumerate(batches):
            if job.seconds is not None and step and time.monotonic() - begun > job.seconds:
                break
            if steps is not None:
                seed = augmentation_seed(job, step) if job.dataset.augments else None
                total += steps.gradient(model, index, seed)
                _step(model, work, hooks, frozen, optimizer)
                done += 1
                continue
            batch = _batch(model, job, index, step)

            def gradient(
                batch: tuple[Tensor, Tensor] = batch, index: Tensor = index, step: int = step
            ) -> Tensor:  # fmt: skip
                return backward(lambda: hooks.mean_loss(task, *batch, index, step))

            if job.companion is not None:
                job.companion.step(model, gradient)
            total += gradient()
            hooks.perturb(gradient, frozen)
            _step(model, work, hooks, frozen, optimizer)
            done += 1
    if work.keep_optimizer:
        job.optimizer_state = {name: value.clone() for name, value in state_of(optimizer, parameters).items()}
    return float(total) / done, done


def _step(model: FlatModule, work: Work, hooks: _Hooks, frozen: Selection | None, optimizer: Optimizer) -> None:
    """A step along the gradient, after the parts have changed it."""
    hooks.change(model.gradient)
    if frozen is not None:
        frozen.fill(model.gradient, 0.0)
    clip_gradient(model.gradient, work.clip)
    optimizer.step()


def _full_gradient(model: FlatModule, task: Task, work: Work, job: LocalJob) -> tuple[float, int]:
    """One step w − η ∇F with the mean gradient over all training cases, and with the study's weight decay.

    It is added up in batches to bound memory, unless normalisation that keeps statistics, augmentation or the loss
    itself makes it depend on which cases are together.
    """
    backward = _Backward(model, work)
    together = task.compares_cases or keeps_statistics(model.module) or job.dataset.augments
    size = len(job.index) if together else work.batch_size
    with _Hooks(model, work, job) as hooks:

        def gradient() -> float:
            total, added = 0.0, torch.zeros_like(model.gradient)
            for number, index in enumerate(job.index.split(size)):
                batch, share = _batch(model, job, index, 0), len(index) / len(job.index)
                total += share * float(backward(partial(hooks.mean_loss, task, *batch, index, number)))
                added.add_(model.gradient, alpha=share)
            model.gradient.copy_(added)
            return total

        total = gradient()
        hooks.perturb(gradient)
        hooks.change(model.gradient)
    clip_gradient(model.gradient, work.clip)
    build_optimizer(gradient_step(work.optimizer, job.learning_rate), model.weights).step()
    return total, 1


def _batch(model: FlatModule, job: LocalJob, index: Tensor, step: int) -> tuple[Tensor, Tensor]:
    seed = augmentation_seed(job, step) if job.dataset.augments else None
    inputs, targets = job.dataset.batch(index, augment=seed)
    device = model.vector.device
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


class _Hooks:
    """A job's parts at work; within ``with``, features are recorded if a part wants them."""

    def __init__(self, model: FlatModule, work: Work, job: LocalJob) -> None:
        device = model.vector.device
        ends = [(end, {name: tensor.to(device) for name, tensor in given.items()}) for end, given in job.ends]
        heeded = [(end, given) for end, given in ends if job.pretrains in (None, end)]
        self._batch, self._loss, self._outputs, self._gradient, self._perturbation = (
            [(end, given) for end, given in (ends if hook in ("gradient", "perturbation") else heeded)
             if overrides(end, hook)]
            for hook in ("batch", "loss", "outputs", "gradient", "perturbation")
        )  # fmt: skip
        self.model, self.work, self.seed, self.site, self.labelled = model, work, job.seed, job.site, job.labelled
        self.received = (job.start if job.anchor is None else job.anchor).to(device)
        self.anchor, self.weights = self.received[: model.layout.trainable], model.weights.detach()
        self.class_weights = None if job.class_weights is None else job.class_weights.to(device)
        self._features: list[Tensor] = []
        self._beside = job.companion
        self._mixes = self._beside is not None and type(self._beside).mixed is not Companion.mixed
        self._records = any(end.needs_features for end, _ in self._loss)
        self._records |= self._beside is not None and self._beside.needs_features

    def __enter__(self) -> _Hooks:
        self._hook = self.model.record_features(self._features) if self._records else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def mean_loss(self, task: Task, inputs: Tensor, targets: Tensor, cases: Tensor, step: int) -> Tensor:
        """Mean loss of a batch of ``cases [B]`` with the terms of all parts."""
        if self._batch or self._loss or self._mixes:
            return self._changed_loss(task, inputs, targets, cases, step)
        return self._mean_loss(task, inputs, targets)[0]

    def _mean_loss(self, task: Task, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(inputs.device.type, enabled=self.work.mixed_precision):
            outputs = self.model.module(inputs)
            for end, given in self._outputs:
                outputs = self._seen(end, outputs, given)
            if not self.labelled:
                return torch.zeros((), device=inputs.device), outputs
            losses = task.loss(self._mixed(inputs, outputs), targets)
        if self.class_weights is not None:
            losses = losses * self.class_weights[targets]
        return losses.mean(), outputs

    def _mixed(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What the loss is of: the outputs, or what a second model makes of them."""
        if self._beside is None or not self._mixes:
            return outputs
        features = mean_over_places(self._features[0]) if self._records else inputs.new_empty(0)
        return self._beside.mixed(inputs, outputs, features)

    def _seen(self, end: SiteEnd, outputs: Tensor, given: Memory) -> Tensor:
        found: object = end.outputs(outputs, given)
        if not isinstance(found, Tensor) or found.shape != outputs.shape:
            raise wrong(end.name, "outputs", kind_of(found), f"a tensor {list(outputs.shape)}", self.site)
        return found

    def _changed_loss(self, task: Task, inputs: Tensor, targets: Tensor, cases: Tensor, step: int) -> Tensor:
        nothing = inputs.new_empty(0)
        seed = derive_seed(*self.seed, "parts", step)
        batch = Batch(inputs, targets, self.model, self.received, seed, nothing, nothing, cases)
        for end, given in self._batch:
            batch = end.batch(batch, given)
            if not isinstance(batch, Batch):
                raise wrong(end.name, "batch", kind_of(batch), "the batch, or `replace(batch, ...)`", self.site)
        self._features.clear()
        loss, outputs = self._mean_loss(task, batch.inputs, batch.targets)
        features = mean_over_places(self._features[0]) if self._records else nothing
        batch = replace(batch, outputs=outputs, features=features)
        for end, given in self._loss:
            term = end.loss(batch, given | drawn(end, seed, inputs.device, self.site))
            if term is not None:
                if not isinstance(term, Tensor) or term.numel() != 1:
                    raise wrong(end.name, "loss", kind_of(term), "a tensor of one number, or None", self.site)
                loss = loss + term.reshape(())
        return loss

    def perturb(self, again: Callable[[], object], frozen: Selection | None = None) -> None:
        """Let ``again`` take the gradient of the step at the weights to which parts move the network, and move it back.

        Statistics of normalisation layers are those of the network where it was.
        """
        if not self._perturbation:
            return
        if frozen is not None:
            frozen.fill(self.model.gradient, 0.0)
        found = [perturbation(end, self.model.gradient, given, self.site) for end, given in self._perturbation]
        moves = [move for move in found if move is not None]
        if moves:
            put_back = self.model.remember()
            for move in moves:
                self.weights.add_(move)
            again()
            put_back()

    def change(self, gradient: Tensor) -> None:
        """Let the parts change the gradient of a step."""
        for end, given in self._gradient:
            change_gradient(end, gradient, self.weights, self.anchor, given, self.site)


class _Backward:
    """Writes the gradient of a batch's loss into ``model.gradient``.

    In half precision the loss is scaled by a power of 2, so that small gradients do not become 0. Where large ones
    become infinite by that, the same batch is taken again with a smaller scale, and the network's statistics move once:
    a site does all the steps that it says it did. (`torch.amp.GradScaler` leaves such steps out: in each round the
    first few, which may be all of them.)
    """

    def __init__(self, model: FlatModule, work: Work) -> None:
        self.model, self.scale = model, 2.0**16 if work.mixed_precision else 1.0

    def __call__(self, mean_loss: Callable[[], Tensor]) -> Tensor:
        """The loss, without its gradient."""
        put_back = self.model.remember() if self.scale > 1 else None
        while True:
            loss = mean_loss()
            self.model.gradient.zero_()
            if not loss.requires_grad:  # of cases without a label of which no part learns in this step
                return loss.detach()
            if put_back is None:
                loss.backward()
                return loss.detach()
            (loss * self.scale).backward()
            self.model.gradient.div_(self.scale)
            if self.scale == 1 or not loss.isfinite() or self.model.gradient.isfinite().all():
                return loss.detach()
            self.scale /= 2
            put_back()
