"""Tasks: what a network's output means, its loss, its predictions and its metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyclinic.tasks.base import Task
    from polyclinic.tasks.catalogue import TASKS, build_task

__all__ = ["TASKS", "Task", "build_task"]

_HOME = {
    "TASKS": "polyclinic.tasks.catalogue",
    "build_task": "polyclinic.tasks.catalogue",
    "Task": "polyclinic.tasks.base",
}


def __getattr__(name: str) -> Any:
    """What needs PyTorch is imported when it is first used, so that metrics can be had without it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
