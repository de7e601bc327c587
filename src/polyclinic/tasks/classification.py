"""Binary and multi-class classification of cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.options import Catalogue
from polyclinic.shapes import Shaped
from polyclinic.tasks.base import (
    Asked,
    Batch,
    Floats,
    LossFunction,
    Measure,
    Score,
    Sent,
    Task,
    Totals,
    joined,
    register,
    spread,
    stacked,
)
from polyclinic.tasks.classification_totals import (
    classification_totals,
    influence_on_metrics,
    margins_of_totals,
    metrics_of_totals,
)
from polyclinic.tasks.metrics import (
    CALIBRATION_BINS,
    CLASSIFICATION,
    ENTERED,
    Judged,
    auc,
    choose_threshold,
    classification_metrics,
    decide,
    entered_values,
    own_metrics,
    threshold_counts,
    threshold_grid,
    weighted_metrics,
)

#: The loss that wants one output for a binary label.
ONE_OUTPUT = "binary_cross_entropy"


#: Functions of network outputs ``[B, C]`` and targets ``[B]``, int64.
LOSSES: Catalogue[LossFunction] = Catalogue("loss of classification")


@LOSSES.add("cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the logarithm of the probability of the true class."""
    return F.cross_entropy(outputs, targets, reduction="none")


@LOSSES.add("focal")
def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy times (1 - p)² (Lin 2017, equation 4, gamma 2)."""
    losses = cross_entropy(outputs, targets)
    return (1 - (-losses).exp()) ** 2 * losses


@LOSSES.add(ONE_OUTPUT)
def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one logit ``[B, 1]`` of class 1."""
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")


@register
class Classification(Task):
    """One label a case, targets class indices ``[B]``.

    Outputs are logits ``[B, C]``; with ``binary_cross_entropy`` one logit ``[B, 1]``, that of class 1 of two. Both are
    the same model: the logit is the difference of the two. But a step of gradient descent on two logits changes their
    difference twice as much, so a learning rate means half as much with one.
    """

    name = "classification"
    target = "labels"
    losses: ClassVar = LOSSES
    metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION
    default_metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION
    has_accuracy = True
    sends: ClassVar = {
        "probabilities": Shaped("float64", "N", "C", finite=False),  # of a model that broke down they are no numbers
        "labels": Shaped("int64", "N"),
    }
    totalled: ClassVar = {
        "confusion": Shaped("int64", "C", "C", least=0),
        "grid": Shaped("int64", "curves", 2, len(threshold_grid()) + 1, least=0),
        "squares": Shaped("float64", 1),
        "gaps": Shaped("float64", CALIBRATION_BINS),
        "undefined": Shaped("int64", 1, least=0),
    }
    approximate = frozenset({"auc", "ap"})
    counts = Shaped("int64", 2, len(threshold_grid()) + 1)

    @property
    def outputs(self) -> int:
        """One logit a class (two for a binary label); one in all with ``binary_cross_entropy``."""
        return 1 if self.loss_name == ONE_OUTPUT else self.classes

    @classmethod
    def unfit(cls, loss: str, classes: int) -> str:
        """``binary_cross_entropy`` is for two classes."""
        if loss != ONE_OUTPUT or classes == 2:
            return ""
        return f"`{ONE_OUTPUT}` is for two classes, and there are {classes}"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]``, by a function of `LOSSES`."""
        return self._called(outputs, targets)

    def example(self) -> tuple[Tensor, Tensor]:
        """See `Task.example`."""
        classes = max(self.classes, 2)
        return torch.linspace(-1.0, 2.0, 6 * self.outputs).sin().view(6, -1), torch.arange(6) % classes

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over classes ``[B, C]``, in double precision so that close scores keep their order.

        One logit gives ``[B, 2]``, too, by the sigmoid.
        """
        if self.loss_name == ONE_OUTPUT:
            return torch.cat([-outputs, outputs], dim=1).double().sigmoid()
        return outputs.double().softmax(dim=1)

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """See `Task.score`."""
        outputs, targets, _ = _all(batches)
        predicted = self.probabilities(outputs)
        if metric in ENTERED:
            labels, half = targets.numpy(), np.full(len(targets), 0.5)
            value = float(_entered([metric], labels, predicted.numpy(), np.ones((len(labels), 1)), half)[metric][0])
        elif metric == "auc" and self.classes == 2:
            value = auc(targets.numpy(), predicted[:, 1].numpy())
        else:
            value = classification_metrics(targets.numpy(), predicted.numpy(), [metric])[metric]
        return Score(float(self.loss(outputs, targets).mean()), value)

    def accuracy(self, batches: Iterable[Batch]) -> Score:
        """Mean loss, and the share of right classes."""
        outputs, targets, _ = _all(batches)
        right = (self.probabilities(outputs).argmax(1) == targets).double().mean()
        return Score(float(self.loss(outputs, targets).mean()), float(right))

    def evidence(self, batches: Iterable[Batch]) -> Tensor:
        """int64 ``[2, T + 1]``, see `polyclinic.tasks.metrics.threshold_counts`."""
        batch = joined(batches)
        if batch is None:
            return torch.from_numpy(threshold_counts(np.zeros(0, dtype=np.int64), np.zeros(0)))
        return torch.from_numpy(threshold_counts(batch.targets.numpy(), batch.found[:, 1].numpy()))

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """``probabilities`` float64 ``[N, C]`` and ``labels`` int64 ``[N]``."""
        batch = joined(batches)
        if batch is None:
            empty = torch.zeros(0, self.classes, dtype=torch.float64)
            return {}, {"probabilities": empty, "labels": torch.zeros(0, dtype=torch.int64)}
        return {}, {"probabilities": batch.found, "labels": batch.targets}

    def misfit(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], asked: Asked) -> str:
        """Labels are classes."""
        labels = tensors["labels"]
        if bool(((labels < 0) | (labels >= self.classes)).any()):
            return f"labels: got a class that is not one of 0 to {self.classes - 1}"
        return ""

    @property
    def has_threshold(self) -> bool:
        """Of two classes; of more the most probable one is taken."""
        return self.classes == 2

    def choose_threshold(self, evidence: Tensor) -> float:
        """The highest balanced accuracy, see `polyclinic.tasks.metrics.choose_threshold`."""
        return choose_threshold(evidence.numpy())

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """``label``, ``score`` (of class 1 of two, else the highest), ``score_0`` ... (more classes), ``threshold``."""
        predicted = tensors["probabilities"].numpy()
        found: dict[str, Any] = {"label": tensors["labels"].numpy()}
        if self.classes == 2:
            found["score"] = predicted[:, 1]
        else:
            found["score"] = predicted.max(axis=1) if len(predicted) else predicted[:, 0]
            found |= {f"score_{column}": predicted[:, column] for column in range(predicted.shape[1])}
        return found | {"threshold": np.full(len(predicted), threshold)}

    def decided(self, tensors: Mapping[str, Tensor], threshold: float) -> Tensor:
        """The predicted class of each case ``[N]``."""
        predicted = tensors["probabilities"]
        return (predicted[:, 1] >= threshold).long() if self.classes == 2 else predicted.argmax(1)

    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        """See `Task.measure` and `polyclinic.tasks.metrics.weighted_metrics`."""
        labels, predicted, thresholds = self._arrays(cases)

        def measure(rows: NDArray[np.intp], weights: Floats) -> Floats:
            given = labels[rows], predicted[rows], weights
            values = weighted_metrics(*given, own_metrics(names), thresholds[rows])
            values |= _entered([name for name in names if name in ENTERED], *given, thresholds[rows])
            return stacked(values, names)

        return measure

    def _arrays(self, cases: pd.DataFrame) -> tuple[NDArray[Any], Floats, Floats]:
        """Labels [n], probabilities [n, C] and thresholds [n] of rows of predictions."""
        if self.classes == 2:
            score, thresholds = cases["score"].to_numpy(np.float64), cases["threshold"].to_numpy(np.float64)
            predicted = np.stack([1 - score, score], axis=1)
        else:
            predicted = cases[[f"score_{column}" for column in range(self.classes)]].to_numpy(np.float64)
            thresholds = np.full(len(cases), np.nan)  # the most probable class needs none
        return cases["label"].to_numpy(), predicted, thresholds

    def totals(self, cases: pd.DataFrame, names: Sequence[str]) -> Totals:
        """See `polyclinic.tasks.classification_totals.classification_totals`."""
        return classification_totals(*self._arrays(cases))

    def from_totals(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """See `Task.from_totals`."""
        return {**dict.fromkeys(names, float("nan")), **metrics_of_totals(totals, own_metrics(names))}

    def influence(self, cases: pd.DataFrame, totals: Totals, names: Sequence[str]) -> Floats:
        """See `polyclinic.tasks.classification_totals.influence_on_metrics`."""
        own = own_metrics(names)
        return spread(influence_on_metrics(*self._arrays(cases), totals, own), own, names)

    def margins(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """See `polyclinic.tasks.classification_totals.margins_of_totals`."""
        return {name: margin for name, margin in margins_of_totals(totals).items() if name in names}

    @property
    def over_classes(self) -> frozenset[str]:
        """Of more than two classes."""
        return frozenset({"auc", "ap", "bac", "f1", "sen", "spe"} if self.classes > 2 else ())

    def alike(self, one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """The cases of classes that both have."""
        first, second = set(one["label"]), set(other["label"])
        if first == second:
            return None
        kept = first & second
        return one[one["label"].isin(kept)], other[other["label"].isin(kept)]

    def ranked(self, cases: pd.DataFrame) -> tuple[NDArray[Any], Floats] | None:
        """Labels and scores of two classes."""
        if self.classes != 2:
            return None
        return cases["label"].to_numpy(), cases["score"].to_numpy(np.float64)


def _entered(
    names: Sequence[str], labels: NDArray[Any], predicted: Floats, weights: Floats, thresholds: Floats
) -> dict[str, Floats]:
    if not names:
        return {}
    return entered_values(names, Judged(labels, predicted, decide(predicted, thresholds), weights[:, 0]), weights)


def _all(batches: Iterable[Batch]) -> Batch:
    batch = joined(batches)
    if batch is None:
        raise ValueError("no case to measure")
    return batch
