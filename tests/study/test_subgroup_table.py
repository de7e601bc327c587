"""Results by groups of patients: numbers worked by hand, what must not matter, the floor, and a whole study."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from helpers import write_image_study, write_table_study
from polyclinic.errors import ResultsError, StudyError
from polyclinic.study.columns import SUBGROUPS
from polyclinic.study.kinds import PLAIN, RUN, UNSEEN
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.page import render
from polyclinic.study.report.subgroups import subgroup_section
from polyclinic.study.statistics import subgroups
from polyclinic.study.statistics.source import Rows
from polyclinic.study.study import Study

ASKED = {"task": "classification", "classes": ["no", "yes"], "metrics": ["acc", "auc"], "least": 1, "bootstrap": 0}


def subgroup_table(frame, *, task, classes, metrics, least, bootstrap):
    source = Rows(frame, task, len(classes), metrics, bootstrap=bootstrap)
    columns = [name.removeprefix("subgroup: ") for name in frame.columns if name.startswith("subgroup: ")]
    return subgroups.subgroup_table(source, frame, columns=columns, binary=True, least=least)


def predicted(site, groups, labels, scores, *, method="fedavg", run=PLAIN, seed=0, trained_on="federation"):
    names = [f"P{number:05d}" for number in range(len(groups))]
    return pd.DataFrame({
        "method": method, RUN: run, "seed": seed, "fold": np.arange(len(groups)) % 2, "site": site, "subject": names,
        "case": names, "label": labels, "score": scores, "threshold": 0.5, "subgroup: sex": groups,
        "trained_on": trained_on,
    })  # fmt: skip


def drawn(rng, site, count, share=0.5, skill=(1.0, 1.0), ill=0.5, **about):
    """Random cases of a site: the share that is F, the share that is ill, and how well F and M are told apart."""
    female = rng.random(count) < share
    labels = (rng.random(count) < ill).astype(int)
    odds = rng.normal(0, 1, count) + np.where(female, *skill) * (2 * labels - 1)
    return predicted(site, np.where(female, "F", "M"), labels, 1 / (1 + np.exp(-odds)), **about)


def row(table, group, metric, **where):
    kept = table[(table["group"] == group) & (table["metric"] == metric)]
    for name, value in where.items():
        kept = kept[kept[name] == value]
    assert len(kept) == 1
    return kept.iloc[0]


def test_values_and_gaps_are_those_worked_by_hand():
    # At A: F right in 3 of 4, M in 1 of 2. At B: F right in 1 of 2, M in 4 of 4.
    a = predicted("A", list("FFFFMM"), [1, 1, 0, 0, 1, 0], [0.9, 0.8, 0.1, 0.7, 0.9, 0.6])
    b = predicted("B", list("FFMMMM"), [1, 0, 1, 1, 0, 0], [0.9, 0.6, 0.8, 0.7, 0.2, 0.1])
    table = subgroup_table(pd.concat([a, b]), **ASKED)
    assert list(table.columns) == SUBGROUPS
    female, male = row(table, "F", "acc"), row(table, "M", "acc")
    assert female["value"] == pytest.approx((4 * 0.75 + 2 * 0.5) / 6)
    assert male["value"] == pytest.approx((2 * 0.5 + 4 * 1.0) / 6)
    # Weights n m / (n + m): 8 / 6 at both sites.
    assert female["gap"] == pytest.approx(((0.75 - 0.5) + (0.5 - 1.0)) / 2)
    assert male["gap"] == pytest.approx(-female["gap"])
    assert (female["cases"], female["patients"], female["sites"], female["gap_sites"]) == (6, 6, 2, 2)
    assert math.isnan(female["low"])  # no resamples, no interval
    assert row(table, "F", "auc")["value"] == pytest.approx((4 * 1.0 + 2 * 1.0) / 6)
    assert math.isnan(row(table, "F", "calibration intercept")["value"])  # fewer than five of a class


def test_the_area_is_that_of_scikit_learn_within_sites():
    rng = np.random.default_rng(0)
    frames = [drawn(rng, site, count) for site, count in (("A", 60), ("B", 90))]
    table = subgroup_table(pd.concat(frames), **ASKED)
    areas, counts = [], []
    for frame in frames:
        own = frame[frame["subgroup: sex"] == "F"]
        areas.append(roc_auc_score(own["label"], own["score"]))
        counts.append(len(own))
    assert row(table, "F", "auc")["value"] == pytest.approx(np.average(areas, weights=counts))


def of_three(site, groups, labels, scores):
    """Predictions of three classes."""
    columns = {f"score_{k}": np.array(scores)[:, k] for k in range(3)}
    return predicted(site, groups, labels, np.max(scores, axis=1)).assign(**columns)


@pytest.mark.parametrize("bootstrap", [0, 100])
@pytest.mark.parametrize("floor", [1, 3])
def test_a_group_without_a_hard_class_is_compared_by_the_classes_of_both(floor, bootstrap):
    """Classes 0 and 1 are told apart alike in F and M; 2 is never found, and F has none of it: no gap is by sex."""
    rng = np.random.default_rng(0)
    draws = {"F": [0, 1] * 40, "M": [0, 1] * 40 + [2] * 40}
    frames = []
    for group, labels in draws.items():
        wrong = np.arange(len(labels)) % 10 < 2
        called = np.where(np.array(labels) == 2, 0, np.where(wrong, 1 - np.minimum(labels, 1), labels))
        scores = np.eye(3)[called] * 0.8 + 0.05 + rng.random((len(labels), 3)) * 1e-3
        frames.append((group, labels, scores))
    groups = [group for group, labels, _ in frames for _ in labels]
    frame = of_three("A", groups, [one for _, labels, _ in frames for one in labels],
                     np.concatenate([scores for *_, scores in frames]))  # fmt: skip
    metrics = ["acc", "bac", "sen", "f1"]
    source = Rows(frame, "classification", 3, metrics, bootstrap=bootstrap)
    table = subgroups.subgroup_table(source, frame, columns=["sex"], binary=False, least=floor)
    assert row(table, "F", "bac")["value"] == pytest.approx(0.8)
    assert row(table, "M", "bac")["value"] == pytest.approx(0.8 * 2 / 3)
    for metric in metrics[1:]:
        for group in "FM":
            found = row(table, group, metric)
            assert found["gap"] == pytest.approx(0, abs=1e-12)
            assert bootstrap == 0 or found["gap_low"] < 0 < found["gap_high"]
    assert row(table, "F", "acc")["gap"] == pytest.approx(0.8 - 0.8 * 2 / 3)  # of all cases, as they are


def of_findings(groups, easy, hard, scores):
    found = predicted("A", groups, 0, 0.5).drop(columns=["label", "score", "threshold"])
    for name, labels, own in (("easy", easy, scores[0]), ("hard", hard, scores[1])):
        columns = {"label": pd.array(labels, dtype="Int64"), "score": own, "threshold": 0.5}
        found = found.assign(**{f"{column}[{name}]": values for column, values in columns.items()})
    return found


def test_groups_are_compared_by_the_findings_of_both():
    """The easy finding is always told, the hard one never; F was not read for the hard one, or has none of it."""
    easy, groups = [0, 1] * 20, ["F"] * 20 + ["M"] * 20
    scores = np.array(easy) * 0.8 + 0.1, np.full(40, 0.5)
    for of_female in ([None] * 20, [0] * 20):
        frame = of_findings(groups, easy, of_female + [0, 1] * 10, scores)
        source = Rows(frame, "multi_label", 4, ["auc", "ap"], bootstrap=50)
        table = subgroups.subgroup_table(source, frame, columns=["sex"], binary=False, least=1)
        assert row(table, "F", "auc")["value"] == 1.0
        assert row(table, "M", "auc")["value"] == 0.75
        for group in "FM":
            assert row(table, group, "auc")["gap"] == row(table, group, "ap")["gap"] == 0.0
    frame = of_findings(groups, [0] * 20 + easy[20:], [0, 1] * 10 + [0] * 20, scores)  # nothing in common
    source = Rows(frame, "multi_label", 4, ["auc"], bootstrap=0)
    table = subgroups.subgroup_table(source, frame, columns=["sex"], binary=False, least=1)
    assert row(table, "F", "auc")[["gap", "gap_sites"]].isna().all()


def test_a_group_of_one_class_at_a_site_has_no_metric_of_two_there():
    """All of F at B are well: an F1 of 0 says nothing of F. All of F at C are ill: nor does a precision of 1."""
    rng = np.random.default_rng(5)
    frames = [drawn(rng, site, 200) for site in "ABC"]
    of_one = [frame[(frame["subgroup: sex"] == "M") | (frame["label"] == label)]
              for frame, label in zip(frames[1:], (0, 1), strict=True)]  # fmt: skip
    asked = ASKED | {"metrics": ["f1", "ap", "bac", "auc", "sen", "spe"]}
    alone, table = subgroup_table(frames[0], **asked), subgroup_table(pd.concat([frames[0], *of_one]), **asked)
    for metric in ("f1", "ap", "bac", "auc"):
        found = row(table, "F", metric)
        assert (found["sites"], found["gap_sites"]) == (1, 1)
        assert found[["value", "gap"]].tolist() == pytest.approx(row(alone, "F", metric)[["value", "gap"]].tolist())
        assert row(table, "M", metric)["sites"] == 3
    assert [row(table, "F", metric)["sites"] for metric in ("sen", "spe")] == [2, 2]


def test_knowing_how_frequent_the_finding_is_at_a_site_gains_nothing():
    rng = np.random.default_rng(1)
    frames = [drawn(rng, site, 400, skill=(0.0, 0.0), ill=ill) for site, ill in (("A", 0.1), ("B", 0.9))]
    knowing = [frame.assign(score=0.05 * frame["score"] + 0.9 * level)
               for frame, level in zip(frames, (0.0, 1.0), strict=True)]  # fmt: skip
    together = pd.concat(knowing)
    assert roc_auc_score(together["label"], together["score"]) > 0.85  # all sites in one list reward it
    table = subgroup_table(together, **ASKED)
    plain = subgroup_table(pd.concat(frames), **ASKED)
    for group in "FM":
        assert row(table, group, "auc")["value"] == pytest.approx(row(plain, group, "auc")["value"])
        assert abs(row(table, group, "auc")["value"] - 0.5) < 0.1


def test_a_group_at_easier_hospitals_has_no_gap():
    rng = np.random.default_rng(2)
    easy = drawn(rng, "A", 4000, share=0.9, skill=(2.0, 2.0))
    hard = drawn(rng, "B", 4000, share=0.1, skill=(0.2, 0.2))
    table = subgroup_table(pd.concat([easy, hard]), **ASKED)
    assert row(table, "F", "acc")["value"] > row(table, "M", "acc")["value"] + 0.2
    assert abs(row(table, "F", "acc")["gap"]) < 0.03


def test_order_of_rows_names_of_groups_and_units_do_not_matter():
    rng = np.random.default_rng(3)
    frame = pd.concat([drawn(rng, site, 50) for site in "AB"])
    asked = ASKED | {"bootstrap": 100}
    table = subgroup_table(frame, **asked)
    shuffled = subgroup_table(frame.sample(frac=1, random_state=1), **asked)
    numbers = ["value", "low", "high", "gap", "gap_low", "gap_high"]
    np.testing.assert_allclose(table[numbers].to_numpy(float), shuffled[numbers].to_numpy(float), atol=1e-9)
    renamed = subgroup_table(
        frame.assign(**{"subgroup: sex": frame["subgroup: sex"].map({"F": "z", "M": "b"})}), **asked
    )
    for one, other in (("F", "z"), ("M", "b")):
        assert row(table, one, "auc")["value"] == pytest.approx(row(renamed, other, "auc")["value"])


def test_intervals_of_gaps_hold_no_difference_and_leave_out_a_large_one():
    rng = np.random.default_rng(4)
    asked = ASKED | {"bootstrap": 400}
    for skill, differs in (((1.0, 1.0), False), ((0.1, 2.0), True)):
        table = subgroup_table(pd.concat([drawn(rng, site, 200, skill=skill) for site in "ABC"]), **asked)
        found = row(table, "F", "auc")
        assert found["low"] < found["value"] < found["high"]
        assert found["gap_low"] < found["gap"] < found["gap_high"]
        assert (found["gap_high"] < 0) == differs
        assert row(table, "M", "auc")["gap_low"] == pytest.approx(-found["gap_high"])


def test_a_perfect_group_is_not_certain():
    frame = predicted("A", list("FM") * 12, [1, 1, 0, 0] * 6, [0.9, 0.8, 0.1, 0.2] * 6)
    table = subgroup_table(frame, **ASKED | {"bootstrap": 200})
    for metric in ("acc", "auc"):
        found = row(table, "F", metric)
        assert found["value"] == 1.0
        assert found["low"] < 0.9
        assert found["gap"] == 0.0
        assert found["gap_low"] < -0.1
        assert found["gap_high"] > 0.1


def test_small_groups_have_no_numbers_and_others_are_not_compared_with_them():
    rng = np.random.default_rng(5)
    frame = drawn(rng, "A", 60, share=0.0)
    frame.loc[:3, "subgroup: sex"] = "F"
    frame.loc[4:20, "subgroup: sex"] = "not known"
    table = subgroup_table(frame, **ASKED | {"least": 10})
    few = table[table["group"] == "F"]
    assert len(few) == 4
    assert few[["cases", "patients", "value", "low", "gap", "sites"]].isna().all(axis=None)
    assert set(few["note"]) == {"fewer than 10 patients"}
    assert math.isfinite(row(table, "M", "acc")["value"])
    assert math.isnan(row(table, "M", "acc")["gap"])  # the rest is the four
    unknown = row(table, "not known", "acc")
    assert unknown["patients"] == 17
    assert math.isfinite(unknown["value"])
    assert math.isnan(unknown["gap"])
    assert list(dict.fromkeys(table["group"])) == ["F", "M", "not known"]


def test_a_patient_with_many_cases_counts_once():
    frame = predicted("A", list("FFFFMMMM"), [1, 0] * 4, [0.9, 0.1] * 4)
    frame["subject"] = ["P1"] * 4 + ["P2"] * 4
    found = row(subgroup_table(frame, **ASKED), "F", "acc")
    assert (found["cases"], found["patients"]) == (4, 1)


def test_seeds_are_averaged_and_count_no_patient_twice():
    rng = np.random.default_rng(6)
    frames = [drawn(np.random.default_rng(7), "A", 40).assign(seed=seed) for seed in (0, 1)]
    frames[1]["score"] = rng.random(40)
    each = [subgroup_table(frame, **ASKED) for frame in frames]
    both = subgroup_table(pd.concat(frames), **ASKED)
    values = [row(table, "F", "auc")["value"] for table in each]
    assert row(both, "F", "auc")["value"] == pytest.approx(np.mean(values))
    assert row(both, "F", "auc")["patients"] == row(each[0], "F", "auc")["patients"]


def test_runs_are_apart_and_models_of_other_sites_are_left_out():
    rng = np.random.default_rng(8)
    seen, unseen = (drawn(rng, "A", 40, run=run) for run in (PLAIN, UNSEEN))
    crossed = pd.concat([drawn(np.random.default_rng(9), "A", 40, method="cross", trained_on=by) for by in "BC"])
    table = subgroup_table(pd.concat([seen, unseen, crossed]), **ASKED)
    assert set(table["method"]) == {"fedavg"}
    assert set(table[RUN]) == {PLAIN, UNSEEN}


def test_calibration_of_groups_tells_which_one_is_wrong():
    rng = np.random.default_rng(10)
    frames = []
    for site in "ABCD":
        odds = rng.normal(0, 1.2, 300)
        female = rng.random(300) < 0.5
        truth = odds + np.where(female, 1.0, 0.0)  # women are ill more often than predicted
        labels = (rng.random(300) < 1 / (1 + np.exp(-truth))).astype(int)
        frames.append(predicted(site, np.where(female, "F", "M"), labels, 1 / (1 + np.exp(-odds))))
    table = subgroup_table(pd.concat(frames), **ASKED)
    female, male = (row(table, group, "calibration intercept") for group in "FM")
    assert female["low"] < 1.0 < female["high"]
    assert male["low"] < 0.0 < male["high"]
    assert female["gap_low"] > 0
    assert female["gap"] == pytest.approx(-male["gap"])
    slope = row(table, "F", "calibration slope")
    assert slope["low"] < 1.0 < slope["high"]


def test_a_group_with_one_class_has_no_area_and_says_so():
    frames = [predicted(site, list("FFFFMMMM"), [0, 0, 0, 0, 1, 0, 1, 0], [0.2, 0.9, 0.1, 0.3, 0.8, 0.1, 0.7, 0.2])
              for site in "AB"]  # fmt: skip
    found = row(subgroup_table(pd.concat(frames), **ASKED | {"bootstrap": 20}), "F", "auc")
    assert math.isnan(found["value"])
    assert math.isnan(found["gap"])
    assert (found["sites"], found["note"]) == (0, "not defined at any site")
    assert row(subgroup_table(pd.concat(frames), **ASKED), "F", "acc")["value"] == 0.75


def test_a_site_where_the_group_has_one_class_does_not_count():
    rng = np.random.default_rng(12)
    first = drawn(rng, "A", 60)
    second = predicted("B", list("FFMM"), [1, 1, 1, 0], [0.1, 0.2, 0.9, 0.1])
    both, alone = (subgroup_table(pd.concat(frames), **ASKED) for frames in ([first, second], [first]))
    assert row(both, "F", "auc")["value"] == pytest.approx(row(alone, "F", "auc")["value"])
    assert row(both, "F", "auc")["sites"] == 1
    assert row(both, "F", "auc")["gap"] == pytest.approx(row(alone, "F", "auc")["gap"])
    assert row(both, "F", "acc")["sites"] == 2


def test_without_a_subgroup_there_is_no_row():
    frame = drawn(np.random.default_rng(11), "A", 20).drop(columns="subgroup: sex")
    assert subgroup_table(frame, **ASKED).empty


# --- a whole study ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subgroups")
    entries = write_table_study(folder, {"Aachen": 30, "Bonn": 24})
    table = pd.read_csv(folder / "cases.csv")
    rng = np.random.default_rng(0)
    table["a, b"] = rng.choice(["1", "0"], len(table))  # a name with a comma, and groups that look like numbers
    table["age"] = rng.integers(20, 90, len(table))
    table.loc[::20, "age"] = np.nan
    table.to_csv(folder / "cases.csv", index=False)
    entries["evaluation"] |= {"bootstrap": 50, "subgroups": ["a, b", {"age": [0, 50, 65, 120]}]}
    entries["methods"] = ["single", "fedavg"]
    Study.of(entries, folder).run(folder / "out")
    return folder / "out", table


def test_predictions_have_the_groups_and_no_age(finished):
    out, table = finished
    found = pd.read_csv(out / "predictions.csv", dtype=str)
    assert set(found["subgroup: a, b"]) == {"0", "1"}
    ages = {"0 to below 50", "50 to below 65", "65 to 120", "not known"}
    assert set(found["subgroup: age"]) == ages
    key = pd.concat(
        [pd.read_csv(path, dtype=str).assign(site=path.parent.name) for path in out.glob("sites/*/subjects.csv")]
    )
    named = found.drop_duplicates(["site", "case"]).merge(key, on=["site", "case"])
    sex = dict(zip(table["patient"], table["a, b"].astype(str), strict=True))
    assert len(named) == len(table)
    assert all(sex[row["subject_y"]] == row["subgroup: a, b"] for row in named.to_dict("records"))


def test_the_table_and_the_report_follow_from_the_predictions(finished):
    out, _ = finished
    folder = Folder(out)
    assert set(folder.subgroups["method"]) == {"single", "fedavg"}
    section = subgroup_section(folder)
    assert section.methods[0].open
    assert [name for name, _ in section.methods[0].tables] == ["a, b", "age"]
    last = section.methods[0].tables[1][1][-1]
    assert (last.group, last.patients, last.cases) == ("not known", "< 10", "–")
    page = render(folder)
    assert 'id="subgroups"' in page
    assert "<summary>Other metrics</summary>" in page
    assert "Groups of patients by part" in page
    assert "not adjusted for their number" in page
    assert "groups of patients are not in this report" not in page


def test_the_parts_are_counted_by_group(finished):
    out, table = finished
    counts = pd.read_csv(out / "characteristics.csv", dtype={"group": str})
    everyone = counts[(counts["site"] == "all") & (counts["subgroup"] == "a, b") & (counts["stage"] == "test")]
    size = table["a, b"].astype(str).value_counts()
    for group, rows in everyone.groupby("group"):
        assert rows["patients"].sum() == size[group]  # every patient is tested in one of the folds
    few = counts[counts["note"].notna()]
    assert len(few)
    assert few[["cases", "patients"]].isna().all(axis=None)
    assert (counts["patients"].dropna() >= 10).all()


def test_the_tables_are_read_back_as_they_were_written(finished):
    from polyclinic.study.results import Results

    out, _ = finished
    assert set(Results(out).predictions["subgroup: a, b"]) == {"0", "1"}


def test_segmentations_have_subgroups_too(tmp_path):
    entries = write_image_study(tmp_path, {"Aachen": 8, "Bonn": 8})
    table = pd.read_csv(tmp_path / "cases.csv")
    table["sex"] = ["F", "M"] * 8
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["evaluation"] |= {"subgroups": ["sex"], "subgroup_patients": 3, "bootstrap": 20, "metrics": ["dice"]}
    entries["methods"] = ["fedavg"]
    entries["training"]["rounds"] = 1
    Study.of(entries, tmp_path).run(tmp_path / "out")
    folder = Folder(tmp_path / "out")
    cases = pd.read_csv(tmp_path / "out" / "predictions.csv")
    female = cases[cases["subgroup: sex"] == "F"]
    found = row(folder.subgroups, "F", "dice")
    assert found["value"] == pytest.approx(female["dice"].mean())  # as many F at both sites
    assert found["patients"] == 8


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        ([{"age": [0, 50, 50]}], "P102", "expected two numbers or more that rise"),
        ([{"age": [60, 50]}], "P102", "rise"),
        ([{"age": [60]}], "P102", "two numbers or more"),
        ([{"age": []}], "P102", "two numbers or more"),
        ([{"age": list(range(23))}], "P102", "at most 20"),
        ([{"age": [0.0000001, 0.00000010000001, 1]}], "P102", "too close"),
        ([{"age": [0, 50], "bmi": [0, 30]}], "P102", "2 columns in one entry"),
        ([{"age": ["young", "old"]}], "P102", ""),
        (["sex", {"sex": [0, 1]}], "P102", "twice"),
        (["diagnosis"], "P104", "the `label`"),
        (["site"], "P104", "the `site`"),
        ([{"patient": [0, 1]}], "P104", "the `subject`"),
    ],
)  # fmt: skip
def test_what_can_be_no_subgroup_is_refused_when_the_file_is_read(tmp_path, entry, code, words):
    entries = write_table_study(tmp_path, {"Aachen": 4})
    entries["evaluation"] |= {"subgroups": entry}
    with pytest.raises(StudyError) as error:
        Study.of(entries, tmp_path)
    assert error.value.code == code
    assert words in error.value.message
    assert "subgroups" in error.value.message


def test_a_table_with_other_columns_is_no_table_of_subgroups(finished, tmp_path):
    import shutil

    out, _ = finished
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "subgroups.csv").write_text("method,run\nfedavg,plain\n")
    with pytest.raises(ResultsError, match=r"subgroups\.csv"):
        Folder(tmp_path / "out")
