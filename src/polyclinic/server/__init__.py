"""Server end: how the updates of the sites become the next global state."""

from polyclinic.parts import SERVER_PARTS
from polyclinic.server import (
    conflicts,
    costs,
    distillation,
    drift,
    fairness,
    group_fairness,
    heads,
    heterofl,
    learned,
    mean,
    optimizers,
    robust,
    selection,
    similarity,
)
from polyclinic.server.chain import Chain

__all__ = [
    "SERVER_PARTS",
    "Chain",
    "conflicts",
    "costs",
    "distillation",
    "drift",
    "fairness",
    "group_fairness",
    "heads",
    "heterofl",
    "learned",
    "mean",
    "optimizers",
    "robust",
    "selection",
    "similarity",
]
