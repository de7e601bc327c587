"""Losses of survival against values worked by hand and against lifelines."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyclinic.tasks import build_task
from polyclinic.tasks.base import TimeGrid
from polyclinic.tasks.survival_losses import Ties, cox_losses, hazard_losses

FEATURES = ["age", "sex", "ph.ecog", "ph.karno"]


def by_hand(scores: Tensor, times: Tensor, events: Tensor, strata: Tensor, ties: Ties) -> float:
    """The negative log partial likelihood, written out as a sum over the times of each stratum."""
    total = 0.0
    for stratum in strata.unique():
        mine = strata == stratum
        for time in times[mine & (events > 0)].unique():
            dying = scores[mine & (times == time) & (events > 0)]
            risk = scores[mine & (times >= time)].exp().sum()
            for k in range(len(dying)):
                less = k / len(dying) * dying.exp().sum() if ties == "efron" else 0.0
                total -= float(dying[k] - torch.log(risk - less))
    return total


@pytest.mark.parametrize(("ties", "expected"), [("breslow", 2 * np.log(7) - np.log(2)), ("efron", np.log(7 * 5.5 / 2))])
def test_two_events_at_one_time(ties: Ties, expected: float) -> None:
    # Hazards 1, 2, 4; the first two have the event at time 3, the third is seen until 5: S = 7, D = 3.
    scores = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log()
    losses = cox_losses(scores, torch.tensor([3.0, 3.0, 5.0]), torch.tensor([1.0, 1.0, 0.0]), ties=ties)
    assert losses.sum().item() == pytest.approx(expected, rel=1e-12)
    assert losses[2] == 0


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), cases=st.integers(1, 40), places=st.integers(1, 5), scale=st.sampled_from([0.1, 9.0])
)
def test_any_cases_in_any_order(ties: Ties, seed: int, cases: int, places: int, scale: float) -> None:
    source = np.random.default_rng(seed)
    scores = torch.from_numpy(source.normal(300, scale, cases))  # far from 0: exp(score) alone would be infinite
    times, events, strata = (
        torch.from_numpy(source.integers(low, high, cases)).float() for low, high in ((1, 9), (0, 2), (0, places))
    )
    found = cox_losses(scores, times, events, strata.long(), ties=ties)
    assert found.sum().item() == pytest.approx(by_hand(scores - 300, times, events, strata, ties), rel=1e-9, abs=1e-9)
    order = torch.from_numpy(source.permutation(cases))
    again = cox_losses(scores[order], 7 * times[order], events[order], 5 - strata[order].long(), ties=ties)
    assert again.sum().item() == pytest.approx(found.sum().item(), rel=1e-9, abs=1e-9)


def test_a_stratum_of_tiny_hazards_is_not_lost_beside_another() -> None:
    times, events = torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    scores = torch.tensor([-60.0, -61.0, 60.0, 59.0])
    losses = cox_losses(scores, times, events, torch.tensor([0, 0, 1, 1]), ties="efron")
    assert losses[[0, 2]].tolist() == pytest.approx([np.log1p(np.exp(-1))] * 2, rel=1e-5)


def test_cases_without_events_teach_nothing() -> None:
    scores = torch.randn(5, requires_grad=True)
    cox_losses(scores, torch.arange(1.0, 6.0), torch.zeros(5), ties="efron").mean().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0] * 5


def lung() -> pd.DataFrame:
    """Rows of lung with all features, standardised; times in months, so that there are ties at an institution."""
    datasets = pytest.importorskip("lifelines.datasets")
    table = datasets.load_lung().dropna(subset=["inst", *FEATURES]).reset_index(drop=True)
    table[FEATURES] = (table[FEATURES] - table[FEATURES].mean()) / table[FEATURES].std()
    table["time"] = np.ceil(table["time"] / 30.4)
    return table[["inst", "time", "status", *FEATURES]]


def fitted(table: pd.DataFrame, **options: Any) -> Any:
    """What lifelines finds, stratified by institution."""
    lifelines = pytest.importorskip("lifelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lifelines.CoxPHFitter().fit(
            table, "time", "status", strata=["inst"], fit_options={"precision": 1e-10}, **options
        )


def likelihood(table: pd.DataFrame, weights: Tensor, ties: Ties) -> Tensor:
    """The stratified negative log partial likelihood of linear scores."""
    columns = {name: torch.tensor(table[name].to_numpy(np.float64)) for name in table}
    scores = torch.stack([columns[name] for name in FEATURES], dim=1) @ weights
    return cox_losses(scores, columns["time"], columns["status"], columns["inst"].long(), ties=ties).sum()


def test_value_gradient_and_curvature_are_those_of_lifelines() -> None:
    table = lung()
    assert table[table["status"] == 1].duplicated(["inst", "time"]).sum() > 20
    found = fitted(table)
    weights = torch.tensor(found.params_.to_numpy(np.float64)).requires_grad_()
    value = likelihood(table, weights, "efron")
    (gradient,) = torch.autograd.grad(value, weights)
    assert -value.item() == pytest.approx(found.log_likelihood_, rel=1e-9)
    # The curvature by differences of the gradient: its inverse is the variance of the coefficients.
    rows = []
    for place in range(len(FEATURES)):
        step = torch.zeros(len(FEATURES), dtype=torch.float64)
        step[place] = 1e-5
        ends = [(weights.detach() + sign * step).requires_grad_() for sign in (1, -1)]
        up, down = (torch.autograd.grad(likelihood(table, end, "efron"), end)[0] for end in ends)
        rows.append((up - down) / 2e-5)
    variance = torch.stack(rows).inverse()
    assert variance.numpy() == pytest.approx(found.variance_matrix_.to_numpy(), rel=1e-5, abs=1e-9)
    assert (variance @ gradient).abs().max().item() < 1e-5  # a further step of Newton's method goes nowhere


def test_efron_and_breslow_differ_where_events_tie() -> None:
    table = lung()
    weights = torch.zeros(len(FEATURES), dtype=torch.float64)
    assert likelihood(table, weights, "breslow") > likelihood(table, weights, "efron")


# Discrete time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "event", "survived", "died"),
    [
        (1.0, 1, 0, 0),  # an event at an edge is in the interval that ends there
        (1.5, 1, 1, 1),
        (3.0, 1, 2, 2),
        (3.5, 1, 3, None),  # after the last edge: survived all
        (1.0, 0, 1, None),  # last seen at an edge: survived until there
        (0.9, 0, 0, None),
        (9.0, 0, 3, None),
    ],
)
def test_discrete_time(time: float, event: int, survived: int, died: int | None) -> None:
    hazards = torch.tensor([[0.1, 0.25, 0.4]], dtype=torch.float64)
    found = hazard_losses(
        hazards.logit(), torch.tensor([time]), torch.tensor([float(event)]), torch.tensor([1.0, 2.0, 3.0])
    )
    chance = float((1 - hazards[0, :survived]).prod()) * (1.0 if died is None else float(hazards[0, died]))
    assert found.item() == pytest.approx(-np.log(chance), rel=1e-12)


def test_discrete_time_without_features_is_the_life_table() -> None:
    # With one interval a unit and whole times, the best constant hazards are events over those at risk.
    times = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0])
    events = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    edges = torch.tensor([1.0, 2.0, 3.0])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = hazard_losses(logits.expand(8, 3), times, events, edges).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits.sigmoid().tolist() == pytest.approx([1 / 8, 2 / 6, 1 / 3], abs=1e-5)


# The task -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cox", "cox_breslow", "discrete_time"])
def test_sites_trained_together_have_the_losses_of_each_alone(loss: str) -> None:
    task = build_task("survival", 2, loss, grid=TimeGrid((2.0,), (1.0, 2.0, 5.0)))
    sizes, width = (7, 4), 7
    outputs = torch.randn(2, width, task.outputs)
    targets = torch.stack([torch.randint(1, 6, (2 * width,)).float(), torch.randint(0, 2, (2 * width,)).float()], dim=1)
    real = torch.arange(width) < torch.tensor(sizes)[:, None]
    together = task.stacked_loss(outputs, targets, real)
    for site, size in enumerate(sizes):
        alone = task.loss(outputs[site, :size], targets[site * width : site * width + size])
        assert torch.allclose(together[site, :size], alone, atol=1e-6)


def test_a_pool_keeps_the_strata_of_its_sites() -> None:
    task = build_task("survival", 2)
    outputs = torch.randn(9, 1)
    targets = torch.stack([torch.arange(1.0, 10.0), torch.ones(9), (torch.arange(9) % 3).float()], dim=1)
    expected = sum(
        float(task.loss(outputs[one], targets[one][:, :2]).sum()) for one in (targets[:, 2] == s for s in range(3))
    )
    assert float(task.loss(outputs, targets).sum()) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss(outputs, targets[:, :2]).sum()) != pytest.approx(expected, rel=1e-2)
