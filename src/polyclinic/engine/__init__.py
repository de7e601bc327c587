"""Who runs the sites."""

from polyclinic.engine.base import Engine, Reply
from polyclinic.engine.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Reply"]
