"""Running a study: all its jobs, so that it can be killed at any moment and go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from polyclinic.audit.poisoning import Attack
from polyclinic.data.opening.agreement import Agreement
from polyclinic.data.opening.cohort import Cohort
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.planner import EnginePlan, choose_device
from polyclinic.engine.processes import death_notes
from polyclinic.errors import ModelError, PolyclinicError, StudyError
from polyclinic.files import write_atomic
from polyclinic.methods import SharedModules
from polyclinic.notes import Note
from polyclinic.origins import told
from polyclinic.parts import build_part
from polyclinic.privacy import Event
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.cluster.crew import Cluster
from polyclinic.study.columns import MADE, MODEL, PAYLOADS
from polyclinic.study.described import described
from polyclinic.study.display import Display
from polyclinic.study.ended import FINISHED, INCOMPLETE, MODEL_FOLDER
from polyclinic.study.entries import FinalModel
from polyclinic.study.final_model.choosing import Told, choose
from polyclinic.study.final_model.making import Maker, check_makeable, collect_parts, with_rounds
from polyclinic.study.findings import write_findings
from polyclinic.study.fit.data import check_fit
from polyclinic.study.fit.folds import check_folds
from polyclinic.study.flow import flow_table
from polyclinic.study.folder import Folder
from polyclinic.study.folds import Folds
from polyclinic.study.found import Found, found_at_sites, found_in_rows
from polyclinic.study.given.plugins import of_python, used_plugins
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.kinds import RUN, RUNS
from polyclinic.study.lock import locked
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.network_files import check_files, unchecked_files
from polyclinic.study.notes import (
    bare,
    diverged,
    few_events,
    frozen_from_scratch,
    full_precision,
    hidden_labels,
    idle_parts,
    in_sums,
    kept_back,
    left_out,
    no_labels,
    not_learned,
    rough_distances,
    rows_as_patients,
    spared,
    uncalibrated,
    ungrouped,
    unscaled,
    without_training,
)
from polyclinic.study.opening import ask_agree, ask_open, local_engine
from polyclinic.study.payloads import Numbers, exchanged_table
from polyclinic.study.planning import shared_words
from polyclinic.study.privacy import of_the_study
from polyclinic.study.report.page import write_report
from polyclinic.study.search import Searching
from polyclinic.study.setup import Setup
from polyclinic.study.shared_budget import protected, without_noise
from polyclinic.study.side_by_side.agenda import Agenda, trainings
from polyclinic.study.side_by_side.crew import Crew, briefing
from polyclinic.study.side_by_side.jobs_entry import BOTH, wanted_jobs
from polyclinic.study.side_by_side.overseeing import Overseer
from polyclinic.study.side_by_side.workbench import Workbench
from polyclinic.study.site_table import site_table
from polyclinic.study.synthesis import shown_methods
from polyclinic.study.testing import predictions_at
from polyclinic.study.tracking.entry import check_installed
from polyclinic.study.tracking.outcome import outcome_of
from polyclinic.study.tracking.track import Tracking, track_folder


def run_study(
    study: CheckedStudy, out: Path, *, resume: bool = False, display: Display | None = None,
    engine: Engine | None = None, jobs: int | str | None = None,
) -> None:  # fmt: skip
    """Run a study into a folder; see `polyclinic.study.study.Study.run`.

    Args:
        study: what to run.
        out: the folder.
        resume: whether a study that was interrupted goes on.
        display: shows progress.
        engine: carries messages to sites elsewhere; by default all data are on this machine, and so are the sites.
        jobs: how many trainings go side by side, or ``auto``; by default as the study file says. Where sites are
            elsewhere, or data are frames of a Python program, one goes after another.
    """
    here_alone = bool(study.given) or of_python(study.declaration)  # frames and functions, which no process else has
    wanted = 1 if engine is not None or here_alone else wanted_jobs(study.declaration.engine, jobs)
    if engine is not None and not engine.holds_all and here_alone:
        raise StudyError("P104", "Frames, networks and losses of a Python program don't travel: no code goes to sites.",
                         "Make a plug-in of networks and losses (`polyclinic plugin new NAME`), and let sites name "
                         "their tables in `site.yaml`.")  # fmt: skip
    if engine is None or engine.holds_all:  # else it is for the researcher's machine to track
        check_installed(list(study.declaration.trackers))
    if study.declaration.engine.ray is not None and (engine is not None or here_alone):
        raise _no_cluster(between=engine is not None)
    with locked(out):
        try:
            _run_alone(study, out, resume, display or Display(), engine, wanted)
        except PolyclinicError:
            raise
        except Exception as error:
            found = told(error, out if engine is None else None)
            if found is None:
                raise
            raise found from error


def _no_cluster(*, between: bool) -> StudyError:
    if between:
        return StudyError("P104", "A cluster is inside one institution: all of its nodes read all data.",
                          "Leave `engine: {ray: ...}` out of a study between hospitals.")  # fmt: skip
    return StudyError("P104", "Frames, networks and losses of a Python program are not on the nodes of a cluster.",
                      "Name tables, and make a plug-in of the rest (`polyclinic plugin new NAME`).")  # fmt: skip


def _run_alone(
    study: CheckedStudy, out: Path, resume: bool, display: Display, engine: Engine | None, jobs: int | None
) -> None:
    # What is wrong with the folder is told before data are looked for; a plan belongs to what is compared there.
    if not study.declaration.wants_plan and _folder(study, out, resume).is_finished:
        _report_again(study, out, display, engine)
        return
    if study.declaration.final_model is not None:
        check_makeable(study)
    sites_of_study = engine or local_engine(study, display.images)
    answered = ask_open(study, sites_of_study)
    study = answered.study
    folder = _folder(study, out, resume)
    if folder.is_finished:
        _report_again(study, out, display, engine)
        return
    cohort = ask_agree(answered, sites_of_study, described=study.declaration.final_model is not None)
    attack = check_fit(study, cohort)
    sites = site_table(study, cohort, attack)
    display.opened(sites, cohort.notes)
    if study.plan is not None:
        display.note(f"Planned: {study.plan.reason}.")
    runner = _Runner(study, answered.agreement, cohort, sites_of_study, folder, display, attack, jobs)
    status: dict[str, Any] = {"status": "failed", "reason": "interrupted"}
    try:
        runner.run(sites)
        status = {"status": INCOMPLETE if runner.untested else FINISHED}
    except PolyclinicError as error:
        status = {"status": "failed", "reason": str(error)}
        raise
    finally:
        runner.close()
        if status["status"] not in (FINISHED, INCOMPLETE):
            folder.note(status)
            runner.tracking.close()
    folder.finish(status)
    display.step("report")
    _report(study, out)
    for note in runner.tracking.finish(lambda: outcome_of(out)):
        display.note(note)


def _report(study: CheckedStudy, out: Path) -> None:
    """Write the report of a study that tested something."""
    if study.declaration.fold_numbers:
        write_report(out)


def _report_again(study: CheckedStudy, out: Path, display: Display, engine: Engine | None) -> None:
    """Of a study that was finished before: its report, and what trackers were not told yet."""
    _report(study, out)
    if engine is None or engine.holds_all:
        for note in track_folder(study, out):
            display.note(note)


def _folder(study: CheckedStudy, out: Path, resume: bool) -> Folder:
    """The folder of the results, checked; nothing is written."""
    folder = Folder(out, study)
    folder.check(resume)
    return folder


class _Runner:
    """The jobs of one study."""

    def __init__(
        self, study: CheckedStudy, agreement: Agreement, cohort: Cohort, sites: Engine, folder: Folder,
        display: Display, attack: Attack | None, wanted: int | None,
    ) -> None:  # fmt: skip
        self.study, self.cohort, self.sites, self.folder, self.display = study, cohort, sites, folder, display
        self.agreement = agreement
        self.declaration = study.declaration
        self.setup = Setup(study, cohort, sites, folder.site_folder(), attack)
        self.attack, self.wanted = attack, wanted
        self.crew: Overseer | None = None
        self.untested: list[Note] = []
        self.found_notes: list[Note] = []
        self.tracking, self.tracking_notes = Tracking(), list[Note]()
        self.search = self._search()

    def _search(self) -> Searching:
        return Searching(self.declaration, self.folder, self.declaration.validation_metric)

    def close(self) -> None:
        """End worker processes."""
        if self.crew is not None:
            self.crew.close()
        self.setup.close()

    def run(self, sites: pd.DataFrame) -> None:
        """Run all jobs and write all tables."""
        ray = self.declaration.engine.ray
        # With a cluster nothing but a final model is trained here, and what has a GPU are its nodes.
        template = self.setup.template("cpu" if ray else choose_device(self.declaration.engine.device))
        self._layout = template.layout
        here = self.sites.folder_here or self.declaration.folder
        check_files(self.declaration, self.cohort, template, here)
        expected = self._expected()
        nodes = "" if ray is None else "cuda" if ray.gpus else "cpu"
        plan = self.folder.plan(self.setup.plan(template, expected, nodes=nodes), self.cohort.fingerprint)
        if not ray and str(template.vector.device) != plan.device:  # resumed on another machine
            template = self.setup.template(plan.device)
        plan = self._call_crew(plan, expected)
        engine, local = self.setup.start(replace(plan, device="cpu") if ray else plan)
        self.preparing = preparing = Folds(self.declaration, self.cohort, engine, local, tell=self.display.note)
        folds = preparing.count()
        check_folds(self.declaration, folds, self.attack, template)
        tested = {number: folds[number] for number in self.declaration.fold_numbers}
        self.search.check(tested)
        harmonised = preparing.describe()
        self.folder.begin(plan, self.cohort.fingerprint)  # not before study and data are known to fit
        self.folder.note({"predictions": predictions_at(self.declaration, engine)})
        self.folder.note({"plugins_used": used_plugins(self.declaration)})
        self.folder.note({"target": self.declaration.target, "described": described(self.declaration.study_methods)})
        if self.declaration.initial_weights is not None:
            content = self.declaration.initial_weights.read_bytes()
            self.folder.note({"weights_sha256": hashlib.sha256(content).hexdigest()})
        jobs = trainings(self.declaration, self.search, self.attack, folds)
        self.without_noise = without_noise(self.declaration, jobs, folds)
        self.folder.list_trainings(jobs)
        if self.sites.holds_all:
            self.tracking = Tracking.of(self.study, self.folder.path)
            self.tracking.start()
        self.display.planned(plan, len(jobs))
        self.method_notes = [
            *left_out(),
            *hidden_labels(self.declaration, list(tested.values())),
            *no_labels(self.declaration, list(tested.values())),
            *full_precision(self.declaration, plan.device),
            *idle_parts(self.declaration, template.layout),
            *ungrouped(self.declaration, list(tested.values())),
            *frozen_from_scratch(self.declaration),
            *unscaled(self.declaration),
            *without_training(self.declaration, list(tested.values()), template.layout, self.cohort.classes),
            *spared(self.declaration, self.attack, len(self.cohort.sites), template.layout),
            *few_events(self.declaration, list(folds.values())),
            *in_sums(self.declaration),
            *rows_as_patients(self.declaration, list(folds.values())),
            *rough_distances(self.declaration, self.cohort.notes),
            *bare(self.declaration, jobs),
            *unchecked_files(self.declaration, self.cohort, here),
        ]
        self.split_notes = preparing.notes
        runner = JobRunner(
            self.declaration, engine, local, template, self.setup.initial, self.cohort.classes, self.attack,
            self.setup.public(preparing.public), self.setup.networks,
        )  # fmt: skip
        bench = Workbench(runner, preparing, self.search, self.folder, folds)
        if not self.sites.holds_all:
            bench.try_out(jobs)
        self._train(bench, [job for job in jobs if not job.final], plan)
        self.of_trials = _of_trials(runner, jobs, folds)
        if len(harmonised):
            self.folder.write("harmonisation.csv", harmonised)
        searched = self.search.table()
        if len(searched):
            self.folder.write("search.csv", searched)
            self.folder.note({"search_seconds": self.search.seconds()})
        told = preparing.sites.do(lambda: self._write_found(jobs, tested, sites))
        if self.declaration.final_model is not None:
            self._write_course(jobs, folds)
            self._make_model(self.declaration.final_model, bench, jobs[-1], len(jobs) - 1, told)
        self.tracking_notes = self.tracking.settle()
        self._write_course(jobs, folds)
        for note in self.untested:
            self.display.note(note)

    def _make_model(self, asked: FinalModel, bench: Workbench, job: Job, place: int, told: Told | None) -> None:
        """Train the model that the study ends with, and write it beside the results, unless that is done."""
        done = self.folder.is_done(job)
        self.display.job(place, job.title, done)
        if done:
            return
        method = job.methods[0]
        chosen = choose(self.declaration, method, told, asked.rounds, calibrate=False)
        if asked.calibrate:
            try:
                chosen = choose(self.declaration, method, told, asked.rounds, calibrate=True)
            except ModelError as error:  # nobody would want to lose a study for it
                self.method_notes.append(Note("N907", f"The final model is not calibrated. {error.message}"))
        job = replace(job, methods=(with_rounds(chosen.method, chosen.rounds),))
        maker = Maker(self.study, self.agreement, self.cohort, bench.runner, bench.preparing, self.folder)
        out = self.folder.path / MODEL_FOLDER
        try:
            outcome = maker.make(
                out, job, bench.folds[job.fold], chosen, site_models=asked.site_models, report=self.display.round
            )
        except PolyclinicError:
            _report(self.study, self.folder.path)  # of what the folds found, which is done
            raise
        if isinstance(self.sites, LocalEngine):
            collect_parts(self.folder.site_folder(), out)
        self.folder.store(job, outcome)

    def _train(self, bench: Workbench, jobs: list[Job], plan: EnginePlan) -> None:
        """Run all jobs that are not done."""
        if self.crew is not None and isinstance(self.sites, LocalEngine):
            names = {self.folder.job_name(job): number for number, job in enumerate(jobs)}
            agenda = Agenda(
                [{names[self.folder.job_name(trial)] for trial in self.search.needs(job)} for job in jobs],
                [bench.preparing.stand(job) for job in jobs],
                [number for number, job in enumerate(jobs) if self.folder.is_done(job)],
            )
            cases = {name: site.data for name, site in self.sites.members.items()}
            self.crew.run(briefing(self.folder, plan, self.cohort, bench.folds), cases, jobs, agenda, self.display)
            self.crew.close()
            return
        for number, job in enumerate(jobs):
            done = self.folder.is_done(job)
            self.display.job(number, job.title, done)
            if not done:
                bench.run(job, self.display.round)

    def _expected(self) -> list[Job]:
        """All jobs there would be if all sites could be trained on and tested; known before any is split."""
        everywhere = dict.fromkeys(self.cohort.sites, 1)
        numbers = [*self.declaration.fold_numbers, self.declaration.final_fold]
        folds = {n: Fold(n, everywhere, everywhere, everywhere, {}) for n in numbers}
        return trainings(self.declaration, self._search(), self.attack, folds)

    def _call_crew(self, plan: EnginePlan, expected: list[Job]) -> EnginePlan:
        """Start as many workers as are wanted, and have something to do; the plan says how many."""
        ray = self.declaration.engine.ray
        left = sum(not self.folder.is_done(job) for job in expected if not (ray and job.final))  # that one runs here
        if ray is not None:
            most = left if self.wanted is None else min(self.wanted, left)
            cluster = Cluster(ray, plan.threads, most, self.folder) if most else None
            self.crew = cluster
            return replace(plan, jobs=1 if cluster is None else cluster.size)
        wanted = min(plan.jobs if self.wanted is None else self.wanted, left)
        if plan.mode == "processes" and wanted > 1:
            self.display.note(f"{BOTH} One goes after another.")
        if plan.mode == "processes" or wanted < 2:
            return replace(plan, jobs=1)
        self.crew = Crew(wanted, self.folder)
        return replace(plan, jobs=wanted)

    def _write_found(self, every: list[Job], folds: dict[int, Fold], sites: pd.DataFrame) -> Told | None:
        """The tables of what the folds found; returns what of it a final model is made by, None without folds."""
        declaration, jobs = self.declaration, [job for job in every if job.trial is None and not job.final]
        self.display.step("tables and statistics")
        tested = sites["site"].map(lambda site: any(fold.test[site] for fold in folds.values()))
        sites = sites.assign(scored=sites["scored"] & tested)
        self.folder.write("sites.csv", sites)
        named = self.cohort.classes if declaration.target in ("labels", "times", "findings") else []
        self.folder.write(
            "flow.csv", flow_table(self.cohort.facts | self.cohort.left_out, folds, named, self.cohort.public)
        )
        if not jobs:
            return None
        found = self._found(jobs)
        scored = dict(zip(sites["site"], sites["scored"], strict=True))
        summary, unseen = write_findings(self.folder, declaration, self.cohort, found, folds, scored)
        self.found_notes = found.notes()
        for name, table in found.tables.items():
            self.folder.write(name, table)
        self.folder.write("summary.csv", summary)
        if len(unseen):
            self.folder.write("unseen.csv", unseen)
        attention = self.folder.gather(jobs, "attention.csv")
        if len(attention):
            self.folder.write("attention.csv", self._ordered(attention))
        backdoor = self.folder.gather(jobs, "backdoor.csv")
        if len(backdoor):
            self.folder.write("backdoor.csv", self._ordered(backdoor))
        self._write_made(jobs)
        self._write_overlays(jobs)
        self.folder.write("results.csv", found.results)
        if declaration.target == "masks" and all(facts.in_millimetres for facts in self.cohort.facts.values()):
            self.folder.note({"distances": "mm"})
        nothing = pd.DataFrame()
        predictions, thresholds = (found.tables.get(f"{name}.csv", nothing) for name in ("predictions", "thresholds"))
        return Told(
            self.folder.gather(jobs, "rounds.csv"), summary, predictions, thresholds, self.search.table(),
            "The folds of this study", {"data_sha256": self.cohort.fingerprint},
        )  # fmt: skip

    def _write_course(self, every: list[Job], folds: dict[int, Fold]) -> None:
        """The tables of how the trainings went that are done, what they exchanged and cost; and the notes."""
        declaration = self.declaration
        jobs = [job for job in every if job.trial is None and self.folder.is_done(job)]
        numbers = Numbers()
        rounds = self.folder.gather(sorted(jobs, key=self._place), "rounds.csv", numbers.put)
        if len(rounds):
            payloads = numbers.table()
            sent = {str(method): mine.unique() for method, mine in rounds.groupby("method")[PAYLOADS]}
            reveals = {method.label: self._reveals(method) for method in declaration.study_methods}
            self.folder.write("rounds.csv", rounds)
            self.folder.write("payloads.csv", payloads)
            self.folder.write("exchanged.csv", exchanged_table(sent, payloads, reveals))
        privacy = self.folder.gather(jobs, "privacy.csv")
        if len(privacy):
            simulated = self.sites.members if isinstance(self.sites, LocalEngine) else {}
            spending = {name: site.spending.by_training() for name, site in simulated.items()}
            order = [self.folder.job_name(job) for job in every]
            costs = of_the_study(self._ordered(privacy), spending, order, self.without_noise, self.of_trials)
            self.folder.write("privacy.csv", costs)
        paths = [self.folder.jobs / self.folder.job_name(job) / "notes.json" for job in jobs]
        told = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        notes = [
            *self.cohort.notes,
            *self.method_notes,
            *(diverged(declaration, rounds, list(folds.values())) if len(rounds) else ()),
            *(kept_back(declaration, rounds) if len(rounds) else ()),
            *uncalibrated(declaration),
            *not_learned(declaration, list(folds.values())),
            *self.split_notes,
            *(note for engine in self.setup.engines for note in engine.notes),
            *(Note.from_json(one) for of_job in told for one in of_job),
            *self.found_notes,
            *(self.crew.notes if isinstance(self.crew, Cluster) else []),
            *death_notes(self.folder.record.get("worker_deaths", 0)),
            *self.tracking_notes,
        ]
        self.untested = [note for note in dict.fromkeys(notes) if note.number == "N810"]
        written = json.dumps([note.to_json() for note in dict.fromkeys(notes)], indent=2) + "\n"
        write_atomic(self.folder.path / "notes.json", written)

    def _place(self, job: Job) -> tuple[int, int, int, int]:
        """Where a job stands in tables."""
        labels = [method.label for method in self.declaration.study_methods]
        return list(RUNS).index(job.run), labels.index(job.methods[0].label), job.seed, job.fold

    def _ordered(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table in the order of the jobs."""
        runs = {run: place for place, run in enumerate(RUNS)}
        methods = {method.label: place for place, method in enumerate(self.declaration.study_methods)}
        keyed = frame.assign(_run=frame[RUN].map(runs), _method=frame["method"].map(methods))
        keyed = keyed.sort_values(["_run", "_method", "seed", "fold"], kind="stable")
        return keyed.drop(columns=["_run", "_method"])

    def _reveals(self, method: StudyMethod) -> dict[str, str]:
        """``part/name`` of what a method exchanges besides the model -> what it could reveal."""
        methods = [one.method.method for one in self.declaration.candidates(method)]
        parts = [entry for one in methods for entry in one.parts]
        choices = [one for one in methods if isinstance(one.share, SharedModules)]
        shared = dict.fromkeys(shared_words(one, self._layout) for one in choices)
        return ({MODEL: "; or ".join(shared)} if shared else {}) | {
            f"{name}/{key}": words
            for name, options in parts
            for key, words in build_part(name, options).reveals.items()
        }

    def _found(self, jobs: list[Job]) -> Found:
        """What all jobs found."""
        engine, classes = self.setup.engines[0], self.cohort.classes
        if predictions_at(self.declaration, engine) == "sites":
            tested = self.folder.gather_tested(jobs)
            tested.sort([method.label for method in self.declaration.study_methods])
            return found_at_sites(tested, engine, self.declaration, classes)
        return found_in_rows(self._ordered(self.folder.gather(jobs, "predictions.csv")), self.declaration, classes)

    def _write_made(self, jobs: list[Job]) -> None:
        """What is told of cases that methods made; pictures of one training of a method, if none of it is suspected."""
        from safetensors import safe_open
        from safetensors.torch import save

        table = self.folder.gather(jobs, "memorisation.csv")
        if not len(table):
            return
        self.folder.write("memorisation.csv", self._ordered(table))
        shown, tensors = shown_methods(table), dict[str, torch.Tensor]()
        for path in (self.folder.jobs / self.folder.job_name(job) / MADE for job in jobs):
            if path.is_file():
                with safe_open(path, "pt") as file:
                    names = [name for name in file.keys() if name in shown]  # noqa: SIM118 - not a dict
                    tensors = {name: file.get_tensor(name) for name in names} | tensors
        if tensors:
            write_atomic(self.folder.path / MADE, save(tensors))

    def _write_overlays(self, jobs: list[Job]) -> None:
        from safetensors import safe_open
        from safetensors.torch import save

        tensors, scores = dict[str, torch.Tensor](), dict[str, float]()
        for path in (self.folder.jobs / self.folder.job_name(job) / "overlays.safetensors" for job in jobs):
            if not path.is_file():
                continue
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                scores |= json.loads(file.metadata()["scores"])
        if tensors:
            write_atomic(self.folder.path / "overlays.safetensors", save(tensors, {"scores": json.dumps(scores)}))


def _of_trials(runner: JobRunner, jobs: list[Job], folds: dict[int, Fold]) -> list[Event]:
    """What noise of the server costs in the trials of a search, in all of their rounds."""
    found = list[Event]()
    for job in jobs:
        if job.trial is not None and "a site" in protected(job.methods[0].method):
            plan = runner.plan(job, folds[job.fold], folds[job.fold].trains(job.methods[0].method))
            found += [event.times(event.count * plan.affordable) for event in plan.central]
    return found
