"""Networks that parts of methods read from files: whether they are there, and were trained for what the study asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.preparation import SharedStep, build_steps
from polyclinic.data.quality.words import counted, some
from polyclinic.errors import StudyError
from polyclinic.notes import Note
from polyclinic.parts import build_part
from polyclinic.state import FlatModule
from polyclinic.study.declaration import Declaration
from polyclinic.study.final_model.description import Description
from polyclinic.study.final_model.folder import DESCRIPTION, WEIGHTS, read_description, vouched

_HINT = (
    "Use a network that was trained for the same classes and inputs in the same order, prepared alike: let its study "
    "list `classes` and `features` as they are here."
)


def check_files(declaration: Declaration, cohort: Cohort, network: FlatModule, folder: Path | None) -> None:
    """Whether the files that parts of methods name are there, fit the network, and mean what the study's mean.

    Raises:
        StudyError: P102, there is no such file, or it does not fit; P212, it belongs to a model that predicts
            something else, or from something else.
        ModelError: P701, it belongs to a model that is damaged.
    """
    folder = folder or Path()
    for method in declaration.configurations:
        for name, options in method.method.parts:
            part = build_part(name, options)
            if not part.files:
                continue
            part.check_files(network, folder)
            for file in part.files:
                record = _record(folder / file)
                apart = [] if record is None else _apart(record, declaration, cohort)
                if apart:
                    text = f"{method.label} learns from the network in {file}, which is no network for this study: "
                    raise StudyError("P212", f"{text}{'; '.join(apart)}.", _HINT)


def unchecked_files(declaration: Declaration, cohort: Cohort, folder: Path | None) -> list[Note]:
    """On what was not compared of networks that parts read from files."""
    notes = []
    for study in declaration.study_methods:
        for file in [file for name, options in study.method.parts for file in build_part(name, options).files]:
            record = _record((folder or Path()) / file)
            said = _unknown(cohort) if record is None else _doubts(record, declaration)
            if said:
                notes.append(Note("N274", f"{study.label} learns from the network in {file}. {said}"))
    return notes


def _record(path: Path) -> Description | None:
    """What is known of a network in a folder that ``polyclinic fit`` wrote, or in its file of weights; None of others.

    Raises:
        ModelError: P701, the folder is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / DESCRIPTION).is_file() or (path != folder and path.name != WEIGHTS):
        return None
    description = read_description(folder)
    vouched(folder, WEIGHTS, description)
    return description


def _apart(record: Description, declaration: Declaration, cohort: Cohort) -> list[str]:
    """How what a network was trained for differs from what the study trains for, in words."""
    found = []
    if record.task != declaration.task:
        found.append(f"it was trained for {record.task}, and the task is {declaration.task}")
    found += _order("classes", record.classes, cohort.classes)
    data, own = record.data, declaration.data
    if record.is_table != (own.image is None):
        return [*found, f"its inputs are {'features' if record.is_table else 'images'}, and those of this study not"]
    names_channels = not record.is_table and own.preprocessing is not None  # columns of the table, called anyhow
    if not names_channels or sorted(record.inputs) == sorted(cohort.features):
        found += _order("features" if record.is_table else "channels", record.inputs, cohort.features)
    elif len(record.inputs) != len(cohort.features):
        found.append(f"it has {len(record.inputs)} channels, and images here {len(cohort.features)}")
    if record.shown:
        found.append(f"its images were changed by {record.shown[0][0]} before")
    for entry in ("scaling", "imputation", "harmonisation"):
        found += _other(entry, getattr(data, entry), getattr(own, entry))
    if data.preprocessing is None or own.preprocessing is None:
        if data.preprocessing != own.preprocessing:
            found.append(
                f"its inputs are {'pictures' if data.preprocessing is None else 'volumes'}, and here they are not"
            )
        return found
    for entry in ("orientation", "intensity"):
        found += _other(entry, getattr(data.preprocessing, entry), getattr(own.preprocessing, entry))
    return found


def _other(entry: str, there: object, here: object) -> list[str]:
    """How an entry of the data differs, if it does."""
    return [] if there == here else [f"it had `{entry}: {_text(there)}`, and here it is {_text(here)}"]


def _text(value: object) -> str:
    """A value as it stands in a study file, in one line."""
    content = value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else value
    return json.dumps(content, default=str).replace('"', "")


def _order(what: str, there: Sequence[str], here: Sequence[str]) -> list[str]:
    """How two lists of names differ, if they do."""
    if list(there) == list(here):
        return []
    if sorted(there) == sorted(here):
        return [f"its {what} have another order, {', '.join(there)}, than here, {', '.join(here)}"]
    return [f"its {what} are {some(list(there))}, and here they are {some(list(here))}"]


def _doubts(record: Description, declaration: Declaration) -> str:
    """What differs or may differ, though the network is one for the study; nothing if there is nothing."""
    found = []
    if any(isinstance(step, SharedStep) for step in build_steps(record.steps)):
        found.append(
            "Its inputs were brought to the numbers of the sites that trained it, and here they are to those of this "
            "study's sites, so a value means something else where these differ."
        )
    if record.scale is not None:
        found.append(
            f"It tells numbers by how many deviations of {record.scale[1]:g} they are from {record.scale[0]:g}, those "
            "of the cases that it was trained on, and here they are of this study's."
        )
    volumes, own = record.data.preprocessing, declaration.data.preprocessing
    if volumes is not None and own is not None and volumes.steps != own.steps:
        found.append(f"It had voxels of {_text(volumes.spacing)} mm, and here they are of {_text(own.spacing)}.")
    if not record.is_table and record.data.size != declaration.data.size:
        found.append(f"It had images of {_text(record.data.size)} pixels, and here they are of "
                     f"{_text(declaration.data.size)}.")  # fmt: skip
    return " ".join(found)


def _unknown(cohort: Cohort) -> str:
    """What a network must have been trained for of which nothing is known."""
    lists = (("class", "classes", cohort.classes), ("feature", "features", cohort.features))
    wanted = [f"the {counted(len(names), one, several)} {some(names)}" for one, several, names in lists if names]
    order = f" It must have had {' and '.join(wanted)}, in this order." if wanted else ""
    return (
        "Such a file does not say what its outputs and inputs are, so that was not checked."
        f"{order} Inputs must have been scaled as here."
    )
