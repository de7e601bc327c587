"""Choosing grid, boxes and network once for all sites, from what each site says of its images.

A site answers with counts: how many of its images have which voxel size, and in how many the body takes up how much
space. These counts are added over the sites, so the plan is the one that all images in one place would give, and all
sites train one network on one grid. No single image decides.

Source: the rules follow nnU-Net (Isensee et al., Nature Methods 18 (2021) 203-211), which makes such a plan for one
data set; here it is made from the fingerprints of all sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polyclinic.data.readers.axes import true_spacing
from polyclinic.data.readers.volume import Volume
from polyclinic.data.spec import Preprocessing, Target
from polyclinic.data.volumes.grid import box_of, oriented
from polyclinic.data.volumes.intensity import foreground_of
from polyclinic.data.volumes.preprocessing import single_frame
from polyclinic.limits import Body, Count, Name

#: Voxels of one input that train in reasonable time and memory: 64³ on a processor, 128³ on a GPU.
VOXELS = {"cpu": 64**3, "cuda": 128**3}
_MOST_HALVINGS = 4
_LEAST_SIDE = 4
_FIRST_CHANNELS = 16
#: This share of a site's images has to fit into the grid.
_COVERED = 95
#: Hounsfield units: from below air to above bone, and the width of a bin.
LOWEST, HIGHEST, BIN = -1100, 3100, 10
#: This share of the voxels of a CT image is air, or is beyond bone.
_AIR = 0.01
#: So many voxels of the foreground of each CT image are looked at.
_VOXELS = 10_000
#: The percentiles of the foreground between which a window lies, as nnU-Net has them for CT.
_WINDOW = (0.5, 99.5)

Triple = tuple[float, float, float]


#: A length in millimetres, as a text -> number of images.
Lengths = dict[Name, Count]


class SiteFingerprint(Body):
    """What a site says of its images, along the axes of the study's orientation.

    Attributes:
        cases: how many could be read.
        spacings: for each axis the voxel sizes, to hundredths of a millimetre (or three digits, where they are finer).
        extents: for each axis how much space the foreground takes up, rounded up to steps of about 2 %, see `_step_up`.
        hounsfield: how many look like CT in Hounsfield units.
        values: of these, how many voxels of the foreground have which value: lower end of a bin of `BIN` units ->
            voxels, as many of each image.
    """

    cases: Count
    spacings: tuple[Lengths, Lengths, Lengths]
    extents: tuple[Lengths, Lengths, Lengths]
    hounsfield: Count = 0
    values: dict[Name, Count] = {}  # noqa: RUF012 - pydantic copies it

    @property
    def covered(self) -> Triple:
        """What the foreground takes up in all but the largest 5 % of the images, in mm."""
        x, y, z = (_quantile(counts, _COVERED) for counts in self.extents)
        return x, y, z


@dataclass(frozen=True)
class VolumePlan:
    """Grid, boxes and network for all sites.

    Attributes:
        spacing: voxel sizes in mm.
        size: voxels of the grid.
        patch: voxels of the boxes on which a segmentation network is trained, or None.
        intensity: an entry for ``intensity:``.
        model: an entry for ``model:``.
        batch_size: cases a step.
        reason: in words.
    """

    spacing: Triple
    size: tuple[int, int, int]
    patch: tuple[int, int, int] | None
    intensity: str | dict[str, dict[str, float]]
    model: dict[str, Any]
    batch_size: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """JSON values, for a file that a person can read."""
        return asdict(self)


class Measured(NamedTuple):
    """What one image is like.

    Attributes:
        spacing, extent: voxel sizes, and what the foreground takes up, in mm along the axes of the study's orientation.
        values: of an image that looks like CT in Hounsfield units, counts of `_VOXELS` voxels of the foreground in bins
            of `BIN` units from `LOWEST` on; empty for others.
    """

    spacing: Sequence[float]
    extent: Sequence[float]
    values: Sequence[int] = ()


def measure(volume: Volume, spec: Preprocessing) -> Measured:
    """Measure one image."""
    turned = oriented(single_frame(volume, spec.frames), spec.orientation)
    values = turned.values.astype(np.float32, copy=False)
    inside = foreground_of(values, "otsu")
    first, last = box_of(turned, inside)
    spacing = true_spacing(turned.affine)
    return Measured(spacing, _triple((last - first + 1) * spacing), _hounsfield(values, inside))


def _hounsfield(values: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> list[int]:
    """Counts of the foreground's values; empty unless an image has air and no values beyond those of CT."""
    air = ((values >= LOWEST) & (values <= -700)).mean()
    if air < _AIR or (values > HIGHEST).mean() > _AIR or not inside.any():
        return []
    found = values[inside]
    sample = found[np.linspace(0, found.size - 1, _VOXELS).round().astype(np.int64)]
    bins = int((HIGHEST - LOWEST) / BIN)
    places = np.clip((sample - LOWEST) // BIN, 0, bins - 1).astype(np.int64)
    counts: list[int] = np.bincount(places, minlength=bins).tolist()
    return counts


def fingerprint(measured: Sequence[Measured]) -> SiteFingerprint:
    """A site's fingerprint from what ``measure`` found for each of its cases."""
    spacings, extents = (np.array([one[part] for one in measured], dtype=np.float64) for part in (0, 1))
    known = [one.values for one in measured if len(one.values)]
    totals = np.sum(known, axis=0).tolist() if known else []

    def counted(lengths: npt.NDArray[np.float64]) -> Lengths:
        return {f"{length:.10g}": count for length, count in sorted(Counter(lengths.tolist()).items())}

    sizes, sides = ((counted(axis) for axis in found.T) for found in (_rounded(spacings), _step_up(extents)))
    values = {str(LOWEST + BIN * place): count for place, count in enumerate(totals) if count}
    return SiteFingerprint(
        cases=len(measured), spacings=tuple(sizes), extents=tuple(sides), hounsfield=len(known), values=values
    )


def _step_up(lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Up to the next step: 5 mm from 100 mm on, 0.5 mm from 10 mm on, and so on. A size of a body, not this body's."""
    step = 5 * 10.0 ** (np.floor(np.log10(np.maximum(lengths, 1e-9))) - 2)
    return np.ceil(lengths / step - 1e-6) * step


def _quantile(counts: Lengths, percent: float) -> float:
    """The least length up to which so many percent of the images come."""
    lengths = sorted((float(text), count) for text, count in counts.items())
    needed, reached = percent / 100 * sum(count for _, count in lengths), 0
    for length, count in lengths:
        reached += count
        if reached >= needed - 1e-9:
            return length
    raise ValueError("there is no image")


def make_plan(
    sites: Sequence[SiteFingerprint],
    target: Target,
    device: str,
    spacing: Sequence[float] | None = None,
) -> VolumePlan:
    """The plan for all sites.

    Voxel sizes are the median over the images of all sites; the grid holds the largest site's foreground. A
    segmentation network is trained on boxes where the grid is larger than ``VOXELS``; for a label of the whole image
    voxels are made larger until it fits. The network halves its input while sides stay at least four voxels.

    Args:
        sites: the fingerprints.
        target: what is to be predicted of each case.
        device: ``cpu`` or ``cuda``.
        spacing: voxel sizes that the study fixes.
    """
    voxels = VOXELS["cuda" if device.startswith("cuda") else "cpu"]
    extent = np.max([site.covered for site in sites], axis=0)
    step = np.array(spacing) if spacing is not None else _median(sites)
    if target != "masks" and spacing is None:
        step = step * max(1.0, (float(np.prod(extent / step)) / voxels) ** (1 / 3))
    step = _rounded(step)
    cases = sum(site.cases for site in sites)
    sides = np.ceil(extent / step - 1e-9)
    boxes = _shrunk(sides, voxels) if target == "masks" else sides
    halvings = _halvings(boxes)
    unit = 2**halvings
    size = _whole(np.ceil(sides / unit) * unit)
    patch = _whole(np.maximum(np.floor(boxes / unit) * unit, unit)) if (boxes < sides).any() else None
    channels = [_FIRST_CHANNELS * 2**level for level in range(halvings + 1)]
    intensity = _intensity(sites)
    model = {"unet": {"channels": channels}} if target == "masks" else {"cnn": {"channels": channels}}
    reason = (
        f"{cases} images of {len(sites)} sites: voxels of {_by(step)} mm (median of all images), "
        f"a grid of {_by(size)} (the foreground takes up to {_by(np.round(extent).astype(int))} mm), "
        + (f"trained on boxes of {_by(patch)}" if patch else "trained on whole images")
        + f", {halvings} halvings"
    )
    if isinstance(intensity, dict):
        reason += f"; all are CT, of which {_WINDOW[0]:g} to {_WINDOW[1]:g} % of the foreground lie in the window"
    return VolumePlan(_triple(step), size, patch, intensity, model, 2 if target == "masks" else 4, reason)


def _rounded(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """To hundredths of a millimetre; what is finer, as under a microscope, to three digits."""
    found = [round(size, 2) if size >= 0.1 else float(f"{size:.3g}") for size in sizes.ravel().tolist()]
    return np.array(found).reshape(sizes.shape)


def _intensity(sites: Sequence[SiteFingerprint]) -> str | dict[str, dict[str, float]]:
    """A window for CT, as wide as the values of nearly all of the foreground of all images; else a z-score.

    Empty where some images look like CT and others don't: then a person must say.
    """
    known = sum(site.hounsfield for site in sites)
    if not known:
        return "zscore"
    if known < sum(site.cases for site in sites):
        return ""
    merged = Counter[str]()
    for site in sites:
        merged.update(site.values)
    lower, upper = (_quantile(merged, percent) for percent in _WINDOW)
    return {"window": {"lower": lower, "upper": upper + BIN}}


def _median(sites: Sequence[SiteFingerprint]) -> npt.NDArray[np.float64]:
    """Median voxel size of all images along each axis; of two in the middle the smaller one."""
    merged: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for site in sites:
        for axis, counts in zip(merged, site.spacings, strict=True):
            axis.update(counts)
    return np.array([_quantile(axis, 50) for axis in merged])


def _shrunk(sides: npt.NDArray[np.float64], voxels: int) -> npt.NDArray[np.float64]:
    """The sides with the longest ones cut to one length, so that their product is at most ``voxels``."""
    for cut in np.sort(sides)[::-1]:
        shorter = sides[sides < cut]
        length = (voxels / np.prod(shorter)) ** (1 / (3 - len(shorter))) if len(shorter) < 3 else 0.0
        if length >= (shorter.max() if len(shorter) else 0):
            return np.minimum(sides, length)
    return sides


def _halvings(sides: npt.NDArray[np.float64]) -> int:
    return int(np.clip(np.floor(np.log2(sides.min() / _LEAST_SIDE)), 1, _MOST_HALVINGS))


def _whole(sides: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    x, y, z = (int(side) for side in sides)
    return x, y, z


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _by(values: Sequence[float] | npt.NDArray[Any]) -> str:
    return " x ".join(f"{value:g}" for value in values)
