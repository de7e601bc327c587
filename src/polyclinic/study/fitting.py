"""Training one method on all cases of the sites of this machine, for a model that is used; nothing is tested."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyclinic.engine.planner import choose_device
from polyclinic.models import build_model
from polyclinic.notes import Note
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.fit import check_enough_sites, check_fit, input_shape, network_outputs
from polyclinic.study.folds import Folds
from polyclinic.study.job import Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.opening import ask_agree, ask_open, local_engine
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
    engine = local_engine(study)
    answered = ask_open(study, engine)
    declaration, cohort = answered.study.declaration, ask_agree(answered, engine)
    attack = check_fit(answered.study, cohort)
    outputs, shape = network_outputs(declaration, cohort.classes), input_shape(declaration, cohort)
    device = choose_device(declaration.engine.device)
    seed = declaration.all_seeds[0]
    network = build_model(*declaration.model_part, shape, outputs, seed=seed, device=device)
    engine.settle(device=device, stacked=False, folder=None)
    preparing = Folds(declaration, cohort, engine, engine)
    fold = preparing.one(0)
    check_enough_sites(declaration, {0: fold})
    job = Job((declaration.study_methods[0],), seed, 0)
    initial = network.vector.to("cpu", copy=True)
    runner = JobRunner(declaration, engine, engine, network, lambda _: initial, cohort.classes, attack)
    trained = runner.train(job, fold)
    homes = {}
    for site in fold.training_sites:
        names = (trained.progress.best_homes.get(site), site, next(iter(trained.models)))
        homes[site] = next(name for name in names if name in trained.models)
    return Fitted(trained.models, homes, shape, outputs, trained.plan.task, [*cohort.notes, *preparing.notes])
