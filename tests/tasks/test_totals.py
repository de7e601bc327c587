"""Sums instead of cases: they can be added, give the same metrics, and tell how much each case counts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.statistics.intervals import delong
from polyclinic.study.statistics.of_totals import area_of_grid
from polyclinic.tasks import build_task
from polyclinic.tasks.base import Head
from polyclinic.tasks.classification_totals import representative_scores
from polyclinic.tasks.metrics import CLASSIFICATION, REGRESSION, threshold_counts, threshold_grid

MASKS = ["dice", "hd95", "sen"]


def two_classes(rng, cases, spread=1.5):
    label = np.arange(cases) % 3 % 2
    score = 1 / (1 + np.exp(-spread * (label - 0.5 + rng.normal(size=cases))))
    return pd.DataFrame({"label": label, "score": score, "threshold": rng.choice([0.4, 0.6], cases)})


def four_classes(rng, cases):
    """One of the classes is in no case."""
    label = rng.choice([0, 1, 3], cases)
    odds = rng.normal(size=(cases, 4)) + 2 * (label[:, None] == np.arange(4))
    found = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    return pd.DataFrame({"label": label} | {f"score_{k}": found[:, k] for k in range(4)})


def numbers(rng, cases):
    """Far from 0, and narrow."""
    label = 1e6 + rng.normal(size=cases)
    return pd.DataFrame({"label": label, "score": label + 0.5 * rng.normal(size=cases)})


def masks(rng, cases):
    table = pd.DataFrame(rng.random((cases, 3)), columns=MASKS)
    table.loc[table.index % 4 == 1, "hd95"] = np.nan
    return table


HEADS = [Head("a", 2), Head("b", 3)]


def findings(rng, cases):
    """Two labels, each missing in some cases, but the second one of the classes in none at the end."""
    table = pd.DataFrame()
    for head, own in zip(HEADS, (two_classes(rng, cases), four_classes(rng, cases)), strict=True):
        if head.classes == 3:
            own = own.drop(columns="score_3").assign(label=own["label"].clip(upper=2))
            scores = [f"score_{one}" for one in range(3)]
            own[scores] = own[scores].div(own[scores].sum(axis=1), axis=0)
            own["score"], own["threshold"] = own[scores].max(axis=1), 0.5
        table = table.assign(**{f"{name}[{head.name}]": values for name, values in own.items()})
        table.loc[rng.random(cases) < 0.3, f"label[{head.name}]"] = np.nan
    return table


KINDS = {
    "findings": (findings, "multi_label", 5, [*CLASSIFICATION, *(f"{m}[{h}]" for m in CLASSIFICATION for h in "ab")]),
    "two": (two_classes, "classification", 2, CLASSIFICATION),
    "four": (four_classes, "classification", 4, CLASSIFICATION),
    "numbers": (numbers, "regression", 0, REGRESSION),
    "masks": (masks, "segmentation", 2, MASKS),
}


def made(kind, seed, cases):
    make, task, classes, names = KINDS[kind]
    return (
        build_task(task, classes, heads=HEADS if kind == "findings" else ()),
        make(np.random.default_rng(seed), cases),
        list(names),
    )


@settings(max_examples=25)
@given(st.sampled_from(list(KINDS)), st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_totals_of_parts_give_the_metrics_of_the_whole(kind, seed, sizes):
    task, cases, names = made(kind, seed, sum(sizes))
    parts = np.split(np.arange(len(cases)), np.cumsum(sizes)[:-1])
    totals = task.joined([task.totals(cases.iloc[part], names) for part in parts])
    assert list(totals) == list(task.totalled)
    found, wanted = task.from_totals(totals, names), task.values(cases, names)
    margins = task.margins(totals, names)
    assert margins.keys() <= task.approximate
    for name in names:
        if name in task.approximate:
            assert np.isnan(found[name]) == np.isnan(wanted[name])
            assert not abs(found[name] - wanted[name]) > margins.get(name, 0) + 1e-12
        else:
            assert found[name] == pytest.approx(wanted[name], rel=1e-7, nan_ok=True), name


def test_whole_numbers_give_the_same_bits():
    task, cases, _ = made("two", 3, 200)
    names = ["acc", "bac", "sen", "spe", "f1"]
    totals = task.joined([task.totals(part, names) for _, part in cases.groupby(cases.index % 3)])
    assert task.from_totals(totals, names) == task.values(cases, names)


def test_totals_by_hand():
    cases = pd.DataFrame({"label": [0, 0, 1, 1, 1], "score": [0.2, 0.7, 0.4, 0.8, 0.9], "threshold": 0.5})
    task = build_task("classification", 2)
    totals = task.totals(cases, ["acc"])
    assert totals["confusion"].tolist() == [[1, 1], [1, 2]]
    assert totals["squares"][0] == pytest.approx(0.04 + 0.49 + 0.36 + 0.04 + 0.01)
    assert totals["grid"].sum(axis=(0, 2)).tolist() == [2, 3]
    assert task.from_totals(totals, ["auc", "acc"]) == {"auc": pytest.approx(5 / 6), "acc": 0.6}
    of_masks = build_task("segmentation", 2).totals(pd.DataFrame({"dice": [0.5, np.nan, 1.0]}), ["dice"])
    assert {name: values.tolist() for name, values in of_masks.items()} == {"sums": [1.5], "known": [2]}


def test_a_model_that_broke_down_has_no_metrics():
    for kind in ("two", "numbers"):
        task, cases, names = made(kind, 1, 12)
        cases.loc[4, "score"] = np.nan
        totals = task.joined([task.totals(cases.iloc[:3], names), task.totals(cases.iloc[3:], names)])
        assert np.isnan(list(task.from_totals(totals, names).values())).all()
        assert all(np.isfinite(values).all() for values in totals.values())  # nothing else may leave a site


def test_tied_scores_are_as_far_off_as_can_be():
    """All cases between two thresholds: anything is possible, from 0 to 1."""
    task = build_task("classification", 2)
    cases = pd.DataFrame({"label": [0, 1, 0, 1], "score": [0.5001, 0.5002, 0.5003, 0.5004], "threshold": 0.5})
    totals = task.totals(cases, ["auc", "ap"])
    assert task.from_totals(totals, ["auc"]) == {"auc": 0.5}
    assert task.margins(totals, ["auc", "ap"]) == {"auc": 0.5, "ap": pytest.approx(0.5)}  # 1 where positives are ahead


@pytest.mark.parametrize("kind", KINDS)
def test_the_influence_of_a_case_is_the_derivative_by_its_weight(kind):
    """Against the metrics under weights; scores stand in the middle of their bins, so that nothing is lost there."""
    task, cases, names = made(kind, 5, 60)
    if kind == "two":
        place = threshold_grid().searchsorted(cases["score"], "right")
        cases["score"] = representative_scores()[place]
    if kind == "findings":
        place = threshold_grid().searchsorted(cases["score[a]"], "right")
        cases["score[a]"] = representative_scores()[place]
        names = [name for name in names if name not in task.approximate or name.endswith("[a]")]
    if kind == "four":  # each curve is on a grid of its own, which probabilities that add up to one can't all be on
        names = [name for name in names if name not in task.approximate]
    if kind == "numbers":
        cases -= 1e6
    measure, step = task.measure(cases, names), 1e-5
    weights = np.ones((len(cases), 2 * len(cases)))
    weights[np.arange(len(cases)), np.arange(len(cases))] += step
    weights[np.arange(len(cases)), len(cases) + np.arange(len(cases))] -= step
    up, down = np.split(measure(np.arange(len(cases)), weights), 2, axis=1)
    found = task.influence(cases, task.totals(cases, names), names)
    np.testing.assert_allclose(found, (up - down) / (2 * step), rtol=1e-4, atol=1e-7)


def test_the_area_of_counts_is_delongs_of_binned_scores():
    rng = np.random.default_rng(2)
    cases = two_classes(rng, 40)
    place = threshold_grid().searchsorted(cases["score"], "right")
    area = area_of_grid(7, threshold_counts(cases["label"], cases["score"]))
    assert (area.value, area.variance) == pytest.approx(delong(cases["label"], place))
    assert (area.seed, area.positives, area.negatives) == (7, cases["label"].sum(), (cases["label"] == 0).sum())
    assert np.isnan(area_of_grid(0, threshold_counts([1, 1], [0.2, 0.3])).value)


def shared_out(kind, classes, cases, sizes):
    """Metrics from the totals of sites with so many cases each."""
    task = build_task(kind, classes)
    names = list(task.metrics)
    parts = np.split(np.arange(len(cases)), np.cumsum(sizes)[:-1])
    return task.from_totals(task.joined([task.totals(cases.iloc[part], names) for part in parts]), names)


def called(pairs):
    """Cases of a true class that are surely called another, with how many there are."""
    rows = [pair[:2] for pair in pairs for _ in range(pair[2])]
    true, other = np.array(rows).T
    scores = np.where(other[:, None] == np.arange(3), 0.98, 0.01)
    return pd.DataFrame({"label": true} | {f"score_{k}": scores[:, k] for k in range(3)})


def test_what_went_wrong_elsewhere():
    """Small inputs of public reports, with the answers worked out there or by hand."""
    # The mean of the classes' F1, not F1 of the means: 23/35.
    cases = called([(0, 0, 4), (0, 1, 6), (1, 1, 2), (2, 2, 3)])
    assert shared_out("classification", 3, cases, [7, 1, 7])["f1"] == pytest.approx(23 / 35)
    # A class that is in neither the truth nor the answers counts for nothing.
    assert shared_out("classification", 3, called([(0, 0, 3), (1, 1, 2)]), [2, 3])["f1"] == 1
    # Who calls all cases negative has an F1 of 0, which is a number.
    nobody = pd.DataFrame({"label": [0, 0, 0, 1], "score": [0.1, 0.2, 0.1, 0.3], "threshold": 0.5})
    found = shared_out("classification", 2, nobody, [1, 3])
    assert (found["f1"], found["bac"], found["acc"]) == (0, 0.5, 0.75)
    # All cases together are not the mean of the sites: 9 of 10 right at one, none of 2 at the other.
    uneven = pd.DataFrame({"label": [1] * 12, "score": [0.9] * 9 + [0.1] * 3, "threshold": 0.5})
    assert shared_out("classification", 2, uneven, [10, 2])["acc"] == 0.75
    # Numbers that lie far from 0 keep their digits, also where a site has a single case, or nearly equal ones.
    far = pd.DataFrame({"label": 1e8 + np.arange(5.0), "score": 1e8 + np.arange(5.0)[::-1]})
    assert shared_out("regression", 0, far, [1, 4])["r"] == pytest.approx(-1)
    near = pd.DataFrame({
        "label": [-5.1608, -5.1609, -5.1608, -5.1608, -5.1608, -5.1608],
        "score": [-3.9865, -5.4648, -5.0238, -4.3899, -5.6672, -4.7336],
    })  # fmt: skip
    assert shared_out("regression", 0, near, [1, 2, 3])["r2"] == pytest.approx(-302799876.2, rel=1e-6)  # by fractions
