"""Training one method on all cases of the sites of this machine, for a model that is used; nothing is tested."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyclinic.notes import Note
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.display import Display
from polyclinic.study.final_model.opened import opened
from polyclinic.study.fit.folds import check_enough_sites
from polyclinic.study.fit.networks import input_shape
from polyclinic.study.job import Job
from polyclinic.study.testing import Trained
from polyclinic.tasks import Task


@dataclass(frozen=True)
class Fitted:
    """What was trained.

    Attributes:
        models: whole model ``[P]`` of each site; or, where everything is shared, the models that are.
        homes: site -> which of the models it has.
        shape: of an input, without the batch.
        outputs: of the network.
        task: what the outputs mean.
        notes: on the data.
    """

    models: dict[str, Tensor]
    homes: dict[str, str]
    shape: tuple[int, ...]
    outputs: int
    task: Task
    notes: list[Note]


def fit_once(study: CheckedStudy) -> Fitted:
    """Train the first method of a study with its first seed, on the training part of its first fold.

    Raises:
        PolyclinicError: what is wrong with the data, or training failed.
    """
    with opened(study, None, Display()) as found:
        declaration = found.study.declaration
        fold = found.folds.one(0)
        check_enough_sites(declaration, {0: fold})
        job = Job((declaration.study_methods[0],), declaration.all_seeds[0], 0)

        def train() -> Trained:
            found.folds.ready(job)
            return found.runner.train(job, fold, whole=True)

        trained = found.folds.sites.do(train)
        homes = {}
        for site in fold.trains(job.methods[0].method):
            names = (trained.progress.best_homes.get(site), site, next(iter(trained.models)))
            homes[site] = next(name for name in names if name in trained.models)
        shape, task = input_shape(declaration, found.cohort), trained.plan.task
        notes = [*found.cohort.notes, *found.folds.notes]
    return Fitted(trained.models, homes, shape, task.outputs, task, notes)
