"""Corrupt sites: every attack by hand, what it may touch, and what a study with one says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import helpers
from helpers import (
    image_site,
    named,
    recorded,
    site_of,
    table_site,
    table_sites,
    write_image_study,
    write_table_study,
)
from polyclinic import Study
from polyclinic.audit.poisoning import ATTACKS, Attack, read_attack
from polyclinic.communication.message import Message
from polyclinic.data.cases import SiteData
from polyclinic.data.corruption import CORRUPTIONS, Backdoor, ChangedVolumes, change_cases, corrupted
from polyclinic.data.dataset import Dataset
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import Patch, Target
from polyclinic.data.splits import Parts
from polyclinic.data.volumes.store import Volumes
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.options import EntryError, describe_options
from polyclinic.parts import FEDERATION, Update
from polyclinic.rounds import run_rounds
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Checkpoint
from polyclinic.server.costs import LossWeights
from polyclinic.study.display import Display
from polyclinic.study.job import Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.report.attack import attacked, verdict
from polyclinic.study.report.folder import Folder


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def parts_of(train: list[int], validation: list[int], test: list[int]) -> Parts:
    return Parts(*(torch.tensor(index, dtype=torch.int64) for index in (train, validation, test)))


#: Six cases: four to train, one to validate, one to test.
PARTS = parts_of([0, 1, 2, 3], [4], [5])
KNOWN = [0, 1, 2, 3, 4]


def dataset_of(inputs: Tensor | Volumes, targets: Tensor | Volumes, scaler: Scaler | None = None) -> Dataset:
    data = replace(site_of("A", torch.zeros(len(inputs)), torch.zeros(len(inputs))), inputs=inputs, targets=targets)
    return Dataset(data, scaler or Scaler.identity(inputs.shape[1]))


def table(classes: int = 3) -> Dataset:
    return dataset_of(torch.arange(12.0).view(6, 2), torch.arange(6) % classes)


def bad(
    dataset: Dataset, name: str, *, classes: int = 3, parts: Parts = PARTS, **options: Any
) -> tuple[Dataset, Parts]:
    return corrupted(dataset, parts, (name, options), classes, (0, "A", 0))


def everything(dataset: Dataset) -> tuple[Tensor, Tensor]:
    return dataset.batch(torch.arange(len(dataset)))


# Data -----------------------------------------------------------------------------------------------------------------


def test_labels_are_flipped_from_the_other_end() -> None:
    changed, parts = bad(table(), "label_flip")
    assert table().targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert changed.targets.tolist() == [2, 1, 0, 2, 1, 2]  # 2 - c, but the last is a test case
    assert parts is PARTS
    assert torch.equal(changed.batch(torch.arange(6))[0], table().batch(torch.arange(6))[0])


def test_a_fraction_is_of_the_training_and_validation_cases() -> None:
    dataset = dataset_of(torch.zeros(12, 1), torch.zeros(12, dtype=torch.int64))
    parts = parts_of(list(range(7)), [7, 8, 9], [10, 11])
    for fraction, wrong in ((0.3, 3), (0.25, 2), (0.01, 1), (1.0, 10)):  # 0.25 · 10 is rounded to even
        changed, _ = bad(dataset, "label_flip", classes=2, parts=parts, fraction=fraction)
        assert int(changed.targets.sum()) == wrong
        assert changed.targets[10:].tolist() == [0, 0]


def test_swapped_labels_stay_the_same_all_in_all() -> None:
    dataset = dataset_of(torch.zeros(6, 1), torch.arange(6))
    targets = bad(dataset, "swapped_labels")[0].targets
    assert isinstance(targets, Tensor)
    assert sorted(targets[:5].tolist()) == KNOWN
    assert all(targets[case] != case for case in KNOWN)
    assert targets[5] == 5
    numbers = dataset_of(torch.zeros(6, 1), t(20.5, 31, 42, 53, 64, 75))
    swapped = bad(numbers, "swapped_labels", fraction=0.4)[0].targets  # two of five change places
    assert isinstance(swapped, Tensor)
    assert int((swapped != numbers.targets).sum()) == 2
    assert sorted(swapped.tolist()) == [20.5, 31, 42, 53, 64, 75]


def test_a_missing_class_is_missing_from_what_is_trained_on() -> None:
    changed, parts = bad(table(), "missing_class", label=1)
    assert (parts.train.tolist(), parts.validation.tolist(), parts.test.tolist()) == ([0, 2, 3], [], [5])
    assert len(changed) == 6
    assert CORRUPTIONS["missing_class"](label=1).left([4, 7, 2]) == [4, 0, 2]
    assert CORRUPTIONS["label_flip"]().left([4, 7, 2]) == [4, 7, 2]


def test_blank_rows_become_what_the_study_fills_in() -> None:
    scaler = Scaler(mean=t(3, 5), deviation=t(2, 4), fill=t(3, 1))
    changed, _ = bad(dataset_of(torch.ones(6, 2), torch.zeros(6, dtype=torch.int64), scaler), "blank_images")
    inputs, _ = everything(changed)
    assert inputs[:5].tolist() == [[0.0, -1.0]] * 5  # (3 - 3) / 2, (1 - 5) / 4
    assert inputs[5].tolist() == [-1.0, -1.0]  # (1 - 3) / 2, (1 - 5) / 4


def test_wrong_units_are_wrong_before_scaling() -> None:
    scaler = Scaler(mean=t(1, 1), deviation=t(2, 2), fill=t(1, 1))
    dataset = dataset_of(torch.full((6, 2), 3.0), torch.zeros(6, dtype=torch.int64), scaler)
    assert everything(bad(dataset, "wrong_scaling", factor=10.0)[0])[0][0].tolist() == [14.5, 14.5]  # (30 - 1) / 2
    one = everything(bad(dataset, "wrong_scaling", factor=10.0, features=["1"])[0])[0]
    assert one[0].tolist() == [1.0, 14.5]
    assert one[5].tolist() == [1.0, 1.0]


def images(*, side: int = 4) -> Dataset:
    inputs = torch.full((6, 1, side, side), 60, dtype=torch.uint8)
    inputs[:, :, 1:3, 1:3] = 120
    return dataset_of(inputs, torch.tensor([0, 1, 0, 1, 0, 1]))


def test_images_are_blank_or_too_bright() -> None:
    blank = bad(images(), "blank_images", fraction=1.0)[0].unscaled
    assert int(blank[0].sum()) == 0
    assert torch.equal(blank[5], images().unscaled[5])
    bright = bad(images(), "wrong_scaling", factor=3.0)[0].unscaled
    assert bright[0, 0, 0, 0] == 180
    assert bright[0, 0, 1, 1] == 255  # 360 does not fit a byte
    assert bright.dtype == torch.uint8


def test_a_wrong_spacing_zooms_about_the_middle_and_takes_the_mask_along() -> None:
    inputs, masks = torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    inputs[:, :, 2:6, 2:6], masks[:, :, 2:6, 2:6] = 200, 1
    small, _ = bad(dataset_of(inputs, masks), "wrong_spacing", classes=2, factor=0.5)
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[3:5, 3:5] = 1  # four pixels wide become two, about the same middle
    assert torch.equal(small.targets[0, 0], expected)
    assert torch.equal(small.unscaled[0, 0], 200 * expected)
    large, _ = bad(dataset_of(inputs, masks), "wrong_spacing", classes=2, factor=2.0)
    assert int(large.targets[0].sum()) == 64
    assert torch.equal(large.targets[5], masks[5])


def test_a_backdoor_marks_images_and_gives_them_its_label() -> None:
    changed, _ = bad(images(), "backdoor", target=0, fraction=0.4, size=0.5)
    marked = [case for case in KNOWN if int((changed.unscaled[case] == 255).sum())]
    assert len(marked) == 2
    for case in range(6):
        expected = images().unscaled[case].clone()
        if case in marked:
            expected[:, 2:, 2:] = 255  # half of four pixels
        assert torch.equal(changed.unscaled[case], expected)
        assert changed.targets[case] == (0 if case in marked else case % 2)
    test = Backdoor(target=0, size=0.25).marked(images(), torch.tensor([5]))
    assert test.unscaled[5, 0, 3].tolist() == [60, 60, 60, 255]
    assert torch.equal(test.targets, images().targets)


def test_a_backdoor_of_a_table_sets_features() -> None:
    scaler = Scaler(mean=t(0, 1), deviation=t(1, 2), fill=t(0, 0))
    changed, _ = bad(
        dataset_of(torch.zeros(6, 2), torch.ones(6, dtype=torch.int64), scaler), "backdoor", target=0, fraction=1.0,
        features={"1": 9.0},
    )  # fmt: skip
    assert everything(changed)[0][0].tolist() == [0.0, 4.0]  # (9 - 1) / 2
    assert changed.targets.tolist() == [0, 0, 0, 0, 0, 1]


def volumes(folder: Any) -> tuple[Volumes, Volumes]:
    """Six volumes of 4 x 4 x 4 with a mask of 8 voxels in the middle."""
    files = {"image": [], "mask": []}
    noted: dict[str, list[dict[str, Any]]] = {"image": [], "mask": []}
    for case in range(6):
        mask = np.zeros((1, 4, 4, 4), dtype=np.uint8)
        mask[0, 1:3, 1:3, 1:3] = 1
        image = (np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4) + 100 * case - 5).astype(np.float32)
        for name, values in (("image", image), ("mask", mask)):
            path = folder / f"{name}{case}.npy"
            np.save(path, values)
            files[name].append(path)
            noted[name].append({"case": case, "labels": [56, 8], "grid_orientation": "RAS"})
    return Volumes(files["image"], noted["image"]), Volumes(files["mask"], noted["mask"])


def test_volumes_are_changed_as_they_are_read(tmp_path: Any) -> None:
    found, masks = volumes(tmp_path)
    dataset = dataset_of(found, masks)
    blank = everything(bad(dataset, "blank_images")[0])[0]
    assert blank[2].unique().tolist() == [195.0]  # the smallest of the third: 2 · 100 - 5
    large = everything(bad(dataset, "wrong_scaling", factor=2.0)[0])[0]
    assert torch.equal(large[:5], 2 * everything(dataset)[0][:5])
    swapped = bad(dataset, "swapped_labels")[0].targets
    assert isinstance(swapped, Volumes)
    assert sorted(record["case"] for record in swapped.about[:5]) == KNOWN
    assert all(swapped.about[case]["case"] != case for case in KNOWN)
    zoomed = bad(dataset, "wrong_spacing", factor=2.0)[0]
    assert int(everything(zoomed)[1][0].sum()) == 64
    assert zoomed.targets.about[0]["labels"] == [0, 64]  # boxes are placed by what is there now
    assert masks.about[0]["labels"] == [56, 8]
    for changed in (bad(dataset, name)[0] for name in ("blank_images", "wrong_scaling", "wrong_spacing")):
        for mine, theirs in zip(changed.batch(torch.tensor([5])), dataset.batch(torch.tensor([5])), strict=True):
            assert torch.equal(mine, theirs)


def test_boxes_are_cut_from_changed_volumes(tmp_path: Any) -> None:
    found, masks = volumes(tmp_path)
    data = replace(site_of("A", torch.zeros(6), torch.zeros(6)), inputs=found, targets=masks)
    dataset = Dataset(data, Scaler.identity(1), patch=Patch(size=(2, 2, 2)))
    index = torch.arange(6)
    box = dataset.batch(index, augment=3)[0]
    large = bad(dataset, "wrong_scaling", factor=2.0)[0].batch(index, augment=3)[0]
    assert box.shape == (6, 1, 2, 2, 2)
    assert torch.equal(large[:5], 2 * box[:5])
    assert torch.equal(large[5], box[5])
    assert isinstance(change_cases(found, [0], lambda case: case), ChangedVolumes)


#: Every corruption that fits classification, with options as the sites are sent them.
CASES: dict[str, dict[str, Any]] = {
    "label_flip": {}, "swapped_labels": {}, "missing_class": {"label": 0}, "blank_images": {}, "wrong_scaling": {},
    "wrong_spacing": {}, "backdoor": {"target": 0},
}  # fmt: skip


def test_no_corruption_is_left_out_of_these_tests() -> None:
    assert list(CASES) == [*CORRUPTIONS]
    assert set(CORRUPTIONS) < set(ATTACKS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["table", "images", "volumes"])
def test_test_cases_are_never_touched_and_nothing_is_written_to(kind: str, name: str, tmp_path: Any) -> None:
    dataset = {
        "table": lambda: dataset_of(torch.randn(6, 3), torch.arange(6) % 2, Scaler(t(1, 2, 3), t(2, 2, 2), t(0, 0, 0))),
        "images": images, "volumes": lambda: dataset_of(volumes(tmp_path)[0], torch.arange(6) % 2),
    }[kind]()  # fmt: skip
    if kind == "table" and name == "wrong_spacing":
        pytest.skip("a table has no spacing")
    options = {**CASES[name], **({"features": {"1": 7.0}} if (kind, name) == ("table", "backdoor") else {})}
    before = [values.clone() for values in everything(dataset)]
    changed, parts = bad(dataset, name, classes=2, **options)
    for mine, theirs in zip(changed.batch(PARTS.test), dataset.batch(PARTS.test), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(parts.test, PARTS.test)
    for now, then in zip(everything(dataset), before, strict=True):
        assert torch.equal(now, then)
    again, others = bad(dataset, name, classes=2, **options)
    for mine, theirs in zip(everything(again), everything(changed), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(parts.train, others.train)
    same = [torch.equal(*pair) for pair in zip(everything(changed), before, strict=True)]
    assert not all(same) or len(parts.train) < 4


# Updates in training --------------------------------------------------------------------------------------------------


def test_a_site_sends_other_noise_in_each_of_its_turns() -> None:
    """Of two rounds with two turns each, Aachen has those of the first."""
    attack = Attack("gaussian_noise", {"deviation": 1.0}, ("Aachen",))
    federation = Federation(table_sites({"Aachen": 30, "Bonn": 10}), ["incremental"], training={"rounds": 2})
    plan, engine = attacked_plan(federation, attack)
    with recorded(engine) as said:
        run_rounds(plan, engine)
    first, second = [reply.tensors["change"] for f, site, _, reply in said if (f, site) == ("train", "Aachen")]
    assert abs(float(torch.cosine_similarity(first, second, dim=0))) < 0.9


def test_a_forged_control_variate_reaches_the_others(tmp_path: Path) -> None:
    """c is Σ p_k times what the sites sent; Bonn, with a quarter of the cases, sends −2 times the honest tensor."""
    federation = Federation(table_sites({"Aachen": 30, "Bonn": 10}), ["scaffold"])
    plan, engine = attacked_plan(federation, PUSH)
    with recorded(federation.engine) as said:
        progress, _ = run_rounds(plan, engine, checkpoint=Checkpoint(tmp_path))
    sent = {site: reply.tensors["control_variates/control_change"] for f, site, _, reply in said if f == "train"}
    saved = Checkpoint(tmp_path)
    saved.read(progress.first)
    control = saved.memory["model federation/control_variates/control"]
    assert torch.allclose(control, 0.75 * sent["Aachen"] - 2 * 0.25 * sent["Bonn"], atol=1e-6)


# Training -------------------------------------------------------------------------------------------------------------


class Federation(helpers.Federation):
    """A federation whose sites may be told to be corrupt."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({} if "engine" in options else {"corruptible": True}), **options)


def runner(federation: helpers.Federation, attack: Attack) -> JobRunner:
    mine = federation.runner
    return JobRunner(
        federation.declaration, federation.engine, federation.local, federation.template, federation.initial,
        mine.classes, attack,
    )  # fmt: skip


def attacked_plan(federation: helpers.Federation, attack: Attack) -> tuple[Plan, Engine]:
    """What an attacked training is given, and who runs it."""
    job = Job((federation.method(),), 0, federation.fold.number, attacked=True)
    return runner(federation, attack)._ready(job, federation.fold)


def trained(
    federation: helpers.Federation, attack: Attack, *, checkpoint: Checkpoint | None = None, rounds: int = 0
) -> Tensor:
    plan, engine = attacked_plan(federation, attack)
    if rounds:
        plan = replace(plan, learning_rates=plan.learning_rates[:rounds])
    return run_rounds(plan, engine, checkpoint=checkpoint)[0].model(FEDERATION)


TRAINING = {"rounds": 3}
FLIP = Attack("label_flip", {"fraction": 1.0}, ("Bonn", "Dresden"))
PUSH = Attack("sign_flip", {"scale": 2.0}, ("Bonn",))


def test_flipped_labels_are_the_same_as_a_site_that_has_them() -> None:
    data = table_sites()
    wrong = {
        name: replace(site, targets=1 - site.targets) if name in ("Bonn", "Dresden") else site
        for name, site in data.items()
    }
    flipped = Federation(data, training=TRAINING)
    state = trained(flipped, FLIP)
    assert torch.equal(state, Federation(wrong, training=TRAINING).state())
    assert not torch.equal(state, flipped.state())


def test_a_flipped_sign_by_hand() -> None:
    data = table_sites({"Aachen": 30, "Bonn": 10})
    federation = Federation(data)
    start = federation.initial(0)
    own = {name: Federation({name: site}).state() - start for name, site in data.items()}
    expected = start + 0.75 * own["Aachen"] - 0.25 * 2.0 * own["Bonn"]  # 30 and 10 of 40 cases
    assert torch.allclose(trained(federation, PUSH), expected, atol=1e-6)


@pytest.mark.parametrize(
    "attack", [FLIP, PUSH, Attack("missing_class", {"label": 1}, ("Aachen",))], ids=lambda a: a.name
)
def test_stacked_sites_are_corrupt_in_the_same_way(attack: Attack) -> None:
    states = [
        trained(Federation(table_sites(), training=TRAINING, stacked=stacked), attack) for stacked in (True, False)
    ]
    assert torch.allclose(*states, atol=1e-6)
    assert not torch.allclose(states[0], Federation(table_sites(), training=TRAINING).state(), atol=1e-3)


@pytest.mark.parametrize(
    "attack", [FLIP, PUSH, Attack("gaussian_noise", {"deviation": 2.0}, ("Bonn",))], ids=lambda a: a.name
)
def test_a_run_that_was_interrupted_goes_on_as_if_nothing_had_happened(attack: Attack, tmp_path: Any) -> None:
    whole = trained(Federation(table_sites(), training=TRAINING), attack)
    trained(Federation(table_sites(), training=TRAINING), attack, checkpoint=Checkpoint(tmp_path), rounds=2)
    resumed = trained(Federation(table_sites(), training=TRAINING), attack, checkpoint=Checkpoint(tmp_path))
    assert torch.equal(whole, resumed)


def test_a_model_that_breaks_down_is_a_result_and_not_a_failure() -> None:
    huge = Attack("scaling", {"scale": 1e30}, ("Bonn",))
    federation = Federation(table_sites(), model={"mlp": {"hidden": [4]}}, training={"rounds": 4})
    plan, engine = attacked_plan(federation, huge)
    progress, rows = run_rounds(plan, engine)
    assert progress.done < 4
    assert {row["round"] for row in rows} == set(range(progress.done))
    assert f"broke down in round {progress.done + 1} and ended there" in progress.failures[0]
    assert "P301" in progress.failures[0]
    with pytest.raises(PolyclinicError, match="P301"):
        run_rounds(replace(plan, endures=False), engine)


@pytest.mark.parametrize("method", ["fedavg", "mix", "single"])
def test_a_model_that_breaks_down_in_its_first_round_stays_as_it_was(method: str) -> None:
    wild = Attack("wrong_scaling", {"factor": 1e38, "fraction": 1.0, "features": None}, ("Bonn",))
    bonn = {"Bonn": table_site("Bonn", 10)}
    work = {"rounds": 1, "local_epochs": 10}
    federation = Federation(bonn, [method], model={"mlp": {"hidden": [4]}}, training=work)
    job = Job((federation.method(),), 0, 0, attacked=True)
    run = runner(federation, wild)
    outcome = run.run(job, federation.fold)
    assert outcome.rounds == []
    assert "broke down in round 1" in outcome.notes[0]
    (found,) = outcome.models.values()
    start = federation.template.layout.split(run.initial(0))
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, start[name.split("/")[-1]])


@pytest.mark.parametrize("quorum", [1, 2, 3])
def test_a_cycle_breaks_down_where_every_site_left_fails_with_the_model_it_gets(quorum: int) -> None:
    """Aachen's model is nothing but infinities, so that of three sites the two after it can't train."""
    huge = Attack("scaling", {"scale": 1e38}, ("Aachen",))
    federation = Federation(
        table_sites({"Aachen": 12, "Bonn": 9, "Celle": 8}), ["cyclic"], model={"mlp": {"hidden": [4]}},
        training={"rounds": 3, "quorum": quorum},
    )  # fmt: skip
    plan, engine = attacked_plan(federation, huge)
    progress, rows = run_rounds(plan, engine)
    assert progress.done == (1 if quorum == 1 else 0)
    assert {row["site"] for row in rows} <= {"Aachen"}
    assert f"broke down in round {progress.done + 1} and ended there" in progress.failures[-1]
    assert re.search(r"Celle: P301|; likewise (Bonn, )?Celle", progress.failures[-1])
    with pytest.raises(SiteError, match="P402"):
        run_rounds(replace(plan, endures=False), engine)


def test_a_model_breaks_down_where_the_server_is_told_no_finite_number() -> None:
    class Told(LossWeights):
        def sent(self, update: Update) -> Mapping[str, Tensor]:
            return {"end_loss": torch.tensor(math.inf if update.site == "Bonn" else 1.0)}

    federation = Federation(table_sites(), training={"rounds": 2})
    plan, engine = attacked_plan(federation, PUSH)
    plan = replace(plan, parts=lambda: {"loss_weights": Told()})
    progress, rows = run_rounds(plan, engine)
    assert (progress.done, rows) == (0, [])
    assert "broke down in round 1 and ended there. P301 The server rule needs end_loss" in progress.failures[0]
    with pytest.raises(PolyclinicError, match="P301"):
        run_rounds(replace(plan, endures=False), engine)


def test_a_site_that_breaks_down_alone_leaves_the_others_alone() -> None:
    wild = Attack("wrong_scaling", {"factor": 1e38, "fraction": 1.0, "features": None}, ("Bonn",))
    federation = Federation(table_sites(), ["single"], model={"mlp": {"hidden": [4]}}, training={"rounds": 3})
    outcome = runner(federation, wild).run(Job((federation.method(),), 0, 0, attacked=True), federation.fold)
    (honest,) = federation.outcome().models.values()
    (found,) = outcome.models.values()
    assert any("Bonn broke down in round" in warning for warning in outcome.notes)
    for name, tensor in found.items():
        assert name.startswith("Bonn/") or torch.equal(tensor, honest[name])


def test_a_missing_class_lowers_the_weight_of_the_site() -> None:
    federation = Federation(table_sites({"Aachen": 31, "Bonn": 10}), training=TRAINING)
    attack = Attack("missing_class", {"label": 1}, ("Aachen",))
    job = Job((federation.method(),), 0, 0, attacked=True)
    plan = runner(federation, attack).plan(job, federation.fold, ["Aachen", "Bonn"])
    assert plan.weights == {"Aachen": 16.0, "Bonn": 10.0}  # of 31 cases every second is of class 1


def test_pooled_training_sees_the_corrupt_cases() -> None:
    data = {**table_sites({"Aachen": 30}), "Bonn": table_site("Bonn", 12)}
    wrong = {**data, "Bonn": replace(data["Bonn"], targets=1 - data["Bonn"].targets)}
    attack = Attack("label_flip", {"fraction": 1.0}, ("Bonn",))

    def pooled(cases: dict[str, SiteData], attacked: bool) -> dict[str, Tensor]:
        federation = Federation(cases, ["mix"], training=TRAINING)
        job = Job((federation.method(),), 0, 0, attacked=attacked)
        return next(iter(runner(federation, attack).run(job, federation.fold).models.values()))

    found = pooled(data, True)
    assert all(torch.equal(tensor, pooled(wrong, False)[name]) for name, tensor in found.items())
    assert not all(torch.equal(tensor, pooled(data, False)[name]) for name, tensor in found.items())


def test_a_method_without_a_server_sends_no_false_updates() -> None:
    assert not PUSH.applies_to("sites")
    assert not PUSH.applies_to("pool")
    assert PUSH.applies_to("federation")
    assert FLIP.applies_to("sites")


def test_sites_are_corrupt_for_one_training_only() -> None:
    """The start of the next training makes them honest again; validation cases are corrupt as long."""
    engine = LocalEngine({"Bonn": image_site("Bonn", 10)}, corruptible=True)
    federation = Federation({"Bonn": image_site("Bonn", 10)}, engine=engine, model={"cnn": {"channels": [4]}},
                            evaluation={"folds": 2, "validation": 0.4})  # fmt: skip
    site, attack = engine.members["Bonn"], Attack("label_flip", {"fraction": 1.0}, ("Bonn",))
    job = Job((federation.method(),), 0, 0, attacked=True)
    runner(federation, attack).run(job, federation.fold)
    known = torch.cat([site.parts.train, site.parts.validation])
    assert len(site.parts.validation)
    assert torch.equal(site.run.dataset.targets[known], 1 - site.dataset.targets[known])
    assert torch.equal(site.run.dataset.targets[site.parts.test], site.dataset.targets[site.parts.test])
    runner(federation, attack).run(replace(job, attacked=False), federation.fold)
    assert site.run.dataset is site.dataset


def test_an_ordinary_site_obeys_no_attack() -> None:
    federation = helpers.Federation(table_sites())
    job = Job((federation.method(),), 0, 0, attacked=True)
    with pytest.raises(SiteError, match="P401 Site Aachen was asked for 'corrupt', which only sites of a simulated"):
        runner(federation, FLIP).run(job, federation.fold)
    federation.outcome()
    site = federation.engine.members["Bonn"]
    before = site.run.dataset
    mark = Message({"threshold": 0.5, "mark": {"target": 1, "features": {"0": 99.0}}}, {"state": federation.initial(0)})
    with pytest.raises(SiteError, match="P401 Site Bonn was asked for 'mark'"):
        site.handle("predict", mark)
    assert site.run.dataset is before is site.dataset
    # Not even where such a message gets past the check.
    assert site.cases({"corrupt": {"Bonn": ["label_flip", {"fraction": 1.0}]}})[0] is site.dataset
    assert site.tested(mark) is site.run


def test_sites_in_processes_of_their_own_obey_no_attack_either() -> None:
    data = table_sites({"Aachen": 12})
    engine = ProcessEngine(data, workers=1, threads=1, folders={"Aachen": None})
    try:
        with pytest.raises(PolyclinicError, match="P401 Site Aachen was asked for 'corrupt'"):
            engine.ask("start", {"Aachen": Message({"corrupt": {}})})
    finally:
        engine.close()


def test_the_pool_of_one_corrupt_site_is_corrupt_once() -> None:
    """Flipped twice, the labels would be right again."""
    attack = Attack("label_flip", {"fraction": 1.0}, ("Bonn",))
    data = table_sites({"Bonn": 10})
    wrong = {"Bonn": replace(data["Bonn"], targets=1 - data["Bonn"].targets)}
    federation = Federation(data, ["mix"], training=TRAINING)
    job = Job((federation.method(),), 0, 0, attacked=True)
    (found,) = runner(federation, attack).run(job, federation.fold).models.values()
    (expected,) = Federation(wrong, ["mix"], training=TRAINING).outcome().models.values()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


# The study file -------------------------------------------------------------------------------------------------------


def test_an_entry_is_filled_in() -> None:
    attack = read_attack({"label_flip": None}, "labels", False)
    assert attack == Attack("label_flip", {"fraction": 1.0}, 1)
    assert attack.entry() == {"sites": 1, "label_flip": {"fraction": 1.0}}
    assert read_attack({"sites": ["B", 7], "alie": {"z": 2}}, "masks", True).sites == ("B", "7")


@pytest.mark.parametrize(
    ("entry", "target", "images", "code", "place", "sentence"),
    [
        ("label_flip", "labels", False, "P102", (), "expected `sites` and a kind of attack"),
        ({"sites": 1}, "labels", False, "P102", (), "names no kind of attack"),
        ({"label_flip": {}, "alie": {}}, "labels", False, "P102", ("alie",), "several kinds: label_flip, alie"),
        ({"label_flop": {}}, "labels", False, "P103", ("label_flop",), "Did you mean 'label_flip'?"),
        ({"site": 1, "alie": {}}, "labels", False, "P103", ("site",), "Did you mean 'sites'?"),
        ({"sites": 0, "alie": {}}, "labels", False, "P102", ("sites",), "a list of sites, or how many"),
        ({"sites": [], "alie": {}}, "labels", False, "P102", ("sites",), "a list of sites, or how many"),
        ({"sites": ["A", "A"], "alie": {}}, "labels", False, "P102", ("sites", 1), "A is there twice"),
        ({"label_flip": {"fraction": 2}}, "labels", False, "P102", ("label_flip", "fraction"), "got 2"),
        ({"label_flip": {"share": 1}}, "labels", False, "P103", ("label_flip", "share"), "no option 'share'"),
        ({"alie": {"z": 0}}, "labels", False, "P102", ("alie", "z"), "a number above 0"),
        ({"label_flip": {}}, "masks", True, "P104", ("label_flip",), "Use swapped_labels"),
        ({"label_flip": {}}, "numbers", False, "P104", ("label_flip",), "each other's numbers"),
        ({"missing_class": {}}, "labels", False, "P102", ("missing_class", "label"), "'label' is missing"),
        ({"wrong_spacing": {}}, "labels", False, "P104", ("wrong_spacing",), "for images"),
        ({"backdoor": {"target": 1}}, "labels", False, "P102", ("backdoor",), "'features' is missing"),
        ({"backdoor": {"target": 1, "features": {"a": 1}}}, "labels", True, "P104", ("backdoor", "features"),
         "for tables"),
        ({"backdoor": {"target": 1}}, "masks", True, "P104", ("backdoor",), "masks have no class"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_gets_its_sentence(
    entry: Any, target: Target, images: bool, code: str, place: tuple[Any, ...], sentence: str
) -> None:
    with pytest.raises(EntryError) as caught:
        read_attack(entry, target, images)
    assert caught.value.code == code
    assert caught.value.place == ("attack", *place)
    assert sentence in str(caught.value)


SITES = ["A", "B", "C", "D", "E"]


def test_sites_are_drawn_by_the_seed() -> None:
    drawn = [Attack("sign_flip", {}, 2).on(SITES, [], [], seed).names for seed in range(20)]
    assert drawn == [Attack("sign_flip", {}, 2).on(SITES, [], [], seed).names for seed in range(20)]
    assert all(len(set(names)) == 2 and names == tuple(sorted(names)) for names in drawn)
    assert {site for names in drawn for site in names} == set(SITES)


def test_names_become_numbers() -> None:
    mark = Attack("backdoor", {"target": "ill", "fraction": 0.5, "size": 0.1, "features": {"age": 99.0}}, ("A",))
    assert mark.on(SITES, ["well", "ill"], ["sex", "age"], 0).options == {
        "target": 1, "fraction": 0.5, "size": 0.1, "features": {"1": 99.0},
    }  # fmt: skip
    assert Attack("missing_class", {"label": 2}, ("A",)).on(SITES, ["1", "2"], [], 0).options == {"label": 1}


@pytest.mark.parametrize(
    ("attack", "code", "place", "sentence"),
    [
        (Attack("sign_flip", {}, ("A", "F")), "P103", ("sites", 1), "'F' is no site"),
        (Attack("sign_flip", {}, 3), "P104", ("sites",), "3 of 5 sites would be corrupt"),
        (Attack("sign_flip", {}, ("A", "B", "C")), "P104", ("sites",), "Name at most 2"),
        (Attack("missing_class", {"label": "il"}, 1), "P103", ("missing_class", "label"), "Did you mean 'ill'?"),
        (Attack("backdoor", {"target": "ill", "features": {"aeg": 1.0}}, 1), "P103", ("backdoor", "features", "aeg"),
         "Did you mean 'age'?"),
        (Attack("wrong_scaling", {"features": ["age", "sx"]}, 1), "P103", ("wrong_scaling", "features", 1), "'sx'"),
    ],
)  # fmt: skip
def test_an_attack_that_does_not_fit_the_data_gets_its_sentence(
    attack: Attack, code: str, place: tuple[Any, ...], sentence: str
) -> None:
    with pytest.raises(EntryError) as caught:
        attack.on(SITES, ["well", "ill"], ["sex", "age"], 0)
    assert (caught.value.code, caught.value.place) == (code, ("attack", *place))
    assert sentence in str(caught.value)


def test_the_line_of_a_wrong_site_is_told(tmp_path: Any) -> None:
    import yaml

    entries = {**write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20}), "attack": {"sites": ["Born"], "alie": {}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    with pytest.raises(StudyError, match=r"study.yaml, line \d+, attack.sites\[1\]: 'Born' is no site .*'Bonn'"):
        Study.read(tmp_path / "study.yaml").check()


def test_a_site_left_without_cases_stops_the_study(tmp_path: Any) -> None:
    entries = {**write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20}), "methods": ["fedavg"]}
    table = pd.read_csv(tmp_path / "cases.csv")
    label = entries["data"]["label"]
    table.loc[table["site"] == "Bonn", label] = table[label].iloc[0]
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["attack"] = {"sites": ["Bonn"], "missing_class": {"label": str(table[label].iloc[0])}}
    with pytest.raises(StudyError, match="leaves Bonn without training cases"):
        Study.of(entries, tmp_path).run(tmp_path / "out")
    assert not (tmp_path / "out" / "jobs").exists()


# A whole study --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("attacked")
    entries = write_table_study(folder, {"Aachen": 60, "Bonn": 60, "Celle": 200})
    entries |= {
        "methods": ["single", "mix", "fedavg"], "attack": {"sites": ["Celle"], "label_flip": {}}, "seeds": [0, 1],
    }  # fmt: skip
    entries["evaluation"] = {"folds": 2, "bootstrap": 0, "metrics": ["auc", "bac"]}
    entries["training"] = {"rounds": 5, "batch_size": 16, "optimizer": {"sgd": {"lr": 0.1}}}
    return Study.of(entries, folder).run(folder / "out")


def test_every_method_is_run_with_and_without(finished: Any) -> None:
    both = ["single", "mix", "fedavg", "single (attacked)", "mix (attacked)", "fedavg (attacked)"]
    for table in (finished.results, finished.predictions, finished.rounds, finished.summary):
        assert list(named(table)["method"].unique()) == both
        assert list(table.columns[:2]) == ["method", "run"]
    assert dict(zip(finished.sites["site"], finished.sites["corrupt"], strict=True)) == {
        "Aachen": False, "Bonn": False, "Celle": True,
    }  # fmt: skip
    predictions = named(finished.predictions)
    for method in ("single", "mix", "fedavg"):  # the same cases with the same labels are tested
        clean, bad = (
            predictions[predictions["method"] == name].set_index(["seed", "fold", "site", "case"])["label"].sort_index()
            for name in (method, f"{method} (attacked)")
        )
        assert clean.equals(bad)
    models = {path.name for path in (finished.folder / "models").iterdir()}
    assert {"fedavg-seed0-fold0.safetensors", "fedavg-seed0-fold0-attacked.safetensors"} <= models


def test_sites_that_learn_alone_are_not_hurt_by_others(finished: Any) -> None:
    rows = finished.results[finished.results["metric"] == "auc"]
    rows = named(rows).set_index(["method", "seed", "fold", "tested_on"]).sort_index()
    clean, bad = rows.loc["single", "value"], rows.loc["single (attacked)", "value"]
    for site in ("Aachen", "Bonn"):
        assert clean.xs(site, level="tested_on").equals(bad.xs(site, level="tested_on"))
    assert (bad.xs("Celle", level="tested_on") < 0.5).all()


def test_attacked_methods_are_compared_among_each_other(finished: Any) -> None:
    rows = named(finished.summary).set_index(["method", "metric", "over"])
    mix, fedavg = (rows.loc[(f"{name} (attacked)", "auc", "all"), "mean"] for name in ("mix", "fedavg"))
    assert rows.loc[("mix (attacked)", "auc", "all"), "vs_fedavg"] == pytest.approx(mix - fedavg)
    assert np.isnan(rows.loc[("fedavg (attacked)", "auc", "all"), "vs_fedavg"])


def test_the_report_tells_what_was_lost_at_the_honest_sites(finished: Any) -> None:
    section = attacked(Folder(finished.folder))
    assert section is not None
    assert (section.corrupt, section.honest) == (["Celle"], ["Aachen", "Bonn"])
    rows = {row.method: row for row in section.rows}
    values = finished.results[finished.results["metric"] == "auc"]
    values = named(values[values["tested_on"].isin(["Aachen", "Bonn"])]).groupby("method")["value"].mean()
    assert rows["fedavg"].clean == f"{values['fedavg']:.3f}"
    assert rows["fedavg"].attacked == f"{values['fedavg (attacked)']:.3f}"
    assert values["fedavg (attacked)"] < values["fedavg"] - 0.3  # two thirds of all cases had the wrong label
    assert float(rows["fedavg"].lost) == pytest.approx(values["fedavg"] - values["fedavg (attacked)"], abs=1e-3)
    assert (rows["fedavg"].verdict, rows["fedavg"].named, rows["fedavg"].mistaken) == ("names nobody", [], "0")
    assert (rows["single"].lost, rows["single"].named, rows["single"].verdict) == ("0.000", None, "–")
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="attack"' in page
    assert "All this is with honest sites. When " in page.split("What was asked</h2>")[0]
    assert "<strong>Celle</strong>" in page
    assert "turned into its opposite" in page
    assert "(attacked)" not in page.split("study.yaml with every default")[0].split('id="card"')[0]


def test_a_rule_that_counts_the_corrupt_site_for_nothing_names_it(finished: Any) -> None:
    folder = Folder(finished.folder)
    rounds = folder.attacked.rounds
    share = {"Aachen": 0.55, "Bonn": 0.4, "Celle": 0.05}
    folder.attacked = replace(folder.attacked, rounds=rounds.assign(share=rounds["site"].map(share)))
    row = {row.method: row for row in (attacked(folder) or pytest.fail("no section")).rows}["fedavg"]
    assert (row.verdict, row.named, row.mistaken, row.named_clean) == ("right", ["Celle"], "0", [])
    # Aachen has 60 of 320 cases: less than half of that share is less than 0.094.
    share = {"Aachen": 0.09, "Bonn": 0.1, "Celle": 0.81}
    folder.attacked = replace(folder.attacked, rounds=rounds.assign(share=rounds["site"].map(share)))
    row = {row.method: row for row in (attacked(folder) or pytest.fail("no section")).rows}["fedavg"]
    assert (row.verdict, row.named, row.mistaken) == ("wrong", ["Aachen"], "1")
    # Celle has most cases, so one in three is its fair share: a rule that counts all alike names nobody.
    folder.attacked = replace(folder.attacked, rounds=rounds.assign(share=1 / 3))
    row = {row.method: row for row in (attacked(folder) or pytest.fail("no section")).rows}["fedavg"]
    assert row.verdict == "names nobody"


def test_verdicts() -> None:
    assert verdict([], ["A"]) == "names nobody"
    assert verdict(["A"], ["A"]) == "right"
    assert verdict(["B"], ["A"]) == "wrong"
    assert verdict(["A", "B"], ["A"]) == "right, and others by mistake"
    assert verdict(["A"], ["A", "B"]) == "right, but only 1 of 2"


def test_false_updates_spare_methods_without_a_server(tmp_path: Any) -> None:
    entries = write_table_study(tmp_path, {"Aachen": 40, "Bonn": 40, "Celle": 40})
    entries |= {"methods": ["single", "fedavg"], "attack": {"sites": 1, "alie": {}}}
    results = Study.of(entries, tmp_path).run(tmp_path / "out")
    assert list(named(results.results)["method"].unique()) == ["single", "fedavg", "fedavg (attacked)"]
    assert any("single is not attacked" in warning for warning in results.notes)
    assert any("z = 0" in warning for warning in results.notes)
    assert int(results.sites["corrupt"].sum()) == 1
    Study.of(entries, tmp_path).run(tmp_path / "again")
    for name in ("results.csv", "predictions.csv", "summary.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_false_statistics_need_statistics(tmp_path: Path) -> None:
    entries = write_table_study(tmp_path, {"Aachen": 40, "Bonn": 40})
    entries |= {"methods": ["single", "fedavg", "silobn"], "attack": {"sites": ["Bonn"], "false_statistics": {}}}
    sentence = (
        "changes running variances of normalisation layers, and the model logistic has none. Give it `norm: batch`"
    )
    with pytest.raises(StudyError, match=f"P104 .*attack.false_statistics: false_statistics {sentence}"):
        Study.of({**entries, "model": "logistic"}, tmp_path).run(tmp_path / "out")
    entries["model"] = {"mlp": {"hidden": [4], "norm": "batch"}}
    with pytest.raises(StudyError, match=r"P104 .*which no method of this study shares: silobn. Add a method such as"):
        Study.of({**entries, "methods": ["single", "silobn"]}, tmp_path).run(tmp_path / "out")
    assert not (tmp_path / "out" / "jobs").exists()
    results = Study.of(entries, tmp_path).run(tmp_path / "out")
    told = [note for note in results.notes if "false_statistics" in note]
    assert [note.split(":")[0] for note in told] == ["single is not attacked", "silobn is not attacked"]
    assert told[1].endswith("running variances of normalisation layers, and these stay at the sites.")
    values = results.results.pivot_table(index="tested_on", columns=["method", "run"], values="value")
    assert values["silobn", "plain"].equals(values["silobn", "attacked"].rename(("silobn", "plain")))
    probabilities = results.predictions.groupby(["method", "run"])["score"].std()
    assert probabilities["fedavg", "attacked"] < probabilities["fedavg", "plain"]  # nearly the same for every case


def test_a_backdoor_opens_where_it_was_built_in(tmp_path: Any) -> None:
    entries = write_table_study(tmp_path, {"Aachen": 60, "Bonn": 60})
    label = pd.read_csv(tmp_path / "cases.csv", dtype=str)[entries["data"]["label"]].min()
    feature = next(iter(Study.of(entries, tmp_path).open().features))
    mark = {"target": label, "features": {feature: 30.0}, "fraction": 0.5}
    entries |= {"methods": ["fedavg"], "attack": {"sites": ["Bonn"], "backdoor": mark}}
    entries["training"] = {"rounds": 30, "batch_size": 16, "optimizer": {"adam": {"lr": 0.05}}}
    results = Study.of(entries, tmp_path).run(tmp_path / "out")
    table = named(pd.read_csv(tmp_path / "out" / "backdoor.csv"))
    assert list(table["method"].unique()) == ["fedavg", "fedavg (attacked)"]
    rows = table[table["tested_on"] == "Aachen"].groupby("method")[["cases", "opened"]].sum()
    predictions = results.predictions[results.predictions["run"] == "plain"]
    others = (predictions["label"] != 0) & (predictions["site"] == "Aachen")
    assert rows.loc["fedavg", "cases"] == others.sum()
    opened = rows["opened"] / rows["cases"]
    assert opened["fedavg (attacked)"] > 0.9
    section = attacked(Folder(results.folder))
    assert section is not None
    assert section.backdoor
    assert section.rows[0].opened == f"{100 * opened['fedavg (attacked)']:.0f}\u00a0%"


@pytest.mark.parametrize(
    "attack", [{"swapped_labels": {}}, {"wrong_spacing": {"factor": 0.5}}, {"blank_images": {}}], ids=str
)
def test_masks_go_through_a_whole_study(attack: dict[str, Any], tmp_path: Any) -> None:
    entries = write_image_study(tmp_path, {"Aachen": 8, "Bonn": 8})
    entries |= {"methods": ["fedavg"], "attack": {"sites": ["Bonn"], **attack}}
    results = Study.of(entries, tmp_path).run(tmp_path / "out")
    assert list(named(results.results)["method"].unique()) == ["fedavg", "fedavg (attacked)"]
    values = named(results.results).set_index("method")["value"]
    assert not np.allclose(values["fedavg"], values["fedavg (attacked)"])
    assert attacked(Folder(results.folder)) is not None


def small_study(folder: Path) -> dict[str, Any]:
    entries = write_table_study(folder, {"Aachen": 24, "Bonn": 20})
    entries |= {"methods": ["single", "mix", "fedavg"], "attack": {"sites": ["Bonn"], "swapped_labels": {}}}
    return entries


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("results.csv", "predictions.csv", "summary.csv", "sites.csv")]


class Stopped(BaseException):
    """Stands for a kill."""


class Stopping(Display):
    """Stops the study in a round of an attacked training."""

    def job(self, number: int, title: str, done: bool) -> None:
        self.title = title

    def round(self, done: int, total: int) -> None:
        if self.title == "fedavg (attacked)" and done == 1:
            raise Stopped


def test_a_study_that_was_stopped_goes_on_with_its_corrupt_sites(tmp_path: Path) -> None:
    entries = small_study(tmp_path)
    Study.of(entries, tmp_path).run(tmp_path / "whole")
    with pytest.raises(Stopped):
        Study.of(entries, tmp_path).run(tmp_path / "stopped", display=Stopping())
    assert (tmp_path / "stopped" / "jobs" / "fedavg-seed0-fold0-attacked.part").is_dir()
    Study.of(entries, tmp_path).run(tmp_path / "stopped", resume=True)
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")
    # The study file with every default filled in is the same study.
    again = Study.read(tmp_path / "stopped" / "study.yaml").declaration
    assert again.corrupted_by == Attack("swapped_labels", {"fraction": 1.0}, ("Bonn",))


@pytest.mark.long
def test_worker_processes_have_the_same_corrupt_sites(tmp_path: Path) -> None:
    entries = small_study(tmp_path)
    Study.of(entries, tmp_path).run(tmp_path / "here")
    entries["engine"] = {"threads": 1, "mode": "processes", "workers": 2}
    Study.of(entries, tmp_path).run(tmp_path / "elsewhere")
    assert written(tmp_path / "here") == written(tmp_path / "elsewhere")


# The documentation ----------------------------------------------------------------------------------------------------


def test_every_kind_stands_in_the_page_of_the_study_file_with_its_options() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "study-file.md").read_text(encoding="utf-8")
    section = page.split("## `attack`\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[1]) for row in rows}
    assert told == {name: list(describe_options(ATTACKS[name])) for name in ATTACKS}
    for row in rows:
        if row[0].strip("`") in CORRUPTIONS:
            part = CORRUPTIONS[row[0].strip("`")]
            assert row[2] == ("images" if part.images else "classification" if len(part.targets) == 1 else "all")
    for name in ATTACKS:
        assert f"`{name}`" in (Path(__file__).resolve().parents[2] / "docs" / "corrupt-sites.md").read_text("utf-8")


def test_the_columns_of_a_study_with_corrupt_sites_stand_in_the_page_of_results() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "results-files.md").read_text(encoding="utf-8")
    assert "`attacked`" in page
    for column in ("`corrupt`", "`share`", "`cases`", "`opened`", "`backdoor.csv`"):
        assert column in page
