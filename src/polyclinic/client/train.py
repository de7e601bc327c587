"""Local training of one site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from polyclinic.client.optimizers import build_optimizer, restore_state, state_of
from polyclinic.client.work import (
    LocalJob,
    LocalResult,
    Work,
    augmentation_seed,
    batch_sizes,
    case_order,
    check_finite,
    clip_gradient,
    with_learning_rate,
)
from polyclinic.models import has_batch_norm, has_random_layers
from polyclinic.seeds import derive_seed
from polyclinic.state import FlatModule
from polyclinic.tasks import Task


def train(model: FlatModule, task: Task, work: Work, job: LocalJob) -> LocalResult:
    """Do ``job`` with ``model`` as the workspace: plain PyTorch on one flat parameter.

    Raises:
        TrainingError: P301 if the loss or the weights are not finite.
    """
    model.load(job.start)
    model.module.train()
    with _own_randomness(model, job):
        loss, steps = (_full_gradient if work.kind == "gradient" else _mini_batches)(model, task, work, job)
    return check_finite(LocalResult(model.vector.to("cpu", copy=True), steps, loss), job.site)


def _mini_batches(model: FlatModule, task: Task, work: Work, job: LocalJob) -> tuple[float, int]:
    sizes = batch_sizes(len(job.index), work)
    optimizer = build_optimizer(with_learning_rate(work.optimizer, job.learning_rate), model.weights)
    if work.keep_optimizer and job.optimizer_state:
        restore_state(optimizer, model.weights, job.optimizer_state)
    start = job.start[: model.layout.trainable].to(model.vector.device)
    weights = model.weights.detach()
    scaler = _loss_scaler(model, work)
    total = torch.zeros((), device=model.vector.device)
    for step, index in enumerate(job.index[case_order(job, sizes)].split(sizes)):
        losses = _losses(model, task, work, job, index, step)
        loss = losses.mean()
        model.gradient.zero_()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for rule in work.rules:
            rule.gradient(model.gradient, weights, start)
        clip_gradient(model.gradient, work.clip)
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach()
    if work.keep_optimizer:
        job.optimizer_state = {name: value.clone() for name, value in state_of(optimizer, model.weights).items()}
    return float(total) / len(sizes), len(sizes)


def _full_gradient(model: FlatModule, task: Task, work: Work, job: LocalJob) -> tuple[float, int]:
    """One step w − η ∇F with the mean gradient over all training cases.

    It is added up in batches to bound memory, unless batch normalisation or augmentation makes it depend on which cases
    are together.
    """
    model.gradient.zero_()
    total = 0.0
    size = len(job.index) if has_batch_norm(model.module) or job.dataset.augments else work.batch_size
    for index in job.index.split(size):
        losses = _losses(model, task, work, job, index, 0).sum() / len(job.index)
        losses.backward()
        total += float(losses.detach())
    start = job.start[: model.layout.trainable].to(model.vector.device)
    weights = model.weights.detach()
    for rule in work.rules:
        rule.gradient(model.gradient, weights, start)
    clip_gradient(model.gradient, work.clip)
    weights.sub_(model.gradient, alpha=job.learning_rate)
    return total, 1


def _losses(model: FlatModule, task: Task, work: Work, job: LocalJob, index: Tensor, step: int) -> Tensor:
    seed = augmentation_seed(job, step) if job.dataset.augments else None
    inputs, targets = job.dataset.batch(index, augment=seed)
    device = model.vector.device
    inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
    with torch.autocast(device.type, enabled=work.mixed_precision):
        losses = task.loss(model.module(inputs), targets)
    if work.class_weights is not None:
        losses = losses * work.class_weights.to(device)[targets]
    return losses


def _loss_scaler(model: FlatModule, work: Work) -> torch.amp.GradScaler:
    """Scales the loss where half precision would underflow; does nothing in float32."""
    return torch.amp.GradScaler(model.vector.device.type, enabled=work.mixed_precision)


@contextlib.contextmanager
def _own_randomness(model: FlatModule, job: LocalJob) -> Iterator[None]:
    """Dropout draws from PyTorch's global generators: seed them for this job and put them back."""
    if not has_random_layers(model.module):
        yield
        return
    device = model.vector.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*job.seed, "layers"))
        yield
