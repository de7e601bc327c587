"""Survival: how early an event happens to each case, some of which were not seen until it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
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
    TimeGrid,
    joined,
    kept_digits,
    register,
    stacked,
)
from polyclinic.tasks.metrics import SURVIVAL, class_metric
from polyclinic.tasks.survival_losses import cox_losses, hazard_losses
from polyclinic.tasks.survival_metrics import Predicted, survival_metrics, time_text, weighted_survival_metrics

#: The loss with a hazard for each interval of time.
DISCRETE = "discrete_time"
#: exp of more than this is beyond 64 bits.
_LARGEST = 700.0


#: Functions of log hazards, times and events, all ``[B]``, and the stratum of each case ``[B]`` or None: cases are
#: compared within strata only. That of ``discrete_time`` is given logits ``[B, K]`` and the ends of the intervals.
LOSSES: Catalogue[LossFunction] = Catalogue("loss of survival")


@LOSSES.add("cox")
def cox(hazards: Tensor, times: Tensor, events: Tensor, strata: Tensor | None) -> Tensor:
    """Cox's partial likelihood, with Efron's way of ties."""
    return cox_losses(hazards, times, events, strata, ties="efron")


@LOSSES.add("cox_breslow")
def cox_breslow(hazards: Tensor, times: Tensor, events: Tensor, strata: Tensor | None) -> Tensor:
    """Cox's partial likelihood, with Breslow's way of ties."""
    return cox_losses(hazards, times, events, strata, ties="breslow")


LOSSES.add(DISCRETE)(hazard_losses)


@register
class Survival(Task):
    """Time of an event. Targets are float32 ``[B, 2]``: the time of the event or until when a case was not seen, and 1
    or 0 for whether it happened; cases of several sites in one place have the number of their site besides, ``[B, 3]``.

    With ``cox`` and ``cox_breslow`` outputs are log hazards ``[B, 1]`` up to a constant. Cases are compared with cases
    of their own site only, so each site has a baseline hazard of its own, and the losses of the sites, weighted by
    cases, add up to Cox's partial likelihood stratified by site. For survival at ``grid.times`` there is one baseline
    hazard, constant within each interval of ``grid.edges``: events over time at risk weighted by exp(score), summed
    over the training cases of the sites that trained the model (the maximum of the likelihood; Friedman 1982, Ann Stat
    10). It is one for all sites, so that it holds for hospitals that did not train, and small sites have one, too.
    Beyond the time that anybody was seen it goes on as it was on average.

    With ``discrete_time`` outputs are logits of the hazard of each interval ``[B, K]``, and nothing else is needed.
    """

    name = "survival"
    target = "times"
    losses: ClassVar = LOSSES
    metrics: ClassVar[tuple[str, ...]] = SURVIVAL
    default_metrics: ClassVar[tuple[str, ...]] = ("concordance",)
    sends: ClassVar = {
        "risks": Shaped("float64", "N", finite=False),  # of a model that broke down they are no numbers
        "survival": Shaped("float64", "N", "K", finite=False),
        "times": Shaped("float64", "N", least=0.0),
        "events": Shaped("int64", "N", least=0.0),
    }
    summed = Shaped("float64", 2, "K", finite=False)

    @property
    def truth(self) -> tuple[str, ...]:
        """Time and event."""
        return ("time", "event")

    @property
    def discrete(self) -> bool:
        """Whether time is cut into intervals with a hazard each."""
        return self.loss_name == DISCRETE

    @property
    def outputs(self) -> int:
        """One log hazard, or one logit an interval."""
        return len(self.grid.edges) if self.discrete else 1

    @property
    def compares_cases(self) -> bool:
        """In Cox's likelihood a case with the event is compared with those at risk."""
        return not self.discrete

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `cox_losses` and `hazard_losses`; in Cox's, those at risk are cases of the batch and of the same site."""
        return self._loss(outputs, targets, targets[:, 2].long() if targets.shape[1] > 2 else None)

    def _loss(self, outputs: Tensor, targets: Tensor, strata: Tensor | None) -> Tensor:
        times, events, outputs = targets[:, 0].contiguous(), targets[:, 1], outputs.float()
        if self.discrete:
            return self._called(outputs, times, events, times.new_tensor(self.grid.edges))
        return self._called(outputs[:, 0], times, events, strata)

    def stacked_loss(self, outputs: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """Each site's cases are compared with each other; what fills up is in a place of its own."""
        site = torch.arange(len(real), device=real.device)[:, None].expand(real.shape)
        strata = torch.where(real, site, -1).flatten()
        return self._loss(outputs.flatten(0, 1), targets, strata).view(real.shape)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Log hazards ``[B, 1]``, or the probability that the event comes after each edge ``[B, K]``."""
        found = outputs.double()
        return (-F.softplus(found).cumsum(1)).exp() if self.discrete else found

    @classmethod
    def metrics_by_default(cls, grid: TimeGrid) -> list[str]:
        """Those that the times allow."""
        return ["concordance", *(["brier"] if grid.times else []), *(["ibs"] if len(grid.times) > 1 else [])]

    # At a site ----------------------------------------------------------------------------------------------------

    @classmethod
    def validation_metric(cls, primary: str) -> str:
        """Concordance, whatever is reported: it needs nothing but the model."""
        return "concordance"

    def score(self, batches: Iterable[Batch], metric: str) -> Score:
        """See `Task.score`; pairs are within sites."""
        batch = joined(batches)
        if batch is None:
            raise ValueError("no case to measure")
        times, events = _seen(batch.targets)
        sites = batch.targets[:, 2] if batch.targets.shape[1] > 2 else torch.zeros(len(times))
        risks = self._risks(self.probabilities(batch.found))
        cases = Predicted(times, events, risks.numpy(), sites.long().numpy(), {})
        value = survival_metrics(cases, [metric])[metric]
        return Score(float(self.loss(batch.found, batch.targets).mean()), value)

    @property
    def needs_sums(self) -> bool:
        """The baseline hazard, where survival is asked for."""
        return not self.discrete and bool(self.grid.times)

    def sums(self, batches: Iterable[Batch]) -> Tensor:
        """float64 ``[2, K]``: events in each interval, and time at risk in it weighted by exp(score)."""
        batch, edges = joined(batches), np.array(self.grid.edges)
        if batch is None:
            return torch.zeros(2, len(edges), dtype=torch.float64)
        times, events = _seen(batch.targets)
        starts = np.concatenate([[0.0], edges[:-1]])
        place = np.searchsorted(edges, times)
        counts = np.bincount(place[events > 0], minlength=len(edges) + 1)[: len(edges)]
        exposed = np.clip(times[:, None] - starts, 0.0, edges - starts)
        return torch.from_numpy(np.stack([counts, _hazards(batch.found[:, 0].numpy()) @ exposed]))

    def completion(self, sums: Tensor) -> list[float]:
        """Cumulative baseline hazard at each of the times; nothing where there is none, of a model that broke down.

        Where nobody was at risk any longer, it goes on as it was on average.
        """
        events, exposed = sums.numpy()
        if not np.isfinite(sums.numpy()).all() or exposed.sum() <= 0:
            return []
        edges = np.concatenate([[0.0], self.grid.edges])
        hazard = np.full(len(events), events.sum() / exposed.sum())
        np.divide(events, exposed, out=hazard, where=exposed > 0)
        reached = np.concatenate([[0.0], np.cumsum(hazard * np.diff(edges))])
        return [float(one) for one in np.interp(self.grid.times, edges, reached)]

    def rows(self, batches: Iterable[Batch], threshold: float, asked: Asked) -> Sent:
        """``risks``, ``times`` and ``events`` ``[N]``, and ``survival`` at the times of the grid ``[N, K]``."""
        batch = joined(batches)
        if batch is None:
            numbers = torch.zeros(0, dtype=torch.float64)
            nobody = torch.zeros(0, len(self.grid.times), dtype=torch.float64)
            return {}, {"risks": numbers, "survival": nobody, "times": numbers, "events": numbers.long()}
        times, events = _seen(batch.targets)
        return {}, {
            "risks": self._risks(batch.found).contiguous(),
            "survival": torch.from_numpy(self._survival(batch.found.numpy(), asked.completion)),
            "times": torch.from_numpy(times),
            "events": torch.from_numpy(events).long(),
        }

    def misfit(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], asked: Asked) -> str:
        """Events are 0 and 1, and survival is that at the times that were asked for."""
        if bool((tensors["events"] > 1).any()):
            return "events: got a number above 1, expected 0 or 1"
        count = tensors["survival"].shape[1]
        return "" if count == len(self.grid.times) else f"survival: got {count} times, expected {len(self.grid.times)}"

    def _risks(self, predicted: Tensor) -> Tensor:
        """Log hazard ``[N]``; in discrete time the share of the time up to the last edge that is expected to be lost.

        The latter is the mean over that time of the probability that the event has happened, by trapezoids.
        """
        if not self.discrete:
            return predicted[:, 0]
        edges = np.concatenate([[0.0], self.grid.edges])
        whole = np.concatenate([np.ones((len(predicted), 1)), predicted.numpy()], axis=1)
        return torch.from_numpy(1 - (whole[:, 1:] + whole[:, :-1]) / 2 @ np.diff(edges) / edges[-1])

    def _survival(self, predicted: Floats, completion: Sequence[float]) -> Floats:
        """Probability that the event comes after each of the times ``[N, K]``, NaN where it is not known."""
        if not self.discrete:
            reached = np.full(len(self.grid.times), np.nan)
            reached[: len(completion)] = completion
            return np.asarray(np.exp(-_hazards(predicted) * reached))
        # Within an interval the hazard is constant, so that the logarithm of survival is a straight line.
        edges = np.concatenate([[0.0], self.grid.edges])
        logarithm = np.log(np.concatenate([np.ones((len(predicted), 1)), predicted.clip(min=1e-300)], axis=1))
        found = [np.exp([np.interp(time, edges, row) for time in self.grid.times]) for row in logarithm]
        return np.array(found).reshape(len(predicted), len(self.grid.times))

    # At the coordinator -------------------------------------------------------------------------------------------

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """``time``, ``event``, ``score`` (higher where the event is expected earlier), ``survival[365]`` ..."""
        found = {"time": tensors["times"], "event": tensors["events"], "score": tensors["risks"]}
        survival = zip(self.grid.times, tensors["survival"].unbind(1), strict=True)
        found |= {class_metric("survival", time_text(time)): column for time, column in survival}
        return {name: column.numpy() for name, column in found.items()}

    def result_metrics(self, names: Sequence[str], classes: Sequence[str]) -> list[str]:
        """With several times also the Brier score at each of them."""
        several = self.grid.times if "brier" in names and len(self.grid.times) > 1 else ()
        return [*names, *(class_metric("brier", time_text(time)) for time in several)]

    def known(self, names: Iterable[str], cases: pd.DataFrame) -> list[str]:
        """Those that the times of the predictions allow."""
        times = _times(cases)
        there = {*SURVIVAL, *(class_metric("brier", time_text(time)) for time in times)}
        there -= set() if times else {"brier", "ibs"}
        return [name for name in names if name in there]

    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        """See `Task.measure` and `polyclinic.tasks.survival_metrics.weighted_survival_metrics`."""
        survival = {time: cases[column].to_numpy(np.float64) for time, column in _times(cases).items()}
        times, events, risks = (cases[name].to_numpy(np.float64) for name in ("time", "event", "score"))
        everything = Predicted(times, events, risks, pd.factorize(cases["site"])[0], survival)

        def measure(rows: NDArray[np.intp], weights: Floats) -> Floats:
            return stacked(weighted_survival_metrics(everything.of(rows), weights, names), names)

        return measure

    def bearers(self, cases: pd.DataFrame, metric: str) -> NDArray[np.bool_] | None:
        """Pairs need an event."""
        return cases["event"].to_numpy() == 1 if metric in ("concordance", "uno") else None


def _times(cases: pd.DataFrame) -> dict[float, str]:
    """Time -> the column with the predicted survival at it, in the order of the times."""
    found = {float(name[9:-1]): name for name in map(str, cases.columns) if name.startswith("survival[")}
    return dict(sorted(found.items()))


def _seen(targets: Tensor) -> tuple[Floats, Floats]:
    """Times and events ``[B]``. Times are those of the table again: 365.1, and not 365.100006 as float32 has it."""
    times = np.array([kept_digits(time) for time in targets[:, 0].tolist()], dtype=np.float64)
    return times, targets[:, 1].double().numpy()


def _hazards(scores: ArrayLike) -> Floats:
    """exp of log hazards, as far as there is one."""
    found: Floats = np.exp(np.minimum(scores, _LARGEST))
    return found
