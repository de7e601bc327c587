"""Studies of numbers and of several structures from their files to the report."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import mean_absolute_error, r2_score

from helpers import Federation, number_site, recorded, write_image_study, write_number_study
from polyclinic import Study
from polyclinic.data.splits import split
from polyclinic.errors import DataError, StudyError
from polyclinic.study.job import Job

SIZES = {"Aachen": 24, "Bonn": 20, "Celle": 18}


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    """A finished study of ages."""
    folder = tmp_path_factory.mktemp("ages")
    study = write_number_study(folder, SIZES)
    study["methods"].append({"fedavg": {"label": "fedavg huber", "training": {"loss": "huber"}}})
    study["evaluation"]["unseen_sites"] = ["fedavg"]
    return Study.of(study, folder).run(folder / "results")


def plain(table):
    """The rows of methods that were run at all sites."""
    return table[table["run"] == "plain"]


# --- regression


def test_ages_are_predicted_in_years(ages):
    table = ages.table("all")
    assert list(table.columns) == ["mae", "rmse", "r2", "r"]
    assert table.loc["fedavg", "mae"] < 5  # the ages vary by 13 years
    assert table.loc["fedavg", "r2"] > 0.7
    predictions = plain(ages.predictions)
    assert "threshold" not in predictions
    mine = predictions[predictions["method"] == "fedavg"]
    assert mine["label"].mean() == pytest.approx(mine["score"].mean(), abs=3)
    rows = plain(ages.results).query("method == 'fedavg' and tested_on == 'Bonn'")
    one = mine[(mine["site"] == "Bonn") & (mine["fold"] == 1)]
    values = rows[rows["fold"] == 1].set_index("metric")["value"]
    assert values["mae"] == pytest.approx(mean_absolute_error(one["label"], one["score"]))
    assert values["r2"] == pytest.approx(r2_score(one["label"], one["score"]))


def test_summary_of_ages_has_intervals_around_the_means_and_tests(ages):
    rows = plain(ages.summary).query("method == 'fedavg' and over == 'all'").set_index("metric")
    assert (rows["low"] <= rows["mean"]).all()
    assert (rows["mean"] <= rows["high"]).all()
    assert rows["p_single"].notna().all()
    assert rows["high"]["r2"] <= 1


def test_the_report_of_ages_shows_predicted_against_true_and_no_classes(ages):
    text = (ages.folder / "report.html").read_text(encoding="utf-8")
    assert "Predicted against true" in text
    assert "Mean absolute error" in text
    for absent in ("ROC", "Calibration: can", "Decision threshold", "Which classes"):
        assert absent not in text
    assert "secret" not in text


def test_the_scale_of_the_numbers_comes_from_all_training_sites_and_no_other():
    sites = {name: number_site(name, cases) for name, cases in SIZES.items()}
    federation = Federation(sites, model="logistic", task="regression", classes=0)
    together = torch.cat([site.targets for site in sites.values()]).double()
    scale = federation.plan().start.target_scale
    assert scale == pytest.approx([together.mean().item(), together.std(correction=0).item()], rel=1e-6)
    without = federation.runner.plan(Job((federation.method(),), 0, 0, without="Bonn"), federation.fold, ["Aachen"])
    others = torch.cat([sites[name].targets for name in ("Aachen", "Celle")]).double()
    assert without.start.target_scale[0] == pytest.approx(others.mean().item(), rel=1e-6)


def test_only_sums_of_the_numbers_leave_a_site():
    sites = {name: number_site(name, cases) for name, cases in SIZES.items()}
    federation = Federation(sites, model="logistic", task="regression", classes=0)
    with recorded(federation.engine) as said:
        federation.prepare(0)
    reply = next(reply for function, site, _, reply in said if (function, site) == ("prepare", "Bonn"))
    assert {name: tuple(tensor.shape) for name, tensor in reply.tensors.items()} == {
        "target_count": (1,), "target_mean": (1,), "target_m2": (1,),
    }  # fmt: skip
    assert reply.fields["classes"] == []


def test_stacked_sites_learn_numbers_as_single_ones_do():
    sites = {name: number_site(name, cases) for name, cases in SIZES.items()}
    options = {"model": {"mlp": {"hidden": [8]}}, "task": "regression", "classes": 0}
    plain = Federation(sites, **options).state()
    assert torch.allclose(Federation(sites, **options, stacked=True).state(), plain, atol=1e-5)
    assert torch.equal(Federation(sites, **options, serialise=True).state(), plain)


@pytest.mark.parametrize("choose", ["loss", "metric"])
def test_the_best_round_is_that_of_the_lowest_error(choose):
    sites = {name: number_site(name, cases, part=None) for name, cases in SIZES.items()}
    federation = Federation(
        sites, model="logistic", task="regression", classes=0, training={"rounds": 4},
        evaluation={"folds": 2, "validation": 0.3, "best_round": choose},
    )  # fmt: skip
    progress, rows = federation.rounds()
    table = pd.DataFrame(rows)
    column = "validation_loss" if choose == "loss" else "validation_mae"
    assert table[column].notna().all()
    cases = table["site"].map(federation.fold.validation)
    means = (table[column] * cases).groupby(table["round"]).sum()
    assert progress.best["federation"][1] == means.idxmin()


def test_folds_have_young_and_old_patients_alike():
    site = number_site("Aachen", 50, part=None)
    quarters = np.quantile(site.targets.numpy(), [0.25, 0.5, 0.75])
    for fold in range(5):
        parts = split(site, folds=5, fold=fold, validation=0.2, seed=0)
        test = np.searchsorted(quarters, site.targets[parts.test].numpy())
        assert len(parts.test) == 10
        assert set(test) == {0, 1, 2, 3}


def test_rows_without_a_number_are_counted(tmp_path):
    study = write_number_study(tmp_path, SIZES)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    table.loc[0, "age"], table.loc[1, "age"] = "old", ""
    table.to_csv(tmp_path / "cases.csv", index=False)
    sites, _ = Study.of(study, tmp_path).check()
    assert sites["rejected"].tolist() == [2, 0, 0]
    assert sites["reasons"][0] == "age is missing (1), age is not a number (1)"
    assert sites["label mean"][1] == pytest.approx(50, abs=15)
    table["age"] = "50"
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match=r"P203 .* has the same number in every row, so there is nothing to learn"):
        Study.of(study, tmp_path).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"positive": 1}}, "P102 study, data.positive: a number has no classes, so `positive` means nothing."),
        ({"data": {"classes": [1, 2]}}, "P102 study, data.classes: a number has no classes"),
        ({"data": {"label": None}}, "P102 study, data.label: the entry 'label' is missing: the column with the number"),
        ({"data": {"mask_classes": ["a"]}}, "P102 study, data.mask_classes: `mask_classes` is for segmentation"),
        ({"training": {"class_weights": "balanced"}}, "P104 study, training.class_weights: regression has no class"),
        (
            {"training": {"loss": "cross_entropy"}},
            "P103 study, training.loss: 'cross_entropy' is no loss of regression",
        ),
        ({"evaluation": {"metrics": ["auc"]}}, "P103 study, evaluation.metrics[1]: 'auc' is no metric of regression"),
    ],
)
def test_mistakes_in_regression(tmp_path, change, message):
    study = write_number_study(tmp_path, SIZES)
    for part, entries in change.items():
        study[part] = {**study[part], **entries}
    with pytest.raises(StudyError) as caught:
        Study.of(study, tmp_path)
    assert str(caught.value).startswith(message)


# --- several structures


def write_structures(folder: Path, sizes):
    """The image study with a second structure: value 20 in the lower right corner, value 10 the bright square."""
    study = write_image_study(folder, sizes)
    for path in folder.glob("*/mask-*.png"):
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 10
        mask[-4:, -4:] = 20
        image = np.asarray(Image.open(path.with_name(path.name.replace("mask", "scan")))).copy()
        image[-4:, -4:] = 250
        Image.fromarray(mask).save(path)
        Image.fromarray(image).save(path.with_name(path.name.replace("mask", "scan")))
    study["data"]["mask_classes"] = {"square": 10, "corner": [20, 21]}
    study["training"] |= {"rounds": 8, "optimizer": {"adam": {"lr": 0.03}}}
    study["evaluation"] |= {"metrics": ["dice", "nsd"], "bootstrap": 20, "surface_tolerance": 1.0}
    return study


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    """A finished study of two structures."""
    folder = tmp_path_factory.mktemp("structures")
    return Study.of(write_structures(folder, {"Aachen": 10, "Bonn": 8}), folder).run(folder / "results")


COLUMNS = ["dice", "nsd", "dice[square]", "dice[corner]", "nsd[square]", "nsd[corner]"]


def test_every_structure_is_scored_and_so_is_their_mean(structures):
    predictions = structures.predictions
    assert list(predictions.columns[-8:]) == [*COLUMNS, "space", "trained_on"]
    mean = predictions[["dice[square]", "dice[corner]"]].mean(axis=1)
    assert np.allclose(predictions["dice"], mean)
    assert list(structures.results["metric"].unique()) == COLUMNS
    assert list(structures.summary["metric"].unique()) == COLUMNS
    fedavg = structures.table("all").loc["fedavg"]
    assert fedavg["dice[corner]"] > 0.5
    assert (structures.summary["low"].dropna() >= 0).all()


def test_the_report_of_structures_has_means_and_a_table_of_each(structures):
    text = (structures.folder / "report.html").read_text(encoding="utf-8")
    assert "Structure by structure" in text
    assert "corner" in text
    assert "dice[" not in text


def test_binary_masks_named_by_their_value_are_those_of_today(tmp_path):
    study = write_image_study(tmp_path, {"Aachen": 6, "Bonn": 5})
    study["training"]["rounds"] = 1
    study["methods"] = ["fedavg"]
    plain = Study.of(study, tmp_path).run(tmp_path / "plain").results
    study["data"]["mask_classes"] = {"square": 255}
    named = Study.of(study, tmp_path).run(tmp_path / "named").results
    pd.testing.assert_frame_equal(plain, named)


def test_sites_stacked_learn_structures_as_single_ones_do(tmp_path):
    study = write_structures(tmp_path, {"Aachen": 6, "Bonn": 5})
    opened = Study.of(study, tmp_path).open()
    assert opened.classes == ["background", "square", "corner"]
    for data in opened.sites.values():
        data.parts = ["train"] * len(data)
    options = {"model": study["model"], "task": "segmentation", "classes": 3}
    plain = Federation(opened.sites, **options).state()
    assert torch.allclose(Federation(opened.sites, **options, stacked=True).state(), plain, atol=1e-4)


# --- statistics of numbers


def test_the_interval_of_an_error_repeats_the_patients_drawn(ages):
    from polyclinic.statistics.intervals import bootstrap_interval, patient_weights
    from polyclinic.tasks.regression_metrics import regression_metrics

    predictions = plain(ages.predictions).query("method == 'fedavg'")
    order = sorted(predictions.groupby(["site", "subject"]).groups)
    weights = np.concatenate(
        list(patient_weights(pd.DataFrame(order, columns=["site", "subject"]), 50, seed=0)), axis=1
    )
    draws = []
    for draw in weights.T:
        times = dict(zip(order, draw.astype(int), strict=True))
        counts = [times[key] for key in zip(predictions["site"], predictions["subject"], strict=True)]
        drawn = predictions.loc[predictions.index.repeat(counts)]
        parts = [regression_metrics(part["label"], part["score"], ["r2"])["r2"] for _, part in drawn.groupby("fold")]
        draws.append(np.mean(parts))
    rows = plain(ages.summary).query("method == 'fedavg' and over == 'all'").set_index("metric")
    low, high = bootstrap_interval(rows["mean"]["r2"], np.array(draws), 1.0, -np.inf)
    assert (rows["low"]["r2"], rows["high"]["r2"]) == pytest.approx((low, high), abs=1e-9)


def test_an_interval_of_a_share_explained_may_reach_below_nought():
    from polyclinic.statistics.intervals import bootstrap_interval

    draws = np.linspace(-0.4, 0.2, 101)
    assert bootstrap_interval(-0.1, draws, 1.0, -np.inf) == pytest.approx((-0.385, 0.185))
    assert bootstrap_interval(-0.1, draws, 1.0)[0] == 0.0
