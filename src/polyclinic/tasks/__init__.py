"""Tasks: what a network's output means, its loss, its predictions and its metrics. Each file of this folder with a
registered task is one.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from polyclinic.tasks.base import TASKS, Task, register

__all__ = ["TASKS", "Task", "build_task", "register"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def build_task(name: str, classes: int, loss: str | None = None, scale: tuple[float, float] = (0.0, 1.0)) -> Task:
    """The task ``name`` for a number of classes, with the named loss, one of the task's ``losses``.

    The default loss is the first. ``scale`` is the mean and deviation of the target of a regression.
    """
    task = TASKS[name]
    return task(classes, loss or task.losses[0], scale)
