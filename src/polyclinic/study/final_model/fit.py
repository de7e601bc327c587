"""Training a model apart from a study's folds, as ``polyclinic fit`` does."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from polyclinic.errors import ModelError
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.display import Display
from polyclinic.study.final_model.choosing import Chosen, Told, choose
from polyclinic.study.final_model.description import Description
from polyclinic.study.final_model.entry import unusable
from polyclinic.study.final_model.folder import DESCRIPTION, read_description, sites_folder
from polyclinic.study.final_model.making import Maker, check_makeable, collect_parts, with_rounds
from polyclinic.study.final_model.opened import opened
from polyclinic.study.fit.folds import check_delta
from polyclinic.study.folder import Folder
from polyclinic.study.job import Job
from polyclinic.study.lock import locked
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.tracking.entry import check_installed
from polyclinic.study.tracking.outcome import outcome_of_rounds
from polyclinic.study.tracking.track import TRACKING, Tracking

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


def fit_model(
    study: CheckedStudy, out: Path, wanted: Wanted, *, resume: bool = False, display: Display | None = None
) -> Description:  # fmt: skip
    """Train a method of a study once and write the model; all data are on this machine.

    Args:
        study: the study.
        out: folder of the model; what stays at the sites comes into a folder of the same name with ``-sites``.
        wanted: what is asked.
        resume: whether a training that was interrupted goes on.
        display: shows progress.

    Raises:
        ModelError: P703, such a model can't be made; P701, the folder has one already.
        PolyclinicError: as `polyclinic.study.study.Study.run`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        held = "a model" if (out / DESCRIPTION).exists() else "something else"
        raise ModelError("P701", f"{out} already holds {held}.", "Choose another folder with --out.")
    check_makeable(study)
    check_installed(list(study.declaration.trackers))
    method = _method(study, wanted.method)
    if wanted.fold is not None:
        chosen = _as_in_fold(study, method, wanted)
    else:
        told = None if wanted.results is None else Told.read(study.declaration, method, wanted.results)
        chosen = choose(study.declaration, method, told, wanted.rounds, calibrate=wanted.calibrate)
    private = sites_folder(out)
    with locked(private / _TRAINING):
        _fit(study, chosen, wanted, out, display or Display(), resume=resume)
    return read_description(out)


def _fit(
    study: CheckedStudy, chosen: Chosen, wanted: Wanted, out: Path, display: Display, *, resume: bool
) -> None:  # fmt: skip
    """Open the data, train, write the model, and tell trackers of it."""
    training = sites_folder(out) / _TRAINING
    folder = Folder(training, study)
    folder.check(resume)
    validation = study.declaration.evaluation.validation if chosen.rounds is None else 0.0
    with opened(study, folder, display, validation=validation) as found:
        declaration = found.study.declaration
        fold = found.folds.one(declaration.final_fold if wanted.fold is None else wanted.fold)
        check_delta(declaration, {fold.number: fold})
        folder.begin(found.plan, found.cohort.fingerprint)
        seed = declaration.all_seeds[0] if wanted.seed is None else wanted.seed
        job = Job((with_rounds(chosen.method, chosen.rounds),), seed, fold.number, final=wanted.fold is None)
        folder.list_trainings([job])
        display.planned(found.plan, 1)
        display.job(0, job.title, False)
        maker = Maker(found.study, found.agreement, found.cohort, found.runner, found.folds, folder)
        kept = out.with_name(f"{out.name}-{TRACKING}")
        with Tracking.of(found.study, training, kept=kept, what=": model", anew=not resume) as tracking:
            made = maker.make(out, job, fold, chosen, site_models=wanted.site_models, report=display.round)
            collect_parts(folder.site_folder(), out)
            outcome = replace(outcome_of_rounds(made.rounds), files=[out])
            for note in tracking.finish(lambda: outcome):
                display.note(note)
    shutil.rmtree(training, ignore_errors=True)


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
    networks = bool(study.declaration.own_networks)
    wrong = unusable(found[0].method, networks=networks)
    if wrong:
        hint = "Choose `mix`." if networks else "Choose another federated method, `mix` or `ensemble`."
        raise ModelError("P703", f"{found[0].label} {wrong}.", hint)
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
