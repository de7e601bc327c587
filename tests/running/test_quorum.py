"""A quorum protects a study from a site that fails in any function, not in training alone."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from helpers import Federation, image_sites, table_sites
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.running.progress import Checkpoint
from polyclinic.study.job import Job, Outcome
from polyclinic.study.jobs import _few

NORM = {"mlp": {"hidden": [5], "norm": "batch"}}
#: Training, validation and test cases at all sites.
PARTS = {"folds": 3, "validation": 0.25, "best_round": "loss"}
SITES = {"Aachen": 33, "Bonn": 30, "Celle": 27, "Dresden": 30}


class Failing:
    """An engine in which Bonn fails in one function."""

    def __init__(self, engine: Any, function: str) -> None:
        self.function, self.original = function, engine.call
        engine.call = self.call

    def call(self, function: str, requests: Any) -> Any:
        for site, reply in self.original(function, requests):
            failed = site == "Bonn" and function == self.function
            yield site, SiteError("P401", f"Bonn failed in {function}.", site=site) if failed else reply


def outcome(function: str, method: str, folder: Path, quorum: int | None, **entries: Any) -> Outcome:
    training = {"rounds": 2, **({} if quorum is None else {"quorum": quorum})}
    kind = {"model": NORM, "evaluation": PARTS, **entries}
    images = kind.get("task") == "segmentation"
    data = image_sites(SITES, masks=True, part=None) if images else table_sites(SITES, part=None)
    made = Federation(data, [method], training=training, folder=folder / "sites", **kind)
    Failing(made.engine, function)
    job = Job((made.method(),), 0, made.fold.number)
    return made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"))


def sites_of(found: Outcome) -> set[str]:
    return set(pd.concat(found.predictions)["site"])


CASES = [
    ("evaluate", "fedavg"), ("evaluate", "single"), ("threshold", "fedavg"), ("predict", "fedavg"),
    ("predict", "single"), ("threshold", "single"), ("keep", "fedbn"), ("keep", "single"), ("save", "fedbn"),
    ("model", "fedbn"), ("model", "single"), ("train", "fedavg"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "method"), CASES)
def test_the_study_goes_on_without_the_site_and_says_so(function: str, method: str, tmp_path: Path) -> None:
    found = outcome(function, method, tmp_path, 3)
    assert any("Bonn" in note and f"Bonn failed in {function}" in note for note in found.notes)
    missing = (function, method) in (
        ("predict", "fedavg"),
        ("predict", "single"),
        ("keep", "fedbn"),
        ("keep", "single"),
        ("threshold", "single"),
    )
    assert sites_of(found) == set(SITES) - ({"Bonn"} if missing else set())


@pytest.mark.parametrize(("function", "method"), CASES)
def test_without_a_quorum_its_own_error_ends_the_study(function: str, method: str, tmp_path: Path) -> None:
    with pytest.raises(PolyclinicError, match=f"Bonn failed in {function}"):
        outcome(function, method, tmp_path, None)


@pytest.mark.parametrize(("function", "method"), [("predict", "single"), ("evaluate", "fedavg"), ("model", "fedbn")])
def test_a_quorum_of_all_sites_lets_none_fail(function: str, method: str, tmp_path: Path) -> None:
    with pytest.raises(PolyclinicError, match=f"Bonn failed in {function}"):
        outcome(function, method, tmp_path, 4)


@pytest.mark.parametrize("method", ["single", "fedbn"])
def test_a_site_that_can_not_say_how_good_it_is_is_tested_with_what_it_trained(method: str, tmp_path: Path) -> None:
    """Not with the private part that it started from: that of the last round, or of the best round of the others."""

    def models(name: str, function: str, best: str) -> dict[str, Tensor]:
        found = outcome(function, method, tmp_path / name, 3, evaluation={**PARTS, "best_round": best})
        (tensors,) = found.models.values()
        return {key: tensor for key, tensor in tensors.items() if key.startswith("Bonn/")}

    failed, last = models("failed", "evaluate", "loss"), models("last", "", "last")
    assert failed
    assert all(torch.equal(failed[name], last[name]) for name in last)


def test_pictures_of_other_sites_are_shown(tmp_path: Path) -> None:
    found = outcome("overlays", "fedavg", tmp_path, 3, model="unet", task="segmentation")
    assert {name.split("/")[1] for name in found.overlays} == set(SITES) - {"Bonn"}
    assert sites_of(found) == set(SITES)


def test_a_note_of_another_kind_is_not_lost_among_many_alike():
    late = [f"Round {number} went on without Celle." for number in range(1, 40)]
    rare = "After round 39 Celle goes on with what it kept after round 2."
    found = _few([*late, rare])
    assert found == [*late[:3], rare, "36 more notes like these; rounds.csv tells who took part in each round."]
    assert _few(late[:3]) == late[:3]
