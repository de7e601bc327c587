"""Features that give the label away are named, and strong features by chance are not."""

import numpy as np
import pytest

from note_helpers import note, numbers
from polyclinic.data.quality.leaks import columns_of


def test_a_feature_that_separates_the_classes(opened, noise):
    frame = noise()
    frame["f9"] = frame["y"] * 5 + np.random.default_rng(1).uniform(0, 4, 80).round(3)
    found = opened(frame)
    assert numbers(found) == ["N222"]
    assert "1 feature alone separates the classes perfectly at every site" in note(found, "N222")
    assert "f9." in note(found, "N222")


def test_other_units_at_the_sites(opened, noise):
    """Within each site the classes are apart, though not over all sites; at B the other way round."""
    frame = noise()
    at_b = frame["site"] == "B"
    value = frame["y"] * 5 + np.random.default_rng(1).uniform(0, 4, 80).round(3)
    frame["f9"] = np.where(at_b, 7 - value / 3, value)
    assert numbers(opened(frame)) == ["N222"]


def test_only_one_site_has_the_column(opened, noise):
    frame = noise(cases=60)
    value = frame["y"] * 5 + np.random.default_rng(1).uniform(0, 4, 120).round(3)
    frame["f9"] = value.where(frame["site"] == "A")
    assert "at every site that has its values" in note(opened(frame), "N222")


def test_separated_at_one_site_alone(opened, noise):
    frame = noise(cases=60)
    rng = np.random.default_rng(1)
    frame["f9"] = np.where(frame["site"] == "A", frame["y"] * 5, 0) + rng.uniform(0, 4, 120).round(3)
    assert "perfectly at 1 of 2 sites (A): f9" in note(opened(frame), "N222")


def test_almost_separated(opened, noise):
    frame = noise(cases=200)
    rng = np.random.default_rng(1)
    frame["f9"] = (frame["y"] * 8 + rng.normal(0, 2, 400)).round(4)
    assert "almost perfectly at every site (AUC 0.99 or more): f9" in note(opened(frame), "N222")
    frame["f9"] = (frame["y"] * 3 + rng.normal(0, 2, 400)).round(4)  # a good marker: AUC 0.86
    assert numbers(opened(frame)) == []


def test_three_classes_in_order(opened, noise):
    frame = noise("ABC")
    rng = np.random.default_rng(1)
    frame["y"] = rng.permutation(np.arange(120) % 3)
    frame["f9"] = frame["y"].map({0: 5, 1: 1, 2: 9}) + rng.uniform(0, 2, 120).round(3)
    assert "f9" in note(opened(frame, positive=None), "N222")


@pytest.mark.parametrize("codes", [{0: 7, 1: 3}, {0: 0, 1: 1}])
def test_the_label_in_other_numbers(opened, noise, codes):
    frame = noise()
    frame["f9"] = frame["y"].map(codes)
    found = opened(frame)
    assert numbers(found) == ["N223"]
    assert "1 feature alone tells the class of every case, like the label 'y' in other words: f9" in note(found, "N223")


def test_the_label_in_other_words(opened, noise):
    frame = noise("ABC")
    rng = np.random.default_rng(1)
    frame["y"] = rng.permutation(np.arange(120) % 3)
    codes = {0: ["G30", "G30.1"], 1: ["Z00"], 2: ["F06.7", "F07"]}
    frame["icd"] = [codes[label][row % len(codes[label])] for row, label in enumerate(frame["y"])]
    found = opened(frame, positive=None, categorical=["icd"])
    assert numbers(found) == ["N223"]
    assert note(found, "N223").endswith("take it out with `exclude`.")
    assert "icd" in note(found, "N223")


def test_codes_out_of_order(opened, noise):
    """Three classes as 2, 3, 1: no order, but the label all the same."""
    frame = noise("ABC")
    frame["y"] = np.random.default_rng(1).permutation(np.arange(120) % 4)
    frame["f9"] = frame["y"].map({0: 2, 1: 4, 2: 1, 3: 3}) * 10 + frame["y"] % 2
    assert numbers(opened(frame, positive=None)) == ["N223"]


def test_measured_in_one_class_only(opened, noise):
    frame = noise()
    frame.loc[frame["y"] == 0, "f3"] = np.nan
    assert "f3" in note(opened(frame), "N223")


def test_few_cases_are_apart_by_chance(opened, noise):
    """Of two and two cases a third of all features separates the classes."""
    frame = noise(cases=4, features=300)
    assert numbers(opened(frame)) == []


def test_noise_says_nothing(opened, noise):
    assert numbers(opened(noise("ABCD", cases=12, features=300))) == []


@pytest.mark.parametrize(
    "made", [lambda y: y * 12, lambda y: -3 * y + 40, lambda y: (y / 7).round(0), np.exp, lambda y: 1 / y]
)
def test_the_number_to_predict_in_another_unit(opened, noise, made):
    frame = noise()
    frame["y"] = np.random.default_rng(1).uniform(1, 90, 80).round(2)
    frame["f9"] = made(frame["y"])
    found = opened(frame, "numbers", positive=None)
    assert "1 feature is the label 'y' in another unit or on another scale: f9" in note(found, "N223")


def test_a_good_predictor_of_a_number(opened, noise):
    frame = noise()
    rng = np.random.default_rng(1)
    frame["y"] = rng.uniform(1, 90, 80).round(2)
    frame["f9"] = frame["y"] + rng.normal(0, 3, 80)
    assert numbers(opened(frame, "numbers", positive=None)) == []


def test_columns_behind_a_matrix():
    features = ["age", "cp=1", "cp=2", "cp=4", "sex=F", "sex=M", "size"]
    columns = columns_of(features, ["age", "cp", "sex", "size"], ["cp", "sex"])
    assert [(column.name, column.places) for column in columns] == [
        ("age", [0]), ("cp", [1, 2, 3]), ("sex", [4, 5]), ("size", [6]),
    ]  # fmt: skip
