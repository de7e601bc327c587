"""Whether the public set has the sites' units, where it is scaled by what all of them have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from polyclinic.data.opening.public import PublicFacts
from polyclinic.data.preparation import Named
from polyclinic.data.quality.words import some
from polyclinic.data.scaling import Scaler, Summary
from polyclinic.notes import Note

#: So many deviations of the sites a mean lies away, or so many times larger or smaller a deviation is, at most.
FAR = 5.0
#: How near a ratio is to a power of ten, in powers.
_SLACK = 0.2


def public_range(
    public: PublicFacts, steps: Sequence[Named], merged: Sequence[Mapping[str, Tensor]], features: Sequence[str]
) -> list[Note]:
    """A note on features of the public set whose range is another than that of the sites; of none where these don't
    scale by one mean and deviation.

    Args:
        public: what is known of the public set.
        steps: of the preparation.
        merged: of each step, what all sites were told.
        features: names, in order.
    """
    common = next((told for (name, _), told in zip(steps, merged, strict=False) if name == "common_scaling"), None)
    if common is None or len(public.means) != len(features):
        return []
    scaler = Scaler.from_summary(Summary.from_tensors(dict(common)))
    found = []
    for place, name in enumerate(features):
        mean, deviation = public.means[place], public.deviations[place]
        if mean is None or deviation is None:
            continue
        own = float(scaler.mean[place]), float(scaler.deviation[place])
        if abs(mean - own[0]) > FAR * own[1] or not 1 / FAR <= deviation / own[1] <= FAR:
            found.append(f"{name} ({_how(mean, deviation, *own)})")
    if not found:
        return []
    text = (
        f"{len(found)} of {len(features)} features of the public set have another range than the sites' training "
        f"cases, by whose means and deviations all are scaled: {some(found)}. Bring them to the units of the sites."
    )
    return [Note("N273", text)]


def _how(mean: float, deviation: float, own_mean: float, own_deviation: float) -> str:
    """How a feature differs: by a power of ten in mean and deviation, as another unit does, or otherwise."""
    if mean * own_mean > 0 and deviation > 0:
        sizes, widths = math.log10(mean / own_mean), math.log10(deviation / own_deviation)
        power = round(sizes)
        if power and abs(sizes - power) < _SLACK and abs(widths - power) < 2.5 * _SLACK:
            return f"about {10.0**power:g} times"
    return f"mean {mean:.3g} and deviation {deviation:.3g}, at the sites {own_mean:.3g} and {own_deviation:.3g}"
