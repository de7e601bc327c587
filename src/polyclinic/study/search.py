"""Hyper-parameter search: each configuration is trained and scored on validation data, and the best one is tested.

No test case is looked at. With ``nested`` (the default) each fold has a search of its own, on its own training and
validation part, and so has each site that is left out: no case that is tested has had a part in any choice
(Varma and Simon, BMC Bioinformatics 7:91, 2006). One search for all folds is cheaper, but validation cases of one fold
are test cases of others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import pandas as pd

from polyclinic.errors import DataError, PolyclinicError, TrainingError
from polyclinic.study.columns import AFTER, BEFORE
from polyclinic.study.declaration import Declaration
from polyclinic.study.folder import Folder
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.kinds import PLAIN, UNSEEN
from polyclinic.study.method_entries import Candidate, StudyMethod
from polyclinic.tasks.metrics import METRICS

#: Label of a method, fold and site left out; without ``nested`` the last two are None.
Key = tuple[str, int | None, str | None]


@dataclass(frozen=True)
class Tried:
    """A configuration and how it did.

    Attributes:
        candidate: the configuration.
        score: mean over folds and seeds; None if a training failed.
        note: why, or in which round a site was left out.
    """

    candidate: Candidate
    score: float | None
    note: str


class Searching:
    """The searches of one study.

    Args:
        declaration: the study.
        folder: where finished trials are kept.
        metric: the one that rounds are scored by, if the search chooses by it.
    """

    def __init__(self, declaration: Declaration, folder: Folder, metric: str) -> None:
        self.declaration, self.folder = declaration, folder
        self.asked = declaration.search
        self.higher_is_better = declaration.search_by == "metric" and METRICS[metric].higher_is_better
        self._trials: dict[Key, list[list[Job]]] = {}

    def check(self, folds: Mapping[int, Fold]) -> None:
        """Whether there is something to choose by.

        Raises:
            DataError: P206, a fold has no validation cases.
        """
        for number, fold in folds.items() if self.asked else ():
            if not any(fold.validation[site] for site in fold.training_sites):
                raise DataError("P206", f"No site has validation patients in fold {number}, by which a search chooses.",
                                "Use a larger `evaluation: {validation: ...}`, or no `search`.")  # fmt: skip

    def once(self, groups: Sequence[tuple[StudyMethod, ...]]) -> list[Job]:
        """The trials of the one search for all folds; none if each fold has its own.

        Args:
            groups: methods that share their trainings.
        """
        count = self.declaration.search_folds
        return [] if count is None else self._plan(groups, range(count), None, None)

    def within(self, groups: Sequence[tuple[StudyMethod, ...]], fold: int, without: str | None = None) -> list[Job]:
        """The trials of a fold's own search, or of a site's that is left out; none if there is one for all."""
        if self.asked is None or not self.asked.nested:
            return []
        return self._plan(groups, [fold], fold, without)

    def _plan(
        self, groups: Sequence[tuple[StudyMethod, ...]], folds: Sequence[int], fold: int | None, without: str | None
    ) -> list[Job]:
        planned = []
        for methods in groups:
            candidates = [self.declaration.candidates(method) for method in methods]
            count = len(candidates[0])
            if count < 2:
                continue
            trials = []
            for trial in range(count):
                tried = tuple(self._short(own[trial].method) for own in candidates)
                runs = [(seed, number) for number in folds for seed in self.declaration.search_seeds]
                trials.append([Job(tried, seed, number, without, trial=trial, trials=count) for seed, number in runs])
            self._trials |= {(method.label, fold, without): trials for method in methods}
            planned += [job for jobs in trials for job in jobs]
        return sorted(planned, key=lambda job: job.fold)  # the sites are prepared for one fold at a time

    def _short(self, method: StudyMethod) -> StudyMethod:
        """The method with no more rounds than a trial has."""
        most = self.asked.rounds if self.asked else None
        rounds = min(most or method.training.rounds, method.training.rounds)
        return replace(method, training=method.training.model_copy(update={"rounds": rounds}))

    def run(self, runner: JobRunner, job: Job, fold: Fold, report: Callable[[int, int], None]) -> None:
        """Run a trial and store what it found. One that diverges is noted, and the search goes on.

        Raises:
            PolyclinicError: a site failed in another way.
        """
        score, notes, began = None, list[str](), perf_counter()
        try:
            score, notes = runner.attempt(job, fold, checkpoint=self.folder.checkpoint(job), report=report)
        except PolyclinicError as error:
            if not _diverged(error):
                raise
            notes = [str(error)]
        if score is None and not notes:
            notes = ["The validation score is not a number."]
        about = {"score": score, "note": notes[0] if notes else "", "seconds": perf_counter() - began}
        self.folder.store_trial(job, about)

    def settled(self, job: Job) -> Job:
        """The job with the values that the search chose for its methods.

        Raises:
            TrainingError: P301, no configuration of a method could be trained.
        """
        return replace(job, methods=tuple(self._chosen(method, job) for method in job.methods))

    def needs(self, job: Job) -> list[Job]:
        """The trials that have to be done before a job's values are chosen."""
        if job.trial is not None:
            return []
        keys = [self._key(method, job) for method in job.methods]
        return [trial for key in keys if key is not None for trials in self._trials[key] for trial in trials]

    def _chosen(self, method: StudyMethod, job: Job) -> StudyMethod:
        key = self._key(method, job)
        if key is None:
            return method
        tried = self._tried(key)
        return tried[self._best(key, tried)].candidate.method

    def _key(self, method: StudyMethod, job: Job) -> Key | None:
        """The search that chooses the values of a method in a job."""
        keys = ((method.label, job.fold, job.without), (method.label, None, None))
        return next((key for key in keys if key in self._trials), None)

    def _tried(self, key: Key) -> list[Tried]:
        label = key[0]
        method = next(method for method in self.declaration.study_methods if method.label == label)
        tried = []
        for candidate, jobs in zip(self.declaration.candidates(method), self._trials[key], strict=True):
            found = [self.folder.trial(job) for job in jobs]
            scores = [one["score"] for one in found if one["score"] is not None]
            score = sum(scores) / len(scores) if len(scores) == len(jobs) else None
            tried.append(Tried(candidate, score, next((one["note"] for one in found if one["note"]), "")))
        return tried

    def _best(self, key: Key, tried: list[Tried]) -> int:
        """Number of the best trial; the first of equals."""
        scored = {number: one.score for number, one in enumerate(tried) if one.score is not None}
        if not scored:
            raise TrainingError(
                "P301", f"No configuration of {key[0]} that was searched gave a validation score. {tried[0].note}",
                "Search among smaller learning rates.",
            )  # fmt: skip
        sign = -1 if self.higher_is_better else 1
        return min(scored, key=lambda number: sign * scored[number])

    def seconds(self) -> dict[str, float]:
        """Method -> time of all its trials; methods that share their trainings are named in one text."""
        found: dict[str, float] = {}
        for (label, _, _), trials in self._trials.items():
            methods = trials[0][0].methods
            if label == methods[0].label:
                name = ", ".join(method.label for method in methods)
                seconds = sum(self.folder.trial(job).get("seconds", 0.0) for jobs in trials for job in jobs)
                found[name] = round(found.get(name, 0.0) + seconds, 3)
        return found

    def table(self) -> pd.DataFrame:
        """Content of ``search.csv``: a row a method, search and trial; empty without a search."""
        order = [method.label for method in self.declaration.study_methods]
        keys = sorted(self._trials, key=lambda key: (key[2] is not None, order.index(key[0])))
        found = {key: self._tried(key) for key in keys}
        names = dict.fromkeys(name for tried in found.values() for one in tried for name in one.candidate.values)
        rows: list[dict[str, Any]] = []
        for key, tried in found.items():
            best = self._best(key, tried)
            for number, one in enumerate(tried):
                label, fold, without = key
                about = (label, PLAIN if without is None else UNSEEN, fold, without, number)
                values = {name: _cell(value) for name, value in one.candidate.values.items()}
                result = (one.score, number == best, one.note)
                rows.append(dict(zip(BEFORE, about, strict=True)) | values | dict(zip(AFTER, result, strict=True)))
        # Objects, so that a whole number stays one in a column with empty cells.
        return pd.DataFrame(rows, columns=[*BEFORE, *names, *AFTER], dtype=object)


def _diverged(error: PolyclinicError) -> bool:
    """Whether numbers grew beyond all bounds, at every site that failed."""
    causes = getattr(error, "causes", ()) or (error.code,)
    return set(causes) == {"P301"}


def _cell(value: object) -> object:
    """A value of a parameter as a cell of a table: parts with options as JSON."""
    return json.dumps(value) if isinstance(value, dict | list) else value
