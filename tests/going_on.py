"""Trainings and studies that are stopped and go on: they end as those that were not."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Federation
from polyclinic import Results, Study
from polyclinic.running.progress import Checkpoint
from polyclinic.study.display import Display
from polyclinic.study.runner import run_study


def training_goes_on(made: Callable[..., Federation], folder: Path, stops: Iterable[int]) -> None:
    """A training stopped after some rounds, and one whose messages are bytes, give the same models.

    Args:
        made: ``(folder=..., **options)`` -> sites that train.
        folder: empty.
        stops: after how many rounds it is stopped.
    """

    def train(name: str, stop: int | None = None, **options: Any) -> Mapping[str, torch.Tensor]:
        def report(done: int, total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        federation = made(folder=folder / name / "sites", **options)
        return federation.rounds(checkpoint=Checkpoint(folder / name / "job"), report=report)[0].models

    whole = train("whole")
    assert all(torch.equal(model, whole[name]) for name, model in train("as bytes", serialise=True).items())
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(str(stop), stop)
        assert all(torch.equal(model, whole[name]) for name, model in train(str(stop)).items())


def study_goes_on(content: dict[str, Any], folder: Path, after: int) -> Results:
    """A study stopped after so many rounds of a training gives the same predictions and models as the one returned.

    Args:
        content: of the study file.
        folder: where its data are.
        after: rounds.
    """

    class Interrupted(Display):
        def round(self, done: int, total: int) -> None:
            if done == after:
                raise KeyboardInterrupt

    whole = Study.of(content, folder).run(folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_study(Study.of(content, folder), folder / "parts", display=Interrupted())
    Study.of(content, folder).run(folder / "parts", resume=True)
    compared = [*(folder / "whole").rglob("*.safetensors"), folder / "whole" / "predictions.csv"]
    for path in compared:
        assert path.read_bytes() == (folder / "parts" / path.relative_to(folder / "whole")).read_bytes(), path
    return whole
