"""Client end: local training and the parts that change it."""

from polyclinic.client import (
    adversaries,
    alignment,
    amplitudes,
    drift,
    episodes,
    few_labels,
    flatness,
    frequencies,
    labels,
    personal,
    unlearning,
)
from polyclinic.client.private import dp_sgd

__all__ = [
    "adversaries",
    "alignment",
    "amplitudes",
    "dp_sgd",
    "drift",
    "episodes",
    "few_labels",
    "flatness",
    "frequencies",
    "labels",
    "personal",
    "unlearning",
]
