"""Client end: local training and the parts that change it."""

from polyclinic.client import (
    adapting,
    adversaries,
    alignment,
    amplitudes,
    concatenation,
    consensus,
    drift,
    episodes,
    experts,
    few_labels,
    flatness,
    frequencies,
    labels,
    personal,
    styles,
    teacher,
    unlearning,
)
from polyclinic.client.private import dp_sgd

__all__ = [
    "adapting",
    "adversaries",
    "alignment",
    "amplitudes",
    "concatenation",
    "consensus",
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
    "teacher",
    "unlearning",
]
