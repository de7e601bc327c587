"""Client end: local training and the parts that change it."""

from polyclinic.client import tuning
from polyclinic.client.domain_shift import (
    adversaries,
    amplitudes,
    concatenation,
    domain_identifiers,
    episodes,
    graph,
    style_generator,
    styles,
    unlearning,
)
from polyclinic.client.drift import alignment, corrections, flatness, labels
from polyclinic.client.few_labels import (
    calibrated_boxes,
    consensus,
    consistency,
    contrast,
    peers,
    relations,
    teacher,
    virtual_samples,
    weak_masks,
)
from polyclinic.client.personal import experts, frequencies, models
from polyclinic.client.private import dp_sgd
from polyclinic.client.synthesis import asyndgan, fed_gan
from polyclinic.client.unseen_sites import adapting, routing, super_model

__all__ = [
    "adapting",
    "adversaries",
    "alignment",
    "amplitudes",
    "asyndgan",
    "calibrated_boxes",
    "concatenation",
    "consensus",
    "consistency",
    "contrast",
    "corrections",
    "domain_identifiers",
    "dp_sgd",
    "episodes",
    "experts",
    "fed_gan",
    "flatness",
    "frequencies",
    "graph",
    "labels",
    "models",
    "peers",
    "relations",
    "routing",
    "style_generator",
    "styles",
    "super_model",
    "teacher",
    "tuning",
    "unlearning",
    "virtual_samples",
    "weak_masks",
]
