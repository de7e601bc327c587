"""Cases without a label or mask: they stay at their site, and change nothing of the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given

from helpers import image_site, scaling_steps, site_of, table_site
from polyclinic.communication.message import Message
from polyclinic.data.augmentation import Augmentation
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.corruption import corrupted
from polyclinic.data.dataset import Dataset
from polyclinic.data.open import open_data
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.opening.facts import facts_frame
from polyclinic.data.opening.holder import Holder
from polyclinic.data.quality.copies import copied_images, copied_rows
from polyclinic.data.quality.leaks import Column
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import DataSpec, Labels, Patch
from polyclinic.data.splits import Parts, split
from polyclinic.data.volumes.patches import patch_corners
from polyclinic.data.volumes.store import Volumes
from polyclinic.engine import LocalEngine
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import DataError
from polyclinic.ignored import IGNORED

TABLE = """site,who,age,dx,part
north,p1,50,,train
north,p2,60,sick,train
north,p3,70,well,test
north,p3,71,NA,train
north,p4,72,odd,train
south,p5,30,well,train
south,p6,40,sick,train
"""
BASE = {"table": "table.csv", "site": "site", "subject": "who", "label": "dx", "features": "age"}


def opened(folder: Path, task: Any = "labels", split: str | None = None, **entries: Any) -> Opened:
    return open_data(DataSpec.model_validate(BASE | {"unlabelled": "use"} | entries), folder, task, split)


def numbers_of(found: Opened) -> list[str]:
    return [note.number for note in found.notes]


# Tables ---------------------------------------------------------------------------------------------------------------


def test_rows_without_a_label_come_last_and_those_with_an_unknown_one_are_rejected(write_table: Any) -> None:
    result = opened(write_table(TABLE), classes=["well", "sick"])
    north, south = result.sites["north"], result.sites["south"]
    assert north.targets.tolist() == [1, 0, -1, -1]
    assert north.labelled is not None
    assert north.labelled.tolist() == [True, True, False, False]
    assert north.cases == ["row 2", "row 3", "row 1", "row 4"]
    assert north.subjects == ["p2", "p3", "p1", "p3"]
    assert isinstance(north.inputs, torch.Tensor)
    assert north.inputs.flatten().tolist() == [60, 70, 50, 71]
    counts = north.counts
    assert (counts.found, counts.used, counts.unlabelled) == (5, 4, 2)
    assert counts.rejected == Counter({"dx is not one of the classes": 1})
    assert south.labelled is None
    assert south.targets.tolist() == [0, 1]
    assert result.classes == ["well", "sick"]
    (note,) = [note for note in result.notes if note.number == "N209"]
    assert note.startswith("2 of 6 cases used have no label (north 2).")


def test_a_missing_label_is_no_class(write_table: Any) -> None:
    result = opened(write_table(TABLE))
    assert result.classes == ["odd", "sick", "well"]
    assert result.sites["north"].targets.tolist() == [1, 2, 0, -1, -1]
    binary = opened(write_table(TABLE), positive="sick")
    assert binary.sites["north"].targets.tolist() == [1, 0, 0, -1, -1]


def test_without_the_entry_they_are_rejected_as_ever(write_table: Any) -> None:
    result = opened(write_table(TABLE), unlabelled="reject")
    assert DataSpec.model_validate(BASE).unlabelled == "reject"
    assert result.sites["north"].labelled is None
    assert result.sites["north"].counts.rejected == Counter({"dx is missing": 2})
    assert "N209" not in numbers_of(result)
    assert "unlabelled" not in facts_frame(result.cohort.facts, result.classes)


def test_where_every_row_has_a_label_nothing_differs(write_table: Any) -> None:
    folder = write_table(TABLE.replace(",NA,", ",sick,").replace(",,", ",sick,"))
    used, rejected = opened(folder), opened(folder, unlabelled="reject")
    assert used.sites["north"].labelled is None
    assert used.fingerprint == rejected.fingerprint
    assert used.notes == rejected.notes
    assert opened(write_table(TABLE)).fingerprint != used.fingerprint


def test_numbers(write_table: Any) -> None:
    text = "site,who,age,y\nA,p1,1,2.5\nA,p2,2,\nA,p3,3,4.5\nA,p4,4,many\n"
    result = opened(write_table(text), "numbers", label="y")
    site = result.sites["A"]
    assert site.targets.tolist()[:2] == [2.5, 4.5]
    assert site.targets.isnan().tolist() == [False, False, True]
    assert site.counts.rejected == Counter({"y is not a number": 1})
    frame = facts_frame(result.cohort.facts, result.classes)
    assert frame[["used", "unlabelled", "label mean", "label deviation"]].iloc[0].tolist() == [3, 1, 3.5, 1.0]


def test_the_table_of_sites_counts_them_apart(write_table: Any) -> None:
    result = opened(write_table(TABLE), classes=["well", "sick"])
    frame = facts_frame(result.cohort.facts, result.classes)
    columns = ["site", "found", "used", "unlabelled", "rejected", "reasons", "patients", "class: well", "class: sick"]
    expected = pd.DataFrame(
        [["north", 5, 4, 2, 1, "dx is not one of the classes (1)", 3, 1, 1], ["south", 2, 2, 0, 0, "", 2, 1, 1]],
        columns=columns,
    )
    pd.testing.assert_frame_equal(frame[columns], expected)
    assert list(frame.columns)[: len(columns)] == columns


def test_a_split_column_keeps_them_for_training_only(write_table: Any) -> None:
    text = TABLE.replace("p1,50,,train", "p1,50,,test")
    result = opened(write_table(text), split="part", classes=["well", "sick"])
    north = result.sites["north"]
    assert north.cases == ["row 2", "row 3", "row 4"]
    assert north.counts.rejected == Counter({"dx is not one of the classes": 1, "dx is missing": 1})
    parts = split(north, folds=None, fold=0, validation=0, seed=0)
    assert (parts.train.tolist(), parts.test.tolist()) == ([0], [1])
    assert parts.unlabelled.tolist() == []  # row 4 is of p3, who is tested


def test_a_site_without_any_label_keeps_its_cases(write_table: Any) -> None:
    text = TABLE.replace("well,train", ",train").replace("p6,40,sick", "p6,40,")
    result = opened(write_table(text), classes=["well", "sick"])
    south, facts = result.sites["south"], result.cohort.facts["south"]
    assert (len(south), south.targets.tolist(), south.cases) == (2, [-1, -1], ["row 6", "row 7"])
    assert (facts.found, facts.used, facts.unlabelled, facts.labelled, facts.classes) == (2, 2, 2, 0, [0, 0])
    assert "N208" not in numbers_of(result)
    frame = facts_frame(result.cohort.facts, result.classes).set_index("site")
    assert frame.loc["south", ["used", "unlabelled", "class: sick"]].tolist() == [2, 2, 0]
    parts = split(south, folds=3, fold=0, validation=0.2, seed=0)  # of two patients: nothing is split there
    assert [len(parts.train), len(parts.validation), len(parts.test), parts.note] == [0, 0, 0, ""]
    assert parts.trained_on.tolist() == parts.unlabelled.tolist() == [0, 1]


def test_somebody_must_have_a_label(write_table: Any) -> None:
    text = "\n".join(",".join([*line.split(",")[:3], "", "train"]) for line in TABLE.splitlines()[1:])
    with pytest.raises(DataError, match="P205"):
        opened(write_table(TABLE.splitlines()[0] + "\n" + text + "\n"), classes=["well", "sick"])


def test_groups_that_no_labelled_case_has_make_no_columns(write_table: Any) -> None:
    text = (
        "site,who,age,dx,kind,sex,scan\nA,p1,1,0,x,f,1\nA,p2,2,1,y,m,2\nA,p3,3,,z,f,1\nA,p4,4,,x,d,1\nA,p5,5,,y,m,3\n"
        "A,p6,6,,,f,2\nB,p7,7,,w,f,1\n"
    )
    harmonisation = {"combat": {"covariates": ["sex", "age"], "groups": ["scan"]}}
    entries = {"features": ["age", "kind"], "categorical": ["kind"], "harmonisation": harmonisation}
    found, others = opened(write_table(text), **entries), opened(write_table(text), unlabelled="reject", **entries)
    assert found.features == others.features == ["age", "kind=x", "kind=y"]
    assert found.covariates == others.covariates == {"sex": ["sex=m"], "age": ["age"], "scan": ["scan=2"]}
    site = found.sites["A"]
    assert site.subjects == ["p1", "p2", "p6"]
    assert site.counts.rejected == Counter(
        {f"{column} has a group that no case with a label has": 1 for column in ("kind", "sex", "scan")}
    )
    assert site.table[2].isnan().tolist() == [False, True, True]
    assert found.left_out["B"].rejected == Counter({"kind has a group that no case with a label has": 1})


def test_a_study_without_any_label_stops(write_table: Any) -> None:
    with pytest.raises(DataError, match=r"P205.*No row can be used: dx is missing \(2\)\."):
        opened(write_table("site,who,age,dx\nA,p1,1,\nA,p2,2,\n"))


def test_notes_on_labels_leave_them_out(write_table: Any) -> None:
    """A feature gives the label away whatever stands in rows without one, and a patient with one label has not two."""
    rows = [
        f"{site},{site}{case},{10 * (case % 2) + case / 100},{'sick' if case % 2 else 'well'}"
        for site in "AB"
        for case in range(30)
    ]
    folder = write_table("\n".join(["site,who,age,dx", *rows, "A,A1,3.3,", "A,A2,11,", "B,B1,0.02,"]))
    about_labels = ("N222", "N223", "N224", "N225", "N228", "N229", "N233")
    notes = [note for note in opened(folder).notes if note.number in about_labels]
    assert notes == [note for note in opened(folder, unlabelled="reject").notes if note.number in about_labels]
    assert [note.number for note in notes] == ["N223"]


@pytest.mark.parametrize(("label", "numbers"), [(-1, ["N237"]), (0, ["N237"]), (1, ["N237", "N229"])])
def test_a_copy_without_a_label_is_a_copy_and_no_other_label(label: int, numbers: list[str]) -> None:
    a, b = table_site("A", 30), table_site("B", 30)
    a.table[29], a.targets[29] = b.table[3], label  # type: ignore[index]
    b.targets[3] = 0  # type: ignore[index]
    sites = {"A": without(a, 29) if label < 0 else a, "B": b}
    columns = [Column(f"x{place}", [place]) for place in range(5)]
    assert [note.number for note in copied_rows(sites, columns)] == numbers
    digests = {site: [bytes(row.numpy().tobytes()) for row in data.table] for site, data in sites.items()}
    assert [note.number for note in copied_images(sites, digests)] == numbers[1:]


def test_simulated_sites_are_those_of_the_other_patients(write_table: Any) -> None:
    names = [f"p{number}" for number in range(90)]
    labels = ["", "sick", "well"]
    rows = [f"A,{name},{number},{labels[number % 3]}" for number, name in enumerate(names)]
    folder = write_table("\n".join(["site,who,age,dx", *rows]))
    partition = {"sites": 3, "label_skew": {"alpha": 1.0}, "least": 5}
    found, others = opened(folder, partition=partition), opened(folder, partition=partition, unlabelled="reject")
    for site, data in found.sites.items():
        assert data.with_labels().subjects == others.sites[site].subjects
        assert data.counts.unlabelled == 10
    assert sum(data.counts.found for data in found.sites.values()) == 90
    (note,) = [note for note in found.notes if note.number == "N102"]
    (before,) = [note for note in others.notes if note.number == "N102"]
    assert note == f"{before} 30 patients without a label were dealt in turn."
    mixed = write_table("\n".join(["site,who,age,dx", *rows[::-1]]))
    again = opened(mixed, partition=partition)
    assert {site: set(data.subjects) for site, data in again.sites.items()} == {
        site: set(data.subjects) for site, data in found.sites.items()
    }


# Images ---------------------------------------------------------------------------------------------------------------

HALF = np.zeros((8, 8), np.uint8)
HALF[:, :4] = 255
IMAGES = {"table": "t.csv", "image": "file", "size": [8, 8], "channels": "grey", "features": None, "mask": "outline"}


@pytest.fixture
def pictures(write_table: Any, write_image: Any) -> Path:
    folder: Path = write_table(
        "site,who,file,outline,dx\nA,p1,1.png,,\nA,p2,2.png,m.png,0\nA,p3,3.png,m.png,1\nA,p4,4.png,NA,0\n", "t.csv"
    )
    for number in range(1, 5):
        write_image(f"{number}.png", np.full((8, 8), 40 * number, np.uint8) + np.eye(8, dtype=np.uint8))
    write_image("m.png", HALF)
    return folder


def test_images_without_a_label(pictures: Path) -> None:
    site = opened(pictures, **IMAGES).sites["A"]
    assert site.cases == ["2.png", "3.png", "4.png", "1.png"]
    assert site.targets.tolist() == [0, 1, 0, -1]
    assert [int(image.min()) for image in site.inputs] == [80, 120, 160, 40]


def test_images_without_a_mask(pictures: Path) -> None:
    result = opened(pictures, "masks", label=None, **IMAGES)
    site = result.sites["A"]
    assert site.cases == ["2.png", "3.png", "1.png", "4.png"]
    assert isinstance(site.targets, torch.Tensor)
    assert site.targets[2:].unique().tolist() == [IGNORED]
    assert site.targets[:2].flatten(1).sum(1).tolist() == [32, 32]
    assert site.mask_facts is not None
    assert [facts.share for facts in site.mask_facts] == [0.5, 0.5, 0.0, 0.0]
    assert facts_frame(result.cohort.facts, result.classes)["foreground"].tolist() == [0.5]
    assert [number for number in numbers_of(result) if number[:2] == "N4"] == []
    assert any("cases used have no mask (A 2)" in note for note in result.notes)


def test_a_mask_that_is_not_where_its_cell_says_is_no_missing_mask(pictures: Path) -> None:
    table = pictures / "t.csv"
    table.write_text(table.read_text().replace("3.png,m.png", "3.png,gone.png"))
    site = opened(pictures, "masks", label=None, max_unreadable=0.5, **IMAGES).sites["A"]
    assert site.cases == ["2.png", "1.png", "4.png"]
    assert site.counts.rejected == Counter({"mask file is missing": 1})
    assert site.counts.unlabelled == 2
    assert site.mask_facts is not None
    assert len(site.mask_facts) == 3


def test_a_site_whose_masks_can_not_be_read_has_no_label(pictures: Path) -> None:
    table = pictures / "t.csv"
    table.write_text(table.read_text().replace("m.png", "gone.png") + "B,p9,1.png,m.png,0\n")
    result = opened(pictures, "masks", label=None, max_unreadable=0.5, **IMAGES)
    counts, facts = result.sites["A"].counts, result.cohort.facts
    assert (counts.found, counts.used, counts.unlabelled) == (4, 2, 2)
    assert counts.rejected == Counter({"mask file is missing": 2})
    assert (facts["A"].foreground, facts["B"].foreground is None) == (None, False)
    assert facts_frame(facts, ["background", "mask"])["foreground"].isna().tolist() == [True, False]


def without(data: SiteData, *places: int) -> SiteData:
    """The site with the labels or masks of some cases gone."""
    labelled = torch.ones(len(data), dtype=torch.bool)
    labelled[list(places)] = False
    assert isinstance(data.targets, torch.Tensor)
    targets = data.targets.clone()
    targets[list(places)] = IGNORED if targets.ndim > 1 else torch.nan if targets.is_floating_point() else -1
    return replace(data, targets=targets, labelled=labelled)


def test_augmentation_moves_no_background_into_a_mask_that_is_not_there() -> None:
    site = image_site("A", 4, masks=True)
    augmentation = Augmentation([{"RandZoom": {"prob": 1.0, "min_zoom": 0.4, "max_zoom": 0.5}}], (8, 8))
    index = torch.tensor([3, 0, 1])
    plain = Dataset(site, Scaler.identity(1), augmentation)
    some = Dataset(without(site, 1, 3), Scaler.identity(1), augmentation)
    images, masks = some.batch(index, augment=7)
    assert masks[[0, 2]].unique().tolist() == [IGNORED]
    assert torch.equal(masks[1], plain.batch(index, augment=7)[1][1])
    assert torch.equal(images, plain.batch(index, augment=7)[0])
    pooled = Dataset.pool([plain, some], "pool")
    assert pooled.labelled is not None
    assert pooled.labelled.tolist() == [True] * 4 + [True, False, True, False]
    assert pooled.batch(index + 4, augment=7)[1][[0, 2]].unique().tolist() == [IGNORED]


# Volumes --------------------------------------------------------------------------------------------------------------


def test_volumes_without_a_mask(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(1), ["site,who,file,outline"]
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    for number in range(4):
        side = 16 if number < 3 else 24  # the image without a mask is larger, and does not decide over the plan
        values = np.pad(mask, (0, side - 16), mode="edge") * 100.0 + 1 + rng.random((side,) * 3)
        values[4:-4, 4:-4, 4:-4] += 100
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f"i{number}.nii.gz")
        rows.append(f"A,p{number},i{number}.nii.gz,{'m.nii.gz' if number in (1, 2) else ''}")
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "m.nii.gz")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    volumes = {"image": "file", "mask": "outline", "features": None, "label": None}
    grid = {"size": [16, 16, 16], "centre": "foreground"}
    result = opened(tmp_path, "masks", preprocessing=grid, **volumes)
    site = result.sites["A"]
    assert site.cases == ["i1.nii.gz", "i2.nii.gz", "i0.nii.gz", "i3.nii.gz"]
    assert isinstance(site.targets, Volumes)
    assert site.targets.shape == (4, 1, 16, 16, 16)
    assert [sorted(site.targets[place].unique().tolist()) for place in range(4)] == [[0, 1], [0, 1], [255], [255]]
    assert facts_frame(result.cohort.facts, result.classes)["foreground"].tolist() == [512 / 4096]
    again = opened(tmp_path, "masks", preprocessing=grid, **volumes)  # from the cache
    assert again.fingerprint == result.fingerprint
    known = site.with_labels()
    assert known.cases == site.cases[:2]
    assert isinstance(known.targets, Volumes)
    assert known.targets.shape == (2, 1, 16, 16, 16)

    boxes = Dataset(site, Scaler.identity(1), None, Patch(size=(8, 8, 8), foreground=1.0))
    inputs, masks = boxes.batch(torch.tensor([3, 1]), augment=1)
    assert inputs.shape == masks.shape == (2, 1, 8, 8, 8)
    assert masks[0].unique().tolist() == [IGNORED]
    assert masks[1].max() == 1

    auto = {"preprocessing": {"size": "auto", "spacing": "auto"}}
    spec = DataSpec.model_validate(BASE | volumes | auto | {"unlabelled": "use"})
    found = Holder(spec, tmp_path, "masks").census("A", plan=True)
    others = Holder(spec.model_copy(update={"unlabelled": "reject"}), tmp_path, "masks").census("A", plan=True)
    assert found.volumes == others.volumes
    assert found.volumes.cases == 2


# Splits ---------------------------------------------------------------------------------------------------------------

cases = st.lists(
    st.tuples(st.integers(0, 12).map(lambda n: f"p{n}"), st.sampled_from([None, None, 0, 1, 2])), max_size=60
)


def labelled_site(pairs: list[tuple[str, int | None]], parts: list[str] | None = None) -> SiteData:
    count = len(pairs)
    labels = torch.tensor([-1 if label is None else label for _, label in pairs], dtype=torch.int64)
    known = torch.tensor([label is not None for _, label in pairs], dtype=torch.bool)
    subjects = [subject for subject, _ in pairs]
    return SiteData(
        "A", torch.zeros(count, 1), labels, subjects, ["?"] * count, parts, Counts(count, count),
        labelled=None if known.all() else known,
    )  # fmt: skip


@given(cases, st.integers(2, 4), st.sampled_from([0.0, 0.2, 0.5]), st.booleans(), st.sampled_from(["train", "drop"]))
def test_folds_of_the_others_are_the_same_and_no_patient_leaks(
    pairs: list[tuple[str, int | None]], folds: int, validation: float, holdout: bool, small: Any
) -> None:
    pairs = [*pairs, ("last", 1)]
    places = [place for place, (_, label) in enumerate(pairs) if label is not None]
    every, alone = labelled_site(pairs), labelled_site([pairs[place] for place in places])
    for fold in range(1 if holdout else folds):
        how: Any = {"folds": None if holdout else folds, "fold": fold, "validation": validation, "seed": 3}
        how |= {"small_sites": small, "holdout": 0.3 if holdout else None}
        parts, expected = split(every, **how), split(alone, **how)
        for part in ("train", "validation", "test"):
            assert getattr(parts, part).tolist() == [places[place] for place in getattr(expected, part).tolist()]
            assert getattr(parts, part).dtype == torch.int64
        assert parts.note == expected.note
        held_out = {pairs[place][0] for place in [*parts.validation.tolist(), *parts.test.tolist()]}
        free = [place for place, (name, label) in enumerate(pairs) if label is None and name not in held_out]
        assert parts.unlabelled.tolist() == (free if len(parts.train) else [])
        assert parts.unlabelled.dtype == torch.int64


def test_parts_by_hand() -> None:
    pairs = [("a", 0), ("b", None), ("a", None), ("c", 1), ("c", None), ("d", None), ("d", 1), ("e", None)]
    column = ["train", "train", "train", "test", "train", "train", "validation", "test"]
    parts = split(labelled_site(pairs, column), folds=None, fold=0, validation=0.5, seed=0)
    found = [index.tolist() for index in (parts.train, parts.validation, parts.test, parts.unlabelled)]
    # c is tested and d validated, so that their other cases are not trained on; e's is a test case without a label.
    assert found == [[0], [6], [3], [1, 2]]


def test_a_site_that_is_left_out_gives_none() -> None:
    pairs = [("a", 0), ("b", None), ("c", 1)]
    column = ["test", "train", "test"]
    parts = split(labelled_site(pairs, column), folds=None, fold=0, validation=0, seed=0)
    assert (parts.train.tolist(), parts.unlabelled.tolist()) == ([], [1])
    dropped = split(labelled_site(pairs), folds=3, fold=0, validation=0, seed=0, small_sites="drop")
    assert dropped.unlabelled.tolist() == []
    trained = split(labelled_site(pairs), folds=3, fold=0, validation=0, seed=0)
    assert (trained.train.tolist(), trained.unlabelled.tolist()) == ([0, 2], [1])


def test_the_labelled_cases_of_a_site_in_any_order() -> None:
    data = replace(without(table_site("A", 5), 0, 3), covariates=torch.arange(5.0, dtype=torch.float64)[:, None])
    known = data.with_labels()
    assert known.cases == ["row 2", "row 3", "row 5"]
    assert known.covariates is not None
    assert known.covariates.flatten().tolist() == [1, 2, 4]
    assert torch.equal(known.table, data.table[[1, 2, 4]])
    assert known.parts == ["train"] * 3
    assert known.with_labels() is known
    last = without(table_site("A", 5), 3, 4)
    assert last.with_labels().table.data_ptr() == last.table.data_ptr()  # nothing is copied


# Sites and engines ----------------------------------------------------------------------------------------------------

REQUEST: dict[str, Any] = {
    "fold": 0, "folds": None, "validation": 0, "split_seed": 0, "small_sites": "train", "augmentation": [],
    "classes": 2, "steps": scaling_steps("per_site"),
}  # fmt: skip


def test_a_site_tells_how_many_it_may_train_on_and_scales_without_them() -> None:
    whole = table_site("A", 8)
    some = without(whole, 6, 7)
    data = {"A": some, "B": table_site("B", 5)}
    requests = {site: Message(REQUEST) for site in data}
    local = LocalEngine(data)
    answers = {site: reply.fields for site, reply in local.call("prepare", requests) if isinstance(reply, Message)}
    assert answers["A"]["train"] == 6
    assert answers["A"]["unlabelled"] == 2
    assert sum(answers["A"]["classes"]) == 6
    assert "unlabelled" not in answers["B"]
    scaled = local.members["A"].dataset.batch(torch.arange(8))[0]
    assert torch.allclose(scaled[:6].mean(0), torch.zeros(5), atol=1e-6)
    assert not torch.allclose(scaled.mean(0), torch.zeros(5), atol=1e-3)
    engine = ProcessEngine(data, workers=1, threads=1, device="cpu", folders=dict.fromkeys(data))
    try:
        replies = {site: reply.fields for site, reply in engine.call("prepare", requests) if isinstance(reply, Message)}
    finally:
        engine.close()
    assert replies == answers


def test_a_pool_has_those_of_all_sites() -> None:
    data = {"B": table_site("B", 5), "A": without(table_site("A", 8), 6, 7), "C": without(table_site("C", 4), 1)}
    local = LocalEngine(data)
    list(local.call("prepare", {site: Message(REQUEST) for site in data}))
    (pool,) = local.pool("pool", ["B", "A", "C"]).members.values()
    assert pool.parts.unlabelled.tolist() == [5 + 6, 5 + 7, 5 + 8 + 1]
    assert pool.parts.train.tolist() == [*range(5), *range(5, 11), 13, 15, 16]
    inputs, targets = pool.dataset.batch(pool.parts.unlabelled)
    assert targets.tolist() == [-1, -1, -1]
    assert torch.equal(inputs[:2], local.members["A"].dataset.batch(torch.tensor([6, 7]))[0])


def test_names_of_the_others_stay() -> None:
    whole = table_site("A", 8)
    alone, some = LocalEngine({"A": without(whole, 6, 7).with_labels()}), LocalEngine({"A": without(whole, 6, 7)})
    names = some.members["A"].pseudonyms
    assert names[:6] == alone.members["A"].pseudonyms
    assert sorted(names[6:]) == [("P00007", "P00007-1"), ("P00008", "P00008-1")]


# Corruptions ----------------------------------------------------------------------------------------------------------

CORRUPT = Parts(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3]), unlabelled=torch.tensor([4, 5]))


@pytest.mark.parametrize("name", ["label_flip", "swapped_labels", "missing_class", "backdoor"])
def test_labels_that_are_not_there_are_not_changed(name: str) -> None:
    data = without(site_of("A", torch.arange(12.0).view(6, 2), torch.tensor([0, 1, 1, 0, 1, 1])), 4, 5)
    options = {"missing_class": {"label": 1}, "backdoor": {"target": 0, "features": {"0": 9.0}}}.get(name, {})
    dataset = Dataset(data, Scaler.identity(2))
    changed, parts = corrupted(dataset, CORRUPT, (name, options), 2, (0, "A", 0))
    assert changed.targets[4:].tolist() == [-1, -1]
    assert parts.unlabelled.tolist() == [4, 5]
    assert torch.equal(changed.batch(torch.tensor([4, 5]))[0], dataset.batch(torch.tensor([4, 5]))[0])


def test_what_is_wrong_with_inputs_is_wrong_with_theirs() -> None:
    data = without(site_of("A", torch.arange(1.0, 13.0).view(6, 2), torch.tensor([0, 1, 1, 0, 1, 1])), 4, 5)
    dataset, every = Dataset(data, Scaler.identity(2)), torch.arange(6)
    options = {"factor": 10.0}
    changed, _ = corrupted(dataset, CORRUPT, ("wrong_scaling", options), 2, (0, "A", 0))
    ratio = changed.batch(every)[0] / dataset.batch(every)[0]
    assert ratio[:, 0].tolist() == [10, 10, 10, 1, 10, 10]
    few, _ = corrupted(dataset, CORRUPT, ("wrong_scaling", options | {"fraction": 0.5}), 2, (0, "A", 0))
    assert sorted((few.batch(every)[0] / dataset.batch(every)[0])[4:, 0].tolist()) == [1, 10]
    alone = replace(CORRUPT, unlabelled=torch.empty(0, dtype=torch.int64))
    before, _ = corrupted(dataset, alone, ("wrong_scaling", options | {"fraction": 0.5}), 2, (0, "A", 0))
    assert torch.equal(before.batch(every[:4])[0], few.batch(every[:4])[0])


def test_a_wrong_size_makes_no_mask() -> None:
    dataset = Dataset(without(image_site("A", 6, masks=True), 4, 5), Scaler.identity(1))
    changed, _ = corrupted(dataset, CORRUPT, ("wrong_spacing", {"factor": 0.5}), 2, (0, "A", 0))
    inputs, masks = changed.batch(torch.arange(6))
    assert masks[4:].unique().tolist() == [IGNORED]
    assert not torch.equal(inputs[4], dataset.batch(torch.arange(6))[0][4])
    assert not torch.equal(masks[0], dataset.batch(torch.arange(6))[1][0])


# Labels that are hidden -----------------------------------------------------------------------------------------------


def many(cases: int, classes: int, people: int) -> SiteData:
    """A site with cases of several classes; patients have cases of one class."""
    subjects = [f"p{number % people}" for number in range(cases)]
    targets = torch.tensor([number % people % classes for number in range(cases)])
    inputs = torch.randn(cases, 2, generator=torch.Generator().manual_seed(1))
    return SiteData("north", inputs, targets, subjects, [str(n) for n in range(cases)], None, Counts(cases, cases))


@given(share=st.floats(0.01, 1.0), classes=st.integers(2, 4), people=st.integers(30, 60), fold=st.integers(0, 2))
def test_each_class_keeps_its_share_of_labels(share: float, classes: int, people: int, fold: int) -> None:
    data = many(2 * people, classes, people)
    options: dict[str, Any] = {"folds": 3, "fold": fold, "validation": 0.2, "seed": 0}
    whole = split(data, **options)
    found = split(data, **options, labels=Labels(share=share))
    assert torch.equal(found.validation, whole.validation)
    assert torch.equal(found.test, whole.test)
    assert sorted([*found.train.tolist(), *found.hidden.tolist()]) == whole.train.tolist()
    assert torch.equal(found.unlabelled, found.hidden)
    names = np.array(data.subjects)
    assert not set(names[found.train]) & set(names[found.hidden]), "a patient's labels are all hidden, or none"
    before, after = ({one: len(set(names[part[data.targets[part] == one]])) for one in range(classes)}
                     for part in (whole.train, found.train))  # fmt: skip
    for one in range(classes):
        assert max(1, share * before[one] - 1) <= after[one] <= max(1, share * before[one] + 1), one
    total = round(share * sum(before.values()))
    assert max(total, 1) <= sum(after.values()) <= max(total, classes)
    more = split(data, **options, labels=Labels(share=min(1.0, share * 1.5)))
    assert set(found.train.tolist()) <= set(more.train.tolist()), "who keeps a label keeps it with a larger share"
    assert len(split(data, **options, labels=Labels(share=1.0)).hidden) == 0


def test_whose_labels_are_hidden_depends_on_names_and_seed_alone() -> None:
    data = many(60, 2, 30)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    shuffled = replace(
        data, inputs=data.inputs[order], targets=data.targets[order], subjects=[data.subjects[n] for n in order],
        cases=[data.cases[n] for n in order],
    )  # fmt: skip

    def kept(one: SiteData, **labels: Any) -> set[str]:
        parts = split(one, folds=3, fold=0, validation=0.0, seed=0, labels=Labels(share=0.3, **labels))
        return {one.cases[n] for n in parts.train}

    assert kept(data) == kept(shuffled)
    assert kept(data) != kept(data, seed=1)
    assert kept(data, sites=["south"]) > kept(data)
    assert kept(data, sites=["north"]) == kept(data)


def test_nobody_sees_labels_that_are_hidden() -> None:
    hidden = torch.tensor([1, 3])
    for data, blank in ((many(6, 2, 6), -1), (image_site("north", 6, masks=True), IGNORED)):
        dataset = Dataset(data, Scaler.identity(data.inputs.shape[1])).without_labels(hidden)
        targets = dataset.batch(torch.arange(6))[1]
        assert (targets[hidden] == blank).all()
        others = torch.tensor([0, 2, 4, 5])
        assert torch.equal(targets[others], Dataset(data, Scaler.identity(data.inputs.shape[1])).batch(others)[1])
        assert dataset.known.tolist() == [True, False, True, False, True, True]
        assert not torch.equal(data.targets[hidden], targets[hidden]), "the site still has them"


def test_boxes_of_volumes_do_not_tell_where_hidden_structures_are(tmp_path: Path) -> None:
    for number in range(2):
        np.save(tmp_path / f"i{number}.npy", np.zeros((1, 8, 8, 8), np.float32))
        mask = np.zeros((1, 8, 8, 8), np.uint8)
        mask[0, :2, :2, :2] = 1
        np.save(tmp_path / f"m{number}.npy", mask)
    about = [{"labels": [504, 8]}] * 2
    images, masks = (Volumes([tmp_path / f"{kind}{n}.npy" for n in range(2)], about) for kind in "im")
    data = SiteData("north", images, masks, ["p", "q"], ["p", "q"], None, Counts(2, 2))
    patch = Patch(size=(2, 2, 2), foreground=1.0)
    dataset = Dataset(data, Scaler.identity(1), patch=patch)
    seen = [dataset.batch(torch.tensor([1]), augment=seed)[1].any() for seed in range(30)]
    assert all(seen)
    blind = dataset.without_labels(torch.tensor([1]))
    cut = [blind.batch(torch.tensor([1]), augment=seed)[1] for seed in range(30)]
    assert all((one == IGNORED).all() for one in cut)
    corners = [patch_corners(blind.targets, torch.tensor([1]), patch, seed)[0] for seed in range(30)]
    assert len(set(corners)) > 20, "boxes lie anywhere"
