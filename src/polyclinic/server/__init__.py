"""Server end: how the updates of the sites become the next global state."""

from polyclinic.server import mean, optimizers, robust
from polyclinic.server.rules import SERVER_RULES, ServerRule, build_server

__all__ = ["SERVER_RULES", "ServerRule", "build_server", "mean", "optimizers", "robust"]
