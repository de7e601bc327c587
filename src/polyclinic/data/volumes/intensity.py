"""Normalising the intensities of volumes, each from its own voxels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from polyclinic.options import Catalogue, EntryError

Floats32 = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]

#: Percentiles of the foreground that histogram standardisation aligns.
#: Source: Shah et al., Evaluating intensity normalization on MRIs of human brain with multiple sclerosis, 2011.
LANDMARKS = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)

#: Differences below this share of the values are rounding: a foreground of one value. A share of all differences in the
#: image would not do, since one hot voxel would make a foreground of any image.
_NOTHING = 1e-6

#: Ways of normalising by the name used under ``preprocessing: {intensity: ...}``.
INTENSITIES: Catalogue[Any] = Catalogue("intensity normalisation")


def foreground_of(values: Floats32, how: Literal["nonzero", "otsu", "all"]) -> Booleans:
    """Which voxels count as body rather than air.

    Args:
        values: ``[D, H, W]``.
        how: ``nonzero`` (everything that is not exactly zero, for skull-stripped images), ``otsu`` (above the threshold
            that separates two groups best, for images with noisy air) or ``all``.
    """
    if how == "all":
        return np.ones(values.shape, dtype=np.bool_)
    if how == "nonzero":
        return np.not_equal(values, 0)
    return np.greater(values, otsu_threshold(values))


def otsu_threshold(values: Floats32) -> float:
    """The threshold with the largest variance between the two groups of values that it separates.

    Source: Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9 (1979) 62-66.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    near = high - low < 512 * np.spacing(np.float32(max(abs(low), abs(high))))  # no 256 steps between them in 32 bits
    counts, edges = np.histogram(values.astype(np.float64) if near else values, bins=256, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
        between = below.astype(np.float64) * above * gap**2
    best = np.flatnonzero(between >= np.nanmax(between) * (1 - 1e-9))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)  # the middle of an empty stretch


@INTENSITIES.add("none")
class Unchanged:
    """Values as the file has them (Hounsfield units, for example)."""

    def __call__(self, values: Floats32, foreground: Booleans) -> Floats32:
        """The values themselves."""
        return values


@INTENSITIES.add("zscore")
class ZScore:
    """Mean 0 and standard deviation 1 over the foreground; the rest is 0 where the foreground leaves voxels out.

    Args:
        foreground: ``otsu``, ``nonzero`` or ``all``, see `foreground_of`.
    """

    def __init__(self, *, foreground: Literal["otsu", "nonzero", "all"] = "otsu") -> None:
        self.foreground = foreground

    def __call__(self, values: Floats32, foreground: Booleans) -> Floats32:
        """(x - mean) / deviation; a constant foreground becomes 0, and the rest has the deviation of the whole."""
        inside = values[foreground] if foreground.any() else values
        mean, deviation = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
        if deviation <= _NOTHING * abs(mean):
            deviation = float(values.std(dtype=np.float64)) or 1.0
        scaled: Floats32 = (values - np.float32(mean)) / np.float32(deviation)
        if self.foreground == "nonzero":
            scaled[~foreground] = 0.0
        return scaled


@INTENSITIES.add("percentile")
class Percentile:
    """Two percentiles of the foreground become 0 and 1; values outside are cut.

    Args:
        lower, upper: percentiles.
        foreground: see `foreground_of`.
    """

    def __init__(
        self, *, lower: Percent = 0.5, upper: Percent = 99.5, foreground: Literal["otsu", "nonzero", "all"] = "all"
    ) -> None:
        if lower >= upper:
            raise ValueError(f"`lower` is {lower:g} and `upper` {upper:g}; `lower` must be the smaller one")
        self.lower, self.upper, self.foreground = lower, upper, foreground

    def __call__(self, values: Floats32, foreground: Booleans) -> Floats32:
        """Scale and cut."""
        return _stretch(values, *_ends(values, foreground, self.lower, self.upper))

    def undone(self, values: Floats32, before: Floats32, foreground: Booleans) -> Floats32:
        """Scaled values in the units of the image ``before`` it was scaled."""
        return _unstretched(values, *_ends(before, foreground, self.lower, self.upper))


@INTENSITIES.add("window")
class Window:
    """A range of values becomes 0 to 1, what is outside is cut: the windows of CT, in Hounsfield units.

    Args:
        lower, upper: ends of the window, e.g. -160 and 240 for soft tissue, -1000 and 400 for lungs.
    """

    foreground: Literal["otsu", "nonzero", "all"] = "all"

    def __init__(self, *, lower: float = -160.0, upper: float = 240.0) -> None:
        if lower >= upper:
            raise ValueError(f"`lower` is {lower:g} and `upper` {upper:g}; `lower` must be the smaller one")
        self.lower, self.upper = lower, upper

    def __call__(self, values: Floats32, foreground: Booleans) -> Floats32:
        """Scale and cut."""
        return _stretch(values, self.lower, self.upper)

    def undone(self, values: Floats32, before: Floats32, foreground: Booleans) -> Floats32:
        """Scaled values in the units of the image ``before`` it was scaled."""
        return _unstretched(values, self.lower, self.upper)


@INTENSITIES.add("nyul")
class Nyul:
    """Histogram standardisation: the percentiles ``LANDMARKS`` of each image come to lie where they are on average.

    Here each image's 1st and 99th percentile become 0 and 1, and its landmarks are noted; the average over the training
    cases of all sites, and the piecewise linear map to it, come with the folds, see `standardisation`.

    Source: Nyul, Udupa, Zhang, New variants of a method of MRI scale standardization, IEEE TMI 19 (2000) 143-150.

    Args:
        foreground: see `foreground_of`.
    """

    def __init__(self, *, foreground: Literal["otsu", "nonzero", "all"] = "otsu") -> None:
        self.foreground = foreground

    def __call__(self, values: Floats32, foreground: Booleans) -> Floats32:
        """Scale without cutting: bright vessels stay brighter than the 99th percentile."""
        low, high = _ends(values, foreground, LANDMARKS[0], LANDMARKS[-1])
        scaled: Floats32 = (values - np.float32(low)) / np.float32(high - low)
        return scaled


def check_intensity(entry: object) -> None:
    """Stop unless a study file's ``intensity`` is a normalisation with options that fit.

    Raises:
        EntryError: P102 or P103, with the place.
    """
    if entry == "auto":  # planned from the images of all sites
        return
    name, options = INTENSITIES.resolve(entry, ("data", "preprocessing", "intensity"))
    try:
        INTENSITIES[name](**options)
    except ValueError as error:
        raise EntryError("P102", f"{name}: {error}.", place=("data", "preprocessing", "intensity", name)) from None


def landmarks_of(values: Floats32, foreground: Booleans) -> list[float]:
    """The percentiles ``LANDMARKS`` of the foreground."""
    inside = values[foreground]
    found: list[float] = np.percentile(inside, LANDMARKS).tolist() if inside.size else [0.0] * len(LANDMARKS)
    return found


def _ends(values: Floats32, foreground: Booleans, lower: float, upper: float) -> tuple[float, float]:
    """Two percentiles of the foreground; the ends of all values where these are as good as the same."""
    inside = values[foreground] if foreground.any() else values
    low, high = np.percentile(inside, [lower, upper]).tolist()
    if high - low <= _NOTHING * max(abs(low), abs(high)):
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0


def _stretch(values: Floats32, low: float, high: float) -> Floats32:
    stretched: Floats32 = np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return stretched


def _unstretched(values: Floats32, low: float, high: float) -> Floats32:
    found: Floats32 = values * np.float32(high - low) + np.float32(low)
    return found
