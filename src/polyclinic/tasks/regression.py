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

from polyclinic.shapes import Shaped
from polyclinic.tasks.base import Asked, Batch, Floats, Measure, Score, Sent, Task, Totals, joined, register, stacked
from polyclinic.tasks.metrics import REGRESSION
from polyclinic.tasks.regression_metrics import (
    influence_on_metrics,
    join_totals,
    metrics_of_totals,
    regression_metrics,
    regression_totals,
    weighted_regression_metrics,
)


@register
class Regression(Task):
    """One number a case. Outputs are ``[B, 1]`` in standardised units, targets float32 ``[B]`` in their own unit.

    The network learns ``(target - mean) / deviation`` with ``scale``, the mean and deviation over the training cases of
    all training sites together, so that learning rates mean the same whatever the unit.
    """

    name = "regression"
    target = "numbers"
    losses: ClassVar[tuple[str, ...]] = ("mse", "mae", "huber")
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
        """Loss of each case ``[B]`` in standardised units; ``huber`` is linear beyond one deviation (Huber 1964)."""
        mean, deviation = self.scale
        wanted = (targets.to(outputs.dtype) - mean) / deviation
        if self.loss_name == "mae":
            return F.l1_loss(outputs[:, 0], wanted, reduction="none")
        measure = F.huber_loss if self.loss_name == "huber" else F.mse_loss
        return measure(outputs[:, 0], wanted, reduction="none")

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
        value = regression_metrics(batch.targets.numpy(), predicted.numpy(), [metric])[metric]
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
            values = weighted_regression_metrics(labels[rows], scores[rows], weights, names)
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
        return metrics_of_totals(totals, names)

    def influence(self, cases: pd.DataFrame, totals: Totals, names: Sequence[str]) -> Floats:
        """See `polyclinic.tasks.regression_metrics.influence_on_metrics`."""
        labels, scores = cases["label"].to_numpy(np.float64), cases["score"].to_numpy(np.float64)
        return influence_on_metrics(labels, scores, totals, names)
