"""Labels that sites write in different ways are told, with counts."""

import numpy as np
import pytest

from note_helpers import note, numbers
from polyclinic.errors import DataError

WORDS = {"A": ("No", "Yes"), "B": ("no", "yes"), "C": ("NO", "YES")}
CODES = {"A": ("0", "1"), "B": ("1", "2"), "C": ("healthy", "disease")}


def written(noise, words, sites="ABC", **options):
    """Noise whose labels each site writes in its own words."""
    frame = noise(sites, **options)
    frame["y"] = [words[site][label] for site, label in zip(frame["site"], frame["y"], strict=True)]
    return frame


def test_one_word_in_three_writings(opened, noise):
    frame = written(noise, WORDS)
    counts = frame["y"].value_counts()
    found = opened(frame, positive="Yes")
    assert numbers(found) == ["N225", "N226"]
    assert "2 sites have cases of 'y not Yes' only (B, C)" in note(found, "N225")
    assert f"'YES' ({counts['YES']}: y not Yes), 'Yes' ({counts['Yes']}: y Yes)" in note(found, "N226")
    assert "'No'" not in note(found, "N226")  # all writings of it are one class


def test_each_writing_is_a_class_if_the_study_says_so(opened, noise):
    with pytest.raises(
        DataError, match="P203 Site A writes the label 'y' in another way than the others: it has No, Y"
    ):
        opened(written(noise, WORDS), positive=None)
    found = opened(written(noise, WORDS), positive=None, classes=[text for pair in WORDS.values() for text in pair])
    assert len(found.classes) == 6
    assert numbers(found) == ["N226"]


@pytest.mark.parametrize("positive", [True, ["Yes", "yes", "YES"]])
def test_all_writings_are_named(opened, noise, positive):
    found = opened(written(noise, WORDS), positive=positive)
    assert numbers(found) == []
    assert all(0 < data.targets.sum() < len(data) for data in found.sites.values())


def test_other_numbers_and_words_at_each_site(opened, noise):
    with pytest.raises(DataError, match=r"Site C writes the label .* it has disease, healthy, and they have 0, 1, 2"):
        opened(written(noise, CODES), positive=None)
    found = opened(written(noise, CODES), positive=None, classes=[0, 1, 2, "disease", "healthy"])
    assert numbers(found) == ["N224"]
    assert "0, 1 at A, 1, 2 at B, disease, healthy at C" in note(found, "N224")


def test_one_means_disease_here_and_healthy_there(opened, noise):
    found = opened(written(noise, CODES, "AB"))
    assert numbers(found) == ["N224"]


def test_codes_that_pairs_of_sites_share(opened, noise):
    codes = {"A": ("0", "1"), "B": ("0", "1"), "C": ("1", "2"), "D": ("1", "2")}
    assert "0, 1 at A, B, 1, 2 at C, D" in note(opened(written(noise, codes, "ABCD")), "N224")


@pytest.mark.parametrize(
    ("yes", "other"),
    [("é", "e\u0301"), ("AD", "ad"), ("AD", "Ad"), ("grade 2", "grade  2"), ("1", "01")],
)
def test_writings_that_look_alike(opened, noise, yes, other):
    frame = written(noise, {"A": ("none", yes), "B": ("none", other)}, "AB")
    found = opened(frame, positive=[yes] if yes != "1" else None)
    assert "N226" in numbers(found)


def test_a_word_beside_numbers(opened, noise):
    frame = noise()
    frame["y"] = [("yes" if row == 3 else "1.0" if row % 3 else "1") if row % 2 else "0" for row in range(80)]
    found = opened(frame)
    assert numbers(found) == ["N227"]
    assert "1 site (A): 1 of 40 labels there are words, and count as these classes: 'yes' (1: y not 1)" in note(
        found, "N227"
    )
    assert numbers(opened(frame, positive=[1, "yes"])) == []
    frame["y"] = frame["y"].str.removesuffix(".0")
    assert numbers(opened(frame, positive=True)) == []


def test_a_word_among_numbers_tears_classes(opened, noise):
    """Beside a word 1 and 1.0 are two texts, and would be two classes."""
    frame = noise()
    frame["y"] = [("yes" if row == 3 else "1.0" if row % 3 else "1") if row % 2 else "0" for row in range(80)]
    found = opened(frame, positive=None)
    assert "N227" in numbers(found)
    assert len(found.classes) == 3 or "N226" in numbers(found)


@pytest.mark.parametrize("unknown", ["unknown", "-9", "999", "n.a.", "not done"])
def test_labels_that_are_not_known(opened, noise, unknown):
    frame = noise().astype({"y": str})
    frame.loc[[3, 5, 50], "y"] = unknown
    found = opened(frame)
    assert f"{unknown!r} (3: y not 1)" in note(found, "N228")
    assert "N228" not in numbers(opened(frame, missing=[unknown]))


def test_a_site_that_never_has_the_positive_class(opened, noise):
    frame = noise("ABC")
    frame.loc[frame["site"] == "B", "y"] = 0
    found = opened(frame)
    assert numbers(found) == ["N225"]
    assert "1 site has cases of 'y not 1' only (B)" in note(found, "N225")


def test_a_site_with_nothing_but_positives(opened, noise):
    frame = noise("ABC")
    frame.loc[frame["site"] == "B", "y"] = 1
    assert "1 site has cases of 'y 1' only (B)" in note(opened(frame), "N225")


def test_a_rare_class_may_be_missing_by_chance(opened, noise):
    frame = noise("ABC", cases=40).assign(y=0)
    frame.loc[[0, 1], "y"] = 1  # 2 of 40 at A; that 40 others have none is no wonder
    frame.loc[41, "y"] = 1
    assert numbers(opened(frame)) == []


def test_same_values_everywhere(opened, noise):
    frame = noise("ABC").astype({"y": str})
    frame.loc[::3, "y"] = "2"
    assert numbers(opened(frame, positive=None)) == []
    assert numbers(opened(frame, positive="> 0")) == []


def test_simulated_sites_are_judged_by_the_sites_of_the_table(opened, noise):
    found = opened(written(noise, WORDS), positive="Yes", partition={"sites": 2, "even": {}})
    assert {"N225", "N226"} <= set(numbers(found))


def test_numbers_to_predict_are_no_classes(opened, noise):
    frame = noise().assign(y=np.random.default_rng(5).normal(size=80))
    assert numbers(opened(frame, "numbers", positive=None)) == []


@pytest.mark.parametrize("positive", [1, None])
def test_an_unknown_label_is_told_once(opened, noise, positive):
    frame = noise().astype({"y": object})
    frame.loc[[3, 7, 12], "y"] = "unknown"
    found = opened(frame, positive=positive)
    assert numbers(found) == ["N228"]
    frame.loc[20, "y"] = "yes"
    found = opened(frame, positive=positive)
    assert numbers(found) == ["N227", "N228"]
    assert "1 of 40 labels there are words" in note(found, "N227")
    assert "'unknown' (3" in note(found, "N228")
