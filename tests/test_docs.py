"""The documentation says what the program does: names, defaults, commands and messages are checked against it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from polyclinic import Study, cli
from polyclinic.client.optimizers import resolve_optimizer, resolve_schedule
from polyclinic.client.rules import LOCAL_RULES
from polyclinic.data.augmentation import INTENSITY, SPATIAL
from polyclinic.data.spec import DataSpec
from polyclinic.errors import TITLES
from polyclinic.methods import ABOUT, METHODS, SHARES
from polyclinic.models.catalogue import MODELS
from polyclinic.options import describe_options
from polyclinic.server import SERVER_RULES
from polyclinic.study.declaration import Declaration, EngineOptions, Evaluation, ReportOptions, Training
from polyclinic.tasks import TASKS
from polyclinic.tasks.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: Heading in the study file's page -> the part of a study file that it describes.
PARTS: dict[str, type[BaseModel]] = {
    "The file as a whole": Declaration,
    "`data`": DataSpec,
    "`training`": Training,
    "`evaluation`": Evaluation,
    "`engine`": EngineOptions,
    "`report`": ReportOptions,
}
#: Defaults that are told in words.
IN_WORDS = ("required", "see below")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def sections(text: str, level: int = 2) -> dict[str, str]:
    """Heading of the level -> what stands below it."""
    parts = re.split(rf"^{'#' * level} (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Cells of all rows of the Markdown tables in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    """The texts between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


# The study file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", PARTS)
def test_every_entry_of_the_study_file_stands_in_its_page_with_its_default(heading: str):
    model = PARTS[heading]
    found = {cells[0].strip("`"): cells[1] for cells in rows(sections(text_of("study-file.md"))[heading])}
    found.pop("entry")
    assert list(found) and set(found) == set(model.model_fields)
    for name, told in found.items():
        field = model.model_fields[name]
        if told in IN_WORDS:
            assert field.is_required() == (told == "required"), name
        elif told == "none" or field.default is None:
            assert (told, field.default) == ("none", None), name
        else:
            default = yaml.safe_load(told.strip("`"))
            assert default == field.default, name


def test_every_name_that_a_study_file_may_use_stands_in_its_page():
    page = set(names(text_of("study-file.md")))
    told = " ".join(page)
    for catalogue in (METHODS, MODELS, LOCAL_RULES, SERVER_RULES):
        assert not [name for name in catalogue if name not in page], catalogue.kind
    assert page >= {*SPATIAL, *INTENSITY, *METRICS, *(share for share in SHARES if share != "none")}
    for task in TASKS.values():
        assert page >= {task.name, *task.losses, *task.metrics}
    assert {"RandFlip", "auc"} <= set(names(told)) | page


def test_models_stand_in_the_page_with_their_options():
    table = {cells[0].strip("`"): cells[1] for cells in rows(sections(text_of("study-file.md"))["Models"])}
    table.pop("name")
    assert {name: names(cell) for name, cell in table.items()} == {n: list(describe_options(MODELS[n])) for n in MODELS}


def test_losses_and_metrics_stand_in_the_page_in_their_order():
    table = {cells[0].strip("`"): cells[1:] for cells in rows(sections(text_of("study-file.md"))["Losses and metrics"])}
    for task in TASKS.values():
        losses, metrics = table[task.name]
        assert (names(losses), names(metrics)) == (list(task.losses), list(task.metrics))
    assert set(METRICS) <= set(table)


def test_optimisers_and_schedules_of_the_page_exist():
    table = {cells[0].strip("`"): cells[2] for cells in rows(sections(text_of("study-file.md"))["`training`"])}
    optimizers = [name for name in names(table["optimizer"]) if re.fullmatch(r"[a-z]+", name)]
    assert len(optimizers) == 12
    for name in optimizers:
        resolve_optimizer(name, ())
    needed = {"step": {"step_size": 2}, "multistep": {"milestones": [2]}, "exponential": {"gamma": 0.9},
              "cosine_annealing": {"T_max": 5}, "cosine_annealing_warm_restarts": {"T_0": 5},
              "cyclic": {"base_lr": 0.01, "max_lr": 0.1}, "one_cycle": {"max_lr": 0.1, "total_steps": 5}}  # fmt: skip
    schedules = [name for name in names(table["schedule"]) if re.fullmatch(r"[a-z_]+", name)]
    assert set(needed) < set(schedules)
    for name in schedules:
        resolve_schedule({name: needed.get(name, {})}, ("sgd", {"lr": 0.1, "momentum": 0.9}), ())


def test_examples_of_the_study_file_page_are_valid():
    base: dict[str, Any] = {"data": {"table": "t.csv", "site": "s", "label": "l", "features": "*"}, "model": "logistic"}
    images = {"table": "t.csv", "site": "s", "label": "l", "image": "i", "size": [32, 32]}
    for block in blocks(text_of("study-file.md"), "yaml"):
        content = yaml.safe_load(block)
        if "augmentation" in content:
            content = {"data": images | content, "model": "cnn"}
        Study.of(base | content)


# Methods, errors, files -----------------------------------------------------------------------------------------------


def test_the_table_of_methods_is_the_catalogue():
    found = {cells[0].strip("`"): cells[1:] for cells in rows(text_of("methods.md"))}
    found.pop("name")
    told = {name: (place, says, names(options), source) for name, (place, says, options, source) in found.items()}
    assert told == {
        name: (ABOUT[name].place, ABOUT[name].summary, list(describe_options(METHODS[name])), ABOUT[name].citation)
        for name in METHODS
    }


def test_every_method_has_a_section_with_rule_use_and_source():
    found = sections(text_of("methods.md"))
    assert list(found) == list(METHODS)
    for name, text in found.items():
        assert all(word in text for word in ("**Rule.**", "**When.**", "**Source.**")), name
        assert ("**Options.**" in text) == bool(describe_options(METHODS[name])), name


def test_every_error_has_a_section():
    found = sections(text_of("errors.md"))
    assert list(found) == [f"{code}: {title}" for code, title in TITLES.items()]
    for heading, text in found.items():
        assert "*What it means.*" in text, heading
        assert "*How to resolve it.*" in text, heading


def test_every_function_of_a_site_stands_in_the_architecture():
    from polyclinic.site import Site
    from tests_support import small_site

    told = {name for cells in rows(text_of("architecture.md")) for name in names(cells[0])}
    functions = Site(small_site(), workspace=None)._functions  # type: ignore[arg-type]
    assert set(functions) <= told
