"""Several labels of each case at once, any of which may be missing: one network with a head for each."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.options import Catalogue
from polyclinic.shapes import Shaped
from polyclinic.tasks.base import (
    NO_TIMES,
    Asked,
    Batch,
    Floats,
    Head,
    LossFunction,
    Measure,
    Score,
    Sent,
    Task,
    TimeGrid,
    Totals,
    joined,
    register,
)
from polyclinic.tasks.classification import LOSSES as LOSSES_OF_ONE
from polyclinic.tasks.classification import Classification
from polyclinic.tasks.classification_totals import margins_of_totals, metrics_of_totals
from polyclinic.tasks.metrics import CALIBRATION_BINS, CLASSIFICATION, class_metric, split_metric, threshold_grid

#: Functions of the outputs of a head ``[B, C]`` and its labels ``[B]``, int64; those of cases without one are left out.
LOSSES: Catalogue[LossFunction] = Catalogue("loss of several labels")
for _name in ("cross_entropy", "focal", "binary_cross_entropy"):
    LOSSES.add(_name)(LOSSES_OF_ONE[_name])


class _OneLabel(Classification):
    """What a head predicts."""

    losses: ClassVar = LOSSES


@register
class MultiLabel(Task):
    """Several labels a case, each of two or more classes, of which any may be missing.

    Each label has a head: outputs ``[B, sum of the heads' outputs]`` are those of one `Classification` after another.
    Targets are int64 ``[B, K]``: classes are numbered through all heads, and -1 is a label that is missing.

    The loss of a case is the mean over the labels that it has, weighted by the heads' ``weight``: Σ w_k l_k / Σ w_k
    over these. So a site with labels of one head trains as it would for that label alone. A case without any has a loss
    of 0. With one head, of which all cases have a label, it is `Classification`.

    A metric is that of each head over the cases with a label of it, ``auc[effusion]``, and ``auc`` their mean over the
    heads for which it is defined there: that depends on the labels alone, so it is the same for all methods.
    """

    name = "multi_label"
    target = "findings"
    losses: ClassVar = LOSSES
    metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION
    default_metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION
    has_accuracy = True
    sends: ClassVar = {
        "probabilities": Shaped("float64", "N", "C", finite=False),  # of a model that broke down they are no numbers
        "labels": Shaped("int64", "N", "heads", least=-1),
        "thresholds": Shaped("float64", "heads", least=0, most=1),
    }
    #: Those of `Classification` for each head, filled up with zeros to the head with most classes.
    totalled: ClassVar = {
        "confusions": Shaped("int64", "heads", "widest", "widest", least=0),
        "grids": Shaped("int64", "heads", "curves", 2, len(threshold_grid()) + 1, least=0),
        "squares": Shaped("float64", "heads", 1),
        "gaps": Shaped("float64", "heads", CALIBRATION_BINS),
        "undefined": Shaped("int64", "heads", 1, least=0),
    }
    counts = Shaped("int64", "heads", 2, len(threshold_grid()) + 1)

    def __init__(
        self, classes: int, loss: str, scale: tuple[float, float] = (0.0, 1.0), grid: TimeGrid = NO_TIMES,
        options: Mapping[str, Any] | None = None, heads: Sequence[Head] = (),
    ) -> None:  # fmt: skip
        super().__init__(classes, loss, scale, grid, options, heads or [Head("label", classes)])
        self.each = [_OneLabel(head.classes, loss, options=options) for head in self.heads]
        names = ["", *(head.name for head in self.heads)]
        near = Classification.approximate
        self.approximate = frozenset(class_metric(one, name) if name else one for one in near for name in names)
        self._weights = [head.weight / sum(one.weight for one in self.heads) for head in self.heads]

    @property
    def truth(self) -> tuple[str, ...]:
        """The label of each head."""
        return tuple(class_metric("label", head.name) for head in self.heads)

    @property
    def outputs(self) -> int:
        """Those of all heads."""
        return sum(own.outputs for own in self.each)

    def of_heads(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each head, its label within the head's own classes ``[B]``, and which cases have it, bool ``[B]``."""
        first = 0
        for place, head in enumerate(self.heads):
            own = targets[:, place] - first
            yield own, own >= 0
            first += head.classes

    def _outputs(self, outputs: Tensor) -> Sequence[Tensor]:
        return torch.split(outputs, [own.outputs for own in self.each], dim=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of the losses ``[B]`` of the labels that each case has, weighted by head."""
        total, weights = outputs.new_zeros(len(outputs)), outputs.new_zeros(len(outputs))
        parts = zip(self.each, self._weights, self._outputs(outputs), self.of_heads(targets), strict=True)
        for task, weight, own, (labels, known) in parts:
            losses = task.loss(own, labels.clamp_min(0))
            total = total + torch.where(known, losses, 0.0) * weight
            weights = weights + known * weight
        return total / torch.where(weights > 0, weights, 1.0)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities of the classes of each head ``[B, C]``, one head after another; see `Classification`."""
        parts = zip(self.each, self._outputs(outputs), strict=True)
        return torch.cat([task.probabilities(own) for task, own in parts], dim=1)

    # At a site ----------------------------------------------------------------------------------------------------

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """Mean loss, and the mean of a metric over the heads for which it is defined."""
        batch = _all(batches)
        values = [one.score([own], metric).value for one, own in self._parts(batch) if len(own.targets.unique()) > 1]
        return Score(self._mean_loss([batch]), _mean(values))

    def accuracy(self, batches: Iterable[Batch]) -> Score:
        """Mean loss, and the share of right classes, as a mean over the heads that have labels."""
        batch = _all(batches)
        values = [one.accuracy([own]).value for one, own in self._parts(batch)]
        return Score(self._mean_loss([batch]), _mean(values))

    def _parts(self, batch: Batch) -> Iterator[tuple[Classification, Batch]]:
        """For each head that has labels, the outputs for it of the cases that have one."""
        heads = zip(self.each, self._outputs(batch.found), self.of_heads(batch.targets), strict=True)
        for task, own, (labels, known) in heads:
            if known.any():
                yield task, Batch(own[known], labels[known])

    def evidence(self, batches: Iterable[Batch]) -> Tensor:
        """int64 ``[K, 2, T + 1]``: of each head what `Classification` sends, zeros for more classes than two."""
        found, batch = torch.zeros(len(self.heads), 2, len(threshold_grid()) + 1, dtype=torch.int64), joined(batches)
        if batch is None:
            return found
        predicted = batch.found.split([head.classes for head in self.heads], dim=1)
        for place, (labels, known) in enumerate(self.of_heads(batch.targets)):
            if self.each[place].has_threshold:
                found[place] = self.each[place].evidence([Batch(predicted[place][known], labels[known])])
        return found

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """``probabilities`` float64 ``[N, C]``, ``labels`` int64 ``[N, K]`` and ``thresholds`` float64 ``[K]``: those
        that complete the predictions, or the one for all heads."""
        thresholds = list(asked.completion) or [threshold] * len(self.heads)
        if len(thresholds) != len(self.heads):
            raise ValueError(f"got {len(thresholds)} thresholds for {len(self.heads)} labels")
        batch = joined(batches)
        if batch is None:
            batch = Batch(
                torch.zeros(0, self.classes, dtype=torch.float64), torch.zeros(0, len(self.heads), dtype=torch.int64)
            )
        numbers = torch.tensor(thresholds, dtype=torch.float64)
        return {}, {"probabilities": batch.found, "labels": batch.targets, "thresholds": numbers}

    def misfit(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], asked: Asked) -> str:
        """Labels are classes of their heads, or missing."""
        targets = tensors["labels"]
        if targets.shape[1] != len(self.heads):
            return f"labels: got {targets.shape[1]} labels of a case, expected {len(self.heads)}"
        for head, place, (labels, known) in zip(
            self.heads, range(len(self.heads)), self.of_heads(targets), strict=True
        ):
            if bool(((labels >= head.classes) | (~known & (targets[:, place] >= 0))).any()):
                return f"labels: got a class that is none of {head.name}"
        return ""

    # At the coordinator -------------------------------------------------------------------------------------------

    @property
    def has_threshold(self) -> bool:
        """Of heads of two classes."""
        return any(task.has_threshold for task in self.each)

    def choose_thresholds(self, evidence: Tensor) -> list[float]:
        """Of each head the highest balanced accuracy; 0.5 where it has more than two classes."""
        parts = zip(self.each, evidence, strict=True)
        return [task.choose_threshold(own) if task.has_threshold else 0.5 for task, own in parts]

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """The columns of `Classification` for each head: ``label[effusion]``, empty where it is missing,
        ``score[effusion]``, ``threshold[effusion]``; of more than two classes ``score_0[grade]`` ..., too."""
        found: dict[str, Any] = {}
        predicted = tensors["probabilities"].split([head.classes for head in self.heads], dim=1)
        for place, (labels, known) in enumerate(self.of_heads(tensors["labels"])):
            sent = {"probabilities": predicted[place], "labels": labels}
            own = self.each[place].columns({}, sent, float(tensors["thresholds"][place]))
            own["label"] = pd.array(labels.masked_fill(~known, 0).numpy(), dtype="Int64")
            own["label"][~known.numpy()] = pd.NA
            found |= {class_metric(name, self.heads[place].name): column for name, column in own.items()}
        return found

    def decided(self, tensors: Mapping[str, Tensor], threshold: float) -> Tensor:
        """The predicted class of each head ``[N, K]``, numbered through all heads."""
        found, first = [], 0
        predicted = tensors["probabilities"].split([head.classes for head in self.heads], dim=1)
        for task, own, limit in zip(self.each, predicted, tensors["thresholds"].tolist(), strict=True):
            found.append(task.decided({"probabilities": own}, limit) + first)
            first += task.classes
        return torch.stack(found, dim=1)

    def result_metrics(self, names: Sequence[str], classes: Sequence[str]) -> list[str]:
        """With several heads also each metric of each head."""
        several = self.heads if len(self.heads) > 1 else ()
        return [*names, *(class_metric(metric, head.name) for metric in names for head in several)]

    def known(self, names: Iterable[str], cases: pd.DataFrame) -> list[str]:
        """Those of labels that the predictions have."""
        heads, valid = {"", *_heads(cases)}, self.all_metrics()
        return [name for name in names if split_metric(name)[0] in valid and split_metric(name)[1] in heads]

    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        """See `Task.measure`; each head by the cases that have its label, as `Classification` does."""
        heads = {name: _HeadCases(cases, name, classes, names) for name, classes in _heads(cases).items()}

        def measure(rows: NDArray[np.intp], weights: Floats) -> Floats:
            found = {name: head.measured(rows, weights) for name, head in heads.items()}
            means = [values for values in found.values() if values is not None]
            result = np.full((len(names), weights.shape[1]), np.nan)
            for place, name in enumerate(names):
                metric, of = split_metric(name)
                if of:
                    own = found[of]
                    result[place] = np.nan if own is None else own[metric][1:]
                    continue
                # The first set of weights counts each case once: it tells for which heads the metric is defined.
                there = [own[metric][1:] for own in means if np.isfinite(own[metric][0]) or own["broken"][0]]
                if there:
                    result[place] = np.mean(there, axis=0)
            return result

        return measure

    def totals(self, cases: pd.DataFrame, names: Sequence[str]) -> Totals:
        """See `polyclinic.tasks.classification_totals.classification_totals`; of each head by its cases."""
        heads = _heads(cases)
        each = [_HeadCases(cases, name, classes, ()).totals() for name, classes in heads.items()]
        widest = max(heads.values())
        found = {
            "confusions": np.zeros((len(heads), widest, widest), dtype=np.int64),
            "grids": np.zeros((len(heads), _curves(widest), 2, len(threshold_grid()) + 1), dtype=np.int64),
        }
        for place, own in enumerate(each):
            classes, curves = len(own["confusion"]), len(own["grid"])
            found["confusions"][place, :classes, :classes] = own["confusion"]
            found["grids"][place, :curves] = own["grid"]
        return found | {name: np.stack([own[name] for own in each]) for name in ("squares", "gaps", "undefined")}

    def from_totals(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """See `Task.from_totals`; a mean is over the heads for which the metric is defined."""
        parts = _of_heads(totals, [head.classes for head in self.heads])
        each = [_metrics_of_head(own, _metrics(names)) for own in parts]
        broken = totals["undefined"][:, 0] > 0
        found = dict[str, float]()
        for name in names:
            metric, of = split_metric(name)
            values = np.array([own[metric] for own in each])
            if of:
                found[name] = float(values[[head.name for head in self.heads].index(of)])
            else:
                there = values[np.isfinite(values) | broken]
                found[name] = float(np.mean(there)) if len(there) else float("nan")
        return found

    def influence(self, cases: pd.DataFrame, totals: Totals, names: Sequence[str]) -> Floats:
        """See `polyclinic.tasks.classification_totals.influence_on_metrics`; 0 of cases without the label."""
        heads, metrics = _heads(cases), _metrics(names)
        each = {
            name: _HeadCases(cases, name, heads[name], ()).influence(own, metrics)
            for name, own in zip(heads, _of_heads(totals, list(heads.values())), strict=True)
        }
        broken = dict(zip(heads, totals["undefined"][:, 0] > 0, strict=True))
        found = np.full((len(names), len(cases)), np.nan)
        for row, name in enumerate(names):
            metric, of = split_metric(name)
            place = metrics.index(metric)
            known = [own[place] for one, own in each.items() if np.isfinite(own[place]).all() or broken[one]]
            if of:
                found[row] = each[of][place]
            elif known:
                found[row] = np.mean(known, axis=0)
        return found

    def margins(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """See `polyclinic.tasks.classification_totals.margins_of_totals`."""
        each = [margins_of_totals(own) for own in _of_heads(totals, [head.classes for head in self.heads])]
        found = {class_metric(metric, head.name): margin
                 for head, own in zip(self.heads, each, strict=True) for metric, margin in own.items()}  # fmt: skip
        for metric in Classification.approximate:
            known = [own[metric] for own in each if metric in own]
            if known:
                found[metric] = float(np.mean(known))
        return {name: margin for name, margin in found.items() if name in names}

    def bearers(self, cases: pd.DataFrame, metric: str) -> NDArray[np.bool_] | None:
        """The cases with the label that a metric is of."""
        _, of = split_metric(metric)
        return np.asarray(cases[class_metric("label", of)].notna(), dtype=np.bool_) if of else None

    @property
    def over_classes(self) -> Container[str]:
        """All: which labels, and which of their classes, cases have decides what a mean is of."""
        return _Everything()

    def alike(self, one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """All cases, with the labels of which both have the same two classes or more; of these the classes of both."""
        columns = [class_metric("label", name) for name in _heads(one)]
        there = [[_classes(side[column]) for column in columns] for side in (one, other)]
        if there[0] == there[1]:
            return None
        both = [a & b if len(a & b) > 1 else set() for a, b in zip(*there, strict=True)]

        def kept(side: pd.DataFrame) -> pd.DataFrame:
            labels = {name: side[name].where(side[name].isin(own)) for name, own in zip(columns, both, strict=True)}
            return side.assign(**labels)

        return kept(one), kept(other)


class _Everything:
    """Has everything in it."""

    def __contains__(self, name: object) -> bool:
        return True


def _classes(labels: pd.Series[Any]) -> set[Any]:
    """Those that there are, if they are two or more: nothing is scored of one."""
    found = set(labels.dropna())
    return found if len(found) > 1 else set()


class _HeadCases:
    """The predictions of one head, of the cases that have its label."""

    def __init__(self, cases: pd.DataFrame, name: str, classes: int, names: Sequence[str]) -> None:
        known = cases[class_metric("label", name)].notna().to_numpy()
        columns = ["label", "score", "threshold", *(f"score_{one}" for one in range(classes) if classes > 2)]
        own = cases.loc[known, [class_metric(column, name) for column in columns]].set_axis(columns, axis=1)
        own["label"] = own["label"].astype(np.int64)
        self._place = np.full(len(cases), -1)
        self._place[known] = np.arange(known.sum())
        self._broken = ~np.isfinite(own["score"].to_numpy(np.float64))
        self.metrics = _metrics(names)
        self._task, self._own, self._known = Classification(classes, next(iter(LOSSES))), own, known
        self._measure = self._task.measure(own, self.metrics)

    def totals(self) -> Totals:
        """Of these cases."""
        return self._task.totals(self._own, ())

    def influence(self, totals: Totals, metrics: Sequence[str]) -> Floats:
        """Of all cases ``[M, n]``: 0 of those without the label; NaN where a metric is not defined."""
        found = np.zeros((len(metrics), len(self._known)))
        own = self._task.influence(self._own, totals, metrics)
        found[:, self._known] = own
        defined = _metrics_of_head(totals, metrics)
        found[[not np.isfinite(defined[metric]) for metric in metrics]] = np.nan
        return found

    def measured(self, rows: NDArray[np.intp], weights: Floats) -> dict[str, Floats] | None:
        """Metrics ``[1 + B]`` with each case counted once, and under the weights ``[n, B]``; ``broken`` is 1 where the
        model gave no numbers. None where all labels are of one class: what is defined then (accuracy, an F1 of 0) must
        not stand beside the values of other heads."""
        there = self._place[rows] >= 0
        own = self._place[rows][there]
        if self._own["label"].iloc[own].nunique() < 2 and not self._broken[own].any():
            return None
        kept = np.column_stack([np.ones(there.sum()), weights[there]])
        values = self._measure(own, kept)
        broken = np.full(kept.shape[1], float(self._broken[own].any()))
        return {**dict(zip(self.metrics, values, strict=True)), "broken": broken}


def _heads(cases: pd.DataFrame) -> dict[str, int]:
    """Label -> number of its classes, from the columns of predictions."""
    columns = list(map(str, cases.columns))
    names = [split_metric(column)[1] for column in columns if column.startswith("label[")]
    scored = [split_metric(column)[1] for column in columns if column.startswith("score_")]
    return {name: scored.count(name) or 2 for name in names}


def _metrics(names: Sequence[str]) -> list[str]:
    """The metrics of which ``names`` are those of heads, or means."""
    return list(dict.fromkeys(split_metric(name)[0] for name in names))


def _curves(classes: int) -> int:
    """How many curves there are of so many classes."""
    return 1 if classes == 2 else classes


def _of_heads(totals: Totals, classes: Sequence[int]) -> list[Totals]:
    """The totals of each head, without what fills up."""
    return [
        {
            "confusion": totals["confusions"][place, :count, :count],
            "grid": totals["grids"][place, : _curves(count)],
            **{name: totals[name][place] for name in ("squares", "gaps", "undefined")},
        }
        for place, count in enumerate(classes)
    ]


def _metrics_of_head(totals: Totals, metrics: Sequence[str]) -> dict[str, float]:
    """See `polyclinic.tasks.classification_totals.metrics_of_totals`; NaN where all labels are of one class."""
    if np.count_nonzero(totals["confusion"].sum(axis=1)) < 2:
        return dict.fromkeys(metrics, float("nan"))
    return metrics_of_totals(totals, metrics)


def _all(batches: Iterable[Batch]) -> Batch:
    batch = joined(batches)
    if batch is None:
        raise ValueError("no case to measure")
    return batch


def _mean(values: Sequence[float]) -> float:
    """Mean of those that are defined."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")
