"""Who runs the sites."""

from polyclinic.engine.base import Engine, Reply
from polyclinic.engine.checked import CheckedEngine
from polyclinic.engine.local import LocalEngine

__all__ = ["CheckedEngine", "Engine", "LocalEngine", "Reply"]
