from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.splits import split
from polyclinic.errors import DataError


def site_of(cases, parts=None, *, name="A"):
    """A site from (subject, label) pairs."""
    count = len(cases)
    labels = torch.tensor([label for _, label in cases], dtype=torch.int64)
    subjects = [subject for subject, _ in cases]
    return SiteData(name, torch.zeros(count, 1), labels, subjects, ["?"] * count, parts, Counts(count, count))


cases = st.lists(st.tuples(st.integers(0, 25).map(lambda n: f"p{n}"), st.integers(0, 2)), min_size=1, max_size=80)


def subjects_of(data, index):
    return {data.subjects[position] for position in index.tolist()}


@given(cases, st.integers(2, 6), st.floats(0, 0.6), st.integers(0, 5))
def test_folds_partition_the_site_by_patient(pairs, folds, share, seed):
    data = site_of(pairs)
    if len(set(data.subjects)) < folds:
        return
    tested = []
    for fold in range(folds):
        parts = split(data, folds=folds, fold=fold, validation=share, seed=seed)
        indices = [parts.train, parts.validation, parts.test]
        assert all(index.dtype == torch.int64 and index.tolist() == sorted(index.tolist()) for index in indices)
        assert sorted(torch.cat(indices).tolist()) == list(range(len(data)))
        people = [subjects_of(data, index) for index in indices]
        assert sum(map(len, people)) == len(set(data.subjects))
        assert people[0]
        assert people[2]
        tested += parts.test.tolist()
    assert sorted(tested) == list(range(len(data)))


@given(st.lists(st.integers(0, 3), min_size=6, max_size=60), st.integers(2, 6), st.floats(0.01, 0.6))
def test_classes_are_spread_evenly(labels, folds, share):
    data = site_of([(f"p{number}", label) for number, label in enumerate(labels)])
    tests, sizes = [], []
    for fold in range(folds):
        parts = split(data, folds=folds, fold=fold, validation=share, seed=0)
        tests.append(Counter(labels[i] for i in parts.test.tolist()))
        sizes.append(len(parts.test))
        remaining = Counter(labels[i] for i in [*parts.train.tolist(), *parts.validation.tolist()])
        chosen = Counter(labels[i] for i in parts.validation.tolist())
        free = remaining.total() - len(remaining)
        if remaining.total() >= 3:
            expected = min(max(1, round(share * remaining.total())), free)
            assert chosen.total() == expected
            for label, count in remaining.items():
                assert chosen[label] < count
                assert abs(chosen[label] - expected * (count - 1) / max(free, 1)) < 1
        else:
            assert not chosen
    assert max(sizes) - min(sizes) <= 1
    for label in set(labels):
        counts = [test[label] for test in tests]
        assert max(counts) - min(counts) <= 1


@given(cases, st.randoms(use_true_random=False))
def test_split_depends_on_patients_not_on_the_order_of_cases(pairs, random):
    if len({subject for subject, _ in pairs}) < 3:
        return
    mixed = list(pairs)
    random.shuffle(mixed)
    first = split(site_of(pairs), folds=3, fold=1, validation=0.2, seed=4)
    again = split(site_of(pairs), folds=3, fold=1, validation=0.2, seed=4)
    other = split(site_of(mixed), folds=3, fold=1, validation=0.2, seed=4)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part), getattr(again, part))
        people = subjects_of(site_of(pairs), getattr(first, part))
        assert people == subjects_of(site_of(mixed), getattr(other, part))


def test_seed_site_and_fold_matter(make_site):
    def test_part(seed=0, fold=0, site="A"):
        return split(make_site([0, 1] * 20, site=site), folds=5, fold=fold, validation=0, seed=seed).test.tolist()

    assert test_part() == test_part()
    assert (
        len({tuple(test_part()), tuple(test_part(seed=1)), tuple(test_part(fold=1)), tuple(test_part(site="B"))}) == 4
    )


def test_numbers_by_hand(make_site):
    # 14 patients of class 0 and 6 of class 1 in 5 folds of 4: dealt in a row, class 1 gives 6 = 1 + 1 + 1 + 1 + 2.
    labels = [0] * 14 + [1] * 6
    data = make_site(labels)
    positives = []
    for fold in range(5):
        parts = split(data, folds=5, fold=fold, validation=0.25, seed=0)
        assert (len(parts.train), len(parts.validation), len(parts.test)) == (12, 4, 4)
        positives.append(sum(labels[i] for i in parts.test.tolist()))
    assert sorted(positives) == [1, 1, 1, 1, 2]


def test_class_of_a_patient_with_several_cases():
    # p0 has labels 0 and 1: the higher class counts. With that each fold of 2 has one patient of class 1.
    data = site_of([("p0", 0), ("p0", 1), ("p1", 0), ("p2", 0), ("p2", 0), ("p2", 1), ("p3", 1)])
    for fold in range(2):
        people = subjects_of(data, split(data, folds=2, fold=fold, validation=0, seed=0).test)
        assert len(people) == 2
        assert len(people & {"p0", "p3"}) == 1


def test_segmentation_is_one_stratum():
    masks = torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    data = SiteData("A", masks, masks, [f"p{i // 2}" for i in range(10)], ["?"] * 10, None, Counts(10, 10))
    parts = split(data, folds=5, fold=2, validation=0.25, seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (6, 2, 2)


def test_validation_never_takes_the_last_of_a_class(make_site):
    parts = split(make_site([0, 1, 2, 2]), folds=4, fold=3, validation=0.9, seed=0)
    assert len(parts.validation) == 0 if sorted(parts.test.tolist()) in ([2], [3]) else len(parts.validation) == 1
    parts = split(make_site([0, 0, 0, 0]), folds=2, fold=0, validation=0.5, seed=0)
    assert len(parts.validation) == 0  # two patients remain, too few to part with one
    parts = split(make_site([0] * 6), folds=2, fold=0, validation=0.01, seed=0)
    assert len(parts.validation) == 1


@given(cases, st.floats(0.05, 0.6), st.integers(0, 5))
def test_a_held_out_part_is_a_share_of_the_patients(pairs, share, seed):
    data = site_of(pairs)
    people = set(data.subjects)
    if len(people) < 3:
        return
    parts = split(data, folds=None, fold=0, validation=0.2, seed=seed, holdout=share)
    found = [subjects_of(data, index) for index in (parts.train, parts.validation, parts.test)]
    assert set.union(*found) == people
    assert sum(map(len, found)) == len(people)
    wanted = max(1, round(share * len(people)))
    assert min(wanted, len(people) - 3) <= len(found[2]) <= wanted  # a patient of each of three classes is kept


def test_a_third_is_held_out_by_hand():
    """Nine patients of each of two classes: three of each class are tested."""
    data = site_of([(f"p{i}", i % 2) for i in range(18)])
    parts = split(data, folds=None, fold=0, validation=0.0, seed=0, holdout=1 / 3)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (12, 0, 6)
    assert data.targets[parts.test].sum() == 3


def test_a_site_of_two_patients_is_trained_on_where_a_part_is_held_out():
    parts = split(site_of([("p", 0), ("q", 1)]), folds=None, fold=0, validation=0.0, seed=0, holdout=0.3)
    assert (len(parts.train), len(parts.test)) == (2, 0)
    assert parts.note.endswith("has 2 patients, too few for a part that is held out: used for training only.")


def test_small_sites(make_site):
    data = make_site([0, 1, 1], ["p", "q", "q"], site="X")
    parts = split(data, folds=3, fold=0, validation=0.2, seed=0)
    assert parts.note == "Site X has 2 patients, too few for 3 folds: used for training only."
    assert (parts.train.tolist(), len(parts.validation), len(parts.test)) == ([0, 1, 2], 0, 0)
    parts = split(data, folds=3, fold=0, validation=0.2, seed=0, small_sites="drop")
    assert parts.note == "Site X has 2 patients, too few for 3 folds: left out."
    assert len(parts.train) == len(parts.validation) == len(parts.test) == 0
    with pytest.raises(DataError, match=r"P206 Site X has 2 patients, too few for 3 folds\. Use fewer folds"):
        split(data, folds=3, fold=0, validation=0.2, seed=0, small_sites="stop")


def test_column_fixes_the_parts(make_site):
    data = make_site([0, 1, 0, 1], parts=["test", "train", "validation", "train"])
    parts = split(data, folds=None, fold=0, validation=0.9, seed=0)
    assert (parts.train.tolist(), parts.validation.tolist(), parts.test.tolist()) == ([1, 3], [2], [0])
    assert parts.note == ""


def test_column_without_validation(make_site):
    data = make_site([0, 1] * 10, parts=["train", "train", "test", "test"] * 5)
    parts = split(data, folds=None, fold=0, validation=0.2, seed=0)
    assert parts.test.tolist() == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19]
    assert (len(parts.train), len(parts.validation)) == (8, 2)
    only_tested = make_site([0, 1], parts=["test", "test"], site="X")
    parts = split(only_tested, folds=None, fold=0, validation=0.2, seed=0)
    assert parts.note == "Site X has no training cases in the split column."
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (0, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": 1}, "P206 Fold 0 of 1 was asked for"),
        ({"folds": None}, "P206 Fold 0 of None was asked for"),
        ({"folds": 3, "fold": 3}, "P206 Fold 3 of 3 was asked for"),
        ({"folds": 3, "validation": 1.0}, "P206 The validation share is 1.0"),
    ],
)
def test_impossible_splits(make_site, arguments, message):
    with pytest.raises(DataError, match=message):
        split(make_site([0, 1, 0, 1]), **{"fold": 0, "validation": 0.2, "seed": 0} | arguments)


def test_impossible_columns(make_site):
    data = make_site([0, 1, 0], ["p", "p", "q"], parts=["train", "test", "test"])
    with pytest.raises(DataError, match=r"P206 Site A: the split column puts 1 patient\(s\) into more than one part"):
        split(data, folds=None, fold=0, validation=0.2, seed=0)
    with pytest.raises(DataError, match="P206 Fold 1 was asked for, but a column fixes the split"):
        split(make_site([0, 1], parts=["train", "test"]), folds=None, fold=1, validation=0.2, seed=0)
