"""The pictures of a site's cases as they go into the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyclinic.data.cases import SiteData
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.volumes.store import Volumes
from polyclinic.site.pictures import PLANES, case_pictures
from polyclinic.study.sheet.choice import cases_of_each, choose, class_voxels, measures
from polyclinic.study.sheet.outlines import Picture, draw
from polyclinic.study.sheet.values import Window

#: Where the left edge of each slice lies: right and front of the patient.
_LEFT = {"axial": "R", "coronal": "R", "sagittal": "A"}
#: Channels of a volume that are shown at most.
_MOST_CHANNELS = 4


@dataclass(frozen=True)
class Slice:
    """Where a slice stands in a picture: its left edge in percent, what it is, and what its left edge is."""

    left: float
    name: str
    side: str


@dataclass(frozen=True)
class Shown:
    """One case.

    Attributes:
        case, subject: names.
        tags: what is extreme in it.
        facts: label, part of the study, size of each structure.
        layers: name of each channel ("" for pictures) and its picture.
        slices: of a volume.
        words: what the picture is, for those who can't see it.
    """

    case: str
    subject: str
    tags: list[str]
    facts: list[str]
    layers: list[tuple[str, Picture]]
    slices: list[Slice]
    words: str


def montage(opened: Opened, windows: Sequence[Window]) -> dict[str, list[Shown]]:
    """Site -> the cases shown of it.

    Args:
        opened: images.
        windows: the values of each channel of volumes that are black and white, the same for all sites.
    """
    most = cases_of_each(len(opened.sites))
    shown = {}
    for site, data in opened.sites.items():
        chosen = choose(measures(data, len(opened.classes)), len(data), most)
        shown[site] = [_shown(opened, data, place, tags, windows) for place, tags in chosen.items()]
    return shown


def _shown(opened: Opened, data: SiteData, place: int, tags: list[str], windows: Sequence[Window]) -> Shown:
    structures = max(len(opened.classes) - 1, 1)
    volume = isinstance(data.inputs, Volumes)
    if volume:
        layers, slices = _volume(opened, data, place, windows, structures)
    else:
        mask = data.targets[place][0].numpy() if _masked(data, place) else None
        layers, slices = [("", draw(data.inputs[place].numpy(), mask, structures))], []
    what = "three slices" if volume else "picture"
    words = f"Case {data.cases[place]} of {data.site}: {what}{' with outlines' if _masked(data, place) else ''}."
    subject = data.subjects[place] if data.subjects[place] != data.cases[place] else ""
    return Shown(data.cases[place], subject, tags, _facts(opened, data, place), layers, slices, words)


def _volume(
    opened: Opened, data: SiteData, place: int, windows: Sequence[Window], structures: int
) -> tuple[list[tuple[str, Picture]], list[Slice]]:
    image = data.inputs[place]
    mask = data.targets[place][0] if _masked(data, place) else torch.zeros(image.shape[1:], dtype=torch.uint8)
    about: dict[str, Any] = data.inputs.about[place] if isinstance(data.inputs, Volumes) else {}
    layers, planes = [], np.zeros(0)
    for channel in range(min(len(image), _MOST_CHANNELS)):
        grey = torch.from_numpy(windows[channel].grey(image[channel].float().numpy()))[None]
        found = case_pictures(grey, mask, mask, about["grid_spacing"], about["grid_orientation"])
        name = opened.features[channel] if len(image) > 1 else ""
        drawn = found["mask"].numpy() if _masked(data, place) else None
        layers.append((name, draw(found["image"].numpy(), drawn, structures)))
        planes = found["planes"].numpy()
    starts = 100 * (np.cumsum(planes) - planes) / planes.sum()
    return layers, [Slice(round(float(left), 2), name, _LEFT[name]) for left, name in zip(starts, PLANES, strict=True)]


def _masked(data: SiteData, place: int) -> bool:
    """Whether a case has a mask."""
    return data.masked and bool(data.known[place])


def _facts(opened: Opened, data: SiteData, place: int) -> list[str]:
    facts = [] if data.parts is None else [data.parts[place]]
    labels, findings = data.labels, data.findings
    if not data.known[place]:
        return ["no mask" if data.masked else "no label", *facts]
    if findings is not None:
        return [*(opened.classes[one] for one in findings[place].tolist() if one >= 0), *facts]
    if labels is None:
        return [*facts, *(_structure_sizes(opened, data, place) if data.masked else [])]
    label = labels[place].item()
    return [f"{label:.4g}" if labels.is_floating_point() else opened.classes[int(label)], *facts]


def _structure_sizes(opened: Opened, data: SiteData, place: int) -> list[str]:
    counts = class_voxels(data, place, len(opened.classes))
    millilitres = voxel_volume(data, place)
    sizes = [
        f"{100 * count / counts.sum():.2g}\u00a0%" if millilitres is None else f"{count * millilitres:.3g}\u00a0ml"
        for count in counts[1:]
    ]
    return [f"{name} {size}" for name, size in zip(opened.classes[1:], sizes, strict=True)]


def voxel_volume(data: SiteData, place: int) -> float | None:
    """Size of a voxel of a prepared volume in millilitres; None for pictures."""
    if not isinstance(data.inputs, Volumes):
        return None
    return float(np.prod(data.inputs.about[place]["grid_spacing"])) / 1000
