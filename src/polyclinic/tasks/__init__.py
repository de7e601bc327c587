"""Tasks: what a network's output means, its loss, its predictions and its metrics. Each file of this folder with a
registered task is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["TASKS", "Task", "build_task", "register"]

_HOME = {"TASKS": "catalogue", "build_task": "catalogue", "Task": "base", "register": "base"}

if TYPE_CHECKING:
    from polyclinic.tasks.base import Task, register
    from polyclinic.tasks.catalogue import TASKS, build_task
else:  # not seen by type checkers, which would take any name for one of these

    def __getattr__(name: str) -> Any:
        """What needs PyTorch is imported when it is first used, so that metrics can be had without it."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
