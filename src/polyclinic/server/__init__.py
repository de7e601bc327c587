"""Server end: how the updates of the sites become the next global state."""

from polyclinic.server import drift, fairness, mean, optimizers, robust, selection, similarity
from polyclinic.server.rules import SERVER_RULES, ServerRule, build_server

__all__ = [
    "SERVER_RULES",
    "ServerRule",
    "build_server",
    "drift",
    "fairness",
    "mean",
    "optimizers",
    "robust",
    "selection",
    "similarity",
]
