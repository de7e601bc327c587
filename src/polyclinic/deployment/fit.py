"""Training the final model: one method, once, on all cases that a study may use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
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
from polyclinic.deployment.card import card_page, card_text
from polyclinic.deployment.chosen import Chosen, choose
from polyclinic.deployment.description import Description, TrainingSite, without_places
from polyclinic.deployment.folder import (
    CARD_PAGE,
    CARD_TEXT,
    DESCRIPTION,
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
    write_model,
)
from polyclinic.deployment.outside import seen_at
from polyclinic.engine import CheckedEngine, Engine
from polyclinic.engine.planner import choose_device
from polyclinic.errors import ModelError
from polyclinic.files import write_atomic
from polyclinic.methods import PUBLISHED
from polyclinic.parts import FEDERATION
from polyclinic.running.attendance import gather
from polyclinic.site.messages import Retain
from polyclinic.site.model_part import PART
from polyclinic.state import FlatModule, Selection
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.display import Display
from polyclinic.study.fit import check_delta, check_fit, input_shape
from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.lock import locked
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.opening import ask_agree, ask_open, local_engine
from polyclinic.study.plugins import of_python
from polyclinic.study.provenance import machine, now, plugins
from polyclinic.study.setup import Setup
from polyclinic.study.site_table import site_table
from polyclinic.study.testing import Trained
from polyclinic.study.writing import study_text

#: Numbers in the test vectors at most, if one case has no more.
_MOST_SAMPLES = 2**18
#: Folder of a training that goes on, in the folder of what stays at the sites.
_TRAINING = ".training"


@dataclass(frozen=True)
class Wanted:
    """What is asked of a final model.

    Attributes:
        method: label of the study's method; None where it has only one.
        results: folder of the study's results, which tell the rounds; None trains with a validation part.
        rounds: of training.
        fold: train as the study does in this fold, on its training part alone.
        seed: of the training; None takes the study's first.
        site_models: whether the model has the whole models of all sites, of methods that keep a part of them there.
        calibrate: whether probabilities are recalibrated by the results' test predictions.
    """

    method: str | None = None
    results: Path | None = None
    rounds: int | None = None
    fold: int | None = None
    seed: int | None = None
    site_models: bool = False
    calibrate: bool = False


def sites_folder(out: Path) -> Path:
    """Where what stays at the sites is kept, if these are on this machine: beside the model."""
    return out.with_name(f"{out.name}-sites")


def fit_model(
    study: CheckedStudy, out: Path, wanted: Wanted, *, resume: bool = False, display: Display | None = None,
    engine: Engine | None = None,
) -> Description:  # fmt: skip
    """Train a method of a study once and write the model.

    Args:
        study: the study.
        out: folder of the model; what stays at the sites comes into a folder of the same name with ``-sites``.
        wanted: what is asked.
        resume: whether a training that was interrupted goes on.
        display: shows progress.
        engine: carries messages to sites elsewhere; by default all data are on this machine.

    Raises:
        ModelError: P703, such a model can't be made; P701, the folder has one already.
        PolyclinicError: as `polyclinic.study.study.Study.run`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        held = "a model" if (out / DESCRIPTION).exists() else "something else"
        raise ModelError("P701", f"{out} already holds {held}.", "Choose another folder with --out.")
    if of_python(study.declaration):
        raise ModelError("P703", "A network or loss of a Python program is code, which no model's folder has.",
                         "Make a plug-in of it (`polyclinic plugin new NAME`), and name it in the study.")  # fmt: skip
    method = _method(study, wanted.method)
    if wanted.fold is not None:
        chosen = _as_in_fold(study, method, wanted)
    else:
        chosen = choose(study.declaration, method, wanted.results, wanted.rounds, calibrate=wanted.calibrate)
    private = sites_folder(out)
    with locked(private / _TRAINING):
        _Fitting(study, chosen, wanted, private, display or Display()).run(out, engine, resume=resume)
    from polyclinic.deployment.folder import read_description

    return read_description(out)


def _method(study: CheckedStudy, label: str | None) -> StudyMethod:
    """The method that is meant.

    Raises:
        ModelError: P703, it is not said which, or it makes no model that could be used elsewhere.
    """
    methods = study.declaration.study_methods
    found = [one for one in methods if label in (None, one.label)] or [one for one in methods if label == one.name]
    if len(found) != 1:
        said = f"The study has no method {label!r}." if not found else "It is not said which method makes the model."
        raise ModelError("P703", said, f"Name one with --method: {', '.join(one.label for one in methods)}.")
    method = found[0].method
    if method.scope == "sites" and method.tests != "ensemble":
        raise ModelError("P703", f"{found[0].label} trains a model at each site, and no model of all.",
                         "Choose a federated method, `mix` or `ensemble`.")  # fmt: skip
    return found[0]


def _as_in_fold(study: CheckedStudy, method: StudyMethod, wanted: Wanted) -> Chosen:
    """What the study does in one fold.

    Raises:
        ModelError: P703, there is no such fold, or it is asked for something that goes with all cases.
    """
    declaration, folds = study.declaration, study.declaration.folds or 1
    for name, value in (("--results", wanted.results), ("--rounds", wanted.rounds), ("--calibrate", wanted.calibrate)):
        if value:
            raise ModelError(
                "P703", f"`--fold` trains as the study does, and {name} changes that.", "Give one of both."
            )
    if not 0 <= (wanted.fold or 0) < folds:
        raise ModelError("P703", f"The study has no fold {wanted.fold}.", f"Its folds are 0 to {folds - 1}.")
    if len(declaration.candidates(method)) > 1:
        raise ModelError("P703", f"In each fold the study searches values for {method.label}.",
                         "Write the values under `training`, or train on all cases with --results.")  # fmt: skip
    return Chosen(method, None, f"as the study does in fold {wanted.fold}, the best by its validation part")


class _Fitting:
    """A training of a final model."""

    def __init__(
        self, study: CheckedStudy, chosen: Chosen, wanted: Wanted, private: Path, display: Display
    ) -> None:  # fmt: skip
        self.chosen, self.wanted, self.private, self.display = chosen, wanted, private, display
        self.study = study
        self.all_cases = chosen.rounds is not None

    def run(self, out: Path, given: Engine | None, *, resume: bool) -> None:
        """Open the data, train, and write the model."""
        sites = given or local_engine(self.study, self.display.images)
        folder = Folder(self.private / _TRAINING, self.study)
        folder.check(resume)
        answered = ask_open(self.study, sites)
        cohort = ask_agree(answered, sites, described=True)
        study, declaration = answered.study, answered.study.declaration
        attack = check_fit(study, cohort)
        self.display.opened(site_table(study, cohort, attack), cohort.notes)
        setup = Setup(study, cohort, sites, folder.site_folder())
        try:
            template = setup.template(choose_device(declaration.engine.device))
            plan = folder.plan(setup.plan(template), cohort.fingerprint)
            engine, local = setup.start(plan)
            folds = Folds(
                declaration, cohort, engine, local, final=self.wanted.fold is None,
                validation=0.0 if self.all_cases else None,
            )  # fmt: skip
            fold = folds.one(self.wanted.fold or 0)
            check_delta(declaration, {fold.number: fold})
            folder.begin(plan, cohort.fingerprint)
            job = Job((self._method(),), self._seed(), fold.number)
            jobs = JobRunner(declaration, engine, local, template, setup.initial, cohort.classes)
            self.display.planned(plan, 1)
            self.display.job(0, f"{self.chosen.method.label} on all cases", False)
            trained = jobs.train(
                job, fold, checkpoint=folder.checkpoint(job), report=self.display.round,
                whole=self.wanted.site_models or job.methods[0].method.tests == "ensemble",
            )  # fmt: skip
            settled = jobs.tester(job, fold, trained.plan).settle(job.methods[0].method, trained)
            made = _Made(study, answered.agreement, cohort, fold, job, trained, template, folds.steps, folds.merged)
            self._write(out, made, settled, CheckedEngine(engine, trained.plan.known), folder)
        finally:
            setup.close()
        self._tidy()

    def _method(self) -> StudyMethod:
        """The method with the rounds that are wanted."""
        method, rounds = self.chosen.method, self.chosen.rounds
        if rounds is None:
            return method
        fixed = method.training.model_copy(update={"rounds": rounds, "early_stopping": None})
        return replace(method, training=fixed)

    def _seed(self) -> int:
        return self.study.declaration.all_seeds[0] if self.wanted.seed is None else self.wanted.seed

    def _write(
        self, out: Path, made: _Made, settled: tuple[float, list[float]], engine: Engine, folder: Folder
    ) -> None:
        weights, preparation = pack_weights(made.layout, made.vectors, made.stays), pack_merged(made.merged)
        number = number_of(weights, preparation)
        kept = self._retain(made, number, engine)
        declaration, chosen = made.study.declaration, self.chosen
        threshold = declaration.evaluation.threshold
        if threshold == "validation":
            threshold = settled[0] if chosen.threshold is None else chosen.threshold
        description = made.describe(number, chosen, threshold, settled[1], kept, self._seed())
        inputs = sample_inputs(
            description.shape, 2 if 2 * torch.Size(description.shape).numel() <= _MOST_SAMPLES else 1
        )
        outputs = torch.stack([sample_outputs(made.template, vector, inputs) for vector in made.vectors])
        record = {
            "model": number, "method": PUBLISHED[chosen.method.name].summary, "made": now(),
            "data_sha256": folder.record.get("data_sha256"),
            "plan": folder.record.get("plan"), "study_results": chosen.record, "privacy": made.trained.spending,
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

    def _retain(self, made: _Made, number: str, engine: Engine) -> dict[str, dict[str, Any]]:
        """Let every site keep its own part; returns what each said of it."""
        plan, progress = made.trained.plan, made.trained.progress
        own = not plan.selection.everything or plan.start.personal is not None
        own = own and made.job.methods[0].method.tests != "ensemble"  # whose predictions are of all sites' models
        asked = {
            site: Message(
                Retain(model=number).fields(),
                {"state": progress.best_state(site)} if own and site in plan.sites else {},
            )
            for site in made.fold.training_sites
        }
        replies = gather(engine, "retain", asked, plan.quorum, progress.failures)
        return {site: reply.fields for site, reply in replies.items()}

    def _tidy(self) -> None:
        """Move what stays at the sites to where it is looked for, and take the training's folder away."""
        for part in sorted((self.private / _TRAINING / "sites").glob(f"*/{PART}")):
            write_atomic(self.private / part.parent.name / PART, part.read_bytes())
        shutil.rmtree(self.private / _TRAINING, ignore_errors=True)


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
        kept: dict[str, dict[str, Any]], seed: int,
    ) -> Description:  # fmt: skip
        """The description."""
        declaration, start, cohort = self.study.declaration, self.trained.plan.start, self.cohort
        method, best = self.job.methods[0], self.trained.progress.best.get(FEDERATION)
        rounds = self.trained.progress.done if best is None or chosen.rounds is not None else best[1] + 1
        sites = {
            site: TrainingSite(
                cases=self.fold.train[site], patients=(self.fold.counted[site].patients or [0])[0], **kept.get(site, {})
            )
            for site in self.fold.training_sites
        }
        seen = seen_at({site: cohort.facts[site] for site in self.fold.training_sites}, list(cohort.features))
        data = without_places(self.agreement.prepared(declaration.data))
        return Description(
            number=number, study=declaration.study, method=method.label,
            parts=json.dumps(method.entry.get(method.name, method.entry), default=str)[:9000], task=declaration.task,
            loss=start.loss, classes=list(cohort.classes), network=declaration.model_part,
            shape=list(input_shape(declaration, cohort)), outputs=self.trained.plan.task.outputs, data=data,
            agreement=self.agreement,
            inputs=list(cohort.features), covariates=cohort.covariates, steps=self.steps, scale=start.target_scale,
            times=start.times, edges=start.edges, completion=list(completion), threshold=float(threshold),
            calibration=chosen.calibration, batch_size=start.work.batch_size, models=list(self.named), homes=self.homes,
            whole=self.whole, sites=sites, rounds=rounds, chosen=chosen.why, seed=seed, seen=seen, plugins=plugins(),
        )  # fmt: skip


def _bare(content: dict[str, Any]) -> dict[str, Any]:
    """A study without where its cases were."""
    data = without_places(DataSpec.model_validate(content["data"])).model_dump(mode="json")
    model = content["model"]
    if "bundle" in model:
        model = {"bundle": {**model["bundle"], "path": "BUNDLE"}}
    return {**content, "data": {name: value for name, value in data.items() if value is not None}, "model": model}
