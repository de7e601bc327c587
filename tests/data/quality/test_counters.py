"""Columns that number the rows are no features of a glob, and measurements are never left out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from note_helpers import note, numbers
from polyclinic.data.open import open_data
from polyclinic.data.quality.counters import find_counters
from polyclinic.data.spec import DataSpec
from polyclinic.errors import DataError

MISSING = DataSpec().missing


def kind(values, site=None, name="n"):
    frame = pd.DataFrame({name: [str(value) for value in values]}, dtype="str")
    if site is not None:
        frame["site"] = pd.Series(list(site), dtype="str")
    return find_counters([frame], [name], None if site is None else "site", MISSING).get(name)


def shuffled(values, seed=0):
    return np.random.default_rng(seed).permutation(values)


@pytest.mark.parametrize("features", ["*", ["*"], ["f*", "Unnamed*", "index", "*"]])
@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index", "row_id", "weight"])
def test_a_counter_is_no_feature_of_a_glob(opened, noise, name, features):
    frame = noise().sort_values("y", ignore_index=True)
    frame.insert(0, name, np.arange(len(frame)))
    found = opened(frame.drop(columns="pid"), subject=None, features="*")
    assert found.features == ["f0", "f1", "f2", "f3"]
    assert numbers(found) == ["N220"]
    assert (repr(name) if name else "without a name") in note(found, "N220")


def test_row_numbers_of_two_exports(tmp_path, noise):
    """Saved with row numbers twice: one column without a name, one called after that."""
    noise().to_csv(tmp_path / "once.csv")
    pd.read_csv(tmp_path / "once.csv").to_csv(tmp_path / "table.csv")
    entries = {"table": "table.csv", "site": "site", "subject": "pid", "label": "y", "positive": 1, "features": "*"}
    found = open_data(DataSpec(**entries), tmp_path, "labels")
    assert found.features == ["f0", "f1", "f2", "f3"]
    assert "2 columns are left out" in note(found, "N220")


@pytest.mark.parametrize(
    "values",
    [
        range(30),
        range(100, 70, -1),
        range(7, 97, 3),
        [f"{number:05}" for number in range(30)],
        [float(number) for number in range(1, 31)],
        [number / 8 for number in range(30)],
        [number if number % 5 else "NA" for number in range(30)],
        [10**15 + number for number in range(30)],
    ],
)
def test_even_steps_are_counters(values):
    assert kind(values) == "counter"


def test_counters_of_sites():
    assert kind([*range(15), *range(15)], "A" * 15 + "B" * 15) == "counter"
    assert kind(np.repeat(np.arange(1, 16), 2), "AB" * 15) == "counter"  # rows of sites take turns
    assert kind([*range(15), *range(500, 515)], "A" * 15 + "B" * 15) == "counter"


def test_counters_of_one_table_a_site():
    tables = [pd.DataFrame({"n": [str(row) for row in range(12)]}, dtype="str") for _ in range(2)]
    assert find_counters(tables, ["n"], None, MISSING) == {"n": "counter"}


@pytest.mark.parametrize("name", ["index", "ID", "PatientID", "subject_id", "Row Number", "mrn", "#"])
def test_a_name_for_numbers_and_no_number_twice(name):
    assert kind(shuffled(np.arange(3, 23) ** 2), name=name) == "index"
    assert kind([1, 1, 2, 3], name=name) is None


@pytest.mark.parametrize("name", ["grid", "liquid", "void", "acid", "nodule", "order"])
def test_words_that_only_end_like_such_a_name(name):
    assert kind(shuffled(np.arange(3, 23) ** 2), name=name) is None


@pytest.mark.parametrize(
    ("name", "found"), [("patient_id", "index"), ("PID", "index"), ("volume", None), ("bid", None)]
)
def test_numbers_of_patients_with_several_rows(name, found):
    assert kind(np.repeat(shuffled(np.arange(100, 900, 37)), 3), name=name) == found


@pytest.mark.parametrize("name", ["site_id", "scanner id", "case", "no"])
def test_names_of_groups(name):
    assert kind(np.tile([1, 2, 3, 7], 20), name=name) is None


def test_dates_without_separators(opened, noise):
    days = np.random.default_rng(0).integers(0, 1000, 80)
    frame = noise().assign(f9=(pd.Timestamp("2018-01-31") + pd.to_timedelta(days, "D")).strftime("%Y%m%d"))
    found = opened(frame)
    assert "The feature 'f9' has dates that are written as numbers" in note(found, "N221")


def test_rows_were_taken_out_before():
    """Whole numbers in order, at uneven steps: perhaps a counter, perhaps ages by which the table is sorted."""
    assert kind(np.cumsum(np.random.default_rng(0).integers(1, 4, 40))) == "sorted"


@pytest.mark.parametrize(
    "values",
    [
        np.sort(np.random.default_rng(0).integers(20, 90, 60)),  # ages with ties
        np.random.default_rng(0).integers(20, 90, 60),
        np.sort(np.random.default_rng(0).normal(size=60)),
        np.random.default_rng(0).permutation(np.arange(1_000_000, 1_600_000, 9000) + 17),  # volumes in mm3
        np.tile(np.arange(1, 6), 12),  # visits
        np.full(60, 3),
        np.repeat([0, 1], 30),
        range(6),  # few rows
        np.random.default_rng(0).normal(1e32, 1e31, 60),
        ["NA"] * 40,
    ],
)
def test_measurements_are_none(values):
    assert kind(values) is None


@pytest.mark.parametrize(
    "values",
    [
        shuffled(np.arange(40)),
        shuffled([f"{number:06}" for number in range(100, 90_000, 2000)]),
        shuffled(np.arange(40) * 977 + 201_900_017_345),
        shuffled([str(number * 977 + 123_456_789_012_345_678) for number in range(40)]),
    ],
)
def test_numbers_of_cases(values):
    assert kind(values) == "identifier"


def test_a_counter_that_is_named_stays_with_a_note(opened, noise):
    frame = noise().assign(when=range(80))
    found = opened(frame, features=["f*", "when"])
    assert "when" in found.features
    assert numbers(found) == ["N221"]
    assert "The feature 'when' has numbers that only count the rows" in note(found, "N221")


def test_numbers_in_order_stay_with_a_note(opened, noise):
    frame = noise().assign(f9=np.cumsum(np.random.default_rng(0).integers(1, 4, 80)))
    found = opened(frame)
    assert "f9" in found.features
    assert "stand in the order of the rows" in note(found, "N221")


def test_a_group_of_its_own_for_each_row(opened, noise):
    frame = noise().assign(code=[f"c{row}" for row in range(80)])
    found = opened(frame, categorical=["code"])
    assert "'code' has a value of its own for each row" in note(found, "N221")


def test_rows_that_the_study_does_not_use_count_as_well(opened, noise):
    """A selection of a counted table has uneven steps; the counter is found in the whole table."""
    rng = np.random.default_rng(0)
    frame = noise().assign(f9=range(80), scanner=rng.permutation(np.arange(80) % 2))
    found = opened(frame, where={"scanner": 1})
    assert found.features == ["f0", "f1", "f2", "f3"]


def test_nothing_but_counters(opened, noise):
    frame = noise(features=0).assign(f0=range(80))
    with pytest.raises(DataError, match="P202 No feature is left: the columns that `features` takes have no name"):
        opened(frame)


def test_excluded_counters_are_not_told(opened, noise):
    assert numbers(opened(noise().assign(f9=range(80)), exclude="f9")) == []


@given(
    st.integers(-(10**6), 10**6), st.integers(1, 50), st.sampled_from([1, -1]), st.integers(10, 60),
    st.sampled_from(["{}", "{}.0", "{:08}"]),
)  # fmt: skip
def test_any_counter_is_found(start, step, sign, rows, form):
    assert kind([form.format(start + sign * step * row) for row in range(rows)]) == "counter"


@given(st.lists(st.integers(0, 30), min_size=40, max_size=60))
def test_numbers_that_repeat_are_never_left_out(values):
    """Forty whole numbers below thirty repeat."""
    assert kind(values) is None


@pytest.mark.parametrize("change", [{5: 999}, {7: 6, 60: 59}, {0: 50, 30: 2, 79: 3}])
def test_a_counter_with_a_few_rows_changed(opened, noise, change):
    """Sorted by the label, it gives it away like the counter that it was."""
    frame = noise(features=2).sort_values("y", ignore_index=True)
    frame["f9"] = [change.get(row, row) for row in range(80)]
    assert "'f9' has numbers that only count the rows, but for a few" in note(opened(frame), "N221")


def test_ages_in_order_are_no_counter(opened, noise):
    frame = noise(features=2)
    frame["f9"] = np.sort(np.random.default_rng(0).integers(40, 90, 80))
    assert numbers(opened(frame)) == []


def test_codes_that_number_the_cases_are_told_once(opened, noise):
    frame = noise(features=2)
    frame["f9"] = [f"0{1000 + row * 37 % 80 * 9}" for row in range(80)]
    assert numbers(opened(frame)) == ["N221"]


@pytest.mark.parametrize("visits", [10, 20, 40])
def test_visits_of_each_patient_are_no_counter(opened, noise, visits):
    frame = noise(cases=80, features=2)
    frame["pid"] = [f"{site}{row // visits}" for row, site in enumerate(frame["site"])]
    frame["f9"] = np.arange(160) % visits
    assert "N221" not in numbers(opened(frame))
