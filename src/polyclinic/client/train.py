"""Local training of one site."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from polyclinic.client.optimizers import build_optimizer, is_elementwise, restore_state, state_of
from polyclinic.client.rules import Batch, GradientRule, LossRule, mean_over_places
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
    with_learning_rate,
)
from polyclinic.models import keeps_statistics
from polyclinic.seeds import own_randomness
from polyclinic.state import FlatModule
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
    scaler = _loss_scaler(model, work)
    begun = time.monotonic()
    total, done = torch.zeros((), device=model.vector.device), 0
    with _Rules(model, work, job) as rules:
        for step, index in enumerate(job.index[case_order(job, sizes)].split(sizes)):
            if job.seconds is not None and step and time.monotonic() - begun > job.seconds:
                break
            batch = _batch(model, job, index, step)

            def backward(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                loss = rules.mean_loss(task, *batch)
                model.gradient.zero_()
                scaler.scale(loss).backward()
                return loss.detach()

            if job.companion is not None:
                job.companion.step(model, backward)
            total += backward()
            scaler.unscale_(optimizer)
            rules.change(model.gradient)
            if frozen is not None:
                frozen.fill(model.gradient, 0.0)
            clip_gradient(model.gradient, work.clip)
            scaler.step(optimizer)
            scaler.update()
            done += 1
    if work.keep_optimizer:
        job.optimizer_state = {name: value.clone() for name, value in state_of(optimizer, parameters).items()}
    return float(total) / done, done


def _full_gradient(model: FlatModule, task: Task, work: Work, job: LocalJob) -> tuple[float, int]:
    """One step w − η ∇F with the mean gradient over all training cases, and with the study's weight decay.

    It is added up in batches to bound memory, unless normalisation that keeps statistics or augmentation makes it
    depend on which cases are together.
    """
    model.gradient.zero_()
    total = 0.0
    size = len(job.index) if keeps_statistics(model.module) or job.dataset.augments else work.batch_size
    with _Rules(model, work, job) as rules:
        for index in job.index.split(size):
            loss = rules.mean_loss(task, *_batch(model, job, index, 0)) * (len(index) / len(job.index))
            loss.backward()
            total += float(loss.detach())
        rules.change(model.gradient)
    clip_gradient(model.gradient, work.clip)
    build_optimizer(gradient_step(work.optimizer, job.learning_rate), model.weights).step()
    return total, 1


def _batch(model: FlatModule, job: LocalJob, index: Tensor, step: int) -> tuple[Tensor, Tensor]:
    seed = augmentation_seed(job, step) if job.dataset.augments else None
    inputs, targets = job.dataset.batch(index, augment=seed)
    device = model.vector.device
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


class _Rules:
    """A job's rules at work; within ``with``, features are recorded if a rule wants them."""

    def __init__(self, model: FlatModule, work: Work, job: LocalJob) -> None:
        device = model.vector.device
        given = [{name: tensor.to(device) for name, tensor in found.items()} for found in job.given]
        pairs = list(zip(work.rules, given or [{}] * len(work.rules), strict=True))
        self.gradient = [(rule, found) for rule, found in pairs if isinstance(rule, GradientRule)]
        self.loss = [(rule, found) for rule, found in pairs if isinstance(rule, LossRule)]
        self.model, self.work = model, work
        self.received = (job.start if job.anchor is None else job.anchor).to(device)
        self.anchor, self.weights = self.received[: model.layout.trainable], model.weights.detach()
        weights = work.class_weights if job.class_weights is None else job.class_weights
        self.class_weights = None if weights is None else weights.to(device)
        self._features: list[Tensor] = []

    def __enter__(self) -> _Rules:
        self._hook = self.model.record_features(self._features) if self.loss else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def mean_loss(self, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch with the terms of all rules."""
        self._features.clear()
        with torch.autocast(inputs.device.type, enabled=self.work.mixed_precision):
            outputs = self.model.module(inputs)
            losses = task.loss(outputs, targets)
        if self.class_weights is not None:
            losses = losses * self.class_weights[targets]
        loss = losses.mean()
        for rule, given in self.loss:
            features = mean_over_places(self._features[0])
            loss = loss + rule.loss(Batch(self.model, inputs, targets, features, outputs, self.received), given)
        return loss

    def change(self, gradient: Tensor) -> None:
        """Let the rules change the gradient of a step."""
        for rule, given in self.gradient:
            rule.gradient(gradient, self.weights, self.anchor, given)


def _loss_scaler(model: FlatModule, work: Work) -> torch.amp.GradScaler:
    """Scales the loss where half precision would underflow; does nothing in float32."""
    return torch.amp.GradScaler(model.vector.device.type, enabled=work.mixed_precision)
