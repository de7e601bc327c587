"""Which trainings of a study spend the privacy of whom: known before anything is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from polyclinic.methods import Method
from polyclinic.parts import FEDERATION, build_part
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job


def sharing(declaration: Declaration, jobs: list[Job], folds: Mapping[int, Fold]) -> list[Job]:
    """The jobs, each with how many trainings share the study's budget with it, where ε is for the whole study.

    All trainings with noise count in which a site has cases, though one patient is not in the training part of each
    fold: so it holds for each patient, whatever folds are. The site with most of them counts for all, since sites may
    add noise together.
    """
    if declaration.privacy.over != "study":
        return jobs
    sites, of_server = Counter[str](), 0
    for job, training in _trained(jobs, folds):
        sites.update(training if _protects(declaration, job, "a patient") else ())
        of_server += _protects(declaration, job, "a site")
    of_site = max(sites.values(), default=0)

    def trainings(job: Job) -> int:
        patients, federation = (_protects(declaration, job, whom) for whom in ("a patient", "a site"))
        return max(of_site * patients, of_server * federation, 1)

    return [replace(job, trainings=trainings(job)) for job in jobs]


def without_noise(declaration: Declaration, jobs: Sequence[Job], folds: Mapping[int, Fold]) -> dict[str, int]:
    """Site -> trainings of the study in which it has cases and its patients are not protected by noise; and for all
    sites together those without noise of the server."""
    found = Counter[str]()
    for job, sites in _trained(jobs, folds):
        found.update([] if _protects(declaration, job, "a patient", always=True) else sites)
        found[FEDERATION] += not _protects(declaration, job, "a site", always=True)
    return dict(found)


def _trained(jobs: Sequence[Job], folds: Mapping[int, Fold]) -> Iterator[tuple[Job, list[str]]]:
    """Each job with the sites that train in it."""
    for job in jobs:
        yield job, folds[job.fold].trains(job.methods[0].method, job.without)


def _protects(declaration: Declaration, job: Job, whom: str, *, always: bool = False) -> bool:
    """Whether noise protects someone in a job: as it may be, or ``always``, where a search is to choose its parts."""
    method = job.methods[0]
    tried = [one.method for one in declaration.candidates(method)] if job.trial is None else [method]
    found = [whom in protected(one.method) for one in tried]
    return all(found) if always else any(found)


def protected(method: Method) -> set[str]:
    """Whom the noise of a method protects: a patient, a site, both, or nobody."""
    return {whom for name, options in method.parts if (whom := build_part(name, options).private)}
