"""A study opened for one training, apart from its folds: sites that are ready, and who trains them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.opening.cohort import Cohort
from polyclinic.engine.planner import EnginePlan, choose_device
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.display import Display
from polyclinic.study.fit.data import check_fit
from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.jobs import JobRunner
from polyclinic.study.opening import ask_agree, ask_open, local_engine
from polyclinic.study.setup import Setup
from polyclinic.study.site_table import site_table


@dataclass(frozen=True)
class Opened:
    """An opened study.

    Attributes:
        study: with everything planned that said ``auto``.
        agreement: what the sites agreed on.
        cohort: what is known of them.
        plan: how they are run.
        folds: prepares them.
        runner: trains.
    """

    study: CheckedStudy
    agreement: Agreement
    cohort: Cohort
    plan: EnginePlan
    folds: Folds
    runner: JobRunner


@contextmanager
def opened(
    study: CheckedStudy, folder: Folder | None, display: Display, *, validation: float = 0.0
) -> Iterator[Opened]:  # fmt: skip
    """Open the data of a study whose sites are all on this machine; worker processes end with the context.

    Args:
        study: the study.
        folder: of a training that may go on; None keeps nothing.
        display: is told of the sites.
        validation: share of the patients that choose the best round where all cases are for training.

    Raises:
        PolyclinicError: what is wrong with the data.
    """
    sites = local_engine(study, display.images)
    answered = ask_open(study, sites)
    cohort = ask_agree(answered, sites, described=True)
    study, declaration = answered.study, answered.study.declaration
    attack = check_fit(study, cohort)
    display.opened(site_table(study, cohort, attack), cohort.notes)
    setup = Setup(study, cohort, sites, None if folder is None else folder.site_folder(), attack)
    try:
        template = setup.template(choose_device(declaration.engine.device))
        plan = setup.plan(template)
        plan = plan if folder is None else folder.plan(plan, cohort.fingerprint)
        engine, local = setup.start(plan)
        folds = Folds(declaration, cohort, engine, local, final_validation=validation, tell=display.note)
        public = setup.public(folds.public)
        runner = JobRunner(
            declaration, engine, local, template, setup.initial, cohort.classes, public=public, networks=setup.networks
        )
        yield Opened(study, answered.agreement, cohort, plan, folds, runner)
    finally:
        setup.close()
