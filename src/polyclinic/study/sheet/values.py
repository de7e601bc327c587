"""How the values of each site are distributed: of images, of features, of the numbers to be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyclinic.data.cases import SiteData
from polyclinic.data.opening.cohort import Opened
from polyclinic.data.volumes.store import Volumes
from polyclinic.study.drawing import Numbers, Panel
from polyclinic.study.sheet.ridges import ridges

#: Images of a site, and values of each image, that are looked at; features that are drawn.
MOST_IMAGES, MOST_VALUES, MOST_FEATURES = 60, 5_000, 12


@dataclass(frozen=True)
class Window:
    """The values of a channel that are shown black and white."""

    low: float
    high: float

    def grey(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """The values as bytes."""
        share = (np.nan_to_num(values) - self.low) / max(self.high - self.low, 1e-12)
        grey: NDArray[np.uint8] = (np.clip(share, 0, 1) * 255).round().astype(np.uint8)
        return grey


def image_values(data: SiteData) -> list[Numbers]:
    """Some values of each channel of a site's prepared images: evenly spread images, and pixels within them.

    One value that fills more than a twentieth of the lot, such as the black around an image, is left out.
    """
    places = np.unique(np.linspace(0, len(data) - 1, MOST_IMAGES).round().astype(int))
    images = [data.inputs[int(place)].flatten(1).numpy() for place in places]
    step = max(images[0].shape[1] // MOST_VALUES, 1)
    return [
        _without_ground(np.concatenate([image[channel, ::step] for image in images]))
        for channel in range(data.inputs.shape[1])
    ]


def _without_ground(given: NDArray[np.generic]) -> Numbers:
    values: Numbers = given.astype(np.float64)
    different, counts = np.unique(given, return_counts=True)
    if len(different) > 2 and counts.max() > len(values) / 20:
        values = values[given != different[counts.argmax()]]
    return values


def windows(values: Mapping[str, Sequence[Numbers]]) -> list[Window]:
    """For each channel, the mean over the sites of the 1 % and the 99 % percentile: the same grey for all."""
    sites = list(values.values())
    ends = [np.mean([np.percentile(site[channel], (1, 99)) for site in sites], 0) for channel in range(len(sites[0]))]
    return [Window(float(low), float(high)) for low, high in ends]


def intensity_panels(opened: Opened, values: Mapping[str, Sequence[Numbers]]) -> list[Panel]:
    """A panel a channel: how the values of the prepared images of each site are distributed."""
    volumes = any(isinstance(data.inputs, Volumes) for data in opened.sites.values())
    panels = []
    for channel, name in enumerate(opened.features):
        rows = {site: one[channel] for site, one in values.items()}
        limits = None if volumes else (-0.5, 255.5)
        panels.append(ridges(name, rows, limits=limits, kind="intensity"))
    return panels


def number_panel(opened: Opened, name: str) -> Panel | None:
    """How the numbers to be predicted are distributed at each site."""
    labels = {site: data.with_labels().labels for site, data in opened.sites.items()}
    rows = {
        site: numbers.double().numpy()
        for site, numbers in labels.items()
        if numbers is not None and numbers.is_floating_point()
    }
    return ridges(name, rows, kind="label") if rows else None


def feature_panels(opened: Opened) -> list[Panel]:
    """The features that differ most between the sites; of one site alone, those with the most extreme values."""
    tables = {site: data.table.double().numpy() for site, data in opened.sites.items()}
    everything = np.concatenate(list(tables.values()))
    if len(tables) > 1:
        home = np.repeat(np.arange(len(tables)), [len(table) for table in tables.values()])
        worth = np.array([explained(column, home) for column in everything.T])
    else:
        worth = np.array([_reach(column) for column in everything.T])
    order = np.argsort(-np.nan_to_num(worth, nan=-1.0), kind="stable")[:MOST_FEATURES]
    rows = [(place, {site: table[:, place] for site, table in tables.items()}) for place in order.tolist()]
    return [ridges(opened.features[place], own, kind=f"feature {place}") for place, own in rows if worth[place] >= 0]


def explained(values: Numbers, home: NDArray[np.int64]) -> float:
    """How far the sites differ in a feature, in place or in spread, from 0 to 1; NaN where all values are alike.

    The greater of two shares: of the variance of the values' ranks, and of the ranks of their distances from the
    median, that lies between the sites. Ranks, so that one extreme value can't hide a difference in units.
    """
    known = np.isfinite(values)
    if not known.any():
        return float("nan")
    values, home = values[known], home[known]
    return max(_between(values, home), _between(np.abs(values - np.median(values)), home))


def _between(values: Numbers, home: NDArray[np.int64]) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(values)
    ranks -= ranks.mean()
    total = float((ranks**2).sum())
    sums, counts = np.bincount(home, ranks), np.bincount(home)
    between = float((sums**2 / np.maximum(counts, 1)).sum())
    return between / total if total > 0 else float("nan")


def _reach(values: Numbers) -> float:
    """How many times the middle half the farthest value lies away from the median."""
    known = values[np.isfinite(values)]
    low, middle, high = np.percentile(known, (25, 50, 75)) if len(known) else (np.nan,) * 3
    return float(np.abs(known - middle).max() / (high - low)) if len(known) and high > low else float("nan")
