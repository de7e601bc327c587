"""Rows that are put together to bags: which are used, what is counted, how they are scaled, sampled and batched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import bag_site
from polyclinic.data.bags import Bags
from polyclinic.data.corruption import change_inputs
from polyclinic.data.dataset import Dataset
from polyclinic.data.datasets import dataset_of
from polyclinic.data.open import open_data
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.opening.facts import facts_frame
from polyclinic.data.opening.holder import Holder
from polyclinic.data.opening.subgroups import Subgroup
from polyclinic.data.preparation import ComBat, OwnScaling, Prepared
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import DataSpec
from polyclinic.data.splits import split
from polyclinic.engine.cases import cases_received, cases_sent
from polyclinic.errors import DataError
from polyclinic.options import EntryError
from polyclinic.study.data_entry import check_data

#: Two slides of a; one of b with a missing feature; c without a label; d and e with two; g of another site.
TABLE = """site,who,slide,x,y,dx,part,sex
north,a,a1,1,0,sick,train,f
north,b,b1,4,1,well,train,f
north,a,a1,2,0,,train,f
north,a,a2,3,0,sick,train,f
north,c,c1,9,1,,train,m
north,d,d1,7,1,sick,train,m
north,d,d1,8,1,well,train,m
north,b,b1,NA,1,well,train,m
south,e,e1,5,0,well,test,m
south,e,e1,6,0,1,test,m
south,f,,6,0,well,test,m
south,g,g1,6,0,well,test,m
south,g,g1,6,0,well,test,m
"""
BASE = {"table": "table.csv", "site": "site", "subject": "who", "label": "dx", "features": ["x", "y"], "bag": "slide",
        "classes": ["well", "sick"]}  # fmt: skip


def opened(folder: Path, target: Any = "labels", split: str | None = None, **entries: Any) -> Opened:
    return open_data(DataSpec.model_validate(BASE | entries), folder, target, split)


def bags_of(data: Any) -> list[list[float]]:
    return [data.inputs[place][:, 0].nan_to_num(-1).tolist() for place in range(len(data))]


# Tables ---------------------------------------------------------------------------------------------------------------


def test_rows_of_a_bag_are_one_case_wherever_they_stand(write_table):
    found = opened(write_table(TABLE))
    north = found.sites["north"]
    assert north.cases == ["a1", "b1", "a2"]
    assert north.subjects == ["a", "b", "a"]
    assert bags_of(north) == [[1, 2], [4, -1], [3]]
    assert north.targets.tolist() == [1, 0, 1], "a row without a label has that of its bag"
    assert (north.counts.found, north.counts.used) == (5, 3)
    assert north.counts.rejected == Counter({"dx is missing": 1, "dx differs within a bag": 1})
    rows = north.counts.instances
    assert (rows.found, rows.used) == (8, 5)
    assert rows.rejected == Counter({"dx is missing": 1, "dx differs within a bag": 2})
    south = found.sites["south"]
    assert (south.counts.found, south.counts.used, south.counts.instances.found) == (2, 1, 5)
    wanted = {"slide is missing": 1, "dx is not one of the classes": 1, "dx differs within a bag": 1}
    assert south.counts.instances.rejected == Counter(wanted)
    facts = found.cohort.facts["north"]
    assert (facts.found, facts.used, facts.patients, facts.instances) == (5, 3, 2, 5)
    assert facts.missing == pytest.approx(10.0)
    assert facts_frame(found.cohort.facts, found.classes)["instances"].tolist() == [5, 2]
    noted = [note for note in found.notes if note.number == "N260"]
    assert [str(note).split(":")[0] for note in noted] == ["2 bags are left out, of 7"]
    assert list(noted[0].cases) == ["d1", "e1"]


def test_the_patient_is_the_bag_by_default(write_table):
    found = opened(write_table(TABLE), bag={"most": 2}, where={"slide": ["a1", "a2", "b1", "g1"]})
    assert found.sites["north"].cases == ["a", "b"]
    assert bags_of(found.sites["north"]) == [[1, 2, 3], [4, -1]]


def test_shuffled_rows_give_the_same_bags(write_table):
    head, *rows = TABLE.splitlines()
    one = opened(write_table(TABLE)).sites["north"]
    order = np.random.default_rng(1).permutation(len(rows))
    other = opened(write_table("\n".join([head, *(rows[place] for place in order)]) + "\n")).sites["north"]
    assert {case: sorted(bag) for case, bag in zip(one.cases, bags_of(one), strict=True)} == {
        case: sorted(bag) for case, bag in zip(other.cases, bags_of(other), strict=True)
    }


def test_what_a_case_has_only_one_of_must_be_the_same_in_all_rows(write_table):
    torn = TABLE.replace("north,a,a1,2,0,,train,f", "north,z,a1,2,0,,train,f").replace(
        "north,b,b1,NA,1,well,train,m", "north,b,b1,NA,1,well,test,m"
    )
    found = opened(write_table(torn), split="part")
    reasons = found.sites["north"].counts.rejected
    assert reasons["patient differs within a bag"] == 1
    assert reasons["part of the split differs within a bag"] == 1


def test_a_bag_of_another_site_is_another_bag_and_a_note_says_so(write_table):
    text = TABLE.replace("g,g1", "g,a2")
    found = opened(write_table(text))
    assert bags_of(found.sites["south"]) == [[6, 6]]
    assert bags_of(found.sites["north"])[-1] == [3]
    assert [note.number for note in found.notes].count("N261") == 1


def test_whole_numbers_as_a_spreadsheet_program_writes_them_name_the_same_bag(write_table):
    """A table in which some names of bags are missing comes back with ``2.0``; 1.10 and 1.1 are other slides."""
    names = {"a1": "2", "a2": "1.10", "b1": "1.1", "g1": "3.00"}
    text = TABLE.replace("north,a,a1,2,0", "north,a,2.0,2,0")
    for old, new in names.items():
        text = text.replace(f",{old},", f",{new},")
    found = opened(write_table(text))
    assert found.sites["north"].cases == ["2", "1.1", "1.10"]
    assert bags_of(found.sites["north"]) == [[1, 2], [4, -1], [3]]
    assert found.sites["south"].cases == ["3"]
    assert not [note for note in found.notes if note.number == "N212"]


@pytest.mark.parametrize("bag", [{}, "who"], ids=str)
def test_bags_that_are_patients_are_as_many_as_these(write_table, bag):
    """Where a patient is written in two ways, each counts by itself, and a note says so."""
    text = TABLE.replace("north,a,a1,1", "north,2,a1,1").replace("north,a,a2,3", "north,2.0,a2,3")
    found = opened(write_table(text), bag=bag, where={"slide": ["a1", "a2", "b1", "g1"]})
    assert {"2", "2.0"} < set(found.sites["north"].cases)
    assert [note.number for note in found.notes if note.number in ("N230", "N260")] == ["N230"]


def test_names_of_bags_that_differ_in_their_writing_are_counted(write_table):
    found = opened(write_table(TABLE.replace("north,a,a2", "north,a,A1").replace("north,d,d1,8,1,sick", "north,d,D1")))
    (note,) = [note for note in found.notes if note.number == "N212"]
    assert str(note).startswith("Site north: 1 name of a bag is written in several ways")
    assert "a1" not in note
    assert note.cases == ("A1", "a1")


def test_labels_that_are_written_in_two_ways_are_the_same(write_table):
    text = TABLE.replace("sick", "1").replace("1,0,,train", "1,0,1.0,train").replace("well", "0")
    assert "a1" in opened(write_table(text), classes=[0, 1]).sites["north"].cases


def test_only_bags_that_differ_are_no_study(write_table):
    text = "site,who,slide,x,y,dx\n" + "".join(
        f"n,{p},{p},{i},0,{'well' if i else 'sick'}\n" for p in "ab" for i in (0, 1)
    )
    with pytest.raises(DataError, match=r"P205 No row can be used: dx differs within a bag \(4\)"):
        opened(write_table(text))


def test_times_and_bags_without_a_label(write_table):
    text = "site,who,x,time,dead\n" + "".join(
        f"n,p{p},{p + i},{'' if i else p + 1},{'' if i else p % 2}\n" for p in range(6) for i in range(2)
    )
    changes = {"label": None, "classes": None, "bag": {}, "features": "x", "time": "time", "event": "dead",
               "time_unit": "days"}  # fmt: skip
    found = opened(write_table(text), "times", **changes).sites["n"]
    assert found.targets.tolist() == [[p + 1, p % 2] for p in range(6)]
    kept = opened(write_table(TABLE), unlabelled="use").sites["north"]
    assert kept.cases[-1] == "c1"
    assert kept.known.tolist() == [True, True, True, False]
    assert len(kept.with_labels().inputs) == 3


def test_findings_of_a_bag(write_table):
    """A finding that one row says is that of the bag; one that rows say otherwise leaves the bag out."""
    text = "site,who,x,tb,nodule\n" + "".join(
        f"n,p{p},{p + i},{p % 2 if i == p % 2 else ''},{int(i == 1) if p == 3 else p // 2 % 2}\n"
        for p in range(8)
        for i in range(2)
    )
    changes = {"label": None, "classes": None, "bag": {}, "features": "x", "findings": ["tb", "nodule"]}
    found = opened(write_table(text), "findings", **changes).sites["n"]
    assert found.cases == [f"p{p}" for p in range(8) if p != 3]
    assert found.targets.tolist() == [[p % 2, 2 + p // 2 % 2] for p in range(8) if p != 3]
    assert found.counts.rejected == Counter({"nodule differs within a bag": 1})


def test_values_are_counted_by_bag_for_the_floor(write_table):
    """Of a site's floor a value that many rows of one bag have is one case's."""
    rows = "".join(f"n,{p},{p}{p},{i},{'odd' if p == 'a' else 'usual'},{'sick' if p in 'ab' else 'well'}\n"
                   for p in "abcdef" for i in range(5))  # fmt: skip
    folder = write_table("site,who,slide,x,kind,dx\n" + rows)
    spec = DataSpec.model_validate(
        {**BASE, "classes": None, "features": ["x", "kind"], "categorical": ["kind"], "subject": None}
    )
    holder = Holder(spec, folder, "labels", subgroups=[Subgroup.of("kind")])
    census = holder.census("n", floor=2)
    assert (census.found, census.usable, census.labels) == (6, 6, {"sick": 2, "well": 4})
    assert census.groups == {"kind": {"usual": 5}}
    assert census.withheld == {"kind": 1}
    assert census.subgroups["kind"].values == {"usual": 5}
    assert holder.patients("n") == 6


def test_a_bag_of_two_groups_is_of_none(write_table):
    spec = DataSpec.model_validate(BASE)
    holder = Holder(spec, write_table(TABLE), "labels", subgroups=[Subgroup.of("sex")])
    from polyclinic.data.opening.agreement import agree

    agreement = agree({site: holder.census(site) for site in holder.sites}, spec, "labels", holder.subgroups)
    data = holder.open("north", agreement)
    assert data.groups == {"sex": ["f", "not known", "f"]}
    assert any(note.number == "N240" and "1 of 4 bags" in str(note) for note in holder.notes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bag": {}, "subject": None}, "not said which rows are one case"),
        ({"bag": "dx"}, "'dx' is the column of `label`, too"),
        ({"features": None, "image": "x", "preprocessing": {"size": [8, 8, 8]}}, "these are volumes"),
    ],
)
def test_entries_that_do_not_fit(changes, message):
    with pytest.raises(EntryError, match=message):
        check_data(DataSpec.model_validate(BASE | changes), "classification")


def test_partition_keeps_bags_and_their_patients_together(write_table):
    text = "site,who,slide,x,y,dx\n" + "".join(
        f"n,p{p},s{p}{s},{i},0,{'sick' if p % 2 else 'well'}\n" for p in range(24) for s in range(2) for i in range(3)
    )
    found = opened(write_table(text), partition={"sites": 2, "even": None, "least": 5}, site=None)
    assert sum(len(data) for data in found.sites.values()) == 48
    people = [set(data.subjects) for data in found.sites.values()]
    assert not people[0] & people[1]
    assert all(len(bag) == 3 for data in found.sites.values() for bag in bags_of(data))


# Images ---------------------------------------------------------------------------------------------------------------


def test_images_of_a_patient_and_those_that_can_not_be_read(tmp_path):
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((8, 8), ord(name), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"none")
    rows = [("p", "a.png", 0), ("p", "bad.png", 0), ("q", "bad.png", 1), ("r", "b.png", 1), ("r", "c.png", 1)]
    pd.DataFrame(rows, columns=["who", "image", "dx"]).assign(site="n").to_csv(tmp_path / "table.csv", index=False)
    spec = {"table": "table.csv", "site": "site", "subject": "who", "label": "dx", "image": "image", "size": [8, 8],
            "channels": "grey", "bag": {}, "max_unreadable": 0.5}  # fmt: skip
    data = open_data(DataSpec.model_validate(spec), tmp_path, "labels", None).sites["n"]
    assert data.inputs.shape == (2, 1, 8, 8)
    assert [bag[:, 0, 0, 0].tolist() for bag in (data.inputs[0], data.inputs[1])] == [[97], [98, 99]]
    assert (data.counts.found, data.counts.used, data.counts.instances.used) == (3, 2, 3)
    assert sum(data.counts.rejected.values()) == 1


# Preparation, batches and splits --------------------------------------------------------------------------------------


def prepared(data: Any, step: Any, train: list[int]) -> Any:
    return step.apply(Prepared(data, torch.tensor(train)), {})


def test_scaling_is_fitted_on_the_instances_of_training_bags():
    site = bag_site("Aachen", 12)
    done = prepared(site, OwnScaling(standardise=True, imputation="mean"), [0, 3, 5])
    rows = torch.cat([site.inputs[place] for place in (0, 3, 5)]).double()
    torch.testing.assert_close(done.scaler.mean, rows.mean(0).float())
    torch.testing.assert_close(done.scaler.deviation, rows.std(0, correction=0).float())


def test_combat_changes_instances_and_says_nothing_of_few_bags():
    site = bag_site("Aachen", 12, most=9)
    step = ComBat(columns=[0, 2], features=["x0", "x2"], covariates={}, empirical_bayes=False, reference_site=None)
    sent = step.share(Prepared(site, torch.arange(5)))
    assert sent["count"].tolist() == [len(site.inputs.places(torch.arange(5)))] * 2
    few = Prepared(site, torch.arange(4))
    assert len(few.places) > 5
    assert step.share(few)["count"].tolist() == [0, 0]
    merged, _ = step.merge({"Aachen": sent, "Bonn": step.share(Prepared(bag_site("Bonn", 9), torch.arange(9)))})
    done = step.apply(Prepared(site, torch.arange(5)), merged)
    assert torch.equal(done.data.inputs.starts, site.inputs.starts)
    assert torch.equal(done.data.inputs.instances[:, 1], site.inputs.instances[:, 1])
    assert not torch.equal(done.data.inputs.instances[:, 0], site.inputs.instances[:, 0])


def dataset(site: Any, most: int | None = None) -> Dataset:
    return dataset_of(site, Scaler.identity(5), most=most)


def rows_of(batch: Tensor) -> list[Tensor]:
    return [bag[~bag.isnan().all(1)] for bag in batch]


def test_batches_are_padded_and_the_pool_is_the_sites_one_after_another():
    sites = [bag_site("Aachen", 6), bag_site("Bonn", 5)]
    pool = Dataset.pool([dataset(site) for site in sites], "pool")
    assert (len(pool), pool.bags, pool.shape) == (11, True, (5,))
    inputs, targets = pool.batch(torch.tensor([9, 0, 7, 2]))
    wanted = [sites[1].inputs[3], sites[0].inputs[0], sites[1].inputs[1], sites[0].inputs[2]]
    assert all(torch.equal(found, bag) for found, bag in zip(rows_of(inputs), wanted, strict=True))
    assert targets.tolist() == [1, 0, 1, 0]
    assert pool.people.unique().numel() == 11


def test_large_bags_are_sampled_in_training_only():
    site = bag_site("Aachen", 8, most=9)
    data = dataset(site, most=3)
    assert data.augments
    assert not dataset(site, most=9).augments
    every = torch.arange(8)
    first, again, other = (data.batch(every, augment=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.nan_to_num(9), again.nan_to_num(9))
    assert not torch.equal(first.nan_to_num(9), other.nan_to_num(9))
    for found, whole in zip(rows_of(first), (site.inputs[place] for place in range(8)), strict=True):
        assert len(found) == min(3, len(whole))
        places = [next(n for n, row in enumerate(whole) if torch.equal(row, one)) for one in found]
        assert places == sorted(set(places))
    assert [len(found) for found in rows_of(data.batch(every)[0])] == site.inputs.counts.tolist()
    drawn = Counter(
        int(place) for seed in range(600) for place in site.inputs.sampled(torch.tensor([0]), 1, seed)[0]
    )  # fmt: skip
    count = int(site.inputs.counts[0])
    assert set(drawn) == set(range(count))
    assert max(drawn.values()) / min(drawn.values()) < 2 if count < 6 else True


def test_pieces_hold_little_and_all_cases_in_their_order(monkeypatch):
    monkeypatch.setattr("polyclinic.data.bags._TOGETHER", 40)
    bags = Bags.of(torch.zeros(27, 2), [1, 1, 1, 20, 2, 2])
    pieces = [piece.tolist() for piece in bags.batches(torch.arange(6), 3)]
    assert pieces == [[0, 1, 2], [3], [4, 5]]


def test_bags_are_split_by_patient_and_travel_to_other_processes():
    site = bag_site("Aachen", 24, part=None)
    site.subjects = [f"p{place // 2}" for place in range(24)]
    parts = split(site, folds=3, fold=1, validation=0.2, seed=0)
    people = [{site.subjects[place] for place in part.tolist()} for part in (parts.train, parts.validation, parts.test)]
    assert len(set.union(*people)) == sum(map(len, people))
    again = cases_received("Aachen", *cases_sent(site))
    assert torch.equal(again.inputs.instances, site.inputs.instances)
    assert torch.equal(again.inputs.starts, site.inputs.starts)


def test_an_attack_changes_all_instances_of_a_bag():
    bags = bag_site("Aachen", 6).inputs
    changed = change_inputs(bags, [1, 4], lambda case: case + 1)
    for place in range(6):
        torch.testing.assert_close(changed[place], bags[place] + (place in (1, 4)))
