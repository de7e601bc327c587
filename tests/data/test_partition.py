"""Simulated sites: who goes where, that nobody is lost or torn apart, and whole studies of them."""

import csv
from collections import Counter

import hypothesis.strategies as st
import nibabel
import numpy as np
import pytest
from hypothesis import given

from helpers import write_image_study, write_number_study, write_table_study
from polyclinic import Study
from polyclinic.data import partition as module
from polyclinic.data.open import open_data
from polyclinic.data.opening.holder import Holder
from polyclinic.data.partition import draw_shares, share_out
from polyclinic.data.spec import DataSpec, Partition
from polyclinic.errors import DataError, ResultsError, StudyError

KINDS = ("label_skew", "quantity_skew", "even")
SIZES = {"Aachen": 30, "Bonn": 12, "Celle": 18}


def partition(kind="even", sites=3, alpha=1.0, **options):
    return Partition.model_validate({"sites": sites, kind: {} if kind == "even" else {"alpha": alpha}, **options})


def patients(*counts):
    """So many patients of each class."""
    return {f"p{kind}-{number}": kind for kind, count in enumerate(counts) for number in range(count)}


def table_of(classes, home, sites):
    """Patients of each class at each site ``[classes, sites]``."""
    table = np.zeros((max(classes.values()) + 1, sites), dtype=int)
    for name, site in home.items():
        table[classes[name], site] += 1
    return table


def opened(folder, target="labels", split=None, progress=None, **entries):
    return open_data(DataSpec.model_validate(entries), folder, target, split, progress)


def people(result):
    return {site: set(data.subjects) for site, data in result.sites.items()}


def refused(classes, asked):
    with pytest.raises(DataError) as caught:
        share_out(classes, asked)
    return str(caught.value)


# Who goes where -------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=4), st.integers(0, 3), min_size=8, max_size=60),
    st.sampled_from(KINDS), st.integers(2, 4), st.floats(0.5, 1e6), st.integers(0, 9), st.integers(1, 2),
)  # fmt: skip
def test_every_patient_has_one_site_and_every_site_has_the_least(classes, kind, sites, alpha, seed, least):
    asked = partition(kind, sites, alpha, seed=seed, least=least)
    try:
        home = share_out(classes, asked)
    except DataError:  # with so few patients and such shares there may be no way
        assert kind != "even"
        return
    assert home.keys() == classes.keys()
    assert set(home.values()) == set(range(sites))
    assert min(Counter(home.values()).values()) >= least
    assert share_out(dict(reversed(classes.items())), asked) == home


def test_even_shares_are_dealt_in_turn():
    # Class 0 goes to the sites 0 1 2 0 1, and class 1 goes on with 2 0 1 2.
    classes = patients(5, 4)
    table = table_of(classes, share_out(classes, partition(least=3)), 3)
    assert table.tolist() == [[2, 2, 1], [1, 1, 2]]


def test_shares_are_followed_to_less_than_a_patient():
    # What the shares say up to each patient, less what was given:
    # (1/2 1/4 1/4) -> 0; (0 1/2 1/2) -> 1; (1/2 -1/4 3/4) -> 2; (1 0 0) -> 0; now the other class: (0 0 1) -> 2, 2
    shares = np.array([[0.5, 0.25, 0.25]] * 4 + [[0.0, 0.0, 1.0]] * 2)
    assert module._deal(shares).tolist() == [0, 1, 2, 0, 2, 2]


@pytest.mark.parametrize("kind", ["label_skew", "quantity_skew"])
def test_a_large_alpha_is_even(kind):
    classes = patients(41, 17, 8)
    even = table_of(classes, share_out(classes, partition("even", 4)), 4)
    skewed = table_of(classes, share_out(classes, partition(kind, 4, 1e12)), 4)
    assert np.ptp(even, axis=1).max() == np.ptp(skewed, axis=1).max() == 1
    assert sorted(even.sum(axis=0)) == sorted(skewed.sum(axis=0)) == [16, 16, 17, 17]
    assert np.sort(even, axis=1).tolist() == np.sort(skewed, axis=1).tolist()


def test_a_small_alpha_gives_each_class_to_a_site():
    classes = patients(*[20] * 10)
    tables = [
        table_of(classes, share_out(classes, partition("label_skew", 4, 0.01, seed=seed, least=1)), 4)
        for seed in range(20)
    ]
    # The largest of four shares of Dirichlet(0.01) is 0.98 in the mean.
    assert np.mean([table.max(axis=1) for table in tables]) > 0.95 * 20


def test_quantity_skew_leaves_labels_alike():
    classes = patients(300, 100)
    for seed in range(5):
        table = table_of(classes, share_out(classes, partition("quantity_skew", 5, 0.5, seed=seed)), 5)
        sizes = table.sum(axis=0)
        assert sizes.sum() == 400
        assert sizes.max() > 2 * sizes.min()
        assert np.abs(table[1] - sizes / 4).max() < 2  # a quarter of each site, up to whole patients


def test_shares_are_those_of_dirichlet():
    # A share of Dirichlet(alpha) over J sites has the mean 1 / J and the variance (J - 1) / (J^2 (J alpha + 1)):
    # with J = 4 and alpha = 0.5 that is 3 / 48.
    shares = draw_shares(partition("label_skew", 4, 0.5), 20_000, np.random.default_rng(0))
    assert shares.shape == (20_000, 4)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=0.01)
    np.testing.assert_allclose(shares.var(axis=0), 1 / 16, atol=0.002)
    random = np.random.default_rng(0)
    shares = np.stack([draw_shares(partition("quantity_skew", 4, 0.5), 2, random) for _ in range(5000)])
    assert (shares[:, 0] == shares[:, 1]).all()
    np.testing.assert_allclose(shares[:, 0].var(axis=0), 1 / 16, atol=0.004)
    assert (draw_shares(partition("even", 4), 3, random) == 0.25).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    classes = patients(30, 30)
    homes = [share_out(classes, partition(kind, seed=seed, least=1)) for seed in (0, 1, 0)]
    assert homes[0] == homes[2] != homes[1]


def test_shares_are_drawn_until_every_site_has_the_least():
    classes = patients(50, 50)
    sizes = [
        min(Counter(share_out(classes, partition("quantity_skew", 4, 0.5, seed=seed, least=15)).values()).values())
        for seed in range(10)
    ]
    assert min(sizes) >= 15
    free = [Counter(share_out(classes, partition("quantity_skew", 4, 0.5, seed=seed, least=1)).values())
            for seed in range(10)]  # fmt: skip
    assert min(min(found.values()) for found in free) < 15


def test_too_few_patients_are_told():
    assert refused(patients(12, 12), partition("even", 3)) == (
        "P206 24 patients can't be shared out among 3 sites with at least 10 each. "
        "Lower `sites` or `least` of `partition`: 3 x 10 = 30 patients are needed."
    )


def test_shares_that_never_do_are_told():
    assert refused(patients(40, 40), partition("label_skew", 8, 0.001)) == (
        "P206 In 1000 draws of label skew (Dirichlet 0.001, seed 0) never had all 8 sites at least 10 of the 80 "
        "patients. Raise `alpha` of `partition`, or lower its `least` or `sites`."
    )


# Tables ---------------------------------------------------------------------------------------------------------------

VISITS = {"table": "table.csv", "subject": "id", "label": "dx", "features": ["age"]}


def visits(write_table, patients=24):
    """Three visits of each patient at one of two hospitals; some rows can't be used, two name no hospital."""
    lines = ["id,hospital,age,dx,part"]
    for number in range(patients):
        part = ("train", "val", "test")[number % 3]
        for visit in range(3):
            label = "" if (number, visit) in ((3, 0), (5, 0), (5, 1), (5, 2)) else int(number % 2 or visit == 2)
            lines.append(f"p{number},{'north' if number < 14 else 'south'},{number}.{visit},{label},{part}")
    lines += ["p0,,1,1,train", "p99,,1,1,train"]
    return write_table("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_patients_of_a_table_stay_whole_and_every_row_is_counted_once(write_table, kind):
    folder = visits(write_table)
    asked = partition(kind, 3, 2.0, least=4)
    result = opened(folder, **VISITS, site="hospital", partition=asked.model_dump())
    assert list(result.sites) == ["Site 1", "Site 2", "Site 3"]
    found = people(result)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 23  # all but p5
    for data in result.sites.values():
        assert data.counts.found == data.counts.used + data.counts.rejected.total()
        assert data.counts.used == len(data)
        visits_of = Counter(data.subjects)
        assert all(count == 3 - (name == "p3") for name, count in visits_of.items())
        assert [int(age) for age in data.table[:, 0]] == [int(name[1:]) for name in data.subjects]
    assert sum(data.counts.found for data in result.sites.values()) == 72
    rejected = {site: data.counts.rejected["dx is missing"] for site, data in result.sites.items()}
    home = next(site for site, names in found.items() if "p3" in names)
    assert rejected == {site: (site == home) + 3 * (site == "Site 1") for site in found}  # a row of p3, all of p5
    skew = f"{kind.replace('_', ' ')} (Dirichlet 2, seed 0)"
    how = "even shares (seed 0)" if kind == "even" else skew
    assert result.notes[:2] == [
        f"Sites are simulated: 23 patients of 2 sites were shared out among 3 with {how}.",
        "2 rows name no site and are left out (column 'hospital').",
    ]


def test_patients_who_can_not_be_used_are_dealt_in_turn(write_table):
    used = "".join(f"p{number},{number},{number % 2}\n" for number in range(12))
    rejected = "".join(f"q{number},1,\nq{number},2,\n" for number in range(3)) + ",1,1\n,2,\n"
    folder = write_table("id,age,dx\n" + used + rejected)
    result = opened(folder, **VISITS, partition={"sites": 3, "even": {}, "least": 4})
    # q0, q1 and q2 with two rows each, then the two rows without a patient
    assert [data.counts.rejected.total() for data in result.sites.values()] == [3, 3, 2]
    assert [data.counts.found for data in result.sites.values()] == [7, 7, 6]


def test_the_label_of_a_patient_is_the_most_frequent_one(write_table):
    # Even patients have the labels 0 0 1 and count as 0, odd ones 1 1 1: even shares give each site half of each.
    result = opened(visits(write_table), **VISITS, partition={"sites": 2, "even": {}})
    for found in people(result).values():
        even = sum(int(name[1:]) % 2 == 0 for name in found if name != "p99")
        assert abs(even - (len(found) - even)) <= 2


def test_a_column_that_fixes_the_split_goes_with_the_patient(write_table):
    result = opened(visits(write_table), split="part", **VISITS, partition={"sites": 2, "even": {}})
    for data in result.sites.values():
        expected = [("train", "validation", "test")[int(name[1:]) % 3] for name in data.subjects]
        assert data.parts == expected


def test_a_table_without_sites_is_enough(write_table):
    result = opened(visits(write_table), **VISITS, partition={"sites": 2, "even": None, "seed": 7})
    assert result.notes[0] == ("Sites are simulated: 24 patients were shared out among 2 with even shares (seed 7).")


def test_the_same_name_at_two_sites_is_one_person(write_table):
    text = "id,hospital,age,dx\n" + "".join(
        f"{number},{site},{number},{number % 2}\n" for site in ("north", "south") for number in range(6)
    )
    entries = VISITS | {"site": "hospital", "partition": {"sites": 2, "even": {}, "least": 3}}
    result = opened(write_table(text), **entries)
    assert [len(found) for found in people(result).values()] == [3, 3]
    assert result.notes[1] == (
        "6 patient names stand at more than one site of the data: each was taken for one person."
    )
    assert not [warning for warning in result.notes[2:] if "patient name" in warning]


def test_rows_of_several_tables_are_patients_of_their_own(write_table):
    for name in ("north", "south"):
        folder = write_table("age,dx\n" + "".join(f"{n},{n % 2}\n" for n in range(12)), f"{name}.csv")
    entries = {"tables": {"a": "north.csv", "b": "south.csv"}, "label": "dx", "features": ["age"]}
    result = opened(folder, **entries, partition={"sites": 2, "quantity_skew": {"alpha": 1}, "least": 5})
    names = [name for data in result.sites.values() for name in data.subjects]
    assert sorted(names) == sorted(f"{table}, row {row}" for table in "ab" for row in range(1, 13))
    assert result.notes[0].startswith("Sites are simulated: 24 cases of 2 sites were shared out among 2 with")


def test_sites_stand_in_the_order_of_their_numbers(write_table):
    result = opened(visits(write_table), **VISITS, partition={"sites": 12, "even": {}, "least": 1})
    assert list(result.sites) == [f"Site {number}" for number in range(1, 13)]


def test_numbers_are_shared_out_alike(tmp_path):
    entries = write_number_study(tmp_path, {"Aachen": 60, "Bonn": 40})["data"]
    result = opened(tmp_path, "numbers", **entries, partition={"sites": 2, "even": {}})
    means = [float(data.targets.mean()) for data in result.sites.values()]
    assert [len(data) for data in result.sites.values()] == [50, 50]
    # Ages deviate by 13 years; the mean of 50 drawn at random deviates by 1.9, so two of them differ by 2.6.
    assert abs(means[0] - means[1]) < 1.5


def test_the_fingerprint_tells_partitions_apart(write_table):
    folder = visits(write_table)
    asked = [{"sites": 2, "even": {}, "seed": seed} for seed in (0, 1, 0)]
    prints = [opened(folder, **VISITS, partition=one).fingerprint for one in asked]
    assert prints[0] == prints[2] != prints[1]
    assert prints[0] != opened(folder, **VISITS).fingerprint


@pytest.mark.parametrize("target", ["numbers", "masks"])
def test_label_skew_is_for_classes(target, tmp_path):
    study = write_number_study(tmp_path, SIZES) if target == "numbers" else write_image_study(tmp_path, SIZES)
    study["data"]["partition"] = {"sites": 2, "label_skew": {"alpha": 1}}
    message = (
        f"P104 study, data.partition.label_skew: label skew shares out classes, and {target} have none. "
        "Use `quantity_skew` or `even`."
    )
    with pytest.raises(StudyError) as caught:
        Study.of(study, tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", KINDS)
def test_the_study_file_with_all_defaults_says_the_same(kind, tmp_path):
    study = write_table_study(tmp_path, SIZES)
    study["data"]["partition"] = {"sites": 2, kind: {} if kind == "even" else {"alpha": 0.5}}
    filled = Study.of(study, tmp_path).declaration.filled()
    assert filled["data"]["partition"] == study["data"]["partition"] | {"least": 10, "seed": 0}
    filled = {key: value for key, value in filled.items() if value is not None}
    assert Study.of(filled, tmp_path).declaration.data == Study.of(study, tmp_path).declaration.data


# Images and volumes ---------------------------------------------------------------------------------------------------


def test_images_go_with_their_patient_and_are_read_once(tmp_path):
    entries = write_image_study(tmp_path, SIZES)["data"]
    real = opened(tmp_path, "masks", **entries)
    pictures = {
        name: (image, mask)
        for data in real.sites.values()
        for name, image, mask in zip(data.subjects, data.inputs, data.targets, strict=True)
    }
    ticks = []
    result = opened(tmp_path, "masks", None, lambda done, total: ticks.append((done, total)), **entries,
                    partition={"sites": 4, "quantity_skew": {"alpha": 2}})  # fmt: skip
    assert ticks == [(number, 60) for number in range(1, 61)]
    assert set.union(*people(result).values()) == set(pictures)
    for data in result.sites.values():
        assert len(data) >= 10
        for name, image, mask in zip(data.subjects, data.inputs, data.targets, strict=True):
            assert (image == pictures[name][0]).all()
            assert (mask == pictures[name][1]).all()


def test_volumes_and_their_plan_have_the_simulated_sites(tmp_path):
    for number in range(6):
        voxels = np.full((8, 8, 8), number, dtype=np.int16)
        voxels[2:6, 2:6, 2:6] += 100
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{number}.nii")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "dx"), *((f"{number}.nii", number % 2) for number in range(6))])
    spec = DataSpec.model_validate({
        "table": "table.csv", "label": "dx", "image": "image",
        "preprocessing": {"size": [8, 8, 8], "intensity": "none"}, "partition": {"sites": 2, "even": {}, "least": 3},
    })  # fmt: skip
    result = open_data(spec, tmp_path, "labels")
    assert set.union(*people(result).values()) == {f"{number}.nii" for number in range(6)}
    for data in result.sites.values():
        assert [int(data.inputs[position].min()) for position in range(3)] == [int(name[0]) for name in data.subjects]
    holder = Holder(spec, tmp_path, "labels")
    assert holder.sites == ["Site 1", "Site 2"]
    assert all(holder.census(site, plan=True).volumes.cases == 3 for site in holder.sites)


# Real data ------------------------------------------------------------------------------------------------------------


def test_four_hospitals_as_eight_simulated_sites(data_folder):
    names = ["cleveland", "hungarian", "switzerland", "va"]
    columns = [*(f"measure {number}" for number in range(13)), "num"]
    entries = {
        "tables": {name: f"heart-disease/processed.{name}.data" for name in names}, "columns": columns,
        "label": "num", "positive": "> 0", "features": columns[:10], "imputation": "drop",
    }  # fmt: skip
    result = opened(data_folder, **entries, partition={"sites": 8, "label_skew": {"alpha": 0.3}})
    counts = [data.counts for data in result.sites.values()]
    assert (sum(c.found for c in counts), sum(c.used for c in counts)) == (920, 740)
    assert min(c.used for c in counts) >= 10
    shares = [float(data.targets.double().mean()) for data in result.sites.values()]
    assert max(shares) - min(shares) > 0.5
    assert result.notes[0] == (
        "Sites are simulated: 740 cases of 4 sites were shared out among 8 with label skew (Dirichlet 0.3, seed 0)."
    )


# Whole studies --------------------------------------------------------------------------------------------------------


def simulated(folder, **options):
    study = write_table_study(folder, SIZES)
    study["data"]["partition"] = {"sites": 4, "label_skew": {"alpha": 1.0}, **options}
    study["methods"] = ["single", "mix", "fedavg"]
    study["evaluation"]["min_cases_per_class"] = 1
    return Study.of(study, folder)


def test_check_names_the_simulated_sites(tmp_path):
    sites, notes = simulated(tmp_path).check()
    assert sites["site"].tolist() == ["Site 1", "Site 2", "Site 3", "Site 4"]
    assert sites["patients"].sum() == 60
    assert sites["patients"].min() >= 10
    assert sites[["class: kind 0", "class: kind 1"]].sum().tolist() == [30, 30]
    assert notes[0] == (
        "Sites are simulated: 60 patients of 3 sites were shared out among 4 with label skew (Dirichlet 1, seed 0)."
    )


def test_a_study_of_simulated_sites_runs_and_goes_on(tmp_path):
    study = simulated(tmp_path)
    results = study.run(tmp_path / "out")
    assert set(results.results["tested_on"]) >= {"Site 1", "Site 2", "Site 3", "Site 4"}
    assert results.notes[0].startswith("Sites are simulated: 60 patients of 3 sites")
    predictions = results.predictions.query("method == 'fedavg'")
    assert len(predictions) == 60
    assert (predictions.groupby(["site", "subject"]).size() == 1).all()
    study.run(tmp_path / "out", resume=True)
    with pytest.raises(ResultsError, match=r"P501 .*differs in `data`"):
        simulated(tmp_path, seed=1).run(tmp_path / "out", resume=True)
