"""Artificial sites."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.data.catalogue.artificial import LEAST_SUBJECTS, artificial_sites
from polyclinic.errors import DataError


def cases(subjects, each=2, classes=3):
    """Subjects with several cases each, all of the subject's class."""
    names = pd.Series([f"P{number}" for number in range(subjects) for _ in range(each)])
    return names, pd.Series([f"class {number % classes}" for number in range(subjects) for _ in range(each)])


@settings(max_examples=30)
@given(st.sampled_from(["dirichlet", "quantity"]), st.integers(2, 4), st.floats(0.5, 50), st.integers(0, 5))
def test_sites_hold_all_cases_and_whole_subjects(scheme, sites, alpha, seed):
    names, classes = cases(80)
    found = artificial_sites(names, classes, scheme, sites, alpha, seed)
    assert set(found) == {f"artificial-{number}" for number in range(1, sites + 1)}
    assert (found.groupby(names).nunique() == 1).all()
    assert (names.groupby(found).nunique() >= LEAST_SUBJECTS).all()
    assert found.equals(artificial_sites(names, classes, scheme, sites, alpha, seed))
    assert found.index.equals(names.index)


def test_the_seed_and_the_order_of_rows():
    names, classes = cases(60)
    first = artificial_sites(names, classes, "dirichlet", 3, 1.0, 0)
    assert not first.equals(artificial_sites(names, classes, "dirichlet", 3, 1.0, 1))
    shuffled = names.sample(frac=1, random_state=0)
    again = artificial_sites(shuffled, classes[shuffled.index], "dirichlet", 3, 1.0, 0)
    assert again.sort_index().equals(first)


def spread(scheme, alpha):
    """Mean over sites of the distance of a site's class shares from those of all."""
    names, classes = cases(600, each=1)
    distances = []
    for seed in range(5):
        found = artificial_sites(names, classes, scheme, 4, alpha, seed)
        shares = pd.crosstab(found, classes, normalize="index").to_numpy()
        distances.append(np.abs(shares - 1 / 3).sum(axis=1).mean())
    return float(np.mean(distances))


def test_a_small_alpha_makes_unlike_sites():
    assert spread("dirichlet", 0.3) > 0.5 > 0.1 > spread("dirichlet", 1000)
    assert spread("quantity", 1.0) < 0.3


def test_a_large_alpha_makes_sites_of_one_size():
    names, classes = cases(400, each=1)
    found = artificial_sites(names, classes, "quantity", 4, 1e6, 0)
    assert found.value_counts().between(98, 102).all()


def test_too_few_subjects():
    names, classes = cases(19)
    with pytest.raises(
        DataError, match=r"P206 19 subjects can't be spread over 4 artificial sites with 5 subjects or more"
    ):
        artificial_sites(names, classes, "quantity", 4, 1e6, 0)
