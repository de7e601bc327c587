"""The size of an ultrasound picture's pixels, which stands with the regions of the screen (PS3.3, C.8.5.5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

REGIONS = 0x00186011
ULTRASOUND = ("US", "IVUS", "ICUS")
"""Modalities whose pictures have such regions."""
_TISSUE, _CENTIMETRES = 1, 3
_ALIKE = 0.01
"""Share by which the sizes in several regions may differ."""


def region_spacing(data: Dataset) -> tuple[float, float] | None:
    """Distance of rows, and of columns, in millimetres; None where no region tells it, or regions differ.

    Only two-dimensional regions count, not those of M mode and of spectra, whose axes are times and velocities.
    """
    found = []
    for region in data[REGIONS].value if REGIONS in data else ():
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        if region.get("RegionSpatialFormat") != _TISSUE or units != (_CENTIMETRES, _CENTIMETRES):
            continue
        sizes = [10 * abs(float(region.get(f"PhysicalDelta{axis}") or 0)) for axis in "YX"]
        if min(sizes) > 0 and all(map(math.isfinite, sizes)):
            found.append((sizes[0], sizes[1]))
    if not found or any(abs(a / b - 1) > _ALIKE for sizes in found for a, b in zip(sizes, found[0], strict=True)):
        return None
    return found[0]
