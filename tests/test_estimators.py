"""The estimators of scikit-learn: its own checks, sites' own models, and the numbers of a study."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from polyclinic.errors import PolyclinicError
from polyclinic.estimators import FederatedClassifier, FederatedRegressor

FEW = {"rounds": 10, "optimizer": {"sgd": {"lr": 0.1}}}


def cases(number=90, seed=0):
    """Features, labels and sites; at site C the labels are the other way round."""
    random = np.random.default_rng(seed)
    labels, sites = random.integers(0, 2, number), np.array(list("ABC") * (number // 3))
    table = random.normal(0, 1, (number, 3))
    table[:, 0] += 2 * np.where(sites == "C", 1 - labels, labels)
    return table, np.where(labels, "ill", "well"), sites


@pytest.mark.long
@pytest.mark.parametrize("estimator", [FederatedClassifier(training=FEW), FederatedRegressor(training=FEW)])
def test_the_checks_of_scikit_learn(estimator):
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    assert [one["check_name"] for one in found if one["status"] in ("failed", "xfail")] == []


def test_classes_names_and_probabilities():
    table, labels, sites = cases()
    frame = pd.DataFrame(table, columns=["a", "b", "c"])
    model = FederatedClassifier(training=FEW).fit(frame, labels, groups=sites)
    assert model.classes_.tolist() == ["ill", "well"]
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.sites_.tolist() == ["A", "B", "C"]
    found = model.predict_proba(frame)
    assert found.shape == (90, 2)
    assert np.allclose(found.sum(1), 1)
    assert (model.predict(frame) == model.classes_[found.argmax(1)]).all()
    assert clone(model).get_params() == model.get_params()
    again = clone(model).fit(frame, labels, groups=sites)
    assert np.array_equal(again.predict_proba(frame), found)


def test_the_model_of_one_site_comes_near_logistic_regression():
    table, labels, _ = cases()
    training = {"rounds": 200, "batch_size": 90, "optimizer": {"sgd": {"lr": 1.0}}}
    model = FederatedClassifier(training=training).fit(table, labels)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=np.inf)).fit(table, labels)
    assert np.allclose(model.predict_proba(table), theirs.predict_proba(table), atol=1e-3)


def test_a_site_has_its_own_model_and_others_the_mean():
    table, labels, sites = cases()
    model = FederatedClassifier(method="single", training=FEW).fit(table, labels, groups=sites)
    own = [model.predict_proba(table, groups=np.full(90, site)) for site in "ABC"]
    assert not np.allclose(own[0], own[2])
    mean = np.mean(own, axis=0)
    assert np.allclose(model.predict_proba(table), mean)
    assert np.allclose(model.predict_proba(table, groups=np.full(90, "new")), mean)
    mixed = model.predict_proba(table, groups=sites)
    for place, site in enumerate("ABC"):
        assert np.array_equal(mixed[sites == site], own[place][sites == site])
    assert (model.predict(table, groups=sites) == labels).mean() > 0.8


def test_scaling_by_each_site():
    table, labels, sites = cases()
    table[sites == "B"] = table[sites == "B"] * 1000 + 5  # other units
    model = FederatedClassifier(scaling="per_site", training=FEW).fit(table[sites != "C"], labels[sites != "C"],
                                                                      groups=sites[sites != "C"])  # fmt: skip
    here = sites == "B"
    assert (model.predict(table[here], groups=sites[here]) == labels[here]).mean() > 0.7
    together = model.predict_proba(table[here], groups=np.full(here.sum(), "new"))
    assert np.allclose(together, model.predict_proba(table[here], groups=sites[here]), atol=1e-5)
    with pytest.raises(ValueError, match=r"the cases of a new site .* needs two at least"):
        model.predict_proba(table[:1], groups=["new"])


def test_missing_values_become_means():
    table, labels, sites = cases()
    model = FederatedClassifier(training=FEW).fit(table, labels, groups=sites)
    one = table[:1].copy()
    one[0, 1] = np.nan
    filled = one.copy()
    filled[0, 1] = table[:, 1].astype(np.float32).mean()
    assert np.allclose(model.predict_proba(one), model.predict_proba(filled), atol=1e-6)


def test_in_a_pipeline_and_a_cross_validation():
    table, labels, sites = cases()
    patients = np.repeat(np.arange(30), 3)
    model = make_pipeline(StandardScaler(), FederatedClassifier(training=FEW, scaling="none"))
    sent = {"federatedclassifier__groups": sites, "federatedclassifier__subjects": patients}
    found = cross_val_score(model, table, labels, groups=patients, cv=GroupKFold(3), params=sent)
    assert found.shape == (3,)
    assert np.isfinite(found).all()


def test_numbers_in_their_own_unit():
    random = np.random.default_rng(0)
    table = random.normal(0, 1, (60, 2))
    years = 50 + 10 * table[:, 0]
    model = FederatedRegressor(training={"rounds": 60, "optimizer": {"sgd": {"lr": 0.1}}})
    assert model.fit(table, years, groups=["A", "B"] * 30).score(table, years) > 0.95
    assert abs(model.predict(table).mean() - years.mean()) < 1


def test_networks_may_be_functions():
    table, labels, sites = cases()
    model = FederatedClassifier(model=lambda shape, outputs: torch.nn.Linear(shape[0], outputs), training=FEW)
    assert model.fit(table, labels, groups=sites).predict(table).shape == (90,)


@pytest.mark.parametrize(("changes", "given", "why"), [
    ({}, {"groups": ["A"] * 3}, "inconsistent numbers of samples"),
    ({}, {"groups": ["A", None] * 45}, "45 of 90 `groups` are missing"),
    ({}, {"groups": ["A"] * 89 + [" "]}, "1 of 90 `groups` are missing"),
    ({"random_state": "x"}, {}, "random_state: got 'x'"),
    ({"method": "ditto"}, {"groups": ["A", "B"] * 45}, "keeps personal models at sites"),
    ({"method": "fedavgg"}, {}, "Did you mean 'fedavg'"),
    ({"scaling": "both"}, {}, "P102"),
    ({}, {"groups": ["pool"] * 90}, "P203 A site can't be called 'pool'"),
])  # fmt: skip
def test_mistakes(changes, given, why):
    table, labels, _ = cases()
    with pytest.raises((ValueError, PolyclinicError), match=why):
        FederatedClassifier(**{"training": FEW, **changes}).fit(table, labels, **given)
