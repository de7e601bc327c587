"""The tasks by name."""

from __future__ import annotations

from polyclinic.tasks.base import Task
from polyclinic.tasks.classification import Classification
from polyclinic.tasks.regression import Regression
from polyclinic.tasks.segmentation import Segmentation

#: Tasks by the name used under ``task:`` in a study file.
TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "regression": Regression,
}


def build_task(name: str, classes: int, loss: str, scale: tuple[float, float] = (0.0, 1.0)) -> Task:
    """The task ``name`` for a number of classes, with the named loss (one of the task's ``losses``).

    ``scale`` is the mean and deviation of the target of a regression.
    """
    return TASKS[name](classes, loss, scale)
