"""One method being trained at one site: what the site keeps between rounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyclinic.client.rules import LOCAL_RULES
from polyclinic.client.work import LocalJob, LocalResult, Work, batch_sizes
from polyclinic.communication.message import Message
from polyclinic.data.dataset import Dataset
from polyclinic.data.splits import Parts
from polyclinic.errors import TrainingError
from polyclinic.models import has_batch_norm
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
        layout: Layout = model.layout
        shared = {Role(role) for role in declaration["share"]}
        self.shared, self.private = layout.select(shared), layout.select(set(Role) - shared)
        self.own = self.private.take(initial).clone()
        self.best = self.own.clone()
        self.optimizer_state: dict[str, Tensor] = {}
        self._check_batches()

    def _check_batches(self) -> None:
        cases = len(self.parts.train)
        sizes = [cases] if self.work.kind == "gradient" else batch_sizes(cases, self.work) if cases else []
        if 1 in sizes and has_batch_norm(self.model.module):
            raise TrainingError(
                "P302", f"At site {self.site} a training batch has a single case, and batch normalisation needs two.",
                "Use a `training: {batch_size: ...}` above 1, leave the site out, or a model with another `norm`.",
            )  # fmt: skip

    def vector(self, state: Tensor, *, best: bool = False) -> Tensor:
        """The site's whole model ``[P]``: the shared ``state [Q]`` and its own part (of the best round, if asked)."""
        if self.shared.everything:
            return state
        vector = torch.empty(self.shared.total, device=state.device)
        self.shared.put(vector, state)
        self.private.put(vector, self.best if best else self.own)
        return vector

    def job(self, request: Message) -> LocalJob:
        """The local work that a ``train`` message asks for."""
        declared = self.declaration
        return LocalJob(
            site=self.site,
            dataset=self.dataset,
            index=self.parts.train,
            start=self.vector(request.tensors["state"]),
            seed=(declared["seed"], "train", self.site, declared["fold"], request.fields["round"]),
            learning_rate=request.fields["learning_rate"],
            optimizer_state=self.optimizer_state,
        )

    def finish(self, job: LocalJob, result: LocalResult, seconds: float) -> Message:
        """Keep what stays at the site; the rest is the answer."""
        self.optimizer_state = job.optimizer_state if self.work.keep_optimizer else {}
        if self.private.size:
            self.own = self.private.take(result.vector).clone()
        fields = {"examples": len(job.index), "steps": result.steps, "loss": result.loss, "seconds": seconds}
        return Message(fields, {"state": self.shared.take(result.vector)})

    def keep(self) -> None:
        """The round just done is the best so far."""
        self.best = self.own.clone()

    @property
    def keeps_memory(self) -> bool:
        """Whether the site must remember something between rounds (plain SGD has no state even where it is kept)."""
        return bool(self.private.size) or self.work.keep_optimizer

    def memory(self) -> dict[str, Tensor]:
        """What a checkpoint at the site must hold."""
        own = {"own": self.own, "best": self.best} if self.private.size else {}
        return {**own, **{f"optimizer/{name}": value for name, value in self.optimizer_state.items()}}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take back what ``memory`` gave."""
        self.own, self.best = memory.get("own", self.own), memory.get("best", self.best)
        self.optimizer_state = {
            name.removeprefix("optimizer/"): value for name, value in memory.items() if name.startswith("optimizer/")
        }
