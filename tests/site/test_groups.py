"""What a site says of groups of its patients: values worked by hand, and that nothing follows of those left out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyclinic.statistics.intervals import delong
from polyclinic.statistics.subgroups import Place, groups_from_tensors, groups_to_tensors, site_groups
from polyclinic.statistics.survival import site_survival, survival_from_tensors, survival_to_tensors

ASKED = ("classification", 2, ["acc", "auc", "brier"])


def predicted(groups, labels, scores, *, method="fedavg", seed=0, trained_on="federation", subjects=None):
    names = [f"P{number:05d}" for number in range(len(groups))]
    return pd.DataFrame({
        "method": method, "run": "plain", "seed": seed, "fold": np.arange(len(groups)) % 2, "site": "A",
        "subject": names if subjects is None else subjects, "case": names, "label": labels, "score": scores,
        "threshold": 0.5, "subgroup: sex": groups, "trained_on": trained_on,
    })  # fmt: skip


def drawn(sizes, seed=0, **about):
    """As many cases of each group as ``sizes`` says, in any order."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation([name for name, size in sizes.items() for _ in range(size)])
    labels = rng.integers(0, 2, len(groups))
    return predicted(groups, labels, np.clip(rng.random(len(groups)) + 0.3 * labels, 0, 1), **about)


def at(said, group, method="fedavg"):
    return said.found[Place(method, "sex", group)]


def test_values_and_variances_are_those_of_the_group_and_the_rest():
    frame = drawn({"F": 40, "M": 30, "D": 20})
    one = at(site_groups(frame, *ASKED), "F")
    own, rest = (frame[(frame["subgroup: sex"] == "F") == inside] for inside in (True, False))
    for side, rows in ((one.own, own), (one.rest, rest)):
        right = (rows["score"] >= 0.5) == rows["label"]
        area, variance = delong(rows["label"], rows["score"])
        assert (side.patients, side.cases) == (len(rows), len(rows))
        assert side.values.tolist() == pytest.approx(
            [right.mean(), area, ((rows["score"] - rows["label"]) ** 2).mean()]
        )
        assert side.variances[1] == pytest.approx(variance)
        # Of a mean over n patients: s² / n, but for chance in 1,000 draws.
        assert side.variances[0] == pytest.approx(right.mean() * (1 - right.mean()) / len(rows), rel=0.2)
    assert one.gaps[1] == pytest.approx(one.own.variances[1] + one.rest.variances[1])
    assert one.gaps[0] == pytest.approx(one.own.variances[0] + one.rest.variances[0], rel=0.3)


def test_a_patient_on_both_sides_is_drawn_on_both():
    """Right of the one eye and wrong of the other, or the reverse: the gap is surer than two samples would say."""
    people = [f"P{number}" for number in range(60)]
    sides = np.repeat(["left", "right"], 60)
    rng = np.random.default_rng(0)
    right = np.tile(rng.random(60) < 0.7, 2)  # the same of both eyes
    labels = np.tile([0, 1], 60)
    frame = predicted(sides, labels, np.where(right, labels, 1 - labels), subjects=people * 2)
    one = at(site_groups(frame, *ASKED), "left")
    assert one.own.values[0] == one.rest.values[0]
    assert one.own.variances[0] > 0.002
    assert one.gaps[0] == pytest.approx(0, abs=1e-12)


def test_seeds_are_averaged_before_they_vary():
    frames = [drawn({"F": 40, "M": 40}).assign(seed=seed) for seed in (0, 1)]
    one, both = at(site_groups(frames[0], *ASKED), "F"), at(site_groups(pd.concat(frames), *ASKED), "F")
    for name in ("values", "variances", "counted"):
        np.testing.assert_allclose(getattr(one.own, name), getattr(both.own, name))
    np.testing.assert_allclose(one.gaps, both.gaps)


def test_methods_that_predict_a_case_several_times_are_left_out():
    frame = drawn({"F": 20, "M": 20})
    crossed = pd.concat([frame.assign(method="cross", trained_on=site) for site in "BC"])
    assert {place.method for place in site_groups(pd.concat([frame, crossed]), *ASKED).found} == {"fedavg"}
    assert not site_groups(crossed, *ASKED).found
    assert not site_groups(frame.drop(columns="subgroup: sex"), *ASKED).found


@pytest.mark.parametrize(
    ("sizes", "told", "mixed"),
    [
        ({"F": 20, "M": 20}, {"F", "M"}, False),
        ({"F": 20, "M": 4}, set(), False),  # all less F would be M
        ({"F": 20, "M": 9, "D": 4}, {"F"}, False),  # all less F and M would be D
        ({"F": 20, "M": 9, "D": 4, "E": 3}, {"F", "M"}, False),  # D and E are 7 together
        ({"F": 20, "M": 9, "not known": 4}, {"F"}, True),
        ({"F": 20, "not known": 4}, set(), True),
        ({"F": 20, "M": 20, "not known": 6}, {"F", "M", "not known"}, False),
        ({"F": 9, "M": 8, "D": 4, "not known": 6}, {"F", "not known"}, False),  # the rest of F less M would be D
        ({"F": 4, "not known": 20}, set(), False),  # all less those not known would be F
    ],
)
def test_what_is_left_out_does_not_follow_from_what_is_told(sizes, told, mixed):
    said = site_groups(drawn(sizes), *ASKED, floor=5)
    assert {place.group for place in said.found} == told
    assert {group for _, group in said.withheld} == set(sizes) - told
    assert bool(said.mixed) == mixed


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d", "not known"]), st.integers(1, 14), min_size=1),
       st.integers(1, 8))  # fmt: skip
@example({"a": 3, "b": 3, "not known": 2, "c": 1}, 2)
def test_no_difference_of_told_sums_is_of_few(sizes, floor):
    """Of all sets that can be told apart by what is said, none has fewer patients than the floor."""
    said = site_groups(drawn(sizes), "classification", 2, ["acc"], bootstrap=0, floor=floor)
    if sum(sizes.values()) < floor:
        return
    names = list(sizes)
    known = [np.ones(len(names))]
    for place, one in said.found.items():
        known.append(np.array([name == place.group for name in names], dtype=float))
        if one.rest is not None:
            few = "not known" in names and bool(said.mixed)
            rest = [name != place.group and (name != "not known" or few) for name in names]
            assert one.rest.patients == np.array(rest) @ np.array(list(sizes.values()))
            known.append(np.array(rest, dtype=float))
    span = np.stack(known)
    for mask in range(1, 2 ** len(names)):
        wanted = np.array([mask >> place & 1 for place in range(len(names))], dtype=float)
        if np.linalg.matrix_rank(np.vstack([span, wanted])) == np.linalg.matrix_rank(span):
            assert wanted @ np.array(list(sizes.values())) >= floor


def of_three(labels, groups, seed=0):
    """Predictions of three classes; of how many the model is right does not matter here."""
    scores = np.random.default_rng(seed).dirichlet(np.ones(3), len(labels))
    frame = predicted(groups, labels, scores.max(axis=1))
    return frame.assign(**{f"score_{k}": scores[:, k] for k in range(3)})


@pytest.mark.parametrize(("third", "told"), [(0, True), (2, False), (5, True)])
def test_few_patients_of_a_class_do_not_follow_from_what_is_compared_without_them(third, told):
    """F has patients of class 2 and M none: with and without these, two values of F would be told."""
    labels = [0, 1] * 10 + [2] * third + [0, 1] * 10
    groups = ["F"] * (20 + third) + ["M"] * 20
    said = site_groups(of_three(labels, groups), "classification", 3, ["acc", "bac"], bootstrap=0, floor=5)
    one = at(said, "F")
    assert np.isfinite(one.own.values).all()
    assert np.isfinite(one.alike.values).tolist() == np.isfinite(one.rest.values).tolist() == [True, told]
    if told:
        inside = at(site_groups(of_three(labels, groups).loc[lambda f: f["label"] < 2], "classification", 3,
                                ["acc", "bac"], bootstrap=0), "F")  # fmt: skip
        assert one.alike.values[1] == pytest.approx(inside.own.values[1])
        assert one.alike.values[0] == one.own.values[0]  # of all cases, as they are


def test_a_message_gives_the_same_back():
    said = site_groups(drawn({"F": 40, "M": 30, "not known": 20}), *ASKED)
    back = groups_from_tensors(list(said.found), groups_to_tensors(said))
    assert back.keys() == said.found.keys()
    for place, one in said.found.items():
        for name in ("own", "rest", "alike"):
            side, other = getattr(one, name), getattr(back[place], name)
            assert (side is None) == (other is None) == (name == "rest" and place.group == "not known")
            if side is not None:
                assert (side.patients, side.cases, side.lines) == (other.patients, other.cases, other.lines)
                for numbers in ("values", "variances", "counted"):
                    np.testing.assert_array_equal(getattr(side, numbers), getattr(other, numbers))
        np.testing.assert_array_equal(one.gaps, back[place].gaps)


def lived(cases=60, seed=0):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=cases)
    names = [f"P{case}" for case in range(cases)]
    return pd.DataFrame({
        "method": "fedavg", "run": "plain", "seed": 0, "fold": np.arange(cases) % 2, "site": "A", "subject": names,
        "case": names, "time": rng.exponential(300 / np.exp(score)), "event": rng.integers(0, 2, cases),
        "score": score, "trained_on": "federation",
    })  # fmt: skip


@pytest.mark.parametrize("cases", [3, 12, 60, 300])
def test_a_message_on_survival_gives_the_same_back(cases):
    frame = lived(cases)
    frames = pd.concat([frame, frame.assign(method="other", score=frame["score"][::-1].to_numpy())])
    said = site_survival(frames, np.linspace(0, 1000, 21)[1:])
    back = survival_from_tensors(list(said.methods), survival_to_tensors(said))
    assert len(said.curve) > 0 or cases < 5
    pd.testing.assert_frame_equal(said.curve, back.curve, check_dtype=cases >= 5)
    for method, one in said.methods.items():
        other = back.methods[method]
        assert (one.cases, one.higher, one.sums) == (other.cases, other.higher, other.sums)
        for curve, again in zip(one.curves, other.curves, strict=True):
            pd.testing.assert_frame_equal(curve, again, check_dtype=len(curve) > 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(0, 100), st.integers(5, 9))
def test_no_difference_of_told_curves_is_of_few(cases, seed, floor):
    said = site_survival(lived(cases, seed), np.linspace(0, 1000, 21)[1:], floor=floor)
    higher, lower = said.methods["fedavg"].curves
    ends = sorted({*said.curve["time"], *higher["time"], *lower["time"]})
    assert ends == said.curve["time"].tolist()
    for curve in (said.curve, higher, lower):
        assert (curve[["events", "censored"]].sum(axis=1).iloc[1:] >= floor).all()
        assert (curve["at_risk"] >= floor).all()
