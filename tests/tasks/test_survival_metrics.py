"""Measures of survival against values worked by hand, against lifelines, and under weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyclinic.errors import StudyError
from polyclinic.tasks.survival_curves import LogRank, added, kaplan_meier, log_rank
from polyclinic.tasks.survival_losses import cox_losses
from polyclinic.tasks.survival_metrics import Predicted, survival_metrics, weighted_survival_metrics

Floats = NDArray[np.float64]


def cases(times: Any, events: Any, risks: Any, sites: Any = 0, survival: dict[float, Any] | None = None) -> Predicted:
    times, events, risks = (np.asarray(one, dtype=np.float64) for one in (times, events, risks))
    known = {time: np.asarray(found, dtype=np.float64) for time, found in (survival or {}).items()}
    return Predicted(times, events, risks, np.broadcast_to(np.asarray(sites), times.shape), known)


def made_up(seed: int, count: int, *, places: int = 1, values: int = 9) -> Predicted:
    """Cases with many ties in times and risks."""
    source = np.random.default_rng(seed)
    times, risks = source.integers(1, values, count), source.integers(0, 5, count)
    survival = {time: source.uniform(size=count) for time in (2.0, 4.0)}
    return cases(times, source.integers(0, 2, count), risks, source.integers(0, places, count), survival)


# Concordance ----------------------------------------------------------------------------------------------------------


def test_concordance_by_hand() -> None:
    # Event at 2, end of observation at 2, event at 3, end at 4. Pairs: (1,2) at one time, an event first; (1,3), (1,4),
    # (3,4). Risks 5, 5, 7, 1: half, wrong, right, right.
    one = cases([2, 2, 3, 4], [1, 0, 1, 0], [5, 5, 7, 1])
    assert survival_metrics(one, ["concordance"]) == {"concordance": 2.5 / 4}


def test_two_events_at_one_time_are_no_pair() -> None:
    assert np.isnan(survival_metrics(cases([2, 2], [1, 1], [5, 7]), ["concordance"])["concordance"])


def test_pairs_are_within_sites() -> None:
    apart = cases([1, 2, 10, 20], [1, 1, 1, 1], [2, 1, 200, 100], ["A", "A", "B", "B"])
    assert survival_metrics(apart, ["concordance"])["concordance"] == 1.0
    together = apart._replace(sites=np.zeros(4, dtype=np.int64))
    assert survival_metrics(together, ["concordance"])["concordance"] == 2 / 6


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_concordance_is_that_of_lifelines(seed: int, count: int) -> None:
    utils = pytest.importorskip("lifelines.utils")
    one = made_up(seed, count)
    found = survival_metrics(one, ["concordance"])["concordance"]
    try:
        expected = utils.concordance_index(one.times, -one.risks, one.events)
    except ZeroDivisionError:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(expected, rel=1e-12)


def test_without_ends_of_observation_uno_is_harrell() -> None:
    one = made_up(3, 50)._replace(events=np.ones(50), survival={20.0: np.ones(50)})
    values = survival_metrics(one, ["concordance", "uno"])
    assert values["uno"] == pytest.approx(values["concordance"], rel=1e-12)


def test_uno_by_hand() -> None:
    # Seen for longer than 2 are 2 of 3: the event at 3 counts (3 / 2)² times. Pairs: (1, all) right, (3, 4) wrong.
    one = cases([1, 2, 3, 4], [1, 0, 1, 0], [9, 0, 1, 5], survival={10.0: [1, 1, 1, 1]})
    assert survival_metrics(one, ["uno"])["uno"] == pytest.approx(3 / (3 + 2.25))
    early = one._replace(survival={2.0: np.ones(4)})
    assert survival_metrics(early, ["uno"])["uno"] == 1.0  # the pair of the event at 3 has no part


# Brier score ----------------------------------------------------------------------------------------------------------


def brier(one: Predicted, time: float) -> float:
    """The definition of Graf 1999, case by case, in one site; censoring by lifelines' curve turned round."""
    total = 0.0
    for seen, event, predicted in zip(one.times, one.events, one.survival[time], strict=True):
        if seen <= time and event:
            total += predicted**2 / still_seen(one, seen, before=True)
        elif seen > time:
            total += (1 - predicted) ** 2 / still_seen(one, time, before=False)
    return total / len(one.times)


def still_seen(one: Predicted, time: float, *, before: bool) -> float:
    chance = 1.0
    for end in np.unique(one.times[one.events == 0]):
        if end < time or (end == time and not before):
            at_risk = ((one.times > end) | ((one.times == end) & (one.events == 0))).sum()
            chance *= 1 - ((one.times == end) & (one.events == 0)).sum() / at_risk
    return chance


def test_brier_by_hand() -> None:
    # At time 2.5: an event at 1 (predicted 0.4), an end at 2, two still there (0.9, 0.6); seen up to 2.5 are 2 of 3.
    one = cases([1, 2, 3, 4], [1, 0, 1, 1], [0, 0, 0, 0], survival={2.5: [0.4, 0.5, 0.9, 0.6]})
    expected = (0.4**2 + (0.1**2 + 0.4**2) * 3 / 2) / 4
    assert survival_metrics(one, ["brier", "brier[2.5]"]) == pytest.approx({"brier": expected, "brier[2.5]": expected})


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 50))
def test_brier_is_its_definition(seed: int, count: int) -> None:
    one = made_up(seed, count)
    values = survival_metrics(one, ["brier", "ibs", "brier[2]", "brier[4]"])
    for time in (2.0, 4.0):
        known = still_seen(one, time, before=False) > 0
        found = values[f"brier[{time:g}]"]
        assert found == pytest.approx(brier(one, time), rel=1e-9) if known else np.isnan(found)
    for name in ("brier", "ibs"):  # of two times the mean is the trapezoid
        assert values[name] == pytest.approx((values["brier[2]"] + values["brier[4]"]) / 2, nan_ok=True)


def test_the_integral_gives_times_their_reach() -> None:
    survival = {time: np.full(6, height) for time, height in ((1.0, 1.0), (2.0, 0.5), (6.0, 0.0))}
    one = cases([9] * 6, [1] * 6, [0] * 6, survival=survival)  # nothing has happened: errors 0, 0.25, 1
    assert survival_metrics(one, ["ibs"])["ibs"] == pytest.approx((0.125 * 1 + 0.625 * 4) / 5)


def test_a_time_beyond_what_a_site_was_seen_for_is_not_defined_there() -> None:
    short = {"times": [1, 2, 3], "events": [1, 0, 0], "risks": [0, 0, 0]}
    one = cases(**short, survival={5.0: [0.2, 0.3, 0.4]})
    assert np.isnan(survival_metrics(one, ["brier"])["brier"])
    other = cases([9, 9], [1, 1], [0, 0], survival={5.0: [0.5, 0.5]})
    both = Predicted(
        *(np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("times", "events", "risks")),
        np.array([0, 0, 0, 1, 1]), {5.0: np.concatenate([one.survival[5.0], other.survival[5.0]])},
    )  # fmt: skip
    assert survival_metrics(both, ["brier"])["brier"] == 0.25


# Weights --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 40), places=st.integers(1, 4))
def test_a_weight_is_a_case_that_occurs_so_often(seed: int, count: int, places: int) -> None:
    one, names = made_up(seed, count, places=places), ["concordance", "uno", "brier", "ibs", "brier[4]"]
    weights = np.random.default_rng(seed).integers(0, 4, (count, 3)).astype(np.float64)
    found = weighted_survival_metrics(one, weights, names)
    for draw in range(3):
        rows = np.repeat(np.arange(count), weights[:, draw].astype(int))
        expected = survival_metrics(one.of(rows), names) if len(rows) else dict.fromkeys(names, np.nan)
        assert {name: found[name][draw] for name in names} == pytest.approx(expected, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("names", [["concordance", "uno"], ["brier"]])
def test_order_unit_and_names_of_sites_do_not_matter(names: list[str]) -> None:
    one = made_up(7, 60, places=3)
    expected = survival_metrics(one, names)
    order = np.random.default_rng(0).permutation(60)
    other = one.of(order)
    survival = {30.4 * time: found for time, found in other.survival.items()}
    again = Predicted(other.times * 30.4, other.events, np.exp(other.risks), 9 - other.sites, survival)
    assert survival_metrics(again, names) == pytest.approx(expected, rel=1e-9)


def test_a_model_that_broke_down_has_no_score() -> None:
    one = made_up(1, 20)
    broken = one._replace(risks=np.full(20, np.nan), survival={2.0: np.full(20, np.nan)})
    assert all(np.isnan(value) for value in survival_metrics(broken, ["concordance", "uno", "brier"]).values())


def test_names_are_checked() -> None:
    with pytest.raises(StudyError, match="P103 There is no metric 'auc' for this task"):
        survival_metrics(made_up(0, 5), ["auc"])


# Curves and tests -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_kaplan_meier_is_that_of_lifelines(seed: int, count: int) -> None:
    lifelines = pytest.importorskip("lifelines")
    one, at = made_up(seed, count), np.array([0.5, 1.0, 3.0, 5.5, 8.0])
    found = kaplan_meier(one.times, one.events, at)
    fitted = lifelines.KaplanMeierFitter().fit(one.times, one.events)
    assert found.survival == pytest.approx(fitted.predict(at).to_numpy(), rel=1e-9)
    interval = fitted.confidence_interval_survival_function_
    for time, survival, low, high in zip(at, *found, strict=True):
        if 0 < survival < 1:
            expected = interval[interval.index <= time].iloc[-1].to_numpy()
            assert (low, high) == pytest.approx(tuple(expected), rel=1e-6)
        else:
            assert np.isnan([low, high]).all()


def test_log_rank_of_one_site_is_that_of_lifelines() -> None:
    statistics = pytest.importorskip("lifelines.statistics")
    one = made_up(5, 80)
    group = one.risks > 2
    expected = statistics.logrank_test(one.times[group], one.times[~group], one.events[group], one.events[~group])
    found = log_rank(one.times, one.events, group)
    assert found.statistic == pytest.approx(expected.test_statistic, rel=1e-9)
    assert found.p == pytest.approx(expected.p_value, rel=1e-9)


def test_sums_of_sites_are_the_stratified_test() -> None:
    """Without ties it is the score test of Cox's model stratified by site, with the group as its only feature."""
    source = np.random.default_rng(2)
    sites, group = np.repeat([0, 1, 2], [30, 20, 25]), source.integers(0, 2, 75)
    times, events = source.exponential(size=75) * (1 + sites), (source.integers(0, 4, 75) > 0).astype(float)
    found = added(log_rank(times[sites == s], events[sites == s], group[sites == s] == 1) for s in range(3))
    columns = [torch.from_numpy(one) for one in (group.astype(float), times, events, sites)]

    def score(effect: float) -> float:
        weight = torch.tensor(effect, dtype=torch.float64, requires_grad=True)
        cox_losses(weight * columns[0], columns[1], columns[2], columns[3], ties="efron").sum().backward()
        assert weight.grad is not None
        return -float(weight.grad)

    assert score(0.0) == pytest.approx(found.observed - found.expected, rel=1e-9)
    assert (score(-1e-5) - score(1e-5)) / 2e-5 == pytest.approx(found.variance, rel=1e-6)


def test_log_rank_by_hand() -> None:
    # Events at 1 (in the group, 2 of 4 at risk) and 2 (not, 1 of 3): E = 1/2 + 1/3, V = 1/4 + 2/9.
    found = log_rank([1, 2, 3, 4], [1, 1, 0, 0], [True, False, True, False])
    assert found == pytest.approx((1.0, 5 / 6, 1 / 4 + 2 / 9))
    twice = added([found, found])
    assert twice == pytest.approx(tuple(2 * one for one in found))
    assert twice.statistic == pytest.approx(2 * found.statistic)


def test_nothing_to_compare_is_no_test() -> None:
    assert np.isnan(log_rank([1, 2], [1, 1], [True, True]).statistic)
    assert np.isnan(added([]).p)
    assert isinstance(added([]), LogRank)
