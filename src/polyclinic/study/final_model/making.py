"""Making a model: one method trained once at opened sites, asked what stays there, described, and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.preparation import Named
from polyclinic.data.spec import DataSpec
from polyclinic.engine import CheckedEngine, Engine
from polyclinic.errors import ModelError
from polyclinic.files import write_atomic
from polyclinic.methods import PUBLISHED
from polyclinic.parts import FEDERATION
from polyclinic.running.attendance import gather
from polyclinic.site.messages import Retain
from polyclinic.site.model_part import PART
from polyclinic.state import FlatModule, Selection
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.final_model.card import card_page, card_text
from polyclinic.study.final_model.choosing import Chosen
from polyclinic.study.final_model.description import Description, PublicUsed, TrainingSite, without_places
from polyclinic.study.final_model.entry import changing_images
from polyclinic.study.final_model.folder import (
    CARD_PAGE,
    CARD_TEXT,
    PREPARATION,
    PROVENANCE,
    STUDY,
    VECTORS,
    WEIGHTS,
    number_of,
    pack_merged,
    pack_weights,
    sample_inputs,
    sample_outputs,
    sites_folder,
    write_model,
)
from polyclinic.study.final_model.seen import seen_at
from polyclinic.study.fit.networks import input_shape
from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.given.plugins import of_python
from polyclinic.study.job import Fold, Job, Outcome
from polyclinic.study.jobs import JobRunner, round_notes
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.provenance import machine, now, plugins
from polyclinic.study.synthesis import copy_notes, memorised
from polyclinic.study.testing import Trained
from polyclinic.study.writing import study_text

#: Numbers in the test vectors at most, if one case has no more.
_MOST_SAMPLES = 2**18


def check_makeable(study: CheckedStudy) -> None:
    """Whether what is trained can be written down.

    Raises:
        ModelError: P703, it is code of a Python program.
    """
    if of_python(study.declaration):
        raise ModelError("P703", "A network or loss of a Python program is code, which no model's folder has.",
                         "Make a plug-in of it (`polyclinic plugin new NAME`), and name it in the study.")  # fmt: skip


def with_rounds(method: StudyMethod, rounds: int | None) -> StudyMethod:
    """A method that trains so many rounds, and stops at none before; None leaves it as it is."""
    if rounds is None:
        return method
    fixed = method.training.model_copy(update={"rounds": rounds, "early_stopping": None})
    return replace(method, training=fixed)


@dataclass(frozen=True)
class Maker:
    """Makes a model at sites that have opened their cases.

    Args:
        study: the study.
        agreement: what the sites agreed on.
        cohort: what is known of them.
        runner: trains.
        folds: prepares the sites.
        folder: where the training's progress is kept, and what was run is written down.
    """

    study: CheckedStudy
    agreement: Agreement
    cohort: Cohort
    runner: JobRunner
    folds: Folds
    folder: Folder

    def make(
        self, out: Path, job: Job, fold: Fold, chosen: Chosen, *, site_models: bool,
        report: Callable[[int, int], None],
    ) -> Outcome:  # fmt: skip
        """Train, let every site keep what is its own, and write the model.

        Args:
            out: folder of the model; what was there of it is replaced.
            job: what is trained; its method has the values and rounds that were chosen.
            fold: the sites' parts, for which they are prepared.
            chosen: what was found out before.
            site_models: whether the model has the whole models of all sites.
            report: called with the round and the number of rounds.

        Returns:
            The rounds, what they cost, and what went wrong in them.

        Raises:
            PolyclinicError: a site failed, or too few answered.
        """

        def reported(done: int, total: int) -> None:
            self.folds.sites.advanced()
            report(done, total)

        return self.folds.sites.do(lambda: self._make(out, job, fold, chosen, site_models=site_models, report=reported))

    def _make(
        self, out: Path, job: Job, fold: Fold, chosen: Chosen, *, site_models: bool,
        report: Callable[[int, int], None],
    ) -> Outcome:  # fmt: skip
        self.folds.ready(job)
        method = job.methods[0].method
        trained = self.runner.train(
            job, fold, checkpoint=self.folder.checkpoint(job), report=report,
            whole=site_models or method.tests == "ensemble",
        )  # fmt: skip
        settled = self.runner.tester(job, fold, trained.plan).settle(method, trained)
        made = _Made(self.study, self.agreement, self.cohort, fold, job, trained, self.runner.template,
                     self.folds.steps, self.folds.merged)  # fmt: skip
        shutil.rmtree(out, ignore_errors=True)
        self._write(out, made, chosen, settled, CheckedEngine(self.runner.engine, trained.plan.known))
        notes = round_notes(job, trained.progress.failures)
        if (cases := trained.plan.procedure[1].made()) is not None:
            notes += copy_notes(job, cases, trained.plan.sites, memorised(job, cases))
        return Outcome(rounds=trained.rows, privacy=trained.spending, notes=notes)

    def _write(
        self, out: Path, made: _Made, chosen: Chosen, settled: tuple[float, list[float]], engine: Engine
    ) -> None:  # fmt: skip
        weights = pack_weights(made.layout, made.vectors, made.stays)
        preparation = pack_merged(made.merged, made.needed)
        number = number_of(weights, preparation)
        kept = _retain(made, number, engine)
        declaration = self.study.declaration
        threshold, completion = declaration.evaluation.threshold, settled[1]
        if threshold == "validation":
            threshold = settled[0] if chosen.threshold is None else chosen.threshold
            completion = chosen.thresholds or completion
        description = made.describe(number, chosen, threshold, completion, kept)
        inputs = sample_inputs(
            description.shape, 2 if 2 * torch.Size(description.shape).numel() <= _MOST_SAMPLES else 1
        )
        outputs = torch.stack([sample_outputs(made.template, vector, inputs) for vector in made.vectors])
        record = {
            "model": number, "method": PUBLISHED[chosen.method.name].summary, "made": now(),
            "data_sha256": self.folder.record.get("data_sha256"),
            "plan": self.folder.record.get("plan"), "study_results": chosen.record, "privacy": made.trained.spending,
            "notes": made.trained.progress.failures, **machine(),
        }  # fmt: skip
        beside = {
            STUDY: study_text(_bare(declaration.filled())),
            PROVENANCE: json.dumps(record, indent=2) + "\n",
            CARD_TEXT: card_text(description, chosen.results, record),
            CARD_PAGE: card_page(description, chosen.results, record),
        }
        files = {WEIGHTS: weights, PREPARATION: preparation, VECTORS: save({"inputs": inputs, "outputs": outputs})}
        write_model(out, description, files, beside)


def _retain(made: _Made, number: str, engine: Engine) -> dict[str, dict[str, Any]]:
    """Let every site keep its own part; returns what each said of it."""
    plan, progress = made.trained.plan, made.trained.progress
    own = not plan.selection.everything or plan.start.personal is not None
    own = own and made.job.methods[0].method.tests != "ensemble"  # whose predictions are of all sites' models
    asked = {
        site: Message(
            Retain(model=number).fields(),
            {"state": progress.best_state(site)} if own and site in plan.sites else {},
        )
        for site in made.fold.trains(made.job.methods[0].method)
    }
    replies = gather(engine, "retain", asked, plan.quorum, progress.failures)
    return {site: reply.fields for site, reply in replies.items()}


def collect_parts(sites: Path, out: Path) -> None:
    """Move what stays at sites of this machine from their folders to where it is looked for, beside the model.

    Args:
        sites: folder of the sites' folders.
        out: folder of the model.
    """
    for part in sorted(sites.glob(f"*/{PART}")):
        write_atomic(sites_folder(out) / part.parent.name / PART, part.read_bytes())
        part.unlink()


@dataclass(frozen=True)
class _Made:
    """What a training gave, and what of it becomes a model."""

    study: CheckedStudy
    agreement: Agreement
    cohort: Cohort
    fold: Fold
    job: Job
    trained: Trained
    template: FlatModule
    steps: list[Named]
    merged: list[dict[str, Tensor]]

    @property
    def layout(self) -> Any:
        """Of the network."""
        return self.template.layout

    @property
    def _selection(self) -> Selection:
        return self.trained.plan.selection

    @property
    def whole(self) -> bool:
        """Whether the models are whole networks."""
        return self._selection.everything or bool(self.trained.models)

    @property
    def stays(self) -> frozenset[str]:
        """Tensors of the network that are not in the model."""
        if self.whole:
            return frozenset()
        chosen = self._selection.slices
        shared = {e.name for e in self.layout.entries if any(a <= e.offset < b for a, b in chosen)}
        return frozenset(entry.name for entry in self.layout.entries if entry.name not in shared)

    @property
    def named(self) -> dict[str, Tensor]:
        """The models by name ``[P]``; what stays at sites is 0.5 in them."""
        trained, selection = self.trained, self._selection
        if self.whole:
            return {name: vector.cpu() for name, vector in trained.models.items()}
        found = {}
        for name, state in (trained.progress.best_models or {FEDERATION: trained.progress.first}).items():
            vector = torch.full((selection.total,), 0.5)
            selection.put(vector, state.cpu())
            found[name] = vector
        return found

    @property
    def vectors(self) -> list[Tensor]:
        """The models ``[P]``."""
        return list(self.named.values())

    @property
    def needed(self) -> list[dict[str, Tensor]]:
        """What each part that changes images needs."""
        found = self.trained.progress.needed
        return [found[name] for name, _ in self.shown]

    @property
    def shown(self) -> list[Named]:
        """The parts that change images."""
        method = self.job.methods[0].method
        changing = changing_images(method)
        return [(name, options) for name, options in method.parts if name in changing]

    @property
    def homes(self) -> dict[str, int]:
        """Which model each site uses, where there are several and each has one."""
        names, method = list(self.named), self.job.methods[0].method
        if len(names) == 1 or method.tests == "ensemble":
            return {}
        homes = self.trained.progress.best_homes
        return {site: names.index(homes.get(site, site)) for site in self.trained.plan.sites
                if homes.get(site, site) in names}  # fmt: skip

    def describe(
        self, number: str, chosen: Chosen, threshold: float, completion: Sequence[float],
        kept: dict[str, dict[str, Any]],
    ) -> Description:  # fmt: skip
        """The description."""
        declaration, start, cohort = self.study.declaration, self.trained.plan.start, self.cohort
        method, best = self.job.methods[0], self.trained.progress.best.get(FEDERATION)
        rounds = self.trained.progress.done if best is None or chosen.rounds is not None else best[1] + 1
        sites = {
            site: TrainingSite(
                cases=self.fold.trained_on(site),
                patients=(self.fold.counted[site].patients or [0])[0],
                **kept.get(site, {}),
            )
            for site in self.fold.trains(self.job.methods[0].method)
        }
        seen = seen_at({site: cohort.facts[site] for site in sites}, list(cohort.features))
        data = without_places(self.agreement.prepared(declaration.data))
        return Description(
            number=number, study=declaration.study, method=method.label,
            parts=json.dumps(method.entry.get(method.name, method.entry), default=str)[:9000], task=declaration.task,
            loss=start.loss, loss_options=start.loss_options, classes=list(cohort.classes),
            network=declaration.model_part,
            shape=list(input_shape(declaration, cohort)), outputs=self.trained.plan.task.outputs, data=data,
            agreement=self.agreement,
            inputs=list(cohort.features), covariates=cohort.covariates, steps=self.steps, shown=self.shown,
            scale=start.target_scale, labels=start.labels, times=start.times, edges=start.edges,
            completion=list(completion), threshold=float(threshold), calibration=chosen.calibration,
            batch_size=start.work.batch_size, models=list(self.named), homes=self.homes, whole=self.whole, sites=sites,
            rounds=rounds, chosen=chosen.why, seed=self.job.seed, seen=seen,
            plugins=plugins(), public=self._public,
        )  # fmt: skip

    @property
    def _public(self) -> PublicUsed | None:
        """The public set, if the training worked on one."""
        found = self.cohort.public
        if found is None or self.trained.plan.start.public is None:
            return None
        return PublicUsed(cases=found.used, fingerprint=found.fingerprint)


def _bare(content: dict[str, Any]) -> dict[str, Any]:
    """A study without where its cases were."""
    data = without_places(DataSpec.model_validate(content["data"])).model_dump(mode="json")
    model = content["model"]
    if "bundle" in model:
        model = {"bundle": {**model["bundle"], "path": "BUNDLE"}}
    return {**content, "data": {name: value for name, value in data.items() if value is not None}, "model": model}
