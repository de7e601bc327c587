"""Values that can hardly be true, other units, and codes for what was not measured."""

import numpy as np
import pytest

from note_helpers import note, numbers


@pytest.mark.parametrize("value", [1e9, -4000.0, 12000.0, 0.1, 3e30, 1.0])
def test_a_value_far_out(opened, noise, value):
    """The others are about 100 ± 10."""
    frame = noise()
    frame.loc[5, "f2"] = value
    found = opened(frame)
    assert numbers(found) == ["N234"]
    assert "1 value is far from the usual values of the site, in 1 column: f2 (A 1)" in note(found, "N234")
    assert note(found, "N234").cases == ("A: row 6",)
    assert str(value) not in note(found, "N234")


def test_columns_with_most_such_values_come_first(opened, noise):
    frame = noise(features=8)
    for place in range(8):
        frame.loc[: place % 7, f"f{place}"] = 1e7 + np.arange(1 + place % 7)
    text = note(opened(frame), "N234")
    assert "f6 (A 7), f5 (A 6), f4 (A 5), f3 (A 4), f2 (A 3) and 3 more" in text


def test_a_number_to_predict(opened, noise):
    frame = noise()
    frame["y"] = np.random.default_rng(1).normal(60, 8, 80).round(1)
    frame.loc[50, "y"] = 6e6
    assert "y (the label) (B 1)" in note(opened(frame, "numbers", positive=None), "N234")


@pytest.mark.parametrize("seed", range(5))
def test_skewed_measures_are_left_alone(opened, noise, seed):
    rng = np.random.default_rng(seed)
    frame = noise(cases=300)
    frame["f0"] = np.exp(rng.normal(0, 1.5, 600))  # volumes of lesions
    frame["f1"] = rng.exponential(5, 600)
    frame["f2"] = rng.poisson(0.3, 600)
    frame["f3"] = np.where(rng.random(600) < 0.6, 0, np.exp(rng.normal(2, 1, 600)))
    assert numbers(opened(frame)) == []


@pytest.mark.parametrize("code", [-9999, 999, -1, 0])
def test_codes_for_not_measured(opened, noise, code):
    frame = noise()
    frame.loc[[3, 7, 50], "f1"] = code
    found = opened(frame)
    assert numbers(found) == ["N236"]
    assert f"f1 {code} (3)" in note(found, "N236")
    if code:  # which is a label, too
        assert numbers(opened(frame, missing=[f"{code}.0"])) == []


def test_zero_among_small_numbers_is_a_number(opened, noise):
    frame = noise().assign(f1=np.random.default_rng(1).integers(0, 14, 80))
    assert numbers(opened(frame)) == []


@pytest.mark.parametrize(
    ("factor", "said"),
    [(1000, "about 1000 times at B"), (0.1, "about 0.1 times at B"), (1e-6, "about 1e-06 times at B")],
)
def test_another_unit_at_a_site(opened, noise, factor, said):
    frame = noise("ABC")
    frame.loc[frame["site"] == "B", ["f0", "f3"]] *= factor
    found = opened(frame)
    assert numbers(found) == ["N235"]
    assert f"f0, f3 ({said})" in note(found, "N235")


def test_two_sites(opened, noise):
    frame = noise("AB")
    frame.loc[frame["site"] == "A", "f0"] /= 10
    assert "f0 (about 10 times at B)" in note(opened(frame), "N235")


def test_sites_that_differ_otherwise(opened, noise):
    frame = noise("ABCD")
    frame["f0"] *= frame["site"].map({"A": 1, "B": 2, "C": 5, "D": 10})  # from scanner to scanner
    frame["f1"] += frame["site"].map({"A": 0, "B": 900, "C": 0, "D": 0})  # ten times the mean, the same spread
    frame["f2"] -= 100 + frame["site"].map({"A": 0, "B": 5, "C": 0, "D": 1})
    assert numbers(opened(frame)) == []


def test_simulated_sites_have_no_units(opened, noise):
    assert "N235" not in numbers(opened(noise(), partition={"sites": 2, "even": {}}))


def test_a_score_of_nine_values_with_a_code_and_gaps_is_told_once(opened, noise):
    frame = noise()
    frame["f9"] = [float(row % 8) for row in range(80)]
    frame.loc[:9, "f9"] = -999
    frame.loc[20:25, "f9"] = None
    found = opened(frame)
    assert numbers(found) == ["N236"]
    assert "10 cells hold -999" in note(found, "N236")
