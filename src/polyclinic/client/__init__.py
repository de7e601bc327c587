"""Client end: local training and the parts that change it."""

from polyclinic.client import (
    adapting,
    adversaries,
    alignment,
    amplitudes,
    concatenation,
    drift,
    episodes,
    experts,
    few_labels,
    flatness,
    frequencies,
    labels,
    personal,
    styles,
    tuning,
    unlearning,
)
from polyclinic.client.private import dp_sgd

__all__ = [
    "adapting",
    "adversaries",
    "alignment",
    "amplitudes",
    "concatenation",
    "dp_sgd",
    "drift",
    "episodes",
    "experts",
    "few_labels",
    "flatness",
    "frequencies",
    "labels",
    "personal",
    "styles",
    "tuning",
    "unlearning",
]
