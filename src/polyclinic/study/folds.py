"""The folds of a study: who splits and prepares which sites, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from torch import Tensor

from polyclinic.data.dataset import Dataset
from polyclinic.data.masks.entries import unannotated
from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.preparation import SharedStep, build_steps, name_steps
from polyclinic.data.public_set import prepare_public
from polyclinic.data.scaling import Summary
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.reloading import Reloading
from polyclinic.errors import DataError
from polyclinic.notes import Note
from polyclinic.site.messages import Prepare
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job, SiteParts
from polyclinic.study.preparing import Preparation, describe, prepare
from polyclinic.study.public_range import public_range


class Folds:
    """Prepares the sites for one fold after another, and only those that the next job works on.

    Args:
        declaration: the study.
        cohort: what is known of its sites.
        engine: who runs the sites.
        local: the same sites in this process, for what only one process can do; may be ``engine`` itself, and None
            where no process has them all.
        final_validation: share of the patients that choose the best round where all cases are for training, see
            `Declaration.final_fold`; None takes the study's.
        tell: is told of worker processes that ended and were replaced.

    Attributes:
        sites: does what is done with them, again where a process that ran some of them has ended.
        notes: what was said of the sites when their folds were counted, in the order of the folds.
        merged: what sites were told when they were prepared last, see `Preparation`.
    """

    def __init__(
        self, declaration: Declaration, cohort: Cohort, engine: Engine, local: LocalEngine | None, *,
        final_validation: float | None = None, tell: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.declaration, self.engine, self.local = declaration, engine, local
        self.final_validation = declaration.final_validation if final_validation is None else final_validation
        self.classes, self.features = len(cohort.classes), cohort.shape[0]
        self.hides = declaration.privacy.summaries is not None
        self.steps = name_steps(declaration.data, cohort.features, cohort.covariates)
        self.notes: list[Note] = []
        self.merged: list[dict[str, Tensor]] = []
        self._public_inputs, self._cohort = cohort.public_inputs, cohort
        # Whether a site's cases are prepared with summaries of others, so that leaving one out changes them.
        self._depends_on_sites = any(isinstance(step, SharedStep) for step in build_steps(self.steps))
        self._stand: dict[Engine, tuple[int, str | None]] = {}
        self.sites = Reloading(engine, self._stand.clear, tell)

    def count(self) -> dict[int, Fold]:
        """What is known of the sites in each fold, and in that of the final model, if the study makes one.

        Raises:
            DataError: P206, no site can be both trained on and tested; or what preparation finds wrong with the data.
        """
        found: dict[int, Fold] = {}
        notes: list[Note] = []
        last = self.declaration.final_fold
        numbers = [*self.declaration.fold_numbers, *([last] if self.declaration.final_model is not None else [])]
        for number in reversed(numbers):  # the first one last: the first jobs are in it
            done = self._prepare(self.engine, number, None)
            found[number], notes = _fold(number, done), [*done.notes, *notes]
            if number == last:
                _check_trained(found[number])
            elif not found[number].training_sites or not found[number].tested_sites:
                raise DataError("P206", "No site has enough patients to be both trained on and tested.",
                                "Use fewer `evaluation: {folds: ...}`, or more data.")  # fmt: skip
        if self._cohort.public is not None:
            notes += public_range(self._cohort.public, self.steps, self.merged, self._cohort.features)
        self.notes = list(dict.fromkeys(notes))
        return dict(sorted(found.items()))

    def one(self, number: int) -> Fold:
        """What is known of the sites in one fold, for which they are prepared.

        Raises:
            DataError: P206, no site can be trained on; or what preparation finds wrong with the data.
        """
        if self.local not in (None, self.engine):
            self._prepare(self.local, number, None)
        done = self._prepare(self.engine, number, None)
        self.notes, fold = list(done.notes), _fold(number, done)
        _check_trained(fold)
        return fold

    def ready(self, job: Job) -> None:
        """Prepare the sites that a job works on, where they are not as it needs them.

        A job on the pool of all sites trains on those in this process; unless it is a trial, it is tested at all sites.
        """
        needed = self.stand(job)
        pooled = job.methods[0].method.scope == "pool"
        wanted: dict[Engine, bool] = {self.engine: not pooled or job.trial is None}
        if self.local is not None:
            wanted[self.local] = pooled or wanted.get(self.local, False)
        for engine, works in wanted.items():
            if works and self._stand.get(engine) != needed:
                self._prepare(engine, *needed)

    def public(self) -> Dataset | None:
        """The public set as the sites that were prepared last have it; None where there is no copy here."""
        return None if self._public_inputs is None else prepare_public(self._public_inputs, self.steps, self.merged)

    def stand(self, job: Job) -> tuple[int, str | None]:
        """What the sites have to be prepared for: the fold, and the site left out where that changes the others."""
        return job.fold, job.without if self._depends_on_sites else None

    def describe(self) -> pd.DataFrame:
        """The harmonised features before and after, once all folds are counted; no rows without harmonisation, or where
        sites do not show what they have."""
        options = dict(self.steps).get("combat")
        if options is None or self.hides:
            return pd.DataFrame()
        features = dict(zip(options["columns"], options["features"], strict=True))

        def asked() -> pd.DataFrame:
            if self.engine not in self._stand:  # lost meanwhile; the first fold was the last that was counted
                first = [*self.declaration.fold_numbers, self.declaration.final_fold][0]
                self._prepare(self.engine, first, None)
            return describe(self.engine, features)

        return self.sites.do(asked)

    def _prepare(self, engine: Engine, number: int, without: str | None) -> Preparation:
        """Split, harmonise and scale at every site; summaries of the site ``without`` are not used."""
        data, evaluation = self.declaration.data, self.declaration.evaluation
        final = number == self.declaration.final_fold
        validation = self.final_validation if final else evaluation.validation
        request = Prepare(
            fold=number, folds=self.declaration.folds, holdout=evaluation.holdout, validation=validation,
            final=final, split_seed=evaluation.split_seed, small_sites=evaluation.small_sites, steps=self.steps,
            augmentation=data.augmentation, classes=self.classes, patch=data.planned_patch, hides=self.hides,
            labels=data.labels, partial=unannotated(data) if data.structures else {},
            most=data.bags.most if data.bags else None, voters=evaluation.voters,
        )  # fmt: skip
        self._stand.pop(engine, None)
        done = self.sites.do(lambda: prepare(engine, request, without, self.features))
        self._stand[engine], self.merged = (number, without), done.merged
        return done


def _check_trained(fold: Fold) -> None:
    if not fold.training_sites:
        raise DataError("P206", "No site has enough patients to be trained on.", "Use more data.")


def _fold(number: int, done: Preparation) -> Fold:
    replies = done.replies

    def counts(part: str) -> dict[str, Any]:
        return {site: reply.fields[part] for site, reply in replies.items()}

    targets = {
        site: Summary(*(reply.tensors[f"target_{name}"] for name in ("count", "mean", "m2")))
        for site, reply in replies.items()
        if "target_count" in reply.tensors
    }
    counted = {
        site: SiteParts(
            list(reply.fields.get("patients", [])),
            [list(reply.fields.get(name, [])) for name in ("classes", "validation_classes", "test_classes")],
            reply.fields.get("groups", {}),
        )
        for site, reply in replies.items()
    }
    return Fold(number, counts("train"), counts("validation"), counts("test"), counts("classes"), targets, counted,
                *({site: reply.fields.get(name, 0) for site, reply in replies.items()}
                  for name in ("hidden", "unlabelled")))  # fmt: skip
