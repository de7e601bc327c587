"""Prediction of a number for each case, such as the age from an image of the brain."""

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
from polyclinic.tasks.metrics import ENTERED, REGRESSION, Judged, entered_values, own_metrics
from polyclinic.tasks.regression_metrics import (
    influence_on_metrics,
    join_totals,
    metrics_of_totals,
    regression_metrics,
    regression_totals,
    weighted_regression_metrics,
)

#: Functions of predicted and true numbers, both ``[B]`` in standardised units.
LOSSES: Catalogue[LossFunction] = Catalogue("loss of regression")


@LOSSES.add("mse")
def mse(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Squared error."""
    return F.mse_loss(predicted, wanted, reduction="none")


@LOSSES.add("mae")
def mae(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Absolute error."""
    return F.l1_loss(predicted, wanted, reduction="none")


@LOSSES.add("huber")
def huber(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Half the squared error, and linear beyond one deviation (Huber 1964)."""
    return F.huber_loss(predicted, wanted, reduction="none")


@register
class Regression(Task):
    """One number a case. Outputs are ``[B, 1]`` in standardised units, targets float32 ``[B]`` in their own unit.

    The network learns ``(target - mean) / deviation`` with ``scale``, the mean and deviation over the training cases of
    all training sites together, so that learning rates mean the same whatever the unit.
    """

    name = "regression"
    target = "numbers"
    losses: ClassVar = LOSSES
    metrics: ClassVar[tuple[str, ...]] = REGRESSION
    default_metrics: ClassVar[tuple[str, ...]] = REGRESSION
    sends: ClassVar = {
        "predictions": Shaped("float64", "N", finite=False),  # a model that broke down predicts no numbers
        "labels": Shaped("float64", "N"),
    }
    totalled: ClassVar = {
        "count": Shaped("int64", 1, least=0),
        "undefined": Shaped("int64", 1, least=0),
        "errors": Shaped("float64", 2, least=0),
        "mean": Shaped("float64", 2),
        "products": Shaped("float64", 2, 2),
    }

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each case ``[B]`` in standardised units, by a function of `LOSSES`."""
        mean, deviation = self.scale
        return self._called(outputs[:, 0], (targets.to(outputs.dtype) - mean) / deviation)

    def example(self) -> tuple[Tensor, Tensor]:
        """See `Task.example`."""
        return torch.linspace(-2.0, 2.0, 6)[:, None], torch.linspace(3.0, -1.0, 6).sin()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The predicted numbers ``[B, 1]`` in the unit of the targets."""
        mean, deviation = self.scale
        return outputs.double() * deviation + mean

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """See `Task.score`."""
        batch = joined(batches)
        if batch is None:
            raise ValueError("no case to measure")
        predicted = self.probabilities(batch.found)[:, 0]
        labels, found = batch.targets.numpy(), predicted.numpy()
        if metric in ENTERED:
            value = float(_entered([metric], labels, found, np.ones((len(labels), 1)))[metric][0])
        else:
            value = regression_metrics(labels, found, [metric])[metric]
        return Score(float(self.loss(batch.found, batch.targets).mean()), value)

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """``predictions`` and ``labels``, both float64 ``[N]``."""
        batch = joined(batches)
        if batch is None:
            return {}, dict.fromkeys(("predictions", "labels"), torch.zeros(0, dtype=torch.float64))
        return {}, {"predictions": batch.found[:, 0].contiguous(), "labels": batch.targets.double()}

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """``label`` and ``score``: the true and the predicted number."""
        return {"label": tensors["labels"].numpy(), "score": tensors["predictions"].numpy()}

    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        """See `Task.measure` and `polyclinic.tasks.regression_metrics.weighted_regression_metrics`."""
        labels, scores = cases["label"].to_numpy(np.float64), cases["score"].to_numpy(np.float64)

        def measure(rows: NDArray[np.intp], weights: Floats) -> Floats:
            given = labels[rows], scores[rows], weights
            values = weighted_regression_metrics(*given, own_metrics(names))
            values |= _entered([name for name in names if name in ENTERED], *given)
            return stacked(values, names)

        return measure

    def totals(self, cases: pd.DataFrame, names: Sequence[str]) -> Totals:
        """See `polyclinic.tasks.regression_metrics.regression_totals`."""
        return regression_totals(cases["label"].to_numpy(np.float64), cases["score"].to_numpy(np.float64))

    def joined(self, totals: Sequence[Totals]) -> Totals:
        """See `polyclinic.tasks.regression_metrics.join_totals`."""
        return join_totals(totals)

    def from_totals(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """See `Task.from_totals`."""
        return {**dict.fromkeys(names, float("nan")), **metrics_of_totals(totals, own_metrics(names))}

    def influence(self, cases: pd.DataFrame, totals: Totals, names: Sequence[str]) -> Floats:
        """See `polyclinic.tasks.regression_metrics.influence_on_metrics`."""
        labels, scores = cases["label"].to_numpy(np.float64), cases["score"].to_numpy(np.float64)
        own = own_metrics(names)
        return spread(influence_on_metrics(labels, scores, totals, own), own, names)


def _entered(names: Sequence[str], labels: Floats, scores: Floats, weights: Floats) -> dict[str, Floats]:
    return entered_values(names, Judged(labels, scores, None, weights[:, 0]), weights) if names else {}
