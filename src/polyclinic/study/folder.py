"""The results folder of a study while it is being written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from polyclinic.engine.planner import EnginePlan
from polyclinic.errors import ResultsError
from polyclinic.files import DRAFT, write_atomic
from polyclinic.options import PYTHON
from polyclinic.origins import ERROR_LOG
from polyclinic.running.plan import network_model
from polyclinic.running.progress import Checkpoint
from polyclinic.site.diary import DIARY
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.columns import MADE
from polyclinic.study.compatibility import models_per_network
from polyclinic.study.ended import is_finished
from polyclinic.study.job import Job, Outcome, slug
from polyclinic.study.kinds import RUN, check_runs
from polyclinic.study.lock import LOCK
from polyclinic.study.provenance import check_plugins, machine, now
from polyclinic.study.table_files import GROWING, read_table, write_table
from polyclinic.study.tested import Tested
from polyclinic.study.watching.progress import TRAININGS
from polyclinic.study.writing import study_text


class Folder:
    """The results folder of a study.

    Args:
        path: where it is or will be.
        study: whose it is.

    Attributes:
        allowed: is asked with the name of a job before anything of it is written; it raises where another process goes
            on with that job.
    """

    def __init__(self, path: Path, study: CheckedStudy) -> None:
        self.path, self.study = path, study
        self.jobs = path / "jobs"
        self.record: dict[str, Any] = {}
        self.allowed: Callable[[str], None] = lambda name: None

    def check(self, resume: bool) -> None:
        """Whether the study can be written here; writes nothing.

        Raises:
            ResultsError: P501 if the folder holds something else.
        """
        if not self.path.exists() or (self.path.is_dir() and self._never_begun()):
            return
        if not self.path.is_dir():
            raise ResultsError("P501", f"{self.path} is a file, not a folder.", "Choose another folder with --out.")
        try:
            self.record = json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))
            content = yaml.safe_load((self.path / "study.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            raise ResultsError("P501", f"The folder {self.path} is not empty and holds no study.",
                               "Choose another folder with --out.") from None  # fmt: skip
        if not resume:
            state = self.record.get("status", "unfinished")
            raise ResultsError("P501", f"The folder {self.path} already holds a study ({state}).",
                               "Go on with it with --resume, or choose another folder with --out.")  # fmt: skip
        if content != self._content():
            raise ResultsError("P501", f"The study in {self.path} is not this one: {self._difference(content)}.",
                               "Resume with the study file that it was started with.")  # fmt: skip
        check_plugins(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether the study was run to its end before, so that nothing is left to resume."""
        return is_finished(self.path, self.record)

    def _never_begun(self) -> bool:
        """Whether the folder is empty, or this study was killed while it wrote its first files, or while sites were
        prepared: they write down which sums they were part of."""
        names = {path.name for path in self.path.iterdir()}
        if {name for name in names if not name.endswith(DRAFT)} - {"study.yaml", "sites", LOCK, ERROR_LOG}:
            return False
        if {path.name for path in self.site_folder().glob("*/*")} - {DIARY, f".{DIARY}.lock"}:
            return False
        text = (self.path / "study.yaml").read_text(encoding="utf-8") if "study.yaml" in names else self._text()
        return text == self._text()

    def _text(self) -> str:
        return study_text(self.study.declaration.filled())

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(self.study.declaration.filled()))
        return content

    def _difference(self, content: object) -> str:
        mine = self._content()
        theirs = content if isinstance(content, dict) else {}
        keys = {**mine, **theirs}
        found = "it differs in " + ", ".join(f"`{key}`" for key in keys if mine.get(key) != theirs.get(key))
        if PYTHON in str(mine):
            found += " (a function is the same if its source and plain values are; without these it is a new one)"
        return found

    def plan(self, plan: EnginePlan, fingerprint: str) -> EnginePlan:
        """The plan that a resumed study was started with, or ``plan`` for a new one; writes nothing.

        Raises:
            ResultsError: P501 if the data changed since the study was started.
        """
        if not self.record:
            return plan
        if self.record.get("data_sha256") != fingerprint:
            raise ResultsError("P501", f"The data is not what it was when the study in {self.path} was started.",
                               "Start anew in another folder with --out.")  # fmt: skip
        return EnginePlan(**self.record["plan"])

    def begin(self, plan: EnginePlan, fingerprint: str) -> None:
        """Write what the study is, or that it goes on."""
        if not self.record:
            write_atomic(self.path / "study.yaml", self._text())
            self.record = {
                "status": "running", "study_file": self.study.name, "started": now(), "data_sha256": fingerprint,
                "seeds": self.study.declaration.all_seeds, "plan": asdict(plan), **machine(),
            }  # fmt: skip
            planned = self.study.plan
            self.note({} if planned is None else {"volumes": planned.as_json()})
        else:
            self.sweep()  # after a run that was killed
            self.note({"status": "running", "reason": "", "resumed": now()})

    def sweep(self, process: int | None = None) -> None:
        """Take away what a process that was killed had not written to its end; by default all, where none writes."""
        for draft in self.path.rglob(f".*{DRAFT}" if process is None else f".{process:x}-*{DRAFT}"):
            draft.unlink(missing_ok=True)

    def note(self, entries: dict[str, Any]) -> None:
        """Add to the provenance, if the study has begun."""
        if self.record:
            self.record |= entries
            write_atomic(self.path / "provenance.json", json.dumps(self.record, indent=2) + "\n")

    def finish(self, status: dict[str, Any]) -> None:
        """Everything is written: the folders of the single jobs can go."""
        self.note({**status, "finished": now()})
        shutil.rmtree(self.jobs, ignore_errors=True)
        for checkpoint in (self.path / "sites").glob("*/*.safetensors"):
            checkpoint.unlink()

    def site_folder(self) -> Path:
        """Where sites keep what is theirs."""
        return self.path / "sites"

    def list_trainings(self, jobs: Sequence[Job]) -> None:
        """Write down which trainings the study has, for those who watch it; this goes when the study is finished."""
        search = self.study.declaration.search
        places = [] if search is None else [search.parameters, *search.methods.values()]
        chosen = any("training.rounds" in names for names in places)  # known when the search has ended
        listed = [
            {"name": self.job_name(job), "title": job.title, "seed": job.seed, "fold": job.fold,
             "rounds": None if chosen and job.trial is None else job.methods[0].training.rounds,
             "method": job.methods[0].label, RUN: job.run, "without": job.without, "trial": job.trial,
             "pooled": job.methods[0].method.scope == "pool"}
            for job in jobs
        ]  # fmt: skip
        write_atomic(self.jobs / TRAININGS, json.dumps(listed))

    # One job ------------------------------------------------------------------------------------------------------

    def job_name(self, job: Job) -> str:
        """Folder name of a job."""
        return f"{slug(job.methods[0].label)}-seed{job.seed}-fold{job.fold}{job.suffix}"

    def is_done(self, job: Job) -> bool:
        """Whether the job's results are complete."""
        return (self.jobs / self.job_name(job)).is_dir()

    def checkpoint(self, job: Job) -> Checkpoint:
        """Where the job keeps its progress."""
        name = self.job_name(job)
        return Checkpoint(self.jobs / f"{name}.part", lambda: self.allowed(name))

    def store(self, job: Job, outcome: Outcome) -> None:
        """Write a job's results; they count when the folder has its final name."""
        from safetensors.torch import save

        name = self.job_name(job)
        self.allowed(name)
        draft = self.jobs / f"{name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        tables = [frame for frame in outcome.predictions if len(frame)]
        write_table(draft / "predictions.csv", pd.concat(tables) if tables else pd.DataFrame())
        if outcome.attention:
            write_table(draft / "attention.csv", pd.concat(outcome.attention))
        if outcome.tested.sites:
            write_atomic(draft / "tested.json", json.dumps(outcome.tested.to_json()))
        write_table(draft / "rounds.csv", pd.DataFrame(outcome.rounds))
        if outcome.privacy:
            write_table(draft / "privacy.csv", pd.DataFrame(outcome.privacy))
        if outcome.backdoor:
            write_table(draft / "backdoor.csv", pd.DataFrame(outcome.backdoor))
        if outcome.memorisation:
            write_table(draft / "memorisation.csv", pd.DataFrame(outcome.memorisation))
        if outcome.pictures:
            write_atomic(draft / MADE, save(outcome.pictures))
        write_atomic(draft / "notes.json", json.dumps([note.to_json() for note in outcome.notes]))
        if outcome.overlays:
            scores = {"scores": json.dumps(outcome.overlay_scores)}
            write_atomic(draft / "overlays.safetensors", save(outcome.overlays, scores))
        for stem, tensors in outcome.models.items():
            declaration = self.study.declaration
            about: dict[str, Any] = {"model": declaration.model_part, "method": job.methods[0].label, RUN: job.run}
            if declaration.own_networks and any("/" in name for name in tensors):
                about["networks"] = declaration.own_networks
                if models_per_network(job.methods[0].method):
                    found = {name.split("/")[0] for name in tensors}
                    named = ((network_model(number), one) for number, one in enumerate(declaration.all_networks))
                    about["networks"] = {name: one for name, one in named if name in found}
            # One entry only: safetensors writes several in an order that changes from run to run.
            content = save(tensors, {"about": json.dumps(about)})
            write_atomic(self.path / "models" / f"{stem}.safetensors", content)
        draft.replace(self.jobs / name)
        shutil.rmtree(self.jobs / f"{name}.part", ignore_errors=True)

    def store_trial(self, job: Job, found: dict[str, Any]) -> None:
        """Write what a trial of a search found, in the same way."""
        name = self.job_name(job)
        self.allowed(name)
        draft = self.jobs / f"{name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        write_atomic(draft / "trial.json", json.dumps(found))
        draft.replace(self.jobs / name)
        shutil.rmtree(self.jobs / f"{name}.part", ignore_errors=True)
        for checkpoint in self.site_folder().glob(f"*/{name}.round*.safetensors"):
            checkpoint.unlink()  # a search has many trials, and no one needs their models

    def trial(self, job: Job) -> dict[str, Any]:
        """What a finished trial found."""
        found: dict[str, Any] = json.loads((self.jobs / self.job_name(job) / "trial.json").read_text(encoding="utf-8"))
        return found

    def gather_tested(self, jobs: list[Job]) -> Tested:
        """What sites that keep their predictions said in all jobs, in the order of the jobs."""
        found = Tested()
        for path in (self.jobs / self.job_name(job) / "tested.json" for job in jobs):
            if path.is_file():
                one = Tested.from_json(json.loads(path.read_text(encoding="utf-8")))
                found.sites += one.sites
                found.together += one.together
                found.thresholds += one.thresholds
        return found

    def gather(
        self, jobs: Sequence[Job], name: str, change: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    ) -> pd.DataFrame:  # fmt: skip
        """One table of all jobs, in the order of the jobs; each job's own is changed first, if it is to be changed.

        Raises:
            ResultsError: P501, an older version wrote one of them, which did not tell kinds of run in a column.
        """
        tables = list[pd.DataFrame]()
        for path in (self.jobs / self.job_name(job) / name for job in jobs):
            if not path.is_file() or path.stat().st_size <= 1:
                continue
            table = read_table(path)
            check_runs(path, list(table.columns))
            tables.append(table if change is None else change(table))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    # The whole study ----------------------------------------------------------------------------------------------

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table of the whole study, in the form that the study asks for."""
        parquet = self.study.declaration.report.tables == "parquet" and name in GROWING
        write_table(self.path / name, frame, parquet=parquet)
