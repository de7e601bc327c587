"""Parts that learn from cases without a label."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from polyclinic.client.features import frozen_outputs
from polyclinic.client.few_labels.views import strong_view, weak_view
from polyclinic.parts import LOCAL_PARTS, Batch, Ended, Memory, SiteEnd, SitePart, SiteView
from polyclinic.tasks import Task

_Share = Annotated[float, Field(ge=0, le=1)]


class Unlabelled(SiteEnd):
    """What these parts have in common: some cases without a label in each step, seen twice.

    Args:
        weight: of the term in the loss.
        cases: without a label in each step.
        strength: of the strong view.
    """

    needs_unlabelled: ClassVar[bool] = True
    supposes_scale: ClassVar[bool] = True
    no_bags: ClassVar[bool] = True

    def __init__(self, *, weight: float, cases: int, strength: float) -> None:
        self.weight, self.cases, self.strength = weight, cases, strength

    @property
    def learns_alone(self) -> bool:
        """Where the term counts."""
        return bool(self.weight)

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Remember where the cases are."""
        self._view, self._task = view, view.task
        return {}

    def chosen(self, seed: int) -> tuple[Tensor, torch.Generator] | None:
        """Which cases a step takes ``[U]``, and what drew them; None where the site has none, or they don't count."""
        count = self._view.count("unlabelled")
        if not count or not self.weight:
            return None
        source = torch.Generator().manual_seed(seed)
        index = torch.randperm(count, generator=source)[: self.cases]
        return index if len(index) > 1 else index.repeat(2), source  # normalisation layers need two


class SeenTwice(Unlabelled):
    """Those that are given a ``weak`` and a ``strong`` view ``[U, ...]`` of the cases of a step."""

    differing = frozenset({"_view"})

    def drawn(self, seed: int) -> Memory:
        """Both views; nothing where the site has no such cases, or they don't count."""
        chosen = self.chosen(seed)
        if chosen is None:
            return {}
        index, source = chosen
        inputs = self._view.cases(index, "unlabelled")[0].float()
        weak = weak_view(inputs, self._view.input_shape[1:], source)
        cut = self._view.task.target == "labels"  # what is cut out of an image has no outline
        return {"weak": weak, "strong": strong_view(weak, source, self.strength, cut=cut)}


class PseudoLabelling(SeenTwice):
    """What the model is sure of in a weak view, it shall find in a strong view.

    Args:
        threshold: from which probability on it is sure.
        others: see `Unlabelled`.
    """

    stacks_loss = True

    def __init__(self, *, threshold: float, **others: Any) -> None:
        super().__init__(**others)
        self.threshold = threshold

    def probabilities(self, batch: Batch, given: Memory) -> Tensor:
        """Of all classes ``[U, C, ...]`` in the weak view, without gradient."""
        return of_classes(self._task, frozen_outputs(batch.model, batch.state, given["weak"]))

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        if "weak" not in given:
            return None
        sure, label = self.probabilities(batch, given).max(dim=1)
        found = of_classes(self._task, batch.again(given["strong"])).gather(1, label[:, None])[:, 0]
        return self.weight * ((sure >= self.threshold) * -found.clamp_min(1e-7).log()).mean()


@LOCAL_PARTS.add("pseudo_labels")
class PseudoLabels(PseudoLabelling, SitePart):
    """FixMatch: what the model is sure of in a weak view of a case without a label, it shall find in a strong view.

    Adds λ · mean over cases (in segmentation over all pixels) of 1[max q ≥ τ] · −log p(argmax q), with q the
    probabilities of the weak view, without gradient and with the network as in evaluation, and p those of the strong
    one. A site without such cases trains as usual.

    Source: Sohn et al., FixMatch: simplifying semi-supervised learning with consistency and confidence, NeurIPS 2020,
    equation 4. In a federation each site does so with its own cases, as in the comparisons of Jeong et al. (ICLR 2021).
    There weak views are mirrored, and both go through normalisation layers together with the labelled batch; here see
    `polyclinic.client.few_labels.views`, and the strong view is a batch of its own.

    Args:
        weight: λ; 0 changes nothing.
        threshold: τ.
        cases: without a label in each step.
        strength: of the strong view, see `polyclinic.client.few_labels.views.strong_view`.
    """

    tasks = ("classification", "segmentation")

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, threshold: _Share = 0.95, cases: PositiveInt = 32,
        strength: _Share = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(threshold=threshold, weight=weight, cases=cases, strength=strength)


@LOCAL_PARTS.add("mean_teacher")
class MeanTeacher(SeenTwice, SitePart):
    """Mean teacher: what the running mean of a site's models predicts, its model shall predict from another view.

    Adds λ(t) · mean squared difference of the probabilities (of regression: of the numbers, in deviations of the
    targets): those of the teacher from a weak view, without gradient and as in evaluation, and those of the model from
    a strong view. In each step the teacher then becomes α · teacher + (1 − α) · model; it stays at the site and goes on
    from round to round. λ(t) = λ · e^{−5 (1 − t/T)²} in the first T rounds.

    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, equations 1 and 2, and the ramp
    of its section 3.2. There the term also has the labelled cases, and α is smaller at the start; here α is at most
    1 − 1/(n + 1) in the n-th step, as in the authors' code, whose teacher also runs as in training.

    Args:
        weight: λ; 0 changes nothing.
        decay: α.
        ramp: T; 0 has the full weight from the start.
        cases: without a label in each step.
        strength: of the strong view, see `polyclinic.client.few_labels.views.strong_view`.
    """

    stacks_loss = True
    differing = frozenset({"_view", "_teacher", "_steps"})
    tasks = ("classification", "segmentation", "regression", "multi_label")

    def __init__(
        self, *, weight: NonNegativeFloat = 10.0, decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        ramp: Annotated[int, Field(ge=0)] = 10, cases: PositiveInt = 32, strength: _Share = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(weight=weight, cases=cases, strength=strength)
        self.decay, self.ramp = decay, ramp

    def meet(self, view: SiteView) -> Memory:
        """The teacher begins as the first model."""
        if self.weight and view.count("unlabelled"):
            self.kept = {"teacher": view.vector[: view.trainable].clone(), "steps": torch.zeros(())}
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """The teacher's weights ``[T]`` as this round changes them, and how many steps it is of."""
        self._teacher, self._steps = self.kept.get("teacher"), int(self.kept.get("steps", torch.zeros(())))
        self._share = self.weight * ramped(view.number, self.ramp)
        return super().begin(view, received)

    def drawn(self, seed: int) -> Memory:
        """The teacher's weights, too."""
        found = super().drawn(seed)
        return found | {"teacher": self._teacher} if found and self._teacher is not None else {}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term. Statistics of normalisation layers are the model's own."""
        if "teacher" not in given:
            return None
        vector = batch.model.vector.detach() if batch.state is None else batch.state
        teacher = torch.cat([given["teacher"], vector[len(given["teacher"]) :]])
        target = _comparable(self._task, frozen_outputs(batch.model, teacher, given["weak"]))
        found = _comparable(self._task, batch.again(given["strong"]))
        return self._share * (found - target).square().mean()

    def gradient(self, gradient: Tensor, weights: Tensor, start: Tensor, given: Memory) -> None:
        """The teacher learns from the weights that the step starts from; the gradient stays."""
        if self._teacher is not None:
            self._steps += 1
            decay = min(self.decay, 1 - 1 / (self._steps + 1))
            self._teacher = decay * self._teacher.to(weights.device) + (1 - decay) * weights

    def end(self, ended: Ended, given: Memory) -> Memory:
        """Keep the teacher."""
        if self._teacher is not None:
            self.kept = {"teacher": self._teacher.cpu(), "steps": torch.tensor(float(self._steps))}
        return {}


def ramped(number: int, ramp: int) -> float:
    """e^{−5 (1 − t/T)²} in round t of the first T, then 1."""
    return math.exp(-5 * (1 - number / ramp) ** 2) if number < ramp else 1.0


def of_classes(task: Task, outputs: Tensor) -> Tensor:
    """Probabilities of all classes ``[B, C, ...]``, the background among them."""
    found = task.probabilities(outputs)
    return torch.cat([1 - found, found], dim=1) if found.shape[1] == 1 else found


def _comparable(task: Task, outputs: Tensor) -> Tensor:
    return outputs if task.target == "numbers" else task.probabilities(outputs).to(outputs.dtype)
