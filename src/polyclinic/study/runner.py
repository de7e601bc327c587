"""Running a study: all its jobs, one after another, so that it can be killed at any moment and go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from polyclinic.audit.poisoning import Attack
from polyclinic.data.check import check_frame, class_counts
from polyclinic.data.preparation import SharedStep, build_steps, name_steps
from polyclinic.data.scaling import Summary
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.planner import EnginePlan, choose_device, choose_plan
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import DataError, PolyclinicError, StudyError
from polyclinic.files import write_atomic
from polyclinic.models import build_model
from polyclinic.models.bundle import load_weights
from polyclinic.notes import Note
from polyclinic.server import build_server
from polyclinic.site.run import build_work, not_stackable
from polyclinic.state import FlatModule
from polyclinic.study.declaration import StudyMethod, build_participation
from polyclinic.study.display import Display
from polyclinic.study.fit import check_fit, configurations, input_shape
from polyclinic.study.folder import Folder
from polyclinic.study.jobs import Fold, Job, JobRunner, result_rows, work_fields
from polyclinic.study.kinds import RUN, RUNS
from polyclinic.study.lock import locked
from polyclinic.study.notes import diverged, full_precision, idle_parts, spared
from polyclinic.study.preparing import describe, prepare
from polyclinic.study.report.page import write_report
from polyclinic.study.results import write_table
from polyclinic.study.search import Searching
from polyclinic.study.statistics import cost_of_unseen, summarise
from polyclinic.tasks import TASKS, build_task
from polyclinic.tasks.segmentation_metrics import metric_columns

if TYPE_CHECKING:
    from polyclinic.data.cases import Opened
    from polyclinic.study.study import Study


def run_study(study: Study, out: Path, *, resume: bool = False, display: Display | None = None) -> None:
    """Run a study into a folder; see `polyclinic.study.study.Study.run`."""
    with locked(out):
        _run_alone(study, out, resume, display or Display())


def _run_alone(study: Study, out: Path, resume: bool, display: Display) -> None:
    study = study.planned(display.images)
    folder = Folder(out, study)
    folder.check(resume)
    if folder.is_finished:
        write_report(out)
        return
    opened = study.open(display.images)
    attack = check_fit(study, opened)
    sites = site_table(study, opened, attack)
    display.opened(sites, opened.notes)
    if study.plan is not None:
        display.note(f"Planned: {study.plan.reason}.")
    runner = _Runner(study, opened, folder, display, attack)
    status: dict[str, Any] = {"status": "failed", "reason": "interrupted"}
    try:
        runner.run(sites)
        status = {"status": "finished"}
    except PolyclinicError as error:
        status = {"status": "failed", "reason": str(error)}
        raise
    finally:
        runner.close()
        if status["status"] != "finished":
            folder.note(status)
    folder.finish(status)
    display.step("report")
    write_report(out)


def site_table(study: Study, opened: Opened, attack: Attack | None) -> pd.DataFrame:
    """A row a site: cases found, used and rejected, classes, and whether it can be scored by itself."""
    declaration = study.declaration
    frame = check_frame(opened, declaration.data)
    least = declaration.evaluation.min_cases_per_class
    scored, notes = [], []
    for data in opened.sites.values():
        labels = data.labels
        if labels is not None and labels.is_floating_point():
            scored.append(len(data) >= least)
            notes.append(
                "" if scored[-1] else f"can't be scored by itself: only {len(data)} cases (at least {least} needed)"
            )
            continue
        counts = [] if labels is None else class_counts(labels, len(opened.classes))
        rare = [f"{n} of {name!r}" for name, n in zip(opened.classes, counts, strict=False) if n < least]
        enough = len(counts) - len(rare) >= 2 or not counts
        scored.append(enough)
        few = f"can't be scored by itself: {' and '.join(rare)} (at least {least} needed)"
        notes.append("" if enough else few)
    frame["scored"], frame["note"] = scored, notes
    if attack is not None:
        frame["corrupt"] = frame["site"].isin(attack.names)
    return frame


class _Runner:
    """The jobs of one study."""

    def __init__(
        self, study: Study, opened: Opened, folder: Folder, display: Display, attack: Attack | None
    ) -> None:  # fmt: skip
        self.study, self.opened, self.folder, self.display = study, opened, folder, display
        self.declaration = study.declaration
        self.engines: list[Engine] = []
        self.steps = name_steps(self.declaration.data, opened.features, opened.covariates)
        self.split_notes: list[Note] = []
        self.attack = attack
        metric = "dice" if self.declaration.task == "segmentation" else self.declaration.metrics[0]
        self.search = Searching(self.declaration, folder, metric)

    def close(self) -> None:
        """End worker processes."""
        for engine in self.engines:
            engine.close()

    def run(self, sites: pd.DataFrame) -> None:
        """Run all jobs and write all tables."""
        template = self._template(choose_device(self.declaration.engine.device))
        self._check_shares(template)
        plan = self.folder.plan(self._plan(template), self.opened.fingerprint)
        template = self._template(plan.device)
        torch.set_num_threads(plan.threads)
        engine, local = self._engines(plan)
        folds = {number: self._prepare(engine, local, number) for number in range(self.declaration.folds or 1)}
        self._check_left_cases(folds)
        self._check_enough_sites(folds)
        self.search.check(folds)
        harmonised = self._describe(engine)
        self.folder.begin(plan, self.opened.fingerprint)  # not before study and data are known to fit
        if self.declaration.initial_weights is not None:
            content = self.declaration.initial_weights.read_bytes()
            self.folder.note({"weights_sha256": hashlib.sha256(content).hexdigest()})
        for site in local.members.values():
            site.write_pseudonyms()
        jobs = self._jobs(folds)
        self.display.planned(plan, len(jobs))
        self.method_notes = [
            *full_precision(self.declaration, plan.device),
            *idle_parts(self.declaration, template.layout),
            *spared(self.declaration, self.attack, len(self.opened.sites)),
        ]
        runner = JobRunner(self.declaration, engine, local, template, self._initial, self.opened.classes, self.attack)
        prepared: tuple[int, str | None] = (len(folds) - 1, None)
        for number, job in enumerate(jobs):
            done = self.folder.is_done(job)
            self.display.job(number, job.title, done)
            if done:
                continue
            needed = (job.fold, job.without if self._depends_on_sites() else None)
            if needed != prepared:
                self._prepare(engine, local, *needed)
                prepared = needed
            if job.trial is not None:
                self.search.run(runner, job, folds[job.fold], self.display.round)
                continue
            checkpoint = self.folder.checkpoint(job)
            settled = self.search.settled(job)
            outcome = runner.run(settled, folds[job.fold], checkpoint=checkpoint, report=self.display.round)
            self.folder.store(job, outcome)
        if len(harmonised):
            write_table(self.folder.path / "harmonisation.csv", harmonised)
        searched = self.search.table()
        if len(searched):
            write_table(self.folder.path / "search.csv", searched)
        self._write([job for job in jobs if job.trial is None], folds, sites)

    def _describe(self, engine: Engine) -> pd.DataFrame:
        """The harmonised features before and after; no rows without harmonisation."""
        options = dict(self.steps).get("combat")
        if options is None:
            return pd.DataFrame()
        return describe(engine, dict(zip(options["columns"], options["features"], strict=True)))

    def _depends_on_sites(self) -> bool:
        """Whether a site's cases are prepared with summaries of others, so that leaving one out changes them."""
        return any(isinstance(step, SharedStep) for step in build_steps(self.steps))

    def _check_enough_sites(self, folds: dict[int, Fold]) -> None:
        """Rules that must outvote some sites need enough of them: better said now than in the middle of a study."""
        there = min(len(fold.training_sites) for fold in folds.values())
        for method in configurations(self.declaration):
            if method.method.scope != "federation":
                continue
            sites = there - 1 if self.declaration.is_unseen(method) else there
            sites = min(sites, *(part.most or sites for part in build_participation(method.training)), sites)
            for part in build_server(method.method.server).parts:
                if part.least > sites:
                    raise StudyError(
                        "P104", f"{method.label} needs the answers of {part.least} sites in each round, and {sites} "
                        "take part" + (" where one is left out." if sites < there else "."),
                        "Give its rule smaller numbers, or choose `median`, `geometric_median` or `dos`.",
                    )  # fmt: skip

    def _check_shares(self, template: FlatModule) -> None:
        """A method that shares a part which the model has not would be training alone under another name."""
        for m in self.declaration.study_methods:
            if m.method.scope == "federation" and not m.method.selection(template.layout).trainable:
                raise StudyError(
                    "P104", f"{m.label} shares the {m.method.share} of the model, and there is none in "
                    f"{self.declaration.model_part[0]}.", "Use a model with a body and a head.",
                )  # fmt: skip

    def _check_left_cases(self, folds: dict[int, Fold]) -> None:
        """A corrupt site must have cases to train on."""
        if self.attack is None or self.attack.changes_updates:
            return
        for fold in folds.values():
            left = fold.corrupted(self.attack).train
            empty = [site for site in fold.training_sites if not left[site]]
            if empty:
                raise StudyError(
                    "P104", f"`attack: {{{self.attack.name}: ...}}` leaves {empty[0]} without training cases.",
                    "Choose another site or class.",
                )  # fmt: skip

    def _template(self, device: str) -> FlatModule:
        task = build_task(self.declaration.task, len(self.opened.classes), TASKS[self.declaration.task].losses[0])
        name, options = self.declaration.model_part
        return self._with_weights(build_model(name, options, self._shape(), task.outputs, device=device))

    def _initial(self, seed: int) -> torch.Tensor:
        task = build_task(self.declaration.task, len(self.opened.classes), TASKS[self.declaration.task].losses[0])
        name, options = self.declaration.model_part
        return self._with_weights(build_model(name, options, self._shape(), task.outputs, seed=seed)).vector

    def _with_weights(self, model: FlatModule) -> FlatModule:
        if self.declaration.initial_weights is not None:
            load_weights(model.module, self.declaration.initial_weights)
        return model

    def _shape(self) -> tuple[int, ...]:
        return input_shape(self.declaration, self.opened)

    def _plan(self, template: FlatModule) -> EnginePlan:
        options, training = self.declaration.engine, self.declaration.training
        methods = configurations(self.declaration)
        mixed = options.mixed_on(str(template.vector.device))
        sites = list(self.opened.sites)
        fields = [work_fields(m.method, m.training, sites, mixed=mixed) for m in methods]
        works = [build_work(f, False, list(m.method.local)) for f, m in zip(fields, methods, strict=True)]
        obstacles = [not_stackable(m.method.personal, f["own"]) for m, f in zip(methods, fields, strict=True)]
        epochs = training.local_epochs if isinstance(training.local_epochs, int) else 1
        passes = training.rounds * epochs * len(methods) * (self.declaration.folds or 1) * (2 if self.attack else 1)
        return choose_plan(
            mode=options.mode, device=str(template.vector.device), threads=options.threads, workers=options.workers,
            model=template, works=works, obstacles=obstacles, shape=self._shape(),
            cases=[len(d) for d in self.opened.sites.values()], passes=passes * len(self.declaration.all_seeds),
        )  # fmt: skip

    def _engines(self, plan: EnginePlan) -> tuple[Engine, LocalEngine]:
        """The engine that trains, and the same sites in this process."""
        sites = self.folder.site_folder()
        attacked = self.attack is not None
        local = LocalEngine(
            self.opened.sites, device=plan.device, folder=sites, stacked=plan.mode == "stacked", corruptible=attacked
        )
        engine: Engine = local
        if plan.mode == "processes":
            folders = {name: site.folder for name, site in local.members.items()}
            engine = ProcessEngine(
                self.opened.sites, workers=plan.workers, threads=plan.worker_threads, device=plan.device,
                folders=folders, corruptible=attacked,
            )  # fmt: skip
        self.engines = [engine]
        return engine, local

    def _prepare(self, engine: Engine, local: LocalEngine, number: int, without: str | None = None) -> Fold:
        """Split, harmonise and scale at every site; summaries of the site ``without`` are not used."""
        data, evaluation = self.declaration.data, self.declaration.evaluation
        request = {
            "fold": number, "folds": self.declaration.folds, "holdout": evaluation.holdout,
            "validation": evaluation.validation, "split_seed": evaluation.split_seed,
            "small_sites": evaluation.small_sites, "steps": self.steps, "augmentation": data.augmentation,
            "classes": len(self.opened.classes),
            "patch": None if data.box is None else data.box.model_dump(mode="json"),
        }  # fmt: skip
        done = [prepare(one, request, without) for one in {id(e): e for e in (engine, local)}.values()][-1]
        replies = done.replies
        if without is None:
            self.split_notes = list(dict.fromkeys([*self.split_notes, *done.notes]))

        def counts(part: str) -> dict[str, Any]:
            return {site: reply.fields[part] for site, reply in replies.items()}

        targets = {
            site: Summary(*(reply.tensors[f"target_{name}"] for name in ("count", "mean", "m2")))
            for site, reply in replies.items()
            if "target_count" in reply.tensors
        }
        fold = Fold(number, counts("train"), counts("validation"), counts("test"), counts("classes"), targets)
        if not fold.training_sites or not fold.tested_sites:
            raise DataError("P206", "No site has enough patients to be both trained on and tested.",
                            "Use fewer `evaluation: {folds: ...}`, or more data.")  # fmt: skip
        return fold

    def _jobs(self, folds: dict[int, Fold]) -> list[Job]:
        """All trainings; the trials of a search come before what is tested with the values that it chooses."""
        shared: dict[tuple[str, ...], list[StudyMethod]] = {}
        for method in self.declaration.study_methods:
            key = tuple(one.method.course for one in self.declaration.candidates(method))
            shared.setdefault(key, []).append(method)
        groups = [tuple(methods) for methods in shared.values()]
        unseen = [m for m in self.declaration.study_methods if self.declaration.is_unseen(m)]
        jobs = self.search.once(groups)
        for number, fold in folds.items():
            jobs += self.search.within(groups, number)
            for seed in self.declaration.all_seeds:
                jobs += [Job(methods, seed, number) for methods in groups]
                jobs += [
                    Job(methods, seed, number, attacked=True)
                    for methods in groups
                    if self.attack is not None and self.attack.applies_to(methods[0].method.scope)
                ]
            if len(fold.training_sites) < 2:
                continue
            for site in fold.tested_sites:  # site after site, since each is left out of the preparation, too
                jobs += self.search.within([(method,) for method in unseen], number, site)
                jobs += [
                    Job((method,), s, number, without=site) for s in self.declaration.all_seeds for method in unseen
                ]
        return jobs

    def _write(self, jobs: list[Job], folds: dict[int, Fold], sites: pd.DataFrame) -> None:
        """The long tables of the whole study."""
        out, declaration = self.folder.path, self.declaration
        self.display.step("tables and statistics")
        runs = {run: place for place, run in enumerate(RUNS)}
        methods = {method.label: place for place, method in enumerate(declaration.study_methods)}

        def ordered(frame: pd.DataFrame) -> pd.DataFrame:
            keyed = frame.assign(_run=frame[RUN].map(runs), _method=frame["method"].map(methods))
            keyed = keyed.sort_values(["_run", "_method", "seed", "fold"], kind="stable")
            return keyed.drop(columns=["_run", "_method"])

        predictions = ordered(self.folder.gather(jobs, "predictions.csv"))
        classes = self.opened.classes
        segmented = declaration.task == "segmentation"
        metrics = metric_columns(declaration.metrics, classes) if segmented else declaration.metrics
        results = result_rows(predictions, declaration.task, metrics, len(classes))
        tested = sites["site"].map(lambda site: any(fold.test[site] for fold in folds.values()))
        sites = sites.assign(scored=sites["scored"] & tested)
        scored = dict(zip(sites["site"], sites["scored"], strict=True))
        summary, unseen = self._summary(results, predictions, scored)
        paths = [self.folder.jobs / self.folder.job_name(job) / "notes.json" for job in jobs]
        rounds = ordered(self.folder.gather(jobs, "rounds.csv"))
        noted = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        notes = [
            *self.opened.notes,
            *self.method_notes,
            *diverged(declaration, rounds, list(folds.values())),
            *self.split_notes,
            *(Note.from_json(one) for found in noted for one in found),
        ]
        write_table(out / "predictions.csv", predictions)
        write_table(out / "rounds.csv", rounds)
        write_table(out / "sites.csv", sites)
        write_table(out / "summary.csv", summary)
        if len(unseen):
            write_table(out / "unseen.csv", unseen)
        backdoor = self.folder.gather(jobs, "backdoor.csv")
        if len(backdoor):
            write_table(out / "backdoor.csv", ordered(backdoor))
        write_atomic(out / "notes.json", json.dumps([note.to_json() for note in dict.fromkeys(notes)], indent=2) + "\n")
        self._write_overlays(jobs)
        write_table(out / "results.csv", results)
        if segmented and all(data.spacing is not None for data in self.opened.sites.values()):
            self.folder.note({"distances": "mm"})

    def _summary(
        self, results: pd.DataFrame, predictions: pd.DataFrame, scored: dict[str, bool]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The summary table, and what it costs to be unseen."""
        baselines = self.declaration.baselines
        self.folder.note({"baselines": baselines})
        about: dict[str, Any] = {
            "task": self.declaration.task, "classes": self.opened.classes, "scored": scored,
            "bootstrap": self.declaration.evaluation.bootstrap,
        }  # fmt: skip
        summary = summarise(results, predictions, baselines=baselines, **about)
        return summary, cost_of_unseen(results, predictions, **about)

    def _write_overlays(self, jobs: list[Job]) -> None:
        from safetensors import safe_open
        from safetensors.torch import save

        tensors, dice = dict[str, torch.Tensor](), dict[str, float]()
        for path in (self.folder.jobs / self.folder.job_name(job) / "overlays.safetensors" for job in jobs):
            if not path.is_file():
                continue
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                dice |= json.loads(file.metadata()["dice"])
        if tensors:
            write_atomic(self.folder.path / "overlays.safetensors", save(tensors, {"dice": json.dumps(dice)}))
