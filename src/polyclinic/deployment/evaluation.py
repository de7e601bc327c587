"""Validating a model at sites: the whole report of a study, for a model that exists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import yaml

from polyclinic.data.part_counts import part_classes, part_groups, part_patients
from polyclinic.data.spec import Scalar
from polyclinic.data.splits import Parts
from polyclinic.data.tables.codes import plain_number, scalar_text
from polyclinic.deployment.prediction import Predictor
from polyclinic.engine import LocalEngine
from polyclinic.engine.planner import EnginePlan
from polyclinic.errors import ModelError
from polyclinic.files import write_atomic
from polyclinic.notes import Note
from polyclinic.seeds import generator
from polyclinic.site import Site, evaluation
from polyclinic.statistics.calibration import recalibrated, recalibration
from polyclinic.statistics.rows import prediction_rows
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.display import Display
from polyclinic.study.ended import FINISHED
from polyclinic.study.final_model.description import Calibration, Description
from polyclinic.study.final_model.folder import Model
from polyclinic.study.findings import write_findings
from polyclinic.study.flow import flow_table
from polyclinic.study.folder import Folder
from polyclinic.study.found import found_in_rows
from polyclinic.study.job import Fold, SiteParts
from polyclinic.study.kinds import PLAIN, RUN
from polyclinic.study.lock import locked
from polyclinic.study.notes import rough_distances
from polyclinic.study.opening import ask_agree, ask_open, local_engine
from polyclinic.study.reading import read_yaml
from polyclinic.study.report.page import write_report
from polyclinic.study.site_table import site_table
from polyclinic.tasks.base import Asked

#: File with what `--recalibrate` found.
RECALIBRATION = "recalibration.yaml"
#: Parts of the patients for recalibrated probabilities that no case had a part in.
_FOLDS = 5
#: Entries of ``data`` that say where cases are and what is true of them; all others are those of the model.
_OF_THE_STUDY = (
    "table", "tables", "columns", "missing", "where", "site", "subject", "subject_pattern", "bag", "label",
    "positive",
    "time", "event", "time_unit", "image", "mask", "box", "structures", "mask_classes",
    "root", "cache", "max_unreadable", "bits",
)  # fmt: skip
#: Of these those that are the model's, where the study does not say them.
_OTHERWISE = ("missing", "bits", "bag")
Recalibrate = Literal["all", "site"]


def evaluate_model(
    model: Model, study: Path, out: Path, *, parts: Path | None = None, recalibrate: Recalibrate | None = None,
    display: Display | None = None,
) -> Path:  # fmt: skip
    """Predict all labelled cases of a study's sites with a model, and write results with their report.

    Args:
        model: the model.
        study: a study file: where the cases are and what is true of them, and how they are evaluated. What it says of
            models and training plays no part.
        out: folder for the results; it is made.
        parts: what sites kept of the model, see `Predictor`.
        recalibrate: fits a calibration to the cases: one for all, or one for each site. Its results are those of cases
            of which it knew nothing: each fifth of the patients is recalibrated by the others.
        display: shows progress.

    Returns:
        The report.

    Raises:
        StudyError, DataError: as when a study is run.
        ModelError: P702, the cases do not fit the model.
    """
    description, display = model.description, display or Display()
    if recalibrate is not None and (description.target != "labels" or len(description.classes) != 2):
        raise ModelError("P702", "Only probabilities of two classes are recalibrated.", "Leave out --recalibrate.")
    checked = _study_of(description, Path(study), recalibrated=recalibrate is not None)
    with locked(Path(out)):
        folder = Folder(Path(out), checked)
        folder.check(False)
        return _Evaluation(model, checked, folder, Predictor(model, parts), display).run(recalibrate)


def _study_of(description: Description, path: Path, *, recalibrated: bool) -> CheckedStudy:
    """The study with the model in the place of its methods, and its cases prepared as the model says.

    Raises:
        StudyError: what is wrong with the file.
        ModelError: P702, it is about something else than the model.
    """
    content, _ = read_yaml(path)
    if content.get("task", "classification") != description.task:
        raise ModelError("P702", f"The study is about {content.get('task', 'classification')}, and the model about "
                         f"{description.task}.", "Give a study of the same task.")  # fmt: skip
    given = content.get("data")
    if not isinstance(given, dict):
        raise ModelError("P702", f"{path.name} does not say where the cases are.", "Give it a part `data`.")
    mine = description.data.model_dump(mode="json")
    data = {name: value for name, value in mine.items() if name not in _OF_THE_STUDY and value is not None}
    data |= {name: mine[name] for name in _OTHERWISE if mine.get(name) is not None}
    data |= {name: value for name, value in given.items() if name in _OF_THE_STUDY}
    _check_time_unit(description, given)
    _check_lines(description, given)
    if description.is_table:
        data |= {"features": list(description.agreement.features), "exclude": []}
    data["categories"] = {name: list(values) for name, values in description.agreement.values.items()}
    if description.target == "labels" and data.get("positive") is None:
        if mine.get("positive") is not None:
            data["positive"] = mine["positive"]
        else:
            data["classes"] = list(description.classes)
    if description.target == "masks":
        data["mask_classes"] = _structures(description, given.get("mask_classes"), mine["mask_classes"])
    preparation = description.agreement.prepared(description.data)
    for name in ("preprocessing", "patch"):
        value = getattr(preparation, name)
        if value is not None:
            data[name] = value.model_dump(mode="json")
    wanted = dict(content.get("evaluation") or {})
    for name in ("folds", "split", "holdout", "unseen_sites", "predictions", "threshold", "validation"):
        wanted.pop(name, None)
    if description.times:
        _check_times(description, wanted.get("times"))
        wanted["times"] = list(description.times)
    labels = [description.method, *([f"{description.method}, recalibrated"] if recalibrated else [])]
    name, options = description.network
    made: dict[str, Any] = {
        "study": content.get("study", f"{description.study}: evaluation"), "task": description.task,
        "data": {name: value for name, value in data.items() if value is not None}, "model": {name: options},
        "evaluation": wanted, "methods": [{"fedavg": {"label": label}} for label in labels],
        "training": {"loss": {description.loss: description.loss_options}, "rounds": 1},
        **{key: content[key] for key in ("report", "engine") if key in content},
    }  # fmt: skip
    return replace(CheckedStudy.of(made, path.resolve().parent), name=path.name)


def _check_time_unit(description: Description, given: dict[str, Any]) -> None:
    """Times are compared with those of the model.

    Raises:
        ModelError: P702, they are in another unit.
    """
    unit, mine = given.get("time_unit"), description.data.time_unit
    if unit is not None and mine is not None and unit != mine:
        raise ModelError("P702", f"The times of the study are in {unit}, and those of the model in {mine}.",
                         f"Give a column `time` in {mine}.")  # fmt: skip


def _check_lines(description: Description, given: dict[str, Any]) -> None:
    """A model is given the lines of k-space that it was trained on.

    Raises:
        ModelError: P702, the study asks for others.
    """
    asked, mine = given.get("undersampling"), description.data.model_dump()["undersampling"] or {}
    if asked is None or (isinstance(asked, dict) and all(mine.get(name) == value for name, value in asked.items())):
        return
    raise ModelError("P702", "The study asks for other lines of k-space than the model was trained on.",
                     "Leave out `undersampling`.")  # fmt: skip


def _check_times(description: Description, times: object) -> None:
    """A model tells survival at its own times only.

    Raises:
        ModelError: P702, the study asks for others.
    """
    listed = times if isinstance(times, list) else [] if times is None else [times]
    others = [one for one in listed if one not in description.times]
    if others:
        text = f"The study asks for survival at {', '.join(map(str, others[:5]))}, and the model tells it at "
        raise ModelError("P702", f"{text}{', '.join(f'{one:g}' for one in description.times)}.",
                         "Leave out `times`.")  # fmt: skip


def _structures(description: Description, given: object, mine: object) -> object:
    """What the values of masks mean, with the structures in the order of the model.

    Raises:
        ModelError: P702, the structures have other names, or a list of names has another order.
    """
    if given is None or not isinstance(given, dict | list):
        return mine if given is None else given
    names, wanted = [str(one) for one in given], description.classes[1:]
    if set(names) != set(wanted) or (isinstance(given, list) and names != wanted):
        raise ModelError("P702", f"The masks of the study have the structures {', '.join(names[:10])}, and the model "
                         f"has {', '.join(wanted[:10])}.",
                         "Name them as the model does: `mask_classes: {NAME: VALUE, ...}`.")  # fmt: skip
    return {name: given[name] for name in wanted} if isinstance(given, dict) else given


class _Evaluation:
    """An evaluation of one model."""

    def __init__(
        self, model: Model, study: CheckedStudy, folder: Folder, predictor: Predictor, display: Display
    ) -> None:
        self.model, self.study, self.folder, self.predictor = model, study, folder, predictor
        self.display, self.notes = display, list[Note]()

    def run(self, recalibrate: Recalibrate | None) -> Path:
        """Open the data, predict, and write everything."""
        engine = local_engine(self.study, self.display.images)
        answered = ask_open(self.study, engine)
        cohort = ask_agree(answered, engine)
        self._check(cohort.features, cohort.classes)
        sites = site_table(self.study, cohort, None)
        self.display.opened(sites, cohort.notes)
        plan = EnginePlan("sequential", str(self.model.network.vector.device), torch.get_num_threads(), 0, 1,
                          "a model is evaluated, nothing is trained")  # fmt: skip
        self.folder.begin(plan, cohort.fingerprint)
        self.folder.note({"model": self.model.description.number, "predictions": "coordinator"})
        engine.settle(device="cpu", stacked=False, folder=self.folder.site_folder())
        self._compare(engine)
        rows = pd.concat([self._rows(site) for site in engine.members.values()], ignore_index=True)
        if recalibrate is not None:
            rows = pd.concat([rows, self._recalibrated(rows, recalibrate)], ignore_index=True)
        declaration, folds = self.study.declaration, {0: _all_tested(engine, len(cohort.classes))}
        found = found_in_rows(rows, declaration, cohort.classes)
        scored = dict(zip(sites["site"], sites["scored"], strict=True))
        self.display.step("tables and statistics")
        summary, _ = write_findings(self.folder, declaration, cohort, found, folds, scored)
        named = cohort.classes if declaration.target in ("labels", "times", "findings") else []
        for name, table in (
            *found.tables.items(), ("sites.csv", sites), ("summary.csv", summary),
            ("flow.csv", flow_table(cohort.facts | cohort.left_out, folds, named)),
        ):  # fmt: skip
            self.folder.write(name, table)
        rough = rough_distances(declaration, cohort.notes)
        notes = list(dict.fromkeys([*cohort.notes, *rough, *self.notes, *found.notes()]))
        write_atomic(
            self.folder.path / "notes.json", json.dumps([note.to_json() for note in notes], indent=2) + "\n"
        )  # fmt: skip
        self.folder.write("results.csv", found.results)
        self.folder.finish({"status": FINISHED})
        return write_report(self.folder.path)

    def _check(self, features: list[str], classes: list[str]) -> None:
        """The study's inputs and classes must be those of the model.

        Raises:
            ModelError: P702 with what differs.
        """
        description = self.model.description
        if features != description.inputs:
            other = next((name for name in [*features, *description.inputs]
                          if (name in features) != (name in description.inputs)), "their order")  # fmt: skip
            raise ModelError("P702", f"The inputs of the study are not those of the model ({other}).",
                             "Give the same columns, with the same values.")  # fmt: skip
        if len(classes) != len(description.classes):
            raise ModelError("P702", f"The study has the classes {', '.join(classes)}, and the model "
                             f"{', '.join(description.classes)}.", "Give cases of the same classes.")  # fmt: skip

    def _compare(self, engine: LocalEngine) -> None:
        """Notes where results may not mean what they seem to."""
        description, data = self.model.description, self.study.declaration.data
        trained = [name for name in engine.members if name in description.sites]
        if trained:
            text = f"took part in training: of cases that were trained on, results are too good ({', '.join(trained)})."
            self.notes.append(Note("N906", f"{len(trained)} of {len(engine.members)} sites {text}"))
        if data.positive is None or description.target != "labels":
            return
        mine = description.data.positive
        mine = description.classes[-1] if mine is None else mine
        if _values(mine) != _values(data.positive):
            text = f"The study calls {_said(data.positive)} positive, and the model {_said(mine)}"
            self.notes.append(Note("N905", f"{text}: make sure that they mean the same."))

    def _rows(self, site: Site) -> pd.DataFrame:
        """Predictions of all labelled cases of a site."""
        data, description = site.data, self.model.description
        at = self.predictor.at_opened(data, self.study.declaration.data.bits)
        self.notes += at.notes
        self.display.note(f"Predicting {len(data)} cases of {site.name}.")
        ready = self.predictor.ready(data, at)
        index = data.known.nonzero().flatten()
        declaration = self.study.declaration
        asked = Asked(
            declaration.metrics,
            description.classes,
            declaration.evaluation.surface_tolerance,
            description.completion,
            declaration.evaluation.space,
        )
        cases = evaluation.tested(ready, at.vectors, index, description.threshold, asked.space)
        sent = self.predictor.task.rows(cases, description.threshold, asked)
        names = [site.pseudonyms[place] for place in index.tolist()]
        groups = {name: [own[place] for place in index.tolist()] for name, own in (data.groups or {}).items()}
        about: dict[str, str | int] = {"method": description.method, RUN: PLAIN, "seed": 0, "fold": 0}
        about["site"] = site.name
        site.write_pseudonyms()
        return prediction_rows(
            self.predictor.task, [one[0] for one in names], [one[1] for one in names], sent, description.threshold,
            about, "federation", groups,
        )  # fmt: skip

    def _recalibrated(self, rows: pd.DataFrame, by: Recalibrate) -> pd.DataFrame:
        """The same rows with probabilities that were recalibrated by other patients; the fits to all are written."""
        sites = [str(one) for one in rows["site"].unique()]
        parts = {"all sites": rows} if by == "all" else {site: rows[rows["site"] == site] for site in sites}
        found, fits = [], dict[str, Any]()
        for name, mine in parts.items():
            label = mine["label"].to_numpy(), mine["score"].to_numpy(np.float64)
            fitted = recalibration(*label)
            if not np.isfinite(fitted).all():
                text = f"{name} can't be recalibrated: too few cases of a class, or classes that are parted by a cut."
                raise ModelError("P702", text, "Leave out --recalibrate, or recalibrate over all sites.")
            fits[name] = Calibration(
                intercept=fitted[0], slope=fitted[1], cases=len(mine), source=f"evaluation at {name}"
            ).model_dump()  # fmt: skip
            found.append(_crossed(mine, name))
        text = yaml.safe_dump({"model": self.model.description.number, "by": by, "fits": fits}, sort_keys=False)
        write_atomic(self.folder.path / RECALIBRATION, text)
        return pd.concat(found).sort_index().assign(method=f"{self.model.description.method}, recalibrated")


def _values(positive: Scalar | list[Scalar]) -> set[str]:
    """Texts of what counts as positive; 1 and 1.0 are the same."""
    texts = [scalar_text(one) for one in (positive if isinstance(positive, list) else [positive])]
    return {plain_number(text) or text for text in texts}


def _said(positive: Scalar | list[Scalar]) -> str:
    return ", ".join(repr(text) for text in sorted(_values(positive)))


def _crossed(mine: pd.DataFrame, name: str) -> pd.DataFrame:
    """Each patient's probabilities recalibrated by those of the other parts of the patients."""
    keys = (mine["site"] + "/" + mine["subject"]).to_numpy()
    patients = sorted(set(keys))
    order = torch.randperm(len(patients), generator=generator("recalibration", name)).tolist()
    part = {patient: place % _FOLDS for patient, place in zip(patients, order, strict=True)}
    held = np.array([part[key] for key in keys])
    labels, scores = mine["label"].to_numpy(), mine["score"].to_numpy(np.float64)
    changed, thresholds = scores.copy(), mine["threshold"].to_numpy(np.float64).copy()
    for number in range(_FOLDS):
        here = held == number
        fitted = recalibration(labels[~here], scores[~here])
        if here.any() and np.isfinite(fitted).all():
            changed[here] = recalibrated(scores[here], *fitted)
            thresholds[here] = recalibrated(thresholds[here], *fitted)
    return mine.assign(score=changed, threshold=thresholds)


def _all_tested(engine: LocalEngine, classes: int) -> Fold:
    """The parts of sites where every case is tested."""
    nothing = torch.empty(0, dtype=torch.int64)
    counted, tested = dict[str, SiteParts](), dict[str, int]()
    for name, site in engine.members.items():
        data = site.data
        parts = Parts(nothing, nothing, data.known.nonzero().flatten())
        tested[name] = len(parts.test)
        counts = part_classes(data, parts, classes)
        counted[name] = SiteParts(part_patients(data, parts), list(counts), part_groups(data, parts))
    none: Mapping[str, int] = dict.fromkeys(tested, 0)
    return Fold(0, dict(none), dict(none), tested, {site: [0] * classes for site in tested}, counted=counted)
