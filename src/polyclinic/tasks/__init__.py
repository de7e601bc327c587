"""Tasks: what a network's output means, its loss, its predictions and its metrics."""

from __future__ import annotations

from polyclinic.tasks.base import Task
from polyclinic.tasks.classification import Classification
from polyclinic.tasks.segmentation import Segmentation

__all__ = ["TASKS", "Classification", "Segmentation", "Task", "build_task"]

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


def build_task(name: str, classes: int, loss: str) -> Task:
    """The task ``name`` for a number of classes, with the named loss (one of the task's ``losses``)."""
    return TASKS[name](classes, loss)
