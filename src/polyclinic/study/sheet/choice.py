"""Which cases of a site a person is shown: the extreme ones, and others spread evenly over the rest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from polyclinic.data.cases import SiteData
from polyclinic.data.volumes.store import Volumes
from polyclinic.study.drawing import Numbers

#: Cases shown of one site at most and, where there are many sites, at least; of all sites together about so many.
MOST, LEAST, TOGETHER = 12, 4, 120
#: Pixels of a picture that are looked at.
_PIXELS = 4096


def cases_of_each(sites: int) -> int:
    """How many cases of each site are shown."""
    return int(np.clip(TOGETHER // max(sites, 1), LEAST, MOST))


def measures(data: SiteData, classes: int) -> dict[tuple[str, str], Numbers]:
    """Numbers ``[N]`` by which cases may be extreme, under the words for the lowest and the highest.

    Args:
        data: images.
        classes: how many classes masks have; what is above them plays no part.
    """
    found: dict[tuple[str, str], Numbers] = {}
    if isinstance(data.inputs, Volumes):
        low, middle, high = np.array([about["facts"]["quantiles"] for about in data.inputs.about], dtype=float).T
        found["darkest as read", "brightest as read"] = high
        found["least contrast as read", "most contrast as read"] = (high - low) / np.maximum(abs(middle), 1e-9)
    else:
        bright, spread = _brightness(torch.as_tensor(data.plain))
        found["darkest", "brightest"] = bright
        found["least contrast", "most contrast"] = spread
    if data.masked:
        found["smallest mask", "largest mask"] = marked_shares(data, classes)
    return found


def _brightness(images: torch.Tensor) -> tuple[Numbers, Numbers]:
    """Mean and deviation of some pixels of each picture ``[N, C, H, W]``."""
    step = max(int(np.sqrt(images.shape[2] * images.shape[3] / _PIXELS)), 1)
    pixels = images[:, :, ::step, ::step].flatten(1).numpy()
    return pixels.mean(axis=1, dtype=np.float64), pixels.std(axis=1, dtype=np.float64)


def marked_shares(data: SiteData, classes: int) -> Numbers:
    """Share of each mask that is one of the structures; NaN for a case without a mask."""
    known = data.known.tolist()
    counts = [class_voxels(data, place, classes) if known[place] else None for place in range(len(data))]
    return np.array([np.nan if each is None else each[1:].sum() / max(each.sum(), 1) for each in counts])


def class_voxels(data: SiteData, place: int, classes: int) -> NDArray[np.int64]:
    """Number of voxels of each class in one mask ``[classes]``; those that play no part are left out."""
    if isinstance(data.targets, Volumes):
        counts = np.asarray(data.targets.about[place]["labels"], dtype=np.int64)
    else:
        counts = np.bincount(data.targets[place].numpy().reshape(-1))
    return np.pad(counts[:classes], (0, max(classes - len(counts), 0)))


def choose(found: Mapping[tuple[str, str], Numbers], cases: int, most: int) -> dict[int, list[str]]:
    """The cases to show, in their order, each with what is extreme in it.

    Half of the places are for extreme cases: the lowest and the highest of each measure, in the order of the measures.
    The others are spread evenly over all cases. The same numbers give the same choice.

    Args:
        found: as from `measures`.
        cases: how many there are.
        most: how many to show.
    """
    chosen: dict[int, list[str]] = {}
    for words, values in found.items():
        known = np.isfinite(values)
        if not known.any() or np.ptp(values[known]) == 0:
            continue
        for word, place in zip(words, (np.nanargmin(values), np.nanargmax(values)), strict=True):
            if int(place) in chosen or len(chosen) < max(most // 2, 2):
                chosen.setdefault(int(place), []).append(word)
    rest = [place for place in range(cases) if place not in chosen]
    left = min(most - len(chosen), len(rest))
    places = np.linspace(0, len(rest) - 1, left).round().astype(int).tolist() if left > 0 else []
    chosen.update({rest[place]: [] for place in places})
    return dict(sorted(chosen.items()))
