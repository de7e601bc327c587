"""Running a study: all its jobs, one after another, so that it can be killed at any moment and go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from polyclinic.audit.poisoning import Attack
from polyclinic.client.personal import PERSONAL
from polyclinic.client.work import Work
from polyclinic.data.cases import Opened
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.planner import EnginePlan, choose_device, choose_plan
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import PolyclinicError
from polyclinic.files import write_atomic
from polyclinic.methods import Method
from polyclinic.models import build_model
from polyclinic.models.bundle import load_weights
from polyclinic.notes import Note
from polyclinic.parts import build_part
from polyclinic.site.run import not_stackable
from polyclinic.state import FlatModule
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.described import described
from polyclinic.study.display import Display
from polyclinic.study.fit import (
    check_enough_sites,
    check_fit,
    check_left_cases,
    check_shares,
    configurations,
    input_shape,
    network_outputs,
)
from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.kinds import RUN, RUNS
from polyclinic.study.lock import locked
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.notes import diverged, few_events, full_precision, idle_parts, left_out, spared
from polyclinic.study.payloads import exchanged_table
from polyclinic.study.planning import work_of
from polyclinic.study.report.page import write_report
from polyclinic.study.search import Searching
from polyclinic.study.site_table import site_table
from polyclinic.study.statistics import all_evidence, cost_of_unseen, summarise
from polyclinic.study.statistics.calibration import calibration_tables
from polyclinic.study.statistics.survival import survival_tables
from polyclinic.study.statistics.within import within_tables
from polyclinic.study.table_files import write_table
from polyclinic.study.testing import result_rows
from polyclinic.tasks import build_task


def run_study(study: CheckedStudy, out: Path, *, resume: bool = False, display: Display | None = None) -> None:
    """Run a study into a folder; see `polyclinic.study.study.Study.run`."""
    with locked(out):
        _run_alone(study, out, resume, display or Display())


def _run_alone(study: CheckedStudy, out: Path, resume: bool, display: Display) -> None:
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


class _Runner:
    """The jobs of one study."""

    def __init__(
        self, study: CheckedStudy, opened: Opened, folder: Folder, display: Display, attack: Attack | None
    ) -> None:  # fmt: skip
        self.study, self.opened, self.folder, self.display = study, opened, folder, display
        self.declaration = study.declaration
        self.outputs = network_outputs(self.declaration, opened.classes)
        self.engines: list[Engine] = []
        self.attack = attack
        self._start: tuple[int, torch.Tensor] | None = None
        self.search = Searching(self.declaration, folder, self.declaration.validation_metric)

    def close(self) -> None:
        """End worker processes."""
        for engine in self.engines:
            engine.close()

    def run(self, sites: pd.DataFrame) -> None:
        """Run all jobs and write all tables."""
        template = self._template(choose_device(self.declaration.engine.device))
        check_shares(self.declaration, template.layout)
        plan = self.folder.plan(self._plan(template), self.opened.fingerprint)
        if str(template.vector.device) != plan.device:  # resumed on another machine
            template = self._template(plan.device)
        torch.set_num_threads(plan.threads)
        engine, local = self._engines(plan)
        preparing = Folds(self.declaration, self.opened, engine, local)
        folds = preparing.count()
        check_left_cases(self.attack, folds)
        check_enough_sites(self.declaration, folds)
        self.search.check(folds)
        harmonised = preparing.describe()
        self.folder.begin(plan, self.opened.fingerprint)  # not before study and data are known to fit
        self.folder.note({"target": self.declaration.target, "described": described(self.declaration.study_methods)})
        if self.declaration.initial_weights is not None:
            content = self.declaration.initial_weights.read_bytes()
            self.folder.note({"weights_sha256": hashlib.sha256(content).hexdigest()})
        for site in local.members.values():
            site.write_pseudonyms()
        jobs = self._jobs(folds)
        self.display.planned(plan, len(jobs))
        self.method_notes = [
            *left_out(),
            *full_precision(self.declaration, plan.device),
            *idle_parts(self.declaration, template.layout),
            *spared(self.declaration, self.attack, len(self.opened.sites), template.layout),
            *few_events(self.declaration, list(folds.values())),
        ]
        self.split_notes = preparing.notes
        runner = JobRunner(self.declaration, engine, local, template, self._initial, self.opened.classes, self.attack)
        for number, job in enumerate(jobs):
            done = self.folder.is_done(job)
            self.display.job(number, job.title, done)
            if done:
                continue
            preparing.ready(job)
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

    def _template(self, device: str) -> FlatModule:
        name, options = self.declaration.model_part
        return self._with_weights(build_model(name, options, self._shape(), self.outputs, device=device))

    def _initial(self, seed: int) -> torch.Tensor:
        """Initial model state ``[P]`` of a seed. The last one is kept: the methods of a fold start from the same."""
        if self._start is None or self._start[0] != seed:
            self._start = seed, self._network(seed).vector
        return self._start[1].clone()

    def _network(self, seed: int) -> FlatModule:
        name, options = self.declaration.model_part
        return self._with_weights(build_model(name, options, self._shape(), self.outputs, seed=seed))

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
        works = [work_of(m.method, m.training, sites, mixed=mixed) for m in methods]
        obstacles = [_obstacle(m.method, work) for m, work in zip(methods, works, strict=True)]
        epochs = training.local_epochs if isinstance(training.local_epochs, int) else 1
        passes = training.rounds * epochs * len(methods) * (self.declaration.folds or 1) * (2 if self.attack else 1)
        return choose_plan(
            mode=options.mode, device=str(template.vector.device), threads=options.threads, workers=options.workers,
            model=template, works=works, obstacles=obstacles, shape=self._shape(),
            cases=[int(data.known.sum()) for data in self.opened.sites.values()],
            passes=passes * len(self.declaration.all_seeds),
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
        task = build_task(declaration.task, len(classes), grid=declaration.grid)
        results = result_rows(predictions, task, task.result_metrics(declaration.metrics, classes))
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
            *(note for engine in self.engines for note in engine.notes),
            *(Note.from_json(one) for found in noted for one in found),
        ]
        write_table(out / "predictions.csv", predictions)
        write_table(out / "rounds.csv", rounds)
        reveals = {method.label: self._reveals(method) for method in declaration.study_methods}
        write_table(out / "exchanged.csv", exchanged_table(rounds, reveals))
        write_table(out / "sites.csv", sites)
        write_table(out / "summary.csv", summary)
        if len(unseen):
            write_table(out / "unseen.csv", unseen)
        if task.ranked(predictions) is not None:
            calibration, decisions = calibration_tables(
                predictions, [site for site, enough in scored.items() if enough]
            )
            write_table(out / "calibration.csv", calibration)
            write_table(out / "decisions.csv", decisions)
        if declaration.target == "times":
            curves, tests = survival_tables(predictions, declaration.grid.edges)
            write_table(out / "survival.csv", curves)
            write_table(out / "log_rank.csv", tests)
        backdoor = self.folder.gather(jobs, "backdoor.csv")
        if len(backdoor):
            write_table(out / "backdoor.csv", ordered(backdoor))
        write_atomic(out / "notes.json", json.dumps([note.to_json() for note in dict.fromkeys(notes)], indent=2) + "\n")
        self._write_overlays(jobs)
        write_table(out / "results.csv", results)
        if declaration.target == "masks" and all(data.spacings is not None for data in self.opened.sites.values()):
            self.folder.note({"distances": "mm"})

    def _reveals(self, method: StudyMethod) -> dict[str, str]:
        """``part/name`` of what a method exchanges besides the model -> what it could reveal."""
        parts = [entry for one in self.declaration.candidates(method) for entry in one.method.method.parts]
        return {
            f"{name}/{key}": words
            for name, options in parts
            for key, words in build_part(name, options).reveals.items()
        }

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
        evidence = all_evidence(results, predictions, **about)
        compared, at_sites = within_tables(evidence, baselines, self.declaration.metrics[0])
        write_table(self.folder.path / "comparisons.csv", compared)
        write_table(self.folder.path / "site_comparisons.csv", at_sites)
        summary = summarise(results, predictions, baselines=baselines, evidence=evidence, **about)
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


def _obstacle(method: Method, work: Work) -> str:
    """Why sites can't be trained together with a method, besides what its network says; empty if they can."""
    personal = None if method.personal is None else PERSONAL[method.personal[0]]
    return not_stackable(personal, work, [build_part(name, options).at_site() for name, options in method.parts])
