"""What the images of each site are like: shapes, spacings, orientations, intensities, scanners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from polyclinic.data.readers.axes import true_spacing
from polyclinic.data.readers.volume import Volume

_QUANTILES = (0.01, 0.5, 0.99)
_MOST_KINDS = 4
_MOST_VOXELS = 200_000


@dataclass(frozen=True)
class VolumeFacts:
    """What one image is like.

    Attributes:
        shape: columns, rows, slices (and time points or channels).
        spacing: voxel sizes in millimetres; of tilted slices their distance along the normal.
        orientation: code such as ``RAS``.
        quantiles: values below which 1, 50 and 99 % of the voxels are.
        vendor, field_strength: of the scanner; "" and None where not known.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    orientation: str
    quantiles: tuple[float, float, float]
    vendor: str
    field_strength: float | None


def volume_facts(volume: Volume) -> VolumeFacts:
    """Describe a volume. Quantiles of large volumes are those of evenly spread voxels, 200,000 or more."""
    import nibabel as nib

    flat = volume.values.reshape(-1)
    sample = np.asarray(flat[:: max(flat.size // _MOST_VOXELS, 1)], dtype=np.float64)
    sample = sample[np.isfinite(sample)]
    low, middle, high = np.quantile(sample, _QUANTILES).tolist() if sample.size else (np.nan, np.nan, np.nan)
    strength = volume.about.get("field_strength")
    return VolumeFacts(
        shape=volume.values.shape,
        spacing=true_spacing(volume.affine),
        orientation="".join(code or "?" for code in nib.aff2axcodes(volume.affine)),
        quantiles=(low, middle, high),
        vendor=str(volume.about.get("vendor", "")),
        field_strength=float(strength) if strength is not None else None,
    )


def facts_row(facts: Sequence[VolumeFacts]) -> dict[str, str]:
    """What the images of one site are like, as texts.

    ``shapes``, ``orientations``, ``vendors`` and ``field strengths`` (tesla) with counts, the most frequent first;
    ``spacing`` in millimetres, for each axis the median and, where it varies, the range; ``intensity``, the medians
    over images of the 1 %, 50 % and 99 % quantiles.
    """
    spacings = [_spread([one.spacing[axis] for one in facts]) for axis in range(3)] if facts else []
    return {
        "shapes": _frequent("×".join(map(str, one.shape)) for one in facts),
        "spacing": " × ".join(spacings),
        "orientations": _frequent(one.orientation for one in facts),
        "intensity": _intensity(facts),
        "vendors": _frequent(one.vendor or "unknown" for one in facts),
        "field strengths": _frequent(
            "unknown" if one.field_strength is None else f"{one.field_strength:.2g}" for one in facts
        ),
    }


def spacing_ranges(facts: Sequence[VolumeFacts]) -> list[tuple[float, float]]:
    """Lowest and highest voxel size along each axis, in millimetres."""
    axes = zip(*(one.spacing for one in facts), strict=True)
    return [(min(own), max(own)) for own in axes]


def usual_levels(facts: Sequence[VolumeFacts]) -> list[float]:
    """Medians over images of the 1 %, 50 % and 99 % quantiles; none where they are not known."""
    levels: list[float] = np.median([one.quantiles for one in facts], axis=0).tolist() if facts else []
    return levels if np.isfinite(levels).all() else []


def _frequent(texts: Iterable[str]) -> str:
    """``"RAS (10), LPS (2)"``; of many kinds the most frequent ones."""
    counts = Counter(texts)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(ordered) - _MOST_KINDS} more"] if len(ordered) > _MOST_KINDS else []
    return ", ".join([f"{text} ({count})" for text, count in ordered[:_MOST_KINDS]] + more)


def _spread(values: Sequence[float]) -> str:
    middle, lowest, highest = float(np.median(values)), min(values), max(values)
    return f"{middle:.3g}" if highest - lowest < 0.005 else f"{middle:.3g} ({lowest:.3g}–{highest:.3g})"


def _intensity(facts: Sequence[VolumeFacts]) -> str:
    return " / ".join(f"{value:.4g}" for value in usual_levels(facts))
