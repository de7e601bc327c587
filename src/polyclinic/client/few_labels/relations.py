"""What classes have in common, as sites with labels see it, for sites without: FedIRM."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.features import DROPOUT, evaluating, frozen_outputs
from polyclinic.client.few_labels.consistency import SeenTwice, of_classes, ramped
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule
from polyclinic.tasks import Task

#: Cases whose outputs are computed together.
_AT_ONCE = 32


@LOCAL_PARTS.add("relation_matching")
class RelationMatching(Part):
    """FedIRM: classes shall be as like each other where labels are guessed as where they are known.

    After each round a site with labels tells its relations R: for each class the softmax of the mean output (logits) of
    its training cases of that class, over a temperature. The server takes the mean over the sites that have the class.
    In each step of the next round a site takes some cases without a label. Those count of which the mean of several
    passes with dropout, p, is sure: −Σ p log p < h log C. Their relations Q, with the likeliest class as label, enter
    the loss by λ(t) · mean over the classes known in both of (KL(R_c ‖ Q_c) + KL(Q_c ‖ R_c)) / 2.
    λ(t) = λ · e^{−5 (1 − t/T)²} in the first T rounds. A site without any label keeps its update back until it has R.

    Source: Liu, Yang, Dou, Heng, Federated semi-supervised medical image classification via inter-client relation
    matching, MICCAI 2021, and the authors' program, from which the half, the ramp and the rounds before come; the
    consistency of the paper is the part ``mean_teacher``. There relations of labelled sites are means over batches of
    the last epoch, h is ln 2 for 5 and 7 classes (0.43 and 0.36 of log C), and sites without labels join after 20
    rounds. A network without dropout layers has one pass.

    Args:
        relation: λ; 0 changes nothing.
        temperature: of the softmax.
        passes: with dropout.
        uncertainty: h, a share of the entropy of a model that knows nothing.
        ramp: T; 0 has the full weight from the start.
        cases: without a label in each step.
    """

    reveals: ClassVar = {
        "relations": "for each class a softened mean of the outputs for the site's training cases: of a class with one "
                     "case, what the model makes of that case; and which classes the site has",
        "mean": "the mean of these over all sites that have the class: where one has, its own",
    }  # fmt: skip
    shapes: ClassVar = {
        "relations": Shaped("float32", "C", "C", least=0, most=1), "mean": Shaped("float32", "C", "C", least=0, most=1),
    }  # fmt: skip
    tasks = ("classification",)
    no_bags = True

    def __init__(
        self, *, relation: NonNegativeFloat = 10.0, temperature: PositiveFloat = 2.0, passes: PositiveInt = 8,
        uncertainty: Annotated[float, Field(gt=0, le=1)] = 0.4, ramp: Annotated[int, Field(ge=0)] = 10,
        cases: PositiveInt = 32,
    ) -> None:  # fmt: skip
        self.relation, self.temperature, self.passes = relation, temperature, passes
        self.uncertainty, self.ramp, self.cases = uncertainty, ramp, cases

    def at_site(self) -> SiteEnd:
        """Tells relations, and matches those of others."""
        return _Matching(self)

    def at_server(self) -> ServerEnd:
        """Knows the mean."""
        return _Mean()


class _Matching(SeenTwice):
    def __init__(self, part: RelationMatching) -> None:
        super().__init__(weight=part.relation, cases=part.cases, strength=0.0)
        self.part = part

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """R ``[C, C]``, where it is known."""
        super().begin(view, received)
        self._share = self.weight * ramped(view.number, self.part.ramp)
        self._waits = bool(self.weight) and not view.count() and "mean" not in received
        return received

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        if "mean" not in given or "weak" not in given:
            return None
        found = dropped_probabilities(batch.model, self._task, given["weak"], self.part.passes)
        entropy = -(found * found.clamp_min(1e-7).log()).sum(1)
        sure = entropy < self.part.uncertainty * math.log(found.shape[1])
        if not sure.any():
            return None
        outputs = logits(batch.again(given["weak"]))[sure]
        distance = relation_distance(relations(outputs, found[sure].argmax(1), self.part.temperature), given["mean"])
        return None if distance is None else self._share * distance

    def sends(self, ended: Ended) -> bool:
        """Not while there is nothing to learn from."""
        return not self._waits

    def end(self, ended: Ended, given: Memory) -> Memory:
        """R of this site, where it has labels and something is made of them."""
        view, device = ended.view, ended.view.model.vector.device
        if not self.weight or not view.count():
            return {}
        vector, outputs, labels = ended.vector.to(device), list[Tensor](), list[Tensor]()
        for index in torch.arange(view.count()).split(_AT_ONCE):
            inputs, targets = view.cases(index)
            outputs.append(logits(frozen_outputs(view.model, vector, inputs.to(device))).cpu())
            labels.append(targets)
        return {"relations": relations(torch.cat(outputs).double(), torch.cat(labels), self.part.temperature).float()}


class _Mean(ServerEnd):
    needs_each = True  # which classes each site has

    def __init__(self) -> None:
        self._mean: Tensor | None = None
        self._new = dict[str, Tensor]()

    def begin(self, now: Now) -> None:
        """Begin with nothing new."""
        super().begin(now)
        self._new = {}

    def send(self, site: str) -> Memory:
        """The mean, once there is one."""
        return {} if self._mean is None else {"mean": self._mean}

    def take(self, update: Update) -> Update:
        """A site's relations."""
        sent = self.sent(update)
        if "relations" in sent:
            self._new[update.site] = sent["relations"]
        return update

    def finish(self, step: Step) -> Step:
        """They count, in site order."""
        if self._new:
            found = torch.stack([self._new[site] for site in self.now.everyone if site in self._new]).double()
            there = (found.sum(2) > 0).sum(0)
            self._mean = (found.sum(0) / there.clamp_min(1)[:, None]).float()
        return step

    def memory(self) -> Memory:
        """The mean."""
        return {} if self._mean is None else {"mean": self._mean}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._mean = memory.get("mean")


def logits(outputs: Tensor) -> Tensor:
    """Outputs as logits of all classes ``[B, C]``: of a single one the first class has 0."""
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1) if outputs.shape[1] == 1 else outputs


def relations(outputs: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """For each class the softened mean output of its cases ``[C, C]``; a row of zeros for a class without one.

    Args:
        outputs: logits ``[B, C]``.
        labels: int64 ``[B]``.
        temperature: of the softmax.
    """
    chosen = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    counts = chosen.sum(0)[:, None]
    means = chosen.T @ outputs / counts.clamp_min(1)
    return torch.where(counts > 0, (means / temperature).softmax(1), torch.zeros_like(means))


def relation_distance(found: Tensor, wanted: Tensor) -> Tensor | None:
    """Mean over classes of half the sum of both KL divergences of rows ``[C, C]``; None if no class is in both."""
    known = (found.sum(1) > 0) & (wanted.sum(1) > 0)
    if not known.any():
        return None
    one, other = (rows[known].clamp_min(1e-7) for rows in (found, wanted))
    return ((one - other) * (one.log() - other.log())).sum(1).mean() / 2


def dropped_probabilities(model: FlatModule, task: Task, inputs: Tensor, passes: int) -> Tensor:
    """Mean probabilities of all classes ``[B, C]`` over passes in which only dropout is as in training."""
    drops = any(isinstance(layer, DROPOUT) and layer.p > 0 for layer in model.module.modules())
    passes = passes if drops else 1
    with evaluating(model, dropout=True), torch.no_grad():
        return sum((of_classes(task, model.module(inputs)) for _ in range(1, passes)),
                   of_classes(task, model.module(inputs))) / passes  # fmt: skip
