"""ComBat as part of a study: what it is fitted on, what is exchanged, engines, unseen sites and the report."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from helpers import recorded, write_table_study
from polyclinic.data.combat import SiteEffect, estimate, summarise
from polyclinic.data.preparation import name_steps
from polyclinic.data.statistics import LEAST_CASES
from polyclinic.engine import LocalEngine
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import DataError, StudyError
from polyclinic.site.messages import Prepare
from polyclinic.study.preparing import describe, prepare
from polyclinic.study.report.harmonisation import explained_by_site
from polyclinic.study.results import Results
from polyclinic.study.study import Study

SIZES = {"Aachen": 40, "Bonn": 26, "Celle": 30}
COMBAT = {"combat": {"covariates": ["age", "sex"]}}


@pytest.fixture
def entries(tmp_path):
    """A study of three sites that differ in mean and spread, with covariates that also have an effect."""
    entries = write_table_study(tmp_path, SIZES, features=4)
    table, rng = pd.read_csv(tmp_path / "cases.csv"), np.random.default_rng(3)
    table["age"] = rng.integers(20, 80, len(table))
    table["sex"] = np.where(rng.random(len(table)) < 0.5, "F", "M")
    number = table["site"].map({"Aachen": 0, "Bonn": 1, "Celle": 2}).to_numpy()
    for feature in range(4):
        values = table[f"x{feature}"] * np.array([1.0, 2.0, 0.6])[number] + np.array([0.0, 5.0, -3.0])[number]
        table[f"x{feature}"] = values + 0.02 * feature * table["age"] + (table["sex"] == "M") * 0.5
    table.loc[::9, "x1"] = np.nan
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["data"] |= {"harmonisation": COMBAT, "scaling": "federated"}
    return entries | {"methods": ["fedavg"], "model": "logistic"}


def run(entries, folder, out="out", **options) -> Results:
    return Study.of(entries, folder).run(folder / out, **options)


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder: folder / "report.html")


def request(study: Study, opened, **changes):
    """The message that prepares sites for the first fold."""
    steps = name_steps(study.declaration.data, opened.features, opened.covariates)
    return Prepare.model_validate({
        "fold": 0, "folds": 2, "validation": 0.2, "split_seed": 0, "small_sites": "train", "steps": steps,
        "augmentation": [], "classes": 2, **changes,
    })  # fmt: skip


def prepared(entries, folder, without=None, engine=None):
    """Sites after the first fold's preparation."""
    study = Study.of(entries, folder)
    opened = study.open()
    engine = engine or LocalEngine(opened.sites)
    return opened, engine, prepare(engine, request(study, opened), without)


# What is learned from what --------------------------------------------------------------------------------------------


def test_sites_train_on_what_combat_of_their_training_parts_gives(entries, tmp_path):
    opened, engine, _ = prepared(entries | {"data": entries["data"] | {"scaling": "none"}}, tmp_path)
    assert opened.covariates == {"age": ["age"], "sex": ["sex=M"]}
    assert opened.features == ["x0", "x1", "x2", "x3"], "covariates are not features"
    parts = {site: member.parts.train for site, member in engine.members.items()}
    data = opened.sites
    common, _ = estimate(
        {s: summarise(data[s].inputs[i], data[s].covariates[i], groups=[[0], [1]]) for s, i in parts.items()},
        ["age", "sex"],
    )
    for site, index in parts.items():
        own = data[site]
        effect = SiteEffect.fit(own.inputs[index], own.covariates[index], common)
        expected = effect.remove(own.inputs, own.covariates, common).float()
        found, _ = engine.members[site].dataset.batch(torch.arange(len(own)))
        there = ~expected.isnan()
        assert torch.equal(found[there], expected[there])
        filled = expected[index].nanmean(0).expand_as(expected)[~there]
        torch.testing.assert_close(found[~there], filled)


def test_the_common_scale_is_that_of_harmonised_features(entries, tmp_path):
    _, engine, _ = prepared(entries, tmp_path)
    inputs = torch.cat([m.dataset.batch(m.parts.train)[0] for m in engine.members.values()])
    torch.testing.assert_close(inputs.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    means = torch.stack([m.dataset.batch(m.parts.train)[0].mean(0) for m in engine.members.values()])
    assert means.abs().max() < 0.3, "the sites' means are still apart"


def test_test_cases_and_labels_change_nothing_that_is_learned(entries, tmp_path):
    entries["evaluation"] = {"split": "part", "validation": 0.25, "metrics": ["auc"], "bootstrap": 0}
    table = pd.read_csv(tmp_path / "cases.csv")
    table["part"] = np.where(np.arange(len(table)) % 4 == 3, "test", "train")
    table["age"] = table["age"].astype(float)
    table.to_csv(tmp_path / "cases.csv", index=False)
    first = run(entries, tmp_path, "first")
    test = table["part"] == "test"
    table.loc[test, ["x0", "x1", "x2", "x3", "age"]] = np.random.default_rng(0).normal(50, 30, (int(test.sum()), 5))
    table.loc[test, "diagnosis"] = table.loc[test, "diagnosis"].to_numpy()[::-1]
    table.to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries, tmp_path, "second")
    models = [{path.name: path.read_bytes() for path in (r.folder / "models").iterdir()} for r in (first, second)]
    assert models[0] == models[1]
    assert not first.predictions["score"].equals(second.predictions["score"])


def test_a_pooled_site_effect_is_gone_for_a_method_that_sees_all_sites(entries, tmp_path):
    """Shifting a whole site changes nothing at all, since its shift is taken out again."""
    entries["data"]["harmonisation"] = {"combat": {"empirical_bayes": False}}
    first = run(entries | {"methods": ["mix"]}, tmp_path, "first")
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[table["site"] == "Bonn", ["x0", "x1", "x2", "x3"]] -= 100
    table.to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries | {"methods": ["mix"]}, tmp_path, "second")
    np.testing.assert_allclose(first.predictions["score"], second.predictions["score"], atol=2e-4)


# What is exchanged ----------------------------------------------------------------------------------------------------


def test_sites_share_sums_and_nothing_of_small_groups(entries, tmp_path):
    table = pd.read_csv(tmp_path / "cases.csv")
    bonn = (table["site"] == "Bonn").to_numpy()
    table.loc[np.flatnonzero(bonn)[3:], "x2"] = np.nan  # at most three values there
    table.to_csv(tmp_path / "cases.csv", index=False)
    study = Study.of(entries, tmp_path)
    opened = study.open()
    engine = LocalEngine(opened.sites)
    with recorded(engine) as said:
        prepare(engine, request(study, opened))
        describe(engine, dict(enumerate(opened.features)))
    assert list(dict.fromkeys(name for name, *_ in said)) == ["prepare", "share", "apply", "describe"]
    shared = {site: reply for name, site, _, reply in said if name == "share" and "cross" in reply.tensors}
    assert {name: tuple(t.shape) for name, t in shared["Bonn"].tensors.items()} == {
        "count": (4,), "mean": (4,), "m2": (4,), "covariate_mean": (4, 2), "covariate_m2": (4, 2, 2), "cross": (4, 2),
    }  # fmt: skip
    assert all(not tensor[2].any() for tensor in shared["Bonn"].tensors.values())
    for name, site, _, reply in said:
        if name == "describe" and site == "Bonn":
            for stage in ("before", "after"):
                silent = reply.tensors.get(f"{stage}/count", reply.tensors.get(f"{stage}/rank"))[2]
                assert (silent.nan_to_num(0) == 0).all()


def test_the_description_is_of_all_test_cases(entries, tmp_path):
    results = run(entries, tmp_path)
    table = pd.read_csv(results.folder / "harmonisation.csv")
    assert table.columns.tolist() == ["site", "feature", "stage", "count", "mean", "deviation", "low", "median", "high"]
    assert len(table) == 3 * 4 * 2
    cases = pd.read_csv(tmp_path / "cases.csv")
    before = table[table["stage"] == "before"].set_index(["site", "feature"])
    for site in SIZES:
        for feature in ("x0", "x1"):
            own = cases.loc[cases["site"] == site, feature].dropna()
            row = before.loc[(site, feature)]
            assert row["count"] == len(own)
            assert row["mean"] == pytest.approx(own.mean(), rel=1e-5)
            assert row["deviation"] == pytest.approx(own.std(ddof=0), rel=1e-5)
            assert abs((own < row["median"]).sum() - len(own) / 2) < 2 * LEAST_CASES
    spread = table.groupby(["feature", "stage"])["mean"].agg(np.ptp).unstack()
    assert (spread["after"] < 0.2 * spread["before"]).all()


# Engines --------------------------------------------------------------------------------------------------------------


def test_worker_processes_and_bytes_give_the_same(entries, tmp_path):
    opened, engine, plain = prepared(entries, tmp_path)
    expected = describe(engine, dict(enumerate(opened.features)))
    workers = ProcessEngine(opened.sites, workers=2, threads=1, folders=dict.fromkeys(opened.sites))
    try:
        for other in (workers, LocalEngine(opened.sites, serialise=True)):
            _, _, again = prepared(entries, tmp_path, engine=other)
            assert again.notes == plain.notes
            pd.testing.assert_frame_equal(describe(other, dict(enumerate(opened.features))), expected, check_exact=True)
    finally:
        workers.close()


def test_sequential_and_stacked_and_resumed_runs_agree(entries, tmp_path):
    entries["evaluation"]["unseen_sites"] = True
    first = run(entries, tmp_path, "first")
    stacked = run(entries | {"engine": {"threads": 1, "mode": "stacked"}}, tmp_path, "stacked")
    np.testing.assert_allclose(first.predictions["score"], stacked.predictions["score"], atol=1e-5)
    assert (first.folder / "harmonisation.csv").read_bytes() == (stacked.folder / "harmonisation.csv").read_bytes()


# Sites that took no part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harmonisation", ["none", COMBAT])
@pytest.mark.parametrize("method", ["fedavg", "mix"])
def test_a_site_that_is_left_out_gives_nothing_to_the_others(entries, tmp_path, harmonisation, method):
    entries["evaluation"]["unseen_sites"] = True
    entries["data"] |= {"harmonisation": harmonisation}
    entries["methods"] = [method]
    first = run(entries, tmp_path, "first")
    table = pd.read_csv(tmp_path / "cases.csv")
    table.loc[table["site"] == "Celle", ["x0", "x1", "x2", "x3"]] *= 7
    table.loc[table["site"] == "Celle", "age"] += 5
    table.to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries, tmp_path, "second")
    for fold in (0, 1):
        for left_out, same in (("Celle", True), ("Bonn", False)):
            name = f"{method}*-seed0-fold{fold}-without-{left_out}.safetensors"
            found = [next((one.folder / "models").glob(name)).read_bytes() for one in (first, second)]
            assert (found[0] == found[1]) is same


def test_a_site_that_is_left_out_is_harmonised_with_the_others(entries, tmp_path):
    _, engine, _ = prepared(entries, tmp_path, without="Bonn")
    inputs = {site: member.dataset.batch(member.parts.train)[0] for site, member in engine.members.items()}
    torch.testing.assert_close(
        torch.cat([inputs["Aachen"], inputs["Celle"]]).mean(0), torch.zeros(4), atol=1e-6, rtol=0
    )
    assert inputs["Bonn"].mean(0).abs().max() < 0.3
    assert (inputs["Bonn"].std(0) / torch.cat([inputs["Aachen"], inputs["Celle"]]).std(0) - 1).abs().max() < 0.4


def test_a_reference_site_stays_as_it_is(entries, tmp_path):
    entries["data"] |= {"harmonisation": {"combat": {"reference_site": "Aachen"}}, "scaling": "none"}
    opened, engine, _ = prepared(entries, tmp_path)
    found, _ = engine.members["Aachen"].dataset.batch(torch.arange(SIZES["Aachen"]))
    there = ~opened.sites["Aachen"].inputs.isnan()
    torch.testing.assert_close(found[there], opened.sites["Aachen"].inputs[there], rtol=1e-6, atol=1e-6)
    bonn = engine.members["Bonn"].dataset.batch(engine.members["Bonn"].parts.train)[0]
    assert (bonn.mean(0) - found.mean(0)).abs().max() < 0.8
    _, engine, _ = prepared(entries, tmp_path, without="Aachen")
    changed, _ = engine.members["Aachen"].dataset.batch(torch.arange(SIZES["Aachen"]))
    assert (changed[there] - found[there]).abs().max() > 0.1, "without the reference, the others are the reference"


def test_sites_with_few_cases_or_small_groups_are_named(entries, tmp_path):
    table = pd.read_csv(tmp_path / "cases.csv")
    table["sex"] = np.where(np.arange(len(table)) % 2, "F", "M")
    aachen = np.flatnonzero(table["site"] == "Aachen")
    table.loc[aachen, "sex"] = np.where(np.arange(len(aachen)) < 4, "F", "M")
    table = table[(table["site"] != "Celle") | (table.groupby("site").cumcount() < 4)]
    table.to_csv(tmp_path / "cases.csv", index=False)
    notes = {note.split()[2]: note for note in run(entries, tmp_path).notes if note.startswith("ComBat: site")}
    assert "fewer than 5 training cases of a group that a covariate names" in notes["Aachen"]
    assert "fewer than 5 training cases. It shares no summary" in notes["Celle"]


# Entries that don't fit -----------------------------------------------------------------------------------------------


def test_encoded_categories_stay_as_they_are(entries, tmp_path):
    entries["data"] |= {"categorical": ["sex"], "harmonisation": "combat", "scaling": "none"}
    opened, engine, _ = prepared(entries, tmp_path)
    assert opened.features == ["x0", "x1", "x2", "x3", "sex=F", "sex=M"]
    for site, member in engine.members.items():
        found, _ = member.dataset.batch(torch.arange(SIZES[site]))
        assert torch.equal(found[:, 4:], opened.sites[site].inputs[:, 4:])
        assert not torch.equal(found[:, 0], opened.sites[site].inputs[:, 0])


def test_nothing_but_categories(entries, tmp_path):
    entries["data"] |= {"features": ["sex"], "categorical": ["sex"], "harmonisation": "combat"}
    with pytest.raises(DataError, match="P207 All features are made from categories"):
        run(entries, tmp_path)


def test_cases_without_a_covariate_are_rejected_and_counted(entries, tmp_path):
    table = pd.read_csv(tmp_path / "cases.csv")
    table["age"] = table["age"].astype(object)
    table.loc[[0, 1], "age"] = "NA"
    table.to_csv(tmp_path / "cases.csv", index=False)
    sites, _ = Study.of(entries, tmp_path).check()
    assert sites.loc[0, ["found", "used", "reasons"]].tolist() == [40, 38, "age is missing (2)"]


def test_numbers_that_name_groups(entries, tmp_path):
    table = pd.read_csv(tmp_path / "cases.csv")
    table["hand"] = np.arange(len(table)) % 3 + 1
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["data"]["harmonisation"] = {"combat": {"covariates": ["age"], "groups": ["hand"]}}
    opened = Study.of(entries, tmp_path).open()
    assert opened.covariates == {"age": ["age"], "hand": ["hand=2", "hand=3"]}
    assert opened.sites["Aachen"].covariates[:4, 1:].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("harmonisation", "message"),
    [
        ("comabt", "P102 .*expected none, combat or"),
        ({"comabt": {}}, "P103 .*has no entry 'comabt'. Did you mean 'combat'?"),
        ({"combat": {"covariate": ["age"]}}, "P103 .*has no entry 'covariate'. Did you mean 'covariates'?"),
        ({"combat": {"covariates": "age"}}, "P102 .*got 'age'; expected a list"),
        ({"combat": {"covariates": ["diagnosis"]}}, "P104 .*the label 'diagnosis' can't be a covariate: the covariates "
                                                    "of test cases are used to harmonise them"),
        ({"combat": {"covariates": ["site"]}}, "P104 .*'site' names the site"),
        ({"combat": {"groups": ["patient"]}}, "P104 .*'patient' names the patient"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_named(entries, tmp_path, harmonisation, message):
    entries["data"]["harmonisation"] = harmonisation
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(StudyError, match=message):
        Study.read(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("combat", "message"),
    [
        ({"covariates": ["agee"]}, "P202 .*'agee'.* Did you mean 'age'?"),
        ({"reference_site": "Achen"}, "P207 The reference site 'Achen' is not among the sites. Did you mean 'Aachen'?"),
        ({"covariates": ["mixed"]}, "P203 The covariate 'mixed' has 95 numbers and 1 other values"),
    ],
)
def test_what_the_table_does_not_have_is_named(entries, tmp_path, combat, message):
    table = pd.read_csv(tmp_path / "cases.csv").astype({"age": object})
    table["mixed"] = table["age"]
    table.loc[5, "mixed"] = "unknown"
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["data"]["harmonisation"] = {"combat": combat}
    with pytest.raises(DataError, match=message):
        Study.of(entries, tmp_path).open()


def test_a_covariate_that_is_the_sites_stops_the_study(entries, tmp_path):
    table = pd.read_csv(tmp_path / "cases.csv")
    table["field_strength"] = table["site"].map({"Aachen": 1.5, "Bonn": 3.0, "Celle": 3.0})
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["data"]["harmonisation"] = {"combat": {"covariates": ["age", "field_strength"]}}
    with pytest.raises(DataError, match="P207 The covariate 'field_strength' does not vary within any site"):
        run(entries, tmp_path)
    assert not (tmp_path / "out").exists(), "nothing is written before study and data are known to fit"


def test_images_are_not_for_combat(tmp_path):
    data = {"table": "cases.csv", "site": "site", "image": "image", "mask": "mask", "size": [8, 8]}
    entries = {"task": "segmentation", "data": {**data, "harmonisation": "combat"}, "model": "unet"}
    with pytest.raises(StudyError, match=r"P104 .*ComBat is for features of a table; this study has images"):
        Study.of(entries, tmp_path)


@pytest.mark.parametrize("given", ["none", "combat", {"combat": None}, {"combat": {"empirical_bayes": False}}])
def test_the_filled_study_file_says_the_same(entries, tmp_path, given):
    entries["data"]["harmonisation"] = given
    study = Study.of(entries, tmp_path)
    filled = study.declaration.filled()
    again = Study.of(filled, tmp_path)
    assert again.declaration.data.harmonisation == study.declaration.data.harmonisation
    assert filled["data"]["harmonisation"] == "none" if given == "none" else "combat" in filled["data"]["harmonisation"]


# The report -----------------------------------------------------------------------------------------------------------


def test_the_report_says_what_the_site_explained(entries, tmp_path):
    from polyclinic.study.report.page import write_report

    results = run(entries, tmp_path)
    page = write_report(results.folder).read_text()
    cases = pd.read_csv(tmp_path / "cases.csv")
    shares = []
    for feature in ("x0", "x1", "x2", "x3"):
        own = cases[["site", feature]].dropna()
        within = own.groupby("site")[feature].transform("mean")
        shares.append(1 - ((own[feature] - within) ** 2).sum() / ((own[feature] - own[feature].mean()) ** 2).sum())
    assert f"The site explained <strong>{100 * np.mean(shares):.1f}\u00a0%</strong> of the variance" in page
    assert "The effect of age, sex was kept." in page
    assert page.count("Medians of the sites from") == 2 * 4  # caption and description of each figure
    assert "MRN-" not in page


def test_a_report_without_harmonisation_has_no_such_section(entries, tmp_path):
    from polyclinic.study.report.page import write_report

    entries["data"]["harmonisation"] = "none"
    results = run(entries, tmp_path)
    assert not (results.folder / "harmonisation.csv").exists()
    assert "Differences between sites" not in write_report(results.folder).read_text()


def test_the_share_that_the_site_explains_by_hand():
    """Sites A: 1, 3 (mean 2, deviation 1) and B: 8, 8, 8, 8 (mean 8); the mean of all six is 6.

    Between: 2 (2 − 6)² + 4 (8 − 6)² = 48, within: 2, so 48 / 50. At a site of which nothing is known a feature counts
    as if the site were not there; one that is the same everywhere has no share.
    """
    count = np.array([[2.0, 2.0, 3.0], [4.0, 4.0, 3.0], [0.0, 0.0, 3.0]])
    mean = np.array([[2.0, 0.1, 5.0], [8.0, 0.1, 5.0], [0.0, 0.0, 5.0]])
    deviation = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    assert explained_by_site(count, mean, deviation) == pytest.approx([48 / 50, np.nan, 0.0], nan_ok=True)
