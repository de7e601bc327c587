"""How many patients, and cases of each class, are in the parts of a site: whole numbers that describe a split."""

from __future__ import annotations

import torch
from torch import Tensor

from polyclinic.data.cases import SiteData
from polyclinic.data.splits import Parts


def part_patients(data: SiteData, parts: Parts) -> list[int]:
    """Patients in the training, the validation and the test part; no patient is in two of them."""
    return [len({data.subjects[place] for place in index.tolist()}) for index in _three(parts)]


def part_classes(data: SiteData, parts: Parts, classes: int) -> list[list[int]]:
    """Cases of each class in the training, the validation and the test part; empty lists where targets are no classes.

    Args:
        data: the site's cases.
        parts: of a fold.
        classes: number of classes.
    """
    labels = data.labels_or_findings
    if labels is None or labels.is_floating_point():
        return [[], [], []]
    found = [labels[index].flatten() for index in _three(parts)]
    return [torch.bincount(own[own >= 0], minlength=classes).tolist() for own in found]


def part_groups(data: SiteData, parts: Parts) -> dict[str, dict[str, list[int]]]:
    """Subgroup -> group -> cases in the training, the validation and the test part, then patients in the same."""
    return {
        name: {group: _counts(data, parts, own, group) for group in sorted(set(own))}
        for name, own in (data.groups or {}).items()
    }


def _counts(data: SiteData, parts: Parts, groups: list[str], group: str) -> list[int]:
    places = [[place for place in index.tolist() if groups[place] == group] for index in _three(parts)]
    people = [{data.subjects[place] for place in own} for own in places]
    return [len(own) for own in [*places, *people]]


def _three(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    return parts.train, parts.validation, parts.test
