"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from polyclinic.tasks.base import NO_TIMES, TASKS, Head, NamedLoss, Task, TimeGrid

__all__ = ["TASKS", "build_task"]

for _module in iter_modules([str(Path(__file__).parent)]):
    import_module(f"polyclinic.tasks.{_module.name}")


def build_task(
    name: str, classes: int, loss: str | NamedLoss | None = None, scale: tuple[float, float] = (0.0, 1.0),
    grid: TimeGrid = NO_TIMES, heads: Sequence[Head] = (),
) -> Task:  # fmt: skip
    """The task ``name`` for a number of classes, with the named loss, one of the task's ``losses``.

    The default loss is the first. ``scale`` is the mean and deviation of the target of a regression, ``grid`` has the
    times of survival, ``heads`` are several labels.
    """
    task = TASKS[name]
    loss_name, options = (loss, {}) if isinstance(loss, str) else loss or (next(iter(task.losses)), {})
    return task(classes, loss_name, scale, grid, options, heads)
