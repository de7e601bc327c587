"""Losses of survival: what each case adds to the negative log likelihood of the cases that it is trained with."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Ties = Literal["efron", "breslow"]


def cox_losses(scores: Tensor, times: Tensor, events: Tensor, strata: Tensor | None = None, *, ties: Ties) -> Tensor:
    """Each case's part of Cox's negative log partial likelihood, stratified; 0 for a case without the event.

    At the time of an event, those at risk are the cases of its stratum whose time is not less. With d events at one
    time, ``breslow`` gives each the whole sum S of their hazards, exp(score); ``efron`` gives the k-th of them, k = 0
    to d - 1, the sum S - (k / d) D with D the sum over the d.

    Source: Cox 1972, Regression models and life-tables, J R Stat Soc B 34; Breslow 1974, Biometrics 30; Efron 1977,
    J Am Stat Assoc 72.

    Args:
        scores: log hazard of each case, up to a constant of its stratum ``[B]``.
        times: of the event, or until when it was not seen ``[B]``.
        events: 1 where it happened, else 0 ``[B]``.
        strata: whole numbers ``[B]``; None for one stratum.
        ties: what is done with events at the same time.
    """
    strata = torch.zeros_like(times, dtype=torch.int64) if strata is None else strata
    later = times.argsort(descending=True, stable=True)
    order = later[strata[later].argsort(stable=True)]
    score, time, event, stratum = scores[order], times[order], events[order].to(scores.dtype), strata[order]
    begins = _changes(stratum)
    tie, last = _groups(begins | _changes(time))
    at_risk = _log_sums(score, begins)[last][tie]
    if ties == "efron":
        share = (score - at_risk).exp() * event
        total = torch.zeros_like(last, dtype=score.dtype).index_add(0, tie, share)[tie]
        counted = event.cumsum(0)
        count = torch.zeros_like(last, dtype=score.dtype).index_add(0, tie, event)
        before = counted - event - (counted[last] - count)[tie]
        at_risk = at_risk + torch.log1p(-total * before / count[tie].clamp_min(1))
    return (event * (at_risk - score))[order.argsort()]


def hazard_losses(outputs: Tensor, times: Tensor, events: Tensor, edges: Tensor) -> Tensor:
    """Negative log likelihood of each case ``[B]`` in discrete time, with the hazard of each interval by a sigmoid.

    An event in (e_{k-1}, e_k] counts as one of interval k after k - 1 survived; an event after the last edge as K
    survived. A case that was not seen any longer has survived the intervals that ended by then.

    Source: Gensheimer & Narasimhan 2019, A scalable discrete-time survival model for neural networks, PeerJ 7, e6257;
    Kvamme & Borgan 2021, Continuous and discrete-time survival prediction with neural networks, Lifetime Data Anal 27.

    Args:
        outputs: logits of the hazards ``[B, K]``.
        times: ``[B]``.
        events: ``[B]``.
        edges: ends of the intervals, rising ``[K]``; the first one begins at 0.
    """
    happened = events > 0
    ended = torch.where(happened, torch.searchsorted(edges, times), torch.searchsorted(edges, times, right=True))
    place = torch.arange(len(edges), device=outputs.device)
    survived = (place < ended[:, None]).to(outputs.dtype)
    died = ((place == ended[:, None]) & happened[:, None]).to(outputs.dtype)
    return (F.softplus(outputs) * survived + F.softplus(-outputs) * died).sum(1)


def _changes(values: Tensor) -> Tensor:
    """Where a run of equal values begins, bool ``[B]``."""
    first = torch.ones_like(values[:1], dtype=torch.bool)
    return torch.cat([first, values[1:] != values[:-1]])


def _groups(begins: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the group of each case ``[B]``, and position of the last case of each group."""
    group = begins.cumsum(0) - 1
    return group, torch.bincount(group).cumsum(0) - 1


def _log_sums(scores: Tensor, begins: Tensor) -> Tensor:
    """log of the running sum of exp(score) within each stratum ``[B]``: a row of a table for each of them, so that no
    stratum's sum is lost beside that of another."""
    row, last = _groups(begins)
    start = torch.cat([last.new_zeros(1), last[:-1] + 1])
    column = torch.arange(len(scores), device=scores.device) - start[row]
    table = scores.new_full((len(last), int(column.max()) + 1), -torch.inf)
    return table.index_put((row, column), scores).logcumsumexp(1)[row, column]
